package cmd

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script for bash, zsh or fish", ArgsUsage: "SHELL",
		Action: p.action("completion", func(_ context.Context, c *cli.Context) error {
			text, err := completionScript(c.App, c.Args().Slice())
			if err != nil {
				return err
			}
			return p.show(text)
		}),
	}
}

func completionScript(app *cli.App, shell []string) (string, error) {
	if len(shell) == 1 {
		switch shell[0] {
		case "bash":
			return bashScript(app), nil
		case "zsh":
			return "autoload -U +X bashcompinit && bashcompinit\n" + bashScript(app), nil
		case "fish":
			return app.ToFishCompletion()
		}
	}
	return "", fault.New(fault.UsageError, "completion takes a shell: bash, zsh or fish")
}

// bashScript completes commands, their subcommands and flags; files otherwise.
func bashScript(app *cli.App) string {
	var b strings.Builder
	b.WriteString("_sitrep() {\n  local cur=${COMP_WORDS[COMP_CWORD]} word words=\"\"\n")
	fmt.Fprintf(&b, "  local top=\"%s\"\n", strings.Join(append(commandNames(app.Commands), flagNames(app.Flags)...), " "))
	b.WriteString("  words=$top\n  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n    case $word in\n")
	for _, c := range app.Commands {
		words := append(commandNames(c.Subcommands), append(flagNames(c.Flags), flagNames(app.Flags)...)...)
		for _, s := range c.Subcommands {
			words = append(words, flagNames(s.Flags)...)
		}
		fmt.Fprintf(&b, "      %s) words=\"%s\"; break ;;\n", c.Name, strings.Join(words, " "))
	}
	b.WriteString("    esac\n  done\n  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\n" +
		"complete -o default -F _sitrep sitrep\n")
	return b.String()
}

func commandNames(list []*cli.Command) []string {
	var out []string
	for _, c := range list {
		out = append(out, c.Name)
	}
	return out
}

func flagNames(list []cli.Flag) []string {
	var out []string
	for _, f := range list {
		for _, n := range f.Names() {
			if len(n) > 1 {
				out = append(out, "--"+n)
			}
		}
	}
	return out
}

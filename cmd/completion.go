package cmd

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/site"
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script for bash, zsh or fish", ArgsUsage: "SHELL",
		Description: "bash: source <(sitrep completion bash)   zsh: source <(sitrep completion zsh)   fish: sitrep completion fish | source\n" +
			"Commands and flags are completed, and the names of VMs, plans, clouds and recovery points of the site file.",
		Action: p.action("completion", func(_ context.Context, c *cli.Context) error {
			text, err := completionScript(c.Args().Slice())
			if err != nil {
				return err
			}
			return p.show(text)
		}),
	}
}

// The scripts ask the program itself what can stand at the cursor: it knows its commands, and reads the site file.
const (
	bashScript = `_sitrep() {
  local cur=${COMP_WORDS[COMP_CWORD]} IFS=$'\n'
  COMPREPLY=($(compgen -W "$(sitrep candidates -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "$cur"))
}
complete -o default -F _sitrep sitrep
`
	fishScript = `complete -c sitrep -f -a '(sitrep candidates -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
complete -c sitrep -n 'test (count (sitrep candidates -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)) -eq 0' -F
`
)

func completionScript(shell []string) (string, error) {
	if len(shell) == 1 {
		switch shell[0] {
		case "bash":
			return bashScript, nil
		case "zsh":
			return "autoload -U +X bashcompinit && bashcompinit\n" + bashScript, nil
		case "fish":
			return fishScript, nil
		}
	}
	return "", fault.New(fault.UsageError, "completion takes a shell: bash, zsh or fish")
}

// candidatesCommand answers the completion scripts: its arguments are the words after "sitrep" up to the cursor, the last of them
// the one that is being written.
func (p *program) candidatesCommand() *cli.Command {
	return &cli.Command{
		Name: "candidates", Hidden: true, ArgsUsage: "WORD...",
		Action: p.action("candidates", func(ctx context.Context, c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) == 0 {
				words = []string{""}
			}
			ctx, cancel := context.WithTimeout(ctx, completionTime)
			defer cancel()
			list := (&completion{p: p, ctx: ctx}).candidates(c.App, words[:len(words)-1], words[len(words)-1])
			return p.show(strings.Join(append(list, ""), "\n"))
		}),
	}
}

// completionTime is how long somebody who presses Tab waits for a store.
const completionTime = 2 * time.Second

// completion finds what can be written next. What cannot be found out is not offered; nothing is an error.
type completion struct {
	p   *program
	ctx context.Context
}

// candidates are the words that can stand where cur is being written, after the words before it.
func (k *completion) candidates(app *cli.App, before []string, cur string) []string {
	s := splitter{global: app.Flags, commands: app.Commands}
	s.split(before)
	k.where(before)
	if n := len(before); n > 0 {
		if f := k.open(&s, before[n-1]); f != nil {
			return k.values(f, s.names)
		}
	}
	if name, _, ok := strings.Cut(cur, "="); ok && strings.HasPrefix(cur, "-") {
		return prefixed(name+"=", k.values(k.open(&s, name), s.names))
	}
	if strings.HasPrefix(cur, "-") {
		return append(flagNames(s.command), flagNames(app.Flags)...)
	}
	return k.words(app, &s)
}

// words are commands, or else the names that the command takes.
func (k *completion) words(app *cli.App, s *splitter) []string {
	if len(s.names) == 0 && len(s.commands) > 0 {
		if words := commandNames(s.commands); len(words) > 0 {
			if len(s.path) == 0 {
				words = append(words, "help")
			}
			return words
		}
	}
	switch {
	case len(s.path) == 0:
		return nil
	case s.path[0] == "help":
		return append(commandNames(app.Commands), topicNames()...)
	case s.path[0] == "completion":
		return []string{"bash", "zsh", "fish"}
	case strings.HasPrefix(s.usage, "VM"), strings.HasPrefix(s.usage, "[VM"):
		if s.usage == "VM" && len(s.names) > 0 {
			return nil
		}
		return slices.DeleteFunc(k.vms(), func(name string) bool { return slices.Contains(s.names, name) })
	}
	return nil
}

// open is the flag that a word is, when a value has to follow it.
func (k *completion) open(s *splitter, word string) cli.Flag {
	if !strings.HasPrefix(word, "-") || strings.Contains(word, "=") {
		return nil
	}
	name := strings.TrimLeft(word, "-")
	f := find(s.command, name)
	if f == nil {
		f = find(s.global, name)
	}
	if f == nil || !takesValue(f) {
		return nil
	}
	return f
}

// values are what a flag can be given.
func (k *completion) values(f cli.Flag, names []string) []string {
	if f == nil {
		return nil
	}
	switch f.Names()[0] {
	case "progress":
		return []string{"auto", "bar", "lines", "none"}
	case "mode":
		return []string{string(failover.MinimalDowntime), string(failover.DuringFailover)}
	case "cloud":
		return k.fromSite(func(s *site.Site) (out []string) {
			for _, c := range s.VMM.Clouds {
				out = append(out, c.Name)
			}
			return out
		})
	case "plan":
		return k.fromSite(func(s *site.Site) (out []string) {
			for _, plan := range s.RecoveryPlans {
				out = append(out, plan.Name)
			}
			return out
		})
	case "to":
		return k.fromSite(func(s *site.Site) (out []string) {
			for _, c := range s.VMM.Clouds {
				for _, h := range c.Hosts {
					out = append(out, h.Name)
				}
			}
			return out
		})
	case "network":
		return k.fromSite(func(s *site.Site) (out []string) {
			for _, n := range s.Recovery.Networks {
				out = append(out, n.Name)
			}
			return append(out, site.Isolated)
		})
	case "vm":
		return k.vms()
	case "export", "promote", "demote":
		return append([]string{failover.Latest}, k.points(names)...)
	case "point":
		return append([]string{failover.Latest, failover.LatestProcessed, failover.LatestAppConsistent}, k.points(names)...)
	}
	return nil // a file, a number, a text
}

// where takes the flags from a command line that say where the site is.
func (k *completion) where(words []string) {
	for i, w := range words {
		name, value, ok := strings.Cut(strings.TrimLeft(w, "-"), "=")
		if !ok && i+1 < len(words) {
			value = words[i+1]
		}
		switch {
		case !strings.HasPrefix(w, "-") || value == "":
		case name == "site":
			k.p.opts.site = value
		case name == "state":
			k.p.opts.state = value
		}
	}
}

func (k *completion) vms() []string {
	return k.fromSite(func(s *site.Site) (out []string) {
		for _, vm := range s.VMs() {
			out = append(out, vm.Name)
		}
		return out
	})
}

// fromSite are names of the site file; none where it cannot be read.
func (k *completion) fromSite(names func(*site.Site) []string) []string {
	s, err := site.Load(k.p.fs, k.p.opts.site)
	if err != nil {
		return nil
	}
	return names(s)
}

// points are the recovery points of the VM that was named, the newest first.
func (k *completion) points(names []string) []string {
	w, err := k.p.open()
	if err != nil || len(names) == 0 {
		return nil
	}
	vm, err := w.site.VM(names[0])
	if err != nil {
		return nil
	}
	r, st, err := w.replica(k.ctx, vm, forReading)
	if err != nil {
		return nil
	}
	defer r.Close()
	var out []string
	for _, x := range slices.Backward(st.Points) {
		out = append(out, x.ID)
	}
	return out
}

func prefixed(prefix string, list []string) []string {
	for i := range list {
		list[i] = prefix + list[i]
	}
	return list
}

func topicNames() []string {
	var out []string
	for _, t := range topics() {
		out = append(out, t.name)
	}
	return out
}

func commandNames(list []*cli.Command) []string {
	var out []string
	for _, c := range list {
		if !c.Hidden {
			out = append(out, c.Name)
		}
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

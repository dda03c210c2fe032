package cmd

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/urfave/cli/v2"
)

func (p *program) manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page; \"sitrep man | man -l -\" shows it",
		Action: p.action("man", func(_ context.Context, c *cli.Context) error {
			return p.show(string(md2man.Render([]byte(manual(c.App)))))
		}),
	}
}

// manual is the manual page as Markdown: the commands with their flags, and all topics.
func manual(app *cli.App) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%% SITREP 8 %q %q \"System Administration\"\n\n# NAME\n\nsitrep - %s\n\n# SYNOPSIS\n\n", manDate(), "sitrep "+version(), app.Usage)
	fmt.Fprintf(&b, "**sitrep** [**--site** *FILE*] [*global flags*] *COMMAND* [*flags*] [*VM*...]\n\n# DESCRIPTION\n\n%s\n\n", manIntroduction)
	b.WriteString("# GLOBAL FLAGS\n\n" + manFlags(app.Flags) + "# COMMANDS\n\n")
	for _, c := range app.Commands {
		manCommandText(&b, "sitrep ", c)
	}
	for _, t := range topics() {
		fmt.Fprintf(&b, "# %s\n\n%s\n", t.title, t.text())
	}
	fmt.Fprintf(&b, "# EXAMPLES\n\n%s", manExamples)
	return b.String()
}

// manDate is the day of the commit that the program was built of; where that is not known, the day on which it was built.
func manDate() string {
	if day, _, ok := strings.Cut(buildOf().time, "T"); ok {
		return day
	}
	path, err := os.Executable()
	if err != nil {
		return ""
	}
	file, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return file.ModTime().UTC().Format(time.DateOnly)
}

const manIntroduction = "sitrep copies the disks of virtual machines to a store, keeps the copies up to date by change logs, keeps recovery points, starts the VMs " +
	"at a recovery site, and brings them home. A YAML file describes the site. There is no service: each command does one thing and ends."

const manExamples = `    sitrep init                                     # writes a site file to begin with
    sitrep check                                    # finds its mistakes
    sitrep protect web01                            # makes the replica of a VM
    sitrep delta --all                              # brings all replicas up to date, from cron
    sitrep status                                   # how the VMs are
    sitrep points web01 --export latest --to FOLDER # the disks of a recovery point as files
    sitrep failover test web01                      # a VM beside the replication, in an isolated network
    sitrep failover cleanup web01
    sitrep failover unplanned web01                 # the site is gone; then: failover commit, or failover undo
`

// manCommandText writes a command and those below it.
func manCommandText(b *strings.Builder, path string, c *cli.Command) {
	if c.Hidden {
		return
	}
	fmt.Fprintf(b, "## %s%s %s\n\n%s.\n\n", path, c.Name, c.ArgsUsage, strings.TrimSuffix(sentence(c.Usage), "."))
	if c.Description != "" {
		b.WriteString(c.Description + "\n\n")
	}
	b.WriteString(manFlags(c.Flags))
	for _, s := range c.Subcommands {
		manCommandText(b, path+c.Name+" ", s)
	}
}

func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// manFlags lists flags with their values.
func manFlags(list []cli.Flag) string {
	var b strings.Builder
	for _, f := range list {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		value, usage := unquoted(d.GetUsage())
		name := "**--" + f.Names()[0] + "**"
		if d.TakesValue() {
			name += " *" + cmpOr(value, "VALUE") + "*"
		}
		if def := d.GetValue(); d.TakesValue() && def != "" && def != "0s" {
			usage += " (default: " + strings.Trim(def, `"`) + ")"
		}
		fmt.Fprintf(&b, "%s\n: %s\n\n", name, usage)
	}
	return b.String()
}

// unquoted finds the value's name in the usage of a flag, where it stands in backquotes.
func unquoted(usage string) (value, text string) {
	before, rest, ok := strings.Cut(usage, "`")
	value, after, closed := strings.Cut(rest, "`")
	if !ok || !closed {
		return "", usage
	}
	return value, before + value + after
}

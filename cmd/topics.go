package cmd

import (
	"context"
	"embed"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
)

// topicFiles are the texts of "sitrep help TOPIC". They are the parts of the manual page too, and for that Markdown: paragraphs, and
// tables that are indented by four blanks.
//
//go:embed topics/*.md
var topicFiles embed.FS

// topic is something that help tells besides commands.
type topic struct {
	name, title string
	about       string // one line
}

func topics() []topic {
	return []topic{
		{"exit-codes", "EXIT STATUS", "what commands exit with"},
		{"site-file", "SITE FILE", "the keys of the site file, their types and defaults"},
		{"files", "FILES", "what lies where"},
		{"environment", "ENVIRONMENT", "variables that are read, and set"},
		{"points", "RECOVERY POINTS", "how a recovery point is named; latest and latest-processed"},
	}
}

func isTopic(name string) bool {
	for _, t := range topics() {
		if t.name == name {
			return true
		}
	}
	return false
}

// text is what the topic says.
func (t topic) text() string {
	data, err := topicFiles.ReadFile("topics/" + t.name + ".md")
	if err != nil {
		return "" // a test has read them all
	}
	return string(data)
}

// topicCommand is what "sitrep help TOPIC" becomes.
func (p *program) topicCommand() *cli.Command {
	return &cli.Command{
		Name: "topic", Hidden: true, ArgsUsage: "NAME",
		Action: p.action("help", func(_ context.Context, c *cli.Context) error {
			for _, t := range topics() {
				if t.name == c.Args().First() {
					return p.show(t.text())
				}
			}
			return fault.New(fault.UsageError, "there is no topic %q", c.Args().First())
		}),
	}
}

// topicList is the topics for the help of all.
func topicList() string {
	var b strings.Builder
	b.WriteString("More is told by:\n")
	for _, t := range topics() {
		fmt.Fprintf(&b, "sitrep help %-13s %s\n", t.name, t.about)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

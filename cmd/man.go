package cmd

import (
	"context"

	"github.com/urfave/cli/v2"
)

func (p *program) manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page; \"sitrep man | man -l -\" shows it",
		Action: p.action("man", func(_ context.Context, c *cli.Context) error {
			text, err := c.App.ToMan()
			if err != nil {
				return err
			}
			return p.show(text)
		}),
	}
}

package cmd

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/site"
)

func (p *program) initCommand() *cli.Command {
	return &cli.Command{
		Name: "init", Usage: "write a commented starter site file; never overwrites", ArgsUsage: "[FILE]",
		Action: p.action("init", p.initSite),
	}
}

func (p *program) initSite(_ context.Context, c *cli.Context) error {
	if c.NArg() > 1 {
		return fault.New(fault.UsageError, "init takes one file")
	}
	name := cmpOr(c.Args().First(), p.opts.site)
	if name == onStdout {
		return fault.New(fault.UsageError, "init writes a file: give it a name, such as site.yaml")
	}
	p.res.File, p.res.DryRun = name, p.opts.dryRun
	if p.opts.dryRun {
		if _, err := p.fs.Stat(name); err == nil {
			return exists(name)
		}
		p.say("plan: write %s to %s", size(int64(len(site.Starter()))), name)
		return nil
	}
	if err := p.writeNew(name, site.Starter()); err != nil {
		return err
	}
	p.say("%s is written; edit it, then run: sitrep --site %s check", name, shellQuote(name))
	return nil
}

func exists(name string) error {
	return fault.New(fault.Exists, "the file is there already, and is left as it is").At(name)
}

// writeNew writes a file that must not exist. It is durable on return; when it fails nothing is left behind.
func (p *program) writeNew(name string, data []byte) (err error) {
	f, err := p.fs.Create(name)
	if errors.Is(err, fs.ErrExist) {
		return exists(name)
	}
	if err != nil {
		return wrongArgument(err, name)
	}
	_, err = f.WriteAt(data, 0)
	err = errors.Join(err, f.Sync(), f.Close(), p.fs.SyncDir(filepath.Dir(name)))
	if err != nil {
		return fault.FromOS(errors.Join(err, durable.RemoveIfThere(p.fs, name)))
	}
	return nil
}

package cmd

import (
	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/site"
)

// vmFlags are the flags of every command that takes VMs.
func vmFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "all", Usage: "every VM of the site"},
		&cli.StringFlag{Name: "cloud", Usage: "every VM of the cloud `NAME`"},
	}, more...)
}

// nowFlag is what printed commands have: whoever has mended something does not want to wait for the retry schedule.
func nowFlag() cli.Flag {
	return &cli.BoolFlag{Name: "now", Usage: "at once, whatever the retry schedule says"}
}

// whenNone says what a command without VMs means.
type whenNone bool

const (
	noneIsWrong whenNone = false // a command that changes something wants to be told what
	noneIsAll   whenNone = true  // looking harms nothing
)

// selectVMs returns the VMs that a command is about, in the order of the command line or of the site, none twice.
func selectVMs(s *site.Site, c *cli.Context, none whenNone) ([]*site.VM, error) {
	names, cloud := c.Args().Slice(), c.String("cloud")
	switch {
	case c.Bool("all") && (cloud != "" || len(names) > 0), cloud != "" && len(names) > 0:
		return nil, fault.New(fault.UsageError, "VM names, --all and --cloud exclude each other")
	case cloud != "":
		cl, err := s.Cloud(cloud)
		if err != nil {
			return nil, err
		}
		return cl.VMs(), nil
	case c.Bool("all"), len(names) == 0 && none == noneIsAll:
		return s.VMs(), nil
	case len(names) == 0:
		return nil, fault.New(fault.UsageError, "which VM? Give names, --all or --cloud NAME")
	}
	return namedVMs(s, names)
}

// isWhole says that a command that looks is about the whole site.
func isWhole(c *cli.Context) bool { return c.NArg() == 0 && c.String("cloud") == "" }

func namedVMs(s *site.Site, names []string) ([]*site.VM, error) {
	var out []*site.VM
	seen := map[string]bool{}
	for _, name := range names {
		vm, err := s.VM(name)
		if err != nil {
			return nil, err
		}
		if !seen[name] {
			out = append(out, vm)
		}
		seen[name] = true
	}
	return out, nil
}

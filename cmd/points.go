package cmd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// pointsObject is what points says of a VM.
type pointsObject struct {
	vmHead
	Points []pointObject `json:"points"` // oldest first
}

type pointObject struct {
	ID            string           `json:"id"`
	Time          time.Time        `json:"time"`
	Sequence      uint64           `json:"sequence"`
	AppConsistent bool             `json:"app_consistent"`
	Sizes         map[string]int64 `json:"sizes"`
	Promoted      []string         `json:"promoted,omitempty"` // disks inside the store that were made of it
	Lost          bool             `json:"lost,omitempty"`     // something else removed or replaced what the store kept of it: it cannot be opened
	Damaged       string           `json:"damaged,omitempty"`  // what was found when it was read
	Held          string           `json:"held,omitempty"`     // why no retention drops it
	// Without names disks that were added later: a VM that is made of the point does not have them.
	Without []string `json:"without_disks,omitempty"`
}

func (p *program) pointsCommand() *cli.Command {
	return &cli.Command{
		Name: "points", Usage: "list the recovery points of a VM, or write the disks of one", ArgsUsage: "VM",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "export", Usage: "write the disks of the point `ID`, or of the \"latest\", as fixed VHDs"},
			&cli.StringFlag{Name: "to", Usage: "the `FOLDER` for --export"},
			&cli.StringFlag{Name: "promote", Usage: "copy the disks of the point `ID`, or of the \"latest\", inside a storage account, to disks that machines can be made of"},
			&cli.StringFlag{Name: "hold", Usage: "keep the point `ID`, or the \"latest\", whatever the retention says"},
			&cli.StringFlag{Name: "release", Usage: "let the retention drop the point `ID` again; acknowledges the massive change that it was held for"},
			&cli.StringFlag{Name: "demote", Usage: "delete what --promote of the point `ID` has made"}, waitFlag(),
		},
		Action: p.action("points", func(ctx context.Context, c *cli.Context) error {
			if c.NArg() != 1 {
				return fault.New(fault.UsageError, "points takes one VM")
			}
			x := exportOptions{point: c.String("export"), folder: c.String("to")}
			promote, demote := c.String("promote"), c.String("demote")
			switch {
			case (x.point == "") != (x.folder == ""):
				return fault.New(fault.UsageError, "--export ID and --to FOLDER go together")
			case x.point != "" && promote+demote != "", promote != "" && demote != "":
				return fault.New(fault.UsageError, "--export, --promote and --demote exclude each other")
			}
			h, err := holdOf(c)
			if err != nil {
				return err
			}
			w, err := p.open()
			if err != nil {
				return err
			}
			vms, err := namedVMs(w.site, c.Args().Slice())
			if err != nil {
				return err
			}
			return w.each(ctx, vms, func(ctx context.Context, vm *site.VM) (vmObject, error) {
				if h.point != "" {
					o := &holdObject{}
					return o, w.holdPoint(ctx, vm, h, o)
				}
				if promote+demote != "" {
					o := &exportObject{Disks: []exportDiskObject{}}
					return o, w.promote(ctx, vm, promote, demote, o)
				}
				if x.point != "" {
					o := &exportObject{Disks: []exportDiskObject{}}
					return o, w.export(ctx, vm, x, o)
				}
				o := &pointsObject{Points: []pointObject{}}
				return o, w.points(ctx, vm, o)
			})
		}),
	}
}

func (w *world) points(ctx context.Context, vm *site.VM, o *pointsObject) error {
	r, st, err := w.replica(ctx, vm, forReading)
	if err != nil {
		return err
	}
	made, err := promotions(ctx, r, st)
	var missing []string
	if err == nil {
		missing, err = replica.MissingPoints(ctx, r, st)
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	w.describe(vm, st, &o.vmHead)
	rows := [][]string{{"ID", "TIME", "POSITION", "CONSISTENCY", "SIZE"}}
	if len(made) > 0 {
		rows[0] = append(rows[0], "PROMOTED")
	}
	wrong := len(missing)+len(st.Lost)+len(st.DamagedPoints()) > 0
	if wrong {
		rows[0] = append(rows[0], "LOST")
	}
	holds := slices.ContainsFunc(st.Points, func(p replica.Point) bool { return p.Held != "" })
	if holds {
		rows[0] = append(rows[0], "HELD")
	}
	all := st.AllPoints()
	grew := slices.ContainsFunc(all, func(p replica.Point) bool { return len(st.Without(p)) > 0 })
	if grew {
		rows[0] = append(rows[0], "WITHOUT")
	}
	for _, x := range all {
		lost := st.IsLost(x.ID) || slices.Contains(missing, x.ID)
		o.Points = append(o.Points, pointObject{x.ID, x.CutAt.UTC(), x.At.Seq, x.AppConsistent, x.Sizes, made[x.ID], lost, x.Damaged, x.Held, st.Without(x)})
		row := []string{x.ID, w.when(x.CutAt), num(x.At.Seq), consistency(x), size(pointSize(x))}
		if len(made) > 0 {
			row = append(row, cmpOr(strings.Join(made[x.ID], ", "), "-"))
		}
		switch {
		case lost:
			row = append(row, "lost")
		case x.Damaged != "":
			row = append(row, "damaged")
		case wrong:
			row = append(row, "-")
		}
		if holds {
			row = append(row, cmpOr(x.Held, "-"))
		}
		if grew {
			row = append(row, cmpOr(strings.Join(st.Without(x), ", "), "-"))
		}
		rows = append(rows, row)
	}
	if len(all) == 0 {
		return w.show("VM " + vm.Name + " has no recovery point yet\n")
	}
	return w.show(table(rows))
}

func consistency(p replica.Point) string {
	if p.AppConsistent {
		return "application"
	}
	return "crash"
}

func pointSize(p replica.Point) (n int64) {
	for _, s := range p.Sizes {
		n += s
	}
	return n
}

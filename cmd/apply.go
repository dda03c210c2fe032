package cmd

import (
	"context"
	"maps"
	"slices"

	"github.com/urfave/cli/v2"

	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// applyObject is what apply says of a VM.
type applyObject struct {
	vmHead
	Applied  int     `json:"cuts_applied"`
	Bytes    int64   `json:"bytes"` // of the change logs
	Sequence uint64  `json:"sequence"`
	Points   int     `json:"points"`
	Seconds  float64 `json:"seconds"`
}

func (p *program) applyCommand() *cli.Command {
	return &cli.Command{
		Name: "apply", Usage: "apply what lies on the shelf; needs no access to the source", ArgsUsage: "VM...",
		Flags: vmFlags(paceFlags()...),
		Action: p.vmCommand("apply", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o, p := &applyObject{}, paceOf(c, applies)
				if w.opts.dryRun {
					if w.idle(ctx, vm, p.todo, &o.vmHead) {
						return o, nil
					}
					return o, w.planApply(ctx, vm, o)
				}
				return o, w.attempt(ctx, vm, &o.vmHead, p, func(ctx context.Context) error {
					if w.idle(ctx, vm, p.todo, &o.vmHead) {
						return nil
					}
					return w.apply(ctx, vm, o)
				})
			}
		}),
	}
}

func (w *world) apply(ctx context.Context, vm *site.VM, o *applyObject) error {
	a := forWriting
	if vm.Policy().Apply == site.ApplyElsewhere {
		a = forUpkeep
	}
	return w.jobAs(ctx, vm, a, "Apply change logs", &o.vmHead, func(s *session) error {
		o.Bytes = shelfBytes(s.state)
		s.meter.plan(o.Bytes)
		c := s.clock()
		err := s.step("Apply", func() (n int64, note string, err error) {
			o.Applied, err = s.engine.Apply(ctx)
			return 0, plural(o.Applied, "cut"), err
		})
		o.Seconds = c.took().Seconds()
		if err != nil {
			return err
		}
		st, err := s.engine.Replica.Ledger().Load(ctx)
		if err != nil {
			return err
		}
		o.Sequence, o.Points = st.Applied.Seq, len(st.Points)
		if err := s.noteSuccess(vm, rateDelta, 0, 0); err != nil {
			return err
		}
		s.say("%s: %s applied, position %d, %s, in %s", vm.Name, plural(o.Applied, "cut"), o.Sequence,
			plural(o.Points, "recovery point"), span(c.took()))
		return nil
	})
}

func (w *world) planApply(ctx context.Context, vm *site.VM, o *applyObject) error {
	return w.onReplica(ctx, vm, forReading, &o.vmHead, func(s *session) error {
		o.Bytes, o.Sequence, o.Points = shelfBytes(s.state), s.state.Applied.Seq, len(s.state.Points)
		s.planned(vm, "apply %s, %s of change logs", plural(len(s.state.Pending), "cut"), size(o.Bytes))
		return nil
	})
}

// shelfBytes is the length of the change logs that lie on the shelf.
func shelfBytes(st replica.State) int64 {
	return total(st.Pending, segmentBytes)
}

func segmentBytes(s replica.Segment) (n int64) {
	for _, b := range slices.Collect(maps.Values(s.Bytes)) {
		n += b
	}
	return n
}

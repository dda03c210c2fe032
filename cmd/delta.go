package cmd

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/replicate"
)

// deltaObject is what delta says of a VM.
type deltaObject struct {
	vmHead
	From      uint64       `json:"from_sequence"`
	To        uint64       `json:"sequence"`
	Unchanged bool         `json:"unchanged"`
	Shipped   int          `json:"cuts_shipped"`
	Applied   int          `json:"cuts_applied"`
	Points    int          `json:"points"`
	Sent      int64        `json:"bytes_sent"`
	Seconds   float64      `json:"seconds"`
	Estimated *float64     `json:"estimated_seconds,omitempty"`
	Disks     []diskObject `json:"disks"`
}

func (p *program) deltaCommand() *cli.Command {
	return &cli.Command{
		Name: "delta", Usage: "cut, write change logs, ship and apply them, take a recovery point", ArgsUsage: "VM...",
		Flags: vmFlags(nowFlag(), &cli.BoolFlag{Name: "capture-only", Usage: "stop after writing the logs"}),
		Action: p.vmCommand("delta", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o := &deltaObject{}
				switch {
				case w.opts.dryRun:
					return o, w.planDelta(ctx, vm, o)
				case c.Bool("capture-only"):
					return o, w.capture(ctx, vm, o)
				}
				return o, w.delta(ctx, vm, o)
			}
		}),
	}
}

func (w *world) delta(ctx context.Context, vm *site.VM, o *deltaObject) error {
	return w.verb(ctx, vm, "Replicate changes", &o.vmHead, func(s *session) error {
		if err := s.source(); err != nil {
			return err
		}
		c := s.clock()
		err := s.step("Capture, ship, apply, recovery point", func() (int64, string, error) {
			d, err := s.cycle(ctx)
			o.fill(d)
			return o.Sent, o.summary(), err
		})
		o.Seconds = c.took().Seconds()
		if err != nil {
			return err
		}
		s.say("%s: %s in %s", vm.Name, o.summary(), span(c.took()))
		return s.noteSuccess(vm, rateDelta, o.Sent, c.took())
	})
}

// cycle is a delta, or the part of it that is done here when another machine applies.
func (s *session) cycle(ctx context.Context) (d replicate.Delta, err error) {
	if s.vm.Policy().Apply != site.ApplyElsewhere {
		return s.engine.Delta(ctx)
	}
	if s.state.Phase != replica.Replicating {
		return s.engine.Delta(ctx) // refuses, in the engine's words
	}
	if d.Captured, err = s.engine.Capture(ctx); err != nil {
		return d, err
	}
	d.Shipped, err = s.engine.Ship(ctx)
	return d, err
}

func (o *deltaObject) fill(d replicate.Delta) {
	o.capture(d.Captured)
	o.Shipped, o.Applied, o.Points = d.Shipped, d.Applied, d.Points
}

func (o *deltaObject) capture(c replicate.Captured) {
	o.From, o.To, o.Unchanged = c.From.Seq, c.To.Seq, c.Unchanged()
	o.Disks = diskObjects(c.Disks)
	o.Sent = sentBytes(o.Disks)
}

func (o *deltaObject) summary() string {
	if o.Unchanged && o.Shipped == 0 && o.Applied == 0 {
		return fmt.Sprintf("nothing changed, %s read", size(scannedBytes(o.Disks)))
	}
	return fmt.Sprintf("%s changed, %s sent, %s applied, position %d, %s",
		size(changedBytes(o.Disks)), size(o.Sent), plural(o.Applied, "cut"), o.To, plural(o.Points, "recovery point"))
}

// capture writes the change logs beside the disks, and needs the store only to learn the phase, if it is there.
func (w *world) capture(ctx context.Context, vm *site.VM, o *deltaObject) error {
	return w.locked(vm, func() error {
		return w.job(vm, "Capture changes", &o.vmHead, func(j *state.Job) error {
			mem, err := w.relation(ctx, vm, &o.vmHead)
			if err != nil {
				return err
			}
			m := w.meter(vm.Name)
			defer m.stop()
			e := w.engine(vm, nil, mem.Replica, m)
			if err := w.withSource(e, vm, mem.Disks, w.trackDir(vm)); err != nil {
				return err
			}
			c := w.clock()
			err = j.Step("Capture", func() (int64, string, error) {
				captured, err := e.Capture(ctx)
				o.capture(captured)
				return 0, size(changedBytes(o.Disks)) + " changed", err
			})
			o.Seconds = c.took().Seconds()
			if err == nil {
				w.say("%s: captured: %s changed, position %d, in %s", vm.Name, size(changedBytes(o.Disks)), o.To, span(c.took()))
			}
			return err
		})
	})
}

// relation is what a capture needs to know of the replica: from the ledger when the store can be reached, from this
// site's memory when it cannot for the moment.
func (w *world) relation(ctx context.Context, vm *site.VM, h *vmHead) (state.VM, error) {
	mem, known, err := w.memory.VM(vm.Name)
	if err != nil {
		return mem, err
	}
	st, serr := w.present(ctx, vm)
	switch {
	case serr == nil:
		w.describe(vm, st, h)
		if st.Phase != replica.Replicating {
			return mem, fault.New(fault.WrongState, "nothing is captured: the VM is in state %s since %s",
				st.Phase, stamp(st.PhaseSince)).Of(vm.Name, "")
		}
		return state.VM{Replica: st.Replica, Disks: disksOf(st)}, w.remember(ctx, vm, st)
	case known && len(mem.Disks) > 0 && fault.FromOS(serr).Class() == fault.Recoverable && !fault.Cancelled(serr):
		w.log.Warn("the store is out of reach, changes are captured without it", "vm", vm.Name, "error", serr)
		return mem, nil
	}
	return mem, serr
}

// planDelta says what delta would do, by doing all of it that changes nothing.
func (w *world) planDelta(ctx context.Context, vm *site.VM, o *deltaObject) error {
	return w.onReplica(ctx, vm, forReading, &o.vmHead, func(s *session) error {
		if err := s.source(); err != nil {
			return err
		}
		c, err := s.engine.PlanDelta(ctx)
		o.capture(c)
		if err != nil {
			return err
		}
		o.Points = len(s.state.Points)
		o.Estimated = s.estimate(vm, rateDelta, o.Sent)
		if o.Unchanged && o.Sent == 0 {
			s.planned(vm, "nothing to send: nothing changed")
			return nil
		}
		s.planned(vm, "send %s for %s of changed blocks, %s", size(o.Sent), size(changedBytes(o.Disks)), estimateText(o.Estimated))
		return nil
	})
}

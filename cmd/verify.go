package cmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/replicate"
)

// verifyObject is what verify says of a VM.
type verifyObject struct {
	vmHead
	Read     int64                `json:"bytes_read"`
	Complete bool                 `json:"complete"`
	Seconds  float64              `json:"seconds"`
	Planned  *int64               `json:"bytes_planned,omitempty"`
	Disks    []replicate.Verified `json:"disks"`
	Lost     []string             `json:"lost_points,omitempty"`    // IDs of recovery points that something else removed from the store, or that cannot be proved
	Damaged  []string             `json:"damaged_points,omitempty"` // IDs of recovery points that were not what they had been when they were read
}

func (p *program) verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "prove the replica against its block sums", ArgsUsage: "VM...",
		Flags: vmFlags(
			&cli.BoolFlag{Name: "against-source", Usage: "compare the source with the replica's block sums instead"},
			&cli.DurationFlag{Name: "budget", Usage: "stop after this `TIME`; the next verify goes on there"}, waitFlag(),
		),
		Action: p.vmCommand("verify", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			o := verifyOptions{source: c.Bool("against-source"), budget: c.Duration("budget")}
			o.todo = unnamed(c, hasReplica)
			if o.source {
				o.todo = unnamed(c, replicates)
			}
			return func(ctx context.Context, vm *site.VM) (vmObject, error) { return w.verify(ctx, vm, o) }
		}),
	}
}

type verifyOptions struct {
	source bool
	budget time.Duration
	todo   todo // nil: the VM was named
}

func (v verifyOptions) check() error {
	switch {
	case v.budget < 0:
		return fault.New(fault.UsageError, "--budget cannot be negative")
	case v.budget > 0 && v.source:
		return fault.New(fault.UsageError, "--budget is for the replica; a comparison with the source cannot be continued")
	}
	return nil
}

func (w *world) verify(ctx context.Context, vm *site.VM, v verifyOptions) (vmObject, error) {
	o := &verifyObject{}
	if err := v.check(); err != nil {
		return o, err
	}
	if w.opts.dryRun {
		if w.idle(ctx, vm, v.todo, &o.vmHead) {
			return o, nil
		}
		return o, w.planVerify(ctx, vm, v, o)
	}
	begun := false
	err := w.lockedUnlessSeeded(ctx, vm, v.todo, &o.vmHead, func(ctx context.Context) error {
		if w.idle(ctx, vm, v.todo, &o.vmHead) {
			return nil
		}
		if begun = !v.source; begun {
			return nil
		}
		// Whose disks are compared has to be the one that replicates them.
		return w.jobAs(ctx, vm, forWriting, verifyJob, &o.vmHead, func(s *session) error { return s.verified(ctx, v, o, s.clock()) })
	})
	if err != nil || !begun {
		return o, err
	}
	return o, w.job(vm, verifyJob, &o.vmHead, func(record *state.Job) error {
		c := w.clock()
		return w.politely(ctx, vm, turns{limit: turnLimit, asks: forever}, func(ctx context.Context) error {
			return w.onReplica(ctx, vm, forLooking, &o.vmHead, func(s *session) error {
				s.record = record
				return s.verified(ctx, v, o, c)
			})
		})
	})
}

const verifyJob = "Verify the replica"

// verified verifies, and says what was found. c counts from when the command began to.
func (s *session) verified(ctx context.Context, v verifyOptions, o *verifyObject, c clock) error {
	if v.budget > 0 { // what is left when it has stepped aside
		v.budget = max(v.budget-c.took(), 1)
	}
	err := s.step("Verify", func() (int64, string, error) {
		err := s.verify(ctx, v, o)
		return 0, size(o.Read) + " read", err
	})
	o.Seconds = c.took().Seconds()
	if err == nil {
		if err := s.proven(ctx, v, o); err != nil {
			return err
		}
		if err := s.lostPoints(ctx, o); err != nil {
			return err
		}
		s.say("%s: no difference, %s read in %s%s", s.vm.Name, size(o.Read), span(c.took()), s.unfinished(o)+o.newer())
	}
	return err
}

// lostPoints finds the recovery points that something else removed from the store. They are no difference of the replica.
func (s *session) lostPoints(ctx context.Context, o *verifyObject) error {
	st, found, err := s.engine.DropUnproven(ctx)
	if err != nil {
		return err
	}
	for _, p := range slices.Concat(st.Lost, found) { // what was found is not in the ledger while the VM is away
		if !slices.Contains(o.Lost, p.ID) {
			o.Lost = append(o.Lost, p.ID)
		}
	}
	for _, p := range st.DamagedPoints() {
		o.Damaged = append(o.Damaged, p.ID)
		s.say("%s: recovery point %s was found to be damaged: %s", s.vm.Name, p.ID, p.Damaged)
	}
	if n := len(o.Lost); n > 0 {
		s.say("%s: %s lost, something else removed or replaced what the store kept: %s", s.vm.Name, plural(int64(n), "recovery point"), strings.Join(o.Lost, ", "))
	}
	return nil
}

// proven forgets what was found earlier, when all of the replica's bytes were looked at and it is gone, or the ledger does not say so any
// more.
func (s *session) proven(ctx context.Context, v verifyOptions, o *verifyObject) error {
	if v.source || !o.Complete {
		return nil
	}
	mem, _, err := s.memory.VM(s.vm.Name)
	if err != nil || mem.Mark() == nil {
		return err
	}
	st, err := s.engine.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	return s.memory.ChangeVM(s.vm.Name, func(mem *state.VM) {
		if m := mem.Mark(); m != nil && mem.Marked == nil && (inDoubt(m.Code) || st.Phase == replica.Replicating) {
			mem.Failed = nil
		}
	})
}

func (s *session) verify(ctx context.Context, v verifyOptions, o *verifyObject) (err error) {
	if v.source {
		o.Disks, err = s.compare(ctx)
	} else {
		o.Disks, err = s.engine.VerifyOn(ctx, v.budget, o.Disks)
	}
	o.Read = total(o.Disks, func(d replicate.Verified) int64 { return d.Read })
	o.Complete = err == nil && len(o.Disks) == len(s.state.Disks)
	for _, d := range o.Disks {
		o.Complete = o.Complete && d.Complete
	}
	return err
}

// compare reads the source, held still as it is for a delta, with a tracker of its own: the one that deltas rely on is only looked
// at.
func (s *session) compare(ctx context.Context) (found []replicate.Verified, err error) {
	disks := disksOf(s.state)
	deltas, err := s.deltasOf(s.vm, disks)
	if err != nil {
		return nil, err
	}
	if err := s.withSource(s.engine, s.vm, disks, s.memory.Path("compare", s.vm.Name)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.engine.Tracker.Forget()) }()
	q, err := s.quiesce(s.vm, s.now()) // no recovery point is made that applications would have to flush for
	if err != nil {
		return nil, err
	}
	if q != nil {
		q.quiesces(s.engine)
	}
	return s.engine.CompareSource(ctx, deltas)
}

// newer words what the VM has written since the last delta.
func (o *verifyObject) newer() string {
	n := total(o.Disks, func(d replicate.Verified) int64 {
		return total(d.Newer, func(r replicate.Different) int64 { return r.Len })
	})
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %s that the VM has written since the last delta are not replicated yet", size(n))
}

// unfinished says what the next verify does after one that has not read everything.
func (s *session) unfinished(o *verifyObject) string {
	const over = "; the time is over, the next verify goes on "
	if o.Complete {
		return ""
	}
	half := func(d replicate.Verified) bool { return d.Cursor > 0 && !d.Complete }
	if slices.ContainsFunc(o.Disks, half) {
		return over + "here"
	}
	for _, d := range s.state.Disks { // as they were before this run
		now := func(v replicate.Verified) bool { return v.Name == d.Name && v.Complete }
		if d.VerifiedAt.IsZero() && !slices.ContainsFunc(o.Disks, now) {
			return over + "with disk " + d.Name
		}
	}
	return "; that was the rest of what earlier runs have left, all disks are proven, and the next verify begins again"
}

func (w *world) planVerify(ctx context.Context, vm *site.VM, v verifyOptions, o *verifyObject) error {
	return w.onReplica(ctx, vm, forReading, &o.vmHead, func(s *session) error {
		planned := total(s.state.Disks, func(d replica.Disk) int64 {
			if v.source {
				return d.Size
			}
			return d.Size - d.VerifyCursor
		})
		o.Planned = &planned
		s.planned(vm, "read at most %s", size(planned))
		return nil
	})
}

package replicate

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// Delta brings the replica to the present: it finishes what an earlier run left, takes a cut, ships it, applies it and
// takes the recovery point. An error of class Resync marks the VM in the ledger before it is returned.
func (j *Job) Delta(ctx context.Context) (Delta, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return Delta{}, err
	}
	if err := replicating(st, "delta"); err != nil {
		return Delta{}, err
	}
	d, err := j.cycle(ctx)
	return d, j.mark(ctx, err)
}

// cycle is Delta without the question whether the phase allows it.
func (j *Job) cycle(ctx context.Context) (d Delta, err error) {
	if err := j.admit(ctx); err != nil {
		return d, err
	}
	if err := j.ready(ctx); err != nil {
		return d, err
	}
	defer d.share()
	if err := j.forward(ctx, &d); err != nil { // first what waits, so that its logs take no space beside the new ones
		return d, err
	}
	if d.Captured, err = j.capture(ctx, 0); err != nil {
		return d, err
	}
	if err := j.forward(ctx, &d); err != nil {
		return d, err
	}
	st, err := j.confirm(ctx, d.Captured)
	d.Points = len(st.Points)
	return d, err
}

// share tells each disk what was sent of it.
func (d *Delta) share() {
	for i := range d.Disks {
		d.Disks[i].Sent = d.Sent[d.Disks[i].Name]
	}
}

// Relay is the part of Delta that is done at the source when another machine applies: it removes the logs that have been applied,
// ships what waits, takes a cut and ships it. An error of class Resync marks the VM before it is returned.
func (j *Job) Relay(ctx context.Context) (Delta, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return Delta{}, err
	}
	if err := replicating(st, "delta"); err != nil {
		return Delta{}, err
	}
	d, err := j.relay(ctx, st)
	return d, j.mark(ctx, err)
}

func (j *Job) relay(ctx context.Context, st replica.State) (d Delta, err error) {
	defer d.share()
	if err := j.admit(ctx); err != nil {
		return d, err
	}
	if err := j.release(ctx, st); err != nil {
		return d, err
	}
	if err := j.ship(ctx, &d); err != nil {
		return d, err
	}
	if d.Captured, err = j.capture(ctx, j.LogLimit); err != nil {
		return d, err
	}
	if err := j.ship(ctx, &d); err != nil {
		return d, err
	}
	st, err = j.confirm(ctx, d.Captured)
	d.Points = len(st.Points)
	return d, err
}

// forward ships and applies the logs that wait, and removes them.
func (j *Job) forward(ctx context.Context, d *Delta) error {
	if err := j.ship(ctx, d); err != nil {
		return err
	}
	applied, err := j.apply(ctx)
	d.Applied += applied
	if err != nil {
		return err
	}
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	return j.release(ctx, st)
}

// ready says, before any disk is read, whether the logs that wait lead on from what the replica has, and whether the replica
// is as the ledger left it.
func (j *Job) ready(ctx context.Context) error {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	if _, err := j.queue(st); err != nil {
		return err
	}
	if st.Applying != nil {
		return nil
	}
	_, err = j.known(ctx, st)
	return err
}

// confirm records that the replica is the source as of a cut that found nothing new, and makes the position a recovery
// point if it is none yet, as it is not after an initial copy during which nothing was written.
func (j *Job) confirm(ctx context.Context, c Captured) (replica.State, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err == nil {
		st, err = j.learn(ctx, st, c)
	}
	if err != nil || !c.Unchanged() || st.Applied != c.To || st.Applying != nil {
		return st, err
	}
	for _, d := range st.Disks {
		if n, ok := c.Sizes[d.Name]; ok && n != d.Size {
			return st, fault.New(fault.PositionLost, "the disk has %d bytes, its replica has %d, and no change is known that made it so", n, d.Size).
				At(d.Source).Of(j.VM, d.Name)
		}
	}
	st.AsOf, st.Consistent = c.At, true
	n, p := len(st.Points), st.PointAt(c.At, c.AppConsistent)
	if n == 0 || st.Points[n-1].At != st.Applied || !maps.Equal(st.Points[n-1].Sizes, p.Sizes) && st.Point(p.ID) == nil {
		st.AddPoint(p, j.Keep)
	} else {
		st.Trim(j.Keep)
	}
	if n := len(st.Points); c.AppConsistent { // what the point holds is what the applications have flushed
		st.Points = slices.Clone(st.Points)
		st.Points[n-1].AppConsistent = true
	}
	return j.Replica.Ledger().Save(ctx, st)
}

// learn keeps what the disks are that were captured: by that they are told from others that come to stand at their paths.
func (j *Job) learn(ctx context.Context, st replica.State, c Captured) (replica.State, error) {
	disks := slices.Clone(st.Disks)
	for _, r := range c.Disks {
		for i := range disks {
			if disks[i].Name == r.Name && r.Identity != "" {
				disks[i].Identity, disks[i].Anew = r.Identity, false
			}
		}
	}
	if slices.Equal(disks, st.Disks) {
		return st, nil
	}
	st.Disks = disks
	return j.Replica.Ledger().Save(ctx, st)
}

// adopt makes the tracker stand where the replica stands, by the replica's own block sums.
func (j *Job) adopt(ctx context.Context, st replica.State) error {
	if j.Tracker.Position() == st.Applied {
		return nil
	}
	return j.rebase(ctx, st)
}

// Readopt makes the tracker stand where the replica stands, by the replica's block sums, whatever the disks hold meanwhile: the
// next delta finds out. Change logs beside the disks lead nowhere then and are removed.
func (j *Job) Readopt(ctx context.Context) error {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	if _, err := j.DropLogs(); err != nil {
		return err
	}
	return fault.In(j.rebase(ctx, st), j.VM, "")
}

func (j *Job) rebase(ctx context.Context, st replica.State) error {
	base := make(map[string]track.Base, len(st.Disks))
	for _, d := range st.Disks {
		pages, err := j.Replica.Disk(ctx, d)
		if err != nil {
			return err
		}
		defer pages.Close()
		base[d.Name] = replica.DiskSums{Pages: pages, Of: d}
	}
	return j.Tracker.Rebase(ctx, st.Applied, base)
}

// mark records in the ledger that only resynchronization helps, when err says so, and returns err.
func (j *Job) mark(ctx context.Context, err error) error {
	e := fault.Find(err)
	if e == nil || e.Class() != fault.Resync || e.Code == fault.ResyncRequired {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	st, lerr := j.Replica.Ledger().Load(ctx)
	if lerr != nil || st.Phase.Away() { // who has taken over has a state of its own to keep
		return err
	}
	if st.Phase == replica.ResyncRequired { // it is known why; now more is
		st.Reason, st.ReasonCode = e.Error(), e.Code
	} else if !marks(&st, e.Code, e.Error(), j.Now()) {
		return err
	}
	if _, serr := j.Replica.Ledger().Save(ctx, st); serr != nil {
		return fmt.Errorf("%w (and the ledger could not be marked: %w)", err, serr)
	}
	return err
}

// replicating is the refusal of a verb that needs a VM whose deltas flow.
func replicating(st replica.State, verb string) error {
	switch st.Phase {
	case replica.Replicating:
		return nil
	case replica.Resynchronizing:
		return fault.New(fault.ResyncRequired, "a resynchronization is under way since %s and was interrupted",
			st.PhaseSince.UTC().Format(time.RFC3339)).Of(st.VM, "")
	case replica.Retired:
		return retired(st)
	case replica.ResyncRequired:
		e := fault.New(fault.ResyncRequired, "resynchronization is required since %s: %s",
			st.PhaseSince.UTC().Format(time.RFC3339), st.Reason).Of(st.VM, "")
		if st.ReasonCode == fault.ReplicaCorrupt || st.ReasonCode == fault.Difference { // and what the sums say is not enough
			e.Next = fault.Fill(st.ReasonCode.Lookup().Command, st.VM, "")
		}
		return e
	}
	return wrongState(st, verb)
}

// wrongState is the refusal of a verb in a phase, naming what is allowed.
func wrongState(st replica.State, verb string) error {
	if err := st.CheckHome(verb); err != nil {
		return err
	}
	if st.Phase == replica.Retired {
		return retired(st)
	}
	reason := ""
	if st.Reason != "" {
		reason = " (" + st.Reason + ")"
	}
	return fault.New(fault.WrongState, "%s is not possible: the VM is in state %s since %s%s; possible now: %s",
		verb, st.Phase, st.PhaseSince.UTC().Format(time.RFC3339), reason, strings.Join(Possible(st.Phase), ", ")).Of(st.VM, "")
}

// Possible lists the commands of replication that a phase of replication allows.
func Possible(p replica.Phase) []string {
	return map[replica.Phase][]string{
		replica.Seeding:         {"replicate", "status", "unprotect"},
		replica.Replicating:     {"delta", "apply", "resync", "verify", "points", "pause", "status", "unprotect"},
		replica.Paused:          {"resume", "apply", "verify", "points", "status", "unprotect"},
		replica.ResyncRequired:  {"resync", "verify", "points", "status", "unprotect"},
		replica.Resynchronizing: {"resync", "points", "status", "unprotect"},
	}[p]
}

func retired(st replica.State) error {
	return fault.New(fault.ReplicaKept, "protection was disabled at %s; the replica that was kept is for reading only",
		st.PhaseSince.UTC().Format(time.RFC3339)).Of(st.VM, "")
}

package replicate

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// errSlice ends a slice of the copy of a disk that is to join the VM.
var errSlice = errors.New("the slice of the copy has ended")

// Add records disks that are to join the VM; the order of the facts is in package replica, see State.EveryDisk. Disks that it has already, or
// that are joining, are left as they are, and a disk whose copy is not complete and that drop names is forgotten, with what was copied of it.
func (j *Job) Add(ctx context.Context, disks []replica.Disk, drop []string) (replica.State, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return st, err
	}
	if err := replicating(st, "adding a disk"); err != nil {
		return st, err
	}
	next := st
	next.Joining = slices.DeleteFunc(slices.Clone(st.Joining), func(d replica.Disk) bool { return slices.Contains(drop, d.Name) })
	for _, d := range disks {
		if st.Disk(d.Name) == nil && next.Joins(d.Name) == nil {
			next.Joining = append(next.Joining, d)
		}
	}
	if slices.Equal(next.Joining, st.Joining) {
		return st, nil
	}
	if err := next.Check(); err != nil {
		return st, fault.Wrap(fault.PrerequisiteFail, err, "the disk cannot be added").Of(j.VM, "")
	}
	return j.Replica.Ledger().Save(ctx, next)
}

// SeedJoining makes the initial copies of the disks that are to join the VM, and goes on where the ledger says that an earlier run stopped.
// The tracker is of these disks alone, which may change meanwhile: the first cut that they are in brings what differs from their block
// sums. It returns after about the time slice, whatever is copied by then, so that deltas of the other disks can come in between; complete
// says that nothing is left.
func (j *Job) SeedJoining(ctx context.Context, slice time.Duration) (results []DiskResult, complete bool, err error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return nil, false, err
	}
	if err := replicating(st, "the initial replication of a disk"); err != nil {
		return nil, false, err
	}
	if len(st.Joining) == 0 {
		return nil, true, nil
	}
	sliced, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer time.AfterFunc(slice, func() { cancel(errSlice) }).Stop()
	results, err = j.seedJoining(sliced, &st)
	if err != nil && ctx.Err() == nil && context.Cause(sliced) == errSlice && (errors.Is(err, errSlice) || fault.Cancelled(err)) {
		return results, false, nil
	}
	return results, err == nil, err
}

func (j *Job) seedJoining(ctx context.Context, st *replica.State) (results []DiskResult, err error) {
	cut, err := j.Tracker.Cut(ctx, hrl.Pos{})
	if err != nil {
		return nil, fault.In(err, j.VM, "")
	}
	defer func() { err = errors.Join(err, cut.Close()) }()
	for i := range st.Joining {
		name := st.Joining[i].Name
		if err := j.startAnew(ctx, st, name, diskOf(cut, name)); err != nil {
			return results, fault.In(err, j.VM, name)
		}
		s := &seeding{job: j, name: name, state: st}
		err := s.run(ctx, cut)
		results = append(results, s.result)
		if err != nil {
			return results, fault.In(err, j.VM, name)
		}
	}
	return results, nil
}

// startAnew forgets what was copied of a disk that is smaller by now: it belongs to no recovery point, so nothing is lost.
func (j *Job) startAnew(ctx context.Context, st *replica.State, name string, now track.CutDisk) error {
	d := st.Joins(name)
	if now == nil || now.Size() >= d.Size {
		return nil
	}
	j.Log.Warn("the disk is smaller than it was, and is copied anew", "vm", j.VM, "disk", name, "was", d.Size, "is", now.Size())
	next := *st
	next.OwnDisks()
	d = next.Joins(name)
	d.Size, d.Seeded, d.Seal, d.Stamp = now.Size(), 0, nil, ""
	var err error
	*st, err = j.Replica.Ledger().Save(ctx, next)
	return err
}

// Join makes the disks whose copy is complete disks of the VM, and records the definition of the VM that has them. It does nothing as long
// as logs wait on the shelf, which do not have them. The tracker of the VM's disks has to be opened anew then: the next delta gives it the
// block sums and takes a cut of all disks. It returns the ledger as it is then.
func (j *Job) Join(ctx context.Context, definition json.RawMessage) (replica.State, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil || st.Phase != replica.Replicating || st.Received != st.Applied || st.Applying != nil {
		return st, err
	}
	next := st
	next.OwnDisks()
	next.Joining = nil
	for _, d := range st.Joining {
		if d.Seeded < d.Size || d.Seal == nil {
			next.Joining = append(next.Joining, d)
			continue
		}
		stamp, err := j.knownDisk(ctx, d)
		if fault.Is(err, fault.ReplicaChanged) {
			j.Log.Warn("something other than sitrep wrote to the copy of the disk, which is made anew", "vm", j.VM, "disk", d.Name)
			d.Seeded, d.Seal, d.Stamp = 0, nil, ""
			next.Joining = append(next.Joining, d)
			continue
		}
		if err != nil {
			return st, fault.In(err, j.VM, d.Name)
		}
		d.Stamp = stamp
		next.Disks, next.Joined = append(next.Disks, d), append(slices.Clip(next.Joined), d.Name)
		next.Consistent, next.Definition = false, definition
	}
	if slices.Equal(next.Joining, st.Joining) {
		return st, nil
	}
	return j.Replica.Ledger().Save(ctx, next)
}

// admit gives the tracker the block sums of all disks when one has joined the VM, so that the next cut has it too, whether or not
// anything has changed: see State.EveryDisk. Logs beside the disks do not have it, and what they say is in the disks.
func (j *Job) admit(ctx context.Context) error {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil || len(st.Joined) == 0 {
		return err
	}
	if _, err := j.DropLogs(); err != nil {
		return err
	}
	if err := j.rebase(ctx, st); err != nil {
		return fault.In(err, j.VM, "")
	}
	j.whole = true
	return nil
}

// joinsNext refuses what needs a position of all disks, as long as one has joined that no cut was taken of.
func joinsNext(st replica.State, verb string) error {
	if len(st.Joined) == 0 {
		return nil
	}
	return fault.New(fault.WrongState, "%s is not possible yet: disk %s was copied, and joins the VM with the next delta", verb, st.Joined[0]).Of(st.VM, "")
}

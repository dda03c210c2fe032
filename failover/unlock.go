package failover

import (
	"context"
	"errors"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// Unlock takes the replica of a VM over from a run that is gone and still holds it, or that hangs. by is who owns it then, since now;
// everything else stays as it was. Should that run go on after all, the store refuses what it writes (fault.Fenced). It
// returns what the ledger was before and is afterwards, and leaves the replica held by nobody. Killed, it is done again.
func Unlock(ctx context.Context, s replica.Store, vm string, by replica.Owner, now time.Time) (was, is replica.State, err error) {
	by.Since = now.UTC()
	take := func(u interrupted) func(replica.State) (replica.State, error) {
		return func(st replica.State) (replica.State, error) {
			was = st
			if err := MayUnlock(st); err != nil {
				return st, err
			}
			if u == completed && st.Unlocking && st.Owner.Same(by) {
				return st, nil
			}
			st.Generation++
			if !st.Owner.Same(by) { // the disks of another machine are not those that were replicated
				st.DisksAnew()
			}
			st.Owner, st.Unlocking = by, true
			return st, nil
		}
	}
	rep, err := s.Seize(ctx, vm, take(completed))
	if fault.Is(err, fault.ReplicaHeld) { // by a run that came after the one that was interrupted
		rep, err = s.Seize(ctx, vm, take(repeated))
	}
	if err != nil {
		return was, is, fault.In(err, vm, "")
	}
	is, err = rep.Ledger().Load(ctx)
	if err == nil {
		is.Unlocking = false
		is, err = rep.Ledger().Save(ctx, is)
	}
	return was, is, fault.In(errors.Join(err, rep.Close()), vm, "")
}

// interrupted is what becomes of an Unlock of the same owner that was killed. It is completed with the generation that it has taken:
// with a higher one the store would take what it has done so far for somebody else's.
type interrupted int

const (
	completed interrupted = iota
	repeated
)

// MayUnlock refuses to take over a replica that nobody writes to.
func MayUnlock(st replica.State) error {
	if st.Phase == replica.Retired {
		return fault.New(fault.ReplicaKept, "the replica is for reading only since %s: there is nothing to take over", stamp(st.PhaseSince)).Of(st.VM, "")
	}
	return nil
}

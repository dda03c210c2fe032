package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// A replica has one writer: the state folder of one site on one machine, from which its VM is replicated. Whoever else has the site
// file and the store may look, test and fail over. It writes what its own disks hold only after it has taken the replica over by a
// command: else the cron job of a clone, of a machine that was restored, or of the recovery site would lay old disks over new ones.
//
// A writer is told by three things: the random ID that its state folder was given, the machine, and the folder's path there. A copy of
// the folder has the same ID at another path or on another machine. A copy of a whole machine differs in nothing; it is told by what
// it does not know: each run that writes leaves a new random Run in the ledger, after its state folder knows of it.

// Writer is who wants to write.
type Writer struct {
	Owner // as it would be in the ledger
	// Knows says that the state folder remembers this very replica as it is in the ledger: with the same AsOf.
	Knows bool
	// Runs is the runs of this state folder that may be the last to have written; none when it remembers none.
	Runs []hrl.ID
	// Lives says that a state folder of the same ID is at another path on this machine. nil: no.
	Lives func(folder string) bool
}

// Foreign says why w is not the writer of the replica, "" when it is, or may become it because nobody else is.
func (s *State) Foreign(w Writer) string {
	o := s.Owner
	sameHost := o.Host == w.Host
	switch {
	case o.Writer.IsZero(): // a ledger of before writers were kept
		if (!sameHost || o.Site != w.Site) && !w.Knows {
			return "this is another one"
		}
	case o.Writer != w.Writer: // a state folder that was lost is made anew in its place
		if !sameHost || o.Machine != w.Machine || o.State != w.State {
			return "this is another one"
		}
	case o.Machine != w.Machine:
		return "this one has a copy of that state folder, on another machine"
	case o.State != w.State && (!sameHost || o.Machine == "" || w.Lives != nil && w.Lives(o.State)):
		return "this one has a copy of that state folder"
	}
	if !o.Run.IsZero() && len(w.Runs) > 0 && !slices.Contains(w.Runs, o.Run) {
		return "this one is an older copy of it, which does not know of that write: a machine or a state folder that was cloned, or brought back from a backup"
	}
	return ""
}

// CheckWriter refuses, with fault.NotOwner, what only the writer of the replica may do: it says who that is, and when it wrote last.
// While the VM is away its phase refuses that (see CheckHome).
func (s *State) CheckWriter(w Writer) error {
	if s.Phase.Away() {
		return nil
	}
	why := s.Foreign(w)
	if why == "" {
		return nil
	}
	return fault.New(fault.NotOwner, "the replica is written by %s, last at %s (position %d); %s: %s", s.Owner, s.LastWrite().UTC().Format(time.RFC3339),
		max(s.Applied.Seq, s.Received.Seq), why, w.Owner).Of(s.VM, "")
}

// LastWrite is when the owner is known to have written last.
func (s *State) LastWrite() time.Time {
	last := s.Owner.Wrote
	for _, t := range []time.Time{s.AsOf, s.PhaseSince, s.Owner.Since} {
		if s.Owner.Wrote.IsZero() && t.After(last) {
			last = t
		}
	}
	return last
}

// Same says whether two owners are one writer. Ledgers of before writers were kept tell site and host.
func (o Owner) Same(other Owner) bool {
	if o.Writer.IsZero() || other.Writer.IsZero() {
		return o.Site == other.Site && o.Host == other.Host
	}
	return o.Writer == other.Writer && o.Machine == other.Machine && o.State == other.State
}

// String names an owner for people.
func (o Owner) String() string {
	s := fmt.Sprintf("site %q on host %q", o.Site, o.Host)
	if o.State != "" {
		s += " (state folder " + o.State + ")"
	}
	return s
}

// Claim has whatever is saved through r say that o is the owner and writes now, and in which store. While the VM is away it belongs to
// who failed it over, and nothing is changed.
func Claim(r Replica, o Owner, store hrl.ID, now func() time.Time) Replica {
	return &claimed{Replica: r, stamp: func(s State) State {
		if s.Phase.Away() {
			return s
		}
		if !s.Owner.Same(o) {
			o.Since = now().UTC()
		} else {
			o.Since = s.Owner.Since
		}
		o.Wrote = now().UTC()
		s.Owner, s.Store = o, store
		return s
	}}
}

// claimed changes nothing of a replica but what its ledger says of who writes.
type claimed struct {
	Replica
	stamp func(State) State
}

func (c *claimed) Ledger() Ledger  { return claimedLedger{c.Replica.Ledger(), c.stamp} }
func (c *claimed) unwrap() Replica { return c.Replica }

type claimedLedger struct {
	Ledger
	stamp func(State) State
}

// Save stamps the record and saves it. The result has the stamp also when it was not saved.
func (l claimedLedger) Save(ctx context.Context, s State) (State, error) {
	return l.Ledger.Save(ctx, l.stamp(s))
}

package replica

import (
	"context"
	"errors"
	"reflect"
	"slices"

	"sitrep/internal/fault"
)

// Notes keeps, on this machine, what is to be said of a replica whose store cannot be written to.
type Notes interface {
	// Note returns the note of a VM; ok is false when there is none.
	Note(vm string) (st State, ok bool, err error)
	// KeepNote replaces the note of a VM. It is durable on return.
	KeepNote(st State) error
	// DropNote removes the note of a VM, if there is one.
	DropNote(vm string) error
}

// WithNotes makes a store fit for work that only looks at replicas (a verification, an export, a test failover), where nothing
// can be written to it: a volume that is mounted read-only, after errors or as evidence. Open then opens the replica without a lock, calls
// told with the reason, and keeps what is saved in the ledger in notes: the record of a test failover and of a verification. What only the store
// can record, such as who owns the VM, fails with fault.Permission. A store whose volume is full is opened as ever, with its lock, and
// what it has no room for is kept in notes in the same way. When the store can be written to again the next Open hands the note over.
func WithNotes(s Store, n Notes, told func(vm, why string)) Store {
	return &asideStore{Store: s, notes: n, told: told}
}

// notRecorded says why more than looking does not work.
const notRecorded = "the store cannot be written to, and it has to record who owns the VM and what its replica holds; " +
	"a test failover and an export do without"

type asideStore struct {
	Store
	notes Notes
	told  func(vm, why string)
}

func (s *asideStore) unwrap() Store { return s.Store }

func (s *asideStore) Open(ctx context.Context, vm string) (Replica, error) {
	r, err := s.Store.Open(ctx, vm)
	if err == nil {
		if err = s.handOver(ctx, r, vm); err != nil && !fault.Is(err, fault.NoSpace) {
			return nil, errors.Join(err, r.Close())
		}
		return &asideReplica{Replica: r, notes: s.notes, vm: vm, where: s.Describe(), told: s.told, locked: true}, nil
	}
	if !fault.Is(err, fault.Permission) && !fault.Is(err, fault.NoSpace) {
		return nil, err
	}
	r, verr := s.Store.View(ctx, vm)
	if verr != nil {
		return nil, err
	}
	s.told(vm, "its replica is not locked")
	return &asideReplica{Replica: r, notes: s.notes, vm: vm, where: s.Describe(), refusal: fault.Find(err).Code}, nil
}

func (s *asideStore) View(ctx context.Context, vm string) (Replica, error) {
	r, err := s.Store.View(ctx, vm)
	if err != nil {
		return nil, err
	}
	if _, noted, err := s.notes.Note(vm); err != nil || !noted {
		if err != nil {
			err = errors.Join(err, r.Close())
			return nil, err
		}
		return r, nil
	}
	return &asideReplica{Replica: r, notes: s.notes, vm: vm, where: s.Describe(), refusal: fault.Permission}, nil
}

func (s *asideStore) Seize(ctx context.Context, vm string, take func(State) (State, error)) (Replica, error) {
	r, err := s.Store.Seize(ctx, vm, take)
	if fault.Is(err, fault.Permission) {
		return nil, fault.Wrap(fault.Permission, err, notRecorded).At(s.Describe()).Of(vm, "")
	}
	return r, err
}

// handOver saves what was noted while the store could not be written to.
func (s *asideStore) handOver(ctx context.Context, r Replica, vm string) error {
	note, noted, err := s.notes.Note(vm)
	if err != nil || !noted {
		return err
	}
	st, err := r.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	if next := withNote(st, note); !reflect.DeepEqual(next, st) {
		if _, err := r.Ledger().Save(ctx, next); err != nil {
			return err
		}
	}
	return s.notes.DropNote(vm)
}

// withNote is the ledger st with a note: all of it when the ledger has not changed since, else only the test failover, which
// has to be cleaned up whatever has happened to the replica.
func withNote(st, note State) State {
	switch {
	case note.Replica != st.Replica:
	case note.Version == st.Version && note.Generation == st.Generation:
		return merged(st, note)
	case st.Test == nil && note.Test != nil:
		st.Test = note.Test
	}
	return st
}

// merged is st with the parts of note that a note can have.
func merged(st, note State) State {
	st.Test, st.LastTest = note.Test, note.LastTest
	st.Phase, st.PhaseSince, st.Reason, st.ReasonCode = note.Phase, note.PhaseSince, note.Reason, note.ReasonCode
	st.PausedFrom, st.PausedReason = note.PausedFrom, note.PausedReason
	st.Disks = slices.Clone(st.Disks)
	for i := range st.Disks {
		if d := note.Disk(st.Disks[i].Name); d != nil {
			x := &st.Disks[i]
			x.Stamp, x.VerifiedAt, x.VerifyStarted = d.Stamp, d.VerifiedAt, d.VerifyStarted
			x.VerifyCursor, x.VerifyStamp = d.VerifyCursor, d.VerifyStamp
		}
	}
	return st
}

// asideReplica is a replica whose ledger is kept aside: one that is open for reading, or one that is locked, as long as its store is full.
type asideReplica struct {
	Replica
	notes  Notes
	vm     string
	where  string
	told   func(vm, why string)
	locked bool
	// refusal is the code of what only the store can record, when the replica is not locked.
	refusal fault.Code
}

func (r *asideReplica) unwrap() Replica { return r.Replica }
func (r *asideReplica) Ledger() Ledger  { return &asideLedger{r} }

type asideLedger struct{ r *asideReplica }

func (l *asideLedger) Load(ctx context.Context) (State, error) {
	st, err := l.r.Replica.Ledger().Load(ctx)
	if err != nil {
		return st, err
	}
	note, noted, err := l.r.notes.Note(l.r.vm)
	if err != nil || !noted {
		return st, err
	}
	return withNote(st, note), nil
}

// Save keeps what a note can have. The Version stays that of the ledger in the store.
func (l *asideLedger) Save(ctx context.Context, s State) (State, error) {
	var full error
	if l.r.locked {
		saved, err := l.r.Replica.Ledger().Save(ctx, s)
		switch {
		case err == nil:
			return saved, l.r.notes.DropNote(l.r.vm)
		case !fault.Is(err, fault.NoSpace):
			return s, err
		}
		full = err
	}
	stored, err := l.r.Replica.Ledger().Load(ctx)
	if err != nil {
		return s, err
	}
	switch {
	case reflect.DeepEqual(merged(stored, s), s):
	case full != nil:
		return s, full
	default:
		return s, fault.New(l.r.refusal, notRecorded).At(l.r.where).Of(l.r.vm, "")
	}
	if full != nil {
		l.r.told(l.r.vm, "its volume is full")
	}
	return s, l.r.notes.KeepNote(s)
}

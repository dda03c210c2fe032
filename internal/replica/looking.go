package replica

import (
	"context"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// Looking returns a view of a store for runs that only look: Open is View, and whatever would make, take over or remove a replica,
// or make the store itself, is refused.
func Looking(s Store) Store { return &lookingStore{s} }

type lookingStore struct{ Store }

func (s *lookingStore) unwrap() Store { return s.Store }

func (s *lookingStore) refused(vm string) error {
	return fault.New(fault.WrongState, "this run only looks and writes nothing").Of(vm, "").At(s.Describe())
}

// Prepare checks a store that is known, and makes none.
func (s *lookingStore) Prepare(ctx context.Context, want hrl.ID) (hrl.ID, error) {
	if want.IsZero() {
		return want, s.refused("")
	}
	return s.Store.Prepare(ctx, want)
}

func (s *lookingStore) Create(_ context.Context, first State) (Replica, error) {
	return nil, s.refused(first.VM)
}

func (s *lookingStore) Open(ctx context.Context, vm string) (Replica, error) { return s.View(ctx, vm) }

func (s *lookingStore) Seize(_ context.Context, vm string, _ func(State) (State, error)) (Replica, error) {
	return nil, s.refused(vm)
}

func (s *lookingStore) Remove(_ context.Context, vm string) error { return s.refused(vm) }

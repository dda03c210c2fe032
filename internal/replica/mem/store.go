// Package mem keeps replicas in memory. It is the second implementation of the contract, with which engines are tested
// and by which the contract itself is: whatever only a folder could do is no part of it. Nothing survives the process,
// and earlier positions are whole copies (that share the bytes that did not change).
package mem

import (
	"context"
	"iter"
	"maps"
	"slices"
	"sync"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// Store is a store in memory. New makes one.
type Store struct {
	mu  sync.Mutex
	id  hrl.ID
	vms map[string]*vm
}

var _ replica.Store = (*Store)(nil)

// vm is what is kept of one VM. mu guards everything in it.
type vm struct {
	mu     sync.Mutex
	name   string
	holder *memReplica // who holds the run's lock, nil for nobody
	gone   bool        // removed from the store
	ledger []byte
	disks  map[string]*disk
	shelf  map[string]*sparse
	points map[hrl.Pos]map[string]*disk
}

// New returns a store that has no identity yet.
func New() *Store { return &Store{vms: map[string]*vm{}} }

// Describe says what this is.
func (s *Store) Describe() string { return "memory" }

// Prepare checks or makes the identity; see replica.Store.
func (s *Store) Prepare(ctx context.Context, want hrl.ID) (hrl.ID, error) {
	if err := ctx.Err(); err != nil {
		return hrl.ID{}, fault.In(err, "", "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.id.IsZero() && !want.IsZero():
		return hrl.ID{}, fault.New(fault.StoreNotMounted, "the store has no identity")
	case s.id.IsZero():
		s.id = hrl.NewID()
	case !want.IsZero() && s.id != want:
		return hrl.ID{}, fault.New(fault.StoreForeign, "the store has the id %s, not %s", s.id, want)
	}
	return s.id, nil
}

// find returns the VM, nil when it has no replica.
func (s *Store) find(ctx context.Context, name string) (*vm, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.In(err, name, "")
	}
	if err := replica.CheckName(name); err != nil {
		return nil, fault.Wrap(fault.UsageError, err, "the VM's name cannot be used")
	}
	if s.id.IsZero() {
		return nil, fault.New(fault.StoreNotMounted, "the store has no identity").Of(name, "")
	}
	return s.vms[name], nil
}

// Create makes a new replica; see replica.Store.
func (s *Store) Create(ctx context.Context, first replica.State) (replica.Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := replica.CheckNewVM(first.VM); err != nil {
		return nil, fault.Wrap(fault.UsageError, err, "no VM can be protected by this name").Of(first.VM, "")
	}
	have, err := s.find(ctx, first.VM)
	if err != nil {
		return nil, err
	}
	if have != nil {
		r, err := have.open()
		if err != nil {
			return nil, err
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
		return nil, fault.New(fault.AlreadyProtected, "the store has a replica of this VM").Of(first.VM, "")
	}
	first.Format, first.Version = replica.Format, 1
	if err := first.Check(); err != nil {
		return nil, fault.Wrap(fault.LedgerCorrupt, err, "the first ledger contradicts itself").Of(first.VM, "")
	}
	data, err := replica.Encode(first)
	if err != nil {
		return nil, fault.In(err, first.VM, "")
	}
	v := &vm{
		name: first.VM, ledger: data,
		disks: map[string]*disk{}, shelf: map[string]*sparse{}, points: map[hrl.Pos]map[string]*disk{},
	}
	s.vms[v.name] = v
	return v.open()
}

// Open opens a replica for writing; see replica.Store.
func (s *Store) Open(ctx context.Context, name string) (replica.Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, notProtected(name)
	}
	return v.open()
}

func notProtected(name string) error {
	return fault.New(fault.NotProtected, "the store has no replica of this VM").Of(name, "")
}

// open takes the run's lock.
func (v *vm) open() (replica.Replica, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.holder != nil {
		return nil, fault.New(fault.ReplicaHeld, "the replica is in use").Of(v.name, "")
	}
	r := &memReplica{vm: v, write: true}
	st, err := r.load()
	if err != nil {
		return nil, err
	}
	r.gen = st.Generation
	v.holder = r
	return r, nil
}

func (v *vm) unlock(r *memReplica) {
	v.mu.Lock()
	if v.holder == r {
		v.holder = nil
	}
	v.mu.Unlock()
}

// View opens a replica for reading; see replica.Store.
func (s *Store) View(ctx context.Context, name string) (replica.Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, notProtected(name)
	}
	return &memReplica{vm: v}, nil
}

// List yields the VMs that have a replica; see replica.Store.
func (s *Store) List(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		s.mu.Lock()
		names := slices.Sorted(maps.Keys(s.vms))
		mounted := !s.id.IsZero()
		s.mu.Unlock()
		if !mounted {
			yield("", fault.New(fault.StoreNotMounted, "the store has no identity"))
			return
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				yield("", fault.In(err, "", ""))
				return
			}
			if !yield(name, nil) {
				return
			}
		}
	}
}

// Remove deletes a replica; see replica.Store.
func (s *Store) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ctx, name)
	if err != nil || v == nil {
		return err
	}
	if _, err := v.open(); err != nil {
		return err
	}
	v.mu.Lock()
	v.gone = true
	v.mu.Unlock()
	delete(s.vms, name)
	return nil
}

// Seize takes the replica over; see replica.Store. Whoever held the lock before is refused at every change from then on.
func (s *Store) Seize(ctx context.Context, name string, take func(replica.State) (replica.State, error)) (replica.Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, notProtected(name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	r := &memReplica{vm: v, write: true}
	st, err := r.load()
	if err != nil {
		return nil, err
	}
	next, err := take(st)
	if err != nil {
		return nil, fault.In(err, name, "")
	}
	if v.holder != nil && next.Generation == st.Generation {
		return nil, fault.New(fault.ReplicaHeld, "the replica is in use").Of(name, "")
	}
	if err := replica.CheckTake(st, next, r.path("ledger.json")); err != nil {
		return nil, fault.In(err, name, "")
	}
	if _, err := r.store(next); err != nil {
		return nil, err
	}
	v.holder = r
	return r, nil
}

package replica_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/mem"
	"sitrep/internal/replica/replicatest"
)

func TestContractInHand(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		replicatest.TestStore(t, func(*testing.T) replicatest.Place {
			s := mem.New()
			return func() replica.Store { return replica.InHand(s) }
		})
	})
	t.Run("folder", func(t *testing.T) {
		replicatest.TestStore(t, func(t *testing.T) replicatest.Place {
			root := t.TempDir()
			return func() replica.Store {
				return replica.InHand(replica.WithRetries(dir.New(durable.OS(), root), stubborn()))
			}
		})
	})
}

// countedStore counts how often ledgers are read, and fails their Save when it is told to.
type countedStore struct {
	replica.Store
	loads int
	fail  error
}

func (s *countedStore) Create(ctx context.Context, first replica.State) (replica.Replica, error) {
	return s.counted(s.Store.Create(ctx, first))
}

func (s *countedStore) Open(ctx context.Context, vm string) (replica.Replica, error) {
	return s.counted(s.Store.Open(ctx, vm))
}

func (s *countedStore) View(ctx context.Context, vm string) (replica.Replica, error) {
	return s.counted(s.Store.View(ctx, vm))
}

func (s *countedStore) Seize(ctx context.Context, vm string, take func(replica.State) (replica.State, error)) (replica.Replica, error) {
	return s.counted(s.Store.Seize(ctx, vm, take))
}

func (s *countedStore) counted(r replica.Replica, err error) (replica.Replica, error) {
	return countedReplica{r, s}, err
}

type countedReplica struct {
	replica.Replica
	s *countedStore
}

func (r countedReplica) Ledger() replica.Ledger { return countedLedger{r.Replica.Ledger(), r.s} }

type countedLedger struct {
	replica.Ledger
	s *countedStore
}

func (l countedLedger) Load(ctx context.Context) (replica.State, error) {
	l.s.loads++
	return l.Ledger.Load(ctx)
}

func (l countedLedger) Save(ctx context.Context, st replica.State) (replica.State, error) {
	if l.s.fail != nil {
		return st, l.s.fail
	}
	return l.Ledger.Save(ctx, st)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestInHand: who writes reads its ledger once; an error, a view, and what takes over read it anew.
func TestInHand(t *testing.T) {
	ctx := t.Context()
	counted := &countedStore{Store: mem.New()}
	store := replica.InHand(counted)
	_, err := store.Prepare(ctx, hrl.ID{})
	must(t, err)
	r, err := store.Create(ctx, replica.State{
		VM: "web01", Vault: "vault", Replica: hrl.NewID(), Generation: 1, Created: time.Now(), Phase: replica.Seeding, PhaseSince: time.Now(),
		Owner: replica.Owner{Site: "one", Host: "h1", Since: time.Now()},
		Disks: []replica.Disk{{Name: "os", OS: true, Source: "/d/os.raw", Format: "raw", Size: 1 << 20, BlockSize: 64 << 10}},
	})
	must(t, err)
	load := func(r replica.Replica, reads int) replica.State {
		t.Helper()
		before := counted.loads
		st, err := r.Ledger().Load(ctx)
		must(t, err)
		if got := counted.loads - before; got != reads {
			t.Errorf("the store was asked %d times, want %d", got, reads)
		}
		return st
	}
	first := load(r, 1)
	load(r, 0)

	changed := load(r, 0)
	changed.Disks[0].Name = "another"
	if st := load(r, 0); st.Disks[0].Name != "os" {
		t.Error("what a caller does with its State changes what is in hand")
	}

	next := first
	next.Reason = "for a reason"
	saved, err := r.Ledger().Save(ctx, next)
	must(t, err)
	if st := load(r, 0); !reflect.DeepEqual(st, saved) {
		t.Errorf("in hand is\n%+v, saved was\n%+v", st, saved)
	}
	counted.fail = fault.New(fault.LedgerConflict, "somebody was faster")
	if _, err := r.Ledger().Save(ctx, saved); !fault.Is(err, fault.LedgerConflict) {
		t.Error(err)
	}
	counted.fail = nil
	load(r, 1)
	load(r, 0)

	v, err := store.View(ctx, "web01")
	must(t, err)
	load(v, 1)
	load(v, 1)

	taken, err := store.Seize(ctx, "web01", func(st replica.State) (replica.State, error) { st.Generation++; return st, nil })
	must(t, err)
	if st := load(taken, 1); st.Generation != 2 {
		t.Errorf("generation %d", st.Generation)
	}
	if _, err := r.Ledger().Save(ctx, saved); !fault.Is(err, fault.Fenced) {
		t.Errorf("who was taken over from saves: %v", err)
	}
	if st := load(r, 1); st.Generation != 2 {
		t.Errorf("who was refused still sees generation %d", st.Generation)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.Ledger().Load(ended); err == nil {
		t.Error("a run that is to end goes on with what is in hand")
	}
	must(t, taken.Close())
	must(t, r.Close())
	must(t, v.Close())
}

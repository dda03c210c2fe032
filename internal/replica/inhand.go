package replica

import (
	"context"
	"sync"
)

// InHand returns a store whose replicas, opened for writing, keep their ledger in hand: what this run has read or saved last. While it has
// the lock nobody else changes the record, so Load of such a replica asks the store once and costs nothing afterwards. Whoever
// takes the replica over in spite of the lock (Store.Seize) shuts this run out of pages, sums, shelf and ledger: it learns of that by the first
// write that is refused. Any error of the ledger drops what is held, so that the next Load reads it. A replica that was opened for
// reading reads its ledger every time: others change it.
//
// It belongs outside WithRetries, which has to see the stored record.
func InHand(s Store) Store { return &inHandStore{s} }

type inHandStore struct{ Store }

func (s *inHandStore) unwrap() Store { return s.Store }

func (s *inHandStore) Create(ctx context.Context, first State) (Replica, error) {
	return inHand(s.Store.Create(ctx, first))
}

func (s *inHandStore) Open(ctx context.Context, vm string) (Replica, error) {
	return inHand(s.Store.Open(ctx, vm))
}

func (s *inHandStore) Seize(ctx context.Context, vm string, take func(State) (State, error)) (Replica, error) {
	return inHand(s.Store.Seize(ctx, vm, take))
}

func inHand(r Replica, err error) (Replica, error) {
	if err != nil {
		return nil, err
	}
	return &inHandReplica{Replica: r, ledger: &inHandLedger{in: r.Ledger()}}, nil
}

type inHandReplica struct {
	Replica
	ledger *inHandLedger
}

func (r *inHandReplica) unwrap() Replica { return r.Replica }
func (r *inHandReplica) Ledger() Ledger  { return r.ledger }

func (r *inHandReplica) Close() error {
	r.ledger.drop()
	return r.Replica.Close()
}

// inHandLedger holds the record as it is stored, and not as a State, whose slices and maps the caller may change.
type inHandLedger struct {
	in Ledger

	mu   sync.Mutex
	vm   string
	held []byte // nil: not known
}

func (l *inHandLedger) Load(ctx context.Context) (State, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held != nil {
		if err := ctx.Err(); err != nil {
			return State{}, err
		}
		return Decode(l.held, "the ledger in hand", l.vm)
	}
	s, err := l.in.Load(ctx)
	if err == nil {
		l.hold(s)
	}
	return s, err
}

func (l *inHandLedger) Save(ctx context.Context, s State) (State, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = nil
	saved, err := l.in.Save(ctx, s)
	if err == nil {
		l.hold(saved)
	}
	return saved, err
}

func (l *inHandLedger) hold(s State) {
	if data, err := Encode(s); err == nil {
		l.held, l.vm = data, s.VM
	}
}

// drop lets go of what is held.
func (l *inHandLedger) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = nil
}

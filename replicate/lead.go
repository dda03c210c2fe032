package replicate

import (
	"context"
	"sync"

	"sitrep/internal/block"
)

// lead bounds what an initial copy has given to the store and the ledger does not know of: all of that is sent again after an
// interruption, however fast the store takes it. A piece waits while so much lies before it; the first that is not recorded
// never does, so that the copy always goes on.
type lead struct {
	most int64  // bytes
	due  func() // asks for a checkpoint; does not wait for it

	mu      sync.Mutex
	turn    sync.Cond // something was recorded, or the run ends
	waiting int
	ahead   block.Set // what was given to the store, or is being given, and is not recorded
}

func newLead(most int64, due func()) *lead {
	l := &lead{most: most, due: due}
	l.turn.L = &l.mu
	return l
}

// enter waits until r may be given to the store.
func (l *lead) enter(ctx context.Context, r block.Range) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.before(r.Off) >= l.most {
		if err := l.wait(ctx); err != nil {
			return err
		}
	}
	l.ahead.Add(r)
	return nil
}

func (l *lead) before(off int64) (n int64) {
	for r := range l.ahead.All() {
		if r.Off >= off {
			break
		}
		n += r.Len
	}
	return n
}

func (l *lead) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.turn.Broadcast()
	})
	defer stop()
	l.waiting++
	l.due()
	l.turn.Wait()
	l.waiting--
	return ctx.Err()
}

// advanced is told that there is more to record.
func (l *lead) advanced() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting > 0 {
		l.due()
	}
}

// recorded is told that the ledger knows of everything before at.
func (l *lead) recorded(at int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead.Remove(block.Range{Len: at})
	l.turn.Broadcast()
}

package replicate

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"sitrep/internal/block"
)

// TestLead has workers copy pieces that end in any order, and a saver that records how far they are: never is more under way or
// unrecorded than the limit and a piece for each worker, and the copy comes to its end whatever the order.
func TestLead(t *testing.T) {
	const piece, pieces, most, workers = 4, 500, 16, 6
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var (
		front    frontier
		mu       sync.Mutex
		next     int64
		given    int64
		recorded int64
	)
	enough, stop := make(chan struct{}, 1), make(chan struct{})
	l := newLead(most, func() {
		select {
		case enough <- struct{}{}:
		default:
		}
	})
	var saver, wg sync.WaitGroup
	saver.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-enough:
				at := front.reached()
				mu.Lock()
				recorded = at
				mu.Unlock()
				l.recorded(at)
			}
		}
	})
	for w := range uint64(workers) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, w))
			for {
				mu.Lock()
				r := block.Range{Off: next * piece, Len: piece}
				next++
				mu.Unlock()
				if r.Off >= pieces*piece {
					return
				}
				if err := l.enter(t.Context(), r); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if given += piece; given-recorded > most+workers*piece {
					t.Errorf("%d bytes are not recorded", given-recorded)
				}
				mu.Unlock()
				for range rng.IntN(2000) {
					_ = rng.Uint32()
				}
				front.done(r)
				l.advanced()
			}
		})
	}
	wg.Wait()
	close(stop)
	saver.Wait()
	if at := front.reached(); at != pieces*piece {
		t.Errorf("the copy ended at %d", at)
	}
}

// TestLeadEnds: who waits for a checkpoint that never comes ends with the run.
func TestLeadEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := newLead(10, func() { cancel() })
	if err := l.enter(ctx, block.Range{Len: 10}); err != nil {
		t.Fatal(err)
	}
	if err := l.enter(ctx, block.Range{Off: 10, Len: 1}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

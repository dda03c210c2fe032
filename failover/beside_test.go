package failover_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"sitrep/failover"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/replicate/replicatetest"
)

// hooked is a meter that does something whenever a disk is copied.
type hooked struct {
	progress.Meter
	mu sync.Mutex
	do func()
}

func (h *hooked) Add(task string, n int64) {
	h.Meter.Add(task, n)
	if strings.HasPrefix(task, "recover ") { // by several tasks at once
		h.mu.Lock()
		defer h.mu.Unlock()
		h.do()
	}
}

// TestReplicationBesideTest: while a test failover copies the disks of the newest point, deltas change the pages under it, and would drop
// the point from the ledger, were it not claimed. The copy is what the point was.
func TestReplicationBesideTest(t *testing.T) {
	ctx := t.Context()
	rng := rand.New(rand.NewPCG(3, 3))
	g := replicatetest.NewGuest(rng)
	w := newWorld(t, g, 2, func() { replicatetest.Scribble(rng, g) })
	at := g.Clone()
	st, err := w.State(ctx)
	must(t, err)
	newest := st.Points[len(st.Points)-1].ID
	deltas := 0
	delta := func() {
		replicatetest.Scribble(rng, g)
		w.Now = w.Now.Add(5 * time.Minute)
		err := w.Write(g)
		if err == nil {
			_, err = w.Delta(ctx)
		}
		if err != nil { // the test does not hold the replica
			t.Error(err)
		}
		deltas++
	}
	job := func() *failover.Job {
		j := w.job()
		j.Meter = &hooked{Meter: j.Meter, do: func() {
			if deltas < 3*w.Keep {
				delta()
			}
		}}
		j.Turn = func(ctx context.Context, f func(context.Context) error) error { return f(ctx) }
		return j
	}
	must(t, job().Run(ctx, failover.Test, failover.Options{}, ""))
	if deltas < w.Keep+1 {
		t.Fatalf("%d deltas ran while disks were copied", deltas)
	}
	got, err := w.recovered("web01-test")
	must(t, err)
	must(t, same("the test VM", got, at))
	st, err = w.State(ctx)
	must(t, err)
	if st.Phase != replica.Replicating || st.Test == nil || st.Test.Point != newest || st.Point(newest) == nil {
		t.Errorf("%s: the test is %+v, its point %v", st.Phase, st.Test, st.Point(newest))
	}
	must(t, w.SameReplica(ctx, g))
	delta() // nothing claims it any more
	if st, err = w.State(ctx); err != nil || st.Point(newest) != nil {
		t.Errorf("the point of the test is kept for ever: %v", err)
	}
	must(t, w.job().Cleanup(ctx, ""))
}

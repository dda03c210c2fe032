package resync_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/replica"
	"sitrep/replicate/replicatetest"
)

// TestKilledTwentyTimes kills a resynchronization at twenty random moments. Each run goes on behind the last slice that was
// finished, never before it, and the last one ends.
func TestKilledTwentyTimes(t *testing.T) {
	ctx := context.Background()
	for _, deep := range []bool{false, true} {
		seed := uint64(time.Now().UnixNano())
		rng := rand.New(rand.NewPCG(seed, 0))
		r, g, _ := protected(t, false)
		for b := range len(g["os"]) / replicatetest.BlockSize {
			g["os"][b*replicatetest.BlockSize+7] ^= 0x77
		}
		must(t, r.Write(g))
		forget(t, r)
		var reached map[string]int64
		kills := 0
		for kills < 20 {
			r.FS.CutAfter(1 + rng.IntN(60))
			_, err := run(ctx, r, deep)
			if err == nil {
				break
			}
			if !errors.Is(err, crashfs.ErrCut) {
				t.Fatalf("seed %d: %v", seed, err)
			}
			kills++
			r = r.On(r.FS.AfterCrash(crashfs.ProcessKill, rng.Uint64()))
			st, err := r.State(ctx)
			must(t, err)
			reached = notBehind(t, st, reached, seed)
		}
		r = r.On(r.FS.AfterCrash(crashfs.ProcessKill, 0)) // without a cut to come
		if kills == 20 {
			_, err := run(ctx, r, deep)
			must(t, err)
		}
		t.Logf("deep %v: killed %d times", deep, kills)
		if kills < 3 {
			t.Errorf("seed %d: only %d kills met the run", seed, kills)
		}
		_, err := r.Delta(ctx)
		must(t, err)
		must(t, r.SameReplica(ctx, g))
		must(t, r.Verified(ctx))
	}
}

// notBehind proves that no cursor has gone back, and returns where they are.
func notBehind(t *testing.T, st replica.State, before map[string]int64, seed uint64) map[string]int64 {
	t.Helper()
	if st.Resync == nil {
		return before
	}
	for disk, at := range before {
		if st.Resync.Cursors[disk] < at {
			t.Fatalf("seed %d: disk %s went back from %d to %d", seed, disk, at, st.Resync.Cursors[disk])
		}
	}
	return st.Resync.Cursors
}

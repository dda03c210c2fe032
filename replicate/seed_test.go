package replicate_test

import (
	"context"
	"errors"
	"testing"

	"sitrep/internal/durable/crashfs"
	"sitrep/replicate/replicatetest"
)

// TestSeedOfADiskThatChanges interrupts an initial copy everywhere, lets the guest write before and behind the place where
// it stopped, zeros among it, and goes on: the replica is the source as it is then.
func TestSeedOfADiskThatChanges(t *testing.T) {
	ctx := context.Background()
	fs := crashfs.New()
	r := replicatetest.New(fs, "os", "data")
	g := replicatetest.Guest{"os": make([]byte, 40*replicatetest.BlockSize), "data": make([]byte, 9*replicatetest.BlockSize)}
	for name := range g {
		for i := range g[name] {
			g[name][i] = byte(i>>9) | 1
		}
	}
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	later := g.Clone()
	clear(later["os"][:3*replicatetest.BlockSize])
	clear(later["os"][30*replicatetest.BlockSize:])
	later["os"][17*replicatetest.BlockSize] ^= 0xff
	clear(later["data"])
	first, step := replicatetest.Cuts()
	for k := first; ; k += step {
		cut := fs.AfterCrash(crashfs.KeepAll, 0)
		cut.CutAfter(k)
		err := r.On(cut).Protect(ctx)
		if err == nil {
			return
		}
		if !errors.Is(err, crashfs.ErrCut) {
			t.Fatalf("cut at %d: %v", k, err)
		}
		for _, p := range crashfs.Policies() {
			again := r.On(cut.AfterCrash(p, uint64(k)))
			must(t, again.Write(later))
			if err := again.Protect(ctx); err != nil { // protected by now: the change is the next delta's
				_, err := again.Delta(ctx)
				must(t, err)
			}
			if err := again.SameReplica(ctx, later); err != nil {
				t.Fatalf("cut at %d, %v: %v", k, p, err)
			}
			must(t, again.Verified(ctx))
		}
	}
}

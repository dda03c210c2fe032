package resync_test

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/replicate/replicatetest"
)

// TestRottenIsHealed has something write to blocks of the replica that the source has not changed, of data and of zeros: the
// recovery points that share them are right again afterwards.
func TestRottenIsHealed(t *testing.T) {
	ctx := context.Background()
	for i, by := range []int64{0, 0, -3 * replicatetest.BlockSize, -3 * replicatetest.BlockSize} {
		clones := i%2 == 1
		t.Run(fmt.Sprintf("clones=%v, longer by %d", clones, by), func(t *testing.T) {
			r, g, rng := protected(t, clones)
			before, err := r.Points(ctx)
			must(t, err)
			vandalize(t, r)
			reshape(t, r, by)
			r.Now = r.Now.Add(time.Hour)
			g["data"][5] ^= 1 // and the source goes on elsewhere, in an earlier slice too
			g["os"][2*replicatetest.BlockSize] ^= 1
			must(t, r.Write(g))
			_, err = run(ctx, r, true)
			must(t, err)
			must(t, r.SameReplica(ctx, g))
			must(t, r.Verified(ctx))
			after, err := r.Points(ctx)
			must(t, err)
			if len(after) != len(before)+1 {
				t.Errorf("%d recovery points, there were %d", len(after), len(before))
			}
			for at, want := range before {
				if !reflect.DeepEqual(after[at], want) {
					t.Errorf("the recovery point at %s has changed", at)
				}
			}
			goesOn(t, r, g, rng)
		})
	}
}

// TestRottenZeros has something write where both the source and the replica are zeros.
func TestRottenZeros(t *testing.T) {
	ctx := context.Background()
	r, g, rng := protected(t, false)
	clear(g["os"])
	must(t, r.Write(g))
	_, err := r.Delta(ctx)
	must(t, err)
	vandalize(t, r)
	_, err = run(ctx, r, true)
	must(t, err)
	must(t, r.SameReplica(ctx, g))
	must(t, r.Verified(ctx))
	goesOn(t, r, g, rng)
}

// TestUnprovenSums damages the block sums, whole or in part, while the source makes zeros of what it held: what the sums
// say is no reason to take the replica's bytes for rotten, so the recovery points keep them.
func TestUnprovenSums(t *testing.T) {
	ctx := context.Background()
	for name, damage := range map[string]func(*testing.T, *replicatetest.Rig){
		"emptied": func(t *testing.T, r *replicatetest.Rig) { cutSums(t, r, 0) },
		"missing": func(t *testing.T, r *replicatetest.Rig) { must(t, r.FS.Remove("/store/web01/os.sums")) },
	} {
		t.Run(name, func(t *testing.T) {
			r, g, rng := protected(t, false)
			before, err := r.Points(ctx)
			must(t, err)
			damage(t, r)
			clear(g["os"])
			must(t, r.Write(g))
			if _, err := r.Delta(ctx); !fault.Is(err, fault.ReplicaChanged) {
				t.Errorf("delta: %v", err)
			}
			if _, err = run(ctx, r, false); err != nil {
				t.Fatal(err)
			}
			must(t, r.SameReplica(ctx, g))
			must(t, r.Verified(ctx))
			after, err := r.Points(ctx)
			must(t, err)
			for at, want := range before {
				if have, ok := after[at]; ok && !reflect.DeepEqual(have, want) {
					t.Errorf("the recovery point at %s has changed", at)
				}
			}
			goesOn(t, r, g, rng)
		})
	}
}

// cutSums gives the sums of the first disk another length.
func cutSums(t *testing.T, r *replicatetest.Rig, size int64) {
	t.Helper()
	f, err := r.FS.OpenRW("/store/web01/os.sums")
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Sync())
	must(t, f.Close())
}

// TestOlderLedger brings a ledger back from a backup, as the advice for a damaged one says, while the pages have gone on
// since: its recovery points stay what they were, before and after the resynchronization.
func TestOlderLedger(t *testing.T) {
	ctx := context.Background()
	const ledger = "/store/web01/ledger.json"
	for _, clones := range []bool{false, true} {
		t.Run(fmt.Sprintf("clones=%v", clones), func(t *testing.T) {
			r, g, rng := protected(t, clones)
			r.Keep = 24
			before, err := r.Points(ctx)
			must(t, err)
			old, err := durable.ReadFile(r.FS, ledger, 1<<20)
			must(t, err)
			for range 3 {
				goesOn(t, r, g, rng)
			}
			must(t, durable.WriteFile(r.FS, ledger, old))
			same := func(when string) {
				t.Helper()
				after, err := r.Points(ctx)
				must(t, err)
				for at, want := range before {
					if !reflect.DeepEqual(after[at], want) {
						t.Errorf("%s: the recovery point at %s has changed", when, at)
					}
				}
			}
			same("at first")
			apply(t, r)
			same("after an apply of nothing")
			replicatetest.Scribble(rng, g)
			must(t, r.Write(g))
			if _, err := r.Delta(ctx); fault.Find(err) == nil || fault.Find(err).Class() != fault.Resync {
				t.Errorf("delta: %v", err)
			}
			_, err = run(ctx, r, false)
			must(t, err)
			must(t, r.SameReplica(ctx, g))
			same("after the resynchronization")
			goesOn(t, r, g, rng)
			same("later")
		})
	}
}

// apply applies what lies on the shelf.
func apply(t *testing.T, r *replicatetest.Rig) {
	t.Helper()
	j, done, err := r.Job(context.Background(), false)
	must(t, err)
	defer done()
	_, err = j.Apply(context.Background())
	must(t, err)
}

package replicate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/replicate/replicatetest"
)

// TestCutEverywhere cuts the power, and kills the process, at every single write and sync of a protection and of a delta,
// and requires of the next run that it completes and that the replica is the source. Points are compared byte for byte.
func TestCutEverywhere(t *testing.T) {
	ctx := context.Background()
	histories := map[string]struct {
		before func(r *replicatetest.Rig, g replicatetest.Guest) error // not cut
		during func(r *replicatetest.Rig) error
	}{
		"protect": {
			before: func(r *replicatetest.Rig, g replicatetest.Guest) error { return r.Prepare(ctx, g) },
			during: func(r *replicatetest.Rig) error { return r.Protect(ctx) },
		},
		"delta": {
			before: func(r *replicatetest.Rig, g replicatetest.Guest) error {
				if err := r.Prepare(ctx, g); err != nil {
					return err
				}
				return r.Protect(ctx)
			},
			during: func(r *replicatetest.Rig) error { _, err := r.Delta(ctx); return err },
		},
		"delta after two captures": {
			before: func(r *replicatetest.Rig, g replicatetest.Guest) error {
				if err := r.Prepare(ctx, g); err != nil {
					return err
				}
				if err := r.Protect(ctx); err != nil {
					return err
				}
				rng := rand.New(rand.NewPCG(5, 5))
				for range 2 {
					replicatetest.Scribble(rng, g)
					if err := r.Write(g); err != nil {
						return err
					}
					if err := r.Capture(ctx); err != nil {
						return err
					}
				}
				return nil
			},
			during: func(r *replicatetest.Rig) error { _, err := r.Delta(ctx); return err },
		},
		"a disk is added": {
			before: func(r *replicatetest.Rig, g replicatetest.Guest) error {
				if err := r.Prepare(ctx, g); err != nil {
					return err
				}
				if err := r.Protect(ctx); err != nil {
					return err
				}
				g["added"] = make([]byte, 11*replicatetest.BlockSize+512)
				rng := rand.New(rand.NewPCG(6, 6))
				replicatetest.Scribble(rng, g)
				if err := r.Write(g); err != nil {
					return err
				}
				return r.Capture(ctx) // which does not have the disk, and waits
			},
			during: func(r *replicatetest.Rig) error { return r.AddDisk(ctx, "added", 11*replicatetest.BlockSize+512) },
		},
	}
	for name, h := range histories {
		for _, clones := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/clones=%v", name, clones), func(t *testing.T) {
				t.Parallel()
				cutEverywhere(t, clones, h.before, h.during)
			})
		}
	}
}

func cutEverywhere(t *testing.T, clones bool, before func(*replicatetest.Rig, replicatetest.Guest) error, during func(*replicatetest.Rig) error) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 2))
	g := replicatetest.NewGuest(rng)
	base := crashfs.New()
	base.SetClone(clones)
	r := replicatetest.New(base, "os", "data")
	must(t, r.Write(g))
	must(t, before(r, g))
	settled, err := r.Points(ctx)
	must(t, err)
	replicatetest.Scribble(rng, g)
	must(t, r.Write(g))
	start := base.AfterCrash(crashfs.KeepAll, 0)

	first, step := replicatetest.Cuts()
	for k := first; ; k += step {
		fs := start.AfterCrash(crashfs.KeepAll, 0)
		fs.CutAfter(k)
		err := during(r.On(fs))
		if err == nil {
			if k < 20 {
				t.Fatalf("the history had only %d operations", k)
			}
			t.Logf("%d operations", k-1)
			return
		}
		if !errors.Is(err, crashfs.ErrCut) {
			t.Fatalf("cut at %d: %v", k, err)
		}
		for _, policy := range crashfs.Policies() {
			after := r.On(fs.AfterCrash(policy, uint64(k)))
			if err := recovered(ctx, after, g, settled, during); err != nil {
				t.Fatalf("cut at operation %d of %v, then %s: %v", k, last(fs.Log()), policy, err)
			}
		}
	}
}

func last(log []crashfs.Op) crashfs.Op {
	if len(log) == 0 {
		return crashfs.Op{}
	}
	return log[len(log)-1]
}

// recovered runs the verb again after a crash, and proves the outcome: before it, the points that there were are as they
// were; after it, they still are, and pages and newest point are the source.
func recovered(ctx context.Context, r *replicatetest.Rig, g replicatetest.Guest, settled map[hrl.Pos]replicatetest.Guest, again func(*replicatetest.Rig) error) error {
	if err := holds(ctx, r, settled); err != nil {
		return fmt.Errorf("before the next run: %w", err)
	}
	err := again(r)
	if err != nil && !fault.Is(err, fault.WrongState) { // protect of a VM that is protected by now
		return fmt.Errorf("the next run: %w", err)
	}
	if err == nil {
		err = tidy(r)
	}
	if err != nil && !fault.Is(err, fault.WrongState) {
		return err
	}
	if err := holds(ctx, r, settled); err != nil {
		return fmt.Errorf("after the next run: %w", err)
	}
	if err := r.SameReplica(ctx, g); err != nil {
		return err
	}
	points, err := r.Points(ctx)
	if err != nil {
		return err
	}
	st, err := r.State(ctx)
	if err != nil {
		return err
	}
	newest, ok := points[st.Applied]
	if !ok {
		return fmt.Errorf("position %s is no recovery point", st.Applied)
	}
	if !reflect.DeepEqual(newest, g) {
		return errors.New("the newest recovery point is not the source")
	}
	return r.Verified(ctx)
}

// tidy says whether there is nothing beside the disks but the disks.
func tidy(r *replicatetest.Rig) error {
	entries, err := r.FS.ReadDir("/site/disks")
	for _, e := range entries {
		if !strings.HasSuffix(e.Name, ".raw") || durable.IsTemp(e.Name) {
			err = errors.Join(err, fmt.Errorf("%s was left beside the disks", e.Name))
		}
	}
	return err
}

// holds proves that the points of the map that the ledger still lists have the content of the map.
func holds(ctx context.Context, r *replicatetest.Rig, want map[hrl.Pos]replicatetest.Guest) error {
	got, err := r.Points(ctx)
	if err != nil {
		return err
	}
	for at, g := range got {
		if w, ok := want[at]; ok && !reflect.DeepEqual(g, w) {
			return fmt.Errorf("the recovery point at %s has changed", at)
		}
	}
	return nil
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

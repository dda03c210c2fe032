package replicate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// TestCutEverywhere cuts the power, and kills the process, at every single write and sync of a protection and of a delta,
// and requires of the next run that it completes and that the replica is the source. Points are compared byte for byte.
func TestCutEverywhere(t *testing.T) {
	ctx := context.Background()
	histories := map[string]struct {
		before func(r *rig, g guest) error // not cut
		during func(r *rig) error
	}{
		"protect": {
			before: func(r *rig, g guest) error { return r.prepare(ctx, g) },
			during: func(r *rig) error { return r.protect(ctx) },
		},
		"delta": {
			before: func(r *rig, g guest) error {
				if err := r.prepare(ctx, g); err != nil {
					return err
				}
				return r.protect(ctx)
			},
			during: func(r *rig) error { _, err := r.delta(ctx); return err },
		},
		"delta after two captures": {
			before: func(r *rig, g guest) error {
				if err := r.prepare(ctx, g); err != nil {
					return err
				}
				if err := r.protect(ctx); err != nil {
					return err
				}
				rng := rand.New(rand.NewPCG(5, 5))
				for range 2 {
					scribble(rng, g)
					if err := r.write(g); err != nil {
						return err
					}
					if err := r.capture(ctx); err != nil {
						return err
					}
				}
				return nil
			},
			during: func(r *rig) error { _, err := r.delta(ctx); return err },
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

func cutEverywhere(t *testing.T, clones bool, before func(*rig, guest) error, during func(*rig) error) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 2))
	g := newGuest(rng)
	base := crashfs.New()
	base.SetClone(clones)
	r := newRig(base, "os", "data")
	must(t, r.write(g))
	must(t, before(r, g))
	settled, err := r.points(ctx)
	must(t, err)
	scribble(rng, g)
	must(t, r.write(g))
	start := base.AfterCrash(crashfs.KeepAll, 0)

	for k := 1; ; k++ {
		fs := start.AfterCrash(crashfs.KeepAll, 0)
		fs.CutAfter(k)
		err := during(r.on(fs))
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
			after := r.on(fs.AfterCrash(policy, uint64(k)))
			if err := recovered(ctx, after, g, settled, during); err != nil {
				t.Fatalf("cut at operation %d of %v, then %s: %v", k, last(fs.Log()), policy, err)
			}
		}
	}
}

// on is the same site on another filesystem.
func (r *rig) on(fs *crashfs.FS) *rig {
	c := *r
	c.fs = fs
	return &c
}

func last(log []crashfs.Op) crashfs.Op {
	if len(log) == 0 {
		return crashfs.Op{}
	}
	return log[len(log)-1]
}

// recovered runs the verb again after a crash, and proves the outcome: before it, the points that there were are as they
// were; after it, they still are, and pages and newest point are the source.
func recovered(ctx context.Context, r *rig, g guest, settled map[hrl.Pos]guest, again func(*rig) error) error {
	if err := holds(ctx, r, settled); err != nil {
		return fmt.Errorf("before the next run: %w", err)
	}
	if err := again(r); err != nil && !fault.Is(err, fault.WrongState) { // protect of a VM that is protected by now
		return fmt.Errorf("the next run: %w", err)
	}
	if err := holds(ctx, r, settled); err != nil {
		return fmt.Errorf("after the next run: %w", err)
	}
	if err := r.sameReplica(ctx, g); err != nil {
		return err
	}
	points, err := r.points(ctx)
	if err != nil {
		return err
	}
	st, err := r.ledger(ctx)
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
	return verified(ctx, r)
}

// holds proves that the points of the map that the ledger still lists have the content of the map.
func holds(ctx context.Context, r *rig, want map[hrl.Pos]guest) error {
	got, err := r.points(ctx)
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

// verified proves pages, sums and seal with the product's own verification.
func verified(ctx context.Context, r *rig) error {
	j, done, err := r.job(ctx, false)
	if err != nil {
		return err
	}
	defer done()
	_, err = j.Verify(ctx, 0)
	return err
}

package resync_test

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"
)

// TestRottenIsHealed has something write to blocks of the replica that the source has not changed, of data and of zeros: the
// recovery points that share them are right again afterwards.
func TestRottenIsHealed(t *testing.T) {
	ctx := context.Background()
	for _, clones := range []bool{false, true} {
		t.Run(fmt.Sprintf("clones=%v", clones), func(t *testing.T) {
			r, g, rng := protected(t, clones)
			before, err := r.Points(ctx)
			must(t, err)
			vandalize(t, r)
			r.Now = r.Now.Add(time.Hour)
			g["data"][5] ^= 1 // and the source goes on elsewhere
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

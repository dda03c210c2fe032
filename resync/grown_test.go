package resync_test

import (
	"context"
	"testing"
	"time"
)

// TestGrownIsAPoint: a disk that has only become larger gets a recovery point of its new size by a resynchronization, and the older
// points stay what they were.
func TestGrownIsAPoint(t *testing.T) {
	ctx := context.Background()
	for _, clones := range []bool{false, true} {
		for _, by := range []int{512, 4096, 9 * 4096} {
			r, g, rng := protected(t, clones)
			before, err := r.Points(ctx)
			must(t, err)
			g["data"] = append(g["data"], make([]byte, by)...) // its last block is a short one
			r.Now = r.Now.Add(time.Hour)
			must(t, r.Write(g))
			forget(t, r)
			_, err = run(ctx, r, false)
			must(t, err)
			after, err := r.Points(ctx)
			must(t, err)
			st, err := r.State(ctx)
			must(t, err)
			if p := st.Points[len(st.Points)-1]; p.At != st.Applied || p.Sizes["data"] != int64(len(g["data"])) {
				t.Errorf("clones %v, by %d: the newest point has %d bytes of %d", clones, by, p.Sizes["data"], len(g["data"]))
			}
			for at, want := range before {
				if string(after[at]["data"]) != string(want["data"]) {
					t.Errorf("clones %v, by %d: the point at %s has changed", clones, by, at)
				}
			}
			goesOn(t, r, g, rng)
		}
	}
}

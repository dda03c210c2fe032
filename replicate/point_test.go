package replicate_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"sitrep/replicate/replicatetest"
)

// TestLostPoint loses what one recovery point is seen through: replication goes on, and when the point is too old what was
// kept of it is removed.
func TestLostPoint(t *testing.T) {
	ctx := context.Background()
	r, g := protectedRig(t)
	r.Keep = 2
	rng := rand.New(rand.NewPCG(5, 6))
	step := func() {
		t.Helper()
		r.Now = r.Now.Add(time.Hour)
		replicatetest.Scribble(rng, g)
		g["os"][0]++
		must(t, r.Write(g))
		_, err := r.Delta(ctx)
		must(t, err)
		must(t, r.SameReplica(ctx, g))
	}
	step()
	folders, err := r.FS.ReadDir("/store/web01/points")
	must(t, err)
	if len(folders) != 1 {
		t.Fatalf("the points lie in %v", folders)
	}
	must(t, r.FS.Remove("/store/web01/points/"+folders[0].Name+"/os.undo.hrl"))
	for range 3 {
		step()
	}
	if folders, err = r.FS.ReadDir("/store/web01/points"); err != nil || len(folders) != 1 {
		t.Errorf("the points lie in %v (%v)", folders, err)
	}
	points, err := r.Points(ctx)
	if must(t, err); len(points) != 2 {
		t.Errorf("there are %d points", len(points))
	}
}

// TestPointOfNothing takes a point of a position that is none yet, as after a resynchronization of a disk that went on
// changing, without a change to apply: no more points stay than the policy says.
func TestPointOfNothing(t *testing.T) {
	ctx := context.Background()
	r, g := protectedRig(t)
	for range 2 {
		g["os"][0]++
		must(t, r.Write(g))
		_, err := r.Delta(ctx)
		must(t, err)
	}
	j, done, err := r.Job(ctx, false)
	must(t, err)
	st, err := j.Replica.Ledger().Load(ctx)
	must(t, err)
	st.Points = st.Points[:2]
	_, err = j.Replica.Ledger().Save(ctx, st)
	must(t, err)
	must(t, done())
	r.Keep = 2
	_, err = r.Delta(ctx)
	must(t, err)
	if st, err = r.State(ctx); err != nil || len(st.Points) != 2 || st.Points[1].At != st.Applied {
		t.Errorf("%d points, the newest at %s (%v)", len(st.Points), st.Points[len(st.Points)-1].At, err)
	}
}

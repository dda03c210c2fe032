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

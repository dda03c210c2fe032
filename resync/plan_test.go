package resync_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	"log/slog"

	"sitrep/internal/progress"
	"sitrep/replicate/replicatetest"
	"sitrep/resync"
)

// plan plans as a dry run does.
func plan(ctx context.Context, r *replicatetest.Rig, deep bool) (resync.Outcome, error) {
	j, done, err := r.Job(ctx, false)
	if err != nil {
		return resync.Outcome{}, err
	}
	defer done()
	s := &resync.Job{
		VM: j.VM, Replica: j.Replica, Tracker: j.Tracker, Keep: j.Keep, Deep: deep, Meter: progress.None(),
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return r.Now },
		Pace: resync.Pace{Unit: 4 * replicatetest.BlockSize, Tasks: 2, Slice: 6 * replicatetest.BlockSize},
	}
	return s.Plan(ctx)
}

// TestPlan: what is planned is what then happens, whatever the reason, the depth and the growth of a disk.
func TestPlan(t *testing.T) {
	ctx := context.Background()
	for name, harm := range map[string]func(*testing.T, *replicatetest.Rig){
		"nothing": func(*testing.T, *replicatetest.Rig) {}, "position lost": forget, "log lost": loseLog, "replica changed": vandalize,
	} {
		for _, deep := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				r, g, rng := protected(t, false)
				replicatetest.Scribble(rng, g)
				g["os"][17*replicatetest.BlockSize] ^= 1
				g["data"] = append(g["data"], make([]byte, 3*replicatetest.BlockSize)...)
				g["data"][len(g["data"])-1] = 1
				must(t, r.Write(g))
				harm(t, r)
				before, err := r.State(ctx)
				must(t, err)
				planned, err := plan(ctx, r, deep)
				must(t, err)
				after, err := r.State(ctx)
				must(t, err)
				if !reflect.DeepEqual(before, after) {
					t.Error("the plan has changed the ledger")
				}
				did, err := run(ctx, r, deep)
				must(t, err)
				if planned.Deep != did.Deep || planned.Continued != did.Continued || len(planned.Disks) != len(did.Disks) {
					t.Errorf("planned %+v, did %+v", planned, did)
				}
				for i, d := range did.Disks {
					p := planned.Disks[i]
					if p.Name != d.Name || p.Blocks < d.Blocks || p.Sent < d.Sent || p.Blocks > d.Blocks+3 {
						t.Errorf("planned %+v, did %+v", p, d)
					}
				}
				must(t, r.SameReplica(ctx, g))
			})
		}
	}
}

package replicate_test

import (
	"bytes"
	"testing"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/progress"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
	"sitrep/replicate/replicatetest"
)

// writer is a meter that does something at the first look at a disk.
type writer struct {
	progress.Meter
	do func()
}

func (w *writer) Begin(task string, total, done int64) {
	if w.do != nil {
		w.do()
		w.do = nil
	}
	w.Meter.Begin(task, total, done)
}

// TestPlanOfMovingDisks: a plan counts what it finds, says that the disks did not hold still, and changes nothing.
func TestPlanOfMovingDisks(t *testing.T) {
	ctx := t.Context()
	fsys := crashfs.New()
	r := replicatetest.New(fsys, "os")
	g := replicatetest.Guest{"os": bytes.Repeat([]byte{7}, 40*replicatetest.BlockSize)}
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	must(t, r.Protect(ctx))
	g["os"][0] = 1
	must(t, r.Write(g))
	j, done, err := r.Job(ctx, false)
	must(t, err)
	defer done()
	j.Tracker, err = scan.Look(fsys, scan.Config{VM: "web01", Dir: "/site/.sitrep/track/web01", Now: func() time.Time { return r.Now },
		Disks: []track.Disk{{Name: "os", Path: r.Path("os"), Format: disk.Raw, BlockSize: replicatetest.BlockSize}}})
	must(t, err)
	later := g.Clone()
	later["os"][len(later["os"])-1] = 2
	j.Meter = &writer{j.Meter, func() { must(t, r.Write(later)) }}
	c, err := j.PlanDelta(ctx)
	if err != nil || !c.Moving || c.Disks[0].Blocks < 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	ops := fsys.Ops()
	if c, err = j.PlanDelta(ctx); err != nil || c.Moving || c.Disks[0].Blocks != 2 || fsys.Ops() != ops {
		t.Errorf("%+v, %v, %d operations", c, err, fsys.Ops()-ops)
	}
	must(t, done())
	_, err = r.Delta(ctx)
	must(t, err)
	must(t, r.SameReplica(ctx, later))
}

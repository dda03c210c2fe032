package replicate_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
	"sitrep/replicate/replicatetest"
)

// blind is what deltas go by, when nothing tells that a disk was written to.
type blind struct{ *scan.Tracker }

func (b blind) Cut(ctx context.Context, since hrl.Pos) (track.Cut, error) {
	c, err := b.Tracker.Cut(ctx, since)
	return blindCut{c}, err
}

type blindCut struct{ track.Cut }

func (c blindCut) Disks() (list []track.CutDisk) {
	for _, d := range c.Cut.Disks() {
		list = append(list, blindDisk{d})
	}
	return list
}

type blindDisk struct{ track.CutDisk }

func (blindDisk) Untouched() bool { return true }

// TestCompareUnseen: a change of the source that no delta would notice is a difference, and marks the VM; one that a delta brings is none.
func TestCompareUnseen(t *testing.T) {
	ctx := t.Context()
	r := replicatetest.New(crashfs.New(), "os")
	g := replicatetest.Guest{"os": bytes.Repeat([]byte{7}, 40*replicatetest.BlockSize)}
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	must(t, r.Protect(ctx))
	g["os"][5*replicatetest.BlockSize] = 1
	must(t, r.Write(g))
	config := scan.Config{VM: "web01", Dir: "/site/.sitrep/track/web01", Now: func() time.Time { return r.Now },
		Disks: []track.Disk{{Name: "os", Path: r.Path("os"), Format: disk.Raw, BlockSize: replicatetest.BlockSize}}}
	deltas, err := scan.Look(r.FS, config)
	must(t, err)
	config.Dir = "/site/.sitrep/compare/web01"
	own, err := scan.Open(r.FS, config)
	must(t, err)
	j, done, err := r.Job(ctx, false)
	must(t, err)
	defer done()
	j.Tracker = own
	found, err := j.CompareSource(ctx, deltas)
	if err != nil || len(found) != 1 || len(found[0].Differs) != 0 || len(found[0].Newer) != 1 || found[0].Newer[0].Len != replicatetest.BlockSize {
		t.Fatalf("%+v, %v", found, err)
	}
	found, err = j.CompareSource(ctx, blind{deltas})
	if !fault.Is(err, fault.Difference) || len(found[0].Newer) != 0 || found[0].Differs[0].Off != 5*replicatetest.BlockSize {
		t.Fatalf("%+v, %v", found, err)
	}
	if st, err := j.Replica.Ledger().Load(ctx); err != nil || st.ReasonCode != fault.Difference {
		t.Errorf("%+v, %v", st.ReasonCode, err)
	}
}

package resync_test

import (
	"context"
	"io"
	"log/slog"
	"syscall"
	"testing"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/track"
	"sitrep/replicate/replicatetest"
	"sitrep/resync"
)

// failing is a tracker of disks of which a part cannot be read.
type failing struct{ track.Tracker }

func (f failing) Cut(ctx context.Context, since hrl.Pos) (track.Cut, error) {
	c, err := f.Tracker.Cut(ctx, since)
	return failingCut{c}, err
}

type failingCut struct{ track.Cut }

func (c failingCut) Disks() (out []track.CutDisk) {
	for _, d := range c.Cut.Disks() {
		out = append(out, failingDisk{d})
	}
	return out
}

type failingDisk struct{ track.CutDisk }

func (d failingDisk) Image() disk.Image { return failingImage{d.CutDisk.Image()} }

type failingImage struct{ disk.Image }

func (i failingImage) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 {
		return 0, &readError{}
	}
	return i.Image.ReadAt(p, off)
}

type readError struct{}

func (*readError) Error() string { return "read: " + syscall.EIO.Error() }
func (*readError) Unwrap() error { return syscall.EIO }

var _ io.ReaderAt = failingImage{}

// TestReadErrorIsNoCancellation: one of several readers fails while the others wait for their turn. That ends the resynchronization as what
// it is, not as a run that somebody has interrupted.
func TestReadErrorIsNoCancellation(t *testing.T) {
	for _, deep := range []bool{false, true} {
		r, g, _ := protected(t, false)
		forget(t, r)
		for i := range g["os"] {
			g["os"][i] = byte(i>>12) | 1
		}
		must(t, r.Write(g))
		j, done, err := r.Job(context.Background(), false)
		must(t, err)
		s := &resync.Job{
			VM: j.VM, Replica: j.Replica, Tracker: failing{j.Tracker}, Keep: j.Keep, Deep: deep, Meter: progress.None(),
			Log: slog.New(slog.DiscardHandler), Now: j.Now, Pace: resync.Pace{Unit: replicatetest.BlockSize, Tasks: 1, Slice: 64 * replicatetest.BlockSize},
		}
		_, err = s.Run(context.Background())
		must(t, done())
		if e := fault.Find(err); e == nil || e.Code != fault.IO || fault.Cancelled(err) {
			t.Errorf("deep %v: %v", deep, err)
		}
	}
}

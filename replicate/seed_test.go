package replicate_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/replicate/replicatetest"
)

// TestSeedOfADiskThatChanges interrupts an initial copy everywhere, lets the guest write before and behind the place where
// it stopped, zeros among it, and goes on: the replica is the source as it is then.
func TestSeedOfADiskThatChanges(t *testing.T) {
	ctx := context.Background()
	fs := crashfs.New()
	r := replicatetest.New(fs, "os", "data")
	g := replicatetest.Guest{"os": make([]byte, 40*replicatetest.BlockSize), "data": make([]byte, 9*replicatetest.BlockSize)}
	for name := range g {
		for i := range g[name] {
			g[name][i] = byte(i>>9) | 1
		}
	}
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	later := g.Clone()
	clear(later["os"][:3*replicatetest.BlockSize])
	clear(later["os"][30*replicatetest.BlockSize:])
	later["os"][17*replicatetest.BlockSize] ^= 0xff
	clear(later["data"])
	first, step := replicatetest.Cuts()
	for k := first; ; k += step {
		cut := fs.AfterCrash(crashfs.KeepAll, 0)
		cut.CutAfter(k)
		err := r.On(cut).Protect(ctx)
		if err == nil {
			return
		}
		if !errors.Is(err, crashfs.ErrCut) {
			t.Fatalf("cut at %d: %v", k, err)
		}
		for _, p := range crashfs.Policies() {
			again := r.On(cut.AfterCrash(p, uint64(k)))
			must(t, again.Write(later))
			if err := again.Protect(ctx); err != nil { // protected by now: the change is the next delta's
				_, err := again.Delta(ctx)
				must(t, err)
			}
			if err := again.SameReplica(ctx, later); err != nil {
				t.Fatalf("cut at %d, %v: %v", k, p, err)
			}
			must(t, again.Verified(ctx))
		}
	}
}

// TestFinalizeWithoutMemory loses the site's memory when the initial copy is complete and its first delta is not, everywhere: the same
// command completes it all the same.
func TestFinalizeWithoutMemory(t *testing.T) {
	ctx := context.Background()
	fs := crashfs.New()
	r := replicatetest.New(fs, "os", "data")
	g := replicatetest.Guest{"os": make([]byte, 12*replicatetest.BlockSize), "data": make([]byte, 3*replicatetest.BlockSize)}
	g["os"][5] = 1
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	j, done, err := r.Job(ctx, false)
	must(t, err)
	_, err = j.Seed(ctx)
	must(t, errors.Join(err, done()))
	copy(g["os"][replicatetest.BlockSize:], bytes.Repeat([]byte{7}, 2*replicatetest.BlockSize))
	must(t, r.Write(g))
	later := g.Clone()
	later["data"][9] = 3
	lost := 0
	first, step := replicatetest.Cuts()
	for k := first; ; k += step {
		cut := fs.AfterCrash(crashfs.KeepAll, 0)
		cut.CutAfter(k)
		if err := r.On(cut).Protect(ctx); err == nil {
			break
		}
		for _, p := range crashfs.Policies() {
			again := r.On(cut.AfterCrash(p, uint64(k)))
			if st, err := again.State(ctx); err != nil || st.Phase != replica.Seeding {
				continue
			}
			lost++
			must(t, again.FS.Rename("/site/.sitrep", "/site/gone"))
			must(t, again.Write(later))
			if err := again.Protect(ctx); err != nil {
				t.Fatalf("cut at %d, %v: %v", k, p, err)
			}
			must(t, errors.Join(again.SameReplica(ctx, later), again.Verified(ctx)))
			_, err := again.Points(ctx)
			must(t, err)
		}
	}
	if lost == 0 {
		t.Error("no cut was in the middle of it")
	}
}

// stopper is a meter that ends the run when so many bytes were copied.
type stopper struct {
	progress.Meter
	left int64
	stop func()
}

func (s *stopper) Add(task string, n int64) {
	if s.left -= n; s.left <= 0 {
		s.stop()
	}
	s.Meter.Add(task, n)
}

// TestInterruptedCopyTellsWhatItSent: the bytes that an interrupted initial copy has moved are told, and counted.
func TestInterruptedCopyTellsWhatItSent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := replicatetest.New(crashfs.New(), "os")
	g := replicatetest.Guest{"os": bytes.Repeat([]byte{7}, 12<<20)}
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	j, done, err := r.Job(ctx, false)
	must(t, err)
	j.Pace.Tasks, j.Meter = 1, &stopper{Meter: j.Meter, left: 5 << 20, stop: cancel}
	results, err := j.Seed(ctx)
	if !fault.Cancelled(err) {
		t.Fatalf("error %v", err)
	}
	must(t, done())
	if len(results) != 1 || results[0].Sent < 4<<20 || results[0].Sent >= 12<<20 {
		t.Errorf("%+v", results)
	}
}

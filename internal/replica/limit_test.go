package replica_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/mem"
	"sitrep/internal/replica/replicatest"
)

// wall is a clock that moves only when somebody waits by it.
type wall struct {
	mu sync.Mutex
	t  time.Time
}

func (w *wall) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.t
}

func (w *wall) sleep(ctx context.Context, d time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	w.t = w.t.Add(d)
	return nil
}

func noon() *wall { return &wall{t: time.Date(2026, 3, 16, 12, 0, 0, 0, time.UTC)} }

func always(rate int64) func(time.Time) int64 { return func(time.Time) int64 { return rate } }

func (w *wall) limiter(rate func(time.Time) int64) *replica.Limiter {
	return replica.NewLimiter(rate, w.now, w.sleep)
}

// wantTook fails unless n bytes at rate bytes a second took what they have to: never less, and not noticeably more.
func wantTook(t *testing.T, took time.Duration, n, rate float64) {
	t.Helper()
	want := n / rate
	if got := took.Seconds(); got < want-1e-6 || got > want+0.1 {
		t.Errorf("%.0f bytes at %.0f bytes a second took %.3f s instead of %.3f s", n, rate, got, want)
	}
}

func TestLimiterRate(t *testing.T) {
	for _, rate := range []int64{1, 125, 1000, 64 << 10, 2_500_000, 1 << 40} {
		for _, n := range []int64{1, 511, 64 << 10, 4 << 20} {
			if n/rate > 1<<22 {
				continue // a month
			}
			w := noon()
			l, began := w.limiter(always(rate)), w.now()
			for range 5 {
				if err := l.Wait(t.Context(), n); err != nil {
					t.Fatal(err)
				}
			}
			wantTook(t, w.now().Sub(began), float64(5*n), float64(rate))
		}
	}
}

// TestLimiterBurst: whatever one does between, no stretch of time has more bytes than it earns and a second's more.
func TestLimiterBurst(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const rate = 1000
	w := noon()
	l := w.limiter(always(rate))
	type sent struct {
		at time.Time
		n  int64
	}
	var all []sent
	for range 400 {
		_ = w.sleep(t.Context(), time.Duration(rng.Int64N(int64(3*time.Second))))
		n := rng.Int64N(4 * rate)
		if err := l.Wait(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		all = append(all, sent{w.now(), n})
	}
	for i := range all {
		var n int64
		for j := i + 1; j < len(all); j++ {
			n += all[j].n
			if most := (all[j].at.Sub(all[i].at).Seconds() + 1) * rate; float64(n) > most+1e-3 {
				t.Fatalf("%d bytes were sent in %s", n, all[j].at.Sub(all[i].at))
			}
		}
	}
}

// TestLimiterTimetable: the rate becomes another one in the middle of a wait, at the minute.
func TestLimiterTimetable(t *testing.T) {
	half := func(t time.Time) int64 { // 12:30: a hundred times as fast; 13:00: no limit
		switch m := t.Hour()*60 + t.Minute(); {
		case m < 12*60+30:
			return 100
		case m < 13*60:
			return 10_000
		}
		return 0
	}
	w := noon()
	w.t = w.t.Add(29*time.Minute + 30500*time.Millisecond) // 29.5 s before the switch: 2950 bytes
	l, began := w.limiter(half), w.now()
	if err := l.Wait(t.Context(), 2950+100_000); err != nil {
		t.Fatal(err)
	}
	if took := w.now().Sub(began); took < 39499*time.Millisecond || took > 39600*time.Millisecond {
		t.Errorf("took %s instead of 39.5 s", took)
	}
	if err := l.Wait(t.Context(), 1<<40); err != nil { // far more than is earned before 13:00
		t.Fatal(err)
	}
	if at := w.now().Format("15:04:05.000"); at != "13:00:00.000" {
		t.Errorf("the limit ended at %s", at)
	}
	began = w.now()
	for range 10 {
		if err := l.Wait(t.Context(), 1<<40); err != nil {
			t.Fatal(err)
		}
	}
	if w.now() != began {
		t.Error("no limit, and it waited")
	}
}

// TestLimiterSummerTime: the timetable is that of the clock on the wall, also in the night in which it is put forward.
func TestLimiterSummerTime(t *testing.T) {
	where, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone database: apt-get install tzdata")
	}
	rate := func(t time.Time) int64 {
		if t.Hour() < 3 {
			return 1
		}
		return 1 << 30
	}
	w := &wall{t: time.Date(2026, 3, 29, 1, 59, 0, 0, where)} // a minute later it is three
	if err := w.limiter(rate).Wait(t.Context(), 1<<30); err != nil {
		t.Fatal(err)
	}
	if at := w.now().Format("15:04:05"); at != "03:00:01" && at != "03:00:00" {
		t.Errorf("it was %s", at)
	}
}

// TestLimiterTurns: those who wait at the same time share one rate, and one who is not interested any more holds up nobody.
func TestLimiterTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, began := replica.NewLimiter(always(1000), time.Now, nil), time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		for i := range 8 {
			done.Go(func() {
				if err := l.Wait(t.Context(), 5000); err != nil {
					t.Error(err)
				}
			})
			if i == 3 {
				for range 3 {
					done.Go(func() {
						if err := l.Wait(ctx, 1<<40); !errors.Is(err, context.Canceled) {
							t.Errorf("after cancelling: %v", err)
						}
					})
				}
			}
		}
		synctest.Wait()
		cancel()
		done.Wait()
		wantTook(t, time.Since(began), 40_000, 1000)
	})
}

func TestContractWithLimit(t *testing.T) {
	limited := func(s replica.Store) replica.Store {
		w := noon()
		l := w.limiter(func(t time.Time) int64 { return int64(t.Minute()%3) * 40_000 }) // also none
		return replica.WithLimit(s, func(string) *replica.Limiter { return l })
	}
	t.Run("memory", func(t *testing.T) {
		replicatest.TestStore(t, func(*testing.T) replicatest.Place {
			s := mem.New()
			return func() replica.Store { return limited(s) }
		})
	})
	t.Run("folder", func(t *testing.T) {
		replicatest.TestStore(t, func(t *testing.T) replicatest.Place {
			root := filepath.Join(t.TempDir(), "store")
			return func() replica.Store {
				return replica.WithRetries(limited(dir.New(durable.OS(), root)), replica.Retries{Sleep: awake})
			}
		})
	})
}

// firstOf is the ledger of a VM with one disk.
func firstOf(d replica.Disk) replica.State {
	s := replicatest.FirstState("web01")
	s.Disks = []replica.Disk{d}
	return s
}

// limitRig is a replica of one disk of 8 MiB in a folder, with a limit.
func limitRig(t *testing.T, rate int64) (*wall, *crashfs.FS, replica.Replica, replica.Pages) {
	t.Helper()
	w, fs := noon(), crashfs.New()
	l := w.limiter(always(rate))
	store := replica.WithLimit(dir.New(fs, "/store"), func(vm string) *replica.Limiter {
		if vm != "web01" {
			return nil
		}
		return l
	})
	if _, err := store.Prepare(t.Context(), hrl.ID{}); err != nil {
		t.Fatal(err)
	}
	d := replica.Disk{Name: "os", Source: "/disks/os.raw", Format: "raw", Size: 8 << 20, BlockSize: 64 << 10}
	r, err := store.Create(t.Context(), firstOf(d))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	p, err := r.Disk(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return w, fs, r, p
}

func TestLimitedWrites(t *testing.T) {
	for _, rate := range []int64{1000, 100_000, 1 << 30} {
		w, _, _, p := limitRig(t, rate)
		data := bytes.Repeat([]byte{1, 2, 3, 4}, 1<<18)
		began := w.now()
		for off := int64(0); off < 4<<20; off += 1 << 20 {
			if err := p.WriteAt(t.Context(), data, off); err != nil {
				t.Fatal(err)
			}
		}
		wantTook(t, w.now().Sub(began), 4<<20, float64(rate))
		got := make([]byte, len(data))
		for off := int64(0); off < 4<<20; off += 1 << 20 {
			if err := p.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("at %d: not what was written: %v", off, err)
			}
		}
		began = w.now()
		if err := p.ZeroAt(t.Context(), 0, 8<<20); err != nil {
			t.Fatal(err)
		}
		if w.now() != began {
			t.Error("zeros cost something")
		}
	}
}

// TestLimitedWriteEnds: a write that waits for its turn ends with its context.
func TestLimitedWriteEnds(t *testing.T) {
	_, _, _, p := limitRig(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.WriteAt(ctx, make([]byte, 1<<20), 0); !fault.Cancelled(err) {
		t.Errorf("the error is %v", err)
	}
}

// TestLimitedPut: a log that is copied costs what is in it, its holes nothing; one that gets a second name costs nothing.
func TestLimitedPut(t *testing.T) {
	for _, copied := range []bool{false, true} {
		w, fs, r, _ := limitRig(t, 1000)
		f, err := fs.Create("/1.hrl")
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte{7}, 64<<10), 1<<20)
		}
		if err == nil {
			err = f.Sync()
		}
		if err == nil && copied {
			err = fs.Remove("/1.hrl") // what has no name cannot get a second one
		}
		if err != nil {
			t.Fatal(err)
		}
		began := w.now()
		if _, err := r.Shelf().Put(t.Context(), "os.1.hrl", f); err != nil {
			t.Fatal(err)
		}
		if copied {
			wantTook(t, w.now().Sub(began), 64<<10, 1000)
		} else if w.now() != began {
			t.Error("a second name cost something")
		}
	}
}

// TestRetriedIsPaidAgain: what is sent again takes the line again.
func TestRetriedIsPaidAgain(t *testing.T) {
	w := noon()
	l := w.limiter(always(1000))
	tries := 0
	flawed := &flawedStore{mem.New(), func(op string, when when) error {
		if op == "WriteAt" && when == before {
			if tries++; tries%2 == 1 {
				return fault.New(fault.IO, "injected")
			}
		}
		return nil
	}}
	store := replica.WithRetries(replica.WithLimit(flawed, func(string) *replica.Limiter { return l }), replica.Retries{Sleep: awake})
	if _, err := store.Prepare(t.Context(), hrl.ID{}); err != nil {
		t.Fatal(err)
	}
	d := replica.Disk{Name: "os", Source: "/disks/os.raw", Format: "raw", Size: 1 << 20, BlockSize: 64 << 10}
	r, err := store.Create(t.Context(), firstOf(d))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := r.Disk(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	began := w.now()
	if err := p.WriteAt(t.Context(), make([]byte, 32<<10), 0); err != nil {
		t.Fatal(err)
	}
	wantTook(t, w.now().Sub(began), 64<<10, 1000)
}

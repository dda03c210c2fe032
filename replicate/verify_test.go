package replicate_test

import (
	"context"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/replicate"
	"sitrep/replicate/replicatetest"
)

// spoil writes into the replica's first disk as something else would.
func spoil(t *testing.T, r *replicatetest.Rig) {
	t.Helper()
	f, err := r.FS.OpenRW("/store/web01/os.vhd")
	must(t, err)
	_, err = f.WriteAt([]byte("not ours"), 512)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

// stopping ends a context at the first progress.
type stopping struct {
	progress.Meter
	stop context.CancelFunc
}

func (s stopping) Add(task string, n int64) {
	s.Meter.Add(task, n)
	s.stop()
}

// TestVerifyInterrupted finds a difference, and then the time is over or the run is interrupted: the next runs may not
// prove the disk, or trust the replica again, by what lies behind the difference.
func TestVerifyInterrupted(t *testing.T) {
	for name, interrupt := range map[string]bool{"the time is over": false, "interrupted": true} {
		t.Run(name, func(t *testing.T) {
			r, g := protectedRig(t)
			spoil(t, r)
			_, err := r.Delta(context.Background())
			if g["os"][0] ^= 1; !fault.Is(err, fault.ReplicaChanged) {
				t.Fatalf("delta: %v", err)
			}
			verifyBegun(t, r, interrupt)
			j, done, err := r.Job(context.Background(), false)
			must(t, err)
			if _, err := j.Verify(context.Background(), 0); !fault.Is(err, fault.Difference) {
				t.Errorf("the next verification: %v", err)
			}
			must(t, done())
			st, err := r.State(context.Background())
			must(t, err)
			if st.Phase != replica.ResyncRequired || !st.Disk("os").VerifiedAt.IsZero() {
				t.Errorf("phase %s, verified at %s", st.Phase, st.Disk("os").VerifiedAt)
			}
		})
	}
}

// verifyBegun is a verification that ends after its first window, in which the difference lies.
func verifyBegun(t *testing.T, r *replicatetest.Rig, interrupt bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	j, done, err := r.Job(ctx, false)
	must(t, err)
	j.Pace = replicate.Pace{Unit: replicatetest.BlockSize, Tasks: 1}
	budget := time.Duration(0)
	if interrupt {
		j.Meter = stopping{j.Meter, cancel}
	} else {
		budget = time.Second
		calls := 0
		j.Now = func() time.Time { calls++; return r.Now.Add(time.Duration(calls/5) * time.Second) }
	}
	_, err = j.Verify(ctx, budget)
	if interrupt && !fault.Cancelled(err) || !interrupt && !fault.Is(err, fault.Difference) {
		t.Fatalf("the first verification: %v", err)
	}
	must(t, done())
}

// TestVerifyWhilePaused finds a difference in the replica of a paused VM: it is not forgotten when the pause is over.
func TestVerifyWhilePaused(t *testing.T) {
	ctx := context.Background()
	r, _ := protectedRig(t)
	j, done, err := r.Job(ctx, false)
	must(t, err)
	must(t, j.Pause(ctx, "lunch"))
	spoil(t, r)
	if _, err := j.Verify(ctx, 0); !fault.Is(err, fault.Difference) {
		t.Fatalf("verify: %v", err)
	}
	phase, err := j.Resume(ctx)
	must(t, err)
	must(t, done())
	if st, err := r.State(ctx); err != nil || phase != replica.ResyncRequired || st.ReasonCode != fault.ReplicaCorrupt {
		t.Errorf("after the pause: %s, %s (%v)", phase, st.ReasonCode, err)
	}
}

// TestVerifyBudget verifies with a budget that is over at once, again and again, while the VM goes on changing: every run gets on by
// a window, every disk is proven in turn, and again after that. What something else writes makes it begin anew.
func TestVerifyBudget(t *testing.T) {
	ctx := context.Background()
	r, g := protectedRig(t)
	verify := func() (read, cursor int64) {
		t.Helper()
		j, done, err := r.Job(ctx, false)
		must(t, err)
		j.Pace = replicate.Pace{Unit: replicatetest.BlockSize, Tasks: 1}
		j.Now = func() time.Time { r.Now = r.Now.Add(time.Second); return r.Now }
		found, err := j.Verify(ctx, 1)
		must(t, err)
		must(t, done())
		if len(found) != 2 || found[0].Name != "os" || found[1].Name != "data" {
			t.Fatalf("found %+v", found)
		}
		return found[0].Read + found[1].Read, found[0].Cursor
	}
	proven := map[string]time.Time{}
	for round, runs := 0, 0; round < 2; runs++ {
		if runs == 200 {
			t.Fatalf("after %d runs the disks are proven at %v", runs, proven)
		}
		read, _ := verify()
		if read == 0 || read > 17*replicatetest.BlockSize {
			t.Fatalf("run %d has read %d bytes", runs, read)
		}
		st, err := r.State(ctx)
		must(t, err)
		newer := true
		for _, d := range st.Disks {
			newer = newer && d.VerifiedAt.After(proven[d.Name])
		}
		if newer {
			for _, d := range st.Disks {
				proven[d.Name] = d.VerifiedAt
			}
			round++
		}
		g["os"][0]++ // in a block that is proven already
		g["data"][len(g["data"])-1]++
		must(t, r.Write(g))
		_, err = r.Delta(ctx)
		must(t, err)
	}
	for range 20 {
		if _, cursor := verify(); cursor > 0 && cursor < int64(len(g["os"])) {
			break
		}
	}
	spoil(t, r)
	j, done, err := r.Job(ctx, false)
	must(t, err)
	j.Pace = replicate.Pace{Unit: replicatetest.BlockSize, Tasks: 1}
	if _, err := j.Verify(ctx, 1); !fault.Is(err, fault.Difference) { // it is in the first block
		t.Errorf("after a foreign write: %v", err)
	}
	must(t, done())
}

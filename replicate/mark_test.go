package replicate_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/replicate/replicatetest"
)

func protectedRig(t *testing.T) (*replicatetest.Rig, replicatetest.Guest) {
	t.Helper()
	r := replicatetest.New(crashfs.New(), "os", "data")
	g := replicatetest.NewGuest(rand.New(rand.NewPCG(1, 2)))
	must(t, r.Write(g))
	must(t, r.Prepare(context.Background(), g))
	must(t, r.Protect(context.Background()))
	return r, g
}

func TestMark(t *testing.T) {
	ctx := context.Background()
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, paused := range []bool{false, true} {
		r, _ := protectedRig(t)
		j, done, err := r.Job(ctx, false)
		must(t, err)
		if paused {
			must(t, j.Pause(ctx, "lunch"))
		}
		for range 2 { // the second changes nothing
			must(t, j.Mark(ctx, fault.LogLimit, "too much", since))
		}
		if paused {
			phase, err := j.Resume(ctx)
			must(t, err)
			if phase != replica.ResyncRequired {
				t.Errorf("after the pause the phase is %s", phase)
			}
		}
		must(t, done())
		st, err := r.State(ctx)
		must(t, err)
		if st.Phase != replica.ResyncRequired || st.Reason != "too much" || st.ReasonCode != fault.LogLimit ||
			!paused && !st.PhaseSince.Equal(since) {
			t.Errorf("paused %v: %s since %s: %s, %s", paused, st.Phase, st.PhaseSince, st.Reason, st.ReasonCode)
		}
		if _, err := r.Delta(ctx); !fault.Is(err, fault.ResyncRequired) {
			t.Errorf("delta: %v", err)
		}
	}
}

// TestDropLogs removes what is ours or damaged, and leaves the files of others.
func TestDropLogs(t *testing.T) {
	ctx := context.Background()
	r, g := protectedRig(t)
	g["os"][5] ^= 1
	must(t, r.Write(g))
	must(t, r.Capture(ctx))
	j, done, err := r.Job(ctx, false)
	must(t, err)
	defer done()
	damaged := "/site/disks/" + hrl.FileName("web01", "os", j.Tracker.Position().Next())
	whole := "/site/disks/" + hrl.FileName("web01", "os", j.Tracker.Position())
	data, err := durable.ReadFile(r.FS, whole, 1<<20)
	must(t, err)
	must(t, durable.WriteFile(r.FS, damaged, data[:len(data)-100]))
	other := "/site/disks/" + hrl.FileName("other", "os", j.Tracker.Position().Next())
	must(t, durable.WriteFile(r.FS, other, []byte("of another VM")))
	must(t, durable.WriteFile(r.FS, durable.TempName(damaged), data)) // of a run that was killed
	freed, err := j.DropLogs()
	must(t, err)
	if freed == 0 {
		t.Error("nothing was freed")
	}
	entries, err := r.FS.ReadDir("/site/disks")
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	if len(names) != 3 { // two disks and the log of another VM
		t.Errorf("left: %q", names)
	}
}

// TestApplyWhilePaused finds a damaged log on the shelf of a VM that an administrator has paused: it stays paused, and is
// marked when the pause is over.
func TestApplyWhilePaused(t *testing.T) {
	ctx := context.Background()
	r, g := protectedRig(t)
	g["os"][5] ^= 1
	must(t, r.Write(g))
	j, done, err := r.Job(ctx, false)
	must(t, err)
	_, err = j.Capture(ctx)
	must(t, err)
	_, err = j.Ship(ctx)
	must(t, err)
	must(t, j.Pause(ctx, "lunch"))
	f, err := r.FS.OpenRW(j.Replica.Shelf().Path(hrl.ShelfName("os", j.Tracker.Position())))
	must(t, err)
	_, err = f.WriteAt([]byte("damage"), 4096)
	must(t, err)
	must(t, f.Close())
	if _, err := j.Apply(ctx); fault.Find(err) == nil || fault.Find(err).Class() != fault.Resync {
		t.Fatalf("apply: %v", err)
	}
	st, err := r.State(ctx)
	must(t, err)
	if st.Phase != replica.Paused || st.Reason != "lunch" {
		t.Errorf("the VM is %s: %s", st.Phase, st.Reason)
	}
	phase, err := j.Resume(ctx)
	must(t, err)
	must(t, done())
	if st, err = r.State(ctx); err != nil || phase != replica.ResyncRequired || st.ReasonCode != fault.LogCorrupt || st.Reason == "" {
		t.Errorf("after the pause: %s, %s: %s (%v)", phase, st.ReasonCode, st.Reason, err)
	}
}

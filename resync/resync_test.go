package resync_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/replicate/replicatetest"
	"sitrep/resync"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run resynchronizes as a run of the program does, in slices so small that there are many.
func run(ctx context.Context, r *replicatetest.Rig, deep bool) (resync.Outcome, error) {
	j, done, err := r.Job(ctx, false)
	if err != nil {
		return resync.Outcome{}, err
	}
	defer done()
	s := &resync.Job{
		VM: j.VM, Replica: j.Replica, Tracker: j.Tracker, Keep: j.Keep, Deep: deep, Meter: progress.None(),
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return r.Now },
		Pace: resync.Pace{Unit: replicatetest.BlockSize, Tasks: 2, Slice: 2 * replicatetest.BlockSize}, // see window
	}
	return s.Run(ctx)
}

// protected is a site whose VM has three recovery points.
func protected(t *testing.T, clones bool) (*replicatetest.Rig, replicatetest.Guest, *rand.Rand) {
	t.Helper()
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(3, 4))
	fs := crashfs.New()
	fs.SetClone(clones)
	r := replicatetest.New(fs, "os", "data")
	g := replicatetest.NewGuest(rng)
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	must(t, r.Protect(ctx))
	for range 2 {
		r.Now = r.Now.Add(time.Hour)
		replicatetest.Scribble(rng, g)
		must(t, r.Write(g))
		_, err := r.Delta(ctx)
		must(t, err)
	}
	return r, g, rng
}

// forget removes what the site remembers of its position.
func forget(t *testing.T, r *replicatetest.Rig) {
	t.Helper()
	must(t, removeAll(r.FS, "/site/.sitrep"))
}

func removeAll(fs *crashfs.FS, dir string) error {
	entries, err := fs.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Dir {
			if err := removeAll(fs, dir+"/"+e.Name); err != nil {
				return err
			}
			continue
		}
		if err := fs.Remove(dir + "/" + e.Name); err != nil {
			return err
		}
	}
	return nil
}

// vandalize writes into the pages of the replica, as nobody should.
func vandalize(t *testing.T, r *replicatetest.Rig) {
	t.Helper()
	f, err := r.FS.OpenRW("/store/web01/os.vhd")
	must(t, err)
	for _, off := range []int64{0, 9 * replicatetest.BlockSize, 39 * replicatetest.BlockSize} {
		_, err := f.WriteAt([]byte("somebody was here"), off)
		must(t, err)
	}
	must(t, f.Sync())
	must(t, f.Close())
}

// reshape gives the pages another length, by so many bytes, and spoils the footer when that is still there.
func reshape(t *testing.T, r *replicatetest.Rig, by int64) {
	t.Helper()
	f, err := r.FS.OpenRW("/store/web01/os.vhd")
	must(t, err)
	size, err := f.Size()
	must(t, err)
	_, err = f.WriteAt([]byte("a footer of another"), size-512)
	must(t, err)
	must(t, f.Truncate(size+by))
	must(t, f.Sync())
	must(t, f.Close())
}

// loseLog captures, and removes the log.
func loseLog(t *testing.T, r *replicatetest.Rig) {
	t.Helper()
	must(t, r.Capture(context.Background()))
	entries, err := r.FS.ReadDir("/site/disks")
	must(t, err)
	n := 0
	for _, e := range entries {
		if strings.HasPrefix(e.Name, "web01.os.") {
			must(t, r.FS.Remove("/site/disks/"+e.Name))
			n++
		}
	}
	if n == 0 {
		t.Fatal("there was no log to lose")
	}
}

func TestEveryWayToNeedIt(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		harm func(*testing.T, *replicatetest.Rig)
		code fault.Code
		deep bool // found out by itself
	}{
		"position lost":   {forget, fault.PositionLost, false},
		"log lost":        {loseLog, fault.LogGap, false},
		"replica changed": {vandalize, fault.ReplicaChanged, true},
		"replica cut":     {func(t *testing.T, r *replicatetest.Rig) { reshape(t, r, -9*replicatetest.BlockSize) }, fault.ReplicaChanged, true},
		"replica longer":  {func(t *testing.T, r *replicatetest.Rig) { reshape(t, r, 1000) }, fault.ReplicaChanged, true},
		"footer changed":  {func(t *testing.T, r *replicatetest.Rig) { reshape(t, r, 0) }, fault.ReplicaChanged, true},
	} {
		for _, clones := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/clones=%v", name, clones), func(t *testing.T) {
				r, g, rng := protected(t, clones)
				r.Now = r.Now.Add(time.Hour)
				replicatetest.Scribble(rng, g)
				g["os"][17*replicatetest.BlockSize] ^= 1
				must(t, r.Write(g))
				c.harm(t, r)
				_, err := r.Delta(ctx)
				if !fault.Is(err, c.code) {
					t.Fatalf("delta: %v, not %s", err, c.code)
				}
				if _, err := r.Delta(ctx); !fault.Is(err, fault.ResyncRequired) {
					t.Fatalf("the next delta: %v", err)
				}
				st, err := r.State(ctx)
				must(t, err)
				if st.Phase != replica.ResyncRequired || st.ReasonCode != c.code {
					t.Fatalf("phase %s, reason %s", st.Phase, st.ReasonCode)
				}
				out, err := run(ctx, r, false)
				must(t, err)
				if out.Deep != c.deep || !out.Consistent {
					t.Errorf("outcome %+v", out)
				}
				must(t, r.SameReplica(ctx, g))
				must(t, r.Verified(ctx))
				goesOn(t, r, g, rng)
			})
		}
	}
}

// goesOn proves that deltas flow again.
func goesOn(t *testing.T, r *replicatetest.Rig, g replicatetest.Guest, rng *rand.Rand) {
	t.Helper()
	ctx := context.Background()
	r.Now = r.Now.Add(time.Hour)
	replicatetest.Scribble(rng, g)
	must(t, r.Write(g))
	_, err := r.Delta(ctx)
	must(t, err)
	must(t, r.SameReplica(ctx, g))
	must(t, r.Verified(ctx))
}

// TestOnlyDifferent counts: the source is read once, and only the blocks that differ are sent.
func TestOnlyDifferent(t *testing.T) {
	ctx := context.Background()
	for _, deep := range []bool{false, true} {
		r, g, _ := protected(t, false)
		forget(t, r)
		clear(g["os"])
		for i := range g["os"] {
			g["os"][i] = byte(i>>12) | 1
		}
		must(t, r.Write(g))
		_, err := run(ctx, r, deep)
		must(t, err)
		forget(t, r)
		for _, b := range []int{0, 7, 8, 30} {
			g["os"][b*replicatetest.BlockSize+5] ^= 0x55
		}
		must(t, r.Write(g))
		out, err := run(ctx, r, deep)
		must(t, err)
		res := out.Disks[0]
		want := resync.Result{Name: "os", Scanned: int64(len(g["os"])), Changed: 4 * replicatetest.BlockSize,
			Sent: 4 * replicatetest.BlockSize, Blocks: 4, Took: res.Took}
		if deep {
			want.Read = int64(len(g["os"]))
		}
		if res != want {
			t.Errorf("deep %v: %+v, want %+v", deep, res, want)
		}
	}
}

// TestCutEverywhere cuts the power at every write and sync of a resynchronization. The recovery points that there were
// are what they were, before and after the next run; the next run completes.
func TestCutEverywhere(t *testing.T) {
	ctx := context.Background()
	for _, deep := range []bool{false, true} {
		for _, clones := range []bool{false, true} {
			t.Run(fmt.Sprintf("deep=%v/clones=%v", deep, clones), func(t *testing.T) {
				t.Parallel()
				r, g, rng := protected(t, clones)
				settled, err := r.Points(ctx)
				must(t, err)
				replicatetest.Scribble(rng, g)
				for b := range 40 { // so that there are several slices
					if b%3 == 0 {
						g["os"][b*replicatetest.BlockSize] ^= 0xff
					}
				}
				g["data"] = append(g["data"], make([]byte, 5*512)...)
				must(t, r.Write(g))
				forget(t, r)
				start := r.FS.AfterCrash(crashfs.KeepAll, 0)
				first, step := replicatetest.Cuts()
				for k := first; ; k += step {
					fs := start.AfterCrash(crashfs.KeepAll, 0)
					fs.CutAfter(k)
					_, err := run(ctx, r.On(fs), deep)
					if err == nil {
						t.Logf("%d operations", k-1)
						return
					}
					if !errors.Is(err, crashfs.ErrCut) {
						t.Fatalf("cut at %d: %v", k, err)
					}
					for _, p := range crashfs.Policies() {
						after := r.On(fs.AfterCrash(p, uint64(k)))
						if err := recovered(ctx, after, g, settled, deep); err != nil {
							t.Fatalf("cut at operation %d, then %s: %v", k, p, err)
						}
					}
				}
			})
		}
	}
}

func recovered(ctx context.Context, r *replicatetest.Rig, g replicatetest.Guest, settled map[hrl.Pos]replicatetest.Guest, deep bool) error {
	if err := hold(ctx, r, settled); err != nil {
		return fmt.Errorf("before the next run: %w", err)
	}
	// The guest writes before the next run: what it writes lies in slices that are done and in the one that is not.
	g = g.Clone()
	g["os"][3] ^= 1
	g["os"][21*replicatetest.BlockSize] ^= 1
	if err := r.Write(g); err != nil {
		return err
	}
	if _, err := run(ctx, r, deep); err != nil {
		return fmt.Errorf("the next run: %w", err)
	}
	if _, err := r.Delta(ctx); err != nil {
		return fmt.Errorf("the next delta: %w", err)
	}
	if err := hold(ctx, r, settled); err != nil {
		return fmt.Errorf("after the next run: %w", err)
	}
	if err := r.SameReplica(ctx, g); err != nil {
		return err
	}
	return r.Verified(ctx)
}

// hold proves that the recovery points are what they were.
func hold(ctx context.Context, r *replicatetest.Rig, want map[hrl.Pos]replicatetest.Guest) error {
	got, err := r.Points(ctx)
	if err != nil {
		return err
	}
	same := 0
	for at, g := range got {
		w, ok := want[at]
		if !ok {
			continue
		}
		if !reflect.DeepEqual(g, w) {
			return fmt.Errorf("the recovery point at %s has changed", at)
		}
		same++
	}
	if same < len(want)-1 { // one may have made room for the new one
		return fmt.Errorf("of %d recovery points %d are left", len(want), same)
	}
	return nil
}

// TestAway has a VM refused that belongs to the recovery site.
func TestAway(t *testing.T) {
	ctx := context.Background()
	r, _, _ := protected(t, false)
	j, done, err := r.Job(ctx, false)
	must(t, err)
	st, err := j.Replica.Ledger().Load(ctx)
	must(t, err)
	st.Phase, st.Owner = replica.FailedOver, replica.Owner{Site: "dr", Host: "kvm1"}
	_, err = j.Replica.Ledger().Save(ctx, st)
	must(t, errors.Join(err, done()))
	_, err = run(ctx, r, false)
	if !fault.Is(err, fault.Fenced) || !strings.Contains(err.Error(), `"kvm1"`) {
		t.Errorf("resync: %v", err)
	}
}

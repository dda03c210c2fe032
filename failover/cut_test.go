package failover_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sitrep/failover"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/replicate/replicatetest"
)

// act is a command of a life, and what has to be so when it is done.
type act struct {
	name string
	do   func(ctx context.Context, w *world) error
	// before changes the world outside, and is not cut.
	before func(w *world) error
	proof  func(ctx context.Context, w *world, st replica.State) error
}

// TestCutEverywhere goes through the whole life of failovers. Each command is cut at its writes and syncs, in every way a
// crash can be, and run again, as an operator would: it has to complete, with nothing lost on the way.
func TestCutEverywhere(t *testing.T) {
	t.Run("folder", func(t *testing.T) { liveAndCut(t, failover.InFolder) })
	t.Run("store", func(t *testing.T) { liveAndCut(t, failover.InStore) })
}

func liveAndCut(t *testing.T, in failover.DisksIn) {
	ctx := t.Context()
	rng := rand.New(rand.NewPCG(7, 7))
	g := replicatetest.NewGuest(rng)
	w := newWorld(t, g, 2, func() { replicatetest.Scribble(rng, g) })
	w.in = in
	points, err := w.Points(ctx)
	must(t, err)
	for _, a := range life(g, points, rng) {
		if a.before != nil {
			must(t, a.before(w))
		}
		t.Run(a.name, func(t *testing.T) { cutEverywhere(t, w, a) })
		if t.Failed() {
			return
		}
		must(t, a.do(ctx, w))
		st, err := w.State(ctx)
		must(t, err)
		must(t, a.proof(ctx, w, st))
	}
}

func cutEverywhere(t *testing.T, w *world, a act) {
	ctx := t.Context()
	start := w.FS.AfterCrash(crashfs.KeepAll, 0)
	whole := w.on(start.AfterCrash(crashfs.KeepAll, 0))
	ops := whole.FS.Ops()
	must(t, a.do(ctx, whole))
	ops = whole.FS.Ops() - ops
	first, step := replicatetest.Cuts()
	if step > 1 {
		step = max(step, ops/12)
		first = 1 + rand.IntN(step)
	}
	for k := first; ; k += step {
		cut := w.on(start.AfterCrash(crashfs.KeepAll, 0))
		cut.FS.CutAfter(k)
		err := a.do(ctx, cut)
		if err == nil {
			t.Logf("%d operations", k-1)
			return
		}
		if !errors.Is(err, crashfs.ErrCut) {
			t.Fatalf("cut at %d: %v", k, err)
		}
		for _, policy := range crashfs.Policies() {
			after := cut.on(cut.FS.AfterCrash(policy, uint64(k)))
			if err := again(ctx, after, a); err != nil {
				t.Fatalf("cut at operation %d, then %s: %v", k, policy, err)
			}
		}
	}
}

// again runs the command again and proves what it has done. A command that was complete before the cut says so.
func again(ctx context.Context, w *world, a act) error {
	st, err := w.State(ctx)
	if err != nil {
		return err
	}
	if a.proof(ctx, w, st) == nil {
		return nil
	}
	if err := a.do(ctx, w); err != nil {
		return fmt.Errorf("the next run: %w", err)
	}
	if st, err = w.State(ctx); err != nil {
		return err
	}
	return a.proof(ctx, w, st)
}

// life is a test, a planned failover that is undone, an unplanned one to an older point, its change to the latest, commit,
// and the way home. g is what the source holds, and changes with the guest.
func life(g replicatetest.Guest, points map[hrl.Pos]replicatetest.Guest, rng *rand.Rand) []act {
	var older string
	atSource := g.Clone()
	return []act{
		{
			name: "test", do: run(failover.Test, failover.Options{}),
			proof: func(ctx context.Context, w *world, st replica.State) error {
				got, err := w.recovered("web01-test")
				return errors.Join(err, same("the test VM", got, g), powers(w, host.Running, host.Absent, host.Running),
					phase(st, replica.Replicating, 1), w.samePoints(ctx, points), isTrue(st.Test != nil && !st.Test.Finished.IsZero(), "the test is not complete"))
			},
		},
		{
			name: "cleanup", do: func(ctx context.Context, w *world) error { return w.job().Cleanup(ctx, "went well") },
			proof: func(ctx context.Context, w *world, st replica.State) error {
				return errors.Join(powers(w, host.Running, host.Absent, host.Absent), phase(st, replica.Replicating, 1), gone(w, "/dr/web01-test", "test-"),
					isTrue(st.Test == nil && st.LastTest != nil && st.LastTest.OK && st.LastTest.Notes == "went well", "the result of the test is not kept"))
			},
		},
		{
			name:   "planned",
			before: func(w *world) error { replicatetest.Scribble(rng, g); atSource = g.Clone(); return w.Write(g) },
			do:     run(failover.Planned, failover.Options{}),
			proof: func(ctx context.Context, w *world, st replica.State) error {
				got, err := w.recovered("web01")
				return errors.Join(err, same("the recovered VM", got, atSource), powers(w, host.Off, host.Running, host.Absent),
					phase(st, replica.FailedOver, 2), w.samePoints(ctx, points))
			},
		},
		{
			name:   "undo",
			before: func(w *world) error { replicatetest.Scribble(rng, g); return w.write("web01", g) }, // and is given up
			do:     func(ctx context.Context, w *world) error { return w.job().Undo(ctx) },
			proof: func(ctx context.Context, w *world, st replica.State) error {
				home, err := w.atHome()
				return errors.Join(err, same("the source", home, atSource), powers(w, host.Running, host.Absent, host.Absent),
					phase(st, replica.Replicating, 3), gone(w, "/dr/web01", "failover-"), isTrue(st.Failover == nil, "the failover is not forgotten"))
			},
		},
		{
			name: "unplanned, older point",
			before: func(w *world) error {
				for name := range g {
					copy(g[name], atSource[name])
				}
				st, err := w.State(context.Background())
				older = st.Points[1].ID
				w.source.fail["stop"], w.source.fail["state"] = fault.New(fault.HostUnreachable, "gone"), fault.New(fault.HostUnreachable, "gone")
				return err
			},
			do: func(ctx context.Context, w *world) error {
				return w.job().Run(ctx, failover.Unplanned, failover.Options{Point: older}, "")
			},
			proof: func(ctx context.Context, w *world, st replica.State) error {
				got, err := w.recovered("web01")
				if err == nil {
					err = same("the recovered VM", got, points[st.Points[1].At])
				}
				return errors.Join(err, phase(st, replica.FailedOver, 4), isTrue(st.Failover != nil && st.Failover.Point == older, "it is another point"))
			},
		},
		{
			name: "change to the latest",
			do: func(ctx context.Context, w *world) error {
				return w.job().Run(ctx, failover.Unplanned, failover.Options{Point: failover.LatestProcessed}, "")
			},
			proof: func(ctx context.Context, w *world, st replica.State) error {
				got, err := w.recovered("web01")
				return errors.Join(err, same("the recovered VM", got, atSource), phase(st, replica.FailedOver, 4),
					isTrue(w.recovery.vms["web01"].power == host.Running, "the VM does not run"), isTrue(len(st.Points) >= 3, "points are gone"))
			},
		},
		{
			name:   "commit",
			before: func(w *world) error { replicatetest.Scribble(rng, g); return w.write("web01", g) },
			do:     func(ctx context.Context, w *world) error { return w.job().Commit(ctx) },
			proof: func(ctx context.Context, w *world, st replica.State) error {
				got, err := w.recovered("web01")
				return errors.Join(err, same("the recovered VM", got, g), phase(st, replica.Committed, 4), isTrue(len(st.Points) == 1, "older points are there"))
			},
		},
		{
			name: "failback",
			before: func(w *world) error {
				delete(w.source.fail, "stop")
				delete(w.source.fail, "state")
				w.source.vms["web01"] = machine{host.Definition{Name: "web01"}, host.Off}
				return nil
			},
			do: func(ctx context.Context, w *world) error {
				return w.job().Failback(ctx, failover.FailbackOptions{Mode: failover.MinimalDowntime}, "")
			},
			proof: func(ctx context.Context, w *world, st replica.State) error {
				home, err := w.atHome()
				return errors.Join(err, same("the disks at home", home, g), powers(w, host.Running, host.Off, host.Absent), phase(st, replica.FailedBack, 5))
			},
		},
		{
			name: "commit of the failback", do: func(ctx context.Context, w *world) error { return w.job().Commit(ctx) },
			proof: func(ctx context.Context, w *world, st replica.State) error {
				home, err := w.atHome()
				return errors.Join(err, same("the disks at home", home, g), powers(w, host.Running, host.Absent, host.Absent),
					phase(st, replica.Replicating, 5), gone(w, "/dr/web01", "failover-"), isTrue(st.Failover == nil, "the failover is not forgotten"))
			},
		},
		{
			name: "delta in the old direction", before: func(w *world) error { w.Now = w.Now.Add(time.Hour); return nil },
			do: func(ctx context.Context, w *world) error { _, err := w.Delta(ctx); return err },
			proof: func(ctx context.Context, w *world, st replica.State) error {
				return errors.Join(w.SameReplica(ctx, g), w.Verified(ctx), phase(st, replica.Replicating, 5))
			},
		},
	}
}

func run(k failover.Kind, o failover.Options) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error { return w.job().Run(ctx, k, o, "") }
}

func isTrue(ok bool, otherwise string) error {
	if !ok {
		return errors.New(otherwise)
	}
	return nil
}

func phase(st replica.State, p replica.Phase, generation uint64) error {
	if st.Phase != p || st.Generation != generation {
		return fmt.Errorf("the phase is %s, the generation %d; want %s, %d", st.Phase, st.Generation, p, generation)
	}
	return nil
}

// powers says whether source, recovered and test VM do what they should.
func powers(w *world, source, recovered, test host.Power) error {
	for _, c := range []struct {
		at   *machines
		vm   string
		want host.Power
	}{{w.source, "web01", source}, {w.recovery, "web01", recovered}, {w.recovery, "web01-test", test}} {
		got := host.Absent
		if v, ok := c.at.vms[c.vm]; ok {
			got = v.power
		}
		if got != c.want {
			return fmt.Errorf("VM %s at %s is %s, want %s", c.vm, c.at.name, got, c.want)
		}
	}
	return nil
}

// gone says that a folder is not there, and that nothing in the store has a name that begins so.
func gone(w *world, folder, prefix string) error {
	blobs, _ := w.FS.ReadDir(blobs) // none: it was never made
	for _, e := range blobs {
		if strings.Contains(e.Name, prefix) {
			return fmt.Errorf("%s is still in the store", e.Name)
		}
	}
	if entries, err := w.FS.ReadDir(folder); err == nil {
		return fmt.Errorf("%s is still there: %v", folder, entries)
	}
	return nil
}

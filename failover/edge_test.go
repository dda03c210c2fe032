package failover_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"sitrep/failover"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
	"sitrep/replicate/replicatetest"
)

// edge is a VM that runs at its source and has two recovery points.
func edge(t *testing.T) (*world, replicatetest.Guest) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 3))
	g := replicatetest.NewGuest(rng)
	return newWorld(t, g, 1, func() { replicatetest.Scribble(rng, g) }), g
}

func (w *world) run(t *testing.T, k failover.Kind, o failover.Options) error {
	t.Helper()
	return w.job().Run(t.Context(), k, o, "")
}

func (w *world) state(t *testing.T) replica.State {
	t.Helper()
	st, err := w.State(t.Context())
	must(t, err)
	return st
}

// TestStranger: a VM of the same name at the recovery host is neither made over, nor deleted by an undo.
func TestStranger(t *testing.T) {
	w, _ := edge(t)
	stranger := machine{host.Definition{Name: "web01", OS: "other"}, host.Off}
	w.recovery.vms["web01"] = stranger
	wantCode(t, w.run(t, failover.Planned, failover.Options{}), fault.HostRefused)
	if st := w.state(t); st.Failover != nil || w.source.vms["web01"].power != host.Running {
		t.Fatal("something was begun")
	}
	delete(w.recovery.vms, "web01")
	w.source.fail["stop"] = fault.New(fault.HostUnreachable, "gone")
	wantCode(t, w.run(t, failover.Planned, failover.Options{}), fault.HostUnreachable)
	w.recovery.vms["web01"] = stranger // it came while the failover waited
	delete(w.source.fail, "stop")
	wantCode(t, w.run(t, failover.Planned, failover.Options{}), fault.HostRefused)
	must(t, w.job().Undo(t.Context()))
	if w.recovery.vms["web01"].def.OS != "other" || w.source.vms["web01"].power != host.Running {
		t.Fatal("the undo has deleted a VM that is not its own, or left the source off")
	}
}

// TestSourceGoneAfterTakeOver: once a planned failover has taken over, it needs its source no more.
func TestSourceGoneAfterTakeOver(t *testing.T) {
	w, g := edge(t)
	w.recovery.fail["create"] = fault.New(fault.HostRefused, "no memory")
	wantCode(t, w.run(t, failover.Planned, failover.Options{}), fault.HostRefused)
	delete(w.recovery.fail, "create")
	w.source.fail["state"], w.source.fail["stop"] = fault.New(fault.HostUnreachable, "gone"), fault.New(fault.HostUnreachable, "gone")
	must(t, w.run(t, failover.Planned, failover.Options{}))
	got, err := w.recovered("web01")
	must(t, err)
	must(t, same("the recovered VM", got, g))
}

// TestUndoWithoutSource: an undo gives nothing up before it is known that the source can be started again.
func TestUndoWithoutSource(t *testing.T) {
	w, g := edge(t)
	must(t, w.run(t, failover.Planned, failover.Options{}))
	w.source.fail["state"] = fault.New(fault.HostUnreachable, "gone")
	wantCode(t, w.job().Undo(t.Context()), fault.HostUnreachable)
	delete(w.source.fail, "state")
	was := w.source.vms["web01"]
	delete(w.source.vms, "web01")
	wantCode(t, w.job().Undo(t.Context()), fault.VMAbsent)
	got, err := w.recovered("web01")
	must(t, err)
	must(t, same("the recovered VM", got, g))
	w.source.vms["web01"] = was
	must(t, w.job().Undo(t.Context()))
}

// TestOtherKind: a planned failover that got nowhere, and much later an unplanned one: what it lost and how long it took is
// its own.
func TestOtherKind(t *testing.T) {
	w, _ := edge(t)
	w.source.fail["stop"] = fault.New(fault.HostUnreachable, "gone")
	wantCode(t, w.run(t, failover.Planned, failover.Options{}), fault.HostUnreachable)
	w.Now = w.Now.Add(48 * time.Hour)
	must(t, w.run(t, failover.Unplanned, failover.Options{}))
	rec := *w.state(t).Failover
	if rec.Kind != string(failover.Unplanned) || failover.RTO(rec) >= time.Hour || failover.RPO(rec) < 48*time.Hour {
		t.Fatalf("%s, RTO %v, RPO %v", rec.Kind, failover.RTO(rec), failover.RPO(rec))
	}
}

// TestOlderAfterPlanned: a planned failover loses nothing; another point chosen after it does, and that is said.
func TestOlderAfterPlanned(t *testing.T) {
	w, _ := edge(t)
	must(t, w.run(t, failover.Planned, failover.Options{}))
	st := w.state(t)
	if lost := failover.RPO(*st.Failover); lost != 0 {
		t.Fatalf("the planned failover lost %v", lost)
	}
	began := w.Now // and the source is off since
	w.Now = w.Now.Add(time.Minute)
	must(t, w.run(t, failover.Unplanned, failover.Options{Point: st.Points[0].ID}))
	rec := *w.state(t).Failover
	if lost, want := failover.RPO(rec), began.Sub(st.Points[0].CutAt); lost != want {
		t.Fatalf("it says that %v are lost, and %v are", lost, want)
	}
	if rto := failover.RTO(rec); rto != time.Minute {
		t.Fatalf("the VM was down for a minute, and it says %v", rto)
	}
	w.Now = w.Now.Add(time.Hour)
	must(t, w.run(t, failover.Unplanned, failover.Options{Point: st.Failover.Point}))
	if rec := *w.state(t).Failover; failover.RPO(rec) != 0 || failover.RTO(rec) != time.Hour+time.Minute {
		t.Fatalf("back to the point that has everything: RPO %v, RTO %v", failover.RPO(rec), failover.RTO(rec))
	}
}

// TestTimesAfterUndo: a failover after an undo has times of its own: the source has run in between.
func TestTimesAfterUndo(t *testing.T) {
	w, _ := edge(t)
	must(t, w.run(t, failover.Unplanned, failover.Options{}))
	must(t, w.job().Undo(t.Context()))
	w.Now = w.Now.Add(time.Hour)
	must(t, w.run(t, failover.Unplanned, failover.Options{NoShutdown: true}))
	rec := *w.state(t).Failover
	if want := w.Now.Sub(rec.CutAt); failover.RPO(rec) != want || failover.RTO(rec) >= time.Hour {
		t.Fatalf("RPO %v, want %v; RTO %v", failover.RPO(rec), want, failover.RTO(rec))
	}
}

// TestNobodyStarts: without hosts there is no time until the VM is up, and no downtime.
func TestNobodyStarts(t *testing.T) {
	w, _ := edge(t)
	job := func() *failover.Job {
		j := w.job()
		j.Recovery.Host, j.Home.Place.Host = nil, nil
		w.Now = w.Now.Add(time.Minute)
		return j
	}
	must(t, job().Run(t.Context(), failover.Planned, failover.Options{}, ""))
	if rec := *w.state(t).Failover; !rec.ByHand || failover.RTO(rec) != 0 || rec.Finished.IsZero() {
		t.Fatalf("%+v", rec)
	}
	must(t, job().Commit(t.Context()))
	must(t, job().Failback(t.Context(), failover.FailbackOptions{Mode: failover.DuringFailover}, ""))
	if fb := *w.state(t).Failover.Failback; !fb.ByHand || failover.Downtime(fb) != 0 {
		t.Fatalf("%+v", fb)
	}
}

// untilRoom does f with more and more room on the volume, as an operator who frees space until it is enough. Each run before says
// that there is none.
func (w *world) untilRoom(t *testing.T, f func() error) {
	t.Helper()
	defer w.FS.SetCapacity(0)
	room, refused := int64(1), 0
	for ; room < 1<<30; room *= 2 {
		w.FS.SetCapacity(w.FS.Allocated() + room)
		err := f()
		if err == nil {
			break
		}
		wantCode(t, err, fault.NoSpace)
		refused++
	}
	if refused < 3 {
		t.Fatalf("the volume was full only %d times", refused)
	}
}

// TestFull: a full volume stops a failover, its way home and its commit with an error that says so. Nothing is lost, and each goes
// on when there is room.
func TestFull(t *testing.T) {
	w, g := edge(t)
	ctx := t.Context()
	w.untilRoom(t, func() error { return w.run(t, failover.Planned, failover.Options{}) })
	got, err := w.recovered("web01")
	must(t, err)
	must(t, same("the recovered VM", got, g))
	must(t, w.job().Commit(ctx))
	rng := rand.New(rand.NewPCG(5, 5))
	replicatetest.Scribble(rng, g)
	must(t, w.write("web01", g))
	w.untilRoom(t, func() error {
		err := w.job().Failback(ctx, failover.FailbackOptions{Mode: failover.MinimalDowntime}, "")
		there, rerr := w.recovered("web01")
		must(t, rerr)
		must(t, same("the recovered VM", there, g))
		return err
	})
	home, err := w.atHome()
	must(t, err)
	must(t, same("the disks at home", home, g))
	must(t, w.job().Commit(ctx))
}

// TestNothingLost: an unplanned failover that could stop its source and bring over what it wrote last has lost nothing, and says so;
// one that could not says what it lost.
func TestNothingLost(t *testing.T) {
	w, _ := edge(t)
	w.Now = w.Now.Add(time.Hour)
	must(t, w.run(t, failover.Unplanned, failover.Options{}))
	if lost := failover.RPO(*w.state(t).Failover); lost != 0 {
		t.Errorf("it says that %v are lost", lost)
	}
	st := w.state(t)
	must(t, w.run(t, failover.Unplanned, failover.Options{Point: st.Points[0].ID}))
	if lost := failover.RPO(*w.state(t).Failover); lost < time.Hour {
		t.Errorf("an older point was chosen, and it says that %v are lost", lost)
	}
	must(t, w.job().Undo(t.Context()))
	w.Now = w.Now.Add(time.Hour)
	must(t, w.run(t, failover.Unplanned, failover.Options{NoShutdown: true}))
	if lost := failover.RPO(*w.state(t).Failover); lost < time.Hour {
		t.Errorf("the source was left alone, and it says that %v are lost", lost)
	}
}

// TestTwoMachines: a failover that one machine has begun is gone on with by another one, which takes it over first; the first
// one is then refused, and what is undone goes back to the source that there was in the beginning.
func TestTwoMachines(t *testing.T) {
	ctx := t.Context()
	w, g := edge(t)
	before := w.state(t)
	first, second := w.job(), w.job()
	second.By.Host = "dr2"
	must(t, first.Run(ctx, failover.Unplanned, failover.Options{NoShutdown: true}, failover.StepFinish))
	must(t, second.Run(ctx, failover.Unplanned, failover.Options{NoShutdown: true}, failover.StepDisks))
	st := w.state(t)
	if st.Generation != before.Generation+2 || st.Owner.Host != "dr2" || st.Failover.Source.Host != before.Owner.Host {
		t.Fatalf("generation %d, owner %q, source %q", st.Generation, st.Owner.Host, st.Failover.Source.Host)
	}
	// The first machine, in the middle of its run, as it would be if it had hung.
	stale := w.job()
	stale.Hook = func(ctx context.Context, k failover.Kind, d host.Definition) error {
		return second.Run(ctx, failover.Unplanned, failover.Options{NoShutdown: true}, failover.StepHook)
	}
	wantCode(t, stale.Run(ctx, failover.Unplanned, failover.Options{NoShutdown: true}, ""), fault.Fenced)
	must(t, second.Run(ctx, failover.Unplanned, failover.Options{NoShutdown: true}, ""))
	got, err := w.recovered("web01")
	must(t, err)
	must(t, same("the recovered VM", got, g))
	must(t, second.Undo(ctx))
	st = w.state(t)
	if st.Owner.Host != before.Owner.Host || st.Phase != before.Phase {
		t.Errorf("after undo the owner is %q, the phase %s", st.Owner.Host, st.Phase)
	}
}

// halfSeized is a store whose next Seize is killed between the ledger and the rest of the store.
type halfSeized struct {
	replica.Store
	kill bool
	done uint64 // the generation of the last Seize that came to its end
}

func (s *halfSeized) Seize(ctx context.Context, vm string, take func(replica.State) (replica.State, error)) (replica.Replica, error) {
	generation := uint64(0)
	r, err := s.Store.Seize(ctx, vm, func(st replica.State) (replica.State, error) {
		next, err := take(st)
		generation = next.Generation
		return next, err
	})
	if err == nil && s.kill {
		s.kill = false
		return nil, errors.Join(fault.New(fault.StoreUnreachable, "killed"), r.Close())
	}
	s.done = generation
	return r, err
}

// TestSeizeIsCompleted: whatever raises the generation, and is killed when only the ledger knows of it, raises it in the rest of the
// store when it is run again. Another machine that goes on does so with a generation of its own.
func TestSeizeIsCompleted(t *testing.T) {
	w, g := edge(t)
	ctx := t.Context()
	s := &halfSeized{}
	job := func() *failover.Job {
		j := w.job()
		s.Store, j.Store = j.Store, s
		return j
	}
	twice := func(what string, do func(*failover.Job) error) {
		t.Helper()
		s.kill = true
		wantCode(t, do(job()), fault.StoreUnreachable)
		must(t, do(job()))
		if st := w.state(t); s.done != st.Generation {
			t.Errorf("%s: the generation is %d, and the store was seized for %d", what, st.Generation, s.done)
		}
	}
	planned := func(j *failover.Job) error { return j.Run(ctx, failover.Planned, failover.Options{}, "") }
	twice("failover", planned)
	twice("undo", func(j *failover.Job) error { return j.Undo(ctx) })
	if st := w.state(t); st.Generation != 3 || st.Owner.Host == "dr1" || st.Phase != replica.Replicating {
		t.Errorf("after the undo: generation %d of %s, %s", st.Generation, st.Owner.Host, st.Phase)
	}
	unlock := func(j *failover.Job) error {
		_, _, err := failover.Unlock(ctx, j.Store, "web01", j.By, j.Now())
		return err
	}
	was := w.state(t)
	twice("unlock", unlock)
	if st := w.state(t); st.Generation != 4 || st.Owner.Host != "dr1" || st.Phase != was.Phase || st.PhaseSince != was.PhaseSince || st.Unlocking {
		t.Errorf("after the unlock: generation %d of %s, %s", st.Generation, st.Owner.Host, st.Phase)
	}
	held, err := w.job().Store.Open(ctx, "web01") // by a run that hangs
	must(t, err)
	before, err := held.Ledger().Load(ctx)
	must(t, err)
	twice("unlock a replica that is held", unlock)
	_, err = held.Ledger().Save(ctx, before)
	wantCode(t, err, fault.Fenced)
	must(t, held.Close())
	must(t, planned(job()))
	must(t, job().Commit(ctx))
	replicatetest.Scribble(rand.New(rand.NewPCG(6, 6)), g)
	must(t, w.write("web01", g))
	s.kill = true
	back := func(j *failover.Job) error {
		return j.Failback(ctx, failover.FailbackOptions{Mode: failover.DuringFailover}, failover.StepFailbackBegin)
	}
	wantCode(t, back(job()), fault.StoreUnreachable)
	elsewhere := job()
	elsewhere.By.Host = "dr2"
	must(t, back(elsewhere))
	if st := w.state(t); st.Generation != 8 || s.done != 8 || st.Owner.Host != "dr2" {
		t.Errorf("another machine goes on with generation %d (seized: %d) of %s", st.Generation, s.done, st.Owner.Host)
	}
	must(t, back(elsewhere))
	if st := w.state(t); st.Generation != 8 {
		t.Errorf("begun already, and the generation is %d", st.Generation)
	}
}

// TestUndoGotStuck: an undo has removed the recovered VM and cannot start the source. What is left is not committed and not gone
// on with; a failover makes it anew, and stops the source if it has come up meanwhile; or the undo is completed.
func TestUndoGotStuck(t *testing.T) {
	w, g := edge(t)
	must(t, w.run(t, failover.Planned, failover.Options{}))
	w.source.fail["start"] = fault.New(fault.HostUnreachable, "gone")
	wantCode(t, w.job().Undo(t.Context()), fault.HostUnreachable)
	if _, ok := w.recovery.vms["web01"]; ok || w.state(t).Phase != replica.FailoverStarted {
		t.Fatalf("the recovered VM: %v, %s", ok, w.state(t).Phase)
	}
	wantCode(t, w.job().Commit(t.Context()), fault.WrongState)
	wantCode(t, w.run(t, failover.Planned, failover.Options{}), fault.WrongState)

	delete(w.source.fail, "start")
	must(t, w.source.Start(t.Context(), "web01")) // by hand, or by an undo that was killed just then
	must(t, w.run(t, failover.Unplanned, failover.Options{}))
	got, err := w.recovered("web01")
	must(t, err)
	must(t, same("the recovered VM", got, g))
	if w.source.vms["web01"].power != host.Off {
		t.Fatal("the VM runs in two places")
	}
	must(t, w.job().Undo(t.Context()))
	if st := w.state(t); st.Failover != nil || st.Phase != replica.Replicating || w.source.vms["web01"].power != host.Running {
		t.Fatalf("after the undo: %s, source %v", st.Phase, w.source.vms["web01"].power)
	}
}

// TestCleanupGotStuck: a test that failed, and whose clean-up was cut off, is begun again from its disks on.
func TestCleanupGotStuck(t *testing.T) {
	w, g := edge(t)
	w.recovery.fail["start"] = fault.New(fault.HostRefused, "no memory")
	wantCode(t, w.run(t, failover.Test, failover.Options{}), fault.HostRefused)
	j := w.job()
	j.CleanedUp = func(context.Context, failover.Kind, host.Definition) error {
		return fault.New(fault.HostRefused, "the hook fails")
	}
	wantCode(t, j.Cleanup(t.Context(), ""), fault.HostRefused)
	delete(w.recovery.fail, "start")
	must(t, w.run(t, failover.Test, failover.Options{}))
	got, err := w.recovered("web01-test")
	must(t, err)
	must(t, same("the VM of the test", got, g))
	must(t, w.job().Cleanup(t.Context(), ""))
}

// spoil flips a byte of a file, and flips it back when it is called again.
func (w *world) spoil(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := w.FS.OpenRW(path)
	must(t, err)
	b := make([]byte, 1)
	must(t, durable.ReadFull(f, b, off))
	b[0] ^= 0xFF
	_, err = f.WriteAt(b, off)
	must(t, errors.Join(err, f.Sync(), f.Close()))
}

// undoLog is a place in what is kept of the older point, and pagesOf one that both points may show, of the disk os.
func undoLog(st replica.State) (path string, off int64) {
	return "/store/web01/points/" + st.Points[0].At.String() + "/os.undo.hrl", 5
}

func pagesOf(replica.State) (path string, off int64) { return "/store/web01/os.vhd", 1000 }

func stepNames(p failover.Plan) string {
	var names []string
	for _, s := range p.Steps {
		names = append(names, string(s.ID))
	}
	return strings.Join(names, " ")
}

// TestChangeToDamagedPoint: a recovery point to which a failover is to be changed is read before anything is given up for it. What
// runs stays as it is when the point is damaged, and is changed when it is not.
func TestChangeToDamagedPoint(t *testing.T) {
	for name, c := range map[string]struct {
		in   failover.DisksIn
		from int // index of the point that runs first
		of   func(st replica.State) (path string, off int64)
		code fault.Code
	}{
		"folder, what was kept of it": {failover.InFolder, 1, undoLog, fault.PointMissing},
		"store, what was kept of it":  {failover.InStore, 1, undoLog, fault.PointMissing},
		"folder, the pages":           {failover.InFolder, 0, pagesOf, fault.ReplicaCorrupt},
		"store, the pages":            {failover.InStore, 0, pagesOf, fault.ReplicaCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			w, g := edge(t)
			w.in = c.in
			st := w.state(t)
			to := failover.Options{Point: st.Points[1-c.from].ID, NoShutdown: true}
			must(t, w.run(t, failover.Unplanned, failover.Options{Point: st.Points[c.from].ID, NoShutdown: true}))
			replicatetest.Scribble(rand.New(rand.NewPCG(8, 8)), g)
			must(t, w.write("web01", g))
			before, did := w.state(t), len(w.recovery.log)

			path, off := c.of(st)
			w.spoil(t, path, off)
			p, err := w.job().Plan(t.Context(), failover.Unplanned, to)
			must(t, err)
			if got := stepNames(p); !strings.Contains(got, "prove clear disks") {
				t.Errorf("the plan is %s", got)
			}
			for range 2 {
				err := w.run(t, failover.Unplanned, to)
				wantCode(t, err, c.code)
				if e := fault.Find(err); strings.Contains(e.Next, "undo") {
					t.Errorf("what runs is to be given up: %s", e.Next)
				}
			}
			after := w.state(t)
			if after.Phase != replica.FailedOver || !after.PhaseSince.Equal(before.PhaseSince) || !reflect.DeepEqual(after.Failover, before.Failover) {
				t.Errorf("the ledger says %s, %+v", after.Phase, after.Failover)
			}
			if w.recovery.vms["web01"].power != host.Running || len(w.recovery.log) != did {
				t.Errorf("the VM is %s, after %q", w.recovery.vms["web01"].power, w.recovery.log[did:])
			}
			got, err := w.recovered("web01")
			must(t, err)
			must(t, same("the VM that runs", got, g))

			w.spoil(t, path, off)
			must(t, w.run(t, failover.Unplanned, to))
			if rec := w.state(t).Failover; rec.Point != to.Point {
				t.Errorf("the VM runs from %s", rec.Point)
			}
		})
	}
}

// TestChangeProves: a point is read first only where something is given up for it.
func TestChangeProves(t *testing.T) {
	w, _ := edge(t)
	st := w.state(t)
	older := failover.Options{Point: st.Points[0].ID, NoShutdown: true}
	steps := func() string {
		t.Helper()
		p, err := w.job().Plan(t.Context(), failover.Unplanned, older)
		must(t, err)
		return stepNames(p)
	}
	if got := steps(); strings.Contains(got, "prove") {
		t.Errorf("nothing was begun, and the plan is %s", got)
	}
	must(t, w.job().Run(t.Context(), failover.Unplanned, failover.Options{NoShutdown: true}, failover.StepFinish))
	if got := steps(); strings.Contains(got, "prove") || !strings.Contains(got, "clear") {
		t.Errorf("nothing was made, and the plan is %s", got)
	}
	must(t, w.run(t, failover.Unplanned, failover.Options{NoShutdown: true}))
	if got := steps(); !strings.Contains(got, "prove clear") {
		t.Errorf("a VM runs, and the plan is %s", got)
	}
	w.recovery.fail["delete"] = fault.New(fault.HostUnreachable, "gone")
	wantCode(t, w.job().Undo(t.Context()), fault.HostUnreachable)
	if got := steps(); strings.Contains(got, "prove") || !strings.Contains(got, "clear") {
		t.Errorf("an undo has begun to remove it, and the plan is %s", got)
	}
}

// TestDamagedPages: where a point shows what lies in the pages, a test of it that finds these damaged marks the replica.
func TestDamagedPages(t *testing.T) {
	w, _ := edge(t)
	st := w.state(t)
	w.spoil(t, "/store/web01/os.vhd", st.Disks[0].Size-1)
	err := w.run(t, failover.Test, failover.Options{Point: st.Points[0].ID})
	wantCode(t, err, fault.ReplicaCorrupt)
	if st := w.state(t); st.Phase != replica.ResyncRequired || st.ReasonCode != fault.ReplicaCorrupt {
		t.Errorf("the replica is %s (%s), after %v", st.Phase, st.ReasonCode, err)
	}
}

// TestCondemns: what is said of a recovery point is said of the replica only where the bytes are those of the pages.
func TestCondemns(t *testing.T) {
	w, _ := edge(t)
	st := w.state(t)
	rep, err := w.job().Store.View(t.Context(), "web01")
	must(t, err)
	defer rep.Close()
	older, newest := st.Points[0], st.Points[1]
	at := func(code fault.Code, path string) error {
		return fault.New(code, "bad").AtOff(path, 0).Of("web01", "os")
	}
	const pages, log = "/store/web01/os.vhd", "/store/web01/points/x/os.undo.hrl"
	for name, c := range map[string]struct {
		rep  replica.Replica
		at   replica.Point
		err  error
		want bool
	}{
		"pages, older":           {rep, older, at(fault.ReplicaCorrupt, pages), true},
		"pages, newest":          {rep, newest, at(fault.ReplicaCorrupt, pages), true},
		"what was kept":          {rep, older, at(fault.ReplicaCorrupt, log), false},
		"something else":         {rep, newest, at(fault.IO, pages), false},
		"no place is known":      {rep, older, at(fault.ReplicaCorrupt, ""), true},
		"kept as a whole, older": {whole{rep}, older, at(fault.ReplicaCorrupt, pages), false},
		"kept as a whole":        {whole{rep}, newest, at(fault.ReplicaCorrupt, pages), true},
	} {
		if got := replica.Condemns(t.Context(), c.rep, st, c.at, c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// whole is a replica that keeps its points as a whole.
type whole struct{ replica.Replica }

func (whole) PreservesWhole() bool { return true }

// TestFinishIsOurs: a failover that waits while another machine takes it over, or undoes it, settles on no point of its own.
func TestFinishIsOurs(t *testing.T) {
	for what, other := range map[string]func(w *world) error{
		"taken over": func(w *world) error {
			second := w.job()
			second.By.Host = "dr2"
			return second.Run(context.Background(), failover.Unplanned, failover.Options{Point: w.oldest()}, failover.StepFinish)
		},
		"undone": func(w *world) error { return w.job().Undo(context.Background()) },
	} {
		w, _ := edge(t)
		first := w.job()
		first.Step = func(name string, f func() (int64, string, error)) error {
			if name == "Start failover" {
				must(t, other(w))
			}
			_, _, err := f()
			return err
		}
		err := first.Run(t.Context(), failover.Unplanned, failover.Options{}, "")
		if !fault.Is(err, fault.Fenced) && !fault.Is(err, fault.FailoverFailed) {
			t.Fatalf("%s: %v", what, err)
		}
		if rec := w.state(t).Failover; rec != nil && rec.Point != w.oldest() {
			t.Fatalf("%s: the point is %s", what, rec.Point)
		}
	}
}

func (w *world) oldest() string {
	st, err := w.State(context.Background())
	if err != nil {
		return err.Error()
	}
	return st.Points[0].ID
}

// TestOldestPointStays: retention is used up, an unplanned failover is asked for the oldest point, and what the source wrote last
// makes a new one. The point that was asked for is there all the same, also when the run was ended after the last changes.
func TestOldestPointStays(t *testing.T) {
	for name, until := range map[string]failover.StepID{"one run": "", "ended after the last changes": failover.StepLastChanges} {
		t.Run(name, func(t *testing.T) {
			w, g := edge(t)
			before := w.state(t)
			w.Keep = len(before.Points)
			oldest := before.Points[0].ID
			g["os"][0]++
			must(t, w.Write(g))
			if until != "" {
				must(t, w.job().Run(t.Context(), failover.Unplanned, failover.Options{Point: oldest}, until))
			}
			must(t, w.run(t, failover.Unplanned, failover.Options{Point: oldest}))
			st := w.state(t)
			if st.Failover.Point != oldest {
				t.Errorf("the failover is of point %s, want %s", st.Failover.Point, oldest)
			}
			if len(st.Points) != len(before.Points)+1 {
				t.Errorf("%d recovery points, and what the source wrote last makes %d", len(st.Points), len(before.Points)+1)
			}
		})
	}
}

// TestProbeLeftBehind: a run that was killed while it tried the folder leaves a file there, which neither the next run nor the clean-up
// takes for somebody's.
func TestProbeLeftBehind(t *testing.T) {
	for name, when := range map[string]func(t *testing.T, w *world, kill func()){
		"before": func(t *testing.T, w *world, kill func()) {
			kill()
			must(t, w.run(t, failover.Test, failover.Options{}))
		},
		"between": func(t *testing.T, w *world, kill func()) {
			must(t, w.run(t, failover.Test, failover.Options{}))
			kill()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := edge(t)
			when(t, w, func() {
				must(t, w.FS.MkdirAll("/dr/web01-test"))
				f, err := w.FS.Create(durable.TempName("/dr/web01-test/probe"))
				must(t, errors.Join(err, f.Close()))
			})
			must(t, w.job().Cleanup(t.Context(), ""))
			if entries, err := w.FS.ReadDir("/dr/web01-test"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left are %v (error %v)", entries, err)
			}
		})
	}
}

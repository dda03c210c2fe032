package failover_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"sitrep/failover"
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
	w.Now = w.Now.Add(time.Minute)
	must(t, w.run(t, failover.Unplanned, failover.Options{Point: st.Points[0].ID}))
	if lost, want := failover.RPO(*w.state(t).Failover), w.Now.Sub(st.Points[0].CutAt); lost != want {
		t.Fatalf("it says that %v are lost, and %v are", lost, want)
	}
}

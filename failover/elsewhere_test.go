package failover_test

import (
	"errors"
	"slices"
	"testing"

	"sitrep/failover"
	"sitrep/failover/recovered"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
)

// at is a job whose site file names a host.
func (w *world) at(id string, h host.Host) *failover.Job {
	j := w.job()
	j.Recovery.ID, j.Recovery.Host = id, h
	return j
}

// TestOtherHost: the site file names another recovery host than the one that runs the VM, where there is a stranger of its name.
// Nothing that would leave the VM running beside another one is done, and the stranger is left alone. When the host is said to be
// lost, the VM is made anew at the other one, or the source is started.
func TestOtherHost(t *testing.T) {
	w, g := edge(t)
	other := newMachines("B")
	other.vms["web01"] = machine{host.Definition{Name: "web01", OS: "other"}, host.Running}
	a, b := func() *failover.Job { return w.at("a", w.recovery) }, func() *failover.Job { return w.at("b", other) }
	none := func() *failover.Job { return w.at("none", nil) }
	ctx := t.Context()
	unplanned := func(j *failover.Job, point string) error {
		return j.Run(ctx, failover.Unplanned, failover.Options{Point: point}, "")
	}
	must(t, unplanned(a(), ""))
	older := w.state(t).Points[0].ID
	untouched := func() {
		t.Helper()
		if w.recovery.vms["web01"].power != host.Running || other.vms["web01"].def.OS != "other" || other.vms["web01"].power != host.Running ||
			w.source.vms["web01"].power == host.Running {
			t.Fatal("something was done to a VM")
		}
	}
	for _, j := range []*failover.Job{b(), none()} {
		wantCode(t, j.Undo(ctx), fault.HostChanged)
		wantCode(t, unplanned(j, older), fault.HostChanged)
		untouched()
	}
	lost := b()
	lost.HostLost = true
	wantCode(t, unplanned(lost, older), fault.HostRefused) // for the stranger
	untouched()
	delete(other.vms, "web01")
	wantCode(t, unplanned(lost, older), fault.Exists) // for the disks that the lost host has left: it may run on
	if w.state(t).Phase != replica.FailedOver || w.recovery.vms["web01"].power != host.Running {
		t.Fatal("something was begun")
	}
	lost.Folder = "/b/web01"
	must(t, unplanned(lost, "")) // of the same point
	if other.vms["web01"].power != host.Running || w.state(t).Failover.HostID != "b" {
		t.Fatal("the VM was not made at the other host")
	}
	wantCode(t, a().Undo(ctx), fault.HostChanged)
	back := b()
	back.Folder = "/b/web01"
	must(t, back.Undo(ctx))
	if _, ok := other.vms["web01"]; ok || w.source.vms["web01"].power != host.Running {
		t.Fatal("the undo is not complete")
	}

	delete(w.recovery.vms, "web01") // what the lost host had is not there any more
	for _, name := range w.Disks {
		must(t, errors.Join(w.FS.Remove("/dr/web01/"+name+".vhd"), w.FS.Remove(recovered.RecordPath("/dr/web01/"+name+".vhd"))))
	}
	must(t, a().Run(ctx, failover.Test, failover.Options{}, ""))
	wantCode(t, b().Cleanup(ctx, ""), fault.HostChanged)
	must(t, a().Cleanup(ctx, ""))

	must(t, a().Run(ctx, failover.Planned, failover.Options{}, ""))
	must(t, a().Commit(ctx))
	wantCode(t, b().Failback(ctx, failover.FailbackOptions{Mode: failover.DuringFailover}, ""), fault.HostChanged)
	must(t, a().Failback(ctx, failover.FailbackOptions{Mode: failover.DuringFailover}, ""))
	wantCode(t, b().Commit(ctx), fault.HostChanged)
	gone := b()
	gone.HostLost = true
	must(t, gone.Commit(ctx))
	got, err := w.atHome()
	must(t, err)
	must(t, same("the VM at home", got, g))
}

// TestUndoStuckElsewhere: an undo on one machine has started the source and was killed; another machine that fails over stops it.
func TestUndoStuckElsewhere(t *testing.T) {
	w, _ := edge(t)
	must(t, w.run(t, failover.Planned, failover.Options{}))
	w.source.fail["start"] = fault.New(fault.HostUnreachable, "gone")
	wantCode(t, w.job().Undo(t.Context()), fault.HostUnreachable)
	delete(w.source.fail, "start")
	must(t, w.source.Start(t.Context(), "web01"))
	elsewhere := w.job()
	elsewhere.By.Host = "dr2"
	p, err := elsewhere.Plan(t.Context(), failover.Unplanned, failover.Options{})
	must(t, err)
	if !slices.ContainsFunc(p.Steps, func(s failover.Step) bool { return s.ID == failover.StepStopSource }) {
		t.Fatal("the source is not stopped")
	}
	must(t, elsewhere.Run(t.Context(), failover.Unplanned, failover.Options{}, ""))
	if w.source.vms["web01"].power != host.Off || w.state(t).Phase != replica.FailedOver {
		t.Fatal("the VM runs in two places")
	}
}

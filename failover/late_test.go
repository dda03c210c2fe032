package failover_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
)

// TestCorrected: a VM that its host refused is made as the site file says when the same command is run again.
func TestCorrected(t *testing.T) {
	for _, step := range []string{"create", "start"} {
		w, _ := edge(t)
		w.recovery.fail[step] = fault.New(fault.HostRefused, "no memory")
		wantCode(t, w.run(t, failover.Unplanned, failover.Options{}), fault.HostRefused)
		delete(w.recovery.fail, step)
		j := w.job()
		j.Machine.Memory = 1 << 20
		must(t, j.Run(t.Context(), failover.Unplanned, failover.Options{}, ""))
		if d := w.recovery.vms["web01"].def; d.Memory != 1<<20 || len(d.Disks) != 2 {
			t.Fatalf("%s: the VM was made as it was: %+v", step, d)
		}
		if d, err := failover.Made(w.state(t).Failover); err != nil || d.Memory != 1<<20 {
			t.Fatalf("%s: the ledger says %+v, %v", step, d, err)
		}
	}
}

// TestRenamedMachine: a machine that has another name by now is the same one; another machine is not.
func TestRenamedMachine(t *testing.T) {
	w, _ := edge(t)
	job := func(name, id string) *failover.Job {
		j := w.job()
		j.Recovery.ID, j.Recovery.Key = "qemu "+name+" /dr", "qemu "+id+" /dr"
		return j
	}
	must(t, job("dr1", "m1").Run(t.Context(), failover.Unplanned, failover.Options{}, ""))
	wantCode(t, job("dr1.example.com", "m2").Undo(t.Context()), fault.HostChanged)
	must(t, job("dr1.example.com", "m1").Undo(t.Context()))
	if len(w.recovery.vms) != 0 || w.source.vms["web01"].power != host.Running {
		t.Fatal("the VM runs on")
	}
}

// TestLocalTimes: a local time that there was twice, or never, is no recovery point.
func TestLocalTimes(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone database: apt-get install tzdata")
	}
	st := replica.State{VM: "web01", Points: []replica.Point{{ID: "p", CutAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}}}
	for word, wrong := range map[string]string{
		"2026-10-25 02:30": "2026-10-25T02:30:00+02:00", "2026-10-25 02:30:00": "2026-10-25T02:30:00+01:00", "2026-03-29 02:30": "does not exist",
		"2026-10-25 03:30": "", "2026-10-25 01:59": "", "2026-03-29 03:00": "", "2026-10-25T02:30:00+02:00": "",
	} {
		p, err := failover.Choose(st, word, berlin)
		switch {
		case wrong == "" && (err != nil || p.ID != "p"):
			t.Errorf("%s: %v", word, err)
		case wrong != "" && (!fault.Is(err, fault.UsageError) || !strings.Contains(err.Error(), wrong)):
			t.Errorf("%s: %v", word, err)
		}
	}
}

// TestStoppedAt: what a failover stopped at is in the ledger until a step gets done, and a VM that went off is started by the next run.
func TestStoppedAt(t *testing.T) {
	w, _ := edge(t)
	job := func(err error) *failover.Job {
		j := w.job()
		j.Recovery.Booted = func(context.Context, host.Definition) error { return err }
		return j
	}
	failed := fault.New(fault.BootFailed, "nobody says login")
	wantCode(t, job(failed).Run(t.Context(), failover.Unplanned, failover.Options{}, ""), fault.BootFailed)
	st := w.state(t)
	if at := st.Failover.Stopped; at == nil || at.Code != fault.BootFailed || !strings.Contains(at.Message, "nobody says login") || !strings.Contains(at.Step, "is up") {
		t.Fatalf("%+v", at)
	}
	must(t, w.recovery.Stop(t.Context(), "web01", 0))
	must(t, job(nil).Run(t.Context(), failover.Unplanned, failover.Options{Point: st.Failover.Point}, ""))
	if w.state(t).Failover.Stopped != nil || w.recovery.vms["web01"].power != host.Running {
		t.Fatal("it is still stopped")
	}
}

package cmd

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"sitrep/failover"
	"sitrep/internal/fault"
)

const planSite = "recovery_plans: [{name: shop, groups: [{vms: [web01], pre: [{manual: Point DNS}]}]}]\n"

// TestPlanRecordUnderLock: how far a plan is is read when no other run can change it any more, and who holds the lock is said with
// words of the plan, and with a command that there is.
func TestPlanRecordUnderLock(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	writeAll(t, m.fs, "/site.yaml", []byte(strings.ReplaceAll(machineSite, "POLICY", "copy_frequency: 5m")+planSite))
	m.must(0, "protect", "web01")
	p := testApp()
	p.fs, p.now, p.stdout, p.stderr = m.fs, func() time.Time { return m.now }, new(bytes.Buffer), new(bytes.Buffer)
	p.opts.site = "/site.yaml"
	w, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	seen := errors.New("looked")
	err = w.runPlan(context.Background(), w.site.RecoveryPlans[0], func() (rec failover.PlanRecord, err error) {
		if lock, err := w.memory.LockPlan("shop"); err == nil {
			lock.Close()
			t.Error("the record is read while another run could change it")
		}
		return rec, seen
	}, "")
	if !errors.Is(err, seen) {
		t.Fatal(err)
	}
	lock, err := w.memory.LockPlan("shop")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	_, stderr := m.must(11, "failover", "test", "--plan", "shop")
	if !strings.Contains(stderr, "recovery plan shop") || strings.Contains(stderr, "VM plan") {
		t.Error(stderr)
	}
	m.must(0, "jobs", "--state", "InProgress") // what it says to run
	if !strings.Contains(stderr, "sitrep --site /site.yaml jobs --state InProgress") {
		t.Error(stderr)
	}
}

// TestPlanWaitsIsNotRefused: that a plan waits has an exit code of its own, and a test need not wait.
func TestPlanWaitsIsNotRefused(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	writeAll(t, m.fs, "/site.yaml", []byte(strings.ReplaceAll(machineSite, "POLICY", "copy_frequency: 5m")+planSite))
	m.must(0, "protect", "web01")
	m.must(2, "failover", "test", "web01", "--assume-done")
	m.must(12, "failover", "test", "--plan", "shop")
	m.must(12, "failover", "continue", "--plan", "shop")
	m.must(0, "failover", "continue", "--plan", "shop", "--assume-done")
	m.must(0, "failover", "cleanup", "--plan", "shop")
	m.must(0, "failover", "test", "--plan", "shop", "--assume-done")
	m.must(0, "failover", "cleanup", "--plan", "shop")
	m.must(12, "failover", "unplanned", "--plan", "shop")
	m.must(2, "failover", "continue", "--plan", "shop", "--assume-done")
	if e := fault.ManualAction.Class(); e != fault.Waits {
		t.Error(e)
	}
	m.must(6, "failover", "test", "--plan", "shop") // refused is another thing
}

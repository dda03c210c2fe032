package failover_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// TestPartsStop: a part of a failover, or of a failback, that is run again does not go past its end, whatever is left behind it: a
// recovery plan has something to ask before.
func TestPartsStop(t *testing.T) {
	for _, k := range []failover.Kind{failover.Test, failover.Planned, failover.Unplanned} {
		w, _ := edge(t)
		for i := range 3 {
			must(t, w.job().Run(t.Context(), k, failover.Options{}, failover.StepCreate))
			name := map[bool]string{true: "web01-test", false: "web01"}[k == failover.Test]
			if power := w.recovery.vms[name].power; power != host.Off {
				t.Fatalf("%s, run %d: the VM is made ready, and it is %s", k, i, power)
			}
		}
		if k == failover.Test {
			continue
		}
		must(t, w.run(t, k, failover.Options{}))
		must(t, w.job().Commit(t.Context()))
		for range 3 {
			must(t, w.job().Failback(t.Context(), failover.FailbackOptions{Mode: failover.DuringFailover}, failover.StepSyncStopped))
			if power := w.source.vms["web01"].power; power != host.Off {
				t.Fatalf("the disks are brought home, and the VM there is %s", power)
			}
		}
	}
}

// TestShutdownStops: the first part of a plan, run again after the replica was taken over, does nothing more.
func TestShutdownStops(t *testing.T) {
	w, _ := edge(t)
	must(t, w.job().Run(t.Context(), failover.Unplanned, failover.Options{}, failover.StepTakeOver))
	must(t, w.job().Run(t.Context(), failover.Unplanned, failover.Options{}, failover.StepStopSource))
	if len(w.recovery.vms) != 0 {
		t.Fatal("a VM was made by the shutdown of the source")
	}
}

// TestPlanEdited: an action that was put in front of one that is done is not taken for it.
func TestPlanEdited(t *testing.T) {
	var asked []string
	s := &planSite{ask: func(text string) (bool, error) { asked = append(asked, text); return true, nil }, fail: map[string]error{"boot web": errors.New("no")}}
	if err := s.plan("planned").Run(t.Context()); err == nil {
		t.Fatal("no error")
	}
	s.fail = nil
	p := s.plan("planned")
	pre := &p.Plan.Groups[1].Pre
	*pre = slices.Insert(*pre, 0, failover.Action{Manual: "Look at the database"})
	asked = nil
	must(t, p.Run(t.Context()))
	if !slices.ContainsFunc(asked, func(x string) bool { return strings.Contains(x, "Look at the database") }) {
		t.Fatalf("the plan has passed a new action: %v", asked)
	}
}

// TestPlanAssumesDone: the manual actions of a test, and only of a test, can be taken to be done; actions of real failovers are not
// part of a test.
func TestPlanAssumesDone(t *testing.T) {
	s := &planSite{saved: failover.PlanRecord{AssumeDone: true}}
	must(t, s.plan("test").Run(t.Context()))
	if s.saved.Ended.IsZero() || !slices.Contains(s.log, "boot web") {
		t.Fatalf("%+v", s.saved)
	}
	s = &planSite{saved: failover.PlanRecord{AssumeDone: true}}
	wantCode(t, s.plan("planned").Run(t.Context()), fault.ManualAction)

	for typ, want := range map[string]fault.Code{"test": "", "planned": fault.ManualAction, "unplanned": fault.ManualAction} {
		s = &planSite{}
		p := s.plan(typ)
		for i := range p.Plan.Groups[1].Pre {
			p.Plan.Groups[1].Pre[i].On = failover.OnReal
		}
		p.Plan.Groups[1].Post = nil
		if err := p.Run(t.Context()); (want == "") != (err == nil) || err != nil && !fault.Is(err, want) {
			t.Fatalf("%s: %v", typ, err)
		}
		if done := slices.Contains(s.log, "/lb 2 pre"); done {
			t.Fatalf("%s: %v", typ, s.log)
		}
	}
}

// TestOneProblem: an error that wraps two, and says how they hang together, is one problem with all of its words.
func TestOneProblem(t *testing.T) {
	err := fmt.Errorf("%w (and its log: %w)", fault.New(fault.HookFailed, "the script failed"), errors.New("cannot be read"))
	s := &planSite{fail: map[string]error{"/check 1 post": err}}
	got := s.plan("planned").Run(t.Context())
	if list := failover.Problems(got); len(list) != 1 || len(s.saved.Failed) != 1 || !strings.Contains(got.Error(), "failed (and its log: cannot be read)") {
		t.Fatalf("%v: %+v", got, s.saved.Failed)
	}
	s = &planSite{fail: map[string]error{"boot db1": context.DeadlineExceeded, "boot db2": errors.New("no")}}
	if list := failover.Problems(s.plan("planned").Run(t.Context())); len(list) != 2 {
		t.Fatalf("two VMs failed: %v", list)
	}
}

package failover_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sitrep/failover"
	"sitrep/internal/fault"
)

// site is where the VMs of a plan run. Its members are called at the same time.
type planSite struct {
	mu     sync.Mutex
	log    []string
	fail   map[string]error // by "verb vm", or path of a script
	saved  failover.PlanRecord
	saves  int
	killAt int // the save that is the last: it is lost, or kept, and the run ends
	kept   bool
	ask    func(string) (bool, error)
	meet   map[string]*sync.WaitGroup // by verb: who does it waits for the others
}

var errKilled = errors.New("killed")

func (s *planSite) did(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, what)
	return s.fail[what]
}

type planVM struct {
	s    *planSite
	name string
}

func (m planVM) do(verb string) error {
	if g := m.s.meet[verb]; g != nil {
		g.Done()
		g.Wait()
	}
	return m.s.did(verb + " " + m.name)
}

func (m planVM) Check(context.Context) error    { return m.do("look") }
func (m planVM) Shutdown(context.Context) error { return m.do("shutdown") }
func (m planVM) Prepare(context.Context) error  { return m.do("prepare") }
func (m planVM) Boot(context.Context) error     { return m.do("boot") }
func (m planVM) Facts() any                     { return map[string]string{"name": m.name} }

func (s *planSite) save(r failover.PlanRecord) error {
	s.saves++
	if s.saves == s.killAt && !s.kept {
		return errKilled
	}
	data, err := json.Marshal(r) // as the file that it is kept in
	if err != nil {
		return err
	}
	s.saved = failover.PlanRecord{}
	if err := json.Unmarshal(data, &s.saved); err != nil {
		return err
	}
	if s.saves == s.killAt {
		return errKilled
	}
	return nil
}

// plan is two groups with actions, as it goes on from what was saved.
func (s *planSite) plan(typ string) *failover.PlanRun {
	rec := s.saved
	rec.Plan, rec.Type = "shop", typ
	p := &failover.PlanRun{
		Plan: failover.RecoveryPlan{Name: "shop", Groups: []failover.Group{
			{VMs: []string{"db1", "db2"}, Post: []failover.Action{{Script: "/check"}}},
			{VMs: []string{"web"}, Pre: []failover.Action{{Manual: "Point DNS"}, {Script: "/lb"}}, Post: []failover.Action{{Manual: "Point DNS"}}},
		}},
		Record: rec, Direction: "primary-to-recovery", Members: map[string]failover.Member{},
		GoesOn: typ == "unplanned", StopsSources: typ != "test", Save: s.save,
		RunScript: func(_ context.Context, a failover.Action, c failover.PlanContext) error {
			return s.did(fmt.Sprintf("%s %d %s", a.Script, c.Group, c.Step))
		},
		Step: func(_ string, f func() (int64, string, error)) error { _, _, err := f(); return err },
		Now:  func() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) },
	}
	if s.ask != nil {
		p.Ask = func(_ context.Context, text string) (bool, error) { return s.ask(text) }
	}
	for _, name := range []string{"db1", "db2", "web"} {
		p.Members[name] = planVM{s, name}
	}
	return p
}

// order is the log with what happened at the same time sorted.
func (s *planSite) order() string {
	verb := func(x string) string { v, _, _ := strings.Cut(x, " "); return v }
	out := slices.Clone(s.log)
	for i := 0; i < len(out); {
		j := i
		for j < len(out) && verb(out[j]) == verb(out[i]) {
			j++
		}
		if !strings.HasPrefix(out[i], "shutdown") && verb(out[i]) != "/check" {
			slices.Sort(out[i:j])
		}
		i = j
	}
	return strings.Join(out, "; ")
}

const (
	looks     = "look db1; look db2; look web; "
	wholePlan = "prepare db1; prepare db2; prepare web; boot db1; boot db2; /check 1 post; /lb 2 pre; boot web"
)

func TestPlanOrder(t *testing.T) {
	s := &planSite{ask: func(string) (bool, error) { return true, nil }}
	p := s.plan("planned")
	must(t, p.Run(t.Context()))
	if !strings.HasPrefix(s.order(), looks+"shutdown web") || !strings.HasSuffix(s.order(), wholePlan) || len(s.log) != 3+3+8 {
		t.Fatal(s.order())
	}
	if s.saved.Ended.IsZero() || len(p.Outline()) != 0 {
		t.Fatalf("%+v, left: %v", s.saved, p.Outline())
	}
	s = &planSite{ask: func(string) (bool, error) { return true, nil }}
	must(t, s.plan("test").Run(t.Context()))
	if s.order() != looks+wholePlan {
		t.Fatal("a test stops sources: ", s.order())
	}
}

// TestPlanParallel: the VMs of a group are worked on at the same time: each waits for the others here.
func TestPlanParallel(t *testing.T) {
	all, first := &sync.WaitGroup{}, &sync.WaitGroup{}
	all.Add(3)
	first.Add(3) // db1 and db2, and then web
	s := &planSite{ask: func(string) (bool, error) { first.Done(); return true, nil }, meet: map[string]*sync.WaitGroup{"prepare": all}}
	p := s.plan("test")
	p.Plan.Groups[1].Post = nil
	must(t, p.Run(t.Context()))
}

// TestPlanFails: a failure ends a planned failover, after all of the same step were tried; an unplanned one goes on, reports
// it, and tries what failed again when it is continued.
func TestPlanFails(t *testing.T) {
	broken := fault.New(fault.HostRefused, "no memory")
	yes := func(string) (bool, error) { return true, nil }
	s := &planSite{fail: map[string]error{"look web": broken}, ask: yes}
	wantCode(t, s.plan("planned").Run(t.Context()), fault.HostRefused)
	if len(s.log) != 3 || s.saved.Begun() {
		t.Fatalf("what can be known beforehand has not kept the plan from being begun: %v", s.log)
	}

	s = &planSite{fail: map[string]error{"prepare db1": broken}, ask: yes}
	wantCode(t, s.plan("planned").Run(t.Context()), fault.HostRefused)
	if !slices.Contains(s.log, "prepare db2") || slices.Contains(s.log, "boot db2") || len(s.saved.Failed) != 1 || s.saved.Failed[0].Code != fault.HostRefused {
		t.Fatalf("%v, %+v", s.log, s.saved)
	}
	s.fail, s.log = nil, nil
	must(t, s.plan("planned").Run(t.Context()))
	if s.order() != wholePlan || len(s.saved.Failed) != 0 || s.saved.Ended.IsZero() {
		t.Fatalf("%v, %+v", s.order(), s.saved)
	}

	s = &planSite{fail: map[string]error{"boot db1": broken, "/lb 2 pre": fault.New(fault.HookFailed, "no")}, ask: yes}
	err := s.plan("unplanned").Run(t.Context())
	wantCode(t, err, fault.HostRefused)
	if !strings.Contains(err.Error(), "/lb") && !strings.Contains(err.Error(), "pre-step 2") || !slices.Contains(s.log, "boot web") ||
		len(s.saved.Failed) != 2 || !s.saved.Ended.IsZero() {
		t.Fatalf("%v: %v, %+v", err, s.log, s.saved)
	}
	s.fail, s.log = nil, nil
	must(t, s.plan("unplanned").Run(t.Context()))
	if s.order() != "boot db1; boot db2; /lb 2 pre" || s.saved.Ended.IsZero() {
		t.Fatalf("%v, %+v", s.order(), s.saved)
	}
}

// TestPlanWaits: a manual action makes the plan wait until a person has said that it is done, by its name or its text.
func TestPlanWaits(t *testing.T) {
	for _, typ := range []string{"planned", "unplanned"} {
		for _, ask := range []func(string) (bool, error){nil, func(string) (bool, error) { return false, nil }} {
			s := &planSite{ask: ask}
			wantCode(t, s.plan(typ).Confirm("Point DNS"), fault.UsageError) // it was not asked for
			wantCode(t, s.plan(typ).Run(t.Context()), fault.ManualAction)
			if s.saved.Waiting != failover.ActionID(2, "pre", 1) || slices.Contains(s.log, "/lb 2 pre") {
				t.Fatalf("%v, %+v", s.log, s.saved)
			}
			wantCode(t, s.plan(typ).Run(t.Context()), fault.ManualAction) // nothing said: it waits on
			for _, wrong := range []string{"", "Point", "/lb", failover.ActionID(2, "post", 1), failover.ActionID(1, "post", 1), "group 2: start"} {
				wantCode(t, s.plan(typ).Confirm(wrong), fault.UsageError)
			}
			must(t, s.plan(typ).Confirm(failover.ActionID(2, "pre", 1)))
			wantCode(t, s.plan(typ).Run(t.Context()), fault.ManualAction)
			if s.saved.Waiting != failover.ActionID(2, "post", 1) || !slices.Contains(s.log, "boot web") {
				t.Fatalf("%v, %+v", s.log, s.saved)
			}
			must(t, s.plan(typ).Confirm("Point DNS")) // another action has had the same text
			must(t, s.plan(typ).Run(t.Context()))
			if s.saved.Ended.IsZero() {
				t.Fatalf("%+v", s.saved)
			}
		}
	}
}

// TestPlanKilled: a plan that is killed at any save, before or after it is durable, goes on and does everything, in order.
func TestPlanKilled(t *testing.T) {
	yes := func(string) (bool, error) { return true, nil }
	for _, kept := range []bool{false, true} {
		at := 1
		for ; ; at++ {
			s := &planSite{ask: yes, killAt: at, kept: kept}
			err := s.plan("planned").Run(t.Context())
			if err == nil {
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			if err := s.plan("planned").Run(t.Context()); err != nil {
				t.Fatalf("killed at save %d: %v", at, err)
			}
			if s.saved.Ended.IsZero() {
				t.Fatalf("killed at save %d: %+v", at, s.saved)
			}
			var once []string // each step, when it was done first
			for _, x := range s.log {
				if !slices.Contains(once, x) {
					once = append(once, x)
				}
			}
			if s.log = once; !strings.HasSuffix(s.order(), wholePlan) || len(once) != 3+3+8 {
				t.Fatalf("killed at save %d: %v", at, s.order())
			}
		}
		if at < 9 {
			t.Fatalf("only %d saves", at)
		}
	}
}

// TestPlanInterrupted: Ctrl-C is no failure of a step.
func TestPlanInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	s := &planSite{ask: func(string) (bool, error) { stop(); return true, nil }}
	err := s.plan("unplanned").Run(ctx)
	if !errors.Is(err, context.Canceled) || len(s.saved.Failed) != 0 || !s.saved.Ended.IsZero() {
		t.Fatalf("%v, %+v", err, s.saved)
	}
	if e := fault.Find(err); e == nil || !fault.Cancelled(err) || !strings.HasPrefix(e.Next, "sitrep failover continue --plan ") {
		t.Errorf("what goes on with it: %v", e)
	}
}

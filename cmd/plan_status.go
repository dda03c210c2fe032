package cmd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sitrep/failover"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// planStatus is a recovery plan that is under way, in the status.
type planStatus struct {
	Plan    string    `json:"plan"`
	Type    string    `json:"type"`
	State   string    `json:"state"` // InProgress, Waiting, Failed, Interrupted, Cancelled: of the job that ran it last
	Started time.Time `json:"started"`
	Done    []string  `json:"done_steps,omitempty"`
	// Waiting is the manual action that it waits for, and Action what a person has to do.
	Waiting string                 `json:"waiting,omitempty"`
	Action  string                 `json:"action,omitempty"`
	Failed  []failover.PlanFailure `json:"failed,omitempty"`
	Job     string                 `json:"job,omitempty"`
	Next    string                 `json:"next_action"`
}

// plansUnderWay are the plans of any of the VMs that are not at their end.
func (w *world) plansUnderWay(ctx context.Context, vms []*site.VM) (out []planStatus) {
	for _, plan := range w.site.RecoveryPlans {
		if !slices.ContainsFunc(plan.Groups, func(g site.Group) bool {
			return slices.ContainsFunc(g.VMs, func(vm *site.VM) bool { return slices.Contains(vms, vm) })
		}) {
			continue
		}
		rec, ok, err := w.planRecord(plan.Name)
		if err != nil {
			w.log.Warn("how far a recovery plan is cannot be told", "plan", plan.Name, "error", err)
		}
		if err == nil && ok && rec.Begun() && rec.Ended.IsZero() && w.underWay(ctx, plan, rec) {
			out = append(out, w.planStatusOf(plan, rec))
		}
	}
	return out
}

func (w *world) planStatusOf(plan *site.Plan, rec failover.PlanRecord) planStatus {
	s := planStatus{Plan: plan.Name, Type: rec.Type, State: string(state.Interrupted), Started: rec.Started, Done: rec.Done,
		Waiting: rec.Waiting, Failed: rec.Failed, Job: rec.Job, Next: "sitrep failover continue --plan " + plan.Name}
	if j, err := w.memory.Job(rec.Job); rec.Job != "" && err == nil {
		s.State = string(j.State)
	}
	switch {
	case s.State == string(state.InProgress):
		s.Next = "sitrep jobs show " + rec.Job
	case rec.Waiting != "":
		s.State, s.Action, s.Next = string(state.Waiting), actionText(plan, rec.Waiting), s.Next+" --done '"+rec.Waiting+"'"
	}
	return s
}

// nextOfPlans has VMs that are failed over, or being, by a plan that is under way go on with the plan: each by itself would leave its order.
func (w *world) nextOfPlans(list []*statusObject, plans []planStatus) {
	for _, p := range plans {
		plan, err := w.site.Plan(p.Plan)
		if err != nil {
			continue
		}
		for _, o := range list {
			own := strings.HasPrefix(o.Next, "sitrep failover ") || strings.HasPrefix(o.Next, "sitrep failback ")
			if own && slices.ContainsFunc(plan.Groups, func(g site.Group) bool {
				return slices.ContainsFunc(g.VMs, func(vm *site.VM) bool { return vm.Name == o.VM })
			}) {
				o.Next = p.Next
			}
		}
	}
}

// actionText is what a manual action says.
func actionText(plan *site.Plan, id string) string {
	for i, g := range plan.Groups {
		for when, list := range map[string][]site.Action{"pre": g.Pre, "post": g.Post} {
			for n, a := range list {
				if failover.ActionID(i+1, when, n+1) == id {
					return a.Manual
				}
			}
		}
	}
	return ""
}

// planText is the plans that are under way, for people.
func (w *world) planText(plans []planStatus) string {
	var b strings.Builder
	for _, p := range plans {
		how := "is not complete (" + p.State + ")"
		switch {
		case p.State == string(state.InProgress):
			how = "runs"
		case p.Waiting != "":
			how = "waits for " + p.Waiting + ": " + p.Action
		case len(p.Failed) > 0:
			how = "is not complete: " + p.Failed[0].Step + ": " + p.Failed[0].Error
		}
		fmt.Fprintf(&b, "plan %s (%s, since %s) %s\n  next: %s\n", p.Plan, p.Type, stamp(p.Started), how, w.commands(p.Next))
	}
	return b.String()
}

// planTimes fills in how long the plan took and what it lost, when all of its VMs are up, and keeps it as a step of the job.
func (w *world) planTimes(ctx context.Context, run *failover.PlanRun, members []*member, o *planObject) {
	var last time.Time
	var lost time.Duration
	for _, m := range members {
		st, err := w.present(context.WithoutCancel(ctx), m.vm)
		if err != nil {
			return
		}
		up, rpo := m.upSince(st)
		if up.IsZero() {
			return
		}
		if up.After(last) {
			last = up
		}
		lost = max(lost, rpo)
	}
	rto, rpo := max(0, last.Sub(run.Record.Started)).Seconds(), lost.Seconds()
	o.RTO, o.RPO = &rto, &rpo
	err := run.Step("RTO and RPO of the plan", func() (int64, string, error) { return 0, strings.TrimPrefix(o.times(), "; "), nil })
	if err != nil {
		w.log.Warn("the times of the plan cannot be kept", "error", err)
	}
}

// upSince is when this VM was up at the other side, zero when it is not, and what it lost.
func (m *member) upSince(st replica.State) (time.Time, time.Duration) {
	rec := st.Failover
	if m.kind == failover.Test {
		rec = st.Test
	}
	switch {
	case rec == nil, rec.ByHand && m.kind != "", m.kind == "" && rec.Failback != nil && rec.Failback.ByHand: // when it is up is not known
		return time.Time{}, 0
	case m.kind != "":
		return rec.Finished, failover.RPO(*rec)
	case rec.Failback == nil:
		return time.Time{}, 0
	}
	return rec.Failback.Finished, 0
}

// times words RTO and RPO.
func (o *planObject) times() string {
	switch {
	case o.RTO == nil:
		return ""
	case o.Type == failbackType:
		return "; RTO " + seconds(*o.RTO)
	}
	return "; RTO " + seconds(*o.RTO) + ", RPO " + seconds(*o.RPO)
}

// settlePlans ends the waiting of jobs whose plans were given up, or accepted as they are, by what was done to their VMs.
func (w *world) settlePlans(ctx context.Context) {
	for _, plan := range w.site.RecoveryPlans {
		rec, ok, err := w.planRecord(plan.Name)
		if err != nil || !ok || rec.Job == "" || rec.Waiting == "" || w.underWay(ctx, plan, rec) {
			continue
		}
		if err := w.memory.Settle(rec.Job, state.Cancelled, "it is not waited for any more: the plan is not under way"); err != nil {
			w.log.Warn("the job that waited cannot be kept in order", "job", rec.Job, "error", err)
		}
	}
}

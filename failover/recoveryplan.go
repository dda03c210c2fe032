package failover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/fault"
)

// RecoveryPlan is an order in which VMs come up: groups one after the other, the VMs of a group at the same time.
type RecoveryPlan struct {
	Name   string
	Groups []Group
}

// Group is VMs with what is done before and after them.
type Group struct {
	Pre, Post []Action
	VMs       []string
}

// Action is a script, or something that a person has to do.
type Action struct {
	Script  string        // path of a program; "" = it is manual
	Timeout time.Duration // of the script
	Manual  string
	On      On
}

// On says in which direction of a plan an action is done; "" is both.
type On string

// The directions. OnFailover is test failovers too, OnReal is planned and unplanned ones only.
const (
	OnFailover On = "failover"
	OnReal     On = "real"
	OnFailback On = "failback"
)

// applies says whether an action is done by a plan of a type that brings VMs home, or does not.
func (o On) applies(homeward, test bool) bool {
	switch o {
	case OnFailover:
		return !homeward
	case OnReal:
		return !homeward && !test
	case OnFailback:
		return homeward
	}
	return true
}

func (a Action) text() string {
	if a.Script != "" {
		return a.Script
	}
	return a.Manual
}

// Member is one VM of a plan that runs. Each of its methods goes on where an earlier run of it was interrupted. Methods of
// different members are called at the same time.
type Member interface {
	// Check says what stands in the way of the VM's part, before anything is begun. It changes nothing.
	Check(ctx context.Context) error
	// Shutdown stops the VM where it runs now.
	Shutdown(ctx context.Context) error
	// Prepare does everything up to, but not including, the VM's start at the other side.
	Prepare(ctx context.Context) error
	// Boot starts the VM and waits until it is up.
	Boot(ctx context.Context) error
	// Facts tell scripts of the VM, as JSON.
	Facts() any
}

// PlanContext is what an action is told of the plan.
type PlanContext struct {
	Plan      string         `json:"plan"`
	Type      string         `json:"type"`      // test, planned, unplanned, failback
	Direction string         `json:"direction"` // primary-to-recovery (also of a test), recovery-to-primary
	Group     int            `json:"group"`     // from 1
	Step      string         `json:"step"`      // pre or post
	VMs       map[string]any `json:"vms"`       // by name
}

// PlanRecord is how far a plan is: durable between runs, so that a plan that waits, failed or was killed goes on.
type PlanRecord struct {
	Plan    string    `json:"plan"`
	Type    string    `json:"type"`
	Point   string    `json:"point,omitempty"`
	Network string    `json:"network,omitempty"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	// Job is the ID of the job that ran, or runs, it last.
	Job string `json:"job,omitempty"`
	// Options of the command that continue repeats.
	NoShutdown    bool   `json:"no_shutdown,omitempty"`
	KeepAddresses bool   `json:"keep_addresses,omitempty"`
	Mode          string `json:"mode,omitempty"`
	// AssumeDone says that the manual actions of a test are taken to be done: nobody is asked, and nobody is waited for.
	AssumeDone bool `json:"assume_done,omitempty"`
	// Done names the steps that are done, in order, and DoneText is what each of them was: a step of the same name that is about
	// something else, because the plan was edited meanwhile, is not done. Records of before it was kept have none.
	Done     []string          `json:"done,omitempty"`
	DoneText map[string]string `json:"done_text,omitempty"`
	// Waiting is the manual action that the plan waits for.
	Waiting string `json:"waiting,omitempty"`
	// Failed is what went wrong in a plan that went on.
	Failed []PlanFailure `json:"failed,omitempty"`
}

// PlanFailure is a step of a plan that failed.
type PlanFailure struct {
	Step  string     `json:"step"`
	Code  fault.Code `json:"code"`
	Error string     `json:"error"`
}

// PlanRun is a plan that is executed.
type PlanRun struct {
	Plan      RecoveryPlan
	Record    PlanRecord
	Direction string
	// Homeward says that it is a failback.
	Homeward bool
	Members  map[string]Member
	// GoesOn says that a failure does not stop the plan (unplanned): it is reported at the end.
	GoesOn bool
	// StopsSources says that the VMs are shut down first, the last group first (not for a test).
	StopsSources bool
	// Save keeps the record. It is durable on return.
	Save func(PlanRecord) error
	// RunScript runs a script action.
	RunScript func(ctx context.Context, a Action, c PlanContext) error
	// Ask asks a person whether a manual action is done; false makes the plan wait. nil: there is nobody to be asked.
	Ask func(ctx context.Context, text string) (bool, error)
	// Step records a step of the job.
	Step func(name string, f func() (int64, string, error)) error
	Now  func() time.Time

	errs []error
}

// Begun says that the plan has done something to VMs: more than it has looked.
func (r PlanRecord) Begun() bool {
	return slices.ContainsFunc(r.Done, func(step string) bool { return step != stepCheck })
}

// stepCheck is the first step of every plan.
const stepCheck = "prerequisites check"

// Outline is the steps of a plan for people, in order, without those that are done.
func (p *PlanRun) Outline() []string {
	var out []string
	for _, s := range p.steps() {
		if !p.done(s) {
			out = append(out, s.name+": "+s.text)
		}
	}
	return out
}

// done says that the step was done, as it is in the plan now.
func (p *PlanRun) done(s planStep) bool {
	was, known := p.Record.DoneText[s.name]
	return slices.Contains(p.Record.Done, s.name) && (!known || was == s.text)
}

// isDone notes that the step is done, in the record that is saved next.
func (p *PlanRun) isDone(s planStep) {
	p.Record.Waiting = ""
	if !slices.Contains(p.Record.Done, s.name) {
		p.Record.Done = append(slices.Clone(p.Record.Done), s.name)
	}
	p.Record.DoneText = maps.Clone(p.Record.DoneText)
	if p.Record.DoneText == nil {
		p.Record.DoneText = map[string]string{}
	}
	p.Record.DoneText[s.name] = s.text
}

func (p *PlanRun) isTest() bool { return p.Record.Type == string(Test) }

// assumes says that manual actions are taken to be done. That is for tests: nobody relies on them.
func (p *PlanRun) assumes() bool { return p.Record.AssumeDone && p.isTest() }

// planStep is one step of a plan. A step of VMs is done for each at the same time.
type planStep struct {
	name, text string
	do         func(ctx context.Context) error
	manual     bool
}

// steps is the whole plan as data.
func (p *PlanRun) steps() []planStep {
	var out []planStep
	var all []string
	for _, g := range p.Plan.Groups {
		all = append(all, g.VMs...)
	}
	out = append(out, planStep{stepCheck, strings.Join(all, ", "), p.forEach(all, Member.Check), false})
	if p.StopsSources {
		for i := len(p.Plan.Groups) - 1; i >= 0; i-- {
			g := p.Plan.Groups[i]
			out = append(out, planStep{fmt.Sprintf("shutdown of group %d", i+1), strings.Join(g.VMs, ", "), p.forEach(g.VMs, Member.Shutdown), false})
		}
	}
	out = append(out, planStep{"failover of all VMs", strings.Join(all, ", "), p.forEach(all, Member.Prepare), false})
	for i, g := range p.Plan.Groups {
		out = append(out, p.actions(i+1, "pre", g.Pre)...)
		out = append(out, planStep{fmt.Sprintf("group %d: start", i+1), strings.Join(g.VMs, ", "), p.forEach(g.VMs, Member.Boot), false})
		out = append(out, p.actions(i+1, "post", g.Post)...)
	}
	return out
}

func (p *PlanRun) actions(group int, when string, list []Action) []planStep {
	var out []planStep
	for i, a := range list {
		if !a.On.applies(p.Homeward, p.isTest()) {
			continue // the others keep their numbers, which are those of the plan as it is written
		}
		out = append(out, planStep{ActionID(group, when, i+1), a.text(), p.action(group, when, i+1, a), a.Script == ""})
	}
	return out
}

// ActionID names an action of a plan: the n-th (from 1) before ("pre") or after ("post") a group (from 1).
func ActionID(group int, when string, n int) string {
	return fmt.Sprintf("group %d: %s-step %d", group, when, n)
}

// forEach does f for members at the same time; all are tried.
func (p *PlanRun) forEach(names []string, f func(Member, context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		errs := make([]error, len(names))
		var g errgroup.Group
		for i, name := range names {
			g.Go(func() error {
				errs[i] = fault.In(f(p.Members[name], ctx), name, "")
				return nil
			})
		}
		_ = g.Wait() // the errors are in errs
		return several(errs...)
	}
}

// waits is the error of a plan that waits for a person.
type waits struct{ id, text string }

func (w *waits) Error() string { return "waits for " + w.id + ": " + w.text }

func (p *PlanRun) action(group int, when string, n int, a Action) func(context.Context) error {
	return func(ctx context.Context) error {
		if a.Script != "" {
			return p.RunScript(ctx, a, p.context(group, when))
		}
		id := ActionID(group, when, n)
		if p.assumes() {
			return nil
		}
		if p.Ask != nil {
			done, err := p.Ask(ctx, id+": "+a.Manual)
			if done || err != nil {
				return err
			}
		}
		return &waits{id, a.Manual}
	}
}

func (p *PlanRun) context(group int, when string) PlanContext {
	c := PlanContext{Plan: p.Plan.Name, Type: p.Record.Type, Direction: p.Direction, Group: group, Step: when, VMs: map[string]any{}}
	for name, m := range p.Members {
		c.VMs[name] = m.Facts()
	}
	return c
}

// Confirm says that a person has done the action that the plan waits for: by its name or by its text.
func (p *PlanRun) Confirm(action string) error {
	known := false
	for _, s := range p.steps() {
		if s.name != action && s.text != action {
			continue
		}
		known = true
		if p.Record.Waiting == s.name { // another action may have the same text
			p.isDone(s)
			return p.Save(p.Record)
		}
	}
	switch {
	case !known:
		return fault.New(fault.UsageError, "plan %s has no action %q", p.Plan.Name, action)
	case p.Record.Waiting == "":
		return fault.New(fault.UsageError, "plan %s waits for no action", p.Plan.Name)
	}
	return fault.New(fault.UsageError, "plan %s does not wait for %q but for %q", p.Plan.Name, action, p.Record.Waiting)
}

// Run does what is left of the plan. The error joins all that went wrong, each on its own: those of a plan that went on too when
// it waits for a person in the end.
func (p *PlanRun) Run(ctx context.Context) error {
	p.Record.Failed = nil
	for _, s := range p.steps() {
		if p.done(s) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return several(append(p.errs, p.interrupted(s, err))...)
		}
		err := p.Step(s.name, func() (int64, string, error) { return 0, p.noteOf(s), p.settle(s, s.do(ctx)) })
		if err != nil {
			return several(append(p.errs, Problems(err)...)...)
		}
	}
	if len(p.Record.Failed) == 0 {
		p.Record.Ended = p.Now().UTC()
	}
	return several(append(p.errs, p.Save(p.Record))...)
}

// noteOf is what the job says of a step.
func (p *PlanRun) noteOf(s planStep) string {
	if s.manual && p.assumes() {
		return "assumed done: " + s.text
	}
	return s.text
}

// settle records what became of a step. The error that it returns stops the plan.
func (p *PlanRun) settle(s planStep, err error) error {
	var w *waits
	switch {
	case err == nil:
		p.isDone(s)
		return p.Save(p.Record)
	case errors.As(err, &w):
		p.Record.Waiting = w.id
		return several(p.Save(p.Record), fault.New(fault.ManualAction, "plan %s waits: %s: %s", p.Plan.Name, w.id, w.text).
			Then(fmt.Sprintf("sitrep failover continue --plan %s --done '%s'", p.Plan.Name, w.id)))
	case fault.Cancelled(err):
		return p.interrupted(s, err)
	}
	var errs []error
	for _, err := range Problems(err) {
		if e := fault.Find(err); e != nil && e.Next == "" {
			e.Next = "sitrep failover continue --plan " + p.Plan.Name
		}
		p.Record.Failed = append(p.Record.Failed, PlanFailure{Step: s.name, Code: fault.FromOS(err).Code, Error: err.Error()})
		errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
	}
	if serr := p.Save(p.Record); serr != nil {
		return several(append(errs, serr)...)
	}
	if !p.GoesOn {
		return several(errs...)
	}
	p.errs = append(p.errs, errs...)
	return nil
}

// interrupted is a cancellation, of a plan: to repeat what was under way of one VM would not go on with the others.
func (p *PlanRun) interrupted(s planStep, err error) error {
	return fault.Wrap(fault.Interrupted, err, "plan %s: %s", p.Plan.Name, s.name).Then("sitrep failover continue --plan " + p.Plan.Name)
}

// problems is an error that is several, each with a cause and a way out of its own. An error that only wraps several, and has words of
// its own for them, is one.
type problems []error

func (p problems) Error() string   { return errors.Join(p...).Error() }
func (p problems) Unwrap() []error { return p }

// Problems is the errors of a recovery plan, each on its own; any other error is itself, alone.
func Problems(err error) []error {
	list, ok := err.(problems)
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range list {
		out = append(out, Problems(e)...)
	}
	return out
}

// several is the errors that are not nil as one error; nil when there is none.
func several(errs ...error) error {
	var list problems
	for _, err := range errs {
		if err != nil {
			list = append(list, err)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list
}

func plural(n int, noun string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

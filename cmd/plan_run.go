package cmd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sitrep/failover"
	"sitrep/failover/network"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hook"
	"sitrep/internal/host"
	"sitrep/internal/plain"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// planObject is what a recovery plan says in --json.
type planObject struct {
	failover.PlanRecord
	Outline []string `json:"outline,omitempty"` // what is left, of a dry run
	// RTO is the time from the plan's begin until the last VM was up, waiting for people included, and RPO the largest of its VMs;
	// seconds, when all of them are up. What a failback loses is nothing.
	RTO *float64 `json:"rto_seconds,omitempty"`
	RPO *float64 `json:"rpo_seconds,omitempty"`
}

// failback is the type of a plan that brings VMs home; the others are the kinds of failover.
const failbackType = "failback"

// member is a VM of a plan.
type member struct {
	w    *world
	vm   *site.VM
	job  *failover.Job
	obj  *failoverObject
	kind failover.Kind // "" = failback
	opts failoverOptions
	mode failover.FailbackOptions
}

var _ failover.Member = (*member)(nil)

// part does a part of the VM's failover, as a job of its own.
func (m *member) part(ctx context.Context, name string, until failover.StepID) error {
	return m.w.inFailover(ctx, m.vm, m.kind, func(ctx context.Context) error {
		return m.w.failoverSteps(ctx, m.vm, m.job, name, m.obj, func() error {
			if m.kind == "" {
				return m.job.Failback(ctx, m.mode, until)
			}
			return m.job.Run(ctx, m.kind, m.opts.Options, until)
		})
	})
}

// Check shows what will be made. What stands in the way of an unplanned failover is said when its turn comes: the others go on.
func (m *member) Check(ctx context.Context) error {
	m.w.letGoLeft(ctx, m.vm)
	if m.over(ctx) {
		return nil
	}
	if m.kind == "" {
		_, err := m.job.PlanFailback(ctx, m.mode)
		return err
	}
	p, err := m.job.Plan(ctx, m.kind, m.opts.Options)
	if err == nil {
		err = m.job.Foresee(ctx, m.kind, p)
	}
	switch {
	case err == nil:
		m.w.showPlan(m.vm, p, m.obj)
	case m.kind != failover.Unplanned:
		return err
	}
	return nil
}

func (m *member) Shutdown(ctx context.Context) error {
	if m.over(ctx) {
		return nil
	}
	return m.part(ctx, "Shut down the source", failover.StepStopSource)
}

func (m *member) Prepare(ctx context.Context) error {
	if m.over(ctx) {
		return nil
	}
	if m.kind == "" {
		return m.part(ctx, "Data synchronization", failover.StepSyncStopped)
	}
	until := failover.StepCreate
	if m.job.Recovery.Host == nil {
		until = failover.StepDisks
	}
	return m.part(ctx, "Failover ("+string(m.kind)+")", until)
}

func (m *member) Boot(ctx context.Context) error {
	if m.over(ctx) {
		return nil
	}
	if err := m.part(ctx, "Start at the other site", ""); err != nil {
		return err
	}
	if m.kind == "" {
		m.w.sayHome(m.vm, m.obj)
		return nil
	}
	m.w.sayFailedOver(m.vm, m.kind, m.obj)
	return nil
}

// claims are the addresses that the VM will have at the recovery site. That one is taken is found out here, before anything is
// started; of an unplanned failover it is said when the VM's turn comes.
func (m *member) claims(ctx context.Context) ([]network.Taken, error) {
	if m.kind == "" || m.over(ctx) {
		return nil, nil
	}
	nics, _, err := m.job.NICs(ctx, m.kind)
	if err != nil && m.kind == failover.Unplanned && fault.Is(err, fault.AddressTaken) {
		return nil, nil
	}
	return network.Claims(m.vm.Name, nics), err
}

// over says that this VM's part of the plan was done before: a plan skips a VM that is there already.
func (m *member) over(ctx context.Context) bool {
	st, err := m.w.present(ctx, m.vm)
	if err != nil {
		return false
	}
	switch m.kind {
	case "":
		return st.Failover != nil && st.Failover.Failback != nil && !st.Failover.Failback.Finished.IsZero()
	case failover.Test:
		return st.Test != nil && !st.Test.Finished.IsZero()
	}
	return st.Failover != nil && !st.Failover.Finished.IsZero()
}

// Facts are what scripts learn of the VM.
func (m *member) Facts() any {
	return struct {
		State string `json:"state"`
		*failoverObject
	}{m.obj.State, m.obj}
}

// failoverPlan fails a recovery plan over.
func (w *world) failoverPlan(ctx context.Context, c *cli.Context, k failover.Kind, o failoverOptions) error {
	plan, err := w.onlyPlan(c)
	if err != nil {
		return err
	}
	if o.Point != "" && !isPointName(o.Point) {
		return fault.New(fault.UsageError, "a plan takes --point latest, latest-processed or latest-app-consistent: an ID is of one VM")
	}
	rec := failover.PlanRecord{Plan: plan.Name, Type: string(k), Point: o.Point, Network: o.network, NoShutdown: o.NoShutdown,
		AssumeDone: c.Bool("assume-done"), KeepAddresses: o.keepAddresses, Started: w.now().UTC()}
	return w.startPlan(ctx, plan, rec)
}

func isPointName(s string) bool {
	return s == failover.Latest || s == failover.LatestProcessed || s == failover.LatestAppConsistent
}

func (w *world) onlyPlan(c *cli.Context) (*site.Plan, error) {
	if c.NArg() > 0 || c.Bool("all") || c.IsSet("cloud") {
		return nil, fault.New(fault.UsageError, "VM names, --all, --cloud and --plan exclude each other")
	}
	return w.site.Plan(c.String("plan"))
}

// startPlan runs a plan, or goes on with the one of the same type that was begun.
func (w *world) startPlan(ctx context.Context, plan *site.Plan, rec failover.PlanRecord) error {
	return w.runPlan(ctx, plan, func() (failover.PlanRecord, error) { return w.begunOr(ctx, plan, rec) }, "")
}

// begunOr is the record of a plan that is under way, or rec, with which it begins.
func (w *world) begunOr(ctx context.Context, plan *site.Plan, rec failover.PlanRecord) (failover.PlanRecord, error) {
	old, ok, err := w.planRecord(plan.Name)
	if err != nil {
		return rec, err
	}
	if ok && old.Ended.IsZero() && w.underWay(ctx, plan, old) {
		if old.Type != rec.Type && !(rec.Type == string(failover.Unplanned) && old.Type == string(failover.Planned)) {
			return rec, fault.New(fault.WrongState, "plan %s is under way as %s since %s: \"%s\" goes on with it, and \"%s\" ends it",
				plan.Name, old.Type, stamp(old.Started), w.commands("sitrep failover continue --plan "+plan.Name), w.commands("sitrep failover "+ends(old.Type)+" --plan "+plan.Name))
		}
		if old.Type == rec.Type {
			old.AssumeDone = old.AssumeDone || rec.AssumeDone
			rec = old
		}
	}
	return rec, nil
}

// ends is the command that ends a plan of a type without completing it.
func ends(typ string) string {
	if typ == string(failover.Test) {
		return "cleanup"
	}
	return "undo"
}

// underWay says that a plan that has not come to its end still has something to go on with. Its record is a memory: when what
// it did to its VMs was cleaned up, undone or committed since, by whatever command, it is over. A VM whose ledger cannot be
// read may be what it goes on with.
func (w *world) underWay(ctx context.Context, plan *site.Plan, rec failover.PlanRecord) bool {
	if !rec.Begun() {
		return true
	}
	for _, g := range plan.Groups {
		for _, vm := range g.VMs {
			st, err := w.present(ctx, vm)
			if err != nil || partOf(st, rec.Type) {
				return true
			}
		}
	}
	return false
}

// partOf says that a VM is in the middle of what a plan of the type does, or has it behind it and is not committed.
func partOf(st replica.State, typ string) bool {
	switch typ {
	case string(failover.Test):
		return st.Test != nil
	case failbackType:
		return st.Phase == replica.FailbackStarted || st.Phase == replica.FailedBack
	}
	return st.Failover != nil && st.Failover.Failback == nil && st.Phase != replica.Committed
}

func (p *program) continueCommand() *cli.Command {
	return &cli.Command{
		Name: "continue", Usage: "go on with a recovery plan after a manual action, or after what failed was mended",
		Flags: []cli.Flag{planFlag(), &cli.StringFlag{Name: "done", Usage: "the manual `ACTION` is done: its name or its text"}, assumeDoneFlag(), waitFlag()},
		Action: p.action("failover continue", func(ctx context.Context, c *cli.Context) error {
			w, err := p.open()
			if err != nil {
				return err
			}
			if !c.IsSet("plan") || c.NArg() > 0 {
				return fault.New(fault.UsageError, "which plan? sitrep failover continue --plan NAME")
			}
			plan, err := w.site.Plan(c.String("plan"))
			if err != nil {
				return err
			}
			return w.runPlan(ctx, plan, func() (failover.PlanRecord, error) { return w.underWayAs(ctx, plan, c.Bool("assume-done")) }, c.String("done"))
		}),
	}
}

// underWayAs is the record of a plan that is under way.
func (w *world) underWayAs(ctx context.Context, plan *site.Plan, assumeDone bool) (failover.PlanRecord, error) {
	rec, ok, err := w.planRecord(plan.Name)
	switch {
	case err != nil:
		return rec, err
	case !ok || !rec.Ended.IsZero() || !w.underWay(ctx, plan, rec):
		return rec, fault.New(fault.WrongState, "plan %s is not under way", plan.Name).Then("sitrep status")
	case assumeDone && rec.Type != string(failover.Test):
		return rec, fault.New(fault.UsageError, "--assume-done is for tests: plan %s is under way as %s", plan.Name, rec.Type)
	}
	rec.AssumeDone = rec.AssumeDone || assumeDone
	return rec, nil
}

// runPlan does what is left of a plan, by the record that pick finds: under the lock of the plan, so that no other run changes it
// meanwhile. A dry run changes nothing and takes none.
func (w *world) runPlan(ctx context.Context, plan *site.Plan, pick func() (failover.PlanRecord, error), done string) (err error) {
	w.together()
	if !w.opts.dryRun {
		lock, err := w.waitPlan(ctx, plan.Name)
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	rec, err := pick()
	if err != nil {
		return err
	}
	run, members, err := w.planRun(ctx, plan, rec)
	if err != nil {
		return err
	}
	if err := w.fitTogether(ctx, members); err != nil {
		return err
	}
	o := &planObject{PlanRecord: rec}
	w.res.Plan = o
	if w.opts.dryRun {
		o.Outline = run.Outline()
		for _, line := range o.Outline {
			w.say("plan %s: %s", plan.Name, line)
		}
		return w.planMembers(ctx, members)
	}
	job, err := w.memory.Begin(w.res.Command, "Recovery plan "+plan.Name+" ("+rec.Type+")", "")
	if err != nil {
		return err
	}
	w.res.Job, run.Step = job.ID(), job.Step
	if err := w.memory.Settle(rec.Job, state.Succeeded, "job "+job.ID()+" went on"); err != nil {
		w.log.Warn("the job that waited cannot be kept in order", "job", rec.Job, "error", err)
	}
	run.Record.Job = job.ID()
	if done != "" {
		err = run.Confirm(done)
	}
	if err == nil {
		err = run.Run(ctx)
	}
	w.planTimes(ctx, run, members, o)
	err = job.End(err)
	o.PlanRecord = run.Record
	for _, m := range members {
		w.res.VMs = append(w.res.VMs, m.obj)
	}
	w.sayPlan(plan, o, err)
	return w.reported(err)
}

// fitTogether refuses VMs of a plan that their recovery host, or its volume, cannot take together: each of them could be alone. Of an unplanned
// failover it is a warning: as many VMs as fit are better than none.
func (w *world) fitTogether(ctx context.Context, members []*member) error {
	var vms []host.Definition
	var left []failover.Together
	for _, m := range members {
		if m.kind == "" {
			return nil
		}
		vms = append(vms, machineOf(m.vm))
		if m.over(ctx) {
			continue
		}
		if p, err := m.job.Plan(ctx, m.kind, m.opts.Options); err == nil { // what stands in the way of one of them is told by its check
			left = append(left, failover.Together{Job: m.job, Plan: p})
		}
	}
	if len(members) == 0 {
		return nil
	}
	err := errors.Join(failover.Memory(members[0].job.Recovery.Host, vms), failover.Room(ctx, left))
	if err != nil && members[0].kind == failover.Unplanned {
		w.log.Warn("the VMs of the plan do not fit together", "error", err)
		return nil
	}
	return err
}

// reported prints each of the errors that were joined, so that each has its cause and its advice and the gravest makes the
// exit code.
func (w *world) reported(err error) error {
	list := failover.Problems(err)
	if len(list) < 2 {
		return err
	}
	f := &failures{errs: list}
	for _, err := range f.errs {
		w.printError(w.stderr, err, "")
	}
	return f
}

func (w *world) sayPlan(plan *site.Plan, o *planObject, err error) {
	rec := o.PlanRecord
	switch {
	case rec.Waiting != "": // the error says so
	case err != nil:
		w.say("plan %s: not complete; when what failed is mended: %s", plan.Name, w.commands("sitrep failover continue --plan "+plan.Name))
	default:
		w.say("plan %s: %s is complete, in %s%s", plan.Name, rec.Type, span(rec.Ended.Sub(rec.Started)), o.times())
	}
}

// planMembers makes the plans of the VMs without doing anything.
func (w *world) planMembers(ctx context.Context, members []*member) error {
	var errs []error
	for _, m := range members {
		var err error
		if m.kind == "" {
			err = w.planFailback(ctx, m.vm, m.job, m.mode, m.obj)
		} else {
			var p failover.Plan
			if p, err = m.job.Plan(ctx, m.kind, m.opts.Options); err == nil {
				w.showPlan(m.vm, p, m.obj)
			}
			if err == nil && !m.over(ctx) {
				err = errors.Join(m.job.Foresee(ctx, m.kind, p), w.canMakeDisks(p))
			}
		}
		errs = append(errs, fault.In(err, m.vm.Name, ""))
		w.res.VMs = append(w.res.VMs, m.obj)
	}
	return errors.Join(errs...)
}

// planRun wires a plan of the site file to the engine.
func (w *world) planRun(ctx context.Context, plan *site.Plan, rec failover.PlanRecord) (*failover.PlanRun, []*member, error) {
	kind := failover.Kind(rec.Type)
	direction := "primary-to-recovery"
	if rec.Type == failbackType {
		kind, direction = "", "recovery-to-primary"
	}
	run := &failover.PlanRun{
		Plan: failover.RecoveryPlan{Name: plan.Name}, Record: rec, Direction: direction, Homeward: kind == "", Members: map[string]failover.Member{},
		GoesOn: kind == failover.Unplanned, StopsSources: kind == failover.Planned || kind == failover.Unplanned && !rec.NoShutdown,
		Save: func(r failover.PlanRecord) error { return w.savePlan(r) }, Now: w.now, RunScript: w.planScript, Ask: w.asker(),
	}
	var members []*member
	var claimed []network.Taken // no two VMs of the plan get one address
	for _, g := range plan.Groups {
		group := failover.Group{Pre: actionsOf(g.Pre), Post: actionsOf(g.Post)}
		for _, vm := range g.VMs {
			m := &member{w: w, vm: vm, kind: kind, obj: &failoverObject{vmHead: vmHead{VM: vm.Name}, Kind: rec.Type},
				opts: failoverOptions{Options: failover.Options{Point: rec.Point, NoShutdown: rec.NoShutdown},
					network: rec.Network, keepAddresses: rec.KeepAddresses, claimed: claimed},
				mode: failover.FailbackOptions{Mode: failover.Mode(rec.Mode)}}
			var err error
			if m.job, err = w.failoverJob(ctx, vm, m.opts); err != nil {
				return nil, nil, fault.In(err, vm.Name, "")
			}
			if kind == failover.Test {
				m.job.Turn = w.turnBeside(vm, m.obj)
			}
			if _, err := w.stands(ctx, vm, m.obj); err != nil { // an earlier run may have made it
				w.log.Warn("how the VM stands is not known", "vm", vm.Name, "error", err)
			}
			claims, err := m.claims(ctx)
			if err != nil {
				return nil, nil, fault.In(err, vm.Name, "")
			}
			claimed = slices.Concat(claimed, claims)
			members, run.Members[vm.Name] = append(members, m), m
			group.VMs = append(group.VMs, vm.Name)
		}
		run.Plan.Groups = append(run.Plan.Groups, group)
	}
	return run, members, nil
}

func actionsOf(list []site.Action) []failover.Action {
	var out []failover.Action
	for _, a := range list {
		out = append(out, failover.Action{Script: a.Script, Timeout: a.Timeout, Manual: a.Manual, On: failover.On(a.On)})
	}
	return out
}

// planScript runs an action's script.
func (w *world) planScript(ctx context.Context, a failover.Action, c failover.PlanContext) error {
	var names []string
	for name := range c.VMs {
		names = append(names, name)
	}
	_, err := w.programs().Run(ctx, hook.Program{
		Path: a.Script, Timeout: a.Timeout, Stdin: c,
		Env: map[string]string{
			"SITREP_PLAN": c.Plan, "SITREP_TYPE": c.Type, "SITREP_DIRECTION": c.Direction,
			"SITREP_GROUP": fmt.Sprint(c.Group), "SITREP_STEP": c.Step, "SITREP_VMS": strings.Join(sorted(names), " "),
		},
	})
	return err
}

// asker asks a person at a terminal whether a manual action is done; nil where there is no terminal.
func (w *world) asker() func(context.Context, string) (bool, error) {
	f, ok := w.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || w.opts.json {
		return nil
	}
	in := bufio.NewReader(f)
	return func(ctx context.Context, text string) (bool, error) {
		fmt.Fprintf(w.stderr, "%s\nDone? [y/N] ", plain.Text(text))
		said := make(chan string, 1)
		go func() { // a terminal cannot be waited for and be interrupted
			line, _ := in.ReadString('\n') // an end of the input is no yes
			said <- line
		}()
		select {
		case <-ctx.Done():
			return false, fault.FromOS(ctx.Err())
		case line := <-said:
			answer := strings.ToLower(strings.TrimSpace(line))
			return answer == "y" || answer == "yes", nil
		}
	}
}

// planRecord reads how far a plan is; ok is false when it was never begun.
func (w *world) planRecord(name string) (rec failover.PlanRecord, ok bool, err error) {
	path := w.memory.Path("plans", name+".json")
	data, err := durable.ReadFile(w.fs, path, 16<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, false, nil
	}
	if err != nil {
		return rec, false, fault.FromOS(err)
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, false, fault.Wrap(fault.FailoverFailed, err, "the record of plan %s is damaged; without it the plan begins anew", name).At(path)
	}
	return rec, true, nil
}

func (w *world) savePlan(rec failover.PlanRecord) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	if err := w.fs.MkdirAll(w.memory.Path("plans")); err != nil {
		return fault.FromOS(err)
	}
	if err := durable.WriteFile(w.fs, w.memory.Path("plans", rec.Plan+".json"), append(data, '\n')); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// together makes it safe that several VMs are worked on at the same time: lines do not mix, and no bars are drawn.
func (w *world) together() {
	w.stdout, w.stderr = &lines{w: w.stdout}, w.errs
	if w.opts.progress == "auto" || w.opts.progress == "bar" {
		w.opts.progress = "none"
	}
}

// lines is a writer for several goroutines: each Write is a whole line.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// recorded does f as a job on the VM that says nothing about the health of its replication.
func (w *world) recorded(vm *site.VM, name string, h *vmHead, f func(*state.Job) error) error {
	j, err := w.memory.Begin(w.res.Command, name, vm.Name)
	if err != nil {
		return err
	}
	h.Job = j.ID()
	err = f(j)
	if err != nil {
		err = fault.In(err, vm.Name, "")
	}
	err = j.End(w.toldToYield(vm, err))
	if perr := w.memory.Prune(vm.Policy().JobRetention); perr != nil {
		w.log.Warn("the site's memory cannot be kept in order", "error", perr) // what the job did stands
	}
	return err
}

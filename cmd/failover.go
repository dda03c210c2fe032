package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/failover/network"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// failoverObject is what failover and failback say of a VM. Durations are seconds.
type failoverObject struct {
	vmHead
	Kind       string         `json:"kind,omitempty"`
	Point      string         `json:"point,omitempty"`
	PointTime  *time.Time     `json:"point_time,omitempty"`
	Generation uint64         `json:"generation,omitempty"`
	Owner      *replica.Owner `json:"owner,omitempty"`
	RTO        *float64       `json:"rto_seconds,omitempty"`
	RPO        *float64       `json:"rpo_seconds,omitempty"`
	Downtime   *float64       `json:"downtime_seconds,omitempty"`
	// ByHand says that people start the VM: nothing else has, and when it is up is not known.
	ByHand bool             `json:"not_started,omitempty"`
	Sent   int64            `json:"bytes_sent,omitempty"`
	Made   *host.Definition `json:"recovered_vm,omitempty"`
	Host   string           `json:"recovery_host,omitempty"`
	Steps  []stepObject     `json:"steps,omitempty"` // of a dry run
	Notes  []string         `json:"notes,omitempty"`
	Price  *priceObject     `json:"price,omitempty"`
}

// stepObject is a step of a plan that was only made.
type stepObject struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

func (p *program) failoverCommand() *cli.Command {
	return &cli.Command{
		Name: "failover", Usage: "wake VMs at the recovery site: test, planned, unplanned; then commit or undo",
		Action: p.action("failover", func(_ context.Context, c *cli.Context) error {
			return fault.New(fault.UsageError, "which failover? sitrep failover test|planned|unplanned|cleanup|commit|undo|continue")
		}),
		Subcommands: []*cli.Command{
			p.failoverKind(failover.Test, "make and start a VM from a recovery point beside the replication, in an isolated network",
				&cli.StringFlag{Name: "network", Usage: "connect the NICs to the recovery network `NAME` (default: isolated)"}, pointFlag(), assumeDoneFlag(),
				&cli.BoolFlag{Name: "keep-addresses", Usage: "in a bridged network too: the MACs and addresses of the source, which must not be reached from there then"}),
			p.failoverKind(failover.Planned, "stop the source, bring over its last changes, start the VM at the recovery site"),
			p.failoverKind(failover.Unplanned, "start the VM at the recovery site, whatever became of the source; after it: change the recovery point",
				pointFlag(), &cli.BoolFlag{Name: "no-shutdown", Usage: "do not try to stop the source"}, hostLostFlag()),
			p.cleanupCommand(), p.continueCommand(), p.commitCommand(), p.undoCommand(),
		},
	}
}

func pointFlag() cli.Flag {
	return &cli.StringFlag{Name: "point", Usage: "latest, latest-processed, latest-app-consistent, an `ID` of \"sitrep points\", or a time"}
}

func hostLostFlag() cli.Flag {
	return &cli.BoolFlag{Name: "host-lost", Usage: "the host at which the VM was recovered is gone for good: what is there is left"}
}

func assumeDoneFlag() cli.Flag {
	return &cli.BoolFlag{Name: "assume-done", Usage: "of the test of a plan: take its manual actions to be done, and wait for nobody"}
}

func planFlag() cli.Flag {
	return &cli.StringFlag{Name: "plan", Usage: "the VMs of the recovery plan `NAME`, in its order"}
}

// failoverOptions are what the command line says.
type failoverOptions struct {
	failover.Options
	network       string
	hostLost      bool
	keepAddresses bool
	// claimed are the addresses of other VMs of the same recovery plan.
	claimed []network.Taken
}

func (p *program) failoverKind(k failover.Kind, usage string, flags ...cli.Flag) *cli.Command {
	command := "failover " + string(k)
	return &cli.Command{
		Name: string(k), Usage: usage, ArgsUsage: "VM...",
		Flags: vmFlags(append(flags, planFlag(), nowFlag(), waitFlag())...),
		Action: p.action(command, func(ctx context.Context, c *cli.Context) error {
			w, err := p.open()
			if err != nil {
				return err
			}
			o := failoverOptions{Options: failover.Options{Point: c.String("point"), NoShutdown: c.Bool("no-shutdown")}, network: c.String("network"),
				hostLost: c.Bool("host-lost"), keepAddresses: c.Bool("keep-addresses")}
			if err := w.knowsNetwork(o.network); err != nil {
				return err
			}
			switch {
			case c.Bool("assume-done") && !c.IsSet("plan"):
				return fault.New(fault.UsageError, "--assume-done is about the manual actions of a recovery plan: it needs --plan")
			case c.IsSet("plan") && o.hostLost:
				return fault.New(fault.UsageError, "--host-lost is of one VM: give it with each VM of the plan whose host is lost")
			case c.IsSet("plan"):
				return w.failoverPlan(ctx, c, k, o)
			}
			vms, err := selectVMs(w.site, c, noneIsWrong)
			if err != nil {
				return err
			}
			return w.each(ctx, vms, func(ctx context.Context, vm *site.VM) (vmObject, error) {
				f := &failoverObject{Kind: string(k)}
				return f, w.failover(ctx, vm, k, o, f)
			})
		}),
	}
}

// knowsNetwork refuses a network that the site file does not have.
func (w *world) knowsNetwork(name string) error {
	if name == "" || name == string(host.Isolated) {
		return nil
	}
	var names []string
	for _, n := range w.site.Recovery.Networks {
		if n.Name == name {
			return nil
		}
		names = append(names, n.Name)
	}
	return fault.New(fault.UsageError, "no recovery network is called %q%s; the site has %s", name, site.DidYouMean(name, names),
		cmpOr(strings.Join(names, ", "), "none"))
}

// failover is the whole failover of one VM.
func (w *world) failover(ctx context.Context, vm *site.VM, k failover.Kind, o failoverOptions, f *failoverObject) error {
	return w.inFailover(ctx, vm, k, func(ctx context.Context) error {
		var j *failover.Job
		var steps func(context.Context) error
		err := w.besideTurn(ctx, vm, k, func(begin context.Context) (err error) {
			if j, err = w.failoverJob(begin, vm, o); err == nil {
				steps, err = w.beginFailover(begin, vm, j, k, o, f)
			}
			return err
		})
		if err != nil || steps == nil {
			return err
		}
		if k == failover.Test {
			j.Turn = w.turnBeside(vm, f)
		}
		if err = w.failoverSteps(ctx, vm, j, "Failover ("+string(k)+")", f, func() error { return steps(ctx) }); err == nil {
			w.sayFailedOver(vm, k, f)
		}
		return err
	})
}

// beginFailover shows what a failover will do. steps does what is left of it; nil when nothing is to be done.
func (w *world) beginFailover(ctx context.Context, vm *site.VM, j *failover.Job, k failover.Kind, o failoverOptions, f *failoverObject) (
	steps func(context.Context) error, err error) {
	if done, err := w.already(ctx, vm, f, func(st replica.State) string { return alreadyOver(st, k, o) }); done {
		return nil, err
	}
	if cut, err := w.testCutOff(ctx, vm, k, o); err != nil {
		return nil, err
	} else if cut {
		w.say("%s: the test failover is complete already: the run that made it was ended right after", vm.Name)
		return func(context.Context) error { return nil }, nil
	}
	plan, err := j.Plan(ctx, k, o.Options)
	if err != nil {
		return nil, w.toldOf(ctx, vm, f, err)
	}
	w.showPlan(vm, plan, f)
	if w.opts.dryRun {
		return nil, w.toldOf(ctx, vm, f, errors.Join(j.Foresee(ctx, k, plan), w.canMakeDisks(plan)))
	}
	return func(ctx context.Context) error { return j.Run(ctx, k, o.Options, "") }, nil
}

// alreadyOver says that a failover that is asked for is done, in words. A test is never taken for another one that was not cleaned up.
func alreadyOver(st replica.State, k failover.Kind, o failoverOptions) string {
	switch {
	case k == failover.Planned:
		return failover.Already(st, failover.DoPlanned)
	case k == failover.Unplanned && !o.hostLost:
		return failover.AlreadyAt(st, o.Point)
	}
	return ""
}

// testCutOff says that the test failover that is asked for is complete, and that the run which made it was ended before it could say so:
// that one is run again. Any other test that was not cleaned up is in the way of a new one.
func (w *world) testCutOff(ctx context.Context, vm *site.VM, k failover.Kind, o failoverOptions) (bool, error) {
	if k != failover.Test || w.opts.dryRun {
		return false, nil
	}
	st, err := w.present(ctx, vm)
	if err != nil || st.Test == nil || st.Test.Finished.IsZero() || !isPointName(cmp.Or(o.Point, failover.Latest)) && o.Point != st.Test.Point {
		return false, err
	}
	last, err := w.memory.Jobs(state.Query{VM: vm.Name, Command: "failover test", Limit: 1}) // others run beside it
	return err == nil && len(last) == 1 && last[0].State != state.Succeeded && last[0].State != state.Failed, err
}

// already says that there is nothing to be done, when is finds that in the ledger.
func (w *world) already(ctx context.Context, vm *site.VM, f *failoverObject, is func(replica.State) string) (done bool, err error) {
	st, err := w.present(ctx, vm)
	if err != nil {
		return true, err
	}
	said := is(st)
	if said == "" {
		return false, nil
	}
	f.Notes = append(f.Notes, said)
	if err := w.toldOf(ctx, vm, f, nil); err != nil {
		return true, err
	}
	w.say("%s: %s; the state is %s", vm.Name, said, f.State)
	return true, nil
}

// canMakeDisks refuses a folder for recovered disks that cannot be written to.
func (w *world) canMakeDisks(p failover.Plan) error {
	if w.site.Recovery.Disks == site.DisksInStore || len(p.VMDef.Disks) == 0 {
		return nil
	}
	if err := mayWrite(existingFolder(filepath.Dir(p.VMDef.Disks[0].Path))); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// failoverSteps does f, whose steps go into a new job, and says in o how the VM stands afterwards.
func (w *world) failoverSteps(ctx context.Context, vm *site.VM, j *failover.Job, name string, o *failoverObject, f func() error) error {
	err := w.recorded(vm, name, &o.vmHead, func(record *state.Job) error {
		j.Step = record.Step
		m := w.meter(vm.Name)
		defer m.stop()
		j.Meter = m
		return f()
	})
	return w.toldOf(ctx, vm, o, err)
}

// toldOf fills in how the VM stands, keeps it in memory, and returns err. The caller holds the VM's lock, but after a test: a run that
// has it then keeps what it finds.
func (w *world) toldOf(ctx context.Context, vm *site.VM, o *failoverObject, err error) error {
	st, lerr := w.stands(ctx, vm, o)
	switch {
	case lerr != nil && err == nil:
		return lerr
	case lerr != nil:
		return err
	}
	note := func(context.Context) error { return w.noteLedger(vm, st) }
	var nerr error
	if o.Kind == string(failover.Test) {
		nerr = w.inTurn(context.WithoutCancel(ctx), vm, state.Changes, turns{}, stays, note)
	} else {
		nerr = note(ctx)
	}
	if nerr != nil && !fault.Is(nerr, fault.RunLocked) {
		w.log.Warn("the site's memory cannot be kept in order", "error", nerr)
	}
	return err
}

// stands fills in how the VM stands. It may be asked while another run works on the VM.
func (w *world) stands(ctx context.Context, vm *site.VM, o *failoverObject) (replica.State, error) {
	st, err := w.present(context.WithoutCancel(ctx), vm)
	if err != nil {
		return st, err
	}
	w.describe(vm, st, &o.vmHead)
	o.Generation, o.Owner = st.Generation, &st.Owner
	rec := st.Failover
	if o.Kind == string(failover.Test) {
		rec = st.Test
	}
	if rec == nil {
		return st, nil
	}
	o.Point, o.Host = rec.Point, rec.Host
	if !rec.CutAt.IsZero() {
		o.PointTime = &rec.CutAt
	}
	if d, derr := failover.Made(rec); derr == nil && d.Name != "" {
		o.Made = &d
	}
	if !rec.Finished.IsZero() {
		lost := failover.RPO(*rec).Seconds()
		o.RPO, o.ByHand = &lost, rec.ByHand
	}
	if rto := failover.RTO(*rec); rto > 0 {
		s := rto.Seconds()
		o.RTO = &s
	}
	if fb := rec.Failback; fb != nil {
		o.Sent, o.ByHand = fb.Sent, fb.ByHand
		if d := failover.Downtime(*fb); d > 0 {
			s := d.Seconds()
			o.Downtime = &s
		}
	}
	return st, nil
}

// showPlan prints what will be made before anything starts: the recovery point and the table of networks; of a dry run every
// step.
func (w *world) showPlan(vm *site.VM, p failover.Plan, f *failoverObject) {
	f.Point, f.Notes = p.Found.ID, p.Notes
	at := p.Found.CutAt
	f.PointTime, f.Made = &at, &p.VMDef
	switch {
	case p.Newer() && p.Kind == failover.Planned:
		f.Point, f.PointTime = "", nil
		w.say("%s: planned failover; its recovery point is taken when the source is off (the newest one now is of %s)", vm.Name, w.when(p.Found.CutAt))
	case p.Newer():
		w.say("%s: %s failover to recovery point %s of %s, or a newer one if the source's last changes can be had", vm.Name, p.Kind, p.Found.ID, w.when(p.Found.CutAt))
	default:
		w.say("%s: %s failover to recovery point %s of %s", vm.Name, p.Kind, p.Found.ID, w.when(p.Found.CutAt))
	}
	w.sayText(vm, network.Text(p.VMDef.NICs))
	for _, n := range p.Notes {
		w.say("%s: note: %s", vm.Name, n)
	}
	if !w.opts.dryRun {
		return
	}
	for i, s := range p.Steps {
		f.Steps = append(f.Steps, stepObject{s.Name, s.Text})
		w.planned(vm, "%d. %s: %s", i+1, s.Name, s.Text)
	}
	f.Price = &priceObject{Bytes: p.Bytes}
	w.planned(vm, "copy at most %s, %s", size(p.Bytes), estimateText(w.estimate(vm, rateSeed, p.Bytes)))
}

// sayText says lines about a VM.
func (w *world) sayText(vm *site.VM, text string) {
	for line := range strings.Lines(text) {
		w.say("%s: %s", vm.Name, strings.TrimRight(line, "\n"))
	}
}

func (w *world) sayFailedOver(vm *site.VM, k failover.Kind, f *failoverObject) {
	where := "its disks are made"
	if f.Made != nil && len(f.Made.Disks) > 0 {
		first := f.Made.Disks[0].Path // a file, or the address of a page blob
		where = "its disks are in " + first[:max(strings.LastIndexAny(first, `/\`), 0)]
		if w.site.Recovery.Hypervisor != site.None && w.site.Recovery.Hypervisor != "" {
			where = fmt.Sprintf("runs as %s at %s", f.Made.Name, f.Host)
		}
	}
	took := ""
	if f.RTO != nil {
		took = fmt.Sprintf(", in %s", seconds(*f.RTO))
	}
	if f.RPO != nil && k != failover.Test {
		took += fmt.Sprintf("; lost: %s of changes", seconds(*f.RPO))
	}
	next := "sitrep failover commit " + vm.Name + "   (or: sitrep failover undo " + vm.Name + ")"
	if k == failover.Test {
		next = "sitrep failover cleanup " + vm.Name
	}
	w.say("%s: %s%s", vm.Name, where, took)
	if f.ByHand {
		w.say("%s: nobody has started the VM: start it from these disks", vm.Name)
	}
	w.say("%s: next: %s", vm.Name, w.commands(next))
}

func (p *program) cleanupCommand() *cli.Command {
	return p.afterCommand("cleanup", "end a test failover: delete the test VM and its disks", "Cleanup test failover",
		func(j *failover.Job, ctx context.Context, c *cli.Context) error {
			return j.Cleanup(ctx, c.String("notes"))
		},
		failover.DoCleanup, "the test failover is cleaned up", &cli.StringFlag{Name: "notes", Usage: "`TEXT` for those who look at the status"})
}

func (p *program) commitCommand() *cli.Command {
	return p.afterCommand("commit", "accept a failover (removes the other recovery points) or a failback (removes the recovered VM)", "Commit",
		func(j *failover.Job, ctx context.Context, _ *cli.Context) error { return j.Commit(ctx) }, failover.DoCommit, "committed")
}

func (p *program) undoCommand() *cli.Command {
	return p.afterCommand("undo", "before commit: back to the source as it was; the recovered VM is given up", "Undo failover",
		func(j *failover.Job, ctx context.Context, _ *cli.Context) error { return j.Undo(ctx) }, failover.DoUndo, "undone")
}

// afterCommand is a command for what follows a failover.
func (p *program) afterCommand(name, usage, job string, do func(*failover.Job, context.Context, *cli.Context) error, e failover.Event,
	said string, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "VM...", Flags: vmFlags(append(flags, planFlag(), hostLostFlag(), yesFlag(), waitFlag())...),
		Action: p.action("failover "+name, func(ctx context.Context, c *cli.Context) error {
			w, err := p.open()
			if err != nil {
				return err
			}
			vms, err := w.vmsOrPlan(c)
			if err != nil {
				return err
			}
			if e == failover.DoCommit {
				if err := w.confirm(ctx, c, silenceIsYes, "a commit cannot be undone: after a failover the other recovery points are removed, after a failback the recovered VM\n",
					"Commit "+plural(len(vms), "VM")+"?"); err != nil {
					return err
				}
			}
			if !w.opts.dryRun {
				defer w.settlePlans(context.WithoutCancel(ctx))
			}
			return w.each(ctx, vms, func(ctx context.Context, vm *site.VM) (vmObject, error) {
				f := &failoverObject{}
				return f, w.after(ctx, vm, e, job, said, f, func(j *failover.Job) error {
					j.HostLost = c.Bool("host-lost")
					return do(j, ctx, c)
				})
			})
		}),
	}
}

func (w *world) after(ctx context.Context, vm *site.VM, e failover.Event, job, said string, f *failoverObject, do func(*failover.Job) error) error {
	return w.inFailover(ctx, vm, "", func(ctx context.Context) error {
		j, err := w.failoverJob(ctx, vm, failoverOptions{})
		if err != nil {
			return err
		}
		if done, err := w.already(ctx, vm, f, func(st replica.State) string { return failover.Already(st, e) }); done {
			return err
		}
		if w.opts.dryRun {
			st, err := w.present(ctx, vm)
			if err == nil {
				err = failover.Allowed(st, e)
			}
			if err == nil {
				w.planned(vm, "%s (the state is %s, and would become %s)", e, st.Phase, failover.Next(st.Phase, e))
			}
			return w.toldOf(ctx, vm, f, err)
		}
		byHand, err := w.leftToPeople(ctx, vm, e, j)
		if err != nil {
			return err
		}
		err = w.failoverSteps(ctx, vm, j, job, f, func() error { return do(j) })
		if err == nil {
			w.say("%s: %s; the state is %s", vm.Name, said, f.State)
		}
		if err == nil && byHand {
			f.ByHand = true
			w.say("%s: nobody has started the VM at its source: start it there if it is wanted", vm.Name)
		}
		return err
	})
}

// leftToPeople says that an undo does not start the VM at its source, where it may have run before.
func (w *world) leftToPeople(ctx context.Context, vm *site.VM, e failover.Event, j *failover.Job) (bool, error) {
	if e != failover.DoUndo {
		return false, nil
	}
	st, err := w.present(ctx, vm)
	if err != nil || st.Failover == nil || st.Failover.Failback != nil {
		return false, err
	}
	return j.Source.Host == nil || j.Source.Foreign && st.Failover.SourceStopped, nil
}

// vmsOrPlan selects the VMs of the command line, or those of a recovery plan.
func (w *world) vmsOrPlan(c *cli.Context) ([]*site.VM, error) {
	if !c.IsSet("plan") {
		return selectVMs(w.site, c, noneIsWrong)
	}
	if c.NArg() > 0 || c.Bool("all") || c.IsSet("cloud") {
		return nil, fault.New(fault.UsageError, "VM names, --all, --cloud and --plan exclude each other")
	}
	plan, err := w.site.Plan(c.String("plan"))
	if err != nil {
		return nil, err
	}
	var out []*site.VM
	for _, g := range plan.Groups {
		out = append(out, g.VMs...)
	}
	return out, nil
}

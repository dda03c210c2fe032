package cmd

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// priceObject is what a failover or a failback will move. Sizes are bytes, durations seconds.
type priceObject struct {
	Bytes       int64               `json:"bytes"`
	Disks       []priceDiskObject   `json:"disks,omitempty"`
	Modes       map[string]modeCost `json:"modes,omitempty"`
	Recommended string              `json:"recommended_mode,omitempty"`
}

type priceDiskObject struct {
	Name  string `json:"name"`
	Size  int64  `json:"size"`
	Bytes int64  `json:"bytes_different"`
}

// modeCost is how long a mode of failback takes, as measured by the comparison just made.
type modeCost struct {
	Seconds  float64 `json:"seconds"`
	Downtime float64 `json:"downtime_seconds"`
}

func (p *program) failbackCommand() *cli.Command {
	return &cli.Command{
		Name: "failback", Usage: "bring a VM home that was failed over and committed: its changes are written into the disks there", ArgsUsage: "VM...",
		Flags: vmFlags(
			&cli.StringFlag{Name: "mode", Value: string(failover.MinimalDowntime), Usage: "minimal-downtime or during-failover"},
			&cli.StringFlag{Name: "to", Usage: "the `HOST` of the site file where the VM is made anew, if not where it came from"},
			planFlag(), nowFlag(), waitFlag()),
		Action: p.action("failback", func(ctx context.Context, c *cli.Context) error {
			w, err := p.open()
			if err != nil {
				return err
			}
			o := failover.FailbackOptions{Mode: failover.Mode(c.String("mode"))}
			if o.Mode != failover.MinimalDowntime && o.Mode != failover.DuringFailover {
				return fault.New(fault.UsageError, "--mode is minimal-downtime or during-failover, not %q", o.Mode)
			}
			if c.IsSet("plan") {
				return w.failbackPlan(ctx, c, o)
			}
			vms, err := selectVMs(w.site, c, noneIsWrong)
			if err != nil {
				return err
			}
			return w.each(ctx, vms, func(ctx context.Context, vm *site.VM) (vmObject, error) {
				f := &failoverObject{Kind: failbackType}
				return f, w.failback(ctx, vm, c.String("to"), o, f)
			})
		}),
	}
}

func (w *world) failbackPlan(ctx context.Context, c *cli.Context, o failover.FailbackOptions) error {
	plan, err := w.onlyPlan(c)
	if err != nil {
		return err
	}
	if c.String("to") != "" {
		return fault.New(fault.UsageError, "--to is for one VM at a time")
	}
	return w.startPlan(ctx, plan, failover.PlanRecord{Plan: plan.Name, Type: failbackType, Mode: string(o.Mode), Started: w.now().UTC()})
}

// failback brings one VM home.
func (w *world) failback(ctx context.Context, vm *site.VM, to string, o failover.FailbackOptions, f *failoverObject) error {
	return w.inFailover(ctx, vm, "", func(ctx context.Context) error {
		j, err := w.failoverJob(ctx, vm, failoverOptions{})
		if err == nil && to != "" {
			var st replica.State
			if st, err = w.mayTakeOver(ctx, vm); err == nil {
				err = w.goingHome(j, vm, to, st)
			}
		}
		if err != nil {
			return err
		}
		if done, err := w.already(ctx, vm, f, func(st replica.State) string { return failover.Already(st, failover.DoFailback) }); done {
			return err
		}
		if w.opts.dryRun {
			return w.toldOf(ctx, vm, f, w.planFailback(ctx, vm, j, o, f))
		}
		if _, err := j.PlanFailback(ctx, o); err != nil {
			return w.toldOf(ctx, vm, f, err)
		}
		err = w.failoverSteps(ctx, vm, j, "Failback ("+string(o.Mode)+")", f, func() error { return j.Failback(ctx, o, "") })
		if err == nil {
			w.sayHome(vm, f)
		}
		return err
	})
}

func (w *world) sayHome(vm *site.VM, f *failoverObject) {
	down := ""
	if f.Downtime != nil {
		down = ", downtime " + seconds(*f.Downtime)
	}
	w.say("%s: home again: %s brought home%s", vm.Name, size(f.Sent), down)
	if f.ByHand {
		w.say("%s: nobody has started the VM at home: start it there, and then commit", vm.Name)
	}
	w.say("%s: next: %s", vm.Name, w.commands("sitrep failover commit "+vm.Name))
}

// planFailback prices a failback: what differs, exactly, and how long each mode takes by the speed of the comparison.
func (w *world) planFailback(ctx context.Context, vm *site.VM, j *failover.Job, o failover.FailbackOptions, f *failoverObject) error {
	steps, err := j.PlanFailback(ctx, o)
	if err != nil {
		return err
	}
	for i, s := range steps {
		f.Steps = append(f.Steps, stepObject{s.Name, s.Text})
		w.planned(vm, "%d. %s: %s", i+1, s.Name, s.Text)
	}
	price, err := j.Price(ctx)
	if err != nil {
		return err
	}
	p := &priceObject{Modes: map[string]modeCost{}}
	for _, d := range price.Disks {
		p.Bytes += d.Different
		p.Disks = append(p.Disks, priceDiskObject{d.Name, d.Size, d.Different})
		w.planned(vm, "disk %s: %s of %s differ", d.Name, size(d.Different), size(d.Size))
	}
	for _, m := range []failover.Mode{failover.MinimalDowntime, failover.DuringFailover} {
		c := price.Cost(m)
		p.Modes[string(m)] = modeCost{c.Total.Seconds(), c.Downtime.Seconds()}
		w.planned(vm, "%s: about %s, of which the VM is down for about %s", m, span(c.Total), span(c.Downtime))
	}
	p.Recommended = string(price.Recommended())
	w.planned(vm, "recommended: --mode %s", p.Recommended)
	f.Price = p
	return nil
}

// goingHome tells the engine where the VM goes at failback: to the place that it came from, or to another host.
func (w *world) goingHome(j *failover.Job, vm *site.VM, to string, st replica.State) error {
	place, on, folder := j.Source, vm.Host, ""
	if to != "" {
		place.Foreign = false
		h, err := w.otherHost(to)
		if err != nil {
			return err
		}
		if place.Host, err = w.hostOf(w.programs(), h.Runner, h.Folder, nil); err != nil { // a monitor of the VM is where it came from
			return err
		}
		on = h
		folder = filepath.Join(h.Folder, vm.Name)
	}
	place.Booted = w.bootCheck(vm, place.Host, homeIP)
	j.Home = failover.Home{Place: place, To: to, Machine: machineOf(vm), StateDir: w.memory.Path("failback", vm.Name)}
	for _, d := range vm.Disks {
		if stayed(st, d.Name) {
			continue
		}
		h := failover.HomeDisk{Name: d.Name, Path: d.Path, Format: string(d.Format), LogDir: w.logDir(vm, d), OS: d.OS, Parents: d.Parents}
		if h.Format == string(site.FormatAuto) {
			h.Format = ""
		}
		if to != "" {
			h.Path = filepath.Join(folder, d.Name+filepath.Ext(d.Path)) // files of one name may have lain in different folders
			h.LogDir = folder
		}
		j.Home.Disks = append(j.Home.Disks, h)
	}
	j.Home.NICs = homeNICs(vm, on)
	j.Home.Readopt = func(ctx context.Context) error { return w.readopt(ctx, vm) }
	return nil
}

// stayed says that a disk comes home with nothing: the VM was recovered to a point of before the disk was added, so what lies at home is
// the only one, and is left as it is.
func stayed(st replica.State, name string) bool {
	made, err := failover.Made(st.Failover)
	if err != nil || st.Failover == nil || len(made.Disks) == 0 {
		return false
	}
	switch st.Phase {
	case replica.Committed, replica.FailbackStarted, replica.FailedBack:
		return !slices.ContainsFunc(made.Disks, func(d host.Disk) bool { return d.Name == name })
	}
	return false
}

// homeNICs connects a VM that is made at home as it was: by the name of its network, which is that of a virtual switch where
// the host has such, or through the host's address.
func homeNICs(vm *site.VM, at *site.Host) []host.NIC {
	var out []host.NIC
	for _, n := range vm.NICs {
		nic := host.NIC{Source: n.Network, Network: n.Network, Attach: host.Bridge, Switch: n.Network, MAC: n.MAC, Primary: n.Primary}
		if at.Hypervisor == site.QEMU {
			nic.Attach, nic.Switch = host.User, ""
		}
		if n.IP.IsValid() {
			nic.SourceIP = n.IP.String()
		}
		out = append(out, nic)
	}
	return out
}

// otherHost is a host of the site file where a VM can be made.
func (w *world) otherHost(name string) (*site.Host, error) {
	var names []string
	for _, c := range w.site.VMM.Clouds {
		for _, h := range c.Hosts {
			names = append(names, h.Name)
			if h.Name != name {
				continue
			}
			if h.Folder == "" {
				e := fault.New(fault.PrerequisiteFail, "host %s has no folder: the site file does not say where the disks of VMs lie that are made there",
					name).At(w.site.Path).Then("sitrep failback {vm} --to " + name)
				e.Mend = "Give the host a folder in the site file, such as folder: ./vms."
				return nil, e
			}
			return h, nil
		}
	}
	return nil, fault.New(fault.UsageError, "no host is called %q%s", name, site.DidYouMean(name, names))
}

// readopt makes replication stand on the disks at home again: change logs from before the failover lead nowhere, and the
// tracker's position is where the replica stands.
func (w *world) readopt(ctx context.Context, vm *site.VM) error {
	var h vmHead
	return w.onReplica(ctx, vm, forWriting, &h, func(s *session) error {
		if err := s.sourceAtRest(); err != nil {
			return err
		}
		return s.engine.Readopt(ctx)
	})
}

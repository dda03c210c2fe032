package cmd

import (
	"context"
	"errors"
	"path/filepath"

	"sitrep/failover"
	"sitrep/failover/network"
	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// failoverJob is the engine of failover for a VM, with all that the site file says of it.
func (w *world) failoverJob(ctx context.Context, vm *site.VM, o failoverOptions) (*failover.Job, error) {
	if err := w.haveStore(); err != nil {
		return nil, err
	}
	st, err := w.mayTakeOver(ctx, vm)
	if err != nil {
		return nil, err
	}
	if w.site.Recovery.Azure != nil {
		return nil, fault.New(fault.PrerequisiteFail, "sitrep makes no VMs in Azure by itself: name a recovery.host with hypervisor: script, "+
			"whose commands do it").At(w.site.Path)
	}
	recovery, err := w.recoveryHost()
	if err != nil {
		return nil, err
	}
	id, err := w.recoveryID()
	if err != nil {
		return nil, err
	}
	key, err := w.recoveryKey()
	if err != nil {
		return nil, err
	}
	source, err := w.sourceHost(vm.Host, vm)
	if err != nil {
		return nil, err
	}
	by, err := w.owner()
	if err != nil {
		return nil, err
	}
	if !w.opts.dryRun {
		if by.Run, err = w.newRun(vm.Name, st); err != nil {
			return nil, err
		}
	}
	folder := cmpOr(w.site.Recovery.Folder, filepath.Join(w.site.Dir, site.DefaultRecoveredFolder))
	j := &failover.Job{
		VM: vm.Name, Store: w.looking(), FS: w.fs, By: by, Keep: vm.Policy().RecoveryPoints,
		Source:   failover.Place{Host: source, Name: vm.Name, Grace: vm.ShutdownGrace, Foreign: vm.QMP != ""},
		Recovery: failover.Place{Host: recovery, ID: id, Key: key, Name: vm.Name, Grace: vm.ShutdownGrace},
		Folder:   filepath.Join(folder, vm.Name), TestFolder: filepath.Join(folder, vm.Name+"-test"),
		Format: disk.Format(cmpOr(string(w.site.Recovery.Format), string(site.RecoverVHD))), Proof: w.proof(),
		Machine: machineOf(vm), HostLost: o.hostLost,
		Step:  func(_ string, f func() (int64, string, error)) error { _, _, err := f(); return err },
		Meter: w.meter(vm.Name), Log: w.log, Now: w.now,
	}
	if w.site.Recovery.Disks == site.DisksInStore {
		j.DisksIn = failover.InStore
	}
	j.NICs = func(ctx context.Context, k failover.Kind) ([]host.NIC, []string, error) {
		return w.nics(ctx, vm, k, o)
	}
	j.Recovery.Booted = w.bootCheck(vm, recovery, primaryIP)
	j.NotMine = w.mine(vm.Name, st)
	for _, d := range addedDisks(vm, st) {
		j.Unreplicated = append(j.Unreplicated, d.Name)
	}
	j.Unreplicated = append(j.Unreplicated, st.Joined...)
	j.LastChanges = func(ctx context.Context) error { return w.lastChanges(ctx, vm, j) }
	j.InUse, j.NotSaved, j.Written = notInUse, notSaved, w.written
	j.Hold = func(ctx context.Context, name string) (func() error, error) { return w.holdRecovered(ctx, vm, name) }
	if vm.Hooks.Failover != "" {
		j.Hook = func(ctx context.Context, k failover.Kind, d host.Definition) error {
			return w.vmHook(ctx, vm, vm.Hooks.Failover, k, d)
		}
	}
	if vm.Hooks.Cleanup != "" {
		j.CleanedUp = func(ctx context.Context, k failover.Kind, d host.Definition) error {
			return w.vmHook(ctx, vm, vm.Hooks.Cleanup, k, d)
		}
	}
	return j, w.goingHome(j, vm, wayHome(st), st)
}

// wayHome is the host to which a failback is under way, "" for the place that the VM came from.
func wayHome(st replica.State) string {
	if st.Phase != replica.FailbackStarted || st.Failover == nil || st.Failover.Failback == nil {
		return ""
	}
	return st.Failover.Failback.To
}

// mayTakeOver refuses a store that is not the one this site knows, and a replica of another vault.
func (w *world) mayTakeOver(ctx context.Context, vm *site.VM) (replica.State, error) {
	r, st, err := w.replica(ctx, vm, forReading)
	if err != nil {
		return st, err
	}
	return st, errors.Join(w.owned(st), r.Close())
}

// machineOf is the VM as it is made at a host, as the site file describes it.
func machineOf(vm *site.VM) host.Definition {
	return host.Definition{Name: vm.Name, Generation: vm.Generation, OS: string(vm.OS), CPUs: vm.CPUs, Memory: vm.Memory}
}

// lastChanges is the last delta of a source that is off. Its steps are part of the failover's job.
func (w *world) lastChanges(ctx context.Context, vm *site.VM, j *failover.Job) error {
	var h vmHead
	return w.onReplica(ctx, vm, forWriting, &h, func(s *session) error {
		s.engine.Meter = j.Meter
		if err := s.sourceAtRest(); err != nil {
			return err
		}
		if err := s.tellLedger(ctx); err != nil {
			return err
		}
		if s.engine.Tracker.Position().IsZero() { // a machine that never replicated it: all of the disks is compared by the sums
			if err := s.engine.Readopt(ctx); err != nil {
				return err
			}
		}
		d, err := s.engine.Delta(ctx)
		if err != nil {
			return s.marking(ctx, err)
		}
		var o deltaObject
		o.fill(d)
		s.say("%s: last changes: %s", vm.Name, o.summary())
		return nil
	})
}

// nics makes the table of networks of a failover.
func (w *world) nics(ctx context.Context, vm *site.VM, k failover.Kind, o failoverOptions) ([]host.NIC, []string, error) {
	taken, err := w.takenAddresses(ctx, vm.Name)
	if err != nil {
		return nil, nil, err
	}
	return w.networkTable(vm, k, o, append(taken, o.claimed...))
}

// takenAddresses are those of the VMs that run at the recovery site, and who has them.
func (w *world) takenAddresses(ctx context.Context, except string) ([]network.Taken, error) {
	var taken []network.Taken
	for name, err := range w.store.List(ctx) {
		if err != nil {
			return nil, err
		}
		more, err := w.addressesOf(ctx, name, except)
		if err != nil {
			w.log.Warn("the addresses of a VM at the recovery site are not known", "vm", name, "error", err)
		}
		taken = append(taken, more...)
	}
	return taken, nil
}

func (w *world) addressesOf(ctx context.Context, name, except string) ([]network.Taken, error) {
	r, err := w.store.View(ctx, name)
	if err != nil {
		return nil, err
	}
	st, err := r.Ledger().Load(ctx)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if name == except { // its own are its own
		return nil, nil
	}
	var out []network.Taken
	for what, rec := range map[string]*replica.Failover{name: st.Failover, name + " (test)": st.Test} {
		d, err := failover.Made(rec)
		if err != nil {
			return nil, err
		}
		out = append(out, network.Claims(what, d.NICs)...)
	}
	return out, nil
}

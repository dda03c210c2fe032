package cmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/replicate"
)

// failures is what went wrong with several VMs. Each was reported when it happened.
type failures struct{ errs []error }

func (f *failures) Error() string { return errors.Join(f.errs...).Error() }

// worst is the error that makes the exit code.
func (f *failures) worst() error { return gravest(f.errs) }

// each does f for every VM, whatever became of the ones before it, and reports a failure when it happens. f returns what
// is to be said of the VM also when it fails.
func (w *world) each(ctx context.Context, vms []*site.VM, f func(context.Context, *site.VM) (vmObject, error)) error {
	var failed failures
	for _, vm := range vms {
		if ctx.Err() != nil {
			failed.errs = append(failed.errs, fault.FromOS(ctx.Err()))
			break
		}
		w.letGoLeft(ctx, vm)
		o, err := f(ctx, vm)
		if err == nil {
			err = w.stillHeld(vm)
		}
		h := o.head()
		h.VM = vm.Name
		if err != nil {
			err = fault.In(err, vm.Name, "")
			h.Error = w.object(err, vm.Name)
			w.stoppedBy(vm, err, h)
			w.printError(w.stderr, err, vm.Name)
			failed.errs = append(failed.errs, err)
		}
		w.res.VMs = append(w.res.VMs, o)
		if len(vms) == 1 {
			w.res.Job = h.Job
		}
	}
	if len(failed.errs) == 0 {
		return nil
	}
	return &failed
}

// stoppedBy says in h that the VM is in error, when err has stopped it until an administrator has mended the cause. What was
// said before is of the moment at which the work ended, and the error is remembered after that.
func (w *world) stoppedBy(vm *site.VM, err error, h *vmHead) {
	mem, known, merr := w.memory.VM(vm.Name)
	if merr != nil || !known || mem.Critical == nil || mem.Phase == replica.Retired || fault.FromOS(err).Class() != fault.Critical {
		return
	}
	h.State, h.Health = health.InError, healthCritical
}

// job does f as a job on the VM, records its outcome and says its ID in h.
func (w *world) job(vm *site.VM, name string, h *vmHead, f func(*state.Job) error) error {
	j, err := w.memory.Begin(w.res.Command, name, vm.Name)
	if err != nil {
		return err
	}
	if h.Job == "" {
		h.Job = j.ID()
	}
	w.log.Info("job begins", "job", j.ID(), "name", name, "vm", vm.Name)
	err = f(j)
	if err != nil {
		err = fault.In(err, vm.Name, "")
	}
	err = j.End(w.toldToYield(vm, w.sayAccept(vm, err)))
	w.log.Info("job ended", "job", j.ID(), "state", j.State())
	if nerr := errors.Join(w.noteFailure(vm, j.ID(), err), w.noteSent(vm, j.Bytes()), w.memory.Prune(vm.Policy().JobRetention)); nerr != nil {
		w.log.Warn("the site's memory cannot be kept in order", "error", nerr) // what the job did stands
	}
	return err
}

// noteSent counts what a job has moved to the replica.
func (w *world) noteSent(vm *site.VM, bytes int64) error {
	return w.memory.ChangeVM(vm.Name, func(mem *state.VM) { mem.Sent += bytes })
}

// noteFailure keeps what stopped the VM in a job, so that status tells it. An error that says nothing about the VM's
// health, such as a refusal, is not kept.
func (w *world) noteFailure(vm *site.VM, job string, err error) error {
	if err == nil || fault.Cancelled(err) {
		return nil
	}
	f := state.FailureOf(err, vm.Name, w.res.Command, w.now())
	f.Job = job
	return w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
		switch f.Code.Class() {
		case fault.Critical:
			mem.Critical = f
		case fault.Recoverable, fault.Resync, fault.Differs, fault.Prerequisite:
			mem.Failed = f
		}
	})
}

// noteSuccess forgets what had stopped the VM, and keeps how fast bytes of this kind of work moved.
func (w *world) noteSuccess(vm *site.VM, kind string, bytes int64, took time.Duration) error {
	return w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
		mem.Critical, mem.Retry = nil, health.Retry{}
		if mem.Failed != nil && (kind == rateResync || !inDoubt(mem.Failed.Code)) { // a delta does not make wrong bytes right
			mem.Failed = nil
		}
		if bytes >= minMeasured && took > 0 {
			if mem.Rates == nil {
				mem.Rates = map[string]float64{}
			}
			mem.Rates[kind] = float64(bytes) / took.Seconds()
		}
	})
}

// noteScan keeps how fast source disks were read.
func (w *world) noteScan(vm *site.VM, disks []replicate.DiskResult) {
	read := total(disks, func(d replicate.DiskResult) int64 { return d.Scanned })
	took := time.Duration(total(disks, func(d replicate.DiskResult) int64 { return int64(d.Took) }))
	if read < minMeasured || took <= 0 {
		return
	}
	err := w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
		if mem.Rates == nil {
			mem.Rates = map[string]float64{}
		}
		mem.Rates[rateScan] = float64(read) / took.Seconds()
	})
	if err != nil {
		w.log.Warn("the site's memory cannot be kept in order", "error", err)
	}
}

// noteLedger keeps what the ledger says, for when it is out of reach.
func (w *world) noteLedger(vm *site.VM, st replica.State) error {
	if w.opts.dryRun {
		return nil
	}
	return w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
		if mem.Replica == st.Replica {
			if mem.Phase != "" && mem.Phase != replica.Replicating && st.Phase == replica.Replicating { // it was not to be replicated
				mem.Statistics = mem.Statistics.Begin(w.monitoring(vm), w.now())
			}
			mem.Phase, mem.AsOf, mem.Applied, mem.Disks, mem.Joined = st.Phase, st.AsOf, st.Applied.Seq, disksOf(st), len(st.Joined) > 0
		}
	})
}

// minMeasured is how many bytes tell a rate that estimates can be made of.
const minMeasured = 8 << 20

// The kinds of work that rates are kept of.
const (
	rateSeed   = "seed"   // bytes sent
	rateDelta  = "delta"  // bytes sent
	rateResync = "resync" // bytes compared
	rateScan   = "scan"   // bytes of source disks read for a delta
)

// estimate is how long bytes of a kind of work take, by what was measured last; nil when nothing was.
func (w *world) estimate(vm *site.VM, kind string, bytes int64) *float64 {
	mem, _, err := w.memory.VM(vm.Name)
	rate := mem.Rates[kind]
	if err != nil || rate <= 0 {
		return nil
	}
	s := float64(bytes) / rate
	return &s
}

// estimateText words an estimate.
func estimateText(seconds *float64) string {
	if seconds == nil {
		return "time unknown: nothing was measured yet"
	}
	return "about " + span(time.Duration(*seconds*float64(time.Second)))
}

// closing joins the error of a replica's Close.
func closing(r replica.Replica, err *error) { *err = errors.Join(*err, r.Close()) }

// planned says a part of a dry run's plan.
func (w *world) planned(vm *site.VM, format string, args ...any) {
	w.say("%s: plan: %s", vm.Name, fmt.Sprintf(format, args...))
}

// total sums a field.
func total[T any](list []T, f func(T) int64) (n int64) {
	for x := range slices.Values(list) {
		n += f(x)
	}
	return n
}

package cmd

import (
	"context"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// resetObject is what status --reset-statistics says of a VM.
type resetObject struct {
	vmHead
	Reset *time.Time `json:"reset_at,omitempty"`
}

// resetStatistics counts the cycles of a VM anew, as a job. A VM of which this site counts none is passed over unless it was named.
func (w *world) resetStatistics(ctx context.Context, vm *site.VM, named bool) (*resetObject, error) {
	o := &resetObject{}
	return o, w.locked(ctx, vm, func(context.Context) error {
		mem, known, err := w.memory.VM(vm.Name)
		const none = "this site counts no cycles of the VM"
		switch {
		case err != nil:
			return err
		case !known && named:
			return fault.New(fault.NotProtected, none).Of(vm.Name, "")
		case !known:
			w.passOver(vm, &o.vmHead, none)
			return nil
		}
		o.State = string(mem.Phase)
		if w.opts.dryRun {
			w.planned(vm, "count cycles anew; until now %d completed and %d were missed", mem.Statistics.Current.Successes, w.statistics(vm, mem).Current.Missed)
			return nil
		}
		return w.recorded(vm, "Reset statistics", &o.vmHead, func(*state.Job) error {
			now := w.now()
			o.Reset = utc(now)
			w.say("%s: cycles are counted anew", vm.Name)
			return w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
				mem.Statistics = mem.Statistics.Anew(w.monitoring(vm), now)
			})
		})
	})
}

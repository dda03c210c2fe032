package cmd

import (
	"context"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// unlockObject is what store unlock says of a VM.
type unlockObject struct {
	vmHead
	Generation uint64 `json:"generation,omitempty"` // of the replica, from now on
}

func (p *program) unlockCommand() *cli.Command {
	return &cli.Command{
		Name: "unlock", Usage: "take the replica over from a run that is gone and still holds it", ArgsUsage: "VM...",
		Description: "For a replica in Azure that the run of a machine holds which is gone for good, and for a run elsewhere that hangs. " +
			"Nothing else of the replica changes. Should that run go on after all, the store refuses what it writes. " +
			"A run of this machine that hangs is ended, and holds nothing any more.",
		Flags: vmFlags(),
		Action: p.vmCommand("store unlock", noneIsWrong, func(w *world, _ *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o := &unlockObject{}
				if w.opts.dryRun {
					return o, w.planUnlock(ctx, vm, o)
				}
				return o, w.locked(vm, func() error { return w.unlock(ctx, vm, o) })
			}
		}),
	}
}

func (w *world) planUnlock(ctx context.Context, vm *site.VM, o *unlockObject) error {
	st, err := w.mayTakeOver(ctx, vm)
	if err != nil {
		return err
	}
	w.describe(vm, st, &o.vmHead)
	if err := failover.MayUnlock(st); err != nil {
		return err
	}
	w.planned(vm, "take the replica over from site %s on host %s, owner since %s, with generation %d", st.Owner.Site, st.Owner.Host,
		stamp(st.Owner.Since), st.Generation+1)
	return nil
}

// unlock takes the replica over. Whether some run holds it is not asked: the answer could be old when the lock is taken.
func (w *world) unlock(ctx context.Context, vm *site.VM, o *unlockObject) error {
	return w.job(vm, "Take the replica over from a run that is gone", &o.vmHead, func(j *state.Job) error {
		return j.Step("Take the replica over", func() (int64, string, error) {
			if _, err := w.mayTakeOver(ctx, vm); err != nil {
				return 0, "", err
			}
			was, is, err := failover.Unlock(ctx, w.store, vm.Name, w.owner(), w.now())
			if err != nil {
				return 0, "", err
			}
			o.Generation = is.Generation
			w.describe(vm, is, &o.vmHead)
			w.say("%s: nobody holds the replica any more: it was that of site %s on host %s since %s, and is this site's, with generation %d; "+
				"it is in state %s, as before", vm.Name, was.Owner.Site, was.Owner.Host, stamp(was.Owner.Since), is.Generation, is.Phase)
			return 0, "", w.noteLedger(vm, is)
		})
	})
}

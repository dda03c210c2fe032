package cmd

import (
	"context"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/site"
)

func (p *program) unlockCommand() *cli.Command {
	return &cli.Command{
		Name: "unlock", Usage: "take the replica over from a run that is gone and still holds it", ArgsUsage: "VM...",
		Description: "For a replica in Azure that the run of a machine holds which is gone for good, and for a run elsewhere that hangs. " +
			"Nothing else of the replica changes. Should that run go on after all, the store refuses what it writes. " +
			"A run of this machine that hangs is ended, and holds nothing any more.",
		Flags: vmFlags(yesFlag(), waitFlag()),
		Action: p.vmCommand("store unlock", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o := &takeoverObject{}
				if w.opts.dryRun {
					return o, w.planUnlock(ctx, vm, o)
				}
				return o, w.locked(ctx, vm, func(ctx context.Context) error { return w.unlock(ctx, c, vm, o) })
			}
		}),
	}
}

func (w *world) planUnlock(ctx context.Context, vm *site.VM, o *takeoverObject) error {
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

// unlock takes the replica over. Whether some run holds it is not asked: the answer could be old when the lock is taken. Of a replica that
// another one writes to it is a takeover, and what may be lost is said.
func (w *world) unlock(ctx context.Context, c *cli.Context, vm *site.VM, o *takeoverObject) error {
	st, err := w.mayTakeOver(ctx, vm)
	if err == nil {
		err = failover.MayUnlock(st)
	}
	if err != nil {
		return err
	}
	if !st.Phase.Away() && w.mine(vm.Name, st) != nil {
		w.loss(vm, st, o)
		if err := w.confirm(ctx, c, silenceIsYes, indented(vm.Name, o.text()), "Take the replica of "+vm.Name+" over?"); err != nil {
			return err
		}
		w.sayText(vm, o.text())
	}
	return w.takeOver(ctx, vm, "Take the replica over from a run that is gone", o)
}

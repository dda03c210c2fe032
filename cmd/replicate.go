package cmd

import (
	"context"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

func (p *program) replicateCommand() *cli.Command {
	return &cli.Command{
		Name: "replicate", Usage: "initial replication; an interrupted one continues where it stopped", ArgsUsage: "VM...",
		Flags: vmFlags(paceFlags()...),
		Action: p.vmCommand("replicate", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o, p := &seedObject{}, paceOf(c, seeds)
				if w.opts.dryRun {
					if w.idle(ctx, vm, p.todo, &o.vmHead) {
						return o, nil
					}
					return o, w.planReplicate(ctx, vm, o)
				}
				return o, w.attempt(ctx, vm, &o.vmHead, p, func(ctx context.Context) error {
					if w.idle(ctx, vm, p.todo, &o.vmHead) {
						return nil
					}
					return w.initial(ctx, vm, o)
				})
			}
		}),
	}
}

// initial copies what is still to be copied, and finalizes.
func (w *world) initial(ctx context.Context, vm *site.VM, o *seedObject) error {
	st, err := w.present(ctx, vm)
	if err != nil {
		return err
	}
	if st.Phase != replica.Seeding || st.Applied.IsZero() {
		err := w.jobOn(ctx, vm, jobInitial, &o.vmHead, func(s *session) error { return s.seed(ctx, jobInitial, o) })
		if err != nil {
			return err
		}
	}
	return w.finalize(ctx, vm, o)
}

// present returns the ledger of a VM that is protected.
func (w *world) present(ctx context.Context, vm *site.VM) (replica.State, error) {
	r, st, err := w.replica(ctx, vm, forReading)
	if err != nil {
		return st, err
	}
	return st, r.Close()
}

func (w *world) planReplicate(ctx context.Context, vm *site.VM, o *seedObject) error {
	st, err := w.present(ctx, vm)
	if err != nil {
		return err
	}
	w.describe(vm, st, &o.vmHead)
	if st.Phase != replica.Seeding {
		return fault.New(fault.WrongState, "there is no initial replication to do: the VM is in state %s since %s",
			st.Phase, stamp(st.PhaseSince)).Of(vm.Name, "")
	}
	if !st.Applied.IsZero() {
		w.planned(vm, "the initial copy is complete; take the first delta and recovery point")
		return nil
	}
	return w.planSeed(ctx, vm, st.Disks, o)
}

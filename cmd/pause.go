package cmd

import (
	"context"

	"github.com/urfave/cli/v2"

	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/replicate"
)

func (p *program) pauseCommand() *cli.Command {
	return &cli.Command{
		Name: "pause", Usage: "stop replication until \"sitrep resume\"", ArgsUsage: "VM...",
		Flags: vmFlags(&cli.StringFlag{Name: "reason", Usage: "`TEXT` for those who look at the status"}, waitFlag()),
		Action: p.vmCommand("pause", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				h := &vmHead{}
				if w.idle(ctx, vm, unnamed(c, canPause), h) {
					return h, nil
				}
				if done, err := w.stoodAlready(ctx, vm, h, func(st replica.State) bool { return st.Phase == replica.Paused }); done || err != nil {
					return h, err
				}
				if w.opts.dryRun {
					return h, w.planPhase(ctx, vm, h, "pause replication", replicate.MayPause)
				}
				return h, w.verb(ctx, vm, "Pause replication", h, func(s *session) error {
					if err := s.step("Pause", func() (int64, string, error) {
						return 0, c.String("reason"), s.engine.Pause(ctx, c.String("reason"))
					}); err != nil {
						return err
					}
					s.say("%s: replication is paused; to go on, run: %s", vm.Name, s.commands("sitrep resume "+vm.Name))
					return nil
				})
			}
		}),
	}
}

// stoodAlready says whether the VM is in the phase that a command would bring it to: then there is nothing to do, and no job is made.
func (w *world) stoodAlready(ctx context.Context, vm *site.VM, h *vmHead, is func(replica.State) bool) (bool, error) {
	done := false
	err := w.locked(ctx, vm, func(ctx context.Context) error {
		st, err := w.present(ctx, vm)
		if err != nil || w.mine(vm.Name, st) != nil || !is(st) {
			return nil // the command says what is wrong
		}
		done = true
		w.describe(vm, st, h)
		w.say("%s: nothing to do, the state is %s", vm.Name, st.Phase)
		return nil
	})
	return done, err
}

// planPhase says that a command would change the VM's phase, which it has in h, if it may.
func (w *world) planPhase(ctx context.Context, vm *site.VM, h *vmHead, what string, may func(replica.State) error) error {
	return w.onReplica(ctx, vm, forReading, h, func(s *session) error {
		if err := may(s.state); err != nil {
			return err
		}
		s.planned(vm, "%s (the state is %s)", what, s.state.Phase)
		return nil
	})
}

package cmd

import (
	"context"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// todo says whether a command has something to do for a VM in this state. A run of --all or --cloud, which is cron's, passes the others
// over: nothing is wrong with them, and nobody has asked for them by name. A nil todo is that of a VM that was named; it gets its refusal.
type todo func(replica.State) bool

// unnamed is t for a run that names no VM.
func unnamed(c *cli.Context, t todo) todo {
	if c.NArg() > 0 {
		return nil
	}
	return t
}

// replicates is the todo of what brings a replica up to date.
func replicates(st replica.State) bool { return st.Phase != replica.Paused && applies(st) }

// applies is the todo of an apply, which a pause does not stop.
func applies(st replica.State) bool { return st.Phase != replica.Seeding && canPause(st) }

// seeds is the todo of an initial copy.
func seeds(st replica.State) bool { return st.Phase == replica.Seeding }

// hasReplica is the todo of what looks at a replica, wherever the VM runs.
func hasReplica(st replica.State) bool { return !st.Applied.IsZero() }

// canPause is the todo of a pause.
func canPause(st replica.State) bool { return st.Phase != replica.Retired && !st.Phase.Away() }

// idle says whether a VM is passed over, and tells it. A ledger that cannot be read is no reason.
func (w *world) idle(ctx context.Context, vm *site.VM, t todo, h *vmHead) bool {
	if t == nil {
		return false
	}
	st, err := w.present(ctx, vm)
	return w.idleAs(vm, st, err, t, h)
}

// idleAs is idle for a ledger that was read already, or could not be because of err.
func (w *world) idleAs(vm *site.VM, st replica.State, err error, t todo, h *vmHead) bool {
	switch {
	case t == nil:
	case fault.Is(err, fault.NotProtected):
		h.State = notProtected
		w.passOver(vm, h, "it is not protected")
		return true
	case err == nil && w.owned(st) == nil && !t(st):
		w.describe(vm, st, h)
		w.passOver(vm, h, "its state is "+string(st.Phase)+" since "+stamp(st.PhaseSince))
		return true
	}
	return false
}

func (w *world) passOver(vm *site.VM, h *vmHead, why string) {
	h.PassedOver, h.Tried = why, new(bool)
	w.say("%s: passed over: %s", vm.Name, why)
}

// lockedUnlessSeeded is locked, but that a VM whose initial replication is under way is passed over.
func (w *world) lockedUnlessSeeded(ctx context.Context, vm *site.VM, t todo, h *vmHead, f func(context.Context) error) error {
	err := w.locked(ctx, vm, f)
	if t == nil || !fault.Is(err, fault.RunLocked) {
		return err
	}
	running, rerr := w.memory.Running()
	if command := running[vm.Name].Command; rerr != nil || command != "protect" && command != "replicate" {
		return err
	}
	h.State = string(replica.Seeding)
	w.passOver(vm, h, "its initial replication is under way")
	return nil
}

package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// frozenMark is there while the VM is held by Freeze: the next run thaws what a killed one has left frozen.
func (h *Host) frozenMark(vm string) string { return filepath.Join(h.c.Folder, "."+vm+".frozen") }

// Freeze pauses the VM; see host.Freezer. QEMU finishes what the guest has asked for and flushes its images before it
// answers. A VM that an earlier run has frozen and not thawed is held, and thawed by Thaw; one that somebody else has paused
// writes nothing either and is left to them.
func (h *Host) Freeze(ctx context.Context, vm string) (held bool, err error) {
	err = h.locked(ctx, vm, func() error {
		power, err := h.state(ctx, vm)
		if err != nil {
			return err
		}
		if power == host.Absent {
			_, err := h.definition(vm)
			return err
		}
		marked, err := h.Marked(vm)
		if err != nil {
			return err
		}
		if power != host.Running {
			held = power == host.Paused && marked
			return nil
		}
		if err := durable.WriteFile(durable.OS(), h.frozenMark(vm), nil); err != nil {
			return fault.FromOS(err)
		}
		if err := h.command(ctx, vm, "stop", nil); err != nil {
			return errors.Join(err, h.thaw(context.WithoutCancel(ctx), vm))
		}
		held = true
		return nil
	})
	return held, err
}

// Thaw lets the VM go on that Freeze has paused. One that runs, or is off by now, is no error; one that somebody else has paused
// stays paused.
func (h *Host) Thaw(ctx context.Context, vm string) error {
	return h.locked(ctx, vm, func() error { return h.thaw(ctx, vm) })
}

func (h *Host) thaw(ctx context.Context, vm string) error {
	marked, err := h.Marked(vm)
	if err != nil || !marked {
		return err
	}
	return h.goOn(ctx, vm)
}

// goOn lets a VM go on, whoever has paused it.
func (h *Host) goOn(ctx context.Context, vm string) error {
	power, err := h.state(ctx, vm)
	if err != nil {
		return err
	}
	if power == host.Paused {
		if err := h.command(ctx, vm, "cont", nil); err != nil {
			return err
		}
	}
	return h.unmark(vm)
}

// Marked says whether Freeze has paused the VM, or was about to, and Thaw did not follow yet.
func (h *Host) Marked(vm string) (bool, error) {
	_, err := os.Lstat(h.frozenMark(vm))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, fault.FromOS(err)
}

func (h *Host) unmark(vm string) error {
	if err := durable.RemoveIfThere(durable.OS(), h.frozenMark(vm)); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

package qemu

import (
	"context"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// stopForeign is Stop for a VM that something else has started.
func (h *Host) stopForeign(ctx context.Context, vm string, grace time.Duration) error {
	power, err := h.power(ctx, vm)
	if err != nil || power == host.Off {
		return err
	}
	files, err := h.imageFiles(ctx, vm)
	if err != nil {
		return err
	}
	off := false
	if grace > 0 && h.pressPowerButton(ctx, vm) == nil {
		if off, err = h.waitSocket(ctx, vm, grace); err != nil {
			return err
		}
	}
	if !off {
		if err := h.quit(ctx, vm); err != nil {
			return err
		}
		if off, err = h.waitSocket(ctx, vm, quitLimit); err != nil {
			return err
		}
	}
	if !off {
		return fault.New(fault.HostTimeout, "QEMU was told to quit and did not within %v", quitLimit).At(h.socket(vm))
	}
	for _, path := range files {
		if err := syncFile(path); err != nil {
			return err
		}
	}
	return h.unmark(vm)
}

// waitSocket waits until nobody listens to the VM's control socket any more.
func (h *Host) waitSocket(ctx context.Context, vm string, limit time.Duration) (gone bool, err error) {
	const step = 200 * time.Millisecond
	for deadline := time.Now().Add(limit); ; {
		c, err := dial(h.socket(vm))
		if nobodyListens(err) {
			return true, nil
		}
		if err == nil {
			c.Close()
		}
		if !time.Now().Before(deadline) {
			return false, nil
		}
		if err := pause(ctx, step); err != nil {
			return false, err
		}
	}
}

package cmd

import (
	"context"
	"errors"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/wait"
)

// A freeze that is under way when its run is killed goes on: a hook, or the program of a host, holds the VM later, when whoever lets it go
// on has done so already. So each such program has a sign: a file that the run makes and locks before the first of them is started, and
// that they inherit. As long as the file is there and locked, one of them runs. The run removes it when the VM is held. Whoever lets
// a VM go on for a run that is gone waits for that first, and ends what takes too long, as the run would have.

// signOf is the file of the sign of a hold.
func (w *world) signOf(rec state.Held) string { return w.holds.Path("held", rec.VM+"."+rec.ID+".sign") }

// lowerSign says that nothing is under way any more.
func (h *hold) lowerSign() error {
	if h.sign == nil {
		return nil
	}
	f := h.sign
	h.sign = nil
	return errors.Join(lower(f.Name()), f.Close())
}

func lower(path string) error {
	if err := durable.RemoveIfThere(durable.OS(), path); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// signPoll is how often a sign is looked at.
const signPoll = 20 * time.Millisecond

// endUnderway returns when nothing of a run that is gone can hold the VM later than now. What has not ended within hookGrace of its
// beginning is killed.
func (w *world) endUnderway(ctx context.Context, rec state.Held) error {
	if rec.ID == "" { // of before there were signs
		return nil
	}
	path := w.signOf(rec)
	now := time.Now()
	kill, giveUp := now.Add(hookGrace), now.Add(2*hookGrace)
	if at := rec.Since.Add(hookGrace); at.Before(kill) {
		kill = at
	}
	for {
		up, err := signIsUp(path)
		if err != nil {
			return fault.FromOS(err)
		}
		if !up {
			return lower(path)
		}
		if time.Now().After(giveUp) {
			return stillUnderway(rec, errors.New("it was killed, and does not end"))
		}
		if time.Now().After(kill) {
			if err := endHolders(path); err != nil {
				return stillUnderway(rec, err)
			}
		}
		if err := wait.For(ctx, signPoll); err != nil {
			return fault.FromOS(err)
		}
	}
}

func stillUnderway(rec state.Held, err error) error {
	return fault.Wrap(fault.HookFailed, err, "what a run that is gone has begun to hold the VM with still runs").Of(rec.VM, "")
}

// letGoLate is letGo for a run that is gone. What cannot be ended may hold the VM again: that is remembered then.
func (w *world) letGoLate(ctx context.Context, vm *site.VM, rec state.Held) error {
	late := w.endUnderway(ctx, rec)
	err := w.letGo(ctx, vm, rec)
	if late == nil || err != nil {
		return errors.Join(late, err)
	}
	rec.Failed = fault.FromOS(late).Msg
	return errors.Join(late, w.holds.RememberHeld(rec))
}

package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/hook"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/wait"
)

// This file is how VMs are held still, and how it is made sure that they go on.
//
// Before a VM is held, a record says so in this site's memory (state.Held), and a guard (guard.go) is there that outlives this
// run. The run lets the VM go on whatever happens to it, as long as it can. When it is killed its guard does that, and when
// the guard is killed too, the next command that is about the VM.

// The time for which a freeze hook that has begun is waited for when the run is to end, and for another run to let a VM go on.
const (
	hookGrace = 10 * time.Second
	heldLimit = time.Minute
)

// hold is a VM that this run holds still.
type hold struct {
	w     *world
	vm    *site.VM
	rec   state.Held
	lock  io.Closer
	guard *guard   // nil: there is none
	sign  *os.File // while what holds the VM is on the way, what that keeps open: see underway; nil: nothing
	began time.Time
}

// beginHold makes sure that the VM will go on, whatever becomes of this run, before anything holds it.
func (w *world) beginHold(ctx context.Context, vm *site.VM, rec state.Held) (_ *hold, err error) {
	rec.ID, rec.VM, rec.Since, rec.PID, rec.Command = hrl.NewID().String(), vm.Name, w.now().UTC(), os.Getpid(), w.res.Command
	h := &hold{w: w, vm: vm, rec: rec}
	if h.lock, err = w.waitHeld(ctx, vm); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.lock.Close())
		}
	}()
	if left, there, err := w.holds.Held(vm.Name); err == nil && there { // what could not be let go on before is still owed
		h.rec.Hooks = h.rec.Hooks || left.Hooks
	}
	if err := w.holds.RememberHeld(h.rec); err != nil {
		return nil, err
	}
	if w.guard != nil {
		if h.sign, err = raiseSign(w.signOf(h.rec)); err == nil {
			h.guard, err = w.guard(w, h.rec)
		}
		if err != nil {
			return nil, errors.Join(err, h.lowerSign(), w.holds.ForgetHeld(vm.Name))
		}
	}
	h.began = w.now()
	return h, nil
}

// waitHeld locks the VM for holding it; a guard may be about to let it go on.
func (w *world) waitHeld(ctx context.Context, vm *site.VM) (io.Closer, error) {
	for deadline := time.Now().Add(heldLimit); ; {
		lock, err := w.holds.LockHeld(vm.Name)
		if err == nil || !fault.Is(err, fault.RunLocked) || time.Now().After(deadline) {
			return lock, err
		}
		if err := wait.For(ctx, 50*time.Millisecond); err != nil {
			return nil, fault.FromOS(err)
		}
	}
}

// programs runs what begins to hold the VM: it has the sign of that.
func (h *hold) programs() hook.Runner {
	r := h.w.programs()
	r.Inherit = h.sign
	return r
}

// held says that what holds the VM has done so: nothing that may yet come about is on the way any more.
func (h *hold) held() error { return h.lowerSign() }

// freeze has the host hold the VM. held is false when it does not run.
func (h *hold) freeze(ctx context.Context) (held bool, err error) {
	f, err := h.w.freezerBy(h.programs(), h.vm, h.rec.Side)
	if err == nil {
		held, err = f.Freeze(ctx, h.rec.Name)
	}
	if err == nil {
		err = h.held()
	}
	return held, err
}

// letGo lets the VM go on. paused is how long it was held.
func (h *hold) letGo(ctx context.Context) (paused time.Duration, err error) {
	err = errors.Join(h.lowerSign(), h.w.letGo(ctx, h.vm, h.rec))
	paused = h.w.now().Sub(h.began)
	if h.guard != nil {
		h.guard.done()
	}
	return paused, errors.Join(err, h.lock.Close())
}

// letGo lets a VM go on that is held as rec says, and remembers what could not be done.
func (w *world) letGo(ctx context.Context, vm *site.VM, rec state.Held) error {
	ctx = context.WithoutCancel(ctx)
	var hostErr, hookErr error
	if rec.Host {
		if hostErr = w.thawHost(ctx, vm, rec); hostErr == nil {
			rec.Host = false
		}
	}
	if rec.Hooks {
		if _, hookErr = w.runHook(ctx, w.programs(), vm, vm.Hooks.Thaw, "thaw"); hookErr == nil {
			rec.Hooks = false
		}
	}
	err := hostErr
	if err == nil {
		err = hookErr
	}
	if err == nil {
		return w.holds.ForgetHeld(vm.Name)
	}
	bare := *fault.FromOS(err)
	bare.VM, bare.Disk = "", ""
	rec.Failed = bare.Error()
	err = fault.In(err, vm.Name, "")
	return errors.Join(err, w.holds.RememberHeld(rec))
}

func (w *world) thawHost(ctx context.Context, vm *site.VM, rec state.Held) error {
	f, err := w.freezerAt(vm, rec.Side)
	if err != nil || f == nil {
		return err
	}
	return f.Thaw(ctx, rec.Name)
}

// freezerAt is the host that can hold the VM at a side; nil when there is none. Hyper-V keeps the disks of a suspended VM locked:
// holding a source there still would gain nothing.
func (w *world) freezerAt(vm *site.VM, side state.Side) (host.Freezer, error) {
	return w.freezerBy(w.programs(), vm, side)
}

func (w *world) freezerBy(programs hook.Runner, vm *site.VM, side state.Side) (host.Freezer, error) {
	if side == state.AtRecovery {
		h, err := w.recoveryHostBy(programs)
		f, _ := h.(host.Freezer)
		return f, err
	}
	if vm.Host.Hypervisor == site.HyperV {
		return nil, nil
	}
	h, err := w.sourceHostBy(programs, vm.Host, vm)
	f, _ := h.(host.Freezer)
	return f, err
}

// letGoLeft lets a VM go on that a run which is gone has left held. Every command that is about the VM begins with it. A VM whose
// holder lives is left alone.
func (w *world) letGoLeft(ctx context.Context, vm *site.VM) {
	rec, lock := w.left(vm)
	if rec == nil {
		return
	}
	err := errors.Join(w.letGoLate(ctx, vm, *rec), lock.Close())
	who := fmt.Sprintf("process %d (%s)", rec.PID, rec.Command)
	if rec.PID == 0 {
		who = "an earlier run"
	}
	if err != nil {
		w.log.Error("the VM is held by a run that is gone, and cannot be let go on", "vm", vm.Name, "side", rec.Side, "by", who, "error", err)
		return
	}
	w.log.Warn("the VM was held by a run that is gone, and goes on now", "vm", vm.Name, "side", rec.Side, "by", who)
}

// left is how a VM is held by a run that is gone, with the lock on that; nil when it is not.
func (w *world) left(vm *site.VM) (*state.Held, io.Closer) {
	if len(w.leftRecords(vm)) == 0 {
		return nil, nil
	}
	lock, err := w.holds.LockHeld(vm.Name)
	if err != nil {
		return nil, nil // held by a run that lives, or being let go on
	}
	list := w.leftRecords(vm) // as it is under the lock
	if len(list) == 0 || list[0].ID == "" && w.busy(vm) {
		lock.Close()
		return nil, nil
	}
	return &list[0], lock
}

// leftRecords are the record of this site's memory, or else what marks of hosts say: versions before the record left only these.
func (w *world) leftRecords(vm *site.VM) (list []state.Held) {
	if rec, ok, err := w.holds.Held(vm.Name); err == nil && ok {
		return []state.Held{rec}
	}
	for _, side := range []state.Side{state.AtSource, state.AtRecovery} {
		f, err := w.freezerAt(vm, side)
		m, can := f.(host.Marker)
		if err != nil || !can {
			continue
		}
		if marked, err := m.Marked(vm.Name); err == nil && marked {
			list = append(list, state.Held{VM: vm.Name, Side: side, Name: vm.Name, Host: true})
		}
	}
	return list
}

// busy says whether a run works on the VM.
func (w *world) busy(vm *site.VM) bool {
	lock, err := w.memory.Lock(vm.Name)
	if err == nil {
		err = lock.Close()
	}
	return err != nil
}

// heldFact is what the rules of health are told of a VM that is held by a run which is gone.
func (w *world) heldFact(vm *site.VM) *health.Held {
	if len(w.leftRecords(vm)) == 0 {
		return nil
	}
	rec, lock := w.left(vm)
	if rec == nil {
		return nil
	}
	lock.Close()
	return &health.Held{Since: rec.Since, Where: string(rec.Side), Why: rec.Failed}
}

// stillHeld is the error of a command whose work is done, and whose VM could not be let go on.
func (w *world) stillHeld(vm *site.VM) error {
	if w.res.Command == "why" || w.res.Command == "status" { // which tell it as what they were asked
		return nil
	}
	h := w.heldFact(vm)
	if h == nil {
		return nil
	}
	return fault.New(fault.HookFailed, "%s; every command about the VM tries again", h.Text()).Of(vm.Name, "")
}

// runHook runs a freeze or thaw hook of the VM.
func (w *world) runHook(ctx context.Context, programs hook.Runner, vm *site.VM, path, operation string) (hook.Output, error) {
	return programs.Run(ctx, hook.Program{Path: path, Args: []string{vm.Name}, Timeout: vm.Hooks.Timeout,
		Env:   map[string]string{"SITREP_VM": vm.Name, "SITREP_OPERATION": operation},
		Stdin: hookInput{VM: vm.Name, Operation: operation}})
}

// holdRecovered holds the VM at the recovery site still while it is brought home. held is false when it does not run.
func (w *world) holdRecovered(ctx context.Context, vm *site.VM, name string) (letGo func() error, err error) {
	none := func() error { return nil }
	f, err := w.freezerAt(vm, state.AtRecovery)
	if err != nil || f == nil {
		return none, err
	}
	h, err := w.beginHold(ctx, vm, state.Held{Side: state.AtRecovery, Name: name, Host: true})
	if err != nil {
		return none, err
	}
	letGo = func() error {
		_, err := h.letGo(ctx)
		return err
	}
	held, err := h.freeze(ctx)
	if err == nil && held {
		return letGo, nil
	}
	h.rec.Host = false // nothing was done that would have to be undone
	if err != nil {
		h.rec.Host = true
	}
	return none, errors.Join(err, letGo())
}

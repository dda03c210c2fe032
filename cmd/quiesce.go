package cmd

import (
	"context"
	"errors"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/track"
	"sitrep/replicate"
)

// quiescer holds a VM still while a cut is taken: by its hypervisor, and, when an application-consistent point is due, by
// its hooks before that. It is a track.Quiescer.
type quiescer struct {
	w       *world
	vm      *site.VM
	freezer host.Freezer // nil: the hypervisor cannot
	due     bool         // of an application-consistent point

	reads func() (int64, error) // how many bytes of its disks are read while it is held

	hold   *hold         // while it is held
	paused time.Duration // how long it was held, in all
}

// longPause is for how long a VM can be held without a word.
const longPause = 30 * time.Second

// quiesce returns what holds a VM still; nil when nothing does.
func (w *world) quiesce(vm *site.VM, newest time.Time) (*quiescer, error) {
	f, err := w.freezerAt(vm, state.AtSource)
	if err != nil {
		return nil, err
	}
	q := &quiescer{w: w, vm: vm, freezer: f}
	every := vm.Policy().AppConsistentEvery
	q.due = every > 0 && vm.Hooks.Freeze != "" && consistentDue(w.now(), newest, vm.Policy())
	if q.freezer == nil && !q.due {
		return nil, nil
	}
	return q, nil
}

// consistentDue says whether an application-consistent point is due: the next run would be later than the policy wants by more than this
// one is early. A point of the future, by a clock that was wrong, holds up none.
func consistentDue(now, newest time.Time, p *site.Policy) bool {
	since := now.Sub(newest)
	return since < -time.Minute || since >= p.AppConsistentEvery-p.CopyFrequency/2
}

// quiesces has the VM held still for the cuts of an engine's tracker.
func (q *quiescer) quiesces(j *replicate.Job) {
	if t, ok := j.Tracker.(interface{ HeldBytes() (int64, error) }); ok {
		q.reads = t.HeldBytes
	}
	j.Tracker = track.Quiesced(j.Tracker, q)
}

// Limit is how long the VM may be held, when it is.
func (q *quiescer) Limit() time.Duration {
	if q.hold == nil {
		return 0
	}
	return q.vm.Policy().MaxPause
}

// tooLong refuses a pause that is expected to be longer than the policy allows.
func (q *quiescer) tooLong() error {
	if q.vm.Policy().MaxPause == 0 || q.w.atOnce || q.reads == nil {
		return nil
	}
	n, err := q.reads()
	if err != nil {
		return err
	}
	return q.w.pauseFits(q.vm, n)
}

// pauseFits fails when so many bytes of the VM's disks take longer to be read, by how fast they were read last, than the policy lets it be
// held still.
func (w *world) pauseFits(vm *site.VM, bytes int64) error {
	limit := vm.Policy().MaxPause
	takes := w.estimate(vm, rateScan, bytes)
	if limit == 0 || takes == nil || *takes < limit.Seconds() {
		return nil
	}
	return fault.New(fault.PauseLimit, "the VM would be held still for about %s while %s are read, and max_pause is %s",
		span(time.Duration(*takes*float64(time.Second))), size(bytes), span(limit))
}

// pauses is pauseFits for a VM that its host can hold still, whose last pause, if there was one, was not within the limit: disks that can be
// cloned, or that their VM does not write to, are not read while it is held.
func (w *world) pauses(vm *site.VM, bytes int64) error {
	f, err := w.freezerAt(vm, state.AtSource)
	mem, _, merr := w.memory.VM(vm.Name)
	if err != nil || merr != nil || f == nil || mem.Pause != nil && *mem.Pause < vm.Policy().MaxPause.Seconds() {
		return nil
	}
	return w.pauseFits(vm, bytes)
}

// Freeze lets the applications flush, then holds the VM. A hook that fails costs the consistency of the applications, not the
// recovery point. A VM that somebody has paused writes nothing, and is left to them.
func (q *quiescer) Freeze(ctx context.Context) (app bool, err error) {
	if paused, err := q.pausedByOthers(ctx); err != nil || paused {
		return false, err
	}
	if err := q.tooLong(); err != nil {
		if q.freezer != nil || !fault.Is(err, fault.PauseLimit) {
			return false, err
		}
		q.w.log.Warn("the applications are not quiesced, the recovery point is crash-consistent", "vm", q.vm.Name, "error", err)
		return false, nil
	}
	q.hold, err = q.w.beginHold(ctx, q.vm, state.Held{Side: state.AtSource, Name: q.vm.Name, Host: q.freezer != nil, Hooks: q.due})
	if err != nil {
		return false, err
	}
	// What has begun to hold the VM is waited for, and undone then: what is cut off half way may come about all the same.
	late, cancel := q.w.reluctantly(ctx, hookGrace)
	defer cancel()
	if q.due {
		app, err = q.flush(late)
	}
	if err == nil && ctx.Err() == nil && q.freezer != nil {
		var held bool
		if held, err = q.hold.freeze(late); err == nil {
			q.hold.rec.Host = held
		}
	} else if err == nil {
		err = q.hold.held()
	}
	if err == nil && ctx.Err() == nil {
		return app, nil
	}
	q.Thaw(ctx)
	if ctx.Err() != nil {
		err = fault.FromOS(ctx.Err())
	}
	return false, fault.In(err, q.vm.Name, "")
}

// pausedByOthers says whether somebody else has paused the VM.
func (q *quiescer) pausedByOthers(ctx context.Context) (bool, error) {
	if _, marks := q.freezer.(host.Marker); q.freezer == nil || marks { // which tells by itself
		return false, nil
	}
	h, ok := q.freezer.(host.Host)
	if !ok {
		return false, nil
	}
	power, err := h.State(ctx, q.vm.Name)
	return power == host.Paused, err
}

// flush runs the freeze hook.
func (q *quiescer) flush(ctx context.Context) (app bool, err error) {
	_, err = q.w.runHook(ctx, q.hold.programs(), q.vm, q.vm.Hooks.Freeze, "freeze")
	switch {
	case err == nil:
		return true, nil
	case fault.Is(err, fault.Interrupted):
		return false, err
	}
	q.w.log.Warn("the applications could not be quiesced, the recovery point is crash-consistent", "vm", q.vm.Name, "error", err)
	return false, nil
}

// Thaw lets the VM go on, then its applications. That it could not is told, and remembered until it goes on; the cut is as good.
func (q *quiescer) Thaw(ctx context.Context) {
	h := q.hold
	if h == nil {
		return
	}
	q.hold = nil
	held := h.rec.Host || h.rec.Hooks // not a VM that is off
	paused, err := h.letGo(ctx)
	if held {
		q.paused += paused
	}
	if err != nil {
		q.w.log.Error("the VM could not be let go on", "vm", q.vm.Name, "error", err)
	} else if paused > longPause {
		q.w.log.Warn("the VM was held still for long: put its disks on a filesystem with reflinks", "vm", q.vm.Name, "paused", span(paused))
	}
	err = q.w.memory.ChangeVM(q.vm.Name, func(mem *state.VM) {
		mem.Pause = q.pause()
	})
	if err != nil {
		q.w.log.Warn("the site's memory cannot be kept in order", "error", errors.Join(err))
	}
}

// pause is for how many seconds the VM was held, nil when it was not.
func (q *quiescer) pause() *float64 {
	if q == nil || q.paused == 0 {
		return nil
	}
	s := q.paused.Seconds()
	return &s
}

package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/replicate"
)

// deltaObject is what delta says of a VM.
type deltaObject struct {
	vmHead
	From      uint64   `json:"from_sequence"`
	To        uint64   `json:"sequence"`
	Unchanged bool     `json:"unchanged"`
	Shipped   int      `json:"cuts_shipped"`
	Applied   int      `json:"cuts_applied"`
	Points    int      `json:"points"`
	Sent      int64    `json:"bytes_sent"`
	Seconds   float64  `json:"seconds"`
	Estimated *float64 `json:"estimated_seconds,omitempty"`
	// Pause is for how many seconds the VM was held still.
	Pause *float64     `json:"pause_seconds,omitempty"`
	Disks []diskObject `json:"disks"`
	// Resync is set when the VM was marked and resynchronized instead.
	Resync *resyncObject `json:"resync,omitempty"`

	captured bool // the disks were read
}

func (p *program) deltaCommand() *cli.Command {
	return &cli.Command{
		Name: "delta", Usage: "cut, write change logs, ship and apply them, take a recovery point", ArgsUsage: "VM...",
		Flags: vmFlags(append(paceFlags(), acceptFlag(), &cli.BoolFlag{Name: "capture-only", Usage: "stop after writing the logs"})...),
		Action: p.vmCommand("delta", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o := &deltaObject{}
				if err := w.accepts(c, vm); err != nil {
					return o, err
				}
				p := paceOf(c, replicates)
				switch {
				case (w.opts.dryRun || c.Bool("capture-only")) && w.idle(ctx, vm, p.todo, &o.vmHead):
					return o, nil
				case w.opts.dryRun:
					return o, w.locked(ctx, vm, func(ctx context.Context) error { return w.planDelta(ctx, vm, o) })
				case c.Bool("capture-only"):
					return o, w.locked(ctx, vm, func(ctx context.Context) error { return w.captureOnly(ctx, vm, o) })
				}
				return o, w.deltaOrResync(ctx, vm, o, p)
			}
		}),
	}
}

// deltaOrResync is a delta; for a VM that is marked it is the resynchronization that it needs, when that may begin unasked.
func (w *world) deltaOrResync(ctx context.Context, vm *site.VM, o *deltaObject, p pace) error {
	defer func() {
		if o.Tried != nil && !*o.Tried {
			o.From, o.To = o.Sequence, o.Sequence
		}
	}()
	return w.attempt(ctx, vm, &o.vmHead, p, func(ctx context.Context) error {
		st, needs, err := w.ledgerOrMark(ctx, vm)
		if w.idleAs(vm, st, err, p.todo, &o.vmHead) {
			return nil
		}
		if err == nil {
			if err := w.mine(vm.Name, st); err != nil { // nobody else is told to resynchronize
				return err
			}
		}
		switch {
		case needs && w.resyncsItself(vm):
			o.Resync = &resyncObject{}
			err := w.resync(ctx, vm, o.Resync, resyncOptions{})
			o.vmHead, o.Disks, o.Sent = o.Resync.vmHead, o.Resync.Disks, o.Resync.Sent
			return err
		case needs:
			return w.leaveMarked(ctx, vm, st, err, &o.vmHead)
		}
		return w.delta(ctx, vm, o)
	})
}

// leaveMarked tells the ledger that the VM is marked, if this site knows it and the ledger does not, and refuses to do more.
func (w *world) leaveMarked(ctx context.Context, vm *site.VM, st replica.State, unread error, h *vmHead) error {
	if unread == nil {
		w.describe(vm, st, h)
		unread = w.onReplica(ctx, vm, forWriting, h, func(s *session) error { return s.tellLedger(ctx) })
	}
	if unread != nil {
		h.State, h.Health = string(st.Phase), healthCritical
		w.log.Warn("the ledger cannot be told that the VM needs a resynchronization", "vm", vm.Name, "error", unread)
	}
	return w.resyncNeeded(vm, st)
}

// delta is one cycle, as a job. Changes are captured also when the store is out of reach, and what is captured waits beside
// the disks.
func (w *world) delta(ctx context.Context, vm *site.VM, o *deltaObject) error {
	began := w.now()
	err := w.job(vm, "Replicate changes", &o.vmHead, func(j *state.Job) error {
		err := w.onReplica(ctx, vm, forWriting, &o.vmHead, func(s *session) error {
			s.record = j
			return s.delta(ctx, o)
		})
		if err != nil && !o.captured && ctx.Err() == nil && !fault.Is(err, fault.PauseLimit) && w.keepsFromShipping(err) {
			err = w.captureMeanwhile(ctx, vm, o, j, err)
		}
		return w.storeFull(vm, err)
	})
	if nerr := w.noteCycle(vm, began, o.Sent, err); nerr != nil {
		w.log.Warn("the statistics cannot be kept", "vm", vm.Name, "error", nerr)
	}
	return err
}

// delta is one cycle with a store that was there.
func (s *session) delta(ctx context.Context, o *deltaObject) error {
	if err := s.forgetAccepted(ctx); err != nil {
		return err
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	if err := s.source(); err != nil {
		return err
	}
	s.engine.LogLimit = s.vm.Policy().LogLimitPercent
	c := s.clock()
	err := s.step("Capture, ship, apply, recovery point", func() (int64, string, error) {
		d, err := s.cycle(ctx)
		o.fill(d)
		o.Pause = s.quiet.pause()
		s.noteScan(s.vm, d.Disks)
		return o.Sent, o.summary(), err
	})
	o.Seconds = c.took().Seconds()
	if err != nil {
		return s.marking(ctx, err)
	}
	s.say("%s: %s in %s", s.vm.Name, o.summary(), span(c.took()))
	s.sayAdded()
	return s.noteSuccess(s.vm, rateDelta, o.Sent, c.took())
}

// marking makes sure that a VM that needs a resynchronization is marked, here when the ledger could not be.
func (s *session) marking(ctx context.Context, err error) error {
	e := fault.FromOS(err)
	if e.Class() != fault.Resync || e.Code == fault.ResyncRequired {
		return err
	}
	st, lerr := s.engine.Replica.Ledger().Load(context.WithoutCancel(ctx))
	if lerr == nil && st.Phase != replica.Replicating {
		return err
	}
	return errors.Join(err, s.markLocally(s.vm, err))
}

// storeFull adds to the error of a volume of the store that is full how much there is and how much is needed.
func (w *world) storeFull(vm *site.VM, err error) error {
	if err == nil || fault.FromOS(err).Code != fault.NoSpace || !w.inStore(failedPath(err)) {
		return err
	}
	free := "has no room"
	if n, ok := durable.Free(w.fs, w.site.Store.Directory); ok {
		free = "has " + size(n) + " free"
	}
	mem, _, merr := w.memory.VM(vm.Name)
	waiting := total(slices.Collect(maps.Values(w.besides(vm, mem.Replica, hrl.Pos{Seq: mem.Applied}))), func(n int64) int64 { return n })
	if merr != nil || waiting == 0 {
		return fmt.Errorf("%w; the volume of the store %s; what was captured is kept beside the disks", err, free)
	}
	// The log, what it overwrites, and what is new in the pages.
	return fmt.Errorf("%w; the volume of the store %s, and the change logs that wait (%s, kept beside the disks) need up to %s there", err, free,
		size(waiting), size(3*waiting))
}

// failedPath is the file at which something failed, "" when that is not known.
func failedPath(err error) string {
	var p *fs.PathError
	var l *os.LinkError
	switch {
	case errors.As(err, &p):
		return p.Path
	case errors.As(err, &l):
		return l.New
	}
	return fault.FromOS(err).Path
}

// inStore says whether a file is one of a store that is a folder.
func (w *world) inStore(path string) bool {
	if w.site.Store.Azure != nil || path == "" {
		return false
	}
	rel, err := filepath.Rel(w.site.Store.Directory, path)
	return err == nil && filepath.IsLocal(rel)
}

// keepsFromShipping says of an error that ended a delta that changes can be captured all the same: it may be gone at the next run, and is not
// known to be one of the source.
func (w *world) keepsFromShipping(err error) bool {
	e := fault.FromOS(err)
	return e.Class() == fault.Recoverable || e.Code.Scheduled() && (strings.HasPrefix(string(e.Code), "store-") || w.inStore(failedPath(err)))
}

// notShipped says why what is captured stays beside the disks.
func notShipped(cause error) string {
	switch fault.FromOS(cause).Code {
	case fault.NoSpace:
		return "the store takes nothing, its volume is full"
	case fault.StoreUnnamed:
		return "the store has lost its identity"
	case fault.StoreDenied, fault.Permission:
		return "the store refuses this machine"
	case fault.StoreNotMounted, fault.StoreUnreachable:
		return "the store is out of reach"
	}
	return "nothing can be shipped now"
}

// captureMeanwhile writes the change logs although the store takes none, because of cause: capturing never waits for
// shipping. The outcome is cause, unless there is something graver.
func (w *world) captureMeanwhile(ctx context.Context, vm *site.VM, o *deltaObject, j *state.Job, cause error) error {
	mem, known, err := w.memory.VM(vm.Name)
	if err != nil || !known || len(mem.Disks) == 0 || mem.Joined || mem.Phase != "" && mem.Phase != replica.Replicating {
		return errors.Join(cause, err)
	}
	err = j.Step("Capture changes beside the disks", func() (int64, string, error) {
		err := w.captureBeside(ctx, vm, mem, o)
		return 0, size(changedBytes(o.Disks)) + " changed", err
	})
	switch {
	case err == nil:
		w.say("%s: %s; captured beside the disks: %s changed, position %d", vm.Name, notShipped(cause), size(changedBytes(o.Disks)), o.To)
		return cause
	case fault.FromOS(err).Code == fault.FromOS(cause).Code: // it was no error of the store
		return cause
	case fault.FromOS(err).Class() == fault.Recoverable && !fault.Cancelled(err):
		return fmt.Errorf("%w (and nothing was captured: %w)", cause, err)
	}
	w.log.Warn(notShipped(cause), "vm", vm.Name, "error", cause)
	return err
}

// captureBeside writes the change logs of a VM whose replica is known from memory.
func (w *world) captureBeside(ctx context.Context, vm *site.VM, mem state.VM, o *deltaObject) error {
	if mem.Joined {
		return fault.New(fault.WrongState, "a disk has joined the VM, and the first delta that has it needs the store").Of(vm.Name, "")
	}
	m := w.meter(vm.Name)
	defer m.stop()
	e := w.engine(vm, nil, mem.Replica, m)
	e.LogLimit, e.Applied = vm.Policy().LogLimitPercent, mem.Applied
	if err := w.withSource(e, vm, mem.Disks, w.trackDir(vm)); err != nil {
		return err
	}
	q, err := w.holding(e, vm, w.now()) // without the ledger nobody knows whether a consistent point is due
	if err != nil {
		return err
	}
	captured, err := e.Capture(ctx)
	o.Pause = q.pause()
	w.noteScan(vm, captured.Disks)
	o.capture(captured)
	if f := fault.Find(err); f != nil && f.Class() == fault.Resync {
		err = errors.Join(err, w.markLocally(vm, err))
	}
	return err
}

// noteCycle counts a cycle that began at began and ended with err.
func (w *world) noteCycle(vm *site.VM, began time.Time, sent int64, err error) error {
	if fault.Cancelled(err) || err != nil && slices.Contains([]fault.Class{fault.Refused, fault.Locked}, fault.FromOS(err).Class()) {
		return nil
	}
	c := health.Cycle{Start: began, End: w.now(), Bytes: sent, Failed: err != nil}
	return w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
		mem.Statistics = mem.Statistics.Record(w.monitoring(vm), c)
	})
}

// cycle is a delta, or the part of it that is done here when another machine applies.
func (s *session) cycle(ctx context.Context) (replicate.Delta, error) {
	if s.vm.Policy().Apply == site.ApplyElsewhere {
		return s.engine.Relay(ctx)
	}
	return s.engine.Delta(ctx)
}

func (o *deltaObject) fill(d replicate.Delta) {
	o.capture(d.Captured)
	o.Shipped, o.Applied, o.Points = d.Shipped, d.Applied, d.Points
	o.Sent = sentOf(d)
}

// sentOf is the bytes that a cycle has moved to the store.
func sentOf(d replicate.Delta) int64 {
	return total(slices.Collect(maps.Values(d.Sent)), func(n int64) int64 { return n })
}

func (o *deltaObject) capture(c replicate.Captured) {
	o.captured = !c.At.IsZero()
	o.From, o.To, o.Unchanged = c.From.Seq, c.To.Seq, c.Unchanged()
	o.Disks = diskObjects(c.Disks)
}

func (o *deltaObject) summary() string {
	if o.Unchanged && o.Shipped == 0 && o.Applied == 0 {
		return fmt.Sprintf("nothing changed, %s read", size(scannedBytes(o.Disks)))
	}
	changed := size(changedBytes(o.Disks)) + " changed"
	if o.Unchanged {
		changed = "nothing changed since the last capture"
	}
	held := ""
	if o.Pause != nil {
		held = ", the VM was held for " + seconds(*o.Pause)
	}
	return fmt.Sprintf("%s, %s sent, %s applied, position %d, %s%s",
		changed, size(o.Sent), plural(o.Applied, "cut"), o.To, plural(o.Points, "recovery point"), held)
}

// captureOnly writes the change logs beside the disks, and needs the store only to learn the phase, if it is there.
func (w *world) captureOnly(ctx context.Context, vm *site.VM, o *deltaObject) error {
	return w.job(vm, "Capture changes", &o.vmHead, func(j *state.Job) error {
		mem, err := w.relation(ctx, vm, &o.vmHead)
		if err != nil {
			return err
		}
		c := w.clock()
		err = j.Step("Capture", func() (int64, string, error) {
			err := w.captureBeside(ctx, vm, mem, o)
			return 0, size(changedBytes(o.Disks)) + " changed", err
		})
		o.Seconds = c.took().Seconds()
		if err == nil {
			w.say("%s: captured: %s changed, position %d, in %s", vm.Name, size(changedBytes(o.Disks)), o.To, span(c.took()))
		}
		return err
	})
}

// relation is what a capture needs to know of the replica: from the ledger when the store can be reached, from this
// site's memory when it cannot for the moment.
func (w *world) relation(ctx context.Context, vm *site.VM, h *vmHead) (state.VM, error) {
	mem, known, err := w.memory.VM(vm.Name)
	if err != nil {
		return mem, err
	}
	st, needs, serr := w.ledgerOrMark(ctx, vm)
	if serr == nil {
		if err := w.mine(vm.Name, st); err != nil {
			return mem, err
		}
	}
	switch {
	case needs: // it takes no more space
		h.State, h.Health = string(st.Phase), healthCritical
		return mem, w.resyncNeeded(vm, st)
	case mem.Critical != nil && !mem.Critical.Code.Scheduled():
		return mem, stopped(mem.Critical, "")
	case serr == nil:
		w.describe(vm, st, h)
		if st.Phase != replica.Replicating {
			return mem, fault.New(fault.WrongState, "nothing is captured: the VM is in state %s since %s",
				st.Phase, stamp(st.PhaseSince)).Of(vm.Name, "")
		}
		return state.VM{Replica: st.Replica, Disks: disksOf(st), Applied: st.Applied.Seq, Joined: len(st.Joined) > 0}, w.remember(ctx, vm, st)
	case known && len(mem.Disks) > 0 && w.keepsFromShipping(serr) && !fault.Cancelled(serr):
		w.log.Warn(notShipped(serr)+", changes are captured without it", "vm", vm.Name, "error", serr)
		return mem, nil
	}
	return mem, serr
}

// moving says that a plan was made of disks that did not hold still.
func moving(yes bool) string {
	if !yes {
		return ""
	}
	return "; the disks were written to while they were read"
}

// planDelta says what delta would do, by doing all of it that changes nothing.
func (w *world) planDelta(ctx context.Context, vm *site.VM, o *deltaObject) error {
	return w.onReplica(ctx, vm, forReading, &o.vmHead, func(s *session) error {
		if err := s.source(); err != nil {
			return err
		}
		s.sayAdded()
		if len(s.state.Joined) > 0 {
			s.planned(vm, "disk %s joins the VM: all disks are read, and what differs is sent", strings.Join(s.state.Joined, ", "))
			return nil
		}
		c, err := s.engine.PlanDelta(ctx)
		o.capture(c)
		o.Sent = sentBytes(o.Disks)
		if err != nil {
			return err
		}
		o.Points = len(s.state.Points)
		o.Estimated = s.sending(vm, s.estimate(vm, rateDelta, o.Sent), o.Sent)
		if o.Unchanged && o.Sent == 0 {
			s.planned(vm, "nothing to send: nothing changed%s", moving(c.Moving))
			return nil
		}
		s.planned(vm, "send %s for %s of changed blocks, %s%s", size(o.Sent), size(changedBytes(o.Disks)), estimateText(o.Estimated),
			moving(c.Moving))
		return nil
	})
}

package cmd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/wait"
)

// pace is how a command follows the schedule of retries. The zero pace tries nothing before its time.
type pace struct {
	atOnce    bool // --now: it is tried whatever the schedule says
	following bool // --wait: the schedule is followed to the end
	todo      todo // nil: the VM was named
}

// paceFlags are the flags of the commands that obey the schedule of retries.
func paceFlags() []cli.Flag {
	return []cli.Flag{nowFlag(), &cli.BoolFlag{Name: "wait",
		Usage: "wait for other runs that work on the VM, and follow the retry schedule, until it is done, or cannot be"}}
}

func paceOf(c *cli.Context, t todo) pace { return pace{c.Bool("now"), c.Bool("wait"), unnamed(c, t)} }

// retrying is a recoverable error that is tried again at a time that is known.
type retrying struct {
	error
	at time.Time
}

func (r *retrying) Unwrap() error { return r.error }

// attempt does f, which holds the VM's lock meanwhile, when the schedule of retries allows it, and keeps the schedule by
// what became of it. Not yet is no error: h says when.
func (w *world) attempt(ctx context.Context, vm *site.VM, h *vmHead, p pace, f func(context.Context) error) error {
	h.Tried = new(bool)
	w.atOnce = p.atOnce
	for {
		err := w.lockedUnlessSeeded(ctx, vm, p.todo, h, func(ctx context.Context) error {
			return w.try(ctx, vm, h, p, func() error { return f(ctx) })
		})
		if p.following && fault.Is(err, fault.GaveWay) {
			h.Job = ""
			if err := w.sleep(ctx, turnPoll); err != nil { // for the one that asked to have it
				return err
			}
			continue
		}
		if !p.following || h.RetryAt == nil || err != nil && fault.FromOS(err).Class() != fault.Recoverable {
			return err
		}
		if err != nil {
			w.printError(w.stderr, fault.In(err, vm.Name, ""), vm.Name)
		}
		if err := w.sleep(ctx, h.RetryAt.Sub(w.now())); err != nil {
			return err
		}
		h.Job, h.RetryAt = "", nil
		p.atOnce = false
	}
}

// try is one attempt, by whoever holds the VM's lock.
func (w *world) try(ctx context.Context, vm *site.VM, h *vmHead, p pace, f func() error) error {
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil {
		return err
	}
	started := w.now()
	switch {
	case mem.Critical != nil && (p.atOnce || w.diskIsBack(vm, mem.Critical) || mem.Critical.Code.Scheduled() && mem.Retry.Due(started)):
	case mem.Critical != nil:
		h.Sequence = mem.Applied
		if w.idle(ctx, vm, p.todo, h) {
			return nil
		}
		if err := w.haveStore(); err != nil { // what is in the way at this moment is told before what was
			return err
		}
		if mem.Critical.Code.Scheduled() {
			h.RetryAt = &mem.Retry.NextAt
			return &retrying{stopped(mem.Critical, fmt.Sprintf(", or before %s", stamp(mem.Retry.NextAt))), mem.Retry.NextAt}
		}
		return stopped(mem.Critical, "")
	case !p.atOnce && !mem.Retry.Due(started):
		w.notYet(vm, h, mem)
		return nil
	}
	err = f()
	if h.PassedOver != "" {
		return err
	}
	tried := true
	h.Tried = &tried
	return w.keepSchedule(vm, h, started, err)
}

// diskIsBack says whether what has stopped the VM was a source disk that was not there, and is there again: a volume that was not mounted
// for a moment needs nobody to say so.
func (w *world) diskIsBack(vm *site.VM, f *state.Failure) bool {
	d := diskOf(vm, f.Disk)
	if f.Code != fault.DiskMissing || d == nil {
		return false
	}
	_, err := w.fs.Stat(d.Path)
	return err == nil
}

// notYet says when the next attempt is made.
func (w *world) notYet(vm *site.VM, h *vmHead, mem state.VM) {
	at := mem.Retry.NextAt
	h.RetryAt = &at
	h.Sequence = mem.Applied
	if st := ledgerOf(vm, mem); st != nil {
		v := w.judge(vm, st, mem, state.Record{})
		h.State, h.Health = v.State, string(v.Health)
	}
	why := ""
	if mem.Failed != nil {
		why = " (" + string(mem.Failed.Code) + ")"
	}
	w.say("%s: not tried: the last attempt failed%s, the next one is due at %s; %s tries at once", vm.Name, why, w.clockTime(at),
		w.commands("sitrep "+w.res.Command+" "+vm.Name+" --now"))
}

// stopped is the refusal to try before an administrator has mended the cause of an error, in the words of that error. or is what else ends
// the waiting, "" for nothing.
func stopped(f *state.Failure, or string) error {
	return fault.New(f.Code, "nothing is tried since %s, until \"sitrep resume\" says that the cause was mended%s: %s", stamp(f.At), or, f.Message)
}

// keepSchedule keeps in memory when the next attempt is made after one that began at started and ended with err.
func (w *world) keepSchedule(vm *site.VM, h *vmHead, started time.Time, err error) error {
	if fault.Cancelled(err) || err != nil && fault.FromOS(err).Class() == fault.Locked {
		return err
	}
	again := err != nil && fault.FromOS(err).Code.Scheduled()
	kerr := w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
		if f := mem.Critical; err != nil && f != nil && f.Code.Scheduled() && outdates(err) {
			mem.Critical = nil
		}
		if !again {
			mem.Retry = health.Retry{}
			return
		}
		mem.Retry = mem.Retry.Failed(started, w.now())
		at := mem.Retry.NextAt
		h.RetryAt = &at
	})
	if kerr != nil {
		w.log.Warn("the retry schedule cannot be kept, the next run tries again", "vm", vm.Name, "error", kerr)
	}
	if h.RetryAt != nil && err != nil {
		return &retrying{fault.In(err, vm.Name, ""), *h.RetryAt}
	}
	return err
}

// outdates says that an attempt which ended with err got further than, or was stopped by something else than, a critical error that came
// before.
func outdates(err error) bool {
	c := fault.FromOS(err).Class()
	return c != fault.Critical && c != fault.Refused
}

// retryAt is when an error is tried again, nil when that is not known.
func retryAt(err error) *time.Time {
	var r *retrying
	if errors.As(err, &r) {
		return &r.at
	}
	return nil
}

// toCome says that a moment is far enough away to be told to people: what is due while they read is due.
func (p *program) toCome(t time.Time) bool { return t.Sub(p.now()) >= time.Second }

// clockTime writes a moment to come for people, and how far away it is.
func (p *program) clockTime(t time.Time) string {
	return fmt.Sprintf("%s (in %s)", p.local(t), span(max(0, t.Sub(p.now()))))
}

// sleep waits, or returns why it could not.
func (p *program) sleep(ctx context.Context, d time.Duration) error {
	if p.pause != nil {
		return p.pause(ctx, d)
	}
	if err := wait.For(ctx, d); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

package cmd

import (
	"context"
	"errors"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/replicate"
)

// vmCommand is the frame of a command about VMs: it reads the site file, selects the VMs and does f for each.
func (p *program) vmCommand(command string, none whenNone, f func(*world, *cli.Context) func(context.Context, *site.VM) (vmObject, error)) cli.ActionFunc {
	return p.askedCommand(command, none, func(context.Context, *world, *cli.Context, []*site.VM) error { return nil }, f)
}

// askedCommand is vmCommand with a question before anything is done.
func (p *program) askedCommand(command string, none whenNone, ask func(context.Context, *world, *cli.Context, []*site.VM) error,
	f func(*world, *cli.Context) func(context.Context, *site.VM) (vmObject, error)) cli.ActionFunc {
	return p.action(command, func(ctx context.Context, c *cli.Context) error {
		w, err := p.open()
		if err != nil {
			return err
		}
		vms, err := selectVMs(w.site, c, none)
		if err != nil {
			return err
		}
		if err := ask(ctx, w, c, vms); err != nil {
			return err
		}
		return w.each(ctx, vms, f(w, c))
	})
}

// verb does f as a job on the VM's replica, opened for writing, while no other run works on the VM.
func (w *world) verb(ctx context.Context, vm *site.VM, name string, h *vmHead, f func(*session) error) error {
	return w.locked(ctx, vm, func(ctx context.Context) error { return w.jobOn(ctx, vm, name, h, f) })
}

// jobOn is verb for whoever holds the VM's lock.
func (w *world) jobOn(ctx context.Context, vm *site.VM, name string, h *vmHead, f func(*session) error) error {
	return w.jobAs(ctx, vm, forWriting, name, h, f)
}

// jobAs is jobOn for what is not only the writer's.
func (w *world) jobAs(ctx context.Context, vm *site.VM, a access, name string, h *vmHead, f func(*session) error) error {
	return w.job(vm, name, h, func(job *state.Job) error {
		return w.onReplica(ctx, vm, a, h, func(s *session) error {
			s.record = job
			return f(s)
		})
	})
}

// session is a replica that is open, and the engine that works on it.
type session struct {
	*world
	vm     *site.VM
	state  replica.State // as it was opened
	engine *replicate.Job
	meter  *meter
	record *state.Job // nil in a dry run
	quiet  *quiescer  // what holds the VM still while a cut is taken; nil for nothing
}

// onReplica does f with the VM's replica, and says in h how the VM stands afterwards.
func (w *world) onReplica(ctx context.Context, vm *site.VM, a access, h *vmHead, f func(*session) error) (err error) {
	r, st, err := w.replica(ctx, vm, a)
	if err != nil {
		return err
	}
	defer closing(r, &err)
	return w.session(ctx, vm, r, st, h, f)
}

func (w *world) session(ctx context.Context, vm *site.VM, r replica.Replica, st replica.State, h *vmHead, f func(*session) error) error {
	m := w.meter(vm.Name)
	defer m.stop()
	s := &session{world: w, vm: vm, state: st, meter: m, engine: w.engine(vm, r, st.Replica, m)}
	err := f(s)
	after, lerr := r.Ledger().Load(context.WithoutCancel(ctx))
	if lerr != nil {
		if err == nil {
			return lerr
		}
		after = st
	}
	if s.record != nil {
		if nerr := w.noteLedger(vm, after); nerr != nil {
			w.log.Warn("the site's memory cannot be kept in order", "error", nerr) // what was done stands
		}
	}
	w.describe(vm, after, h)
	return err
}

// source gives the session's engine the VM's disks, and what holds the VM still while a cut of them is taken.
func (s *session) source() error {
	if err := s.sourceAtRest(); err != nil {
		return err
	}
	if s.opts.dryRun { // the VM is not held still for a plan
		return nil
	}
	var err error
	s.quiet, err = s.holding(s.engine, s.vm, newestAppConsistent(s.state))
	return err
}

// sourceAtRest is source for a VM that is known to be off.
func (s *session) sourceAtRest() error {
	return s.withSource(s.engine, s.vm, disksOf(s.state), s.trackDir(s.vm))
}

// holding has a VM held still while a cut of its disks is taken. newest is when the last application-consistent point was taken.
func (w *world) holding(j *replicate.Job, vm *site.VM, newest time.Time) (*quiescer, error) {
	q, err := w.quiesce(vm, newest)
	if q != nil {
		q.quiesces(j)
	}
	return q, err
}

// newestAppConsistent is the time of the newest point at which the applications had flushed, zero when there is none.
func newestAppConsistent(st replica.State) (at time.Time) {
	for _, p := range st.Points {
		if p.AppConsistent {
			at = p.CutAt
		}
	}
	return at
}

// step does f as a step of the job.
func (s *session) step(name string, f func() (int64, string, error)) error {
	s.record.Live = func() state.Live {
		done, planned := s.meter.progress()
		return state.Live{Moved: s.moved.of(s.vm.Name), Done: done, Planned: planned}
	}
	return s.record.Step(name, f)
}

// diskObject is what a verb did to one disk, in --json. Sizes are bytes.
type diskObject struct {
	Name    string  `json:"name"`
	Scanned int64   `json:"bytes_scanned"`
	Changed int64   `json:"bytes_changed"`
	Sent    int64   `json:"bytes_sent"`
	Blocks  int64   `json:"blocks"`
	Seconds float64 `json:"seconds"`
}

func diskObjects(list []replicate.DiskResult) []diskObject {
	out := make([]diskObject, len(list))
	for i, d := range list {
		out[i] = diskObject{d.Name, d.Scanned, d.Changed, d.Sent, d.Blocks, d.Took.Seconds()}
	}
	return out
}

func sentBytes(list []diskObject) int64 {
	return total(list, func(d diskObject) int64 { return d.Sent })
}
func changedBytes(list []diskObject) int64 {
	return total(list, func(d diskObject) int64 { return d.Changed })
}
func scannedBytes(list []diskObject) int64 {
	return total(list, func(d diskObject) int64 { return d.Scanned })
}

// clock measures work.
type clock struct {
	now   func() time.Time
	began time.Time
}

func (p *program) clock() clock { return clock{p.now, p.now()} }

func (c clock) took() time.Duration { return c.now().Sub(c.began) }

// joined is errors.Join for a deferred call.
func joined(err *error, more error) { *err = errors.Join(*err, more) }

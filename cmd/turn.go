package cmd

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/wait"
)

// This file is how commands that work on one VM take turns.
//
// A run that finds the VM locked ends at once, waits (--wait), or, when what it does matters more than a cycle of replication, asks
// the other run to end, and waits for a while. A run that can be asked looks for that all the time it works (giveWay): its context
// ends, as by a signal, so that it ends at its next step, lets a VM go on that it holds, and loses nothing.
//
// What only looks at a replica, and for long (verify, points --export), steps aside for every other run (politely): it keeps where it
// stands, waits until the other one is done, and goes on there. So replication goes on while it lasts. Who finds such a run asks it, waits
// for that moment, and says nothing about it.

const (
	// turnLimit is how long a failover, a clean-up or an export waits for its turn without --wait.
	turnLimit = time.Minute
	// turnPolite is how long a test failover waits before it asks: most cycles are over by then.
	turnPolite = 10 * time.Second
	// turnPoll is how often a run that waits looks whether it is its turn, and a run that works whether it is asked to end.
	turnPoll = 200 * time.Millisecond
)

const forever = time.Duration(math.MaxInt64)

// turns is what a command does when another run works on the VM.
type turns struct {
	limit time.Duration // how long it waits; 0: not at all
	asks  time.Duration // after how long it asks the other run to end; forever: never
	job   string        // ID of the one that waits, "" while it has none
}

func waitFlag() cli.Flag {
	return &cli.BoolFlag{Name: "wait", Usage: "wait until no other run works on the VM, however long that takes"}
}

// turns is what this command does.
func (w *world) turns() turns {
	t := turns{asks: forever}
	if !w.opts.dryRun {
		switch w.res.Command {
		case "failover test":
			t = turns{limit: turnLimit, asks: turnPolite}
		case "failover planned", "failover unplanned", "failover continue", "failover cleanup", "failover commit", "failover undo", "failback":
			t = turns{limit: turnLimit}
		}
	}
	if w.waits {
		t.limit = forever
	}
	return t
}

// yielding says whether a run ends when another one asks for its turn.
type yielding bool

const (
	yields yielding = true
	stays  yielding = false
)

// yielding is whether this command does: the copy of a VM that is not protected yet, and failovers, do not.
func (w *world) yielding() yielding {
	return yielding(slices.Contains([]string{"delta", "apply", "resync"}, w.res.Command))
}

// locked does f while no other run changes the VM or its replica. The context that f is given ends when it is to give way.
func (w *world) locked(ctx context.Context, vm *site.VM, f func(context.Context) error) error {
	return w.inTurn(ctx, vm, state.Changes, w.turns(), w.yielding(), f)
}

// inTurn does f while no other run does x with the VM.
func (w *world) inTurn(ctx context.Context, vm *site.VM, x state.Exclusive, t turns, y yielding, f func(context.Context) error) (err error) {
	lock, err := w.waitTurn(ctx, vm, x, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if y == stays {
		return f(ctx)
	}
	if a, asked := w.memory.Asked(vm.Name, x); asked {
		return gaveWay(vm, a)
	}
	return w.yieldingTo(ctx, vm, x, f)
}

// yieldingTo does f until another run asks for x.
func (w *world) yieldingTo(ctx context.Context, vm *site.VM, x state.Exclusive, f func(context.Context) error) error {
	own, stop := w.giveWay(ctx, vm, x)
	defer stop()
	err := f(own)
	if ctx.Err() != nil { // it was told to end by a signal, too
		return err
	}
	return w.toldToYield(vm, err)
}

// inFailover does f while no other run makes or removes the VM of a test failover. Of a test (k) that is all, so that replication goes
// on beside it, and it gives way to what is no test; whatever else is done about a failover has the replica to itself too.
func (w *world) inFailover(ctx context.Context, vm *site.VM, k failover.Kind, f func(context.Context) error) error {
	t := w.turns()
	if k == failover.Test || w.res.Command == "failover cleanup" { // one test does not end another one
		t.asks = forever
		if !w.waits {
			t.limit = 0
		}
	}
	if k == failover.Test && !w.opts.dryRun {
		return w.inTurn(ctx, vm, state.Tests, t, yields, f)
	}
	return w.inTurn(ctx, vm, state.Tests, t, stays, func(ctx context.Context) error { return w.locked(ctx, vm, f) })
}

// besideTurn does f, in the middle of a failover of a kind, while no other run changes the replica.
func (w *world) besideTurn(ctx context.Context, vm *site.VM, k failover.Kind, f func(context.Context) error) error {
	if k == failover.Test && !w.opts.dryRun {
		return w.locked(ctx, vm, f)
	}
	return f(ctx)
}

// turnBeside gives a test failover its turns with the replica, for the moments at which it writes to the ledger. It waits for them as
// long as it takes: what it has made should not be lost for a cycle of replication that runs long, here or on another machine.
func (w *world) turnBeside(vm *site.VM, o *failoverObject) func(context.Context, func(context.Context) error) error {
	return func(ctx context.Context, f func(context.Context) error) error {
		for began := time.Now(); ; {
			err := w.inTurn(ctx, vm, state.Changes, turns{limit: forever, asks: turnPolite, job: o.Job}, stays, f)
			if !fault.Is(err, fault.ReplicaHeld) || time.Since(began) > turnLimit {
				return err
			}
			if err := wait.For(ctx, turnPoll); err != nil {
				return fault.FromOS(err)
			}
		}
	}
}

// giveWay is a context that ends when another run asks for its turn with the VM.
func (w *world) giveWay(ctx context.Context, vm *site.VM, x state.Exclusive) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if wait.For(ctx, turnPoll) != nil {
				return
			}
			if a, asked := w.memory.Asked(vm.Name, x); asked {
				w.yielded.Store(vm.Name, a)
				cancel()
				return
			}
		}
	}()
	return ctx, func() {
		cancel()
		<-done
		w.yielded.Delete(vm.Name)
	}
}

// toldToYield is err; of a run that was ended because another one asked for its turn it says that.
func (w *world) toldToYield(vm *site.VM, err error) error {
	a, asked := w.yielded.Load(vm.Name)
	if !asked || !fault.Cancelled(err) {
		return err
	}
	return gaveWay(vm, a.(state.Ask))
}

func gaveWay(vm *site.VM, a state.Ask) error {
	return fault.New(fault.GaveWay, "gave way to %s", a.Who()).Of(vm.Name, "")
}

// waitTurn locks the VM for x, and waits for that as long as t says.
func (w *world) waitTurn(ctx context.Context, vm *site.VM, x state.Exclusive, t turns) (io.Closer, error) {
	q := queue{turns: t, try: func() (io.Closer, error) { return w.memory.LockFor(vm.Name, x) },
		ask: func() (io.Closer, error) { return w.askTurn(vm, x, t.job) },
		say: func(why string) { w.say("%s: waits for its turn: %s", vm.Name, why) }}
	lock, err := q.wait(ctx, func(q *queue) {
		if x == state.Changes && w.memory.Looked(vm.Name) {
			q.limit, q.asks, q.say = max(q.limit, turnLimit), 0, func(string) {}
			q.ask = func() (io.Closer, error) { return w.askTurn(vm, state.Looks, t.job) }
		}
	})
	return lock, fault.In(err, vm.Name, "")
}

func (w *world) askTurn(vm *site.VM, x state.Exclusive, job string) (io.Closer, error) {
	return w.memory.Ask(state.Ask{VM: vm.Name, Exclusive: x, Command: w.res.Command, Job: job, PID: os.Getpid(), Since: w.now().UTC()})
}

// politely does f, which only looks, while no other run changes the VM or its replica, and steps aside for those that want to: the context
// of f ends then, and f is done again when they are done. It goes on where it stood.
func (w *world) politely(ctx context.Context, vm *site.VM, t turns, f func(context.Context) error) error {
	for t.limit = max(w.turns().limit, t.limit); ; t = (turns{limit: forever, asks: forever}) {
		if err := w.lookUntilAsked(ctx, vm, t, f); !fault.Is(err, fault.GaveWay) || ctx.Err() != nil {
			return err
		}
		for asked := true; asked; _, asked = w.memory.Asked(vm.Name, state.Looks) {
			if err := wait.For(ctx, turnPoll); err != nil {
				return fault.FromOS(err)
			}
		}
	}
}

func (w *world) lookUntilAsked(ctx context.Context, vm *site.VM, t turns, f func(context.Context) error) (err error) {
	lock, err := w.waitTurn(ctx, vm, state.Changes, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	looks, err := w.memory.LockFor(vm.Name, state.Looks)
	if err != nil {
		return fault.In(err, vm.Name, "")
	}
	defer func() { err = errors.Join(err, looks.Close()) }()
	return w.yieldingTo(ctx, vm, state.Looks, f)
}

// waitPlan locks a recovery plan, and waits for that with --wait.
func (w *world) waitPlan(ctx context.Context, plan string) (io.Closer, error) {
	t := turns{asks: forever}
	if w.waits {
		t.limit = forever
	}
	q := queue{turns: t, try: func() (io.Closer, error) { return w.memory.LockPlan(plan) },
		say: func(why string) { w.say("plan %s: waits for its turn: %s", plan, why) }}
	return q.wait(ctx, func(*queue) {})
}

// queue is a run that waits for its turn.
type queue struct {
	turns
	try func() (io.Closer, error) // fails with fault.RunLocked while it is another run's turn
	ask func() (io.Closer, error) // asks that run to end, until Close
	say func(why string)
}

// wait returns the lock that try takes. of says what else holds for whoever has it.
func (q queue) wait(ctx context.Context, of func(*queue)) (lock io.Closer, err error) {
	lock, err = q.try()
	if fault.Is(err, fault.RunLocked) {
		of(&q)
	}
	if q.limit == 0 || !fault.Is(err, fault.RunLocked) {
		return lock, err
	}
	q.say(strings.TrimPrefix(fault.FromOS(err).Msg, "VM "))
	var asking io.Closer
	defer func() {
		if asking != nil {
			err = errors.Join(err, asking.Close())
		}
		if err != nil && lock != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	for began := time.Now(); fault.Is(err, fault.RunLocked); lock, err = q.try() {
		waited := time.Since(began)
		if waited >= q.limit {
			e := *fault.FromOS(err)
			e.Msg += "; waited for " + span(waited) + ", --wait waits as long as it takes"
			return nil, &e
		}
		if asking == nil && q.ask != nil && waited >= q.asks {
			if asking, err = q.ask(); err != nil {
				return nil, err
			}
		}
		if err := wait.For(ctx, turnPoll); err != nil {
			return nil, fault.FromOS(err)
		}
	}
	return lock, err
}

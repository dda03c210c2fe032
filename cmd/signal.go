package cmd

import (
	"context"
	"os"
	"os/signal"
	"time"
)

// lastLimit is how long a run that was told twice to end still has, to let go on what it holds.
const lastLimit = 10 * time.Second

// untilSignal is a context that ends with the first signal that asks the run to end: what was begun is then ended or undone,
// and VMs that are held go on. The second signal closes p.hurry, which cuts short what is waited for, and lastLimit later the run is
// over; the third one ends it at once. A VM that is held then is let go on by its guard (see hold).
//
// A pipe that nobody reads is no such signal: it costs output (see sink), and never work. A SIGHUP that the run was started to
// ignore (nohup) is ignored.
func (p *program) untilSignal(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	asked, pipe, done := make(chan os.Signal, 3), make(chan os.Signal, 1), make(chan struct{})
	for _, s := range endingSignals() {
		signal.Notify(asked, s)
	}
	drainPipeSignals(pipe)
	p.hurry = make(chan struct{})
	go func() {
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			case <-asked:
			}
			if p.deaf.Load() {
				continue
			}
			switch n {
			case 1:
				cancel()
			case 2:
				close(p.hurry)
				time.AfterFunc(lastLimit, func() { os.Exit(exitInterrupted) })
			default:
				os.Exit(exitInterrupted)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(asked)
		close(done)
		cancel()
	}
}

// reluctantly is a context that ends some time after ctx does, or when the run is told twice to end: for what is better
// waited for than cut off half way.
func (p *program) reluctantly(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-late.Done():
			return
		case <-ctx.Done():
		}
		select {
		case <-late.Done():
		case <-p.hurry:
		case <-time.After(grace):
		}
		cancel()
	}()
	return late, cancel
}

package replicate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strconv"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/replicate/replicatetest"
)

// TestSimulation lives a random life: guests write and grow, deltas and captures run, the power fails in the middle of
// them, volumes fill up. Whenever a run completes, the replica is the source, and every recovery point is what the disks
// were at its cut. SITREP_SEED repeats one life; SITREP_LONG lives many.
func TestSimulation(t *testing.T) {
	lives := 12
	if os.Getenv("SITREP_LONG") != "" {
		lives = 200
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SITREP_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed, lives = n, 1
	}
	for i := range lives {
		if err := live(seed + uint64(i)); err != nil {
			t.Fatalf("SITREP_SEED=%d: %v", seed+uint64(i), err)
		}
	}
}

// life is one simulation.
type life struct {
	*replicatetest.Rig
	rng     *rand.Rand
	g       replicatetest.Guest
	history map[hrl.Pos]replicatetest.Guest // what the disks were at the cut of each position seen so far
	log     []string
}

func live(seed uint64) (err error) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(seed, 7))
	fs := crashfs.New()
	fs.SetClone(rng.IntN(2) == 0)
	l := &life{Rig: replicatetest.New(fs, "os", "data"), rng: rng, g: replicatetest.NewGuest(rng), history: map[hrl.Pos]replicatetest.Guest{}}
	l.Keep = 1 + rng.IntN(5)
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%v", err, l.log)
		}
	}()
	if err := errors.Join(l.Write(l.g), l.Prepare(ctx, l.g)); err != nil {
		return err
	}
	if err := l.eventually(ctx, "protect", func() error { return l.Protect(ctx) }); err != nil {
		return err
	}
	for step := range 25 {
		l.Now = l.Now.Add(5 * time.Minute)
		if err := l.step(ctx); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	return nil
}

func (l *life) step(ctx context.Context) error {
	switch l.rng.IntN(8) {
	case 0: // a disk grows
		name := []string{"os", "data"}[l.rng.IntN(2)]
		l.g[name] = append(l.g[name], make([]byte, (1+l.rng.IntN(12))*512)...)
		l.log = append(l.log, "grow "+name)
	case 1: // nothing happens
	default:
		replicatetest.Scribble(l.rng, l.g)
	}
	if err := l.Write(l.g); err != nil {
		return err
	}
	if l.rng.IntN(3) == 0 {
		err := l.eventually(ctx, "capture", func() error { return l.Capture(ctx) })
		return err
	}
	if err := l.eventually(ctx, "delta", func() error { _, err := l.Delta(ctx); return err }); err != nil {
		return err
	}
	return l.check(ctx)
}

// eventually runs a verb until it completes, with crashes and full volumes on the way.
func (l *life) eventually(ctx context.Context, what string, run func() error) error {
	for try := 0; ; try++ {
		if try > 40 {
			return fmt.Errorf("%s never completes", what)
		}
		l.disturb(what)
		err := run()
		l.FS.SetCapacity(0)
		switch {
		case err == nil:
			l.FS = l.FS.AfterCrash(crashfs.ProcessKill, l.rng.Uint64())
			return l.remember(ctx)
		case errors.Is(err, crashfs.ErrCut):
			p := crashfs.Policies()[l.rng.IntN(len(crashfs.Policies()))]
			l.log = append(l.log, fmt.Sprintf("%s cut (%v)", what, p))
			l.FS = l.FS.AfterCrash(p, l.rng.Uint64())
		case fault.Is(err, fault.NoSpace):
			l.log = append(l.log, what+" full")
		case what == "protect" && fault.Is(err, fault.WrongState): // it had completed
			return l.remember(ctx)
		default:
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := l.remember(ctx); err != nil {
			return err
		}
	}
}

func (l *life) disturb(what string) {
	switch l.rng.IntN(4) {
	case 0:
		k := 1 + l.rng.IntN(150)
		l.FS.CutAfter(k)
		l.log = append(l.log, fmt.Sprintf("%s, cut after %d", what, k))
	case 1:
		l.FS.SetCapacity(l.FS.Allocated() + int64(l.rng.IntN(20))*4096)
	default:
		l.log = append(l.log, what)
	}
}

// remember notes that the position the tracker stands at, if it is new, is what the disks are now.
func (l *life) remember(ctx context.Context) error {
	j, _, err := l.Job(ctx, true)
	if err != nil {
		return err
	}
	if p := j.Tracker.Position(); !p.IsZero() && l.history[p] == nil {
		l.history[p] = l.g.Clone()
	}
	return nil
}

func (l *life) check(ctx context.Context) error {
	if err := l.SameReplica(ctx, l.g); err != nil {
		return err
	}
	points, err := l.Points(ctx)
	if err != nil {
		return err
	}
	if len(points) == 0 || len(points) > l.Keep {
		return fmt.Errorf("there are %d recovery points, %d are to be kept", len(points), l.Keep)
	}
	for at, g := range points {
		if want, ok := l.history[at]; !ok || !reflect.DeepEqual(g, want) {
			return fmt.Errorf("the recovery point at %s is not what the disks were", at)
		}
	}
	return l.Verified(ctx)
}

package track_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/track"
)

// still is a VM that is held, and how often it was.
type still struct {
	held, freezes int
	app           bool
	failFreeze    error
	t             *testing.T
}

func (s *still) Freeze(context.Context) (bool, error) {
	if s.failFreeze != nil {
		return false, s.failFreeze
	}
	s.held++
	s.freezes++
	return s.app, nil
}

func (s *still) Thaw(ctx context.Context) {
	if ctx.Err() != nil {
		s.t.Error("thawed with a context that is cancelled")
	}
	s.held--
}

func (s *still) Limit() time.Duration { return 0 }

// tracker takes cuts of one disk, frozen or not, of which each step can fail.
type tracker struct {
	track.Tracker
	vm                 *still
	frozen, untouched  bool
	failCut, failCheck error
	closed             int
}

func (t *tracker) Cut(context.Context, hrl.Pos) (track.Cut, error) {
	if t.vm.held == 0 && t.vm.freezes > 0 {
		t.vm.t.Error("the cut was taken while the VM ran")
	}
	if t.failCut != nil {
		return nil, t.failCut
	}
	return &cut{t}, nil
}

type cut struct{ t *tracker }

func (c *cut) From() hrl.Pos                          { return hrl.Pos{} }
func (c *cut) At() time.Time                          { return time.Time{} }
func (c *cut) AppConsistent() bool                    { return false }
func (c *cut) Disks() []track.CutDisk                 { return []track.CutDisk{cutDisk{t: c.t}} }
func (c *cut) Check(context.Context) error            { return c.t.failCheck }
func (c *cut) Advance(context.Context, hrl.Pos) error { return nil }
func (c *cut) Confirm(context.Context) error          { return nil }
func (c *cut) Close() error                           { c.t.closed++; return nil }

type cutDisk struct {
	track.CutDisk
	t *tracker
}

func (d cutDisk) Frozen() bool    { return d.t.frozen }
func (d cutDisk) Untouched() bool { return d.t.untouched }

// Scan reads until it is told to end.
func (d cutDisk) Scan(ctx context.Context, _ track.Options, _ func(context.Context, track.Change) error) (track.Stats, error) {
	<-ctx.Done()
	return track.Stats{Scanned: 1}, ctx.Err()
}

func (d cutDisk) Image() disk.Image { return nil }

var errSome = errors.New("injected")

// TestQuiesced: the VM is held while the cut is taken, as long as its disks are read and no longer, and goes on whatever
// fails.
func TestQuiesced(t *testing.T) {
	for name, c := range map[string]struct {
		set       func(*tracker)
		heldAfter int // when Cut has returned
		failed    bool
	}{
		"disks are read":   {func(*tracker) {}, 1, false},
		"views are frozen": {func(t *tracker) { t.frozen = true }, 0, false},
		"untouched":        {func(t *tracker) { t.untouched = true }, 0, false},
		"cut fails":        {func(t *tracker) { t.failCut = errSome }, 0, true},
		"freeze fails":     {func(t *tracker) { t.vm.failFreeze = errSome }, 0, true},
		"check fails":      {func(t *tracker) { t.failCheck = errSome }, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			vm := &still{t: t, app: true}
			in := &tracker{vm: vm}
			c.set(in)
			ctx, cancel := context.WithCancel(t.Context())
			got, err := track.Quiesced(in, vm).Cut(ctx, hrl.Pos{}.Next())
			if (err != nil) != c.failed || vm.held != c.heldAfter {
				t.Fatalf("error %v, the VM is held %d times", err, vm.held)
			}
			cancel() // what is held goes on all the same
			if err != nil {
				return
			}
			if !got.AppConsistent() {
				t.Error("the cut is not application-consistent")
			}
			if err := got.Check(t.Context()); !errors.Is(err, in.failCheck) {
				t.Error(err)
			}
			if vm.held != 0 {
				t.Error("the VM is held after the last read")
			}
			if err := got.Close(); err != nil || vm.held != 0 || in.closed != 1 {
				t.Errorf("error %v, held %d times, closed %d times", err, vm.held, in.closed)
			}
		})
	}
}

// TestQuiescedClose: a cut that is given up before its check lets the VM go on too.
func TestQuiescedClose(t *testing.T) {
	vm := &still{t: t}
	in := &tracker{vm: vm}
	c, err := track.Quiesced(in, vm).Cut(t.Context(), hrl.Pos{}.Next())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil || vm.held != 0 || in.closed != 1 {
		t.Errorf("error %v, held %d times, closed %d times", err, vm.held, in.closed)
	}
}

// TestNotQuiesced: a cut of everything does not hold the VM.
func TestNotQuiesced(t *testing.T) {
	vm := &still{t: t}
	c, err := track.Quiesced(&tracker{vm: vm}, vm).Cut(t.Context(), hrl.Pos{})
	if err != nil || vm.freezes != 0 {
		t.Fatalf("error %v, frozen %d times", err, vm.freezes)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestPauseLimit: a VM goes on when the limit of its pause is over, whatever its disks are being read for, and the cut has failed; one whose
// views are frozen before that is not concerned.
func TestPauseLimit(t *testing.T) {
	thawed := make(chan struct{})
	in := &tracker{vm: &still{t: t}}
	vm := &limited{limit: 20 * time.Millisecond, thawed: thawed}
	c, err := track.Quiesced(in, vm).Cut(t.Context(), hrl.Pos{}.Next())
	if err != nil {
		t.Fatal(err)
	}
	stats, err := c.Disks()[0].Scan(t.Context(), track.Options{}, nil)
	if !fault.Is(err, fault.PauseLimit) || fault.Cancelled(err) || stats.Scanned != 1 {
		t.Errorf("the scan: %v, %+v", err, stats)
	}
	<-thawed // although nobody has closed the cut, or asked for anything else of it
	if err := c.Check(t.Context()); !fault.Is(err, fault.PauseLimit) {
		t.Errorf("the check: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}

	in = &tracker{vm: &still{t: t}, frozen: true}
	vm = &limited{limit: time.Hour, thawed: make(chan struct{})}
	if c, err = track.Quiesced(in, vm).Cut(t.Context(), hrl.Pos{}.Next()); err != nil {
		t.Fatal(err)
	}
	<-vm.thawed
	if err := errors.Join(c.Check(t.Context()), c.Close()); err != nil {
		t.Error(err)
	}
}

// limited is a VM that may be held for some time only.
type limited struct {
	limit  time.Duration
	thawed chan struct{} // closed by Thaw, which is called once
}

func (l *limited) Freeze(context.Context) (bool, error) { return false, nil }
func (l *limited) Thaw(context.Context)                 { close(l.thawed) }
func (l *limited) Limit() time.Duration                 { return l.limit }

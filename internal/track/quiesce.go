package track

import (
	"context"
	"errors"
	"sync"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// Quiescer holds a VM still while a cut of its disks is taken.
type Quiescer interface {
	// Freeze returns when the VM writes no more. app says that its applications have flushed, so that what is cut is
	// application-consistent. When it fails nothing is held.
	Freeze(ctx context.Context) (app bool, err error)
	// Thaw lets the VM go on. It is called once for each Freeze that succeeded, with a context that is not cancelled. A VM that cannot
	// be let go on is the Quiescer's to tell: what was cut is as good.
	Thaw(ctx context.Context)
	// Limit is for how long the VM may be held, asked after each Freeze that succeeded. Then it goes on, and the cut has failed; 0: no limit.
	Limit() time.Duration
}

// Quiesced returns t with the cuts of deltas taken while q holds the VM still: until all views are frozen, or, where the
// disks themselves are read, until that is done. Whatever happens, the VM goes on. A cut since the zero position, of an
// initial copy or a resynchronization, does not need that, and may take hours: the delta behind it brings what changed
// meanwhile.
func Quiesced(t Tracker, q Quiescer) Tracker { return &quiesced{t, q} }

type quiesced struct {
	Tracker
	q Quiescer
}

// Cut freezes the VM, takes the cut, and lets the VM go on at once when nothing depends on its holding still any more.
func (t *quiesced) Cut(ctx context.Context, since hrl.Pos) (Cut, error) {
	if since.IsZero() {
		return t.Tracker.Cut(ctx, since)
	}
	app, err := t.q.Freeze(ctx)
	if err != nil {
		return nil, err
	}
	c := &quiescedCut{app: app, thaw: func() { t.q.Thaw(context.WithoutCancel(ctx)) }, late: make(chan struct{})}
	if c.limit = t.q.Limit(); c.limit > 0 {
		c.timer = time.AfterFunc(c.limit, c.giveUp)
	}
	if c.Cut, err = t.Tracker.Cut(ctx, since); err != nil {
		c.goOn()
		return nil, err
	}
	for _, d := range c.Cut.Disks() {
		if !d.Frozen() && !d.Untouched() {
			return c, nil
		}
	}
	c.goOn()
	if err := c.overdue(); err != nil {
		return nil, errors.Join(err, c.Cut.Close())
	}
	return c, nil
}

// quiescedCut is a cut during which the VM may be held still.
type quiescedCut struct {
	Cut
	app   bool
	limit time.Duration // 0: none
	timer *time.Timer   // nil when there is no limit
	late  chan struct{} // closed when the VM went on because of the limit
	once  sync.Once     // of thaw
	thaw  func()
}

// goOn lets the VM go on, once.
func (c *quiescedCut) goOn() {
	c.once.Do(func() {
		if c.timer != nil {
			c.timer.Stop()
		}
		c.thaw()
	})
}

// giveUp lets the VM go on although its disks were not read, also when a read hangs.
func (c *quiescedCut) giveUp() {
	c.once.Do(func() {
		close(c.late)
		c.thaw()
	})
}

// overdue is the error of a cut whose VM went on because of the limit.
func (c *quiescedCut) overdue() error {
	select {
	case <-c.late:
		return fault.New(fault.PauseLimit, "the VM was held still for %s, as long as the policy allows, and its disks were not read by then", c.limit)
	default:
		return nil
	}
}

func (c *quiescedCut) AppConsistent() bool { return c.app }

func (c *quiescedCut) Disks() []CutDisk {
	var list []CutDisk
	for _, d := range c.Cut.Disks() {
		list = append(list, &heldDisk{d, c})
	}
	return list
}

// Check is asked after the last read: the VM may go on then.
func (c *quiescedCut) Check(ctx context.Context) error {
	err := c.Cut.Check(ctx)
	c.goOn()
	if late := c.overdue(); late != nil {
		return late
	}
	return err
}

func (c *quiescedCut) Close() error {
	c.goOn()
	return c.Cut.Close()
}

// heldDisk is a disk whose scan ends when the VM goes on because of the limit.
type heldDisk struct {
	CutDisk
	cut *quiescedCut
}

func (d *heldDisk) Scan(ctx context.Context, o Options, emit func(context.Context, Change) error) (Stats, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.cut.late:
			cancel()
		case <-ctx.Done():
		}
	}()
	stats, err := d.CutDisk.Scan(ctx, o, emit)
	if late := d.cut.overdue(); late != nil {
		return stats, late
	}
	return stats, err
}

package track

import (
	"context"

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
	c := &quiescedCut{app: app, thaw: func() { t.q.Thaw(context.WithoutCancel(ctx)) }}
	if c.Cut, err = t.Tracker.Cut(ctx, since); err != nil {
		c.goOn()
		return nil, err
	}
	for _, d := range c.Disks() {
		if !d.Frozen() && !d.Untouched() {
			return c, nil
		}
	}
	c.goOn()
	return c, nil
}

// quiescedCut is a cut during which the VM may be held still.
type quiescedCut struct {
	Cut
	app  bool
	thaw func() // nil when the VM goes on
}

func (c *quiescedCut) goOn() {
	thaw := c.thaw
	c.thaw = nil
	if thaw != nil {
		thaw()
	}
}

func (c *quiescedCut) AppConsistent() bool { return c.app }

// Check is asked after the last read: the VM may go on then.
func (c *quiescedCut) Check(ctx context.Context) error {
	err := c.Cut.Check(ctx)
	c.goOn()
	return err
}

func (c *quiescedCut) Close() error {
	c.goOn()
	return c.Cut.Close()
}

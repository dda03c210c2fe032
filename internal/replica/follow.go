package replica

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/wait"
)

// Follow opens a recovery point for reading beside whoever applies to the replica. r may be opened for reading only.
//
// It rests on two things. Before pages are changed what they hold is preserved, and then the ledger says Applying. And a view of a store
// either returns what the point holds, or fails, once the pages have left the position at which it was opened (see PointView). So what
// fails is opened again, by the ledger of now: through what was preserved meanwhile the point is what it was. It has to stay in the
// ledger; without a claim on it (State.Retains) the retention may drop it.
func Follow(ctx context.Context, r Replica, id string) (PointView, error) {
	f := &following{ctx: ctx, r: r, id: id}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// followPause is how long is waited, at first, before a point is opened again while pages move; it doubles up to a second.
const followPause = 5 * time.Millisecond

// followTries is how often a point is opened again although the ledger says that nothing has moved: files or blobs may be other ones.
const followTries = 3

// standing is what of a ledger says whether pages were changed.
type standing struct {
	id         hrl.ID
	generation uint64
	applied    hrl.Pos
	applying   bool
}

func standingOf(s State) standing {
	return standing{s.Replica, s.Generation, s.Applied, s.Applying != nil}
}

type following struct {
	ctx context.Context
	r   Replica
	id  string

	mu   sync.RWMutex // held for reading while view is read
	view PointView
	at   standing
	turn int // goes up whenever it was opened again
}

// followPatience is for how long what fails is tried again while changes are being applied. Sums and pages are read as they are written
// then, so that a failure says nothing.
const followPatience = 5 * time.Minute

// beingChanged is err of a point that could not be read as long as changes were applied.
func beingChanged(err error) error {
	return fault.Wrap(fault.Busy, err, "changes are being applied to the replica, and the recovery point cannot be read meanwhile")
}

// open opens the point as the ledger of now has it. The caller has mu, or is alone.
func (f *following) open() error {
	began := time.Now()
	for pause := followPause; ; pause = min(2*pause, time.Second) {
		before, err := f.r.Ledger().Load(f.ctx)
		if err != nil {
			return err
		}
		view, err := f.r.Points().Open(f.ctx, before, f.id)
		after, lerr := f.r.Ledger().Load(f.ctx)
		at := standingOf(before)
		if lerr == nil && at == standingOf(after) && (err == nil || !at.applying) {
			f.view, f.at = view, at
			return err
		}
		if err != nil && time.Since(began) > followPatience {
			return beingChanged(err)
		}
		if err == nil {
			lerr = errors.Join(lerr, view.Close())
		}
		if lerr != nil {
			return lerr
		}
		if err := wait.For(f.ctx, pause); err != nil { // what was opened is of two positions
			return err
		}
	}
}

// again opens the point again, unless somebody else has since turn. failed is why.
func (f *following) again(turn, tries int, failed error) error {
	st, err := f.r.Ledger().Load(f.ctx)
	if err != nil {
		return failed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.turn != turn:
		return nil
	case f.view == nil:
		return failed
	case standingOf(st) != f.at:
	case f.at.applying && tries > followTries:
		return beingChanged(failed)
	case !f.at.applying && !(tries < followTries && fault.Is(failed, fault.ReplicaChanged)):
		return failed
	}
	cerr := f.view.Close()
	f.view = nil
	f.turn++
	return errors.Join(cerr, f.open())
}

// read does f with a disk of the point until that does not fail because pages were changed.
func (f *following) read(name string, do func(PointDisk) error) error {
	for tries := 0; ; tries++ {
		turn, err := f.once(name, do)
		if err == nil || err == io.EOF {
			return err
		}
		if err := f.again(turn, tries, err); err != nil {
			return err
		}
		if err := f.ctx.Err(); err != nil {
			return err
		}
	}
}

func (f *following) once(name string, do func(PointDisk) error) (turn int, err error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.view == nil {
		return f.turn, fault.New(fault.PointMissing, "the recovery point is not open any more").Of("", name)
	}
	d, err := f.view.Disk(name)
	if err == nil {
		err = do(d)
	}
	return f.turn, err
}

// Disk returns a disk of the point; see PointView.
func (f *following) Disk(name string) (PointDisk, error) {
	d := &followedDisk{f: f, name: name}
	return d, f.read(name, func(p PointDisk) error {
		d.size = p.Size()
		return nil
	})
}

// Close closes what is open.
func (f *following) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return nil
	}
	err := f.view.Close()
	f.view = nil
	return err
}

type followedDisk struct {
	f    *following
	name string
	size int64
}

func (d *followedDisk) Size() int64 { return d.size }

func (d *followedDisk) ReadAt(p []byte, off int64) (n int, err error) {
	err = d.f.read(d.name, func(x PointDisk) (err error) {
		n, err = x.ReadAt(p, off)
		return err
	})
	return n, err
}

func (d *followedDisk) Extent(off, n int64) (e block.Extent, err error) {
	err = d.f.read(d.name, func(x PointDisk) (err error) {
		e, err = x.Extent(off, n)
		return err
	})
	return e, err
}

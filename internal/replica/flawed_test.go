package replica_test

import (
	"context"
	"errors"
	"iter"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// when says whether an operation fails before it has done anything, or after it has done all of it.
type when bool

const (
	before when = false
	after  when = true
)

// flaw is asked before and after each operation whether it fails.
type flaw func(op string, w when) error

// around does f with the flaw, and undo to what f has opened when that is not given out.
func around[T any](flaw flaw, op string, f func() (T, error), undo func(T) error) (T, error) {
	var none T
	if err := flaw(op, before); err != nil {
		return none, err
	}
	v, err := f()
	if err != nil {
		return v, err
	}
	if err := flaw(op, after); err != nil {
		if undo == nil {
			return none, err
		}
		return none, errors.Join(err, undo(v))
	}
	return v, nil
}

func (f flaw) around(op string, do func() error) error {
	_, err := around(f, op, func() (struct{}, error) { return struct{}{}, do() }, nil)
	return err
}

type flawedStore struct {
	replica.Store
	flaw flaw
}

func (s *flawedStore) replica(op string, f func() (replica.Replica, error)) (replica.Replica, error) {
	r, err := around(s.flaw, op, f, replica.Replica.Close)
	if err != nil {
		return nil, err
	}
	return &flawedReplica{r, s.flaw}, nil
}

func (s *flawedStore) Prepare(ctx context.Context, want hrl.ID) (hrl.ID, error) {
	return around(s.flaw, "Prepare", func() (hrl.ID, error) { return s.Store.Prepare(ctx, want) }, nil)
}

func (s *flawedStore) Create(ctx context.Context, first replica.State) (replica.Replica, error) {
	return s.replica("Create", func() (replica.Replica, error) { return s.Store.Create(ctx, first) })
}

func (s *flawedStore) Open(ctx context.Context, vm string) (replica.Replica, error) {
	return s.replica("Open", func() (replica.Replica, error) { return s.Store.Open(ctx, vm) })
}

func (s *flawedStore) View(ctx context.Context, vm string) (replica.Replica, error) {
	return s.replica("View", func() (replica.Replica, error) { return s.Store.View(ctx, vm) })
}

func (s *flawedStore) List(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for name, err := range s.Store.List(ctx) {
			if ferr := s.flaw("List", before); ferr != nil {
				name, err = "", ferr
			}
			if !yield(name, err) || err != nil {
				return
			}
		}
	}
}

func (s *flawedStore) Remove(ctx context.Context, vm string) error {
	return s.flaw.around("Store.Remove", func() error { return s.Store.Remove(ctx, vm) })
}

type flawedReplica struct {
	replica.Replica
	flaw flaw
}

func (r *flawedReplica) Disk(ctx context.Context, d replica.Disk) (replica.Pages, error) {
	p, err := around(r.flaw, "Disk", func() (replica.Pages, error) { return r.Replica.Disk(ctx, d) }, replica.Pages.Close)
	if err != nil {
		return nil, err
	}
	return &flawedPages{p, r.flaw}, nil
}

func (r *flawedReplica) Shelf() replica.Shelf   { return &flawedShelf{r.Replica.Shelf(), r.flaw} }
func (r *flawedReplica) Ledger() replica.Ledger { return &flawedLedger{r.Replica.Ledger(), r.flaw} }
func (r *flawedReplica) Points() replica.Points { return &flawedPoints{r.Replica.Points(), r.flaw} }

func (r *flawedReplica) Close() error {
	return errors.Join(r.Replica.Close(), r.flaw("Close", after))
}

type flawedPages struct {
	replica.Pages
	flaw flaw
}

func (p *flawedPages) ReadAt(ctx context.Context, b []byte, off int64) error {
	return p.flaw.around("ReadAt", func() error { return p.Pages.ReadAt(ctx, b, off) })
}

func (p *flawedPages) WriteAt(ctx context.Context, b []byte, off int64) error {
	return p.flaw.around("WriteAt", func() error { return p.Pages.WriteAt(ctx, b, off) })
}

func (p *flawedPages) ZeroAt(ctx context.Context, off, n int64) error {
	return p.flaw.around("ZeroAt", func() error { return p.Pages.ZeroAt(ctx, off, n) })
}

func (p *flawedPages) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	return around(p.flaw, "Extent", func() (block.Extent, error) { return p.Pages.Extent(ctx, off, n) }, nil)
}

func (p *flawedPages) Grow(ctx context.Context, size int64) error {
	return p.flaw.around("Grow", func() error { return p.Pages.Grow(ctx, size) })
}

func (p *flawedPages) LoadSums(ctx context.Context, first int64, out []sums.Sum) error {
	return p.flaw.around("LoadSums", func() error { return p.Pages.LoadSums(ctx, first, out) })
}

func (p *flawedPages) StoreSums(ctx context.Context, first int64, in []sums.Sum) error {
	return p.flaw.around("StoreSums", func() error { return p.Pages.StoreSums(ctx, first, in) })
}

func (p *flawedPages) ClearSums(ctx context.Context, first, n int64) error {
	return p.flaw.around("ClearSums", func() error { return p.Pages.ClearSums(ctx, first, n) })
}

func (p *flawedPages) NextSums(ctx context.Context, first, end int64) (start, n int64, err error) {
	err = p.flaw.around("NextSums", func() (err error) {
		start, n, err = p.Pages.NextSums(ctx, first, end)
		return err
	})
	return start, n, err
}

func (p *flawedPages) Flush(ctx context.Context) error {
	return p.flaw.around("Flush", func() error { return p.Pages.Flush(ctx) })
}

func (p *flawedPages) Stamp(ctx context.Context) (string, error) {
	return around(p.flaw, "Stamp", func() (string, error) { return p.Pages.Stamp(ctx) }, nil)
}

func (p *flawedPages) Close() error {
	return errors.Join(p.Pages.Close(), p.flaw("Pages.Close", after))
}

type flawedShelf struct {
	replica.Shelf
	flaw flaw
}

func (s *flawedShelf) Put(ctx context.Context, name string, f durable.File) (int64, error) {
	return around(s.flaw, "Put", func() (int64, error) { return s.Shelf.Put(ctx, name, f) }, nil)
}

func (s *flawedShelf) Open(ctx context.Context, name string) (durable.File, error) {
	f, err := around(s.flaw, "Shelf.Open", func() (durable.File, error) { return s.Shelf.Open(ctx, name) }, durable.File.Close)
	if err != nil {
		return nil, err
	}
	return &flawedLog{f, s.flaw}, nil
}

func (s *flawedShelf) Names(ctx context.Context) ([]string, error) {
	return around(s.flaw, "Names", func() ([]string, error) { return s.Shelf.Names(ctx) }, nil)
}

func (s *flawedShelf) Remove(ctx context.Context, name string) error {
	return s.flaw.around("Shelf.Remove", func() error { return s.Shelf.Remove(ctx, name) })
}

type flawedLog struct {
	durable.File
	flaw flaw
}

func (l *flawedLog) ReadAt(b []byte, off int64) (int, error) {
	return around(l.flaw, "Log.ReadAt", func() (int, error) { return l.File.ReadAt(b, off) }, nil)
}

func (l *flawedLog) Size() (int64, error) { return around(l.flaw, "Log.Size", l.File.Size, nil) }

func (l *flawedLog) Extent(off, n int64) (block.Extent, error) {
	return around(l.flaw, "Log.Extent", func() (block.Extent, error) { return l.File.Extent(off, n) }, nil)
}

type flawedLedger struct {
	replica.Ledger
	flaw flaw
}

func (l *flawedLedger) Load(ctx context.Context) (replica.State, error) {
	return around(l.flaw, "Load", func() (replica.State, error) { return l.Ledger.Load(ctx) }, nil)
}

func (l *flawedLedger) Save(ctx context.Context, s replica.State) (replica.State, error) {
	next, err := around(l.flaw, "Save", func() (replica.State, error) { return l.Ledger.Save(ctx, s) }, nil)
	if err != nil {
		return s, err
	}
	return next, nil
}

type flawedPoints struct {
	replica.Points
	flaw flaw
}

func (p *flawedPoints) Preserve(ctx context.Context, s replica.State, to hrl.Pos, overwritten map[string]*block.Set, redo bool) error {
	return p.flaw.around("Preserve", func() error { return p.Points.Preserve(ctx, s, to, overwritten, redo) })
}

func (p *flawedPoints) Preserved(ctx context.Context, s replica.State, to hrl.Pos) (ranges map[string]*block.Set, all bool, err error) {
	err = p.flaw.around("Preserved", func() (err error) {
		ranges, all, err = p.Points.Preserved(ctx, s, to)
		return err
	})
	return ranges, all, err
}

func (p *flawedPoints) Reached(ctx context.Context, s replica.State) (at hrl.Pos, err error) {
	err = p.flaw.around("Reached", func() (err error) {
		at, err = p.Points.Reached(ctx, s)
		return err
	})
	return at, err
}

func (p *flawedPoints) Open(ctx context.Context, s replica.State, id string) (replica.PointView, error) {
	v, err := around(p.flaw, "Points.Open", func() (replica.PointView, error) { return p.Points.Open(ctx, s, id) }, replica.PointView.Close)
	if err != nil {
		return nil, err
	}
	return &flawedView{v, p.flaw}, nil
}

func (p *flawedPoints) Sweep(ctx context.Context, s replica.State) error {
	return p.flaw.around("Sweep", func() error { return p.Points.Sweep(ctx, s) })
}

type flawedView struct {
	replica.PointView
	flaw flaw
}

func (v *flawedView) Disk(name string) (replica.PointDisk, error) {
	d, err := around(v.flaw, "Point.Disk", func() (replica.PointDisk, error) { return v.PointView.Disk(name) }, nil)
	if err != nil {
		return nil, err
	}
	return &flawedPoint{d, v.flaw}, nil
}

type flawedPoint struct {
	replica.PointDisk
	flaw flaw
}

func (d *flawedPoint) ReadAt(b []byte, off int64) (int, error) {
	return around(d.flaw, "Point.ReadAt", func() (int, error) { return d.PointDisk.ReadAt(b, off) }, nil)
}

func (d *flawedPoint) Extent(off, n int64) (block.Extent, error) {
	return around(d.flaw, "Point.Extent", func() (block.Extent, error) { return d.PointDisk.Extent(off, n) }, nil)
}

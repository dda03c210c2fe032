package scan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/sums"
	"sitrep/internal/track"
)

// defaultUnit is how much is read at once, in bytes.
const defaultUnit = 1 << 20

// defaultTasks is the number of readers: more than processors, because some wait for the disk while others sum, and not
// so many that their buffers matter.
func defaultTasks() int { return min(max(4, 2*runtime.NumCPU()), 16) }

// Scan reads the disk from o.From to its end, once, and emits the blocks that differ.
func (d *cutDisk) Scan(ctx context.Context, o track.Options, emit func(context.Context, track.Change) error) (track.Stats, error) {
	if d.cut.ended {
		return track.Stats{}, fmt.Errorf("the cut has ended")
	}
	if o.From < 0 || o.From%d.d.BlockSize != 0 {
		return track.Stats{}, fmt.Errorf("a scan cannot begin at byte %d: blocks have %d", o.From, d.d.BlockSize)
	}
	if o.From >= d.Size() {
		o.From = d.Size()
	}
	if d.untouched {
		return d.skip(o), ctx.Err()
	}
	d.cut.checked, d.read = false, nil
	if err := d.dropResult(); err != nil {
		return track.Stats{}, err
	}
	if d.another != "" {
		emit = d.refuseAnother
	}
	s := d.newScan(o, emit)
	err := s.run(ctx, o.Tasks)
	if err == nil {
		err = d.refuseMassive(s.stats)
	}
	if err != nil {
		return s.stats, joinCleanup(err, s.redo.remove())
	}
	return s.stats, d.finish(s, o)
}

func joinCleanup(err, cleanup error) error {
	if cleanup != nil {
		return fmt.Errorf("%w (and: %v)", err, cleanup)
	}
	return err
}

// skip is the scan of an untouched disk.
func (d *cutDisk) skip(o track.Options) track.Stats {
	r := block.Range{Off: o.From, Len: d.Size() - o.From}
	if o.Done != nil && !r.Empty() {
		o.Done(r)
	}
	return track.Stats{Skipped: r.Len}
}

// finish proves the sums that the scan compared with, and keeps what it found for Advance.
func (d *cutDisk) finish(s *scan, o track.Options) error {
	if o.From > 0 {
		return s.redo.remove()
	}
	if d.prev == nil {
		read := s.moved
		d.read = &read
		return nil
	}
	if s.seen != d.prev.Seal {
		path := d.cut.t.sumsPath(d.d.Name, d.prev.Sums)
		err := damaged(path, "the block sums are not what they were")
		d.cut.t.rec, d.cut.t.why = nil, err
		return joinCleanup(err, s.redo.remove())
	}
	r := &result{seal: d.prev.Seal, redo: s.redo, changed: s.stats.Changed > 0}
	r.seal.Join(s.moved)
	d.result = r
	return nil
}

// scan is one pass over a disk: a walk that hands out units, and workers that read and compare them.
type scan struct {
	walk
	blockSize int64
	emit      func(context.Context, track.Change) error
	done      func(block.Range)
	redo      *redoWriter // nil when there is no position to advance, or when nothing may be written

	mu    sync.Mutex
	stats track.Stats
	seen  sums.Seal // of the sums that were compared with
	moved sums.Seal // of the changes: the old sums taken out, the new ones put in
}

func (d *cutDisk) newScan(o track.Options, emit func(context.Context, track.Change) error) *scan {
	s := &scan{blockSize: d.d.BlockSize, emit: emit, done: o.Done}
	s.walk = walk{img: d.view, size: d.Size(), blockSize: d.d.BlockSize, at: o.From, unit: defaultUnit}
	if o.Unit > 0 {
		s.walk.unit = o.Unit
	}
	s.walk.unit = block.RoundUp(s.walk.unit, d.d.BlockSize)
	if d.prev != nil {
		s.walk.table, s.walk.tableEnd = sums.NewTable(d.sumsFile), d.prev.blocks()
		if t := d.cut.t; !t.looking {
			n := t.number()
			s.redo = &redoWriter{fs: t.fs, path: t.redoPath(d.d.Name, n), number: n}
		}
	}
	return s
}

// run reads with several workers until the end, the first error, or the end of ctx.
func (s *scan) run(ctx context.Context, tasks int) error {
	if tasks <= 0 {
		tasks = defaultTasks()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range tasks {
		wg.Go(func() {
			w := worker{scan: s}
			if err := w.work(ctx); err != nil {
				cancel(err)
			}
			w.report()
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// walk goes over a disk from unit to unit, jumping over what is zero and was zero. next may be called concurrently.
type walk struct {
	img       disk.Image
	size      int64 // guest bytes
	blockSize int64
	unit      int64
	table     *sums.Table // nil: all old sums are zero
	tableEnd  int64       // blocks

	lock     sync.Mutex
	at       int64 // guest bytes: everything before was handed out
	ext      block.Extent
	old, end int64 // the run of old sums at or after at that may be other than zero, in bytes; old is size when none is left
}

// unit is a piece of a disk for one worker.
type unit struct {
	block.Range
	data bool // all of it is one Data extent
	old  bool // old sums may be other than zero
}

// next returns the next piece to be compared, and what lies before it, which needs no look. Both may be empty; both are
// at the end.
func (w *walk) next() (skip block.Range, u unit, err error) {
	w.lock.Lock()
	defer w.lock.Unlock()
	data, err := w.nextData()
	if err != nil {
		return skip, u, err
	}
	old, err := w.nextOld()
	if err != nil {
		return skip, u, err
	}
	first := min(data, old)
	if first < w.size {
		first = max(w.at, first-first%w.unit)
	}
	skip = block.Range{Off: w.at, Len: first - w.at}
	u.Range = block.Range{Off: first, Len: min(first-first%w.unit+w.unit, w.size) - first}
	u.data = w.ext.Kind == block.Data && w.ext.Off <= u.Off && u.End() <= w.ext.End()
	u.old = w.old < u.End()
	w.at = u.End()
	return skip, u, nil
}

// nextData is the first byte at or after w.at that has to be read.
func (w *walk) nextData() (int64, error) {
	for at := w.at; at < w.size; at = w.ext.End() {
		if at >= w.ext.End() || at < w.ext.Off {
			var err error
			if w.ext, err = w.img.Extent(at, w.size-at); err != nil {
				return 0, err
			}
		}
		if w.ext.Kind == block.Data {
			return at, nil
		}
	}
	return w.size, nil
}

// nextOld is the first byte at or after w.at whose block may have an old sum.
func (w *walk) nextOld() (int64, error) {
	if w.table == nil {
		w.old = w.size
		return w.old, nil
	}
	if w.at >= w.end && w.old < w.size {
		start, n, err := w.table.Next(w.at/w.blockSize, w.tableEnd)
		if err != nil {
			return 0, err
		}
		w.old, w.end = start*w.blockSize, (start+n)*w.blockSize
		if n == 0 {
			w.old, w.end = w.size, w.size
		}
	}
	return max(w.old, min(w.at, w.end)), nil
}

// worker reads and compares units. Everything it needs of memory is of the size of a unit.
type worker struct {
	*scan
	buf      []byte
	now      []sums.Sum
	entries  []entry
	old      []sums.Sum // old sums of the blocks from oldFirst on: more than one unit has, because calls are dear
	oldFirst int64
	none     []sums.Sum // zeros: the old sums where there are none

	stats       track.Stats
	seen, moved sums.Seal
}

func (w *worker) work(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		skip, u, err := w.next()
		if err != nil {
			return err
		}
		if !skip.Empty() {
			w.stats.Skipped += skip.Len
			w.finished(skip)
		}
		if u.Empty() {
			return nil
		}
		if err := w.compare(ctx, u); err != nil {
			return err
		}
		w.finished(u.Range)
	}
}

func (w *worker) finished(r block.Range) {
	if w.done != nil {
		w.done(r)
	}
}

// report adds up what the worker did.
func (w *worker) report() {
	s := w.scan
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats = s.stats.Add(w.stats)
	s.seen.Join(w.seen)
	s.moved.Join(w.moved)
}

func (w *worker) compare(ctx context.Context, u unit) error {
	n := block.Count(u.Len, w.blockSize)
	if w.buf == nil {
		w.buf = durable.AlignedBuffer(int(w.unit))
		w.now = make([]sums.Sum, w.unit/w.blockSize)
		w.none = make([]sums.Sum, w.unit/w.blockSize)
	}
	old, now := w.none[:n], w.now[:n]
	if u.old {
		var err error
		if old, err = w.oldSums(u.Off/w.blockSize, n); err != nil {
			return err
		}
	}
	clear(now)
	if err := w.load(ctx, u); err != nil {
		return err
	}
	return w.emitChanges(ctx, u, old, now)
}

// oldAhead is how many old sums are read at once, at the least.
const oldAhead = 256

// oldSums returns the old sums of n blocks.
func (w *worker) oldSums(first, n int64) ([]sums.Sum, error) {
	if at := first - w.oldFirst; at >= 0 && at+n <= int64(len(w.old)) {
		return w.old[at : at+n], nil
	}
	if w.old == nil {
		w.old = make([]sums.Sum, max(oldAhead, w.unit/w.blockSize))
	}
	w.oldFirst = first
	err := w.table.Load(first, w.old)
	return w.old[:n], err
}

// load reads the data of the unit, in whole blocks, each to its place in the buffer, and sums it.
func (w *worker) load(ctx context.Context, u unit) error {
	if u.data {
		return w.loadRun(u, u.Range)
	}
	zero := u.Len
	for at := u.Off; at < u.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := w.img.Extent(at, u.End()-at)
		if err != nil {
			return err
		}
		at = e.End()
		if e.Kind != block.Data {
			continue
		}
		run := e.Outward(w.blockSize).Intersect(u.Range)
		if err := w.loadRun(u, run); err != nil {
			return err
		}
		at = run.End()
		zero -= run.Len
	}
	w.stats.Skipped += zero
	return nil
}

func (w *worker) loadRun(u unit, run block.Range) error {
	p := w.buf[run.Off-u.Off : run.End()-u.Off]
	n, err := w.img.ReadAt(p, run.Off)
	if n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	w.stats.Scanned += run.Len
	for i := (run.Off - u.Off) / w.blockSize; len(p) > 0; i++ {
		k := min(w.blockSize, int64(len(p)))
		w.now[i] = sums.Of(p[:k])
		p = p[k:]
	}
	return nil
}

// emitChanges compares the sums of the unit, and emits the blocks that differ: adjacent ones together, zeros apart.
func (w *worker) emitChanges(ctx context.Context, u unit, old, now []sums.Sum) error {
	w.entries = w.entries[:0]
	first := u.Off / w.blockSize
	for i := 0; i < len(now); {
		if now[i] == old[i] {
			w.seen.Add(first+int64(i), old[i])
			w.had(old[i], 0)
			i++
			continue
		}
		end := i
		for ; end < len(now) && now[end] != old[end] && now[end].IsZero() == now[i].IsZero(); end++ {
			b := first + int64(end)
			w.seen.Add(b, old[end])
			w.had(old[end], w.blockSize)
			w.moved.Remove(b, old[end])
			w.moved.Add(b, now[end])
		}
		if err := w.emitRun(ctx, u, now, i, end); err != nil {
			return err
		}
		i = end
	}
	if w.redo == nil || len(w.entries) == 0 {
		return nil
	}
	return w.redo.add(w.entries)
}

// had counts a block that had a sum, and of how many bytes its data is lost.
func (w *worker) had(old sums.Sum, lost int64) {
	if !old.IsZero() {
		w.stats.Had, w.stats.Lost = w.stats.Had+w.blockSize, w.stats.Lost+lost
	}
}

func (w *worker) emitRun(ctx context.Context, u unit, now []sums.Sum, i, end int) error {
	off := int64(i) * w.blockSize
	n := min(int64(end)*w.blockSize, u.Len) - off
	c := track.Change{Range: block.Range{Off: u.Off + off, Len: n}, Zero: now[i].IsZero()}
	first := c.Off / w.blockSize
	if c.Zero {
		w.entries = append(w.entries, entry{first: first, n: int64(end - i)})
	} else {
		c.Data, c.Sums = w.buf[off:off+n], now[i:end]
		for k, s := range c.Sums {
			w.entries = append(w.entries, entry{first: first + int64(k), n: 1, sum: s})
		}
	}
	w.stats.Changed += n
	return w.emit(ctx, c)
}

package resync

import (
	"context"
	"iter"
	"maps"
	"sync"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// different is a run of blocks that are not what the replica has.
type different struct {
	block.Range
	data []byte     // nil: zeros
	sums []sums.Sum // nil: zeros
}

// slice is a part of a disk that has been compared. Nothing differs in it but runs and rotten; stale is blocks whose bytes
// are right and whose sums in the table are not.
type slice struct {
	block.Range
	runs []different
	// rotten is blocks that something else wrote to, and of which the source still has what their sums speak of. What they
	// hold was never on the disk and must not be preserved.
	rotten []different
	stale  map[int64]sums.Sum
	held   int64 // bytes of data in runs and rotten
	lost   int64 // blocks that something else wrote to, and whose content is nowhere
	data   int64 // bytes of blocks that held data
	gone   int64 // of these, in runs
	mem    loan  // where they lie
}

func (s *slice) overwrites() *block.Set {
	set := new(block.Set)
	for _, d := range s.runs {
		set.Add(d.Range)
	}
	return set
}

// comparer compares a source with a replica's disk. It reads ahead by one slice while the last one is being repaired.
type comparer struct {
	ctx    context.Context
	cancel context.CancelFunc
	src    disk.Image
	rep    replica.DiskSums
	deep   bool
	sealed bool // the replica's sums are proven, whatever became of its bytes
	pace   Pace
	free   sync.Pool // buffers of units
	mem    memory    // of different bytes

	mu      sync.Mutex
	all     counts // of everything
	healed  counts // of it, what something else wrote to and the source still has
	lost    int64  // blocks that something else wrote to, and whose content is nowhere
	failure error
}

// counts is what was read and what was found: bytes, and blocks.
type counts struct {
	scanned, read, changed, sent, blocks int64
	foreign                              int64 // of the blocks, those that something else wrote to
	mended                               int64 // block sums that something else wrote to
}

func (n *counts) add(o counts) {
	n.scanned, n.read, n.changed, n.sent = n.scanned+o.scanned, n.read+o.read, n.changed+o.changed, n.sent+o.sent
	n.blocks, n.foreign, n.mended = n.blocks+o.blocks, n.foreign+o.foreign, n.mended+o.mended
}

func newComparer(ctx context.Context, src disk.Image, rep replica.DiskSums, deep bool, pace Pace) *comparer {
	pace.Unit = max(pace.Unit, rep.Of.BlockSize)
	c := &comparer{src: src, rep: rep, deep: deep, pace: pace}
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.free.New = func() any { b := durable.AlignedBuffer(int(pace.Unit)); return &b }
	return c
}

func (c *comparer) stop() { c.cancel() }

// err is why slices ended early, or nil.
func (c *comparer) err() error { return c.failure }

func (c *comparer) totals() counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}

// healing is what the slices gave back to blocks that something else wrote to, and what was read for that; nothing of what else
// differs.
func (c *comparer) healing() counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.healed
	n.read = c.all.read
	return n
}

func (c *comparer) lostBlocks() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// scanAhead is how many bytes are compared at most in one slice: so much is compared again, at most, after an
// interruption, even when nothing differs.
const scanAhead = 8 << 30

// slices yields the slices of the disk from an offset on, in order, until the end or an error; see err. A slice may be used
// until the next one is asked for.
func (c *comparer) slices(from int64) iter.Seq[*slice] {
	return func(yield func(*slice) bool) {
		ready := make(chan *slice)
		var end error
		go func() {
			defer close(ready)
			for at := from; at < c.rep.Size(); {
				s, err := c.next(at)
				if err != nil {
					end = err
					return
				}
				select {
				case ready <- s:
				case <-c.ctx.Done():
					end = c.ctx.Err()
					return
				}
				at = s.End()
			}
		}()
		for s := range ready {
			if !yield(s) {
				c.cancel()
				for range ready { // the reader ends before the disks are closed
				}
				return
			}
			s.mem.giveBack()
		}
		c.failure = end
	}
}

// window is how many units are compared, at the most, between two looks at whether the slice is full.
const window = 32

// ahead is how many units to compare before the next look: no more than would fill the slice if all of them differed, but
// enough to keep every task at work. So a slice has little more than it may.
func (c *comparer) ahead(s *slice) int {
	room := block.Count(max(c.pace.Slice-s.held, 0), c.pace.Unit)
	return int(min(window, max(room, int64(2*c.pace.Tasks))))
}

// next compares from an offset on until the slice is full or the disk ends.
func (c *comparer) next(from int64) (*slice, error) {
	s := &slice{Range: block.Range{Off: from}, stale: map[int64]sums.Sum{}, mem: loan{of: &c.mem}}
	at, seen := from, int64(0)
	for at < c.rep.Size() && s.held < c.pace.Slice && seen < scanAhead {
		g, ctx := errgroup.WithContext(c.ctx)
		g.SetLimit(c.pace.Tasks)
		units := make([]*found, 0, window)
		for range c.ahead(s) {
			r, err := c.unit(ctx, at)
			if err != nil {
				return nil, cause(g.Wait(), err)
			}
			if r.Empty() {
				at = c.rep.Size()
				break
			}
			f := newFound(r)
			units = append(units, f)
			g.Go(func() error { return c.compare(ctx, f, &s.mem) })
			at, seen = r.End(), seen+r.Len
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		for _, f := range units {
			s.add(f)
		}
	}
	s.Len = at - from
	return s, nil
}

// cause is why a group and who feeds it ended: the failure of a worker ends the context of both, so it comes first.
func cause(worker, feeder error) error {
	if worker != nil {
		return worker
	}
	return feeder
}

// add puts what was found in a unit behind what was found before it.
func (s *slice) add(f *found) {
	s.runs, s.rotten = append(s.runs, f.runs...), append(s.rotten, f.rotten...)
	maps.Copy(s.stale, f.stale)
	s.held += f.held
	s.lost += f.lost
	s.data, s.gone = s.data+f.data, s.gone+f.gone
}

// unit is the next range, of whole blocks and at most one unit, in which source or replica may be other than zero.
func (c *comparer) unit(ctx context.Context, at int64) (block.Range, error) {
	size := c.rep.Size()
	r, err := c.rep.Next(ctx, at, c.pace.Unit)
	if err != nil {
		return r, err
	}
	limit := min(r.Off, size)
	for off := at; off < limit; {
		e, err := c.src.Extent(off, limit-off)
		if err != nil {
			return r, err
		}
		if e.Kind == block.Data {
			limit = off / c.rep.Of.BlockSize * c.rep.Of.BlockSize
			break
		}
		off = e.End()
	}
	return block.Range{Off: limit, Len: min(c.pace.Unit-limit%c.pace.Unit, size-limit)}, nil
}

// found is what the comparison of one unit brought.
type found struct {
	block.Range
	runs, rotten []different
	stale        map[int64]sums.Sum
	held         int64 // bytes of data in runs and rotten
	lost         int64 // blocks
	data, gone   int64 // bytes; see slice
}

func newFound(r block.Range) *found { return &found{Range: r, stale: map[int64]sums.Sum{}} }

// compare compares one unit, and keeps what differs in mem.
func (c *comparer) compare(ctx context.Context, f *found, mem *loan) error {
	bs := c.rep.Of.BlockSize
	buf := c.free.Get().(*[]byte)
	defer c.free.Put(buf)
	have, n, err := c.source(f.Range, *buf)
	if err != nil {
		return err
	}
	table := make([]sums.Sum, block.Count(f.Len, bs))
	if err := c.rep.Pages.LoadSums(ctx, f.Off/bs, table); err != nil {
		return err
	}
	is := table
	if c.deep {
		if is, err = c.replicaSums(ctx, f.Range, table); err != nil {
			return err
		}
	}
	for i, sum := range have {
		b := block.Nth(int64(i), bs, f.Len)
		if !table[i].IsZero() {
			f.data += b.Len
			if sum != table[i] {
				f.gone += b.Len
			}
		}
		switch {
		case sum != is[i] && sum == table[i] && c.sealed:
			f.add(&f.rotten, b, sum)
		case sum != is[i]:
			f.add(&f.runs, b, sum)
			if is[i] != table[i] && c.sealed {
				f.lost++
			}
		case sum != table[i]:
			f.stale[(f.Off+b.Off)/bs] = sum
		}
	}
	f.keep(*buf, mem)
	c.count(f, n)
	return nil
}

func (c *comparer) count(f *found, scanned int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	runs, rotten := c.counts(f.runs), c.counts(f.rotten)
	runs.scanned, runs.foreign, rotten.foreign = scanned, f.lost, rotten.blocks
	c.all.add(runs)
	c.all.add(rotten)
	c.healed.add(rotten)
	c.lost += f.lost
}

func (c *comparer) counts(list []different) (n counts) {
	for _, d := range list {
		n.changed += d.Len
		n.blocks += block.Count(d.Len, c.rep.Of.BlockSize)
		n.sent += int64(len(d.data))
	}
	return n
}

// source reads a range of the source into buf and sums its blocks; what is known to be zero is not read.
func (c *comparer) source(r block.Range, buf []byte) (have []sums.Sum, read int64, err error) {
	for off := r.Off; off < r.End(); {
		e, err := c.src.Extent(off, r.End()-off)
		if err != nil {
			return nil, read, err
		}
		part := buf[off-r.Off : e.End()-r.Off]
		if e.Kind == block.Zero {
			clear(part)
		} else if err := durable.ReadFull(c.src, part, off); err != nil {
			return nil, read, err
		} else {
			read += e.Len
		}
		off = e.End()
	}
	have = make([]sums.Sum, block.Count(r.Len, c.rep.Of.BlockSize))
	for i := range have {
		b := block.Nth(int64(i), c.rep.Of.BlockSize, r.Len)
		have[i] = sums.Of(buf[b.Off:b.End()])
	}
	return have, read, nil
}

// replicaSums reads a range of the replica and sums its blocks. Where the pages are a hole they are not read.
func (c *comparer) replicaSums(ctx context.Context, r block.Range, table []sums.Sum) ([]sums.Sum, error) {
	out := make([]sums.Sum, len(table))
	e, err := c.rep.Pages.Extent(ctx, r.Off, r.Len)
	if err != nil || e.Kind == block.Zero && e.Len == r.Len {
		return out, err
	}
	buf := c.free.Get().(*[]byte)
	defer c.free.Put(buf)
	if err := c.rep.Pages.ReadAt(ctx, (*buf)[:r.Len], r.Off); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.all.read += r.Len
	c.mu.Unlock()
	for i := range out {
		b := block.Nth(int64(i), c.rep.Of.BlockSize, r.Len)
		out[i] = sums.Of((*buf)[b.Off:b.End()])
	}
	return out, nil
}

// add puts a block, given by its place in the unit, to a list of runs; neighbours of a kind are one run.
func (f *found) add(list *[]different, b block.Range, sum sums.Sum) {
	at := block.Range{Off: f.Off + b.Off, Len: b.Len}
	if n := len(*list); n > 0 && (*list)[n-1].End() == at.Off && ((*list)[n-1].sums == nil) == sum.IsZero() {
		last := &(*list)[n-1]
		last.Len += at.Len
		if !sum.IsZero() {
			last.sums = append(last.sums, sum)
		}
		return
	}
	d := different{Range: at}
	if !sum.IsZero() {
		d.sums = []sums.Sum{sum}
	}
	*list = append(*list, d)
}

// keep copies the bytes of the runs out of the buffer of the unit, which is needed for the next one.
func (f *found) keep(buf []byte, mem *loan) {
	for _, list := range [][]different{f.runs, f.rotten} {
		for i := range list {
			d := &list[i]
			if d.sums == nil {
				continue
			}
			d.data = mem.take(int(d.Len))
			copy(d.data, buf[d.Off-f.Off:])
			f.held += d.Len
		}
	}
}

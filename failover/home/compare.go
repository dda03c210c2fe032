package home

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/sums"
)

const (
	grain    = 4096     // differences are told in pieces of so many bytes; the block of the change log
	sumBlock = 64 << 10 // of the sums that are kept between passes
	unit     = 1 << 20  // is read at once of each side
	tasks    = 8        // units at once
	perUnit  = unit / sumBlock
)

// comparison compares a source with a target. The target may be the smaller one; what it lacks is zero.
type comparison struct {
	src, dst disk.Image
	base     *sums.Table // what dst holds; nil: dst is read
	next     *sums.Table // where the sums of src go; nil: nowhere
	// found takes a run that differs, whose bytes in src are data. It may be called concurrently, and data is not used after
	// its return. nil: nobody.
	found func(off int64, data []byte) error
	count func(n int64)
	tasks int

	mu   sync.Mutex // guards next and seal
	seal sums.Seal

	read, readTarget, differs, data, allocates atomic.Int64
}

// run compares the disks from begin to end.
func (c *comparison) run(ctx context.Context) error {
	n := c.tasks
	if n <= 0 {
		n = tasks
	}
	g, ctx := errgroup.WithContext(ctx)
	bufs := make(chan *buffers, n)
	for range n {
		bufs <- new(buffers)
	}
	src := cursor{find: func(off int64) (int64, error) { return c.sourceFrom(ctx, off) }, at: -1}
	dst := cursor{find: func(off int64) (int64, error) { return c.targetFrom(ctx, off) }, at: -1}
	size := c.src.Size()
	for off := int64(0); off < size; {
		at, err := earlier(&src, &dst, off)
		if err != nil {
			return firstOf(g.Wait(), err)
		}
		first := min(at/sumBlock*sumBlock, size) // off is such a multiple: the result does not lie before it
		c.count(first - off)
		if off = first; off == size {
			break
		}
		r := block.Range{Off: off, Len: min((off/unit+1)*unit, size) - off}
		off = r.End()
		var b *buffers
		select {
		case b = <-bufs:
		case <-ctx.Done():
			return firstOf(g.Wait(), ctx.Err())
		}
		g.Go(func() error {
			defer func() { bufs <- b }()
			defer c.count(r.Len)
			return c.unit(r, b)
		})
	}
	return g.Wait()
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// cursor remembers where the next bytes of a side are that may be other than zero.
type cursor struct {
	find func(off int64) (int64, error)
	at   int64
}

func (c *cursor) next(off int64) (_ int64, err error) {
	if c.at < off {
		c.at, err = c.find(off)
	}
	return c.at, err
}

func earlier(a, b *cursor, off int64) (int64, error) {
	x, err := a.next(off)
	if err != nil {
		return 0, err
	}
	y, err := b.next(off)
	return min(x, y), err
}

// dataFrom is where the first bytes of an image at or after off are that may be other than zero; its size: nowhere.
func dataFrom(ctx context.Context, m disk.Image, off int64) (int64, error) {
	for off < m.Size() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		e, err := m.Extent(off, m.Size()-off)
		if err != nil {
			return 0, err
		}
		if e.Kind == block.Data {
			return off, nil
		}
		off = e.End()
	}
	return m.Size(), nil
}

func (c *comparison) sourceFrom(ctx context.Context, off int64) (int64, error) {
	return dataFrom(ctx, c.src, off)
}

func (c *comparison) targetFrom(ctx context.Context, off int64) (int64, error) {
	size := c.src.Size()
	if c.base == nil {
		at, err := dataFrom(ctx, c.dst, off)
		if at >= c.dst.Size() {
			at = size
		}
		return at, err
	}
	start, n, err := c.base.Next(off/sumBlock, block.Count(size, sumBlock))
	if err != nil || n == 0 {
		return size, err
	}
	return max(off, start*sumBlock), nil
}

// buffers are those of one unit.
type buffers struct{ src, dst []byte }

// unit compares one unit.
func (c *comparison) unit(r block.Range, b *buffers) error {
	if b.src == nil {
		b.src, b.dst = durable.AlignedBuffer(unit), durable.AlignedBuffer(unit)
	}
	src := b.src[:r.Len]
	n, err := load(c.src, src, r.Off)
	if err != nil {
		return err
	}
	c.read.Add(n)
	suspects, err := c.suspects(r, src)
	if err != nil {
		return err
	}
	for s := range suspects.All() {
		if err := c.blocks(s, src[s.Off-r.Off:][:s.Len], b.dst[:s.Len]); err != nil {
			return err
		}
	}
	return nil
}

// suspects is the part of a unit that may differ, by the sums if there are any. It keeps the sums of the source.
func (c *comparison) suspects(r block.Range, src []byte) (*block.Set, error) {
	if c.base == nil && c.next == nil {
		return block.NewSet(r), nil
	}
	n := block.Count(r.Len, sumBlock)
	is := make([]sums.Sum, n, perUnit)
	for i := range is {
		b := block.Nth(int64(i), sumBlock, r.Len)
		is[i] = sums.Of(src[b.Off:b.End()])
	}
	if err := c.keep(r.Off/sumBlock, is); err != nil {
		return nil, err
	}
	if c.base == nil {
		return block.NewSet(r), nil
	}
	was := make([]sums.Sum, n, perUnit)
	if err := c.base.Load(r.Off/sumBlock, was); err != nil {
		return nil, err
	}
	set := new(block.Set)
	for i := range is {
		if is[i] != was[i] {
			b := block.Nth(int64(i), sumBlock, r.Len)
			set.Add(block.Range{Off: r.Off + b.Off, Len: b.Len})
		}
	}
	return set, nil
}

func (c *comparison) keep(first int64, is []sums.Sum) error {
	if c.next == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range is {
		c.seal.Add(first+int64(i), s)
	}
	return c.next.Store(first, is)
}

// blocks compares bytes of both sides.
func (c *comparison) blocks(r block.Range, src, dst []byte) error {
	have := max(0, min(r.Len, c.dst.Size()-r.Off))
	n, err := load(c.dst, dst[:have], r.Off)
	if err != nil {
		return err
	}
	clear(dst[have:])
	c.readTarget.Add(n)
	for at := int64(0); at < r.Len; {
		n := sameRun(src[at:], dst[at:], true)
		at += n
		if n = sameRun(src[at:], dst[at:], false); n == 0 {
			continue
		}
		if err := c.differ(r.Off+at, src[at:at+n]); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// sameRun is how many bytes at the beginning consist of grains that are equal, or of those that are not.
func sameRun(a, b []byte, equal bool) int64 {
	n := 0
	for n < len(a) {
		end := min(n+grain, len(a))
		if bytes.Equal(a[n:end], b[n:end]) != equal {
			break
		}
		n = end
	}
	return int64(n)
}

func (c *comparison) differ(off int64, data []byte) error {
	c.differs.Add(int64(len(data)))
	for at := int64(0); at < int64(len(data)); {
		run, isNew, err := c.targetRun(block.Range{Off: off + at, Len: int64(len(data)) - at})
		if err != nil {
			return err
		}
		n := nonZero(data[at : at+run])
		c.data.Add(n)
		if isNew {
			c.allocates.Add(n)
		}
		at += run
	}
	if c.found == nil {
		return nil
	}
	return c.found(off, data)
}

// targetRun is how many bytes at the beginning of a range have a place in the target already, or, when isNew is true, have
// none. It is at least a grain.
func (c *comparison) targetRun(r block.Range) (n int64, isNew bool, err error) {
	within := r.Intersect(block.Range{Len: c.dst.Size()})
	if within.Empty() {
		return r.Len, true, nil
	}
	e, err := c.dst.Extent(within.Off, within.Len)
	return min(r.Len, block.RoundUp(e.Len, grain)), e.Kind == block.Zero, err
}

// nonZero is how many bytes lie in grains that are not all zero.
func nonZero(p []byte) (n int64) {
	for at := 0; at < len(p); at += grain {
		if g := p[at:min(at+grain, len(p))]; !block.IsZero(g) {
			n += int64(len(g))
		}
	}
	return n
}

// load reads a range of an image, unless all of it is known to be zero.
func load(m disk.Image, p []byte, off int64) (read int64, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	e, err := m.Extent(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	if e.Kind == block.Zero && e.Len == int64(len(p)) {
		clear(p)
		return 0, nil
	}
	return int64(len(p)), durable.ReadFull(m, p, off)
}

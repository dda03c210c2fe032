package dir

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// chain is how one disk is seen at a position: through the undo logs from there on, down to a clone or to the pages of today.
//
// Its links are bound by the IDs of positions, but files of a store can be brought back from an older copy: then a link is missing, or
// the pages at the end are of another position than the ledger says. So a chain says what a disk should be, and the seal of a point
// proves that it is; see trace.
type chain struct {
	disk   string
	at     []hrl.Pos // the log of at[i] leads back from at[i+1], the last one from end
	end    hrl.Pos   // position of the base
	clone  bool      // the base is the clone of end, not the pages
	broken error     // why it ends at the pages, though these are of a later position
	base   string
	sums   string
}

// from is the number of undo logs that a position of the chain is not seen through; ok is false when it is not on the chain.
func (c *chain) from(at hrl.Pos) (i int, ok bool) {
	if at == c.end {
		return len(c.at), true
	}
	i = slices.Index(c.at, at)
	return i, i >= 0
}

// chainOf follows the steps of a disk from a position on. A step that is missing or damaged ends the chain at the pages; an error is that
// something could not be read.
func (p *points) chainOf(ctx context.Context, s *replica.State, at hrl.Pos, disk string) (*chain, error) {
	if err := replica.CheckName(disk); err != nil {
		return nil, fault.Wrap(fault.LedgerCorrupt, err, "the ledger contradicts itself").At(p.r.ledgerPath())
	}
	c := &chain{disk: disk, base: p.r.pagesPath(disk), sums: p.r.sumsPath(disk)}
	for reached := false; ; {
		reached = reached || at == head(s)
		if _, err := p.r.fs.Stat(p.clonePath(at, disk)); err == nil {
			c.end, c.clone, c.base, c.sums = at, true, p.clonePath(at, disk), p.cloneSumsPath(at, disk)
			return c, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		l, err := p.openUndo(ctx, s, at, disk)
		if fault.Is(err, fault.PointMissing) {
			if c.end = at; !reached || !errors.Is(err, fs.ErrNotExist) {
				c.broken = err
			}
			return c, nil
		}
		if err != nil {
			return nil, err
		}
		c.at = append(c.at, at)
		at = l.Info().Identity.From // a higher number than before (package hrl), so this ends
		if err := l.file.Close(); err != nil {
			return nil, err
		}
	}
}

// mark is what a disk has to be at a position of a chain.
type mark struct {
	at   hrl.Pos
	size int64 // guest bytes of the disk there
	want sums.Seal
	have sums.Seal // what trace found
	// short says that have lacks the last block, because what shows it has become longer since: its sum tells nothing of its part.
	short bool
	// cut says that the file of the base is too short for the disk.
	cut bool
}

func (m *mark) holds() bool { return !m.short && !m.cut && m.have == m.want }

// markOf is what proves a point on a chain that begins at it: its own seal, or, of a point of an older version, that of the next position
// of which one is known. Undo logs lead back from there, proved by themselves. It is nil when there is none.
func markOf(s *replica.State, point *replica.Point, c *chain) *mark {
	i, _ := c.from(point.At)
	for _, at := range append(slices.Clone(c.at[i:]), c.end) {
		for _, q := range s.Points {
			if seal, ok := q.Seals[c.disk]; ok && q.At == at {
				return &mark{at: at, size: q.Sizes[c.disk], want: seal}
			}
		}
		if d := s.Disk(c.disk); at == s.Applied && d != nil && d.Seal != nil {
			return &mark{at: at, size: d.Size, want: *d.Seal}
		}
	}
	return nil
}

// traceWindow is how many blocks are traced at once: what trace takes of memory is some tens of bytes for each.
const traceWindow = 1 << 20

// trace computes the seals of a disk at positions of a chain, from the block sums of its base and those in the undo logs. It reads no
// content. Of blocks that are listed as rotten it takes what they should have held; where that does not give the seals, what they hold:
// then it was the sums that were rotten, and asHeld is true.
func (p *points) trace(ctx context.Context, s *replica.State, c *chain, marks []*mark) (asHeld bool, err error) {
	rotten, err := p.traceOnce(ctx, s, c, marks, false)
	doubt := func(m *mark) bool { return !m.short && !m.holds() }
	if err != nil || !rotten || !slices.ContainsFunc(marks, doubt) {
		return false, err
	}
	again := make([]*mark, len(marks))
	for i, m := range marks {
		again[i] = &mark{at: m.at, size: m.size, want: m.want}
	}
	if _, err := p.traceOnce(ctx, s, c, again, true); err != nil || slices.ContainsFunc(again, doubt) {
		return false, err
	}
	for i := range marks {
		*marks[i] = *again[i]
	}
	return true, nil
}

func (p *points) traceOnce(ctx context.Context, s *replica.State, c *chain, marks []*mark, asHeld bool) (rotten bool, err error) {
	info, err := p.r.fs.Stat(c.base)
	if errors.Is(err, fs.ErrNotExist) {
		return false, fault.New(fault.ReplicaMissing, "the file is missing").At(c.base)
	}
	if err != nil {
		return false, err
	}
	f, err := p.r.fs.Open(c.sums)
	if errors.Is(err, fs.ErrNotExist) {
		return false, fault.New(fault.ReplicaChanged, "the block sums are missing, without which nothing that is read can be proved").At(c.sums)
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t := &tracer{points: p, s: s, chain: c, table: sums.NewTable(f), end: info.Size - vhd.FooterSize, marks: map[hrl.Pos][]*mark{},
		tails: map[int64]bool{}, asHeld: asHeld, bs: s.Disk(c.disk).BlockSize}
	most := int64(0)
	for _, m := range marks {
		t.marks[m.at] = append(t.marks[m.at], m)
		m.cut = t.end < m.size
		most = max(most, block.Count(m.size, t.bs))
		if m.size%t.bs != 0 {
			t.tails[m.size/t.bs] = true
		}
	}
	for t.lo = 0; t.lo < most; t.lo += traceWindow {
		if err := t.window(ctx, most); err != nil {
			return t.rotten, err
		}
	}
	return t.rotten, nil
}

// tracer goes through the blocks of one window, from the base back.
type tracer struct {
	*points
	s     *replica.State
	chain *chain
	table *sums.Table
	bs    int64
	end   int64 // guest bytes of the base
	marks map[hrl.Pos][]*mark
	tails map[int64]bool // blocks that are the short last one at a mark

	asHeld bool // of rotten blocks, what they hold counts
	rotten bool // some are listed

	lo, hi int64 // whole blocks that are in seal; hi becomes less where the disk was smaller
	seal   sums.Seal
	over   map[int64]shown // what undo logs show
}

// shown is a block in an undo log: its sum, and the guest offset of its end.
type shown struct {
	sum sums.Sum
	end int64
}

func (t *tracer) window(ctx context.Context, most int64) error {
	t.hi, t.seal, t.over = min(t.lo+traceWindow, most), sums.Seal{}, map[int64]shown{}
	if err := t.inTable(t.lo, t.hi, func(i int64, s sums.Sum) { t.seal.Add(i, s) }); err != nil {
		return err
	}
	if err := t.mark(t.chain.end); err != nil {
		return err
	}
	for _, at := range slices.Backward(t.chain.at) {
		if err := t.back(ctx, at); err != nil {
			return err
		}
		if err := t.mark(at); err != nil {
			return err
		}
	}
	return nil
}

// inTable calls f for the blocks of the base from lo on, before hi, whose sums are not zero.
func (t *tracer) inTable(lo, hi int64, f func(i int64, s sums.Sum)) error {
	buf := make([]sums.Sum, tracePiece)
	for at := lo; at < hi; {
		start, n, err := t.table.Next(at, hi)
		if err != nil || n == 0 {
			return err
		}
		n = min(n, int64(len(buf)), hi-start)
		if err := t.table.Load(start, buf[:n]); err != nil {
			return err
		}
		for i, s := range buf[:n] {
			if !s.IsZero() {
				f(start+int64(i), s)
			}
		}
		at = start + n
	}
	return nil
}

// back goes back over one undo log.
func (t *tracer) back(ctx context.Context, at hrl.Pos) (err error) {
	l, err := t.openUndo(ctx, t.s, at, t.chain.disk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.file.Close()) }()
	rotten, err := t.rottenOf(at, t.chain.disk, t.bs)
	if err != nil {
		return err
	}
	t.rotten = t.rotten || rotten != nil
	if t.asHeld {
		rotten = nil
	}
	for rec, err := range l.Records(ctx) {
		if err != nil {
			return damaged(err)
		}
		first := rec.Off / t.bs
		end := min(first+block.Count(rec.Len, t.bs), t.lo+traceWindow)
		for i := max(first, t.lo); i < end; i += tracePiece {
			if err := t.put(&rec, rotten, i, min(i+tracePiece, end)); err != nil {
				return err
			}
		}
	}
	return nil
}

// tracePiece is how many sums are read at once.
const tracePiece = 4096

// put puts the blocks [lo, hi) of a record over what was seen before.
func (t *tracer) put(rec *hrl.Record, rotten *rottenBlocks, lo, hi int64) error {
	base := make([]sums.Sum, hi-lo)
	if err := t.table.Load(lo, base); err != nil {
		return err
	}
	for i := lo; i < hi; i++ {
		if i >= t.hi && !t.tails[i] {
			continue
		}
		x := shown{end: min((i+1)*t.bs, rec.End())}
		if !rec.Zero {
			x.sum = rec.Sums[i-rec.Off/t.bs]
		}
		if want, ok := rotten.sum(i); ok {
			x.sum = want
		}
		if i < t.hi {
			was, ok := t.over[i]
			if !ok {
				was.sum = base[i-lo]
			}
			t.seal.Remove(i, was.sum)
			t.seal.Add(i, x.sum)
		}
		t.over[i] = x
	}
	return nil
}

// mark notes what was found at a position.
func (t *tracer) mark(at hrl.Pos) error {
	for _, m := range t.marks[at] {
		whole := m.size / t.bs
		if whole < t.hi {
			if err := t.shrink(max(whole, t.lo)); err != nil {
				return err
			}
		}
		m.have.Join(t.seal)
		if m.size%t.bs == 0 || whole < t.lo || whole >= t.lo+traceWindow {
			continue
		}
		last, ok := t.over[whole]
		if !ok {
			var sum [1]sums.Sum
			if err := t.table.Load(whole, sum[:]); err != nil {
				return err
			}
			last = shown{sum[0], min((whole+1)*t.bs, t.end)}
		}
		if last.end != m.size && !last.sum.IsZero() {
			m.short = true
		} else {
			m.have.Add(whole, last.sum)
		}
	}
	return nil
}

// shrink takes the blocks from hi on out of the seal.
func (t *tracer) shrink(hi int64) error {
	err := t.inTable(hi, t.hi, func(i int64, s sums.Sum) {
		if _, ok := t.over[i]; !ok {
			t.seal.Remove(i, s)
		}
	})
	for i, x := range t.over {
		if i >= hi && i < t.hi {
			t.seal.Remove(i, x.sum)
		}
	}
	t.hi = hi
	return err
}

package resync

import (
	"context"
	"errors"
	"maps"
	"sync"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
	"sitrep/internal/track"
)

// mendDisk gives the block sums of a disk, which are not those that the ledger sealed, back what they were, where the bytes of the
// replica and of the source tell: the seal proves it. Then the newest recovery point, which shares them, is proven again, and
// healed like those of other disks. Interrupted, it is done again.
func (r *run) mendDisk(ctx context.Context, cut track.Cut, i int) (n counts, err error) {
	d := r.state.Disks[i]
	if d.Seal == nil {
		return n, nil
	}
	src, err := sourceOf(cut, &d)
	if err != nil {
		return n, err
	}
	pages, err := r.Replica.Disk(ctx, d)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, pages.Close()) }()
	task := "prove the sums of " + d.Name
	r.Meter.Begin(task, d.Size, 0)
	defer r.Meter.End(task)
	m := &mender{c: newComparer(ctx, src.Image(), replica.DiskSums{Pages: pages, Of: d}, true, r.pace)}
	defer m.c.stop()
	if err := m.find(ctx, func(n int64) { r.Meter.Add(task, n) }); err != nil {
		return n, err
	}
	n.read = m.c.totals().read
	by, ok := m.guess(*d.Seal)
	if !ok {
		return n, nil
	}
	if n.mended, err = m.mend(ctx, by); err == nil {
		err = pages.Flush(ctx)
	}
	if err != nil {
		return n, err
	}
	r.Log.Warn("something else wrote to the block sums of the replica; they are again what they were", "vm", r.VM, "disk", d.Name,
		"sums", n.mended)
	return n, r.change(ctx, func(re *replica.Resync) {
		re.Sealed = maps.Clone(re.Sealed)
		if re.Sealed == nil {
			re.Sealed = map[string]bool{}
		}
		re.Sealed[d.Name] = true
		if m.whole { // the bytes need not be read again
			re.Healed = healed(re.Healed, d.Name, d.Size)
		}
	})
}

// mender finds out what the sums of a disk were. A block that is not what its sum says leaves two possibilities: something else
// wrote to the block, or to its sum. Where the source still has what one of them speaks of, it is that one; where it has neither,
// each guess takes another one, for all of these blocks.
type mender struct {
	c *comparer

	mu      sync.Mutex
	seals   [guesses]sums.Seal
	doubted block.Set // guest bytes of blocks that are not what their sums say
	whole   bool      // all blocks hold what they held before; known after mend
}

// The guesses of what was right where the source has neither.
const (
	guessPages = iota
	guessTable
	guesses
)

func guess(by int, pages, table, source sums.Sum) sums.Sum {
	switch {
	case source == table, source != pages && by == guessTable:
		return table
	}
	return pages
}

// find reads the whole replica, and the source where it is in doubt.
func (m *mender) find(ctx context.Context, done func(int64)) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(m.c.pace.Tasks)
	for at := int64(0); at < m.c.rep.Size() && gctx.Err() == nil; {
		u, err := m.c.rep.Next(gctx, at, m.c.pace.Unit)
		if err != nil {
			return cause(g.Wait(), err)
		}
		if u.Empty() {
			break
		}
		g.Go(func() error { return m.look(gctx, u) })
		done(u.End() - at)
		at = u.End()
	}
	return g.Wait()
}

// look adds one unit to the seals of all guesses.
func (m *mender) look(ctx context.Context, u block.Range) error {
	pages, table, source, err := m.three(ctx, u)
	if err != nil {
		return err
	}
	bs := m.c.rep.Of.BlockSize
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range table {
		n := u.Off/bs + int64(i)
		if pages[i] != table[i] {
			b := block.Nth(int64(i), bs, u.Len)
			m.doubted.Add(block.Range{Off: u.Off + b.Off, Len: b.Len})
		}
		for by := range m.seals {
			m.seals[by].Add(n, guess(by, pages[i], table[i], source[i]))
		}
	}
	return nil
}

// three is the sums of a range by its bytes, by the table, and of the source, which is read only where the first two differ.
func (m *mender) three(ctx context.Context, u block.Range) (pages, table, source []sums.Sum, err error) {
	table = make([]sums.Sum, block.Count(u.Len, m.c.rep.Of.BlockSize))
	if err := m.c.rep.Pages.LoadSums(ctx, u.Off/m.c.rep.Of.BlockSize, table); err != nil {
		return nil, nil, nil, err
	}
	if pages, err = m.c.replicaSums(ctx, u, table); err != nil {
		return nil, nil, nil, err
	}
	for i := range table {
		if pages[i] != table[i] {
			source, _, err = m.c.source(u, durable.AlignedBuffer(int(u.Len)))
			return pages, table, source, err
		}
	}
	return pages, table, table, nil
}

// guess is the guess that the seal proves.
func (m *mender) guess(seal sums.Seal) (by int, ok bool) {
	for by, s := range m.seals {
		if s == seal {
			return by, true
		}
	}
	return 0, false
}

// mend stores what a guess says and returns how many sums were others.
func (m *mender) mend(ctx context.Context, by int) (mended int64, err error) {
	bs := m.c.rep.Of.BlockSize
	m.whole = true
	for run := range m.doubted.Chunks(m.c.pace.Unit) {
		pages, table, source, err := m.three(ctx, run)
		if err != nil {
			return mended, err
		}
		for i := range table {
			right := guess(by, pages[i], table[i], source[i])
			m.whole = m.whole && right == pages[i]
			if right != table[i] {
				mended, table[i] = mended+1, right
			}
		}
		if err := m.c.rep.Pages.StoreSums(ctx, run.Off/bs, table); err != nil {
			return mended, err
		}
	}
	return mended, nil
}

package pageblob

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/sums"
)

// The table of block sums is a page blob of the raw sums. Engines read and change it a few sums at a time, so it is kept in
// pieces of 256 KiB (of a GiB of a disk with blocks of 64 KiB), which are read once and written back by Flush, the changed
// sectors only. A piece without pages is not read.
const (
	piece     = 256 << 10
	maxPieces = 64 // 16 MiB
)

// sumTable is the block sums of one disk.
type sumTable struct {
	f *pageFile

	mu     sync.Mutex
	size   int64  // bytes of the blob
	tag    string // its ETag, as long as nothing is written to it through this table; "": not known
	tick   uint64
	pieces map[int64]*sumPiece
}

type sumPiece struct {
	data  []byte
	dirty block.Set // offsets of the blob, whole sectors
	tick  uint64
}

func newSumTable(f *pageFile, size int64) *sumTable {
	return &sumTable{f: f, size: size, pieces: map[int64]*sumPiece{}}
}

// grow says how long the blob is from now on. What is new is zero.
func (t *sumTable) grow(size int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.size, t.tag = size, ""
}

// sumsSize is the size of the blob for a disk.
func sumsSize(size, blockSize int64) int64 {
	return max(block.RoundUp(block.Count(size, blockSize)*sums.Size, sector), sector)
}

// at calls do with the parts of pieces that hold a range of the blob. t.mu is held.
func (t *sumTable) at(ctx context.Context, r block.Range, do func(p *sumPiece, in []byte, part block.Range)) error {
	for !r.Empty() {
		n := r.Off / piece
		part := r.Intersect(block.Range{Off: n * piece, Len: piece})
		p, err := t.piece(ctx, n)
		if err != nil {
			return err
		}
		do(p, p.data[part.Off-n*piece:][:part.Len], part)
		r = block.Range{Off: part.End(), Len: r.Len - part.Len}
	}
	return nil
}

func (t *sumTable) piece(ctx context.Context, n int64) (*sumPiece, error) {
	t.tick++
	if p := t.pieces[n]; p != nil {
		p.tick = t.tick
		return p, nil
	}
	if len(t.pieces) >= maxPieces {
		if err := t.evict(ctx); err != nil {
			return nil, err
		}
	}
	p := &sumPiece{data: make([]byte, piece), tick: t.tick}
	whole := block.Range{Off: n * piece, Len: piece}
	for r := whole.Intersect(block.Range{Len: t.size}); !r.Empty(); {
		end := r.End()
		e, err := t.f.ranges.extent(ctx, r)
		if err != nil {
			return nil, err
		}
		if e.Kind == block.Data {
			if err := t.f.read(ctx, p.data[e.Off-whole.Off:][:e.Len], e.Off); err != nil {
				return nil, err
			}
		}
		r = block.Range{Off: e.End(), Len: end - e.End()}
	}
	t.pieces[n] = p
	return p, nil
}

// evict gives up the piece that was used least lately.
func (t *sumTable) evict(ctx context.Context) error {
	oldest := int64(-1)
	for n, p := range t.pieces {
		if oldest < 0 || p.tick < t.pieces[oldest].tick {
			oldest = n
		}
	}
	if t.pieces[oldest].dirty.Runs() > 0 {
		t.tag = ""
	}
	if err := t.writeBack(ctx, oldest, t.pieces[oldest]); err != nil {
		return err
	}
	delete(t.pieces, oldest)
	return nil
}

// writeBack sends what has changed of a piece. All of its bytes are known, so no gap has to be read.
func (t *sumTable) writeBack(ctx context.Context, n int64, p *sumPiece) error {
	base := n * piece
	for _, r := range t.changed(p) {
		in := p.data[r.Off-base:][:r.Len]
		if block.IsZero(in) {
			if err := t.f.clear(ctx, r); err != nil {
				return err
			}
			t.f.noteZero(r)
		} else if err := t.f.put(ctx, in, r.Off); err != nil {
			return err
		}
	}
	p.dirty = block.Set{}
	return nil
}

// changed joins what has changed where that saves requests.
func (t *sumTable) changed(p *sumPiece) []block.Range {
	var out []block.Range
	for r := range p.dirty.All() {
		if n := len(out); n > 0 && r.Off-out[n-1].End() <= gapMost {
			out[n-1].Len = r.End() - out[n-1].Off
		} else {
			out = append(out, r)
		}
	}
	return out
}

func sumRange(first, n int64) block.Range {
	return block.Range{Off: first * sums.Size, Len: n * sums.Size}
}

func (t *sumTable) load(ctx context.Context, first int64, out []sums.Sum) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at(ctx, sumRange(first, int64(len(out))), func(_ *sumPiece, in []byte, _ block.Range) {
		for len(in) > 0 {
			out[0] = sums.Sum(in[:sums.Size])
			in, out = in[sums.Size:], out[1:]
		}
	})
}

func (t *sumTable) store(ctx context.Context, first int64, in []sums.Sum) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at(ctx, sumRange(first, int64(len(in))), func(p *sumPiece, to []byte, part block.Range) {
		for len(to) > 0 {
			copy(to, in[0][:])
			to, in = to[sums.Size:], in[1:]
		}
		t.touch(p, part, block.Data)
	})
}

// clear zeroes n sums. A run of zeros that is zero already costs nothing.
func (t *sumTable) clear(ctx context.Context, first, n int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := sumRange(first, n); !r.Empty(); {
		e, err := t.f.ranges.extent(ctx, r)
		if err != nil {
			return err
		}
		if e.Kind == block.Data {
			err := t.at(ctx, e.Range, func(p *sumPiece, to []byte, part block.Range) {
				clear(to)
				t.touch(p, part, block.Data)
			})
			if err != nil {
				return err
			}
		}
		r = block.Range{Off: e.End(), Len: r.End() - e.End()}
	}
	return nil
}

func (t *sumTable) touch(p *sumPiece, part block.Range, k block.Kind) {
	sectors := part.Outward(sector)
	p.dirty.Add(sectors)
	t.f.ranges.note(sectors, k)
}

// next is the first run of blocks whose sums may be other than zero.
func (t *sumTable) next(ctx context.Context, first, end int64) (start, n int64, err error) {
	for r := sumRange(first, end-first); !r.Empty(); {
		e, err := t.f.ranges.extent(ctx, r)
		if err != nil {
			return 0, 0, err
		}
		if e.Kind == block.Data {
			return e.Off / sums.Size, e.Len / sums.Size, nil
		}
		r = block.Range{Off: e.End(), Len: r.End() - e.End()}
	}
	return end, 0, nil
}

// flush writes everything back, in pieces side by side.
func (t *sumTable) flush(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for n, p := range t.pieces {
		if p.dirty.Runs() > 0 {
			t.tag = ""
			g.Go(func() error { return t.writeBack(ctx, n, p) })
		}
	}
	return g.Wait()
}

// loadOnce reads sums that are not kept, of a snapshot.
func loadOnce(ctx context.Context, m *rangeMap, first int64, n int64) ([]sums.Sum, error) {
	whole := sumRange(first, n)
	buf := make([]byte, whole.Len)
	if err := m.fill(ctx, buf, whole.Off); err != nil {
		return nil, err
	}
	var out []sums.Sum
	for b := range slices.Chunk(buf, sums.Size) {
		out = append(out, sums.Sum(b))
	}
	return out, nil
}

package dir

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// pointView is the disks of one recovery point.
type pointView struct {
	vm    string
	disks map[string]*pointDisk
}

// standing is where the pages stood when a point was opened. What is read of them is the point's only as long as they have not left that
// position, whose step back is made, and told by the ledger, before any of them is changed. So whoever has read looks afterwards.
type standing struct {
	r          *vmReplica
	head       hrl.Pos
	generation uint64

	mu  sync.Mutex
	raw []byte // the ledger when it was looked at last
}

// stand is where the pages stand now.
func (r *vmReplica) stand() (*standing, error) {
	raw, err := r.rawLedger()
	if err != nil {
		return nil, err
	}
	st, err := replica.Decode(raw, r.ledgerPath(), r.vm)
	if err != nil {
		return nil, err
	}
	return &standing{r: r, head: head(&st), generation: st.Generation, raw: raw}, nil
}

// still fails with fault.LedgerConflict when pages may have been changed.
func (s *standing) still() error {
	raw, err := s.r.rawLedger()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(raw, s.raw) {
		return nil
	}
	st, err := replica.Decode(raw, s.r.ledgerPath(), s.r.vm)
	if err != nil {
		return err
	}
	if head(&st) != s.head || st.Generation != s.generation {
		return fault.New(fault.LedgerConflict, "the replica has moved on while a recovery point was read").At(s.r.ledgerPath())
	}
	s.raw = raw
	return nil
}

// Open opens a recovery point; see replica.Points. Every log that it is seen through is verified as a whole, and the block sums of
// every disk are proved by the seal of the point.
func (p *points) Open(ctx context.Context, s replica.State, id string) (replica.PointView, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.In(err, p.r.vm, "")
	}
	point := s.Point(id)
	if point == nil {
		return nil, fault.New(fault.PointMissing, "the ledger has no recovery point %q", id).Of(p.r.vm, "")
	}
	at, err := p.r.stand()
	if err != nil {
		return nil, fault.In(err, p.r.vm, "")
	}
	v := &pointView{vm: p.r.vm, disks: map[string]*pointDisk{}}
	for name, size := range point.Sizes {
		d := &pointDisk{vm: p.r.vm, name: name, size: size, layers: layers{fs: p.r.fs}, at: at}
		v.disks[name] = d
		if err := p.openDisk(ctx, &s, point, d); err != nil {
			return nil, fault.In(errors.Join(err, v.Close()), p.r.vm, name)
		}
	}
	return v, nil
}

// openDisk opens the layers of one disk, from its own position up to a clone or the pages of today.
func (p *points) openDisk(ctx context.Context, s *replica.State, point *replica.Point, d *pointDisk) error {
	of := s.Disk(d.name)
	if of == nil {
		return fault.New(fault.LedgerCorrupt, "the ledger has a recovery point of a disk that it does not have").At(p.r.ledgerPath())
	}
	c, err := p.chainOf(ctx, s, point.At, d.name)
	if err != nil {
		return err
	}
	if c.clone {
		d.at = nil
	}
	for _, at := range c.at {
		if err := p.openLayer(ctx, s, at, d, of.BlockSize); err != nil {
			return err
		}
	}
	d.merge()
	if err := d.openBase(p.r.fs, c.base, c.sums, of.BlockSize); err != nil {
		return err
	}
	m := markOf(s, point, c)
	if m != nil {
		asHeld, err := p.trace(ctx, s, c, []*mark{m})
		if err != nil {
			return err
		}
		if asHeld {
			clear(d.rotten)
		}
		if m.short && m.at == point.At {
			if err := d.addLast(m, of.BlockSize); err != nil {
				return err
			}
		}
	}
	return p.judge(ctx, s, c, m)
}

func (p *points) openLayer(ctx context.Context, s *replica.State, at hrl.Pos, d *pointDisk, blockSize int64) error {
	l, err := p.openUndo(ctx, s, at, d.name)
	if err != nil {
		return err
	}
	rotten, err := p.rottenOf(at, d.name, blockSize)
	if err == nil {
		err = d.add(ctx, l, rotten)
	}
	if err != nil {
		return errors.Join(err, l.file.Close())
	}
	return nil
}

// addLast reads the last, short block of the disk, of which the sums know only what it has become since, and puts it into what was found.
func (d *pointDisk) addLast(m *mark, blockSize int64) error {
	i := m.size / blockSize
	last := make([]byte, m.size%blockSize)
	if _, err := d.ReadAt(last, i*blockSize); err != nil {
		return err
	}
	m.have.Add(i, sums.Of(last))
	m.short = false
	return nil
}

// piece is a run of the disk that an undo log holds.
type piece struct {
	block.Range
	layer int
	at    int64 // offset in the log's file; -1: zeros
}

// pointDisk is a disk as an index over logs above a file of pages. It is not changed after opening.
type pointDisk struct {
	vm, name string
	size     int64
	layers   layers          // undo logs; an earlier one hides the later ones
	rotten   []*rottenBlocks // of each layer, what it holds and was not what its sum said
	runs     [][]piece       // of each layer, sorted; the index is their merger
	index    []piece         // sorted, disjoint
	base     durable.File
	at       *standing    // of base; nil: a clone, which nothing changes
	sums     durable.File // of base
	proven   *replica.Proven
	mu       sync.Mutex // for base.Extent
}

// add verifies a log and takes its records, some of which may be known to be rotten. A log without any is not kept open: a chain may be long.
func (d *pointDisk) add(ctx context.Context, l *undoLog, rotten *rottenBlocks) error {
	if err := l.Verify(ctx); err != nil {
		return damaged(err)
	}
	layer := d.layers.count()
	var run []piece
	for rec, err := range l.Records(ctx) {
		if err != nil {
			return damaged(err)
		}
		pc := piece{Range: rec.Range, layer: layer, at: rec.At}
		if rec.Zero {
			pc.at = -1
		}
		run = append(run, pc)
	}
	if len(run) == 0 {
		return l.file.Close()
	}
	if err := d.layers.add(l.file); err != nil {
		return err
	}
	d.rotten = append(d.rotten, rotten)
	slices.SortFunc(run, func(a, b piece) int { return cmp.Compare(a.Off, b.Off) })
	d.runs = append(d.runs, run)
	return nil
}

// merge makes the index: neighbours are merged pairwise, so that many small layers cost no more than their sum a few
// times.
func (d *pointDisk) merge() {
	for len(d.runs) > 1 {
		var next [][]piece
		for pair := range slices.Chunk(d.runs, 2) {
			if len(pair) == 2 {
				pair[0] = over(pair[0], pair[1])
			}
			next = append(next, pair[0])
		}
		d.runs = next
	}
	if len(d.runs) == 1 {
		d.index = d.runs[0]
	}
	d.runs = nil
}

// over returns top with, in its gaps, what bottom has there. Both are sorted and disjoint, and so is the result. bottom is
// used up.
func over(top, bottom []piece) []piece {
	out := make([]piece, 0, len(top)+len(bottom))
	for _, t := range top {
		for len(bottom) > 0 && bottom[0].Off < t.Off {
			if bottom[0].End() > t.Off {
				out = append(out, bottom[0].cut(bottom[0].Off, t.Off))
				break
			}
			out, bottom = append(out, bottom[0]), bottom[1:]
		}
		for len(bottom) > 0 && bottom[0].End() <= t.End() {
			bottom = bottom[1:]
		}
		if len(bottom) > 0 && bottom[0].Off < t.End() {
			bottom[0] = bottom[0].cut(t.End(), bottom[0].End())
		}
		out = append(out, t)
	}
	return append(out, bottom...)
}

// cut returns the part [off, end) of a piece.
func (p piece) cut(off, end int64) piece {
	if p.at >= 0 {
		p.at += off - p.Off
	}
	p.Range = block.Range{Off: off, Len: end - off}
	return p
}

// openBase opens the pages that show through where no undo log hides them, with the sums that prove them.
func (d *pointDisk) openBase(fsys durable.FS, path, sumsPath string, blockSize int64) (err error) {
	d.base, err = fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.ReplicaMissing, "the file is missing").At(path)
	}
	if err != nil {
		return err
	}
	length, err := d.base.Size()
	if err != nil {
		return err
	}
	if length < d.size+vhd.FooterSize {
		return fault.New(fault.ReplicaChanged, "the file has %d bytes, too few for a disk of %d", length, d.size).At(path)
	}
	d.sums, err = fsys.Open(sumsPath)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.ReplicaChanged, "the block sums are missing, without which nothing that is read can be proved").At(sumsPath)
	}
	if err != nil {
		return err
	}
	table := sums.NewTable(d.sums)
	d.proven = &replica.Proven{
		BlockSize: blockSize, End: length - vhd.FooterSize, ShortEnd: d.size, Path: path,
		Read: func(p []byte, off int64) error { return readPages(d.base, p, off) },
		Sums: table.Load,
		NextSums: func(first, end int64) (start, n int64, err error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return table.Next(first, end)
		},
	}
	return nil
}

// Disk returns a disk of the point; see replica.PointView.
func (v *pointView) Disk(name string) (replica.PointDisk, error) {
	d := v.disks[name]
	if d == nil {
		return nil, fault.New(fault.PointMissing, "the recovery point has no such disk").Of(v.vm, name)
	}
	return d, nil
}

// Close closes all disks.
func (v *pointView) Close() error {
	var err error
	for _, d := range v.disks {
		err = errors.Join(err, d.layers.close())
		for _, f := range []durable.File{d.base, d.sums} {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
		}
	}
	v.disks = nil
	return err
}

// Size is the number of guest bytes at the point.
func (d *pointDisk) Size() int64 { return d.size }

// find returns what holds the byte at off: a piece of a log, or, when ok is false, the base up to next.
func (d *pointDisk) find(off int64) (pc piece, next int64, ok bool) {
	i, _ := slices.BinarySearchFunc(d.index, off, func(p piece, off int64) int {
		if p.End() <= off {
			return -1
		}
		return 1
	})
	if i == len(d.index) {
		return piece{}, d.size, false
	}
	if pc = d.index[i]; pc.Off <= off {
		return pc.cut(off, pc.End()), pc.End(), true
	}
	return piece{}, pc.Off, false
}

// ReadAt reads guest bytes; see io.ReaderAt.
func (d *pointDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.IO, "offset %d", off).Of(d.vm, d.name)
	}
	want := int(min(int64(len(p)), max(d.size-off, 0)))
	pages := false
	for done := 0; done < want; {
		n, base, err := d.readPiece(p[done:want], off+int64(done))
		if err != nil {
			return done, fault.In(err, d.vm, d.name)
		}
		pages = pages || base
		done += n
	}
	if err := d.still(pages); err != nil {
		return 0, fault.In(err, d.vm, d.name)
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// still fails when pages were read, and may have been changed before.
func (d *pointDisk) still(pages bool) error {
	if !pages || d.at == nil {
		return nil
	}
	return d.at.still()
}

// readPiece reads from one place; base says that it was the pages.
func (d *pointDisk) readPiece(p []byte, off int64) (n int, base bool, err error) {
	pc, next, ok := d.find(off)
	p = p[:min(int64(len(p)), next-off)]
	switch {
	case !ok:
		return len(p), true, d.proven.ReadAt(p, off)
	case d.rotten[pc.layer].hits(block.Range{Off: off, Len: int64(len(p))}):
		return 0, false, fault.New(fault.ReplicaCorrupt, "the recovery point is lost here: what it holds was rotten before it was preserved").
			AtOff(d.layers.name(pc.layer), off)
	case pc.at < 0:
		clear(p)
		return len(p), false, nil
	}
	return len(p), false, d.layers.read(pc.layer, p, pc.at)
}

// Extent tells data from zeros; see replica.PointDisk.
func (d *pointDisk) Extent(off, n int64) (block.Extent, error) {
	if !(block.Range{Off: off, Len: n}).Within(d.size) {
		return block.Extent{}, fault.New(fault.IO, "[%d,+%d) is not on the disk of %d bytes", off, n, d.size).Of(d.vm, d.name)
	}
	if n == 0 {
		return block.Extent{Range: block.Range{Off: off}}, nil
	}
	pc, next, ok := d.find(off)
	n = min(n, next-off)
	if ok {
		kind := block.Data
		if pc.at < 0 && !d.rotten[pc.layer].hits(block.Range{Off: off, Len: n}) { // for ReadAt to refuse it
			kind = block.Zero
		}
		return block.Extent{Range: block.Range{Off: off, Len: n}, Kind: kind}, nil
	}
	d.mu.Lock()
	e, err := d.base.Extent(off, n)
	d.mu.Unlock()
	if err == nil {
		e, err = d.proven.Extent(e)
	}
	if err == nil {
		err = d.still(true)
	}
	return e, fault.In(err, d.vm, d.name)
}

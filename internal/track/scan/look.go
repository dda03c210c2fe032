package scan

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/sums"
)

// Look opens what the tracker of a VM remembers for looking only: nothing is written, completed or removed, neither in its folder nor
// beside the disks. Its cuts read the disks as they are, while they may go on changing, so what they tell is how it was while
// they were read; they cannot be advanced. Whoever looks while another run moves the position may be told that it is lost.
func Look(fsys durable.FS, c Config) (*Tracker, error) {
	t, err := newTracker(durable.ReadOnly(fsys), c)
	if err != nil {
		return nil, err
	}
	t.looking = true
	if err := t.load(); err != nil {
		return nil, fault.In(err, c.VM, "")
	}
	return t, nil
}

// Sums calls f for every block sum of a disk at the tracker's position that is not zero, in ascending order. It is an error when there
// is no position, or when the seal does not prove the sums; f has seen them then.
func (t *Tracker) Sums(ctx context.Context, disk string, f func(i int64, s sums.Sum) error) (err error) {
	if t.rec == nil || t.rec.disk(disk) == nil {
		return fault.In(t.lost(t.Position()), t.c.VM, disk)
	}
	d := *t.rec.disk(disk)
	file, err := t.openSums(d)
	if err != nil {
		return fault.In(err, t.c.VM, disk)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var seal sums.Seal
	err = sums.NewTable(file).All(d.blocks(), func(i int64, s sums.Sum) error {
		seal.Add(i, s)
		if i%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		return f(i, s)
	})
	if err == nil && seal != d.Seal {
		err = damaged(t.sumsPath(disk, d.Sums), "the block sums are not what they were")
	}
	return fault.In(err, t.c.VM, disk)
}

// openSums opens the sums of a disk at the position. The redo file that an interrupted Advance has left is put over them in memory,
// where it has not been completed.
func (t *Tracker) openSums(d diskRecord) (durable.File, error) {
	f, err := t.fs.Open(t.sumsPath(d.Name, d.Sums))
	if err != nil || d.Redo == nil {
		return f, err
	}
	p, err := t.patch(f, d)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

func (t *Tracker) patch(under durable.File, d diskRecord) (durable.File, error) {
	p := &patched{File: under}
	err := t.readRedo(d, func(f durable.File) error {
		return eachBatch(f, d.Redo.Entries, func(raw []byte) error {
			for ; len(raw) > 0; raw = raw[entrySize:] {
				p.entries = append(p.entries, parseEntry(raw))
			}
			return nil
		})
	})
	slices.SortFunc(p.entries, func(a, b entry) int { return cmp.Compare(a.first, b.first) })
	return p, err
}

// patched is a file of sums with those of a redo file over it.
type patched struct {
	durable.File
	entries []entry // by their blocks
}

// from is the first entry that ends after a block.
func (p *patched) from(i int64) []entry {
	n, _ := slices.BinarySearchFunc(p.entries, i, func(e entry, i int64) int { return cmp.Compare(e.first+e.n, i+1) })
	return p.entries[n:]
}

func (p *patched) Size() (int64, error) {
	size, err := p.File.Size()
	if n := len(p.entries); n > 0 {
		last := p.entries[n-1]
		size = max(size, (last.first+last.n)*sums.Size)
	}
	return size, err
}

// ReadAt is asked for whole sums.
func (p *patched) ReadAt(buf []byte, off int64) (int, error) {
	n, err := p.File.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	clear(buf[n:])
	first, end := off/sums.Size, (off+int64(len(buf)))/sums.Size
	for _, e := range p.from(first) {
		if e.first >= end {
			break
		}
		for i := max(e.first, first); i < min(e.first+e.n, end); i++ {
			copy(buf[(i-first)*sums.Size:], e.sum[:])
		}
	}
	return len(buf), nil
}

func (p *patched) Extent(off, n int64) (block.Extent, error) {
	rest := p.from(off / sums.Size)
	if len(rest) > 0 {
		from, end := rest[0].first*sums.Size, (rest[0].first+rest[0].n)*sums.Size
		if from <= off {
			return block.Extent{Range: block.Range{Off: off, Len: min(end-off, n)}, Kind: block.Data}, nil
		}
		n = min(n, from-off)
	}
	return p.File.Extent(off, n)
}

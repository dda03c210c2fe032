package pageblob

import (
	"context"
	"io"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// pointView is the disks of one recovery point.
type pointView struct {
	vm    string
	disks map[string]*pointDisk
}

// Disk returns a disk of the point; see replica.PointView.
func (v *pointView) Disk(name string) (replica.PointDisk, error) {
	d := v.disks[name]
	if d == nil {
		return nil, fault.New(fault.PointMissing, "the recovery point has no such disk").Of(v.vm, name)
	}
	return d, nil
}

// Close ends the view. There is nothing to give back.
func (v *pointView) Close() error { return nil }

// pointDisk is one disk of a point. What is read is read in whole blocks, each of which is proved by its sum.
type pointDisk struct {
	ctx       context.Context // of the call that opened it: its methods have none
	vm, name  string
	size      int64
	end       int64 // guest bytes of the pages: size, or more when the disk has become larger since
	blockSize int64
	pages     *source
	ranges    *rangeMap // of the pages
	table     *rangeMap // of the sums

	mu     sync.Mutex
	last   block.Range // what was read last, for readers of less
	cached []byte
	sums   []sums.Sum // a piece of the table, of the blocks from sumsAt on
	sumsAt int64
}

// Size is the number of guest bytes at the point.
func (d *pointDisk) Size() int64 { return d.size }

// ReadAt reads guest bytes; see io.ReaderAt and replica.PointDisk.
func (d *pointDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.IO, "offset %d", off).Of(d.vm, d.name)
	}
	want := min(int64(len(p)), max(d.size-off, 0))
	if want > 0 {
		if err := d.readProven(p[:want], off); err != nil {
			return 0, in(err, d.vm, d.name)
		}
	}
	if want < int64(len(p)) {
		return int(want), io.EOF
	}
	return int(want), nil
}

// viewUnit is what is read for a reader of less, bytes: most read on.
const viewUnit = 256 << 10

// readProven fills p, at most 4 MiB of blocks at a time.
func (d *pointDisk) readProven(p []byte, off int64) error {
	unit := max(d.blockSize, viewUnit)
	for len(p) > 0 {
		n := min(int64(len(p)), maxPut-off%unit)
		whole := (block.Range{Off: off, Len: n}).Outward(unit).Intersect(block.Range{Len: d.size})
		buf := d.remembered(whole)
		if buf == nil {
			buf = make([]byte, whole.Len)
			err := d.proven().ReadAt(buf, whole.Off)
			if fault.Is(err, fault.ReplicaCorrupt) { // perhaps beside what was asked for
				whole = (block.Range{Off: off, Len: n}).Outward(d.blockSize).Intersect(block.Range{Len: d.size})
				buf = buf[:whole.Len]
				err = d.proven().ReadAt(buf, whole.Off)
			}
			if err != nil {
				return err
			}
			d.remember(whole, buf, unit)
		}
		copy(p[:n], buf[off-whole.Off:])
		p, off = p[n:], off+n
	}
	return nil
}

func (d *pointDisk) remembered(r block.Range) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cached != nil && d.last == r {
		return d.cached
	}
	return nil
}

func (d *pointDisk) remember(r block.Range, buf []byte, most int64) {
	if r.Len > most {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last, d.cached = r, buf
}

// fetch fills buf with what the service has; nothing proves it.
func (d *pointDisk) fetch(buf []byte, off int64) error { return d.ranges.fill(d.ctx, buf, off) }

// fetchSums fills out with the sums of the blocks from first on.
func (d *pointDisk) fetchSums(first int64, out []sums.Sum) error {
	for i := range out {
		sum, err := d.sum(first + int64(i))
		if err != nil {
			return err
		}
		out[i] = sum
	}
	return nil
}

// proven proves what is read by its sums.
func (d *pointDisk) proven() *replica.Proven {
	return &replica.Proven{BlockSize: d.blockSize, End: max(d.end, d.size), ShortEnd: d.size, Read: d.fetch, Sums: d.fetchSums, NextSums: d.nextSums, Path: d.pages.where()}
}

// nextSums finds sums that may be other than zero: the table has pages only where there are some.
func (d *pointDisk) nextSums(first, end int64) (start, n int64, err error) {
	for off, to := first*sums.Size, end*sums.Size; off < to; {
		e, err := d.table.extent(d.ctx, block.Range{Off: off, Len: to - off})
		if err != nil {
			return 0, 0, err
		}
		if e.Kind == block.Data {
			start = e.Off / sums.Size
			return start, block.Count(e.End(), sums.Size) - start, nil
		}
		off = e.End()
	}
	return 0, 0, nil
}

// seal computes the seal of the sums that the disk is seen by.
func (d *pointDisk) seal(ctx context.Context) (seal sums.Seal, err error) {
	whole := d.size / d.blockSize
	n := whole
	if d.size%d.blockSize != 0 && d.end <= d.size {
		n++ // the last block is as short in the table
	}
	for r := sumRange(0, n); !r.Empty(); {
		e, err := d.table.extent(ctx, r)
		if err != nil {
			return seal, err
		}
		if e.Len = min(e.Len, maxPut); e.Kind == block.Data {
			list, err := loadOnce(ctx, d.table, e.Off/sums.Size, block.Count(e.Len, sums.Size))
			if err != nil {
				return seal, err
			}
			for i, sum := range list {
				seal.Add(e.Off/sums.Size+int64(i), sum)
			}
		}
		r = block.Range{Off: e.End(), Len: r.End() - e.End()}
	}
	if n == whole && d.size%d.blockSize != 0 {
		last := make([]byte, d.size%d.blockSize)
		if _, err := d.ReadAt(last, whole*d.blockSize); err != nil {
			return seal, err
		}
		seal.Add(whole, sums.Of(last))
	}
	return seal, nil
}

// sum is the sum of a block. They are read in pieces, of which the last is kept.
func (d *pointDisk) sum(i int64) (sums.Sum, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at := i - d.sumsAt; at >= 0 && at < int64(len(d.sums)) {
		return d.sums[at], nil
	}
	const each = piece / sums.Size
	first := i / each * each
	list, err := loadOnce(d.ctx, d.table, first, min(each, block.Count(d.size, d.blockSize)-first))
	if err != nil {
		return sums.Sum{}, err
	}
	d.sums, d.sumsAt = list, first
	return list[i-first], nil
}

// Extent tells pages from what has none; see replica.PointDisk. Where pages are missing that their sums speak of, it says data, for
// ReadAt to refuse it.
func (d *pointDisk) Extent(off, n int64) (block.Extent, error) {
	if !(block.Range{Off: off, Len: n}).Within(d.size) {
		return block.Extent{}, fault.New(fault.IO, "[%d,+%d) is not on the disk of %d bytes", off, n, d.size).Of(d.vm, d.name)
	}
	if n == 0 {
		return block.Extent{Range: block.Range{Off: off}}, nil
	}
	e, err := d.ranges.extent(d.ctx, block.Range{Off: off, Len: n})
	if err == nil {
		e, err = d.proven().Extent(e)
	}
	return e, in(err, d.vm, d.name)
}

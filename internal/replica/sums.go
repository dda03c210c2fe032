package replica

import (
	"context"

	"sitrep/internal/block"
	"sitrep/internal/sums"
)

// DiskSums shows the block sums of one disk of a replica.
type DiskSums struct {
	Pages Pages
	Of    Disk
}

// Size is the number of guest bytes of the disk.
func (d DiskSums) Size() int64 { return d.Of.Size }

// Blocks is the number of blocks of the disk.
func (d DiskSums) Blocks() int64 { return block.Count(d.Of.Size, d.Of.BlockSize) }

// All calls f for every block whose sum is not zero, in ascending order.
func (d DiskSums) All(ctx context.Context, f func(i int64, s sums.Sum) error) error {
	return d.In(ctx, 0, d.Blocks(), f)
}

// In is All for the blocks from first to before end.
func (d DiskSums) In(ctx context.Context, first, end int64, f func(i int64, s sums.Sum) error) error {
	var buf []sums.Sum
	for at := first; at < end; {
		start, n, err := d.Pages.NextSums(ctx, at, end)
		if err != nil || n == 0 {
			return err
		}
		n = min(n, 4096)
		if int64(len(buf)) < n {
			buf = make([]sums.Sum, n)
		}
		if err := d.Pages.LoadSums(ctx, start, buf[:n]); err != nil {
			return err
		}
		for i, s := range buf[:n] {
			if s.IsZero() {
				continue
			}
			if err := f(start+int64(i), s); err != nil {
				return err
			}
		}
		at = start + n
	}
	return nil
}

// Seal computes the seal of the sums.
func (d DiskSums) Seal(ctx context.Context) (sums.Seal, error) {
	var l sums.Seal
	err := d.All(ctx, func(i int64, s sums.Sum) error { l.Add(i, s); return nil })
	return l, err
}

// Next is the first range at or after the guest offset at, of whole blocks and at most n bytes, in which the pages have
// data or the sums are not zero; it is empty when there is none.
func (d DiskSums) Next(ctx context.Context, at, n int64) (block.Range, error) {
	bs, size := d.Of.BlockSize, d.Of.Size
	start, run, err := d.Pages.NextSums(ctx, at/bs, d.Blocks())
	if err != nil {
		return block.Range{}, err
	}
	sumAt := size
	if run > 0 {
		sumAt = max(start*bs, at)
	}
	dataAt := at
	for dataAt < sumAt {
		e, err := d.Pages.Extent(ctx, dataAt, sumAt-dataAt)
		if err != nil {
			return block.Range{}, err
		}
		if e.Kind == block.Data {
			break
		}
		dataAt = e.End()
	}
	off := min(sumAt, dataAt)
	if off >= size {
		return block.Range{Off: size}, nil
	}
	off = off / bs * bs
	return block.Range{Off: off, Len: min(n, size-off)}, nil
}

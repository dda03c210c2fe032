package replicate

import (
	"context"
	"errors"
	"io"

	"sitrep/internal/block"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// blockCount is the number of blocks of a disk.
func blockCount(d replica.Disk) int64 { return block.Count(d.Size, d.BlockSize) }

// eachSum calls f for every block before end whose sum is not zero, in ascending order.
func eachSum(ctx context.Context, pages replica.Pages, end int64, f func(i int64, s sums.Sum) error) error {
	return eachSumIn(ctx, pages, 0, end, f)
}

// eachSumIn is eachSum for the blocks from first to before end.
func eachSumIn(ctx context.Context, pages replica.Pages, first, end int64, f func(i int64, s sums.Sum) error) error {
	var buf []sums.Sum
	for at := first; at < end; {
		start, n, err := pages.NextSums(ctx, at, end)
		if err != nil || n == 0 {
			return err
		}
		n = min(n, 4096)
		if int64(len(buf)) < n {
			buf = make([]sums.Sum, n)
		}
		if err := pages.LoadSums(ctx, start, buf[:n]); err != nil {
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

// sealOf computes the seal of the blocks before end.
func sealOf(ctx context.Context, pages replica.Pages, end int64) (sums.Seal, error) {
	var l sums.Seal
	err := eachSum(ctx, pages, end, func(i int64, s sums.Sum) error { l.Add(i, s); return nil })
	return l, err
}

// readFull reads len(p) bytes at off, or fails.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

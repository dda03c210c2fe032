package replica

import (
	"context"
	"io"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/sums"
)

// samples is how many blocks of a disk are looked at, at the most, to tell whether another disk is the same.
const samples = 512

// sample is a block that holds data, and its sum.
type sample struct {
	block int64
	sum   sums.Sum
}

// Sample compares another disk with some of the blocks that hold data here, evenly spread: how many were looked at, how many of these
// differ or are not there, and how many bytes of data there are in all. The sums should be proven.
func (d DiskSums) Sample(ctx context.Context, other interface {
	io.ReaderAt
	Size() int64
}) (looked, differ, data int64, err error) {
	list, blocks, err := d.sample(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	buf := durable.AlignedBuffer(int(d.Of.BlockSize))
	for _, s := range list {
		if err := ctx.Err(); err != nil {
			return 0, 0, 0, err
		}
		b := block.Nth(s.block, d.Of.BlockSize, d.Of.Size)
		if b.End() > other.Size() {
			differ++
			continue
		}
		if err := durable.ReadFull(other, buf[:b.Len], b.Off); err != nil {
			return 0, 0, 0, err
		}
		if sums.Of(buf[:b.Len]) != s.sum {
			differ++
		}
	}
	return int64(len(list)), differ, blocks * d.Of.BlockSize, nil
}

// sample takes every block that holds data, then every second, every fourth and so on, as there are more; and counts them.
func (d DiskSums) sample(ctx context.Context) (list []sample, blocks int64, err error) {
	stride := int64(1)
	err = d.All(ctx, func(i int64, sum sums.Sum) error {
		if blocks%stride == 0 {
			list = append(list, sample{i, sum})
		}
		blocks++
		if len(list) == 2*samples {
			for k := range samples {
				list[k] = list[2*k]
			}
			list, stride = list[:samples], 2*stride
		}
		return nil
	})
	return list, blocks, err
}

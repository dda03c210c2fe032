package replica

import (
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/sums"
)

// Proven reads a disk that does not change, and proves what it reads by the disk's block sums. Its fields are set before the
// first use; it may then be used concurrently, when Read and Sums may.
type Proven struct {
	BlockSize int64
	// End is the number of bytes of the disk: the last block ends there.
	End int64
	// ShortEnd is where the last block ended when the disk was smaller, for a disk that was just made larger and whose sum of
	// that block may be the old one. It is End or less.
	ShortEnd int64
	// Read fills p from the disk, and Sums out with the sums of the blocks from first on.
	Read func(p []byte, off int64) error
	Sums func(first int64, out []sums.Sum) error
	// NextSums returns the first run of blocks at or after first, before end, whose sums may be other than zero; n is 0 when there is
	// none. It reads no sums. nil: they are read to find out.
	NextSums func(first, end int64) (start, n int64, err error)
	// Path tells an operator where the disk is.
	Path string

	blocks sync.Pool // of *provenBlock: blocks that were wanted in part, the rest of which may be wanted next
}

// provenBlock is a block as it was read; nothing changes it as long as the disk may be read.
type provenBlock struct {
	at   int64 // -1: nothing yet
	data []byte
}

// ReadAt fills b, which lies on the disk, or fails with fault.ReplicaCorrupt at the first block that is not what its sum says.
// Whole blocks are read and summed where they are wanted; of others all is read, and the part copied.
func (p *Proven) ReadAt(b []byte, off int64) error {
	for len(b) > 0 {
		n := p.whole(off, int64(len(b)))
		var err error
		if n > 0 {
			err = p.prove(b[:n], off)
		} else {
			n, err = p.part(b, off)
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}

// whole is how many bytes of [off, off+n) are whole blocks at its beginning.
func (p *Proven) whole(off, n int64) int64 {
	switch {
	case off%p.BlockSize != 0:
		return 0
	case off+n == p.End:
		return n
	}
	return n - n%p.BlockSize
}

// part reads the rest of the block at off, or as much of it as b takes.
func (p *Proven) part(b []byte, off int64) (int64, error) {
	blk := block.Nth(off/p.BlockSize, p.BlockSize, p.End)
	have, _ := p.blocks.Get().(*provenBlock)
	if have == nil {
		have = &provenBlock{at: -1, data: durable.AlignedBuffer(int(p.BlockSize))}
	}
	defer p.blocks.Put(have)
	if have.at != blk.Off {
		have.at = -1
		if err := p.prove(have.data[:blk.Len], blk.Off); err != nil {
			return 0, err
		}
		have.at = blk.Off
	}
	return int64(copy(b, have.data[off-blk.Off:blk.Len])), nil
}

// prove reads whole blocks.
func (p *Proven) prove(b []byte, off int64) error {
	if err := p.Read(b, off); err != nil {
		return err
	}
	want := make([]sums.Sum, block.Count(int64(len(b)), p.BlockSize))
	if err := p.Sums(off/p.BlockSize, want); err != nil {
		return err
	}
	for i, sum := range want {
		r := block.Nth(int64(i), p.BlockSize, int64(len(b)))
		if sums.Of(b[r.Off:r.End()]) == sum {
			continue
		}
		at := off + r.Off
		if short := p.ShortEnd - at; short > 0 && short < r.Len && sums.Of(b[r.Off:r.Off+short]) == sum {
			continue // and nothing behind it is of the disk that is wanted
		}
		return fault.New(fault.ReplicaCorrupt, "the block of %d bytes is not what its sum says", r.Len).AtOff(p.Path, at)
	}
	return nil
}

// extentBlocks is how many sums are looked at in one Extent.
const extentBlocks = 4096

// Extent corrects what a filesystem says of a run of the disk: zero is certain only where the sums say so too. A hole in
// which they do not is called data, for ReadAt to refuse it.
func (p *Proven) Extent(e block.Extent) (block.Extent, error) {
	if e.Kind != block.Zero || e.Len <= 0 {
		return e, nil
	}
	first, end := e.Off/p.BlockSize, block.Count(e.End(), p.BlockSize)
	if p.NextSums != nil {
		start, n, err := p.NextSums(first, end)
		switch {
		case err != nil:
			return e, err
		case n == 0: // the work is that of the sums that there are, not of the size of the disk
			return e, nil
		case start > first:
			e.Len = min(e.Len, start*p.BlockSize-e.Off)
			return e, nil
		}
		end = min(end, start+n)
	}
	have := make([]sums.Sum, min(end-first, extentBlocks))
	if err := p.Sums(first, have); err != nil {
		return e, err
	}
	n := 0
	for n < len(have) && have[n].IsZero() {
		n++
	}
	if n == 0 {
		n, e.Kind = 1, block.Data
	}
	e.Len = min(e.Len, (first+int64(n))*p.BlockSize-e.Off)
	return e, nil
}

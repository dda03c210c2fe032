package vhdx

import (
	"encoding/binary"
	"math/bits"

	"sitrep/internal/block"
)

// geometry is how the disk is cut ([MS-VHDX] 2.4, 2.5).
type geometry struct {
	params
	blocks int64 // payload blocks
	ratio  int64 // payload blocks per sector bitmap block: the chunk ratio
	bat    block.Range
}

func newGeometry(p params, bat block.Range) geometry {
	return geometry{params: p, bat: bat, ratio: chunkBits * p.logicalSector / p.blockSize, blocks: block.Count(p.size, p.blockSize)}
}

// entryOff is the place in the file of the BAT entry of a payload block. After each chunk's payload blocks comes the
// entry of its sector bitmap.
func (g *geometry) entryOff(b int64) int64 { return g.bat.Off + 8*(b+b/g.ratio) }

// bitmapEntryOff is the place in the file of the BAT entry of the sector bitmap of a chunk.
func (g *geometry) bitmapEntryOff(chunk int64) int64 { return g.bat.Off + 8*((chunk+1)*(g.ratio+1)-1) }

// visible is the number of bytes of a payload block that are the guest's; the last block may be cut by the disk's end.
func (g *geometry) visible(b int64) int64 { return min(g.blockSize, g.size-b*g.blockSize) }

// batBytes is how long the BAT has to be.
func (g *geometry) batBytes() int64 {
	switch {
	case g.blocks == 0:
		return 0
	case g.kind == Differencing:
		return g.bitmapEntryOff((g.blocks-1)/g.ratio) + 8 - g.bat.Off
	}
	return g.entryOff(g.blocks-1) + 8 - g.bat.Off
}

// entries returns BAT entries from that of payload block b on: as many as are at hand, at least one, all of payload
// blocks.
func (m *Image) entries(b int64) ([]byte, error) {
	p, err := m.tables.tail(m.geo.entryOff(b))
	if err != nil {
		return nil, err
	}
	n := min(m.geo.blocks-b, m.geo.ratio-b%m.geo.ratio, int64(len(p)/8))
	return p[:8*n], nil
}

func entryOf(p []byte) batEntry { return batEntry(binary.LittleEndian.Uint64(p)) }

// checkPayload says whether the entry of payload block b can be used.
func (m *Image) checkPayload(e batEntry, b int64) error {
	at := m.geo.entryOff(b)
	switch e.state() {
	case notPresent, undefined, zeroed, unmapped:
		return nil
	case partiallyPresent:
		if m.geo.kind != Differencing {
			return m.v.corrupt(at, "block %d is partially present, but the disk has no parent", b)
		}
	case fullyPresent:
	default:
		return m.v.corrupt(at, "block %d is in the unknown state %d", b, e.state())
	}
	return m.checkPlace(e, m.geo.visible(b), at)
}

// checkPlace says whether n bytes at the place of an entry lie in the file.
func (m *Image) checkPlace(e batEntry, n, at int64) error {
	if e.reserved() != 0 {
		return m.v.corrupt(at, "reserved bits of a BAT entry are set: %#x", uint64(e))
	}
	if e.mb() < headerArea/mib || e.mb() > maxFile/mib || int64(e.mb())*mib+n > m.v.size {
		return m.v.corrupt(at, "a BAT entry points to %d MiB, which is not in this file of %d bytes", e.mb(), m.v.size)
	}
	return nil
}

// bitmapOff returns the place in the file of the sector bitmap of a chunk.
func (m *Image) bitmapOff(chunk int64) (int64, error) {
	at := m.geo.bitmapEntryOff(chunk)
	if at+8 > m.geo.bat.End() {
		return 0, m.v.corrupt(m.geo.bat.Off, "the BAT has no entry for the sector bitmap of chunk %d", chunk)
	}
	p, err := m.tables.tail(at)
	if err != nil {
		return 0, err
	}
	e := entryOf(p)
	if e.state() != bitmapPresent {
		return 0, m.v.corrupt(at, "a block of chunk %d is partially present, but its sector bitmap is not there", chunk)
	}
	return int64(e.mb()) * mib, m.checkPlace(e, bitmapSize, at)
}

// bitRun looks at the sector bitmap from the byte off of the disk to end, which lies in the same block: it returns the
// first bit and how many bytes of the disk have the same one. The least significant bit comes first.
func (m *Image) bitRun(off, end int64) (present bool, n int64, err error) {
	chunkSize := chunkBits * m.geo.logicalSector
	base, err := m.bitmapOff(off / chunkSize)
	if err != nil {
		return false, 0, err
	}
	first := off % chunkSize / m.geo.logicalSector
	last := first + block.Count(end-off+off%m.geo.logicalSector, m.geo.logicalSector)
	s := first
	for s < last {
		p, err := m.tables.tail(base + s/64*8)
		if err != nil {
			return false, 0, err
		}
		if s == first {
			present = p[s%64/8]>>(s%8)&1 != 0
		}
		pageEnd := min(last, s-s%64+int64(len(p))*8)
		run := sameBits(p, s%64, pageEnd-(s-s%64), present)
		s += run
		if s < pageEnd {
			break
		}
	}
	n = min(s, last)*m.geo.logicalSector - off%chunkSize
	return present, min(n, end-off), nil
}

// sameBits counts the bits from from on, before end, that are equal to bit. p begins at a multiple of 64 bits.
func sameBits(p []byte, from, end int64, bit bool) int64 {
	i := from
	for i < end {
		w := binary.LittleEndian.Uint64(p[i/64*8:])
		if bit {
			w = ^w
		}
		w >>= i % 64 // zeros come in from above: they count as equal and are clipped below
		if w != 0 {
			return min(i+int64(bits.TrailingZeros64(w)), end) - from
		}
		i += 64 - i%64
	}
	return end - from
}

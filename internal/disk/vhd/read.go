package vhd

import (
	"errors"
	"fmt"
	"io"
	"math/bits"

	"sitrep/internal/block"
)

const (
	// maxPieces is how many places of files one call of Extent or LayerExtent looks at. It bounds the work of a call
	// that gets a long range, of which the caller then uses little.
	maxPieces = 64
	// maxScan and maxScanChild are how many missing blocks are passed over at once. In a child each run of them is cut
	// up by the parent, so that a long scan would be repeated.
	maxScan      = 1 << 18
	maxScanChild = 1 << 10
)

// Size is the number of guest bytes, a multiple of 512.
func (m *Image) Size() int64 { return m.size }

// Kind says how the guest's bytes lie in the top file.
func (m *Image) Kind() Type { return m.footer.Type }

// UUID is the identity of the disk, by which children name it.
func (m *Image) UUID() UUID { return m.footer.ID }

// Root is the first file of the chain, which has no parent.
func (m *Image) Root() *Image {
	for m.parent != nil {
		m = m.parent
	}
	return m
}

// Footer is the footer of the top file.
func (m *Image) Footer() Footer { return m.footer }

// Close closes the file and its parents.
func (m *Image) Close() error {
	err := m.file.Close()
	if m.parent != nil {
		err = errors.Join(err, m.parent.Close())
	}
	return err
}

// span is a run of guest bytes at one place: at pos in the file of img, or nowhere (img is nil), where they are zero.
type span struct {
	img *Image
	pos int64
	n   int64
}

// locate finds the first run of guest bytes at off that lie at one place, at most n of them.
func (m *Image) locate(off, n int64) (span, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for img := m; img != nil && off < img.size; img = img.parent {
		pos, run, err := img.own(off, min(n, img.size-off))
		if err != nil {
			return span{}, err
		}
		if n = run; pos >= 0 {
			return span{img: img, pos: pos, n: n}, nil
		}
	}
	return span{n: n}, nil
}

// own is the first run at off (at most n bytes) that this layer's file holds, at pos, or does not hold: pos is -1.
func (m *Image) own(off, n int64) (pos, run int64, err error) {
	if m.footer.Type == Fixed {
		if end := int64(m.footer.CurrentSize); off < end {
			return off, min(n, end-off), nil
		}
		return -1, n, nil // up to the end of the last sector
	}
	i := off / m.blockSize
	within := off - i*m.blockSize
	if m.table[i] == absent {
		return -1, min(n, m.absentBlocks(i)*m.blockSize-within), nil
	}
	n = min(n, m.blockSize-within)
	pos = int64(m.table[i])*SectorSize + m.bitmapLen + within
	if m.footer.Type == Dynamic {
		return pos, n, nil
	}
	b, err := m.bitmap(i)
	if err != nil {
		return 0, 0, err
	}
	set, end := bitRun(b, within/SectorSize, block.Count(within+n, SectorSize))
	n = min(n, end*SectorSize-within)
	if !set {
		pos = -1
	}
	return pos, n, nil
}

// absentBlocks counts the blocks from i on that the file does not hold.
func (m *Image) absentBlocks(i int64) int64 {
	limit := maxScan
	if m.footer.Type == Differencing {
		limit = maxScanChild
	}
	rest := m.table[i:min(int64(len(m.table)), i+int64(limit))]
	for k, sector := range rest {
		if sector != absent {
			return int64(k)
		}
	}
	return int64(len(rest))
}

// bitmap returns the bitmap of a block that the file holds. It must not be changed.
func (m *Image) bitmap(i int64) ([]byte, error) {
	if b, ok := m.dirty[i]; ok {
		return b, nil
	}
	if l := m.last.Load(); l != nil && l.block == i {
		return l.bits, nil
	}
	b := make([]byte, m.bitmapLen)
	if err := m.readFull(b, int64(m.table[i])*SectorSize); err != nil {
		return nil, err
	}
	m.last.Store(&bitmap{block: i, bits: b})
	return b, nil
}

// bitRun tells the bit at from, and how far (at most to) the following ones are equal to it. Bit 0 is the most
// significant one of the first byte.
func bitRun(b []byte, from, to int64) (set bool, end int64) {
	set = b[from/8]&(0x80>>(from%8)) != 0
	flip := byte(0) // makes the bits of the run 0
	if set {
		flip = 0xff
	}
	end = from
	for end < to {
		rest := (b[end/8] ^ flip) << (end % 8)
		if rest != 0 {
			end += int64(bits.LeadingZeros8(rest))
			break
		}
		end += 8 - end%8
	}
	return set, min(end, to)
}

// check refuses ranges outside of the disk.
func (m *Image) check(off, n int64) error {
	if !(block.Range{Off: off, Len: n}).Within(m.size) {
		return fmt.Errorf("range [%d,+%d) lies outside of the disk of %d bytes: %s", off, n, m.size, m.file.Name())
	}
	return nil
}

// ReadAt reads guest bytes into p (io.ReaderAt). Each part of p is handed on to the file in which its bytes lie.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	var eof error
	if off >= 0 && int64(len(p)) > m.size-off {
		p, eof = p[:max(0, m.size-off)], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	if err := m.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		s, err := m.locate(off+int64(done), int64(len(p)-done))
		if err != nil {
			return done, err
		}
		part := p[done : done+int(s.n)]
		if s.img == nil {
			clear(part)
		} else if err := s.img.readFull(part, s.pos); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, eof
}

// Extent returns the first run of one kind at off, clipped to n bytes (n > 0, off+n <= Size). Zero are bytes that no file
// of the chain holds, and holes of the files. A very long run may come in several calls.
func (m *Image) Extent(off, n int64) (block.Extent, error) {
	if err := m.check(off, n); err != nil {
		return block.Extent{}, err
	}
	e, err := m.piece(off, n)
	for i := 1; i < maxPieces && err == nil && e.Len < n; i++ {
		var next block.Extent
		if next, err = m.piece(e.End(), n-e.Len); err != nil || next.Kind != e.Kind {
			break
		}
		e.Len += next.Len
	}
	return e, err
}

// piece is the part of an extent that lies at one place.
func (m *Image) piece(off, n int64) (block.Extent, error) {
	s, err := m.locate(off, n)
	if err != nil {
		return block.Extent{}, err
	}
	e := block.Extent{Range: block.Range{Off: off, Len: s.n}, Kind: block.Zero}
	if s.img == nil {
		return e, nil
	}
	in, err := s.img.file.Extent(s.pos, s.n)
	e.Len, e.Kind = min(in.Len, s.n), in.Kind
	return e, err
}

// LayerExtent returns the first run at off, clipped to n bytes (n > 0, off+n <= Size), that the top file alone holds, or
// does not hold. In a child these are the sectors that were written since it was made; they may well be zero.
func (m *Image) LayerExtent(off, n int64) (run block.Range, present bool, err error) {
	if err := m.check(off, n); err != nil {
		return run, false, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	run = block.Range{Off: off}
	for i := 0; i < maxPieces && run.Len < n; i++ {
		pos, k, err := m.own(run.End(), n-run.Len)
		if err != nil {
			return run, present, err
		}
		if i > 0 && (pos >= 0) != present {
			break
		}
		present = pos >= 0
		run.Len += k
	}
	return run, present, nil
}

package vhdx

import (
	"math/bits"

	"sitrep/internal/block"
)

// space is which MiB of the file are in use, one bit each. Everything in a VHDX file begins at a multiple of 1 MiB.
type space struct {
	used []uint64
	end  int64 // MiB of the file
	hint int64 // where the search for free space goes on, MiB
}

func newSpace(fileSize int64) *space {
	end := block.Count(fileSize, mib)
	return &space{used: make([]uint64, (end+63)/64), end: end}
}

func (s *space) isUsed(i int64) bool { return s.used[i/64]>>(i%64)&1 != 0 }

// take marks n MiB from first on; it returns false, and marks nothing, when one of them is in use already. What lies after
// the end of the file is left out.
func (s *space) take(first, n int64) bool {
	last := min(first+n, s.end)
	for i := first; i < last; i++ {
		if s.isUsed(i) {
			return false
		}
	}
	for i := first; i < last; i++ {
		s.used[i/64] |= 1 << (i % 64)
	}
	return true
}

// release marks n MiB from first on as free.
func (s *space) release(first, n int64) {
	for i := first; i < min(first+n, s.end); i++ {
		s.used[i/64] &^= 1 << (i % 64)
	}
}

// find looks for n free MiB inside the file; ok is false when there are none together.
func (s *space) find(n int64) (first int64, ok bool) {
	for _, span := range [][2]int64{{s.hint, s.end}, {0, min(s.hint+n, s.end)}} {
		if first, ok := s.findIn(span[0], span[1], n); ok {
			s.hint = first + n
			return first, true
		}
	}
	s.hint = s.end
	return 0, false
}

func (s *space) findIn(i, end, n int64) (int64, bool) {
	for i+n <= end {
		if i%64 == 0 && s.used[i/64] == ^uint64(0) {
			i += 64
			continue
		}
		free := int64(bits.TrailingZeros64(s.used[i/64] >> (i % 64)))
		if free == 0 {
			i++
			continue
		}
		run := int64(0)
		for run < n && !s.isUsed(i+run) {
			run++
		}
		if run == n {
			return i, true
		}
		i += run
	}
	return 0, false
}

// grow adds n MiB, in use, at the end of the file.
func (s *space) grow(n int64) (first int64) {
	first = s.end
	s.end += n
	for int64(len(s.used))*64 < s.end {
		s.used = append(s.used, 0)
	}
	s.take(first, n)
	return first
}

// walk calls visit for each BAT entry that is not zero: of payload block b, or of the bitmap of chunk b.
func (m *Image) walk(visit func(b int64, bitmap bool, e batEntry) error) error {
	total := min(m.geo.batBytes(), m.geo.bat.Len) / 8
	buf := make([]byte, min(8*total, 256*kib))
	for i := int64(0); i < total; i += int64(len(buf) / 8) {
		p := buf[:min(int64(len(buf)), 8*(total-i))]
		if err := m.v.read(p, m.geo.bat.Off+8*i); err != nil {
			return err
		}
		if block.IsZero(p) {
			continue
		}
		if err := m.walkEntries(p, i, visit); err != nil {
			return err
		}
	}
	return nil
}

func (m *Image) walkEntries(p []byte, first int64, visit func(b int64, bitmap bool, e batEntry) error) error {
	chunk, inChunk := first/(m.geo.ratio+1), first%(m.geo.ratio+1)
	for ; len(p) > 0; p = p[8:] {
		bitmap := inChunk == m.geo.ratio
		b := chunk*m.geo.ratio + inChunk
		if bitmap {
			b = chunk
		}
		if e := entryOf(p); e != 0 && (bitmap || b < m.geo.blocks) {
			if err := visit(b, bitmap, e); err != nil {
				return err
			}
		}
		if inChunk++; inChunk > m.geo.ratio {
			chunk, inChunk = chunk+1, 0
		}
	}
	return nil
}

// checkBAT checks every entry of the BAT and marks what it uses: a place that two of them use, or that belongs to a
// region, is corruption.
func (m *Image) checkBAT(s *space) error {
	for _, r := range m.taken {
		s.take(r.Off/mib, r.Len/mib)
	}
	return m.walk(func(b int64, bitmap bool, e batEntry) error {
		if bitmap {
			return m.checkBitmapEntry(s, b, e)
		}
		if err := m.checkPayload(e, b); err != nil {
			return err
		}
		if whereIs(e) != inFile {
			return nil
		}
		if e.state() == partiallyPresent {
			if _, err := m.bitmapOff(b / m.geo.ratio); err != nil {
				return err
			}
		}
		if !s.take(int64(e.mb()), m.geo.blockSize/mib) {
			return m.v.corrupt(m.geo.entryOff(b), "block %d lies at %d MiB, where something else is", b, e.mb())
		}
		return nil
	})
}

// checkBitmapEntry looks at the entry of a sector bitmap. In a disk without a parent it means nothing.
func (m *Image) checkBitmapEntry(s *space, chunk int64, e batEntry) error {
	if m.geo.kind != Differencing || e.state() == notPresent {
		return nil
	}
	at := m.geo.bitmapEntryOff(chunk)
	if e.state() != bitmapPresent {
		return m.v.corrupt(at, "the sector bitmap of chunk %d is in the unknown state %d", chunk, e.state())
	}
	if err := m.checkPlace(e, bitmapSize, at); err != nil {
		return err
	}
	if !s.take(int64(e.mb()), bitmapSize/mib) {
		return m.v.corrupt(at, "the sector bitmap of chunk %d lies at %d MiB, where something else is", chunk, e.mb())
	}
	return nil
}

// reserve marks the places that are named by entries in whose state they may mean something to another
// implementation: blocks that were unmapped, bitmaps of a disk without a parent. Only a writer cares.
func (m *Image) reserve(s *space) error {
	return m.walk(func(_ int64, bitmap bool, e batEntry) error {
		n := m.geo.blockSize / mib
		named := e.state() == undefined || e.state() == unmapped
		if bitmap {
			n, named = bitmapSize/mib, m.geo.kind != Differencing && e.state() == bitmapPresent
		}
		if named && e.mb() > 0 && int64(e.mb()) < s.end {
			s.take(int64(e.mb()), n)
		}
		return nil
	})
}

package vhdx

import (
	"cmp"
	"encoding/binary"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// step bounds how much of the disk is looked at for one part of a write.
const step = 64 * mib

// commitAt is how many changed table sectors are collected before they are committed without being asked for. It leaves
// room in an entry for what one more part changes: a page of a bitmap and a few BAT sectors.
const commitAt = maxLogged - 2*pageSize/sectorSize

// WriteAt writes guest bytes. Aligned memory is passed on to the file as it is.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !(block.Range{Off: off, Len: int64(len(p))}).Within(w.m.geo.size) {
		return 0, w.outside(off, int64(len(p)))
	}
	return w.eachPart(int64(len(p)), off, func(from, n, off int64) error { return w.writePart(p[from:from+n], off) })
}

// ZeroAt makes a range read as zero. Whole blocks give their space back, except those of a fixed disk.
func (w *Writer) ZeroAt(off, n int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !(block.Range{Off: off, Len: n}).Within(w.m.geo.size) {
		return w.outside(off, n)
	}
	for n > 0 {
		pc, err := w.m.piece(off, min(n, lookahead))
		if err != nil {
			return err
		}
		if !w.readsZero(pc) {
			if _, err := w.eachPart(pc.n, off, func(_, n, off int64) error { return w.zeroPart(off, n) }); err != nil {
				return err
			}
		}
		off, n = off+pc.n, n-pc.n
	}
	return nil
}

// readsZero says whether a run is zero already, whatever the file and the parents hold.
func (w *Writer) readsZero(pc piece) bool {
	return pc.where == isZero || (pc.where == absent && w.m.parent == nil)
}

// eachPart cuts a range into parts that do is called with, and commits between them when it is time: a part lies in
// one block, or in blocks that are treated alike, and on a differencing disk consists of whole sectors or lies in one.
func (w *Writer) eachPart(n, off int64, do func(from, n, off int64) error) (int, error) {
	if n == 0 {
		return 0, nil
	}
	if err := w.begin(); err != nil {
		return 0, err
	}
	done := int64(0)
	for done < n {
		pc, err := w.m.piece(off+done, min(n-done, step))
		if err != nil {
			return int(done), err
		}
		part := w.partLen(off+done, n-done, pc)
		if err := do(done, part, off+done); err != nil {
			return int(done), fault.FromOS(err)
		}
		done += part
		if w.dirty >= commitAt {
			if err := w.commit(); err != nil {
				return int(done), err
			}
		}
	}
	return int(done), nil
}

// partLen is how much of n bytes at off makes one part.
func (w *Writer) partLen(off, n int64, pc piece) int64 {
	g := &w.m.geo
	if pc.where == inFile && pc.whole {
		return pc.n
	}
	n = min(n, g.blockSize-off%g.blockSize)
	if g.kind != Differencing {
		return n
	}
	if into := off % g.logicalSector; into != 0 || n < g.logicalSector {
		return min(n, g.logicalSector-into)
	}
	return n - n%g.logicalSector
}

func (w *Writer) entry(b int64) (batEntry, error) {
	p, err := w.m.entries(b)
	if err != nil {
		return 0, err
	}
	e := entryOf(p)
	return e, w.m.checkPayload(e, b)
}

// writePart writes one part; see eachPart.
func (w *Writer) writePart(p []byte, off int64) error {
	g := &w.m.geo
	b, inBlock := off/g.blockSize, off%g.blockSize
	e, err := w.entry(b)
	if err != nil {
		return err
	}
	switch {
	case e.state() == fullyPresent:
		return w.put(p, int64(e.mb())*mib+inBlock)
	case g.kind == Differencing && e.state() != undefined && e.state() != zeroed && e.state() != unmapped:
		if p, off, err = w.wholeSectors(p, off); err != nil {
			return err
		}
		return w.writeChild(p, b, off%g.blockSize, e)
	}
	return w.writeNewBlock(p, b, inBlock)
}

func (w *Writer) put(p []byte, at int64) error {
	_, err := w.m.v.f.WriteAt(p, at)
	return err
}

// wholeSectors widens a part that lies in one sector to that sector: its other bytes are what the chain has.
func (w *Writer) wholeSectors(p []byte, off int64) ([]byte, int64, error) {
	size := w.m.geo.logicalSector
	if off%size == 0 && int64(len(p))%size == 0 {
		return p, off, nil
	}
	sector := make([]byte, size)
	start := off - off%size
	if _, err := w.m.ReadAt(sector, start); err != nil {
		return nil, 0, err
	}
	copy(sector[off-start:], p)
	return sector, start, nil
}

// writeNewBlock writes into a block that reads as zero and has no place.
func (w *Writer) writeNewBlock(p []byte, b, inBlock int64) error {
	at, err := w.allocate(w.m.geo.blockSize, int64(len(p)) < w.m.geo.visible(b))
	if err != nil {
		return err
	}
	if err := w.put(p, at+inBlock); err != nil {
		w.space.release(at/mib, w.m.geo.blockSize/mib)
		return err
	}
	return w.setEntry(w.m.geo.entryOff(b), makeEntry(fullyPresent, at))
}

// writeChild writes whole sectors into a block of a differencing disk that is absent or partially present. Sectors that
// the parent had come to be this disk's with the bitmap, after the payload.
func (w *Writer) writeChild(p []byte, b, inBlock int64, e batEntry) error {
	at, err := w.childBlock(b, int64(len(p)), e)
	if err != nil {
		return err
	}
	if err := w.put(p, at+inBlock); err != nil {
		if e.state() == notPresent {
			w.space.release(at/mib, w.m.geo.blockSize/mib)
		}
		return err
	}
	return w.present(b, inBlock, int64(len(p)), at, e)
}

// childBlock returns the place of a block of a differencing disk, a new one when it is absent.
func (w *Writer) childBlock(b, n int64, e batEntry) (at int64, err error) {
	if e.state() == partiallyPresent {
		return int64(e.mb()) * mib, nil
	}
	if n < w.m.geo.visible(b) {
		if err := w.needBitmap(b / w.m.geo.ratio); err != nil {
			return 0, err
		}
	}
	return w.allocate(w.m.geo.blockSize, false)
}

// present says in the tables that n bytes at inBlock of a block at the place at are this disk's.
func (w *Writer) present(b, inBlock, n, at int64, e batEntry) error {
	if n == w.m.geo.visible(b) {
		return w.setEntry(w.m.geo.entryOff(b), makeEntry(fullyPresent, at))
	}
	if e.state() == notPresent { // its bits may be left over from an earlier life
		if err := w.setBits(b, 0, w.m.geo.blockSize, false); err != nil {
			return err
		}
	}
	if err := w.setBits(b, inBlock, n, true); err != nil {
		return err
	}
	if e.state() == partiallyPresent {
		return nil
	}
	return w.setEntry(w.m.geo.entryOff(b), makeEntry(partiallyPresent, at))
}

// zeroPart zeroes one part; see eachPart.
func (w *Writer) zeroPart(off, n int64) error {
	g := &w.m.geo
	b, inBlock := off/g.blockSize, off%g.blockSize
	e, err := w.entry(b)
	if err != nil {
		return err
	}
	if g.kind != Fixed && e.state() == fullyPresent {
		return w.zeroPresent(off, n)
	}
	if e.state() == fullyPresent {
		return w.m.v.f.ZeroAt(int64(e.mb())*mib+inBlock, n)
	}
	if n == g.visible(b) {
		return w.dropBlock(b, e)
	}
	return w.zeroChild(b, off, n, e)
}

// zeroPresent zeroes a run of blocks that are neighbours in the file: the whole ones are dropped.
func (w *Writer) zeroPresent(off, n int64) error {
	g := &w.m.geo
	for n > 0 {
		b, inBlock := off/g.blockSize, off%g.blockSize
		part := min(n, g.visible(b)-inBlock)
		e, err := w.entry(b)
		if err != nil {
			return err
		}
		if part == g.visible(b) {
			err = w.dropBlock(b, e)
		} else {
			err = w.m.v.f.ZeroAt(int64(e.mb())*mib+inBlock, part)
		}
		if err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// dropBlock puts a block into the state zero and frees its space.
func (w *Writer) dropBlock(b int64, e batEntry) error {
	if err := w.setEntry(w.m.geo.entryOff(b), makeEntry(zeroed, 0)); err != nil {
		return err
	}
	if whereIs(e) == inFile {
		w.freed = append(w.freed, block.Range{Off: int64(e.mb()) * mib, Len: w.m.geo.blockSize})
	}
	return nil
}

// zeroChild zeroes some sectors of a block that is absent or partially present: they are this disk's from now on.
func (w *Writer) zeroChild(b, off, n int64, e batEntry) error {
	g := &w.m.geo
	if off%g.logicalSector != 0 || n%g.logicalSector != 0 {
		sector, start, err := w.wholeSectors(make([]byte, n), off)
		if err != nil {
			return err
		}
		return w.writeChild(sector, b, start%g.blockSize, e)
	}
	at, err := w.childBlock(b, n, e)
	if err != nil {
		return err
	}
	inBlock := off % g.blockSize
	if err := w.m.v.f.ZeroAt(at+inBlock, n); err != nil {
		return err
	}
	return w.present(b, inBlock, n, at, e)
}

// allocate finds n bytes that nothing uses and returns their place. They read as zero when clean; else they may hold
// anything.
func (w *Writer) allocate(n int64, clean bool) (int64, error) {
	if first, ok := w.space.find(n / mib); ok {
		if clean {
			if err := w.m.v.f.ZeroAt(first*mib, n); err != nil {
				return 0, err
			}
		}
		w.space.take(first, n/mib)
		return first * mib, nil
	}
	if w.m.v.real+n > maxFile {
		return 0, w.m.v.unsupported(w.m.v.real, "the file cannot grow beyond %d bytes", int64(maxFile))
	}
	if err := w.resize(w.m.v.real + n); err != nil {
		return 0, err
	}
	return w.space.grow(n/mib) * mib, nil
}

// needBitmap gives a chunk a sector bitmap, with no bit set, when it has none.
func (w *Writer) needBitmap(chunk int64) error {
	at := w.m.geo.bitmapEntryOff(chunk)
	if at+8 > w.m.geo.bat.End() {
		return w.m.v.unsupported(at, "the BAT has no room for the sector bitmap of chunk %d", chunk)
	}
	p, err := w.m.tables.tail(at)
	if err != nil || entryOf(p).state() == bitmapPresent {
		return err
	}
	place, err := w.allocate(bitmapSize, true)
	if err != nil {
		return err
	}
	return w.setEntry(at, makeEntry(bitmapPresent, place))
}

// setEntry changes a BAT entry in memory.
func (w *Writer) setEntry(at int64, e batEntry) error {
	p, err := w.m.tables.at(at)
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(p.data[at%pageSize:], uint64(e))
	w.touch(p, at)
	return nil
}

// touch marks the sector of a page that holds the byte at as changed.
func (w *Writer) touch(p *page, at int64) {
	bit := uint16(1) << (at % pageSize / sectorSize)
	if p.dirty&bit == 0 {
		p.dirty |= bit
		w.dirty++
	}
}

// setBits sets or clears the bits of n bytes at inBlock of a block, in memory.
func (w *Writer) setBits(b, inBlock, n int64, value bool) error {
	g := &w.m.geo
	base, err := w.m.bitmapOff(b / g.ratio)
	if err != nil {
		return err
	}
	first := (b%g.ratio*g.blockSize + inBlock) / g.logicalSector
	last := first + n/g.logicalSector
	for s := first; s < last; {
		at := base + s/8
		p, err := w.m.tables.at(at)
		if err != nil {
			return err
		}
		mask := byte(0xFF)
		if s%8 != 0 || last-s < 8 {
			mask = byte((1<<min(8-s%8, last-s) - 1) << (s % 8))
		}
		old := p.data[at%pageSize]
		next := old &^ mask
		if value {
			next = old | mask
		}
		if next != old {
			p.data[at%pageSize] = next
			w.touch(p, at)
		}
		s += 8 - s%8
	}
	return nil
}

// changed lists the changed sectors of the tables.
func (w *Writer) changed() []logged {
	var out []logged
	for off, p := range w.m.tables.m {
		for i := range int64(pageSize / sectorSize) {
			if p.dirty>>i&1 != 0 {
				out = append(out, logged{at: off + i*sectorSize, data: p.data[i*sectorSize:][:sectorSize]})
			}
		}
	}
	slices.SortFunc(out, func(a, b logged) int { return cmp.Compare(a.at, b.at) })
	return out
}

// clean says that the tables in memory are what the file has.
func (w *Writer) clean() {
	for _, p := range w.m.tables.m {
		p.dirty = 0
	}
	w.dirty = 0
}

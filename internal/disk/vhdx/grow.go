package vhdx

import (
	"encoding/binary"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// CheckGrow says whether Writer.Grow can give the disk so many guest bytes: a dynamic disk can grow as far as its BAT has
// room, else fault.DiskUnsupported says how far that is.
func (m *Image) CheckGrow(size int64) error {
	p := m.geo.params
	p.size = size
	grown := newGeometry(p, m.geo.bat)
	switch {
	case m.geo.kind != Dynamic:
		return m.v.unsupported(0, "a %s disk cannot be made larger", m.geo.kind)
	case size < m.geo.size || p.check() != "":
		return m.v.unsupported(0, "a disk of %d bytes cannot be made one of %d", m.geo.size, size)
	case m.geo.sizeAt%sectorSize > sectorSize-8:
		return m.v.unsupported(m.geo.sizeAt, "the size of the disk lies across two sectors")
	case grown.batBytes() > m.geo.bat.Len:
		entries := m.geo.bat.Len / 8
		return m.v.unsupported(m.geo.bat.Off, "the BAT has room for a disk of %d bytes", (entries-entries/(m.geo.ratio+1))*m.geo.blockSize)
	}
	return m.checkUnused(block.Range{Off: m.geo.bat.Off + m.geo.batBytes(), Len: grown.batBytes() - m.geo.batBytes()})
}

// checkUnused refuses entries that would come into use and are not empty.
func (m *Image) checkUnused(r block.Range) error {
	buf := make([]byte, min(r.Len, 256*kib))
	for !r.Empty() {
		p := buf[:min(r.Len, int64(len(buf)))]
		if err := m.v.read(p, r.Off); err != nil {
			return err
		}
		if !block.IsZero(p) {
			return m.v.unsupported(r.Off, "the BAT has entries behind the end of the disk")
		}
		r = block.Range{Off: r.Off + int64(len(p)), Len: r.Len - int64(len(p))}
	}
	return nil
}

// Grow makes the disk larger, to size guest bytes; what is new is zero. It flushes everything, and is durable on return;
// after a crash before that the disk has its old size or the new one. See CheckGrow.
func (w *Writer) Grow(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure != nil || size == w.m.geo.size {
		return w.failure
	}
	if err := w.m.CheckGrow(size); err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	if err := w.commit(); err != nil {
		return err
	}
	if err := w.completeLast(); err != nil {
		return w.fail(err)
	}
	at := w.m.geo.sizeAt
	p, err := w.m.tables.at(at)
	if err != nil {
		return w.fail(err)
	}
	binary.LittleEndian.PutUint64(p.data[at%pageSize:], uint64(size))
	w.touch(p, at)
	if err := w.commit(); err != nil {
		return err
	}
	grown := w.m.geo.params
	grown.size = size
	w.m.geo = newGeometry(grown, w.m.geo.bat)
	return nil
}

// completeLast gives a last block that the disk's end cuts a new place, in which what comes behind that end is zero: in
// the old one it may be anything, or not even lie in the file.
func (w *Writer) completeLast() error {
	g := &w.m.geo
	b := g.blocks - 1
	n := g.visible(b)
	e, err := w.entry(b)
	if err != nil || e.state() != fullyPresent || n == g.blockSize {
		return err
	}
	place, err := w.allocate(g.blockSize, true)
	if err != nil {
		return err
	}
	old := int64(e.mb()) * mib
	buf := durable.AlignedBuffer(int(min(n, mib)))
	for done := int64(0); done < n; {
		p := buf[:min(n-done, int64(len(buf)))]
		if err := w.m.v.read(p, old+done); err != nil {
			return err
		}
		if err := w.put(p, place+done); err != nil {
			return fault.FromOS(err)
		}
		done += int64(len(p))
	}
	return w.setEntry(g.entryOff(b), makeEntry(fullyPresent, place)) // the old place is found free when the disk is opened again
}

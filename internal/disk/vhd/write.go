package vhd

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

const (
	// blockAlign is what the guest bytes of new blocks are aligned to in the file, so that large transfers can go round
	// the page cache. Windows does the same.
	blockAlign = 4096
	// maxReserve is by how many bytes more than needed the file grows, so that its footer moves seldom. The space is a hole.
	maxReserve = 64 << 20
	// maxDirty is how many bitmaps are held back in memory.
	maxDirty = 4096
)

// Writer is an image that can be changed in place. Reading is concurrent with everything, writes are not concurrent with
// each other.
//
// What a guest's bytes need around them is written late, in an order in which a kill or a power cut at any time leaves a
// valid file, with each sector old or new:
//   - The file grows by writing the footer at its new end, and waits until that is durable: a block then takes the place
//     of the old footer. The copy at offset 0 is never touched.
//   - Bytes of blocks that the table does not name yet, and of sectors whose bit is clear, are written where they will be,
//     but nothing refers to them.
//   - Flush waits until the bytes are durable, writes the bitmaps, waits, writes the table, waits.
type Writer struct {
	*Image
	footerAt int64              // of the last footer in the file
	free     int64              // from here up to footerAt nothing is used
	stale    int64              // bytes of the file before this offset need not be zero
	entries  map[int64]struct{} // sectors of the table that are newer than the file's
	unsynced bool               // something was written since the last Flush
	grown    bool               // the file has a reserve
	failed   error              // the first failed Sync: what reached the disk is not known since then
}

// OpenRW opens a VHD file for reading and writing in place; see Open. A damaged footer, or a damaged copy of it, is
// mended. Parents are only read.
func OpenRW(f durable.File, o Options) (*Writer, error) {
	m, err := Open(f, o)
	if err != nil {
		return nil, err
	}
	w, err := newWriter(m)
	if err != nil && m.parent != nil {
		err = errors.Join(err, m.parent.Close()) // f stays with the caller
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

func newWriter(m *Image) (*Writer, error) {
	if m.footer.CurrentSize%SectorSize != 0 {
		return nil, m.unsupported(max(m.footerPos, 0), "a disk of %d bytes, no whole number of sectors, cannot be written to", m.footer.CurrentSize)
	}
	w := &Writer{Image: m, footerAt: m.footerPos, stale: m.fileSize, entries: map[int64]struct{}{}}
	if m.footer.Type == Fixed {
		return w, nil
	}
	if m.header.tableOffset%SectorSize != 0 {
		return nil, m.unsupported(int64(m.footer.DataOffset), "a table at %d, not at a sector, cannot be written to", m.header.tableOffset)
	}
	w.free = m.blocksEnd
	return w, w.mendFooters()
}

// mendFooters makes sure that both the footer and its copy are good, since growing takes away one of them for a moment.
func (w *Writer) mendFooters() error {
	head := make([]byte, FooterSize)
	if err := w.readFull(head, 0); err != nil {
		return err
	}
	if !IsFooter(head) {
		if err := w.writeFooter(0); err != nil {
			return err
		}
	}
	if w.footerAt < w.free {
		w.footerAt = block.RoundUp(max(w.fileSize, w.free), SectorSize)
		w.stale = w.footerAt + FooterSize
		return w.writeFooter(w.footerAt)
	}
	return nil
}

// writeFooter writes the footer and returns when it is durable.
func (w *Writer) writeFooter(at int64) error {
	if _, err := w.file.WriteAt(w.footer.bytes(), at); err != nil {
		return fault.FromOS(err)
	}
	return w.sync()
}

// sync remembers a failure for good: the kernel tells of it only once.
func (w *Writer) sync() error {
	if w.failed == nil {
		if err := w.file.Sync(); err != nil {
			w.failed = fault.FromOS(err)
		}
	}
	return w.failed
}

// WriteAt writes guest bytes (io.WriterAt). They are durable after Flush.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if err := w.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	if w.footer.Type == Differencing && (off%SectorSize != 0 || len(p)%SectorSize != 0) {
		return w.writeUnaligned(p, off)
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		part := p[done:]
		if w.footer.Type != Fixed {
			part = part[:min(int64(len(part)), w.blockSize-at%w.blockSize)]
		}
		if err := w.writePart(part, at); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}

// writeUnaligned completes the sectors at both ends: a child holds only whole sectors.
func (w *Writer) writeUnaligned(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r := block.Range{Off: off, Len: int64(len(p))}.Outward(SectorSize)
	buf := make([]byte, r.Len)
	for _, at := range []int64{r.Off, r.End() - SectorSize} {
		if _, err := w.ReadAt(buf[at-r.Off:][:SectorSize], at); err != nil {
			return 0, err
		}
	}
	copy(buf[off-r.Off:], p)
	if _, err := w.WriteAt(buf, r.Off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// writePart writes bytes of one block.
func (w *Writer) writePart(p []byte, off int64) error {
	if w.footer.Type == Dynamic && w.table[off/w.blockSize] == absent && block.IsZero(p) {
		return nil // it reads as zero without
	}
	pos, err := w.place(off)
	if err != nil {
		return err
	}
	w.unsynced = true
	if _, err := w.file.WriteAt(p, pos); err != nil {
		return fault.FromOS(err)
	}
	return w.mark(off, int64(len(p)))
}

// place is where in the file the guest byte at off belongs; a block is allocated when there is none yet.
func (w *Writer) place(off int64) (int64, error) {
	if w.failed != nil {
		return 0, w.failed
	}
	if w.footer.Type == Fixed {
		return off, nil
	}
	i := off / w.blockSize
	if w.table[i] == absent {
		if err := w.allocate(i); err != nil {
			return 0, err
		}
	}
	return int64(w.table[i])*SectorSize + w.bitmapLen + off%w.blockSize, nil
}

// allocate gives block i a place that reads as zero. The table in the file learns of it in Flush.
func (w *Writer) allocate(i int64) error {
	at := block.RoundUp(w.free+w.bitmapLen, blockAlign) - w.bitmapLen
	r := block.Range{Off: at, Len: w.bitmapLen + w.blockSize}
	if r.End()/SectorSize >= absent {
		return w.unsupported(at, "the file cannot grow over 2 TiB")
	}
	if err := w.grow(r); err != nil {
		return err
	}
	if old := r.Intersect(block.Range{Len: w.stale}); !old.Empty() {
		if err := w.file.ZeroAt(old.Off, old.Len); err != nil {
			return fault.FromOS(err)
		}
	}
	if w.footer.Type == Dynamic {
		full := slices.Repeat([]byte{0xff}, int(w.bitmapLen))
		if _, err := w.file.WriteAt(full, at); err != nil {
			return fault.FromOS(err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.footer.Type == Differencing {
		w.dirty[i] = make([]byte, w.bitmapLen)
	}
	w.table[i] = uint32(at / SectorSize)
	w.entries[4*i/SectorSize] = struct{}{}
	w.free, w.unsynced = r.End(), true
	return nil
}

// grow makes room for r before the footer.
func (w *Writer) grow(r block.Range) error {
	if r.End() <= w.footerAt {
		return nil
	}
	ahead := min(maxReserve/r.Len, int64(len(w.table)))
	next := r.End() + ahead*(r.Len+blockAlign) // both are whole sectors
	if err := w.writeFooter(next); err != nil {
		return err
	}
	w.stale = max(w.stale, w.footerAt+FooterSize)
	w.footerAt, w.grown = next, true
	return nil
}

// mark says that sectors of a child's block are its own from now on.
func (w *Writer) mark(off, n int64) error {
	if w.footer.Type != Differencing {
		return nil
	}
	i := off / w.blockSize
	b, err := w.bitmap(i)
	if err != nil {
		return err
	}
	from, to := off%w.blockSize/SectorSize, (off%w.blockSize+n)/SectorSize
	if set, end := bitRun(b, from, to); set && end == to {
		return nil
	}
	w.mu.Lock()
	if _, ours := w.dirty[i]; !ours {
		b = slices.Clone(b)
		w.dirty[i] = b
	}
	for s := from; s < to; s++ {
		b[s/8] |= 0x80 >> (s % 8)
	}
	w.mu.Unlock()
	if len(w.dirty) > maxDirty {
		return w.Flush()
	}
	return nil
}

// ZeroAt makes a range read as zero. What the file holds of it becomes a hole; a child takes up the sectors in which its
// parent is not known to be zero.
func (w *Writer) ZeroAt(off, n int64) error {
	if err := w.check(off, n); err != nil {
		return err
	}
	for n > 0 {
		e, err := w.Extent(off, n)
		if err != nil {
			return err
		}
		if e.Kind == block.Data {
			if err := w.zeroData(e.Range); err != nil {
				return err
			}
		}
		off, n = e.End(), n-e.Len
	}
	return nil
}

func (w *Writer) zeroData(r block.Range) error {
	for r.Len > 0 {
		n := r.Len
		if w.footer.Type != Fixed {
			n = min(n, w.blockSize-r.Off%w.blockSize)
		}
		if err := w.zeroPart(r.Off, n); err != nil {
			return err
		}
		r = block.Range{Off: r.Off + n, Len: r.Len - n}
	}
	return nil
}

// zeroPart zeroes bytes of one block.
func (w *Writer) zeroPart(off, n int64) error {
	whole := block.Range{Off: block.RoundUp(off, SectorSize), Len: 0}
	whole.Len = max(0, (off+n)/SectorSize*SectorSize-whole.Off)
	if w.footer.Type == Differencing && whole.Len != n {
		_, err := w.writeUnaligned(make([]byte, n), off)
		return err
	}
	pos, err := w.place(off)
	if err != nil {
		return err
	}
	w.unsynced = true
	if err := w.file.ZeroAt(pos, n); err != nil {
		return fault.FromOS(err)
	}
	return w.mark(off, n)
}

// Flush returns when everything written before it survives a power cut. After a Flush that failed nothing more can be
// written: the file has to be opened again, and holds then what a power cut would have left.
func (w *Writer) Flush() error {
	if w.failed != nil || !w.unsynced {
		return w.failed
	}
	if err := w.sync(); err != nil {
		return err
	}
	if err := w.flushBitmaps(); err != nil {
		return err
	}
	if err := w.flushTable(); err != nil {
		return err
	}
	w.unsynced = false
	return nil
}

func (w *Writer) flushBitmaps() error {
	if len(w.dirty) == 0 {
		return nil
	}
	for _, i := range slices.Sorted(maps.Keys(w.dirty)) {
		if _, err := w.file.WriteAt(w.dirty[i], int64(w.table[i])*SectorSize); err != nil {
			return fault.FromOS(err)
		}
	}
	if err := w.sync(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last.Store(nil)
	clear(w.dirty)
	return nil
}

func (w *Writer) flushTable() error {
	if len(w.entries) == 0 {
		return nil
	}
	const perSector = SectorSize / 4
	for _, s := range slices.Sorted(maps.Keys(w.entries)) {
		part := w.table[s*perSector : min(int64(len(w.table)), (s+1)*perSector)]
		buf := make([]byte, 0, SectorSize)
		for _, sector := range part {
			buf = binary.BigEndian.AppendUint32(buf, sector)
		}
		if _, err := w.file.WriteAt(buf, int64(w.header.tableOffset)+s*SectorSize); err != nil {
			return fault.FromOS(err)
		}
	}
	if err := w.sync(); err != nil {
		return err
	}
	clear(w.entries)
	return nil
}

// Close flushes, gives back the reserve at the end of the file, and closes it and its parents.
func (w *Writer) Close() error {
	err := w.Flush()
	if err == nil && w.grown {
		err = w.trim()
	}
	return errors.Join(err, w.Image.Close())
}

// trim moves the footer down to the last block. For a moment there are two of them.
func (w *Writer) trim() error {
	at := block.RoundUp(w.free, SectorSize)
	if at >= w.footerAt {
		return nil
	}
	if err := w.writeFooter(at); err != nil {
		return err
	}
	if err := w.file.Truncate(at + FooterSize); err != nil {
		return fault.FromOS(err)
	}
	return w.sync()
}

package vhdx

import (
	"encoding/binary"
	"hash/crc32"

	"sitrep/internal/block"
)

const (
	logMagic      = "loge"
	logHeaderSize = 64
	descSize      = 32
	// maxChanges is how many descriptors a log may ask to be replayed: more than a log of 1 GiB full of data has.
	maxChanges = 1 << 20
)

// logEntry is what the scan of a log remembers of a valid entry ([MS-VHDX] 2.3.1.1).
type logEntry struct {
	at, length int64 // place in the log, bytes
	tail       int64
	sequence   uint64
	flushed    uint64 // FlushedFileOffset
	last       uint64 // LastFileOffset
	count      int64  // descriptors
}

// descSectors is the number of sectors that hold the header and the descriptors.
func (e *logEntry) descSectors() int64 {
	return (logHeaderSize + e.count*descSize + sectorSize - 1) / sectorSize
}

// ring is the log of a file: a ring of sectors.
type ring struct {
	v    *view
	guid GUID
	off  int64 // place in the file
	size int64
}

// place is where in the file the n-th sector of an entry that begins at the place at of the log lies.
func (r *ring) place(at, n int64) int64 { return r.off + (at+n*sectorSize)%r.size }

// decodeEntryHeader checks what can be checked in the first sector of an entry.
func (r *ring) decodeEntryHeader(p []byte, at int64) (e logEntry, ok bool) {
	le := binary.LittleEndian
	if string(p[:4]) != logMagic || GUID(p[32:48]) != r.guid {
		return e, false
	}
	e = logEntry{at: at, length: int64(le.Uint32(p[8:])), tail: int64(le.Uint32(p[12:])), sequence: le.Uint64(p[16:]),
		count: int64(le.Uint32(p[24:])), flushed: le.Uint64(p[48:]), last: le.Uint64(p[56:])}
	ok = e.length > 0 && e.length%sectorSize == 0 && e.length <= r.size && e.tail%sectorSize == 0 && e.tail < r.size &&
		e.sequence > 0 && e.descSectors()*sectorSize <= e.length
	return e, ok
}

// entryScan checks an entry sector by sector. It stops at the first one that cannot belong to it: that keeps the scan
// of a hostile log linear, since no sector can belong to two entries that both look right.
type entryScan struct {
	e    logEntry
	sum  uint32
	data int64 // data descriptors so far
	left int64 // descriptors not seen yet
}

// sector takes the n-th sector of the entry.
func (s *entryScan) sector(p []byte, n int64) bool {
	if n == 0 {
		s.sum = crc32.Update(0, castagnoli(), p[:4])
		s.sum = crc32.Update(s.sum, castagnoli(), []byte{0, 0, 0, 0})
		s.sum = crc32.Update(s.sum, castagnoli(), p[8:])
		return s.descriptors(p[logHeaderSize:])
	}
	s.sum = crc32.Update(s.sum, castagnoli(), p)
	switch {
	case n < s.e.descSectors():
		return s.descriptors(p)
	case n < s.e.descSectors()+s.data:
		return dataSectorOK(p, s.e.sequence)
	}
	return string(p[:4]) != logMagic // padding, of a writer that aligns its entries to more than 4 KiB
}

func (s *entryScan) descriptors(p []byte) bool {
	for ; len(p) >= descSize && s.left > 0; s.left-- {
		c, ok := decodeChange(p, s.e.sequence)
		if !ok {
			return false
		}
		if !c.zero {
			s.data++
		}
		p = p[descSize:]
	}
	return s.left > 0 || (s.e.descSectors()+s.data)*sectorSize <= s.e.length
}

func dataSectorOK(p []byte, sequence uint64) bool {
	le := binary.LittleEndian
	return string(p[:4]) == "data" && le.Uint32(p[4:]) == uint32(sequence>>32) && le.Uint32(p[sectorSize-4:]) == uint32(sequence)
}

// readEntry reads the entry at a place of the log; ok is false when there is no valid one.
func (r *ring) readEntry(at int64) (e logEntry, ok bool, err error) {
	p := make([]byte, sectorSize)
	if err := r.v.readRaw(p, r.place(at, 0)); err != nil {
		return e, false, err
	}
	if e, ok = r.decodeEntryHeader(p, at); !ok {
		return e, false, nil
	}
	want := binary.LittleEndian.Uint32(p[4:])
	scan := entryScan{e: e, left: e.count}
	ok = scan.sector(p, 0)
	for n := int64(1); ok && n < e.length/sectorSize; n++ {
		if err := r.v.readRaw(p, r.place(at, n)); err != nil {
			return e, false, err
		}
		ok = scan.sector(p, n)
	}
	return e, ok && scan.sum == want, nil
}

// scan reads all valid entries of the log, by their place.
func (r *ring) scan() (map[int64]logEntry, error) {
	entries := map[int64]logEntry{}
	window := make([]byte, 64*kib)
	for at := int64(0); at < r.size; at += int64(len(window)) {
		if err := r.v.readRaw(window, r.off+at); err != nil {
			return nil, err
		}
		for i := int64(0); i < int64(len(window)); i += sectorSize {
			if string(window[i:i+4]) != logMagic {
				continue
			}
			e, ok, err := r.readEntry(at + i)
			if err != nil {
				return nil, err
			}
			if ok {
				entries[at+i] = e
			}
		}
	}
	return entries, nil
}

// active returns the newest valid and complete sequence of entries, oldest first ([MS-VHDX] 2.3.3). It is empty when
// there is none.
func (r *ring) active() ([]logEntry, error) {
	entries, err := r.scan()
	if err != nil {
		return nil, err
	}
	follows := func(e logEntry) (logEntry, bool) {
		n, ok := entries[(e.at+e.length)%r.size]
		return n, ok && n.sequence == e.sequence+1
	}
	inner := map[int64]bool{} // entries that follow another one
	for _, e := range entries {
		if n, ok := follows(e); ok {
			inner[n.at] = true
		}
	}
	var best []logEntry
	for _, first := range entries {
		if inner[first.at] {
			continue
		}
		run := []logEntry{first}
		for n, ok := follows(first); ok; n, ok = follows(n) {
			run = append(run, n)
		}
		if run = fromTail(run); len(run) > 0 && (best == nil || run[len(run)-1].sequence > best[len(best)-1].sequence) {
			best = run
		}
	}
	return best, nil
}

// fromTail drops the entries before the one that the newest entry names as its tail; nothing is left when that one is
// not in the run.
func fromTail(run []logEntry) []logEntry {
	tail := run[len(run)-1].tail
	for i := range run {
		if run[i].at == tail {
			return run[i:]
		}
	}
	return nil
}

// changes lists what the entries change, oldest first.
func (r *ring) changes(run []logEntry) ([]change, error) {
	var total int64
	for i := range run {
		total += run[i].count
	}
	if total > maxChanges {
		return nil, r.v.unsupported(r.off, "the log has %d descriptors to replay, more than %d", total, maxChanges)
	}
	out := make([]change, 0, total)
	for i := range run {
		var err error
		if out, err = r.appendChanges(out, &run[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (r *ring) appendChanges(out []change, e *logEntry) ([]change, error) {
	p := make([]byte, e.descSectors()*sectorSize)
	for n := range e.descSectors() {
		if err := r.v.readRaw(p[n*sectorSize:(n+1)*sectorSize], r.place(e.at, n)); err != nil {
			return nil, err
		}
	}
	data := e.descSectors()
	for i := range e.count {
		c, ok := decodeChange(p[logHeaderSize+i*descSize:], e.sequence)
		if !ok {
			return nil, r.v.corrupt(r.place(e.at, 0), "the log changes while it is being read")
		}
		if c.Off < region1At || !c.Intersect(block.Range{Off: r.off, Len: r.size}).Empty() {
			return nil, r.v.corrupt(r.place(e.at, 0), "an entry of the log changes %v, which is not a table", c.Range)
		}
		if !c.zero {
			c.at = r.place(e.at, data)
			data++
		}
		if !c.Empty() {
			out = append(out, c)
		}
	}
	return out, nil
}

// replay finds out what the file contains after the replay of its log, and puts that into the view.
func (r *ring) replay() error {
	run, err := r.active()
	if err != nil {
		return err
	}
	if len(run) == 0 {
		return r.v.corrupt(r.off, "the log is in use but holds no complete sequence of entries")
	}
	head := run[len(run)-1]
	if head.flushed > uint64(r.v.real) {
		return r.v.corrupt(r.v.real, "the file is truncated: it had at least %d bytes when its log was written", head.flushed)
	}
	if head.last > maxFile {
		return r.v.corrupt(r.place(head.at, 0), "the log wants the file to have %d bytes", head.last)
	}
	changes, err := r.changes(run)
	if err != nil {
		return err
	}
	r.v.over = newOverlay(changes)
	r.v.size = max(r.v.real, int64(head.last), r.v.over.end())
	return nil
}

package hrl

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/sums"
)

// maxZero is the longest record of zeros in bytes: the largest multiple of MaxRecord that fits a DataLength.
const maxZero = 1<<32 - MaxRecord

// Writer writes one log. Its methods may be called concurrently; which of two concurrent Appends comes first in the file
// is not defined, and does not matter, because no two records of a log overlap.
type Writer struct {
	fs   durable.FS
	name string

	mu        sync.Mutex
	f         durable.File
	out       *sink
	h         *header
	written   seen // blocks that have a record
	pos       int64
	committed int64 // what the header in the file speaks of
	lastBlock int64 // offset of the last metadata block
	last      digest
	batch     batch
	closed    bool
	err       error // the first failure: after it the file's content is not known
}

// batch is what the next metadata block will say.
type batch struct {
	entries []entry
	sums    []sums.Sum
}

type entry struct {
	block.Range
	zero bool
}

// room is what is left of the metadata block in bytes.
func (b *batch) room() int {
	return metadataSize - metaHeaderSize - len(b.entries)*entrySize - len(b.sums)*sums.Size
}

// extends says whether r can become a part of the last entry without making it longer than limit.
func (b *batch) extends(r block.Range, zero bool, limit int64) bool {
	n := len(b.entries)
	if n == 0 {
		return false
	}
	last := b.entries[n-1]
	return last.zero == zero && last.End() == r.Off && last.Len+r.Len <= limit
}

// Create begins a log in a file that must not exist. When it returns, the file is there to stay, holds nothing, and is
// not sealed; before that no file of this name exists. The Writer has to be ended by Seal or Abort.
func Create(fsys durable.FS, name string, id Identity) (*Writer, error) {
	if err := id.check(); err != nil {
		return nil, fmt.Errorf("cannot begin the log %s: %w", name, err)
	}
	if _, err := fsys.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fs.ErrExist
		}
		return nil, ioError(name, err)
	}
	w := &Writer{fs: fsys, name: name, h: newHeader(id), lastBlock: headerSize, pos: headerSize + metadataSize}
	first := w.encodeBlock(headerSize)
	w.h.currentSize = uint64(w.pos)
	w.committed = w.pos
	err := durable.Replace(fsys, name, func(f durable.File) error {
		_, err := f.WriteAt(slices.Concat(w.h.encode(w.last), first), 0)
		return err
	})
	if err != nil {
		return nil, ioError(name, err)
	}
	if w.f, err = fsys.OpenRW(name); err != nil {
		return nil, ioError(name, errors.Join(err, fsys.Remove(name)))
	}
	keep := int64(0)
	if id.Kind == Redo {
		keep = cachedMax
	}
	w.out = newSink(w.f, keep)
	return w, nil
}

// Append adds what the disk holds in [off, off+len(data)): whole blocks, the last one of the disk clipped to its size.
// blockSums are their sums, one for each block; nil has them computed. Blocks with the zero sum are recorded as zeros.
// data is not used after the return. A refused call (not whole blocks, outside of the disk, a block that has a record
// already, sums that cannot be right) changes nothing; after an I/O error only Abort is left.
func (w *Writer) Append(off int64, data []byte, blockSums []sums.Sum) error {
	r := block.Range{Off: off, Len: int64(len(data))}
	bs := w.h.ours.id.BlockSize
	if blockSums == nil {
		blockSums = sumsOf(data, bs)
	}
	if int64(len(blockSums)) != block.Count(r.Len, bs) {
		return fmt.Errorf("%d sums for the blocks of %v", len(blockSums), r)
	}
	for i, s := range blockSums {
		if b := block.Nth(int64(i), bs, r.Len); s.IsZero() && !block.IsZero(data[b.Off:b.End()]) {
			return fmt.Errorf("the sum says zeros and the data at %d is not", off+b.Off)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.claim(r); err != nil {
		return err
	}
	for i, s := range blockSums {
		b := block.Nth(int64(i), bs, r.Len)
		at := block.Range{Off: off + b.Off, Len: b.Len}
		if s.IsZero() {
			w.addZero(at)
		} else {
			w.addData(at, data[b.Off:b.End()], s)
		}
	}
	return w.err
}

func sumsOf(data []byte, bs int64) []sums.Sum {
	out := make([]sums.Sum, block.Count(int64(len(data)), bs))
	for i := range out {
		b := block.Nth(int64(i), bs, int64(len(data)))
		out[i] = sums.Of(data[b.Off:b.End()])
	}
	return out
}

// Zero adds that the disk holds zeros in r: whole blocks as in Append, any number of them. It takes no space.
func (w *Writer) Zero(r block.Range) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.claim(r); err != nil {
		return err
	}
	w.addZero(r)
	return w.err
}

// claim refuses a range that cannot be recorded.
func (w *Writer) claim(r block.Range) error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := checkBlocks(r, &w.h.ours.id); err != nil {
		return err
	}
	bs := w.h.ours.id.BlockSize
	if !w.written.add(r.Off/bs, block.Count(r.End(), bs)) {
		return fmt.Errorf("a block of %v has a record already", r)
	}
	return nil
}

// checkBlocks refuses what is not one or more whole blocks of the disk.
func checkBlocks(r block.Range, id *Identity) error {
	if !r.Within(id.Size) || r.Empty() {
		return fmt.Errorf("%v is not in the disk of %d bytes", r, id.Size)
	}
	if r.Off%id.BlockSize != 0 || r.End()%id.BlockSize != 0 && r.End() != id.Size {
		return fmt.Errorf("%v is not made of whole blocks of %d bytes", r, id.BlockSize)
	}
	return nil
}

func (w *Writer) usable() error {
	if w.closed {
		return errors.New("the log was closed already")
	}
	return w.err
}

// addData records one block.
func (w *Writer) addData(r block.Range, data []byte, s sums.Sum) {
	if w.batch.extends(r, false, MaxRecord) && w.batch.room() >= sums.Size {
		w.batch.entries[len(w.batch.entries)-1].Len += r.Len
	} else {
		w.begin(entry{Range: r}, entrySize+sums.Size)
	}
	w.batch.sums = append(w.batch.sums, s)
	w.write(data, w.pos)
	w.pos += r.Len
	w.h.ours.dataBytes += uint64(r.Len)
}

// addZero records zeros: their place in the file is skipped.
func (w *Writer) addZero(r block.Range) {
	w.h.ours.zeroBytes += uint64(r.Len)
	for r.Len > 0 {
		n := min(r.Len, maxZero)
		part := block.Range{Off: r.Off, Len: n}
		if w.batch.extends(part, true, maxZero) {
			w.batch.entries[len(w.batch.entries)-1].Len += n
		} else {
			w.begin(entry{Range: part, zero: true}, entrySize)
		}
		w.pos += n
		r.Off, r.Len = r.Off+n, r.Len-n
	}
}

// begin adds an entry, for which the metadata block needs this many bytes.
func (w *Writer) begin(e entry, need int) {
	if w.batch.room() < need {
		w.flush()
	}
	w.batch.entries = append(w.batch.entries, e)
}

// write keeps the first error; after it nothing more is written.
func (w *Writer) write(p []byte, off int64) {
	if w.err != nil {
		return
	}
	if err := w.out.write(p, off); err != nil {
		w.err = ioError(w.name, err)
	}
}

// flush ends the batch with its metadata block.
func (w *Writer) flush() {
	loc := w.pos
	p := w.encodeBlock(loc)
	w.write(p, loc)
	w.h.entries += uint64(len(w.batch.entries))
	w.lastBlock, w.pos = loc, loc+metadataSize
	w.batch.entries, w.batch.sums = w.batch.entries[:0], w.batch.sums[:0]
}

// encodeBlock makes the metadata block of the batch, at offset loc, and its digest the last one.
func (w *Writer) encodeBlock(loc int64) []byte {
	p := make([]byte, metadataSize)
	le.PutUint64(p[mPrevious:], uint64(loc-w.lastBlock))
	le.PutUint32(p[mEntries:], uint32(len(w.batch.entries)))
	at := metaHeaderSize
	for _, e := range w.batch.entries {
		e.put(p[at:at+entrySize], w.h.modified)
		at += entrySize
	}
	for _, s := range w.batch.sums {
		at += copy(p[at:], s[:])
	}
	w.last = blockDigest(w.h.uniqueID, loc, w.last, p)
	copy(p[mDigest:], w.last[:])
	le.PutUint32(p[mChecksum:], checksum(p[:metaHeaderSize], mChecksum))
	return p
}

func (e entry) put(p []byte, at uint32) {
	le.PutUint64(p[eByteOffset:], uint64(e.Off))
	le.PutUint32(p[eDataLength:], uint32(e.Len))
	le.PutUint32(p[eTimeStamp:], at)
	p[eOperation] = opWrite
	if e.zero {
		p[eFlags] = flagZero
	}
	le.PutUint32(p[eChecksum:], checksum(p, eChecksum))
}

// Commit makes what was appended so far durable: a crash after it loses nothing of that.
func (w *Writer) Commit() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	if len(w.batch.entries) == 0 && w.pos == w.committed {
		return nil
	}
	w.keep(w.commit(false))
	return w.err
}

// Seal ends the log: when it returns without an error, the log is complete, durable and closed. After an error only
// Abort is left.
func (w *Writer) Seal() (Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usable(); err != nil {
		return Info{}, err
	}
	if w.keep(w.commit(true)); w.err != nil {
		return Info{}, w.err
	}
	w.closed = true
	if w.keep(w.f.Close()); w.err != nil {
		return Info{}, w.err
	}
	return w.h.info(w.pos), nil
}

func (w *Writer) keep(err error) {
	if err != nil && w.err == nil {
		w.err = ioError(w.name, err)
	}
}

// commit writes, in this order and with a sync after each: data and metadata; the sector of the header that says so.
func (w *Writer) commit(seal bool) error {
	if len(w.batch.entries) > 0 {
		w.flush()
	}
	if err := errors.Join(w.err, w.out.drain()); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	w.h.currentSize = uint64(w.pos)
	if seal {
		w.h.eol = uint64(w.pos)
	}
	if _, err := w.f.WriteAt(w.h.encode(w.last)[:sectorSize], 0); err != nil {
		return err
	}
	w.committed = w.pos
	return w.f.Sync()
}

// Abort closes the log and removes its file. After Seal has succeeded it does nothing.
func (w *Writer) Abort() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed && w.err == nil {
		return nil
	}
	w.out.drain() // nothing may be written to the file after its removal; its errors do not matter any more
	var err error
	if !w.closed {
		err = w.f.Close()
	}
	w.closed = true
	w.err = nil
	if err = errors.Join(err, durable.RemoveIfThere(w.fs, w.name)); err != nil {
		return ioError(w.name, err)
	}
	return nil
}

// ioError classifies an error of the filesystem and names the file.
func ioError(name string, err error) error {
	e := fault.FromOS(err)
	if e.Path == "" {
		e.Path = name
	}
	return e
}

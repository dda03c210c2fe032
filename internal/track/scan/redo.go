package scan

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/sums"
)

// redo names the redo file of a disk and proves it. The file is nothing but entries, in no order, each block in one at
// most.
type redo struct {
	Number  uint64 `json:"number"`
	Entries int64  `json:"entries"`
	Sum     string `json:"xxh3_128"` // of the whole file
}

// entrySize is the length of an entry: first block and number of blocks, 8 bytes each, and the sum of the one block.
// Only zero sums are given to more than one block. Integers have their most significant byte first.
const entrySize = 8 + 8 + sums.Size

// redoBatch is how many entries are held in memory.
const redoBatch = 32 << 10

type entry struct {
	first, n int64
	sum      sums.Sum
}

func (e entry) append(p []byte) []byte {
	p = binary.BigEndian.AppendUint64(p, uint64(e.first))
	p = binary.BigEndian.AppendUint64(p, uint64(e.n))
	return append(p, e.sum[:]...)
}

func parseEntry(p []byte) entry {
	return entry{
		first: int64(binary.BigEndian.Uint64(p)),
		n:     int64(binary.BigEndian.Uint64(p[8:])),
		sum:   sums.Sum(p[16:entrySize]),
	}
}

// redoWriter writes a redo file, which it creates with the first entry. add may be called concurrently.
type redoWriter struct {
	fs     durable.FS
	path   string
	number uint64

	mu      sync.Mutex
	f       durable.File
	buf     []byte
	off     int64
	entries int64
	hash    *xxh3.Hasher
}

func (w *redoWriter) add(entries []entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		f, err := w.fs.Create(w.path)
		if err != nil {
			return err
		}
		w.f, w.hash = f, xxh3.New()
	}
	for _, e := range entries {
		w.buf = e.append(w.buf)
		w.entries++
	}
	if len(w.buf) < 64<<10 {
		return nil
	}
	return w.flush()
}

func (w *redoWriter) flush() error {
	w.hash.Write(w.buf)
	n, err := w.f.WriteAt(w.buf, w.off)
	w.off += int64(n)
	w.buf = w.buf[:0]
	return err
}

// finish closes the file, which is durable then but for its name, and returns what names it: nil when there are no entries.
// From then on the file is the record's.
func (w *redoWriter) finish() (*redo, error) {
	if w.f == nil {
		return nil, nil
	}
	if err := w.flush(); err != nil {
		return nil, err
	}
	err := w.f.Sync()
	if err = errors.Join(err, w.f.Close()); err != nil {
		return nil, err
	}
	w.f = nil
	b := w.hash.Sum128().Bytes()
	return &redo{Number: w.number, Entries: w.entries, Sum: fmt.Sprintf("%x", b)}, nil
}

// remove closes and removes the file.
func (w *redoWriter) remove() error {
	if w == nil || w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	return errors.Join(err, durable.RemoveIfThere(w.fs, w.path))
}

// replay verifies the redo file of a disk, then puts it into the sums.
func (t *Tracker) replay(d diskRecord) error {
	return t.readRedo(d, func(f durable.File) error { return t.applyRedo(f, d) })
}

// readRedo opens and verifies the redo file of a disk.
func (t *Tracker) readRedo(d diskRecord, use func(durable.File) error) error {
	path := t.redoPath(d.Name, d.Redo.Number)
	f, err := t.fs.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return damaged(path, "the new block sums are missing")
		}
		return err
	}
	defer f.Close()
	if err := verifyRedo(f, path, d); err != nil {
		return err
	}
	return use(f)
}

func verifyRedo(f durable.File, path string, d diskRecord) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if d.Redo.Entries < 0 || size%entrySize != 0 || size/entrySize != d.Redo.Entries {
		return damaged(path, "is %d bytes long and should have %d entries", size, d.Redo.Entries)
	}
	h := xxh3.New()
	blocks := block.Range{Len: d.blocks()}
	err = eachBatch(f, d.Redo.Entries, func(raw []byte) error {
		h.Write(raw)
		for ; len(raw) > 0; raw = raw[entrySize:] {
			e := parseEntry(raw)
			r := block.Range{Off: e.first, Len: e.n}
			if e.n <= 0 || !r.Within(blocks.Len) || e.n > 1 && !e.sum.IsZero() {
				return damaged(path, "has an entry for %d blocks from %d on, of a disk of %d", e.n, e.first, blocks.Len)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if b := h.Sum128().Bytes(); fmt.Sprintf("%x", b) != d.Redo.Sum {
		return damaged(path, "its checksum does not match")
	}
	return nil
}

func (t *Tracker) applyRedo(f durable.File, d diskRecord) (err error) {
	out, err := t.fs.OpenRW(t.sumsPath(d.Name, d.Sums))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := runWriter{table: sums.NewTable(out)}
	batch := make([]entry, 0, min(redoBatch, d.Redo.Entries))
	err = eachBatch(f, d.Redo.Entries, func(raw []byte) error {
		batch = batch[:0]
		for ; len(raw) > 0; raw = raw[entrySize:] {
			batch = append(batch, parseEntry(raw))
		}
		slices.SortFunc(batch, func(a, b entry) int { return cmp.Compare(a.first, b.first) })
		for _, e := range batch {
			if err := w.put(e); err != nil {
				return err
			}
		}
		return w.flush()
	})
	if err != nil {
		return err
	}
	return out.Sync()
}

// eachBatch calls f for the entries of a redo file, as they lie there.
func eachBatch(f durable.File, entries int64, call func(raw []byte) error) error {
	buf := make([]byte, min(redoBatch, entries)*entrySize)
	for at := int64(0); at < entries*entrySize; {
		n := min(int64(len(buf)), entries*entrySize-at)
		if k, err := f.ReadAt(buf[:n], at); int64(k) < n {
			return err
		}
		if err := call(buf[:n]); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// runWriter puts sums into a table, those of adjacent blocks at once.
type runWriter struct {
	table *sums.Table
	first int64
	run   []sums.Sum
}

// holeBlocks is how many zero sums make a hole; fewer are written.
const holeBlocks = 256

func (w *runWriter) put(e entry) error {
	if e.n < holeBlocks {
		for i := range e.n {
			if err := w.add(e.first+i, e.sum); err != nil {
				return err
			}
		}
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.table.Clear(e.first, e.n)
}

func (w *runWriter) add(i int64, s sums.Sum) error {
	if len(w.run) > 0 && (i != w.first+int64(len(w.run)) || len(w.run) == redoBatch) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(w.run) == 0 {
		w.first = i
	}
	w.run = append(w.run, s)
	return nil
}

func (w *runWriter) flush() error {
	if len(w.run) == 0 {
		return nil
	}
	err := w.table.Store(w.first, w.run)
	w.run = w.run[:0]
	return err
}

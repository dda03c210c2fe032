package vhdx

import (
	"errors"
	"fmt"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// Writer is a virtual disk that is changed in place. Reads may be concurrent with each other and with a write; writes
// exclude each other.
//
// A kill or a power cut at any time leaves a valid image, once its log is replayed: each sector written since the last
// Flush is the old or the new one, and everything from before it is there. How:
//
//   - Before the first change the headers get a new FileWriteGuid and DataWriteGuid (which breaks the linkage of
//     children of this disk), then a LogGuid with an empty log. Close takes the LogGuid away again.
//   - Payload goes to its place at once. A block that is new has a place that no table names yet.
//   - Tables are changed in memory. A commit syncs the payload, writes the changed sectors of the tables to the log,
//     syncs, and then writes them to their places. The sync at the beginning of the next commit makes those durable, so
//     that an entry never has to outlive the next one.
//   - Space that becomes free is used again only when the entry that frees it is durable.
type Writer struct {
	mu      sync.RWMutex
	m       *Image
	space   *space
	log     *logWriter // nil until the first change
	dirty   int        // table sectors that differ from the file
	freed   []block.Range
	failure error // after a failed sync nobody knows what is on the disk: the rest is up to the log
}

// OpenRW opens a virtual disk for changing it in place. A log that is in use is replayed into the file first. A disk that
// is then not written to is not changed. See Open for the errors.
func OpenRW(f durable.File, o Options) (*Writer, error) {
	m, err := open(f)
	if err != nil {
		return nil, err
	}
	if m.head.logLength == 0 {
		return nil, m.v.unsupported(m.headAt, "the disk has no log: it can only be read")
	}
	w := &Writer{m: m, space: newSpace(m.v.size)}
	if err := m.checkBAT(w.space); err != nil {
		return nil, err
	}
	if err := m.reserve(w.space); err != nil {
		return nil, err
	}
	if err := m.openParent(o); err != nil {
		return nil, err
	}
	if m.head.logGUID.IsZero() {
		return w, nil
	}
	if err := w.replay(); err != nil {
		err = fault.FromOS(err)
		if m.parent != nil {
			err = errors.Join(err, m.parent.Close())
		}
		return nil, err
	}
	return w, nil
}

// replay writes what the log asks for to its places. The log stays as it is until that is durable.
func (w *Writer) replay() error {
	v := w.m.v
	if err := w.putHeaders(func(h *header) { h.fileWriteGUID = NewGUID() }); err != nil {
		return err
	}
	if v.size > v.real {
		if err := v.f.Truncate(v.size); err != nil {
			return err
		}
	}
	sector := make([]byte, sectorSize)
	for i := range v.over {
		c := &v.over[i]
		if c.zero {
			if err := v.f.ZeroAt(c.Off, c.Len); err != nil {
				return err
			}
			continue
		}
		if err := v.readChange(sector, c.Off, c); err != nil {
			return err
		}
		if _, err := v.f.WriteAt(sector, c.Off); err != nil {
			return err
		}
	}
	if err := v.f.Sync(); err != nil {
		return err
	}
	v.over, v.real = nil, v.size
	return w.putHeaders(func(h *header) { h.logGUID = GUID{} })
}

// putHeaders changes both headers, the non-current one first, each durable before the next ([MS-VHDX] 2.2.2.1).
func (w *Writer) putHeaders(change func(*header)) error {
	change(&w.m.head)
	for range 2 {
		w.m.head.sequence++
		w.m.headAt = header1At + header2At - w.m.headAt
		if _, err := w.m.v.f.WriteAt(w.m.head.encode(), w.m.headAt); err != nil {
			return err
		}
		if err := w.m.v.f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// begin prepares the file for its first change. The first entry of the log is written while no header names a log, so
// that there is no moment at which the log is in use but holds no entry.
func (w *Writer) begin() error {
	if w.failure != nil || w.log != nil {
		return w.failure
	}
	m := w.m
	err := w.putHeaders(func(h *header) { h.fileWriteGUID, h.dataWriteGUID = NewGUID(), NewGUID() })
	if err != nil {
		return w.fail(err)
	}
	if err := w.resize(block.RoundUp(m.v.real, mib)); err != nil {
		return w.fail(err)
	}
	log := &logWriter{ring: *m.ring(), sequence: 1}
	log.ring.guid = NewGUID()
	if err := m.v.f.Sync(); err != nil { // the size, before the entry that names it
		return w.fail(err)
	}
	if err := log.append(nil, m.v.real); err != nil {
		return w.fail(err)
	}
	if err := m.v.f.Sync(); err != nil {
		return w.fail(err)
	}
	if err := w.putHeaders(func(h *header) { h.logVersion, h.logGUID = 0, log.ring.guid }); err != nil {
		return w.fail(err)
	}
	w.log = log
	return nil
}

// fail makes an error final.
func (w *Writer) fail(err error) error {
	w.failure = fault.FromOS(err)
	return w.failure
}

func (w *Writer) resize(size int64) error {
	v := w.m.v
	if size == v.real {
		return nil
	}
	if err := v.f.Truncate(size); err != nil {
		return err
	}
	v.real, v.size = size, size
	return nil
}

// Flush returns when everything written before it survives a power cut.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure != nil || w.log == nil {
		return w.failure
	}
	return w.commit()
}

// commit makes payload and tables durable, in this order. All changes of the tables go into one entry of the log: after a
// crash there are all of them or none.
func (w *Writer) commit() error {
	if err := w.m.v.f.Sync(); err != nil {
		return w.fail(err)
	}
	if w.dirty == 0 {
		return nil
	}
	if err := w.commitEntry(w.changed()); err != nil {
		return w.fail(err)
	}
	w.clean()
	return w.releaseFreed()
}

func (w *Writer) commitEntry(sectors []logged) error {
	if err := w.log.append(sectors, w.m.v.real); err != nil {
		return err
	}
	if err := w.m.v.f.Sync(); err != nil {
		return err
	}
	for _, s := range sectors {
		if _, err := w.m.v.f.WriteAt(s.data, s.at); err != nil {
			return err
		}
	}
	return nil
}

// releaseFreed makes space that no table names any longer available. It is given back to the filesystem as well.
func (w *Writer) releaseFreed() error {
	for _, r := range w.freed {
		if err := w.m.v.f.ZeroAt(r.Off, r.Len); err != nil {
			return w.fail(err)
		}
		w.space.release(r.Off/mib, r.Len/mib)
	}
	w.freed = w.freed[:0]
	return nil
}

// Close flushes, marks the log as not in use, and closes the file and the parents. When it fails, the file may have a log
// in use; that is replayed when it is opened again.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.failure
	if err == nil && w.log != nil {
		err = w.finish()
	}
	if cerr := w.m.Close(); err == nil {
		err = cerr
	}
	w.failure = errors.New("the disk is closed")
	return err
}

func (w *Writer) finish() error {
	if err := w.commit(); err != nil {
		return err
	}
	if err := w.m.v.f.Sync(); err != nil {
		return fault.FromOS(err)
	}
	if err := w.putHeaders(func(h *header) { h.logGUID = GUID{} }); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// ReadAt reads guest bytes, those written before included.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.m.ReadAt(p, off)
}

// Extent is Image.Extent.
func (w *Writer) Extent(off, n int64) (block.Extent, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.m.Extent(off, n)
}

// LayerExtent is Image.LayerExtent.
func (w *Writer) LayerExtent(off, n int64) (run block.Range, held bool, err error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.m.LayerExtent(off, n)
}

// DataWriteGUID is Image.DataWriteGUID: it changes with the first write.
func (w *Writer) DataWriteGUID() GUID {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.m.DataWriteGUID()
}

// Size is the number of guest bytes.
func (w *Writer) Size() int64 { return w.m.Size() }

// Kind is the type of the disk.
func (w *Writer) Kind() Kind { return w.m.Kind() }

// BlockSize is the size of a payload block in bytes.
func (w *Writer) BlockSize() int64 { return w.m.BlockSize() }

// LogicalSectorSize is 512 or 4096 bytes.
func (w *Writer) LogicalSectorSize() int64 { return w.m.LogicalSectorSize() }

// PhysicalSectorSize is 512 or 4096 bytes.
func (w *Writer) PhysicalSectorSize() int64 { return w.m.PhysicalSectorSize() }

// DiskID is Image.DiskID.
func (w *Writer) DiskID() GUID { return w.m.DiskID() }

func (w *Writer) outside(off int64, n int64) error {
	return fmt.Errorf("%s: %d bytes at %d are not on a disk of %d bytes", w.m.v.name, n, off, w.m.geo.size)
}

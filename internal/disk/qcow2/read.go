package qcow2

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// cacheBytes is about how much memory the L2 tables of one image take.
const cacheBytes = 8 << 20

// Image is a qcow2 disk opened for reading. Its methods may be called concurrently, except Close.
type Image struct {
	file     durable.File
	fileSize int64
	size     int64
	bits     uint
	l1       []uint64
	tables   []slot // by the number of the L2 table, modulo their count
}

// slot keeps one L2 table.
type slot struct {
	mu      sync.Mutex
	number  int64 // of the table, -1: none
	entries []uint64
}

// Open opens a disk for reading. Close closes the file; when Open fails it stays open. The file must not change while it
// is open. What is no qcow2 is fault.DiskFormat; damage is fault.DiskCorrupt, and a feature that cannot be read
// fault.DiskUnsupported, each with the file; compressed clusters are found when they are come across.
func Open(f durable.File) (*Image, error) {
	fileSize, err := f.Size()
	if err != nil {
		return nil, fault.FromOS(err)
	}
	p := make([]byte, headerV3)
	if n, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.FromOS(err)
	} else if n < headerV2 || string(p[:4]) != Magic {
		return nil, fault.New(fault.DiskFormat, "the file is no qcow2").At(f.Name())
	}
	var h header
	h.decode(p)
	if e := h.refuse(fileSize); e != nil {
		return nil, e.At(f.Name())
	}
	m := &Image{file: f, fileSize: fileSize, size: int64(h.size), bits: uint(h.clusterBits)}
	if m.l1, err = m.readTable(int64(h.l1At), h.l1Needed()); err != nil {
		return nil, err
	}
	if err := m.refuseShared(); err != nil {
		return nil, err
	}
	m.tables = make([]slot, min(len(m.l1), max(4, cacheBytes>>m.bits)))
	for i := range m.tables {
		m.tables[i].number = -1
	}
	return m, nil
}

// refuseShared refuses an L1 table that names an L2 table twice. No writer makes such; a small file could name one so often
// that to walk over the disk would take for ever.
func (m *Image) refuseShared() error {
	var at []uint64
	for _, e := range m.l1 {
		if e &= offsetMask; e != 0 {
			at = append(at, e)
		}
	}
	slices.Sort(at)
	for i := 1; i < len(at); i++ {
		if at[i] == at[i-1] {
			return m.corrupt(int64(at[i]), "an L2 table belongs to two parts of the disk")
		}
	}
	return nil
}

// Size is the number of guest bytes.
func (m *Image) Size() int64 { return m.size }

// Close closes the file.
func (m *Image) Close() error { return m.file.Close() }

func (m *Image) readTable(at, n int64) ([]uint64, error) {
	p := make([]byte, n*entrySize)
	if err := durable.ReadFull(m.file, p, at); err != nil {
		return nil, fault.FromOS(err)
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = binary.BigEndian.Uint64(p[i*entrySize:])
	}
	return out, nil
}

func (m *Image) cluster() int64 { return 1 << m.bits }

// perTable is how many clusters an L2 table names.
func (m *Image) perTable() int64 { return m.cluster() / entrySize }

func (m *Image) corrupt(at int64, format string, args ...any) error {
	return fault.New(fault.DiskCorrupt, format, args...).AtOff(m.file.Name(), at)
}

// entries calls f with the entries of the clusters from first on that one L2 table names; nil: all are zeros.
func (m *Image) entries(first int64, f func(entries []uint64) error) error {
	number, from := first/m.perTable(), first%m.perTable()
	at := int64(m.l1[number] & offsetMask)
	if at == 0 {
		return f(nil)
	}
	if at%m.cluster() != 0 || !(block.Range{Off: at, Len: m.cluster()}).Within(m.fileSize) {
		return m.corrupt(at, "an L2 table does not lie in the file")
	}
	s := &m.tables[number%int64(len(m.tables))]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.number != number {
		entries, err := m.readTable(at, m.perTable())
		if err != nil {
			return err
		}
		s.number, s.entries = number, entries
	}
	return f(s.entries[from:])
}

// place is where in the file a cluster of the guest lies, 0 when it is zeros.
func (m *Image) place(entry uint64, guest int64) (int64, error) {
	at := int64(entry & offsetMask)
	switch {
	case entry&compressed != 0:
		return 0, fault.New(fault.DiskUnsupported,
			"the qcow2 file has compressed clusters, at %d of the disk: convert it first (qemu-img convert -O qcow2)", guest).At(m.file.Name())
	case entry&readsAsZero != 0 || at == 0:
		return 0, nil
	case at%m.cluster() != 0 || at >= m.fileSize:
		return 0, m.corrupt(at, "the cluster at %d of the disk does not lie in the file", guest)
	}
	return at, nil
}

// run is a part of the disk that lies in one piece in the file.
type run struct {
	block.Range
	at int64 // in the file; 0: zeros
}

// next is the first run at off, clipped to n bytes and to one L2 table.
func (m *Image) next(off, n int64) (r run, err error) {
	first := off >> m.bits
	end := min(off+n, (first/m.perTable()+1)*m.perTable()<<m.bits)
	r.Range = block.Range{Off: off, Len: end - off}
	err = m.entries(first, func(entries []uint64) error {
		if entries == nil {
			return nil
		}
		at, err := m.place(entries[0], first<<m.bits)
		if err != nil {
			return err
		}
		clusters := int64(1)
		for last := (end - 1) >> m.bits; first+clusters <= last; clusters++ {
			next, err := m.place(entries[clusters], (first+clusters)<<m.bits)
			if err != nil || (next == 0) != (at == 0) || at != 0 && next != at+clusters<<m.bits {
				break // an error is the next run's
			}
		}
		r.Len = min(end, (first+clusters)<<m.bits) - off
		if at != 0 {
			r.at = at + off&(m.cluster()-1)
		}
		return nil
	})
	return r, err
}

// ReadAt reads guest bytes (io.ReaderAt).
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	var eof error
	if off >= 0 && int64(len(p)) > m.size-off {
		p, eof = p[:max(0, m.size-off)], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	if off < 0 {
		return 0, outside(m.file.Name(), off, int64(len(p)), m.size)
	}
	for done := 0; done < len(p); {
		r, err := m.next(off+int64(done), int64(len(p)-done))
		if err == nil {
			err = m.read(p[done:done+int(r.Len)], r.at)
		}
		if err != nil {
			return done, err
		}
		done += int(r.Len)
	}
	return len(p), eof
}

// read reads a run. The last cluster of a file may not be whole; what it lacks is zeros.
func (m *Image) read(p []byte, at int64) error {
	if at == 0 {
		clear(p)
		return nil
	}
	have := max(0, min(int64(len(p)), m.fileSize-at))
	clear(p[have:])
	if have == 0 {
		return nil
	}
	if err := durable.ReadFull(m.file, p[:have], at); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// Extent returns the first run of one kind at off, clipped to n bytes (n > 0, off+n <= Size). It reads tables only, and
// of zeros without any L2 table not even those.
func (m *Image) Extent(off, n int64) (block.Extent, error) {
	if n <= 0 || !(block.Range{Off: off, Len: n}).Within(m.size) {
		return block.Extent{}, outside(m.file.Name(), off, n, m.size)
	}
	out := block.Extent{Range: block.Range{Off: off}}
	for out.Len < n {
		r, err := m.next(off+out.Len, n-out.Len)
		kind := block.Data
		if r.at == 0 {
			kind = block.Zero
		}
		if out.Len > 0 && (err != nil || kind != out.Kind) {
			break // an error is the next extent's
		}
		if err != nil {
			return block.Extent{}, err
		}
		out.Kind, out.Len = kind, out.Len+r.Len
	}
	return out, nil
}

// LayerExtent says whether the run at off takes space in the file; see Extent.
func (m *Image) LayerExtent(off, n int64) (block.Range, bool, error) {
	e, err := m.Extent(off, n)
	return e.Range, e.Kind == block.Data, err
}

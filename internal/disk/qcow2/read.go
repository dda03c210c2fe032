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

// keptUnpacked is how many clusters are kept that were unpacked last.
const keptUnpacked = 8

// Parent is what a backing file holds.
type Parent interface {
	io.ReaderAt
	// Size is the number of guest bytes; what a child has beyond it reads as zero.
	Size() int64
	Extent(off, n int64) (block.Extent, error)
	Close() error
}

// Backing is how a file names its backing file.
type Backing struct {
	Name   string // a path, or whatever else QEMU takes
	Format string // as QEMU calls it; "" when the file does not say
}

// Options are how a disk is opened.
type Options struct {
	// OpenParent opens the backing file. It has to bound the depth of the chain. nil: a disk with a backing file is refused.
	OpenParent func(Backing) (Parent, error)
}

// Image is a qcow2 disk opened for reading. Its methods may be called concurrently, except Close.
type Image struct {
	file        durable.File
	fileSize    int64
	size        int64
	bits        uint
	extended    bool
	compression uint8
	parent      Parent // nil: there is no backing file
	l1          []uint64
	tables      []slot // by the number of the L2 table, modulo their count
	unpacked    [keptUnpacked]unpacked
}

// slot keeps one L2 table.
type slot struct {
	mu      sync.Mutex
	number  int64 // of the table, -1: none
	entries []uint64
}

// Open opens a disk for reading. Close closes the file and its parent; when Open fails the file stays open. The file must not
// change while it is open. What is no qcow2 is fault.DiskFormat; damage is fault.DiskCorrupt, and a feature that cannot be read
// fault.DiskUnsupported, each with the file.
func Open(f durable.File, o Options) (*Image, error) {
	fileSize, err := f.Size()
	if err != nil {
		return nil, fault.FromOS(err)
	}
	p := make([]byte, newHeader)
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
	m := &Image{file: f, fileSize: fileSize, size: int64(h.size), bits: uint(h.clusterBits), extended: h.extended(), compression: h.compression}
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
	if err := m.openParent(h, o); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Image) openParent(h header, o Options) error {
	if h.backing == 0 {
		return nil
	}
	b, err := m.backing(h)
	if err != nil {
		return err
	}
	if o.OpenParent == nil {
		return fault.New(fault.ChainBroken, "the qcow2 file cannot be read without its backing file %s", b.Name).At(m.file.Name())
	}
	m.parent, err = o.OpenParent(b)
	return err
}

// backing reads how the file names its backing file: behind the header, in the first cluster.
func (m *Image) backing(h header) (b Backing, err error) {
	p := make([]byte, min(m.cluster(), m.fileSize))
	if err := durable.ReadFull(m.file, p, 0); err != nil {
		return b, fault.FromOS(err)
	}
	end := h.backing + uint64(h.nameLen)
	if end > uint64(len(p)) {
		return b, m.corrupt(int64(h.backing), "the name of the backing file does not lie in the file")
	}
	b.Name = string(p[h.backing:end])
	for at := uint64(h.length); at+8 <= h.backing; {
		kind, n := binary.BigEndian.Uint32(p[at:]), uint64(binary.BigEndian.Uint32(p[at+4:]))
		if kind == 0 || at+8+n > uint64(len(p)) {
			break
		}
		if kind == extensionFormat {
			b.Format = string(p[at+8 : at+8+n])
		}
		at += 8 + (n+7)&^7
	}
	return b, nil
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

// HasParent says whether there is a backing file.
func (m *Image) HasParent() bool { return m.parent != nil }

// Close closes the file and its parent.
func (m *Image) Close() error {
	err := m.file.Close()
	if m.parent != nil {
		err = errors.Join(err, m.parent.Close())
	}
	return err
}

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
func (m *Image) perTable() int64 {
	if m.extended {
		return m.cluster() / (2 * entrySize)
	}
	return m.cluster() / entrySize
}

func (m *Image) corrupt(at int64, format string, args ...any) error {
	return fault.New(fault.DiskCorrupt, format, args...).AtOff(m.file.Name(), at)
}

// table calls f with an L2 table; nil: it is not there.
func (m *Image) table(number int64, f func(entries []uint64) error) error {
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
		entries, err := m.readTable(at, m.cluster()/entrySize)
		if err != nil {
			return err
		}
		s.number, s.entries = number, entries
	}
	return f(s.entries)
}

// source is where the bytes of a run come from.
type source uint8

const (
	zeros   source = iota
	nowhere        // the file has nothing there: the parent has it
	plain          // in one piece, at an offset
	packed         // a cluster, compressed
)

// run is a part of the disk whose bytes come from one place.
type run struct {
	block.Range
	from  source
	at    int64  // of plain, in the file
	entry uint64 // of packed
}

// follows says whether what comes at end, at the end of r, goes on with it.
func (r run) goesOn(next run) bool {
	return next.from == r.from && r.from != packed && (r.from != plain || next.at == r.at+r.Len)
}

// piece is the run at off that one entry of a table, or a part of it, tells of, clipped to end.
func (m *Image) piece(entries []uint64, off, end int64) (r run, err error) {
	cluster := off >> m.bits
	index, in := cluster%m.perTable(), off&(m.cluster()-1)
	length := m.cluster() - in
	var entry, bitmap uint64
	if m.extended {
		entry, bitmap = entries[2*index], entries[2*index+1]
	} else {
		entry = entries[index]
	}
	at := int64(entry & offsetMask)
	switch {
	case entry&compressed != 0:
		r.from, r.entry = packed, entry
	case m.extended:
		part := m.cluster() / subclusters
		n := uint(in / part)
		length = part - in%part
		switch {
		case bitmap>>(32+n)&1 != 0:
			r.from = zeros
		case bitmap>>n&1 != 0 && at != 0:
			r.from = plain
		default:
			r.from = nowhere
		}
	case entry&readsAsZero != 0:
		r.from = zeros
	case at == 0:
		r.from = nowhere
	default:
		r.from = plain
	}
	if r.from == plain {
		if at%m.cluster() != 0 || at >= m.fileSize {
			return r, m.corrupt(at, "the cluster at %d of the disk does not lie in the file", cluster<<m.bits)
		}
		r.at = at + in
	}
	r.Range = block.Range{Off: off, Len: min(length, end-off)}
	return r, nil
}

// next is the first run at off, clipped to n bytes and to one L2 table.
func (m *Image) next(off, n int64) (r run, err error) {
	number := (off >> m.bits) / m.perTable()
	end := min(off+n, (number+1)*m.perTable()<<m.bits)
	err = m.table(number, func(entries []uint64) error {
		if entries == nil {
			r = run{Range: block.Range{Off: off, Len: end - off}, from: nowhere}
			return nil
		}
		var err error
		if r, err = m.piece(entries, off, end); err != nil {
			return err
		}
		for r.End() < end {
			next, err := m.piece(entries, r.End(), end)
			if err != nil || !r.goesOn(next) {
				break // an error is the next run's
			}
			r.Len += next.Len
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
			err = m.read(p[done:done+int(r.Len)], r)
		}
		if err != nil {
			return done, err
		}
		done += int(r.Len)
	}
	return len(p), eof
}

// read reads a run.
func (m *Image) read(p []byte, r run) error {
	switch r.from {
	case plain:
		return m.readPlain(p, r.at)
	case packed:
		return m.readPacked(p, r)
	case nowhere:
		return m.readParent(p, r.Off)
	}
	clear(p)
	return nil
}

// readPlain reads from the file. The last cluster of a file may not be whole; what it lacks is zeros.
func (m *Image) readPlain(p []byte, at int64) error {
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

// readParent reads what the backing file has; it may be shorter.
func (m *Image) readParent(p []byte, off int64) error {
	var have int64
	if m.parent != nil {
		have = max(0, min(int64(len(p)), m.parent.Size()-off))
	}
	clear(p[have:])
	if have == 0 {
		return nil
	}
	if n, err := m.parent.ReadAt(p[:have], off); int64(n) < have {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// extent is what a run is, clipped to what the parent has of one kind.
func (m *Image) extent(r run) (block.Extent, error) {
	e := block.Extent{Range: r.Range, Kind: block.Data}
	switch {
	case r.from == zeros, r.from == nowhere && (m.parent == nil || r.Off >= m.parent.Size()):
		e.Kind = block.Zero
	case r.from == nowhere:
		return m.parent.Extent(r.Off, min(r.Len, m.parent.Size()-r.Off))
	}
	return e, nil
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
		var e block.Extent
		if err == nil {
			e, err = m.extent(r)
		}
		if out.Len > 0 && (err != nil || e.Kind != out.Kind) {
			break // an error is the next extent's
		}
		if err != nil {
			return block.Extent{}, err
		}
		out.Kind, out.Len = e.Kind, out.Len+e.Len
	}
	return out, nil
}

// LayerExtent says whether the run at off is this file's, whatever its parent has: data, and zeros that hide a parent's. See
// Extent.
func (m *Image) LayerExtent(off, n int64) (block.Range, bool, error) {
	if n <= 0 || !(block.Range{Off: off, Len: n}).Within(m.size) {
		return block.Range{}, false, outside(m.file.Name(), off, n, m.size)
	}
	r, err := m.next(off, n)
	return r.Range, r.from == plain || r.from == packed || r.from == zeros && m.parent != nil, err
}

package mem

import (
	"io"
	"io/fs"
	"maps"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/durable"
)

const pageSize = 4096

// sparse is bytes, most of which are zero. Its pages are never changed, only replaced, so that a copy is a copy of the map.
type sparse struct {
	size  int64
	pages map[int64]*[pageSize]byte // a page that is not there is zero
}

func newSparse(size int64) *sparse { return &sparse{size: size, pages: map[int64]*[pageSize]byte{}} }

func (s *sparse) clone() *sparse { return &sparse{size: s.size, pages: maps.Clone(s.pages)} }

// each calls f for the part of each page that [off, off+n) touches.
func (s *sparse) each(off, n int64, f func(page int64, in block.Range)) {
	for n > 0 {
		in := block.Range{Off: off % pageSize, Len: min(n, pageSize-off%pageSize)}
		f(off/pageSize, in)
		off, n = off+in.Len, n-in.Len
	}
}

func (s *sparse) read(p []byte, off int64) {
	s.each(off, int64(len(p)), func(page int64, in block.Range) {
		if pg := s.pages[page]; pg != nil {
			copy(p[:in.Len], pg[in.Off:])
		} else {
			clear(p[:in.Len])
		}
		p = p[in.Len:]
	})
}

func (s *sparse) write(p []byte, off int64) {
	s.each(off, int64(len(p)), func(page int64, in block.Range) {
		s.replace(page, func(pg []byte) { copy(pg[in.Off:], p[:in.Len]) })
		p = p[in.Len:]
	})
}

func (s *sparse) zero(off, n int64) {
	for at := range s.pages {
		in := block.Range{Off: at * pageSize, Len: pageSize}.Intersect(block.Range{Off: off, Len: n})
		if !in.Empty() {
			s.replace(at, func(pg []byte) { clear(pg[in.Off%pageSize:][:in.Len]) })
		}
	}
}

func (s *sparse) replace(page int64, change func([]byte)) {
	next := new([pageSize]byte)
	if old := s.pages[page]; old != nil {
		*next = *old
	}
	change(next[:])
	if block.IsZero(next[:]) {
		delete(s.pages, page)
	} else {
		s.pages[page] = next
	}
}

// extent tells pages that are there from others; n > 0.
func (s *sparse) extent(off, n int64) block.Extent {
	e := block.Extent{Range: block.Range{Off: off}, Kind: block.Data}
	if s.pages[off/pageSize] == nil {
		e.Kind = block.Zero
	}
	for e.Len < n && (s.pages[e.End()/pageSize] == nil) == (e.Kind == block.Zero) {
		e.Len += pageSize - e.End()%pageSize
	}
	e.Len = min(e.Len, n)
	return e
}

// logFile is a log on the shelf, open for reading.
type logFile struct {
	name string
	s    *sparse // never changed

	mu     sync.Mutex
	closed bool
}

var _ durable.File = (*logFile)(nil)

func (f *logFile) Name() string         { return f.name }
func (f *logFile) Size() (int64, error) { return f.s.size, nil }
func (f *logFile) Sync() error          { return nil }

// Close fails when the file is closed already.
func (f *logFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}

func (f *logFile) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), max(f.s.size-off, 0))
	f.s.read(p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (f *logFile) Extent(off, n int64) (block.Extent, error) {
	if off >= f.s.size {
		return block.Extent{Range: block.Range{Off: off, Len: n}, Kind: block.Zero}, nil
	}
	return f.s.extent(off, min(n, f.s.size-off)), nil
}

func (f *logFile) Stamp() (durable.Stamp, error) { return durable.Stamp{Size: f.s.size}, nil }

func (f *logFile) WriteAt([]byte, int64) (int, error) { return 0, f.readOnly() }
func (f *logFile) Truncate(int64) error               { return f.readOnly() }
func (f *logFile) ZeroAt(int64, int64) error          { return f.readOnly() }

func (f *logFile) readOnly() error {
	return &fs.PathError{Op: "write", Path: f.name, Err: fs.ErrPermission}
}

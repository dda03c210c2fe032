// Package crashfs is a filesystem in memory, for tests of what a crash leaves. It is a durable.FS that does exactly what
// package durable says it believes of an operating system, and not a bit more:
//
//   - Sync makes the data and the size of one file durable. It does not make the file's name durable.
//   - SyncDir makes the names in one folder durable. It does nothing for the content of the files.
//   - Until then a power cut may leave any mixture of the 512-byte sectors that were written, any of the sizes, and
//     every name there or not; only a rename is one step.
//
// A test runs its history once to learn how many operations it has (Ops), then runs it again for every k with
// CutAfter(k), and looks at AfterCrash with every Policy: the filesystem that a machine finds when the power is back.
//
//	for k := 1; k <= ops; k++ {
//		fs := crashfs.New()
//		fs.CutAfter(k)
//		err := work(fs) // errors.Is(err, crashfs.ErrCut)
//		for _, p := range crashfs.Policies() {
//			check(fs.AfterCrash(p, seed))
//		}
//	}
//
// Files are sparse at 4096 bytes, so that one of 1 TiB with little data costs little. Paths are slash- or
// system-separated; relative ones begin at the root, which is there from the start. An FS and its files are safe for
// concurrent use.
package crashfs

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// ErrCut is what every operation returns once the power is cut.
var ErrCut = errors.New("the power is cut")

// Kind names an operation.
type Kind string

// The kinds of operations. The first group changes something and is counted by Ops and CutAfter.
const (
	Write    Kind = "write"
	Truncate Kind = "truncate"
	Zero     Kind = "zero"
	Sync     Kind = "sync"
	Create   Kind = "create" // also by Lock, when the file is not there
	Rename   Kind = "rename"
	Link     Kind = "link"
	Clone    Kind = "clone"
	Remove   Kind = "remove"
	Mkdir    Kind = "mkdir"
	SyncDir  Kind = "syncdir"

	Read   Kind = "read"
	Open   Kind = "open"
	Extent Kind = "extent"
	Stat   Kind = "stat" // Stat, and Size and Stamp of a file
	List   Kind = "list"
	Lock   Kind = "lock"
)

// Changes says whether operations of this kind change something, and so are counted.
func (k Kind) Changes() bool {
	return !slices.Contains([]Kind{Read, Open, Extent, Stat, List, Lock}, k)
}

// Op is one operation as it was asked for.
type Op struct {
	N        int // which of the operations that change something, from 1; 0 for one that changes nothing
	Kind     Kind
	Name     string // the path as it was given; of an open file, the path by which it was opened
	To       string // the second path of Rename, Link and Clone
	Off, Len int64  // bytes; of Truncate, Off is the new size
}

// FS is a filesystem in memory; New makes one.
type FS struct {
	mu      sync.Mutex
	root    *inode
	pending []nameOp // name changes of which no SyncDir is known, oldest first
	nextID  uint64
	clock   int64 // ticks once for each operation that changes something

	boots  int // how often the machine was started after a power cut
	ops    int
	log    []Op
	cutAt  int // value of ops at which the power is cut; 0: never
	cut    bool
	flight *flight // the write that the cut interrupted

	failOn    func(Op) error
	clones    bool
	capacity  int64 // bytes; 0: no limit
	allocated int64 // bytes of pages that live files hold, a shared page once
	shared    map[*page]int
}

var _ durable.FS = (*FS)(nil)

// New returns an empty filesystem with a root folder, without limits, that cannot Clone.
func New() *FS {
	s := &FS{shared: map[*page]int{}}
	s.root = s.newInode(true)
	s.root.links = 1
	return s
}

// SetClone says whether Clone is supported.
func (s *FS) SetClone(can bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clones = can
}

// SetCapacity limits the bytes that may be allocated (pages of 4096 bytes; 0: no limit): what goes beyond fails with
// syscall.ENOSPC, a write after the part that still fits.
func (s *FS) SetCapacity(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capacity = bytes
}

// Free is how many bytes may still be allocated (durable.Free); without a capacity there is no telling.
func (s *FS) Free(string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.capacity == 0 {
		return 0, errors.ErrUnsupported
	}
	return s.capacity - s.allocated, nil
}

// Room is Free, and the capacity (durable.Room).
func (s *FS) Room(string) (free, volume int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.capacity == 0 {
		return 0, 0, errors.ErrUnsupported
	}
	return s.capacity - s.allocated, s.capacity, nil
}

// Allocated is the number of bytes that files take, in pages of 4096.
func (s *FS) Allocated() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allocated
}

// FailOn has f asked before every operation, reads included; an error of f is the operation's error, and it changes
// nothing. f must not call the filesystem; nil ends it.
func (s *FS) FailOn(f func(op Op) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failOn = f
}

// CutAfter cuts the power at the k-th operation that changes something, counted from now: it and everything after it,
// reads included, fail with ErrCut. (k > 0)
func (s *FS) CutAfter(k int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cutAt = s.ops + k
}

// Boot changes with every power cut, not with a kill of the process.
func (s *FS) Boot() string { return fmt.Sprintf("boot %d", s.boots) }

// Ops is the number of operations so far that change something, failed ones included.
func (s *FS) Ops() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ops
}

// Log returns the operations that change something, in order.
func (s *FS) Log() []Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// begin counts an operation and says whether it may go on. The lock is held.
func (s *FS) begin(op Op) error {
	if s.cut {
		return pathError(op, ErrCut)
	}
	if op.Kind.Changes() {
		s.ops++
		op.N = s.ops
		if s.cutAt != 0 && s.ops >= s.cutAt {
			s.cut = true
			return pathError(op, ErrCut)
		}
		s.clock++
		s.log = append(s.log, op)
	}
	if s.failOn != nil {
		if err := s.failOn(op); err != nil {
			return pathError(op, err)
		}
	}
	return nil
}

func pathError(op Op, err error) error {
	return &iofs.PathError{Op: string(op.Kind), Path: op.Name, Err: err}
}

func clean(name string) string { return path.Clean("/" + filepath.ToSlash(name)) }

// Open is part of durable.FS.
func (s *FS) Open(name string) (durable.File, error) { return s.open(name, false) }

// OpenRW is part of durable.FS.
func (s *FS) OpenRW(name string) (durable.File, error) { return s.open(name, true) }

// within is the part of an FS that lies in a folder; see durable.Within. There are no links here but hard ones.
type within struct {
	*FS
	root string
}

// Within is asked for by durable.Within.
func (s *FS) Within(root string) durable.FS { return within{s, clean(root)} }

func (w within) Open(name string) (durable.File, error)   { return w.oneName(name, w.FS.Open) }
func (w within) OpenRW(name string) (durable.File, error) { return w.oneName(name, w.FS.OpenRW) }

// OpenLinked is asked for by durable.OpenLinked.
func (w within) OpenLinked(name string) (durable.File, error) { return w.FS.Open(name) }

// oneName refuses a file that has more names than the one below root.
func (w within) oneName(name string, open func(string) (durable.File, error)) (durable.File, error) {
	if rel, err := filepath.Rel(w.root, clean(name)); err != nil || !filepath.IsLocal(rel) {
		return nil, fault.New(fault.UnsafeFile, "does not lie in %s", w.root).At(name)
	}
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	links := f.(*file).f.links
	w.mu.Unlock()
	if links > 1 {
		return nil, errors.Join(fault.New(fault.UnsafeFile, "has %d names", links).At(name), f.Close())
	}
	return f, nil
}

func (s *FS) open(name string, write bool) (durable.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := Op{Kind: Open, Name: name}
	if err := s.begin(op); err != nil {
		return nil, err
	}
	f, err := s.lookup(name)
	if err == nil && f.dir {
		err = errIsFolder
	}
	if err != nil {
		return nil, pathError(op, err)
	}
	return s.newFile(f, name, write), nil
}

// Create is part of durable.FS.
func (s *FS) Create(name string) (durable.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := Op{Kind: Create, Name: name}
	if err := s.begin(op); err != nil {
		return nil, err
	}
	f, err := s.addNew(name, false)
	if err != nil {
		return nil, pathError(op, err)
	}
	return s.newFile(f, name, true), nil
}

// ReadDir is part of durable.FS.
func (s *FS) ReadDir(name string) ([]durable.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := Op{Kind: List, Name: name}
	if err := s.begin(op); err != nil {
		return nil, err
	}
	d, err := s.folder(name)
	if err != nil {
		return nil, pathError(op, err)
	}
	list := make([]durable.Entry, 0, len(d.names))
	for _, n := range sortedKeys(d.names) {
		list = append(list, durable.Entry{Name: n, Dir: d.names[n].dir})
	}
	return list, nil
}

// Stat is part of durable.FS. Device is always 1, and the times are those of a clock that ticks a millisecond for each
// operation that changes something, from a moment in 2001.
func (s *FS) Stat(name string) (durable.Stamp, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := Op{Kind: Stat, Name: name}
	if err := s.begin(op); err != nil {
		return durable.Stamp{}, err
	}
	f, err := s.lookup(name)
	if err != nil {
		return durable.Stamp{}, pathError(op, err)
	}
	return f.stamp(), nil
}

type lock struct {
	s *FS
	f *inode
}

// Lock is part of durable.FS.
func (s *FS) Lock(name string) (io.Closer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.lookup(name)
	op := Op{Kind: Lock, Name: name}
	if err != nil {
		op.Kind = Create
	}
	if err := s.begin(op); err != nil {
		return nil, err
	}
	if err != nil {
		if f, err = s.addNew(name, false); err != nil {
			return nil, pathError(op, err)
		}
	}
	if f.dir {
		return nil, pathError(op, errIsFolder)
	}
	if f.locked {
		return nil, durable.ErrLocked
	}
	f.locked = true
	f.opens++
	return &lock{s: s, f: f}, nil
}

func (l *lock) Close() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.f == nil {
		return iofs.ErrClosed
	}
	l.f.locked = false
	l.f.opens--
	l.s.freeUnused(l.f)
	l.f = nil
	return nil
}

// file is an open file. It keeps its inode, whatever becomes of the name.
type file struct {
	s      *FS
	f      *inode
	name   string
	write  bool
	closed bool
}

func (s *FS) newFile(f *inode, name string, write bool) *file {
	f.opens++
	return &file{s: s, f: f, name: name, write: write}
}

// do runs an operation of an open file under the lock.
func (h *file) do(op Op, run func() error) error { return h.doWith(nil, op, run) }

// doWith is do for an operation that brings data.
func (h *file) doWith(data []byte, op Op, run func() error) error {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	op.Name = h.name
	if h.closed {
		return pathError(op, iofs.ErrClosed)
	}
	if op.Kind.Changes() && op.Kind != Sync && !h.write {
		return pathError(op, iofs.ErrPermission)
	}
	if op.Off < 0 || op.Len < 0 || op.Off+op.Len < 0 {
		return pathError(op, iofs.ErrInvalid)
	}
	before := h.s.cut
	if err := h.s.begin(op); err != nil {
		if h.s.cut && !before && op.Kind == Write {
			h.s.flight = &flight{f: h.f, data: slices.Clone(data), off: op.Off}
		}
		return err
	}
	err := run()
	if err == nil || err == io.EOF {
		return err
	}
	return pathError(op, err)
}

func (h *file) Name() string { return h.name }

func (h *file) Close() error {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.closed {
		return iofs.ErrClosed
	}
	h.closed = true
	h.f.opens--
	h.s.freeUnused(h.f)
	return nil
}

func (h *file) ReadAt(p []byte, off int64) (n int, err error) {
	err = h.do(Op{Kind: Read, Off: off, Len: int64(len(p))}, func() error {
		n = h.f.readAt(p, off)
		if n < len(p) {
			return io.EOF
		}
		return nil
	})
	return n, err
}

func (h *file) WriteAt(p []byte, off int64) (n int, err error) {
	err = h.doWith(p, Op{Kind: Write, Off: off, Len: int64(len(p))}, func() (err error) {
		n, err = h.s.writeAt(h.f, p, off)
		return err
	})
	return n, err
}

func (h *file) Truncate(size int64) error {
	return h.do(Op{Kind: Truncate, Off: size}, func() error {
		h.s.truncate(h.f, size)
		return nil
	})
}

func (h *file) ZeroAt(off, n int64) error {
	return h.do(Op{Kind: Zero, Off: off, Len: n}, func() error {
		h.s.zeroAt(h.f, off, min(off+n, h.f.now.size))
		h.s.touch(h.f)
		return nil
	})
}

func (h *file) Sync() error {
	return h.do(Op{Kind: Sync}, func() error {
		h.f.sync()
		return nil
	})
}

func (h *file) Size() (size int64, err error) {
	err = h.do(Op{Kind: Stat}, func() error { size = h.f.now.size; return nil })
	return size, err
}

func (h *file) Stamp() (stamp durable.Stamp, err error) {
	err = h.do(Op{Kind: Stat}, func() error { stamp = h.f.stamp(); return nil })
	return stamp, err
}

func (h *file) Extent(off, n int64) (e block.Extent, err error) {
	err = h.do(Op{Kind: Extent, Off: off, Len: n}, func() error { e = h.f.extent(off, n); return nil })
	return e, err
}

package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// ReadOnly returns a view of a filesystem through which nothing can be changed, for runs that only look: whatever would change
// something fails with fs.ErrPermission, and making a clone, without which its callers get on, with errors.ErrUnsupported. Lock
// takes the lock of a file that is there; where there is none nobody holds it, and none is made.
func ReadOnly(fsys FS) FS { return readOnly{fsys} }

type readOnly struct{ FS }

func refused(what, name string) error {
	return &fs.PathError{Op: what, Path: name, Err: fmt.Errorf("this run only looks and writes nothing: %w", fs.ErrPermission)}
}

func (readOnly) OpenRW(name string) (File, error) { return nil, refused("open for writing", name) }
func (readOnly) Create(name string) (File, error) { return nil, refused("create", name) }
func (readOnly) Rename(_, name string) error      { return refused("rename", name) }
func (readOnly) Link(_, name string) error        { return refused("link", name) }
func (readOnly) Remove(name string) error         { return refused("remove", name) }
func (readOnly) MkdirAll(name string) error       { return refused("create folder", name) }
func (readOnly) SyncDir(string) error             { return nil } // nothing was changed

func (readOnly) Clone(_, name string) error {
	return &fs.PathError{Op: "clone", Path: name, Err: errors.ErrUnsupported}
}

// Open opens a file whose Sync does nothing.
func (r readOnly) Open(name string) (File, error) {
	f, err := r.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return readOnlyFile{f}, nil
}

// Within is that of the filesystem; see the function Within.
func (r readOnly) Within(root string) FS { return readOnly{Within(r.FS, root)} }

// OpenLinked is that of the filesystem; see the function OpenLinked.
func (r readOnly) OpenLinked(name string) (File, error) {
	f, err := OpenLinked(r.FS, name)
	if err != nil {
		return nil, err
	}
	return readOnlyFile{f}, nil
}

func (r readOnly) Lock(name string) (io.Closer, error) {
	if _, err := r.Stat(name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nothing{}, nil
		}
		return nil, err
	}
	return r.FS.Lock(name)
}

// Free is that of the filesystem, where it can tell.
func (r readOnly) Free(folder string) (int64, error) {
	if n, ok := Free(r.FS, folder); ok {
		return n, nil
	}
	return 0, errors.ErrUnsupported
}

// Room is that of the filesystem, where it can tell.
func (r readOnly) Room(folder string) (free, volume int64, err error) {
	if free, volume, ok := Room(r.FS, folder); ok {
		return free, volume, nil
	}
	return 0, 0, errors.ErrUnsupported
}

type nothing struct{}

func (nothing) Close() error { return nil }

type readOnlyFile struct{ File }

func (f readOnlyFile) TellsWrites() bool                  { return TellsWrites(f.File) }
func (f readOnlyFile) WriteAt([]byte, int64) (int, error) { return 0, refused("write", f.Name()) }
func (f readOnlyFile) Truncate(int64) error               { return refused("truncate", f.Name()) }
func (f readOnlyFile) ZeroAt(int64, int64) error          { return refused("write", f.Name()) }
func (readOnlyFile) Sync() error                          { return nil }

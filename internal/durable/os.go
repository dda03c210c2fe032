package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// OS returns the operating system's own filesystem.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Open(name string) (File, error)   { return openOS(name, os.O_RDONLY) }
func (osFS) OpenRW(name string) (File, error) { return openOS(name, os.O_RDWR) }
func (osFS) Create(name string) (File, error) { return openOS(name, os.O_RDWR|os.O_CREATE|os.O_EXCL) }

// openOS opens only what a file or a disk can be: never a pipe, which would keep the caller waiting for its other end, nor a
// character device, which may do something when it is opened. Links are followed: who names a path means where it leads.
func openOS(name string, flag int) (File, error) {
	if flag&os.O_CREATE == 0 {
		info, err := os.Stat(name)
		if err == nil {
			err = checkKind(name, info.Mode())
		}
		if err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, flag|noBlock, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = checkKind(name, info.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return fileOf(f, flag), nil
}

// fileOf is the File of what was opened with these flags.
func fileOf(f *os.File, flag int) File {
	if flag&os.O_CREATE != 0 {
		makeSparse(f)
	}
	return &osFile{File: f}
}

// checkKind refuses what is neither a regular file nor a block device.
func checkKind(name string, mode fs.FileMode) error {
	block := mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
	switch {
	case mode.IsDir():
		return &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	case mode.IsRegular(), block:
		return nil
	}
	return unsafeFile(name, "is "+kindOf(mode)+", not a file or a block device")
}

// kindOf names what is no regular file.
func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeCharDevice != 0:
		return "a character device"
	case mode&fs.ModeDevice != 0:
		return "a block device"
	}
	return "a special file"
}

// unsafeFile is the error of a name behind which something else lies than what sitrep puts there.
func unsafeFile(name, why string) error { return fault.New(fault.UnsafeFile, "%s", why).At(name) }

// mayBeReplaced refuses a rename onto anything but a regular file or nothing: a device, a pipe or a link that somebody named
// would be gone.
func mayBeReplaced(name string, info fs.FileInfo, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().IsRegular():
		return nil
	}
	return unsafeFile(name, "is "+kindOf(info.Mode())+" and is not replaced by a file")
}

func (osFS) Rename(oldName, newName string) error {
	info, err := os.Lstat(newName)
	if err := mayBeReplaced(newName, info, err); err != nil {
		return err
	}
	return os.Rename(oldName, newName)
}
func (osFS) Remove(name string) error            { return os.Remove(name) }
func (osFS) Clone(oldName, newName string) error { return cloneFile(oldName, newName) }

func (osFS) Link(oldName, newName string) error {
	err := os.Link(oldName, newName)
	if err != nil && linkUnsupported(err) {
		return errors.Join(errors.ErrUnsupported, err)
	}
	return err
}

func (f osFS) MkdirAll(name string) error {
	parent := filepath.Dir(name)
	info, err := os.Stat(name)
	if err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: errors.New("is a file, not a folder")}
		}
		return f.syncFound(parent)
	}
	if parent != name {
		if err := f.MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.SyncDir(parent)
}

// syncFound makes durable a folder that is there already: a run that was killed between mkdir and sync may have made
// it. The folders above it need nothing, they were durable before it was made. A parent that this account may not even
// list is none that it made folders in.
func (f osFS) syncFound(parent string) error {
	err := f.SyncDir(parent)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

func (osFS) ReadDir(name string) ([]Entry, error) {
	d, err := openFolder(name)
	if err != nil {
		return nil, err
	}
	return listed(d)
}

// listed lists an open folder and closes it.
func listed(d *os.File) ([]Entry, error) {
	list, err := d.ReadDir(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	out := make([]Entry, len(list))
	for i, e := range list {
		out[i] = Entry{Name: e.Name(), Dir: e.IsDir()}
	}
	return out, nil
}

func (osFS) Stat(name string) (Stamp, error) { return stampAt(name) }

func (osFS) SyncDir(name string) error {
	d, err := openFolder(name)
	if err != nil {
		return err
	}
	return errors.Join(syncFolder(d), d.Close())
}

func (osFS) Boot() string { return bootID() }

func (osFS) Lock(name string) (io.Closer, error) { return lockFile(name) }

// osFile is a file of the operating system. Large aligned transfers go around the page cache: see direct.
type osFile struct {
	*os.File
	direct direct
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	return f.direct.readAt(f.File, p, off)
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	return f.direct.writeAt(f.File, p, off)
}

// WriteCachedAt writes through the page cache; see WriteCached.
func (f *osFile) WriteCachedAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if err == nil {
		beginWriting(f.File, off, int64(n))
	}
	return n, err
}

func (f *osFile) Close() error {
	return errors.Join(f.direct.close(), f.File.Close())
}

// Size asks for the end of the file by seeking: that is right for block devices too.
func (f *osFile) Size() (int64, error) { return f.File.Seek(0, io.SeekEnd) }

func (f *osFile) Stamp() (Stamp, error) { return stampOf(f.File) }

func (f *osFile) Extent(off, n int64) (block.Extent, error) { return extentOf(f.File, off, n) }
func (f *osFile) ZeroAt(off, n int64) error                 { return zeroFile(f, off, n) }

// writeZeros is ZeroAt for filesystems that cannot make holes.
func writeZeros(w io.WriterAt, off, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		k := min(n, int64(len(buf)))
		if _, err := w.WriteAt(buf[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

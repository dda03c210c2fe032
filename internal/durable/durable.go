// Package durable is the little of an operating system's files that sitrep relies on, and what it believes of it.
//
// What we believe:
//   - After Sync returns, the bytes and the size of the file survive a power cut. Before it, any subset of the written
//     512-byte sectors may have reached the disk, in any order.
//   - A name that was created, renamed or removed is sure to be there (or gone) after a power cut only when SyncDir of
//     its folder returned. A rename shows the old file or the new one, never a mixture.
//   - A lock is released by the kernel when its process ends, however it ends.
//
// Everything that has to survive a crash goes through FS, so that a test can record every write and every sync, cut the
// recording at each of them and look at what a power cut would have left (package crashfs).
//
// Files are sparse where the filesystem can: Extent tells holes without reading, ZeroAt makes them.
package durable

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unsafe"

	"sitrep/internal/block"
)

// Stamp tells one content of one file from another without reading it. Two equal Stamps mean that the file was not
// written in between, provided that ChangeTime lies so far back that the filesystem's clock must have moved since.
type Stamp struct {
	Device     uint64 `json:"device"`
	Inode      uint64 `json:"inode"`
	Size       int64  `json:"size"`
	ModTime    int64  `json:"mtime_ns"` // nanoseconds since 1970
	ChangeTime int64  `json:"ctime_ns"` // nanoseconds since 1970; cannot be set by utimes
}

// Same says that two stamps are certain to be of one file. Where the filesystem does not tell files apart nothing is.
func (s Stamp) Same(o Stamp) bool {
	return s.Inode != 0 && s.Inode == o.Inode && s.Device == o.Device
}

// FileID tells a file or folder from any other, by whatever name it is reached: by what the filesystem says of it, or else by its path with
// links followed.
func FileID(fsys FS, name string) (string, error) {
	s, err := fsys.Stat(name)
	if err != nil {
		return "", err
	}
	if s.Inode != 0 {
		return fmt.Sprintf("%d:%d", s.Device, s.Inode), nil
	}
	return Resolve(fsys, name)
}

// File is an open file. ReadAt, WriteAt, Extent, Size and Stamp may be called concurrently, as readers of one image do; the
// other methods may not.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Name is the path by which the file was opened.
	Name() string
	// Size is the number of bytes of the file, or of the block device.
	Size() (int64, error)
	// Truncate sets the size; bytes that are new read as zero.
	Truncate(size int64) error
	// Extent returns the first run of one kind at off, clipped to n bytes (n > 0). Zero is said only of bytes that are
	// certain to read as zero; off at or after the end of the file is Zero. It reads no data.
	Extent(off, n int64) (block.Extent, error)
	// ZeroAt makes [off, off+n) read as zero, without taking space where the filesystem can. It does not change the size.
	ZeroAt(off, n int64) error
	// Sync returns when everything written before it survives a power cut.
	Sync() error
	// Stamp describes the content; see Stamp.
	Stamp() (Stamp, error)
}

// Entry is one name in a folder.
type Entry struct {
	Name string
	Dir  bool
}

// FS is a filesystem. Names are paths of the operating system. Errors wrap the fs.Err… values and errno.
type FS interface {
	// Open opens a file, or a block device, for reading.
	Open(name string) (File, error)
	// OpenRW opens an existing file for reading and writing.
	OpenRW(name string) (File, error)
	// Create creates a file that must not exist, for reading and writing.
	Create(name string) (File, error)
	// Rename replaces newName by oldName, in one step.
	Rename(oldName, newName string) error
	// Link makes newName, which must not exist, a second name of oldName. Where that cannot be done the error
	// is errors.ErrUnsupported.
	Link(oldName, newName string) error
	// Clone makes newName, which must not exist, a copy of oldName that shares its blocks, frozen at one moment, or
	// fails with an error that is errors.ErrUnsupported. A Clone that fails leaves nothing behind. The copy survives a
	// power cut only after its own Sync and SyncDir.
	Clone(oldName, newName string) error
	// Remove removes a file or an empty folder.
	Remove(name string) error
	// MkdirAll makes a folder and the ones above it; it is durable on return.
	MkdirAll(name string) error
	// ReadDir lists a folder, sorted by name.
	ReadDir(name string) ([]Entry, error)
	// Stat describes a file by name.
	Stat(name string) (Stamp, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(name string) error
	// Boot names the time since the machine was started: it is another one after each start, and after a power cut above all.
	// "" means that it is not known.
	Boot() string
	// Lock takes the exclusive lock of this name, creating the file when needed, or fails at once with an error that is
	// ErrLocked. It is released by Close or by the end of the process.
	Lock(name string) (io.Closer, error)
}

// ErrLocked is returned by Lock when another process, or another part of this one, holds the lock. Where the system tells
// which one it is, the error is a LockedError.
var ErrLocked = errors.New("locked by another run")

// tempMark is in the name of every temporary file, so that what a crash left can be told from what an operator put there.
const tempMark = ".sitrep-tmp-"

// maxTempBase is how many bytes of a name its temporary name repeats: with the rest, names of 255 bytes still fit.
const maxTempBase = 200

// TempName returns a new unique name in the folder of name.
func TempName(name string) string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	base := filepath.Base(name)
	base = strings.ToValidUTF8(base[:min(len(base), maxTempBase)], "")
	return filepath.Join(filepath.Dir(name), "."+base+tempMark+hex.EncodeToString(b[:]))
}

// Free is how many bytes an ordinary user can still write to the volume that a folder is on; ok is false when fsys cannot
// tell. It is a guess by nature: others write too.
func Free(fsys FS, folder string) (bytes int64, ok bool) {
	v, can := fsys.(interface {
		Free(folder string) (int64, error)
	})
	if !can {
		return 0, false
	}
	n, err := v.Free(folder)
	return n, err == nil
}

// Room is how many bytes an ordinary user can still write to the volume that a folder is on, and how many it has in all; ok is false
// when fsys cannot tell.
func Room(fsys FS, folder string) (free, volume int64, ok bool) {
	v, can := fsys.(interface {
		Room(folder string) (free, volume int64, err error)
	})
	if !can {
		return 0, 0, false
	}
	free, volume, err := v.Room(folder)
	return free, volume, err == nil
}

// WriteCached is f.WriteAt for what is going to be read again soon: where f has the choice, the bytes stay in the page cache,
// and are on their way to the disk when it returns. It promises no more of them than WriteAt does.
func WriteCached(f File, p []byte, off int64) (int, error) {
	if c, can := f.(interface {
		WriteCachedAt(p []byte, off int64) (int, error)
	}); can {
		return c.WriteCachedAt(p, off)
	}
	return f.WriteAt(p, off)
}

// TellsWrites says whether the Stamp of a file changes with every write to it, after a Sync: with one by a program that has it
// mapped into its memory too. Where nobody knows that of a filesystem it is false. (tmpfs and its like do not notice such
// writes: they have nothing to write back, and so never ask to be told.)
func TellsWrites(f File) bool {
	t, can := f.(interface{ TellsWrites() bool })
	return !can || t.TellsWrites()
}

// IsTemp says whether a name was made by TempName.
func IsTemp(name string) bool {
	base := filepath.Base(name)
	return strings.HasPrefix(base, ".") && strings.Contains(base, tempMark)
}

// IsTempOf says whether TempName made tmp for a file of this name (without its folder).
func IsTempOf(tmp, name string) bool {
	return IsTemp(tmp) && strings.HasPrefix(filepath.Base(tmp), "."+name+tempMark)
}

// TempBase returns the name, without its folder, that TempName made tmp for; of one longer than 200 bytes its beginning.
func TempBase(tmp string) (base string, ok bool) {
	tmp = filepath.Base(tmp)
	i := strings.LastIndex(tmp, tempMark)
	if !IsTemp(tmp) || i < 1 {
		return "", false
	}
	return tmp[1:i], true
}

// WriteFile puts data into the file called name, in one step: after a crash at any time the file has its old content
// or the new one. It is durable on return.
func WriteFile(fs FS, name string, data []byte) error {
	return Replace(fs, name, func(f File) error {
		_, err := f.WriteAt(data, 0)
		return err
	})
}

// Replace calls fill with a new empty file, and gives it the name when fill has succeeded: after a crash at any time
// the name has its old content or the whole new one. It is durable on return. When it fails, no temporary file is left
// behind; the name has its old content, or, when only the last step (SyncDir) failed, perhaps the new one.
func Replace(fs FS, name string, fill func(File) error) (err error) {
	tmp := TempName(name)
	f, err := fs.Create(tmp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(fs.Remove(tmp)))
		}
	}()
	err = fill(f)
	if err == nil {
		err = f.Sync() // before the rename: else the name could come to stand for an empty file
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = fs.Rename(tmp, name); err != nil {
		return err
	}
	return fs.SyncDir(filepath.Dir(name))
}

// ReadFile reads a whole file, which may not be longer than limit bytes.
func ReadFile(fs FS, name string, limit int64) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, &TooLargeError{Name: name, Size: size, Limit: limit}
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if int64(n) == size {
		return data, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // it became shorter meanwhile
	}
	return nil, err
}

// bufferAlign is the alignment of an AlignedBuffer: the largest logical sector in use.
const bufferAlign = 4096

// AlignedBuffer returns n zero bytes whose address is a multiple of 4096, so that transfers of multiples of 4096 bytes
// between it and a File can go around the page cache. (Large slices usually are so aligned, but nothing promises it.)
func AlignedBuffer(n int) []byte {
	buf := make([]byte, n+bufferAlign-1)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))) & (bufferAlign - 1)
	return buf[skip : skip+n : skip+n]
}

// ReadFull reads len(p) bytes at off, or fails; a source that ends before is io.ErrUnexpectedEOF.
func ReadFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

package durable

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"

	"sitrep/internal/block"
)

// Control codes of winioctl.h.
const (
	fsctlSetSparse   = 0x900C4
	fsctlSetZeroData = 0x980C8
)

// makeSparse asks NTFS to keep holes; a filesystem that cannot stores zeros, which is as right and only larger.
func makeSparse(f *os.File) {
	var n uint32
	_ = windows.DeviceIoControl(windows.Handle(f.Fd()), fsctlSetSparse, nil, 0, nil, 0, &n, nil)
}

// Free is how many bytes an ordinary user can still write to the volume of a folder; see the function Free.
func (osFS) Free(folder string) (int64, error) {
	name, err := windows.UTF16PtrFromString(folder)
	if err != nil {
		return 0, err
	}
	var free uint64
	err = windows.GetDiskFreeSpaceEx(name, &free, nil, nil)
	return int64(free), err
}

// Room is Free, and the size of the volume, for the function Room.
func (osFS) Room(folder string) (free, volume int64, err error) {
	name, err := windows.UTF16PtrFromString(folder)
	if err != nil {
		return 0, 0, err
	}
	var left, size uint64
	err = windows.GetDiskFreeSpaceEx(name, &left, &size, nil)
	return int64(left), int64(size), err
}

func punch(f *osFile, off, n int64) error {
	var in [16]byte // FILE_ZERO_DATA_INFORMATION: first byte, first byte after
	binary.LittleEndian.PutUint64(in[0:], uint64(off))
	binary.LittleEndian.PutUint64(in[8:], uint64(off+n))
	var got uint32
	err := windows.DeviceIoControl(windows.Handle(f.Fd()), fsctlSetZeroData, &in[0], uint32(len(in)), nil, 0, &got, nil)
	if err != nil {
		return writeZeros(f, off, n)
	}
	return nil
}

const noBlock = 0 // opening a pipe does not wait

func openFolder(name string) (*os.File, error) { return os.Open(name) }

func syncFolder(*os.File) error { return nil } // NTFS journals names; a folder's handle cannot be flushed

type fileLock struct{ f *os.File }

func (l fileLock) Close() error { return l.f.Close() }

// lockFile needs no second look at the name, as that of an open file cannot be taken away here.
func lockFile(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()),
		windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
	if err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, ErrLocked
		}
		return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	return fileLock{f}, nil
}

func cloneFile(string, string) error { return errors.ErrUnsupported }

func extentOf(_ *os.File, off, n int64) (block.Extent, error) {
	return block.Extent{Range: block.Range{Off: off, Len: n}, Kind: block.Data}, nil
}

// direct is the plain way on systems where going around the page cache is not worth its rules.
type direct struct{}

func (*direct) close() error { return nil }

func (*direct) readAt(plain *os.File, p []byte, off int64) (int, error) { return plain.ReadAt(p, off) }
func (*direct) writeAt(plain *os.File, p []byte, off int64) (int, error) {
	return plain.WriteAt(p, off)
}

func zeroFile(f *osFile, off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if n = min(n, size-off); n <= 0 {
		return nil
	}
	return punch(f, off, n)
}

// stampOf has device and inode where the filesystem names files by numbers that stay theirs and fit: NTFS does; FAT and ReFS do not, and
// there one file is not told from another.
func stampOf(f *os.File) (Stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return Stamp{}, err
	}
	s := Stamp{Size: info.Size(), ModTime: info.ModTime().UnixNano()}
	var id [24]byte // FILE_ID_INFO: serial number of the volume, 128 bits of the file
	err = windows.GetFileInformationByHandleEx(windows.Handle(f.Fd()), windows.FileIdInfo, &id[0], uint32(len(id)))
	if err == nil && binary.LittleEndian.Uint64(id[16:]) == 0 {
		s.Device, s.Inode = binary.LittleEndian.Uint64(id[0:]), binary.LittleEndian.Uint64(id[8:])
	}
	return s, nil
}

// stampAt opens for the attributes alone: that no other program's locks forbid.
func stampAt(name string) (Stamp, error) {
	path, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return Stamp{}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	h, err := windows.CreateFile(path, windows.FILE_READ_ATTRIBUTES, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE,
		nil, windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS, 0)
	if err != nil {
		return Stamp{}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(h), name)
	s, err := stampOf(f)
	return s, errors.Join(err, f.Close())
}

// TellsWrites is not known of any filesystem here; see the function TellsWrites.
func (*osFile) TellsWrites() bool { return false }

// linkUnsupported says whether a failed link means that it cannot be had here.
func linkUnsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, windows.ERROR_INVALID_FUNCTION) ||
		errors.Is(err, windows.ERROR_NOT_SAME_DEVICE) || errors.Is(err, windows.ERROR_TOO_MANY_LINKS)
}

func bootID() string { return "" }

// beginWriting is a hint that Windows has no call for.
func beginWriting(*os.File, int64, int64) {}

package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sitrep/internal/block"
)

func stampOf(f *os.File) (Stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return Stamp{}, err
	}
	return stampIn(info), nil
}

func stampAt(name string) (Stamp, error) {
	info, err := os.Stat(name)
	if err != nil {
		return Stamp{}, err
	}
	return stampIn(info), nil
}

func stampIn(info fs.FileInfo) Stamp {
	s := Stamp{Size: info.Size(), ModTime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.Device, s.Inode, s.ChangeTime = st.Dev, st.Ino, st.Ctim.Nano()
	}
	return s
}

func makeSparse(*os.File) {} // files are sparse by themselves

// bootID is the kernel's random name of this start.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// noBlock keeps open(2) from waiting: for the other end of a pipe that took the place of a file since it was looked at.
const noBlock = unix.O_NONBLOCK

// openFolder opens a folder, and nothing else.
func openFolder(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// syncFolder makes the names in an open folder durable.
func syncFolder(d *os.File) error {
	err := d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil // the filesystem (some network ones) has no such call and makes names durable by itself
	}
	return err
}

// Free is how many bytes an ordinary user can still write to the volume of a folder; see the function Free.
func (osFS) Free(folder string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// Room is Free, and the size of the volume, for the function Room.
func (osFS) Room(folder string) (free, volume int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return 0, 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), int64(s.Blocks) * int64(s.Bsize), nil
}

type fileLock struct{ f *os.File }

// Close releases the lock and then closes the file. Closing alone would not do: a program that another goroutine starts at this
// moment has a copy of every descriptor until it is executed, and the lock with it.
func (l fileLock) Close() error {
	err := retryEINTR(func() error { return unix.Flock(int(l.f.Fd()), unix.LOCK_UN) })
	return errors.Join(err, l.f.Close())
}

// lockFile locks a file that may be created, by its name, without following a link.
func lockFile(name string) (io.Closer, error) {
	return lockNamed(name, func() (*os.File, error) {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|noBlock, 0o600)
		if errors.Is(err, unix.ELOOP) {
			return nil, unsafeFile(name, "is a symbolic link, and no lock is taken behind one")
		}
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = unsafeFile(name, "is "+kindOf(info.Mode())+", and no lock is taken on one")
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}, func() (fs.FileInfo, error) { return os.Lstat(name) })
}

// lockNamed locks what the name stands for when it is locked: a holder may remove the file before it releases it, and
// who opened it in between must not take the lock of a file that has no name any more.
func lockNamed(name string, open func() (*os.File, error), stat func() (fs.FileInfo, error)) (io.Closer, error) {
	for {
		f, err := open()
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			held := lockedBy(f)
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, held
			}
			return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
		}
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		named, err := stat()
		if err == nil && os.SameFile(mine, named) {
			return fileLock{f}, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// lockedBy asks the kernel who holds the lock of a file: somebody who has to end a run that hangs wants to know which.
// Locks that another machine holds, over a network filesystem, it does not know.
func lockedBy(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return ErrLocked
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	list, err := os.ReadFile("/proc/locks")
	if err != nil || !ok {
		return ErrLocked
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(list)) { // 1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF
		w := strings.Fields(line)
		if len(w) < 6 || w[1] != "FLOCK" || w[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 {
			return &LockedError{PID: pid}
		}
	}
	return ErrLocked
}

func cloneFile(oldName, newName string) error {
	src, err := openOS(oldName, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(newName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return cloneInto(dst, src, func() error { return os.Remove(newName) })
}

// cloneInto makes the new file dst a clone of src, and closes it; one that fails is removed.
func cloneInto(dst *os.File, from File, remove func() error) error {
	src := from.(*osFile).File
	alike(dst, src)
	err := retryEINTR(func() error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) })
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		return nil
	}
	unsupported := isAny(err, unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EPERM)
	err = &os.LinkError{Op: "clone", Old: src.Name(), New: dst.Name(), Err: err}
	if unsupported {
		err = errors.Join(errors.ErrUnsupported, err)
	}
	return errors.Join(err, remove())
}

// noCopyOnWrite is the kernel's FS_NOCOW_FL.
const noCopyOnWrite = 0x00800000

// alike gives the empty file dst the attribute "no copy on write" of src: a btrfs makes no clone of a file that has it into one
// that has not. That it cannot be done is no error: then the clone fails, or does not need it.
func alike(dst, src *os.File) {
	flags, err := unix.IoctlGetUint32(int(src.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&noCopyOnWrite == 0 {
		return
	}
	if have, err := unix.IoctlGetUint32(int(dst.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(dst.Fd()), unix.FS_IOC_SETFLAGS, int(have|noCopyOnWrite))
	}
}

// extentOf asks the filesystem where data begins. A block device, or a filesystem without the call, is all data.
func extentOf(f *os.File, off, n int64) (block.Extent, error) {
	run := func(end int64, k block.Kind) (block.Extent, error) {
		return block.Extent{Range: block.Range{Off: off, Len: min(end-off, n)}, Kind: k}, nil
	}
	data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		info, serr := f.Stat()
		if serr != nil {
			return block.Extent{}, serr
		}
		if !info.Mode().IsRegular() {
			return run(off+n, block.Data)
		}
		return run(off+n, block.Zero) // a hole up to the end, or past it
	case err != nil:
		return run(off+n, block.Data)
	case data > off:
		return run(data, block.Zero)
	}
	hole, err := unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE)
	if err != nil || hole <= off {
		return run(off+n, block.Data)
	}
	return run(hole, block.Data)
}

func zeroFile(f *osFile, off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if n = min(n, size-off); n <= 0 {
		return nil
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	err = retryEINTR(func() error { return unix.Fallocate(int(f.Fd()), mode, off, n) })
	// EINVAL: a block device wants whole sectors.
	if isAny(err, unix.EOPNOTSUPP, unix.ENOSYS, unix.ENODEV, unix.EINVAL) {
		return writeZeros(f, off, n)
	}
	if err != nil {
		return &fs.PathError{Op: "punch hole", Path: f.Name(), Err: err}
	}
	return nil
}

// directMin is the smallest transfer that goes around the page cache, and directAlign what its memory, offset and
// length must be multiples of (the largest logical sector in use).
const (
	directMin   = 16 << 10
	directAlign = 4096
)

// direct is a second descriptor of the same file, with O_DIRECT, opened at its first use. New page-cache pages are
// the dearest thing in a copy (a fault each, then write-back); large aligned transfers have no use for them. The
// kernel keeps the two ways coherent as long as they do not overlap in time.
type direct struct {
	once sync.Once
	f    *os.File // nil: the filesystem cannot
}

// open goes through /proc, not through the file's name: the name may mean another file by now, or none. Errors give the
// file's name all the same: they are for people.
func (d *direct) open(plain *os.File) *os.File {
	d.once.Do(func() {
		flag, err := unix.FcntlInt(plain.Fd(), unix.F_GETFL, 0)
		if err != nil {
			return
		}
		flag = flag&unix.O_ACCMODE | unix.O_DIRECT | unix.O_CLOEXEC
		var fd int
		err = retryEINTR(func() (err error) {
			fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", plain.Fd()), flag, 0)
			return err
		})
		if err == nil {
			d.f = os.NewFile(uintptr(fd), plain.Name())
		}
	})
	return d.f
}

func (d *direct) close() error {
	d.once.Do(func() {})
	if d.f == nil {
		return nil
	}
	return d.f.Close()
}

func aligned(p []byte, off int64) bool {
	return len(p) >= directMin && len(p)%directAlign == 0 && off%directAlign == 0 &&
		uintptr(unsafe.Pointer(unsafe.SliceData(p)))%directAlign == 0
}

// readAt copies from the page cache what is there already, whole, and reads everything else around it. A direct read
// that fails is tried again the plain way, whose answer counts: alignment rules differ between filesystems.
func (d *direct) readAt(plain *os.File, p []byte, off int64) (int, error) {
	if aligned(p, off) && !cached(plain, off, len(p)) {
		if f := d.open(plain); f != nil {
			if n, err := f.ReadAt(p, off); err == nil || err == io.EOF {
				return n, err
			}
		}
	}
	return plain.ReadAt(p, off)
}

// cached says whether the page cache holds the whole range. Asking with preadv2(RWF_NOWAIT) would not do: it starts the
// readahead that fills the cache. Linux before 6.5 cannot tell; then nothing is taken for cached.
func cached(f *os.File, off int64, n int) bool {
	var stat unix.Cachestat_t
	want := unix.CachestatRange{Off: uint64(off), Len: uint64(n)}
	err := unix.Cachestat(uint(f.Fd()), &want, &stat, 0)
	return err == nil && stat.Cache >= uint64(n/os.Getpagesize())
}

func (d *direct) writeAt(plain *os.File, p []byte, off int64) (int, error) {
	if aligned(p, off) {
		if f := d.open(plain); f != nil {
			n, err := f.WriteAt(p, off)
			if err == nil || !errors.Is(err, unix.EINVAL) {
				return n, err
			}
		}
	}
	return plain.WriteAt(p, off)
}

// beginWriting has the kernel write a range to the disk without waiting for it, so that a Sync that follows has little left to
// do. It is a hint: errors turn up in Sync.
func beginWriting(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// TellsWrites knows the local filesystems whose write-back protects the pages of a mapped file, so that the next write to one is
// noticed; see the function TellsWrites. A block device has no times; who asks it counts its writes.
func (f *osFile) TellsWrites() bool {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(f.File.Fd()), &s); err != nil {
		return false
	}
	switch uint32(s.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC: // ext4's is that of ext2 and ext3
		return true
	}
	return false
}

// linkUnsupported says whether a failed link means that it cannot be had here: another filesystem, one without hard
// links, a file with too many, or a rule against links to files of others.
func linkUnsupported(err error) bool {
	return isAny(err, unix.EPERM, unix.EXDEV, unix.EMLINK, unix.EOPNOTSUPP, unix.ENOSYS)
}

func isAny(err error, of ...unix.Errno) bool {
	return slices.ContainsFunc(of, func(no unix.Errno) bool { return errors.Is(err, no) })
}

// retryEINTR repeats a call that a signal interrupted.
func retryEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

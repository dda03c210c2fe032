package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sitrep/internal/block"
)

func stampOf(info fs.FileInfo) Stamp {
	s := Stamp{Size: info.Size(), ModTime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.Device, s.Inode, s.ChangeTime = st.Dev, st.Ino, st.Ctim.Nano()
	}
	return s
}

func makeSparse(*os.File) {} // files are sparse by themselves

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil // the filesystem (some network ones) has no such call and makes names durable by itself
	}
	return errors.Join(err, d.Close())
}

type fileLock struct{ f *os.File }

func (l fileLock) Close() error { return l.f.Close() }

func lockFile(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	return fileLock{f}, nil
}

func cloneFile(oldName, newName string) error {
	src, err := os.Open(oldName)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(newName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		return nil
	}
	rerr := os.Remove(newName)
	for _, no := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EPERM} {
		if errors.Is(err, no) {
			err = errors.ErrUnsupported
			break
		}
	}
	return errors.Join(err, rerr)
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
	err = unix.Fallocate(int(f.Fd()), mode, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENODEV) {
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
	directMin   = 64 << 10
	directAlign = 4096
)

// direct is a second descriptor of the same file, with O_DIRECT, opened at its first use. New page-cache pages are
// the dearest thing in a copy (a fault each, then write-back); large aligned transfers have no use for them. The
// kernel keeps the two ways coherent as long as they do not overlap in time.
type direct struct {
	name  string
	write bool
	once  sync.Once
	f     *os.File // nil: the filesystem cannot
}

func (d *direct) open(plain *os.File) *os.File {
	d.once.Do(func() {
		flag := os.O_RDONLY
		if d.write {
			flag = os.O_RDWR
		}
		f, err := os.OpenFile(d.name, flag|unix.O_DIRECT, 0)
		if err != nil {
			return
		}
		a, aerr := plain.Stat()
		b, berr := f.Stat()
		if aerr != nil || berr != nil || !os.SameFile(a, b) { // the name means another file by now
			f.Close()
			return
		}
		d.f = f
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

// readAt takes what the page cache has, and reads the rest around it.
func (d *direct) readAt(plain *os.File, p []byte, off int64) (int, error) {
	if !aligned(p, off) {
		return plain.ReadAt(p, off)
	}
	done := 0
	for done < len(p) {
		n, err := unix.Preadv2(int(plain.Fd()), [][]byte{p[done:]}, off+int64(done), unix.RWF_NOWAIT)
		if n <= 0 || err != nil {
			break
		}
		done += n
	}
	rest := done &^ (directAlign - 1)
	if done == len(p) {
		return done, nil
	}
	if f := d.open(plain); f != nil {
		n, err := f.ReadAt(p[rest:], off+int64(rest))
		if err == nil || errors.Is(err, io.EOF) {
			return rest + n, err
		}
	}
	n, err := plain.ReadAt(p[done:], off+int64(done))
	return done + n, err
}

func (d *direct) writeAt(plain *os.File, p []byte, off int64) (int, error) {
	if !aligned(p, off) {
		return plain.WriteAt(p, off)
	}
	if f := d.open(plain); f != nil {
		n, err := f.WriteAt(p, off)
		if err == nil || !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	return plain.WriteAt(p, off)
}

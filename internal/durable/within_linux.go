package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// place is a name in an open folder.
type place struct {
	dir  int // descriptor
	base string
	name string // as it was given: for messages
}

func (p place) close() { unix.Close(p.dir) }

func (p place) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: p.name, Err: err}
}

// openPath opens a folder to look for names in it. What is not a folder, a link to one included, is unix.ENOTDIR.
func openPath(dir int, name string, flag int) (fd int, err error) {
	err = retryEINTR(func() (err error) {
		fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|flag, 0)
		return err
	})
	return fd, err
}

// at opens the folder that a name lies in, one part of the path after the other. The place of root itself is ".".
func (w within) at(op, name string) (place, error) {
	p := place{name: name}
	rel, err := w.below(name)
	if err != nil {
		return p, err
	}
	if p.dir, err = openPath(unix.AT_FDCWD, w.root, 0); err != nil {
		return p, p.fail(op, err)
	}
	folder, base := filepath.Split(rel)
	for part := range strings.SplitSeq(strings.TrimSuffix(folder, "/"), "/") {
		if part == "" {
			break
		}
		p.base = part
		if p, err = p.enter(op); err != nil {
			return p, err
		}
	}
	p.base = base
	return p, nil
}

// enter goes from the folder of p into the folder p, and closes the one that it came from.
func (p place) enter(op string) (place, error) {
	defer p.close()
	fd, err := openPath(p.dir, p.base, unix.O_NOFOLLOW)
	if err == unix.ENOTDIR {
		if st, serr := p.stat(); serr == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return p, unsafeFile(p.name, fmt.Sprintf("lies behind a symbolic link (%s), which is not followed", p.base))
		}
	}
	if err != nil {
		return p, p.fail(op, err)
	}
	return place{dir: fd, name: p.name}, nil
}

func (p place) stat() (st unix.Stat_t, err error) {
	err = retryEINTR(func() error { return unix.Fstatat(p.dir, p.base, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err
}

// open opens a file and looks at what it has opened. flag may have O_CREATE.
func (p place) open(w within, flag int, names uint64) (*os.File, error) {
	if flag&os.O_EXCL == 0 { // before anything is opened: to open a device may do something
		st, err := p.stat()
		if err == nil {
			err = w.check(p, &st, names)
		}
		if err != nil && !(flag&os.O_CREATE != 0 && errors.Is(err, fs.ErrNotExist)) {
			return nil, err
		}
	}
	var fd int
	err := retryEINTR(func() (err error) {
		fd, err = unix.Openat(p.dir, p.base, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err == unix.ELOOP {
		return nil, unsafeFile(p.name, "is a symbolic link, which is not followed")
	}
	if err != nil {
		return nil, p.fail("open", err)
	}
	f := os.NewFile(uintptr(fd), p.name)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		err = p.fail("stat", err)
	} else {
		err = w.check(p, &st, names)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// manyNames is a number of names that no file has.
const manyNames = 1 << 32

// check refuses what is not a regular file of ours with at most so many names.
func (w within) check(p place, st *unix.Stat_t, names uint64) error {
	if err := checkRegular(p, st); err != nil {
		return err
	}
	if uint64(st.Nlink) > names {
		return unsafeFile(p.name, fmt.Sprintf("has %d names (hard links): it is also a file somewhere else", st.Nlink))
	}
	if st.Uid == 0 || int(st.Uid) == os.Geteuid() {
		return nil
	}
	var root unix.Stat_t
	if err := unix.Stat(w.root, &root); err != nil {
		return p.fail("stat", err)
	}
	if st.Uid == root.Uid || !tellsOwners(p.dir) {
		return nil
	}
	return unsafeFile(p.name, fmt.Sprintf("belongs to user %d, who is neither the one that runs sitrep (%d) nor the owner of %s (%d)",
		st.Uid, os.Geteuid(), w.root, root.Uid))
}

func checkRegular(p place, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return p.fail("open", unix.EISDIR)
	}
	return unsafeFile(p.name, "is "+kindOf(modeOf(st))+", not a file")
}

// modeOf is the kind of a file, for kindOf.
func modeOf(st *unix.Stat_t) fs.FileMode {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		return fs.ModeDevice
	}
	return fs.ModeIrregular
}

// tellsOwners says whether the filesystem of a folder keeps the owner of each file, for this machine's users.
func tellsOwners(dir int) bool {
	var s unix.Statfs_t
	if err := unix.Fstatfs(dir, &s); err != nil {
		return false
	}
	switch uint32(s.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC,
		unix.OVERLAYFS_SUPER_MAGIC, zfsMagic, bcachefsMagic:
		return true
	}
	return false
}

// Types of filesystems that package unix does not know.
const (
	zfsMagic      = 0x2FC12FC1
	bcachefsMagic = 0xCA451A4E
)

func (w within) open(name string, flag int, names uint64) (File, error) {
	p, err := w.at("open", name)
	if err != nil {
		return nil, err
	}
	defer p.close()
	f, err := p.open(w, flag, names)
	if err != nil {
		return nil, err
	}
	return fileOf(f, flag), nil
}

func (w within) Open(name string) (File, error)       { return w.open(name, os.O_RDONLY, 1) }
func (w within) OpenLinked(name string) (File, error) { return w.open(name, os.O_RDONLY, manyNames) }
func (w within) OpenRW(name string) (File, error)     { return w.open(name, os.O_RDWR, 1) }
func (w within) Create(name string) (File, error) {
	return w.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 1)
}

func (w within) Rename(oldName, newName string) error {
	from, err := w.at("rename", oldName)
	if err != nil {
		return err
	}
	defer from.close()
	to, err := w.at("rename", newName)
	if err != nil {
		return err
	}
	defer to.close()
	st, err := to.stat()
	switch {
	case err == unix.ENOENT:
	case err != nil:
		return to.fail("stat", err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return unsafeFile(newName, "is "+kindOf(modeOf(&st))+" and is not replaced by a file")
	}
	if err := unix.Renameat(from.dir, from.base, to.dir, to.base); err != nil {
		return &os.LinkError{Op: "rename", Old: oldName, New: newName, Err: err}
	}
	return nil
}

// Link takes any file as the old name: a log comes from the folder of its disk.
func (w within) Link(oldName, newName string) error {
	to, err := w.at("link", newName)
	if err != nil {
		return err
	}
	defer to.close()
	if err := unix.Linkat(unix.AT_FDCWD, oldName, to.dir, to.base, 0); err != nil {
		err = &os.LinkError{Op: "link", Old: oldName, New: newName, Err: err}
		if linkUnsupported(err) {
			return errors.Join(errors.ErrUnsupported, err)
		}
		return err
	}
	return nil
}

func (w within) Clone(oldName, newName string) error {
	src, err := w.open(oldName, os.O_RDONLY, 1)
	if err != nil {
		return err
	}
	defer src.Close()
	to, err := w.at("clone", newName)
	if err != nil {
		return err
	}
	defer to.close()
	dst, err := to.open(w, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 1)
	if err != nil {
		return err
	}
	return cloneInto(dst, src, to.remove)
}

func (w within) Remove(name string) error {
	p, err := w.at("remove", name)
	if err != nil {
		return err
	}
	defer p.close()
	if p.base == "." {
		return w.osFS.Remove(w.root)
	}
	return p.remove()
}

// remove removes the name, of whatever kind it is: a link goes, and not what it leads to.
func (p place) remove() error {
	err := unix.Unlinkat(p.dir, p.base, 0)
	if err == unix.EISDIR || err == unix.EPERM {
		if derr := unix.Unlinkat(p.dir, p.base, unix.AT_REMOVEDIR); derr != unix.ENOTDIR {
			err = derr
		}
	}
	if err != nil {
		return p.fail("remove", err)
	}
	return nil
}

// MkdirAll makes root as the operator named it, and each folder below it in the one above.
func (w within) MkdirAll(name string) error {
	rel, err := w.below(name)
	if err != nil {
		return err
	}
	if rel == "." {
		return w.osFS.MkdirAll(w.root)
	}
	parent := filepath.Dir(name)
	p, err := w.at("mkdir", name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = w.MkdirAll(parent); err == nil {
			p, err = w.at("mkdir", name)
		}
	}
	if err != nil {
		return err
	}
	defer p.close()
	st, err := p.stat()
	if err == nil {
		return errors.Join(p.wantFolder(&st), w.syncFound(parent))
	}
	if err := unix.Mkdirat(p.dir, p.base, 0o700); err != nil && err != unix.EEXIST {
		return p.fail("mkdir", err)
	}
	return w.SyncDir(parent)
}

// syncFound is osFS.syncFound for a folder below root.
func (w within) syncFound(parent string) error {
	err := w.SyncDir(parent)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

func (p place) wantFolder(st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return nil
	case unix.S_IFREG:
		return p.fail("mkdir", errors.New("is a file, not a folder"))
	}
	return unsafeFile(p.name, "is "+kindOf(modeOf(st))+", not a folder")
}

// folder opens a folder to list or sync it.
func (w within) folder(op, name string) (*os.File, error) {
	p, err := w.at(op, name)
	if err != nil {
		return nil, err
	}
	defer p.close()
	var fd int
	err = retryEINTR(func() (err error) {
		fd, err = unix.Openat(p.dir, p.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err == unix.ENOTDIR {
		if st, serr := p.stat(); serr == nil {
			err = errors.Join(p.wantFolder(&st), err)
		}
	}
	if err != nil {
		return nil, p.failed(op, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// failed is fail for an error that may say more already.
func (p place) failed(op string, err error) error {
	if no, bare := err.(unix.Errno); bare {
		return p.fail(op, no)
	}
	return err
}

func (w within) ReadDir(name string) ([]Entry, error) {
	d, err := w.folder("open", name)
	if err != nil {
		return nil, err
	}
	return listed(d)
}

// Stat describes a file or a folder; what would not be opened is refused here too.
func (w within) Stat(name string) (Stamp, error) {
	p, err := w.at("stat", name)
	if err != nil {
		return Stamp{}, err
	}
	defer p.close()
	st, err := p.stat()
	if err != nil {
		return Stamp{}, p.fail("stat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := checkRegular(p, &st); err != nil {
			return Stamp{}, err
		}
	}
	return Stamp{Device: st.Dev, Inode: st.Ino, Size: st.Size, ModTime: st.Mtim.Nano(), ChangeTime: st.Ctim.Nano()}, nil
}

func (w within) SyncDir(name string) error {
	d, err := w.folder("open", name)
	if err != nil {
		return err
	}
	return errors.Join(syncFolder(d), d.Close())
}

func (w within) Lock(name string) (io.Closer, error) {
	p, err := w.at("lock", name)
	if err != nil {
		return nil, err
	}
	defer p.close()
	return lockNamed(name,
		func() (*os.File, error) { return p.open(w, os.O_RDWR|os.O_CREATE, 1) },
		func() (fs.FileInfo, error) { return p.info() })
}

// info describes what the name stands for, as os.Lstat does.
func (p place) info() (fs.FileInfo, error) {
	f, err := unix.Openat(p.dir, p.base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, p.fail("stat", err)
	}
	named := os.NewFile(uintptr(f), p.name)
	defer named.Close()
	return named.Stat()
}

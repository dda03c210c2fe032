package inuse

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// QEMU says by locks on single bytes what it does with an image, and what others may: from imageLocks on (block/file-posix.c).
const (
	imageLocks    = 100
	imageLocksLen = 300 - imageLocks
)

func find(path string, _ fs.FileInfo) (*User, error) {
	st, ok := statOf(path)
	if !ok {
		return nil, nil // it is gone by now
	}
	device := st.Mode&unix.S_IFMT == unix.S_IFBLK
	locked, err := imageLocked(path)
	if err != nil {
		return nil, err
	}
	if u := opener(st, device); u != nil {
		if locked {
			u.How = "has it open, with QEMU's image lock"
		}
		return u, nil
	}
	switch {
	case locked:
		return &User{How: "holds QEMU's image lock on it"}, nil
	case device:
		return heldDevice(path, st)
	}
	if u := loopOn(st); u != nil {
		return u, nil
	}
	return written(path)
}

// written asks the kernel itself whether anything has the file open for writing, by asking for a lease to read it: that finds also what
// no process has a descriptor of, such as a mapping, swap, or a target of iSCSI. What this process has open itself tells nothing, and
// neither does a filesystem without leases.
func written(path string) (*User, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, ok := statOf(path)
	if !ok || openHere(st) {
		return nil, nil
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != unix.EAGAIN {
		return nil, nil // the lease ends with f
	}
	if at := mapper(st); at != nil {
		return at, nil
	}
	return &User{How: "has it open for writing: a mapping, swap, or a service of the kernel"}, nil
}

// openHere says whether this process has a file open for writing.
func openHere(want *unix.Stat_t) bool {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return true
	}
	for _, e := range fds {
		var st unix.Stat_t
		fd, err := strconv.Atoi(e.Name())
		if err != nil || unix.Fstat(fd, &st) != nil || !same(want, &st, false) {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
			return true
		}
	}
	return false
}

// mapper finds a process that has the file mapped.
func mapper(want *unix.Stat_t) *User {
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		folder := filepath.Join("/proc", p.Name(), "map_files")
		maps, err := os.ReadDir(folder)
		if err != nil {
			continue
		}
		for _, m := range maps {
			var st unix.Stat_t
			if unix.Stat(filepath.Join(folder, m.Name()), &st) == nil && same(want, &st, false) {
				return &User{PID: pid, Program: program(p.Name()), How: "has it mapped into its memory"}
			}
		}
	}
	return nil
}

func statOf(path string) (*unix.Stat_t, bool) {
	var st unix.Stat_t
	return &st, unix.Stat(path, &st) == nil
}

// imageLocked asks whether anybody holds a lock on the bytes by which QEMU locks images.
func imageLocked(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: imageLocks, Len: imageLocksLen}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, nil // a filesystem without locks
	}
	return l.Type != unix.F_UNLCK, nil
}

// same says whether st is the file, or the device, that is looked for.
func same(want, st *unix.Stat_t, device bool) bool {
	if device {
		return st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == want.Rdev
	}
	return st.Dev == want.Dev && st.Ino == want.Ino
}

// opener finds a process that has the file open.
func opener(want *unix.Stat_t, device bool) *User {
	self := strconv.Itoa(os.Getpid())
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || p.Name() == self {
			continue
		}
		folder := filepath.Join("/proc", p.Name(), "fd")
		fds, err := os.ReadDir(folder)
		if err != nil {
			continue // it has ended, or is another account's
		}
		for _, fd := range fds {
			var st unix.Stat_t
			if unix.Stat(filepath.Join(folder, fd.Name()), &st) == nil && same(want, &st, device) {
				return &User{PID: pid, Program: program(p.Name()), How: "has it open"}
			}
		}
	}
	return nil
}

// program is the name of a process.
func program(pid string) string {
	if exe, err := os.Readlink(filepath.Join("/proc", pid, "exe")); err == nil {
		return filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	}
	comm, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	return strings.TrimSpace(string(comm))
}

// loopOn finds a loop device on the file.
func loopOn(want *unix.Stat_t) *User {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range files {
		dev := "/dev/" + strings.Split(name, "/")[3]
		how := "uses it as " + dev
		if at := mountOf(dev); at != "" {
			how += ", which is mounted at " + at
		}
		u := &User{How: how}
		if f, err := os.Open(dev); err == nil {
			info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
			f.Close()
			if err == nil {
				if info.Inode == want.Ino && info.Device == want.Dev {
					return u
				}
				continue
			}
		}
		backing, err := os.ReadFile(name)
		var st unix.Stat_t
		if err == nil && unix.Stat(strings.TrimSuffix(string(backing), "\n"), &st) == nil && same(want, &st, false) {
			return u
		}
	}
	return nil
}

// heldDevice says what holds a block device exclusively.
func heldDevice(path string, st *unix.Stat_t) (*User, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK, 0)
	if err == nil {
		return nil, f.Close()
	}
	if !errors.Is(err, unix.EBUSY) {
		return nil, err
	}
	sys := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if list, _ := os.ReadDir(sys + "/holders"); len(list) > 0 {
		return &User{How: "holds it: " + list[0].Name()}, nil
	}
	if at := mountOf(path); at != "" {
		return &User{How: "has it mounted at " + at}, nil
	}
	parts, _ := filepath.Glob(sys + "/*/partition")
	for _, p := range parts {
		name := filepath.Base(filepath.Dir(p))
		if at := mountOf("/dev/" + name); at != "" {
			return &User{How: "has its partition " + name + " mounted at " + at}, nil
		}
		if list, _ := os.ReadDir(filepath.Join(filepath.Dir(p), "holders")); len(list) > 0 {
			return &User{How: "holds its partition " + name + ": " + list[0].Name()}, nil
		}
	}
	return &User{How: "has it open exclusively"}, nil
}

// mountOf is where a block device is mounted, "" for nowhere.
func mountOf(dev string) string {
	st, ok := statOf(dev)
	if !ok {
		return ""
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	id := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for in := bufio.NewScanner(f); in.Scan(); {
		if fields := strings.Fields(in.Text()); len(fields) > 4 && fields[2] == id {
			return fields[4]
		}
	}
	return ""
}

// managedSave is where libvirt keeps the memory of VMs that it has saved.
const managedSave = "/var/lib/libvirt/qemu/save"

// Saved is the file with the saved memory of a VM of libvirt, "" when there is none that this account can see: when it is
// started it goes on with what it remembers of its disks.
func Saved(vm string) string {
	path := filepath.Join(managedSave, filepath.Base(vm)+".save")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sitrep/internal/fault"
)

// errNoSocket says that there is no socket of that name.
var errNoSocket = fs.ErrNotExist

func connectionRefused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

func queueIsFull(err error) bool { return errors.Is(err, unix.EAGAIN) }

// maxAddress is the longest path in bytes that an address of a socket can hold.
const maxAddress = 107

// dial connects to a Unix socket. A path that is too long is replaced by one through a descriptor of its folder.
func dial(path string) (net.Conn, error) {
	if len(path) <= maxAddress {
		return net.Dial("unix", path)
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

// folderOf is the working folder of the process at the other end of a socket, "" when it cannot be told.
func folderOf(c net.Conn) string {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ""
	}
	folder := ""
	raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			folder, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", peer.Pid))
		}
	})
	return folder
}

// process is a running QEMU, by a descriptor that never means another process.
type process struct{ pid, fd int }

// processOf returns the process that holds the lock of a pid file, nil when none does.
func processOf(pidFile string) (*process, error) {
	f, err := os.Open(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.FromOS(err)
	}
	defer f.Close()
	pid, err := holder(f)
	if err != nil || pid == 0 {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.HostRefused, err, "process %d cannot be looked at", pid).At(pidFile)
	}
	// If it still holds the lock now, it held it when the descriptor was made: the number meant this process.
	again, err := holder(f)
	if err != nil || again != pid {
		unix.Close(fd)
		return nil, err
	}
	return &process{pid, fd}, nil
}

// holder is the process that holds the lock of the file, 0 when none does.
func holder(f *os.File) (int, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		return 0, fault.FromOS(&fs.PathError{Op: "fcntl", Path: f.Name(), Err: err})
	}
	switch {
	case l.Type == unix.F_UNLCK:
		return 0, nil
	case l.Pid > 0:
		return int(l.Pid), nil
	}
	// A lock of the open file, which names no process: then the file does.
	b := make([]byte, 32)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return 0, fault.FromOS(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 0 {
		return 0, fault.New(fault.HostUnreachable, "the file is locked and names no process").At(f.Name())
	}
	return pid, nil
}

// wait waits for the end of the process, at most for limit. Its files are closed when gone is true.
func (p *process) wait(ctx context.Context, limit time.Duration) (gone bool, err error) {
	const step = 100 * time.Millisecond // how soon the end of ctx is seen
	for deadline := time.Now().Add(limit); ; {
		left := max(0, min(step, time.Until(deadline)))
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int((left+time.Millisecond-1)/time.Millisecond))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return false, fault.FromOS(os.NewSyscallError("poll", err))
		case n > 0:
			return true, nil
		case left == 0:
			return false, nil
		}
		if err := interrupted(ctx); err != nil {
			return false, err
		}
	}
}

func (p *process) kill() error {
	if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func (p *process) close() { unix.Close(p.fd) }

// Package inuse says who uses the file, or the block device, of a disk: before sitrep writes to a disk of a VM that is said to
// be off, or starts a second VM on it, everything that this system can tell is asked.
//
// On Linux that is: the locks of QEMU on the image (of every user, also of machines that share the filesystem, where it carries
// locks), the processes that have it open, loop devices, what has it open for writing without a descriptor (mappings, swap, services
// of the kernel), and, of a block device, what holds it exclusively: a mount, device-mapper, RAID, swap. On Windows it is whether the file can be opened without sharing it. Elsewhere, and of
// processes that the account may not look at, nothing is known; nil means that no user was found.
package inuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// User is who uses a disk.
type User struct {
	PID     int    // 0 when it is no process, or not known
	Program string // its name, "" when not known
	How     string // what says so
}

// String is the user for people, as the subject of a sentence.
func (u User) String() string {
	switch {
	case u.PID != 0 && u.Program != "":
		return fmt.Sprintf("%s (process %d) %s", u.Program, u.PID, u.How)
	case u.PID != 0:
		return fmt.Sprintf("process %d %s", u.PID, u.How)
	}
	return "something on this machine " + u.How
}

// Find looks for somebody else than this process who uses the file or block device; nil when nobody is found, or it is not there.
// It changes nothing.
func Find(path string) (*User, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return find(path, info)
}

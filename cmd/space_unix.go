//go:build !windows

package cmd

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// freeSpace is how many bytes an ordinary user can still write to the volume that a folder is on.
func freeSpace(folder string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// mayWrite fails when nothing can be created in a folder: it is read-only, or another account's.
func mayWrite(folder string) error {
	if err := unix.Access(folder, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "write", Path: folder, Err: err}
	}
	return nil
}

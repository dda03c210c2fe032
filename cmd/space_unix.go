//go:build !windows

package cmd

import "golang.org/x/sys/unix"

// freeSpace is how many bytes an ordinary user can still write to the volume that a folder is on.
func freeSpace(folder string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

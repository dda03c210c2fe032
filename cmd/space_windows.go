package cmd

import "golang.org/x/sys/windows"

// freeSpace is how many bytes an ordinary user can still write to the volume that a folder is on.
func freeSpace(folder string) (int64, error) {
	name, err := windows.UTF16PtrFromString(folder)
	if err != nil {
		return 0, err
	}
	var free uint64
	err = windows.GetDiskFreeSpaceEx(name, &free, nil, nil)
	return int64(free), err
}

// mayWrite knows nothing here: access is decided by lists that only the system can judge.
func mayWrite(string) error { return nil }

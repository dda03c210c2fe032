package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// deviceID names a block device by what stays with it when the system calls it something else: in sysfs, where the drivers
// show it. A partition is named by its disk and its number. "" means that the device has no name.
func deviceID(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return ""
	}
	part := ""
	if n, err := strconv.Atoi(attribute(dir, "partition")); err == nil {
		dir, part = filepath.Dir(dir), fmt.Sprintf("-part%d", n)
	}
	for _, name := range []string{"wwid", "device/wwid", "dm/uuid", "md/uuid", "serial", "device/serial", "loop/backing_file"} {
		if id := attribute(dir, name); id != "" {
			return "device:" + id + part
		}
	}
	return ""
}

// attribute reads a file of sysfs, as one word.
func attribute(dir, name string) string {
	data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(data)), "_")
}

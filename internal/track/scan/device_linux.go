package scan

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// deviceWrites says whether a file is a block device, and how many sectors were written to it since the machine started:
// the seventh number of its stat file (Documentation/admin-guide/iostats.rst of the kernel). The count is 0 when it
// cannot be read, and moves only when a write reaches the device: the device has to be synchronized first.
func deviceWrites(name string) (written uint64, device bool) {
	info, err := os.Stat(name)
	if err != nil || info.Mode()&os.ModeDevice == 0 {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, true
	}
	data, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	fields := strings.Fields(string(data))
	if err != nil || len(fields) < 7 {
		return 0, true
	}
	written, _ = strconv.ParseUint(fields[6], 10, 64) // 0 is "not known"
	return written, true
}

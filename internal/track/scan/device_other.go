//go:build !linux

package scan

import (
	"os"
	"strings"
)

// deviceWrites says whether a file is a device; no count of writes is known here.
func deviceWrites(name string) (written uint64, device bool) {
	if strings.HasPrefix(name, `\\.\`) {
		return 0, true
	}
	info, err := os.Stat(name)
	return 0, err == nil && info.Mode()&os.ModeDevice != 0
}

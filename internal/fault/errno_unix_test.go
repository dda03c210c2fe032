//go:build !windows

package fault_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"sitrep/internal/fault"
)

func TestFromErrno(t *testing.T) {
	for no, want := range map[syscall.Errno]fault.Code{
		syscall.ENOSPC: fault.NoSpace, syscall.EDQUOT: fault.NoSpace, syscall.EIO: fault.IO, syscall.EACCES: fault.Permission,
		syscall.EPERM: fault.Permission, syscall.EROFS: fault.Permission, syscall.ENOENT: fault.NotFound,
		syscall.ENOTDIR: fault.NotFound, syscall.EBUSY: fault.Busy, syscall.ETXTBSY: fault.Busy, syscall.ESTALE: fault.IO,
	} {
		err := fmt.Errorf("a: %w", &os.PathError{Op: "write", Path: "/p", Err: no})
		if got := fault.FromOS(err); got.Code != want {
			t.Errorf("%v (%d) is %s, want %s", no, no, got.Code, want)
		}
	}
}

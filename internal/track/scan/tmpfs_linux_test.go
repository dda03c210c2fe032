package scan_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sitrep/internal/durable"
)

// TestMappedDiskOnTmpfs: a guest whose disk is mapped into its memory, where the filesystem does not notice its writes.
func TestMappedDiskOnTmpfs(t *testing.T) {
	var s unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &s); err != nil || s.Type != unix.TMPFS_MAGIC {
		t.Skip("/dev/shm is no tmpfs")
	}
	dir, err := os.MkdirTemp("/dev/shm", "sitrep-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path, base := filepath.Join(dir, "d.img"), bytes.Repeat([]byte{7}, 1<<20)
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	guest, err := unix.Mmap(int(f.Fd()), 0, len(base), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(guest)
	guest[0] = 8 // the page is dirty from now on, and nothing ever cleans it
	base[0] = 8
	tr, at := rawTracker(t, durable.OS(), filepath.Join(t.TempDir(), "state"), path, base)
	for _, write := range []bool{false, false, true, true} {
		time.Sleep(300 * time.Millisecond) // a filesystem that tells would be certain now
		if write {
			guest[0]++
		}
		c := mustCut(t, tr, at)
		got, err := changes(c, map[string][]byte{"d": base})
		if err != nil || got["d"][0] != guest[0] {
			t.Errorf("the guest's write was missed: %v", err)
		}
		if !write {
			err = c.Confirm(t.Context())
		}
		if err := errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

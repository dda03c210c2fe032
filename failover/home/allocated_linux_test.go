package home_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sitrep/failover/home"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
)

// TestKeepsAllocated: zeros that come home are written: what an original has allocated for its VM is not given away.
func TestKeepsAllocated(t *testing.T) {
	const size = 8 << 20
	for name, shape := range shapes() {
		t.Run(name, func(t *testing.T) {
			dir, fs := t.TempDir(), durable.OS()
			path := filepath.Join(dir, "home")
			create(t, fs, path, shape, bytes.Repeat([]byte{0xA5}, size))
			before := allocated(t, path)
			guest := bytes.Repeat([]byte{0xA5}, size)
			clear(guest[1<<20 : 6<<20])
			guest[3<<20+4096] = 1
			bringTo(t, dir, path, shape.format, guest)
			if after := allocated(t, path); after < before {
				t.Errorf("%d bytes were allocated, and are %d", before, after)
			}
		})
	}
	t.Run("reserved and never written", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "home")
		f := must(os.Create(path))(t)
		defer f.Close()
		if err := syscall.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			t.Skipf("no preallocation here: %v", err)
		}
		must(f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 2<<20))(t)
		before := allocated(t, path)
		guest := make([]byte, size)
		guest[5<<20] = 1
		bringTo(t, dir, path, disk.Raw, guest)
		if after := allocated(t, path); after < before {
			t.Errorf("%d bytes were allocated, and are %d", before, after)
		}
	})
}

// bringTo brings a content home.
func bringTo(t *testing.T, dir, path string, format disk.Format, guest []byte) {
	t.Helper()
	fs := durable.OS()
	create(t, fs, filepath.Join(dir, "recovered"), shapes()["raw"], guest)
	src := open(t, fs, filepath.Join(dir, "recovered"), disk.Raw)
	defer src.Close()
	must(job(fs, filepath.Join(dir, "state"), home.Disk{Name: "os", Source: src, Target: path, Format: format}).Bring(t.Context()))(t)
	if !bytes.Equal(content(t, fs, path, format), guest) {
		t.Fatal("content differs")
	}
}

// allocated is the bytes that a file takes of its volume.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	ok(t, syscall.Stat(path, &st))
	return st.Blocks * 512
}

package home_test

import (
	"bytes"
	"testing"

	"sitrep/failover/home"
	"sitrep/internal/disk"
	"sitrep/internal/durable/crashfs"
)

// TestHuge brings a disk of 8 TiB home that is nearly empty on both sides: it costs what lies on it.
func TestHuge(t *testing.T) {
	const size = 8 << 40
	fs := crashfs.New()
	ok(t, fs.MkdirAll("/v"))
	put := func(path string, p []byte, at ...int64) {
		t.Helper()
		w, err := disk.OpenRW(fs, path, disk.Raw)
		if err != nil {
			w, err = disk.Create(fs, path, disk.Spec{Format: disk.Raw, Size: size})
		}
		ok(t, err)
		for _, off := range at {
			must(w.WriteAt(p, off))(t)
		}
		ok(t, w.Close())
	}
	p := bytes.Repeat([]byte("guest   "), 512)
	put("/v/os", p, 0, 5<<40)
	put("/recovered", p, 0, 3<<40, size-4096)
	for pass := range 2 {
		src := open(t, fs, "/recovered", disk.Raw)
		j := job(fs, "/state", home.Disk{Name: "os", Source: src, Target: "/v/os", Format: disk.Raw})
		j.Again = true
		res := must(j.Bring(t.Context()))(t)[0]
		if res.Read+res.ReadTarget > 16<<20 || pass == 0 && (res.Differs != 3*4096 || res.Data != 2*4096) || pass == 1 && res.Differs != 4096 {
			t.Errorf("pass %d: %+v", pass, res)
		}
		src.Close()
		put("/recovered", p, 7<<40)
	}
	if fs.Allocated() > 64<<20 {
		t.Errorf("%d bytes are taken", fs.Allocated())
	}
	got := make([]byte, 4096)
	d := open(t, fs, "/v/os", disk.Raw)
	defer d.Close()
	for off, want := range map[int64][]byte{0: p, 3 << 40: p, 5 << 40: make([]byte, 4096), 7 << 40: p, size - 4096: p} {
		must(d.ReadAt(got, off))(t)
		if !bytes.Equal(got, want) {
			t.Errorf("content differs at %d", off)
		}
	}
}

package home_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/failover/home"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// TestBlockDevice: an original that is a device needs a folder for its log, and is read in every pass: its times say
// nothing.
func TestBlockDevice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a loop device needs root")
	}
	r := seeded(t)
	dir := t.TempDir()
	backing := filepath.Join(dir, "backing")
	create(t, durable.OS(), backing, shapes()["raw"], make([]byte, 8<<20))
	out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device here: %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	guest := make([]byte, 8<<20)
	d := home.Disk{Name: "os", Target: device, Format: disk.Raw}
	for range 2 {
		scribble(r, guest, 30)
		src := sourceOf(t, durable.OS(), filepath.Join(dir, "recovered"), guest)
		d.Source, d.LogDir = src, ""
		_, err := job(durable.OS(), filepath.Join(dir, "state"), d).Bring(t.Context())
		if !fault.Is(err, fault.DiskUnsupported) {
			t.Errorf("without a folder: %v", err)
		}
		d.LogDir = filepath.Join(dir, "logs")
		j := job(durable.OS(), filepath.Join(dir, "state"), d)
		j.Again = true
		if res := must(j.Bring(t.Context()))(t)[0]; res.BySums {
			t.Errorf("%+v", res)
		}
		if !bytes.Equal(content(t, durable.OS(), device, disk.Raw), guest) {
			t.Error("content differs")
		}
		src.Close()
	}
}

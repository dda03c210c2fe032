package scan_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
	"sitrep/internal/track/tracktest"
)

// xfs mounts a new XFS, which can clone files.
func xfs(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a filesystem needs root")
	}
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		t.Skip("apt-get install xfsprogs")
	}
	image, dir := filepath.Join(t.TempDir(), "xfs"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 400<<20); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.xfs", "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// TestXFS is the contract where the filesystem clones, and that a clone is one.
func TestXFS(t *testing.T) {
	t.Parallel()
	dir := xfs(t)
	t.Run("contract", func(t *testing.T) {
		tracktest.Test(t, func(t *testing.T) tracktest.Fixture {
			sub, err := os.MkdirTemp(dir, "")
			if err != nil {
				t.Fatal(err)
			}
			return fixture(durable.OS(), sub)
		})
	})
	path := filepath.Join(dir, "d.img")
	base := bytes.Repeat([]byte{7}, 1<<20)
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	tr, at := rawTracker(t, durable.OS(), filepath.Join(dir, "state"), path, base)
	time.Sleep(2100 * time.Millisecond) // long enough to be certain
	c := mustCut(t, tr, at)
	if !c.Disks()[0].Frozen() {
		t.Fatal("not frozen")
	}
	if err := modify(path, "write"); err != nil {
		t.Fatal(err)
	}
	got, err := changes(c, map[string][]byte{"d": base})
	if err != nil || !bytes.Equal(got["d"], base) {
		t.Fatalf("the frozen view has changed: %v", err)
	}
	if err := errors.Join(c.Confirm(context.Background()), c.Close()); err != nil {
		t.Fatal(err)
	}
	c = mustCut(t, tr, at)
	if got, err = changes(c, map[string][]byte{"d": base}); err != nil || got["d"][900<<10] != 1 {
		t.Fatalf("the next cut does not have the write: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	testUntouchedByClone(t, path, filepath.Join(dir, "state2"))
}

// testUntouchedByClone: to be cloned does not make a disk look changed.
func testUntouchedByClone(t *testing.T, path, state string) {
	base, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tr, at := rawTracker(t, durable.OS(), state, path, base)
	time.Sleep(2100 * time.Millisecond)
	for round, want := range []bool{false, true, true} {
		c := mustCut(t, tr, at)
		if got := c.Disks()[0].Untouched(); got != want {
			t.Errorf("round %d: untouched %v", round, got)
		}
		if _, err := changes(c, map[string][]byte{"d": base}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.Confirm(context.Background()), c.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMapped: a write through a mapping whose page was dirty before the cut moves the times all the same.
func TestMapped(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.img")
	base := bytes.Repeat([]byte{7}, 1<<20)
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, len(base), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	mem[100] = 1
	tr, at := rawTracker(t, noClones{durable.OS()}, filepath.Join(dir, "state"), path, base)
	c := mustCut(t, tr, at)
	got, err := changes(c, map[string][]byte{"d": base})
	if err != nil || got["d"][100] != 1 {
		t.Fatalf("%v", err)
	}
	mem[100] = 2
	if err := c.Check(context.Background()); !fault.Is(err, fault.DiskModified) {
		t.Errorf("Check: %v", err)
	}
}

// TestDevice: a block device is never known to be untouched, and a write to it is noticed.
func TestDevice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a block device needs root")
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	base := bytes.Repeat([]byte{7}, 1<<20)
	if err := os.WriteFile(image, base, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	a := aging(durable.OS())
	tr, err := scan.Open(a, scan.Config{VM: "vm", Dir: filepath.Join(dir, "state"), Disks: []track.Disk{
		{Name: "d", Path: device, Format: disk.Raw, BlockSize: smallBlock},
	}})
	if err != nil {
		t.Fatal(err)
	}
	at := hrl.Pos{}.Next()
	if err := tr.Rebase(context.Background(), at, map[string]track.Base{"d": memBase(base)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a.age()
		c := mustCut(t, tr, at)
		if c.Disks()[0].Untouched() || c.Disks()[0].Frozen() {
			t.Error("a device is said to be untouched, or frozen")
		}
		got, err := changes(c, map[string][]byte{"d": base})
		if err != nil || !bytes.Equal(got["d"], base) {
			t.Fatalf("%v", err)
		}
		if err := errors.Join(c.Confirm(context.Background()), c.Close()); err != nil {
			t.Fatal(err)
		}
	}
	c := mustCut(t, tr, at)
	if err := modify(device, "write"); err != nil {
		t.Fatal(err)
	}
	if _, err := changes(c, map[string][]byte{"d": base}); !fault.Is(err, fault.DiskModified) {
		t.Errorf("written to while it was read: %v", err)
	}
}

package durable_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sitrep/internal/durable"
)

// TestCloneWithoutCopyOnWrite: what lies in a folder with the attribute C of a btrfs, as images mostly do, is cloned too.
func TestCloneWithoutCopyOnWrite(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a filesystem needs root")
	}
	image, dir := filepath.Join(t.TempDir(), "btrfs"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 200<<20); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.btrfs", "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Skipf("apt-get install btrfs-progs: %v: %v: %s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	path, clone := filepath.Join(dir, "d.img"), filepath.Join(dir, "clone")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chattr", "+C", path).CombinedOutput(); err != nil {
		t.Skipf("chattr: %v: %s", err, out)
	}
	want := bytes.Repeat([]byte("data"), 1<<16)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.OS().Clone(path, clone); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(clone); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

package dir_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
)

// reflinks returns a folder on a filesystem with reflinks, made for the test: XFS in a file.
func reflinks(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("mkfs.xfs is missing: apt-get install xfsprogs")
		}
		t.Skip("mkfs.xfs is missing: apt-get install xfsprogs")
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a filesystem")
	}
	folder := t.TempDir()
	image, mount := filepath.Join(folder, "image"), filepath.Join(folder, "mount")
	check(t, os.WriteFile(image, nil, 0o600))
	check(t, os.Truncate(image, 400<<20))
	check(t, os.Mkdir(mount, 0o700))
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, mount).CombinedOutput(); err != nil {
		t.Skipf("no filesystem can be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return mount
}

func TestContractReflink(t *testing.T) {
	mount := reflinks(t)
	replicatest.TestStore(t, func(t *testing.T) replicatest.Place {
		path, err := os.MkdirTemp(mount, "store")
		check(t, err)
		return func() replica.Store { return dir.New(durable.OS(), path) }
	})
	path := filepath.Join(mount, "store")
	h := replicatest.NewHistory("vm", 1, replicatest.OSLogs(t))
	check(t, errors.Join(story(t.Context(), h, dir.New(durable.OS(), path)), h.Check(t.Context()), h.Close()))
	clones, err := filepath.Glob(filepath.Join(path, "vm/points/*/os.vhd"))
	if err != nil || len(clones) != 1 {
		t.Errorf("the clones are %q (error %v)", clones, err)
	}
}

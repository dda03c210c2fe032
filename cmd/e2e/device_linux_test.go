package e2e_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestBlockDevice protects a block device: its change logs have no folder of the disk to lie in.
func TestBlockDevice(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("a loop device needs root")
	}
	r := newRig(t)
	g := newQEMU(t, r.path("backing", "os.raw"), "raw", 8*mib)
	fillRaw(t, g.path, random(t), 0, 8*mib)
	out, err := exec.Command("losetup", "--find", "--show", g.path).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device here: %v\n%s", err, out)
	}
	g.path = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", g.path).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	m := r.add("web01", map[string]guest{"os": g})
	r.ok("protect", "web01")
	r.same(m)
	for _, args := range [][]string{{"delta", "web01"}, {"delta", "--capture-only", "web01"}} {
		g.put(t, scattered(random(t), 8*mib, 512))
		r.ok(args...)
	}
	g.put(t, scattered(random(t), 8*mib, 512))
	r.ok("delta", "web01")
	r.same(m)
	check(t, os.RemoveAll(r.path(".sitrep"))) // with the folder of the logs
	r.ok("status", "web01")
	r.ok("resync", "web01")
	r.same(m)
	r.ok("unprotect", "web01")
}

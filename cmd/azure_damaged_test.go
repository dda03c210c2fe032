//go:build !windows

package cmd_test

import (
	"bytes"
	"strings"
	"testing"
)

// TestAzureDamagedPoint: of a store that keeps points whole, an old point that is damaged says nothing of the replica. It is neither
// marked nor held up; what is to be done is told with another point; and what runs from one that is whole is not given up for it.
func TestAzureDamagedPoint(t *testing.T) {
	f := newFronted(t, "")
	f.write("site.yaml", append(f.read("site.yaml"), []byte("recovery: {host: dr, hypervisor: none}\n")...))
	f.run(0, "protect", "web01")
	first := bytes.Clone(f.data)
	copy(f.data[1<<20:], randomBytes(3, 64<<10))
	f.disks()
	f.run(0, "delta", "web01", "--now")
	f.forge("data.vhd", 0, randomBytes(4, 4096))
	copy(f.data, randomBytes(5, 512)) // the source does not have any more what was there
	f.disks()
	f.run(0, "resync", "web01", "--now")
	f.same("after the resynchronization")
	f.run(0, "delta", "web01", "--now")
	ids := f.points()
	bad, newest := ids[1], ids[len(ids)-1]

	well := func(what string) {
		t.Helper()
		state, reasons := f.state()
		if state != "replicating" || strings.Contains(reasons, "resync") || !strings.Contains(reasons, "a recovery point is damaged, that of") {
			t.Errorf("after %s the VM is %s: %s", what, state, reasons)
		}
		for line := range strings.Lines(f.run(0, "points", "web01")) {
			if strings.Contains(line, bad) != strings.Contains(line, "damaged") {
				t.Errorf("after %s: %s", what, line)
			}
		}
	}
	told := func(want string, args ...string) {
		t.Helper()
		code, _, errs := f.result(args...)
		for _, w := range []string{"recovery point " + bad + " is damaged", newest, "next:  Choose another one of the list. Then run: sitrep ", want} {
			if !strings.Contains(errs, w) || code != 4 {
				t.Errorf("%v: exit code %d, without %q:\n%s", args, code, w, errs)
			}
		}
	}
	told("points web01", "points", "web01", "--export", bad, "--to", t.TempDir())
	well("an export")
	told("failover test web01 --point "+newest, "failover", "test", "web01", "--point", bad)
	well("a test")
	f.run(0, "failover", "test", "web01", "--point", newest)
	f.run(0, "failover", "cleanup", "web01")
	f.run(0, "delta", "web01", "--now")
	wantWords(t, f.run(0, "verify", "web01"), "recovery point "+bad+" was found to be damaged")
	if code, _, errs := f.result("store", "rename", "web02", "web03"); code != 3 || !strings.Contains(errs, "blobs cannot be renamed") || !strings.Contains(errs, "its old name web02") {
		t.Errorf("store rename: exit code %d\n%s", code, errs)
	}
	if got := f.exportedDisk(ids[0], "data", len(first)); !bytes.Equal(got, first) {
		t.Error("the oldest point is another disk")
	}

	f.run(0, "failover", "unplanned", "web01", "--no-shutdown")
	if out := f.run(0, "failover", "unplanned", "web01", "--point", bad, "--dry-run"); !strings.Contains(out, "Prove the recovery point: read 2 disks of point "+bad) {
		t.Errorf("the plan is %s", out)
	}
	ran := f.read("recovered/web01/data.vhd")
	told("failover unplanned web01 --point ", "failover", "unplanned", "web01", "--point", bad)
	if state, _ := f.state(); state != "failed-over" || !bytes.Equal(f.read("recovered/web01/data.vhd"), ran) {
		t.Errorf("the VM is %s, or has other disks", state)
	}
	f.run(0, "failover", "unplanned", "web01", "--point", ids[0])
	f.run(0, "failover", "undo", "web01")
}

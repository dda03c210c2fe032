package cmd

import (
	"strings"
	"syscall"
	"testing"

	"sitrep/internal/durable/crashfs"
)

// mount takes the store away, or brings it back.
func (m *rig) mount(there bool) {
	m.t.Helper()
	if there {
		if err := m.fs.Remove("/store"); err != nil {
			m.t.Fatal(err)
		}
		m.rename("/srv/store", "/store")
		return
	}
	m.rename("/store", "/srv/store")
	if err := m.fs.MkdirAll("/store"); err != nil {
		m.t.Fatal(err)
	}
}

// TestProtectWhileStoreAway: a second protect would be refused; of a VM whose initial copy is not complete it goes on.
func TestProtectWhileStoreAway(t *testing.T) {
	for _, x := range []struct{ first, next string }{
		{"protect web01", "delta web01 --now"},
		{"protect --later web01", "protect web01"},
	} {
		t.Run(x.first, func(t *testing.T) {
			m := newRig(t, "auto_resync: false")
			m.must(0, strings.Fields(x.first)...)
			m.mount(false)
			_, stderr := m.must(1, "protect", "web01")
			next := command(stderr)
			if strings.Join(next, " ") != x.next {
				t.Fatalf("the next step is %q, want %q:\n%s", next, x.next, stderr)
			}
			m.mount(true)
			m.must(0, next...)
			m.same()
		})
	}
}

// TestStoreFull: whatever run meets it, an operator reads that the volume is full, how much is needed, and that nothing is lost.
func TestStoreFull(t *testing.T) {
	m := newRig(t, "auto_resync: false, source_reserve: off")
	m.must(0, "protect", "web01")
	for i := range 3 {
		m.write("os", int64(i)<<15, 8192, 70+byte(i))
		m.fs.SetCapacity(m.fs.Allocated() + 48<<10)
		m.fs.FailOn(func(op crashfs.Op) error {
			if strings.HasPrefix(op.Name, "/store/web01/") && op.Kind == crashfs.Write {
				return syscall.ENOSPC
			}
			return nil
		})
		stdout, stderr := m.must(1, "delta", "web01", "--now")
		m.fs.FailOn(nil)
		all := stdout + stderr
		for _, want := range []string{"volume of the store has", "free", "kept beside the disks", "need up to", "Free space", "delta web01 --now"} {
			if !strings.Contains(all, want) {
				t.Errorf("run %d: no %q in\n%s", i, want, all)
			}
		}
		if strings.Contains(all, "out of reach") {
			t.Errorf("run %d: the store is there:\n%s", i, all)
		}
		if m.fs.SetCapacity(0); testing.Verbose() {
			t.Log(all)
		}
	}
	m.must(0, "delta", "web01", "--now")
	m.same()
}

// TestCheckCannotLook: a VM that cannot be looked at is not said to be well.
func TestCheckCannotLook(t *testing.T) {
	for _, x := range []struct {
		under string
		code  int // of status
	}{{"/.sitrep/vms/", 4}, {"/store/web01/os.", 4}, {"/store/web01/ledger.json", 4}} {
		t.Run(x.under, func(t *testing.T) {
			m := newRig(t, "auto_resync: false")
			m.must(0, "protect", "web01")
			m.fs.FailOn(func(op crashfs.Op) error {
				if strings.HasPrefix(op.Name, x.under) {
					return syscall.EACCES
				}
				return nil
			})
			stdout, _ := m.must(2, "status", "--check")
			if !strings.HasPrefix(stdout, "CRITICAL - web01: ") || !strings.Contains(stdout, x.under) {
				t.Errorf("%s", stdout)
			}
			m.must(x.code, "status")
		})
	}
}

// TestProtectWithoutMemory: a protect stops at each change of the ledger in turn, and the site's memory is lost then. The same command
// completes it.
func TestProtectWithoutMemory(t *testing.T) {
	for n, seeding := 1, 0; ; n++ {
		m := newRig(t, "auto_resync: false")
		left := n
		m.fs.FailOn(func(op crashfs.Op) error {
			if op.Kind == crashfs.Rename && op.To == "/store/web01/ledger.json" {
				if left--; left < 0 {
					return syscall.EIO
				}
			}
			return nil
		})
		code, _, _ := m.run("protect", "web01")
		m.fs.FailOn(nil)
		if code == 0 {
			if seeding < 3 {
				t.Errorf("%d states of a protect that was cut off", seeding)
			}
			return
		}
		seeding++
		m.rename("/.sitrep", "/gone")
		m.write("os", 0, 4096, 90)
		m.must(0, "protect", "web01")
		m.same()
		m.must(0, "delta", "web01", "--now")
	}
}

// TestFullStore: a volume without any room, for a lock either, still gives all that only looks: what that records waits on this machine.
func TestFullStore(t *testing.T) {
	for name, full := range map[string]func(crashfs.Kind) bool{
		"for data":     func(k crashfs.Kind) bool { return k == crashfs.Write },
		"for anything": crashfs.Kind.Changes,
	} {
		t.Run(name, func(t *testing.T) {
			m := newRig(t, "copy_frequency: 5m")
			m.must(0, "protect", "web01")
			m.fs.FailOn(func(op crashfs.Op) error {
				if strings.HasPrefix(op.Name, "/store/") && full(op.Kind) {
					return syscall.ENOSPC
				}
				return nil
			})
			if out, _ := m.must(0, "verify", "web01"); !strings.Contains(out, "the store cannot be written to") {
				t.Error(out)
			}
			m.must(0, "points", "web01", "--export", "latest", "--to", "/out")
			m.must(0, "failover", "test", "web01")
			if out, _ := m.must(0, "status", "web01"); !strings.Contains(out, "a test failover") {
				t.Error(out)
			}
			m.must(0, "failover", "cleanup", "web01")
			m.must(1, "failover", "unplanned", "web01") // who owns the VM is in the store or nowhere
			m.must(0, "failover", "test", "web01")
			m.fs.FailOn(nil)
			m.write("os", 0, 4096, 9)
			m.must(0, "delta", "web01", "--now")
			if out, _ := m.must(0, "status", "web01"); !strings.Contains(out, "a test failover") {
				t.Error(out)
			}
			m.must(0, "failover", "cleanup", "web01")
			m.must(0, "status", "--check")
			m.must(0, "verify", "web01")
		})
	}
}

// TestOtherVaultsReplica: a VM whose name another vault's VM has in the same store is not replicated, whatever lies there, and is not said
// to be.
func TestOtherVaultsReplica(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	site := string(readAll(t, m.fs, "/site.yaml"))
	if err := m.fs.Remove("/site.yaml"); err != nil {
		t.Fatal(err)
	}
	writeAll(t, m.fs, "/site.yaml", []byte(strings.Replace(site, "vault: test", "vault: other", 1)))
	m.must(6, "delta", "web01", "--now")
	if out, _ := m.must(2, "status", "--check"); !strings.HasPrefix(out, `CRITICAL - web01: the VM is not replicated: the replica belongs to vault "test"`) {
		t.Error(out)
	}
	out, _ := m.must(0, "status")
	if !strings.Contains(out, "not-protected") || strings.Contains(out, "replicating") {
		t.Error(out)
	}
	o := m.object("status", "web01")
	if o["state"] != "not-protected" || o["health"] != "Critical" || o["reasons"].([]any)[0].(map[string]any)["code"] != "other-vault" {
		t.Error(o)
	}
	if out, _ := m.must(0, "why", "web01"); !strings.Contains(out, "other-vault") || !strings.Contains(out, "store list") {
		t.Error(out)
	}
	m.must(0, "store", "list")
}

// TestResyncOfShrunkDisk: what cannot be compared is refused before the ledger says that a resynchronization was begun, which only another
// one would end.
func TestResyncOfShrunkDisk(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	data := readAll(t, m.fs, "/disks/data.raw")
	m.rename("/disks/data.raw", "/srv/data.raw")
	writeAll(t, m.fs, "/disks/data.raw", data[:len(data)/2])
	_, stderr := m.must(4, "resync", "web01", "--now")
	if !strings.Contains(stderr, "its replica has") {
		t.Error(stderr)
	}
	if out, _ := m.must(0, "store", "list"); strings.Contains(out, "resynchronizing") {
		t.Errorf("it was begun: %s", out)
	}
	m.rename("/srv/data.raw", "/disks/data.raw")
	m.must(0, "resume", "web01")
	m.must(0, "delta", "web01")
	m.must(0, "status", "--check")
}

package cmd

import (
	"strings"
	"testing"
	"time"
)

// TestRunAgain: a command that was killed when all was done, before it could say so, succeeds when it is run again; and one that has
// nothing to be done again is refused as before.
func TestRunAgain(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "unprotect", "web01")
	m.must(6, "failover", "commit", "web01")
	for _, args := range [][]string{
		{"protect", "web01"},
		{"failover", "planned", "web01"}, {"failover", "undo", "web01"},
		{"failover", "unplanned", "web01"}, {"failover", "commit", "web01"}, {"failback", "web01"}, {"failover", "commit", "web01"},
		{"unprotect", "web01"},
	} {
		m.must(0, args...)
		out, _ := m.must(0, args...)
		if !strings.Contains(out, "already") && !strings.Contains(out, "nothing is to be done") {
			t.Errorf("%v, run again: %s", args, out)
		}
	}
	m.must(0, "protect", "web01")
	m.must(6, "failover", "cleanup", "web01")
	m.must(6, "failover", "undo", "web01")
	m.must(0, "failover", "test", "web01")
	m.must(6, "failover", "test", "web01") // which would be taken for one of the newest point
	m.must(0, "failover", "cleanup", "web01")
	m.must(0, "failover", "cleanup", "web01")
	m.must(6, "failover", "commit", "web01")
}

// TestNobodyStartsIt: where no host is given, what was done names who starts the VM, and no time is claimed.
func TestNobodyStartsIt(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	for _, step := range []struct {
		args []string
		says string
	}{
		{[]string{"failover", "planned", "web01"}, "nobody has started the VM: start it from these disks"},
		{[]string{"status", "web01"}, "nobody has started the VM, RPO"},
		{[]string{"failover", "undo", "web01"}, "nobody has started the VM at its source"},
		{[]string{"failover", "unplanned", "web01"}, "nobody has started the VM"},
		{[]string{"failover", "commit", "web01"}, "committed"},
		{[]string{"failback", "web01"}, "nobody has started the VM at home"},
	} {
		out, _ := m.must(0, step.args...)
		if !strings.Contains(out, step.says) || strings.Contains(out, "RTO") || strings.Contains(out, "downtime") || strings.Contains(out, ", in ") {
			t.Errorf("%v: %s", step.args, out)
		}
		if step.args[1] == "planned" && strings.Contains(out, "failover to recovery point") {
			t.Errorf("the point is not taken yet: %s", out)
		}
	}
}

// TestQuietVM: a VM that wrote nothing since its newest point has lost what came after the last delta, and not what came after the point.
func TestQuietVM(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	for range 12 {
		m.later()
		m.must(0, "delta", "web01")
	}
	m.now = m.now.Add(time.Minute)
	m.must(0, "failover", "test", "web01")
	if o := m.object("status", "web01")["test_failover"].(map[string]any); o["rpo_seconds"] != 60.0 {
		t.Errorf("the test: %v", o)
	}
	m.must(0, "failover", "cleanup", "web01")
	m.rename("/disks/os.raw", "/disks/gone") // and the source with it
	out, _ := m.must(0, "failover", "unplanned", "web01")
	if !strings.Contains(out, "lost: 1 min 0 s of changes") {
		t.Error(out)
	}
	m.must(0, "failover", "undo", "web01")
	m.rename("/disks/gone", "/disks/os.raw")
	m.write("os", 0, 4096, 7)
	m.must(0, "delta", "web01", "--now")
	ids, _ := m.pointIDs()
	out, _ = m.must(0, "failover", "unplanned", "web01", "--point", ids[0])
	if !strings.Contains(out, "lost: 1 h 1 min of changes") {
		t.Errorf("an older point: %s", out)
	}
}

// TestNobodyStartsThePlan: a failback by a plan names who starts the VMs at home, as that of a VM does.
func TestNobodyStartsThePlan(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	site := string(readAll(t, m.fs, "/site.yaml"))
	if err := m.fs.Remove("/site.yaml"); err != nil {
		t.Fatal(err)
	}
	writeAll(t, m.fs, "/site.yaml", []byte(site+"recovery_plans: [{name: shop, groups: [{vms: [web01]}]}]\n"))
	m.must(0, "protect", "web01")
	m.must(0, "failover", "planned", "--plan", "shop")
	m.must(0, "failover", "commit", "--plan", "shop")
	out, _ := m.must(0, "failback", "--plan", "shop")
	if !strings.Contains(out, "web01: nobody has started the VM at home: start it there, and then commit") || !strings.Contains(out, "brought home") {
		t.Error(out)
	}
}

package cmd

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
)

// TestMonitorMayNotRead: a monitoring user that may not read the state folder or the site file gets one line that says so and what to do, as
// UNKNOWN and not as an alarm about VMs.
func TestMonitorMayNotRead(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	for _, under := range []string{"/.sitrep/", "/site.yaml"} {
		m.fs.FailOn(func(op crashfs.Op) error {
			if strings.HasPrefix(op.Name, under) {
				return syscall.EACCES
			}
			return nil
		})
		out, _ := m.must(3, "status", "--check")
		if !strings.HasPrefix(out, "UNKNOWN - "+under) || !strings.Contains(out, "run the check as the account that replicates") || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: %s", under, out)
		}
	}
	m.fs.FailOn(nil)
	m.must(0, "status", "--check")
	m.rename("/site.yaml", "/srv/site.yaml")
	out, _ := m.must(2, "status", "--check")
	if !strings.HasPrefix(out, "CRITICAL - /site.yaml: there is no site file") || strings.Count(out, "\n") != 1 {
		t.Error(out)
	}
}

// TestSentBytesAreCounted: the bytes that jobs have moved only grow.
func TestSentBytesAreCounted(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	first, _ := m.object("status", "web01")["bytes_sent_total"].(float64)
	m.write("os", 0, 8192, 9)
	m.now = m.now.Add(5 * time.Minute)
	m.must(0, "delta", "web01")
	second, _ := m.object("status", "web01")["bytes_sent_total"].(float64)
	if first < 256<<10 || second < first+8192 || second > first+60000 {
		t.Errorf("%v bytes, and %v after a delta of 8192", first, second)
	}
	out, _ := m.must(0, "status", "--prometheus", "-")
	if !strings.Contains(out, "# TYPE sitrep_vm_sent_bytes_total counter\nsitrep_vm_sent_bytes_total{vm=\"web01\",vault=\"test\"} "+number(second)+"\n") {
		t.Error(out)
	}
}

package cmd

import (
	"testing"
	"time"
)

// TestApplyElsewhereForgetsLogs: logs that another machine has applied are removed beside the disks by the next delta, and never count
// against the limit of the policy, however much is written in all.
func TestApplyElsewhereForgetsLogs(t *testing.T) {
	m := newRig(t, "apply: elsewhere, log_limit_percent: 50")
	m.must(0, "protect", "web01")
	for i := range 8 {
		m.now = m.now.Add(5 * time.Minute)
		m.write("os", int64(i)*(24<<10), 24<<10, byte(10+i))
		delta := m.object("delta", "web01")
		if sent, _ := delta["bytes_sent"].(float64); sent < 24<<10 {
			t.Errorf("delta %d says that %v bytes were sent", i, delta["bytes_sent"])
		}
		if names, _ := m.logs("web01.os."); len(names) != 1 {
			t.Errorf("delta %d leaves %v", i, names)
		}
		if i%2 == 1 { // a capture alone knows from the ledger what was applied
			m.must(0, "--state", "/other", "apply", "web01")
			m.write("os", int64(i)*(24<<10), 4<<10, byte(100+i))
			m.must(0, "delta", "web01", "--capture-only")
			m.must(0, "delta", "web01")
		}
		m.must(0, "--state", "/other", "apply", "web01")
	}
	m.same()
	if status := m.object("status", "web01"); status["state"] != "replicating" || status["marked"] != nil {
		t.Errorf("%v", status)
	}
}

// TestAppliedElsewhereInMemory: what this site knows to be applied does not count while the store is away either.
func TestAppliedElsewhereInMemory(t *testing.T) {
	m := newRig(t, "apply: elsewhere, log_limit_percent: 50")
	m.must(0, "protect", "web01")
	m.write("os", 0, 100<<10, 7)
	m.must(0, "delta", "web01")
	m.must(0, "apply", "web01")
	m.rename("/store", "/away")
	m.write("os", 0, 100<<10, 8)
	m.must(1, "delta", "web01", "--now")
	m.rename("/away", "/store")
	if status := m.object("status", "web01"); status["state"] != "replicating" {
		t.Errorf("%v", status)
	}
}

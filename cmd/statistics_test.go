package cmd

import (
	"strings"
	"testing"
	"time"
)

// missedCycles is a rig whose VM is protected, and of whose cycles most were missed.
func missedCycles(t *testing.T) *rig {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	m.now = m.now.Add(50 * time.Minute)
	if o := m.object("status", "web01"); o["health"] != healthWarning || o["next_action"] != "sitrep delta web01" {
		t.Fatalf("%v, %v: %v", o["health"], o["next_action"], o["health_reasons"])
	}
	m.must(0, "delta", "web01")
	return m
}

// TestMissedCyclesEnd: the Warning for missed cycles ends with four in a row that were not missed, with the interval, or with a reset of the
// statistics, which is the command that it names.
func TestMissedCyclesEnd(t *testing.T) {
	for name, c := range map[string]struct {
		until func(*rig)
	}{
		"four in a row": {func(m *rig) {
			for range 3 {
				if o := m.object("status", "web01"); o["health"] != healthWarning {
					t.Errorf("%v before four cycles in a row", o["health"])
				}
				m.now = m.now.Add(5 * time.Minute)
				m.must(0, "delta", "web01")
			}
		}},
		"interval": {func(m *rig) {
			m.now = time.Date(2026, 3, 16, 20, 59, 0, 0, m.now.Location())
			m.must(0, "delta", "web01")
			if o := m.object("status", "web01"); o["health"] != healthWarning {
				t.Errorf("%v before the end of the interval", o["health"])
			}
			m.now = m.now.Add(2 * time.Minute)
		}},
		"reset": {func(m *rig) {
			next, _ := m.object("status", "web01")["next_action"].(string)
			if next != "sitrep status --reset-statistics web01" {
				t.Fatalf("next is %q", next)
			}
			m.must(0, strings.Fields(next)[1:]...)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := missedCycles(t)
			c.until(m)
			if o := m.object("status", "web01"); o["health"] != healthNormal || o["next_action"] != "" {
				t.Errorf("%v, %v: %v", o["health"], o["next_action"], o["health_reasons"])
			}
		})
	}
}

// TestEveryOtherCycleMissed: cycles that come and go stay a Warning.
func TestEveryOtherCycleMissed(t *testing.T) {
	m := missedCycles(t)
	for i := range 12 {
		m.now = m.now.Add(5 * time.Minute)
		if i%3 == 2 {
			m.now = m.now.Add(5 * time.Minute)
		}
		m.must(0, "delta", "web01")
		if o := m.object("status", "web01"); o["health"] != healthWarning {
			t.Fatalf("cycle %d: %v", i, o["health"])
		}
	}
}

// TestResetStatistics: the counters begin again, with a job and the time on record; the current interval is printed without an end that is
// still to come.
func TestResetStatistics(t *testing.T) {
	m := missedCycles(t)
	m.must(2, "status", "--reset-statistics")
	m.must(2, "status", "--reset-statistics", "--all", "--check")
	m.must(0, "status", "--reset-statistics", "web01", "--dry-run")
	if o := m.object("status", "web01"); o["health"] != healthWarning {
		t.Errorf("a dry run has reset: %v", o["health"])
	}
	m.now = m.now.Add(time.Second)
	m.must(0, "status", "--reset-statistics", "--all")
	if out, _ := m.must(0, "jobs", "--limit", "1"); !strings.Contains(out, "Reset statistics") || !strings.Contains(out, "Succeeded") {
		t.Error(out)
	}
	out, _ := m.must(0, "status", "web01")
	for _, want := range []string{"since 2026-03-16T11:50:01Z: 0 completed, 0 missed, 0 failed", "counted anew  since 2026-03-16T11:50:01Z"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
	if strings.Contains(out, "20:00:00Z") {
		t.Errorf("an end that is to come: %s", out)
	}
	m.now = m.now.Add(5 * time.Minute)
	m.must(0, "delta", "web01")
	if out, _ := m.must(0, "status", "web01"); !strings.Contains(out, "1 completed, 0 missed") {
		t.Error(out)
	}
	m.must(0, "unprotect", "web01")
	m.must(6, "status", "--reset-statistics", "web01")
	m.must(0, "status", "--reset-statistics", "--all")
}

// TestNothingIsMissedAtRest: while the VM is not to be replicated no cycle is missed.
func TestNothingIsMissedAtRest(t *testing.T) {
	for _, c := range [][2]string{
		{"pause web01", "resume web01"},
		{"failover unplanned web01", "failover undo web01"},
		{"failover planned web01", "failover commit web01, failback web01, failover commit web01"},
	} {
		m := newRig(t, "copy_frequency: 5m")
		m.must(0, "protect", "--later", "web01")
		m.now = m.now.Add(time.Hour) // its initial copy takes its time
		m.must(0, "replicate", "web01")
		m.now = m.now.Add(time.Minute)
		m.must(0, strings.Fields(c[0])...)
		m.now = m.now.Add(3 * time.Hour)
		m.must(0, "delta", "--all")
		for back := range strings.SplitSeq(c[1], ", ") {
			m.must(0, strings.Fields(back)...)
		}
		m.now = m.now.Add(5 * time.Minute)
		m.must(0, "delta", "web01")
		if out, _ := m.must(0, "status", "web01"); !strings.Contains(out, "1 completed, 0 missed") {
			t.Errorf("%v: %s", c, out)
		}
		if o := m.object("status", "web01"); o["health"] != healthNormal {
			t.Errorf("%v: %v %v", c, o["health"], o["health_reasons"])
		}
	}
}

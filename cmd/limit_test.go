package cmd

import (
	"strings"
	"testing"
	"time"
)

// took is how long, by the rig's clock, a command line takes that has to succeed.
func (m *rig) took(args ...string) time.Duration {
	m.t.Helper()
	began := m.now
	m.must(0, args...)
	return m.now.Sub(began)
}

func wantAbout(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want-10*time.Millisecond || got > want+want/20+10*time.Millisecond {
		t.Errorf("%s took %s, want about %s", what, got, want)
	}
}

// TestBandwidth: what is sent takes the time that the policy's limit gives it, all disks together, unless the command line
// says otherwise; and a dry run says so before.
func TestBandwidth(t *testing.T) {
	m := newRig(t, "bandwidth: 64KiB")
	plan := m.object("protect", "web01", "--dry-run")
	if s, ok := plan["estimated_seconds"].(float64); !ok || s != 8 {
		t.Errorf("the plan says %v seconds", plan["estimated_seconds"])
	}
	wantAbout(t, "the initial copy of 512 KiB", m.took("protect", "web01"), 8*time.Second)
	m.same()

	m.write("os", 0, 128<<10, 9)
	if s, ok := m.object("delta", "web01", "--dry-run")["estimated_seconds"].(float64); !ok || s < 2 || s > 2.2 {
		t.Errorf("the plan of the delta says %v seconds", s)
	}
	// the store has the same filesystem, so the log is linked; its content is written into the pages
	wantAbout(t, "a delta of 128 KiB", m.took("delta", "web01"), 2*time.Second)
	m.same()

	m.write("os", 0, 128<<10, 10)
	wantAbout(t, "a delta at another rate", m.took("delta", "web01", "--bandwidth", "1024kbit"), time.Second)
	m.write("os", 0, 128<<10, 11)
	wantAbout(t, "a delta without a limit", m.took("delta", "web01", "--bandwidth", "off"), 0)
	m.write("data", 0, 64<<10, 12)
	wantAbout(t, "a resynchronization", m.took("resync", "web01"), time.Second)
	m.same()
}

// TestBandwidthByTheClock: a limit that ends in the middle of a transfer holds up nothing afterwards.
func TestBandwidthByTheClock(t *testing.T) {
	m := newRig(t, `bandwidth: "07:00,1KiB 12:01,off"`)
	wantAbout(t, "the initial copy", m.took("protect", "web01"), time.Minute) // it is noon
	m.same()
}

// TestBandwidthBesideTheStore: what runs beside the store does not send over the line that the policy limits.
func TestBandwidthBesideTheStore(t *testing.T) {
	m := newRig(t, "apply: elsewhere, log_limit_percent: 100, bandwidth: 64KiB")
	m.must(0, "protect", "web01")
	m.write("os", 0, 64<<10, 9)
	m.must(0, "delta", "web01")
	wantAbout(t, "an apply beside the store", m.took("apply", "web01"), 0)
	m.same()
	m.write("os", 0, 64<<10, 10)
	m.must(0, "delta", "web01")
	wantAbout(t, "an apply that is told to be slow", m.took("apply", "web01", "--bandwidth", "64KiB"), time.Second)
	m.same()
}

func TestBandwidthUsage(t *testing.T) {
	m := newRig(t, "")
	for _, rate := range []string{"", "fast", "20", "0Mbit", "20mbit"} {
		if _, stderr := m.must(2, "protect", "web01", "--bandwidth", rate); !strings.Contains(stderr, "20Mbit") {
			t.Errorf("%q: %s", rate, stderr)
		}
	}
	if stdout, _ := m.must(0, "check", "web01", "--bandwidth", "07:00,20Mbit 19:00,off"); strings.Contains(stdout, "bandwidth") {
		t.Error(stdout)
	}
}

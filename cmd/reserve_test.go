package cmd

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"sitrep/internal/site"
)

// TestSourceReserve: change logs leave alone what the policy keeps of the volume of a source disk, also when that turns out in the middle
// of a cut; nothing is left of the logs, it is told, and the next run goes on when there is room.
func TestSourceReserve(t *testing.T) {
	for name, c := range map[string]struct{ room, change int64 }{
		"before the first byte": {200 << 10, 100 << 10}, "in the middle": {8 << 20, 12 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			m := newRig(t, "log_limit_percent: 100, source_reserve: 150KiB, massive_change: off")
			writeAll(t, m.fs, "/disks/os.raw", bytes.Repeat([]byte{1, 2, 3, 4}, 4<<20))
			m.must(0, "protect", "web01")
			m.write("os", 0, int(c.change), 9)
			m.fs.SetCapacity(m.fs.Allocated() + c.room)
			_, stderr := m.must(1, "delta", "web01")
			if !strings.Contains(stderr, "/disks") || !strings.Contains(stderr, "153600 are kept for the VM") {
				t.Error(stderr)
			}
			if names, _ := m.logs(""); len(names) != 0 {
				t.Errorf("%v are left", names)
			}
			o := m.object("status", "web01")
			if o["health"] != healthWarning || o["last_error"].(map[string]any)["code"] != "source-reserve" {
				t.Errorf("%v", o)
			}
			m.fs.SetCapacity(0)
			m.must(0, "delta", "web01", "--now")
			m.same()
		})
	}
}

// TestDiskAwayForAMoment: a source disk that was away needs nobody to say that it is back, and --now looks whatever has stopped the VM.
func TestDiskAwayForAMoment(t *testing.T) {
	m := newRig(t, "log_limit_percent: 100")
	m.must(0, "protect", "web01")
	m.rename("/disks", "/away")
	m.must(4, "delta", "web01")
	m.must(4, "delta", "web01")
	m.rename("/away", "/disks")
	m.write("os", 0, 4096, 9)
	m.must(0, "delta", "web01")
	m.must(0, "status", "--check")
	m.same()
	m.rename("/disks", "/away")
	m.must(4, "delta", "web01", "--now")
	m.rename("/away", "/disks")
	m.must(0, "delta", "web01", "--now")
	m.must(0, "status", "--check")
}

// TestConsistentDue: an application-consistent point is taken by the run that is nearest to its time.
func TestConsistentDue(t *testing.T) {
	now := time.Date(2026, 3, 16, 12, 0, 0, 0, time.UTC)
	p := &site.Policy{CopyFrequency: 30 * time.Second, AppConsistentEvery: 30 * time.Second}
	hourly := &site.Policy{CopyFrequency: 5 * time.Minute, AppConsistentEvery: time.Hour}
	for _, c := range []struct {
		p    *site.Policy
		ago  time.Duration
		want bool
	}{
		{p, 30 * time.Second, true}, {p, 28 * time.Second, true}, {p, 10 * time.Second, false}, {p, -24 * time.Hour, true},
		{hourly, time.Hour - 2*time.Second, true}, {hourly, 55 * time.Minute, false}, {hourly, 61 * time.Minute, true}, {hourly, -30 * time.Second, false},
	} {
		if got := consistentDue(now, now.Add(-c.ago), c.p); got != c.want {
			t.Errorf("%s ago, every %s: %v", c.ago, c.p.AppConsistentEvery, got)
		}
	}
}

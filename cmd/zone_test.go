package cmd

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

var clockTimes = regexp.MustCompile(`\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?`)

// TestTimesHaveZones: every time of day that an operator reads has its zone, in the hour too that is there twice, and is taken back as it was
// printed.
func TestTimesHaveZones(t *testing.T) {
	m := newRig(t, "")
	m.now = time.Date(2026, 10, 24, 22, 0, 0, 0, m.now.Location())
	var printed []string
	look := func(want int, args ...string) string {
		t.Helper()
		stdout, stderr := m.must(want, args...)
		for _, x := range clockTimes.FindAllStringSubmatch(stdout+stderr, -1) {
			if x[2] == "" {
				t.Errorf("%v: %s has no zone in\n%s%s", args, x[0], stdout, stderr)
			}
			printed = append(printed, x[0])
		}
		return stdout + stderr
	}
	look(0, "protect", "web01")
	for i, at := range []time.Duration{4 * time.Hour, 5 * time.Hour, 6 * time.Hour} { // 02:00, again 02:00, 03:00
		m.now = time.Date(2026, 10, 24, 22, 30, 0, 0, m.now.Location()).Add(at)
		m.write("os", 0, 4096, byte(i+1))
		look(0, "delta", "web01")
	}
	m.rename("/store", "/away")
	look(1, "delta", "web01", "--now")
	look(0, "delta", "web01")
	look(0, "why", "web01")
	m.rename("/away", "/store")
	for _, args := range [][]string{{"status"}, {"status", "web01"}, {"points", "web01"}, {"jobs"}, {"why", "web01"}, {"verify", "web01"}, {"store", "list"},
		{"failover", "unplanned", "web01", "--dry-run"}, {"pause", "web01"}, {"status", "web01"}} {
		look(0, args...)
	}
	id := strings.Fields(look(0, "jobs", "--limit", "1"))
	look(0, "jobs", "show", id[7])
	if len(printed) < 20 {
		t.Errorf("only %d times were printed", len(printed))
	}

	points := look(0, "points", "web01")
	for _, want := range []string{"2026-10-25 02:30:00+02:00", "2026-10-25 02:30:00+01:00"} {
		id := regexp.MustCompile(`(?m)^(\S+) +` + regexp.QuoteMeta(want)).FindStringSubmatch(points)
		if id == nil {
			t.Fatalf("%s is not in\n%s", want, points)
		}
		if plan := look(0, "failover", "unplanned", "web01", "--dry-run", "--point", want); !strings.Contains(plan, id[1]) {
			t.Errorf("--point %q does not choose %s:\n%s", want, id[1], plan)
		}
	}
	for _, args := range [][]string{{"failover", "unplanned", "web01", "--dry-run", "--point", "2026-10-25 02:30"}, {"jobs", "--since", "2026-10-25 02:30:00"}} {
		if _, text := m.must(2, args...); !strings.Contains(text, "was there twice") {
			t.Errorf("%v: %s", args, text)
		}
	}
}

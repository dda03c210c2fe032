package cmd

import (
	"strings"
	"testing"
	"time"
)

// TestDeltaOfAllDuringInitialCopy: cron's run is quiet about a VM whose initial copy is under way, and about that only.
func TestDeltaOfAllDuringInitialCopy(t *testing.T) {
	for _, c := range []struct {
		command string
		code    int
	}{{"protect", 0}, {"replicate", 0}, {"resync", 11}} {
		m := newRig(t, "copy_frequency: 5m")
		p := &program{fs: m.fs, now: func() time.Time { return m.now }, getenv: func(string) string { return "" }}
		p.opts.site = "/site.yaml"
		w, err := p.open()
		if err != nil {
			t.Fatal(err)
		}
		lock, err := w.memory.Lock("web01")
		if err != nil {
			t.Fatal(err)
		}
		j, err := w.memory.Begin(c.command, "Job", "web01")
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"delta", "--all"}, {"verify", "--cloud", "c"}, {"resync", "--due", "--all"}} {
			out, stderr := m.must(c.code, args...)
			if c.code == 0 && (!strings.Contains(out, "passed over: its initial replication is under way") || stderr != "") {
				t.Errorf("%v: %s%s", args, out, stderr)
			}
		}
		m.must(11, "delta", "web01")
		if err := j.End(nil); err != nil {
			t.Fatal(err)
		}
		if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

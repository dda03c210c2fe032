package cmd

import (
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/health"
)

// A disk that shrank is refused by resume for as long as it is too small, as a missing one is.
func TestResumeOfShrunkDisk(t *testing.T) {
	m := newRig(t, "")
	m.must(0, "protect", "web01")
	whole := readAll(t, m.fs, "/disks/data.raw")
	truncate := func(size int64) {
		f, err := m.fs.OpenRW("/disks/data.raw")
		if err == nil {
			err = f.Truncate(size)
		}
		if err == nil {
			_, err = f.WriteAt(whole[:size], 0)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	truncate(int64(len(whole)) / 2)
	m.must(4, "delta", "web01")
	if _, stderr := m.must(4, "resume", "web01"); !strings.Contains(stderr, fault.DiskShrunk.Lookup().Cause) {
		t.Errorf("resume: %s", stderr)
	}
	if o := m.object("status", "web01"); o["state"] != health.InError {
		t.Errorf("state %v", o["state"])
	}
	truncate(int64(len(whole)))
	m.must(0, "resume", "web01")
	m.must(0, "delta", "web01")
}

// While a job runs, what is to be done next is to wait for it.
func TestNextWhileJobRuns(t *testing.T) {
	m := newRig(t, "")
	check := func(want string) {
		t.Helper()
		if next, _ := m.object("status", "web01")["next_action"].(string); !strings.Contains(next, want) || want == "" && next != "" {
			t.Errorf("next is %q, want %q", next, want)
		}
	}
	m.must(0, "protect", "--later", "web01")
	check("replicate web01")
	p := &program{fs: m.fs, now: func() time.Time { return m.now }, getenv: func(string) string { return "" }}
	p.opts.site = "/site.yaml"
	w, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	j, err := w.memory.Begin("protect", jobEnable, "web01")
	if err != nil {
		t.Fatal(err)
	}
	check("jobs show " + j.ID())
	if err := j.End(nil); err != nil {
		t.Fatal(err)
	}
	check("replicate web01")
}

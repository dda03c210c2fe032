package cmd

import (
	"strings"
	"testing"
)

// TestJobsOfRenamedVM: what ran for a VM before it was renamed is found by the name that it had; a name that nothing ever had is
// a mistake.
func TestJobsOfRenamedVM(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	writeAll(t, m.fs, "/site.yaml", []byte(strings.ReplaceAll(string(readAll(t, m.fs, "/site.yaml")), "web01", "shop01")))
	if out, _ := m.must(0, "jobs", "--vm", "web01", "--limit", "1"); !strings.Contains(out, "web01") {
		t.Errorf("no job of web01:\n%s", out)
	}
	m.must(0, "jobs", "--vm", "shop01")
	if _, stderr := m.must(2, "jobs", "--vm", "web02"); !strings.Contains(stderr, `no VM is called`) {
		t.Error(stderr)
	}
}

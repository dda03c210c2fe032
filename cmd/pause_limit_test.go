//go:build !windows

package cmd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/internal/state"
)

// TestMaxPause: a pause that is expected to take longer than the policy allows is refused before the VM is touched, by check too; --now tries
// it, and what it measures counts from then on. Disks that need not be read while the VM is held are no reason.
func TestMaxPause(t *testing.T) {
	m := newRig(t, "")
	dir := t.TempDir()
	program, log := filepath.Join(dir, "host.sh"), filepath.Join(dir, "log")
	text := "#!/bin/sh\ncase $SITREP_OPERATION in state) echo running;; *) echo $SITREP_OPERATION >>'" + log + "';; esac\n"
	if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	scripts := "hypervisor: script\n          script: {state: P, start: P, stop: P, freeze: P, thaw: P}"
	site := strings.NewReplacer("hypervisor: none", strings.ReplaceAll(scripts, "P", program), "POLICY", "max_pause: 20s, log_limit_percent: 100, source_reserve: off, massive_change: off").Replace(machineSite)
	writeAll(t, m.fs, "/site.yaml", []byte(site))
	writeAll(t, m.fs, "/disks/os.raw", bytes.Repeat([]byte{1, 2, 3, 4}, 4<<20))
	m.must(0, "protect", "web01")
	freezes := func() int {
		data, _ := os.ReadFile(log)
		return strings.Count(string(data), "freeze")
	}
	change := func(f func(*state.VM)) { // what was measured
		t.Helper()
		var mem state.VM
		if err := json.Unmarshal(readAll(t, m.fs, "/.sitrep/vms/web01.json"), &mem); err != nil {
			t.Fatal(err)
		}
		f(&mem)
		data, err := json.Marshal(mem)
		if err != nil {
			t.Fatal(err)
		}
		writeAll(t, m.fs, "/.sitrep/vms/web01.json", data)
	}
	slow := func() {
		change(func(mem *state.VM) { mem.Rates, mem.Pause = map[string]float64{rateScan: 1 << 10}, nil })
	}
	slow()
	m.write("os", 4096, 4096, 9)
	was := freezes()
	_, stderr := m.must(1, "delta", "web01")
	if !strings.Contains(stderr, "max_pause is 20.0 s") || !strings.Contains(stderr, "filesystem with reflinks") || freezes() != was {
		t.Errorf("%d pauses more: %s", freezes()-was, stderr)
	}
	if o := m.object("status", "web01"); o["health"] != healthWarning || o["last_error"].(map[string]any)["code"] != "pause-limit" {
		t.Errorf("%v", o)
	}
	if stdout, _ := m.must(3, "check", "web01"); !strings.Contains(stdout, "pause-limit") {
		t.Error(stdout)
	}
	m.must(0, "delta", "web01", "--now")
	if freezes() == was {
		t.Error("--now has not tried")
	}
	m.same()
	m.must(0, "check", "web01")
	m.write("os", 8192, 4096, 9)
	m.must(0, "delta", "web01")
	m.same()

	slow()
	m.fs.SetClone(true) // disks that can be cloned are not read while the VM is held
	m.write("os", 4096, 4096, 8)
	m.must(0, "delta", "web01")
	m.same()
}

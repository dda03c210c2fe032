//go:build !windows

package cmd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAppConsistentEvery: applications are quiesced as often as the policy says, and no more.
func TestAppConsistentEvery(t *testing.T) {
	m := newRig(t, "")
	dir := t.TempDir()
	hook, log := filepath.Join(dir, "hook.sh"), filepath.Join(dir, "log")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho \"$SITREP_OPERATION\" >>'"+log+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	site := strings.NewReplacer("nics: [{network: lan}]", "hooks: {freeze: "+hook+", thaw: "+hook+"}",
		"recovery_points: 3, ", "", "POLICY", "recovery_points: 24, app_consistent_every: 1h").Replace(machineSite)
	writeAll(t, m.fs, "/site.yaml", []byte(site))
	frozen := func() int {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(data))
		for i, line := range lines {
			if want := []string{"freeze", "thaw"}[i%2]; line != want {
				t.Fatalf("the hooks ran as %v", lines)
			}
		}
		return len(lines) / 2
	}
	m.must(0, "protect", "web01")
	if n := frozen(); n != 1 {
		t.Fatalf("%d times quiesced for the first point", n)
	}
	for i := range 24 { // two hours
		m.now = m.now.Add(5 * time.Minute)
		m.write("data", int64(i)*4096, 4096, byte(i+1))
		m.must(0, "delta", "web01", "--now")
		if n, want := frozen(), 1+(i+1)/12; n != want {
			t.Fatalf("%d times quiesced after %d minutes, want %d", n, (i+1)*5, want)
		}
	}
	points, _ := m.object("points", "web01")["points"].([]any)
	var app []int
	for i, p := range points {
		if p.(map[string]any)["app_consistent"] == true {
			app = append(app, i)
		}
	}
	if len(points) != 24 || len(app) != 2 || app[1]-app[0] != 12 {
		t.Fatalf("of %d points, these are application-consistent: %v", len(points), app)
	}
}

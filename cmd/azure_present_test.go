package cmd_test

import (
	"net/http"
	"os"
	"strings"
	"testing"
)

// TestAzurePresentCause: a VM that an earlier refusal of the store has stopped is told what is in the way now, when that is something
// else: each VM by its own name.
func TestAzurePresentCause(t *testing.T) {
	f := newFronted(t, "")
	second := "{name: web02, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: os, path: os2.raw}]}"
	f.write("site.yaml", []byte(strings.Replace(string(f.read("site.yaml")), "vms: [", "vms: ["+second+", ", 1)))
	f.write("os2.raw", make([]byte, 1<<20))
	f.run(0, "protect", "--all")
	f.front.Before(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	f.run(4, "delta", "--all", "--now")
	if out := f.run(4, "store", "probe"); out != "" {
		t.Errorf("of a store that cannot be entered the probe says\n%s", out)
	}
	f.front.Before(nil)
	if _, _, errs := f.result("delta", "web01"); !strings.Contains(errs, "nothing is tried since") {
		t.Errorf("stopped, it says\n%s", errs)
	}
	if err := os.Unsetenv("SITREP_TEST_AZURE"); err != nil {
		t.Fatal(err)
	}
	_, _, errs := f.result("delta", "--all")
	for _, want := range []string{"VM web01: ", "VM web02: "} {
		if !strings.Contains(errs, want) {
			t.Errorf("no word of %s:\n%s", want, errs)
		}
	}
	if !strings.Contains(errs, "the environment variable SITREP_TEST_AZURE is not set") || strings.Contains(errs, "nothing is tried since") {
		t.Errorf("without the secret it says\n%s", errs)
	}
}

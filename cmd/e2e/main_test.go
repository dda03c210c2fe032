// Package e2e_test proves the program from outside: the binary as it is built, on disks that QEMU made and wrote to, with
// QEMU as the judge of what a replica holds.
//
// A guest (guest_test.go) is a disk of a VM that something other than the program writes to and judges: QEMU, or a plain
// copy of the bytes in memory for the disks that QEMU cannot open. A rig (rig_test.go) is a site with its VMs; it runs the
// binary and remembers what the disks held at each position, so that recovery points can be held against it. The tests:
//
//	matrix_test.go       every format, two disks in a VM, odd sizes, growing, shrinking; a filesystem with real files
//	kill_test.go         kill -9 at random moments, again and again
//	bytes_linux_test.go  how much is read, sent and kept; how much memory it takes
//	faults_test.go       what an operator can break, and that nothing is lost by it
//
// They take about a minute. SITREP_LONG=1 makes disks and loops larger; SITREP_SEED=N repeats a run that failed.
package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if to := os.Getenv(measureEnv); to != "" {
		os.Exit(measure(to, os.Args[1:]))
	}
	os.Exit(withBinary(m))
}

// binaryEnv tells the tests where the binary is.
const binaryEnv = "SITREP_E2E_BINARY"

// withBinary builds the program and runs the tests.
func withBinary(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sitrep-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "sitrep.exe") // the suffix does no harm where it is not needed
	if out, err := exec.Command("go", "build", "-o", bin, "sitrep").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	os.Setenv(binaryEnv, bin)
	return m.Run()
}

// long says that the larger variants are wanted.
func long() bool { return os.Getenv("SITREP_LONG") != "" }

// random returns a source whose seed is printed, and can be given back in SITREP_SEED.
func random(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SITREP_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("SITREP_SEED: %v", err)
		}
	}
	t.Logf("SITREP_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// need skips the test when a program is missing, and fails it where all programs should be there.
func need(t *testing.T, program, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: apt-get install %s", program, debianPackage)
	}
	t.Skipf("%s is missing: apt-get install %s", program, debianPackage)
}

func needQEMU(t *testing.T) {
	t.Helper()
	need(t, "qemu-img", "qemu-utils")
	need(t, "qemu-io", "qemu-utils")
}

// tool runs a program that must succeed, and returns its output.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

//go:build linux

// Package simulation_test lets two virtual machines live at random, with everything that happens to those who protect them, and holds
// every byte that the program offers against a model of its own.
//
// The model (model_test.go) is a byte array for each disk, and what the disks held at each moment. A world (world_test.go) is a
// primary site, a second machine that was made of a copy of it, a recovery site, and hosts that are a small script: it keeps
// what VMs do in files, and writes down in which order it was called. Runs of the binary (run_test.go) end by themselves, or by a signal
// at a random moment. Steps are what the guests do and what operators do (steps_test.go, failover_test.go, plan_test.go), and what
// happens to files (damage_test.go). After each the oracle (oracle_test.go) asks:
//
//   - Does each recovery point that is listed as good, and exported with success, hold what the disks held at its cut?
//   - Does each recovered disk, and each disk that was brought home?
//   - Is any guest left frozen by a run that has ended? Does a VM run at two places?
//   - Was anything touched that lies beside the program's own folders?
//   - Has a VM of a recovery plan been started before what gates it was done?
//   - Has a machine written to a replica that is another one's?
//   - Does the program's advice lead out of it? (operator_test.go follows it.)
//
// A refusal is an answer everywhere; wrong bytes are none.
//
// One seed of 40 steps always runs; SITREP_LONG=1 takes a few seeds, SITREP_LONG=all 20 seeds of 300 steps. A failure prints its seed
// and what was done; SITREP_SEED=N runs that one again, SITREP_STEPS=N that many steps,
// SITREP_WITHOUT=machine,frozen leaves kinds of steps out (see happenings).
package simulation_test

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

// binaryEnv tells which binary is tried: another one than that of this tree, to see what is found in it.
const binaryEnv = "SITREP_SIMULATION_BINARY"

var binary = os.Getenv(binaryEnv)

func TestMain(m *testing.M) { os.Exit(withBinary(m)) }

// withBinary builds the program and runs the tests.
func withBinary(m *testing.M) int {
	if binary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "sitrep-simulation")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "sitrep")
	if out, err := exec.Command("go", "build", "-o", binary, "sitrep").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// scale is how much is simulated.
func scale(t *testing.T) (seeds, steps int) {
	switch os.Getenv("SITREP_LONG") {
	case "":
		seeds, steps = 1, 40
	case "all":
		seeds, steps = 20, 300
	default:
		seeds, steps = 3, 80
	}
	if os.Getenv("SITREP_SEED") != "" {
		seeds = 1
	}
	if s := os.Getenv("SITREP_STEPS"); s != "" {
		n, err := strconv.Atoi(s)
		must(t, err)
		steps = n
	}
	return seeds, steps
}

// seed is the first one: that of SITREP_SEED, else the clock's for a long test, and always the same for a short one.
func seed(t *testing.T) uint64 {
	s := os.Getenv("SITREP_SEED")
	switch {
	case s == "" && os.Getenv("SITREP_LONG") == "":
		return 2
	case s == "":
		return uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	n, err := strconv.ParseUint(s, 10, 64)
	must(t, err)
	return n
}

// TestSimulation is a life of each seed.
func TestSimulation(t *testing.T) {
	seeds, steps := scale(t)
	first := seed(t)
	for i := range uint64(seeds) {
		t.Run(strconv.FormatUint(first+i, 10), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, rand.New(rand.NewPCG(first+i, 0)))
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("SITREP_SEED=%d SITREP_STEPS=%d", first+i, steps)
				}
			})
			for range steps {
				w.step()
			}
			w.finish()
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

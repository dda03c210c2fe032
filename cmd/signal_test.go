//go:build !windows

package cmd_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const signalSite = `vault: test
store: {directory: ./store}
policies: [{name: gold}]
networks: [{name: lan}]
vmm:
  clouds:
    - name: c
      policy: gold
      hosts:
        - name: h
          hypervisor: none
          vms:
            - {name: web01, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: os, path: os.raw, os: true, format: raw}], nics: [{network: lan}]}
`

// TestSignal interrupts, or kills, the initial copy of a disk, and runs the same command again.
func TestSignal(t *testing.T) {
	tests := []struct {
		signal syscall.Signal
		code   int // -1: killed
		state  string
	}{{syscall.SIGINT, 130, `"Cancelled"`}, {syscall.SIGKILL, -1, `"Interrupted"`}}
	for _, tt := range tests {
		t.Run(tt.signal.String(), func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "site.yaml"), []byte(signalSite))
			for mib := 64; ; mib *= 2 { // until the copy takes longer than the signal
				write(t, filepath.Join(dir, "os.raw"), bytes.Repeat([]byte("sitrep!\n"), mib<<17))
				code, stderr := interrupt(t, dir, tt.signal)
				if code == 0 && mib < 1024 {
					run(t, dir, "unprotect", "web01")
					continue
				}
				if code != tt.code {
					t.Fatalf("exit code %d, want %d\n%s", code, tt.code, stderr)
				}
				if tt.code == 130 && !strings.Contains(stderr, "what was acknowledged is kept") {
					t.Errorf("stderr: %s", stderr)
				}
				break
			}
			if jobs := run(t, dir, "jobs", "--json"); !strings.Contains(jobs, tt.state) {
				t.Errorf("the job is not %s: %s", tt.state, jobs)
			}
			run(t, dir, "protect", "web01")
			run(t, dir, "verify", "web01")
			run(t, dir, "verify", "--against-source", "web01")
		})
	}
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// binary is this test, which is the command line when it is called sitrep: see testscript.Main.
func binary(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("sitrep")
	if err != nil {
		t.Skip("testscript.Main puts the command into PATH")
	}
	return path
}

func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	c := exec.Command(binary(t), args...)
	c.Dir = dir
	out, err := c.Output()
	if err != nil {
		t.Fatalf("sitrep %v: %v", args, err)
	}
	return string(out)
}

// interrupt protects the VM and sends the signal when the copy has begun. It returns the exit code, -1 when killed.
func interrupt(t *testing.T, dir string, s syscall.Signal) (code int, stderr string) {
	t.Helper()
	var errs bytes.Buffer
	c := exec.Command(binary(t), "protect", "web01")
	c.Dir, c.Stderr = dir, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	pages := filepath.Join(dir, "store", "web01", "os.vhd")
	for {
		select {
		case <-done:
			return c.ProcessState.ExitCode(), errs.String()
		case <-time.After(2 * time.Millisecond):
		}
		if _, err := os.Stat(pages); err == nil {
			break
		}
	}
	if err := c.Process.Signal(s); err != nil {
		t.Log(err)
	}
	<-done
	return c.ProcessState.ExitCode(), errs.String()
}

package cmd

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"sitrep/internal/state"
)

// TestWaitForTheLock: with --wait a command that finds the VM, or the plan, locked begins when it is not any more, and says once for whom it
// waits; an interruption ends the waiting. Without it exits 11.
func TestWaitForTheLock(t *testing.T) {
	for _, line := range [][]string{{"delta", "web01"}, {"resync", "web01"}, {"apply", "web01"}, {"verify", "web01"}, {"pause", "web01"},
		{"resume", "web01"}, {"points", "web01", "--hold", "latest"}, {"failover", "cleanup", "web01"},
		{"failover", "test", "--plan", "shop"}, {"failover", "cleanup", "web01"}, {"unprotect", "web01"}} {
		t.Run(strings.Join(line, " "), func(t *testing.T) {
			m := newRig(t, "copy_frequency: 5m")
			writeAll(t, m.fs, "/site.yaml", []byte(strings.ReplaceAll(machineSite, "POLICY", "copy_frequency: 5m")+
				"recovery_plans: [{name: shop, groups: [{vms: [web01]}]}]\n"))
			m.must(0, "protect", "web01")
			if line[1] == "cleanup" {
				m.must(0, "failover", "test", "web01")
			}
			memory := state.Open(m.fs, "/.sitrep", func() time.Time { return m.now })
			take := func() (io.Closer, error) { return memory.LockFor("web01", state.Changes) }
			if line[len(line)-1] == "shop" {
				take = func() (io.Closer, error) { return memory.LockPlan("shop") }
			}
			lock, err := take()
			if err != nil {
				t.Fatal(err)
			}
			if line[0] != "failover" || line[1] == "test" { // a clean-up waits also without, for a while
				m.must(11, line...)
			}
			var stdout, stderr bytes.Buffer
			p := &program{fs: m.fs, stdin: bytes.NewReader(nil), stdout: &stdout, stderr: &stderr, now: func() time.Time { return m.now },
				getenv: func(string) string { return "" }}
			ctx, cancel := context.WithTimeout(t.Context(), 2*turnPoll)
			defer cancel()
			stopped, end := context.WithCancel(t.Context())
			context.AfterFunc(ctx, end)
			line := append([]string{"sitrep", "--site", "/site.yaml"}, append(line, "--wait")...)
			if code := p.run(stopped, line); code != 130 {
				t.Fatalf("interrupted: exit code %d\n%s%s", code, &stdout, &stderr)
			}
			time.AfterFunc(2*turnPoll, func() { lock.Close() })
			stdout.Reset()
			p.res = result{}
			if code := p.run(t.Context(), line); code != 0 {
				t.Fatalf("exit code %d\n%s%s", code, &stdout, &stderr)
			}
			if n := strings.Count(stdout.String(), "waits for its turn: another run works on"); n != 1 {
				t.Errorf("it is said %d times for whom it waits:\n%s", n, &stdout)
			}
		})
	}
}

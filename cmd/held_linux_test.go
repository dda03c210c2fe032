package cmd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// frozenSite is a site whose VM is frozen by a hook that takes its time. %s are more keys of the host and of the VM.
const frozenSite = `vault: test
store: {directory: ./store}
policies: [{name: gold, recovery_points: 4, app_consistent_every: 5m}]
vmm: {clouds: [{name: c, policy: gold, hosts: [{name: h, %s, vms: [{name: web01, generation: 1, os: linux, cpus: 1, memory: 128MiB,
  disks: [{name: os, path: os.raw, os: true, format: raw}], %s}]}]}]}
`

const frozenHooks = `hooks: {freeze: ./freeze, thaw: ./thaw}`

// script writes a program.
func script(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\ncd \"$(dirname \"$0\")\"\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// begin starts sitrep in a folder.
func begin(t *testing.T, dir string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	var errs bytes.Buffer
	c := exec.Command(binary(t), args...)
	c.Dir, c.Stderr = dir, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill() })
	return c, &errs
}

func exists(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

// guards counts the guards of a folder that live.
func guards(dir string) (n int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		data, _ := os.ReadFile(name)
		if bytes.Contains(data, []byte("hold-guard")) && bytes.Contains(data, []byte(dir)) {
			n++
		}
	}
	return n
}

// heard makes sure that a program begun here hears a signal: what the tests were started to ignore (nohup) it would ignore too.
func heard(t *testing.T, s os.Signal) {
	if !signal.Ignored(s) {
		return
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, s)
	t.Cleanup(func() { signal.Stop(c) })
}

// TestSignalWhileFrozen ends a run by every signal while the freeze hook runs: the guest goes on.
func TestSignalWhileFrozen(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPIPE, syscall.SIGKILL} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			heard(t, s)
			dir := t.TempDir()
			write(t, filepath.Join(dir, "site.yaml"), fmt.Appendf(nil, frozenSite, "hypervisor: none", frozenHooks))
			write(t, filepath.Join(dir, "os.raw"), make([]byte, 1<<20))
			script(t, dir, "freeze", "touch begun; sleep 0.5; touch frozen")
			script(t, dir, "thaw", "rm -f frozen; echo >>thawed")
			c, errs := begin(t, dir, "protect", "web01")
			eventually(t, "the freeze hook runs", func() bool { return exists(dir, "begun") })
			if err := c.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			c.Wait()
			eventually(t, "the guest goes on", func() bool { return exists(dir, "thawed") && guards(dir) == 0 })
			if exists(dir, "frozen") || exists(dir, ".sitrep/held/web01.json") {
				t.Error("the guest is left frozen")
			}
			switch code := c.ProcessState.ExitCode(); {
			case s == syscall.SIGKILL:
			case s == syscall.SIGPIPE && code == 0: // costs output, never work
			case s != syscall.SIGPIPE && code == 130 && strings.Contains(errs.String(), "what was acknowledged is kept"):
			default:
				t.Errorf("exit code %d\n%s", code, errs)
			}
			if s != syscall.SIGPIPE {
				run(t, dir, "protect", "web01")
			}
		})
	}
}

// TestSignalTwice: a freeze hook that hangs is not waited for by somebody who asks twice.
func TestSignalTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "site.yaml"), fmt.Appendf(nil, frozenSite, "hypervisor: none", frozenHooks))
	write(t, filepath.Join(dir, "os.raw"), make([]byte, 1<<20))
	script(t, dir, "freeze", "touch frozen; exec sleep 1000")
	script(t, dir, "thaw", "rm -f frozen")
	c, _ := begin(t, dir, "protect", "web01")
	eventually(t, "the freeze hook runs", func() bool { return exists(dir, "frozen") })
	began := time.Now()
	c.Process.Signal(syscall.SIGTERM)
	time.Sleep(100 * time.Millisecond)
	c.Process.Signal(syscall.SIGTERM)
	c.Wait()
	if code := c.ProcessState.ExitCode(); code != 130 || exists(dir, "frozen") || time.Since(began) > 9*time.Second {
		t.Errorf("exit code %d after %v, frozen: %v", code, time.Since(began), exists(dir, "frozen"))
	}
}

// TestGuardIsKilledToo: the next command, whatever it is, lets the guest go on.
func TestGuardIsKilledToo(t *testing.T) {
	for _, command := range [][]string{{"status"}, {"check", "web01"}, {"why", "web01"}, {"delta", "web01"}, {"pause", "web01"}, {"verify", "web01"}, {"resync", "web01"},
		{"failover", "planned", "web01", "--dry-run"}} {
		t.Run(strings.Join(command, " "), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, filepath.Join(dir, "site.yaml"), fmt.Appendf(nil, frozenSite, "hypervisor: none", frozenHooks))
			write(t, filepath.Join(dir, "os.raw"), make([]byte, 1<<20))
			script(t, dir, "freeze", "touch frozen; exec sleep 1")
			script(t, dir, "thaw", "rm -f frozen")
			c, _ := begin(t, dir, "protect", "web01")
			eventually(t, "the freeze hook runs", func() bool { return exists(dir, "frozen") })
			killGuards(dir)
			c.Process.Kill()
			c.Wait()
			eventually(t, "no guard lives", func() bool { return guards(dir) == 0 })
			time.Sleep(50 * time.Millisecond)
			if !exists(dir, "frozen") {
				t.Fatal("somebody else has let the guest go on: this test proves nothing")
			}
			exec.Command("sh", "-c", "cd '"+dir+"' && sitrep "+strings.Join(command, " ")).Run()
			if exists(dir, "frozen") {
				t.Error("the guest is still frozen")
			}
		})
	}
}

// TestKilledWhileFreezing kills a run while what freezes its guest, a hook or the program of a host, is on the way: that freezes it all the
// same, later, and the guest goes on after that: by the guard, or, when that was killed too, by the next command.
func TestKilledWhileFreezing(t *testing.T) {
	for by, site := range map[string][2]string{
		"hook": {"hypervisor: none", frozenHooks},
		"host": {"hypervisor: script, script: {start: ./ok, stop: ./ok, state: ./state, freeze: ./freeze, thaw: ./thaw}", "shutdown_grace: 1s"},
	} {
		for _, guarded := range []bool{true, false} {
			for what, took := range map[string]string{"ends": "1", "hangs": "1000"} {
				if what == "hangs" && by == "host" {
					continue // as a hook that hangs
				}
				t.Run(fmt.Sprintf("%s %s, guard %v", by, what, guarded), func(t *testing.T) {
					t.Parallel()
					dir := t.TempDir()
					write(t, filepath.Join(dir, "site.yaml"), fmt.Appendf(nil, frozenSite, site[0], site[1]))
					write(t, filepath.Join(dir, "os.raw"), make([]byte, 1<<20))
					script(t, dir, "ok", "exit 0")
					script(t, dir, "state", "echo running")
					script(t, dir, "freeze", "touch begun; sleep "+took+"; touch frozen late")
					script(t, dir, "thaw", "rm -f frozen; echo >>thawed")
					c, _ := begin(t, dir, "protect", "web01")
					eventually(t, "the freeze is on the way", func() bool { return exists(dir, "begun") })
					if !guarded {
						killGuards(dir)
					}
					c.Process.Kill()
					c.Wait()
					if !guarded {
						eventually(t, "no guard lives", func() bool { return guards(dir) == 0 })
						if o, _ := exec.Command(binary(t), "--site", filepath.Join(dir, "site.yaml"), "why", "web01").CombinedOutput(); exists(dir, "frozen") {
							t.Errorf("the guest is frozen:\n%s", o)
						}
					}
					eventually(t, "the guest goes on", func() bool {
						return guards(dir) == 0 && exists(dir, "thawed") && !exists(dir, ".sitrep/held/web01.json")
					})
					if exists(dir, "frozen") || what == "ends" && !exists(dir, "late") {
						t.Errorf("frozen %v, late %v", exists(dir, "frozen"), exists(dir, "late"))
					}
					if signs, _ := filepath.Glob(filepath.Join(dir, ".sitrep/held/*.sign")); len(signs) > 0 {
						t.Errorf("left: %q", signs)
					}
					script(t, dir, "freeze", "touch frozen")
					run(t, dir, "protect", "web01")
				})
			}
		}
	}
}

// killGuards kills the guards of a folder.
func killGuards(dir string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		data, _ := os.ReadFile(name)
		var pid int
		fmt.Sscanf(name, "/proc/%d/", &pid)
		if bytes.Contains(data, []byte(dir)) && bytes.Contains(data, []byte("hold-guard")) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// qemuVM runs QEMU without a guest, whose disk is os.raw of a folder, with its control socket beside it.
func qemuVM(t *testing.T, dir string, more ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("QEMU is missing: apt-get install qemu-system-x86")
		}
		t.Skip("needs QEMU: apt-get install qemu-system-x86")
	}
	c := exec.Command(path, append([]string{"-machine", "q35", "-accel", "tcg", "-nodefaults", "-display", "none", "-blockdev",
		"driver=raw,node-name=d0,file.driver=file,file.filename=" + filepath.Join(dir, "os.raw"), "-device", "virtio-blk-pci,drive=d0",
		"-qmp", "unix:q.sock,server=on,wait=off"}, more...)...)
	c.Dir = dir
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	eventually(t, "QEMU runs", func() bool { return exists(dir, "q.sock") })
	return c
}

// qmp sends a command to QEMU, which must take it, and returns what it answers.
func qmp(t *testing.T, dir, command string, arguments ...string) map[string]any {
	t.Helper()
	m := qmpAsk(t, dir, command, arguments...)
	if m["error"] != nil {
		t.Fatalf("%s: %v", command, m["error"])
	}
	o, _ := m["return"].(map[string]any)
	return o
}

// qmpAsk sends a command to QEMU, and returns its answer: with return, or error.
func qmpAsk(t *testing.T, dir, command string, arguments ...string) map[string]any {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(dir, "q.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	in := json.NewDecoder(c)
	ask := func(s string) map[string]any {
		if _, err := io.WriteString(c, s+"\n"); err != nil {
			t.Fatal(err)
		}
		for {
			var m map[string]any
			if err := in.Decode(&m); err != nil {
				t.Fatal(err)
			}
			if m["error"] != nil || m["return"] != nil {
				return m
			}
		}
	}
	ask(`{"execute":"qmp_capabilities"}`)
	if len(arguments) > 0 {
		return ask(fmt.Sprintf(`{"execute":%q,"arguments":%s}`, command, arguments[0]))
	}
	return ask(fmt.Sprintf(`{"execute":%q}`, command))
}

// TestKillWhilePaused kills the run that has paused a VM of QEMU: it goes on within seconds. One that its operator has paused stays so.
func TestKillWhilePaused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "site.yaml"), fmt.Appendf(nil, frozenSite, "hypervisor: qemu, folder: ./vms", "qmp: ./q.sock"))
	write(t, filepath.Join(dir, "os.raw"), bytes.Repeat([]byte("sitrep!\n"), 64<<17))
	qemuVM(t, dir)
	running := func() bool { return qmp(t, dir, "query-status")["running"] == true }
	run(t, dir, "protect", "web01")
	for try := 0; ; try++ {
		data := bytes.Repeat([]byte("sitrep!\n"), 64<<17)
		copy(data, bytes.Repeat(fmt.Appendf(nil, "sitrep%d\n", try), 4<<17))
		write(t, filepath.Join(dir, "os.raw"), data)
		c, _ := begin(t, dir, "delta", "web01", "--now")
		mark := filepath.Join("vms", ".web01.frozen")
		eventually(t, "the VM is held, or the delta over", func() bool { return exists(dir, mark) || c.ProcessState != nil || !alive(c) })
		time.Sleep(5 * time.Millisecond)
		held := exists(dir, mark)
		c.Process.Signal(syscall.SIGKILL)
		err := c.Wait()
		if !held && try < 50 {
			continue
		}
		var exit *exec.ExitError
		if !held || !errors.As(err, &exit) {
			t.Fatalf("the run was not killed while it held the VM: %v", err)
		}
		break
	}
	began := time.Now()
	eventually(t, "the VM goes on", running)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the VM went on after %v", took)
	}
	eventually(t, "the guard ends", func() bool { return guards(dir) == 0 })
	run(t, dir, "delta", "web01", "--now")

	qmp(t, dir, "stop")
	run(t, dir, "delta", "web01", "--now")
	run(t, dir, "status")
	if running() {
		t.Error("a VM that its operator has paused was let go on")
	}

	// What a version without guards has left: a mark, and a VM that is paused.
	write(t, filepath.Join(dir, "vms", ".web01.frozen"), nil)
	run(t, dir, "pause", "web01")
	if !running() {
		t.Error("pause does not let a VM go on that a run has left held")
	}
}

// alive says whether a process that was started has not ended.
func alive(c *exec.Cmd) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
	return err == nil && !bytes.Contains(data, []byte(") Z "))
}

// TestOutputIsClosed: nobody reads what is said, and the work is done.
func TestOutputIsClosed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "site.yaml"), []byte(strings.Replace(signalSite, "            - {name: web01", "            - {name: web02, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: os, path: os2.raw, os: true, format: raw}]}\n            - {name: web01", 1)))
	write(t, filepath.Join(dir, "os.raw"), make([]byte, 1<<20))
	write(t, filepath.Join(dir, "os2.raw"), make([]byte, 1<<20))
	for i, tt := range []struct {
		shell string
		code  string
	}{
		{"{ sitrep --verbose protect --all 2>&1; echo $? >code; } | head -1 >/dev/null", "0"},
		{"sitrep delta --all --now >/dev/full; echo $? >code", "1"},
		{"sitrep delta --all --now --verbose 2>/dev/full; echo $? >code", "0"},
		{"sitrep delta --all --now >&-; echo $? >code", ""},
		{"sitrep --json delta --all --now >/dev/full; echo $? >code", "1"},
	} {
		for j, name := range []string{"os.raw", "os2.raw"} {
			write(t, filepath.Join(dir, name), bytes.Repeat([]byte{byte(10*i + j + 1)}, 1<<20))
		}
		c := exec.Command("sh", "-c", tt.shell)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", tt.shell, err, out)
		}
		code, err := os.ReadFile(filepath.Join(dir, "code"))
		if got := strings.TrimSpace(string(code)); err != nil || tt.code != "" && got != tt.code {
			t.Errorf("%s: exit code %s, want %s", tt.shell, got, tt.code)
		}
		if out := run(t, dir, "verify", "--all", "--against-source", "--json"); strings.Contains(out, `"ok": false`) {
			t.Errorf("%s: the work was not done\n%s", tt.shell, out)
		}
	}
}

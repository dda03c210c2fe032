package qemu_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/host/guesttest"
	"sitrep/internal/host/qemu"
)

// startEnv tells a child of TestMain in which folder to start the VM called vm.
const startEnv = "QEMU_TEST_START"

func TestMain(m *testing.M) {
	if folder := os.Getenv(startEnv); folder != "" {
		h, err := qemu.New(qemu.Config{Folder: folder})
		if err == nil {
			err = h.Start(context.Background(), "vm")
		}
		fmt.Println("started:", err)
		time.Sleep(time.Minute) // until it is killed
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// pidOf is the process of a VM, by the file that QEMU writes.
func pidOf(t testing.TB, h *qemu.Host, vm string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(h.ConsoleLog(vm)), "qemu.pid"))
	ok(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	ok(t, err)
	return pid
}

// waitOff waits for what a signal has begun.
func waitOff(t testing.TB, h *qemu.Host, vm string) {
	t.Helper()
	for range 6000 {
		if off(t, h, vm)() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is still there", vm)
}

// TestKilledQEMU: a QEMU that was killed leaves a socket and a number that mean nothing; the VM is off, and starts again. The
// folder is so deep that no address of a socket could hold its path.
func TestKilledQEMU(t *testing.T) {
	g := guesttest.Build(t)
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "os")
	g.Disk(t, path, "raw", guesttest.Serve, nil)
	h := newHost(t, qemu.Config{Folder: filepath.Join(t.TempDir(), strings.Repeat("deep", 40), "vms")})
	up(t, h, define("vm", "raw", path))
	ok(t, syscall.Kill(pidOf(t, h, "vm"), syscall.SIGKILL))
	waitOff(t, h, "vm")
	ok(t, h.Stop(ctx, "vm", time.Minute))

	// The number has become that of another process, ours: it is not taken for a VM, and not killed.
	folder := filepath.Dir(h.ConsoleLog("vm"))
	ok(t, os.WriteFile(filepath.Join(folder, "qemu.pid"), fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600))
	if !off(t, h, "vm")() {
		t.Error("another process is taken for the VM")
	}
	ok(t, h.Stop(ctx, "vm", 0))
	ok(t, h.Start(ctx, "vm"))
	if p, err := h.State(ctx, "vm"); err != nil || p != host.Running {
		t.Errorf("%s: %v", p, err)
	}
	if _, err := os.Stat(filepath.Join(folder, "console.previous.log")); err != nil {
		t.Errorf("the console of the run before is gone: %v", err)
	}
	own := filepath.Join(folder, "disk.vhd")
	ok(t, os.WriteFile(own, nil, 0o600))
	ok(t, h.Delete(ctx, "vm"))
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 || entries[0].Name() != "disk.vhd" {
		t.Errorf("what is left: %v, %v", entries, err)
	}
}

// TestKilledSitrep: a VM outlives the run that started it, whatever ends that, and the next run knows it.
func TestKilledSitrep(t *testing.T) {
	g := guesttest.Build(t)
	path := filepath.Join(t.TempDir(), "os")
	g.Disk(t, path, "raw", guesttest.Serve, nil)
	folder := filepath.Join(t.TempDir(), "vms")
	h := newHost(t, qemu.Config{Folder: folder})
	d := define("vm", "raw", path)
	ok(t, h.Create(context.Background(), d))
	t.Cleanup(func() { ok(t, h.Delete(context.Background(), "vm")) })
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), startEnv+"="+folder)
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := child.StdoutPipe()
	ok(t, err)
	ok(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	ok(t, syscall.Kill(-child.Process.Pid, syscall.SIGKILL))
	_ = child.Wait()
	if err != nil || line != "started: <nil>\n" {
		t.Fatalf("%q, %v", line, err)
	}
	pid := pidOf(t, h, "vm")
	if p, err := h.State(context.Background(), "vm"); err != nil || p != host.Running {
		t.Errorf("%s: %v", p, err)
	}
	up(t, h, d)
	if pidOf(t, h, "vm") != pid {
		t.Error("it was started twice")
	}
}

// TestForeign: a VM that something else has started is handled through its control socket.
func TestForeign(t *testing.T) {
	g := guesttest.Build(t)
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "os")
	g.Disk(t, path, "raw", guesttest.Loop, nil)
	owner := newHost(t, qemu.Config{})
	d := define("theirs", "raw", path)
	up(t, owner, d)
	guesttest.Line(t, owner.ConsoleLog("theirs"), "@@ N 1", off(t, owner, "theirs"))
	socket := filepath.Join(filepath.Dir(owner.ConsoleLog("theirs")), "qmp.sock")
	h := newHost(t, qemu.Config{QMP: map[string]string{"vm": socket, "gone": "/nowhere/at/all"}})
	is := func(want host.Power) {
		t.Helper()
		if p, err := h.State(ctx, "vm"); err != nil || p != want {
			t.Fatalf("it is %s, not %s: %v", p, want, err)
		}
	}
	is(host.Running)
	held, err := h.Freeze(ctx, "vm")
	ok(t, err)
	if !held {
		t.Error("not held")
	}
	is(host.Paused)
	ok(t, h.Thaw(ctx, "vm"))
	is(host.Running)
	ok(t, h.Start(ctx, "vm"))
	d.Name = "vm"
	for what, err := range map[string]error{"create": h.Create(ctx, d), "delete": h.Delete(ctx, "vm")} {
		if !fault.Is(err, fault.HostRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ok(t, h.Stop(ctx, "vm", grace))
	is(host.Off)
	guesttest.Line(t, owner.ConsoleLog("theirs"), "@@ DONE", func() bool { return true })
	if err := h.Start(ctx, "vm"); !fault.Is(err, fault.HostRefused) {
		t.Errorf("start: %v", err)
	}
	ok(t, h.Stop(ctx, "vm", grace))
	if _, err := h.State(ctx, "gone"); !fault.Is(err, fault.HostUnreachable) {
		t.Errorf("a socket in no folder: %v", err)
	}

	ok(t, owner.Start(ctx, "theirs"))
	is(host.Running)
	ok(t, h.Stop(ctx, "vm", 0))
	is(host.Off)
	ok(t, owner.Start(ctx, "theirs"))
	ok(t, syscall.Kill(pidOf(t, owner, "theirs"), syscall.SIGKILL))
	waitOff(t, owner, "theirs")
	is(host.Off) // its socket is still there
}

// TestStuckQEMU: a QEMU that does not answer is killed.
func TestStuckQEMU(t *testing.T) {
	if !long() {
		t.Skip("waits for QEMU's time limit: SITREP_LONG=1")
	}
	g := guesttest.Build(t)
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "os")
	g.Disk(t, path, "raw", guesttest.Serve, nil)
	h := newHost(t, qemu.Config{})
	up(t, h, define("vm", "raw", path))
	ok(t, syscall.Kill(pidOf(t, h, "vm"), syscall.SIGSTOP))
	if p, err := h.State(ctx, "vm"); !fault.Is(err, fault.HostUnreachable) {
		t.Errorf("%s: %v", p, err)
	}
	ok(t, h.Stop(ctx, "vm", time.Minute))
	if !off(t, h, "vm")() {
		t.Error("it is not off")
	}
}

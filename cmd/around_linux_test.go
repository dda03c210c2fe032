package cmd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// aroundSite is a site with a VM: more keys of the recovery host, of the host, and of the VM.
const aroundSite = `vault: test
store: {directory: ./store}
policies: [{name: gold, recovery_points: 4}]
recovery: {host: dr, folder: ./rec, %s}
vmm: {clouds: [{name: c, policy: gold, hosts: [{name: h, %s, vms: [{name: web01, generation: 1, os: linux, cpus: 1, memory: 128MiB, shutdown_grace: 0s,
  disks: [{name: os, path: d/%s, os: true}]%s}]}]}]}
`

// powerScript is a host whose VM is on or off as a file says, and that writes down what it is asked.
const powerScript = `echo $SITREP_OPERATION >>log
case $SITREP_OPERATION in state) cat power;; stop|create) echo off >power;; start) echo running >power;; delete) echo absent >power;; esac`

const scriptHost = "hypervisor: script, script: {create: ./hv, start: ./hv, stop: ./hv, state: ./hv, delete: ./hv}"

// around makes a site with a raw disk of 1 MiB.
func around(t *testing.T, recovery, at, vm string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "site.yaml"), fmt.Appendf(nil, aroundSite, recovery, at, "os.raw, format: raw", vm))
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "d", "os.raw"), bytes.Repeat([]byte("sitrep!\n"), 1<<17))
	script(t, dir, "hv", powerScript)
	write(t, filepath.Join(dir, "power"), []byte("running\n"))
	return dir
}

// must runs sitrep, which has to end with a code, and returns what it said.
func must(t *testing.T, dir string, code int, args ...string) string {
	t.Helper()
	c := exec.Command(binary(t), args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := c.ProcessState.ExitCode(); got != code {
		t.Fatalf("sitrep %v: exit code %d, want %d\n%s", args, got, code, out)
	}
	return string(out)
}

func says(t *testing.T, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("nobody says %q:\n%s", w, out)
		}
	}
}

// refuses is a command that has to be refused without the source having been stopped.
func refuses(t *testing.T, dir string, code int, words ...string) {
	t.Helper()
	says(t, must(t, dir, code, "failover", "planned", "web01", "--dry-run"), words...)
	says(t, must(t, dir, code, "failover", "planned", "web01"), words...)
	if log, _ := os.ReadFile(filepath.Join(dir, "log")); bytes.Contains(log, []byte("stop")) {
		t.Errorf("the source was stopped:\n%s", log)
	}
}

// TestFailbackIntoUse: a disk at home that a process has open is not written to, and the recovered VM is not stopped for it.
func TestFailbackIntoUse(t *testing.T) {
	t.Parallel()
	dir := around(t, scriptHostAt("./rv"), "hypervisor: none", "")
	script(t, dir, "rv", strings.NewReplacer("log", "rlog", "power", "rpower").Replace(powerScript))
	write(t, filepath.Join(dir, "rpower"), []byte("absent\n"))
	run(t, dir, "protect", "web01")
	run(t, dir, "failover", "unplanned", "web01")
	run(t, dir, "failover", "commit", "web01")
	home := filepath.Join(dir, "d", "os.raw")
	before, err := os.ReadFile(home)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(home, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	user := exec.Command("sleep", "1000")
	user.Stdin = f
	err = user.Start()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer user.Wait()
	defer user.Process.Kill()
	for _, mode := range []string{"minimal-downtime", "during-failover"} {
		says(t, must(t, dir, 6, "failback", "web01", "--mode", mode), "sleep", fmt.Sprint(user.Process.Pid), "os.raw")
	}
	if log, _ := os.ReadFile(filepath.Join(dir, "rlog")); bytes.Contains(log, []byte("stop")) {
		t.Errorf("the recovered VM was stopped:\n%s", log)
	}
	if after, _ := os.ReadFile(home); !bytes.Equal(before, after) {
		t.Error("the disk in use was written to")
	}
	user.Process.Kill()
	user.Wait()
	run(t, dir, "failback", "web01")
}

// scriptHostAt is a host of scripts that are all one program.
func scriptHostAt(path string) string {
	return "format: raw, " + strings.ReplaceAll(scriptHost, "./hv", path)
}

// TestSnapshot: a VM of QEMU that writes into a snapshot's file is not replicated from the disk that it no longer writes to, and is again
// when the snapshot was merged.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	dir := around(t, "hypervisor: none", "hypervisor: qemu, folder: ./vms", ", qmp: ./q.sock")
	if err := os.Rename(filepath.Join(dir, "d", "os.raw"), filepath.Join(dir, "os.raw")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "os.raw"), filepath.Join(dir, "d", "os.raw")); err != nil { // by another name than QEMU's
		t.Fatal(err)
	}
	qemuVM(t, dir)
	run(t, dir, "protect", "web01")
	run(t, dir, "delta", "web01", "--now")
	overlay := filepath.Join(t.TempDir(), "elsewhere.img") // in no folder that could be searched
	qmp(t, dir, "blockdev-snapshot-sync", fmt.Sprintf(`{"node-name":"d0","snapshot-file":%q,"format":"qcow2","snapshot-node-name":"s0"}`, overlay))
	for _, command := range [][]string{{"delta", "web01", "--now"}, {"check", "web01"}, {"failover", "planned", "web01"}, {"resync", "web01", "--now"},
		{"verify", "web01", "--against-source"}} {
		says(t, must(t, dir, 3, command...), overlay, "does not write to this disk")
	}
	says(t, must(t, dir, 2, "status", "--check"), overlay)
	qmp(t, dir, "block-commit", `{"job-id":"j","device":"s0"}`)
	eventually(t, "the snapshot can be pivoted", func() bool {
		defer func() { time.Sleep(50 * time.Millisecond) }()
		return tryQMP(t, dir, "job-complete", `{"id":"j"}`)
	})
	eventually(t, "the VM writes to its disk again", func() bool {
		c := exec.Command(binary(t), "delta", "web01", "--now")
		c.Dir = dir
		return c.Run() == nil
	})
	must(t, dir, 0, "check", "web01")
}

// tryQMP is qmp for a command that QEMU may refuse.
func tryQMP(t *testing.T, dir, command, arguments string) (done bool) {
	t.Helper()
	return qmpAsk(t, dir, command, arguments)["error"] == nil
}

// TestCheckpointBeside: a file on top of the disk says that its VM writes elsewhere, whatever its name is; one of another disk says nothing.
func TestCheckpointBeside(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("qemu-img is missing: apt-get install qemu-utils")
		}
		t.Skip("needs qemu-img: apt-get install qemu-utils")
	}
	t.Parallel()
	dir := around(t, "hypervisor: none, format: raw", "hypervisor: none", "")
	create := func(args ...string) {
		t.Helper()
		c := exec.Command("qemu-img", append([]string{"create", "-q"}, args...)...)
		c.Dir = filepath.Join(dir, "d")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	write(t, filepath.Join(dir, "d", "other.raw"), make([]byte, 1<<20))
	create("-f", "qcow2", "-b", "other.raw", "-F", "raw", "other.snap")
	create("-f", "qcow2", "alone.qcow2", "1M")
	run(t, dir, "protect", "web01")
	create("-f", "qcow2", "-b", "os.raw", "-F", "raw", "os.snap1")
	create("-f", "qcow2", "-b", filepath.Join(dir, "d", "os.snap1"), "-F", "qcow2", "os.weekly")
	for _, command := range [][]string{{"delta", "web01", "--now"}, {"check", "web01"}, {"failover", "planned", "web01"}} {
		says(t, must(t, dir, 3, command...), filepath.Join(dir, "d", "os.weekly"))
	}
	for _, name := range []string{"os.snap1", "os.weekly"} {
		if err := os.Remove(filepath.Join(dir, "d", name)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, dir, "failover", "planned", "web01")
	c := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", "os.raw", "-F", "raw", filepath.Join(dir, "rec", "web01", "checkpoint"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	says(t, must(t, dir, 3, "failover", "commit", "web01"), "checkpoint")
	os.Remove(filepath.Join(dir, "rec", "web01", "checkpoint"))
	run(t, dir, "failover", "commit", "web01")
	create("-f", "qcow2", "-b", "os.raw", "-F", "raw", "os.snap1")
	says(t, must(t, dir, 3, "failback", "web01"), "os.snap1")
}

// TestNoSocket: a VM whose control socket is not where the site file says is not taken to be off while QEMU has its disk.
func TestNoSocket(t *testing.T) {
	t.Parallel()
	dir := around(t, "hypervisor: none, format: raw", "hypervisor: qemu, folder: ./vms", ", qmp: ./other.sock")
	if err := os.Link(filepath.Join(dir, "d", "os.raw"), filepath.Join(dir, "os.raw")); err != nil {
		t.Fatal(err)
	}
	says(t, must(t, dir, 0, "check", "web01"), "other.sock", "taken to be off")
	run(t, dir, "protect", "web01")
	vm := qemuVM(t, dir)
	says(t, must(t, dir, 3, "check", "web01"), "other.sock", "qemu-system")
	says(t, must(t, dir, 1, "failover", "planned", "web01"), "other.sock", fmt.Sprint(vm.Process.Pid))
	says(t, must(t, dir, 1, "delta", "web01", "--now"), "other.sock")
	if exists(dir, "rec") {
		t.Error("a second copy was made")
	}
	vm.Process.Kill()
	vm.Wait()
	run(t, dir, "failover", "planned", "web01")
	qemuVM(t, dir)
	run(t, dir, "failover", "undo", "web01") // which starts nothing: something else does
}

// TestHostOfNone: a VM that nobody says is off is not failed over while something has its disk.
func TestHostOfNone(t *testing.T) {
	t.Parallel()
	dir := around(t, "hypervisor: none, format: raw", "hypervisor: none", "")
	run(t, dir, "protect", "web01")
	if err := os.Link(filepath.Join(dir, "d", "os.raw"), filepath.Join(dir, "os.raw")); err != nil {
		t.Fatal(err)
	}
	qemuVM(t, dir)
	says(t, must(t, dir, 6, "failover", "planned", "web01"), "qemu-system")
}

// TestProtectAsksTheHost: what would fail after the copy is found before it.
func TestProtectAsksTheHost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ at, vm, says string }{
		{"hypervisor: qemu", "", "qmp"},
		{"hypervisor: qemu, folder: ./vms", ", qmp: ./no/folder.sock", "/no:"},
		{scriptHost + ", ", "", ""},
	} {
		dir := around(t, "hypervisor: none", strings.TrimSuffix(tt.at, ", "), tt.vm)
		if tt.says == "" {
			must(t, dir, 0, "protect", "web01")
			continue
		}
		says(t, must(t, dir, 3, "check", "web01"), tt.says)
		says(t, must(t, dir, 3, "protect", "web01"), tt.says)
		if exists(dir, "store/web01") {
			t.Errorf("%s: something was copied", tt.at)
		}
	}
}

// TestForeseen: what the recovery host would refuse is refused before the source is stopped.
func TestForeseen(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("QEMU is missing: apt-get install qemu-system-x86")
		}
		t.Skip("needs QEMU: apt-get install qemu-system-x86")
	}
	t.Parallel()
	qemu := "hypervisor: qemu, format: raw, qemu: {accel: tcg%s}"
	for _, tt := range []struct{ name, recovery, change, says string }{
		{"memory", fmt.Sprintf(qemu, ""), "memory: 128MiB|memory: 4TiB", "memory"},
		{"processors", fmt.Sprintf(qemu, ""), "cpus: 1|cpus: 4000", "CPU"},
		{"program", fmt.Sprintf(qemu, ", binary: ./no-qemu"), "", "no-qemu"},
		{"machine", fmt.Sprintf(qemu, ", machine: abacus"), "", "machine type"},
		{"firmware", fmt.Sprintf(qemu, ", firmware: ./no.fd"), "generation: 1|generation: 2", "firmware"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := around(t, tt.recovery, scriptHost, "")
			if from, to, ok := strings.Cut(tt.change, "|"); ok {
				data, _ := os.ReadFile(filepath.Join(dir, "site.yaml"))
				write(t, filepath.Join(dir, "site.yaml"), []byte(strings.Replace(string(data), from, to, 1)))
			}
			says(t, must(t, dir, 0, "check", "web01"), "warning", tt.says)
			run(t, dir, "protect", "web01")
			refuses(t, dir, 4, tt.says)
		})
	}
}

// TestTooLargeForVHD: a VHD of more than 2040 GiB is read by no hypervisor.
func TestTooLargeForVHD(t *testing.T) {
	t.Parallel()
	dir := around(t, "hypervisor: none, format: raw", scriptHost, "")
	if err := os.Truncate(filepath.Join(dir, "d", "os.raw"), 2041<<30); err != nil {
		t.Skipf("no such file can be made here: %v", err)
	}
	run(t, dir, "protect", "web01")
	data, _ := os.ReadFile(filepath.Join(dir, "site.yaml"))
	write(t, filepath.Join(dir, "site.yaml"), []byte(strings.Replace(string(data), "none, format: raw}", "none}", 1)))
	says(t, must(t, dir, 3, "check", "web01"), "2.0 TiB", "vhd")
	refuses(t, dir, 3, "2040 GiB", "recovery.format")
}

package qemu_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/host/guesttest"
	"sitrep/internal/host/hosttest"
	"sitrep/internal/host/qemu"
)

// grace is far longer than a guest of ours takes.
const grace = 5 * time.Minute

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHost(t testing.TB, c qemu.Config) *qemu.Host {
	t.Helper()
	if c.Folder == "" {
		c.Folder = filepath.Join(t.TempDir(), "vms")
	}
	h, err := qemu.New(c)
	ok(t, err)
	return h
}

// long says that there is time for every variant.
func long() bool { return os.Getenv("SITREP_LONG") != "" }

// define is a VM with one disk, which boots.
func define(name, format, path string) host.Definition {
	return host.Definition{Name: name, Generation: 1, OS: "linux", CPUs: 1, Memory: guesttest.Memory,
		Disks: []host.Disk{{Name: "os", Path: path, Format: format, Size: guesttest.DiskSize, OS: true}}}
}

// up makes and starts a VM, which is deleted after the test.
func up(t testing.TB, h *qemu.Host, d host.Definition) {
	t.Helper()
	ok(t, h.Create(context.Background(), d))
	t.Cleanup(func() {
		if err := h.Delete(context.Background(), d.Name); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	ok(t, h.Start(context.Background(), d.Name))
}

// off says whether the VM has ended, for guesttest.Line.
func off(t testing.TB, h *qemu.Host, vm string) func() bool {
	return func() bool {
		p, err := h.State(context.Background(), vm)
		if err != nil {
			t.Error(err)
		}
		return p == host.Off
	}
}

func seeds() map[string][]byte {
	return map[string][]byte{"hello.txt": []byte("hello\n"), "etc/data.bin": bytes.Repeat([]byte("0123456789abcdef"), 20000), "empty": nil}
}

// found checks that the console tells the files.
func found(t testing.TB, console string, files map[string][]byte) {
	t.Helper()
	got := guesttest.Files(console)
	for name, data := range files {
		if got[name] != guesttest.Sum(data) {
			t.Errorf("the guest found %s as %q, it should be %s", name, got[name], guesttest.Sum(data))
		}
	}
	if t.Failed() {
		t.Logf("the console said:\n%s", console)
	}
}

func TestContract(t *testing.T) {
	g := guesttest.Build(t)
	hosttest.TestHost(t, func(t *testing.T) hosttest.Rig {
		h := newHost(t, qemu.Config{})
		return hosttest.Rig{Host: h, Grace: grace, Together: true,
			Define: func(t *testing.T, name string) host.Definition {
				path := filepath.Join(t.TempDir(), `os, "1".raw`)
				g.Disk(t, path, "raw", guesttest.Loop, seeds())
				d := define(name, "raw", path)
				d.NICs = []host.NIC{{Attach: host.Isolated}, {Attach: host.User, MAC: "52:54:00:00:00:01"}}
				return d
			},
			Written: func(t *testing.T, vm string) { guesttest.Line(t, h.ConsoleLog(vm), "@@ N 1", off(t, h, vm)) },
			Obeyed: func(t *testing.T, vm string) {
				guesttest.Line(t, h.ConsoleLog(vm), "@@ DONE", func() bool { return true })
			},
		}
	})
}

// TestFormats: a guest boots from every format, finds its files, writes, and finds what it wrote at the next start; and it does
// so from an overlay, which the disk does not notice.
func TestFormats(t *testing.T) {
	g := guesttest.Build(t)
	ctx := context.Background()
	formats := []string{"vhd", "vhdx"}
	if long() {
		formats = append(formats, "qcow2", "raw")
	}
	for _, format := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "os."+format)
			g.Disk(t, path, format, guesttest.Write, seeds())
			h, d := newHost(t, qemu.Config{}), define("vm", format, path)
			up(t, h, d)
			wrote := guesttest.Line(t, h.ConsoleLog("vm"), "@@ DONE", off(t, h, "vm"))
			found(t, wrote, seeds())
			ok(t, h.Stop(ctx, "vm", grace)) // it goes off by itself
			guesttest.SetMode(t, path, format, guesttest.Read)
			before, err := os.ReadFile(path)
			ok(t, err)

			d.Disposable = true
			up(t, h, d)
			read := guesttest.Line(t, h.ConsoleLog("vm"), "@@ DONE", off(t, h, "vm"))
			ok(t, h.Stop(ctx, "vm", grace))
			found(t, read, seeds())
			for _, name := range []string{"new-0", "marker"} {
				if a, b := guesttest.Files(wrote)[name], guesttest.Files(read)[name]; a == "" || a != b {
					t.Errorf("%s was written as %q and read as %q", name, a, b)
				}
			}
			after, err := os.ReadFile(path)
			ok(t, err)
			if !bytes.Equal(before, after) {
				t.Error("the disk of a disposable VM was changed")
			}
		})
	}
}

// TestFreeze: while the VM is held its counter stands still and its disk does not change; afterwards it goes on.
func TestFreeze(t *testing.T) {
	g := guesttest.Build(t)
	ctx := context.Background()
	formats := []string{"vhdx"} // which has something of its own to flush
	if long() {
		formats = append(formats, "raw")
	}
	for _, format := range formats {
		t.Run(format, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "os."+format)
			g.Disk(t, path, format, guesttest.Loop, nil)
			folder := filepath.Join(t.TempDir(), "vms")
			h := newHost(t, qemu.Config{Folder: folder})
			up(t, h, define("vm", format, path))
			guesttest.Line(t, h.ConsoleLog("vm"), "@@ N 2", off(t, h, "vm"))
			held, err := h.Freeze(ctx, "vm")
			ok(t, err)
			if !held {
				t.Fatal("not held")
			}
			console, err := os.ReadFile(h.ConsoleLog("vm"))
			ok(t, err)
			frozen, err := os.ReadFile(path)
			ok(t, err)
			copied := filepath.Join(t.TempDir(), "copy."+format)
			ok(t, os.WriteFile(copied, frozen, 0o644))

			// The run that froze it was killed: another one, which knows nothing, finds it frozen and thaws it.
			h2 := newHost(t, qemu.Config{Folder: folder})
			held, err = h2.Freeze(ctx, "vm")
			ok(t, err)
			if again, _ := os.ReadFile(path); !held || !bytes.Equal(frozen, again) {
				t.Errorf("held %v, and the disk of a frozen VM changed", held)
			}
			if now, _ := os.ReadFile(h.ConsoleLog("vm")); !bytes.Equal(console, now) {
				t.Error("the console of a frozen VM goes on")
			}
			ok(t, h2.Thaw(ctx, "vm"))
			guesttest.Line(t, h.ConsoleLog("vm"), fmt.Sprintf("@@ N %d", guesttest.Rounds(string(console))+2), off(t, h, "vm"))

			// What was copied is a disk that boots, and has at least what the guest knew to be durable.
			ok(t, h.Stop(ctx, "vm", 0)) // two emulated guests, one of which never rests, keep each other up
			guesttest.SetMode(t, copied, format, guesttest.Read)
			up(t, h, define("copy", format, copied))
			read := guesttest.Line(t, h.ConsoleLog("copy"), "@@ DONE", off(t, h, "copy"))
			n, sum := guesttest.Rounds(string(console)), guesttest.Files(read)["counter"]
			if sum != guesttest.Sum(fmt.Appendf(nil, "%d\n", n)) && sum != guesttest.Sum(fmt.Appendf(nil, "%d\n", n+1)) {
				t.Errorf("the counter of the copy is neither %d nor %d:\n%s", n, n+1, read)
			}
		})
	}
}

// TestPowerButton: a guest that obeys has everything on its disk, in its own last words; one that does not has its power cut.
func TestPowerButton(t *testing.T) {
	g := guesttest.Build(t)
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "os.vhdx")
	g.Disk(t, path, "vhdx", guesttest.Loop, seeds())
	h := newHost(t, qemu.Config{})
	up(t, h, define("vm", "vhdx", path))
	guesttest.Line(t, h.ConsoleLog("vm"), "@@ N 1", off(t, h, "vm"))
	held, err := h.Freeze(ctx, "vm") // a VM that a killed run has left frozen can be shut down too
	ok(t, err)
	if !held {
		t.Error("not held")
	}
	ok(t, h.Stop(ctx, "vm", grace))
	last := guesttest.Line(t, h.ConsoleLog("vm"), "@@ DONE", func() bool { return true })
	if !strings.Contains(last, "@@ POWERDOWN") {
		t.Errorf("the power button was not pressed:\n%s", last)
	}
	guesttest.SetMode(t, path, "vhdx", guesttest.Serve)
	ok(t, h.Start(ctx, "vm"))
	read := guesttest.Line(t, h.ConsoleLog("vm"), "@@ UP", off(t, h, "vm"))
	for name, sum := range guesttest.Files(last) {
		if guesttest.Files(read)[name] != sum {
			t.Errorf("%s is %q at the next start, not %s", name, guesttest.Files(read)[name], sum)
		}
	}

	// While it boots nobody hears the button: the grace expires.
	ok(t, h.Stop(ctx, "vm", 0))
	ok(t, h.Start(ctx, "vm"))
	ok(t, h.Stop(ctx, "vm", time.Millisecond))
	if !off(t, h, "vm")() {
		t.Error("the VM runs though its grace is over")
	}
}

// TestDataDisk: disks come in their order and with their names.
func TestDataDisk(t *testing.T) {
	g := guesttest.Build(t)
	dir := t.TempDir()
	d := define("vm", "raw", filepath.Join(dir, "os"))
	g.Disk(t, d.Disks[0].Path, "raw", guesttest.Read, seeds())
	guesttest.Data(t, filepath.Join(dir, "data"), "qcow2", map[string][]byte{"rows": []byte("1,2,3")})
	d.Disks = append(d.Disks, host.Disk{Name: "data", Path: filepath.Join(dir, "data"), Format: "qcow2", Size: guesttest.DataSize})
	h := newHost(t, qemu.Config{})
	up(t, h, d)
	read := guesttest.Line(t, h.ConsoleLog("vm"), "@@ DONE", off(t, h, "vm"))
	found(t, read, seeds())
	found(t, read, map[string][]byte{"data:rows": []byte("1,2,3")})
}

// TestSectors: QEMU takes what it is told of a disk's sectors, whatever the disk is attached to.
func TestSectors(t *testing.T) {
	guesttest.Build(t) // skips where there is no QEMU
	for _, bus := range []string{"", "virtio", "scsi"} {
		path := filepath.Join(t.TempDir(), "4k")
		ok(t, os.WriteFile(path, make([]byte, 8<<20), 0o600))
		h := newHost(t, qemu.Config{DiskBus: bus})
		d := define("vm", "raw", path)
		d.Disks[0].SectorSize = 4096
		up(t, h, d)
		if power, err := h.State(t.Context(), "vm"); err != nil || power != host.Running {
			t.Errorf("%q: it is %s, %v", bus, power, err)
		}
		ok(t, h.Delete(t.Context(), "vm"))
	}
}

// TestUEFI: a VM of generation 2 boots, with UEFI variables of its own, which Delete removes.
func TestUEFI(t *testing.T) {
	if !long() {
		t.Skip("a UEFI firmware takes its time: SITREP_LONG=1")
	}
	firmware := guesttest.Firmware(t)
	g := guesttest.Build(t)
	path := filepath.Join(t.TempDir(), "os.vhdx")
	g.Disk(t, path, "vhdx", guesttest.Read, seeds())
	h := newHost(t, qemu.Config{Firmware: firmware})
	d := define("vm", "vhdx", path)
	d.Generation, d.Memory = 2, guesttest.UEFIMemory
	up(t, h, d)
	found(t, guesttest.Line(t, h.ConsoleLog("vm"), "@@ DONE", off(t, h, "vm")), seeds())
	vars := filepath.Join(filepath.Dir(h.ConsoleLog("vm")), "vars.fd")
	if _, err := os.Stat(vars); err != nil {
		t.Error(err)
	}
	ok(t, h.Delete(context.Background(), "vm"))
	if _, err := os.Stat(filepath.Dir(vars)); !os.IsNotExist(err) {
		t.Errorf("the VM's folder: %v", err)
	}
}

func TestRefused(t *testing.T) {
	g := guesttest.Build(t)
	ctx := context.Background()
	dir := t.TempDir()
	path := filepath.Join(dir, "os")
	g.Disk(t, path, "raw", guesttest.Serve, nil)
	h := newHost(t, qemu.Config{Firmware: "/nowhere/OVMF_CODE.fd"})
	for name, change := range map[string]func(*host.Definition){
		"name":       func(d *host.Definition) { d.Name = "../vm" },
		"no name":    func(d *host.Definition) { d.Name = "" },
		"hidden":     func(d *host.Definition) { d.Name = ".vm" },
		"generation": func(d *host.Definition) { d.Generation = 3 },
		"firmware":   func(d *host.Definition) { d.Generation = 2 },
		"memory":     func(d *host.Definition) { d.Memory = 0 },
		"cpus":       func(d *host.Definition) { d.CPUs = 0 },
		"no disk":    func(d *host.Definition) { d.Disks = nil },
		"format":     func(d *host.Definition) { d.Disks[0].Format = "auto" },
		"missing":    func(d *host.Definition) { d.Disks[0].Path = "/nowhere/disk" },
		"relative":   func(d *host.Definition) { d.Disks[0].Path = "os" },
		"ours": func(d *host.Definition) {
			d.Disks[0].Path = filepath.Join(filepath.Dir(h.ConsoleLog("vm")), "overlay-0.qcow2")
		},
		"public": func(d *host.Definition) { d.NICs = []host.NIC{{PublicIP: true}} },
		"mac":    func(d *host.Definition) { d.NICs = []host.NIC{{MAC: "52:54"}} },
		"bridge": func(d *host.Definition) { d.NICs = []host.NIC{{Attach: host.Bridge}} },
		"attach": func(d *host.Definition) { d.NICs = []host.NIC{{Attach: "wire"}} },
	} {
		d := define("vm", "raw", path)
		change(&d)
		if err := h.Create(ctx, d); !fault.Is(err, fault.HostRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	sata := newHost(t, qemu.Config{DiskBus: "sata"})
	for _, x := range []struct {
		h      *qemu.Host
		format string
	}{{h, "vhdx"}, {sata, "raw"}} {
		if err := x.h.Takes(host.Disk{Path: path, Format: x.format, SectorSize: 4096}); !fault.Is(err, fault.PrerequisiteFail) {
			t.Errorf("sectors of 4096 bytes, %s: %v", x.format, err)
		}
	}
	d := define("vm", "qcow2", path) // a raw file that is said to be a qcow2
	ok(t, h.Create(ctx, d))
	if err := h.Start(ctx, "vm"); !fault.Is(err, fault.HostRefused) || !strings.Contains(err.Error(), "qcow2") {
		t.Errorf("a wrong format: %v", err)
	}
	ok(t, h.Delete(ctx, "vm"))

	// Two VMs on one disk: QEMU's own locks keep the second one out.
	up(t, h, define("vm", "raw", path))
	ok(t, h.Create(ctx, define("vm2", "raw", path)))
	if err := h.Start(ctx, "vm2"); !fault.Is(err, fault.HostRefused) || !strings.Contains(err.Error(), "lock") {
		t.Errorf("two VMs on one disk: %v", err)
	}
	none := newHost(t, qemu.Config{Binary: "qemu-system-none"})
	ok(t, none.Create(ctx, define("vm", "raw", path)))
	if err := none.Start(ctx, "vm"); !fault.Is(err, fault.HostRefused) || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("no QEMU: %v", err)
	}
}

// TestOverlaysAreFresh: what an earlier run of a disposable VM has written is not laid over disk files that may have changed.
func TestOverlaysAreFresh(t *testing.T) {
	g := guesttest.Build(t)
	ctx := context.Background()
	d := define("vm", "raw", filepath.Join(t.TempDir(), "os"))
	d.Disposable = true
	g.Disk(t, d.Disks[0].Path, "raw", guesttest.Serve, nil)
	h := newHost(t, qemu.Config{})
	ok(t, h.Create(ctx, d))
	overlay := filepath.Join(filepath.Dir(h.ConsoleLog("vm")), "overlay-0.qcow2")
	fresh, err := os.ReadFile(overlay)
	ok(t, err)
	ok(t, os.WriteFile(overlay, []byte("what the guest wrote"), 0o600))
	ok(t, h.Create(ctx, d))
	if again, err := os.ReadFile(overlay); err != nil || !bytes.Equal(fresh, again) {
		t.Errorf("the overlay was kept: %v", err)
	}
	up(t, h, d)
	ok(t, h.Create(ctx, d)) // it runs: nothing is done
	if p, err := h.State(ctx, "vm"); err != nil || p != host.Running {
		t.Errorf("%s: %v", p, err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]qemu.Config{
		"no folder": {}, "relative": {Folder: "vms"}, "bus": {Folder: "/vms", DiskBus: "ide"},
		"socket": {Folder: "/vms", QMP: map[string]string{"vm": "qmp"}},
	} {
		if _, err := qemu.New(c); !fault.Is(err, fault.SiteInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

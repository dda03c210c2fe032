package qemu

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/internal/host"
)

// TestRehearse: what QEMU would refuse when the VM is started is known before its disks are made.
func TestRehearse(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("QEMU is missing: apt-get install qemu-system-x86")
		}
		t.Skip("needs QEMU: apt-get install qemu-system-x86")
	}
	disks := func(n int) (list []host.Disk) {
		for range n {
			list = append(list, host.Disk{Name: "d", Path: "/not/there/yet.raw", Format: "raw", Size: 1 << 30})
		}
		return list
	}
	good := host.Definition{Name: "v", Generation: 1, OS: "linux", CPUs: 1, Memory: 128 << 20, Disks: disks(1)}
	for _, tt := range []struct {
		name   string
		config Config
		change func(*host.Definition)
		says   string // "" = it would run
	}{
		{"good", Config{}, func(*host.Definition) {}, ""},
		{"memory", Config{}, func(d *host.Definition) { d.Memory = 64 << 40 }, "memory"},
		{"processors", Config{}, func(d *host.Definition) { d.CPUs = 10000 }, "CPU"},
		{"bridge", Config{}, func(d *host.Definition) {
			d.NICs = []host.NIC{{Attach: host.Bridge, Switch: "br-none"}}
		}, "br"},
		{"seven disks on sata", Config{DiskBus: "sata"}, func(d *host.Definition) { d.Disks = disks(7) }, "disks.6"},
		{"six disks on sata", Config{DiskBus: "sata"}, func(d *host.Definition) { d.Disks = disks(6) }, ""},
		{"many disks on nvme", Config{}, func(d *host.Definition) { d.Disks = disks(40) }, "slot"},
		{"many disks on scsi", Config{DiskBus: "scsi"}, func(d *host.Definition) { d.Disks = disks(40) }, ""},
		{"firmware", Config{Firmware: "/not/there.fd"}, func(d *host.Definition) { d.Generation = 2 }, "firmware"},
		{"program", Config{Binary: "/not/there"}, func(*host.Definition) {}, "installed"},
		{"argument", Config{Args: []string{"-no-such-flag"}}, func(*host.Definition) {}, "no-such-flag"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tt.config.Folder = filepath.Join(dir, "vms")
			h, err := New(tt.config)
			if err != nil {
				t.Fatal(err)
			}
			d := good
			tt.change(&d)
			err = h.Rehearse(context.Background(), d)
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %q", err, tt.says)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("it has left %v", left)
			}
		})
	}
}

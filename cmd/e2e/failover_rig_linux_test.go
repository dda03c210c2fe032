package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sitrep/internal/host"
	"sitrep/internal/host/guesttest"
	"sitrep/internal/host/qemu"
)

// bootRig is a site whose VMs really run: at a source with QEMU, and, after a failover, at a recovery site with QEMU.
type bootRig struct {
	*rig
	guest            guesttest.Guest
	vms              []*bootVM
	format           string // of recovered disks
	more             string // of the site file
	source, recovery *qemu.Host
}

// bootVM is a VM with a disk that boots, and perhaps a data disk.
type bootVM struct {
	name, format string
	hooks        string
	boot         string // pattern of the boot check
	files        map[string][]byte
	data         map[string][]byte // nil: no data disk
}

func newBootRig(t *testing.T, format string, vms ...*bootVM) *bootRig {
	t.Helper()
	r := &bootRig{rig: newRig(t), guest: guesttest.Build(t), format: format, vms: vms}
	var err error
	r.source, err = qemu.New(qemu.Config{Folder: r.path("vms")})
	check(t, err)
	r.recovery, err = qemu.New(qemu.Config{Folder: r.path("recovered")})
	check(t, err)
	t.Cleanup(func() {
		for _, vm := range vms {
			for _, h := range []*qemu.Host{r.source, r.recovery} {
				for _, name := range []string{vm.name, vm.name + "-test"} {
					if err := h.Delete(context.Background(), name); err != nil {
						t.Log(err)
					}
				}
			}
		}
	})
	r.writeBootSite()
	return r
}

func (v *bootVM) osPath(r *bootRig) string   { return r.path("disks", v.name+"-os."+v.format) }
func (v *bootVM) dataPath(r *bootRig) string { return r.path("disks", v.name+"-data.raw") }

func (r *bootRig) writeBootSite() {
	r.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "vault: boots\nstore: {directory: ./store}\npolicies: [{name: gold, log_limit_percent: 100}]\nnetworks: [{name: lan}]\n")
	fmt.Fprintf(&b, "recovery:\n  host: dr\n  hypervisor: qemu\n  folder: ./recovered\n  format: %s\n  networks: [{name: dr-lan, attach: user, subnets: [{name: lan, cidr: 10.1.0.0/24}]}]\n", r.format)
	b.WriteString("network_mapping: [{from: lan, to: dr-lan}]\nvmm:\n  clouds:\n    - name: c\n      policy: gold\n      hosts:\n        - name: kvm\n          hypervisor: qemu\n          folder: ./vms\n          vms:\n")
	for i, v := range r.vms {
		check(r.T, os.MkdirAll(r.path("disks"), 0o755))
		fmt.Fprintf(&b, "            - name: %s\n              generation: 1\n              os: linux\n              cpus: 1\n              memory: %dMiB\n              shutdown_grace: 1m\n", v.name, guesttest.Memory>>20)
		fmt.Fprintf(&b, "              nics: [{network: lan, ip: 10.1.0.%d}]\n              boot_check: {console: %q, timeout: 4m}\n", 5+i, cmpOr(v.boot, "@@ UP"))
		if v.hooks != "" {
			fmt.Fprintf(&b, "              hooks: %s\n", v.hooks)
		}
		fmt.Fprintf(&b, "              disks:\n                - {name: os, path: %q, format: %s, os: true}\n", v.osPath(r), v.format)
		if v.data != nil {
			fmt.Fprintf(&b, "                - {name: data, path: %q, format: raw}\n", v.dataPath(r))
		}
	}
	b.WriteString(r.more)
	check(r.T, os.WriteFile(r.path("site.yaml"), []byte(b.String()), 0o600))
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// make makes a VM's disks, and the VM at its source, off.
func (r *bootRig) make(v *bootVM, mode guesttest.Mode) {
	r.Helper()
	r.guest.Disk(r.T, v.osPath(r), v.format, mode, v.files)
	d := host.Definition{Name: v.name, Generation: 1, OS: "linux", CPUs: 1, Memory: guesttest.Memory,
		Disks: []host.Disk{{Name: "os", Path: v.osPath(r), Format: v.format, Size: guesttest.DiskSize, OS: true}}}
	if v.data != nil {
		guesttest.Data(r.T, v.dataPath(r), "raw", v.data)
		d.Disks = append(d.Disks, host.Disk{Name: "data", Path: v.dataPath(r), Format: "raw", Size: guesttest.DataSize})
	}
	check(r.T, r.source.Create(context.Background(), d))
}

// power is what a VM does.
func (r *bootRig) power(h *qemu.Host, vm string) host.Power {
	r.Helper()
	p, err := h.State(context.Background(), vm)
	check(r.T, err)
	return p
}

// said waits until the console of a VM says a text, and returns what it said up to then.
func (r *bootRig) said(h *qemu.Host, vm, text string) string {
	r.Helper()
	return guesttest.Line(r.T, h.ConsoleLog(vm), text, func() bool {
		p, err := h.State(context.Background(), vm)
		return err == nil && p == host.Off
	})
}

// console is what a VM has said so far.
func (r *bootRig) console(h *qemu.Host, vm string) string {
	r.Helper()
	data, err := os.ReadFile(h.ConsoleLog(vm))
	check(r.T, err)
	return string(data)
}

// rounds waits until a guest that loops has done some more rounds.
func (r *bootRig) rounds(h *qemu.Host, vm string, n int) int {
	r.Helper()
	n += guesttest.Rounds(r.console(h, vm))
	r.said(h, vm, fmt.Sprintf("@@ N %d", n))
	return n
}

// tells fails the test unless a console tells of the files that a VM was made with, with their hashes.
func (r *bootRig) tells(console string, v *bootVM) {
	r.Helper()
	got := guesttest.Files(console)
	for path, data := range v.files {
		if got[path] != guesttest.Sum(data) {
			r.Fatalf("%s: file %s has the hash %q, want %q; the console says\n%s", v.name, path, got[path], guesttest.Sum(data), console)
		}
	}
	for path, data := range v.data {
		if got["data:"+path] != guesttest.Sum(data) {
			r.Fatalf("%s: file data:%s has the hash %q; the console says\n%s", v.name, path, got["data:"+path], console)
		}
	}
}

// image is a hash of the guest bytes of a disk, by QEMU.
func (r *bootRig) image(path, format string) string {
	r.Helper()
	return (&qemuGuest{path: path, qemu: map[string]string{"vhd": "vpc"}[format] + map[string]string{"raw": "raw", "vhdx": "vhdx", "qcow2": "qcow2"}[format]}).hash(r.T)
}

// storeBytes are hashes of everything that a store keeps of a VM but its ledger: pages, sums, points.
func (r *bootRig) storeBytes(vm string) map[string]string {
	r.Helper()
	out := map[string]string{}
	for _, path := range r.list(r.path("store", vm)) {
		if name := filepath.Base(path); name == "ledger.json" || strings.HasSuffix(name, "lock") {
			continue
		}
		f, err := os.Open(path)
		check(r.T, err)
		out[path] = hashOf(r.T, f)
		check(r.T, f.Close())
	}
	return out
}

// ledger reads fields of the ledger as it lies there.
func (r *bootRig) ledger(vm string) (l struct {
	Phase      string
	Generation uint64
	Points     []struct {
		ID    string
		CutAt time.Time `json:"cut_at"`
	}
}) {
	r.Helper()
	check(r.T, json.Unmarshal(read(r.T, r.path("store", vm, "ledger.json")), &l))
	return l
}

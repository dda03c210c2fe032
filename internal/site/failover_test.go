package site

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func vmOf(t *testing.T, s *Site, name string) *VM {
	t.Helper()
	vm, err := s.VM(name)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestFailoverSample(t *testing.T) {
	s := load(t, "failover.yaml")
	in := func(parts ...string) string { return filepath.Join(append([]string{s.Dir}, parts...)...) }
	addr := netip.MustParseAddr
	want := Recovery{
		Runner: Runner{Name: "dr-kvm", Hypervisor: QEMU, Folder: in("dr"), QEMU: &QEMUHost{
			Binary: in("bin", "qemu"), Accel: "kvm", Machine: "pc,usb=off", CPU: "host", Disk: "virtio",
			Firmware: in("fw", "code.fd"), Args: []string{"-k", "de"},
		}},
		Disks: DisksInFolder, Verify: true, Format: RecoverQCOW2,
		Networks: []*RecoveryNetwork{
			{Name: "dr-vnet", Attach: AttachBridge, Switch: "br0", Subnets: []Subnet{
				{"corp-lan", netip.MustParsePrefix("10.1.0.0/24"), addr("10.1.0.1"), []netip.Addr{addr("10.1.0.9"), addr("10.1.0.10")}},
				{"six", netip.MustParsePrefix("fd00::/64"), addr("fd00::1"), nil},
			}},
			{Name: "dr-back", Attach: AttachBridge, Switch: "dr-back"},
			{Name: "dr-quiet", Attach: AttachIsolated},
			{Name: "dr-out", Attach: AttachUser},
		},
	}
	if !reflect.DeepEqual(s.Recovery, want) {
		t.Errorf("recovery %+v", s.Recovery)
	}
	web := vmOf(t, s, "web01")
	if h := web.Host; h.Folder != in("vms") || !reflect.DeepEqual(h.QEMU, &QEMUHost{Binary: "qemu-system-x86_64", Accel: "tcg",
		Machine: "q35", CPU: "max", Disk: "nvme", Firmware: DefaultFirmware}) {
		t.Errorf("host %+v", h)
	}
	if want := (Hooks{in("h", "freeze.sh"), in("h", "thaw.sh"), in("h", "reip.sh"), in("h", "cleanup.sh"), 90 * time.Second}); web.Hooks != want {
		t.Errorf("hooks %+v", web.Hooks)
	}
	if want := (BootCheck{Console: "login:", Timeout: 3 * time.Minute}); *web.BootCheck != want {
		t.Errorf("boot check %+v", web.BootCheck)
	}
	if web.ShutdownGrace != 30*time.Second || web.QMP != in("run", "web01.sock") {
		t.Errorf("%+v", web)
	}
	if want := []NIC{
		{Network: "back", MAC: "52:54:00:00:00:0a"},
		{Network: "corp-lan", IP: addr("10.0.0.5"), RecoveryIP: addr("10.1.0.5"), MAC: "52:54:00:00:00:01", PublicIP: true, Primary: true},
		{Network: "corp-lan", RecoveryIP: addr("fd00::5")},
		{Network: "lab", RecoveryIP: addr("192.168.1.1")},
	}; !reflect.DeepEqual(web.NICs, want) {
		t.Errorf("NICs %+v", web.NICs)
	}
	if vm := vmOf(t, s, "web02"); *vm.BootCheck != (BootCheck{TCP: 22, Timeout: DefaultBootTimeout}) || vm.Hooks.Timeout != DefaultHookTimeout {
		t.Errorf("%+v", vm)
	}
	db := vmOf(t, s, "db01")
	if *db.BootCheck != (BootCheck{Command: in("h", "up.sh"), Timeout: DefaultBootTimeout}) || db.ShutdownGrace != 0 {
		t.Errorf("%+v", db)
	}
	if want := (ScriptHost{in("h", "create"), in("h", "start"), in("h", "stop"), in("h", "state"), in("h", "delete"), in("h", "freeze"), in("h", "thaw"),
		5 * time.Minute}); *db.Host.Script != want {
		t.Errorf("scripts %+v", db.Host.Script)
	}
	if h := vmOf(t, s, "db02").Host; h.Script != nil || h.QEMU != nil || h.HyperV != nil || h.Folder != "" {
		t.Errorf("%+v", h)
	}
	if want := (HyperVHost{`CONTOSO\admin@hv01.contoso.local`, "nowhere", 2 * time.Minute}); *vmOf(t, s, "dc01").Host.HyperV != want {
		t.Errorf("%+v", vmOf(t, s, "dc01").Host.HyperV)
	}
}

// A recovery host of which nothing but its name is told is one where disks are made, and no VM.
func TestRecoveryDefaults(t *testing.T) {
	s := load(t, "contoso.yaml")
	if want := (Runner{Name: "dr-kvm", Hypervisor: None, Folder: filepath.Join(s.Dir, "recovered")}); s.Recovery.Runner != want || s.Recovery.Format != RecoverVHD ||
		s.Recovery.Disks != DisksInFolder || !s.Recovery.Verify {
		t.Errorf("%+v", s.Recovery)
	}
	if r := load(t, "minimal.yaml").Recovery; !reflect.DeepEqual(r, Recovery{}) {
		t.Errorf("no recovery site: %+v", r)
	}
	if r := load(t, "recovery-disks-in-store.yaml").Recovery; r.Disks != DisksInStore || r.Verify || r.Format != RecoverVHD {
		t.Errorf("%+v", r)
	}
	if r := load(t, "recovery-script.yaml").Recovery; r.Script == nil || r.Script.Timeout != DefaultScriptTimeout || r.Script.Create == "" {
		t.Errorf("%+v", r)
	}
}

// planOf is a site with n VMs, and a plan of them in the given number of groups.
func planOf(n, groups int) string {
	var b, p strings.Builder
	b.WriteString("vault: v\nstore: {directory: s}\npolicies: [{name: p}]\nvmm: {clouds: [{name: c, policy: p, hosts: [{name: h, hypervisor: none, vms: [\n")
	list := make([][]string, groups)
	for i := range n {
		fmt.Fprintf(&b, "{name: v%d, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: d, path: d%[1]d}]},\n", i)
		list[i%groups] = append(list[i%groups], fmt.Sprint("v", i))
	}
	for _, g := range list {
		fmt.Fprintf(&p, "{vms: [%s]},", strings.Join(g, ","))
	}
	return b.String() + "]}]}]}\nrecovery_plans: [{name: p, groups: [" + p.String() + "]}]\n"
}

func TestPlanLimits(t *testing.T) {
	if _, err := Parse("site.yaml", []byte(planOf(MaxPlanVMs, MaxGroups))); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		planOf(MaxPlanVMs+1, 1):          "a recovery plan has at most 100 VMs",
		planOf(MaxPlanVMs+20, 2):         "a recovery plan has at most 100 VMs",
		planOf(MaxGroups+1, MaxGroups+1): "groups[8]: a recovery plan has at most 8 groups",
	} {
		all := errorsOf(t, text)
		if len(all.List) != 1 || !strings.Contains(all.List[0].Msg, want) {
			t.Errorf("want %q once, got %v", want, all)
		}
	}
}

// What has a secret in the wrong place is not repeated, even where it does not look like one.
func TestHostValuesAreNotRepeated(t *testing.T) {
	for _, host := range []string{
		"hypervisor: qemu, qemu: {args: ['Hunter2 ']}", "hypervisor: qemu, qemu: {args: 'Hunter2'}", "hypervisor: qemu, qemu: {args: [{Hunter2: 1}]}",
		"hypervisor: hyperv, hyperv: {ssh: 'admin:Hunter2@hv01'}", "hypervisor: hyperv, hyperv: {ssh: '-oPassword Hunter2'}",
		"hypervisor: hyperv, hyperv: {ssh: [Hunter2]}",
	} {
		all := errorsOf(t, "recovery: {host: h, "+host+"}\n")
		found := false
		for _, e := range all.List {
			found = found || strings.HasPrefix(e.Path, "recovery.")
		}
		if !found || strings.Contains(fmt.Sprintf("%+v", all), "Hunter2") {
			t.Errorf("%s: %v", host, all)
		}
	}
}

func TestSSHText(t *testing.T) {
	for _, s := range []string{"hv01", "admin@hv01.contoso.local", `DOM\admin@10.0.0.1`, "a_b.c-d@h"} {
		if !sshText.MatchString(s) {
			t.Error(s)
		}
	}
	for _, s := range []string{"", "-oProxyCommand=x", "-l@h", "a@-h", "a b@h", "a@h -x", "a@h;x", "a:b@h", "a@b@c", "@h", "a@", "h:22", "a@h\n"} {
		if sshText.MatchString(s) {
			t.Error(s)
		}
	}
}

// checkFailover checks what holds of everything that a failover is told, whatever the file said.
func checkFailover(t *testing.T, s *Site) {
	t.Helper()
	checkRunner(t, s, s.Recovery.Runner)
	ips, macs := map[netip.Addr]bool{}, map[string]bool{}
	for _, vm := range s.VMs() {
		checkRunner(t, s, vm.Host.Runner)
		checkPaths(t, vm.Hooks.Freeze, vm.Hooks.Thaw, vm.Hooks.Failover, vm.Hooks.Cleanup, vm.QMP)
		if (vm.Hooks.Freeze == "") != (vm.Hooks.Thaw == "") || vm.Hooks != (Hooks{}) && vm.Hooks.Timeout <= 0 || len(vm.QMP) > maxSocket || vm.ShutdownGrace < 0 {
			t.Fatalf("VM %+v", vm)
		}
		if b := vm.BootCheck; b != nil {
			checkPaths(t, b.Command)
			if (b.Console != "") == (b.TCP != 0 || b.Command != "") || b.TCP != 0 && b.Command != "" || b.Timeout <= 0 {
				t.Fatalf("boot check %+v", b)
			}
		}
		for _, nic := range vm.NICs {
			if nic.RecoveryIP.IsValid() && ips[nic.RecoveryIP] || nic.MAC != "" && macs[nic.MAC] {
				t.Fatalf("NIC %+v is not the only one", nic)
			}
			ips[nic.RecoveryIP], macs[nic.MAC] = true, true
		}
	}
	for _, n := range s.Recovery.Networks {
		if strings.EqualFold(n.Name, Isolated) || (n.Switch != "") != (n.Attach == AttachBridge) {
			t.Fatalf("network %+v", n)
		}
		for _, sub := range n.Subnets {
			for _, a := range append(sub.Reserved, sub.Gateway) {
				if a.IsValid() && !sub.CIDR.Contains(a) {
					t.Fatalf("subnet %+v", sub)
				}
			}
		}
	}
	for _, p := range s.RecoveryPlans {
		if len(p.Groups) == 0 || len(p.Groups) > MaxGroups {
			t.Fatalf("plan %+v", p)
		}
	}
}

func checkRunner(t *testing.T, s *Site, r Runner) {
	t.Helper()
	if (r.QEMU != nil) != (r.Hypervisor == QEMU) || (r.HyperV != nil) != (r.Hypervisor == HyperV) || r.Script != nil && r.Hypervisor != Script {
		t.Fatalf("host %+v", r)
	}
	checkPaths(t, r.Folder)
	if d := s.Store.Directory; d != "" && r.Folder != "" && (within(d, r.Folder) || within(r.Folder, d)) {
		t.Fatalf("folder %s and store %s", r.Folder, d)
	}
	if x := r.Script; x != nil {
		checkPaths(t, x.Create, x.Start, x.Stop, x.State, x.Delete, x.Freeze, x.Thaw)
		if x.Start == "" || x.Stop == "" || x.State == "" || (x.Freeze == "") != (x.Thaw == "") || x.Timeout <= 0 {
			t.Fatalf("scripts %+v", x)
		}
	}
}

// checkPaths checks that each path is absolute and clean, or absent.
func checkPaths(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if p != "" && (!filepath.IsAbs(p) || filepath.Clean(p) != p) {
			t.Fatalf("path %q", p)
		}
	}
}

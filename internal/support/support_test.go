package support

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
)

// good is a VM that breaks no rule, in Azure or not.
func good() VM {
	return VM{
		Name: "web01", Generation: 1, OS: "windows", Azure: true,
		Disks: []Disk{
			{Name: "os", ID: "1", OS: true, Size: 127 * gib, SectorSize: 512, Format: "vhd"},
			{Name: "data", ID: "2", Size: 10 * gib, SectorSize: 512, Format: "vhdx"},
		},
		NICs: []NIC{{Network: "lan", IP: netip.MustParseAddr("10.0.0.5")}, {Network: "dmz"}},
	}
}

func other() []VM {
	return []VM{{Name: "db01", Disks: []Disk{{Name: "os", ID: "3"}, {Name: "log", ID: ""}}}}
}

func dataDisks(n int) (out []Disk) {
	for i := range n {
		out = append(out, Disk{Name: fmt.Sprint("d", i), Size: gib})
	}
	return out
}

// cases has for each rule VMs that keep it (disk and msg empty) and VMs that break it.
type ruleCase struct {
	name   string
	change func(*VM)
	breaks bool
	disk   string // named by the finding
	msg    string // in the finding
}

func cases() map[string][]ruleCase {
	osOf := func(f func(*Disk)) func(*VM) { return func(vm *VM) { f(&vm.Disks[0]) } }
	dataOf := func(f func(*Disk)) func(*VM) { return func(vm *VM) { f(&vm.Disks[1]) } }
	return map[string][]ruleCase{
		"os-disk-count": {
			{"one", func(*VM) {}, false, "", ""},
			{"none", osOf(func(d *Disk) { d.OS = false }), true, "", "none of its disks"},
			{"no disk at all", func(vm *VM) { vm.Disks = nil }, true, "", "none of its disks"},
			{"two", dataOf(func(d *Disk) { d.OS = true }), true, "", "os, data"},
		},
		"disk-too-large": {
			{"64 TiB", func(vm *VM) { vm.Azure = false; vm.Disks[1].Size = 1 << 46 }, false, "", ""},
			{"2 PiB", func(vm *VM) { vm.Azure = false; vm.Disks[1].Size = 2 << 50 }, true, "data", "at most 70368744177664"},
			{"excluded", func(vm *VM) { vm.Disks[1].Size, vm.Disks[1].Excluded = 2<<50, true }, false, "", ""},
		},
		"too-many-points": {
			{"5000", func(vm *VM) { vm.Points = 5000 }, false, "", ""},
			{"10000", func(vm *VM) { vm.Points = 10000 }, true, "", "holds 5000"},
			{"of many disks", func(vm *VM) { vm.Points, vm.Disks = 2000, append(vm.Disks, dataDisks(14)...) }, true, "", "holds 1927"},
		},
		"os-disk-excluded": {
			{"data", dataOf(func(d *Disk) { d.Excluded = true }), false, "", ""},
			{"os", osOf(func(d *Disk) { d.Excluded = true }), true, "os", "excluded"},
		},
		"shared-disk": {
			{"unknown", dataOf(func(d *Disk) { d.ID = "" }), false, "", ""},
			{"another VM", dataOf(func(d *Disk) { d.ID = "3" }), true, "data", "disk os of VM db01"},
			{"the same VM", dataOf(func(d *Disk) { d.ID = "1" }), true, "data", "disk os of this VM"},
		},
		"disk-added": {
			{"not protected", func(*VM) {}, false, "", ""},
			{"the same", func(vm *VM) { vm.Protected = []string{"os", "data"} }, false, "", ""},
			{"excluded", func(vm *VM) { vm.Protected = []string{"os"}; vm.Disks[1].Excluded = true }, false, "", ""},
			{"added", func(vm *VM) { vm.Protected = []string{"os"} }, true, "data", "added"},
			{"all added", func(vm *VM) { vm.Protected = []string{}; vm.Disks = vm.Disks[:1] }, true, "os", "added"},
		},
		"disk-removed": {
			{"the same", func(vm *VM) { vm.Protected = []string{"data", "os"} }, false, "", ""},
			{"removed", func(vm *VM) { vm.Protected = []string{"os", "data", "log"} }, true, "log", "no longer"},
			{"excluded later", func(vm *VM) { vm.Protected = []string{"os", "data"}; vm.Disks[1].Excluded = true }, true, "data", "no longer"},
		},
		"azure-vm-name": {
			{"one letter", func(vm *VM) { vm.Name = "a" }, false, "", ""},
			{"63", func(vm *VM) { vm.Name = strings.Repeat("a", 63) }, false, "", ""},
			{"hyphen inside", func(vm *VM) { vm.Name = "1-a--2" }, false, "", ""},
			{"64", func(vm *VM) { vm.Name = strings.Repeat("a", 64) }, true, "", "63"},
			{"empty", func(vm *VM) { vm.Name = "" }, true, "", "63"},
			{"dot", func(vm *VM) { vm.Name = "web.01" }, true, "", "letters"},
			{"underscore", func(vm *VM) { vm.Name = "web_01" }, true, "", "letters"},
			{"first", func(vm *VM) { vm.Name = "-web" }, true, "", "begin"},
			{"last", func(vm *VM) { vm.Name = "web-" }, true, "", "end"},
			{"newline", func(vm *VM) { vm.Name = "web\n" }, true, "", "end"},
		},
		"azure-premium-policy": {
			{"standard", func(vm *VM) { vm.CopyFrequency, vm.Points = 30*time.Second, 500 }, false, "", ""},
			{"premium at the limits", func(vm *VM) { vm.Premium, vm.CopyFrequency, vm.Points = true, 15*time.Minute, 100 }, false, "", ""},
			{"premium, 30 s", func(vm *VM) { vm.Premium, vm.CopyFrequency, vm.Points = true, 30*time.Second, 12 }, true, "", "every 30s"},
			{"premium, 5 min", func(vm *VM) { vm.Premium, vm.CopyFrequency, vm.Points = true, 5*time.Minute, 12 }, true, "", "every 5m0s"},
			{"premium, many points", func(vm *VM) { vm.Premium, vm.CopyFrequency, vm.Points = true, 15*time.Minute, 101 }, true, "", "101"},
		},
		"azure-os-disk-size": {
			{"generation 1 at the limit", osOf(func(d *Disk) { d.Size = 2048 * gib }), false, "", ""},
			{"generation 1 above", osOf(func(d *Disk) { d.Size = 2048*gib + 512 }), true, "os", "2199023256064 bytes, and Azure takes at most 2048 GiB"},
			{"generation 2 at the limit", func(vm *VM) { gen2(vm); vm.Disks[0].Size = 300 * gib }, false, "", ""},
			{"generation 2 above", func(vm *VM) { gen2(vm); vm.Disks[0].Size = 301 * gib }, true, "os", "301 GiB, and Azure takes at most 300 GiB for generation 2"},
			{"data disk", dataOf(func(d *Disk) { d.Size = 2049 * gib }), false, "", ""},
		},
		"azure-data-disk-size": {
			{"at the limit", dataOf(func(d *Disk) { d.Size = 4095 * gib }), false, "", ""},
			{"excluded", dataOf(func(d *Disk) { d.Size = 5000 * gib; d.Excluded = true }), false, "", ""},
			{"above", dataOf(func(d *Disk) { d.Size = 4096 * gib }), true, "data", "4096 GiB, and Azure takes at most 4095 GiB"},
		},
		"azure-data-disk-count": {
			{"16", func(vm *VM) { vm.Disks = append(vm.Disks[:1], dataDisks(16)...) }, false, "", ""},
			{"17, one excluded", func(vm *VM) { vm.Disks = append(vm.Disks[:1], dataDisks(17)...); vm.Disks[3].Excluded = true }, false, "", ""},
			{"17", func(vm *VM) { vm.Disks = append(vm.Disks[:1], dataDisks(17)...) }, true, "", "17 data disks"},
		},
		"azure-generation-2": {
			{"Windows", gen2, false, "", ""},
			{"generation 1 Linux", func(vm *VM) { vm.OS = "linux"; vm.NICs = nil }, false, "", ""},
			{"Linux", func(vm *VM) { gen2(vm); vm.OS = "linux"; vm.NICs = nil }, true, "", "generation 2 and its system is linux"},
			{"other", func(vm *VM) { gen2(vm); vm.OS = "other" }, true, "", "system is other"},
		},
		"azure-generation-2-format": {
			{"vhdx", gen2, false, "", ""},
			{"unknown", func(vm *VM) { gen2(vm); vm.Disks[0].Format = "" }, false, "", ""},
			{"data disk", func(vm *VM) { gen2(vm); vm.Disks[1].Format = "vhd" }, false, "", ""},
			{"vhd", func(vm *VM) { gen2(vm); vm.Disks[0].Format = "vhd" }, true, "os", "format vhd"},
		},
		"azure-sector-size": {
			{"unknown", dataOf(func(d *Disk) { d.SectorSize = 0 }), false, "", ""},
			{"excluded", dataOf(func(d *Disk) { d.SectorSize = 4096; d.Excluded = true }), false, "", ""},
			{"4096", dataOf(func(d *Disk) { d.SectorSize = 4096 }), true, "data", "4096 bytes"},
		},
		"azure-disk-format": {
			{"vhd", dataOf(func(d *Disk) { d.Format = "vhd" }), false, "", ""},
			{"excluded", dataOf(func(d *Disk) { d.Format = "raw"; d.Excluded = true }), false, "", ""},
			{"raw", dataOf(func(d *Disk) { d.Format = "raw" }), true, "data", "raw"},
		},
		"azure-static-ip-linux": {
			{"Windows", func(*VM) {}, false, "", ""},
			{"DHCP", func(vm *VM) { vm.OS = "linux"; vm.NICs = vm.NICs[1:] }, false, "", ""},
			{"Linux", func(vm *VM) { vm.OS = "linux" }, true, "", "network lan has the fixed address 10.0.0.5"},
		},
		"azure-ipv6": {
			{"mapped", func(vm *VM) { vm.NICs[0].IP = netip.MustParseAddr("::ffff:10.0.0.5") }, false, "", ""},
			{"IPv6", func(vm *VM) { vm.NICs[1].IP = netip.MustParseAddr("fd00::5") }, true, "", "network dmz has the IPv6 address fd00::5"},
		},
	}
}

func gen2(vm *VM) { vm.Generation, vm.Disks[0].Format = 2, "vhdx" }

func TestRules(t *testing.T) {
	all := cases()
	for _, r := range Rules() {
		list := all[r.ID]
		broken := func(c ruleCase) bool { return c.breaks }
		kept := func(c ruleCase) bool { return !c.breaks }
		if !slices.ContainsFunc(list, broken) || !slices.ContainsFunc(list, kept) {
			t.Errorf("%s: needs a case that keeps it and one that breaks it", r.ID)
		}
		for _, c := range list {
			t.Run(r.ID+"/"+c.name, func(t *testing.T) { checkCase(t, r, c) })
		}
		delete(all, r.ID)
	}
	for id := range all {
		t.Errorf("cases of %s, which is no rule", id)
	}
}

// checkCase wants exactly one finding of the rule, or none at all; and none of an Azure rule outside Azure.
func checkCase(t *testing.T, r Rule, c ruleCase) {
	vm := good()
	c.change(&vm)
	var of []Finding
	for _, f := range Check(vm, other()) {
		if f.Rule == r.ID {
			of = append(of, f)
		}
	}
	if !c.breaks {
		if got := Check(vm, other()); len(got) != 0 {
			t.Fatalf("findings %v", got)
		}
		return
	}
	if len(of) != 1 {
		t.Fatalf("findings %v", of)
	}
	f := of[0]
	if f.VM != vm.Name || f.Disk != c.disk || f.Severity != r.Severity || !strings.Contains(f.Message, c.msg) || f.Advice == "" || strings.Contains(f.Advice, "{") {
		t.Errorf("%+v", f)
	}
	vm.Azure = false
	found := slices.ContainsFunc(Check(vm, other()), func(f Finding) bool { return f.Rule == r.ID })
	if found == r.AzureOnly {
		t.Errorf("outside Azure: found %v", found)
	}
}

func TestTableIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rules() {
		if r.ID == "" || seen[r.ID] || r.Source == "" || r.Says == "" || r.Advice == "" || r.check == nil ||
			r.Severity != Error && r.Severity != Warning || strings.HasPrefix(r.ID, "azure-") != r.AzureOnly {
			t.Errorf("%+v", r)
		}
		seen[r.ID] = true
	}
	for _, row := range Unchecked() {
		if row.Source == "" || row.Says == "" {
			t.Errorf("%+v", row)
		}
	}
}

// A VM is among the others when all VMs of the site are passed: that is not sharing.
func TestOwnNameIsPassedOver(t *testing.T) {
	vm := good()
	if got := Check(vm, append(other(), vm)); len(got) != 0 {
		t.Error(got)
	}
}

// Of nothing but zero values only the missing OS disk is known to be wrong outside Azure.
func TestUnknownFactsBreakNoRule(t *testing.T) {
	vm := VM{Name: "v", Azure: true, Disks: []Disk{{Name: "a", OS: true}, {Name: "b"}}}
	if got := Check(vm, []VM{{Name: "w", Disks: []Disk{{Name: "a"}}}}); len(got) != 0 {
		t.Error(got)
	}
}

func TestErr(t *testing.T) {
	vm := good()
	vm.OS, vm.Disks[1].Format = "linux", "raw"
	warnings := Check(vm, nil)
	if len(warnings) != 2 || Err(warnings) != nil || Err(nil) != nil {
		t.Errorf("%v: %v", warnings, Err(warnings))
	}
	vm.Disks[1].SectorSize = 4096
	err := Err(Check(vm, nil))
	f := fault.Find(err)
	if f == nil || f.Code != fault.PrerequisiteFail || f.Class() != fault.Prerequisite || f.VM != "web01" || f.Disk != "data" {
		t.Fatalf("%+v", f)
	}
	if !strings.HasPrefix(err.Error(), "VM web01: disk data: its logical sectors have 4096 bytes, and Azure takes 512 only (azure-sector-size). Copy") {
		t.Error(err)
	}
	vm.Disks[0].SectorSize = 4096
	if err := Err(Check(vm, nil)); !strings.Contains(err.Error(), "2 prerequisites are not met; the first: ") {
		t.Error(err)
	}
}

func TestFindingForPeopleAndScripts(t *testing.T) {
	f := Finding{"web01", "os", "rule", Error, "it is so", "Do this."}
	if got := f.String(); got != "VM web01, disk os: error: it is so (rule). Do this." {
		t.Error(got)
	}
	b, err := json.Marshal(f)
	if err != nil || string(b) != `{"vm":"web01","disk":"os","rule":"rule","severity":"error","message":"it is so","advice":"Do this."}` {
		t.Errorf("%s %v", b, err)
	}
}

package site

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

const samples = "../../testdata/sites"

func load(t *testing.T, name string) *Site {
	t.Helper()
	s, err := Load(durable.OS(), filepath.Join(samples, "valid", name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestValidSamples(t *testing.T) {
	list, err := filepath.Glob(samples + "/valid/*.yaml")
	if err != nil || len(list) < 3 {
		t.Fatal(list, err)
	}
	for _, name := range list {
		s := load(t, filepath.Base(name))
		if !filepath.IsAbs(s.Path) || s.Dir != filepath.Dir(s.Path) {
			t.Errorf("%s: path %q, folder %q", name, s.Path, s.Dir)
		}
		for _, vm := range s.VMs() {
			systems := 0
			for _, d := range vm.Disks {
				if !filepath.IsAbs(d.Path) {
					t.Errorf("%s: %q is not absolute", name, d.Path)
				}
				if d.OS {
					systems++
				}
			}
			if systems != 1 || vm.Policy() == nil || vm.Host == nil {
				t.Errorf("%s: VM %s: %+v", name, vm.Name, vm)
			}
		}
	}
}

// wantLine is "# want: LINE:COL: substring" at the top of an invalid sample.
var wantLine = regexp.MustCompile(`^# want: (\d+:\d+: .+)$`)

func TestInvalidSamples(t *testing.T) {
	list, err := filepath.Glob(samples + "/invalid/*.yaml")
	if err != nil || len(list) < 10 {
		t.Fatal(list, err)
	}
	for _, name := range list {
		t.Run(filepath.Base(name), func(t *testing.T) { checkInvalid(t, name) })
	}
}

func checkInvalid(t *testing.T, name string) {
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, line := range strings.Split(string(data), "\n") {
		m := wantLine.FindStringSubmatch(strings.TrimSuffix(line, "\r"))
		if m == nil {
			break
		}
		want = append(want, m[1])
	}
	_, err = Load(durable.OS(), name)
	var all *Errors
	if !errors.As(err, &all) || !fault.Is(err, fault.SiteInvalid) {
		t.Fatalf("want *Errors of code %s, got %v", fault.SiteInvalid, err)
	}
	got := strings.Split(err.Error(), "\n")
	for i := 0; i < max(len(got), len(want)); i++ {
		switch {
		case i >= len(got):
			t.Errorf("not reported: %s", want[i])
		case i >= len(want):
			t.Errorf("not wanted: %s", got[i])
		default:
			place, text, _ := strings.Cut(want[i], ": ")
			rest, ok := strings.CutPrefix(got[i], name+":"+place+": ")
			if !ok || !strings.Contains(rest, text) {
				t.Errorf("want %s\n got %s", want[i], got[i])
			}
		}
	}
}

func TestExample(t *testing.T) {
	s := load(t, "contoso.yaml")
	p := s.Policies[0]
	wantPolicy := &Policy{
		Name: "gold", CopyFrequency: 5 * time.Minute, RecoveryPoints: 12, AppConsistentEvery: time.Hour, LogLimitPercent: 50,
		ResyncWindow: Window{18*60 + 30, 6 * 60}, AutoResync: true, BlockSize: 65536, Apply: ApplyHere, JobRetention: 720 * time.Hour, MassiveChange: DefaultMassiveChange, SourceReserve: DefaultSourceReserve(),
		Bandwidth: Bandwidth{[]BandwidthStep{{7 * 60, 2500000}, {19 * 60, 0}}},
	}
	if !reflect.DeepEqual(p, wantPolicy) {
		t.Errorf("policy %+v", p)
	}
	if s.Vault != "contoso-dr" || s.Store.Directory != filepath.Join(s.Dir, "dr") || s.Recovery.Name != "dr-kvm" || s.VMM.Server != "vmm01.contoso.local" {
		t.Errorf("%+v", s)
	}
	vm, err := s.VM("web01")
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Cloud("gold-cloud")
	if err != nil {
		t.Fatal(err)
	}
	wantVM := &VM{
		Name: "web01", Cloud: c, Host: c.Hosts[0], Generation: 2, OS: Linux, CPUs: 2, Memory: 2 << 30,
		Disks: []*Disk{
			{"os", filepath.Join(s.Dir, "disks", "web01-os.vhdx"), true, FormatAuto, nil},
			{"data", filepath.Join(s.Dir, "disks", "web01-data.vhdx"), false, FormatAuto, nil},
		},
		NICs:          []NIC{{Network: "corp-lan", IP: netip.MustParseAddr("10.0.0.5"), Primary: true}},
		ShutdownGrace: DefaultShutdownGrace,
	}
	if !reflect.DeepEqual(vm, wantVM) {
		t.Errorf("VM %+v", vm)
	}
	plan, err := s.Plan("shop")
	if err != nil {
		t.Fatal(err)
	}
	db, _ := s.VM("db01")
	wantPlan := &Plan{"shop", []Group{
		{VMs: []*VM{db}, Post: []Action{{Script: filepath.Join(s.Dir, "hooks", "check-db.sh"), Timeout: 5 * time.Minute}}},
		{VMs: []*VM{vm}, Pre: []Action{{Manual: "Point DNS at the recovery site"}}},
	}}
	if !reflect.DeepEqual(plan, wantPlan) {
		t.Errorf("plan %+v", plan)
	}
	if len(c.VMs()) != 2 || c.VMs()[1] != db || !db.Disks[0].OS || db.Disks[0].Format != FormatVHD {
		t.Errorf("cloud %+v, db01 %+v", c, db)
	}
}

func TestDefaults(t *testing.T) {
	s := load(t, "minimal.yaml")
	want := &Policy{
		Name: "p", CopyFrequency: DefaultCopyFrequency, RecoveryPoints: DefaultRecoveryPoints, LogLimitPercent: DefaultLogLimitPercent,
		ResyncWindow: DefaultResyncWindow(), AutoResync: true, BlockSize: DefaultBlockSize, Apply: ApplyHere, JobRetention: DefaultJobRetention, MassiveChange: DefaultMassiveChange, SourceReserve: DefaultSourceReserve(),
	}
	if !reflect.DeepEqual(s.Policies[0], want) {
		t.Errorf("%+v", s.Policies[0])
	}
	vm := s.VMs()[0]
	if vm.Memory != 512<<20 || !vm.Disks[0].OS || vm.Disks[0].Path != filepath.Clean("/images/v.raw") && filepath.Separator == '/' {
		t.Errorf("%+v %+v", vm, vm.Disks[0])
	}
}

func TestAzureSample(t *testing.T) {
	s := load(t, "azure.yaml")
	if !s.InAzure() || load(t, "contoso.yaml").InAzure() {
		t.Error("InAzure")
	}
	want := &Policy{
		Name: "silver", CopyFrequency: 15 * time.Minute, RecoveryPoints: 1, LogLimitPercent: 100, ResyncWindow: Window{60, 330},
		BlockSize: 4096, Bandwidth: Bandwidth{[]BandwidthStep{{0, 2500000}}}, Apply: ApplyElsewhere, JobRetention: 24 * time.Hour, MassiveChange: 80, SourceReserve: Share{Bytes: 2 << 30}, MaxPause: 90 * time.Second,
	}
	if !reflect.DeepEqual(s.Policies[0], want) {
		t.Errorf("%+v", s.Policies[0])
	}
	vm, _ := s.VM("app")
	if vm.Disks[0].OS || !vm.Disks[1].OS || vm.NICs[0].Primary || !vm.NICs[1].Primary {
		t.Errorf("%+v", vm)
	}
	if vm.Disks[0].Path != filepath.Join(filepath.Dir(s.Dir), "images", "data.vhdx") {
		t.Errorf("path %s", vm.Disks[0].Path)
	}
}

func TestTarget(t *testing.T) {
	s := load(t, "azure.yaml")
	for _, c := range []struct{ network, wantNet, wantSubnet string }{
		{"dmz", "vnet", "dmz"},          // the subnet of the same name
		{"Corp LAN", "vnet", "default"}, // else the first one
		{"lab", "", ""},                 // not mapped
	} {
		n, sub := s.Target(NIC{Network: c.network})
		if got, gotSub := nameOf(n), subnetName(sub); got != c.wantNet || gotSub != c.wantSubnet {
			t.Errorf("%s -> %q %q", c.network, got, gotSub)
		}
	}
	s.NetworkMapping = []Mapping{{"lab", "bare"}}
	if n, sub := s.Target(NIC{Network: "lab"}); nameOf(n) != "bare" || sub != nil {
		t.Errorf("%v %v", n, sub)
	}
}

func nameOf(n *RecoveryNetwork) string {
	if n == nil {
		return ""
	}
	return n.Name
}

func subnetName(s *Subnet) string {
	if s == nil {
		return ""
	}
	return s.Name
}

func TestLookups(t *testing.T) {
	s := load(t, "contoso.yaml")
	_, err := s.VM("wbe01")
	if !fault.Is(err, fault.VMUnknown) || !strings.Contains(err.Error(), "'wbe01', did you mean 'web01'?") {
		t.Error(err)
	}
	if _, err = s.VM("WEB01"); !fault.Is(err, fault.VMUnknown) || !strings.Contains(err.Error(), "did you mean 'web01'?") {
		t.Error(err)
	}
	if _, err = s.Cloud("gold"); !fault.Is(err, fault.UsageError) {
		t.Error(err)
	}
	if _, err = s.Plan("shp"); !fault.Is(err, fault.UsageError) || !strings.Contains(err.Error(), "'shop'") {
		t.Error(err)
	}
}

func TestStarter(t *testing.T) {
	s, err := Parse("site.yaml", Starter())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.VMs()) != 1 || s.Store.Directory == "" {
		t.Errorf("%+v", s)
	}
	Starter()[0] = 'x' // a copy
	if _, err := Parse("site.yaml", Starter()); err != nil {
		t.Error(err)
	}
}

// What the starter shows in comments is part of the contract too.
func TestStarterUncommented(t *testing.T) {
	text := string(Starter())
	top := strings.Index(text, "vault:")
	var b strings.Builder
	for _, line := range strings.Split(text[top:], "\n") {
		if strings.Contains(line, "# azure:") || strings.Contains(line, "# qemu, hyperv or script:") || strings.Contains(line, "# qmp:") {
			continue // the store is a directory already, and the host has none of these
		}
		trimmed := strings.TrimLeft(line, " ")
		if rest, ok := strings.CutPrefix(trimmed, "# "); ok {
			line = line[:len(line)-len(trimmed)] + rest
		}
		fmt.Fprintln(&b, line)
	}
	s, err := Parse("site.yaml", []byte(b.String()))
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	p := s.Policies[0]
	if len(s.RecoveryPlans) != 1 || len(s.VMs()[0].Disks) != 2 || s.VMM.Server == "" || len(s.NetworkMapping) != 1 {
		t.Errorf("not everything was uncommented: %+v", s)
	}
	rec, vm := s.Recovery, s.VMs()[0]
	if rec.Format != RecoverVHD || rec.Folder != filepath.Join(s.Dir, DefaultRecoveredFolder) || !reflect.DeepEqual(rec.QEMU, parseQEMU(value{})) ||
		vm.Hooks.Timeout != DefaultHookTimeout || vm.BootCheck.Timeout != DefaultBootTimeout || vm.ShutdownGrace != DefaultShutdownGrace {
		t.Errorf("the starter shows other values than the defaults: %+v %+v", rec, vm)
	}
	if p.LogLimitPercent != DefaultLogLimitPercent || p.ResyncWindow != DefaultResyncWindow() || !p.AutoResync ||
		p.BlockSize != DefaultBlockSize || p.Apply != ApplyHere || p.JobRetention != DefaultJobRetention ||
		p.MassiveChange != DefaultMassiveChange || p.SourceReserve != (Share{Percent: 10}) {
		t.Errorf("the starter shows other values than the defaults: %+v", p)
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(durable.OS(), filepath.Join(dir, "none.yaml"))
	if !fault.Is(err, fault.SiteInvalid) || !strings.Contains(err.Error(), "sitrep init") {
		t.Error(err)
	}
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, make([]byte, MaxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = Load(durable.OS(), big); !fault.Is(err, fault.SiteInvalid) || !strings.Contains(err.Error(), "longer than 4 MiB") {
		t.Error(err)
	}
	if _, err = Load(durable.OS(), dir); fault.Find(err) == nil {
		t.Errorf("a folder: %v", err)
	}
}

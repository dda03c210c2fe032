package support

import (
	"reflect"
	"strings"
	"testing"
)

// broken is a VM of which everything that CheckRecovery judges is wrong.
func broken() Recovery {
	return Recovery{
		VM: "web01", Host: "dr-kvm",
		Scripts:      []Program{{"hook failover", "/h/reip.sh", ""}, {"hook cleanup", "/h/cleanup.sh", "it is not executable"}},
		Programs:     []Program{{"QEMU", "qemu-system-x86_64", "it is not installed"}, {"start script", "/h/start", ""}},
		NICs:         []RecoveryNIC{{Network: "lan"}, {Network: "lab", Unmapped: true}, {Network: "dmz", NoPublicIP: true}},
		Uncontrolled: "its host has no script section",
	}
}

func TestCheckRecovery(t *testing.T) {
	want := []struct {
		rule     string
		severity Severity
		says     string
	}{
		{"script", Error, "hook cleanup cannot be run: /h/cleanup.sh: it is not executable"},
		{"host-program", Warning, "QEMU cannot be used here: qemu-system-x86_64: it is not installed"},
		{"host-control", Warning, "a failover cannot stop this VM, nor a failback start it: its host has no script section"},
		{"network-unmapped", Warning, "network lab of NIC 2 is not mapped: the NIC is isolated at recovery host dr-kvm"},
		{"public-ip", Warning, "NIC 3 (network dmz) is to have a public address"},
	}
	got := CheckRecovery(broken())
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i, w := range want {
		f := got[i]
		if f.Rule != w.rule || f.Severity != w.severity || !strings.Contains(f.Message, w.says) || f.VM != "web01" || f.Advice == "" || strings.Contains(f.Advice, "{") {
			t.Errorf("want %+v\n got %+v", w, f)
		}
	}
}

// Without a recovery host nobody expects more than that the scripts are there.
func TestWithoutRecoveryHost(t *testing.T) {
	r := broken()
	r.Host = ""
	if got, all := CheckRecovery(r), CheckRecovery(broken()); !reflect.DeepEqual(got, all[:1]) {
		t.Errorf("%v", got)
	}
	if got := CheckRecovery(Recovery{VM: "v", Host: "h", NICs: []RecoveryNIC{{Network: "lan"}}}); len(got) != 0 {
		t.Errorf("nothing is wrong, and yet: %v", got)
	}
}

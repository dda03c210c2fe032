package support

import (
	"fmt"
	"strings"
)

// Recovery is what is known of a VM's way through a failover. Like VM it is facts that somebody else has gathered.
type Recovery struct {
	VM   string
	Host string // of the recovery site; "" = none is set, and only scripts are judged
	// Scripts are the operator's own: hooks and boot check of the VM, actions of the recovery plans that it is in.
	Scripts []Program
	// Programs are what the hosts of the VM are worked with.
	Programs []Program
	NICs     []RecoveryNIC
	// Uncontrolled says why sitrep can neither stop nor start the VM at the protected site; "" when it can, or when nobody expects
	// it to.
	Uncontrolled string
}

// Program is a file that a failover runs or reads.
type Program struct {
	Use     string // what it is for, such as "hook failover" or "plan shop, group 1, before"
	Path    string
	Problem string // why it cannot be used; "" when it can
}

// RecoveryNIC is what is known of where a NIC goes.
type RecoveryNIC struct {
	Network  string
	Unmapped bool // it goes nowhere
	// NoPublicIP says that the NIC is to have a public address, and that the recovery host has none to give.
	NoPublicIP bool
}

// CheckRecovery returns what stands in the way of a failover of the VM, or will be other than expected after one. Only scripts that
// cannot be run are errors: what is wrong with the recovery host may be seen from the wrong machine.
func CheckRecovery(r Recovery) []Finding {
	var out []Finding
	add := func(rule string, severity Severity, advice, format string, args ...any) {
		out = append(out, Finding{VM: r.VM, Rule: rule, Severity: severity, Message: fmt.Sprintf(format, args...),
			Advice: strings.ReplaceAll(advice, "{vm}", r.VM)})
	}
	for _, p := range r.Scripts {
		if p.Problem != "" {
			add("script", Error, "Put it there and make it executable, or correct the path in the site file, then run: sitrep check {vm}",
				"%s cannot be run: %s: %s", p.Use, p.Path, p.Problem)
		}
	}
	if r.Host == "" {
		return out
	}
	for _, p := range r.Programs {
		if p.Problem != "" {
			add("host-program", Warning, "Install it, or correct the site file, on the machine that runs the failover; then run there: sitrep check {vm}",
				"%s cannot be used here: %s: %s", p.Use, p.Path, p.Problem)
		}
	}
	if r.Uncontrolled != "" {
		add("host-control", Warning, "Tell in the site file how, or stop the VM yourself before a planned failover.",
			"a failover cannot stop this VM, nor a failback start it: %s", r.Uncontrolled)
	}
	for i, n := range r.NICs {
		if n.Unmapped {
			add("network-unmapped", Warning, "Map it with network_mapping in the site file.",
				"network %s of NIC %d is not mapped: the NIC is isolated at recovery host %s", n.Network, i+1, r.Host)
		}
		if n.NoPublicIP {
			add("public-ip", Warning, "Take public_ip out of the site file, and give the VM its public address by a failover hook.",
				"NIC %d (network %s) is to have a public address, and recovery host %s has none to give", i+1, n.Network, r.Host)
		}
	}
	return out
}

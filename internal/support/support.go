// Package support is the support matrix: what must hold of a VM before it is protected, as a table of rules.
//
// The rules are those of the system that sitrep re-implements, as its documentation stated them in October 2017
// ("Azure Site Recovery support matrix for replicating from on-premises to Azure"; Rule.Source names the row). Most of
// them are limits of Azure, and bind a VM only when its replica or its recovered machine is there. The others bind
// every VM.
//
// The package judges facts and gathers none: whoever calls it has read the site file and opened the disks. A fact that
// is not known (its zero value) breaks no rule. What cannot be seen from outside a guest is listed by Unchecked, so
// that "no findings" is not taken for more than it is.
package support

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"sitrep/internal/fault"
)

// VM is what the rules need to know of a VM.
type VM struct {
	Name       string
	Generation int    // 1 or 2
	OS         string // windows, linux or other
	Azure      bool   // the store or the recovery host is in Azure
	// Premium says that replicas lie in an account for premium page blobs, whose snapshots are limited: each recovery point is one.
	Premium       bool
	CopyFrequency time.Duration // of the policy
	Points        int           // that the policy keeps
	Disks         []Disk        // all, excluded ones too
	NICs          []NIC
	// Protected holds the names of the disks that the VM's replica has; nil when there is none yet.
	Protected []string
}

// Disk is what the rules need to know of a disk.
type Disk struct {
	Name       string
	ID         string // the same for two disks that are one file, however its path is written; "" = not known
	OS         bool   // the operating system is on it
	Excluded   bool   // not replicated
	Size       int64  // guest bytes; 0 = not known
	SectorSize int    // logical sector in bytes; 0 = not known
	Format     string // raw, vhd or vhdx; "" = not known
}

// NIC is what the rules need to know of a network adapter.
type NIC struct {
	Network string
	IP      netip.Addr // the zero Addr = by DHCP
}

// Severity says whether a finding stands in the way of protection.
type Severity string

const (
	Error   Severity = "error"   // the prerequisites are not met
	Warning Severity = "warning" // protection works, but something of the VM will not be as before at the recovery site
)

// Finding is one rule that a VM breaks.
type Finding struct {
	VM       string   `json:"vm"`
	Disk     string   `json:"disk,omitempty"` // "" = the rule is about the VM as a whole
	Rule     string   `json:"rule"`           // Rule.ID
	Severity Severity `json:"severity"`
	Message  string   `json:"message"` // what is the case, and what the rule says
	Advice   string   `json:"advice"`  // what to do
}

// String is one line for people.
func (f Finding) String() string {
	place := "VM " + f.VM
	if f.Disk != "" {
		place += ", disk " + f.Disk
	}
	return fmt.Sprintf("%s: %s: %s (%s). %s", place, f.Severity, f.Message, f.Rule, f.Advice)
}

// Check returns the rules that vm breaks, in the order of Rules. others are the other VMs of the site, against which
// shared disks are looked for; one with vm's own name is passed over.
func Check(vm VM, others []VM) []Finding {
	var out []Finding
	for _, r := range Rules() {
		if r.AzureOnly && !vm.Azure {
			continue
		}
		for _, h := range r.check(vm, others) {
			out = append(out, Finding{
				VM: vm.Name, Disk: h.disk, Rule: r.ID, Severity: r.Severity, Message: h.msg,
				Advice: strings.ReplaceAll(r.Advice, "{vm}", vm.Name),
			})
		}
	}
	return out
}

// Err returns the findings that are errors as one error of code PrerequisiteFail, or nil when there are none.
// Warnings do not count.
func Err(findings []Finding) error {
	var first *Finding
	n := 0
	for i := range findings {
		if findings[i].Severity != Error {
			continue
		}
		if n++; n == 1 {
			first = &findings[i]
		}
	}
	if first == nil {
		return nil
	}
	msg := fmt.Sprintf("%s (%s). %s", first.Message, first.Rule, first.Advice)
	if n > 1 {
		msg = fmt.Sprintf("%d prerequisites are not met; the first: %s", n, msg)
	}
	return fault.New(fault.PrerequisiteFail, "%s", msg).Of(first.VM, first.Disk)
}

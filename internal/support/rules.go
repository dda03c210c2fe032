package support

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Rule is one row of the support matrix.
type Rule struct {
	ID        string
	Source    string // where the rule comes from
	Says      string
	Advice    string // what to do; "{vm}" stands for the VM's name
	Severity  Severity
	AzureOnly bool

	check func(vm VM, others []VM) []hit
}

// hit is a rule broken by a disk, or by the VM as a whole.
type hit struct{ disk, msg string }

const gib = 1 << 30 // what the matrix calls GB

// The limits of the matrix of October 2017. That of January 2017 allowed 1023 GB for every disk.
const (
	maxOSDiskGen1 = 2048 * gib
	maxOSDiskGen2 = 300 * gib
	maxDataDisk   = 4095 * gib
	maxDataDisks  = 16
)

// The limits of sitrep itself.
const (
	maxDisk = 1 << 46 // bytes that a change log can describe: 64 TiB, the limit of VHDX
	// maxPoints is how many recovery points are handled at the pace of a copy frequency. All of them are in the ledger, which is
	// written with each delta, and with the lost ones beside them must stay below its limit of 16 MiB.
	maxPoints    = 5000
	pointBytes   = 256 // of the ledger, of each recovery point
	diskBytes    = 256 // and of each disk of each point
	pointsLedger = 8 << 20
)

const (
	own           = "limits of sitrep"
	matrixVM      = "support matrix 10/2017, Azure VM requirements: "
	matrixStorage = "support matrix 10/2017, storage: "
	matrixNetwork = "support matrix 10/2017, guest network: "
	enable        = "enable replication 07/2017: "
)

// Rules returns the table. It is a function so that nothing can change it.
func Rules() []Rule {
	return append(rulesForAll(), rulesOfAzure()...)
}

func rulesForAll() []Rule {
	return []Rule{
		{
			ID: "os-disk-count", Source: matrixVM + "operating system disk count", Severity: Error,
			Says:   "A VM has exactly one disk with the operating system.",
			Advice: "Mark the right disk, and only that one, with \"os: true\" in the site file, then run: sitrep check {vm}",
			check:  osDiskCount,
		},
		{
			ID: "os-disk-excluded", Source: enable + "disks", Severity: Error,
			Says:   "The disk with the operating system cannot be excluded.",
			Advice: "Take the exclusion of this disk out of the site file, then run: sitrep check {vm}",
			check: eachDisk(func(_ VM, d Disk) string {
				return when(d.OS && d.Excluded, "the disk with the operating system is excluded from replication, and only data disks can be")
			}),
		},
		{
			ID: "shared-disk", Source: matrixStorage + "shared cluster disk, shared VHD", Severity: Error,
			Says:   "A disk belongs to one VM.",
			Advice: "Give each VM a disk of its own, or take the shared disk out of the site file and protect its content from inside the guest, then run: sitrep check {vm}",
			check:  sharedDisk,
		},
		{
			ID: "disk-too-large", Source: own, Severity: Error,
			Says:   "A disk has at most 64 TiB.",
			Advice: "Make the disk smaller, split it, or take it out of the site file (it is then not replicated), then run: sitrep check {vm}",
			check: eachDisk(func(_ VM, d Disk) string {
				return when(!d.Excluded && d.Size > maxDisk, fmt.Sprintf("it has %d bytes; a change log describes at most %d", d.Size, int64(maxDisk)))
			}),
		},
		{
			ID: "too-many-points", Source: own, Severity: Error,
			Says:   "At most 5000 recovery points are kept, fewer of a VM with many disks.",
			Advice: "Lower recovery_points in the policy, then run: sitrep check {vm}",
			check: func(vm VM, _ []VM) []hit {
				most := min(maxPoints, pointsLedger/(pointBytes+diskBytes*max(1, len(vm.Disks))))
				return whole(when(vm.Points > most, fmt.Sprintf("its policy keeps %d recovery points; of a VM with %d disks the ledger holds %d",
					vm.Points, len(vm.Disks), most)))
			},
		},
		{
			ID: "disk-added", Source: own, Severity: Warning,
			Says:   "A disk that is added to a protected VM is replicated when it is added to the protection.",
			Advice: "If the disk and its path are right, run: sitrep protect {vm}. If not, take it out of the site file",
			check:  diskAdded,
		},
		{
			ID: "disk-removed", Source: enable + "disks cannot be removed", Severity: Error,
			Says:   "The disks of a protected VM stay in the site file.",
			Advice: "Put the disk back into the site file, or start over without it: sitrep unprotect {vm} and then: sitrep protect {vm}",
			check:  diskRemoved,
		},
	}
}

func rulesOfAzure() []Rule {
	return []Rule{
		{
			ID: "azure-vm-name", Source: matrixVM + "VM name", Severity: Error, AzureOnly: true,
			Says:   "The name has 1 to 63 letters, digits and hyphens, and begins and ends with a letter or digit.",
			Advice: "Rename the VM in the site file, then run: sitrep check",
			check:  azureName,
		},
		{
			ID: "azure-premium-policy", Source: premiumSource, Severity: Error, AzureOnly: true,
			Says:   "In a premium account a recovery point is taken every 10 minutes at most, and 100 of them are kept at most.",
			Advice: "Give the policy copy_frequency: 15m and at most 100 recovery_points, or use a standard account, then run: sitrep check {vm}",
			check:  premiumPolicy,
		},
		{
			ID: "azure-os-disk-size", Source: matrixVM + "operating system disk size", Severity: Error, AzureOnly: true,
			Says:   "The disk with the operating system has at most 2048 GB in generation 1 and 300 GB in generation 2.",
			Advice: "Move data from this disk to a data disk and make it smaller, then run: sitrep check {vm}",
			check:  eachDisk(osDiskSize),
		},
		{
			ID: "azure-data-disk-size", Source: matrixVM + "data disk VHD size", Severity: Error, AzureOnly: true,
			Says:   "A data disk has at most 4095 GB.",
			Advice: "Split the disk, or take it out of the site file (it is then not replicated), then run: sitrep check {vm}",
			check:  eachDisk(dataDiskSize),
		},
		{
			ID: "azure-data-disk-count", Source: matrixVM + "data disk count", Severity: Error, AzureOnly: true,
			Says:   "At most 16 data disks are replicated.",
			Advice: "Merge data disks, or take some out of the site file (they are then not replicated), then run: sitrep check {vm}",
			check:  dataDiskCount,
		},
		{
			ID: "azure-generation-2", Source: matrixVM + "VM type", Severity: Error, AzureOnly: true,
			Says:   "Of generation 2 only Windows is supported.",
			Advice: "Protect it to a store and a host outside Azure, or rebuild it as a VM of generation 1, then run: sitrep check {vm}",
			check: func(vm VM, _ []VM) []hit {
				return whole(when(vm.Generation == 2 && vm.OS != "windows",
					"it is of generation 2 and its system is "+vm.OS+"; in Azure generation 2 is supported with Windows only"))
			},
		},
		{
			ID: "azure-generation-2-format", Source: matrixVM + "VM type", Severity: Error, AzureOnly: true,
			Says:   "The disk with the operating system of a generation 2 VM is a VHDX.",
			Advice: "Convert the disk to VHDX, then run: sitrep check {vm}",
			check: eachDisk(func(vm VM, d Disk) string {
				return when(vm.Generation == 2 && d.OS && d.Format != "" && d.Format != "vhdx",
					"the disk with the operating system of a generation 2 VM has the format "+d.Format+", and in Azure it must be vhdx")
			}),
		},
		{
			ID: "azure-sector-size", Source: matrixStorage + "4K logical sectors", Severity: Error, AzureOnly: true,
			Says:   "Disks have logical sectors of 512 bytes; physical sectors may have 4096.",
			Advice: "Copy the content to a disk with logical sectors of 512 bytes, or take the disk out of the site file (it is then not replicated), then run: sitrep check {vm}",
			check: eachDisk(func(_ VM, d Disk) string {
				return when(!d.Excluded && d.SectorSize != 0 && d.SectorSize != 512,
					fmt.Sprintf("its logical sectors have %d bytes, and Azure takes 512 only", d.SectorSize))
			}),
		},
		{
			ID: "azure-disk-format", Source: matrixVM + "disk format", Severity: Warning, AzureOnly: true,
			Says:   "Disks are VHD or VHDX.",
			Advice: "Prove with a test failover that the VM starts from its replica: sitrep failover test {vm}",
			check: eachDisk(func(_ VM, d Disk) string {
				return when(!d.Excluded && d.Format == "raw", "its format is raw, and the matrix for Azure names VHD and VHDX only; the replica is a VHD")
			}),
		},
		{
			ID: "azure-static-ip-linux", Source: matrixNetwork + "static IP (Linux)", Severity: Warning, AzureOnly: true,
			Says:   "A static address inside a Linux guest does not survive a failover to Azure.",
			Advice: "Let the guest take its address by DHCP; the address of the site file is then given to its NIC at the recovery site.",
			check:  staticLinux,
		},
		{
			ID: "azure-ipv6", Source: matrixNetwork + "IPv6", Severity: Warning, AzureOnly: true,
			Says:   "IPv6 is not supported.",
			Advice: "Give the NIC an IPv4 address in the site file, or none for DHCP.",
			check:  ipv6,
		},
	}
}

// Row is a row of the matrix that cannot be checked from outside the guest.
type Row struct{ Source, Says string }

// Unchecked returns what an administrator has to make sure of, for a VM whose store or recovery host is in Azure.
func Unchecked() []Row {
	return []Row{
		{matrixVM + "guest operating system", "Azure supports the guest's operating system; Nano Server is not supported."},
		{matrixVM + "guest operating system architecture", "The guest is a 64-bit system."},
		{matrixVM + "BitLocker", "BitLocker is off before the VM is protected."},
		{matrixStorage + "encrypted disk", "The guest does not encrypt its disks."},
		{matrixVM + "FC disk", "The guest has no disk over Fibre Channel."},
		{matrixVM + "VM type", "In generation 2 the disk with the operating system is a basic disk with one or two data volumes."},
		{matrixStorage + "guest SMB 3.0", "The guest keeps nothing on SMB 3.0 shares that has to come along."},
		{matrixNetwork + "NIC teaming", "The guest does not team its NICs."},
		{enable + "disks", "A dynamic disk (in the sense of Windows) is replicated with all disks of its set; the one with the operating system is basic."},
	}
}

// The limits of snapshots of premium page blobs.
const (
	premiumSource = "Azure Storage, scalability of premium page blobs: snapshots; support matrix 10/2017: 30 s is not supported with premium storage"
	premiumEvery  = 10 * time.Minute
	premiumPoints = 100
)

func premiumPolicy(vm VM, _ []VM) []hit {
	often := vm.Premium && vm.CopyFrequency > 0 && vm.CopyFrequency < premiumEvery
	many := vm.Premium && vm.Points > premiumPoints
	switch {
	case often:
		return whole(fmt.Sprintf("its policy takes a recovery point every %s, and a premium account one in 10 minutes", vm.CopyFrequency))
	case many:
		return whole(fmt.Sprintf("its policy keeps %d recovery points, and a premium account at most %d", vm.Points, premiumPoints))
	}
	return nil
}

// when returns msg if the rule is broken.
func when(broken bool, msg string) string {
	if broken {
		return msg
	}
	return ""
}

// whole is a hit of the VM as a whole, or none.
func whole(msg string) []hit {
	if msg == "" {
		return nil
	}
	return []hit{{msg: msg}}
}

// eachDisk makes a check of one that judges a disk and returns what is wrong with it, or "".
func eachDisk(judge func(vm VM, d Disk) string) func(VM, []VM) []hit {
	return func(vm VM, _ []VM) (out []hit) {
		for _, d := range vm.Disks {
			if msg := judge(vm, d); msg != "" {
				out = append(out, hit{d.Name, msg})
			}
		}
		return out
	}
}

func osDiskCount(vm VM, _ []VM) []hit {
	var marked []string
	for _, d := range vm.Disks {
		if d.OS {
			marked = append(marked, d.Name)
		}
	}
	switch len(marked) {
	case 1:
		return nil
	case 0:
		return whole("none of its disks is marked as the one with the operating system")
	}
	return whole("more than one disk is marked as the one with the operating system: " + strings.Join(marked, ", "))
}

func sharedDisk(vm VM, others []VM) (out []hit) {
	for i, d := range vm.Disks {
		if d.ID == "" {
			continue
		}
		for _, e := range vm.Disks[:i] {
			if e.ID == d.ID {
				out = append(out, hit{d.Name, "it is the same file as disk " + e.Name + " of this VM"})
			}
		}
		for _, o := range others {
			if o.Name == vm.Name {
				continue
			}
			for _, e := range o.Disks {
				if e.ID == d.ID {
					out = append(out, hit{d.Name, fmt.Sprintf("it is the same file as disk %s of VM %s, and shared disks cannot be replicated", e.Name, o.Name)})
				}
			}
		}
	}
	return out
}

func diskAdded(vm VM, _ []VM) (out []hit) {
	if vm.Protected == nil {
		return nil
	}
	for _, d := range vm.Disks {
		if !d.Excluded && !slices.Contains(vm.Protected, d.Name) {
			out = append(out, hit{d.Name, "it was added after the VM was protected: it is not replicated, the other disks are, and a failover makes the VM without it"})
		}
	}
	return out
}

func diskRemoved(vm VM, _ []VM) (out []hit) {
	for _, name := range vm.Protected {
		kept := slices.ContainsFunc(vm.Disks, func(d Disk) bool { return d.Name == name && !d.Excluded })
		if !kept {
			out = append(out, hit{name, "the replica has this disk, and the site file no longer does"})
		}
	}
	return out
}

var azureNameText = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

func azureName(vm VM, _ []VM) []hit {
	return whole(when(!azureNameText.MatchString(vm.Name),
		"Azure takes names of 1 to 63 letters, digits and hyphens that begin and end with a letter or digit"))
}

func osDiskSize(vm VM, d Disk) string {
	limit := int64(maxOSDiskGen1)
	if vm.Generation == 2 {
		limit = maxOSDiskGen2
	}
	return when(d.OS && d.Size > limit, fmt.Sprintf("the disk with the operating system has %s, and Azure takes at most %d GiB for generation %d",
		size(d.Size), limit/gib, vm.Generation))
}

func dataDiskSize(_ VM, d Disk) string {
	return when(!d.OS && !d.Excluded && d.Size > maxDataDisk,
		fmt.Sprintf("it has %s, and Azure takes at most %d GiB for a data disk", size(d.Size), maxDataDisk/gib))
}

// size words a size that is too large: never rounded down to the limit.
func size(n int64) string {
	if n%gib == 0 {
		return fmt.Sprintf("%d GiB", n/gib)
	}
	return fmt.Sprintf("%d bytes", n)
}

func dataDiskCount(vm VM, _ []VM) []hit {
	n := 0
	for _, d := range vm.Disks {
		if !d.OS && !d.Excluded {
			n++
		}
	}
	return whole(when(n > maxDataDisks, fmt.Sprintf("it has %d data disks, and Azure takes at most %d", n, maxDataDisks)))
}

func staticLinux(vm VM, _ []VM) (out []hit) {
	for _, n := range vm.NICs {
		if vm.OS == "linux" && n.IP.IsValid() {
			out = append(out, hit{"", fmt.Sprintf("its NIC in network %s has the fixed address %s; an address that is set inside a Linux guest is lost in Azure", n.Network, n.IP)})
		}
	}
	return out
}

func ipv6(vm VM, _ []VM) (out []hit) {
	for _, n := range vm.NICs {
		if n.IP.Is6() && !n.IP.Is4In6() {
			out = append(out, hit{"", fmt.Sprintf("its NIC in network %s has the IPv6 address %s, and IPv6 is not supported", n.Network, n.IP)})
		}
	}
	return out
}

// Package site reads the site file: the one YAML document that says what exists (a VMM server, its clouds, hosts, VMs,
// disks and networks), where the replicas go (the store), under which rules (the policies) and where VMs come up again
// (the recovery site and its plans).
//
// Reading is strict, because a replication that quietly ignores a misspelt line is found out on the day of the
// disaster. Unknown keys, keys written twice, two things of one name, references to things that are not there, wrong
// types and wrong units are errors; each has its line and column, and all of them are found in one run. What comes out
// is plain data that was checked as a whole: nothing behind it checks a name or a number of the site again.
//
// YAML is used for its layout only. Anchors, aliases, merge keys, tags and several documents in a file are refused:
// none of them is needed, and the first three let a small file become an unbounded one.
//
// Names become folders and files of the store, and therefore keep to an alphabet in which no name can leave its folder,
// on any operating system: see checkName. Paths are relative to the folder of the site file.
//
// Secrets are never in the site file. It names the environment variable that holds one; a value that looks like a
// connection string, an account key or a SAS is an error that does not repeat it.
//
// The structs are not changed after Load and may be read by any number of goroutines.
package site

import (
	"errors"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// MaxFileSize is the length in bytes of the longest site file that is read.
const MaxFileSize = 4 << 20

// Defaults of a policy. They are those of the system that sitrep re-implements, where it has them.
const (
	DefaultCopyFrequency   = 5 * time.Minute
	DefaultRecoveryPoints  = 12
	DefaultLogLimitPercent = 50
	DefaultMassiveChange   = 50
	DefaultBlockSize       = 16 << 10 // bytes; see Policy.BlockSize
	DefaultJobRetention    = 720 * time.Hour
	DefaultScriptTimeout   = 600 * time.Second
)

// The limits of Policy.BlockSize, in bytes.
const (
	MinBlockSize = 4 << 10
	MaxBlockSize = 1 << 20
)

// Site is a whole site file, checked.
type Site struct {
	Path string // of the file, absolute
	Dir  string // its folder, absolute: what relative paths in the file are relative to

	Vault          string
	Store          Store
	Policies       []*Policy
	Networks       []Network
	Recovery       Recovery
	NetworkMapping []Mapping
	VMM            VMM
	RecoveryPlans  []*Plan

	vms map[string]*VM
}

// Store says where the replicas are. Exactly one of the two is set.
type Store struct {
	Directory string // absolute
	Azure     *AzureStore
}

// SecretVariables names the environment variables in which the site file says that secrets of the store are.
func (s Store) SecretVariables() []string {
	if s.Azure == nil {
		return nil
	}
	all := []string{s.Azure.ConnectionStringEnv, s.Azure.KeyEnv, s.Azure.SASEnv}
	return slices.DeleteFunc(all, func(name string) bool { return name == "" })
}

// AzureStore is a container of an Azure storage account. Either a connection string is named, or AccountURL is given; then at
// most one key or SAS is named, and without one the Azure credential of the machine is used. What is named is an environment
// variable or a file: the site file holds no secret.
type AzureStore struct {
	AccountURL string // without a query, and without a path but that of an emulator
	// AccountName is the account's name where AccountURL does not tell it; "" if it does.
	AccountName string
	Container   string
	// LogAccountURL is the second account for change logs and ledgers, which an account for premium page blobs needs; "" if none.
	LogAccountURL string

	ConnectionStringEnv, KeyEnv, SASEnv    string // names of environment variables
	ConnectionStringFile, KeyFile, SASFile string // absolute paths

	// BlobRate is how many bytes a second are sent to one blob, 0 for no limit, and BlobRequests how many requests, 1 to 100,000.
	// The defaults are what a standard account takes of a page blob; a premium one takes more, by its tier.
	BlobRate     int64
	BlobRequests int
	// Concurrency is the most requests that are under way at once, 1 to 64. It begins at half of that, and is lowered while the
	// service says that it is busy.
	Concurrency int
}

// The defaults of an AzureStore.
const (
	DefaultBlobRate     = 60 << 20
	DefaultBlobRequests = 500
	DefaultConcurrency  = 16
)

// Policy is a set of rules for the VMs of the clouds that name it.
type Policy struct {
	Name string
	// CopyFrequency is 30 s, 5 min or 15 min: how often delta is expected to run. RPO and health are measured against
	// it. Default 5 min.
	CopyFrequency time.Duration
	// RecoveryPoints is how many points are kept, at least 1. Default 12.
	RecoveryPoints int
	// AppConsistentEvery is the least time between two application-consistent points, from CopyFrequency to 12 h;
	// 0 (the default) means never.
	AppConsistentEvery time.Duration
	// LogLimitPercent of a disk's size, 1 to 100, is how much pending change log it may have before it is marked for
	// resynchronization. Default 50.
	LogLimitPercent int
	// ResyncWindow is when a marked VM may be resynchronized unasked. Default 18:30 to 06:00.
	ResyncWindow Window
	// AutoResync says whether delta resynchronizes a marked VM inside the window by itself. Default true.
	AutoResync bool
	// BlockSize is the unit of comparison in bytes, a power of two from MinBlockSize to MaxBlockSize.
	// Default DefaultBlockSize, which was measured: of two days of a disk with real files, 2 % of its 64 KiB blocks changed, a
	// delta sends 167 MiB in blocks of 64 KiB, 123 MiB in 16 KiB and 94 MiB in 4 KiB, and takes least time at 16 KiB; its
	// block sums take a thousandth of the data.
	BlockSize int64
	// Bandwidth limits what a run sends to the store over the line between the sites: all but failover, for which nobody
	// wants to wait, and apply where ApplyElsewhere says that it runs beside the store. Default: no limit.
	Bandwidth Bandwidth
	// Apply says where shipped logs are applied. Default ApplyHere.
	Apply ApplyAt
	// JobRetention is how long records of ended jobs are kept. Default 720 h.
	JobRetention time.Duration
	// MassiveChange is the share of a disk's data, in percent, that one delta has to change to be a warning and to hold the recovery
	// point before it; 0 is never. Default 50.
	MassiveChange int
	// SourceReserve is what change logs leave free on the volume of a source disk.
	SourceReserve Share
	// MaxPause is for how long a VM may be held still while its disks are read for a cut. 0 is no limit, the default.
	MaxPause time.Duration
}

// Share is a part of a volume: of its size in percent, or in bytes; with both it is whichever is less, with neither nothing.
type Share struct {
	Percent int
	Bytes   int64
}

// Of is the share of a volume of so many bytes.
func (s Share) Of(volume int64) int64 {
	part := volume / 100 * int64(s.Percent)
	switch {
	case s.Percent == 0:
		return s.Bytes
	case s.Bytes == 0:
		return part
	}
	return min(part, s.Bytes)
}

// DefaultSourceReserve is 10 % of the volume or 5 GiB, whichever is less.
func DefaultSourceReserve() Share { return Share{Percent: 10, Bytes: 5 << 30} }

// ApplyAt says which run of sitrep applies shipped logs to the replica.
type ApplyAt string

const (
	ApplyHere      ApplyAt = "here"      // the run that shipped them
	ApplyElsewhere ApplyAt = "elsewhere" // "sitrep apply" on another machine
)

// Network is a VM network of the site.
type Network struct {
	Name string
	VLAN int // 1 to 4094, 0 = untagged
}

// Recovery is where VMs come up. At most one of Name and Azure is set; without either, the site only replicates.
type Recovery struct {
	// Runner is the host that runs recovered VMs. Its Folder (default "recovered" beside the site file) is where their
	// disks lie, in a folder for each VM.
	Runner
	// Disks says where the disks of recovered VMs are made. Default DisksInFolder.
	Disks RecoveryDisks
	// Verify says whether a disk that the service has copied inside the store is read once, to prove it by the block sums,
	// before a VM is made of it. Default true. Disks that are made in a folder are always proven.
	Verify bool
	// Format is that of the disks of recovered VMs. Default VHD, and the only one in the store.
	Format   RecoveryFormat
	Azure    *AzureRecovery
	Networks []*RecoveryNetwork
}

// RecoveryDisks is where the disks of recovered VMs are made.
type RecoveryDisks string

const (
	DisksInFolder RecoveryDisks = "folder" // files, in Folder
	DisksInStore  RecoveryDisks = "store"  // page blobs beside the replica: for a store in Azure, and VMs that scripts or people make
)

// RecoveryFormat is the file format of a recovered VM's disks.
type RecoveryFormat string

const (
	RecoverVHD   RecoveryFormat = "vhd"  // fixed
	RecoverVHDX  RecoveryFormat = "vhdx" // dynamic
	RecoverRaw   RecoveryFormat = "raw"  // sparse
	RecoverQCOW2 RecoveryFormat = "qcow2"
)

// AzureRecovery is a place in Azure for recovered VMs.
type AzureRecovery struct {
	Subscription, ResourceGroup, Location string
}

// RecoveryNetwork is a network of the recovery site.
type RecoveryNetwork struct {
	Name    string
	Attach  Attach   // default AttachUser
	Switch  string   // the bridge or virtual switch, for AttachBridge; default Name
	Subnets []Subnet // may be empty
}

// Attach is how the NICs of a recovery network are connected at the host.
type Attach string

const (
	AttachIsolated Attach = "isolated" // to nobody
	AttachUser     Attach = "user"     // through the host's own address
	AttachBridge   Attach = "bridge"   // to a bridge or virtual switch of the host
)

// Subnet is a part of a recovery network.
type Subnet struct {
	Name     string
	CIDR     netip.Prefix // masked
	Gateway  netip.Addr   // the zero Addr = none is told
	Reserved []netip.Addr // in CIDR: taken by others, never given to a VM
}

// Mapping sends the NICs of one VM network to one recovery network. Several may send to the same.
type Mapping struct{ From, To string }

// VMM is the server that manages the clouds.
type VMM struct {
	Server string // "" = there is none
	Clouds []*Cloud
}

// Cloud is a group of hosts under one policy.
type Cloud struct {
	Name   string
	Policy *Policy
	Hosts  []*Host
}

// Hypervisor says how a host's VMs are handled.
type Hypervisor string

const (
	HyperV Hypervisor = "hyperv"
	QEMU   Hypervisor = "qemu"
	Script Hypervisor = "script" // by the operator's own commands
	None   Hypervisor = "none"   // plain files: the VM is known to be off, or frozen from outside
)

// Runner is a host as a place where VMs run: of the protected site, or the one at the recovery site.
type Runner struct {
	Name       string     // "" = there is none
	Hypervisor Hypervisor // default None for the recovery site: disks are made, the VM is not
	// Folder is where disks of VMs lie that are made there: recovered ones, or those of a failback to this host. Absolute;
	// "" where none is given.
	Folder string
	// At most the one of Hypervisor is set. QEMU and HyperV are set whenever Hypervisor says so; Script may be nil at the
	// protected site, where VMs are then replicated, but not stopped or started by sitrep.
	QEMU   *QEMUHost
	Script *ScriptHost
	HyperV *HyperVHost
}

// QEMUHost is how QEMU is run.
type QEMUHost struct {
	Binary   string   // absolute path, or a bare name to be looked for in PATH; default qemu-system-x86_64
	Accel    string   // tcg (default), kvm (makes guests fast), hvf or whpx
	Machine  string   // default q35
	CPU      string   // default max
	Disk     string   // nvme (default), virtio, sata or scsi: what disks are attached as
	Firmware string   // absolute path of a UEFI firmware, for generation 2; default /usr/share/OVMF/OVMF_CODE.fd
	Args     []string // added as they are
}

// ScriptHost is the operator's own commands: absolute paths of programs. Start, Stop and State are needed; without Create
// and Delete there is nothing to be made.
type ScriptHost struct {
	Create, Start, Stop, State, Delete string
	Freeze, Thaw                       string        // may be empty
	Timeout                            time.Duration // of each; default DefaultScriptTimeout
}

// HyperVHost is how PowerShell is reached.
type HyperVHost struct {
	SSH     string        // user@host; "" = on this machine
	Switch  string        // virtual switch for isolated NICs; "" = not connected
	Timeout time.Duration // of each call; default DefaultScriptTimeout
}

// Host runs VMs.
type Host struct {
	Runner
	VMs []*VM
}

// OS is the family of a guest's operating system.
type OS string

const (
	Windows OS = "windows"
	Linux   OS = "linux"
	OtherOS OS = "other"
)

// VM is the unit of protection. Its name is unique in the site, even when the case of letters is ignored.
type VM struct {
	Name       string
	Cloud      *Cloud
	Host       *Host
	Generation int // 1 (BIOS) or 2 (UEFI)
	OS         OS
	CPUs       int
	Memory     int64      // bytes
	Disks      []*Disk    // at least one; exactly one has OS set
	NICs       []NIC      // may be empty; else exactly one has Primary set
	Hooks      Hooks      // the zero Hooks where the file has none
	BootCheck  *BootCheck // nil: a VM counts as up when its host says that it runs
	// ShutdownGrace is how long the guest may take to shut down before its power is cut. Default DefaultShutdownGrace.
	ShutdownGrace time.Duration
	// QMP is the absolute path of the control socket of a QEMU VM that something else has started; "" = the one that sitrep
	// makes in Host.Folder.
	QMP string
}

// DefaultShutdownGrace is how long a guest may take to shut down, unless the site file says otherwise.
const DefaultShutdownGrace = 2 * time.Minute

// Hooks are the operator's programs for one VM, absolute paths; "" = none. They get what they are about in the environment
// and as JSON on standard input; Store.SecretVariables are not in their environment.
type Hooks struct {
	Freeze, Thaw string        // around the cut of an application-consistent point; both or neither
	Failover     string        // after the recovered VM was started: re-IP, DNS
	Cleanup      string        // after a test failover was cleaned up
	Timeout      time.Duration // of each; default DefaultHookTimeout
}

// DefaultHookTimeout is how long a hook of a VM may take, unless the site file says otherwise.
const DefaultHookTimeout = time.Minute

// BootCheck is how it is told that a recovered VM is up. Exactly one of Console, TCP and Command is set.
type BootCheck struct {
	Console string        // a regular expression that a line of the serial console matches
	TCP     int           // a port of the primary NIC's address that accepts connections
	Command string        // absolute path of a program that ends with 0 when the VM is up; tried again until Timeout
	Timeout time.Duration // default DefaultBootTimeout
}

// DefaultBootTimeout is how long a VM may take to come up, unless the site file says otherwise.
const DefaultBootTimeout = 5 * time.Minute

// Policy returns the policy of the VM's cloud.
func (vm *VM) Policy() *Policy { return vm.Cloud.Policy }

// Format is the file format of a disk image.
type Format string

const (
	FormatAuto Format = "auto" // where name and signature say the same
	FormatRaw  Format = "raw"  // also a block device
	FormatVHD  Format = "vhd"
	FormatVHDX Format = "vhdx"
	// FormatQCOW2 is QEMU's format, with backing files.
	FormatQCOW2 Format = "qcow2"
)

// Disk is one disk of a VM. Its name is unique in the VM, its path in the site.
type Disk struct {
	Name   string
	Path   string // absolute
	OS     bool
	Format Format // default FormatAuto
	// Parents are absolute paths of files and folders in which the parents of a differencing disk, or the backing files of a
	// qcow2, may lie, besides the folder of the disk itself.
	Parents []string
}

// NIC is one network adapter of a VM.
type NIC struct {
	Network string
	IP      netip.Addr // the zero Addr = by DHCP
	Primary bool       // the first one, where the file marks none
	// RecoveryIP is the address at the recovery site. The zero Addr = IP where it lies in the target subnet, else by DHCP.
	RecoveryIP netip.Addr
	MAC        string // lower case, with colons; "" = the host chooses
	PublicIP   bool   // wanted at the recovery site
}

// Plan is a recovery plan: groups of VMs that start one after the other.
type Plan struct {
	Name   string
	Groups []Group // 1 to MaxGroups, with MaxPlanVMs VMs in all
}

// Group is one step of a plan. Its VMs start in parallel.
type Group struct {
	Pre, Post []Action
	VMs       []*VM // at least one; no VM is twice in a plan
}

// Action is done before or after a group. Exactly one of Script and Manual is set.
type Action struct {
	Script  string        // absolute path of a program
	Timeout time.Duration // of Script; default 10 min
	Manual  string        // what a person has to do
	On      On
}

// On says in which direction of a recovery plan an action is done.
type On string

// The directions. OnFailover is test failovers too, OnReal is planned and unplanned ones only.
const (
	OnBoth     On = "" // "both" in the file, and the default
	OnFailover On = "failover"
	OnReal     On = "real"
	OnFailback On = "failback"
)

// Load reads and checks the site file. What is wrong in it comes back as *Errors, all of it; every error is, or wraps,
// a fault.Error, of code SiteInvalid unless reading itself failed.
func Load(fsys durable.FS, path string) (*Site, error) {
	data, err := durable.ReadFile(fsys, path, MaxFileSize)
	var large *durable.TooLargeError
	switch {
	case errors.As(err, &large):
		return nil, tooLarge(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.Wrap(fault.SiteInvalid, err, "there is no site file; \"sitrep init\" writes a starter").At(path)
	case errors.Is(err, syscall.EISDIR):
		return nil, fault.Wrap(fault.SiteInvalid, err, "this is a folder, and no site file").At(path)
	case fault.Is(err, fault.UnsafeFile):
		return nil, fault.Wrap(fault.SiteInvalid, err, "this is no site file").At(path)
	case err != nil:
		return nil, fault.FromOS(err)
	}
	return Parse(path, data)
}

// Parse checks data, the content of the site file at path, without reading any file. Its errors are those of Load.
func Parse(path string, data []byte) (*Site, error) {
	if len(data) > MaxFileSize {
		return nil, tooLarge(path)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fault.FromOS(err)
	}
	d := &doc{file: path, dir: filepath.Dir(abs)}
	s := &Site{Path: abs, Dir: d.dir, vms: map[string]*VM{}}
	if root := d.read(data); root != nil {
		d.site(s, value{d: d, n: root})
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return s, nil
}

func tooLarge(path string) error {
	return fault.New(fault.SiteInvalid, "the site file is longer than %d MiB", MaxFileSize>>20).At(path)
}

// VMs returns all VMs in the order of the file.
func (s *Site) VMs() []*VM {
	var out []*VM
	for _, c := range s.VMM.Clouds {
		out = append(out, c.VMs()...)
	}
	return out
}

// VMs returns the VMs of the cloud in the order of the file.
func (c *Cloud) VMs() []*VM {
	var out []*VM
	for _, h := range c.Hosts {
		out = append(out, h.VMs...)
	}
	return out
}

// VM returns the VM of this name, or an error of code VMUnknown.
func (s *Site) VM(name string) (*VM, error) {
	if vm := s.vms[name]; vm != nil {
		return vm, nil
	}
	var names []string
	for _, vm := range s.VMs() {
		names = append(names, vm.Name)
	}
	return nil, fault.New(fault.VMUnknown, "no VM is called %s%s", quote(name), didYouMean(name, names)).At(s.Path)
}

// Cloud returns the cloud of this name, or an error of code UsageError.
func (s *Site) Cloud(name string) (*Cloud, error) {
	var names []string
	for _, c := range s.VMM.Clouds {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return nil, fault.New(fault.UsageError, "no cloud is called %s%s; the site has %s", quote(name),
		didYouMean(name, names), listed(names)).At(s.Path)
}

// Plan returns the recovery plan of this name, or an error of code UsageError.
func (s *Site) Plan(name string) (*Plan, error) {
	var names []string
	for _, p := range s.RecoveryPlans {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return nil, fault.New(fault.UsageError, "no recovery plan is called %s%s", quote(name), didYouMean(name, names)).At(s.Path)
}

// Target returns where a NIC goes at failover: the recovery network that its network is mapped to, and in it the subnet
// with the name of the NIC's network, else the first one. The network is nil when nothing is mapped, the subnet when
// the network has none.
func (s *Site) Target(nic NIC) (*RecoveryNetwork, *Subnet) {
	for _, m := range s.NetworkMapping {
		if m.From == nic.Network {
			if n := s.Recovery.network(m.To); n != nil { // always, in a site that was checked
				return n, n.subnet(nic.Network)
			}
		}
	}
	return nil, nil
}

func (r *Recovery) network(name string) *RecoveryNetwork {
	for _, n := range r.Networks {
		if n.Name == name {
			return n
		}
	}
	return nil
}

func (n *RecoveryNetwork) subnet(name string) *Subnet {
	for i := range n.Subnets {
		if strings.EqualFold(n.Subnets[i].Name, name) {
			return &n.Subnets[i]
		}
	}
	if len(n.Subnets) > 0 {
		return &n.Subnets[0]
	}
	return nil
}

// InAzure says whether the rules of Azure bind this site: its store is there, or its VMs come up there.
func (s *Site) InAzure() bool { return s.Store.Azure != nil || s.Recovery.Azure != nil }

// Package host is where VMs run and can be made, started, stopped and removed, and the contract that every kind of host
// keeps: QEMU/KVM, Hyper-V, or the operator's own scripts.
//
// A host knows VMs by name. It is told what a VM is by a Definition, once, at Create; after that its own records say how
// to start it. Every method may be called again after a crash: what is already so is no error. A host never owns disks: it
// neither makes nor deletes the disk files of a Definition, whatever becomes of the VM. Names are data: quotes, commas and
// blanks in them have no meaning to any host; one that a host cannot take is HostRefused.
//
// Package hosttest is this contract as a runnable suite.
//
// A cancelled context ends what is waited for, and is fault.Interrupted (one whose time is over: HostTimeout). The VM may then be found before or after what was
// asked for; the same call again gets it done.
//
// Errors are fault.Errors: HostUnreachable (recoverable) when the host did not answer, HostRefused (critical) when it did
// and said no, VMAbsent (critical) when it has no VM of that name, HostTimeout (recoverable) when it did not get done in time.
package host

import (
	"context"
	"time"
)

// Power is what a VM is doing.
type Power string

// The powers. Absent means that the host has no VM of this name; Saved, that it is off, and will go on with what it remembers of its
// disks when it is started; Unknown, that the host cannot tell (plain files).
const (
	Absent  Power = "absent"
	Off     Power = "off"
	Saved   Power = "saved"
	Running Power = "running"
	Paused  Power = "paused"
	Unknown Power = "unknown"
)

// Host is a place where VMs run. Its methods may be called concurrently for different VMs.
type Host interface {
	// Describe names the host for people: kind and address, without secrets.
	Describe() string
	// Create makes the VM, powered off, or brings one of this name that is off to the definition. A VM of this name that is
	// running with another definition is HostRefused. A disposable VM that is off begins with its disk files as they are now,
	// whatever an earlier run of it has written.
	Create(ctx context.Context, d Definition) error
	// Start powers the VM on, or lets one go on that is paused. It returns when the host says that it runs, not when its guest is up.
	Start(ctx context.Context, vm string) error
	// Stop asks the guest to shut down, and powers the VM off when it has not after grace (0: at once). When it returns nil
	// the VM is off and everything it wrote is in its disk files, durable. A VM that is absent is VMAbsent.
	Stop(ctx context.Context, vm string, grace time.Duration) error
	// State tells what the VM is doing.
	State(ctx context.Context, vm string) (Power, error)
	// Delete powers the VM off and removes it, and everything that Create made for it. One that is absent is no error.
	Delete(ctx context.Context, vm string) error
}

// Freezer is a Host that can hold a running VM still, so that its disks are of one moment while they are read.
type Freezer interface {
	// Freeze returns when the VM writes no more and everything it wrote is visible in its disk files. A VM that is not
	// running needs no freezing: held is false then, and Thaw must not be called. One that an earlier run froze and did not
	// thaw is held. A VM that is absent is VMAbsent.
	Freeze(ctx context.Context, vm string) (held bool, err error)
	// Thaw lets the VM go on; one that runs, or is off by now, is no error. It is called with a context that is not cancelled,
	// whatever happened.
	Thaw(ctx context.Context, vm string) error
}

// Marker is a Freezer that tells a VM that it holds from one that somebody else has paused.
type Marker interface {
	// Marked says that Freeze holds the VM, or was about to, and that Thaw did not follow.
	Marked(vm string) (bool, error)
}

// Writer is a Host that tells what a VM writes to: after a checkpoint or a snapshot that is another file than the one that it was
// made with.
type Writer interface {
	// Writes lists the files and devices at the host to which the drives of the VM write, as its hypervisor says. known is false
	// when it cannot tell, such as of a VM that does not run.
	Writes(ctx context.Context, vm string) (files []string, known bool, err error)
}

// Rehearser is a Host that can try beforehand what it would be asked for in a disaster.
type Rehearser interface {
	// Rehearse fails when the VM could not be made or started. Its disks need not be there. It leaves nothing.
	Rehearse(ctx context.Context, d Definition) error
	// Memory is the memory of the host in bytes, for VMs and everything else; known is false when it cannot be told.
	Memory() (total int64, known bool)
}

// Console is a Host that keeps what a VM writes to its serial console.
type Console interface {
	// ConsoleLog is the path of a file to which the console's output of the present, or last, run is appended.
	ConsoleLog(vm string) string
}

// Definition is a VM as a host makes it. It is plain data, handed to scripts as JSON.
type Definition struct {
	Name       string `json:"name"`       // at the host; not always that of the protected VM
	Generation int    `json:"generation"` // 1 BIOS, 2 UEFI
	OS         string `json:"os"`         // windows, linux, other
	CPUs       int    `json:"cpus"`
	Memory     int64  `json:"memory"` // bytes
	Disks      []Disk `json:"disks"`  // the first one boots
	NICs       []NIC  `json:"nics,omitempty"`
	// Disposable says that nothing the guest writes may reach the disk files: it writes to an overlay that Delete removes.
	Disposable bool `json:"disposable,omitempty"`
}

// Disk is a disk of a Definition.
type Disk struct {
	Name   string `json:"name"`
	Path   string `json:"path"`   // absolute; or the address, without secrets, of a page blob that holds the disk as a fixed VHD
	Format string `json:"format"` // raw, vhd, vhdx, qcow2
	Size   int64  `json:"size"`   // guest bytes
	OS     bool   `json:"os,omitempty"`
	// SectorSize is the bytes of a logical sector: 0 is 512. A VHDX says so itself; of a raw disk or a qcow2 only the host can.
	SectorSize int `json:"sector_size,omitempty"`
}

// Picky is a Host that cannot run a VM on every disk.
type Picky interface {
	// Takes refuses a disk that Create could make no use of. The disk need not be there yet.
	Takes(d Disk) error
}

// Attach is how a NIC is connected at the host.
type Attach string

// The ways to connect. Isolated reaches nobody; User reaches out through the host's address and is not reached; Bridge is
// a switch or bridge of the host.
const (
	Isolated Attach = "isolated"
	User     Attach = "user"
	Bridge   Attach = "bridge"
)

// NIC is one row of the table of networks that is printed before anything starts, and handed to scripts.
type NIC struct {
	Source   string `json:"source_network"`      // VM network at the protected site
	SourceIP string `json:"source_ip,omitempty"` // "" = by DHCP
	Network  string `json:"network"`             // recovery network; "isolated" for none
	Subnet   string `json:"subnet,omitempty"`    // its name
	Attach   Attach `json:"attach"`              //
	Switch   string `json:"switch,omitempty"`    // bridge or virtual switch, for Bridge
	IP       string `json:"ip,omitempty"`        // with prefix length, such as 10.1.0.5/24; "" = by DHCP
	Gateway  string `json:"gateway,omitempty"`   //
	MAC      string `json:"mac,omitempty"`       // "" = the host chooses
	Primary  bool   `json:"primary,omitempty"`   //
	PublicIP bool   `json:"public_ip,omitempty"` // asked for; hosts without such a thing refuse at Create
}

// Package script is a host that is the operator's own commands: whatever runs VMs and has a command line can be used.
//
// Each operation is a program of Config. It is run with the name of the VM as its only argument, with what it is about in
// the environment, and with the same as one JSON document on standard input:
//
//	SITREP_OPERATION       create, start, stop, state, delete, freeze or thaw: one program can serve for all of them
//	SITREP_VM              the VM's name, again
//	SITREP_GRACE_SECONDS   stop: how long the guest may take to shut down before its power is cut; 0 is at once
//
// and of create, which is the only operation that is told what the VM is:
//
//	SITREP_GENERATION      1 (BIOS) or 2 (UEFI)
//	SITREP_OS              windows, linux or other
//	SITREP_CPUS, SITREP_MEMORY (bytes), SITREP_DISPOSABLE (1 or 0)
//	SITREP_DISKS, SITREP_NICS           how many there are; N counts from 1
//	SITREP_DISK_N_NAME, _PATH, _FORMAT (raw, vhd, vhdx, qcow2), _SIZE (bytes), _OS (1 or 0)
//	                                    PATH may be the address of a page blob: see below
//	SITREP_DISK_N_SECTOR_SIZE           of a disk whose logical sectors have other than 512 bytes
//	SITREP_DISK_NAME                    the path once more, by the disk's name: in capitals, what is no letter or digit as _
//	SITREP_NIC_N_SOURCE, _SOURCE_IP, _NETWORK, _SUBNET, _ATTACH, _SWITCH, _IP, _GATEWAY, _MAC, _PRIMARY, _PUBLIC_IP (1 or 0)
//
// The document is {"operation", "vm", "grace_seconds", "definition"}; "definition" is host.Definition, of create only.
//
// What a program answers is its exit code: 0 is done; 75 (EX_TEMPFAIL) is that the host could not be reached, which will
// be tried again; any other is a refusal. What it says on standard error becomes part of the message. "state" writes one word
// to standard output: absent, off, saved (off, with its memory kept), running, paused, or unknown where it cannot tell.
//
// So that simple programs do, the state is asked before and after: start is not run for a VM that runs, nor stop for one that
// is off, nor delete for one that is absent, and one that is running is stopped before it is deleted; a start or a stop that
// ended with 0 and has not done it is an error. What the programs have to keep to themselves: create may find the VM there (it is
// made like the definition, or refused when it runs as another), and what is disposable must not write to the disk files.
// freeze may find the VM frozen by an earlier run that was killed, and thaw may find it running; neither is an error.
//
// Where the disks are page blobs of a storage account, their addresses hold no secret, and the variables that the site file names
// as holding the store's (connection_string_env, key_env, sas_env) are not in the programs' environment: they have credentials of
// their own. All other variables of sitrep's environment are there.
// The blobs of a test are its own, and may be written to. A VM that is made of copies of its blobs (managed disks are such) writes elsewhere;
// what it wrote has to be in the blobs, whole fixed VHDs again, when stop ends, and while the VM is frozen. Only sitrep deletes them.
package script

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hook"
	"sitrep/internal/host"
)

// TempFail is the exit code of a program that could not reach its host.
const TempFail = 75

// Config is the programs: absolute paths. Start, Stop and State are needed; without Create and Delete nothing can be made.
type Config struct {
	Name                               string // of the host, for people
	Create, Start, Stop, State, Delete string
	Freeze, Thaw                       string        // both or neither
	Timeout                            time.Duration // of each; that of stop comes on top of the grace. More than 0.
	Programs                           hook.Runner   // runs them
}

// Host is a host.Host. Its methods may be called concurrently for different VMs.
type Host struct{ c Config }

// FreezingHost is a Host that is also a host.Freezer.
type FreezingHost struct{ Host }

var (
	_ host.Host      = (*Host)(nil)
	_ host.Rehearser = (*Host)(nil)
	_ host.Freezer   = (*FreezingHost)(nil)
)

// New checks the configuration. What it returns is a host.Freezer, a *FreezingHost, when there are programs for that.
func New(c Config) (host.Host, error) {
	switch {
	case c.Start == "" || c.Stop == "" || c.State == "":
		return nil, fault.New(fault.SiteInvalid, "a host of scripts needs programs for start, stop and state")
	case (c.Freeze == "") != (c.Thaw == ""):
		return nil, fault.New(fault.SiteInvalid, "a host of scripts needs programs for both of freeze and thaw, or for neither")
	case c.Timeout <= 0:
		return nil, fault.New(fault.SiteInvalid, "the time limit %v of a host of scripts is not positive", c.Timeout)
	}
	if c.Freeze != "" {
		return &FreezingHost{Host{c}}, nil
	}
	return &Host{c}, nil
}

// Describe names the host.
func (h *Host) Describe() string { return fmt.Sprintf("scripts of %s (%s)", h.c.Name, h.c.State) }

// request is the document on a program's standard input.
type request struct {
	Operation    string           `json:"operation"`
	VM           string           `json:"vm"`
	GraceSeconds *float64         `json:"grace_seconds,omitempty"`
	Definition   *host.Definition `json:"definition,omitempty"`
}

// run runs the program of an operation.
func (h *Host) run(ctx context.Context, path string, r request, timeout time.Duration) (hook.Output, error) {
	if strings.HasPrefix(r.VM, "-") {
		return hook.Output{}, fault.New(fault.HostRefused, "the VM cannot be called %q: a program would take that for a flag", r.VM)
	}
	if path == "" {
		return hook.Output{}, fault.New(fault.HostRefused, "the host has no program for %s", r.Operation).Of(r.VM, "")
	}
	out, err := h.c.Programs.Run(ctx, hook.Program{Path: path, Args: []string{r.VM}, Env: environment(r), Stdin: r, Timeout: timeout})
	return out, fault.In(hostError(err, r.Operation), r.VM, "")
}

// hostError says what a failed program means for the host.
func hostError(err error, operation string) error {
	var exit *hook.ExitError
	switch {
	case err == nil || fault.Is(err, fault.Interrupted):
		return err
	case !errors.As(err, &exit):
		return fault.Wrap(fault.HostRefused, err, "%s", operation)
	case exit.Timeout > 0:
		return fault.Wrap(fault.HostTimeout, err, "%s", operation)
	case exit.Code == TempFail:
		return fault.Wrap(fault.HostUnreachable, err, "%s", operation)
	}
	return fault.Wrap(fault.HostRefused, err, "%s", operation)
}

// Rehearse looks whether the programs that make and run a VM are there and can be run; what they would say is not asked.
func (h *Host) Rehearse(_ context.Context, d host.Definition) error {
	if h.c.Create == "" {
		return fault.New(fault.HostRefused, "the host has no program for create").Of(d.Name, "")
	}
	for _, path := range []string{h.c.Create, h.c.Start, h.c.Stop, h.c.State, h.c.Delete} {
		if path == "" {
			continue
		}
		if _, err := exec.LookPath(path); err != nil {
			return fault.Wrap(fault.HostRefused, errors.Unwrap(err), "a program of the host cannot be run").At(path).Of(d.Name, "")
		}
	}
	return nil
}

// Memory is not known: the host may be anywhere.
func (h *Host) Memory() (total int64, known bool) { return 0, false }

// Create runs the program for it, always: it alone can compare the VM with the definition.
func (h *Host) Create(ctx context.Context, d host.Definition) error {
	_, err := h.run(ctx, h.c.Create, request{Operation: "create", VM: d.Name, Definition: &d}, h.c.Timeout)
	return err
}

// State tells what the VM is doing.
func (h *Host) State(ctx context.Context, vm string) (host.Power, error) {
	out, err := h.run(ctx, h.c.State, request{Operation: "state", VM: vm}, h.c.Timeout)
	if err != nil {
		return host.Unknown, err
	}
	switch p := host.Power(strings.TrimSpace(out.Stdout)); p {
	case host.Absent, host.Off, host.Saved, host.Running, host.Paused, host.Unknown:
		return p, nil
	}
	return host.Unknown, fault.New(fault.HostRefused, "state said %.100q; absent, off, saved, running, paused and unknown are known", out.Stdout).At(h.c.State).Of(vm, "")
}

// present is State, with an absent VM as an error.
func (h *Host) present(ctx context.Context, vm string) (host.Power, error) {
	p, err := h.State(ctx, vm)
	if err == nil && p == host.Absent {
		err = fault.New(fault.VMAbsent, "%s has no such VM", h.Describe()).Of(vm, "")
	}
	return p, err
}

// Start powers the VM on.
func (h *Host) Start(ctx context.Context, vm string) error {
	p, err := h.present(ctx, vm)
	if err != nil || p == host.Running {
		return err
	}
	if _, err := h.run(ctx, h.c.Start, request{Operation: "start", VM: vm}, h.c.Timeout); err != nil {
		return err
	}
	return h.expect(ctx, vm, "start", host.Running)
}

// Stop powers the VM off.
func (h *Host) Stop(ctx context.Context, vm string, grace time.Duration) error {
	p, err := h.present(ctx, vm)
	if err != nil || p == host.Off {
		return err
	}
	seconds := grace.Seconds()
	r := request{Operation: "stop", VM: vm, GraceSeconds: &seconds}
	if _, err := h.run(ctx, h.c.Stop, r, h.c.Timeout+grace); err != nil {
		return err
	}
	return h.expect(ctx, vm, "stop", host.Off)
}

// expect checks that an operation did what it said.
func (h *Host) expect(ctx context.Context, vm, operation string, want host.Power) error {
	p, err := h.State(ctx, vm)
	if err != nil || p == want || p == host.Unknown || p == host.Saved && want == host.Off {
		return err
	}
	return fault.New(fault.HostRefused, "%s ended well, and the VM is %s", operation, p).Of(vm, "")
}

// Delete removes the VM, which is powered off first.
func (h *Host) Delete(ctx context.Context, vm string) error {
	p, err := h.State(ctx, vm)
	if err != nil || p == host.Absent {
		return err
	}
	if p != host.Off {
		if err := h.Stop(ctx, vm, 0); err != nil && !fault.Is(err, fault.VMAbsent) {
			return err
		}
	}
	if _, err := h.run(ctx, h.c.Delete, request{Operation: "delete", VM: vm}, h.c.Timeout); err != nil {
		return err
	}
	return h.expect(ctx, vm, "delete", host.Absent)
}

// Freeze runs the program for it, unless the VM is off.
func (h *FreezingHost) Freeze(ctx context.Context, vm string) (held bool, err error) {
	p, err := h.present(ctx, vm)
	if err != nil || p == host.Off || p == host.Saved {
		return false, err
	}
	_, err = h.run(ctx, h.c.Freeze, request{Operation: "freeze", VM: vm}, h.c.Timeout)
	if err == nil {
		return true, nil
	}
	// It may have got half way, or have been killed.
	return false, errors.Join(err, h.Thaw(context.WithoutCancel(ctx), vm))
}

// Thaw runs the program for it, unless the VM is off.
func (h *FreezingHost) Thaw(ctx context.Context, vm string) error {
	p, err := h.State(ctx, vm)
	if err != nil || p == host.Off || p == host.Saved || p == host.Absent {
		return err
	}
	_, err = h.run(ctx, h.c.Thaw, request{Operation: "thaw", VM: vm}, h.c.Timeout)
	return err
}

// environment is the variables of an operation; see the package's documentation.
func environment(r request) map[string]string {
	env := map[string]string{"SITREP_OPERATION": r.Operation, "SITREP_VM": r.VM}
	if r.GraceSeconds != nil {
		env["SITREP_GRACE_SECONDS"] = strconv.FormatFloat(*r.GraceSeconds, 'f', -1, 64)
	}
	if d := r.Definition; d != nil {
		define(env, d)
	}
	return env
}

func define(env map[string]string, d *host.Definition) {
	env["SITREP_GENERATION"] = strconv.Itoa(d.Generation)
	env["SITREP_OS"] = d.OS
	env["SITREP_CPUS"] = strconv.Itoa(d.CPUs)
	env["SITREP_MEMORY"] = strconv.FormatInt(d.Memory, 10)
	env["SITREP_DISPOSABLE"] = flag(d.Disposable)
	env["SITREP_DISKS"] = strconv.Itoa(len(d.Disks))
	env["SITREP_NICS"] = strconv.Itoa(len(d.NICs))
	for _, disk := range d.Disks {
		env["SITREP_DISK_"+capitals(disk.Name)] = disk.Path
	}
	for i, disk := range d.Disks { // after the names: these always mean what they say
		p := fmt.Sprintf("SITREP_DISK_%d_", i+1)
		env[p+"NAME"], env[p+"PATH"], env[p+"FORMAT"] = disk.Name, disk.Path, disk.Format
		env[p+"SIZE"], env[p+"OS"] = strconv.FormatInt(disk.Size, 10), flag(disk.OS)
		if disk.SectorSize != 0 {
			env[p+"SECTOR_SIZE"] = strconv.Itoa(disk.SectorSize)
		}
	}
	for i, n := range d.NICs {
		p := fmt.Sprintf("SITREP_NIC_%d_", i+1)
		env[p+"SOURCE"], env[p+"SOURCE_IP"], env[p+"NETWORK"], env[p+"SUBNET"] = n.Source, n.SourceIP, n.Network, n.Subnet
		env[p+"ATTACH"], env[p+"SWITCH"], env[p+"IP"], env[p+"GATEWAY"] = string(n.Attach), n.Switch, n.IP, n.Gateway
		env[p+"MAC"], env[p+"PRIMARY"], env[p+"PUBLIC_IP"] = n.MAC, flag(n.Primary), flag(n.PublicIP)
	}
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// capitals is a name as a part of a variable's name.
func capitals(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}

// Package hyperv runs VMs with Hyper-V, by its PowerShell cmdlets, on this machine or over SSH.
//
// Each operation is one run of PowerShell with a fixed script; what it is about goes to it as one JSON document on standard
// input, and what it found out comes back as one. Nothing that stands in a site file ever becomes part of a script or of a
// command line. Errors are told apart by their category and identifier, which do not depend on the server's language.
//
// Over SSH the command is
//
//	ssh -o BatchMode=yes -- user@host powershell.exe -NoProfile -NonInteractive ... -EncodedCommand ...
//
// so that keys, known hosts and jump hosts are those of the account that runs sitrep. It has to be one of the group Hyper-V
// Administrators there: to others Hyper-V shows no VMs, and everything would be absent.
//
// None of this has met a real Hyper-V server yet. The package is proven against exchanges that were written from the
// cmdlets' documentation (testdata), by which every request, every answer and every kind of error is checked; what the
// scripts do on a server is not.
//
// Freezing is Suspend-VM: the guest stands still and what it has asked for is done, but what it holds in its own memory is
// not written, and neither is what Hyper-V has not yet put into the file. It is a moment of a power cut, as far as the guest
// is concerned. Hyper-V keeps the file of a running VM, a suspended one too, to itself: readers that need more than what it
// shares need a checkpoint.
package hyperv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"

	"sitrep/internal/fault"
	"sitrep/internal/hook"
	"sitrep/internal/host"
)

// Config is how Hyper-V is reached.
type Config struct {
	SSH     string        // user@host; "" is this machine
	Switch  string        // the virtual switch of isolated NICs, of the private kind; "" leaves them unconnected
	Timeout time.Duration // of each operation; the grace of a stop comes on top. More than 0.
	// Programs runs PowerShell, or ssh.
	Programs hook.Runner
}

// Host is a host.Host and a host.Freezer. Its methods may be called concurrently for different VMs.
type Host struct {
	c   Config
	run func(context.Context, hook.Program) (hook.Output, error) // that of Config.Programs, or a test's
}

var (
	_ host.Host    = (*Host)(nil)
	_ host.Freezer = (*Host)(nil)
	_ host.Writer  = (*Host)(nil)
)

// New checks the configuration; it reaches nothing.
func New(c Config) (*Host, error) {
	if strings.ContainsAny(c.SSH, " \t\r\n") || strings.HasPrefix(c.SSH, "-") {
		return nil, fault.New(fault.SiteInvalid, "%q is no user@host", c.SSH)
	}
	if c.Timeout <= 0 {
		return nil, fault.New(fault.SiteInvalid, "the time limit %v of a Hyper-V host is not positive", c.Timeout)
	}
	return &Host{c, c.Programs.Run}, nil
}

// Describe names the host.
func (h *Host) Describe() string {
	if h.c.SSH == "" {
		return "Hyper-V on this machine"
	}
	return "Hyper-V at " + h.c.SSH
}

// request is what a script gets.
type request struct {
	VM         string `json:"vm"`
	Grace      int64  `json:"grace,omitempty"` // seconds
	Mark       string `json:"mark,omitempty"`
	Generation int    `json:"generation,omitempty"`
	OS         string `json:"os,omitempty"`
	CPUs       int    `json:"cpus,omitempty"`
	Memory     int64  `json:"memory,omitempty"`
	Disposable bool   `json:"disposable,omitempty"`
	Disks      []disk `json:"disks,omitempty"`
	NICs       []nic  `json:"nics,omitempty"`
}

type disk struct {
	Path string `json:"path"`
}

type nic struct {
	Name   string `json:"name"`
	Switch string `json:"switch,omitempty"`
	MAC    string `json:"mac,omitempty"` // without separators
}

// answer is what a script says.
type answer struct {
	OK       *bool           `json:"ok"`
	Result   json.RawMessage `json:"result"`
	ID       string          `json:"id"`
	Category string          `json:"category"`
	Message  string          `json:"message"`
}

// program is the run of PowerShell for a script.
func (h *Host) program(script string, r request, timeout time.Duration) (hook.Program, error) {
	doc, err := json.Marshal(r)
	if err != nil {
		return hook.Program{}, err
	}
	args := []string{"-NoProfile", "-NonInteractive", "-InputFormat", "Text", "-OutputFormat", "Text", "-EncodedCommand", encode(before + script + after)}
	p := hook.Program{Path: "powershell.exe", Args: args, Stdin: ascii(doc), Timeout: timeout}
	if h.c.SSH != "" {
		p.Path, p.Args = "ssh", append([]string{"-o", "BatchMode=yes", "--", h.c.SSH, "powershell.exe"}, args...)
	}
	return p, nil
}

// encode is a script as -EncodedCommand takes it: a word without any character that a shell knows.
func encode(script string) string {
	units := utf16.Encode([]rune(script))
	b := make([]byte, 0, 2*len(units))
	for _, u := range units {
		b = append(b, byte(u), byte(u>>8))
	}
	return base64.StdEncoding.EncodeToString(b)
}

// ascii writes everything beyond ASCII as JSON escapes, so that no console encoding changes it.
func ascii(doc []byte) json.RawMessage {
	var b bytes.Buffer
	for _, r := range string(doc) {
		if r < 0x80 {
			b.WriteRune(r)
			continue
		}
		for _, u := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, u)
		}
	}
	return b.Bytes()
}

// ask runs a script and puts its answer into result, unless that is nil.
func (h *Host) ask(ctx context.Context, script string, r request, timeout time.Duration, result any) error {
	p, err := h.program(script, r, timeout)
	if err != nil {
		return fault.Wrap(fault.HostRefused, err, "the request cannot be made").Of(r.VM, "")
	}
	out, err := h.run(ctx, p)
	if err != nil {
		return fault.In(h.notRun(err), r.VM, "")
	}
	return fault.In(h.read(out, result), r.VM, "")
}

// notRun says what it means that PowerShell, or SSH, failed.
func (h *Host) notRun(err error) error {
	var exit *hook.ExitError
	switch {
	case fault.Is(err, fault.Interrupted):
		return err
	case !errors.As(err, &exit):
		return fault.Wrap(fault.HostRefused, err, "PowerShell could not be started")
	case exit.Timeout > 0:
		return fault.Wrap(fault.HostTimeout, err, "%s did not answer in time", h.Describe())
	case h.c.SSH != "" && exit.Code == 255: // of ssh itself
		return fault.Wrap(fault.HostUnreachable, err, "%s cannot be reached", h.Describe())
	}
	return fault.Wrap(fault.HostRefused, err, "PowerShell failed")
}

// read understands a script's answer. One that is not exactly what a script says is an error: a profile, a banner or another
// program has answered.
func (h *Host) read(out hook.Output, result any) error {
	var a answer
	if err := strict([]byte(out.Stdout), &a); err != nil || a.OK == nil {
		return fault.Wrap(fault.HostRefused, err, "the answer of %s cannot be understood: %.200q", h.Describe(), out.Stdout)
	}
	if !*a.OK {
		return h.refusal(a)
	}
	if result == nil {
		return nil
	}
	if err := strict(a.Result, result); err != nil {
		return fault.Wrap(fault.HostRefused, err, "the answer of %s cannot be understood: %.200q", h.Describe(), a.Result)
	}
	return nil
}

// strict decodes one JSON value with nothing unknown in it and nothing after it.
func strict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("there is something after the answer")
	}
	return nil
}

// refusal is the error of a script, by its identifier and category.
func (h *Host) refusal(a answer) error {
	switch a.ID {
	case idAbsent:
		return fault.New(fault.VMAbsent, "%s has no such VM", h.Describe())
	case idAmbiguous:
		return fault.New(fault.HostRefused, "%s has several VMs of this name", h.Describe())
	case idOther:
		return fault.New(fault.HostRefused, "%s has a VM of this name that is not off, or of another generation; stop or delete it first", h.Describe())
	}
	code := fault.HostRefused
	switch a.Category { // of System.Management.Automation.ErrorCategory
	case "OperationTimeout":
		code = fault.HostTimeout
	case "ConnectionError", "ResourceBusy", "ResourceUnavailable":
		code = fault.HostUnreachable
	}
	return fault.New(code, "%s: %s (%s)", h.Describe(), strings.TrimSpace(a.Message), a.ID)
}

// Create makes the VM; see host.Host. Overlays of disposable VMs lie in the VM's folder at the host.
func (h *Host) Create(ctx context.Context, d host.Definition) error {
	r, err := h.define(d)
	if err != nil {
		return fault.In(err, d.Name, "")
	}
	var made string
	return h.ask(ctx, createScript, r, h.c.Timeout, &made)
}

// define checks the definition and makes the request for it.
func (h *Host) define(d host.Definition) (request, error) {
	r := request{VM: d.Name, Generation: d.Generation, OS: d.OS, CPUs: d.CPUs, Memory: d.Memory, Disposable: d.Disposable, Mark: mark(d)}
	if d.Name == "" || len(d.Disks) == 0 || d.Generation != 1 && d.Generation != 2 {
		return r, fault.New(fault.HostRefused, "a VM needs a name, a disk to boot from and generation 1 or 2")
	}
	for i, k := range d.Disks {
		switch {
		case k.Format != "vhd" && k.Format != "vhdx":
			return r, fault.New(fault.HostRefused, "Hyper-V has no disks of the format %s", k.Format).Of(d.Name, k.Name).At(k.Path)
		case !strings.HasSuffix(strings.ToLower(k.Path), "."+k.Format):
			return r, fault.New(fault.HostRefused, "Hyper-V tells formats by the file's name, which has to end with .%s", k.Format).Of(d.Name, k.Name).At(k.Path)
		case i == 0 && d.Generation == 2 && k.Format != "vhdx":
			return r, fault.New(fault.HostRefused, "a VM of generation 2 boots from VHDX only").Of(d.Name, k.Name).At(k.Path)
		}
		r.Disks = append(r.Disks, disk{k.Path})
	}
	for i, n := range d.NICs {
		to, err := h.connect(n)
		if err != nil {
			return r, err
		}
		mac := strings.NewReplacer(":", "", "-", "").Replace(n.MAC)
		r.NICs = append(r.NICs, nic{Name: fmt.Sprintf("NIC %d", i+1), Switch: to, MAC: mac})
	}
	return r, nil
}

// connect is the virtual switch of a NIC, "" for none.
func (h *Host) connect(n host.NIC) (string, error) {
	switch {
	case n.PublicIP:
		return "", fault.New(fault.HostRefused, "a NIC asks for a public address, which Hyper-V has not")
	case n.Attach == host.Isolated || n.Attach == "":
		return h.c.Switch, nil
	case n.Attach == host.Bridge && n.Switch != "":
		return n.Switch, nil
	}
	return "", fault.New(fault.HostRefused, "a NIC cannot be attached as %q: Hyper-V connects to virtual switches; name one (attach: bridge)", n.Attach)
}

// mark says in a VM's notes what it was made from.
func mark(d host.Definition) string {
	b, _ := json.Marshal(d) // plain data
	sum := sha256.Sum256(b)
	return "sitrep: made from definition " + hex.EncodeToString(sum[:])
}

// State tells what the VM is doing.
func (h *Host) State(ctx context.Context, vm string) (host.Power, error) {
	var name string
	if err := h.ask(ctx, stateScript, request{VM: vm}, h.c.Timeout, &name); err != nil {
		return host.Unknown, err
	}
	return power(name), nil
}

// power is what a state of Hyper-V means. Those on the way from one to another are those of a VM that may still write; those
// that end with Critical are the same without their storage.
func power(state string) host.Power {
	switch strings.TrimSuffix(state, "Critical") {
	case "Absent":
		return host.Absent
	case "Off":
		return host.Off
	case "Saved", "FastSaved":
		return host.Saved
	case "Paused":
		return host.Paused
	case "Running", "Starting", "Stopping", "Saving", "FastSaving", "Pausing", "Resuming", "Reset":
		return host.Running
	}
	return host.Unknown
}

// Start powers the VM on; see host.Host.
func (h *Host) Start(ctx context.Context, vm string) error {
	return h.expect(ctx, startScript, request{VM: vm}, h.c.Timeout, host.Running)
}

// Stop powers the VM off; see host.Host.
func (h *Host) Stop(ctx context.Context, vm string, grace time.Duration) error {
	seconds := int64((grace + time.Second - 1) / time.Second)
	return h.expect(ctx, stopScript, request{VM: vm, Grace: seconds}, h.c.Timeout+grace, host.Off)
}

// expect runs a script that answers the VM's state.
func (h *Host) expect(ctx context.Context, script string, r request, timeout time.Duration, want host.Power) error {
	var state string
	if err := h.ask(ctx, script, r, timeout, &state); err != nil {
		return err
	}
	if p := power(state); p != want && (p != host.Saved || want != host.Off) {
		return fault.New(fault.HostRefused, "the VM is %s afterwards, not %s", state, want).Of(r.VM, "")
	}
	return nil
}

// Delete removes the VM; see host.Host.
func (h *Host) Delete(ctx context.Context, vm string) error {
	return h.expect(ctx, deleteScript, request{VM: vm}, h.c.Timeout, host.Absent)
}

// Writes lists the files of the VM's drives: of a VM with a checkpoint they are those of the checkpoint. See host.Writer.
func (h *Host) Writes(ctx context.Context, vm string) (files []string, known bool, err error) {
	err = h.ask(ctx, drivesScript, request{VM: vm}, h.c.Timeout, &files)
	return files, err == nil, err
}

// Freeze suspends the VM; see the package's documentation for what that holds.
func (h *Host) Freeze(ctx context.Context, vm string) (held bool, err error) {
	err = h.ask(ctx, freezeScript, request{VM: vm}, h.c.Timeout, &held)
	if err != nil && !fault.Is(err, fault.VMAbsent) {
		// It may have got half way.
		err = errors.Join(err, h.Thaw(context.WithoutCancel(ctx), vm))
	}
	return held, err
}

// Thaw lets the VM go on.
func (h *Host) Thaw(ctx context.Context, vm string) error {
	return h.ask(ctx, thawScript, request{VM: vm}, h.c.Timeout, nil)
}

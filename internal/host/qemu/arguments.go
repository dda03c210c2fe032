package qemu

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// maxFirmware is the size in bytes of the largest file of UEFI variables.
const maxFirmware = 64 << 20

// checkName refuses what would leave the folder or hide in it.
func checkName(vm string) error {
	if vm == "" || len(vm) > 200 || vm[0] == '.' || vm[0] == '-' || strings.ContainsAny(vm, "/\\\x00\n") {
		return fault.New(fault.HostRefused, "the VM cannot be called %q", vm)
	}
	return nil
}

// checkDefinition refuses what QEMU would not run, or would run as something else.
func (h *Host) checkDefinition(d host.Definition) error {
	if err := h.mayRun(d); err != nil {
		return err
	}
	for _, disk := range d.Disks {
		if err := h.checkDisk(d.Name, disk); err != nil {
			return fault.In(err, d.Name, disk.Name)
		}
	}
	return nil
}

// mayRun is checkDefinition of a VM whose disks are not there yet.
func (h *Host) mayRun(d host.Definition) error {
	if err := checkName(d.Name); err != nil {
		return err
	}
	if path, ok := h.c.QMP[d.Name]; ok {
		return fault.New(fault.HostRefused, "the VM is one that something else makes and starts").Of(d.Name, "").At(path)
	}
	no := func(format string, args ...any) error {
		return fault.New(fault.HostRefused, format, args...).Of(d.Name, "")
	}
	switch {
	case d.Generation != 1 && d.Generation != 2:
		return no("there is no generation %d", d.Generation)
	case d.CPUs < 1 || d.Memory < 1<<20:
		return no("a VM with %d CPUs and %d bytes of memory cannot run", d.CPUs, d.Memory)
	case len(d.Disks) == 0:
		return no("the VM has no disk to boot from")
	}
	for _, disk := range d.Disks {
		if err := h.Takes(disk); err != nil {
			return fault.In(err, d.Name, disk.Name)
		}
	}
	for i, nic := range d.NICs {
		if err := checkNIC(i, nic); err != nil {
			return fault.In(err, d.Name, "")
		}
	}
	return nil
}

// Takes refuses a disk that QEMU cannot show to a guest; see host.Picky.
func (h *Host) Takes(d host.Disk) error {
	switch {
	case driver(d.Format) == "":
		return fault.New(fault.HostRefused, "the format %q is unknown", d.Format).At(d.Path)
	case d.SectorSize <= 512:
		return nil
	case d.Format == "vhdx":
		return fault.New(fault.PrerequisiteFail, "its logical sectors have %d bytes, and QEMU reads no such VHDX: recover it as raw or qcow2", d.SectorSize).At(d.Path)
	case h.c.DiskBus == "sata":
		return fault.New(fault.PrerequisiteFail, "its logical sectors have %d bytes, and a sata disk of QEMU has none but of 512: use disk: virtio or scsi",
			d.SectorSize).At(d.Path)
	}
	return nil
}

func (h *Host) checkDisk(vm string, d host.Disk) error {
	if !filepath.IsAbs(d.Path) {
		return fault.New(fault.HostRefused, "the path is not absolute").At(d.Path)
	}
	if filepath.Dir(d.Path) == h.path(vm) && ours(filepath.Base(d.Path)) {
		return fault.New(fault.HostRefused, "a file of this name in this folder is made, and removed, by the host").At(d.Path)
	}
	if _, err := os.Stat(d.Path); err != nil {
		return fault.Wrap(fault.HostRefused, err, "the disk cannot be found").At(d.Path)
	}
	return nil
}

func checkNIC(i int, n host.NIC) error {
	switch n.Attach {
	case "", host.Isolated, host.User:
	case host.Bridge:
		if n.Switch == "" {
			return fault.New(fault.HostRefused, "NIC %d is to be connected to a bridge, and none is named", i+1)
		}
	default:
		return fault.New(fault.HostRefused, "NIC %d cannot be attached as %q", i+1, n.Attach)
	}
	if n.PublicIP {
		return fault.New(fault.HostRefused, "NIC %d asks for a public address, which QEMU has not", i+1)
	}
	if n.MAC != "" {
		if hw, err := net.ParseMAC(n.MAC); err != nil || len(hw) != 6 {
			return fault.New(fault.HostRefused, "NIC %d: %q is no MAC address", i+1, n.MAC)
		}
	}
	return nil
}

// sectors tells QEMU of sectors that are not those it would take for granted.
func sectors(d host.Disk) string {
	if d.SectorSize <= 512 {
		return ""
	}
	return fmt.Sprintf(",logical_block_size=%[1]d,physical_block_size=%[1]d", d.SectorSize)
}

// driver is QEMU's name of a disk format, "" for one that is unknown.
func driver(format string) string {
	switch format {
	case "vhd":
		return "vpc"
	case "raw", "vhdx", "qcow2":
		return format
	}
	return ""
}

// escape doubles the commas of a value that stands in an option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// arguments is QEMU's command line. Files of the VM's folder are named without it, because QEMU starts in it.
func (h *Host) arguments(d host.Definition) ([]string, error) {
	args := append(h.basics(d), "-daemonize", "-pidfile", pidFile, "-qmp", "unix:"+socketFile+",server=on,wait=off", "-serial", "file:"+consoleFile)
	machine, err := h.machine(d)
	if err != nil {
		return nil, err
	}
	args = append(args, machine...)
	disks, err := h.disks(d)
	if err != nil {
		return nil, err
	}
	args = append(args, disks...)
	args = append(args, h.nics(d)...)
	return append(args, h.c.Args...), nil
}

// blockdev is the option for an image file of a format.
func blockdev(node, format, path string, readOnly bool) (string, error) {
	type file struct {
		Driver   string `json:"driver"`
		Filename string `json:"filename"`
	}
	protocol := "file"
	if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeDevice != 0 {
		protocol = "host_device"
	}
	b, err := json.Marshal(struct {
		Driver   string `json:"driver"`
		Node     string `json:"node-name"`
		ReadOnly bool   `json:"read-only"`
		File     file   `json:"file"`
	}{format, node, readOnly, file{protocol, path}})
	return string(b), err
}

// machine is the machine and, of generation 2, its firmware.
func (h *Host) machine(d host.Definition) ([]string, error) {
	if d.Generation == 1 {
		return []string{"-machine", h.c.Machine}, nil
	}
	code, err := h.firmware()
	if err != nil {
		return nil, err
	}
	opt, err := blockdev("firmware", "raw", code, true)
	if err != nil {
		return nil, err
	}
	machine, args := h.c.Machine+",pflash0=firmware", []string{"-blockdev", opt}
	if vars := h.path(d.Name, varsFile); exists(vars) {
		opt, err := blockdev("vars", "raw", vars, false)
		if err != nil {
			return nil, err
		}
		machine, args = machine+",pflash1=vars", append(args, "-blockdev", opt)
	}
	return append(args, "-machine", machine), nil
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// firmware is the path of the UEFI firmware.
func (h *Host) firmware() (string, error) {
	paths := []string{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd"}
	if h.c.Firmware != "" {
		paths = []string{h.c.Firmware}
	}
	for _, path := range paths {
		if exists(path) {
			return path, nil
		}
	}
	return "", fault.New(fault.HostRefused, "there is no UEFI firmware, which a VM of generation 2 needs (apt-get install ovmf)").At(paths[0])
}

// makeVars gives the VM its own UEFI variables, which it keeps, where the firmware has a template of them.
func (h *Host) makeVars(vm string) error {
	code, err := h.firmware()
	if err != nil {
		return err
	}
	dir, base := filepath.Split(code)
	template := strings.Replace(base, "CODE", "VARS", 1)
	if template == base || exists(h.path(vm, varsFile)) {
		return nil
	}
	data, err := durable.ReadFile(durable.OS(), filepath.Join(dir, template), maxFirmware)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.FromOS(err)
	}
	if err := durable.WriteFile(durable.OS(), h.path(vm, varsFile), data); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// disks attaches the disks in their order, which is also the order in which the firmware tries to boot from them. Their
// formats are always told: a guest could make a raw disk look like another format, and a fixed VHD looks like a raw disk.
func (h *Host) disks(d host.Definition) ([]string, error) {
	return h.attached(d, func(node string, i int) (string, error) {
		format, path := driver(d.Disks[i].Format), d.Disks[i].Path
		if d.Disposable {
			format, path = "qcow2", h.path(d.Name, overlayFile(i))
		}
		return blockdev(node, format, path, false)
	})
}

// attached attaches what drive makes of each disk.
func (h *Host) attached(d host.Definition, drive func(node string, i int) (string, error)) ([]string, error) {
	var args []string
	bus := ""
	switch h.c.DiskBus {
	case "sata":
		args = append(args, "-device", "ahci,id=disks")
	case "scsi":
		args = append(args, "-device", "virtio-scsi-pci,id=disks")
	}
	for i, disk := range d.Disks {
		opt, err := drive(fmt.Sprintf("disk%d", i), i)
		if err != nil {
			return nil, err
		}
		device := h.c.DiskBus
		switch device {
		case "virtio":
			device = "virtio-blk-pci"
		case "sata":
			device, bus = "ide-hd", fmt.Sprintf(",bus=disks.%d", i)
		case "scsi":
			device, bus = "scsi-hd", ",bus=disks.0"
		}
		args = append(args, "-blockdev", opt,
			"-device", fmt.Sprintf("%s%s,drive=disk%d,serial=%s,bootindex=%d%s", device, bus, i, serial(i, disk.Name), i, sectors(disk)))
	}
	return args, nil
}

// serial is what the guest sees as a disk's serial number: its name, if it fits (20 bytes with every bus).
func serial(i int, name string) string {
	for _, r := range name {
		if r <= ' ' || r > '~' || r == ',' {
			name = ""
		}
	}
	if name == "" || len(name) > 20 {
		return fmt.Sprintf("disk%d", i)
	}
	return name
}

// nics connects the NICs. An isolated one is there and has no other end.
func (h *Host) nics(d host.Definition) []string {
	device := "e1000e" // known to every guest
	if h.c.DiskBus == "virtio" || h.c.DiskBus == "scsi" {
		device = "virtio-net-pci"
	}
	var args []string
	for i, n := range d.NICs {
		id := fmt.Sprintf("nic%d", i)
		end := ",netdev=" + id
		switch n.Attach {
		case host.User:
			args = append(args, "-netdev", "user,id="+id)
		case host.Bridge:
			args = append(args, "-netdev", "bridge,id="+id+",br="+escape(n.Switch))
		default:
			end = ""
		}
		args = append(args, "-device", fmt.Sprintf("%s,mac=%s,romfile=%s", device, h.mac(d.Name, i, n.MAC), end))
	}
	return args
}

// mac is the NIC's address: its own, or one that is the same at every start and not that of another VM.
func (h *Host) mac(vm string, i int, mac string) string {
	if mac != "" {
		return mac
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", h.c.Folder, vm, i))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", sum[0], sum[1], sum[2])
}

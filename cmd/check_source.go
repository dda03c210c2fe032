package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"

	"sitrep/internal/disk"
	"sitrep/internal/disk/esp"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/site"
	"sitrep/internal/support"
)

// ruleHost is the rule of findings about the host of a VM.
const ruleHost = "host"

// around asks what surrounds the VM's disks and would stop a cycle after the copy: its host, files on top of the disks, folders that
// cannot be written to.
func (w *world) around(ctx context.Context, vm *site.VM) (out []finding) {
	add := func(severity support.Severity, disk, rule, advice, format string, args ...any) {
		out = append(out, finding{VM: vm.Name, Disk: disk, Rule: rule, Severity: severity, Message: fmt.Sprintf(format, args...), Advice: advice})
	}
	again := " Then run: " + w.commands("sitrep check "+vm.Name)
	if f := w.hostFinding(ctx, vm); f != nil {
		out = append(out, *f)
	} else if err := w.writesHere(ctx, vm); err != nil && !fault.Is(err, fault.SiteInvalid) { // of which others tell
		e := fault.FromOS(err)
		add(support.Error, e.Disk, string(e.Code), e.Code.Lookup().Cause+" Merge it into the disk, or name the file in the site file."+again, "%s", bareMessage(e))
	}
	for _, d := range vm.Disks {
		folder := w.logDir(vm, d)
		if err := mayWrite(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
			add(support.Error, d.Name, "log-folder", "Make it writable for this account: the change logs of the disk lie there."+again,
				"nothing can be written into %s: %v", folder, errors.Unwrap(err))
		}
	}
	return out
}

// bareMessage is what an error says, without the VM and the disk that a finding names by itself.
func bareMessage(e *fault.Error) string {
	bare := *e
	bare.VM, bare.Disk = "", ""
	return bare.Error()
}

// hostFinding is why the host of a VM cannot be worked with; nil when it can, or when there is nothing to work with.
func (w *world) hostFinding(ctx context.Context, vm *site.VM) *finding {
	problem := func(severity support.Severity, advice, format string, args ...any) *finding {
		return &finding{VM: vm.Name, Rule: ruleHost, Severity: severity, Message: fmt.Sprintf(format, args...), Advice: advice + " Then run: " + w.commands("sitrep check "+vm.Name)}
	}
	at := vm.Host
	if at.Hypervisor == site.HyperV && (at.HyperV == nil || at.HyperV.SSH == "") && runtime.GOOS != "windows" {
		return problem(support.Warning, "Name the server: hyperv: {ssh: user@server}.", "host %s is Hyper-V on this machine, which has none: the VM can be neither stopped nor started", at.Name)
	}
	if at.Hypervisor == site.HyperV || at.Hypervisor == site.Script && at.Script == nil {
		return nil // asked by a failover only, and said by others
	}
	h, err := w.sourceHost(at, vm)
	if err != nil || h == nil {
		return nil
	}
	_, freezes := h.(host.Freezer)
	power, err := h.State(ctx, vm.Name)
	switch {
	case err != nil && freezes:
		return problem(support.Error, "Mend that: a cut asks the host.", "the host cannot be asked what the VM is doing: %s", bareMessage(fault.FromOS(err)))
	case err != nil:
		return problem(support.Warning, "Mend that before a failover.", "the host cannot be asked what the VM is doing: %s", bareMessage(fault.FromOS(err)))
	case power == host.Absent && at.Hypervisor == site.QEMU:
		return problem(support.Error, "Give the VM qmp: the path of the control socket of its QEMU (-qmp unix:PATH,server=on,wait=off), or the host the folder in which sitrep has made the VM.",
			"%s has no VM of this name, and the site file names no control socket (qmp)", h.Describe())
	case power == host.Absent && freezes:
		return problem(support.Error, "Correct the name, or the host.", "%s has no VM of this name", h.Describe())
	case power == host.Off && vm.QMP != "":
		return problem(support.Warning, "When the VM runs, start its QEMU with that socket, or correct qmp.",
			"nobody listens at the VM's control socket %s, and nobody uses its disks: the VM is taken to be off", vm.QMP)
	}
	return nil
}

// foreseen asks what the recovery host would refuse, of a VM that is made as the site file has it now. What this machine says of itself is
// a warning: the recovery host may be another one.
func (w *world) foreseen(ctx context.Context, vm *site.VM, facts []diskFacts) (out []finding) {
	rec := &w.site.Recovery
	if rec.Name == "" || w.site.InAzure() {
		return nil
	}
	add := func(severity support.Severity, disk, rule, advice, format string, args ...any) {
		out = append(out, finding{VM: vm.Name, Disk: disk, Rule: rule, Severity: severity, Message: fmt.Sprintf(format, args...), Advice: advice})
	}
	folder := cmpOr(rec.Folder, filepath.Join(w.site.Dir, site.DefaultRecoveredFolder))
	format := disk.Format(cmpOr(string(rec.Format), string(site.RecoverVHD)))
	inFolder := rec.Disks != site.DisksInStore
	d := machineOf(vm)
	var need int64
	for _, f := range facts {
		path := filepath.Join(folder, vm.Name, f.disk.Name+"."+string(format))
		k := host.Disk{Name: f.disk.Name, Path: path, Format: string(format), Size: f.size, OS: f.disk.OS, SectorSize: f.sector}
		need += f.data
		if most, limited := disk.MaxSize(format); limited && inFolder && f.size > most {
			add(support.Error, f.disk.Name, "recovery-size", "Set recovery.format to vhdx (Hyper-V), raw or qcow2 (QEMU).",
				"it has %s, and is to be recovered as %s, of which hypervisors read at most %s: a failover is refused", size(f.size), format, size(most))
		}
		if k.OS {
			d.Disks = append([]host.Disk{k}, d.Disks...)
		} else {
			d.Disks = append(d.Disks, k)
		}
	}
	if f := w.loaderFinding(vm, facts); f != nil {
		out = append(out, *f)
	}
	const elsewhere = "Mend it, or run sitrep check at the recovery host when that is another machine."
	if inFolder {
		at := existingFolder(folder)
		if free, err := freeSpace(at); err == nil && free < need {
			add(support.Warning, "", "recovery-room", elsewhere, "its disks hold %s, and the volume of recovered disks, %s, has %s free", size(need), folder, size(free))
		}
		if err := mayWrite(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			add(support.Warning, "", "recovery-folder", elsewhere, "recovered disks cannot be made in %s: %v", folder, errors.Unwrap(err))
		}
	}
	if rec.Hypervisor == site.HyperV && (rec.HyperV == nil || rec.HyperV.SSH == "") && runtime.GOOS != "windows" {
		add(support.Warning, "", "recovery-host", elsewhere, "recovery host %s is Hyper-V on this machine, which has none", rec.Name)
	}
	h, err := w.recoveryHost()
	r, can := h.(host.Rehearser)
	if err != nil || !can || len(d.Disks) == 0 || len(facts) != len(vm.Disks) {
		return out
	}
	for _, p := range w.hostPrograms(vm) {
		if p.Problem != "" { // told by itself
			return out
		}
	}
	if nics, _, err := w.networkTable(vm, "", failoverOptions{}, nil); err == nil {
		d.NICs = nics
	}
	for i := range d.NICs {
		d.NICs[i].PublicIP = false // told by itself
	}
	if err := r.Rehearse(ctx, d); err != nil && ctx.Err() == nil {
		add(support.Warning, "", "recovery-host", elsewhere, "the recovery host would not run the VM: %s", bareMessage(fault.FromOS(err)))
	}
	return out
}

// loaderFinding warns of a UEFI VM that boots by an entry of its firmware's variables alone: they are not replicated.
func (w *world) loaderFinding(vm *site.VM, facts []diskFacts) *finding {
	if vm.Generation != 2 {
		return nil
	}
	for _, f := range facts {
		if !f.disk.OS && len(facts) > 1 {
			continue
		}
		img, err := w.openDisk(vm, f.disk, f.format)
		if err != nil {
			return nil
		}
		found, err := esp.HasFallback(io.NewSectionReader(img, 0, img.Size()))
		if img.Close() != nil || err != nil || found {
			return nil
		}
		return &finding{VM: vm.Name, Disk: f.disk.Name, Rule: "uefi-loader", Severity: support.Warning,
			Message: "its EFI partition has no fallback loader \\EFI\\BOOT\\BOOTX64.EFI: the VM boots by an entry of its NVRAM, which is not replicated, and the recovered VM would find no loader",
			Advice:  "Install the loader there in the guest, such as with grub-install --removable, or force_efi_extra_removable of Debian's grub."}
	}
	return nil
}

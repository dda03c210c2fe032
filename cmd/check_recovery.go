package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"

	"sitrep/internal/site"
	"sitrep/internal/support"
)

// recovery gathers what is known of the VM's way through a failover. It is looked at by check alone, and not before a VM is
// protected: a replica is worth having before the scripts of its failover are.
func (w *world) recovery(vm *site.VM) support.Recovery {
	rec := &w.site.Recovery
	r := support.Recovery{VM: vm.Name, Host: rec.Name, Uncontrolled: uncontrolled(vm)}
	r.Scripts = append(vmScripts(vm), w.planScripts(vm)...)
	r.Programs = w.hostPrograms(vm)
	for _, n := range vm.NICs {
		to, _ := w.site.Target(n)
		r.NICs = append(r.NICs, support.RecoveryNIC{Network: n.Network, Unmapped: to == nil, NoPublicIP: n.PublicIP})
	}
	return r
}

// vmScripts are the operator's programs for this VM.
func vmScripts(vm *site.VM) []support.Program {
	list := []support.Program{
		runnable("hook freeze", vm.Hooks.Freeze), runnable("hook thaw", vm.Hooks.Thaw),
		runnable("hook failover", vm.Hooks.Failover), runnable("hook cleanup", vm.Hooks.Cleanup),
	}
	if vm.BootCheck != nil {
		list = append(list, runnable("the command of boot_check", vm.BootCheck.Command))
	}
	return list
}

// planScripts are those around the groups of recovery plans that the VM is in.
func (w *world) planScripts(vm *site.VM) (out []support.Program) {
	for _, p := range w.site.RecoveryPlans {
		for i, g := range p.Groups {
			if !slices.Contains(g.VMs, vm) {
				continue
			}
			for _, a := range g.Pre {
				out = append(out, runnable(fmt.Sprintf("the script of plan %s before group %d", p.Name, i+1), a.Script))
			}
			for _, a := range g.Post {
				out = append(out, runnable(fmt.Sprintf("the script of plan %s after group %d", p.Name, i+1), a.Script))
			}
		}
	}
	return out
}

// hostPrograms are those that the VM's hosts on both sides are worked with, as far as this machine would run them.
func (w *world) hostPrograms(vm *site.VM) []support.Program {
	rec := &w.site.Recovery
	out := append(scripts("host "+vm.Host.Name, vm.Host.Script), scripts("recovery host "+rec.Name, rec.Script)...)
	if q := rec.QEMU; q != nil {
		out = append(out, runnable("QEMU of recovery host "+rec.Name, q.Binary))
		if _, err := w.fs.Stat(q.Firmware); vm.Generation == 2 && err != nil {
			out = append(out, support.Program{Use: "the UEFI firmware of recovery host " + rec.Name, Path: q.Firmware, Problem: reason(err)})
		}
	}
	return out
}

func scripts(host string, s *site.ScriptHost) []support.Program {
	if s == nil {
		return nil
	}
	var out []support.Program
	for _, p := range []struct{ name, path string }{{"create", s.Create}, {"start", s.Start}, {"stop", s.Stop}, {"state", s.State},
		{"delete", s.Delete}, {"freeze", s.Freeze}, {"thaw", s.Thaw}} {
		out = append(out, runnable("the "+p.name+" script of "+host, p.path))
	}
	return out
}

// uncontrolled says why sitrep cannot stop or start the VM where it is protected. Of a host of plain files nobody expects it.
func uncontrolled(vm *site.VM) string {
	switch h := vm.Host; {
	case h.Hypervisor == site.Script && h.Script == nil:
		return "host " + h.Name + " has no section script"
	case h.Hypervisor == site.QEMU && h.Folder == "" && vm.QMP == "":
		return "host " + h.Name + " has no folder, and the VM no qmp"
	}
	return ""
}

// runnable asks whether this machine could run the program; one without a path is not needed.
func runnable(use, path string) support.Program {
	p := support.Program{Use: use, Path: path}
	if path == "" {
		return p
	}
	if _, err := exec.LookPath(path); err != nil {
		p.Problem = reason(err)
	}
	return p
}

// reason words why a program or file cannot be used.
func reason(err error) string {
	var e *exec.Error
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such file"
	case errors.Is(err, fs.ErrPermission):
		return "it is not executable"
	case errors.Is(err, exec.ErrNotFound):
		return "it is not installed, or not in PATH"
	case errors.As(err, &e):
		return e.Err.Error()
	}
	return err.Error()
}

package cmd

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"sitrep/failover"
	"sitrep/failover/network"
	"sitrep/internal/fault"
	"sitrep/internal/hook"
	"sitrep/internal/host"
	"sitrep/internal/host/boot"
	"sitrep/internal/host/hyperv"
	"sitrep/internal/host/qemu"
	"sitrep/internal/host/script"
	system "sitrep/internal/machine"
	"sitrep/internal/site"
)

// This file is where the hosts, hooks and networks of the site file become those of the engines.

// programs runs the programs of hosts, hooks, boot checks and plans. The secrets of the store are not theirs.
func (w *world) programs() hook.Runner { return hook.Runner{Withheld: w.site.Store.SecretVariables()} }

// recoveryHost is the one that runs recovered VMs; nil where only disks are made.
func (w *world) recoveryHost() (host.Host, error) { return w.recoveryHostBy(w.programs()) }

func (w *world) recoveryHostBy(programs hook.Runner) (host.Host, error) {
	return w.hostOf(programs, w.site.Recovery.Runner, w.site.Recovery.Folder, nil)
}

// recoveryID tells the recovery host from others: a hypervisor of this machine is not that of another machine.
func (w *world) recoveryID() (string, error) {
	r := w.site.Recovery
	name, err := os.Hostname()
	if err != nil {
		return "", err
	}
	switch r.Hypervisor {
	case site.QEMU:
		abs, err := filepath.Abs(r.Folder)
		return "qemu " + name + " " + abs, err
	case site.HyperV:
		if r.HyperV != nil && r.HyperV.SSH != "" {
			return "hyperv " + r.HyperV.SSH, nil
		}
		return "hyperv " + name, nil
	case site.Script:
		return "script " + r.Name, nil
	}
	return "none", nil
}

// recoveryKey is recoveryID for a machine that may have been renamed; "" where a name is not part of it, or nothing else tells machines
// apart.
func (w *world) recoveryKey() (string, error) {
	r, id := w.site.Recovery, system.ID()
	switch {
	case id == "":
		return "", nil
	case r.Hypervisor == site.QEMU:
		abs, err := filepath.Abs(r.Folder)
		return "qemu " + id + " " + abs, err
	case r.Hypervisor == site.HyperV && (r.HyperV == nil || r.HyperV.SSH == ""):
		return "hyperv " + id, nil
	}
	return "", nil
}

// sourceHost is the one that runs a protected VM; nil where sitrep has no hand on it.
func (w *world) sourceHost(h *site.Host, vm *site.VM) (host.Host, error) {
	return w.sourceHostBy(w.programs(), h, vm)
}

func (w *world) sourceHostBy(programs hook.Runner, h *site.Host, vm *site.VM) (host.Host, error) {
	var own *site.VM
	if vm.QMP != "" {
		own = vm
	}
	return w.hostOf(programs, h.Runner, cmpOr(h.Folder, w.memory.Path("hosts", h.Name)), own)
}

// hostOf makes the host that a Runner describes. folder is where QEMU keeps what belongs to its VMs, and started a VM that something else
// has started, with a control socket; nil for none.
func (w *world) hostOf(programs hook.Runner, r site.Runner, folder string, started *site.VM) (host.Host, error) {
	switch r.Hypervisor {
	case site.QEMU:
		qmp, disks := map[string]string{}, map[string][]string{}
		if started != nil {
			qmp[started.Name] = started.QMP
			for _, d := range started.Disks {
				disks[started.Name] = append(disks[started.Name], d.Path)
			}
		}
		q := r.QEMU
		if q == nil {
			q = &site.QEMUHost{}
		}
		abs, err := filepath.Abs(folder)
		if err != nil {
			return nil, fault.FromOS(err)
		}
		return orNone(qemu.New(qemu.Config{Folder: abs, Binary: q.Binary, Accel: q.Accel, Machine: q.Machine, CPU: q.CPU,
			DiskBus: q.Disk, Firmware: q.Firmware, Args: q.Args, QMP: qmp, Disks: disks,
			Programs: programs}))
	case site.Script:
		s := r.Script
		if s == nil {
			return nil, fault.New(fault.SiteInvalid, "host %s has hypervisor: script, but no section script", r.Name).At(w.site.Path)
		}
		return orNone(script.New(script.Config{Name: r.Name, Create: s.Create, Start: s.Start, Stop: s.Stop, State: s.State, Delete: s.Delete,
			Freeze: s.Freeze, Thaw: s.Thaw, Timeout: s.Timeout, Programs: programs}))
	case site.HyperV:
		v := r.HyperV
		if v == nil {
			v = &site.HyperVHost{}
		}
		return orNone(hyperv.New(hyperv.Config{SSH: v.SSH, Switch: v.Switch, Timeout: v.Timeout, Programs: programs}))
	}
	return nil, nil
}

// orNone keeps a nil host from becoming an interface that is not nil.
func orNone[H host.Host](h H, err error) (host.Host, error) {
	if err != nil {
		return nil, err
	}
	return h, nil
}

// bootCheck waits until a VM is up, as the site file says how that is told; nil when it does not.
// address finds the one at which it is reached.
func (w *world) bootCheck(vm *site.VM, h host.Host, address func(host.Definition) string) func(context.Context, host.Definition) error {
	b := vm.BootCheck
	if b == nil || h == nil {
		return nil
	}
	return func(ctx context.Context, d host.Definition) error {
		c := boot.Check{Timeout: b.Timeout, Programs: w.programs()}
		console := ""
		switch {
		case b.Console != "":
			re, err := regexp.Compile(b.Console)
			if err != nil {
				return fault.Wrap(fault.SiteInvalid, err, "boot_check.console").Of(vm.Name, "")
			}
			log, ok := h.(host.Console)
			if !ok {
				return fault.New(fault.PrerequisiteFail, "%s keeps no console: the boot check needs another way", h.Describe()).Of(vm.Name, "")
			}
			c.Console, console = re, log.ConsoleLog(d.Name)
		case b.TCP != 0:
			ip := address(d)
			if isolated(d) {
				w.log.Warn("the VM is in no network that could be reached: its boot check is left out", "vm", vm.Name)
				return nil
			}
			if ip == "" {
				return fault.New(fault.PrerequisiteFail, "the boot check needs the primary NIC's address, and that comes by DHCP or there is none").Of(vm.Name, "")
			}
			c.TCP = netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(b.TCP)).String()
		default:
			c.Command = hook.Program{Path: b.Command, Args: []string{d.Name}, Env: vmEnv(vm, d), Stdin: d}
		}
		_, err := boot.Wait(ctx, c, console)
		return fault.In(err, vm.Name, "")
	}
}

func primaryIP(d host.Definition) string {
	for _, n := range d.NICs {
		if p, err := netip.ParsePrefix(n.IP); err == nil && n.Primary {
			return p.Addr().String()
		}
	}
	return ""
}

// homeIP is the address that the VM has where it is protected.
func homeIP(d host.Definition) string {
	for _, n := range d.NICs {
		if n.Primary {
			return n.SourceIP
		}
	}
	return ""
}

// isolated says that the VM's primary NIC reaches nobody.
func isolated(d host.Definition) bool {
	return !slices.ContainsFunc(d.NICs, func(n host.NIC) bool { return n.Primary && n.Attach != host.Isolated })
}

// vmEnv is what hooks of a VM get in their environment; the whole definition is on their standard input.
func vmEnv(vm *site.VM, d host.Definition) map[string]string {
	env := map[string]string{"SITREP_VM": vm.Name, "SITREP_RECOVERED_VM": d.Name, "SITREP_IP": primaryIP(d)}
	for i, n := range d.NICs {
		p := "SITREP_NIC_" + strconv.Itoa(i) + "_"
		env[p+"NETWORK"], env[p+"SUBNET"], env[p+"IP"], env[p+"GATEWAY"], env[p+"MAC"] = n.Network, n.Subnet, n.IP, n.Gateway, n.MAC
		env[p+"SOURCE_NETWORK"], env[p+"SOURCE_IP"] = n.Source, n.SourceIP
	}
	return env
}

// hookInput is what a hook of a VM gets on standard input.
type hookInput struct {
	VM        string          `json:"vm"`
	Operation string          `json:"operation"`
	Recovered host.Definition `json:"recovered_vm"`
}

// vmHook runs a hook of a VM after a failover, or after a test was cleaned up.
func (w *world) vmHook(ctx context.Context, vm *site.VM, path string, k failover.Kind, d host.Definition) error {
	env := vmEnv(vm, d)
	env["SITREP_TYPE"] = string(k)
	_, err := w.programs().Run(ctx, hook.Program{Path: path, Args: []string{vm.Name}, Env: env, Timeout: vm.Hooks.Timeout,
		Stdin: hookInput{vm.Name, string(k), d}})
	return fault.In(err, vm.Name, "")
}

// networkTable makes the table of the NICs of a VM at the recovery site.
func (w *world) networkTable(vm *site.VM, k failover.Kind, o failoverOptions, taken []network.Taken) ([]host.NIC, []string, error) {
	in := network.Input{VM: vm.Name, Kind: network.Failover, Into: o.network, Taken: taken, KeepAddresses: o.keepAddresses}
	if k == failover.Test {
		in.Kind = network.Test
	}
	for _, n := range vm.NICs {
		in.NICs = append(in.NICs, network.SourceNIC{Network: n.Network, IP: n.IP, RecoveryIP: n.RecoveryIP, MAC: n.MAC, Primary: n.Primary, PublicIP: n.PublicIP})
	}
	for _, n := range w.site.Recovery.Networks {
		net := network.Network{Name: n.Name, Attach: host.Attach(n.Attach), Switch: n.Switch}
		for _, s := range n.Subnets {
			net.Subnets = append(net.Subnets, network.Subnet{Name: s.Name, CIDR: s.CIDR, Gateway: s.Gateway, Reserved: s.Reserved})
		}
		in.Networks = append(in.Networks, net)
	}
	for _, m := range w.site.NetworkMapping {
		in.Mappings = append(in.Mappings, network.Mapping{From: m.From, To: m.To})
	}
	nics, notes, err := network.Table(in)
	var said []string
	for _, n := range notes {
		said = append(said, n.String())
	}
	return nics, said, err
}

// sorted returns the names in order.
func sorted(names []string) []string {
	slices.Sort(names)
	return names
}

package site

import (
	"net/netip"
	"os"
)

// Limits that catch a wrong unit, wider than what any hypervisor takes.
const (
	minMemory = 16 << 20
	maxMemory = 256 << 40
	maxCPUs   = 4096
)

func parseVMM(v value, r *refs) VMM {
	o := v.object("server", "clouds")
	m := VMM{Server: o.get("server").name(maxHost)}
	for _, cv := range o.need("clouds").list() {
		m.Clouds = append(m.Clouds, parseCloud(cv, r))
	}
	return m
}

func parseCloud(v value, r *refs) *Cloud {
	o := v.object("name", "policy", "hosts")
	c := &Cloud{Name: o.need("name").name(maxName)}
	r.clouds.declare(o.get("name"), c.Name, struct{}{})
	policy := o.need("policy")
	if len(r.policies.list) > 0 { // else that was reported
		c.Policy, _ = r.policies.refer(policy)
	}
	for _, hv := range o.need("hosts").list() {
		c.Hosts = append(c.Hosts, parseHost(hv, c, r))
	}
	return c
}

func parseHost(v value, c *Cloud, r *refs) *Host {
	o := v.object("name", "hypervisor", "vms")
	h := &Host{Runner: Runner{
		Name:       o.need("name").name(maxHost),
		Hypervisor: choice(o.need("hypervisor"), None, HyperV, QEMU, Script, None),
	}}
	r.hosts.declare(o.get("name"), h.Name, struct{}{})
	for _, mv := range o.need("vms").list() {
		h.VMs = append(h.VMs, parseVM(mv, c, h, r))
	}
	return h
}

func parseVM(v value, c *Cloud, h *Host, r *refs) *VM {
	o := v.object("name", "generation", "os", "cpus", "memory", "disks", "nics")
	vm := &VM{
		Name:       o.need("name").name(maxName),
		Cloud:      c,
		Host:       h,
		Generation: o.need("generation").integer(1, 1, 2),
		OS:         choice(o.need("os"), OtherOS, Windows, Linux, OtherOS),
		CPUs:       o.need("cpus").integer(1, 1, maxCPUs),
		Memory:     o.need("memory").size(minMemory, minMemory, maxMemory),
	}
	r.vms.declare(o.get("name"), vm.Name, vm)
	vm.Disks = parseDisks(o.need("disks"), r)
	vm.NICs = parseNICs(o.get("nics"), r)
	return vm
}

func parseDisks(v value, r *refs) []*Disk {
	var out []*Disk
	inVM := newNames[struct{}]("disk of this VM")
	list := v.list()
	marked := 0
	for _, dv := range list {
		o := dv.object("name", "path", "os", "format")
		disk := &Disk{
			Name:   o.need("name").name(maxName),
			Path:   o.need("path").diskPath(r),
			OS:     o.get("os").boolean(len(list) == 1), // the only disk is the one
			Format: choice(o.get("format"), FormatAuto, FormatAuto, FormatRaw, FormatVHD, FormatVHDX),
		}
		inVM.declare(o.get("name"), disk.Name, struct{}{})
		if disk.OS {
			if marked++; marked > 1 {
				o.get("os").fail("os: another disk of this VM is marked as the OS disk already")
			}
		}
		out = append(out, disk)
	}
	if marked == 0 && len(out) > 0 {
		v.fail("disks: mark the disk with the operating system with \"os: true\"")
	}
	return out
}

// diskPath reads the path of a source disk. It must not lie in the store, where replicas are written: source and
// replica would be one file.
func (v value) diskPath(r *refs) string {
	p := v.file()
	if p == "" {
		return ""
	}
	if raw := v.n.Value; os.IsPathSeparator(raw[len(raw)-1]) || within(p, v.d.dir) {
		v.fail("%s: %s is a folder", v.label(), quote(raw))
		return p
	}
	if r.store != "" && within(r.store, p) {
		v.fail("%s: %s lies in the folder of the store: a source disk must not be where replicas are written", v.label(), quote(v.n.Value))
	}
	if line, twice := r.paths[sameFile(p)]; twice {
		v.fail("%s: another disk has the path %s, on line %d", v.label(), quote(v.n.Value), line)
		return p
	}
	r.paths[sameFile(p)] = v.n.Line
	return p
}

func parseNICs(v value, r *refs) []NIC {
	var out []NIC
	marked := 0
	for _, nv := range v.list() {
		o := nv.object("network", "ip", "primary")
		network, _ := r.networks.refer(o.need("network"))
		nic := NIC{Network: network, IP: o.get("ip").address(), Primary: o.get("primary").boolean(false)}
		if nic.Primary {
			if marked++; marked > 1 {
				o.get("primary").fail("primary: another NIC of this VM is marked as primary already")
			}
		}
		out = append(out, nic)
	}
	if marked == 0 && len(out) > 0 {
		out[0].Primary = true
	}
	return out
}

func (v value) address() netip.Addr {
	what := "an address such as 10.0.0.5"
	s, ok := v.scalar(what, "!!str")
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		v.want(what)
	}
	return a
}

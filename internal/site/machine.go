package site

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"regexp"
	"regexp/syntax"
	"time"
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
	o := v.object("name", "hypervisor", "folder", "qemu", "script", "hyperv", "vms")
	h := &Host{Runner: Runner{
		Name:       o.need("name").name(maxHost),
		Hypervisor: parseHypervisor(o.need("hypervisor")),
		Folder:     o.get("folder").folder("", r),
	}}
	parseRunner(o, &h.Runner, protectedSide)
	r.hosts.declare(o.get("name"), h.Name, struct{}{})
	vms := o.get("vms")
	if !o.has("vms") && h.Folder == "" && o.v.n != nil { // with a folder a failback makes VMs there
		o.v.d.add(o.v.n.Line, o.v.n.Column, join(o.v.path, "vms"), "missing key 'vms': \"vms: []\" is for a host that has none (any more)")
	}
	if vms.emptyList() {
		return h
	}
	for _, mv := range vms.list() {
		h.VMs = append(h.VMs, parseVM(mv, c, h, r))
	}
	return h
}

func parseVM(v value, c *Cloud, h *Host, r *refs) *VM {
	o := v.object("name", "generation", "os", "cpus", "memory", "disks", "nics", "hooks", "boot_check", "shutdown_grace", "qmp")
	vm := &VM{
		Name:       o.need("name").vmName(),
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
	vm.Hooks = parseHooks(o.get("hooks"))
	vm.BootCheck = parseBootCheck(o.get("boot_check"))
	if vm.BootCheck != nil && vm.BootCheck.TCP != 0 && !o.has("nics") {
		o.get("boot_check").fail("boot_check: tcp needs a NIC, and this VM has none")
	}
	vm.ShutdownGrace = o.get("shutdown_grace").duration(DefaultShutdownGrace, "0 (power off at once) or a duration such as 2m",
		func(t time.Duration) bool { return t >= 0 })
	vm.QMP = o.get("qmp").socket(h.Hypervisor)
	return vm
}

// maxSocket is the longest path of a socket in bytes: what the kernel's sun_path holds, without the zero that ends it.
const maxSocket = 107

func (v value) socket(h Hypervisor) string {
	p := v.program()
	if p != "" && h != QEMU && h != "" {
		v.fail("qmp: only with \"hypervisor: qemu\", and the host has %s", h)
	}
	if len(p) > maxSocket {
		v.fail("qmp: the absolute path has %d bytes, and that of a socket at most %d", len(p), maxSocket)
	}
	return p
}

func parseHooks(v value) Hooks {
	o := v.object("freeze", "thaw", "failover", "cleanup", "timeout")
	if o.v.n == nil {
		return Hooks{}
	}
	if !o.has("freeze") && !o.has("thaw") && !o.has("failover") && !o.has("cleanup") {
		v.fail("hooks: give at least one of freeze and thaw, failover, cleanup")
	}
	h := Hooks{
		Freeze:   o.get("freeze").program(),
		Thaw:     o.get("thaw").program(),
		Failover: o.get("failover").program(),
		Cleanup:  o.get("cleanup").program(),
		Timeout:  o.get("timeout").limit(DefaultHookTimeout),
	}
	o.together("freeze", "thaw")
	return h
}

func parseBootCheck(v value) *BootCheck {
	o := v.object("console", "tcp", "command", "timeout")
	if o.v.n == nil {
		return nil
	}
	n := 0
	for _, key := range []string{"console", "tcp", "command"} {
		if o.has(key) {
			n++
		}
	}
	if n != 1 {
		v.fail("boot_check: give exactly one of console, tcp and command")
	}
	return &BootCheck{
		Console: o.get("console").pattern(),
		TCP:     o.get("tcp").integer(0, 1, 65535),
		Command: o.get("command").program(),
		Timeout: o.get("timeout").limit(DefaultBootTimeout),
	}
}

// maxPattern keeps what a pattern can cost small: a console is read line by line, while others wait.
const maxPattern = 1 << 10

// pattern reads a regular expression. One that an empty line matches would pass before the guest has written anything.
func (v value) pattern() string {
	s, ok := v.text()
	if !ok {
		return ""
	}
	if len(s) > maxPattern {
		v.fail("%s: the pattern has %d bytes, more than %d", v.label(), len(s), maxPattern)
		return ""
	}
	re, err := regexp.Compile(s)
	var bad *syntax.Error
	switch {
	case errors.As(err, &bad):
		v.fail("%s: %s is no regular expression: %s", v.label(), quote(s), bad.Code)
	case err != nil:
		v.fail("%s: %s is no regular expression", v.label(), quote(s))
	case re.MatchString(""):
		v.fail("%s: %s matches an empty line too, and so tells nothing", v.label(), quote(s))
	}
	return s
}

func parseDisks(v value, r *refs) []*Disk {
	var out []*Disk
	inVM := newNames[struct{}]("disk of this VM")
	list := v.list()
	marked := 0
	for _, dv := range list {
		o := dv.object("name", "path", "os", "format", "parents")
		disk := &Disk{
			Name:   o.need("name").name(maxName),
			Path:   o.need("path").diskPath(r),
			OS:     o.get("os").boolean(len(list) == 1), // the only disk is the one
			Format: choice(o.get("format"), FormatAuto, FormatAuto, FormatRaw, FormatVHD, FormatVHDX, FormatQCOW2),
		}
		for _, pv := range o.get("parents").list() {
			disk.Parents = append(disk.Parents, pv.parent(r))
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
	if r.recovered != "" && within(r.recovered, p) {
		v.fail("%s: %s lies in the folder of recovered VMs: a source disk must not be where a failover writes", v.label(), quote(v.n.Value))
	}
	if line, twice := r.paths[sameFile(p)]; twice {
		v.fail("%s: another disk has the path %s, on line %d", v.label(), quote(v.n.Value), line)
		return p
	}
	r.paths[sameFile(p)] = v.n.Line
	return p
}

// parent reads where a parent of a source disk may lie. It must not be in the store, as the disk itself.
func (v value) parent(r *refs) string {
	p := v.file()
	if p != "" && r.store != "" && within(r.store, p) {
		v.fail("%s: %s lies in the folder of the store: a source disk must not be where replicas are written", v.label(), quote(v.n.Value))
	}
	return p
}

func parseNICs(v value, r *refs) []NIC {
	var out []NIC
	marked := 0
	for _, nv := range v.list() {
		o := nv.object("network", "ip", "recovery_ip", "mac", "public_ip", "primary")
		network, _ := r.networks.refer(o.need("network"))
		nic := NIC{
			Network:    network,
			IP:         o.get("ip").address(),
			RecoveryIP: o.get("recovery_ip").recoveryAddress(network, r),
			MAC:        o.get("mac").mac(r),
			PublicIP:   o.get("public_ip").boolean(false),
			Primary:    o.get("primary").boolean(false),
		}
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

// mac reads the address of one network card: six bytes, of one card and not of a group.
func (v value) mac(r *refs) string {
	what := `a MAC address of one card, such as "52:54:00:12:34:56"`
	s, ok := v.scalar(what, "!!str")
	if !ok {
		return ""
	}
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 || m[0]&1 != 0 || m.String() == "00:00:00:00:00:00" {
		v.want(what)
		return ""
	}
	v.once(r.macs, m.String(), "mac")
	return m.String()
}

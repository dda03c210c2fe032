package site

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// Isolated is the name of the network that reaches nobody: "failover test --network isolated". No recovery network has it.
const Isolated = "isolated"

func parseRecovery(v value, r *refs) Recovery {
	ofHost := []string{"hypervisor", "disks", "verify", "folder", "format", "qemu", "script", "hyperv"}
	o := v.object(append([]string{"host", "azure", "networks"}, ofHost...)...)
	rec := Recovery{}
	if o.has("host") && o.has("azure") {
		v.fail("recovery: give either host or azure, not both")
	}
	if o.has("host") {
		parseRecoveryHost(o, &rec, r)
	} else {
		for _, key := range ofHost {
			o.get(key).fail("%s: only where recovery has a host", key)
		}
	}
	if az := o.get("azure"); az.n != nil {
		a := az.object("subscription", "resource_group", "location")
		rec.Azure = &AzureRecovery{
			Subscription:  a.need("subscription").title(),
			ResourceGroup: a.need("resource_group").title(),
			Location:      a.need("location").title(),
		}
	}
	for _, n := range o.get("networks").list() {
		rec.Networks = append(rec.Networks, parseRecoveryNetwork(n, r))
	}
	return rec
}

func parseRecoveryHost(o object, rec *Recovery, r *refs) {
	rec.Name = o.get("host").name(maxHost)
	rec.Hypervisor = None
	if o.has("hypervisor") {
		rec.Hypervisor = parseHypervisor(o.get("hypervisor"))
	}
	rec.Folder = o.get("folder").folder(filepath.Join(o.v.d.dir, DefaultRecoveredFolder), r)
	if !o.has("folder") && r.store != "" && (within(r.store, rec.Folder) || within(rec.Folder, r.store)) {
		o.get("host").fail("host: the default folder of recovered VMs, %s, and that of the store must not lie in one another: give another with folder", quote(DefaultRecoveredFolder))
	}
	rec.Format = choice(o.get("format"), RecoverVHD, RecoverVHD, RecoverVHDX, RecoverRaw, RecoverQCOW2)
	rec.Disks = choice(o.get("disks"), DisksInFolder, DisksInFolder, DisksInStore)
	rec.Verify = o.get("verify").boolean(true)
	if rec.Disks == DisksInStore {
		checkDisksInStore(o, rec, r)
	} else if o.has("verify") {
		o.get("verify").fail("verify: only with \"disks: store\"; what is made in a folder is always verified")
	}
	parseRunner(o, &rec.Runner, recoverySide)
}

// checkDisksInStore reports what does not go with disks that are page blobs of a storage account.
func checkDisksInStore(o object, rec *Recovery, r *refs) {
	disks := o.get("disks")
	if r.store != "" {
		disks.fail("disks: a store in a directory has nothing that VMs could be made of where it is; \"store\" is for a store in Azure")
	}
	if rec.Hypervisor == QEMU || rec.Hypervisor == HyperV {
		disks.fail("disks: %s needs the disks of its VMs as files; \"store\" is for hypervisor script or none", rec.Hypervisor)
	}
	if rec.Format != RecoverVHD {
		o.get("format").fail("format: disks in the store are vhd, not %s", rec.Format)
	}
	if o.has("folder") {
		o.get("folder").fail("folder: with \"disks: store\" nothing is made in a folder")
	}
}

func parseRecoveryNetwork(v value, r *refs) *RecoveryNetwork {
	o := v.object("name", "attach", "bridge", "subnets")
	n := &RecoveryNetwork{
		Name:   o.need("name").title(),
		Attach: choice(o.get("attach"), AttachUser, AttachUser, AttachIsolated, AttachBridge),
	}
	if strings.EqualFold(n.Name, Isolated) {
		o.get("name").fail("name: %s is what a test failover without a network is called; choose another", quote(n.Name))
	}
	if o.has("bridge") && n.Attach != AttachBridge {
		o.get("bridge").fail("bridge: only with \"attach: bridge\"")
	}
	if n.Attach == AttachBridge {
		n.Switch = o.get("bridge").titleOr(n.Name)
	}
	r.recovery.declare(o.get("name"), n.Name, n.Name)
	subnets := newNames[struct{}]("subnet of this network")
	for _, sv := range o.get("subnets").list() {
		so := sv.object("name", "cidr", "gateway", "reserved")
		s := parseSubnet(so)
		subnets.declare(so.get("name"), s.Name, struct{}{})
		for _, other := range n.Subnets {
			if s.CIDR.IsValid() && s.CIDR.Overlaps(other.CIDR) {
				so.get("cidr").fail("cidr: %s overlaps with %s of subnet %s", s.CIDR, other.CIDR, quote(other.Name))
			}
		}
		n.Subnets = append(n.Subnets, s)
	}
	return n
}

func parseSubnet(o object) Subnet {
	s := Subnet{Name: o.need("name").title(), CIDR: o.need("cidr").prefix()}
	s.Gateway = o.get("gateway").addressIn(s.CIDR)
	for _, av := range o.get("reserved").list() {
		s.Reserved = append(s.Reserved, av.addressIn(s.CIDR))
	}
	return s
}

func (v value) prefix() netip.Prefix {
	what := "an address range such as 10.1.0.0/24"
	s, ok := v.scalar(what, "!!str")
	if !ok {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		v.want(what)
		return netip.Prefix{}
	case p != p.Masked():
		v.fail("%s: %s is an address in the range %s: write the range", v.label(), quote(s), p.Masked())
	}
	return p
}

// plainAddress reads an address that can be compared with others: written in one way only, and not of one machine's link.
func (v value) plainAddress() netip.Addr {
	a := v.address()
	if a.Is4In6() || a.Zone() != "" {
		v.want("an address such as 10.0.0.5 or fd00::5")
		return netip.Addr{}
	}
	return a
}

// addressIn reads an address of the range, which may be unknown.
func (v value) addressIn(p netip.Prefix) netip.Addr {
	a := v.plainAddress()
	if a.IsValid() && p.IsValid() && !p.Contains(a) {
		v.fail("%s: %s does not lie in %s", v.label(), a, p)
	}
	return a
}

// recoveryAddress reads the address that a NIC gets at the recovery site. Where its network is mapped, the address has to be one
// that can be given there; and no two NICs of the site have the same, because all VMs may be recovered.
func (v value) recoveryAddress(network string, r *refs) netip.Addr {
	a := v.plainAddress()
	if !a.IsValid() {
		return a
	}
	if n, _ := r.target(NIC{Network: network}); n != nil {
		v.fits(a, n)
	}
	v.once(r.ips, a.String(), "recovery_ip")
	return a
}

func (v value) fits(a netip.Addr, n *RecoveryNetwork) {
	for _, s := range n.Subnets {
		if !s.CIDR.Contains(a) {
			continue
		}
		switch {
		case a == s.Gateway:
			v.fail("recovery_ip: %s is the gateway of subnet %s", a, quote(s.Name))
		case slices.Contains(s.Reserved, a):
			v.fail("recovery_ip: %s is reserved in subnet %s", a, quote(s.Name))
		case standsForAll(a, s.CIDR):
			v.fail("recovery_ip: %s stands for subnet %s as a whole", a, quote(s.Name))
		}
		return
	}
	v.fail("recovery_ip: %s lies in no subnet of recovery network %s", a, quote(n.Name))
}

// standsForAll says whether the address is the first of the range, or in IPv4 the last: they name the range, and everybody in it.
// Ranges of one or two addresses have neither.
func standsForAll(a netip.Addr, p netip.Prefix) bool {
	return a.BitLen()-p.Bits() >= 2 && (a == p.Addr() || a.Is4() && !p.Contains(a.Next()))
}

// once reports that another NIC has this text too.
func (v value) once(lines map[string]int, text, what string) {
	if line, twice := lines[text]; twice {
		v.fail("%s: another NIC has %s, on line %d", what, quote(text), line)
		return
	}
	lines[text] = v.n.Line
}

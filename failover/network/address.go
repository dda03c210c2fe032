package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sitrep/internal/fault"
)

// address gives each row its address. Those that can have the one they want get it first, so that nobody is given, as a
// substitute, what another NIC of the VM was to have.
func (t *table) address() *fault.Error {
	var conflicts []string
	var displaced []int
	for i := range t.rows {
		r := &t.rows[i]
		if !r.want.IsValid() {
			continue
		}
		by := t.holder(r.nic.Network, r.subnet, r.want)
		switch {
		case by == "":
			t.give(r, r.want)
		case t.in.Kind == Test:
			displaced = append(displaced, i)
		default:
			conflicts = append(conflicts, fmt.Sprintf("%s needs %s, which is taken: %s", t.name(r.index), r.want, by))
		}
	}
	if len(conflicts) > 0 {
		return fault.New(fault.AddressTaken, "%s", strings.Join(conflicts, "; "))
	}
	for _, i := range displaced {
		r := &t.rows[i]
		ip, ok := t.free(r.nic.Network, r.subnet)
		if !ok {
			return fault.New(fault.AddressTaken, "%s needs an address for the test, and none is free in subnet %s (%s) of network %s",
				t.name(r.index), r.subnet.Name, r.subnet.CIDR, r.nic.Network)
		}
		t.note(r.index, "gets %s for the test instead of %s, which is taken: %s", ip, r.want, t.holder(r.nic.Network, r.subnet, r.want))
		t.give(r, ip)
	}
	return nil
}

func (t *table) give(r *row, ip netip.Addr) {
	r.nic.IP = netip.PrefixFrom(ip, r.subnet.CIDR.Bits()).String()
	if r.subnet.Gateway.IsValid() {
		r.nic.Gateway = r.subnet.Gateway.String()
	}
}

// holder says in words who has an address of the subnet, or why nobody can; "" when it is free.
func (t *table) holder(network string, s *Subnet, ip netip.Addr) string {
	switch {
	case ip == s.Gateway.Unmap():
		return "it is the gateway of subnet " + s.Name
	case slices.Contains(s.Reserved, ip):
		return "it is reserved in subnet " + s.Name
	case s.spare(ip):
		return "it stands for subnet " + s.Name + " as a whole"
	}
	if t.besideSource(network) && slices.ContainsFunc(t.in.NICs, func(n SourceNIC) bool { return n.IP.IsValid() && n.IP.Unmap() == ip }) {
		return "the source may run with it (--keep-addresses gives it to the test)"
	}
	for _, x := range t.in.Taken {
		if x.IP.Unmap() == ip && (x.Network == "" || x.Network == network) {
			return "by " + x.By
		}
	}
	for _, r := range t.rows {
		if p, err := netip.ParsePrefix(r.nic.IP); err == nil && p.Addr() == ip && r.nic.Network == network {
			return "by " + t.name(r.index) + " of the same VM"
		}
	}
	return ""
}

// spare says whether the address names the subnet itself, or everybody in it: its first address, and in IPv4 its last. The smallest
// subnets, of one or two addresses, have neither (RFC 3021, RFC 6164).
func (s *Subnet) spare(ip netip.Addr) bool {
	if ip.BitLen()-s.CIDR.Bits() < 2 {
		return false
	}
	return ip == s.CIDR.Addr() || ip.Is4() && !s.CIDR.Contains(ip.Next())
}

// free finds the lowest address of the subnet that nobody has. It passes over taken ones only, and so ends soon even in a
// subnet of IPv6.
func (t *table) free(network string, s *Subnet) (netip.Addr, bool) {
	for ip := s.CIDR.Addr(); s.CIDR.Contains(ip); ip = ip.Next() {
		if t.holder(network, s, ip) == "" {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

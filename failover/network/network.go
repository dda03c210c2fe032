// Package network works out where the network adapters of a VM come up at the recovery site: the table that people read, and
// that hosts and hooks are handed, before anything is started.
//
// It is arithmetic on plain data: it asks nobody, changes nothing, and gives the same table for the same input. What it cannot
// know, which addresses are taken, its caller finds out and tells it.
//
// The rules are those of the system that sitrep re-implements. A VM network is mapped to a recovery network; in that one the NIC
// goes to the subnet that is called like its own network, else to the first. Its address is the one that the site file
// gives for the recovery site, else its own where that lies in the subnet, else DHCP gives it one. An address that is taken
// stops a failover before it has touched anything, because a VM that comes up under another address than everyone expects is
// not recovered; a test, which is to disturb nobody, takes another that is free. A NIC that is mapped to nothing is
// isolated, as all are in a test for which no network was named.
package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// Isolated is the name of the network that reaches nobody.
const Isolated = "isolated"

// Network is a network of the recovery site. No two have the same name, and its subnets do not overlap.
type Network struct {
	Name    string
	Attach  host.Attach
	Switch  string // bridge or virtual switch, for host.Bridge
	Subnets []Subnet
}

// Subnet is a part of a Network.
type Subnet struct {
	Name     string
	CIDR     netip.Prefix // masked
	Gateway  netip.Addr   // the zero Addr = none is told
	Reserved []netip.Addr // never given to a VM
}

// SourceNIC is a NIC as the protected VM has it.
type SourceNIC struct {
	Network    string     // VM network of the protected site
	IP         netip.Addr // the zero Addr = by DHCP
	RecoveryIP netip.Addr // wanted at the recovery site; the zero Addr = none
	MAC        string
	Primary    bool
	PublicIP   bool
}

// Mapping sends the NICs of a VM network to a recovery network.
type Mapping struct{ From, To string }

// Kind is what the table is for: it decides what happens to a NIC whose address is taken, and where NICs go unless told.
type Kind string

// The kinds. A Failover is planned or unplanned, and is also what a failback asks for.
const (
	Failover Kind = "failover"
	Test     Kind = "test"
)

// Taken is an address that somebody has at the recovery site.
type Taken struct {
	Network string // where; "" = in every network
	IP      netip.Addr
	By      string // who has it, in words
}

// Input is what the table of one VM is made of.
type Input struct {
	VM       string // for messages
	Kind     Kind
	NICs     []SourceNIC // in the order of the site file
	Networks []Network
	Mappings []Mapping
	// Into sends all NICs to one recovery network, whatever is mapped, or to Isolated. With "" a Failover goes by Mappings,
	// and a Test to Isolated.
	Into string
	// Taken are the addresses that others have. For several VMs of one run it grows by Claims of each VM's table.
	Taken []Taken
	// KeepAddresses lets the NICs of a Test have the MACs and addresses of the source also in a network that is bridged to others, where the
	// source may run.
	KeepAddresses bool
	// MaxNICs is how many NICs the host gives a VM; 0 = as many as it has.
	MaxNICs int
}

// Note is something about a NIC that people should know before the VM starts: it is not in the way of it.
type Note struct {
	NIC     int    // from 1, in the order of the site file
	Network string // VM network of the protected site
	Text    string
}

// String names the NIC and says what is the case.
func (n Note) String() string { return nicName(n.NIC, n.Network) + " " + n.Text }

func nicName(n int, network string) string { return fmt.Sprintf("NIC %d (network %s)", n, network) }

// Table returns a row for each NIC that the VM gets, the primary one first and exactly one primary, the others in the order of the
// site file.
//
// Its errors are fault.Errors that name the VM: AddressTaken (with every NIC, address and holder) when a failover's NIC cannot have
// the address it needs, or a test's subnet has none free; UsageError when there is no network Into; SiteInvalid when what the
// site file asks for cannot be (an address outside the network, a mapping to nothing).
func Table(in Input) ([]host.NIC, []Note, error) {
	t := &table{in: in}
	for _, i := range t.chosen() {
		if err := t.place(i); err != nil {
			return nil, nil, err.Of(in.VM, "")
		}
	}
	if err := t.address(); err != nil {
		return nil, nil, err.Of(in.VM, "")
	}
	slices.SortStableFunc(t.notes, func(a, b Note) int { return cmp.Compare(a.NIC, b.NIC) })
	var out []host.NIC
	for _, r := range t.rows {
		out = append(out, r.nic)
	}
	return out, t.notes, nil
}

// Claims are the addresses that a table gives to a VM, as what the next VM of the run finds taken.
func Claims(vm string, nics []host.NIC) (out []Taken) {
	for _, n := range nics {
		if p, err := netip.ParsePrefix(n.IP); err == nil {
			out = append(out, Taken{Network: n.Network, IP: p.Addr(), By: "VM " + vm})
		}
	}
	return out
}

// table is a table in the making.
type table struct {
	in    Input
	rows  []row
	notes []Note
}

// row is a NIC with where it goes, and the address that it is to have there.
type row struct {
	index  int // in Input.NICs
	nic    host.NIC
	subnet *Subnet
	want   netip.Addr // the zero Addr = by DHCP
}

func (t *table) note(i int, format string, args ...any) {
	t.notes = append(t.notes, Note{NIC: i + 1, Network: t.in.NICs[i].Network, Text: fmt.Sprintf(format, args...)})
}

func (t *table) name(i int) string { return nicName(i+1, t.in.NICs[i].Network) }

// chosen returns the NICs that the VM gets: the primary one, which is the first where none is marked, and then as many of
// the others as the host can give.
func (t *table) chosen() []int {
	if len(t.in.NICs) == 0 {
		return nil
	}
	primary := max(0, slices.IndexFunc(t.in.NICs, func(n SourceNIC) bool { return n.Primary }))
	list := []int{primary}
	for i := range t.in.NICs {
		switch {
		case i == primary:
		case t.in.MaxNICs > 0 && len(list) >= t.in.MaxNICs:
			t.note(i, "is left out: the host gives a VM at most %d", t.in.MaxNICs)
		default:
			list = append(list, i)
		}
	}
	return list
}

// place decides on the network, the subnet and the wanted address of a NIC.
func (t *table) place(i int) *fault.Error {
	src := t.in.NICs[i]
	r := row{index: i, nic: host.NIC{Source: src.Network, MAC: src.MAC, Primary: len(t.rows) == 0}}
	if src.IP.IsValid() {
		r.nic.SourceIP = src.IP.String()
	}
	net, err := t.network(i)
	if err != nil {
		return err
	}
	if net == nil {
		r.nic.Network, r.nic.Attach = Isolated, host.Isolated
		if src.PublicIP {
			t.note(i, "gets no public address: it is isolated")
		}
		t.rows = append(t.rows, r)
		return nil
	}
	r.nic.Network, r.nic.Attach, r.nic.Switch, r.nic.PublicIP = net.Name, net.Attach, net.Switch, src.PublicIP
	if t.besideSource(net.Name) && src.MAC != "" {
		r.nic.MAC = ""
		t.note(i, "gets a MAC of its own: the source may run with %s (--keep-addresses keeps it)", src.MAC)
	}
	r.subnet = subnetFor(net, src.Network, t.in.Kind)
	if err := t.wanted(&r, src, net); err != nil {
		return err
	}
	if r.subnet != nil {
		r.nic.Subnet = r.subnet.Name
	}
	t.rows = append(t.rows, r)
	return nil
}

// network returns the recovery network of a NIC; nil when it is isolated.
func (t *table) network(i int) (*Network, *fault.Error) {
	from := t.in.NICs[i].Network
	switch into := t.in.Into; {
	case strings.EqualFold(into, Isolated) || into == "" && t.in.Kind == Test:
		return nil, nil
	case into != "":
		if n := t.find(into); n != nil {
			return n, nil
		}
		return nil, fault.New(fault.UsageError, "the recovery site has no network %q; it has %s", into, t.known())
	}
	for _, m := range t.in.Mappings {
		if m.From != from {
			continue
		}
		if n := t.find(m.To); n != nil {
			return n, nil
		}
		return nil, fault.New(fault.SiteInvalid, "network %q is mapped to %q, and the recovery site has no such network", from, m.To)
	}
	t.note(i, "is not mapped to a recovery network: it is isolated, and only VMs of the same plan can talk to it")
	return nil, nil
}

// besideSource says that the VM may meet its own source in a network.
func (t *table) besideSource(network string) bool {
	net := t.find(network)
	return t.in.Kind == Test && !t.in.KeepAddresses && net != nil && net.Attach == host.Bridge
}

func (t *table) find(name string) *Network {
	i := slices.IndexFunc(t.in.Networks, func(n Network) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return &t.in.Networks[i]
}

// known lists the networks that Into can name.
func (t *table) known() string {
	names := []string{Isolated}
	for _, n := range t.in.Networks {
		names = append(names, n.Name)
	}
	return strings.Join(names, ", ")
}

// subnetFor is the subnet that is called like the NIC's network, else the first: that of the site file, or in a test that of
// the alphabet, as in the original. nil when the network has none.
func subnetFor(n *Network, like string, kind Kind) *Subnet {
	if len(n.Subnets) == 0 {
		return nil
	}
	first := &n.Subnets[0]
	for i := range n.Subnets {
		s := &n.Subnets[i]
		if strings.EqualFold(s.Name, like) {
			return s
		}
		if kind == Test && strings.Compare(strings.ToLower(s.Name), strings.ToLower(first.Name)) < 0 {
			first = s
		}
	}
	return first
}

// wanted decides which address the NIC is to have. An address that was given for the recovery site decides on the subnet too.
func (t *table) wanted(r *row, src SourceNIC, net *Network) *fault.Error {
	ip, own := src.RecoveryIP.Unmap(), src.IP.Unmap()
	if ip.IsValid() {
		i := slices.IndexFunc(net.Subnets, func(s Subnet) bool { return s.CIDR.Contains(ip) })
		switch {
		case i >= 0:
			r.want, r.subnet = ip, &net.Subnets[i]
			return nil
		case t.in.Into == "":
			return fault.New(fault.SiteInvalid, "%s: recovery_ip %s lies in no subnet of recovery network %s", t.name(r.index), ip, net.Name)
		}
		t.note(r.index, "does not get %s, which lies in no subnet of %s", ip, net.Name)
	}
	if r.subnet != nil && r.subnet.CIDR.Contains(own) {
		r.want = own
	}
	return nil
}

package network

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"

	"sitrep/internal/host"
)

// Text is the table as people read it before anything starts: a line for each NIC under a line of headings, each ended by a line
// break. Without NICs it says so.
func Text(nics []host.NIC) string {
	if len(nics) == 0 {
		return "no network adapters\n"
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FROM\tADDRESS THERE\tTO\tSUBNET\tADDRESS\tGATEWAY\tMAC\tREMARK")
	for _, n := range nics {
		fmt.Fprintln(w, strings.Join([]string{
			n.Source, cmp.Or(n.SourceIP, "DHCP"), destination(n), cmp.Or(n.Subnet, "-"), address(n), cmp.Or(n.Gateway, "-"),
			cmp.Or(n.MAC, "-"), cmp.Or(remark(n), "-"),
		}, "\t"))
	}
	w.Flush() // to a strings.Builder: cannot fail
	return b.String()
}

// destination is the network, with how it is attached where the name does not say it.
func destination(n host.NIC) string {
	switch {
	case n.Network == Isolated:
		return Isolated
	case n.Attach == host.Bridge:
		return fmt.Sprintf("%s (bridge %s)", n.Network, cmp.Or(n.Switch, n.Network))
	}
	return fmt.Sprintf("%s (%s)", n.Network, n.Attach)
}

// address is what the NIC gets; nobody gives one to a NIC that reaches nobody.
func address(n host.NIC) string {
	if n.IP == "" && n.Attach == host.Isolated {
		return "-"
	}
	return cmp.Or(n.IP, "DHCP")
}

func remark(n host.NIC) string {
	var list []string
	if n.Primary {
		list = append(list, "primary")
	}
	if n.PublicIP {
		list = append(list, "public address")
	}
	return strings.Join(list, ", ")
}

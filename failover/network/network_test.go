package network

import (
	"fmt"
	"math/rand"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
)

func ip(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func cidr(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// base is a VM of two NICs, one of them mapped, and a recovery site of two networks.
func base() Input {
	return Input{
		VM: "web01", Kind: Failover,
		NICs: []SourceNIC{{Network: "lan", IP: ip("10.0.0.5"), Primary: true}},
		Networks: []Network{
			{Name: "dr", Attach: host.Bridge, Switch: "br0", Subnets: []Subnet{
				{Name: "zone", CIDR: cidr("10.9.0.0/24")},
				{Name: "Attic", CIDR: cidr("10.8.0.0/24"), Gateway: ip("10.8.0.1")},
				{Name: "LAN", CIDR: cidr("10.1.0.0/24"), Gateway: ip("10.1.0.1"), Reserved: []netip.Addr{ip("10.1.0.2"), ip("10.1.0.3")}},
				{Name: "six", CIDR: cidr("fd00::/64"), Gateway: ip("fd00::1")},
			}},
			{Name: "same", Attach: host.User, Subnets: []Subnet{{Name: "lan", CIDR: cidr("10.0.0.0/24")}}},
			{Name: "bare", Attach: host.Isolated},
		},
		Mappings: []Mapping{{"lan", "dr"}, {"dmz", "dr"}, {"flat", "same"}, {"raw", "bare"}, {"lost", "nowhere"}},
	}
}

// line words a row: source > network/subnet attach:switch address gateway flags.
func line(n host.NIC) string {
	s := fmt.Sprintf("%s>%s/%s %s:%s %s gw %s", n.Source, n.Network, n.Subnet, n.Attach, n.Switch, n.IP, n.Gateway)
	if n.Primary {
		s += " primary"
	}
	if n.PublicIP {
		s += " public"
	}
	return s
}

func nics(list ...SourceNIC) func(*Input) { return func(in *Input) { in.NICs = list } }

func both(list ...func(*Input)) func(*Input) {
	return func(in *Input) {
		for _, f := range list {
			f(in)
		}
	}
}

func test(in *Input) { in.Kind = Test }

func into(name string) func(*Input) { return func(in *Input) { in.Into = name } }

func taken(list ...Taken) func(*Input) { return func(in *Input) { in.Taken = list } }

func TestTable(t *testing.T) {
	wants := func(network, recovery string) SourceNIC { return SourceNIC{Network: network, RecoveryIP: ip(recovery)} }
	has := func(network, own string) SourceNIC { return SourceNIC{Network: network, IP: ip(own)} }
	for _, c := range []struct {
		name   string
		change func(*Input)
		rows   []string
		notes  []string // parts of them, in order
	}{
		{"no NIC", nics(), nil, nil},
		{"the subnet of the same name, whatever the case", func(*Input) {}, []string{"lan>dr/LAN bridge:br0  gw  primary"}, nil},
		{"else the first subnet of the file", nics(has("dmz", "10.0.0.5")), []string{"dmz>dr/zone bridge:br0  gw  primary"}, nil},
		{"else, in a test, the first of the alphabet", both(nics(has("dmz", "10.0.0.5")), test, into("dr")), []string{"dmz>dr/Attic bridge:br0  gw  primary"}, nil},
		{"its own address where that lies in the subnet", nics(has("flat", "10.0.0.5")), []string{"flat>same/lan user: 10.0.0.5/24 gw  primary"}, nil},
		{"its own address, written as IPv6", nics(has("flat", "::ffff:10.0.0.5")), []string{"flat>same/lan user: 10.0.0.5/24 gw  primary"}, nil},
		{"not its own address where that lies in another subnet", nics(has("lan", "10.9.0.5")), []string{"lan>dr/LAN bridge:br0  gw  primary"}, nil},
		{"recovery_ip with its gateway", nics(wants("lan", "10.1.0.7")), []string{"lan>dr/LAN bridge:br0 10.1.0.7/24 gw 10.1.0.1 primary"}, nil},
		{"recovery_ip before its own", nics(SourceNIC{Network: "lan", IP: ip("10.1.0.5"), RecoveryIP: ip("10.1.0.7")}),
			[]string{"lan>dr/LAN bridge:br0 10.1.0.7/24 gw 10.1.0.1 primary"}, nil},
		{"recovery_ip decides on the subnet", nics(wants("lan", "10.8.0.7")), []string{"lan>dr/Attic bridge:br0 10.8.0.7/24 gw 10.8.0.1 primary"}, nil},
		{"IPv6", nics(wants("lan", "fd00::7"), has("six", "fd00::8")), []string{"lan>dr/six bridge:br0 fd00::7/64 gw fd00::1 primary",
			"six>isolated/ isolated:  gw "}, []string{"NIC 2 (network six) is not mapped"}},
		{"neither: DHCP", nics(has("lan", "")), []string{"lan>dr/LAN bridge:br0  gw  primary"}, nil},
		{"a network without subnets: DHCP", nics(has("raw", "10.0.0.5")), []string{"raw>bare/ isolated:  gw  primary"}, nil},
		{"not mapped", nics(SourceNIC{Network: "lab", IP: ip("10.0.0.5"), RecoveryIP: ip("10.1.0.7"), PublicIP: true}), []string{"lab>isolated/ isolated:  gw  primary"},
			[]string{"NIC 1 (network lab) is not mapped to a recovery network: it is isolated, and only VMs of the same plan", "no public address"}},
		{"a test is isolated", both(test, nics(wants("lan", "10.1.0.7"), has("flat", "10.0.0.5"))),
			[]string{"lan>isolated/ isolated:  gw  primary", "flat>isolated/ isolated:  gw "}, nil},
		{"isolated by name", both(into("Isolated"), nics(wants("lan", "10.1.0.7"))), []string{"lan>isolated/ isolated:  gw  primary"}, nil},
		{"all into one network", both(test, into("same"), nics(wants("lan", "10.1.0.7"), has("lab", "10.0.0.9"), has("flat", ""))),
			[]string{"lan>same/lan user:  gw  primary", "lab>same/lan user: 10.0.0.9/24 gw ", "flat>same/lan user:  gw "},
			[]string{"NIC 1 (network lan) does not get 10.1.0.7, which lies in no subnet of same"}},
		{"public address", nics(SourceNIC{Network: "lan", PublicIP: true}), []string{"lan>dr/LAN bridge:br0  gw  primary public"}, nil},
		{"primary first, the others in order", nics(has("lan", ""), has("dmz", ""), SourceNIC{Network: "flat", Primary: true}, has("raw", "")),
			[]string{"flat>same/lan user:  gw  primary", "lan>dr/LAN bridge:br0  gw ", "dmz>dr/zone bridge:br0  gw ", "raw>bare/ isolated:  gw "}, nil},
		{"two marked as primary", nics(has("raw", ""), SourceNIC{Network: "flat", Primary: true}, SourceNIC{Network: "lan", Primary: true}),
			[]string{"flat>same/lan user:  gw  primary", "raw>bare/ isolated:  gw ", "lan>dr/LAN bridge:br0  gw "}, nil},
		{"as many as the host gives", both(func(in *Input) { in.MaxNICs = 2 }, nics(has("lan", ""), has("dmz", ""), SourceNIC{Network: "flat", Primary: true})),
			[]string{"flat>same/lan user:  gw  primary", "lan>dr/LAN bridge:br0  gw "}, []string{"NIC 2 (network dmz) is left out: the host gives a VM at most 2"}},
		{"as many as there are", both(func(in *Input) { in.MaxNICs = 1 }), []string{"lan>dr/LAN bridge:br0  gw  primary"}, nil},
		{"taken in another network", both(nics(wants("lan", "10.1.0.7")), taken(Taken{"same", ip("10.1.0.7"), "VM x"})),
			[]string{"lan>dr/LAN bridge:br0 10.1.0.7/24 gw 10.1.0.1 primary"}, nil},
		{"a test takes the lowest that is free", both(test, into("dr"), nics(wants("lan", "10.1.0.7")), taken(Taken{"dr", ip("10.1.0.7"), "VM x"}, Taken{"", ip("10.1.0.4"), "arp"})),
			[]string{"lan>dr/LAN bridge:br0 10.1.0.5/24 gw 10.1.0.1 primary"},
			[]string{"NIC 1 (network lan) gets 10.1.0.5 for the test instead of 10.1.0.7, which is taken: by VM x"}},
		{"a test takes none that another NIC is to have", both(test, into("dr"), nics(wants("lan", "10.1.0.2"), wants("lan", "10.1.0.4"))),
			[]string{"lan>dr/LAN bridge:br0 10.1.0.5/24 gw 10.1.0.1 primary", "lan>dr/LAN bridge:br0 10.1.0.4/24 gw 10.1.0.1"},
			[]string{"instead of 10.1.0.2, which is taken: it is reserved in subnet LAN"}},
		{"a test in IPv6", both(test, into("dr"), nics(wants("lan", "fd00::1"))), []string{"lan>dr/six bridge:br0 fd00::2/64 gw fd00::1 primary"},
			[]string{"it is the gateway of subnet six"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := base()
			c.change(&in)
			table, notes, err := Table(in)
			if err != nil {
				t.Fatal(err)
			}
			if len(table) != len(c.rows) || len(notes) != len(c.notes) {
				t.Fatalf("%v\n%v", table, notes)
			}
			for i, n := range table {
				if strings.TrimSpace(line(n)) != strings.TrimSpace(c.rows[i]) {
					t.Errorf("want %q\n got %q", c.rows[i], line(n))
				}
			}
			for i, n := range notes {
				if !strings.Contains(n.String(), c.notes[i]) {
					t.Errorf("want %q\n got %q", c.notes[i], n)
				}
			}
		})
	}
}

// Nothing of a NIC's own facts is lost on the way to the hooks.
func TestFactsArePassedOn(t *testing.T) {
	in := base()
	in.NICs[0].MAC = "52:54:00:00:00:01"
	table, _, err := Table(in)
	want := host.NIC{Source: "lan", SourceIP: "10.0.0.5", Network: "dr", Subnet: "LAN", Attach: host.Bridge, Switch: "br0", MAC: "52:54:00:00:00:01", Primary: true}
	if err != nil || len(table) != 1 || !reflect.DeepEqual(table[0], want) {
		t.Errorf("%+v %v", table, err)
	}
}

func TestRefused(t *testing.T) {
	wants := func(recovery string) SourceNIC { return SourceNIC{Network: "lan", RecoveryIP: ip(recovery)} }
	full := func(in *Input) {
		in.Networks[0].Subnets = []Subnet{{Name: "lan", CIDR: cidr("10.1.0.0/30"), Gateway: ip("10.1.0.1")}}
	}
	for _, c := range []struct {
		name   string
		change func(*Input)
		code   fault.Code
		says   []string
	}{
		{"taken", both(nics(wants("10.1.0.7")), taken(Taken{"dr", ip("10.1.0.7"), "VM x"})), fault.AddressTaken,
			[]string{"VM web01: NIC 1 (network lan) needs 10.1.0.7, which is taken: by VM x"}},
		{"taken, written as IPv6", both(nics(wants("10.1.0.7")), taken(Taken{"", ip("::ffff:10.1.0.7"), "arp"})), fault.AddressTaken, []string{"by arp"}},
		{"every one is named", nics(wants("10.1.0.2"), SourceNIC{Network: "lan", IP: ip("10.1.0.1")}, wants("10.1.0.0"), wants("10.1.0.255"), wants("fd00::")), fault.AddressTaken,
			[]string{"NIC 1 (network lan) needs 10.1.0.2, which is taken: it is reserved", "NIC 2 (network lan) needs 10.1.0.1, which is taken: it is the gateway",
				"NIC 3 (network lan) needs 10.1.0.0, which is taken: it stands for subnet LAN", "needs 10.1.0.255", "needs fd00::,"}},
		{"by the VM itself", nics(wants("10.1.0.7"), wants("10.1.0.7")), fault.AddressTaken, []string{"NIC 2 (network lan) needs 10.1.0.7, which is taken: by NIC 1 (network lan) of the same VM"}},
		{"its own address", both(nics(SourceNIC{Network: "flat", IP: ip("10.0.0.5")}), taken(Taken{"same", ip("10.0.0.5"), "VM x"})), fault.AddressTaken, []string{"needs 10.0.0.5"}},
		{"a test with nothing free", both(test, into("dr"), full, nics(wants("10.1.0.2")), taken(Taken{"", ip("10.1.0.2"), "x"})), fault.AddressTaken,
			[]string{"none is free in subnet lan (10.1.0.0/30) of network dr"}},
		{"outside the network", nics(wants("10.7.0.1")), fault.SiteInvalid, []string{"VM web01: NIC 1 (network lan): recovery_ip 10.7.0.1 lies in no subnet of recovery network dr"}},
		{"mapped to nothing", nics(SourceNIC{Network: "lost"}), fault.SiteInvalid, []string{`network "lost" is mapped to "nowhere"`}},
		{"into nothing", into("else"), fault.UsageError, []string{`no network "else"; it has isolated, dr, same, bare`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := base()
			c.change(&in)
			table, notes, err := Table(in)
			if !fault.Is(err, c.code) || table != nil || notes != nil || fault.Find(err).VM != "web01" {
				t.Fatalf("%v %v", err, table)
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("want %q in %q", part, err)
				}
			}
		})
	}
}

// The smallest subnets have no address that stands for all of them.
func TestSmallSubnets(t *testing.T) {
	for _, c := range []struct{ subnet, addr, want string }{
		{"10.1.0.0/31", "10.1.0.0", "10.1.0.0/31"}, {"10.1.0.0/31", "10.1.0.1", "10.1.0.1/31"}, {"10.1.0.7/32", "10.1.0.7", "10.1.0.7/32"},
		{"fd00::2/127", "fd00::2", "fd00::2/127"}, {"fd00::/64", "fd00::ffff:ffff:ffff:ffff", "fd00::ffff:ffff:ffff:ffff/64"},
		{"255.255.255.252/30", "255.255.255.254", "255.255.255.254/30"},
	} {
		in := base()
		in.Networks[0].Subnets = []Subnet{{Name: "lan", CIDR: cidr(c.subnet)}}
		in.NICs[0].RecoveryIP = ip(c.addr)
		table, _, err := Table(in)
		if err != nil || table[0].IP != c.want {
			t.Errorf("%+v: %v %v", c, table, err)
		}
	}
	in := base()
	in.Networks[0].Subnets = []Subnet{{Name: "lan", CIDR: cidr("255.255.255.252/30")}}
	in.NICs[0].RecoveryIP = ip("255.255.255.255")
	if _, _, err := Table(in); !fault.Is(err, fault.AddressTaken) {
		t.Error(err)
	}
}

// TestNoAddressTwice: in a run of many VMs no two NICs get the same address in one network, nobody gets a reserved one, a gateway, or
// one that stands for a subnet, and a failover gives what was asked for or nothing.
func TestNoAddressTwice(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewSource(seed))
	given, refused := 0, 0
	for range 400 {
		in := randomSite(rnd)
		others := in.Taken
		for vm := range 1 + rnd.Intn(8) {
			in.VM, in.NICs = fmt.Sprint("vm", vm), randomNICs(rnd)
			table, _, err := Table(in)
			if err != nil {
				if !fault.Is(err, fault.AddressTaken) && !fault.Is(err, fault.SiteInvalid) {
					t.Fatal(err)
				}
				refused++
				continue
			}
			checkTable(t, in, table)
			claims := Claims(in.VM, table)
			given += len(claims)
			in.Taken = append(in.Taken[:len(in.Taken):len(in.Taken)], claims...)
		}
		checkTaken(t, in.Taken, len(others))
	}
	if given < 100 || refused < 100 {
		t.Errorf("the sites are too easy or too hard: %d given, %d VMs refused", given, refused)
	}
}

func randomAddr(rnd *rand.Rand) netip.Addr {
	if rnd.Intn(4) == 0 {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte{10, byte(rnd.Intn(2)), 0, byte(rnd.Intn(16))})
}

func randomSite(rnd *rand.Rand) Input {
	in := Input{Kind: Failover, Mappings: []Mapping{{"lan", "dr"}, {"dmz", "dr2"}}, MaxNICs: rnd.Intn(4)}
	if rnd.Intn(2) == 0 {
		in.Kind, in.Into = Test, "dr"
	}
	for _, name := range []string{"dr", "dr2"} {
		in.Networks = append(in.Networks, Network{Name: name, Attach: host.User, Subnets: []Subnet{
			{Name: "lan", CIDR: cidr("10.0.0.0/28"), Gateway: ip("10.0.0.1"), Reserved: []netip.Addr{ip("10.0.0.4"), ip("10.0.0.9")}},
			{Name: "dmz", CIDR: cidr("10.1.0.0/29"), Reserved: []netip.Addr{ip("10.1.0.5")}},
		}})
	}
	for range rnd.Intn(3) {
		in.Taken = append(in.Taken, Taken{IP: netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.Intn(16))}), By: "other"})
	}
	return in
}

func randomNICs(rnd *rand.Rand) (out []SourceNIC) {
	for range rnd.Intn(5) {
		out = append(out, SourceNIC{Network: []string{"lan", "dmz", "lab"}[rnd.Intn(3)], IP: randomAddr(rnd), RecoveryIP: randomAddr(rnd), Primary: rnd.Intn(3) == 0})
	}
	return out
}

func checkTable(t *testing.T, in Input, table []host.NIC) {
	t.Helper()
	if len(in.NICs) > 0 && len(table) == 0 || in.MaxNICs > 0 && len(table) > in.MaxNICs {
		t.Fatalf("%d of %d NICs, at most %d", len(table), len(in.NICs), in.MaxNICs)
	}
	for i, n := range table {
		if n.Primary != (i == 0) {
			t.Fatalf("primary: %+v", table)
		}
		if n.IP == "" {
			continue
		}
		a := netip.MustParsePrefix(n.IP).Addr()
		for _, s := range in.Networks[0].Subnets {
			last := s.CIDR.Contains(a) && !s.CIDR.Contains(a.Next())
			for _, never := range append(append([]netip.Addr{}, s.Reserved...), s.Gateway, s.CIDR.Addr()) {
				if a == never || last {
					t.Fatalf("%s is given in %+v", a, s)
				}
			}
		}
		if in.Kind == Failover && !asked(in.NICs, a) {
			t.Fatalf("nobody asked for %s: %+v", a, in.NICs)
		}
	}
}

func asked(nics []SourceNIC, a netip.Addr) bool {
	for _, n := range nics {
		if n.IP == a || n.RecoveryIP == a {
			return true
		}
	}
	return false
}

func checkTaken(t *testing.T, list []Taken, others int) {
	t.Helper()
	for i := others; i < len(list); i++ {
		for _, x := range list[:i] {
			if x.IP == list[i].IP && (x.Network == "" || x.Network == list[i].Network) {
				t.Fatalf("%+v and %+v", x, list[i])
			}
		}
	}
}

func TestText(t *testing.T) {
	in := base()
	in.NICs = []SourceNIC{
		{Network: "lab", MAC: "52:54:00:00:00:01"},
		{Network: "lan", IP: ip("10.0.0.5"), RecoveryIP: ip("10.1.0.5"), Primary: true, PublicIP: true},
		{Network: "flat"},
	}
	table, _, err := Table(in)
	if err != nil {
		t.Fatal(err)
	}
	want := "" +
		"FROM  ADDRESS THERE  TO               SUBNET  ADDRESS      GATEWAY   MAC                REMARK\n" +
		"lan   10.0.0.5       dr (bridge br0)  LAN     10.1.0.5/24  10.1.0.1  -                  primary, public address\n" +
		"lab   DHCP           isolated         -       -            -         52:54:00:00:00:01  -\n" +
		"flat  DHCP           same (user)      lan     DHCP         -         -                  -\n"
	if got := Text(table); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := Text(nil); got != "no network adapters\n" {
		t.Error(got)
	}
}

// TestBesideTheSource: a test in a bridged network gets neither the MAC nor the address of the source, which may run in it, unless it is
// asked for; a failover does, and so does a test in a network that reaches nobody.
func TestBesideTheSource(t *testing.T) {
	in := base()
	in.NICs[0].MAC = "52:54:00:00:00:01"
	in.Networks[0].Subnets = []Subnet{{Name: "lan", CIDR: cidr("10.0.0.0/29"), Gateway: ip("10.0.0.1")}}
	for _, c := range []struct {
		kind    Kind
		into    string
		keep    bool
		mac, ip string
	}{
		{Test, "dr", false, "", "10.0.0.2/29"},
		{Test, "dr", true, "52:54:00:00:00:01", "10.0.0.5/29"},
		{Failover, "dr", false, "52:54:00:00:00:01", "10.0.0.5/29"},
		{Test, "same", false, "52:54:00:00:00:01", "10.0.0.5/24"},
		{Test, "", false, "52:54:00:00:00:01", ""},
	} {
		in.Kind, in.Into, in.KeepAddresses = c.kind, c.into, c.keep
		nics, notes, err := Table(in)
		if err != nil || nics[0].MAC != c.mac || nics[0].IP != c.ip {
			t.Errorf("%+v: %+v, %v", c, nics, err)
		}
		if told := strings.Contains(fmt.Sprint(notes), "--keep-addresses"); told != (c.mac == "") {
			t.Errorf("%+v: %v", c, notes)
		}
	}
}

package capture

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// site is a host with one of each kind of interface: a bond of eth0 and eth1
// with a VLAN on it and a macvlan on that, a bridge of eth2 and a container's
// veth, a card in a cloud with its virtual function, a tunnel, a VRF.
func site() *network {
	const ether = unix.ARPHRD_ETHER
	return &network{
		links: []link{
			{index: 1, name: "lo", hardware: unix.ARPHRD_LOOPBACK, loopback: true, up: true},
			{index: 2, name: "eth0", hardware: ether, up: true, master: 4},
			{index: 3, name: "eth1", hardware: ether, up: true, master: 4},
			{index: 4, name: "bond0", kind: "bond", hardware: ether, up: true},
			{index: 5, name: "bond0.7", kind: "vlan", hardware: ether, up: true, lower: 4},
			{index: 6, name: "mac0", kind: "macvlan", hardware: ether, up: true, lower: 5},
			{index: 7, name: "eth2", hardware: ether, up: true, master: 8},
			{index: 8, name: "br0", kind: "bridge", hardware: ether, up: true},
			{index: 9, name: "veth0", kind: "veth", hardware: ether, up: true, master: 8},
			{index: 10, name: "eth3", hardware: ether, up: true},
			{index: 11, name: "vf0", hardware: ether, up: true, master: 10},
			{index: 12, name: "tunl0", kind: "ipip", hardware: unix.ARPHRD_TUNNEL, up: true, lower: 10},
			{index: 13, name: "eth4", hardware: ether, up: true, master: 14},
			{index: 14, name: "red", kind: "vrf", hardware: ether, up: true},
			{index: 15, name: "eth5", hardware: ether},
			{index: 16, name: "br1", kind: "bridge", hardware: ether, up: true},
			{index: 17, name: "vetha", kind: "veth", hardware: ether, up: true, lower: 18},
			{index: 18, name: "vethb", kind: "veth", hardware: ether, up: true, lower: 17},
			{index: 19, name: "mac1", kind: "macvlan", hardware: ether, up: true, lower: 99},
		},
		addresses: []address{
			{1, netip.MustParseAddr("127.0.0.1")},
			{5, netip.MustParseAddr("192.0.2.1")},
			{8, netip.MustParseAddr("192.0.2.2")},
			{10, netip.MustParseAddr("2001:db8::1")},
			{77, netip.MustParseAddr("192.0.2.3")}, // of an interface that went meanwhile
		},
		defaults: []uint32{10, 78},
	}
}

func TestChoose(t *testing.T) {
	for _, test := range []struct {
		name     string
		names    string
		services string
		want     string
		notes    []string
	}{
		{name: "by name", names: "eth3", want: "eth3"},
		{name: "what is down", names: "eth5", want: "eth5", notes: []string{"eth5 is down"}},
		{name: "what is not there", names: "eth9 eth3", want: "eth3", notes: []string{"eth9 is not there; it will be read when it is"}},
		{name: "nothing that is there", names: "eth9", notes: []string{"eth9 is not there; it will be read when it is"}},
		{name: "twice the same", names: "eth3 eth3", want: "eth3"},
		{name: "a bond by itself", names: "bond0", want: "bond0"},
		{name: "a VLAN by itself", names: "bond0.7", want: "bond0.7"},
		{name: "a VLAN and the bond under it", names: "bond0.7 bond0", want: "bond0",
			notes: []string{"bond0.7 is not read itself: its frames are read on bond0, which it stands on"}},
		{name: "a macvlan, and one of the cards far below", names: "mac0 eth1", want: "eth0 eth1", notes: []string{
			"mac0 is not read itself: its frames are read on eth0, eth1, which it stands on"}},
		{name: "a bridge and one of its members", names: "br0 eth2", want: "eth2 veth0",
			notes: []string{"br0 is not read itself: its frames are read on eth2, veth0, which it stands on"}},
		{name: "a tunnel and the card that carries it", names: "tunl0 eth3", want: "eth3 tunl0"},
		{name: "both ends of a veth pair", names: "vetha vethb", want: "vetha vethb"},
		{name: "a virtual function and its master", names: "vf0 eth3", want: "eth3",
			notes: []string{"vf0 is not read itself: its frames are read on eth3, which it stands on"}},
		{name: "any", names: "any", want: "br1 eth0 eth1 eth2 eth3 eth4 lo mac1 tunl0 veth0 vetha vethb"},
		{name: "any and more", names: "eth5 any", want: "br1 eth0 eth1 eth2 eth3 eth4 lo mac1 tunl0 veth0 vetha vethb"},
		{name: "by the default route", want: "eth3"},
		{name: "by the services' addresses", services: "192.0.2.1 192.0.2.2", want: "bond0.7 br0 eth3"},
		{name: "IPv4 in IPv6", services: "::ffff:192.0.2.1", want: "bond0.7 eth3"},
		{name: "an address that no interface has", services: "192.0.2.9", want: "eth3"},
		{name: "an address of an interface that is gone", services: "192.0.2.3", want: "eth3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var services []netip.Addr
			for _, s := range strings.Fields(test.services) {
				services = append(services, netip.MustParseAddr(s))
			}
			c := choose(site(), strings.Fields(test.names), services)
			if got := strings.Join(c.names(), " "); got != test.want {
				t.Errorf("reads %s, want %s", got, test.want)
			}
			slices.Sort(c.notes)
			if diff := cmp.Diff(test.notes, c.notes); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
		})
	}
}

// Interfaces that stand on each other in a circle cannot be, but the kernel's
// answers come in several parts, between which they may change.
func TestChooseEndsInACircle(t *testing.T) {
	n := &network{links: []link{
		{index: 1, name: "a", kind: "vlan", up: true, lower: 2},
		{index: 2, name: "b", kind: "vlan", up: true, lower: 1},
	}}
	for _, names := range []string{"a", "b", "a b", "any"} {
		choose(n, strings.Fields(names), nil) // and returns
	}
}

func TestMode(t *testing.T) {
	for _, test := range []struct {
		name string
		link link
		want uint32
	}{
		{"a card", link{hardware: unix.ARPHRD_ETHER}, linkEthernet},
		{"lo", link{hardware: unix.ARPHRD_LOOPBACK, loopback: true}, linkEthernet | linkLoops},
		{"tun", link{hardware: unix.ARPHRD_NONE}, linkNone},
		{"ipip", link{hardware: unix.ARPHRD_TUNNEL}, linkNone},
		{"GRE, which may have a header", link{hardware: unix.ARPHRD_IPGRE}, linkOther},
	} {
		if got := test.link.mode(); got != test.want {
			t.Errorf("%s: mode %d, want %d", test.name, got, test.want)
		}
	}
}

// What the kernel answers is parsed, whatever it is. The seeds are a macvlan, an
// address and a route with two next hops.
func FuzzNetwork(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		l, wanted, err := parseLink(b)
		if err == nil && wanted && len(b) < unix.SizeofIfInfomsg {
			t.Errorf("a link of %d bytes: %+v", len(b), l)
		}
		a, wanted, err := parseAddress(b)
		if err == nil && wanted && !a.ip.IsValid() {
			t.Errorf("an address that is none: %+v", a)
		}
		if _, _, err := parseRoute(b); err == nil && len(b) < unix.SizeofRtMsg {
			t.Errorf("a route of %d bytes", len(b))
		}
	})
}

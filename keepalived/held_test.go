package keepalived

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/internal/netns"
)

func TestHeld(t *testing.T) {
	host, peer := netns.New(t), netns.New(t)
	netns.Join(t, host, "eth0", peer, "eth0")
	for _, command := range []string{
		"address add 192.0.2.1/24 dev eth0",
		"address add 192.0.2.10/32 dev eth0",
		"address add 192.0.2.11 peer 198.51.100.1 dev eth0",
		"address add 2001:db8::1/64 dev eth0", // tentative at first: held
		"address add 2001:db8::10/64 dev eth0 nodad",
		"address add 192.0.2.20/32 dev lo",
		"address add 2001:db8::20/128 dev lo",
		"link add idle type veth peer name idle-peer",
		"address add 192.0.2.30/24 dev idle",
		// As keepalived's use_vmac does.
		"link add link eth0 name vrrp.51 type macvlan mode private",
		"address add 192.0.2.40/32 dev vrrp.51",
		"link set vrrp.51 up",
	} {
		host.Run(t, "ip", strings.Fields(command)...)
	}
	// Another host has this one.
	peer.Run(t, "ip", "address", "add", "2001:db8::50/64", "dev", "eth0", "nodad")
	host.Run(t, "ip", "address", "add", "2001:db8::50/64", "dev", "eth0")
	eventually(t, func() string {
		if state := host.Run(t, "ip", "-6", "address", "show", "dev", "eth0"); !strings.Contains(state, "dadfailed") {
			return "duplicate address detection goes on: " + state
		}
		return ""
	})
	want := Held{}
	for _, text := range []string{"192.0.2.1", "192.0.2.10", "192.0.2.11", "192.0.2.40", "2001:db8::1", "2001:db8::10"} {
		want[netip.MustParseAddr(text)] = true
	}
	if diff := cmp.Diff(want, heldIn(t, host), cmpConfig); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestHeldTunnels makes the interfaces on which real servers have virtual
// addresses, as far as this kernel has them.
func TestHeldTunnels(t *testing.T) {
	for _, kind := range []string{"dummy", "ipip", "sit", "ip6tnl", "gre", "ip6gre"} {
		t.Run(kind, func(t *testing.T) {
			host := netns.New(t)
			args := []string{"link", "add", "dev0", "type", kind}
			switch kind {
			case "ipip", "sit", "gre":
				args = append(args, "local", "192.0.2.1", "remote", "192.0.2.2")
			case "ip6tnl", "ip6gre":
				args = append(args, "local", "2001:db8::1", "remote", "2001:db8::2")
			}
			if _, err := host.Try(t, "", "ip", args...); err != nil {
				t.Skipf("this kernel has no %s: %v", kind, err)
			}
			host.Run(t, "ip", "link", "set", "dev0", "up")
			host.Run(t, "ip", "address", "add", "192.0.2.10/32", "dev", "dev0")
			if held := heldIn(t, host); len(held) > 0 {
				t.Errorf("an address on %s counts: %v", kind, held)
			}
		})
	}
}

func TestParseLink(t *testing.T) {
	message := func(flags uint32, kind string) []byte {
		data := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(data[4:], 7)
		binary.NativeEndian.PutUint32(data[8:], flags)
		attributes := netlink.NewAttributeEncoder()
		attributes.String(unix.IFLA_IFNAME, "dev0")
		if kind != "" {
			attributes.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
				info.String(unix.IFLA_INFO_KIND, kind)
				return nil
			})
		}
		encoded, err := attributes.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return append(data, encoded...)
	}
	tests := []struct {
		flags uint32
		kind  string // none: hardware
		want  bool
	}{
		{unix.IFF_UP | unix.IFF_RUNNING, "", true},
		{unix.IFF_UP, "", true}, // no carrier: keepalived judges that
		{unix.IFF_RUNNING, "", false},
		{unix.IFF_UP | unix.IFF_LOOPBACK, "", false},
		{unix.IFF_UP, "bond", true},
		{unix.IFF_UP, "vlan", true},
		{unix.IFF_UP, "bridge", true},
		{unix.IFF_UP, "macvlan", true},
		{unix.IFF_UP, "ipvlan", true},
		{unix.IFF_UP, "dummy", false},
		{unix.IFF_UP, "ipip", false},
		{unix.IFF_UP, "sit", false},
		{unix.IFF_UP, "ip6tnl", false},
		{unix.IFF_UP, "gre", false},
		{unix.IFF_UP, "ip6gre", false},
	}
	for _, tt := range tests {
		index, real, err := parseLink(message(tt.flags, tt.kind))
		if index != 7 || real != tt.want || err != nil {
			t.Errorf("flags %#x, kind %q: index %d, real %t, %v; want 7, %t", tt.flags, tt.kind, index, real, err, tt.want)
		}
	}
}

// TestHeldAfterFailure breaks the socket.
func TestHeldAfterFailure(t *testing.T) {
	addresses, err := OpenAddresses()
	if err != nil {
		t.Fatal(err)
	}
	addresses.conn.Close()
	if held, err := addresses.Held(); err == nil || held != nil {
		t.Errorf("over a closed socket: %v, %v; want nil and an error", held, err)
	}
	if held, err := addresses.Held(); err != nil || held == nil {
		t.Errorf("the next time: %v, %v; want a set", held, err)
	}
	if err := addresses.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzNetlink(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 18, 0, 10, 0, 1, 0, 'd', 'u', 'm', 'm', 'y', 0, 0, 0})
	f.Add([]byte{2, 24, 128, 0, 2, 0, 0, 0, 8, 0, 2, 0, 192, 0, 2, 1, 8, 0, 8, 0, 128, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, real, err := parseLink(data); real && err != nil {
			t.Errorf("a link is real though %v", err)
		}
		if _, addr, err := parseAddress(data); addr.IsValid() && err != nil {
			t.Errorf("address %v though %v", addr, err)
		}
	})
}

func BenchmarkHeld(b *testing.B) {
	for _, n := range []int{3, 300} {
		b.Run(fmt.Sprintf("%d-addresses", n), func(b *testing.B) {
			host, peer := netns.New(b), netns.New(b)
			netns.Join(b, host, "eth0", peer, "eth0")
			var batch strings.Builder
			for i := range n {
				fmt.Fprintf(&batch, "address add 10.0.%d.%d/32 dev eth0\n", i/200, i%200+1)
			}
			if _, err := host.Try(b, batch.String(), "ip", "-batch", "-"); err != nil {
				b.Fatal(err)
			}
			var addresses *Addresses
			var err error
			host.Do(b, func() { addresses, err = OpenAddresses() })
			if err != nil {
				b.Fatal(err)
			}
			defer addresses.Close()
			b.ReportAllocs()
			for b.Loop() {
				held, err := addresses.Held()
				if err != nil || len(held) != n {
					b.Fatalf("%d addresses, %v", len(held), err)
				}
			}
		})
	}
}

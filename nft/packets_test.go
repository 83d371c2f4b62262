package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// site is a host under test and one that sends to it.
type site struct {
	attacker, director *netns.Host
	wire, loop         *netns.Sender
	probe              *nftables.Conn
}

// probe is a foreign table behind ours: it sees what ours lets pass.
const probe = `table inet probe {
	counter seen {
	}

	chain prerouting {
		type filter hook prerouting priority 0; policy accept;
		meta l4proto { tcp, udp } counter name seen
	}
}
`

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{attacker: netns.New(t), director: netns.New(t)}
	netns.Join(t, s.attacker, "wire", s.director, "wire")
	s.director.Run(t, "ip", "link", "set", "wire", "address", "02:00:00:00:00:01")
	s.director.Run(t, "ip", "address", "add", "192.0.2.99/24", "dev", "wire")
	if _, err := s.director.Try(t, probe, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	var err error
	s.director.Do(t, func() { s.probe, err = nftables.New(nftables.AsLasting()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.probe.CloseLasting() })
	s.wire = s.attacker.Sender(t, "wire")
	s.loop = s.director.Sender(t, "lo")
	return s
}

// seen is how many packets have passed our table.
func (s *site) seen(t testing.TB) int {
	t.Helper()
	foreign := &nftables.Table{Name: "probe", Family: nftables.TableFamilyINet}
	counter, err := s.probe.GetObject(&nftables.CounterObj{Table: foreign, Name: "seen"})
	if err != nil {
		t.Fatal(err)
	}
	return int(counter.(*nftables.CounterObj).Packets)
}

func services(texts ...string) []netip.AddrPort {
	out := make([]netip.AddrPort, len(texts))
	for i, text := range texts {
		out[i] = netip.MustParseAddrPort(text)
	}
	return out
}

// summary writes all counters that are not 0 as text, a line a service.
func (c Counters) summary() string {
	var lines []string
	add := func(name string, parts ...string) {
		parts = slices.DeleteFunc(parts, func(p string) bool { return strings.HasSuffix(p, " 0/0") })
		if len(parts) > 0 {
			lines = append(lines, name+": "+strings.Join(parts, ", "))
		}
	}
	figure := func(name string, n Count) string { return fmt.Sprintf("%s %d/%d", name, n.Packets, n.Bytes) }
	for service, n := range c.Services {
		parts := []string{figure("syn", n.SYN)}
		var names []string
		for name := range n.Signatures {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			parts = append(parts, figure(name, n.Signatures[name]))
		}
		add(service.String(), append(parts, figure("dropped", n.Dropped), figure("fragment", n.Fragment))...)
	}
	add("lo", figure("passed", c.Loopback))
	add("allowed", figure("passed", c.Allowed))
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestPackets sends one packet of each kind and reads what was counted, first
// with no service armed and then with all.
func TestPackets(t *testing.T) {
	const (
		v4, v6       = "192.0.2.1", "2001:db8::1"
		from4, from6 = "198.51.100.7", "2001:db8:f::7"
	)
	tests := []struct {
		name   string
		frame  frame
		loop   bool   // sent on lo
		want   string // as Counters.summary has it
		armed  string // the same with everything armed; "": no different
		passes bool   // even when armed
	}{
		// The signature.
		{name: "v4 signature", frame: frame{dst: v4, dport: 80},
			want:  "192.0.2.1:80: syn 1/40, window0 1/40",
			armed: "192.0.2.1:80: syn 1/40, window0 1/40, dropped 1/40"},
		{name: "v4 signature in a padded frame", frame: frame{dst: v4, dport: 80, pad: 60},
			want:  "192.0.2.1:80: syn 1/40, window0 1/40",
			armed: "192.0.2.1:80: syn 1/40, window0 1/40, dropped 1/40"},
		{name: "v4 signature with ECE and CWR", frame: frame{dst: v4, dport: 80, flags: flagSYN | 0xc0},
			want:  "192.0.2.1:80: syn 1/40, window0 1/40",
			armed: "192.0.2.1:80: syn 1/40, window0 1/40, dropped 1/40"},
		{name: "v6 signature", frame: frame{dst: v6, dport: 443},
			want:  "[2001:db8::1]:443: syn 1/60, window0 1/60",
			armed: "[2001:db8::1]:443: syn 1/60, window0 1/60, dropped 1/60"},
		{name: "v6 signature with ECE", frame: frame{dst: v6, dport: 443, flags: flagSYN | 0x40},
			want:  "[2001:db8::1]:443: syn 1/60, window0 1/60",
			armed: "[2001:db8::1]:443: syn 1/60, window0 1/60, dropped 1/60"},

		// Other SYNs.
		{name: "v4 honest SYN", frame: frame{dst: v4, dport: 80, window: 64240, tcpOptions: 20},
			want: "192.0.2.1:80: syn 1/60", passes: true},
		{name: "v4 window 1", frame: frame{dst: v4, dport: 80, window: 1},
			want: "192.0.2.1:80: syn 1/40", passes: true},
		{name: "v4 TCP options", frame: frame{dst: v4, dport: 80, tcpOptions: 4},
			want: "192.0.2.1:80: syn 1/44", passes: true},
		{name: "v4 IP options", frame: frame{dst: v4, dport: 80, ipOptions: 4},
			want: "192.0.2.1:80: syn 1/44", passes: true},
		{name: "v6 honest SYN", frame: frame{dst: v6, dport: 443, window: 64240, tcpOptions: 20},
			want: "[2001:db8::1]:443: syn 1/80", passes: true},
		{name: "v6 extension header", frame: frame{dst: v6, dport: 443, ipOptions: 8},
			want: "[2001:db8::1]:443: syn 1/68", passes: true},

		// Not SYNs.
		{name: "v4 ACK", frame: frame{dst: v4, dport: 80, flags: flagACK}, passes: true},
		{name: "v4 SYN and ACK", frame: frame{dst: v4, dport: 80, flags: flagSYN | flagACK}, passes: true},
		{name: "v4 SYN and FIN", frame: frame{dst: v4, dport: 80, flags: flagSYN | flagFIN}, passes: true},
		{name: "v4 SYN and RST", frame: frame{dst: v4, dport: 80, flags: flagSYN | flagRST}, passes: true},
		{name: "v4 RST", frame: frame{dst: v4, dport: 80, flags: flagRST}, passes: true},
		{name: "v4 UDP", frame: frame{dst: v4, dport: 80, udp: true}, passes: true},
		{name: "v6 ACK", frame: frame{dst: v6, dport: 443, flags: flagACK}, passes: true},
		{name: "v6 UDP", frame: frame{dst: v6, dport: 443, udp: true}, passes: true},

		// Which service.
		{name: "v4 no service's port", frame: frame{dst: v4, dport: 81}, passes: true},
		{name: "v4 no service's address", frame: frame{dst: "192.0.2.9", dport: 80}, passes: true},
		{name: "v6 no service's port", frame: frame{dst: v6, dport: 80}, passes: true},
		{name: "v4 every port", frame: frame{dst: "192.0.2.2", dport: 4711},
			want:  "192.0.2.2:0: syn 1/40, window0 1/40",
			armed: "192.0.2.2:0: syn 1/40, window0 1/40, dropped 1/40"},
		{name: "v6 every port", frame: frame{dst: "2001:db8::2", dport: 4711},
			want:  "[2001:db8::2]:0: syn 1/60, window0 1/60",
			armed: "[2001:db8::2]:0: syn 1/60, window0 1/60, dropped 1/60"},
		{name: "v4 exact before every port", frame: frame{dst: "192.0.2.3", dport: 80},
			want:  "192.0.2.3:80: syn 1/40, window0 1/40",
			armed: "192.0.2.3:80: syn 1/40, window0 1/40, dropped 1/40"},
		{name: "v4 exact before every port, honest", frame: frame{dst: "192.0.2.3", dport: 80, window: 5},
			want: "192.0.2.3:80: syn 1/40", passes: true},
		{name: "v4 every port beside exact", frame: frame{dst: "192.0.2.3", dport: 81},
			want:  "192.0.2.3:0: syn 1/40, window0 1/40",
			armed: "192.0.2.3:0: syn 1/40, window0 1/40, dropped 1/40"},

		// Who passes first.
		{name: "v4 allowed", frame: frame{src: "203.0.113.5", dst: v4, dport: 80},
			want: "allowed: passed 1/40", passes: true},
		{name: "v6 allowed", frame: frame{src: "2001:db8:a::5", dst: v6, dport: 443},
			want: "allowed: passed 1/60", passes: true},
		{name: "v4 allowed fragment", frame: frame{src: "203.0.113.5", dst: v4, dport: 80, fragment: &fragment{0, 8, true}},
			want: "allowed: passed 1/28", passes: true},
		{name: "v4 loopback", loop: true, frame: frame{dst: v4, dport: 80},
			want: "lo: passed 1/40", passes: true},
		{name: "v6 loopback", loop: true, frame: frame{dst: v6, dport: 443},
			want: "lo: passed 1/60", passes: true},
		{name: "v4 loopback fragment", loop: true, frame: frame{dst: v4, dport: 80, fragment: &fragment{0, 8, true}},
			want: "lo: passed 1/28", passes: true},

		// Fragments.
		{name: "v4 first fragment with 8 bytes", frame: frame{dst: v4, dport: 80, fragment: &fragment{0, 8, true}},
			want:  "192.0.2.1:80: fragment 1/28",
			armed: "192.0.2.1:80: dropped 1/28, fragment 1/28"},
		{name: "v4 first fragment with 16 bytes", frame: frame{dst: v4, dport: 80, fragment: &fragment{0, 16, true}},
			want:  "192.0.2.1:80: fragment 1/36",
			armed: "192.0.2.1:80: dropped 1/36, fragment 1/36"},
		{name: "v4 first fragment with 16 bytes behind IP options", frame: frame{dst: v4, dport: 80, ipOptions: 8, fragment: &fragment{0, 16, true}},
			want:  "192.0.2.1:80: fragment 1/44",
			armed: "192.0.2.1:80: dropped 1/44, fragment 1/44"},
		{name: "v4 first fragment with the TCP header", frame: frame{dst: v4, dport: 80, tcpOptions: 20, fragment: &fragment{0, 24, true}},
			want: "192.0.2.1:80: fragment 1/44", passes: true},
		{name: "v4 first fragment of no SYN", frame: frame{dst: v4, dport: 80, flags: flagACK, tcpOptions: 20, fragment: &fragment{0, 24, true}},
			want: "192.0.2.1:80: fragment 1/44", passes: true},
		{name: "v4 later fragment", frame: frame{dst: v4, dport: 80, fragment: &fragment{8, 8, true}},
			want: "192.0.2.1:80: fragment 1/28", passes: true},
		{name: "v4 last fragment", frame: frame{dst: v4, dport: 80, tcpOptions: 40, fragment: &fragment{16, 44, false}},
			want: "192.0.2.1:80: fragment 1/64", passes: true},
		{name: "v4 first fragment to no service's port", frame: frame{dst: v4, dport: 81, fragment: &fragment{0, 8, true}},
			want: "192.0.2.1:80: fragment 1/28", passes: true},
		{name: "v4 first fragment to every port", frame: frame{dst: "192.0.2.2", dport: 81, fragment: &fragment{0, 8, true}},
			want:  "192.0.2.2:0: fragment 1/28",
			armed: "192.0.2.2:0: dropped 1/28, fragment 1/28"},
		{name: "v4 later fragment to every port", frame: frame{dst: "192.0.2.2", dport: 81, fragment: &fragment{8, 8, true}},
			want: "192.0.2.2:0: fragment 1/28", passes: true},
		{name: "v6 first fragment with 8 bytes", frame: frame{dst: v6, dport: 443, fragment: &fragment{0, 8, true}},
			want:  "[2001:db8::1]:443: fragment 1/56",
			armed: "[2001:db8::1]:443: dropped 1/56, fragment 1/56"},
		{name: "v6 first fragment with 16 bytes", frame: frame{dst: v6, dport: 443, fragment: &fragment{0, 16, true}},
			want:  "[2001:db8::1]:443: fragment 1/64",
			armed: "[2001:db8::1]:443: dropped 1/64, fragment 1/64"},
		{name: "v6 first fragment with the TCP header", frame: frame{dst: v6, dport: 443, tcpOptions: 20, fragment: &fragment{0, 24, true}},
			want: "[2001:db8::1]:443: fragment 1/72", passes: true},
		{name: "v6 later fragment", frame: frame{dst: v6, dport: 443, fragment: &fragment{8, 8, true}},
			want: "[2001:db8::1]:443: fragment 1/56", passes: true},
		{name: "v6 whole packet with a fragment header", frame: frame{dst: v6, dport: 443, fragment: &fragment{0, 40, false}},
			want: "[2001:db8::1]:443: fragment 1/68", passes: true},
		{name: "v6 later fragment to every port", frame: frame{dst: "2001:db8::2", dport: 81, fragment: &fragment{8, 8, true}},
			want: "[2001:db8::2]:0: fragment 1/56", passes: true},
		{name: "UDP fragment", frame: frame{dst: v4, dport: 80, udp: true, fragment: &fragment{0, 8, true}}, passes: true},
	}

	s := newSite(t)
	watched := services("192.0.2.1:80", "192.0.2.2:0", "192.0.2.3:80", "192.0.2.3:0", "[2001:db8::1]:443", "[2001:db8::2]:0")
	cfg := Config{Allow: []netip.Prefix{
		netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("203.0.112.0/24"), netip.MustParsePrefix("2001:db8:a::/48"),
	}}
	table := open(t, s.director, cfg)
	leases := map[netip.AddrPort]time.Duration{}
	for _, service := range watched {
		leases[service] = time.Minute
	}
	for _, armed := range []bool{false, true} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s armed %t", tt.name, armed), func(t *testing.T) {
				if err := table.Remove(); err != nil {
					t.Fatal(err)
				}
				if _, err := table.Ensure(watched); err != nil {
					t.Fatal(err)
				}
				want, passes := tt.want, true
				if armed {
					if err := table.Arm(leases); err != nil {
						t.Fatal(err)
					}
					passes = tt.passes
					if tt.armed != "" {
						want = tt.armed
					}
				}
				f := tt.frame
				if f.src == "" {
					if f.src = from4; strings.Contains(f.dst, ":") {
						f.src = from6
					}
				}
				before := s.seen(t)
				sender := s.wire
				if tt.loop {
					sender = s.loop
				}
				if err := sender.Send(f.build(tt.loop)); err != nil {
					t.Fatal(err)
				}
				wantSeen := before
				if passes {
					wantSeen++
				}
				var got string
				var seen int
				for range 100 {
					c, err := table.Counters()
					if err != nil {
						t.Fatal(err)
					}
					if got, seen = c.summary(), s.seen(t); got == want && seen == wantSeen {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("counters (-want +got):\n%s", diff)
				}
				if seen != wantSeen {
					t.Errorf("%d packets passed, want %d", seen-before, wantSeen-before)
				}
			})
		}
	}
}

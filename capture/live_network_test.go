package capture

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lvsguard/lvsguard/internal/netns"
	"golang.org/x/sys/unix"
)

// filters are the two that there are.
var filters = []string{"ebpf", "classic"}

// listenWith is listen with one of filters.
func listenWith(t testing.TB, h *netns.Host, filter string, config LiveConfig) *tap {
	t.Helper()
	if filter == "ebpf" {
		return listen(t, h, config)
	}
	return listenWithout(t, h, []int{unix.CAP_BPF, unix.CAP_SYS_ADMIN}, config)
}

// once tells whether seen is exactly these handshakes, in any order.
func exactly(connections ...[]string) func(seen []string) bool {
	want := slices.Sorted(slices.Values(slices.Concat(connections...)))
	return func(seen []string) bool { return slices.Equal(slices.Sorted(slices.Values(plain(seen))), want) }
}

// All the frames that decode are handed on as what they decode to, whatever
// they have before IP: tags in the frame or taken off by the kernel, IPv6's
// extension headers, ICMP errors.
func TestLiveFrames(t *testing.T) {
	for _, filter := range filters {
		t.Run(filter, func(t *testing.T) {
			client, server := pair(t)
			tap := listenWith(t, server, filter, LiveConfig{Interfaces: []string{"eth0"}, Workers: 1})
			s := client.Sender(t, "wire")
			var want []Segment
			for _, f := range goodFrames {
				if f.link != LinkEthernet || f.want.Flags&SYN == 0 && !f.want.Unreachable {
					continue
				}
				want = append(want, f.want)
				if err := s.Send(f.frame); err != nil {
					t.Fatalf("%s: %v", f.name, err)
				}
			}
			tap.await(t, "all frames", func(seen []string) bool { return len(seen) == len(want) })
			tap.mu.Lock()
			defer tap.mu.Unlock()
			for i := range tap.segments {
				tap.segments[i].Time = 0
			}
			if diff := cmp.Diff(want, tap.segments); diff != "" {
				t.Errorf("handed on (-want +got):\n%s", diff)
			}
		})
	}
}

// A director that forwards sees each packet come and go. It is one segment.
func TestForwardedCopies(t *testing.T) {
	for _, filter := range filters {
		t.Run(filter, func(t *testing.T) {
			client, router, server := host(t), host(t), host(t)
			netns.Join(t, client, "wire", router, "eth0")
			netns.Join(t, router, "eth1", server, "wire")
			give(t, client, "wire", "10.0.0.1/24", "2001:db8::1/64")
			give(t, router, "eth0", "10.0.0.254/24", "2001:db8::254/64")
			give(t, router, "eth1", "10.0.1.254/24", "2001:db8:1::254/64")
			give(t, server, "wire", "10.0.1.1/24", "2001:db8:1::1/64")
			for _, h := range []struct {
				host *netns.Host
				via  [2]string
			}{{client, [2]string{"10.0.0.254", "2001:db8::254"}}, {server, [2]string{"10.0.1.254", "2001:db8:1::254"}}} {
				h.host.Run(t, "ip", "route", "add", "default", "via", h.via[0])
				h.host.Run(t, "ip", "-6", "route", "add", "default", "via", h.via[1])
			}
			router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
			serve(t, server, ":80")
			serve(t, router, ":81")
			for _, family := range []string{"10.0.1.1:80", "[2001:db8:1::1]:80"} {
				dial(t, client, family) // until the neighbours know each other, SYNs are sent again
				dial(t, router, family)
			}
			tap := listenWith(t, router, filter, LiveConfig{Interfaces: []string{"eth0", "eth1"}})
			var want [][]string
			connect := func(h *netns.Host, to string) {
				t.Helper()
				c := dial(t, h, to)
				want = append(want, threeWay(local(c), remote(c)))
			}
			connect(client, "10.0.1.1:80")
			connect(client, "[2001:db8:1::1]:80")
			connect(router, "10.0.1.1:80") // what it sends itself is no copy
			connect(router, "[2001:db8:1::1]:80")
			connect(client, "10.0.0.254:81") // nor what it answers
			tap.await(t, "each handshake once", exactly(want...))
			stats, err := tap.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if stats.Kinds[Copy] < 4 {
				t.Errorf("%d copies, want at least those of two SYNs and two SYN/ACKs", stats.Kinds[Copy])
			}
		})
	}
}

// What this host sends from a virtual service's address is its own, though no
// interface has the address, as with services by firewall mark.
func TestServicesAreLocal(t *testing.T) {
	for _, filter := range filters {
		t.Run(filter, func(t *testing.T) {
			client, server := pair(t)
			server.Run(t, "ip", "route", "add", "local", "192.0.2.1/32", "dev", "lo")
			client.Run(t, "ip", "route", "add", "192.0.2.1/32", "via", "10.0.0.2")
			serve(t, server, ":80")
			config := LiveConfig{Interfaces: []string{"eth0"}}
			without := listenWith(t, server, filter, config)
			config.Services = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} }
			with := listenWith(t, server, filter, config)
			c := dial(t, client, "192.0.2.1:80")
			want := threeWay(local(c), remote(c))
			with.await(t, "the handshake", exactly(want))
			without.await(t, "the client's half", exactly([]string{want[0], want[2]}))
		})
	}
}

// On lo, what goes out comes in again.
func TestLoopback(t *testing.T) {
	for _, filter := range filters {
		t.Run(filter, func(t *testing.T) {
			h := netns.New(t)
			tap := listenWith(t, h, filter, LiveConfig{Interfaces: []string{"any"}})
			serve(t, h, "127.0.0.1:80")
			c := dial(t, h, "127.0.0.1:80")
			tap.await(t, "the handshake", func(seen []string) bool {
				want := threeWay(local(c), remote(c))
				return len(seen) >= 3 && slices.Equal(plain(seen)[:3], want) && count(seen, " S") == 2
			})
		})
	}
}

// Of interfaces that stand on each other, each frame is read once, even if all
// of them are chosen.
func TestStacked(t *testing.T) {
	for _, test := range []struct {
		name, reads string
		commands    string // for the client's wire and the server's eth0 alike
		device      string // has the address
	}{
		{"macvlan", "eth0", "ip link add link DEV name up0 type macvlan", "up0"},
		{"bridge", "eth0", "ip link add up0 type bridge; ip link set DEV master up0", "up0"},
		{"vlan", "eth0", "ip link add link DEV name up0 type vlan id 7", "up0"},
		{"QinQ", "eth0", "ip link add link DEV name up0 type vlan proto 802.1ad id 7; ip link set up0 up; " +
			"ip link add link up0 name up1 type vlan id 8", "up1"},
		{"bond", "eth0", "ip link add up0 type bond; ip link set DEV down; ip link set DEV master up0", "up0"},
		{"macvlan on a bridge", "eth0", "ip link add up0 type bridge; ip link set DEV master up0; ip link set up0 up; " +
			"ip link add link up0 name up1 type macvlan", "up1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, server := host(t), host(t)
			netns.Join(t, client, "wire", server, "eth0")
			for dev, h := range map[string]*netns.Host{"wire": client, "eth0": server} {
				for command := range strings.SplitSeq(strings.ReplaceAll(test.commands, "DEV", dev), "; ") {
					words := strings.Fields(command)
					if _, err := h.Try(t, "", words[0], words[1:]...); err != nil && strings.Contains(err.Error(), "Unknown device type") {
						t.Skipf("this kernel lacks the kind of interface: %v", err)
					} else if err != nil {
						t.Fatal(err)
					}
				}
				h.Run(t, "ip", "link", "set", test.device, "up")
			}
			for _, h := range []*netns.Host{client, server} { // the lower device must not answer for the upper one
				h.Run(t, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
			}
			give(t, client, test.device, "10.0.0.1/24")
			give(t, server, test.device, "10.0.0.2/24")
			serve(t, server, ":80")
			all := listen(t, server, LiveConfig{Interfaces: []string{"any"}})
			named := listen(t, server, LiveConfig{Interfaces: []string{test.device, "eth0"}})
			upper := listen(t, server, LiveConfig{Interfaces: []string{test.device}})
			c := dial(t, client, "10.0.0.2:80")
			want := exactly(threeWay(local(c), remote(c)))
			all.await(t, "any", want)
			named.await(t, "both named", want)
			upper.await(t, "the upper one", want)
			if diff := cmp.Diff([]string{test.reads}, named.Interfaces()); diff != "" {
				t.Errorf("reads (-want +got):\n%s", diff)
			}
			note := fmt.Sprintf("%s is not read itself: its frames are read on eth0, which it stands on", test.device)
			if diff := cmp.Diff([]string{note}, named.Notes()); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
		})
	}
}

// A tunnel's frames begin with IP.
func TestTunnel(t *testing.T) {
	for _, filter := range filters {
		t.Run(filter, func(t *testing.T) {
			h := netns.New(t)
			var tun *os.File
			var err error
			h.Do(t, func() { tun, err = openTun("tun0") })
			if err != nil {
				t.Skipf("no tunnel here: %v", err)
			}
			defer tun.Close()
			h.Run(t, "ip", "link", "set", "tun0", "up")
			tap := listenWith(t, h, filter, LiveConfig{Interfaces: []string{"any"}, Workers: 1})
			for _, packet := range [][]byte{synIPv4, synIPv6} {
				if _, err := tun.Write(packet); err != nil {
					t.Fatal(err)
				}
			}
			tap.await(t, "both SYNs", func(seen []string) bool { return slices.Equal(seen, []string{text(&syn4), text(&syn6)}) })
		})
	}
}

func openTun(name string) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	return f, unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, request)
}

func TestInterfacesComeAndGo(t *testing.T) {
	for _, filter := range filters {
		t.Run(filter, func(t *testing.T) {
			client, server := pair(t)
			serve(t, server, ":80")
			tap := listenWith(t, server, filter, LiveConfig{Interfaces: []string{"eth0", "eth1"}})
			if diff := cmp.Diff([]string{"eth1 is not there; it will be read when it is"}, tap.Notes()); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
			var want [][]string
			for _, change := range []func(){
				func() {},
				func() { // one that was not there at first
					netns.Join(t, client, "wire1", server, "eth1")
					give(t, client, "wire1", "10.0.1.1/24")
					give(t, server, "eth1", "10.0.1.2/24")
				},
				func() { // the same again
					server.Run(t, "ip", "link", "del", "eth1")
					netns.Join(t, client, "wire1", server, "eth1")
					give(t, client, "wire1", "10.0.1.1/24")
					give(t, server, "eth1", "10.0.1.2/24")
				},
				func() { // down and up
					server.Run(t, "ip", "link", "set", "eth1", "down")
					server.Run(t, "ip", "link", "set", "eth1", "up")
				},
			} {
				change()
				dst := "10.0.0.2:80"
				if len(want) > 0 {
					dst = "10.0.1.2:80"
					tap.awaitReads(t, server, "eth0", "eth1")
					tap.awaitLocal(t, "10.0.1.2")
				}
				c := dial(t, client, dst)
				want = append(want, threeWay(local(c), remote(c)))
				tap.await(t, "the handshake", exactly(want...))
			}
			// A name that another interface bears is another interface.
			server.Run(t, "ip", "link", "set", "eth1", "down")
			server.Run(t, "ip", "link", "set", "eth1", "name", "eth2")
			tap.awaitReads(t, server, "eth0")
		})
	}
}

// awaitReads waits until exactly these interfaces are read, as they are now.
func (p *tap) awaitReads(t testing.TB, h *netns.Host, names ...string) {
	t.Helper()
	var indices []uint32
	for _, name := range names {
		var index uint32
		// "7: eth1@if3: <…"
		if _, err := fmt.Sscanf(h.Run(t, "ip", "-o", "link", "show", "dev", name), "%d:", &index); err != nil {
			t.Fatal(err)
		}
		indices = append(indices, index)
	}
	wait(t, func() bool {
		p.Live.mu.Lock()
		defer p.Live.mu.Unlock()
		var reads []uint32
		for _, l := range p.choice.links {
			reads = append(reads, l.index)
		}
		return slices.Equal(reads, indices)
	}, func() string { return fmt.Sprintf("reads %v, want %v", p.Interfaces(), names) })
}

// awaitLocal waits until what this host sends from an address is its own.
func (p *tap) awaitLocal(t testing.TB, addr string) {
	t.Helper()
	a := netip.MustParseAddr(addr).As16()
	wait(t, func() bool {
		p.Live.mu.Lock()
		defer p.Live.mu.Unlock()
		f, ok := p.filter.(*kernelFilter)
		return (*p.locals.Load())[a] && (!ok || f.hasLocals[a])
	}, func() string { return addr + " is not known to be local" })
}

// By default, what the virtual services and the default route are on is read,
// also after they have moved.
func TestDefaultInterfaces(t *testing.T) {
	client, server := host(t), host(t)
	for i := range 4 {
		netns.Join(t, client, fmt.Sprintf("wire%d", i), server, fmt.Sprintf("eth%d", i))
		give(t, server, fmt.Sprintf("eth%d", i), fmt.Sprintf("10.0.%d.2/24", i))
	}
	give(t, server, "eth1", "192.0.2.1/32")
	server.Run(t, "ip", "route", "add", "default", "nexthop", "via", "10.0.2.1", "nexthop", "via", "10.0.3.1")
	tap := listen(t, server, LiveConfig{Services: func() []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	}})
	if diff := cmp.Diff([]string{"eth1", "eth2", "eth3"}, tap.Interfaces()); diff != "" {
		t.Errorf("reads (-want +got):\n%s", diff)
	}
	server.Run(t, "ip", "address", "del", "192.0.2.1/32", "dev", "eth1")
	give(t, server, "eth0", "2001:db8::1/128")
	tap.awaitReads(t, server, "eth0", "eth2", "eth3")
	server.Run(t, "ip", "route", "del", "default")
	tap.awaitReads(t, server, "eth0")
}

// A burst of changes is one.
func TestChangesAreForgotten(t *testing.T) {
	h := netns.New(t)
	var r *rtnetlink
	var err error
	h.Do(t, func() { r, err = dialNetwork() })
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var batch strings.Builder
	for i := range 300 {
		fmt.Fprintf(&batch, "address add 10.1.%d.%d/32 dev lo\n", i/250, 1+i%250)
	}
	if _, err := h.Try(t, batch.String(), "ip", "-batch", "-"); err != nil {
		t.Fatal(err)
	}
	for _, burst := range []bool{true, false} {
		begun := time.Now()
		r.wait(t.Context(), 200*time.Millisecond)
		if took := time.Since(begun); took < 200*time.Millisecond != burst {
			t.Errorf("changes: %v; waited %v", burst, took)
		}
		r.drain()
	}
	n, err := r.read(true)
	if err != nil || len(n.addresses) < 300 {
		t.Errorf("%d addresses: %v", len(n.addresses), err)
	}
	begun := time.Now()
	for range 20 {
		if _, err := r.read(true); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("to look at a host with 300 addresses takes %v", time.Since(begun)/20)
}

func TestNothingToRead(t *testing.T) {
	h := netns.New(t)
	for _, test := range []struct {
		names []string
		want  string
	}{
		{[]string{"eth8", "eth9"}, "no interface is named eth8 or eth9 (ip link shows those that there are)"},
		{nil, "no interface has a virtual service's address or the default route: name one with -i, or take -i any"},
		{[]string{"any"}, "no interface is up"},
	} {
		if test.names != nil && test.names[0] == "any" {
			h.Run(t, "ip", "link", "set", "lo", "down")
		}
		var err error
		h.Do(t, func() { _, err = OpenLive(LiveConfig{Interfaces: test.names}) })
		if err == nil || err.Error() != test.want {
			t.Errorf("%v: %v; want %s", test.names, err, test.want)
		}
	}
}

package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// These tests need a kernel with IPVS: go run ./lab/cmd/lab -v ./ipvs

// A site is a director with IPVS and a client with a wire to it, which also
// stands for all the real servers.
type site struct {
	director, client *netns.Host
	sender           *netns.Sender
	wire             []byte // the Ethernet header of what the client sends, without the type
}

func newSite(t *testing.T) *site {
	t.Helper()
	if os.Getenv("LVSGUARD_LAB") != "1" {
		t.Skip("needs a kernel with IPVS: go run ./lab/cmd/lab ./ipvs")
	}
	s := &site{director: netns.New(t), client: netns.New(t)}
	netns.Join(t, s.director, "wire", s.client, "wire")
	for _, command := range []string{
		"ip link set wire address 02:00:00:00:00:01",
		"ip address add 10.9.0.1/16 dev wire",
		"ip address add 2001:db8:9::1/64 dev wire nodad",
		"ip address add 192.0.2.0/24 dev lo",
		"ip -6 address add 2001:db8::1/128 dev lo",
		"ip neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 dev wire",
		"ip neighbour add 10.9.0.3 lladdr 02:00:00:00:00:02 dev wire",
		"ip neighbour add 2001:db8:9::2 lladdr 02:00:00:00:00:02 dev wire",
		"ip route add default via 10.9.0.2",
		"ip -6 route add default via 2001:db8:9::2",
	} {
		s.director.Run(t, "/bin/sh", "-c", command)
	}
	s.client.Run(t, "ip", "link", "set", "wire", "address", "02:00:00:00:00:02")
	s.sender = s.client.Sender(t, "wire")
	s.wire = []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	return s
}

// ipvsadm gives rules to the director in the form of ipvsadm -S.
func (s *site) ipvsadm(t *testing.T, rules string) {
	t.Helper()
	if _, err := s.director.Try(t, rules, "ipvsadm", "-R"); err != nil {
		t.Fatal(err)
	}
}

// services reads the director with c.
func (s *site) services(t *testing.T, c *Client) []Service {
	t.Helper()
	var services []Service
	var err error
	s.director.Do(t, func() { services, err = c.Services(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	return services
}

func (s *site) census(t *testing.T, c *Client, cfg CensusConfig) Census {
	t.Helper()
	var census Census
	var err error
	s.director.Do(t, func() { census, err = c.Census(t.Context(), cfg) })
	if err != nil {
		t.Fatal(err)
	}
	return census
}

func open(t *testing.T) *Client {
	t.Helper()
	c, err := Open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const (
	flagSYN = 0x02
	flagACK = 0x10
)

// packet returns a frame from the client to a service. Its transport checksum
// is left out: IPVS does not look at it.
func (s *site) packet(protocol Protocol, from, to netip.AddrPort, tcpFlags byte) []byte {
	transport := binary.BigEndian.AppendUint16(nil, from.Port())
	transport = binary.BigEndian.AppendUint16(transport, to.Port())
	switch protocol {
	case TCP:
		transport = append(transport, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, tcpFlags, 0, 0, 0, 0, 0, 0)
	case UDP:
		transport = append(transport, 0, 12, 0, 0, 'p', 'i', 'n', 'g')
	case SCTP: // an INIT
		transport = append(transport, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 0)
	}
	frame := slices.Clone(s.wire)
	if to.Addr().Is6() {
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(transport)), byte(protocol), 64)
		frame = append(append(frame, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
		return append(frame, transport...)
	}
	frame = append(frame, 0x08, 0x00)
	ip := []byte{0x45, 0, 0, byte(20 + len(transport)), 0, 0, 0, 0, 64, byte(protocol), 0, 0}
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	return append(append(frame, ip...), transport...)
}

// everyKind are services of every kind in the words of ipvsadm -Sn.
const everyKind = `-A -t 192.0.2.1:80 -s wlc
-a -t 192.0.2.1:80 -r 10.9.0.2:80 -g -w 1
-a -t 192.0.2.1:80 -r 10.9.0.3:80 -g -w 0
-A -t 192.0.2.1:443 -s rr -p 300
-a -t 192.0.2.1:443 -r 10.9.0.2:443 -g -w 7
-A -t 192.0.2.2:0 -s rr -p 90
-a -t 192.0.2.2:0 -r 10.9.0.2:0 -i -w 1
-A -u 192.0.2.1:53 -s rr
-a -u 192.0.2.1:53 -r 10.9.0.2:5353 -m -w 1
-A -u 192.0.2.1:5060 -s rr -o
-a -u 192.0.2.1:5060 -r 10.9.0.2:5060 -m -w 1
-A --sctp-service 192.0.2.1:3868 -s rr
-a --sctp-service 192.0.2.1:3868 -r 10.9.0.2:3868 -g -w 1
-A -f 7 -s wlc
-a -f 7 -r 10.9.0.2:0 -g -w 3
-A -f 7 -6 -s wlc -p 60
-a -f 7 -6 -r [2001:db8:9::2]:0 -g -w 1
-A -t [2001:db8::1]:80 -s wlc
-a -t [2001:db8::1]:80 -r [2001:db8:9::2]:80 -g -w 1
-A -t 192.0.2.8:80 -s wlc
`

// The module goes and comes while a client is open. This test is the first, as
// namespaces of others may still hold the module.
func TestLabModuleUnloaded(t *testing.T) {
	s := newSite(t)
	c := open(t)
	s.ipvsadm(t, everyKind)
	if len(s.services(t, c)) == 0 {
		t.Fatal("no services")
	}
	s.director.Run(t, "ipvsadm", "-C")
	loaded := func() bool {
		_, err := os.Stat("/sys/module/ip_vs")
		return err == nil
	}
	for deadline := time.Now().Add(30 * time.Second); loaded(); {
		out, err := exec.Command("/bin/sh", "-c", "rmmod $(ls /sys/module/ip_vs/holders) ip_vs").CombinedOutput()
		if err != nil && time.Now().After(deadline) {
			t.Fatalf("unload ip_vs: %v\n%s", err, out)
		}
	}
	load := func() {
		for _, module := range []string{"ip_vs", "ip_vs_rr", "ip_vs_wlc"} {
			if out, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
				t.Fatalf("load %s: %v\n%s", module, err, out)
			}
		}
	}
	defer load()

	for range 2 {
		s.director.Do(t, func() {
			if got, err := c.Services(t.Context()); !errors.Is(err, ErrAbsent) {
				t.Errorf("Services = %v, %v, want %v", got, err, ErrAbsent)
			}
			if _, err := c.Census(t.Context(), CensusConfig{}); !errors.Is(err, ErrAbsent) {
				t.Errorf("Census: %v, want %v", err, ErrAbsent)
			}
			if _, err := c.Defence(); !errors.Is(err, ErrAbsent) {
				t.Errorf("Defence: %v, want %v", err, ErrAbsent)
			}
		})
	}
	if loaded() {
		t.Error("reading has loaded ip_vs")
	}

	load()
	s.ipvsadm(t, everyKind)
	if diff := cmp.Diff(normal(s.director.Run(t, "ipvsadm", "-Sn")), normal(asSaved(s.services(t, c)))); diff != "" {
		t.Errorf("loaded again (-theirs +ours):\n%s", diff)
	}
}

func TestLabServices(t *testing.T) {
	s := newSite(t)
	c := open(t)
	if got := s.services(t, c); len(got) != 0 {
		t.Errorf("services before there are any: %+v", got)
	}
	s.ipvsadm(t, everyKind)
	s.director.Run(t, "nft", "add table inet marks; add chain inet marks pre { type filter hook prerouting priority -150; }; "+
		"add rule inet marks pre ip daddr 192.0.2.7 meta mark set 7")

	addr := netip.MustParseAddrPort
	for n := range uint16(20) {
		from4 := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), 1024+n)
		from6 := addr(fmt.Sprintf("[2001:db8:c::%x]:%d", n+1, 1024+n))
		for _, frame := range [][]byte{
			s.packet(TCP, from4, addr("192.0.2.1:80"), flagSYN),
			s.packet(TCP, from4, addr("192.0.2.1:80"), flagACK),
			s.packet(TCP, from4, addr("192.0.2.1:443"), flagSYN),
			s.packet(TCP, from4, addr("192.0.2.2:8080"), flagSYN),
			s.packet(UDP, from4, addr("192.0.2.1:53"), 0),
			s.packet(UDP, from4, addr("192.0.2.1:5060"), 0),
			s.packet(TCP, from4, addr("192.0.2.7:25"), flagSYN),
			s.packet(TCP, from6, addr("[2001:db8::1]:80"), flagSYN),
		} {
			if err := s.sender.Send(frame); err != nil {
				t.Fatal(err)
			}
		}
	}

	var names []Key
	for _, svc := range s.services(t, c) {
		names = append(names, svc.Key)
	}
	census := s.census(t, c, CensusConfig{Services: names, KeepSources: 1024})
	k := keys(t, "192.0.2.1:80", "192.0.2.1:443", "192.0.2.2:*", "udp:192.0.2.1:53", "udp:192.0.2.1:5060", "sctp:192.0.2.1:3868", "[2001:db8::1]:80", "192.0.2.8:80")
	want := Census{
		Lines: 120, Templates: 40, Complete: true, Total: 160, TotalKnown: true,
		States: map[string]int{"ESTABLISHED": 20, "SYN_RECV": 80, "UDP": 20},
		Services: map[Key]map[string]int{
			k[0]: {"ESTABLISHED": 20}, k[1]: {"SYN_RECV": 20}, k[2]: {"SYN_RECV": 20}, k[3]: {"UDP": 20},
			k[4]: {}, k[5]: {}, k[6]: {"SYN_RECV": 20}, k[7]: {},
		},
		Other: map[string]int{"SYN_RECV": 20}, // those of the firewall mark
		Sources: []Source{
			{netip.MustParsePrefix("198.51.100.0/24"), 100, 100},
			{netip.MustParsePrefix("2001:db8:c::/64"), 20, 20},
		},
	}
	if diff := cmp.Diff(want, census, compareAddresses, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("census (-want +got):\n%s", diff)
	}

	// SCTP's first state lasts three seconds: wait until it is over, and for the
	// totals to be up to date.
	for n := range uint16(20) {
		if err := s.sender.Send(s.packet(SCTP, netip.AddrPortFrom(addr("198.51.100.1:0").Addr(), 1024+n), k[5].Addr, 0)); err != nil {
			t.Fatal(err)
		}
	}
	services := s.services(t, c)
	for deadline := time.Now().Add(20 * time.Second); ; services = s.services(t, c) {
		sctp := services[slices.IndexFunc(services, func(svc Service) bool { return svc.Key == k[5] })]
		if sctp.Stats.Connections == 20 && sctp.Connections() == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("SCTP's connections do not end: %+v", sctp)
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, tt := range []struct {
		args []string
		ours func([]Service) string
	}{
		{[]string{"-Sn"}, asSaved},
		{[]string{"-Ln", "--stats", "--exact"}, asStats},
		{[]string{"-Ln", "--persistent-conn"}, asConnections},
	} {
		theirs := s.director.Run(t, "ipvsadm", tt.args...)
		if diff := cmp.Diff(normal(theirs), normal(tt.ours(services))); diff != "" {
			t.Errorf("ipvsadm %v (-theirs +ours):\n%s", tt.args, diff)
		}
	}
	var unused []Key
	for _, svc := range services {
		if svc.Stats == (Stats{}) {
			unused = append(unused, svc.Key)
		}
	}
	if want := keys(t, "192.0.2.8:80", "fwmark6:7"); !slices.Equal(unused, want) {
		t.Errorf("no traffic on %v, want %v", unused, want)
	}

	before := services
	s.director.Run(t, "ipvsadm", "-C")
	if got := s.services(t, c); len(got) != 0 {
		t.Errorf("services after all were removed: %+v", got)
	}
	s.ipvsadm(t, everyKind)
	after := s.services(t, c)
	if _, ok := after[0].Stats.Rates(before[0].Stats, time.Second); ok || after[0].Key != before[0].Key {
		t.Errorf("%v was made again, and its rates are known", after[0].Key)
	}
}

// normal returns a listing of ipvsadm as sorted lines with single spaces, each
// real server behind its service.
func normal(listing string) []string {
	var lines []string
	service := ""
	for line := range strings.Lines(listing) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0, fields[0] == "IP", fields[0] == "Prot", len(fields) > 1 && fields[1] == "RemoteAddress:Port":
			continue
		case fields[0] == "->":
			fields = slices.Insert(fields, 0, service)
		default:
			service = strings.Join(fields[:2], " ")
			if len(fields) > 2 && fields[2] == "IPv6" {
				service += " IPv6"
			}
		}
		lines = append(lines, strings.Join(fields, " "))
	}
	slices.Sort(lines)
	return lines
}

func asSaved(services []Service) string {
	var b strings.Builder
	for _, s := range services {
		name := map[Protocol]string{TCP: "-t ", UDP: "-u ", SCTP: "--sctp-service "}[s.Key.Protocol] + s.Key.Addr.String()
		if s.Key.Mark != 0 {
			name = fmt.Sprint("-f ", s.Key.Mark)
			if s.Key.IPv6 {
				name += " -6"
			}
		}
		fmt.Fprintf(&b, "-A %s -s %s", name, s.Scheduler)
		if s.Persistent > 0 {
			fmt.Fprintf(&b, " -p %d", int(s.Persistent.Seconds()))
		}
		if s.OnePacket {
			b.WriteString(" -o")
		}
		b.WriteByte('\n')
		for _, rs := range s.RealServers {
			method := map[Method]string{NAT: "-m", DR: "-g", TUN: "-i"}[rs.Method]
			fmt.Fprintf(&b, "-a %s -r %v %s -w %d", name, rs.Addr, method, rs.Weight)
			if rs.Method == TUN {
				b.WriteString(" --tun-type ipip")
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func listed(services []Service, service func(Service) string, realServer func(RealServer) string) string {
	var b strings.Builder
	for _, s := range services {
		name := strings.ToUpper(s.Key.Protocol.String()) + " " + s.Key.Addr.String()
		if s.Key.Mark != 0 {
			name = fmt.Sprint("FWM ", s.Key.Mark)
			if s.Key.IPv6 {
				name += " IPv6"
			}
		}
		fmt.Fprintf(&b, "%s %s\n", name, service(s))
		for _, rs := range s.RealServers {
			fmt.Fprintf(&b, "-> %v %s\n", rs.Addr, realServer(rs))
		}
	}
	return b.String()
}

func asStats(services []Service) string {
	stats := func(s Stats) string {
		return fmt.Sprint(s.Connections, s.PacketsIn, s.PacketsOut, s.BytesIn, s.BytesOut)
	}
	return listed(services, func(s Service) string { return stats(s.Stats) }, func(rs RealServer) string { return stats(rs.Stats) })
}

func asConnections(services []Service) string {
	return listed(services,
		func(s Service) string {
			text := s.Scheduler
			if s.Persistent > 0 {
				text += fmt.Sprint(" persistent ", int(s.Persistent.Seconds()))
			}
			if s.OnePacket {
				text += " ops"
			}
			return text
		},
		func(rs RealServer) string {
			return fmt.Sprint(rs.Weight, rs.PersistConn, rs.ActiveConn, rs.InActConn)
		})
}

// An idle service keeps its real servers for a while; one that has moved or has
// connections is read again.
func TestLabIdleServices(t *testing.T) {
	s := newSite(t)
	c := open(t)
	s.ipvsadm(t, everyKind)
	first := s.services(t, c)
	second := s.services(t, c)
	for i := range first {
		if !second[i].RealServersAt.Equal(first[i].RealServersAt) {
			t.Errorf("%v is idle and was read again", first[i].Key)
		}
	}
	busy := keys(t, "192.0.2.1:80")[0]
	if err := s.sender.Send(s.packet(TCP, netip.MustParseAddrPort("198.51.100.1:1024"), busy.Addr, flagSYN)); err != nil {
		t.Fatal(err)
	}
	others := slices.DeleteFunc(slices.Clone(second), func(svc Service) bool { return svc.Key == busy })
	read := func(services []Service) (at time.Time) {
		for _, svc := range services {
			if svc.Key == busy {
				at = svc.RealServersAt
			}
		}
		return at
	}
	last, again := second, 0
	for deadline := time.Now().Add(10 * time.Second); again < 5; {
		if time.Now().After(deadline) {
			t.Fatalf("%v has a connection and was read again %d times", busy, again)
		}
		third := s.services(t, c)
		if read(third).After(read(last)) {
			again++
		}
		last = third
		time.Sleep(100 * time.Millisecond)
	}
	for _, svc := range others {
		if !slices.ContainsFunc(last, func(l Service) bool { return l.Key == svc.Key && l.RealServersAt.Equal(svc.RealServersAt) }) {
			t.Errorf("%v is idle and was read again", svc.Key)
		}
	}
}

// With estimation off the totals are said to be frozen, and connections are
// seen nevertheless.
func TestLabFrozen(t *testing.T) {
	s := newSite(t)
	c := open(t)
	s.ipvsadm(t, everyKind)
	s.director.Run(t, "sysctl", "-q", "-w", "net.ipv4.vs.run_estimation=0")
	s.services(t, c)
	to := netip.MustParseAddrPort("192.0.2.1:80")
	if err := s.sender.Send(s.packet(TCP, netip.MustParseAddrPort("198.51.100.1:1024"), to, flagSYN)); err != nil {
		t.Fatal(err)
	}
	for _, svc := range s.services(t, c) {
		if connected := svc.Key.Addr == to; !svc.Frozen || (svc.Connections() == 1) != connected {
			t.Errorf("%v: frozen %v, %d connections", svc.Key, svc.Frozen, svc.Connections())
		}
	}
}

func TestLabDefence(t *testing.T) {
	s := newSite(t)
	c := open(t)
	s.director.Run(t, "sysctl", "-q", "-w", "net.ipv4.vs.drop_entry=3")
	var d Defence
	var err error
	s.director.Do(t, func() { d, err = c.Defence() })
	if err != nil {
		t.Fatal(err)
	}
	for setting := range d.All() {
		if setting.Err != nil || setting.Meaning() == "" {
			t.Errorf("%s: %d, %q, %v", setting.Name, setting.Value, setting.Meaning(), setting.Err)
		}
	}
	if d.DropEntry.Value != 3 || d.DropPacket.Value != 0 || d.AmemThresh.Value != 1024 {
		t.Errorf("settings: %+v", d)
	}
}

func TestLabWithoutCapability(t *testing.T) {
	s := newSite(t)
	s.ipvsadm(t, everyKind)
	c := open(t)
	s.director.Do(t, func() { // on a thread that ends with it
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Error(err)
			return
		}
		services, err := c.Services(t.Context())
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("Services = %v, %v, want an error that names CAP_NET_ADMIN", services, err)
		}
		if _, err := c.Defence(); err != nil {
			t.Errorf("Defence: %v", err)
		}
	})
	if got := s.services(t, c); len(got) == 0 {
		t.Error("no services with the capability back")
	}
}

// usage returns the processor time of a process that has ended.
func usage(state *os.ProcessState) time.Duration { return state.UserTime() + state.SystemTime() }

// ownUsage returns the processor time of this process so far.
func ownUsage(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Reading 300 services with 1,000 real servers costs no more than one
// ipvsadm -Ln --stats, and next to nothing while they are idle.
func TestLabCostOfServices(t *testing.T) {
	s := newSite(t)
	var rules strings.Builder
	for n := range 300 {
		name := fmt.Sprintf("192.0.2.%d:%d", n%100+1, 8000+n/100)
		fmt.Fprintf(&rules, "-A -t %s -s wlc\n", name)
		for rs := range 3 + (n+2)/3 - (n+1)/3 {
			fmt.Fprintf(&rules, "-a -t %s -r 10.9.%d.%d:80 -g -w 1\n", name, rs, n%100+2)
		}
	}
	s.ipvsadm(t, rules.String())
	c := open(t)
	services := s.services(t, c)
	realServers := 0
	for _, svc := range services {
		realServers += len(svc.RealServers)
	}
	if len(services) != 300 || realServers != 1000 {
		t.Fatalf("%d services with %d real servers", len(services), realServers)
	}

	peer := func() (d time.Duration) {
		s.director.Do(t, func() {
			cmd := exec.Command("ipvsadm", "-Ln", "--stats")
			if err := cmd.Run(); err != nil {
				t.Error(err)
				return
			}
			d = usage(cmd.ProcessState)
		})
		return d
	}
	reading := func() (d time.Duration) {
		s.director.Do(t, func() {
			before := ownUsage(t)
			if _, err := c.Services(t.Context()); err != nil {
				t.Error(err)
			}
			d = ownUsage(t) - before
		})
		return d
	}
	// Peers take turns, and the least of each counts: what else the machine does
	// only adds to a time.
	const most = time.Duration(math.MaxInt64)
	ipvsadm, whole, fresh := most, most, most
	for range 7 {
		ipvsadm = min(ipvsadm, peer())
		c.known = nil
		whole = min(whole, reading())
		fresh = min(fresh, reading())
	}
	// Idle, each service's real servers are read again after 22 s on average.
	idle := fresh + whole/22
	t.Logf("ipvsadm -Ln --stats %v, whole reading %v, without real servers %v, so idle %v a second", ipvsadm, whole, fresh, idle)
	if whole > ipvsadm {
		t.Errorf("a whole reading takes %v, ipvsadm %v", whole, ipvsadm)
	}
	if idle > ipvsadm/10 {
		t.Errorf("idle, a second's reading takes %v, more than a tenth of ipvsadm's %v", idle, ipvsadm)
	}
}

// A whole census of 20,000 connections costs at most 1.1 times what cat does,
// in at most 16 MiB, and a sample has the same shares.
func TestLabCostOfCensus(t *testing.T) {
	if os.Getenv("LVSGUARD_CENSUS") != "" { // the process that is measured
		c := open(t)
		before := ownUsage(t)
		if _, err := c.Census(t.Context(), CensusConfig{}); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("census: %d ns\n", ownUsage(t)-before)
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.Write(status)
		return
	}
	s := newSite(t)
	s.ipvsadm(t, "-A -t 192.0.2.1:80 -s wlc\n-a -t 192.0.2.1:80 -r 10.9.0.2:80 -g -w 1\n")
	random := rand.New(rand.NewPCG(1, 2))
	const connections = 20_000
	seen := make(map[netip.AddrPort]bool)
	truth := make(map[string]int)
	var frames [][]byte
	to := netip.MustParseAddrPort("192.0.2.1:80")
	for len(seen) < connections {
		a := binary.BigEndian.AppendUint32(nil, 0xC6120000+random.Uint32N(1<<17))
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte(a)), uint16(1024+random.IntN(60000)))
		if seen[from] {
			continue
		}
		seen[from] = true
		frames = append(frames, s.packet(TCP, from, to, flagSYN))
		if random.IntN(4) == 0 {
			frames = append(frames, s.packet(TCP, from, to, flagACK))
			truth["ESTABLISHED"]++
		} else {
			truth["SYN_RECV"]++
		}
	}
	for batch := range slices.Chunk(frames, 64) {
		if err := s.sender.Send(batch...); err != nil {
			t.Fatal(err)
		}
	}
	// Half-open entries live for a minute, so the sample and its truth come first.
	c := open(t)
	total := s.services(t, c)[0].Connections()
	sample := s.census(t, c, CensusConfig{Sample: 2000, Total: total})
	whole := s.census(t, c, CensusConfig{})
	t.Logf("%d connections, %v; whole: %v; sample: %v", total, truth, whole.States, sample.States)
	if whole.Lines < connections*99/100 || !whole.Complete || sample.Lines != 2000 {
		t.Errorf("%d lines of %d, complete %v; sample of %d", whole.Lines, connections, whole.Complete, sample.Lines)
	}
	for state, n := range whole.States {
		about, ok := sample.Extrapolate(sample.States[state])
		if points := math.Abs(float64(about)/float64(total)-float64(n)/float64(whole.Lines)) * 100; !ok || points > 3 {
			t.Errorf("%s: %d of %d in the sample stand for %d, there are %d: %.1f points apart", state, sample.States[state], sample.Lines, about, n, points)
		}
	}

	// All are established from here on, so that none expires in between.
	for batch := range slices.Chunk(frames, 64) {
		for _, frame := range batch {
			frame[14+20+13] = flagACK
		}
		if err := s.sender.Send(batch...); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) (out string, d time.Duration) {
		s.director.Do(t, func() {
			cmd := exec.Command(name, args...)
			cmd.Env = append(os.Environ(), "LVSGUARD_CENSUS=whole")
			text, err := cmd.Output()
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, text)
				return
			}
			out, d = string(text), usage(cmd.ProcessState)
		})
		return out, d
	}
	const most = time.Duration(math.MaxInt64)
	leastCat, leastCensus := most, most
	for range 7 {
		_, cat := run("cat", "/proc/net/ip_vs_conn")
		out, process := run(os.Args[0], "-test.run=^TestLabCostOfCensus$")
		var census time.Duration
		var resident int
		for line := range strings.Lines(out) {
			fmt.Sscanf(line, "census: %d ns", &census)
			fmt.Sscanf(line, "VmHWM: %d kB", &resident)
		}
		t.Logf("cat %v, census %v; its process %v, %d kB", cat, census, process, resident)
		leastCat, leastCensus = min(leastCat, cat), min(leastCensus, census)
		if resident == 0 || resident > 16<<10 {
			t.Errorf("a census takes %d kB of memory", resident)
		}
	}
	ratio := float64(leastCensus) / float64(leastCat)
	t.Logf("cat %v, census %v: %.2f times", leastCat, leastCensus, ratio)
	if ratio > 1.1 {
		t.Errorf("a census takes %.2f times what cat takes", ratio)
	}
}

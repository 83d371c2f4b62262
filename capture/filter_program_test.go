package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// machine is a filter that no socket has, whose programs are run on single
// frames.
type machine struct {
	*kernelFilter
	t testing.TB
}

// loopback is the interface on which the kernel runs a program by itself.
const loopback = 1

func newMachine(t testing.TB, syns int) *machine {
	t.Helper()
	f, err := loadFilter(syns)
	var verifier *ebpf.VerifierError
	switch {
	case err == nil:
	case errors.As(err, &verifier):
		t.Fatalf("%+v", verifier)
	case errors.Is(err, unix.EPERM) && os.Getenv("LVSGUARD_PRIVILEGED") != "1":
		t.Skipf("%v (needs root)", err)
	default:
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	// The kernel gives the program the frame without its Ethernet header.
	if err := f.follow(map[uint32]uint32{loopback: linkNone}, nil); err != nil {
		t.Fatal(err)
	}
	return &machine{f, t}
}

// hand is how much of an Ethernet frame the filter hands up.
func (m *machine) hand(frame []byte) int {
	m.t.Helper()
	n, err := m.program.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		m.t.Fatal(err)
	}
	if n > 0 {
		n += ethernetHeader
	}
	return min(int(n), len(frame))
}

// steer is the worker of 1<<32 that an Ethernet frame goes to.
func (m *machine) steer(frame []byte) uint32 {
	m.t.Helper()
	n, err := m.steering.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

func (m *machine) tally() tally {
	m.t.Helper()
	t, err := m.count()
	if err != nil {
		m.t.Fatal(err)
	}
	return t
}

// frameOf makes an Ethernet frame of a segment. Where it is longer than 40 bytes, the
// rest is TCP options up to the longest header, then data.
func frameOf(s Segment) []byte {
	header := min(int(max(s.Length, 40))-20, 60) &^ 3
	segment := make([]byte, max(s.Length, 40)-20)
	binary.BigEndian.PutUint16(segment, s.SrcPort)
	binary.BigEndian.PutUint16(segment[2:], s.DstPort)
	binary.BigEndian.PutUint32(segment[4:], s.Seq)
	binary.BigEndian.PutUint32(segment[8:], s.Ack)
	segment[12], segment[13] = byte(header/4)<<4, byte(s.Flags)
	binary.BigEndian.PutUint16(segment[14:], s.Window)
	src, dst := netip.AddrFrom16(s.Src).Unmap(), netip.AddrFrom16(s.Dst).Unmap()
	if src.Is4() {
		p := ipv4(protoTCP, segment)
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
		return ethernet(etherIPv4, p)
	}
	p := ipv6(protoTCP, segment)
	copy(p[8:], s.Src[:])
	copy(p[24:], s.Dst[:])
	return ethernet(etherIPv6, p)
}

// endpoints is a segment from one to the other.
func endpoints(from, to string) Segment {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	return Segment{
		Src: src.Addr().As16(), SrcPort: src.Port(), Dst: dst.Addr().As16(), DstPort: dst.Port(),
		Window: 1000, Length: 60,
	}
}

// with is s with other flags and numbers.
func with(s Segment, flags Flags, seq, ack uint32) Segment {
	s.Flags, s.Seq, s.Ack = flags, seq, ack
	return s
}

func signed(s Segment) Segment {
	s.Window, s.Length = 0, 40
	return s
}

// What a connection consists of, with other sequence numbers for its client and
// server.
const (
	clientISN = 0xfffffff0 // so that it wraps
	serverISN = 7_000_000
)

// past is n past a sequence number.
func past(seq, n uint32) uint32 { return seq + n }

func TestFilterRemembers(t *testing.T) {
	type step struct {
		what   string
		s      Segment
		handed bool
	}
	for _, addr := range [][2]string{
		{"198.51.100.7:40000", "192.0.2.1:80"},
		{"[2001:db8::7]:40000", "[2001:db8:1::1]:80"},
		{"[::1]:40000", "[::2]:80"},
		{"0.0.0.0:0", "255.255.255.255:65535"},
	} {
		client, server := endpoints(addr[0], addr[1]), endpoints(addr[1], addr[0])
		syn := with(client, SYN, clientISN, 0)
		synack := with(server, SYN|ACK, serverISN, clientISN+1)
		ack := with(client, ACK, clientISN+1, serverISN+1)
		data := with(server, ACK|PSH, serverISN+1, clientISN+1)
		for _, test := range []struct {
			name  string
			steps []step
		}{
			{"a whole connection", []step{
				{"SYN", syn, true},
				{"SYN/ACK", synack, true},
				{"ACK", ack, true},
				{"ACK again", ack, false},
				{"data from the client", with(client, ACK|PSH, clientISN+1, serverISN+1), false},
				{"data from the server", data, false},
				{"FIN", with(client, FIN|ACK, clientISN+1, serverISN+1), false},
				{"RST", with(client, RST, clientISN+1, 0), false},
			}},
			{"the client's half", []step{
				{"SYN", syn, true},
				{"ACK", ack, true},
				{"ACK again", ack, false},
			}},
			{"nothing is known", []step{
				{"SYN/ACK", synack, true},
				{"ACK", ack, false},
				{"RST", with(server, RST|ACK, 0, clientISN+1), false},
				{"no flags", with(client, 0, 1, 1), false},
				{"FIN alone", with(client, FIN, 1, 1), false},
			}},
			{"ECE and CWR ask for congestion notification", []step{
				{"SYN", with(client, SYN|ECE|CWR, clientISN, 0), true},
				{"SYN/ACK", with(server, SYN|ACK|ECE, serverISN, clientISN+1), true},
				{"ACK", ack, true},
			}},
			{"FIN completes it too", []step{
				{"SYN", syn, true},
				{"SYN/ACK", synack, true},
				{"FIN", with(client, FIN|ACK, past(clientISN, 100), serverISN+1), true},
				{"FIN again", with(client, FIN|ACK, past(clientISN, 100), serverISN+1), false},
			}},
			{"the server refuses", []step{
				{"SYN", syn, true},
				{"RST", with(server, RST|ACK, 0, clientISN+1), true},
			}},
			{"the client gives up", []step{
				{"SYN", syn, true},
				{"SYN/ACK", synack, true},
				{"RST", with(client, RST, clientISN+1, 0), true},
			}},
			{"how far the client's first segment may be", []step{
				{"SYN", syn, true},
				{"at the ISN", with(client, ACK, clientISN, serverISN+1), false},
				{"before it", with(client, ACK, clientISN-1, serverISN+1), false},
				{"too far", with(client, ACK, past(clientISN, 65537), serverISN+1), false},
				{"just near enough", with(client, ACK, past(clientISN, 65536), serverISN+1), true},
				{"it is done", ack, false},
			}},
			{"an ACK that does not complete it is not the last to pass", []step{
				{"SYN", syn, true},
				{"SYN/ACK", synack, true},
				{"of the server's ISN", with(client, ACK, clientISN+1, serverISN), true},
				{"beyond", with(client, ACK, clientISN+1, serverISN+65537), true},
				{"the right one", with(client, ACK, clientISN+1, serverISN+65536), true},
				{"it is done", ack, false},
			}},
			{"a SYN/ACK that belongs to something else", []step{
				{"SYN", syn, true},
				{"of the client's ISN", with(server, SYN|ACK, 99, clientISN), true},
				{"beyond", with(server, SYN|ACK, 99, past(clientISN, 65537)), true},
				{"ACK", ack, true},
				{"it is done", ack, false},
			}},
			{"the server's ISN is 0", []step{
				{"SYN", syn, true},
				{"SYN/ACK", with(server, SYN|ACK, 0, clientISN+1), true},
				{"ACK", with(client, ACK, clientISN+1, 1), true},
				{"not sure", with(client, ACK, clientISN+1, 1), true},
				{"more", with(client, ACK, clientISN+1, 2), true},
				{"it is done", with(client, ACK, clientISN+1, 2), false},
			}},
			{"a new SYN begins anew", []step{
				{"SYN", syn, true},
				{"SYN/ACK", synack, true},
				{"another ISN", with(client, SYN, 5_000, 0), true},
				{"the old ACK", ack, false},
				{"the new ACK", with(client, ACK, 5_001, 1), true},
				{"it is done", with(client, ACK, 5_001, 1), false},
				{"and again", syn, true},
				{"its ACK", ack, true},
			}},
			{"flags that make no sense", []step{
				{"SYN and FIN", with(client, SYN|FIN, 1, 1), true},
				{"SYN and FIN are no SYN", with(client, ACK, 2, 1), false},
				{"SYN and RST", with(client, SYN|RST, 1, 1), false},
				{"all", with(client, 0xff, 1, 1), false},
			}},
			{"a signature's SYN is remembered as well", []step{
				{"SYN", signed(syn), true},
				{"SYN/ACK", synack, true},
				{"ACK", ack, true},
				{"it is done", ack, false},
			}},
			{"an honest SYN after a signature's", []step{
				{"SYN", signed(syn), true},
				{"honest", syn, true},
				{"ACK", ack, true},
				{"it is done", ack, false},
			}},
			{"other connections", []step{
				{"SYN", syn, true},
				{"the server's side", with(server, ACK, clientISN+1, 1), false},
				{"another port", with(func(s Segment) Segment { s.SrcPort++; return s }(client), ACK, clientISN+1, 1), false},
				{"another server port", with(func(s Segment) Segment { s.DstPort--; return s }(client), ACK, clientISN+1, 1), false},
				{"another client", with(func(s Segment) Segment { s.Src[15] ^= 0x80; return s }(client), ACK, clientISN+1, 1), false},
				{"another server", with(func(s Segment) Segment { s.Dst[15] ^= 1; return s }(client), ACK, clientISN+1, 1), false},
				{"its own", ack, true},
			}},
		} {
			t.Run(addr[1]+", "+test.name, func(t *testing.T) {
				m := newMachine(t, 1000)
				handed := uint64(0)
				for _, step := range test.steps {
					frame := frameOf(step.s)
					n := m.hand(frame)
					if n > 0 != step.handed {
						t.Errorf("%s: handed %d bytes; want it handed: %v", step.what, n, step.handed)
					}
					if n == 0 {
						continue
					}
					handed++
					var got, want Segment
					if kind := Decode(LinkEthernet, frame[:n], len(frame), &got); kind != TCP {
						t.Errorf("%s: of %d bytes that were handed up: %v", step.what, n, kind)
					}
					Decode(LinkEthernet, frame, len(frame), &want)
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%s: handed up (-want +got):\n%s", step.what, diff)
					}
				}
				if got := m.tally(); *got.packets != uint64(len(test.steps)) {
					t.Errorf("%d packets counted, want %d", *got.packets, len(test.steps))
				}
			})
		}
	}
}

// What the decoder makes a segment of that a handshake needs comes up, and
// decodes to the same.
func TestFilterAgreesWithDecoder(t *testing.T) {
	m := newMachine(t, 1000)
	frames := 0
	for _, f := range goodFrames {
		if f.link != LinkEthernet {
			continue
		}
		if f.want.Flags&SYN == 0 && !f.want.Unreachable {
			continue
		}
		frames++
		t.Run(f.name, func(t *testing.T) {
			n := m.hand(f.frame)
			if n == 0 {
				t.Fatal("not handed up")
			}
			var got Segment
			if kind := Decode(LinkEthernet, f.frame[:n], len(f.frame), &got); kind != TCP {
				t.Fatalf("the first %d bytes of %d decode to %v", n, len(f.frame), kind)
			}
			if diff := cmp.Diff(f.want, got); diff != "" {
				t.Errorf("decoded of what was handed up (-want +got):\n%s", diff)
			}
		})
	}
	if frames < 20 {
		t.Errorf("only %d frames", frames)
	}
}

// Filter and decoder agree on frames of which a byte is another, or which end
// early: what the decoder takes for nonsense is handed up to be counted, as is
// what a handshake needs; fragments are counted; and of what is handed up there
// is enough to decode it as the whole frame would be. Of TCP headers only those
// with flags of a handshake need come up, whatever else is wrong with them.
func TestFilterAgreesWithDecoderOnNonsense(t *testing.T) {
	m := newMachine(t, 1000)
	agree := func(frame []byte) error {
		var want, got Segment
		kind := Decode(LinkEthernet, frame, len(frame), &want)
		before := m.tally().fragments
		n := m.hand(frame)
		counted := m.tally().fragments > before
		switch {
		case counted != (kind == Fragment && n == 0):
			return fmt.Errorf("%v: handed %d bytes, counted as a fragment: %v", kind, n, counted)
		case n == 0 && (kind > Fragment && kind != BadTCP || kind == TCP && (want.IsSYN() || want.Unreachable)):
			return fmt.Errorf("%v: not handed up", kind)
		case n == 0:
			return nil
		}
		if k := Decode(LinkEthernet, frame[:n], len(frame), &got); k != kind {
			return fmt.Errorf("handed %d bytes, which decode to %v, and the whole to %v", n, k, kind)
		}
		if kind == TCP && got != want {
			return fmt.Errorf("handed %d bytes, which decode to %+v, and the whole to %+v", n, got, want)
		}
		return nil
	}
	for _, f := range goodFrames {
		if f.link != LinkEthernet {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			for at := ethernetHeader; at < len(f.frame); at++ {
				for _, to := range []byte{0, 1, 0x45, 0xff, ^f.frame[at], f.frame[at] + 1, f.frame[at] - 1} {
					if err := agree(changed(f.frame, at, to)); err != nil {
						t.Errorf("byte %d from %#x to %#x: %v", at, f.frame[at], to, err)
					}
				}
				if at < shortest(f.frame) {
					continue
				}
				if err := agree(f.frame[:at:at]); err != nil {
					t.Errorf("%d bytes of it: %v", at, err)
				}
			}
		})
	}
}

// shortest is how short a frame may be that the kernel runs a program on by
// itself.
func shortest(frame []byte) int {
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		return ethernetHeader + ipv4Header
	case etherIPv6:
		return ethernetHeader + ipv6Header
	}
	return ethernetHeader + 1
}

func TestFilterArmed(t *testing.T) {
	m := newMachine(t, 1000)
	const exact, any, calm = "192.0.2.1:80", "[2001:db8::1]:0", "192.0.2.1:81"
	services := []netip.AddrPort{netip.MustParseAddrPort(exact), netip.MustParseAddrPort(any)}
	flood := func(from, to string) []byte { return frameOf(signed(with(endpoints(from, to), SYN, 1, 0))) }
	run := func(what string, frame []byte, handed bool) {
		t.Helper()
		if n := m.hand(frame); n > 0 != handed {
			t.Errorf("%s: handed %d bytes; want it handed: %v", what, n, handed)
		}
	}
	share := 0.0
	arm := func(services []netip.AddrPort) {
		t.Helper()
		if err := m.arm(services, share); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want map[netip.AddrPort]uint64) {
		t.Helper()
		if diff := cmp.Diff(want, m.tally().screened, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("screened (-want +got):\n%s", diff)
		}
	}

	arm(services)
	check(map[netip.AddrPort]uint64{services[0]: 0, services[1]: 0})
	run("armed", flood("198.51.100.7:1", exact), false)
	run("its ACK", frameOf(with(endpoints("198.51.100.7:1", exact), ACK, 2, 1)), false)
	run("armed again", flood("198.51.100.7:2", exact), false)
	run("every port", flood("[2001:db8::7]:1", "[2001:db8::1]:443"), false)
	run("another port", flood("198.51.100.7:1", calm), true)
	run("another address", flood("198.51.100.7:1", "192.0.2.2:80"), true)
	run("another IPv6 address", flood("[2001:db8::7]:1", "[2001:db8::2]:443"), true)
	run("no signature: a window", frameOf(with(endpoints("198.51.100.7:3", exact), SYN, 1, 0)), true)
	short := signed(with(endpoints("198.51.100.7:4", exact), SYN, 1, 0))
	short.Length = 44
	run("no signature: an option", frameOf(short), true)
	run("no signature: data", frameOf(func(s Segment) Segment { s.Length = 41; return s }(short)), true)
	run("a signature, padded", append(flood("198.51.100.7:5", exact), make([]byte, 6)...), false)
	run("SYN/ACK", frameOf(signed(with(endpoints("198.51.100.7:6", exact), SYN|ACK, 1, 0))), true)
	check(map[netip.AddrPort]uint64{services[0]: 3, services[1]: 1})

	arm(services[:1])
	run("no longer armed", flood("[2001:db8::7]:1", "[2001:db8::1]:443"), true)
	check(map[netip.AddrPort]uint64{services[0]: 3, services[1]: 1})
	arm(services)
	run("armed anew", flood("[2001:db8::7]:1", "[2001:db8::1]:443"), false)
	check(map[netip.AddrPort]uint64{services[0]: 3, services[1]: 2})

	// What is sampled is handed up, is not counted, and is not remembered.
	share = 1
	arm(services)
	run("all are sampled", flood("198.51.100.7:8", exact), true)
	run("its ACK", frameOf(with(endpoints("198.51.100.7:8", exact), ACK, 2, 1)), false)
	run("every port", flood("[2001:db8::7]:8", "[2001:db8::1]:443"), true)
	check(map[netip.AddrPort]uint64{services[0]: 3, services[1]: 2})
	share = 0.25
	arm(services)
	sampled := 0
	for i := range 4000 {
		if m.hand(flood(fmt.Sprintf("198.51.100.7:%d", i), exact)) > 0 {
			sampled++
		}
	}
	if sampled < 850 || sampled > 1150 { // 1000, and five times the deviation
		t.Errorf("a quarter of 4000 is sampled: %d", sampled)
	}
	share = 0
	arm(services)
	run("none is sampled", flood("198.51.100.7:9", exact), false)
	check(map[netip.AddrPort]uint64{services[0]: uint64(3 + 4000 - sampled + 1), services[1]: 2})
}

// SYNs with the signature push out each other and nothing else.
func TestFilterKeepsTheHonestInAFlood(t *testing.T) {
	m := newMachine(t, 1000) // 32 sets or so
	var honest []Segment
	for i := range 100 {
		s := endpoints(fmt.Sprintf("198.51.100.7:%d", 1000+i), "192.0.2.1:80")
		honest = append(honest, s)
		m.hand(frameOf(with(s, SYN, 1, 0)))
	}
	for range 20_000 {
		s := endpoints("10.0.0.1:1", "192.0.2.1:80")
		binary.BigEndian.PutUint32(s.Src[12:], rand.Uint32())
		m.hand(frameOf(signed(with(s, SYN, 1, 0))))
	}
	lost := 0
	for _, s := range honest {
		if m.hand(frameOf(with(s, ACK, 2, 1))) == 0 {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d connections forgotten in a flood", lost, len(honest))
	}
}

// The oldest go first, and the newest are there.
func TestFilterForgetsTheOldest(t *testing.T) {
	m := newMachine(t, 1) // two sets
	syn := func(i int) Segment { return endpoints(fmt.Sprintf("198.51.100.7:%d", 1000+i), "192.0.2.1:80") }
	const all = 1000
	for i := range all {
		m.hand(frameOf(with(syn(i), SYN, 1, 0)))
	}
	kept := 0
	for i := range all {
		if m.hand(frameOf(with(syn(i), ACK, 2, 1))) == 0 {
			continue
		}
		if kept++; i < all-4*2*setCalm {
			t.Errorf("SYN %d of %d is still remembered", i, all)
		}
	}
	if kept != 2*setCalm {
		t.Errorf("%d SYNs are remembered, want %d", kept, 2*setCalm)
	}
	for i := all - setCalm/2; i < all; i++ {
		m.hand(frameOf(with(syn(i), SYN, 1, 0)))
	}
	for i := all - setCalm/2; i < all; i++ {
		if m.hand(frameOf(with(syn(i), ACK, 2, 1))) == 0 {
			t.Errorf("SYN %d of %d is forgotten", i, all)
		}
	}
}

func TestSteering(t *testing.T) {
	m := newMachine(t, 1000)
	seen := make(map[uint32]bool)
	for _, host := range []string{"198.51.100.7", "198.51.100.8", "[2001:db8::7]", "[::7]"} {
		for port := range 50 {
			from, to := fmt.Sprintf("%s:%d", host, 1000+port), "192.0.2.1:80"
			if host[0] == '[' {
				to = "[2001:db8:1::1]:80"
			}
			client, server := with(endpoints(from, to), SYN, 1, 0), with(endpoints(to, from), SYN|ACK, 1, 2)
			there, back := frameOf(client), frameOf(server)
			quoted := there[ethernetHeader:]
			wrong := ethernet(etherIPv4, ipv4(protoICMP, icmp(icmpUnreachable, 1, quoted[:28])))
			if host[0] == '[' {
				wrong = ethernet(etherIPv6, ipv6(protoICMPv6, icmp(icmpv6Unreachable, 1, quoted[:48])))
			}
			worker := m.steer(there)
			seen[worker] = true
			for what, frame := range map[string][]byte{
				"the other way":   back,
				"an ICMP error":   wrong,
				"with a VLAN tag": ethernet(etherVLAN, concat(be16(5), there[12:])),
				"with two":        ethernet(etherQinQ, concat(be16(5), be16(etherVLAN), be16(6), there[12:])),
			} {
				if got := m.steer(frame); got != worker {
					t.Errorf("%s > %s, %s: to worker %d, the SYN to %d", from, to, what, got, worker)
				}
			}
		}
	}
	if len(seen) != 200 {
		t.Errorf("200 connections have %d hashes", len(seen))
	}
	extended := ipv6(protoHopByHop, concat(extension(protoTCP, 1), syn))
	if got, want := m.steer(ethernet(etherIPv6, extended)), m.steer(ethernet(etherIPv6, synIPv6)); got != want {
		t.Errorf("with an extension header: to worker %d, without to %d", got, want)
	}
}

package capture

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the frames of the tests are made of.

// concat puts parts one after the other.
func concat(parts ...[]byte) []byte { return slices.Concat(parts...) }

// changed is b with that byte set.
func changed(b []byte, at int, to byte) []byte {
	b = slices.Clone(b)
	b[at] = to
	return b
}

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func ethernet(proto int, payload []byte) []byte {
	return concat([]byte{0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1}, be16(proto), payload)
}

// ipv4 is a packet with the identification 0x1234 from 198.51.100.7 to 192.0.2.1.
func ipv4(proto byte, payload []byte, options ...byte) []byte {
	header := 20 + len(options)
	return concat([]byte{0x40 | byte(header/4), 0}, be16(header+len(payload)),
		[]byte{0x12, 0x34, 0x40, 0, 64, proto, 0, 0, 198, 51, 100, 7, 192, 0, 2, 1}, options, payload)
}

// ipv6 is a packet from 2001:db8::7 to 2001:db8:1::1.
func ipv6(next byte, payload []byte) []byte {
	return concat([]byte{0x60, 0, 0, 0}, be16(len(payload)), []byte{next, 64},
		[]byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7},
		[]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, payload)
}

// extension is an extension header of 8 times units bytes.
func extension(next byte, units int) []byte {
	return append([]byte{next, byte(units - 1)}, make([]byte, units*8-2)...)
}

// fragment is a fragment header with that offset in bytes.
func fragment(next byte, offset int) []byte {
	return concat([]byte{next, 0}, be16(offset|1), []byte{0, 0, 0, 9})
}

// authentication is an authentication header of 24 bytes.
func authentication(next byte) []byte { return append([]byte{next, 4}, make([]byte, 22)...) }

// tcp is a segment from port 40000 to 80. Options are padded to words.
func tcp(flags Flags, options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	return concat([]byte{0x9c, 0x40, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, byte(20+len(options)) / 4 << 4, byte(flags), 0xfa, 0xf0, 0, 0, 0, 0}, options)
}

func icmp(kind, code byte, payload []byte) []byte {
	return concat([]byte{kind, code, 0, 0, 0, 0, 0, 0}, payload)
}

func pppoe(payload []byte) []byte {
	return concat([]byte{0x11, 0, 0, 9}, be16(len(payload)), payload)
}

func sll(packetType int, proto int, payload []byte) []byte {
	return concat(be16(packetType), []byte{0, 1, 0, 6, 0x52, 0x54, 0, 0, 0, 1, 0, 0}, be16(proto), payload)
}

func sll2(device, packetType int, proto int, payload []byte) []byte {
	return concat(be16(proto), []byte{0, 0, 0, 0}, be16(device),
		[]byte{0, 1, byte(packetType), 6, 0x52, 0x54, 0, 0, 0, 1, 0, 0}, payload)
}

// The segments that these decode to.

func segment4(flags Flags, length int) Segment {
	s := Segment{SrcPort: 40000, DstPort: 80, Seq: 0x01020304, Ack: 0x05060708, Window: 0xfaf0, Flags: flags, Length: uint16(length)}
	s.Src = [16]byte{10: 0xff, 0xff, 198, 51, 100, 7}
	s.Dst = [16]byte{10: 0xff, 0xff, 192, 0, 2, 1}
	return s
}

func segment6(flags Flags, length int) Segment {
	s := segment4(flags, length)
	s.Src = [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 7}
	s.Dst = [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 15: 1}
	return s
}

// unreachable is a segment as it is known from a quotation.
func unreachable(s Segment) Segment {
	s.Ack, s.Window, s.Length, s.Unreachable = 0, 0, 0, true
	return s
}

var (
	mss      = []byte{2, 4, 5, 0xb4}
	syn      = tcp(SYN, mss...)
	synIPv4  = ipv4(protoTCP, syn)
	synIPv6  = ipv6(protoTCP, syn)
	syn4     = segment4(SYN, 44)
	syn6     = segment6(SYN, 44)
	synChain = segment6(SYN, 0)
)

// ports is what RFC 792 wants quoted of a SYN.
var ports = syn[:8]

// goodFrames are those that decode to a segment.
var goodFrames = []struct {
	name  string
	link  LinkType
	frame []byte
	want  Segment
}{
	{"Ethernet, IPv4", LinkEthernet, ethernet(0x0800, synIPv4), syn4},
	{"Ethernet, IPv6", LinkEthernet, ethernet(0x86dd, synIPv6), syn6},
	{"all flags", LinkEthernet, ethernet(0x0800, ipv4(protoTCP, tcp(0xff))), segment4(0xff, 40)},
	{"no flags", LinkEthernet, ethernet(0x0800, ipv4(protoTCP, tcp(0))), segment4(0, 40)},
	{"fast open: a SYN with data", LinkEthernet, ethernet(0x0800, ipv4(protoTCP, concat(tcp(SYN, mss...), make([]byte, 100)))), segment4(SYN, 144)},
	{"the longest TCP header", LinkEthernet, ethernet(0x0800, ipv4(protoTCP, tcp(SYN, make([]byte, 40)...))), segment4(SYN, 80)},
	{"IPv4 with options", LinkEthernet, ethernet(0x0800, ipv4(protoTCP, syn, 7, 4, 0, 0)), segment4(SYN, 48)},
	{"the longest IPv4 header", LinkEthernet, ethernet(0x0800, ipv4(protoTCP, syn, make([]byte, 40)...)), segment4(SYN, 84)},
	{"the first of IPv4 fragments", LinkEthernet, ethernet(0x0800, changed(synIPv4, 6, 0x20)), syn4},
	{"IPv4 with an authentication header", LinkEthernet, ethernet(0x0800, ipv4(protoAH, concat(authentication(protoTCP), syn))), segment4(SYN, 68)},
	{"padding of Ethernet", LinkEthernet, ethernet(0x0800, concat(ipv4(protoTCP, tcp(SYN)), make([]byte, 6))), segment4(SYN, 40)},
	{"padding of Ethernet with IPv6", LinkEthernet, ethernet(0x86dd, concat(ipv6(protoTCP, tcp(SYN)), make([]byte, 4))), segment6(SYN, 40)},
	{"IPv4 total length 0", LinkEthernet, ethernet(0x0800, changed(synIPv4, 3, 0)), syn4},
	{"IPv6 payload length 0", LinkEthernet, ethernet(0x86dd, changed(synIPv6, 5, 0)), syn6},
	{"IPv4 total length beyond the frame", LinkEthernet, ethernet(0x0800, changed(synIPv4, 2, 5)), segment4(SYN, 5<<8+44)},
	{"IPv6 payload length beyond the frame", LinkEthernet, ethernet(0x86dd, changed(synIPv6, 4, 5)), segment6(SYN, 5<<8+44)},
	{"IPv6 with the longest payload", LinkEthernet, ethernet(0x86dd, changed(changed(synIPv6, 4, 0xff), 5, 0xff)), segment6(SYN, math.MaxUint16)},

	{"a VLAN", LinkEthernet, ethernet(0x8100, concat([]byte{0, 7, 8, 0}, synIPv4)), syn4},
	{"a priority tag and IPv6", LinkEthernet, ethernet(0x8100, concat([]byte{0xe0, 0, 0x86, 0xdd}, synIPv6)), syn6},
	{"QinQ", LinkEthernet, ethernet(0x88a8, concat([]byte{0, 1, 0x81, 0, 0, 2, 8, 0}, synIPv4)), syn4},
	{"QinQ before its standard", LinkEthernet, ethernet(0x9100, concat([]byte{0, 1, 0x81, 0, 0, 2, 8, 0}, synIPv4)), syn4},
	{"four tags", LinkEthernet, ethernet(0x8100, concat([]byte{0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 0x81, 0, 0, 4, 8, 0}, synIPv4)), syn4},
	{"PPPoE", LinkEthernet, ethernet(0x8864, pppoe(concat([]byte{0, 0x21}, synIPv4))), syn4},
	{"PPPoE with IPv6 in a VLAN", LinkEthernet, ethernet(0x8100, concat([]byte{0, 7, 0x88, 0x64}, pppoe(concat([]byte{0, 0x57}, synIPv6)))), syn6},
	{"MPLS", LinkEthernet, ethernet(0x8847, concat([]byte{0, 1, 1, 64}, synIPv4)), syn4},
	{"two labels and IPv6", LinkEthernet, ethernet(0x8848, concat([]byte{0, 1, 0, 64, 0, 2, 1, 64}, synIPv6)), syn6},

	{"raw IPv4", LinkRaw, synIPv4, syn4},
	{"raw IPv6", LinkRaw, synIPv6, syn6},
	{"raw IP of link type 12", LinkRaw12, synIPv4, syn4},
	{"raw IP of link type 14", LinkRaw14, synIPv6, syn6},
	{"link type IPv4", LinkIPv4, synIPv4, syn4},
	{"link type IPv6", LinkIPv6, synIPv6, syn6},
	{"PPP", LinkPPP, concat([]byte{0xff, 3, 0, 0x21}, synIPv4), syn4},
	{"PPP without address and control", LinkPPP, concat([]byte{0, 0x57}, synIPv6), syn6},
	{"PPP with a short protocol", LinkPPPHDLC, concat([]byte{0xff, 3, 0x21}, synIPv4), syn4},
	{"PPP with MPLS", LinkPPP, concat([]byte{0xff, 3, 2, 0x81, 0, 1, 1, 64}, synIPv4), syn4},
	{"Cisco HDLC", LinkHDLC, concat([]byte{0x0f, 0, 8, 0}, synIPv4), syn4},
	{"Cisco HDLC with IPv6", LinkHDLC, concat([]byte{0x8f, 0, 0x86, 0xdd}, synIPv6), syn6},
	{"cooked", LinkSLL, sll(0, 0x0800, synIPv4), syn4},
	{"cooked, a VLAN", LinkSLL, sll(0, 0x8100, concat([]byte{0, 7, 0x86, 0xdd}, synIPv6)), syn6},
	{"cooked v2", LinkSLL2, sll2(3, 4, 0x86dd, synIPv6), syn6},
	{"BSD null, little endian", LinkNull, concat([]byte{2, 0, 0, 0}, synIPv4), syn4},
	{"BSD null, big endian", LinkNull, concat([]byte{0, 0, 0, 2}, synIPv4), syn4},
	{"BSD null, IPv6 of Linux", LinkNull, concat([]byte{10, 0, 0, 0}, synIPv6), syn6},
	{"BSD null, IPv6 of Windows", LinkNull, concat([]byte{23, 0, 0, 0}, synIPv6), syn6},
	{"BSD null, IPv6 of OpenBSD", LinkNull, concat([]byte{24, 0, 0, 0}, synIPv6), syn6},
	{"BSD null, IPv6 of FreeBSD", LinkNull, concat([]byte{28, 0, 0, 0}, synIPv6), syn6},
	{"BSD null, IPv6 of macOS", LinkNull, concat([]byte{30, 0, 0, 0}, synIPv6), syn6},
	{"BSD null, an ethertype", LinkNull, concat([]byte{0, 0, 8, 0}, synIPv4), syn4},
	{"BSD loop", LinkLoop, concat([]byte{0, 0, 0, 2}, synIPv4), syn4},
	{"BSD loop, little endian", LinkLoop, concat([]byte{24, 0, 0, 0}, synIPv6), syn6},

	{"hop-by-hop options", LinkIPv6, ipv6(protoHopByHop, concat(extension(protoTCP, 1), syn)), synChain},
	{"destination options", LinkIPv6, ipv6(protoDestOptions, concat(extension(protoTCP, 2), syn)), synChain},
	{"a routing header", LinkIPv6, ipv6(protoRouting, concat(extension(protoTCP, 3), syn)), synChain},
	{"a mobility header", LinkIPv6, ipv6(protoMobility, concat(extension(protoTCP, 1), syn)), synChain},
	{"an authentication header", LinkIPv6, ipv6(protoAH, concat(authentication(protoTCP), syn)), synChain},
	{"the first of IPv6 fragments", LinkIPv6, ipv6(protoFragment, concat(fragment(protoTCP, 0), syn)), synChain},
	{"the longest extension header", LinkIPv6, ipv6(protoDestOptions, concat(extension(protoTCP, 256), syn)), synChain},
	{"all extension headers", LinkIPv6, ipv6(protoHopByHop, concat(extension(protoDestOptions, 1), extension(protoRouting, 1),
		extension(protoFragment, 1), fragment(protoAH, 0), authentication(protoDestOptions), extension(protoTCP, 2), syn)), synChain},
	{"as many extension headers as there may be", LinkIPv6, ipv6(protoDestOptions,
		concat(slices.Concat(slices.Repeat([][]byte{extension(protoDestOptions, 1)}, maxExtensions-1)...), extension(protoTCP, 1), syn)), synChain},

	{"ICMP: host unreachable", LinkIPv4, ipv4(protoICMP, icmp(3, 1, synIPv4)), unreachable(syn4)},
	{"ICMP: any code", LinkIPv4, ipv4(protoICMP, icmp(3, 255, synIPv4)), unreachable(syn4)},
	{"ICMP: options in the quoted header", LinkIPv4, ipv4(protoICMP, icmp(3, 3, ipv4(protoTCP, syn, 7, 4, 0, 0))), unreachable(syn4)},
	{"ICMP: as little as must be quoted", LinkIPv4, ipv4(protoICMP, icmp(3, 1, ipv4(protoTCP, ports))), unreachable(segment4(0, 0))},
	{"ICMP: quoted but for the flags", LinkIPv4, ipv4(protoICMP, icmp(3, 1, ipv4(protoTCP, syn[:13]))), unreachable(segment4(0, 0))},
	{"ICMP: quoted up to the flags", LinkIPv4, ipv4(protoICMP, icmp(3, 1, ipv4(protoTCP, syn[:14]))), unreachable(syn4)},
	{"ICMP: an error that comes as IPv6's first fragment", LinkIPv6,
		ipv6(protoFragment, concat(fragment(protoICMPv6, 0), icmp(1, 4, synIPv6))), unreachable(syn6)},
	{"ICMPv6: no route", LinkIPv6, ipv6(protoICMPv6, icmp(1, 0, synIPv6)), unreachable(syn6)},
	{"ICMPv6: any code", LinkIPv6, ipv6(protoICMPv6, icmp(1, 255, synIPv6)), unreachable(syn6)},
	{"ICMPv6: extension headers quoted", LinkIPv6, ipv6(protoICMPv6, icmp(1, 3,
		ipv6(protoDestOptions, concat(extension(protoFragment, 1), fragment(protoTCP, 0), syn)))), unreachable(syn6)},
	{"ICMPv6: quoted up to the ports", LinkIPv6, ipv6(protoICMPv6, icmp(1, 3, ipv6(protoTCP, ports))), unreachable(segment6(0, 0))},
}

func TestDecode(t *testing.T) {
	for _, tt := range goodFrames {
		t.Run(tt.name, func(t *testing.T) {
			// Nothing that was there before may be left of it.
			seg := Segment{Time: 7, Length: 9, Flags: 0xff, Unreachable: true, Window: 9, Ack: 9}
			want := tt.want
			want.Time = 7
			if kind := Decode(tt.link, tt.frame, len(tt.frame), &seg); kind != TCP {
				t.Fatal(kind)
			}
			if diff := cmp.Diff(want, seg); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What a capture leaves out makes a packet truncated and never bad; and as soon
// as there is enough, all is known that is known of the whole.
func TestDecodeSnapped(t *testing.T) {
	for _, tt := range goodFrames {
		t.Run(tt.name, func(t *testing.T) {
			least := -1
			for n := range len(tt.frame) + 1 {
				var seg Segment
				switch kind := Decode(tt.link, slices.Clip(tt.frame[:n]), len(tt.frame), &seg); {
				case kind == Truncated && least < 0:
				case kind == TCP:
					if least < 0 {
						least = n
					}
					if seg.Unreachable && seg.Flags == 0 {
						seg.Flags = tt.want.Flags
					}
					if diff := cmp.Diff(tt.want, seg); diff != "" {
						t.Fatalf("%d bytes: %s", n, diff)
					}
				default:
					t.Fatalf("%d bytes: %v", n, kind)
				}
			}
			if tt.want.Unreachable {
				return
			}
			header := len(tt.frame) // where TCP begins
			for ; least >= 0 && string(tt.frame[header:min(header+8, len(tt.frame))]) != string(ports); header-- {
			}
			if least != header+tcpHeader {
				t.Errorf("decoded from %d bytes on, the TCP header ends at %d", least, header+tcpHeader)
			}
		})
	}
}

// A packet that ends where a header is still to come is bad, whatever link,
// network and transport there are.
func TestDecodeShort(t *testing.T) {
	for _, tt := range goodFrames {
		t.Run(tt.name, func(t *testing.T) {
			var kinds []Kind
			for n := range len(tt.frame) + 1 {
				var seg Segment
				kind := Decode(tt.link, slices.Clip(tt.frame[:n]), n, &seg)
				if len(kinds) == 0 || kinds[len(kinds)-1] != kind {
					kinds = append(kinds, kind)
				}
			}
			// From the outside in, and each of them once.
			if !slices.IsSortedFunc(kinds[:len(kinds)-1], func(a, b Kind) int { return int(a) - int(b) }) ||
				kinds[len(kinds)-1] != TCP || slices.Contains(kinds, Truncated) || slices.Contains(kinds, Fragment) {
				t.Error(kinds)
			}
		})
	}
}

func TestDecodeNot(t *testing.T) {
	udp := make([]byte, 8)
	tests := []struct {
		name  string
		link  LinkType
		frame []byte
		wire  int // 0: all of the frame
		want  Kind
	}{
		// The link.
		{"an unknown link type", 105, ethernet(0x0800, synIPv4), 0, BadLink},
		{"an empty frame", LinkEthernet, nil, 0, BadLink},
		{"an empty frame, of which none was captured", LinkEthernet, nil, 60, Truncated},
		{"an Ethernet header without type", LinkEthernet, ethernet(0x0800, nil)[:12], 0, BadLink},
		{"an Ethernet header without type, captured so", LinkEthernet, ethernet(0x0800, nil)[:12], 60, Truncated},
		{"a cooked header that is cut", LinkSLL, sll(0, 0x0800, nil)[:15], 0, BadLink},
		{"a cooked v2 header that is cut", LinkSLL2, sll2(1, 0, 0x0800, nil)[:19], 0, BadLink},
		{"a family that is cut", LinkNull, []byte{2, 0, 0}, 0, BadLink},
		{"a family that is none in either order", LinkNull, concat([]byte{1, 2, 3, 4}, synIPv4), 0, BadLink},
		{"a Cisco HDLC header that is cut", LinkHDLC, []byte{0x0f, 0, 8}, 0, BadLink},
		{"Cisco HDLC's own keepalive", LinkHDLC, concat([]byte{0x8f, 0, 0x80, 0x35}, make([]byte, 18)), 0, Other},
		{"a PPP header that is cut", LinkPPP, []byte{0xff, 3}, 0, BadLink},
		{"a PPP protocol that is cut", LinkPPP, []byte{0xff, 3, 0}, 0, BadLink},
		{"a PPP protocol that is cut, captured so", LinkPPP, []byte{0xff, 3, 0}, 60, Truncated},
		{"another family", LinkNull, concat([]byte{7, 0, 0, 0}, synIPv4), 0, Other},
		{"another ethertype: ARP", LinkEthernet, ethernet(0x0806, make([]byte, 46)), 0, Other},
		{"802.3 with a length: LLC", LinkEthernet, ethernet(46, concat([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, synIPv4)), 0, Other},
		{"802.3 in a cooked frame", LinkSLL, sll(0, 4, make([]byte, 46)), 0, Other},
		{"another PPP protocol: LCP", LinkPPP, []byte{0xff, 3, 0xc0, 0x21, 1, 1, 0, 4}, 0, Other},

		// Tags, labels and sessions.
		{"a VLAN tag that is cut", LinkEthernet, ethernet(0x8100, []byte{0, 7, 8}), 0, BadLink},
		{"a VLAN tag that is cut, captured so", LinkEthernet, ethernet(0x8100, []byte{0, 7, 8}), 60, Truncated},
		{"no second tag where the first one says so", LinkEthernet, ethernet(0x88a8, []byte{0, 7, 0x81, 0}), 0, BadLink},
		{"five tags", LinkEthernet, ethernet(0x8100, concat([]byte{0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 0x81, 0, 0, 4, 0x81, 0, 0, 5, 8, 0}, synIPv4)), 0, BadLink},
		{"ARP in a VLAN", LinkEthernet, ethernet(0x8100, concat([]byte{0, 7, 8, 6}, make([]byte, 28))), 0, Other},
		{"PPPoE that is cut", LinkEthernet, ethernet(0x8864, []byte{0x11, 0, 0, 9, 0}), 0, BadLink},
		{"PPPoE of another version", LinkEthernet, ethernet(0x8864, changed(pppoe(concat([]byte{0, 0x21}, synIPv4)), 0, 0x21)), 0, BadLink},
		{"PPPoE that is no session", LinkEthernet, ethernet(0x8864, changed(pppoe(concat([]byte{0, 0x21}, synIPv4)), 1, 9)), 0, BadLink},
		{"PPPoE discovery", LinkEthernet, ethernet(0x8863, make([]byte, 46)), 0, Other},
		{"a label that is cut", LinkEthernet, ethernet(0x8847, []byte{0, 1, 1}), 0, BadLink},
		{"labels without a last one", LinkEthernet, ethernet(0x8847, make([]byte, 100)), 0, BadLink},
		{"labels and nothing in them", LinkEthernet, ethernet(0x8847, []byte{0, 1, 1, 64}), 0, BadLink},
		{"labels with Ethernet in them", LinkEthernet, ethernet(0x8847, concat([]byte{0, 1, 1, 64, 0, 0, 0, 0}, ethernet(0x0800, synIPv4))), 0, Other},

		// IPv4.
		{"no IP in a raw packet", LinkRaw, nil, 0, BadIP},
		{"version 5 in a raw packet", LinkRaw, changed(synIPv4, 0, 0x55), 0, BadIP},
		{"IPv4's header is cut", LinkEthernet, ethernet(0x0800, synIPv4[:19]), 0, BadIP},
		{"IPv4's header is cut, captured so", LinkEthernet, ethernet(0x0800, synIPv4[:19]), 60, Truncated},
		{"IPv4's version is 6", LinkEthernet, ethernet(0x0800, changed(synIPv4, 0, 0x65)), 0, BadIP},
		{"IPv4's ethertype on IPv6", LinkEthernet, ethernet(0x0800, synIPv6), 0, BadIP},
		{"IPv4's header length is 16", LinkIPv4, changed(synIPv4, 0, 0x44), 0, BadIP},
		{"IPv4's header length is 0", LinkIPv4, changed(synIPv4, 0, 0x40), 0, BadIP},
		{"IPv4's header is longer than the frame", LinkIPv4, changed(synIPv4[:40], 0, 0x4f), 0, BadIP},
		{"IPv4's options are cut", LinkIPv4, ipv4(protoTCP, syn, make([]byte, 40)...)[:59], 0, BadIP},
		{"IPv4's options are cut, captured so", LinkIPv4, ipv4(protoTCP, syn, make([]byte, 40)...)[:59], 84, Truncated},
		{"IPv4's total length is less than its header", LinkIPv4, changed(synIPv4, 3, 19), 0, BadIP},
		{"IPv4's total length is less than its options", LinkIPv4, changed(ipv4(protoTCP, syn, 7, 4, 0, 0), 3, 23), 0, BadIP},
		{"IPv4's fragment at offset 8", LinkIPv4, changed(synIPv4, 7, 1), 0, Fragment},
		{"IPv4's last fragment", LinkIPv4, changed(synIPv4, 6, 0x1f), 0, Fragment},
		{"a fragment of UDP", LinkIPv4, changed(ipv4(17, udp), 7, 1), 0, Fragment},
		{"UDP", LinkIPv4, ipv4(17, udp), 0, Other},
		{"UDP after an authentication header", LinkIPv4, ipv4(protoAH, concat(authentication(17), udp)), 0, Other},
		{"IPv4's authentication header is cut", LinkIPv4, ipv4(protoAH, authentication(protoTCP)[:20]), 0, BadIP},
		{"IPv4 in IPv4", LinkIPv4, ipv4(4, synIPv4), 0, Other},
		{"GRE", LinkIPv4, ipv4(47, concat([]byte{0, 0, 8, 0}, synIPv4)), 0, Other},
		{"ICMPv6 in IPv4", LinkIPv4, ipv4(protoICMPv6, icmp(1, 0, synIPv6)), 0, Other},
		{"an IPv6 extension header in IPv4", LinkIPv4, ipv4(protoDestOptions, concat(extension(protoTCP, 1), syn)), 0, Other},

		// IPv6.
		{"IPv6's header is cut", LinkIPv6, synIPv6[:39], 0, BadIP},
		{"IPv6's header is cut, captured so", LinkIPv6, synIPv6[:39], 60, Truncated},
		{"IPv6's version is 4", LinkIPv6, changed(synIPv6, 0, 0x45), 0, BadIP},
		{"IPv6's ethertype on IPv4", LinkEthernet, ethernet(0x86dd, synIPv4), 0, BadIP},
		{"no extension header where one is due", LinkIPv6, ipv6(protoHopByHop, nil), 0, BadIP},
		{"an extension header of 7 bytes", LinkIPv6, ipv6(protoDestOptions, extension(protoTCP, 1)[:7]), 0, BadIP},
		{"an extension header of 7 bytes, captured so", LinkIPv6, ipv6(protoDestOptions, extension(protoTCP, 1)[:7]), 100, BadIP},
		{"an extension header beyond the capture", LinkIPv6, ipv6(protoDestOptions, concat(extension(protoTCP, 2), syn))[:50], 80, Truncated},
		{"an extension header beyond the packet", LinkIPv6, ipv6(protoDestOptions, changed(extension(protoTCP, 1), 1, 200)), 0, BadIP},
		{"an extension header beyond the payload length", LinkIPv6, changed(ipv6(protoDestOptions, concat(extension(protoTCP, 2), syn)), 5, 9), 0, BadIP},
		{"an authentication header beyond the packet", LinkIPv6, ipv6(protoAH, changed(authentication(protoTCP), 1, 200)), 0, BadIP},
		{"an authentication header of 8 bytes", LinkIPv6, ipv6(protoAH, concat([]byte{protoTCP, 0, 0, 0, 0, 0, 0, 0}, syn)), 0, BadIP},
		{"a fragment header that is cut", LinkIPv6, ipv6(protoFragment, fragment(protoTCP, 0)[:6]), 0, BadIP},
		{"too many extension headers", LinkIPv6, ipv6(protoDestOptions,
			concat(slices.Concat(slices.Repeat([][]byte{extension(protoDestOptions, 1)}, maxExtensions)...), extension(protoTCP, 1), syn)), 0, BadIP},
		{"IPv6's fragment at offset 8", LinkIPv6, ipv6(protoFragment, concat(fragment(protoTCP, 8), syn)), 0, Fragment},
		{"no next header", LinkIPv6, ipv6(59, nil), 0, Other},
		{"UDP in IPv6", LinkIPv6, ipv6(17, udp), 0, Other},
		{"ESP", LinkIPv6, ipv6(50, syn), 0, Other},
		{"IPv4 in IPv6", LinkIPv6, ipv6(4, synIPv4), 0, Other},
		{"ICMP in IPv6", LinkIPv6, ipv6(protoICMP, icmp(3, 0, synIPv4)), 0, Other},

		// TCP.
		{"TCP's header is cut", LinkIPv4, ipv4(protoTCP, syn[:19]), 0, BadTCP},
		{"TCP's header is cut, captured so", LinkIPv4, synIPv4[:39], 44, Truncated},
		{"TCP's header is cut by the frame alone", LinkIPv4, synIPv4[:39], 0, BadTCP},
		{"TCP's header is beyond the total length", LinkIPv4, changed(synIPv4, 3, 39), 0, BadTCP},
		{"TCP's header is beyond IPv6's payload length", LinkIPv6, changed(synIPv6, 5, 19), 0, BadTCP},
		{"TCP's header is cut in a small fragment", LinkIPv4, changed(ipv4(protoTCP, syn[:8]), 6, 0x20), 0, BadTCP},
		{"no TCP header", LinkIPv6, ipv6(protoTCP, nil), 0, BadTCP},
		{"TCP's data offset is 0", LinkIPv4, ipv4(protoTCP, changed(syn, 12, 0)), 0, BadTCP},
		{"TCP's data offset is 16", LinkIPv4, ipv4(protoTCP, changed(syn, 12, 0x4f)), 0, BadTCP},
		{"TCP's data offset is beyond the packet", LinkIPv4, ipv4(protoTCP, changed(syn, 12, 0x70)), 0, BadTCP},
		{"TCP's data offset is beyond the packet, though not beyond the padding", LinkEthernet,
			ethernet(0x0800, concat(ipv4(protoTCP, changed(tcp(SYN), 12, 0x60)), make([]byte, 6))), 0, BadTCP},
		{"TCP's data offset is 16 in IPv6", LinkIPv6, ipv6(protoTCP, changed(syn, 12, 0x4f)), 0, BadTCP},
		{"TCP's data offset is beyond IPv6's payload", LinkIPv6, ipv6(protoTCP, changed(syn, 12, 0x70)), 0, BadTCP},

		// ICMP.
		{"no ICMP header", LinkIPv4, ipv4(protoICMP, nil), 0, BadICMP},
		{"ICMP's header is cut", LinkIPv4, ipv4(protoICMP, icmp(3, 1, nil)[:7]), 0, BadICMP},
		{"ICMP's header is cut, captured so", LinkIPv4, ipv4(protoICMP, icmp(3, 1, synIPv4))[:27], 72, Truncated},
		{"ICMP: nothing is quoted", LinkIPv4, ipv4(protoICMP, icmp(3, 1, nil)), 0, BadICMP},
		{"ICMP: the quoted header is cut", LinkIPv4, ipv4(protoICMP, icmp(3, 1, synIPv4[:19])), 0, BadICMP},
		{"ICMP: the quoted version is 6", LinkIPv4, ipv4(protoICMP, icmp(3, 1, synIPv6)), 0, BadICMP},
		{"ICMP: the quoted header length is 16", LinkIPv4, ipv4(protoICMP, icmp(3, 1, changed(synIPv4, 0, 0x44))), 0, BadICMP},
		{"ICMP: the quoted header is longer than the quotation", LinkIPv4, ipv4(protoICMP, icmp(3, 1, changed(synIPv4, 0, 0x4f))), 0, BadICMP},
		{"ICMP: seven bytes of TCP are quoted", LinkIPv4, ipv4(protoICMP, icmp(3, 1, synIPv4[:27])), 0, BadICMP},
		{"ICMP: the quotation is beyond the total length", LinkIPv4, changed(ipv4(protoICMP, icmp(3, 1, synIPv4)), 3, 55), 0, BadICMP},
		{"ICMP: the quotation is not captured", LinkIPv4, ipv4(protoICMP, icmp(3, 1, synIPv4))[:55], 72, Truncated},
		{"ICMP: a later fragment is quoted", LinkIPv4, ipv4(protoICMP, icmp(3, 1, changed(synIPv4, 7, 1))), 0, Other},
		{"ICMP: UDP is quoted", LinkIPv4, ipv4(protoICMP, icmp(3, 3, ipv4(17, udp))), 0, Other},
		{"ICMP: an echo", LinkIPv4, ipv4(protoICMP, icmp(8, 0, nil)), 0, Other},
		{"ICMP: time exceeded", LinkIPv4, ipv4(protoICMP, icmp(11, 0, synIPv4)), 0, Other},
		{"ICMP: ICMPv6's type", LinkIPv4, ipv4(protoICMP, icmp(1, 0, synIPv4)), 0, Other},
		{"ICMPv6: no header", LinkIPv6, ipv6(protoICMPv6, nil), 0, BadICMP},
		{"ICMPv6: the header is cut", LinkIPv6, ipv6(protoICMPv6, icmp(1, 0, nil)[:4]), 0, BadICMP},
		{"ICMPv6: the quoted header is cut", LinkIPv6, ipv6(protoICMPv6, icmp(1, 0, synIPv6[:39])), 0, BadICMP},
		{"ICMPv6: the quoted header is cut, captured so", LinkIPv6, ipv6(protoICMPv6, icmp(1, 0, synIPv6))[:87], 112, Truncated},
		{"ICMPv6: the quoted version is 4", LinkIPv6, ipv6(protoICMPv6, icmp(1, 0, concat(synIPv4, synIPv4))), 0, BadICMP},
		{"ICMPv6: a quoted extension header is cut", LinkIPv6, ipv6(protoICMPv6, icmp(1, 0, ipv6(protoDestOptions, extension(protoTCP, 2)[:9]))), 0, BadICMP},
		{"ICMPv6: a quoted extension header is not captured", LinkIPv6,
			ipv6(protoICMPv6, icmp(1, 0, ipv6(protoDestOptions, concat(extension(protoTCP, 2), syn))))[:97], 128, Truncated},
		{"ICMPv6: seven bytes of TCP are quoted", LinkIPv6, ipv6(protoICMPv6, icmp(1, 0, ipv6(protoTCP, syn[:7]))), 0, BadICMP},
		{"ICMPv6: a later fragment is quoted", LinkIPv6, ipv6(protoICMPv6, icmp(1, 0, ipv6(protoFragment, concat(fragment(protoTCP, 8), syn)))), 0, Other},
		{"ICMPv6: UDP is quoted", LinkIPv6, ipv6(protoICMPv6, icmp(1, 4, ipv6(17, udp))), 0, Other},
		{"ICMPv6: packet too big", LinkIPv6, ipv6(protoICMPv6, icmp(2, 0, synIPv6)), 0, Other},
		{"ICMPv6: ICMP's type", LinkIPv6, ipv6(protoICMPv6, icmp(3, 0, synIPv6)), 0, Other},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var seg Segment
			if kind := Decode(tt.link, slices.Clip(tt.frame), max(tt.wire, len(tt.frame)), &seg); kind != tt.want {
				t.Errorf("%v, want %v", kind, tt.want)
			}
		})
	}
}

// A card joins segments to packets that are too long for the field.
func TestDecodeJoined(t *testing.T) {
	frame := ethernet(0x0800, changed(ipv4(protoTCP, tcp(ACK)), 3, 0))
	var seg Segment
	if kind := Decode(LinkEthernet, frame, 180_000, &seg); kind != TCP || seg.Length != math.MaxUint16 {
		t.Error(kind, seg.Length)
	}
	// A SYN with the signature is not one if only the frame is known to be long.
	frame[47] = byte(SYN)
	frame[48], frame[49] = 0, 0
	if Decode(LinkEthernet, frame, len(frame), &seg); !seg.Signed() {
		t.Error("not signed", seg)
	}
	if Decode(LinkEthernet, frame, 1000, &seg); seg.Signed() {
		t.Error("signed", seg)
	}
}

// The file's claim of how much there was on the wire may be less than it holds.
func TestDecodeWireTooSmall(t *testing.T) {
	for _, tt := range goodFrames {
		for _, wire := range []int{0, 1, len(tt.frame) - 1} {
			var seg Segment
			if kind := Decode(tt.link, tt.frame, wire, &seg); kind != TCP {
				t.Errorf("%s, %d on the wire: %v", tt.name, wire, kind)
			}
		}
	}
}

func TestDecodeIP(t *testing.T) {
	for _, tt := range []struct {
		name   string
		proto  uint16
		packet []byte
		want   Segment
	}{
		{"IPv4", 0x0800, synIPv4, syn4},
		{"IPv6", 0x86dd, synIPv6, syn6},
		{"a tag", 0x8100, concat([]byte{0, 7, 8, 0}, synIPv4), syn4},
		{"two tags", 0x88a8, concat([]byte{0, 7, 0x81, 0, 0, 8, 0x86, 0xdd}, synIPv6), syn6},
	} {
		var seg Segment
		if kind := DecodeIP(tt.proto, tt.packet, len(tt.packet), &seg); kind != TCP {
			t.Errorf("%s: %v", tt.name, kind)
		} else if diff := cmp.Diff(tt.want, seg); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	// A length of 802.3 is no ethertype.
	var seg Segment
	if kind := DecodeIP(1, synIPv4, len(synIPv4), &seg); kind != Other {
		t.Error("802.3:", kind)
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	var seg Segment
	if n := testing.AllocsPerRun(100, func() {
		for i := range goodFrames {
			f := &goodFrames[i]
			Decode(f.link, f.frame, len(f.frame), &seg)
			Decode(f.link, f.frame[:len(f.frame)/2], len(f.frame), &seg)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

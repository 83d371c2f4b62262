package capture

import (
	"encoding/binary"
	"math"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// plainLayers are those of packets that must be decoded if gopacket does. Others
// are compared where both decode them:
//   - PPP, PPPoE and MPLS: gopacket takes any PPPoE version and code, and guesses
//     at what is behind labels by trying more than IP.
//   - LLC with SNAP, GRE, and all else that can carry IP: Other here.
var plainLayers = []gopacket.LayerType{
	layers.LayerTypeEthernet, layers.LayerTypeDot1Q, layers.LayerTypeLoopback, layers.LayerTypeLinuxSLL, layers.LayerTypeLinuxSLL2,
	layers.LayerTypeIPv4, layers.LayerTypeIPv6, layers.LayerTypeIPv6HopByHop, layers.LayerTypeIPv6Routing,
	layers.LayerTypeIPv6Fragment, layers.LayerTypeIPv6Destination, layers.LayerTypeIPSecAH, layers.LayerTypeTCP,
}

func gopacketDecode(link LinkType, frame []byte) gopacket.Packet {
	var first gopacket.Decoder = layers.LinkType(link)
	switch link {
	case LinkRaw12, LinkRaw14: // which of them gopacket knows depends on where it runs
		first = layers.LinkTypeRaw
	case LinkPPPHDLC:
		first = layers.LinkTypePPP
	case LinkIPv4:
		first = layers.LayerTypeIPv4
	case LinkIPv6:
		first = layers.LayerTypeIPv6
	}
	return gopacket.NewPacket(frame, first, gopacket.DecodeOptions{NoCopy: true})
}

// viaGopacket decodes with gopacket. It tells the segment if there is one, and
// whether that is in a plain packet.
//
// gopacket does not know what was on the wire, so all of the frame was.
func viaGopacket(link LinkType, frame []byte) (seg Segment, found, plain bool) {
	packet := gopacketDecode(link, frame)
	plain = !packet.Metadata().Truncated
	networks, tags, extensions := 0, 0, 0
	for _, layer := range packet.Layers() {
		plain = plain && slices.Contains(plainLayers, layer.LayerType())
		switch l := layer.(type) {
		case *gopacket.DecodeFailure:
			return seg, false, false
		case *layers.Dot1Q:
			tags++
		case *layers.IPv4:
			networks++
			// gopacket does not look at the version.
			plain = plain && l.Version == 4
			putNet(&seg, l.SrcIP, l.DstIP)
			seg.Length = l.Length
		case *layers.IPv6:
			networks++
			plain = plain && l.Version == 6
			putNet(&seg, l.SrcIP, l.DstIP)
			seg.Length = uint16(min(int(l.Length)+ipv4Header, math.MaxUint16))
			if l.HopByHop != nil {
				extensions++
				seg.Length = 0
			}
		case *layers.IPv6Routing, *layers.IPv6Destination, *layers.IPv6Fragment, *layers.IPSecAH, *layers.IPv6HopByHop:
			extensions++
			if !seg.From().Addr().Is4() {
				seg.Length = 0
			}
		case *layers.TCP:
			// A layer is there even if it is not whole. Of a tunnel, the packet
			// within is no segment here.
			if l.DataOffset < 5 || len(l.Contents) != int(l.DataOffset)*4 || networks != 1 {
				return seg, false, false
			}
			seg.SrcPort, seg.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
			seg.Seq, seg.Ack, seg.Window = l.Seq, l.Ack, l.Window
			seg.Flags = Flags(l.Contents[13])
			return seg, true, plain && tags <= maxTags && extensions <= maxExtensions
		}
	}
	return seg, false, false
}

// putNet writes the addresses. Of a network layer that is not whole, there are none.
func putNet(seg *Segment, src, dst net.IP) {
	copy(seg.Src[:], src.To16())
	copy(seg.Dst[:], dst.To16())
}

// quotedViaGopacket decodes what an ICMP error quotes, if that is all of a TCP
// header: gopacket decodes no part of one.
func quotedViaGopacket(link LinkType, frame []byte) (Segment, bool) {
	packet := gopacketDecode(link, frame)
	var quote []byte
	next := layers.LayerTypeIPv4
	if icmp := packet.Layer(layers.LayerTypeICMPv4); icmp != nil {
		quote = icmp.LayerPayload()
	} else if icmp := packet.Layer(layers.LayerTypeICMPv6); icmp != nil && len(icmp.LayerPayload()) >= 4 {
		// gopacket takes four bytes of the header, which are unused, for what is
		// carried.
		quote = icmp.LayerPayload()[4:]
		next = layers.LayerTypeIPv6
	}
	inner := gopacket.NewPacket(quote, next, gopacket.DecodeOptions{NoCopy: true})
	tcp, ok := inner.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if !ok || len(tcp.Contents) < tcpHeader || inner.NetworkLayer() == nil {
		return Segment{}, false
	}
	seg := Segment{SrcPort: uint16(tcp.SrcPort), DstPort: uint16(tcp.DstPort), Seq: tcp.Seq, Flags: Flags(tcp.Contents[13]), Unreachable: true}
	flow := inner.NetworkLayer().NetworkFlow()
	putNet(&seg, net.IP(flow.Src().Raw()), net.IP(flow.Dst().Raw()))
	return seg, true
}

func FuzzAgainstGopacket(f *testing.F) {
	for _, g := range goodFrames {
		f.Add(uint8(slices.Index(links, g.link)), g.frame)
	}
	f.Fuzz(func(t *testing.T, link uint8, frame []byte) {
		l := links[int(link)%len(links)]
		compareWithGopacket(t, l, frame)
	})
}

// compareWithGopacket fails if gopacket decodes a segment otherwise, or if it
// decodes one in a plain packet that is none here. There may be a segment where
// gopacket has none:
//   - it refuses malformed options of IPv4, IPv6 and TCP, addresses of SLL longer
//     than 8 bytes, and IPv6's payload length 0 but in jumbograms;
//   - the first of fragments it leaves for later;
//   - it does not know Cisco HDLC, the families of Windows, nor ethertypes, in BSD null, nor
//     the ethertype of old QinQ, nor mobility headers;
//   - of a quotation it wants the whole TCP header.
func compareWithGopacket(t *testing.T, link LinkType, frame []byte) (both bool) {
	t.Helper()
	var seg Segment
	kind := Decode(link, frame, len(frame), &seg)
	want, found, plain := viaGopacket(link, frame)
	if kind == TCP && seg.Unreachable {
		want, found = quotedViaGopacket(link, frame)
		if found {
			if diff := cmp.Diff(want, seg); diff != "" {
				t.Fatal("quoted:", diff)
			}
		}
		return found
	}
	switch {
	case kind == TCP && found:
		// Without a length in IP, it is what is left of the frame: gopacket knows
		// where PPPoE says that the frame ends.
		if want.Length != seg.Length && pppoeWithoutLength(frame) {
			want.Length = seg.Length
		}
		if diff := cmp.Diff(want, seg); diff != "" {
			t.Fatal(diff)
		}
	case plain:
		t.Fatalf("%v, where gopacket has %+v", kind, want)
	}
	return kind == TCP && found
}

func pppoeWithoutLength(frame []byte) bool {
	packet := gopacketDecode(LinkEthernet, frame)
	ip, ok := packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	return ok && packet.Layer(layers.LayerTypePPPoE) != nil && binary.BigEndian.Uint16(ip.Contents[2:]) == 0
}

// What both decode of goodFrames: that the comparison compares.
func TestGopacketDecodesToo(t *testing.T) {
	var not []string
	for _, g := range goodFrames {
		if !compareWithGopacket(t, g.link, g.frame) {
			not = append(not, g.name)
		}
	}
	if diff := cmp.Diff([]string{
		"the first of IPv4 fragments",
		"IPv6 payload length 0",
		"QinQ before its standard",
		"Cisco HDLC",
		"Cisco HDLC with IPv6",
		"BSD null, IPv6 of Windows",
		"BSD null, an ethertype",
		"a mobility header",
		"the first of IPv6 fragments",
		"all extension headers",
		"ICMP: as little as must be quoted",
		"ICMP: quoted but for the flags",
		"ICMP: quoted up to the flags",
		"ICMP: an error that comes as IPv6's first fragment",
		"ICMPv6: extension headers quoted",
		"ICMPv6: quoted up to the ports",
	}, not); diff != "" {
		t.Error(diff)
	}
}

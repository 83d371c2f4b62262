package capture

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// A LinkType says how the frames of a capture begin, by its number in the
// registry of link types (www.tcpdump.org/linktypes.html), which capture files
// have.
type LinkType uint32

// The link types that Decode knows.
const (
	LinkNull     LinkType = 0   // the family in the byte order of the capturing host, then IP
	LinkEthernet LinkType = 1   // no preamble; a check sequence at the end does no harm
	LinkPPP      LinkType = 9   // with or without address and control
	LinkRaw12    LinkType = 12  // as LinkRaw
	LinkRaw14    LinkType = 14  // as LinkRaw
	LinkPPPHDLC  LinkType = 50  // as LinkPPP
	LinkRaw      LinkType = 101 // IPv4 or IPv6, without anything before it
	LinkHDLC     LinkType = 104 // Cisco's: address and control, and an ethertype
	LinkLoop     LinkType = 108 // as LinkNull, in network byte order
	LinkSLL      LinkType = 113 // Linux "cooked", what the interface any gives
	LinkIPv4     LinkType = 228
	LinkIPv6     LinkType = 229
	LinkSLL2     LinkType = 276 // Linux "cooked" with the interface's index
)

var linkNames = map[LinkType]string{
	LinkNull: "BSD null", LinkEthernet: "Ethernet", LinkPPP: "PPP", LinkRaw12: "raw IP", LinkRaw14: "raw IP",
	LinkPPPHDLC: "PPP", LinkRaw: "raw IP", LinkHDLC: "Cisco HDLC", LinkLoop: "BSD loop", LinkSLL: "Linux cooked", LinkIPv4: "raw IPv4",
	LinkIPv6: "raw IPv6", LinkSLL2: "Linux cooked v2",
}

func (l LinkType) known() bool { _, ok := linkNames[l]; return ok }

// unknownLink is the error of a link type that is not known.
func unknownLink(l LinkType) error {
	var known []string
	for l, name := range linkNames {
		known = append(known, fmt.Sprintf("%s (%d)", name, l))
	}
	slices.Sort(known)
	return fmt.Errorf("link type %d is not decoded; these are: %s", l, strings.Join(known, ", "))
}

// Ethertypes.
const (
	etherIPv4     = 0x0800
	etherIPv6     = 0x86dd
	etherVLAN     = 0x8100 // 802.1Q
	etherQinQ     = 0x88a8 // 802.1ad
	etherOldQinQ  = 0x9100
	etherPPPoE    = 0x8864 // session stage
	etherMPLS     = 0x8847
	etherMPLSDown = 0x8848 // labels that the upstream router gave

	// Numbers below are the lengths of 802.3 frames.
	etherMin = 0x0600
)

const (
	ethernetHeader = 14
	sllHeader      = 16
	sll2Header     = 20
	familyHeader   = 4
	hdlcHeader     = 4
	tagHeader      = 4
	pppoeHeader    = 6
	labelHeader    = 4

	// maxTags and maxLabels are how many VLAN tags and MPLS labels may follow
	// each other. Networks have two and four.
	maxTags   = 4
	maxLabels = 8
)

// Decode decodes a frame as it was captured. It had wire bytes where it was
// captured, of which the capture may hold fewer. If it is TCP, seg becomes the
// segment, all of it but Time; else seg is left with anything. A link type that
// is not known makes every frame BadLink.
func Decode(link LinkType, frame []byte, wire int, seg *Segment) Kind {
	kind, _ := decode(link, frame, wire, seg)
	return kind
}

// DecodeIP decodes what follows a link-layer header, as Decode does; wire is
// without that header too. proto is the ethertype, whose VLAN tags, if any, are
// at the beginning of packet.
func DecodeIP(proto uint16, packet []byte, wire int, seg *Segment) Kind {
	kind, _ := decodeIP(proto, packet, max(wire, len(packet)), seg)
	return kind
}

// decode is Decode, and tells the identification in the IPv4 header too.
func decode(link LinkType, frame []byte, wire int, seg *Segment) (Kind, uint16) {
	// A file may claim that less was on the wire than it holds.
	wire = max(wire, len(frame))
	header, proto := 0, uint16(etherIPv4)
	switch link {
	case LinkEthernet:
		header = ethernetHeader
		if len(frame) < header {
			break
		}
		proto = binary.BigEndian.Uint16(frame[12:])
		if proto == etherIPv4 { // the most frequent by far
			return decodeIPv4(frame[header:], wire-header, seg)
		}
	case LinkSLL:
		header = sllHeader
		if len(frame) < header {
			break
		}
		proto = binary.BigEndian.Uint16(frame[14:])
	case LinkSLL2:
		header = sll2Header
		if len(frame) < header {
			break
		}
		proto = binary.BigEndian.Uint16(frame)
	case LinkHDLC:
		header = hdlcHeader
		if len(frame) < header {
			break
		}
		proto = binary.BigEndian.Uint16(frame[2:])
	case LinkNull, LinkLoop:
		header = familyHeader
		if len(frame) < header {
			break
		}
		var ok bool
		if proto, ok = family(binary.BigEndian.Uint32(frame)); !ok {
			return BadLink, 0
		}
	case LinkPPP, LinkPPPHDLC:
		if len(frame) > 0 && frame[0] == 0xff { // all stations, and a control field
			header = 2
		}
		if len(frame) < header {
			break
		}
		return decodePPP(frame[header:], wire-header, seg)
	case LinkRaw, LinkRaw12, LinkRaw14:
		if len(frame) == 0 {
			return cut(wire, 1, BadIP), 0
		}
		if frame[0]>>4 == 6 {
			proto = etherIPv6
		}
	case LinkIPv4:
	case LinkIPv6:
		proto = etherIPv6
	default:
		return BadLink, 0
	}
	if len(frame) < header {
		return cut(wire, header, BadLink), 0
	}
	return decodeIP(proto, frame[header:], wire-header, seg)
}

// family is the ethertype for an address family, which may be in either byte
// order. Every BSD has its own number for IPv6; some drivers give the ethertype
// itself.
func family(v uint32) (proto uint16, ok bool) {
	if v > 0xffff {
		v = bits.ReverseBytes32(v)
	}
	switch v {
	case 2:
		return etherIPv4, true
	case 10, 23, 24, 28, 30: // Linux; Windows; NetBSD and OpenBSD; FreeBSD; macOS
		return etherIPv6, true
	}
	if v >= etherMin {
		return uint16(v), v <= 0xffff
	}
	return 0, true
}

// decodeIP is DecodeIP, and tells the identification in the IPv4 header too.
// Packets have at most wire bytes.
func decodeIP(proto uint16, b []byte, wire int, seg *Segment) (Kind, uint16) {
	for tags := 0; ; tags++ {
		switch proto {
		case etherIPv4:
			return decodeIPv4(b, wire, seg)
		case etherIPv6:
			return decodeIPv6(b, wire, seg), 0
		case etherVLAN, etherQinQ, etherOldQinQ:
			if tags == maxTags {
				return BadLink, 0
			}
			if len(b) < tagHeader {
				return cut(wire, tagHeader, BadLink), 0
			}
			proto = binary.BigEndian.Uint16(b[2:])
			b, wire = b[tagHeader:], wire-tagHeader
		case etherPPPoE:
			if len(b) < pppoeHeader {
				return cut(wire, pppoeHeader, BadLink), 0
			}
			// RFC 2516, section 4: version and type 1, code 0 for a session.
			if b[0] != 0x11 || b[1] != 0 {
				return BadLink, 0
			}
			return decodePPP(b[pppoeHeader:], wire-pppoeHeader, seg)
		case etherMPLS, etherMPLSDown:
			return decodeMPLS(b, wire, seg)
		default:
			return Other, 0
		}
	}
}

// decodePPP decodes from the protocol field on (RFC 1661, section 2), which is
// one byte long if that is odd.
func decodePPP(b []byte, wire int, seg *Segment) (Kind, uint16) {
	header := 2
	if len(b) > 0 && b[0]&1 != 0 {
		header = 1
	}
	if len(b) < header {
		return cut(wire, header, BadLink), 0
	}
	proto := uint16(b[0])
	if header == 2 {
		proto = binary.BigEndian.Uint16(b)
	}
	switch b, wire = b[header:], wire-header; proto {
	case 0x21:
		return decodeIPv4(b, wire, seg)
	case 0x57:
		return decodeIPv6(b, wire, seg), 0
	case 0x281, 0x283:
		return decodeMPLS(b, wire, seg)
	}
	return Other, 0
}

// decodeMPLS decodes from a stack of labels on (RFC 3032). Nothing in it says
// what it carries: it is IP if the first bits are IP's version.
func decodeMPLS(b []byte, wire int, seg *Segment) (Kind, uint16) {
	for range maxLabels {
		if len(b) < labelHeader {
			return cut(wire, labelHeader, BadLink), 0
		}
		bottom := b[2]&1 != 0
		b, wire = b[labelHeader:], wire-labelHeader
		if !bottom {
			continue
		}
		if len(b) == 0 {
			return cut(wire, 1, BadLink), 0
		}
		switch b[0] >> 4 {
		case 4:
			return decodeIPv4(b, wire, seg)
		case 6:
			return decodeIPv6(b, wire, seg), 0
		}
		return Other, 0
	}
	return BadLink, 0
}

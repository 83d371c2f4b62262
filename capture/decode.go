package capture

import (
	"encoding/binary"
	"math"
)

// Protocols above IP, and IPv6's extension headers.
const (
	protoHopByHop    = 0
	protoICMP        = 1
	protoTCP         = 6
	protoRouting     = 43
	protoFragment    = 44
	protoAH          = 51
	protoICMPv6      = 58
	protoDestOptions = 60
	protoMobility    = 135
)

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	icmpHeader = 8

	// fragmentOffset is the part of the IPv4 header's fourth 16-bit word that is
	// not flags.
	fragmentOffset = 0x1fff

	// maxExtensions is how many extension headers an IPv6 packet may have. Each
	// of them is wanted once, destination options twice (RFC 8200, section 4.1).
	maxExtensions = 8

	icmpUnreachable   = 3 // RFC 792
	icmpv6Unreachable = 1 // RFC 4443, section 3.1

	// quotedPorts and quotedFlags are how much of a TCP header must be quoted to
	// know ports and sequence number (all that RFC 792 asks for), and flags.
	quotedPorts = 8
	quotedFlags = 14
)

// mapped is the second half of an IPv4-mapped address without the address, as
// the little-endian number that it is when both halves are stored at once.
const mapped = 0xffff << 16

// cut is the kind of a packet of which need bytes must be there and are not:
// the capture left them out, or there never were so many.
func cut(wire, need int, bad Kind) Kind {
	if wire >= need {
		return Truncated
	}
	return bad
}

// decodeIPv4 decodes an IPv4 packet (RFC 791, section 3.1) of which b is what
// was captured, and wire bytes were there.
//
// A total length of 0 is that of a packet too big for the field, before the card
// cuts it into segments. One beyond the frame is let pass: some programs that
// shorten captures make the frame's length that of what they leave.
func decodeIPv4(b []byte, wire int, seg *Segment) (Kind, uint16) {
	// Of nearly all packets, this is all there is to do: it takes half the time
	// of what is good for every packet.
	if len(b) >= ipv4Header+tcpHeader {
		ip, tcp := b[:ipv4Header], b[ipv4Header:ipv4Header+tcpHeader]
		total, header := binary.BigEndian.Uint16(ip[2:]), tcp[12]>>4*4
		if ip[0] == 4<<4|ipv4Header/4 && ip[9] == protoTCP && binary.BigEndian.Uint16(ip[6:])&fragmentOffset == 0 &&
			header >= tcpHeader && int(total) >= ipv4Header+int(header) {
			putIPv4(seg, ip)
			putTCP(seg, tcp)
			seg.Length = total
			return TCP, binary.BigEndian.Uint16(ip[4:])
		}
	}
	return decodeAnyIPv4(b, wire, seg)
}

func decodeAnyIPv4(b []byte, wire int, seg *Segment) (Kind, uint16) {
	if len(b) < ipv4Header {
		return cut(wire, ipv4Header, BadIP), 0
	}
	header := int(b[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 {
		total = wire
	}
	if b[0]>>4 != 4 || header < ipv4Header || total < header {
		return BadIP, 0
	}
	if binary.BigEndian.Uint16(b[6:])&fragmentOffset != 0 {
		return Fragment, 0
	}
	proto := b[9]
	if proto != protoTCP && proto != protoICMP && proto != protoAH {
		return Other, 0
	}
	if len(b) < header {
		return cut(wire, header, BadIP), 0
	}
	payload := b[header:min(len(b), total)]
	wire, claimed := wire-header, total-header
	if proto == protoAH {
		var size int
		var kind Kind
		if proto, size, kind = extensions(proto, payload, min(wire, claimed)); kind != TCP {
			return kind, 0
		}
		payload, wire, claimed = payload[size:], wire-size, claimed-size
	}
	if proto != protoTCP {
		if proto != protoICMP {
			return Other, 0
		}
		return decodeICMP(payload, min(wire, claimed), seg), 0
	}
	kind := decodeTCP(payload, wire, claimed, seg)
	putIPv4(seg, b)
	seg.Length = uint16(min(total, math.MaxUint16))
	return kind, binary.BigEndian.Uint16(b[4:])
}

// decodeIPv6 decodes an IPv6 packet (RFC 8200, section 3), as decodeIPv4 does.
// A payload length of 0 is that of a jumbogram, or of one too big as above.
func decodeIPv6(b []byte, wire int, seg *Segment) Kind {
	if len(b) < ipv6Header {
		return cut(wire, ipv6Header, BadIP)
	}
	if b[0]>>4 != 6 {
		return BadIP
	}
	wire -= ipv6Header
	claimed := int(binary.BigEndian.Uint16(b[4:]))
	if claimed == 0 {
		claimed = wire
	}
	length := uint16(min(claimed+ipv4Header, math.MaxUint16))
	payload := b[ipv6Header:min(len(b), ipv6Header+claimed)]
	proto := b[6]
	if proto != protoTCP {
		var size int
		var kind Kind
		if proto, size, kind = extensions(proto, payload, min(wire, claimed)); kind != TCP {
			return kind
		}
		payload, wire, claimed = payload[size:], wire-size, claimed-size
		length = 0
	}
	if proto != protoTCP {
		if proto != protoICMPv6 {
			return Other
		}
		return decodeICMPv6(payload, min(wire, claimed), seg)
	}
	kind := decodeTCP(payload, wire, claimed, seg)
	putIPv6(seg, b)
	seg.Length = length
	return kind
}

// extensions passes over the headers between IP and what it carries, the first
// of which is of type next. It tells what is carried and how far into b; kind is
// TCP, or why there is nothing to go on with. wire is how much of it was there.
func extensions(next uint8, b []byte, wire int) (proto uint8, size int, kind Kind) {
	for range maxExtensions + 1 {
		header := 8
		switch next {
		case protoHopByHop, protoRouting, protoDestOptions, protoMobility, protoFragment, protoAH:
			if len(b)-size < header {
				return 0, 0, cut(wire, size+header, BadIP)
			}
		default:
			return next, size, TCP
		}
		h := b[size:]
		switch next {
		case protoFragment: // of one size; its second byte is reserved
			if binary.BigEndian.Uint16(h[2:])&0xfff8 != 0 {
				return 0, 0, Fragment
			}
		case protoAH: // RFC 4302, section 2: at least without a value
			if header = (int(h[1]) + 2) * 4; header < 12 {
				return 0, 0, BadIP
			}
		default:
			header = (int(h[1]) + 1) * 8
		}
		if len(h) < header {
			return 0, 0, cut(wire, size+header, BadIP)
		}
		next, size = h[0], size+header
	}
	return 0, 0, BadIP
}

// decodeTCP decodes a TCP header (RFC 9293, section 3.1), but for what the IP
// header has. claimed is how much the IP header says there is.
func decodeTCP(b []byte, wire, claimed int, seg *Segment) Kind {
	if len(b) < tcpHeader {
		return cut(min(wire, claimed), tcpHeader, BadTCP)
	}
	header := int(b[12]>>4) * 4
	if header < tcpHeader || header > claimed {
		return BadTCP
	}
	putTCP(seg, b)
	return TCP
}

// decodeICMP decodes an ICMP message (RFC 792), of which wire bytes were there.
func decodeICMP(b []byte, wire int, seg *Segment) Kind {
	quote, kind := quotation(b, wire, icmpUnreachable)
	if kind != TCP {
		return kind
	}
	wire -= icmpHeader
	if len(quote) < ipv4Header {
		return cut(wire, ipv4Header, BadICMP)
	}
	header := int(quote[0]&0x0f) * 4
	if quote[0]>>4 != 4 || header < ipv4Header {
		return BadICMP
	}
	if quote[9] != protoTCP || binary.BigEndian.Uint16(quote[6:])&fragmentOffset != 0 {
		return Other
	}
	if len(quote) < header+quotedPorts {
		return cut(wire, header+quotedPorts, BadICMP)
	}
	putIPv4(seg, quote)
	putQuoted(seg, quote[header:])
	return TCP
}

// decodeICMPv6 decodes an ICMPv6 message (RFC 4443), as decodeICMP does.
func decodeICMPv6(b []byte, wire int, seg *Segment) Kind {
	quote, kind := quotation(b, wire, icmpv6Unreachable)
	if kind != TCP {
		return kind
	}
	wire -= icmpHeader
	if len(quote) < ipv6Header {
		return cut(wire, ipv6Header, BadICMP)
	}
	if quote[0]>>4 != 6 {
		return BadICMP
	}
	proto, size, kind := extensions(quote[6], quote[ipv6Header:], wire-ipv6Header)
	switch {
	case kind == BadIP:
		return BadICMP
	case kind == Truncated:
		return Truncated
	case kind == Fragment || proto != protoTCP:
		return Other
	}
	header := ipv6Header + size
	if len(quote) < header+quotedPorts {
		return cut(wire, header+quotedPorts, BadICMP)
	}
	putIPv6(seg, quote)
	putQuoted(seg, quote[header:])
	return TCP
}

// quotation is what an ICMP message of that type quotes. kind is TCP, or why it
// quotes nothing.
func quotation(b []byte, wire int, unreachable uint8) (quote []byte, kind Kind) {
	if len(b) > 0 && b[0] != unreachable {
		return nil, Other
	}
	if len(b) < icmpHeader {
		return nil, cut(wire, icmpHeader, BadICMP)
	}
	return b[icmpHeader:], TCP
}

// putTCP writes what a TCP header has.
func putTCP(seg *Segment, b []byte) {
	b = b[:tcpHeader]
	seg.SrcPort = binary.BigEndian.Uint16(b)
	seg.DstPort = binary.BigEndian.Uint16(b[2:])
	seg.Seq = binary.BigEndian.Uint32(b[4:])
	seg.Ack = binary.BigEndian.Uint32(b[8:])
	seg.Flags = Flags(b[13])
	seg.Window = binary.BigEndian.Uint16(b[14:])
	seg.Unreachable = false
}

// putQuoted writes what is known from the beginning of a TCP header.
func putQuoted(seg *Segment, b []byte) {
	seg.SrcPort = binary.BigEndian.Uint16(b)
	seg.DstPort = binary.BigEndian.Uint16(b[2:])
	seg.Seq = binary.BigEndian.Uint32(b[4:])
	seg.Ack, seg.Window, seg.Length, seg.Flags = 0, 0, 0, 0
	if len(b) >= quotedFlags {
		seg.Flags = Flags(b[13])
	}
	seg.Unreachable = true
}

// putIPv4 writes the addresses of an IPv4 header.
func putIPv4(seg *Segment, b []byte) {
	b = b[:ipv4Header]
	binary.LittleEndian.PutUint64(seg.Src[:], 0)
	binary.LittleEndian.PutUint64(seg.Src[8:], mapped|uint64(binary.LittleEndian.Uint32(b[12:]))<<32)
	binary.LittleEndian.PutUint64(seg.Dst[:], 0)
	binary.LittleEndian.PutUint64(seg.Dst[8:], mapped|uint64(binary.LittleEndian.Uint32(b[16:]))<<32)
}

// putIPv6 writes the addresses of an IPv6 header.
func putIPv6(seg *Segment, b []byte) {
	b = b[:ipv6Header]
	seg.Src = [16]byte(b[8:])
	seg.Dst = [16]byte(b[24:])
}

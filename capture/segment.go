// Package capture brings in packets, from this host's interfaces and from
// capture files, and decodes of them what a TCP handshake needs to know. It
// promises to allocate nothing for a packet, to call no packet an error, and to
// count by kind what it could not decode and what it lost.
package capture

import (
	"net/netip"
	"time"
)

// Flags are those of a TCP header, as they stand in it (RFC 9293, section 3.1).
type Flags uint8

// The flags of a TCP header.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// A Segment is what a handshake needs to know of one TCP segment, or of one
// that an ICMP error quotes. It holds no pointers, so that batches of them are
// cheap to keep and to copy.
type Segment struct {
	// Time is when it was captured, in nanoseconds since 1970. From
	// interfaces, it runs on without the steps that the wall clock makes.
	Time int64
	// Src and Dst are the addresses of the IP header, IPv4 as
	// ::ffff:a.b.c.d (RFC 4291, section 2.5.5.2).
	Src, Dst         [16]byte
	Seq, Ack         uint32
	SrcPort, DstPort uint16
	// Window is as it is in the header, unscaled.
	Window uint16
	// Length is the IPv4 total length. For IPv6 it is 20 more than the payload
	// length, so that one figure means one TCP segment in both families; 0 in
	// an IPv6 packet with extension headers.
	Length uint16
	Flags  Flags
	// Unreachable: an ICMP or ICMPv6 destination unreachable quotes this
	// segment. Only addresses, ports and Seq are known of it, and Flags if the
	// quotation reaches so far (else 0).
	Unreachable bool
}

// IsSYN tells whether the segment asks for a connection: SYN and neither ACK,
// RST nor FIN. ECE, CWR and data do not matter.
func (s *Segment) IsSYN() bool { return s.Flags&(SYN|ACK|RST|FIN) == SYN }

// Signed tells whether it is a SYN with the signature of a flood: window 0,
// and nothing but the two headers, so no options.
func (s *Segment) Signed() bool { return s.Window == 0 && s.Length == 40 && s.IsSYN() }

// From and To are source and destination.
func (s *Segment) From() netip.AddrPort { return addrPort(s.Src, s.SrcPort) }

// To is the destination.
func (s *Segment) To() netip.AddrPort { return addrPort(s.Dst, s.DstPort) }

// When is Time for display.
func (s *Segment) When() time.Time { return time.Unix(0, s.Time) }

func addrPort(a [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), port)
}

// A Kind says what became of a packet.
type Kind uint8

// What becomes of a packet. From Fragment on, it is one that could not be
// decoded.
const (
	// TCP: it is a segment, or a destination unreachable that quotes one.
	TCP Kind = iota
	// Other: a whole packet that has nothing to do with TCP.
	Other
	// Copy: the forwarded copy of a packet that was seen before.
	Copy
	// Fragment is an IP fragment other than the first.
	Fragment
	// Truncated: the capture holds less of it than the headers need, though
	// the packet on the wire had more.
	Truncated
	// BadLink: the link-layer header, or a VLAN tag, is cut or nonsensical.
	BadLink
	// BadIP: version, header length, total length or an extension header is
	// nonsensical, or a header is longer than its packet.
	BadIP
	// BadTCP: the TCP header is nonsensical or longer than its packet.
	BadTCP
	// BadICMP: an ICMP destination unreachable quotes nonsense.
	BadICMP
	numKinds
)

var kindNames = [numKinds]string{
	"tcp", "other", "copy", "fragment", "truncated", "bad_link", "bad_ip", "bad_tcp", "bad_icmp",
}

func (k Kind) String() string { return kindNames[k] }

// Kinds counts packets by what became of them.
type Kinds [numKinds]uint64

// Stats are a capture's own figures, from its beginning.
type Stats struct {
	// Packets are all that passed by: those in the file, or those that the
	// kernel's filter saw. Nil where the classic filter is in use, which does
	// not count.
	Packets *uint64
	// Handed are those that were decoded, in user space.
	Handed uint64
	// Dropped are those that the kernel had no room for.
	Dropped uint64
	// Kinds are the Handed by what became of them; from interfaces, copies and
	// fragments that the kernel's filter kept to itself are counted with them.
	Kinds Kinds
}

// Add adds the figures of another capture. Packets is nil if either is.
func (s *Stats) Add(o Stats) {
	switch {
	case s.Handed == 0 && s.Packets == nil: // the first
		s.Packets = o.Packets
	case s.Packets != nil && o.Packets != nil:
		sum := *s.Packets + *o.Packets
		s.Packets = &sum
	default:
		s.Packets = nil
	}
	s.Handed += o.Handed
	s.Dropped += o.Dropped
	for i, n := range o.Kinds {
		s.Kinds[i] += n
	}
}

// Report is what is told of a capture.
type Report struct {
	Packets *uint64 `json:"packets"`
	Handed  uint64  `json:"handed"`
	Dropped uint64  `json:"dropped"`
	// Other packets had nothing to do with TCP; Copies were seen before.
	Other  uint64 `json:"other"`
	Copies uint64 `json:"copies"`
	// Undecoded packets are by the name of their kind; kinds without a packet
	// are left out.
	Undecoded map[string]uint64 `json:"undecoded"`
}

// Report tells the figures.
func (s *Stats) Report() Report {
	r := Report{
		Packets: s.Packets, Handed: s.Handed, Dropped: s.Dropped,
		Other: s.Kinds[Other], Copies: s.Kinds[Copy], Undecoded: make(map[string]uint64),
	}
	for kind := Fragment; kind < numKinds; kind++ {
		if n := s.Kinds[kind]; n > 0 {
			r.Undecoded[kind.String()] = n
		}
	}
	return r
}

// Lossy tells whether so much was dropped, more than one packet in a hundred,
// that what is counted of the rest is a lower bound.
func (r *Report) Lossy() bool { return r.Dropped*100 > r.Handed+r.Dropped }

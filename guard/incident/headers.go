package incident

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/lvsguard/lvsguard/capture"
)

// headers are what is known of a TCP segment from its headers.
type headers struct {
	weight           float64 // how many it stands for
	src, dst         netip.Addr
	srcPort, dstPort uint16
	seq, ack         uint32
	flags            capture.Flags
	window           uint16
	// length is the IPv4 total length; of IPv6 the payload's and 20, so that one
	// figure means one segment in both families; 0 with extension headers.
	length uint16
	data   uint16 // bytes after the headers; 0 if not known
	ttl    uint8
	urgent uint16
	id     uint16 // IPv4's identification
	// fragmentable: an IPv4 packet that routers may cut up. What today's
	// clients send is not.
	fragmentable bool
	ipOptions    bool // IPv4 options, or IPv6 extension headers
	offset       uint8
	mss          uint16 // 0: no such option
	options      layout
}

func (h *headers) v4() bool { return h.src.Is4() }

// isSYN is as [capture.Segment.IsSYN].
func (h *headers) isSYN() bool {
	return h.flags&(capture.SYN|capture.ACK|capture.RST|capture.FIN) == capture.SYN
}

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20

	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
)

// decode reads the headers of a TCP segment. It is false for everything else.
func decode(p *capture.Packet) (headers, bool) {
	var seg capture.Segment
	wire := max(int(p.Length), len(p.Data))
	if capture.Decode(p.Link, p.Data, wire, &seg) != capture.TCP || seg.Unreachable {
		return headers{}, false
	}
	ip, ok := network(p.Data, wire, &seg)
	if !ok {
		return headers{}, false
	}
	from, to := seg.From(), seg.To()
	h := headers{
		weight: max(1, p.Weight),
		src:    from.Addr(), dst: to.Addr(), srcPort: from.Port(), dstPort: to.Port(),
		seq: seg.Seq, ack: seg.Ack, flags: seg.Flags, window: seg.Window, length: seg.Length,
	}
	least := ipv6Header
	if ip[0]>>4 == 4 {
		least = ipv4Header
		h.ttl, h.id = ip[8], binary.BigEndian.Uint16(ip[4:])
		h.fragmentable = ip[6]&0x40 == 0
		h.ipOptions = ip[0]&0x0f != ipv4Header/4
	} else {
		h.ttl, h.ipOptions = ip[7], ip[6] != 6
	}
	// Behind options, extension headers and the like, the TCP header is where
	// its ports and numbers are.
	var start [12]byte
	binary.BigEndian.PutUint16(start[0:], seg.SrcPort)
	binary.BigEndian.PutUint16(start[2:], seg.DstPort)
	binary.BigEndian.PutUint32(start[4:], seg.Seq)
	binary.BigEndian.PutUint32(start[8:], seg.Ack)
	at := bytes.Index(ip[least:], start[:])
	if at < 0 || len(ip) < least+at+tcpHeader {
		return headers{}, false
	}
	tcp := ip[least+at:]
	h.offset, h.urgent = tcp[12]>>4, binary.BigEndian.Uint16(tcp[18:])
	size := int(h.offset) * 4
	if size > tcpHeader {
		h.options, h.mss = parseOptions(tcp[tcpHeader:min(size, len(tcp))])
	}
	h.data = uint16(max(0, int(h.length)-ipv4Header-at-size)) // as if IPv6's header were IPv4's
	return h, true
}

// network finds the IP header in a frame that decodes to seg: it is where IP
// decodes to the same.
func network(frame []byte, wire int, seg *capture.Segment) ([]byte, bool) {
	for at := range frame {
		proto := uint16(etherIPv4)
		switch frame[at] >> 4 {
		case 4:
		case 6:
			proto = etherIPv6
		default:
			continue
		}
		var found capture.Segment
		if capture.DecodeIP(proto, frame[at:], wire-at, &found) == capture.TCP && found == *seg {
			return frame[at:], true
		}
	}
	return nil, false
}

// A layout is the kinds of a segment's TCP options in their order, each as its
// place in optionNames, four bits from the lowest on. Zero is no options.
type layout uint64

// optionNames are those of nft and tcpdump. The first is no option.
var optionNames = [...]string{
	"", "eol", "nop", "mss", "wscale", "sackOK", "sack", "TS", "md5", "ao", "mptcp", "TFO", "experiment", "other", "bad", "...",
}

// The places in optionNames that are spoken of.
const (
	optionEnd        = 1
	optionNop        = 2
	optionMSS        = 3
	optionScale      = 4
	optionSACK       = 5
	optionTimestamps = 7
	optionOther      = 13
	optionBad        = 14
	optionMore       = 15
)

// optionPlace is a kind's place in optionNames, by IANA's registry of TCP
// option kinds.
func optionPlace(kind byte) layout {
	switch kind {
	case 2, 3, 4, 5:
		return layout(kind) + 1
	case 8:
		return optionTimestamps
	case 19:
		return 8
	case 29:
		return 9
	case 30:
		return 10
	case 34:
		return 11
	case 253, 254:
		return 12
	}
	return optionOther
}

const maxLayout = 16

// parseOptions reads TCP options (RFC 9293, section 3.1).
func parseOptions(b []byte) (l layout, mss uint16) {
	n := 0
	add := func(place layout) bool {
		if n == maxLayout-1 {
			place = optionMore
		}
		l |= place << (4 * n)
		n++
		return n < maxLayout
	}
	for len(b) > 0 {
		switch b[0] {
		case 0:
			add(optionEnd)
			return l, mss
		case 1:
			if !add(optionNop) {
				return l, mss
			}
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			add(optionBad)
			return l, mss
		}
		if b[0] == 2 && b[1] == 4 {
			mss = binary.BigEndian.Uint16(b[2:])
		}
		if !add(optionPlace(b[0])) {
			return l, mss
		}
		b = b[b[1]:]
	}
	return l, mss
}

func (l layout) String() string {
	if l == 0 {
		return "none"
	}
	var names []string
	for ; l != 0; l >>= 4 {
		names = append(names, optionNames[l&0xf])
	}
	return strings.Join(names, ",")
}

// has tells whether an option is there.
func (l layout) has(place layout) bool {
	for ; l != 0; l >>= 4 {
		if l&0xf == place {
			return true
		}
	}
	return false
}

// flagNames are nft's, from FIN on.
var flagNames = []string{"fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"}

func flagText(f capture.Flags) string {
	var names []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, "|")
}

package ipvs

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// An entry is what the census needs of one line of /proc/net/ip_vs_conn, as
// ip_vs_conn_seq_show in net/netfilter/ipvs/ip_vs_conn.c writes it:
//
//	Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
//	TCP C6336401 C350 C0000201 0050 0A000002 0050 SYN_RECV         59
//	TCP 2001:0db8:0000:0000:0000:0000:0000:0001 C350 ... 0050 ESTABLISHED     899
//
// Addresses of IPv4 are hexadecimal numbers, those of IPv6 have all their eight
// groups, in lower case. The two columns at the end are there only with a persistence engine.
type entry struct {
	client     address
	clientPort uint16
	virtual    endpoint // what the client asked for
	state      []byte   // part of the line
}

// An address is an IP address in a form that is cheap to compare and to hash.
type address struct {
	hi, lo uint64 // IPv4: in the low 32 bits of lo
	v6     bool
}

// An endpoint is the address, port and protocol of a virtual service.
type endpoint struct {
	address
	port     uint16
	protocol Protocol
}

// template reports whether the entry is a persistence template, which stands
// for all connections of a client and is none itself: it has no client port, and
// one of the states that ip_vs_state_name has for templates.
func (e *entry) template() bool {
	return e.clientPort == 0 && (string(e.state) == "NONE" || string(e.state) == "ASSURED")
}

// parse reads a line without its newline, and reports whether it is an entry.
// Whether the state is one is for the caller to say.
func (e *entry) parse(line []byte) bool {
	rest, ok := e.parseProtocol(line)
	if !ok {
		return false
	}
	if e.client, rest, ok = parseAddress(rest); !ok {
		return false
	}
	if e.clientPort, rest, ok = parsePort(rest); !ok {
		return false
	}
	if e.virtual.address, rest, ok = parseAddress(rest); !ok || e.virtual.v6 != e.client.v6 {
		return false
	}
	if e.virtual.port, rest, ok = parsePort(rest); !ok {
		return false
	}
	if _, rest, ok = parseAddress(rest); !ok { // the real server, which may be of the other family
		return false
	}
	if _, rest, ok = parsePort(rest); !ok {
		return false
	}
	n := bytes.IndexByte(rest, ' ')
	if n < 0 {
		return false
	}
	e.state, rest = rest[:n], rest[n:]
	return beginsWithNumber(rest)
}

// parseProtocol reads a protocol as ip_vs_proto_name writes it, and the spaces
// after it. Templates of firewall marks have "IP".
func (e *entry) parseProtocol(line []byte) (rest []byte, ok bool) {
	if len(line) < 5 {
		return nil, false
	}
	switch string(line[:4]) {
	case "TCP ":
		e.virtual.protocol = TCP
	case "UDP ":
		e.virtual.protocol = UDP
	case "IP  ":
		e.virtual.protocol = 0
	case "SCTP":
		e.virtual.protocol = SCTP
		return line[5:], line[4] == ' '
	default:
		return nil, false
	}
	return line[4:], true
}

// parseAddress reads an address and the space after it.
func parseAddress(b []byte) (a address, rest []byte, ok bool) {
	const length4, length6 = 8, 8*4 + 7
	switch {
	case len(b) > length4 && b[length4] == ' ':
		v, ok := parseHex(binary.BigEndian.Uint64(b), upper)
		return address{lo: uint64(v)}, b[length4+1:], ok
	case len(b) > length6 && b[length6] == ' ':
		var part [4]uint32
		for i := range part {
			groups := b[i*10:]
			digits := uint64(binary.BigEndian.Uint32(groups))<<32 | uint64(binary.BigEndian.Uint32(groups[5:]))
			if part[i], ok = parseHex(digits, lower); !ok || groups[4] != ':' || i < 3 && groups[9] != ':' {
				return address{}, nil, false
			}
		}
		hi, lo := uint64(part[0])<<32|uint64(part[1]), uint64(part[2])<<32|uint64(part[3])
		return address{hi: hi, lo: lo, v6: true}, b[length6+1:], true
	}
	return address{}, nil, false
}

// parsePort reads a port and the space after it.
func parsePort(b []byte) (port uint16, rest []byte, ok bool) {
	if len(b) < 5 || b[4] != ' ' {
		return 0, nil, false
	}
	v, ok := parseHex('0'*ones&^0xffffffff|uint64(binary.BigEndian.Uint32(b)), upper)
	return uint16(v), b[5:], ok
}

const (
	ones = 0x0101010101010101 // times a byte: that byte in all eight places

	// The distance from '9' to the digit ten, less one.
	upper = 'A' - '9' - 1
	lower = 'a' - '9' - 1
)

// parseHex reads eight hexadecimal digits of one case, all at once, as most of a
// census's time would be spent on them one by one. Written again they must be
// what they were.
func parseHex(digits uint64, letters uint64) (uint32, bool) {
	letter := digits >> 6 & ones // 1 for each that is a letter
	v := digits&(0x0f*ones) + letter*9
	if v&(0xf0*ones) != 0 {
		return 0, false
	}
	overNine := (v + 6*ones) >> 4 & ones
	if v+'0'*ones+overNine*letters != digits {
		return 0, false
	}
	v = (v | v>>4) & 0x00ff00ff00ff00ff
	v = (v | v>>8) & 0x0000ffff0000ffff
	return uint32(v | v>>16), true
}

// beginsWithNumber reports whether b has a decimal number as its first word.
func beginsWithNumber(b []byte) bool {
	i := 0
	for i < len(b) && b[i] == ' ' {
		i++
	}
	first := i
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		i++
	}
	return i > first && (i == len(b) || b[i] == ' ')
}

// isState reports whether word looks like a state's name: SYN_RECV, INIT1,
// SHUTDOWN_RECEIVED, ... The kernel has "BUG!" and "ERR!" for what it does not
// know.
func isState(word []byte) bool {
	for _, c := range word {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '!' {
			return false
		}
	}
	return len(word) > 0 && len(word) <= 24
}

// addressOf returns ip in the census's form.
func addressOf(ip netip.Addr) address {
	if ip.Is4() {
		b := ip.As4()
		return address{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := ip.As16()
	return address{hi: binary.BigEndian.Uint64(b[:8]), lo: binary.BigEndian.Uint64(b[8:]), v6: true}
}

// addr returns the address in the standard library's form.
func (a address) addr() netip.Addr {
	if a.v6 {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], a.hi)
		binary.BigEndian.PutUint64(b[8:], a.lo)
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(a.lo))))
}

// mask returns the first so many bits of the address.
func (a address) mask(bits int) address {
	switch {
	case !a.v6:
		a.lo &= ^uint64(0) << (32 - bits) & 0xffffffff
	case bits <= 64:
		a.hi &= ^uint64(0) << (64 - bits)
		a.lo = 0
	default:
		a.lo &= ^uint64(0) << (128 - bits)
	}
	return a
}

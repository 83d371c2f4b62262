package ipvs

import (
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
// groups. The two columns at the end are there only with a persistence engine.
type entry struct {
	protocol   Protocol
	client     address
	clientPort uint16
	virtual    endpoint // what the client asked for; its protocol is protocol
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
func (e *entry) parse(line []byte) bool {
	word, rest := cut(line)
	var ok bool
	if e.protocol, ok = parseProtocol(word); !ok {
		return false
	}
	var port uint64
	if e.client, rest, ok = parseAddress(rest); !ok {
		return false
	}
	if port, rest, ok = parseHex(rest, 4); !ok {
		return false
	}
	e.clientPort = uint16(port)
	if e.virtual.address, rest, ok = parseAddress(rest); !ok {
		return false
	}
	if port, rest, ok = parseHex(rest, 4); !ok {
		return false
	}
	e.virtual.port, e.virtual.protocol = uint16(port), e.protocol
	if _, rest, ok = parseAddress(rest); !ok { // the real server, which may be of the other family
		return false
	}
	if _, rest, ok = parseHex(rest, 4); !ok {
		return false
	}
	e.state, rest = cut(rest)
	expires, _ := cut(rest)
	return isState(e.state) && isDecimal(expires) && e.client.v6 == e.virtual.v6
}

// cut returns the first word of b and what follows the spaces after it.
func cut(b []byte) (word, rest []byte) {
	n := 0
	for n < len(b) && b[n] != ' ' {
		n++
	}
	word, rest = b[:n], b[n:]
	for len(rest) > 0 && rest[0] == ' ' {
		rest = rest[1:]
	}
	return word, rest
}

// parseProtocol reads a protocol as ip_vs_proto_name writes it. Templates of
// firewall marks have "IP".
func parseProtocol(word []byte) (Protocol, bool) {
	switch string(word) {
	case "TCP":
		return TCP, true
	case "UDP":
		return UDP, true
	case "SCTP":
		return SCTP, true
	case "IP":
		return 0, true
	}
	return 0, false
}

// parseAddress reads an address and the space after it.
func parseAddress(b []byte) (a address, rest []byte, ok bool) {
	if len(b) > 4 && b[4] == ':' {
		const length = 8*4 + 7
		if len(b) <= length || b[length] != ' ' {
			return address{}, nil, false
		}
		a.v6 = true
		var bad byte
		for group := range 8 {
			g := b[group*5:]
			bad |= hex[g[0]] | hex[g[1]] | hex[g[2]] | hex[g[3]]
			if g[4] != ':' && group < 7 {
				bad = notHex
			}
			a.hi = a.hi<<16 | a.lo>>48
			a.lo = a.lo<<16 | uint64(hex[g[0]])<<12 | uint64(hex[g[1]])<<8 | uint64(hex[g[2]])<<4 | uint64(hex[g[3]])
		}
		return a, b[length+1:], bad&notHex == 0
	}
	a.lo, rest, ok = parseHex(b, 8)
	return a, rest, ok
}

// parseHex reads a number of so many hexadecimal digits and the space after it.
func parseHex(b []byte, digits int) (v uint64, rest []byte, ok bool) {
	if len(b) <= digits || b[digits] != ' ' {
		return 0, nil, false
	}
	var bad byte
	for _, c := range b[:digits] {
		d := hex[c]
		bad |= d
		v = v<<4 | uint64(d)
	}
	return v, b[digits+1:], bad&notHex == 0
}

const notHex = 0x80

// hex has the value of each hexadecimal digit, and notHex elsewhere.
var hex = func() (t [256]byte) {
	for i := range t {
		t[i] = notHex
	}
	for i, c := range []byte("0123456789abcdef") {
		t[c] = byte(i)
	}
	for i, c := range []byte("ABCDEF") {
		t[c] = byte(10 + i)
	}
	return t
}()

// isState reports whether word looks like a state's name: SYN_RECV, INIT1,
// SHUTDOWN_RECEIVED, ...
// The kernel has "BUG!" and "ERR!" for what it does not know.
func isState(word []byte) bool {
	for _, c := range word {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' && c != '!' {
			return false
		}
	}
	return len(word) > 0 && len(word) <= 24
}

func isDecimal(word []byte) bool {
	for _, c := range word {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(word) > 0
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

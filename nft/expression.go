package nft

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A rule is a list of kernel expressions. This file makes them, one function a
// term of nft's language; render.go reads them back as text. The vocabulary is
// small on purpose: all that our rules say, and nothing else.

// Registers. A key of address and port lies in two neighbours, and stays there
// while the rule looks it up in several sets; everything else uses scratch.
const (
	registerKey     = unix.NFT_REG_1
	registerPort4   = unix.NFT_REG32_01 // behind 4 bytes of address
	registerPort6   = unix.NFT_REG_2    // behind 16 bytes of address
	registerScratch = unix.NFT_REG_4
)

const tcpProtocol = unix.IPPROTO_TCP

// field is a place in a header. A mask of 0 is the whole field.
type field struct {
	text        string
	base        expr.PayloadBase
	offset, len uint32
	mask        uint16
	shift       int // of the masked value
}

// Header fields: RFC 791, RFC 8200, RFC 9293.
var (
	fieldHeaderLength = field{text: "ip hdrlength", base: expr.PayloadBaseNetworkHeader, offset: 0, len: 1, mask: 0x0f}
	fieldFragment     = field{text: "ip frag-off & 0x3fff", base: expr.PayloadBaseNetworkHeader, offset: 6, len: 2, mask: 0x3fff}
	fieldOffset       = field{text: "ip frag-off & 0x1fff", base: expr.PayloadBaseNetworkHeader, offset: 6, len: 2, mask: 0x1fff}
	fieldNextHeader   = field{text: "ip6 nexthdr", base: expr.PayloadBaseNetworkHeader, offset: 6, len: 1}
	fieldPort         = field{text: "tcp dport", base: expr.PayloadBaseTransportHeader, offset: 2, len: 2}
	fieldHeaderOffset = field{text: "frag frag-off", len: 2, mask: 0xfff8, shift: 3} // loaded by loadFragmentOffset
	fieldDataOffset   = field{text: "tcp doff", base: expr.PayloadBaseTransportHeader, offset: 12, len: 1, mask: 0xf0, shift: 4}
	fieldFlags        = field{text: "tcp flags", base: expr.PayloadBaseTransportHeader, offset: 13, len: 1, mask: flagFIN | flagSYN | flagRST | flagACK}
	fieldWindow       = field{text: "tcp window", base: expr.PayloadBaseTransportHeader, offset: 14, len: 2}
	fieldUrgent       = field{text: "tcp urgptr", base: expr.PayloadBaseTransportHeader, offset: 18, len: 2}
)

const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// family is what differs between IPv4 and IPv6.
type family struct {
	digit          string // in the names of sets and chains
	nfproto        byte
	size           int // of an address, in bytes
	minLength      int // of a TCP segment without options, as length counts it
	source, target field
	length, ttl    field
	portRegister   uint32
	fragmented     func() []expr.Any // a fragment, whichever
	laterFragment  func() []expr.Any // one but the first
}

var ipv4 = &family{
	digit:         "4",
	nfproto:       unix.NFPROTO_IPV4,
	size:          4,
	minLength:     40,
	source:        field{text: "ip saddr", base: expr.PayloadBaseNetworkHeader, offset: 12, len: 4},
	target:        field{text: "ip daddr", base: expr.PayloadBaseNetworkHeader, offset: 16, len: 4},
	length:        field{text: "ip length", base: expr.PayloadBaseNetworkHeader, offset: 2, len: 2},
	ttl:           field{text: "ip ttl", base: expr.PayloadBaseNetworkHeader, offset: 8, len: 1},
	portRegister:  registerPort4,
	fragmented:    func() []expr.Any { return compare(fieldFragment, expr.CmpOpNeq, 0) },
	laterFragment: func() []expr.Any { return compare(fieldOffset, expr.CmpOpNeq, 0) },
}

var ipv6 = &family{
	digit:         "6",
	nfproto:       unix.NFPROTO_IPV6,
	size:          16,
	minLength:     20,
	source:        field{text: "ip6 saddr", base: expr.PayloadBaseNetworkHeader, offset: 8, len: 16},
	target:        field{text: "ip6 daddr", base: expr.PayloadBaseNetworkHeader, offset: 24, len: 16},
	length:        field{text: "ip6 length", base: expr.PayloadBaseNetworkHeader, offset: 4, len: 2},
	ttl:           field{text: "ip6 hoplimit", base: expr.PayloadBaseNetworkHeader, offset: 7, len: 1},
	portRegister:  registerPort6,
	fragmented:    fragmentHeader,
	laterFragment: fragmentHeaderOffset,
}

var families = []*family{ipv4, ipv6}

// is matches packets of the family. nft asks for it before it shows a rule's
// addresses as addresses.
func (f *family) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: registerScratch},
		&expr.Cmp{Op: expr.CmpOpEq, Register: registerScratch, Data: []byte{f.nfproto}},
	}
}

// isTCP matches TCP packets. nft asks for it before it shows ports as ports.
func isTCP() []expr.Any { return protocol(expr.CmpOpEq) }

func isNotTCP() []expr.Any { return protocol(expr.CmpOpNeq) }

func protocol(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: registerScratch},
		&expr.Cmp{Op: op, Register: registerScratch, Data: []byte{tcpProtocol}},
	}
}

// loopback is lo's index, the same in every network namespace.
const loopback = 1

func fromLoopback() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: registerScratch},
		&expr.Cmp{Op: expr.CmpOpEq, Register: registerScratch, Data: binary.NativeEndian.AppendUint32(nil, loopback)},
	}
}

// loadFragmentHeader and loadFragmentOffset ask for an IPv6 fragment header,
// RFC 8200 section 4.5: whether there is one, and its offset.
func loadFragmentHeader() *expr.Exthdr {
	return &expr.Exthdr{DestRegister: registerScratch, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6}
}

func loadFragmentOffset() *expr.Exthdr {
	return &expr.Exthdr{DestRegister: registerScratch, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6}
}

// fragmentHeader asks first whether there is any header before TCP's, because
// that is cheap and nearly never so.
func fragmentHeader() []expr.Any {
	return append(compare(fieldNextHeader, expr.CmpOpNeq, tcpProtocol),
		loadFragmentHeader(),
		&expr.Cmp{Op: expr.CmpOpEq, Register: registerScratch, Data: []byte{1}})
}

func fragmentHeaderOffset() []expr.Any {
	return append([]expr.Any{loadFragmentOffset()}, compare(fieldHeaderOffset, expr.CmpOpNeq, 0)[1:]...)
}

func (f field) load(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: f.base, Offset: f.offset, Len: f.len}
}

func (f field) bytes(v uint16) []byte {
	if f.len == 1 {
		return []byte{byte(v)}
	}
	return binary.BigEndian.AppendUint16(nil, v)
}

func compare(f field, op expr.CmpOp, v uint16) []expr.Any {
	exprs := []expr.Any{f.load(registerScratch)}
	if f.mask != 0 {
		exprs = append(exprs, &expr.Bitwise{
			SourceRegister: registerScratch, DestRegister: registerScratch,
			Len: f.len, Mask: f.bytes(f.mask), Xor: f.bytes(0),
		})
	}
	return append(exprs, &expr.Cmp{Op: op, Register: registerScratch, Data: f.bytes(v << f.shift)})
}

func equal(f field, v uint16) []expr.Any { return compare(f, expr.CmpOpEq, v) }

func between(f field, lowest, highest uint16) []expr.Any {
	if lowest == highest {
		return equal(f, lowest)
	}
	return append(compare(f, expr.CmpOpGte, lowest),
		&expr.Cmp{Op: expr.CmpOpLte, Register: registerScratch, Data: f.bytes(highest)})
}

// readable matches packets that carry the whole of f. It can be asked because
// the kernel ends a rule at a field that the packet is too short for. (Later
// fragments are no exception: what lies in f's place there is read as f.)
func readable(f field) []expr.Any { return compare(f, expr.CmpOpGte, 0) }

// loadKey puts a packet's destination into registerKey: the address, and the
// port behind it unless every port is meant.
func (f *family) loadKey(every bool) []expr.Any {
	key := []expr.Any{f.target.load(registerKey)}
	if every {
		return key
	}
	return append(key, fieldPort.load(f.portRegister))
}

// key is loadKey for a rule that has not asked for family and TCP yet.
func (f *family) key(every bool) []expr.Any {
	if every {
		return slices.Concat(f.is(), f.loadKey(every))
	}
	return slices.Concat(f.is(), isTCP(), f.loadKey(every))
}

func (f *family) loadSource() []expr.Any { return []expr.Any{f.source.load(registerKey)} }

// in matches what has its key in a set, and counts it there if the set counts.
func in(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: registerKey, SetName: set}}
}

// notIn matches what has its key not in a set, and counts nothing.
func notIn(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: registerKey, SetName: set, Invert: true}}
}

func count(counter string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// ruleOf makes a rule of terms.
func ruleOf(comment string, terms ...[]expr.Any) rule {
	return rule{comment: comment, exprs: slices.Concat(terms...)}
}

type rule struct {
	comment string
	exprs   []expr.Any
}

package capture

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// The filter's own memory of SYNs is an array of sets. Where a connection
// belongs, and by what it is known there, is a keyed hash of its addresses and
// ports. A set has one cursor for SYNs in general and one for those that bear
// the signature of a flood, each over slots of its own, so that a flood pushes
// out nothing but itself. The slot that is written next is the one written
// longest ago. As struct:
//
//	fingerprint [31]u32      0: empty
//	calm, flood u16          the cursors
//	isn         [32]u32      the client's, in host byte order
//	answer      [32]u32      the server's; 0: no SYN/ACK was seen
//
// So what nearly every segment needs, to be told that it belongs to no
// handshake, is in two cache lines.
const (
	setSlots   = setCalm + setFlood
	setCalm    = 23
	setFlood   = 8
	setCursors = 4 * setSlots
	setISN     = setCursors + 4
	setAnswer  = setISN + 4*(setSlots+1)
	setSize    = setAnswer + 4*(setSlots+1)
)

// The filter's counters.
const (
	countPackets   = iota // all on the interfaces that were chosen
	countHanded           // given to user space
	countCopies           // forwarded copies, of those that would have been handed up
	countFragments        // IP fragments but the first
	countScreened         // SYNs with the signature to a service that is armed
	numCounts
)

// What an interface's entry in the filter's map says.
const (
	linkEthernet = 1 + iota // the frame begins with an Ethernet header
	linkNone                // it begins with IP
	linkOther               // it begins with something else: all of it is handed up
	linkMask     = 3
	// linkLoops: what goes out comes in again, and is looked at then.
	linkLoops = 4
)

const (
	// snapHeaders is how much of a segment is handed up, from the TCP header
	// on: the longest header there is. It is no less than what is recorded.
	snapHeaders = 60
	// snapQuote is how much of an ICMP error: its own header, an IPv6 header
	// with some extensions, and of TCP what the error has to quote.
	snapQuote = 8 + 120
	// snapUnknown is how much of what the filter cannot tell.
	snapUnknown = 512

	packetOutgoing = 4 // PACKET_OUTGOING
	// acceptable is how far past an initial sequence number the first segment
	// of the other side may be.
	acceptable = 65536
)

// Where the program keeps what, below the frame pointer. Address and TCP header
// stand together, so that one load fetches both. IPv4 addresses are moved to
// where IPv6 has its, as ::ffff:a.b.c.d.
const (
	atKey     = -4  // a map's key
	atCounts  = -16 // the counters of this CPU
	atISN     = -20
	atArmed   = -40 // armedKey
	atTCP     = -64
	atIPv4    = atTCP - ipv4Header
	atIPv6    = atTCP - ipv6Header
	atSrc     = atIPv6 + 8
	atDst     = atIPv6 + 24
	atLoose   = -112 // an extension header, a VLAN tag, an ICMP type
	armedSize = 20   // address and port as in the headers, and two bytes of 0
)

// program is a BPF program under construction. Its registers are:
//
//	R6  the context
//	R7  how far into the packet
//	R8  a value that outlives calls: protocol, flags, then the fingerprint
//	R9  the same: whether the segment has the signature's length, or a set
type program struct {
	code  asm.Instructions
	label string
	made  int
}

// add appends instructions, the first of which bears the label.
func (p *program) add(code ...asm.Instruction) {
	if p.label != "" {
		code[0] = code[0].WithSymbol(p.label)
		p.label = ""
	}
	p.code = append(p.code, code...)
}

// at gives the next instruction a label.
func (p *program) at(label string) {
	if p.label != "" { // two labels for one instruction
		p.add(asm.Ja.Label(label))
	}
	p.label = label
}

// unique makes a label that there is once.
func (p *program) unique(label string) string {
	p.made++
	return fmt.Sprintf("%s_%d", label, p.made)
}

// load brings size bytes of the packet, from R7 on, to where at says, or jumps.
func (p *program) load(at int16, size int32, short string) {
	p.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, int32(at)),
		asm.Mov.Imm(asm.R4, size),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, short),
	)
}

// get loads a number of size bytes from below the frame pointer.
func (p *program) get(dst asm.Register, at int16, size asm.Size) {
	p.add(asm.LoadMem(dst, asm.RFP, at, size))
}

// field is get for a number in network byte order.
func (p *program) field(dst asm.Register, at int16, size asm.Size) {
	p.get(dst, at, size)
	p.add(asm.HostTo(asm.BE, dst, size))
}

// lookup looks for the key that at says in a map. R0 is its value; if there is
// none, it jumps.
func (p *program) lookup(fd int, at int16, none string) {
	p.add(
		asm.LoadMapPtr(asm.R1, fd),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(at)),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, none),
	)
}

// count adds one to a counter. It clobbers R1 and R2.
func (p *program) count(counter int16) {
	p.get(asm.R1, atCounts, asm.DWord)
	p.add(
		asm.LoadMem(asm.R2, asm.R1, 8*counter, asm.DWord),
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(asm.R1, 8*counter, asm.R2, asm.DWord),
	)
}

// interfaceOf makes R7 what is known of the packet's interface, or jumps.
func (p *program) interfaceOf(fd int, none string) {
	p.add(
		asm.LoadMem(asm.R1, asm.R6, skbIfindex, asm.Word),
		asm.StoreMem(asm.RFP, atKey, asm.R1, asm.Word),
	)
	p.lookup(fd, atKey, none)
	p.add(asm.LoadMem(asm.R7, asm.R0, 0, asm.Word))
}

// Fields of struct __sk_buff.
const (
	skbLength   = 0
	skbPktType  = 4
	skbProtocol = 16
	skbIfindex  = 40
)

// network steps over VLAN tags and jumps to ipv4 or ipv6, to other if it is
// neither, and to unknown if it might be. R7 is where the network header begins.
func (p *program) network(ipv4, ipv6, other, unknown string) {
	p.add(
		asm.LoadMem(asm.R8, asm.R6, skbProtocol, asm.Word),
		asm.HostTo(asm.BE, asm.R8, asm.Half),
	)
	for tags := 0; ; tags++ {
		tag := p.unique("tag")
		p.add(asm.JEq.Imm(asm.R8, etherIPv4, ipv4), asm.JEq.Imm(asm.R8, etherIPv6, ipv6))
		for _, proto := range []int32{etherPPPoE, etherMPLS, etherMPLSDown} {
			p.add(asm.JEq.Imm(asm.R8, proto, unknown))
		}
		if tags == 2 {
			tag = unknown
		}
		for _, proto := range []int32{etherVLAN, etherQinQ, etherOldQinQ} {
			p.add(asm.JEq.Imm(asm.R8, proto, tag))
		}
		p.add(asm.Ja.Label(other))
		if tags == 2 {
			return
		}
		p.at(tag)
		p.load(atLoose, tagHeader, unknown)
		p.field(asm.R8, atLoose+2, asm.Half)
		p.add(asm.Add.Imm(asm.R7, tagHeader))
	}
}

// ways are the labels where a program goes on with a packet.
type ways struct {
	tcp, icmp, icmpv6 string // R7 is where its header begins
	fragment          string // one other than the first
	other             string // nothing to do with TCP
	unknown           string // it might be TCP
}

// ip steps over IP headers. For TCP, the header's first size bytes are at atTCP
// then, and R9 tells whether the packet has 40 bytes (with IPv6's header counted
// as IPv4's) and no extension headers. The addresses are at atSrc and atDst.
func (p *program) ip(size int32, w ways) {
	ipv4, ipv6 := p.unique("ipv4"), p.unique("ipv6")
	p.network(ipv4, ipv6, w.other, w.unknown)
	p.at(ipv4)
	p.ipv4(size, w)
	p.at(ipv6)
	p.ipv6(size, w)
}

// ipv4 is ip for IPv4.
func (p *program) ipv4(size int32, w ways) {
	short, parse, ours, again := p.unique("short"), p.unique("parse"), p.unique("ours"), p.unique("again")
	whole := p.unique("whole")
	// Nearly always one load will do: a header without options, then TCP.
	p.load(atIPv4, ipv4Header+size, short)
	p.add(asm.Mov.Imm(asm.R9, ipv4Header), asm.Ja.Label(parse))
	p.at(short)
	p.load(atIPv4, ipv4Header, w.unknown)
	p.add(asm.Mov.Imm(asm.R9, 0))

	p.at(parse)
	p.get(asm.R1, atIPv4, asm.Byte)
	p.add(
		asm.Mov.Reg(asm.R2, asm.R1),
		asm.RSh.Imm(asm.R2, 4),
		asm.JNE.Imm(asm.R2, 4, w.unknown),
		asm.And.Imm(asm.R1, 0xf),
		asm.LSh.Imm(asm.R1, 2),
		asm.JLT.Imm(asm.R1, ipv4Header, w.unknown),
		asm.Add.Reg(asm.R7, asm.R1),
	)
	p.get(asm.R8, atIPv4+9, asm.Byte)
	p.field(asm.R3, atIPv4+6, asm.Half)
	p.add(
		asm.And.Imm(asm.R3, fragmentOffset),
		asm.JEq.Imm(asm.R8, protoTCP, ours),
		asm.JNE.Imm(asm.R3, 0, ours),
		asm.JEq.Imm(asm.R8, protoICMP, ours),
		asm.JEq.Imm(asm.R8, protoAH, w.unknown),
		asm.Ja.Label(w.other),
	)
	p.at(ours)
	p.addressesIPv4()
	p.add(
		// A total length shorter than the header; 0 is that of a packet too big
		// for the field.
		asm.JEq.Imm(asm.R4, 0, whole),
		asm.JLT.Reg(asm.R4, asm.R1, w.unknown),
	)
	p.at(whole)
	p.add(
		asm.JNE.Imm(asm.R3, 0, w.fragment),
		asm.JEq.Imm(asm.R8, protoICMP, w.icmp),
		asm.JNE.Reg(asm.R9, asm.R1, again),
		asm.Mov.Imm(asm.R9, 0),
		asm.JNE.Imm(asm.R4, ipv4Header+tcpHeader, w.tcp),
		asm.Mov.Imm(asm.R9, 1),
		asm.Ja.Label(w.tcp),
	)
	p.at(again)
	p.load(atTCP, size, w.unknown)
	p.add(asm.Mov.Imm(asm.R9, 0), asm.Ja.Label(w.tcp))
}

// unreachable jumps by the type of the ICMP message at R7.
func (p *program) unreachable(kind int32, yes, no, unknown string) {
	p.load(atLoose, 1, unknown)
	p.get(asm.R1, atLoose, asm.Byte)
	p.add(asm.JEq.Imm(asm.R1, kind, yes), asm.Ja.Label(no))
}

// addressesIPv4 moves the addresses to where IPv6 has them. R4 becomes the total
// length.
func (p *program) addressesIPv4() {
	p.field(asm.R4, atIPv4+2, asm.Half)
	p.get(asm.R2, atIPv4+12, asm.Word)
	p.get(asm.R5, atIPv4+16, asm.Word)
	p.add(
		asm.Mov.Imm(asm.R0, 0),
		asm.StoreMem(asm.RFP, atSrc, asm.R0, asm.DWord),
		asm.StoreMem(asm.RFP, atDst, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R0, 0xffff),
		asm.HostTo(asm.BE, asm.R0, asm.Word),
		asm.StoreMem(asm.RFP, atSrc+8, asm.R0, asm.Word),
		asm.StoreMem(asm.RFP, atDst+8, asm.R0, asm.Word),
		asm.StoreMem(asm.RFP, atSrc+12, asm.R2, asm.Word),
		asm.StoreMem(asm.RFP, atDst+12, asm.R5, asm.Word),
	)
}

// ipv6 is ip for IPv6.
func (p *program) ipv6(size int32, w ways) {
	short, parse, extended, again := p.unique("short"), p.unique("parse"), p.unique("extended"), p.unique("again")
	p.load(atIPv6, ipv6Header+size, short)
	p.add(asm.Mov.Imm(asm.R9, 1), asm.Ja.Label(parse))
	p.at(short)
	p.load(atIPv6, ipv6Header, w.unknown)
	p.add(asm.Mov.Imm(asm.R9, 0))

	p.at(parse)
	p.get(asm.R1, atIPv6, asm.Byte)
	p.add(asm.RSh.Imm(asm.R1, 4), asm.JNE.Imm(asm.R1, 6, w.unknown), asm.Add.Imm(asm.R7, ipv6Header))
	p.get(asm.R8, atIPv6+6, asm.Byte)
	p.add(
		asm.JNE.Imm(asm.R8, protoTCP, extended),
		asm.JEq.Imm(asm.R9, 0, again),
	)
	p.field(asm.R1, atIPv6+4, asm.Half)
	p.add(
		asm.JEq.Imm(asm.R1, tcpHeader, w.tcp), // R9 is 1
		asm.Mov.Imm(asm.R9, 0),
		asm.Ja.Label(w.tcp),
	)

	p.at(extended)
	for range 4 {
		next, header, fragment, auth := p.unique("next"), p.unique("header"), p.unique("fragment"), p.unique("auth")
		p.add(
			asm.JEq.Imm(asm.R8, protoTCP, again),
			asm.JEq.Imm(asm.R8, protoICMPv6, w.icmpv6),
		)
		for _, proto := range []int32{protoHopByHop, protoRouting, protoDestOptions, protoMobility, protoFragment, protoAH} {
			p.add(asm.JEq.Imm(asm.R8, proto, header))
		}
		p.add(asm.Ja.Label(w.other))
		p.at(header)
		p.load(atLoose, 8, w.unknown)
		p.get(asm.R1, atLoose+1, asm.Byte)
		p.add(
			asm.JEq.Imm(asm.R8, protoFragment, fragment),
			asm.JEq.Imm(asm.R8, protoAH, auth),
			asm.Add.Imm(asm.R1, 1),
			asm.LSh.Imm(asm.R1, 3),
			asm.Ja.Label(next),
		)
		p.at(auth)
		p.add(asm.Add.Imm(asm.R1, 2), asm.LSh.Imm(asm.R1, 2), asm.Ja.Label(next))
		p.at(fragment)
		p.field(asm.R1, atLoose+2, asm.Half)
		p.add(
			asm.And.Imm(asm.R1, 0xfff8),
			asm.JNE.Imm(asm.R1, 0, w.fragment),
			asm.Mov.Imm(asm.R1, 8),
		)
		p.at(next)
		p.add(
			asm.Add.Reg(asm.R7, asm.R1),
			asm.LoadMem(asm.R1, asm.R6, skbLength, asm.Word),
			asm.JGT.Reg(asm.R7, asm.R1, w.unknown), // longer than its packet
		)
		p.get(asm.R8, atLoose, asm.Byte)
	}
	p.add(asm.JEq.Imm(asm.R8, protoTCP, again), asm.JEq.Imm(asm.R8, protoICMPv6, w.icmpv6), asm.Ja.Label(w.unknown))
	p.at(again)
	p.load(atTCP, size, w.unknown)
	p.add(asm.Mov.Imm(asm.R9, 0), asm.Ja.Label(w.tcp))
}

// A keyed hash that nobody can aim without knowing the keys: a sum of products
// of 32-bit words with random 64-bit numbers is as good as random for any two
// inputs (Lemire and Kaser, "Strongly universal string hashing is fast", 2014).
type hashKeys struct {
	seed     uint64
	src, dst [4]uint64
	ports    uint64
}

// hash makes R8 the hash of the segment's connection, as the side sees it that
// sent it, or the other one. It clobbers R1 to R3.
func (p *program) hash(k *hashKeys, reply bool) {
	src, dst := int16(atSrc), int16(atDst)
	if reply {
		src, dst = dst, src
	}
	low := p.unique("low")
	multiply := func(key uint64) {
		p.add(
			asm.LoadImm(asm.R2, int64(key), asm.DWord),
			asm.Mul.Reg(asm.R1, asm.R2),
			asm.Add.Reg(asm.R8, asm.R1),
		)
	}
	words := func(i int) {
		p.get(asm.R1, src+int16(4*i), asm.Word)
		multiply(k.src[i])
		p.get(asm.R1, dst+int16(4*i), asm.Word)
		multiply(k.dst[i])
	}
	p.add(asm.LoadImm(asm.R8, int64(k.seed), asm.DWord))
	// The first half of an IPv4 address is 0 and adds nothing.
	p.get(asm.R1, src, asm.DWord)
	p.get(asm.R2, dst, asm.DWord)
	p.add(asm.Or.Reg(asm.R1, asm.R2), asm.JEq.Imm(asm.R1, 0, low))
	words(0)
	words(1)
	p.at(low)
	words(2)
	words(3)
	p.get(asm.R1, atTCP, asm.Word)
	if reply { // the ports change places
		p.add(
			asm.Mov.Reg(asm.R2, asm.R1),
			asm.RSh.Imm(asm.R2, 16),
			asm.LSh.Imm(asm.R1, 16),
			asm.Or.Reg(asm.R1, asm.R2),
			asm.Mov.Reg32(asm.R1, asm.R1),
		)
	}
	multiply(k.ports)
	p.mix()
}

// mix spreads what is in any bit of R8 to all of them: the finalizer of
// MurmurHash3, by Austin Appleby, in the public domain. Two different values
// stay different.
func (p *program) mix() {
	const first, second = 0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53
	shift := func() {
		p.add(asm.Mov.Reg(asm.R1, asm.R8), asm.RSh.Imm(asm.R1, 33), asm.Xor.Reg(asm.R8, asm.R1))
	}
	multiply := func(by uint64) {
		p.add(asm.LoadImm(asm.R1, int64(by), asm.DWord), asm.Mul.Reg(asm.R8, asm.R1))
	}
	shift()
	multiply(first)
	shift()
	multiply(second)
	shift()
}

// find looks for the connection whose hash is in R8 among the SYNs. R8 becomes
// its fingerprint. If it is there, R0 points to its slot; if not, to the set's
// cursors.
func (p *program) find(fd int, sets int, found, lost string) {
	p.add(
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.RSh.Imm(asm.R1, int32(64-sets)),
		asm.StoreMem(asm.RFP, atKey, asm.R1, asm.Word),
		asm.Mov.Reg32(asm.R8, asm.R8),
		asm.Or.Imm(asm.R8, 1), // 0 is an empty slot
	)
	p.lookup(fd, atKey, "unknown") // there is always a set, but the verifier does not know
	for range setSlots {
		p.add(
			asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
			asm.JEq.Reg(asm.R1, asm.R8, found),
			asm.Add.Imm(asm.R0, 4),
		)
	}
	p.add(asm.Ja.Label(lost))
}

// local goes on if the packet comes in, or if this host itself sends it. Else
// it is the copy of one that came in.
func (p *program) local(fd int, copied string) {
	ours := p.unique("ours")
	p.add(
		asm.LoadMem(asm.R1, asm.R6, skbPktType, asm.Word),
		asm.JNE.Imm(asm.R1, packetOutgoing, ours),
	)
	p.lookup(fd, atSrc, copied)
	p.at(ours)
}

// past jumps unless field at of the TCP header is 1 to acceptable past the
// number in base. It clobbers R2.
func (p *program) past(at int16, base asm.Register, not string) {
	p.field(asm.R2, at, asm.Word)
	p.add(
		asm.Sub.Reg32(asm.R2, base),
		asm.Sub.Imm32(asm.R2, 1),
		asm.JGE.Imm(asm.R2, acceptable, not),
	)
}

// filterMaps are the descriptors of a filter's maps.
type filterMaps struct {
	interfaces int // u32 index: u32, what there is to know of it
	locals     int // address: u8
	armed      int // armedKey: u64, SYNs that were counted and not handed up
	sampled    int // one u32: of 1<<32 such SYNs, so many are handed up and not counted
	syns       int // sets
	counts     int // one value of numCounts u64 for each CPU
	sets       int // syns has 1<<sets of them
}

const (
	flagsKnown = int32(SYN | ACK | RST | FIN)

	tcpSeq    = atTCP + 4
	tcpAck    = atTCP + 8
	tcpFlags  = atTCP + 13
	tcpWindow = atTCP + 14
)

// filterProgram is the socket filter. It returns how much of a packet is handed
// up, 0 for one that is not.
func filterProgram(m filterMaps, keys *hashKeys) asm.Instructions {
	p := &program{}
	p.add(asm.Mov.Reg(asm.R6, asm.R1))
	p.interfaceOf(m.interfaces, "drop")
	p.add(
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.And.Imm(asm.R1, linkLoops),
		asm.JEq.Imm(asm.R1, 0, "seen"),
		asm.LoadMem(asm.R1, asm.R6, skbPktType, asm.Word),
		asm.JEq.Imm(asm.R1, packetOutgoing, "drop"),
	)
	p.at("seen")
	p.add(asm.StoreImm(asm.RFP, atKey, 0, asm.Word))
	p.lookup(m.counts, atKey, "drop")
	p.add(asm.StoreMem(asm.RFP, atCounts, asm.R0, asm.DWord))
	p.count(countPackets)
	p.add(
		asm.And.Imm(asm.R7, linkMask),
		asm.JEq.Imm(asm.R7, linkOther, "unknown"),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Mov.Imm(asm.R7, 0),
		asm.JNE.Imm(asm.R1, linkEthernet, "network"),
		asm.Mov.Imm(asm.R7, ethernetHeader),
	)
	p.at("network")
	p.ip(tcpHeader, ways{tcp: "tcp", icmp: "icmp", icmpv6: "icmpv6", fragment: "fragment", other: "drop", unknown: "unknown"})

	p.at("icmp")
	p.unreachable(icmpUnreachable, "unreachable", "drop", "unknown")
	p.at("icmpv6")
	p.unreachable(icmpv6Unreachable, "unreachable", "drop", "unknown")
	p.at("unreachable")
	p.local(m.locals, "copied")
	p.add(asm.Add.Imm(asm.R7, snapQuote), asm.Ja.Label("hand"))

	p.at("tcp")
	p.get(asm.R8, tcpFlags, asm.Byte)
	p.add(
		asm.And.Imm(asm.R8, flagsKnown),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.And.Imm(asm.R1, int32(RST)),
		asm.JNE.Imm(asm.R1, 0, "rst"),
		asm.JEq.Imm(asm.R8, int32(SYN), "syn"),
		asm.JEq.Imm(asm.R8, int32(SYN|ACK), "synack"),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.And.Imm(asm.R1, int32(SYN)),
		asm.JNE.Imm(asm.R1, 0, "odd"),
		asm.And.Imm(asm.R8, int32(ACK)),
		asm.JEq.Imm(asm.R8, 0, "drop"),
	)

	// What has ACK and is not an answer to a SYN is nearly all there is.
	p.hash(keys, false)
	p.find(m.syns, m.sets, "ack_found", "drop")
	p.at("ack_found")
	p.add(
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.LoadMem(asm.R1, asm.R9, setISN, asm.Word),
	)
	p.past(tcpSeq, asm.R1, "drop")
	p.local(m.locals, "copied")
	p.add(
		asm.LoadMem(asm.R1, asm.R9, setAnswer, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "completed"),
	)
	p.past(tcpAck, asm.R1, "segment")
	p.at("completed")
	p.add(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.R9, 0, asm.R1, asm.Word),
		asm.Ja.Label("segment"),
	)

	p.at("rst")
	p.hash(keys, false)
	p.find(m.syns, m.sets, "odd", "rst_lost")
	p.at("rst_lost")
	p.hash(keys, true)
	p.find(m.syns, m.sets, "odd", "drop")
	p.at("odd")
	p.local(m.locals, "copied")
	p.add(asm.Ja.Label("segment"))

	p.at("synack")
	p.local(m.locals, "copied")
	p.hash(keys, true)
	p.find(m.syns, m.sets, "synack_found", "segment")
	p.at("synack_found")
	p.add(asm.LoadMem(asm.R1, asm.R0, setISN, asm.Word))
	p.past(tcpAck, asm.R1, "segment")
	p.field(asm.R1, tcpSeq, asm.Word)
	// 0 means that there was none. To take 0 for 1 does no harm: the client's
	// next segment but one will do as well.
	p.add(
		asm.JNE.Imm(asm.R1, 0, "answered"),
		asm.Mov.Imm(asm.R1, 1),
	)
	p.at("answered")
	p.add(asm.StoreMem(asm.R0, setAnswer, asm.R1, asm.Word), asm.Ja.Label("segment"))

	p.at("syn")
	p.local(m.locals, "copied")
	p.add(asm.JEq.Imm(asm.R9, 0, "remember"))
	p.get(asm.R1, tcpWindow, asm.Half)
	p.add(
		asm.Mov.Imm(asm.R9, 0),
		asm.JNE.Imm(asm.R1, 0, "remember"),
		asm.Mov.Imm(asm.R9, 1),
	)
	p.get(asm.R1, atDst, asm.DWord)
	p.get(asm.R2, atDst+8, asm.DWord)
	p.get(asm.R3, atTCP+2, asm.Half)
	p.add(
		asm.StoreMem(asm.RFP, atArmed, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, atArmed+8, asm.R2, asm.DWord),
		asm.StoreImm(asm.RFP, atArmed+16, 0, asm.Word),
		asm.StoreMem(asm.RFP, atArmed+16, asm.R3, asm.Half),
	)
	p.lookup(m.armed, atArmed, "any_port")
	p.add(asm.Ja.Label("screen"))
	p.at("any_port")
	p.add(asm.StoreImm(asm.RFP, atArmed+16, 0, asm.Word))
	p.lookup(m.armed, atArmed, "remember")
	p.at("screen")
	p.add(asm.Mov.Reg(asm.R9, asm.R0), asm.StoreImm(asm.RFP, atKey, 0, asm.Word))
	p.lookup(m.sampled, atKey, "drop") // it is always there, but the verifier does not know
	p.add(
		asm.LoadMem(asm.R8, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R8, 0, "screened"),
		asm.FnGetPrandomU32.Call(),
		asm.JLT.Reg(asm.R0, asm.R8, "segment"),
	)
	p.at("screened")
	p.add(asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R9, asm.R1, asm.DWord))
	p.count(countScreened)
	p.add(asm.Ja.Label("drop"))

	p.at("remember")
	p.hash(keys, false)
	p.field(asm.R5, tcpSeq, asm.Word)
	p.add(asm.StoreMem(asm.RFP, atISN, asm.R5, asm.Word))
	p.find(m.syns, m.sets, "syn_found", "syn_lost")
	p.at("syn_lost")
	p.add(
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.Sub.Imm(asm.R1, setCursors),
		asm.JNE.Imm(asm.R9, 0, "flood"),
	)
	p.slot(0, setCalm, "slot")
	p.at("flood")
	p.add(asm.Add.Imm(asm.R1, 4*setCalm))
	p.slot(2, setFlood, "slot")
	p.at("slot")
	p.add(
		asm.Mov.Reg(asm.R0, asm.R1),
		asm.StoreMem(asm.R0, 0, asm.R8, asm.Word),
	)
	p.at("syn_found")
	p.get(asm.R5, atISN, asm.Word)
	p.add(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.R0, setISN, asm.R5, asm.Word),
		asm.StoreMem(asm.R0, setAnswer, asm.R1, asm.Word),
	)

	p.at("segment")
	p.add(
		asm.Add.Imm(asm.R7, snapHeaders),
		asm.JGE.Imm(asm.R7, SnapLength, "hand"),
		asm.Mov.Imm(asm.R7, SnapLength),
	)
	p.at("hand")
	p.count(countHanded)
	p.add(asm.Mov.Reg(asm.R0, asm.R7), asm.Return())

	p.at("unknown")
	p.add(asm.Mov.Imm(asm.R7, snapUnknown), asm.Ja.Label("hand"))
	p.at("copied")
	p.count(countCopies)
	p.add(asm.Ja.Label("drop"))
	p.at("fragment")
	p.local(m.locals, "copied")
	p.count(countFragments)
	p.at("drop")
	p.add(asm.Mov.Imm(asm.R0, 0), asm.Return())
	return p.code
}

// slot goes to a label with R1, which points to the first of n slots, moved to
// the one that the cursor at R0 says, and moves that on. Two CPUs at once may
// take the same slot, and one of the SYNs is then lost; with sets in their tens
// of thousands that is less than one in a million.
//
// To add the cursor to R1 would be shorter. But without CAP_PERFMON the verifier
// then tells all numbers apart that might be added, and does not come to an end.
func (p *program) slot(cursor int16, n int32, done string) {
	next := p.unique("next")
	p.add(
		asm.LoadMem(asm.R2, asm.R0, cursor, asm.Half),
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.Add.Imm(asm.R3, 1),
		asm.JLT.Imm(asm.R3, n, next),
		asm.Mov.Imm(asm.R3, 0),
	)
	p.at(next)
	p.add(asm.StoreMem(asm.R0, cursor, asm.R3, asm.Half))
	for i := range n - 1 {
		p.add(asm.JEq.Imm(asm.R2, i, done), asm.Add.Imm(asm.R1, 4))
	}
	p.add(asm.Ja.Label(done))
}

// steeringProgram chooses the worker that a packet goes to: the same for all of
// a connection, both ways, and for ICMP errors about it.
func steeringProgram(m filterMaps, keys *hashKeys) asm.Instructions {
	p := &program{}
	p.add(asm.Mov.Reg(asm.R6, asm.R1))
	p.interfaceOf(m.interfaces, "any")
	// Here a frame that came in begins with the network header.
	p.add(
		asm.And.Imm(asm.R7, linkMask),
		asm.JEq.Imm(asm.R7, linkOther, "any"),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Mov.Imm(asm.R7, 0),
		asm.JNE.Imm(asm.R1, linkEthernet, "network"),
		asm.LoadMem(asm.R1, asm.R6, skbPktType, asm.Word),
		asm.JNE.Imm(asm.R1, packetOutgoing, "network"),
		asm.Mov.Imm(asm.R7, ethernetHeader),
	)
	const ports = 4
	p.at("network")
	p.ip(ports, ways{tcp: "connection", icmp: "icmp", icmpv6: "icmpv6", fragment: "any", other: "any", unknown: "any"})
	quoted := ways{tcp: "connection", icmp: "any", icmpv6: "any", fragment: "any", other: "any", unknown: "any"}
	p.at("icmp")
	p.unreachable(icmpUnreachable, "quoted", "any", "any")
	p.at("quoted")
	p.add(asm.Add.Imm(asm.R7, icmpHeader))
	p.ipv4(ports, quoted)
	p.at("icmpv6")
	p.unreachable(icmpv6Unreachable, "quoted_ipv6", "any", "any")
	p.at("quoted_ipv6")
	p.add(asm.Add.Imm(asm.R7, icmpHeader))
	p.ipv6(ports, quoted)

	p.at("connection")
	word := func(src, dst int16, size asm.Size, key uint64) {
		p.get(asm.R1, src, size)
		p.get(asm.R2, dst, size)
		p.add(
			asm.Add.Reg(asm.R1, asm.R2),
			asm.LoadImm(asm.R2, int64(key), asm.DWord),
			asm.Mul.Reg(asm.R1, asm.R2),
			asm.Add.Reg(asm.R8, asm.R1),
		)
	}
	p.add(asm.LoadImm(asm.R8, int64(keys.seed), asm.DWord))
	for i, key := range keys.src {
		word(atSrc+int16(4*i), atDst+int16(4*i), asm.Word, key)
	}
	word(atTCP, atTCP+2, asm.Half, keys.ports)
	p.mix()
	p.add(asm.Mov.Reg32(asm.R0, asm.R8), asm.Return())
	p.at("any")
	p.add(asm.Mov.Imm(asm.R0, 0), asm.Return())
	return p.code
}

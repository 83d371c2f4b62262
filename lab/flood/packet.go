package flood

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
)

// A template is a frame to one target, all but what differs from packet to packet.
type template struct {
	frame []byte
	ip    int // where the IP header's source address is
	tcp   int // where the TCP header is
	// Sums of what does not differ, as in RFC 1071: of the IPv4 header, and of the TCP header with its pseudo header.
	ipSum, tcpSum uint32
}

const (
	etherLength = 14
	ipv4Length  = 20
	ipv6Length  = 40
	tcpLength   = 20
	protocolTCP = 6
)

func newTemplate(c Config, target netip.AddrPort, hardware net.HardwareAddr) template {
	segment := tcpLength + len(c.Options)
	var t template
	frame := append(append([]byte{}, c.Gateway...), hardware...)
	destination := target.Addr().AsSlice()
	if target.Addr().Is4() {
		frame = append(frame, 0x08, 0x00)
		t.ip = len(frame) + 12
		header := make([]byte, ipv4Length)
		header[0] = 0x45
		binary.BigEndian.PutUint16(header[2:], uint16(ipv4Length+segment))
		header[8], header[9] = c.TTL, protocolTCP
		copy(header[16:], destination)
		t.ipSum = sum(header)
		frame = append(frame, header...)
	} else {
		frame = append(frame, 0x86, 0xdd)
		t.ip = len(frame) + 8
		header := make([]byte, ipv6Length)
		header[0] = 0x60
		binary.BigEndian.PutUint16(header[4:], uint16(segment))
		header[6], header[7] = protocolTCP, c.TTL
		copy(header[24:], destination)
		frame = append(frame, header...)
	}
	t.tcp = len(frame)
	header := append(make([]byte, tcpLength), c.Options...)
	binary.BigEndian.PutUint16(header[0:], c.SourcePort)
	binary.BigEndian.PutUint16(header[2:], target.Port())
	header[12] = byte(len(header) / 4 << 4)
	header[13] = c.Flags
	binary.BigEndian.PutUint16(header[14:], c.Window)
	t.tcpSum = sum(header) + sum(destination) + protocolTCP + uint32(segment)
	t.frame = append(frame, header...)
	return t
}

// packet fills a frame from the template: a source, a sequence number, an IPv4 identification, a source port unless
// there is a fixed one, and the checksums over them.
func (t *template) packet(frame []byte, random *rand.PCG, sources *block, fixedPort bool) {
	copy(frame, t.frame)
	bits := random.Uint64()
	tcp := frame[t.tcp:]
	changed := uint32(0)
	if !fixedPort {
		port := 1024 + uint16(bits)%(65535-1024)
		binary.BigEndian.PutUint16(tcp, port)
		changed += uint32(port)
	}
	binary.BigEndian.PutUint32(tcp[4:], uint32(bits>>32))
	changed += sum(tcp[4:8])
	if len(sources.network) == 4 {
		source := frame[t.ip : t.ip+4]
		sources.fill(source, random)
		identification := uint16(bits >> 16)
		binary.BigEndian.PutUint16(frame[etherLength+4:], identification)
		addresses := sum(source)
		changed += addresses
		binary.BigEndian.PutUint16(frame[etherLength+10:], fold(t.ipSum+addresses+uint32(identification)))
	} else {
		source := frame[t.ip : t.ip+16]
		sources.fill(source, random)
		changed += sum(source)
	}
	binary.BigEndian.PutUint16(tcp[16:], fold(t.tcpSum+changed))
}

// A block is the addresses of a prefix, in the form in which they are quickly made up.
type block struct {
	network, mask []byte
	public        bool // all of IPv4, less what may not be a source on the Internet
}

func newBlock(prefix netip.Prefix) block {
	b := block{network: prefix.Masked().Addr().AsSlice(), public: prefix.Addr().Is4() && prefix.Bits() == 0}
	b.mask = net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())
	return b
}

// fill makes a random address of the block.
func (b *block) fill(source []byte, random *rand.PCG) {
	for {
		for i := 0; i < len(source); i += 4 {
			binary.BigEndian.PutUint32(source[i:], uint32(random.Uint64()>>32))
		}
		for i := range source {
			source[i] = b.network[i] | source[i]&^b.mask[i]
		}
		if first := source[0]; !b.public || first > 0 && first < 224 && first != 10 && first != 127 {
			return
		}
	}
}

// sum adds up the 16-bit words of b, whose length is even.
func sum(b []byte) uint32 {
	total := uint32(0)
	for i := 0; i < len(b); i += 2 {
		total += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return total
}

// fold makes a checksum of a sum.
func fold(total uint32) uint16 {
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

package capture

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
)

// copies tells the forwarded copies in a capture file. A capture on a director
// with one arm has each packet twice: as it comes in, and as it goes out to the
// real server. So has one on several devices of which one stands on another, as
// a bond on its cards.
//
// Only what has SYN needs to be asked about. A second ACK, RST or ICMP error
// finds the handshake done and changes nothing; a second SYN or SYN/ACK would be
// taken for a retransmission.
type copies struct {
	seed [5]uint64
	// seen is addressed by a hash of the packet. Each line has the four last
	// packets. A copy follows its packet within milliseconds, so that even in a
	// flood it finds it, and the whole, 256 KiB, stays near to the processor.
	seen [1 << 11][4]sighting
	// asked are the packets of a batch that drop is to find out about.
	asked [copyBatch]question
	count int
	// loaded is what reading ahead left. Without a use of it, nothing is read.
	loaded uint32
}

// copyBatch is how many packets are asked about at once. It has as many as
// uint64 has bits.
const copyBatch = 64

// A question is whether a packet is a copy: where it is seen now, its line in the
// table, and its index in the batch.
type question struct {
	sighting
	line  uint16
	index uint8
}

// A sighting is where a packet was seen.
type sighting struct {
	packet uint32 // that part of its hash that is not the line in the table
	time   uint32 // in units of 1024 ns, which come round after 73 minutes
	// from is who sent it first, and in the upper bits the device.
	from uint64
	// to is whom it was sent to first, and last whom it was sent to last.
	to, last station
}

const (
	// stacked is how long after a packet its copy on another device may come, in
	// units of sighting's time: 1 ms.
	stacked    = 1_000_000 >> 10
	deviceBits = 48
)

// A station is a MAC address. Numbers are compared and copied faster than
// arrays of bytes.
type station uint64

func newCopies() *copies {
	c := new(copies)
	for i := range c.seed {
		c.seed[i] = rand.Uint64() | 1 // odd, as a factor must be
	}
	return c
}

// ask notes the packet that became batch[index]. id is the identification in the
// IPv4 header.
func (c *copies) ask(seg *Segment, index int, id uint16, at place) {
	hash := c.hash(seg, id)
	q := &c.asked[c.count%copyBatch]
	c.count++
	q.packet, q.time = uint32(hash>>32), uint32(seg.Time>>10)
	q.from, q.to = uint64(at.from)|uint64(at.device)<<deviceBits, at.to
	q.line, q.index = uint16(hash%uint64(len(c.seen))), uint8(index)
}

// drop removes from the batch what was asked about and is a copy, and tells how
// many segments are left.
func (c *copies) drop(batch []Segment) int {
	asked := c.asked[:c.count]
	c.count = 0
	// In a flood, no packet's line is in the processor's cache. Reading all of
	// them first waits for memory once and not for each.
	loaded := c.loaded
	for i := range asked {
		line := &c.seen[asked[i].line]
		loaded += line[0].packet + line[2].packet
	}
	c.loaded = loaded
	var copied uint64 // by index
	for i := range asked {
		q := &asked[i]
		s := c.find(q)
		if s.packet == q.packet && s.again(q) {
			copied |= 1 << q.index
			continue
		}
		s.packet, s.time, s.from, s.to, s.last = q.packet, q.time, q.from, q.to, q.to
	}
	if copied == 0 {
		return len(batch)
	}
	n := 0
	for i := range batch {
		if copied>>i&1 == 0 {
			batch[n] = batch[i]
			n++
		}
	}
	return n
}

// find returns where the packet was seen before, or else a place for it, for
// which the oldest of its line gives way: the latest is the first.
func (c *copies) find(q *question) *sighting {
	line := &c.seen[q.line]
	for i := range line {
		if line[i].packet == q.packet {
			return &line[i]
		}
	}
	line[3], line[2], line[1] = line[2], line[1], line[0]
	return &line[0]
}

// again tells whether q is a copy of the same packet in s: one of whom that was
// sent to sends it on, or another device has it at the same time. What its first
// sender sends again is none.
func (s *sighting) again(q *question) bool {
	sender := station(q.from << (64 - deviceBits) >> (64 - deviceBits))
	other := s.from ^ q.from
	if other<<(64-deviceBits) != 0 && (sender == s.to || sender == s.last) {
		s.last = q.to
		return true
	}
	return other>>deviceBits != 0 && q.time-s.time+stacked <= 2*stacked
}

// odd spreads numbers over 64 bits, as those of IPv6 networks.
const odd = 0x9e3779b97f4a7c15

// hash is of what is the same in a packet and its copies. TTL and checksums are
// not.
func (c *copies) hash(seg *Segment, id uint16) uint64 {
	src := binary.LittleEndian.Uint64(seg.Src[:])*odd + binary.LittleEndian.Uint64(seg.Src[8:])
	dst := binary.LittleEndian.Uint64(seg.Dst[:])*odd + binary.LittleEndian.Uint64(seg.Dst[8:])
	numbers := uint64(seg.Seq)<<32 | uint64(seg.Ack)
	ports := uint64(seg.SrcPort)<<48 | uint64(seg.DstPort)<<32
	sizes := uint64(seg.Window)<<16 | uint64(seg.Length)
	return fold(src^c.seed[0], dst^c.seed[1]) ^ fold(numbers^c.seed[2], (ports|sizes)^c.seed[3]) ^
		(uint64(id)<<8|uint64(seg.Flags))*c.seed[4]
}

// fold mixes two numbers.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// A place is where a frame was captured, and between whom.
type place struct {
	from, to station
	device   uint16
}

// placeOf reads the place from a frame that was decoded. device is the number
// that the file gives the interface.
func placeOf(link LinkType, frame []byte, device uint16) place {
	switch link {
	case LinkEthernet:
		to, from := binary.BigEndian.Uint64(frame)>>16, binary.BigEndian.Uint64(frame[4:])&(1<<48-1)
		return place{station(from), station(to), device}
	case LinkSLL:
		return cooked(uint8(binary.BigEndian.Uint16(frame)), device)
	case LinkSLL2:
		return cooked(frame[10], device^uint16(binary.BigEndian.Uint32(frame[4:])))
	}
	return place{device: device}
}

// cooked is the place of a frame with that packet type: 4 is outgoing, all
// others are not (linux/if_packet.h). There is no destination address, so the
// stations stand for this host and those before and after it. They are group
// addresses, which no station has.
func cooked(packetType uint8, device uint16) place {
	const group = 1 << 40
	const before, here, after station = group, group + 1, group + 2
	if packetType == 4 {
		return place{here, after, device}
	}
	return place{before, here, device}
}

package mix

import (
	"encoding/binary"
	"net/netip"
)

// TCP's flags.
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// Which TCP options a segment has.
const (
	optionsNone = iota
	optionsSYN  // MSS 1460, SACK permitted, timestamps, window scale 7
	optionsACK  // timestamps
)

const (
	etherLength = 14
	ipLength    = 20
	tcpLength   = 20
	leastFrame  = 60 // of Ethernet, without its checksum; the rest is padding
	maxFrame    = etherLength + ipLength + tcpLength + 20
)

// A segment is what differs from packet to packet.
type segment struct {
	toServer    bool
	client      uint32
	port        uint16
	service     netip.AddrPort
	id          uint16 // IPv4's identification
	seq, ack    uint32
	flags       uint8
	window      uint16
	options     int
	clock, echo uint32 // TCP timestamps
}

// appendTo makes the frame that a router and a server would exchange.
func (s segment) appendTo(frame []byte) []byte {
	router, server := [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	address := s.service.Addr().As4()
	client, service := s.client, binary.BigEndian.Uint32(address[:])
	if s.toServer {
		frame = append(append(frame, server[:]...), router[:]...)
	} else {
		frame = append(append(frame, router[:]...), server[:]...)
	}
	frame = append(frame, 0x08, 0x00)

	options := [...]int{optionsNone: 0, optionsSYN: 20, optionsACK: 12}[s.options]
	ip := len(frame)
	frame = append(frame, 0x45, 0, 0, byte(ipLength+tcpLength+options))
	frame = binary.BigEndian.AppendUint16(frame, s.id)
	frame = append(frame, 0x40, 0, 64, 6, 0, 0) // don't fragment, time to live, TCP, checksum
	if s.toServer {
		frame = binary.BigEndian.AppendUint32(frame, client)
		frame = binary.BigEndian.AppendUint32(frame, service)
	} else {
		frame = binary.BigEndian.AppendUint32(frame, service)
		frame = binary.BigEndian.AppendUint32(frame, client)
	}
	binary.BigEndian.PutUint16(frame[ip+10:], checksum(frame[ip:], 0))

	tcp := len(frame)
	from, to := s.service.Port(), s.port
	if s.toServer {
		from, to = to, from
	}
	frame = binary.BigEndian.AppendUint16(frame, from)
	frame = binary.BigEndian.AppendUint16(frame, to)
	frame = binary.BigEndian.AppendUint32(frame, s.seq)
	frame = binary.BigEndian.AppendUint32(frame, s.ack)
	frame = append(frame, byte((tcpLength+options)/4<<4), s.flags)
	frame = binary.BigEndian.AppendUint16(frame, s.window)
	frame = append(frame, 0, 0, 0, 0) // checksum, urgent pointer
	switch s.options {
	case optionsSYN:
		frame = append(frame, 2, 4, 1460>>8, 1460&0xff, 4, 2, 8, 10)
		frame = s.appendTimestamps(frame)
		frame = append(frame, 1, 3, 3, 7)
	case optionsACK:
		frame = append(frame, 1, 1, 8, 10)
		frame = s.appendTimestamps(frame)
	}
	// The pseudo header (RFC 9293, section 3.1): the addresses, which stand
	// before the TCP header, the protocol and the length.
	binary.BigEndian.PutUint16(frame[tcp+16:], checksum(frame[tcp-8:], uint32(6+tcpLength+options)))

	for len(frame) < leastFrame {
		frame = append(frame, 0)
	}
	return frame
}

func (s segment) appendTimestamps(frame []byte) []byte {
	frame = binary.BigEndian.AppendUint32(frame, s.clock)
	return binary.BigEndian.AppendUint32(frame, s.echo)
}

// checksum is that of RFC 1071, over an even number of bytes and what is added.
func checksum(b []byte, sum uint32) uint16 {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

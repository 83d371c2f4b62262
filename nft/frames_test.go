package nft

import (
	"encoding/binary"
	"net/netip"
)

// frame describes a frame for tests; zero fields are left out or take what a
// SYN with the default signature has.
type frame struct {
	src, dst   string // addresses, the family's by default
	dport      uint16
	flags      byte // 0: SYN
	window     uint16
	ttl        byte
	ipOptions  int // bytes, a multiple of 4; for IPv6 of 8, in a destination options header
	tcpOptions int // bytes, a multiple of 4
	udp        bool
	fragment   *fragment
	pad        int // the frame's least length
}

// fragment cuts the segment: bytes from offset on, at most size.
type fragment struct {
	offset, size int
	more         bool
}

var testMAC = [6]byte{2, 0, 0, 0, 0, 1}

// build makes the frame, addressed to testMAC or to lo.
func (f frame) build(toLoopback bool) []byte {
	if f.flags == 0 {
		f.flags = flagSYN
	}
	if f.ttl == 0 {
		f.ttl = 64
	}
	src, dst := netip.MustParseAddr(f.src), netip.MustParseAddr(f.dst)
	segment := make([]byte, 20+f.tcpOptions)
	binary.BigEndian.PutUint16(segment, 1234)
	binary.BigEndian.PutUint16(segment[2:], f.dport)
	segment[12] = byte(len(segment)/4) << 4
	segment[13] = f.flags
	binary.BigEndian.PutUint16(segment[14:], f.window)
	for i := 20; i < len(segment); i++ {
		segment[i] = 1 // no operation
	}
	protocol := byte(6)
	if f.udp {
		protocol = 17
	}
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	pseudo = append(pseudo, 0, protocol)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(segment)))
	binary.BigEndian.PutUint16(segment[16:], checksum(append(pseudo, segment...)))

	eth := append(append([]byte{}, testMAC[:]...), 2, 0, 0, 0, 0, 9)
	if toLoopback {
		clear(eth)
	}
	cut := f.fragment
	if cut != nil {
		segment = segment[cut.offset:min(cut.offset+cut.size, len(segment))]
	}
	var packet []byte
	if dst.Is4() {
		eth = append(eth, 0x08, 0x00)
		header := make([]byte, 20+f.ipOptions)
		header[0] = 0x40 | byte(len(header)/4)
		binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(segment)))
		if cut != nil {
			binary.BigEndian.PutUint16(header[4:], 77)
			binary.BigEndian.PutUint16(header[6:], uint16(cut.offset/8))
			if cut.more {
				header[6] |= 0x20
			}
		}
		header[8], header[9] = f.ttl, protocol
		copy(header[12:], src.AsSlice())
		copy(header[16:], dst.AsSlice())
		for i := 20; i < len(header); i++ {
			header[i] = 1
		}
		binary.BigEndian.PutUint16(header[10:], checksum(header))
		packet = append(header, segment...)
	} else {
		eth = append(eth, 0x86, 0xdd)
		var extensions []byte
		next := protocol
		if cut != nil {
			e := []byte{next, 0, 0, 0, 0, 0, 0, 77}
			binary.BigEndian.PutUint16(e[2:], uint16(cut.offset))
			if cut.more {
				e[3] |= 1
			}
			extensions, next = append(e, extensions...), 44
		}
		if f.ipOptions > 0 {
			e := make([]byte, f.ipOptions)
			e[0], e[1] = next, byte(f.ipOptions/8-1)
			e[2], e[3] = 1, byte(f.ipOptions-4) // PadN
			extensions, next = append(e, extensions...), 60
		}
		header := make([]byte, 40)
		header[0] = 0x60
		binary.BigEndian.PutUint16(header[4:], uint16(len(extensions)+len(segment)))
		header[6], header[7] = next, f.ttl
		copy(header[8:], src.AsSlice())
		copy(header[24:], dst.AsSlice())
		packet = append(append(header, extensions...), segment...)
	}
	whole := append(eth, packet...)
	for len(whole) < f.pad {
		whole = append(whole, 0xff)
	}
	return whole
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

package capture

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// Blocks of pcapng.
const (
	sectionBlock   = 0x0a0d0d0a // the same in either byte order
	interfaceBlock = 1
	oldPacketBlock = 2
	simpleBlock    = 3
	packetBlock    = 6

	byteOrder = 0x1a2b3c4d

	// Options of an interface.
	optionEnd        = 0
	optionResolution = 9
	optionOffset     = 14

	// maxDevices is how many interfaces a section may have.
	maxDevices = 1 << 16
)

// pcapng is the newer format (draft-ietf-opsawg-pcapng). It is made of blocks
//
//	type, size, body, size again
//
// in sections, each with its own byte order and interfaces.
type pcapng struct {
	big     bool
	devices []ngDevice
	time    int64 // of the packet before
}

// An ngDevice is an interface of which a section has packets.
type ngDevice struct {
	link    LinkType
	snaplen uint32
	clock   ngClock
}

// An ngClock turns timestamps into nanoseconds since 1970. Units are of
// multiply ns, or divide of them are one ns, or there are 1<<shift in a second.
type ngClock struct {
	multiply, divide uint64
	shift            uint
	offset           int64
}

func (c *ngClock) time(t uint64) int64 {
	switch {
	case c.multiply > 0:
		t *= c.multiply
	case c.divide > 0:
		t /= c.divide
	default:
		hi, lo := bits.Mul64(t, 1e9)
		t = lo>>c.shift | hi<<(64-c.shift)
		if c.shift >= 64 {
			t = hi >> (c.shift - 64)
		}
	}
	return int64(t) + c.offset
}

// setResolution reads if_tsresol: a negative power of 10 or, with the upper bit, of 2.
func (c *ngClock) setResolution(v uint8) error {
	*c = ngClock{offset: c.offset}
	if v&0x80 != 0 {
		c.shift = uint(v & 0x7f)
		return nil
	}
	const nano, most = 9, 19 // uint64 has powers of 10 up to 19
	if v > nano+most {
		return fmt.Errorf("timestamps in units of 10^-%d s", v)
	}
	for c.multiply = 1; v < nano; v++ {
		c.multiply *= 10
	}
	if v > nano {
		c.multiply = 0
		for c.divide = 1; v > nano; v-- {
			c.divide *= 10
		}
	}
	return nil
}

func (f *pcapng) uint16(b []byte) uint16 {
	v := binary.LittleEndian.Uint16(b)
	if f.big {
		v = bits.ReverseBytes16(v)
	}
	return v
}

func (f *pcapng) uint32(b []byte) uint32 {
	v := binary.LittleEndian.Uint32(b)
	if f.big {
		v = bits.ReverseBytes32(v)
	}
	return v
}

func (f *pcapng) next(b []byte, rec *record) (int64, error) {
	const head, tail = 8, 4
	rec.kind = recordShort
	if len(b) < head+tail {
		return head + tail, nil
	}
	block := f.uint32(b)
	if block == sectionBlock {
		return f.section(b, rec)
	}
	size := f.uint32(b[4:])
	if size < head+tail || size%4 != 0 {
		return 0, fmt.Errorf("a block of type %d claims to have %d bytes", block, size)
	}
	switch block {
	case interfaceBlock, oldPacketBlock, simpleBlock, packetBlock:
	default:
		rec.kind = recordOther
		return int64(size), nil
	}
	if size > maxBlock {
		return 0, fmt.Errorf("a block of type %d claims to have %d bytes, and at most %d are read", block, size, maxBlock)
	}
	if int(size) > len(b) {
		return int64(size), nil
	}
	if end := f.uint32(b[size-tail:]); end != size {
		return 0, fmt.Errorf("a block of type %d has %d bytes at its beginning and %d at its end", block, size, end)
	}
	body := b[head : size-tail]
	if block == interfaceBlock {
		rec.kind = recordOther
		return int64(size), f.addDevice(body)
	}
	rec.kind = recordPacket
	if block == simpleBlock {
		return int64(size), f.simple(body, rec)
	}
	return int64(size), f.packet(body, block == oldPacketBlock, rec)
}

// section begins a section: byte order, version, and more that does not matter.
func (f *pcapng) section(b []byte, rec *record) (int64, error) {
	const least = 28
	if len(b) < 16 {
		return 16, nil
	}
	f.big = false
	if f.uint32(b[8:]) != byteOrder {
		f.big = true
		if f.uint32(b[8:]) != byteOrder {
			return 0, fmt.Errorf("a section's byte order is given as % x", b[8:12])
		}
	}
	size := f.uint32(b[4:])
	if size < least || size%4 != 0 {
		return 0, fmt.Errorf("a section's header claims to have %d bytes", size)
	}
	if major := f.uint16(b[12:]); major != 1 {
		return 0, fmt.Errorf("a section is of version %d: version 1 of pcapng is read", major)
	}
	f.devices = f.devices[:0]
	rec.kind = recordOther
	return int64(size), nil
}

// addDevice reads an interface: link type, 16 bits unused, the most bytes that
// are captured of a packet, and options.
func (f *pcapng) addDevice(b []byte) error {
	if len(b) < 8 {
		return fmt.Errorf("an interface is described in %d bytes", len(b))
	}
	if len(f.devices) == maxDevices {
		return fmt.Errorf("a section has more than %d interfaces", maxDevices)
	}
	device := ngDevice{link: LinkType(f.uint16(b)), snaplen: f.uint32(b[4:]), clock: ngClock{multiply: 1e3}}
	for b = b[8:]; len(b) >= 4; {
		code, size := f.uint16(b), int(f.uint16(b[2:]))
		padded := 4 + (size+3)&^3
		if code == optionEnd || padded > len(b) {
			break
		}
		value := b[4 : 4+size]
		switch {
		case code == optionResolution && size == 1:
			if err := device.clock.setResolution(value[0]); err != nil {
				return err
			}
		case code == optionOffset && size == 8:
			seconds := binary.LittleEndian.Uint64(value)
			if f.big {
				seconds = bits.ReverseBytes64(seconds)
			}
			device.clock.offset = int64(seconds) * 1e9
		}
		b = b[padded:]
	}
	f.devices = append(f.devices, device)
	return nil
}

// packet reads a packet: interface, time in 64 bits of which the upper ones are
// first, bytes captured, bytes on the wire. In the old blocks, the interface has
// 16 bits and a counter of drops the others.
func (f *pcapng) packet(b []byte, old bool, rec *record) error {
	const header = 20
	if len(b) < header {
		return fmt.Errorf("it has %d bytes of header", len(b))
	}
	device := f.uint32(b)
	if old {
		device = uint32(f.uint16(b))
	}
	if int64(device) >= int64(len(f.devices)) {
		return fmt.Errorf("it is of interface %d, and %d are described", device, len(f.devices))
	}
	captured := f.uint32(b[12:])
	if int64(captured) > int64(len(b)-header) {
		return fmt.Errorf("it claims to hold %d bytes in a block that has room for %d", captured, len(b)-header)
	}
	d := &f.devices[device]
	rec.frame = b[header : header+captured]
	rec.wire = int(min(f.uint32(b[16:]), math.MaxInt32))
	rec.time = d.clock.time(uint64(f.uint32(b[4:]))<<32 | uint64(f.uint32(b[8:])))
	rec.link = d.link
	rec.device = uint16(device)
	f.time = rec.time
	return nil
}

// simple reads a packet without interface, which is the first, and time: bytes
// on the wire.
func (f *pcapng) simple(b []byte, rec *record) error {
	const header = 4
	if len(b) < header {
		return fmt.Errorf("it has %d bytes of header", len(b))
	}
	if len(f.devices) == 0 {
		return fmt.Errorf("it is of the first interface, and none is described")
	}
	d := &f.devices[0]
	wire := f.uint32(b)
	captured := min(int64(wire), int64(len(b)-header))
	if d.snaplen > 0 {
		captured = min(captured, int64(d.snaplen))
	}
	rec.frame = b[header : header+captured]
	rec.wire = int(min(wire, math.MaxInt32))
	rec.time = f.time
	rec.link = d.link
	rec.device = 0
	return nil
}

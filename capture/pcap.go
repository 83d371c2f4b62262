package capture

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

const (
	pcapHeader         = 24
	pcapRecord         = 16
	pcapModifiedRecord = 24

	// linkTypeMask parts the link type from what the upper bits tell of a frame's
	// check sequence.
	linkTypeMask = 0x03ffffff
)

// pcap is the older format (draft-ietf-opsawg-pcap). Its records are
//
//	seconds, fraction of the second, bytes captured, bytes on the wire
//
// each of 32 bits, and the frame. A variant has 8 bytes more before the frame.
type pcap struct {
	big      bool // byte order
	swapped  bool // before version 2.4, the two lengths may be in each other's place
	header   int  // of a record
	fraction int64
	limit    uint32
	link     LinkType
}

// newPcap knows the variants by the first four bytes of the file, of which the
// lowest is the first.
func newPcap(magic uint32) (*pcap, error) {
	for _, big := range []bool{false, true} {
		m := magic
		if big {
			m = bits.ReverseBytes32(m)
		}
		switch m {
		case 0xa1b2c3d4:
			return &pcap{big: big, header: pcapRecord, fraction: 1e3}, nil
		case 0xa1b23c4d:
			return &pcap{big: big, header: pcapRecord, fraction: 1}, nil
		case 0xa1b2cd34:
			return &pcap{big: big, header: pcapModifiedRecord, fraction: 1e3}, nil
		}
	}
	return nil, fmt.Errorf("it begins with % x: pcap and pcapng are read, gzipped or not; convert it with editcap",
		binary.LittleEndian.AppendUint32(nil, magic))
}

func (f *pcap) uint32(b []byte) uint32 {
	v := binary.LittleEndian.Uint32(b)
	if f.big {
		v = bits.ReverseBytes32(v)
	}
	return v
}

// open reads the header of the file.
func (f *pcap) open(b []byte) error {
	version := f.uint32(b[4:]) // major and minor, of 16 bits each
	major, minor := version&0xffff, version>>16
	if f.big {
		major, minor = minor, major
	}
	if major != 2 {
		return fmt.Errorf("it is of version %d.%d: version 2 of pcap is read", major, minor)
	}
	f.swapped = minor < 4
	f.limit = min(max(f.uint32(b[16:]), maxPacket), maxBlock)
	f.link = LinkType(f.uint32(b[20:]) & linkTypeMask)
	if !f.link.known() {
		return unknownLink(f.link)
	}
	return nil
}

func (f *pcap) next(b []byte, rec *record) (int64, error) {
	if len(b) < f.header {
		rec.kind = recordShort
		return int64(f.header), nil
	}
	captured, wire := f.uint32(b[8:]), f.uint32(b[12:])
	if f.swapped && captured > wire {
		captured, wire = wire, captured
	}
	if captured > f.limit {
		return 0, fmt.Errorf("it claims to hold %d bytes, and at most %d are possible", captured, f.limit)
	}
	size := f.header + int(captured)
	if size > len(b) {
		rec.kind = recordShort
		return int64(size), nil
	}
	rec.kind = recordPacket
	rec.frame = b[f.header:size]
	rec.wire = int(min(wire, math.MaxInt32))
	// A fraction of a second or more is damage. It must not look like minutes of
	// silence.
	rec.time = int64(f.uint32(b))*1e9 + min(int64(f.uint32(b[4:]))*f.fraction, 1e9-1)
	rec.link = f.link
	return int64(size), nil
}

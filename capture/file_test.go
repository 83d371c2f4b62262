package capture

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// A captured is a frame in a file.
type captured struct {
	at     time.Duration // since day
	device int
	frame  []byte
	wire   int // 0: all of it was captured
}

func (c captured) onWire() int { return max(c.wire, len(c.frame)) }

func (c captured) info() gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: day.Add(c.at), CaptureLength: len(c.frame), Length: c.onWire(), InterfaceIndex: c.device}
}

var day = time.Date(2025, 11, 22, 10, 0, 0, 0, time.UTC)

const perSecond = 1_000_000_000

// handshake is a handshake with something else before its last packet. The
// second one is snapped.
func handshake() []captured {
	answer := func(flags Flags) []byte {
		p := ipv4(protoTCP, tcp(flags, mss...))
		copy(p[12:], []byte{192, 0, 2, 1, 198, 51, 100, 7})
		return ethernet(0x0800, p)
	}
	return []captured{
		{at: 0, frame: ethernet(0x0800, synIPv4)},
		{at: 1500 * time.Microsecond, frame: answer(SYN | ACK)[:54], wire: 58},
		{at: 1700 * time.Microsecond, frame: ethernet(0x0806, make([]byte, 46))},
		{at: 2 * time.Second, frame: ethernet(0x0800, ipv4(protoTCP, tcp(ACK)))},
	}
}

// segments are those of handshake.
func segments() []Segment {
	first, second, third := syn4, segment4(SYN|ACK, 44), segment4(ACK, 40)
	second.Src, second.Dst = second.Dst, second.Src
	start := day.UnixNano()
	first.Time, second.Time, third.Time = start, start+1_500_000, start+2_000_000_000
	return []Segment{first, second, third}
}

// pcapFile writes a file of the older format as its specification has it.
func pcapFile(order binary.AppendByteOrder, magic, snaplen, link uint32, packets ...captured) []byte {
	f := order.AppendUint32(nil, magic)
	f = order.AppendUint16(f, 2)
	f = order.AppendUint16(f, 4)
	f = order.AppendUint32(f, 0)
	f = order.AppendUint32(f, 0)
	f = order.AppendUint32(f, snaplen)
	f = order.AppendUint32(f, link)
	unit := int64(time.Microsecond)
	if magic == 0xa1b23c4d {
		unit = 1
	}
	for _, p := range packets {
		at := day.Add(p.at).UnixNano()
		f = order.AppendUint32(f, uint32(at/perSecond))
		f = order.AppendUint32(f, uint32(at%perSecond/unit))
		f = order.AppendUint32(f, uint32(len(p.frame)))
		f = order.AppendUint32(f, uint32(p.onWire()))
		if magic == 0xa1b2cd34 {
			f = append(f, 1, 0, 0, 0, 8, 0, 0, 0)
		}
		f = append(f, p.frame...)
	}
	return f
}

const microseconds, nanoseconds, modified = 0xa1b2c3d4, 0xa1b23c4d, 0xa1b2cd34

// plainPcap is what tcpdump writes.
func plainPcap(packets ...captured) []byte {
	return pcapFile(binary.LittleEndian, microseconds, 262144, uint32(LinkEthernet), packets...)
}

// pcapgoFile is written by gopacket.
func pcapgoFile(t testing.TB, open func(io.Writer) *pcapgo.Writer, packets ...captured) []byte {
	t.Helper()
	var b bytes.Buffer
	w := open(&b)
	err := w.WriteFileHeader(65535, layers.LinkTypeEthernet)
	for _, p := range packets {
		err = errors.Join(err, w.WritePacket(p.info(), p.frame))
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pcapgoNgFile is written by gopacket, with an interface for each link type.
func pcapgoNgFile(t testing.TB, links []layers.LinkType, packets ...captured) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriterInterface(&b, pcapgo.NgInterface{LinkType: links[0], TimestampResolution: 9}, pcapgo.NgWriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, link := range links[1:] {
		_, e := w.AddInterface(pcapgo.NgInterface{LinkType: link, TimestampResolution: 9, Name: fmt.Sprint("eth", i)})
		err = errors.Join(err, e)
	}
	for i, p := range packets {
		err = errors.Join(err, w.WritePacket(p.info(), p.frame))
		if i == 0 {
			err = errors.Join(err, w.WriteInterfaceStats(0, pcapgo.NgInterfaceStatistics{PacketsReceived: 3}))
		}
	}
	if err := errors.Join(err, w.Flush()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// block is one of pcapng's, as its specification has it.
func block(order binary.AppendByteOrder, kind uint32, body ...byte) []byte {
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	b := order.AppendUint32(nil, kind)
	b = order.AppendUint32(b, uint32(len(body)+12))
	b = append(b, body...)
	return order.AppendUint32(b, uint32(len(body)+12))
}

func section(order binary.AppendByteOrder) []byte {
	body := order.AppendUint32(nil, byteOrder)
	body = order.AppendUint16(body, 1)
	body = order.AppendUint16(body, 0)
	return block(order, sectionBlock, order.AppendUint64(body, math.MaxUint64)...)
}

func device(order binary.AppendByteOrder, link LinkType, snaplen uint32, options ...byte) []byte {
	body := order.AppendUint16(nil, uint16(link))
	body = order.AppendUint16(body, 0)
	return block(order, interfaceBlock, append(order.AppendUint32(body, snaplen), options...)...)
}

func option(order binary.AppendByteOrder, code uint16, value ...byte) []byte {
	b := order.AppendUint16(nil, code)
	b = append(order.AppendUint16(b, uint16(len(value))), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// enhanced is a packet in a block of the kind now in use, in units of the clock.
func enhanced(order binary.AppendByteOrder, clock func(int64) uint64, p captured) []byte {
	body := order.AppendUint32(nil, uint32(p.device))
	return block(order, packetBlock, packetBody(order, body, clock, p)...)
}

func obsolete(order binary.AppendByteOrder, clock func(int64) uint64, p captured) []byte {
	body := order.AppendUint16(nil, uint16(p.device))
	body = order.AppendUint16(body, 0xffff)
	return block(order, oldPacketBlock, packetBody(order, body, clock, p)...)
}

func packetBody(order binary.AppendByteOrder, body []byte, clock func(int64) uint64, p captured) []byte {
	at := clock(day.Add(p.at).UnixNano())
	body = order.AppendUint32(body, uint32(at>>32))
	body = order.AppendUint32(body, uint32(at))
	body = order.AppendUint32(body, uint32(len(p.frame)))
	body = order.AppendUint32(body, uint32(p.onWire()))
	return append(body, p.frame...)
}

func simple(order binary.AppendByteOrder, p captured) []byte {
	return block(order, simpleBlock, append(order.AppendUint32(nil, uint32(p.onWire())), p.frame...)...)
}

// ngFile is a section with the packets, and before each of them a block that is
// to be passed over.
func ngFile(order binary.AppendByteOrder, options []byte, clock func(int64) uint64, packets ...captured) []byte {
	f := concat(section(order), device(order, LinkEthernet, 0, options...))
	for _, p := range packets {
		f = concat(f, block(order, 0x80000bad, 1, 2, 3), enhanced(order, clock, p))
	}
	return f
}

func micros(ns int64) uint64 { return uint64(ns / 1000) }

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// readAll reads to the end, in batches of that many.
func readAll(src io.Reader, size int) ([]Segment, *Reader, error) {
	r, err := NewReader(src)
	if err != nil {
		return nil, nil, err
	}
	var all []Segment
	for batch := make([]Segment, size); ; {
		n, err := r.Read(batch)
		all = append(all, batch[:n]...)
		if err != nil {
			if m, again := r.Read(batch); n != 0 || m != 0 || again != err {
				return all, r, fmt.Errorf("%w, with %d segments, and then %d and %w", err, n, m, again)
			}
			return all, r, err
		}
		if n == 0 {
			return all, r, errors.New("neither segments nor an error")
		}
	}
}

func TestReader(t *testing.T) {
	little, big := binary.LittleEndian, binary.BigEndian
	packets := handshake()
	const ethernet = uint32(LinkEthernet)
	old := pcapFile(little, microseconds, 65535, ethernet, packets...)
	old[6] = 3
	swapped := slices.Clone(old) // the second packet's lengths are not the same
	second := pcapHeader + pcapRecord + len(packets[0].frame)
	copy(swapped[second+8:], concat(old[second+12:second+16], old[second+8:second+12]))
	day2 := option(little, optionOffset, little.AppendUint64(nil, uint64(day.Unix()))...)
	relative := func(ns int64) uint64 { return micros(ns - day.UnixNano()) }
	simplePackets := concat(section(big), device(big, LinkEthernet, 54), enhanced(big, micros, packets[0]),
		simple(big, packets[1]), simple(big, packets[2]), enhanced(big, micros, packets[3]))
	simpleWant := segments()
	simpleWant[1].Time = simpleWant[0].Time

	tests := []struct {
		name string
		file []byte
		want []Segment // nil: those of the handshake
	}{
		{"pcap of gopacket", pcapgoFile(t, pcapgo.NewWriter, packets...), nil},
		{"pcap of gopacket, nanoseconds", pcapgoFile(t, pcapgo.NewWriterNanos, packets...), nil},
		{"pcap", plainPcap(packets...), nil},
		{"pcap, big endian", pcapFile(big, microseconds, 65535, ethernet, packets...), nil},
		{"pcap, nanoseconds", pcapFile(little, nanoseconds, 65535, ethernet, packets...), nil},
		{"pcap, nanoseconds, big endian", pcapFile(big, nanoseconds, 65535, ethernet, packets...), nil},
		{"modified pcap", pcapFile(little, modified, 65535, ethernet, packets...), nil},
		{"modified pcap, big endian", pcapFile(big, modified, 65535, ethernet, packets...), nil},
		{"pcap, a frame check sequence is told of", pcapFile(little, microseconds, 65535, 0x24000000|ethernet, packets...), nil},
		{"pcap without a limit", pcapFile(little, microseconds, 0, ethernet, packets...), nil},
		{"pcap with the largest limit", pcapFile(little, microseconds, math.MaxUint32, ethernet, packets...), nil},
		{"pcap that holds more than its limit", pcapFile(little, microseconds, 10, ethernet, packets...), nil},
		{"pcap of version 2.3", old, nil},
		{"pcap of version 2.3, lengths the other way round", swapped, nil},
		{"gzipped pcap", zip(t, plainPcap(packets...)), nil},
		{"pcap, gzipped in two parts", concat(zip(t, plainPcap(packets[:2]...)), zip(t, plainPcap(packets[2:]...)[pcapHeader:])), nil},
		{"pcap without packets", plainPcap(), []Segment{}},
		{"pcapng of gopacket", pcapgoNgFile(t, []layers.LinkType{layers.LinkTypeEthernet}, packets...), nil},
		{"pcapng", ngFile(little, nil, micros, packets...), nil},
		{"pcapng, big endian", ngFile(big, nil, micros, packets...), nil},
		{"pcapng, nanoseconds", ngFile(big, option(big, optionResolution, 9), func(ns int64) uint64 { return uint64(ns) }, packets...), nil},
		{"pcapng, tenths of milliseconds", ngFile(little, option(little, optionResolution, 4), func(ns int64) uint64 { return uint64(ns / 1e5) }, packets...), nil},
		{"pcapng, picoseconds from an offset on", ngFile(little, concat(option(little, optionResolution, 12), day2),
			func(ns int64) uint64 { return relative(ns) * 1e6 }, packets...), nil},
		{"pcapng, a negative offset", ngFile(big, option(big, optionOffset, big.AppendUint64(nil, math.MaxUint64-9)...),
			func(ns int64) uint64 { return micros(ns + 10*1e9) }, packets...), nil},
		{"pcapng, units of 2^-4 s", ngFile(little, option(little, optionResolution, 0x84), func(ns int64) uint64 { return uint64(ns / (perSecond / 16)) }, packets[3]),
			segments()[2:]},
		{"pcapng, options after the packet", concat(section(little), device(little, LinkEthernet, 0),
			optionAfter(little, packets[0])), segments()[:1]},
		{"pcapng, obsolete packets", concat(section(big), device(big, LinkEthernet, 0), obsolete(big, micros, packets[0]), obsolete(big, micros, packets[1]),
			obsolete(big, micros, packets[2]), obsolete(big, micros, packets[3])), nil},
		{"pcapng, simple packets", simplePackets, simpleWant},
		{"pcapng, sections in both byte orders", concat(ngFile(big, nil, micros, packets[:2]...), ngFile(little, nil, micros, packets[2:]...)), nil},
		{"pcapng, a block larger than the buffer is passed over", concat(section(little), block(little, 0xbad, make([]byte, readSize+5)...),
			device(little, LinkEthernet, 0), enhanced(little, micros, packets[0])), segments()[:1]},
		{"pcapng, a block larger than any packet is passed over", concat(section(little), block(little, 0xbad, make([]byte, maxBlock+5)...),
			device(little, LinkEthernet, 0), enhanced(little, micros, packets[0])), segments()[:1]},
		{"pcapng, several link types", concat(section(little), device(little, LinkRaw, 0), device(little, LinkEthernet, 0),
			enhanced(little, micros, captured{device: 0, frame: synIPv4}), enhanced(little, micros, captured{device: 1, frame: packets[3].frame, at: 2 * time.Second})),
			[]Segment{segments()[0], segments()[2]}},
		{"pcapng, an unknown link type without packets", concat(section(little), device(little, 105, 0), device(little, LinkRaw, 0),
			enhanced(little, micros, captured{device: 1, frame: synIPv4})), segments()[:1]},
		{"pcapng without packets", concat(section(little), device(little, LinkEthernet, 0)), []Segment{}},
		{"pcapng without anything", section(big), []Segment{}},
		{"gzipped pcapng", zip(t, ngFile(little, nil, micros, packets...)), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == nil {
				tt.want = segments()
			}
			for _, size := range []int{1, 2, 1000} {
				got, r, err := readAll(bytes.NewReader(tt.file), size)
				if err != io.EOF {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, append([]Segment{}, got...)); diff != "" {
					t.Fatal(diff)
				}
				stats := r.Stats()
				if sum := sum(stats.Kinds); *stats.Packets != sum || stats.Handed != sum || stats.Kinds[TCP] != uint64(len(got)) || stats.Dropped != 0 {
					t.Errorf("%+v for %d segments", stats, len(got))
				}
				if r.Offset() != int64(len(tt.file)) {
					t.Errorf("at %d of %d bytes", r.Offset(), len(tt.file))
				}
			}
			if len(tt.file) > maxPacket {
				return
			}
			if got, _, err := readAll(iotest.OneByteReader(bytes.NewReader(tt.file)), 10); err != io.EOF || !slices.Equal(got, tt.want) {
				t.Error("read byte by byte:", err, got)
			}
			if got, _, err := readAll(iotest.DataErrReader(bytes.NewReader(tt.file)), 10); err != io.EOF || !slices.Equal(got, tt.want) {
				t.Error("read with the end at once:", err, got)
			}
		})
	}
}

func sum(kinds Kinds) (n uint64) {
	for _, k := range kinds {
		n += k
	}
	return n
}

// optionAfter is a packet with a comment after it.
func optionAfter(order binary.AppendByteOrder, p captured) []byte {
	for len(p.frame)%4 != 0 {
		p.frame = append(slices.Clip(p.frame), 0)
	}
	body := packetBody(order, order.AppendUint32(nil, 0), micros, p)
	return block(order, packetBlock, append(body, option(order, 1, []byte("found")...)...)...)
}

// Wherever a file is cut, there is all that was whole before, and the place is told.
func TestReaderCut(t *testing.T) {
	packets := handshake()
	for _, tt := range []struct {
		name   string
		file   []byte
		header int   // the least that is a capture
		whole  []int // where it may end, after how many packets
	}{
		{"pcap", plainPcap(packets...), pcapHeader, nil},
		{"modified pcap", pcapFile(binary.BigEndian, modified, 0, 1, packets...), pcapHeader, nil},
		{"pcapng", ngFile(binary.LittleEndian, nil, micros, packets...), 4, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			whole, r, err := readAll(bytes.NewReader(tt.file), 10)
			if err != io.EOF {
				t.Fatal(err)
			}
			ends, last := 0, uint64(0)
			for n := range tt.file {
				got, cutReader, err := readAll(bytes.NewReader(tt.file[:n]), 10)
				if n < tt.header {
					var cut *CutError
					if !errors.As(err, &cut) || cut.Offset != int64(n) || cut.Packet != 1 || !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Fatalf("%d bytes: %v", n, err)
					}
					continue
				}
				if !slices.Equal(got, whole[:len(got)]) {
					t.Fatalf("%d bytes: %v", n, got)
				}
				read := *cutReader.Stats().Packets
				if read < last || read > *r.Stats().Packets {
					t.Fatalf("%d bytes: %d packets, with fewer bytes %d", n, read, last)
				}
				last = read
				if err == io.EOF {
					ends++
					continue
				}
				if diff := cmp.Diff(error(&CutError{Offset: int64(n), Packet: read + 1}), err); diff != "" {
					t.Fatalf("%d bytes: %s", n, diff)
				}
			}
			if last != *r.Stats().Packets-1 {
				t.Errorf("the last byte has %d packets before it", last)
			}
			// At the end of a block or packet, a file is not cut.
			if want := map[bool]int{true: 1 + 1 + 2*4 - 1, false: 4}[tt.header == 4]; ends != want {
				t.Errorf("%d places where it may end, want %d", ends, want)
			}
		})
	}
}

func TestReaderCutGzip(t *testing.T) {
	var packets []captured
	for i := range 1000 {
		frame := ethernet(0x0800, synIPv4)
		binary.BigEndian.PutUint32(frame[38:], uint32(i)*2654435761) // Seq
		packets = append(packets, captured{frame: frame})
	}
	file := plainPcap(packets...)
	zipped := zip(t, file)
	whole, _, err := readAll(bytes.NewReader(file), 10)
	if err != io.EOF {
		t.Fatal(err)
	}
	for n := 2; n < len(zipped); n += 97 {
		got, r, err := readAll(bytes.NewReader(zipped[:n]), 64)
		var cut *CutError
		if !errors.As(err, &cut) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if !slices.Equal(got, whole[:len(got)]) || r != nil && cut.Packet != *r.Stats().Packets+1 || cut.Packet != uint64(len(got))+1 {
			t.Fatalf("%d bytes: %v, %d segments", n, err, len(got))
		}
		if size := int64(pcapHeader + len(got)*(pcapRecord+len(packets[0].frame))); r != nil && (cut.Offset < size || cut.Offset >= size+pcapRecord+int64(len(packets[0].frame))) {
			t.Fatalf("%d bytes: %v, %d segments", n, err, len(got))
		}
	}
	zipped[len(zipped)-5] ^= 1 // a checksum
	if got, _, err := readAll(bytes.NewReader(zipped), 64); !errors.Is(err, gzip.ErrChecksum) || len(got) != len(whole) {
		t.Error(err, len(got))
	}
}

func TestReaderDamaged(t *testing.T) {
	little, big := binary.LittleEndian, binary.BigEndian
	packets := handshake()
	one := plainPcap(packets[0])
	ng := ngFile(little, nil, micros, packets[0])
	set := func(b []byte, at int, v uint32) []byte {
		b = slices.Clone(b)
		little.PutUint32(b[at:], v)
		return b
	}
	next := func(f, more []byte) []byte { return concat(f, more) }
	record := func(captured uint32) []byte {
		return set(plainPcap(packets[1])[pcapHeader:], 8, captured)
	}
	ngPacket := enhanced(little, micros, packets[0])
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"no capture", []byte("#!/bin/sh\n"), "open capture: it begins with 23 21 2f 62: pcap and pcapng are read"},
		{"a capture of snoop", []byte("snoop\x00\x00\x00"), "convert it with editcap"},
		{"pcap of version 1", changed(one, 4, 1), "it is of version 1.4: version 2 of pcap is read"},
		{"pcap of version 1, big endian", changed(pcapFile(big, microseconds, 0, 1), 5, 1), "it is of version 1.4"},
		{"pcap of 802.11", pcapFile(little, microseconds, 0, 105), "open capture: link type 105 is not decoded; these are: BSD loop (108), BSD null (0), Cisco HDLC (104), Ethernet (1), "},
		{"pcap of a link type that does not exist", pcapFile(little, microseconds, 0, 0xfffff), "link type 1048575 is not decoded"},
		{"gzipped 802.11", zip(t, pcapFile(little, microseconds, 0, 105)), "link type 105 is not decoded"},
		{"no gzip", []byte{0x1f, 0x8b, 0xff, 0xff, 0, 0, 0, 0, 0, 0}, "open capture: gzip: invalid header"},
		{"the captured length is more than any packet has", next(one, record(1<<18+1)), "damaged at byte 98, in packet 2: it claims to hold 262145 bytes, and at most 262144 are possible"},
		{"the captured length is negative", next(one, record(0xffffffff)), "damaged at byte 98, in packet 2: it claims to hold 4294967295 bytes"},
		{"the captured length is more than the limit in the header", pcapFile(little, microseconds, 1<<20, 1, captured{frame: make([]byte, 1<<20+1)}),
			"it claims to hold 1048577 bytes, and at most 1048576 are possible"},
		{"gzipped and damaged", zip(t, next(one, record(0xffffffff))), "damaged at byte 98, in packet 2"},
		{"a section in no byte order", set(ng, 8, 0x11223344), "open capture: capture is damaged at byte 0, in packet 1: a section's byte order is given as 44 33 22 11"},
		{"a section of version 2", changed(ng, 12, 2), "version 2: version 1 of pcapng is read"},
		{"a section's header of 24 bytes", set(ng, 4, 24), "a section's header claims to have 24 bytes"},
		{"a section's header of 29 bytes", set(ng, 4, 29), "a section's header claims to have 29 bytes"},
		{"a block of 8 bytes", next(ng, set(ngPacket, 4, 8)), "damaged at byte 156, in packet 2: a block of type 6 claims to have 8 bytes"},
		{"a block of 33 bytes", next(ng, set(ngPacket, 4, 33)), "a block of type 6 claims to have 33 bytes"},
		{"a packet larger than any", next(ng, set(ngPacket, 4, maxBlock+4)), "claims to have 16777220 bytes, and at most 16777216 are read"},
		{"a block of two sizes", next(ng, set(ngPacket, len(ngPacket)-4, 40)), "damaged at byte 156, in packet 2: a block of type 6 has 92 bytes at its beginning and 40 at its end"},
		{"a packet's length beyond its block", next(ng, set(ngPacket, 20, 61)), "damaged at byte 156, in packet 2: it claims to hold 61 bytes in a block that has room for 60"},
		{"a packet's length is negative", next(ng, set(ngPacket, 20, 0xffffffff)), "it claims to hold 4294967295 bytes in a block"},
		{"a packet without header", next(ng, block(little, packetBlock, 0, 0, 0, 0)), "it has 4 bytes of header"},
		{"a simple packet without header", next(ng, block(little, simpleBlock)), "it has 0 bytes of header"},
		{"an interface that is not described", next(ng, set(ngPacket, 8, 1)), "it is of interface 1, and 1 are described"},
		{"an interface of the section before", concat(ng, section(little), ngPacket), "it is of interface 0, and 0 are described"},
		{"a simple packet of no interface", concat(section(little), simple(little, packets[0])), "it is of the first interface, and none is described"},
		{"an interface without limit", next(ng, block(little, interfaceBlock, 1, 0, 0, 0)), "an interface is described in 4 bytes"},
		{"an interface with units that are too small", next(ng, device(little, LinkEthernet, 0, option(little, optionResolution, 29)...)), "timestamps in units of 10^-29 s"},
		{"packets of an unknown link type among others", concat(section(little), device(little, 105, 0), device(little, LinkEthernet, 0),
			enhanced(little, micros, packets[0]), enhanced(little, micros, captured{device: 1, frame: packets[0].frame})),
			"left out 1 of 2 packets: link type 105 is not decoded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, r, err := readAll(bytes.NewReader(tt.file), 10)
			if err == nil || err == io.EOF || !strings.Contains(err.Error(), tt.want) && !strings.Contains("open capture: "+err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
			var cut *CutError
			if errors.As(err, &cut) {
				t.Error("it is not cut")
			}
			if r != nil && strings.Contains(tt.want, "packet 2") && r.Stats().Kinds[TCP] != 1 {
				t.Error("the packet before is not read")
			}
		})
	}
}

func TestReaderTooManyInterfaces(t *testing.T) {
	little := binary.LittleEndian
	file := concat(section(little), bytes.Repeat(device(little, LinkEthernet, 0), maxDevices))
	if _, _, err := readAll(bytes.NewReader(file), 10); err != io.EOF {
		t.Error(err)
	}
	if _, _, err := readAll(bytes.NewReader(concat(file, device(little, LinkEthernet, 0))), 10); err == nil || !strings.Contains(err.Error(), "more than 65536 interfaces") {
		t.Error(err)
	}
}

// A failing disk is not the end of a file.
func TestReaderFails(t *testing.T) {
	broken := errors.New("broken")
	src := io.MultiReader(bytes.NewReader(plainPcap(handshake()...)), iotest.ErrReader(broken))
	got, _, err := readAll(src, 10)
	if !errors.Is(err, broken) || len(got) != 3 || !strings.Contains(err.Error(), "after byte 314") {
		t.Error(err, len(got))
	}
}

// Packets larger than the buffer are read, and wherever a packet falls in it.
func TestReaderBuffer(t *testing.T) {
	var packets []captured
	for i := range 3000 {
		frame := ethernet(0x0800, ipv4(protoTCP, tcp(ACK)))
		binary.BigEndian.PutUint32(frame[38:], uint32(i))
		size := len(frame) + i*7%1500
		if i%500 == 499 {
			size = maxPacket - i
		}
		packets = append(packets, captured{frame: append(frame, make([]byte, size-len(frame))...)})
	}
	got, r, err := readAll(bytes.NewReader(plainPcap(packets...)), 100)
	if err != io.EOF || len(got) != len(packets) {
		t.Fatal(err, len(got))
	}
	for i := range got {
		if got[i].Seq != uint32(i) {
			t.Fatal(i, got[i])
		}
	}
	if len(r.buf) > 4*maxPacket {
		t.Errorf("the buffer has %d bytes", len(r.buf))
	}
}

// What a pipe holds is handed over before there is more.
func TestReaderPipe(t *testing.T) {
	file := plainPcap(handshake()...)
	in, out := io.Pipe()
	first := pcapHeader + pcapRecord + 58
	done := make(chan error)
	go func() {
		_, err := out.Write(file[:first])
		<-done // the first segment was read
		_, err2 := out.Write(file[first:])
		done <- errors.Join(err, err2, out.Close())
	}()
	r, err := NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	batch := make([]Segment, 10)
	if n, err := r.Read(batch); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	done <- nil
	n := 0
	for err == nil {
		var m int
		m, err = r.Read(batch)
		n += m
	}
	if err != io.EOF || n != 2 {
		t.Error(n, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n, err := r.Read(nil); n != 0 || err != io.EOF {
		t.Error("no room after the end:", n, err)
	}
}

// An endless is a file whose packets come again and again.
type endless struct {
	header, packets []byte
	at              int
}

func (e *endless) Read(b []byte) (n int, err error) {
	if len(e.header) > 0 {
		n = copy(b, e.header)
		e.header = e.header[n:]
		return n, nil
	}
	n = copy(b, e.packets[e.at:])
	e.at = (e.at + n) % len(e.packets)
	return n, nil
}

func TestReaderAllocatesNothing(t *testing.T) {
	pcap, ng := plainPcap(handshake()...), ngFile(binary.BigEndian, nil, micros, handshake()...)
	head := len(ngFile(binary.BigEndian, nil, micros))
	for _, src := range []*endless{
		{header: pcap[:pcapHeader], packets: pcap[pcapHeader:]},
		{header: ng[:head], packets: ng[head:]},
	} {
		r, err := NewReader(src)
		if err != nil {
			t.Fatal(err)
		}
		batch := make([]Segment, 1000)
		if n := testing.AllocsPerRun(100, func() {
			for range 10 {
				if n, err := r.Read(batch); n == 0 || err != nil {
					t.Fatal(n, err)
				}
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// A fraction of more than a second would look like minutes of silence, and end
// every handshake.
func TestReaderFractionDamaged(t *testing.T) {
	var file bytes.Buffer
	for _, n := range []uint32{0xa1b2c3d4, 4<<16 | 2, 0, 0, 65535, uint32(LinkEthernet)} {
		binary.Write(&file, binary.LittleEndian, n)
	}
	frame := ethernet(0x0800, ipv4(protoTCP, tcp(SYN)))
	for _, micros := range []uint32{999_999, 1_000_000, 1 << 31} {
		binary.Write(&file, binary.LittleEndian, []uint32{uint32(day.Unix()), micros, uint32(len(frame)), uint32(len(frame))})
		file.Write(frame)
	}
	r, err := NewReader(&file)
	if err != nil {
		t.Fatal(err)
	}
	batch := make([]Segment, 8)
	n, err := r.Read(batch)
	if err != nil || n != 3 {
		t.Fatalf("%d segments, %v", n, err)
	}
	for i, want := range []time.Duration{999_999 * time.Microsecond, time.Second - 1, time.Second - 1} {
		if got := batch[i].When().Sub(day); got != want {
			t.Errorf("segment %d at %s, want %s", i, got, want)
		}
	}
}

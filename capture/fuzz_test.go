package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/gopacket/gopacket/layers"
)

// links are all link types that are known, and one that is not.
var links = []LinkType{LinkEthernet, LinkNull, LinkPPP, LinkRaw12, LinkRaw14, LinkPPPHDLC, LinkRaw, LinkLoop, LinkSLL, LinkIPv4, LinkIPv6, LinkSLL2, 105, LinkHDLC}

func FuzzDecode(f *testing.F) {
	for _, g := range goodFrames {
		f.Add(uint8(slices.Index(links, g.link)), g.frame, uint16(len(g.frame)))
		f.Add(uint8(slices.Index(links, g.link)), g.frame[:len(g.frame)*2/3], uint16(len(g.frame)))
	}
	f.Fuzz(func(t *testing.T, link uint8, frame []byte, wire uint16) {
		l := links[int(link)%len(links)]
		frame = slices.Clip(frame)
		before := bytes.Clone(frame)
		var seg Segment
		kind := Decode(l, frame, int(wire), &seg)
		if !bytes.Equal(frame, before) {
			t.Fatal("the frame was written to")
		}
		if kind >= numKinds || kind == Copy {
			t.Fatal(kind)
		}
		if !l.known() && kind != BadLink {
			t.Fatalf("link type %d: %v", l, kind)
		}
		if kind == Truncated && int(wire) <= len(frame) {
			t.Fatalf("truncated, though all %d bytes are there", len(frame))
		}
		// Nothing is left of what was there before.
		other := Segment{Time: -1, Src: [16]byte{9}, Dst: [16]byte{9}, Seq: 9, Ack: 9, SrcPort: 9, DstPort: 9, Window: 9, Length: 9, Flags: 9, Unreachable: true}
		again := Decode(l, frame, int(wire), &other)
		if other.Time != -1 {
			t.Fatal("the time was written to")
		}
		if other.Time = 0; again != kind || kind == TCP && other != seg {
			t.Fatalf("%v %+v, and then %v %+v", kind, seg, again, other)
		}
		if kind != TCP {
			return
		}
		if seg.Unreachable && (seg.Ack != 0 || seg.Window != 0 || seg.Length != 0) {
			t.Fatalf("not quoted: %+v", seg)
		}
		if seg.From().Addr().Is4() != seg.To().Addr().Is4() && l != LinkIPv6 && binary.BigEndian.Uint64(seg.Src[:])|binary.BigEndian.Uint64(seg.Dst[:]) == 0 {
			t.Fatalf("of two families: %+v", seg)
		}
		// More of the same on the wire, after what was captured, makes nothing worse.
		if kind := Decode(l, frame, int(wire)+math.MaxUint16, &other); kind != TCP {
			t.Fatalf("%v with more on the wire", kind)
		}
	})
}

func FuzzReader(f *testing.F) {
	packets := handshake()
	f.Add(plainPcap(packets...))
	f.Add(pcapFile(binary.BigEndian, modified, 0, uint32(LinkEthernet), packets...))
	f.Add(pcapFile(binary.LittleEndian, nanoseconds, 0, uint32(LinkSLL), captured{frame: sll(0, 0x0800, synIPv4)}, captured{frame: sll(4, 0x0800, synIPv4)}))
	f.Add(pcapFile(binary.BigEndian, microseconds, 0, uint32(LinkSLL2), captured{frame: sll2(1, 0, 0x0800, synIPv4)}, captured{frame: sll2(2, 0, 0x0800, synIPv4)}))
	f.Add(twoDevices(captured{frame: sent(router, director, synIPv4)}, captured{device: 1, frame: sent(director, server, synIPv4)}))
	f.Add(ngFile(binary.LittleEndian, option(binary.LittleEndian, optionResolution, 0x90), micros, packets...))
	f.Add(concat(section(binary.BigEndian), device(binary.BigEndian, 105, 60), obsolete(binary.BigEndian, micros, packets[0]), simple(binary.BigEndian, packets[1]), section(binary.LittleEndian)))
	f.Add(pcapgoNgFile(f, []layers.LinkType{layers.LinkTypeEthernet, layers.LinkTypeRaw}, packets...))
	f.Add(zip(f, plainPcap(packets...)))
	f.Fuzz(func(t *testing.T, file []byte) {
		if len(file) > 1<<16 {
			return
		}
		want, r, wantErr := readAll(bytes.NewReader(file), 7)
		if wantErr == nil {
			t.Fatal("no end")
		}
		if r != nil {
			stats := r.Stats()
			if n := sum(stats.Kinds); n != stats.Handed || n != *stats.Packets || stats.Kinds[TCP] != uint64(len(want)) {
				t.Fatalf("%+v and %d segments", stats, len(want))
			}
			if r.Offset() > int64(len(file)) {
				t.Fatalf("at %d of %d bytes", r.Offset(), len(file))
			}
		}
		var cut *CutError
		if errors.As(wantErr, &cut) && !errors.Is(wantErr, io.ErrUnexpectedEOF) {
			t.Fatal(wantErr)
		}
		// However much comes at once, and is asked for, it is the same.
		got, _, err := readAll(iotest.HalfReader(bytes.NewReader(file)), 1)
		if !slices.Equal(got, want) || err.Error() != wantErr.Error() {
			t.Fatalf("%v and %v; %v and %v", got, want, err, wantErr)
		}
	})
}

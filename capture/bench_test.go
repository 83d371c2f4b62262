package capture

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
)

var synFrame = []byte{
	0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x08, 0x00,
	0x45, 0, 0, 60, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 7, 192, 0, 2, 1,
	0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0xa0, 0x02, 0xfa, 0xf0, 0, 0, 0, 0,
	2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
}

func BenchmarkDecode(b *testing.B) {
	var seg Segment
	for b.Loop() {
		if Decode(LinkEthernet, synFrame, len(synFrame), &seg) != TCP {
			b.Fatal()
		}
	}
}

func BenchmarkReader(b *testing.B) {
	const packets = 1_000_000
	file := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	file = append(file, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0)
	for i := range packets {
		file = binary.LittleEndian.AppendUint32(file, uint32(i/500000))
		file = binary.LittleEndian.AppendUint32(file, uint32(i%500000*2))
		file = binary.LittleEndian.AppendUint32(file, uint32(len(synFrame)))
		file = binary.LittleEndian.AppendUint32(file, uint32(len(synFrame)))
		at := len(file)
		file = append(file, synFrame...)
		binary.BigEndian.PutUint32(file[at+26:], uint32(i)*2654435761)
		binary.BigEndian.PutUint32(file[at+38:], uint32(i))
	}
	batch := make([]Segment, 256)
	for b.Loop() {
		r, err := NewReader(bytes.NewReader(file))
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = r.Read(batch)
		}
		if err != io.EOF || r.Stats().Kinds[TCP] != packets {
			b.Fatal(err, r.Stats())
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/packets, "ns/packet")
}

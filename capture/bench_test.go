package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"testing"
)

// optionsOfLinux are those of a SYN from Linux.
var optionsOfLinux = []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}

func BenchmarkDecode(b *testing.B) {
	syn := tcp(SYN, optionsOfLinux...)
	for _, bb := range []struct {
		name  string
		frame []byte
	}{
		{"IPv4", ethernet(0x0800, ipv4(protoTCP, syn))},
		{"IPv6", ethernet(0x86dd, ipv6(protoTCP, syn))},
		{"VLAN", ethernet(0x8100, concat([]byte{0, 7, 8, 0}, ipv4(protoTCP, syn)))},
	} {
		b.Run(bb.name, func(b *testing.B) {
			var seg Segment
			for b.Loop() {
				if Decode(LinkEthernet, bb.frame, len(bb.frame), &seg) != TCP {
					b.Fatal("not decoded")
				}
			}
		})
	}
}

// What is read has no copies in it: every SYN is looked up in vain.
func BenchmarkReader(b *testing.B) {
	const packets = 1_000_000
	for _, bb := range []struct {
		name  string
		frame []byte
	}{
		{"SYN", ethernet(0x0800, ipv4(protoTCP, tcp(SYN, optionsOfLinux...)))},
		{"ACK", ethernet(0x0800, ipv4(protoTCP, tcp(ACK, make([]byte, 12)...)))},
	} {
		for _, format := range []string{"pcap", "pcapng"} {
			b.Run(fmt.Sprintf("%s of %s", format, bb.name), func(b *testing.B) {
				var file bytes.Buffer
				frame := bytes.Clone(bb.frame)
				for i := range packets {
					binary.BigEndian.PutUint32(frame[26:], uint32(i)*2654435761)
					binary.BigEndian.PutUint32(frame[38:], uint32(i))
					p := captured{frame: frame}
					switch {
					case format == "pcapng" && i == 0:
						file.Write(concat(section(binary.LittleEndian), device(binary.LittleEndian, LinkEthernet, 0)))
						fallthrough
					case format == "pcapng":
						file.Write(enhanced(binary.LittleEndian, micros, p))
					case i == 0:
						file.Write(plainPcap(p))
					default:
						file.Write(plainPcap(p)[pcapHeader:])
					}
				}
				batch := make([]Segment, 256)
				for b.Loop() {
					r, err := NewReader(bytes.NewReader(file.Bytes()))
					for err == nil {
						_, err = r.Read(batch)
					}
					if err != io.EOF || r.Stats().Kinds[TCP] != packets {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/packets, "ns/packet")
			})
		}
	}
}

package mix

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// Pcap writes the packets as a classic capture file, with microseconds, as all
// tools read it. It begins with the year 2026.
func (c Config) Pcap(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	order := binary.LittleEndian
	header := order.AppendUint32(nil, 0xa1b2c3d4)
	header = order.AppendUint16(header, 2)
	header = order.AppendUint16(header, 4)
	header = append(header, make([]byte, 8)...)
	header = order.AppendUint32(header, 65535) // no packet is longer
	header = order.AppendUint32(header, 1)     // Ethernet
	out.Write(header)                          // its error comes with the last one

	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	record := make([]byte, 0, 16)
	for after, frame := range c.Frames() {
		at := begin.Add(after)
		record = order.AppendUint32(record[:0], uint32(at.Unix()))
		record = order.AppendUint32(record, uint32(at.Nanosecond()/1000))
		record = order.AppendUint32(record, uint32(len(frame)))
		record = order.AppendUint32(record, uint32(len(frame)))
		out.Write(record)
		if _, err := out.Write(frame); err != nil {
			return fmt.Errorf("write the capture: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the capture: %w", err)
	}
	return nil
}

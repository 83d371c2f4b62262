package capture

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// More blocks of pcapng, and options.
const (
	statisticsBlock = 5

	optionComment = 1

	optionHardware    = 2 // of a section
	optionOS          = 3
	optionApplication = 4

	optionName = 2 // of an interface

	optionStart    = 2 // of statistics
	optionEndTime  = 3
	optionReceived = 4
	optionDropped  = 5

	maxOption = 1<<16 - 1

	// writeSize is how much is put together before it is written: whole blocks.
	writeSize = 64 << 10
)

// PcapngMeta is what a file says beside its packets.
type PcapngMeta struct {
	// Application is who wrote it, as "lvsguard v1.2.0".
	Application string
	// Comment may have several lines. What Recorded tells comes after it.
	Comment string
	// Recorded gives the interfaces and their figures, and the time that they
	// are from.
	Recorded Recorded
}

// WritePcapng writes packets as a file of one section, and tells how many. Of
// each it writes SnapLength bytes at most. Whatever becomes of the file, what is
// written at any time is whole up to the last 64 KiB, and NewReader reads it up
// to where it ends.
func WritePcapng(w io.Writer, meta PcapngMeta, packets iter.Seq[Packet]) (n uint64, err error) {
	f := &pcapngFile{w: w, devices: make(map[ngName]uint32)}
	f.section(&meta)
	for p := range packets {
		device, err := f.device(p.Interface, p.Link)
		if err != nil {
			return n, err
		}
		f.packet(&p, device)
		if err := f.flush(writeSize); err != nil {
			return n, err
		}
		n++
	}
	f.statistics(&meta.Recorded)
	return n, f.flush(0)
}

// pcapngFile writes blocks. All numbers are little-endian, which the section's
// header tells.
type pcapngFile struct {
	w       io.Writer
	block   []byte // whole blocks that are not written yet, then the one in the making
	begun   int    // where that begins
	devices map[ngName]uint32
	order   []ngName
}

// An interface whose link type has changed is another one.
type ngName struct {
	name string
	link LinkType
}

func (f *pcapngFile) flush(from int) error {
	if len(f.block) == 0 || len(f.block) < from {
		return nil
	}
	_, err := f.w.Write(f.block)
	f.block = f.block[:0]
	if err != nil {
		return fmt.Errorf("write packets: %w", err)
	}
	return nil
}

func (f *pcapngFile) uint16(v uint16) { f.block = binary.LittleEndian.AppendUint16(f.block, v) }
func (f *pcapngFile) uint32(v uint32) { f.block = binary.LittleEndian.AppendUint32(f.block, v) }
func (f *pcapngFile) uint64(v uint64) { f.block = binary.LittleEndian.AppendUint64(f.block, v) }

// time writes nanoseconds, the upper half first.
func (f *pcapngFile) time(ns int64) {
	f.uint32(uint32(ns >> 32))
	f.uint32(uint32(ns))
}

func (f *pcapngFile) begin(kind uint32) {
	f.begun = len(f.block)
	f.uint32(kind)
	f.uint32(0) // the size comes later
}

func (f *pcapngFile) end() {
	size := uint32(len(f.block) - f.begun + 4)
	binary.LittleEndian.PutUint32(f.block[f.begun+4:], size)
	f.uint32(size)
}

// pad fills up to the next multiple of four bytes; all blocks have such a size.
func (f *pcapngFile) pad() {
	for (len(f.block)-f.begun)%4 != 0 {
		f.block = append(f.block, 0)
	}
}

func (f *pcapngFile) option(code uint16, value []byte) {
	f.uint16(code)
	f.uint16(uint16(len(value)))
	f.block = append(f.block, value...)
	f.pad()
}

// text is an option that is left out where there is nothing to say.
func (f *pcapngFile) text(code uint16, s string) {
	if s = strings.ToValidUTF8(s[:min(len(s), maxOption)], ""); s != "" {
		f.option(code, []byte(s))
	}
}

func (f *pcapngFile) number(code uint16, v *uint64) {
	if v != nil {
		f.option(code, binary.LittleEndian.AppendUint64(nil, *v))
	}
}

func (f *pcapngFile) section(meta *PcapngMeta) {
	f.begin(sectionBlock)
	f.uint32(byteOrder)
	f.uint16(1) // version 1.0
	f.uint16(0)
	f.uint64(1<<64 - 1) // how long it is, is not known
	f.text(optionComment, strings.TrimSpace(meta.Comment+"\n"+meta.Recorded.text()))
	f.text(optionHardware, runtime.GOARCH)
	f.text(optionOS, kernel())
	f.text(optionApplication, meta.Application)
	f.option(optionEnd, nil)
	f.end()
}

// text says what was recorded, and what is missing. Drops of several interfaces
// have no other place in a file.
func (r *Recorded) text() string {
	var lines []string
	if r.Seen > 0 {
		lines = append(lines, fmt.Sprintf("%d of %d packets from %s to %s", r.Kept, r.Seen,
			r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339)))
	}
	if r.Received != nil && r.Dropped != nil {
		lines = append(lines, fmt.Sprintf("capture on all interfaces since its beginning: %d packets received, %d dropped", *r.Received, *r.Dropped))
	} else if r.Dropped != nil {
		lines = append(lines, fmt.Sprintf("capture on all interfaces since its beginning: %d packets dropped", *r.Dropped))
	}
	return strings.Join(lines, "\n")
}

// kernel is the system's name and release.
func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOOS
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

// device is the number of an interface, which is described when it is first
// heard of.
func (f *pcapngFile) device(name string, link LinkType) (uint32, error) {
	key := ngName{name, link}
	if n, ok := f.devices[key]; ok {
		return n, nil
	}
	if len(f.order) == maxDevices {
		return 0, fmt.Errorf("write packets: they are of more than %d interfaces", maxDevices)
	}
	const nanoseconds = 9 // units of 10^-9 s
	n := uint32(len(f.order))
	f.devices[key], f.order = n, append(f.order, key)
	f.begin(interfaceBlock)
	f.uint16(uint16(link))
	f.uint16(0)
	f.uint32(SnapLength)
	f.text(optionName, name)
	f.option(optionResolution, []byte{nanoseconds})
	f.option(optionEnd, nil)
	f.end()
	return n, nil
}

func (f *pcapngFile) packet(p *Packet, device uint32) {
	data := p.Data[:min(len(p.Data), SnapLength)]
	f.begin(packetBlock)
	f.uint32(device)
	f.time(p.Time)
	f.uint32(uint32(len(data)))
	f.uint32(max(p.Length, uint32(len(data))))
	f.block = append(f.block, data...)
	f.pad()
	if p.Comment != "" {
		f.text(optionComment, p.Comment)
		f.option(optionEnd, nil)
	}
	f.end()
}

// statistics are written for each interface of which there are packets and
// figures.
func (f *pcapngFile) statistics(rec *Recorded) {
	for n, key := range f.order {
		for _, i := range rec.Interfaces {
			if i.Name != key.name || i.Received == nil && i.Dropped == nil {
				continue
			}
			f.begin(statisticsBlock)
			f.uint32(uint32(n))
			f.time(rec.To.UnixNano())
			for _, at := range []struct {
				code uint16
				ns   int64
			}{{optionStart, rec.From.UnixNano()}, {optionEndTime, rec.To.UnixNano()}} {
				f.uint16(at.code)
				f.uint16(8)
				f.time(at.ns)
			}
			f.number(optionReceived, i.Received)
			f.number(optionDropped, i.Dropped)
			f.option(optionEnd, nil)
			f.end()
		}
	}
}

package capture

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

const (
	// readSize is the size of the buffer at first. It grows to hold the largest
	// packet.
	readSize = 128 << 10
	// maxPacket is the most bytes that a packet in a file may have. Where the
	// file's header names a larger limit, that one counts up to maxBlock.
	maxPacket = 256 << 10
	maxBlock  = 16 << 20
)

// A Reader reads the segments of a capture file: pcap with micro- or
// nanoseconds, or pcapng, in either byte order, and gzipped or not. Forwarded
// copies are left out.
//
// Times are those in the file. They may run backwards. pcapng's simple packets
// have none and get that of the packet before.
type Reader struct {
	consumed *meter
	src      io.Reader
	srcErr   error // what src ended with

	buf      []byte
	pos, end int   // buf[pos:end] was read from src and not looked at
	base     int64 // how far into the capture buf begins

	format fileFormat
	record record
	copies *copies
	kinds  Kinds
	// packets counts those before pos.
	packets uint64
	// unknown are packets of unknownLink, which only pcapng can have among others.
	unknown     uint64
	unknownLink LinkType
	err         error
}

// A fileFormat finds the records in a file.
type fileFormat interface {
	// next reads the record at the beginning of b into rec, and tells its size.
	next(b []byte, rec *record) (size int64, err error)
}

// A record is what stands in a file: a packet, or what is passed over.
type record struct {
	kind recordKind
	// frame is a part of the b that next was called with. It and the rest are
	// set for packets only.
	frame  []byte
	wire   int
	time   int64
	link   LinkType
	device uint16
}

type recordKind uint8

const (
	// recordShort: b must be at least of the size that next tells to say more.
	recordShort recordKind = iota
	recordPacket
	// recordOther is to be passed over. b need not hold all of it.
	recordOther
)

// A CutError says where a capture ends in the midst of a packet, or of something
// else that all captures have.
type CutError struct {
	Offset int64  // where it ends, in bytes, of gzipped files when unzipped
	Packet uint64 // the packet that is cut, from 1
}

func (e *CutError) Error() string {
	if e.Offset == 0 {
		return "capture is empty: there is not even a header"
	}
	return fmt.Sprintf("capture is cut at byte %d, in packet %d: what is before it was read", e.Offset, e.Packet)
}

// Unwrap returns io.ErrUnexpectedEOF.
func (e *CutError) Unwrap() error { return io.ErrUnexpectedEOF }

// A meter counts what is read through it.
type meter struct {
	src io.Reader
	n   atomic.Int64
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.src.Read(b)
	m.n.Add(int64(n))
	return n, err
}

// NewReader opens a capture. It is a *CutError if that has no whole header.
func NewReader(src io.Reader) (*Reader, error) {
	r := &Reader{consumed: &meter{src: src}, buf: make([]byte, readSize), copies: newCopies()}
	buffered := bufio.NewReaderSize(r.consumed, 64<<10)
	r.src = buffered
	if magic, _ := buffered.Peek(2); string(magic) == "\x1f\x8b" {
		zipped, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("open capture: %w", r.cut(err))
		}
		r.src = zipped
	}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("open capture: %w", err)
	}
	return r, nil
}

// open reads the header.
func (r *Reader) open() error {
	header, err := r.peek(4)
	if err != nil {
		return err
	}
	magic := binary.LittleEndian.Uint32(header)
	if magic == sectionBlock {
		r.format = new(pcapng)
		return nil
	}
	file, err := newPcap(magic)
	if err != nil {
		return err
	}
	if header, err = r.peek(pcapHeader); err != nil {
		return err
	}
	r.format = file
	r.pos += pcapHeader
	return file.open(header)
}

// Read fills the batch with the segments that come next, and tells how many. It
// returns fewer than there is room for rather than wait for more, but at least
// one. Without an error it has returned 0 only if the batch has no room.
//
// At the end of the capture the error is io.EOF; where that is cut it is a
// *CutError; all others say at which byte something is wrong. Every error comes
// after all the segments before it, and again with every further call.
func (r *Reader) Read(batch []Segment) (int, error) {
	n := 0
	for n < len(batch) {
		part := batch[n:min(n+copyBatch, len(batch))]
		segments, more := r.read(part, n == 0)
		left := r.copies.drop(part[:segments])
		r.kinds[TCP] -= uint64(segments - left)
		r.kinds[Copy] += uint64(segments - left)
		n += left
		if !more && (n > 0 || r.err != nil) {
			break
		}
	}
	if n == 0 {
		return 0, r.err
	}
	return n, nil
}

// read fills the batch, in which copies are still left, and tells whether there
// is more to read. If it may wait, it waits for the first segment.
func (r *Reader) read(batch []Segment, wait bool) (n int, more bool) {
	for n < len(batch) {
		if r.err != nil {
			return n, false
		}
		size, err := r.format.next(r.buf[r.pos:r.end], &r.record)
		switch {
		case err != nil:
			r.err = fmt.Errorf("capture is damaged at byte %d, in packet %d: %w", r.offset(), r.packets+1, err)
		case r.record.kind == recordPacket:
			r.pos += int(size)
			if r.decode(batch, n) {
				n++
			}
		case r.record.kind == recordOther && size <= int64(r.end-r.pos):
			r.pos += int(size)
		case n > 0 || !wait:
			return n, false
		case r.record.kind == recordOther:
			r.err = r.skip(size)
		default:
			if _, err := r.peek(int(size)); err != nil {
				r.err = r.over(err)
			}
		}
	}
	return n, true
}

// decode decodes the packet in r.record into batch[n], and tells whether it gave
// a segment.
func (r *Reader) decode(batch []Segment, n int) bool {
	rec, seg := &r.record, &batch[n]
	r.packets++
	kind, id := decode(rec.link, rec.frame, rec.wire, seg)
	r.kinds[kind]++
	if kind != TCP {
		if kind == BadLink && !rec.link.known() {
			r.unknown++
			r.unknownLink = rec.link
		}
		return false
	}
	seg.Time = rec.time
	if seg.Flags&SYN != 0 && !seg.Unreachable {
		r.copies.ask(seg, n, id, placeOf(rec.link, rec.frame, rec.device))
	}
	return true
}

// over is the error that ends the capture, which err says there is no more of.
func (r *Reader) over(err error) error {
	if err == io.EOF && r.unknown > 0 {
		return fmt.Errorf("left out %d of %d packets: %w", r.unknown, r.packets, unknownLink(r.unknownLink))
	}
	return err
}

// peek returns the next n bytes or more, which stay the next ones. The error is
// io.EOF only if there are none at all.
func (r *Reader) peek(n int) ([]byte, error) {
	for r.end-r.pos < n {
		if err := r.fill(); err != nil {
			if err == io.EOF && r.pos == r.end && r.format != nil {
				return nil, err
			}
			return nil, r.cut(err)
		}
	}
	return r.buf[r.pos:r.end], nil
}

// skip passes over n bytes.
func (r *Reader) skip(n int64) error {
	for n > int64(r.end-r.pos) {
		n -= int64(r.end - r.pos)
		r.pos = r.end
		if err := r.fill(); err != nil {
			return r.cut(err)
		}
	}
	r.pos += int(n)
	return nil
}

// fill reads at least one byte more.
func (r *Reader) fill() error {
	if r.srcErr != nil {
		return r.srcErr
	}
	r.base += int64(r.pos)
	r.end = copy(r.buf, r.buf[r.pos:r.end])
	r.pos = 0
	if r.end == len(r.buf) {
		r.buf = append(r.buf, make([]byte, len(r.buf))...)
	}
	n, err := r.src.Read(r.buf[r.end:])
	r.end += n
	r.srcErr = err
	if err != nil && err != io.EOF {
		r.srcErr = fmt.Errorf("read capture after byte %d: %w", r.base+int64(r.end), err)
	}
	if n > 0 {
		return nil
	}
	return r.srcErr
}

// cut is a *CutError, if src ended with err where more was to come. A gzipped
// file that is cut says so itself.
func (r *Reader) cut(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return &CutError{Offset: r.base + int64(r.end), Packet: r.packets + 1}
	}
	return err
}

// offset is how far into the capture the next record begins.
func (r *Reader) offset() int64 { return r.base + int64(r.pos) }

// Offset is how much of the file was read, in bytes as they are on the disk. It
// may be called at the same time as Read.
func (r *Reader) Offset() int64 { return r.consumed.n.Load() }

// Stats are the figures of the packets up to here. Nothing is dropped of a file.
func (r *Reader) Stats() Stats {
	packets := r.packets
	return Stats{Packets: &packets, Handed: packets, Kinds: r.kinds}
}

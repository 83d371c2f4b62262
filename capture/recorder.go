package capture

import (
	"cmp"
	"encoding/binary"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
	"unsafe"
)

// SnapLength is how much is kept of a packet.
const SnapLength = 128

// RecorderConfig says how much the recorder keeps.
type RecorderConfig struct {
	// Memory is in bytes, for all workers together, but no less than some 2 KiB
	// for each of them and each second; 0: nothing is recorded.
	Memory int
	// Span is how far back packets are kept, in whole seconds; 0: 30 s.
	Span time.Duration
}

const (
	defaultSpan = 30 * time.Second
	// spare are slices that there are more than seconds in the span: the one that
	// is being filled, and one that gives whoever asks for the whole span a second
	// to do so.
	spare = 2
	// leastCells is how many packets a slice holds at least.
	leastCells = 4
)

// A recorder keeps the first bytes of what was captured last, in memory that
// does not grow. Each worker has a part of its own, and each part a slice for
// each second.
//
// A slice that is full leaves out by connection: each connection has a rank, a
// keyed hash, and what has a rank from a limit on is not kept. So a connection
// is kept whole, from its SYN to its ACK, or not at all, and all with the same
// probability. Only the first few packets of a connection have its rank. Those
// after them have one of their own each, or a single connection that floods
// would come to be all of the slice or nothing of it.
//
// There is not one limit, but one for each stratum: SYNs with the signature of a
// flood; other SYNs by service, window and length; SYN/ACKs and ACKs by window and
// length; the rest. The stratum that has most in the slice gives way. So what a
// flood is made of, and what answers it, pushes out its own and little of the
// others. A connection is whole if its rank is below the limits of all the strata
// that its packets are in.
type recorder struct {
	parts []recorderPart
	begun int64
}

// Strata. Of some there are several, by a hash.
const (
	shapeBits     = 4
	shapes        = 1 << shapeBits
	stratumSYN    = 0
	stratumSYNACK = stratumSYN + shapes
	stratumACK    = stratumSYNACK + shapes
	stratumSigned = stratumACK + shapes
	stratumOther  = stratumSigned + 1
	numStrata     = stratumOther + 1
)

// recorderPart is what one worker records.
type recorderPart struct {
	mu      sync.Mutex
	slices  []slice
	current *slice
	until   int64 // when the current slice's second ends
	seed    [4]uint64
	dice    uint64
	// repeats counts the packets of connections, up to together: in the lowest
	// byte, beside a part of the connection's hash.
	repeats [1 << 10]uint32
	_       [64]byte // what is another worker's is in another line of the cache
}

// together is how many packets of a connection are kept or left out as one.
const together = 8

// everything is the limit of a stratum of which all is kept.
const everything = 1 << 32

// A slice is what is kept of one second.
type slice struct {
	second int64 // since 1970
	held   int
	strata [numStrata]stratum
	// keys are stratum and rank of each cell: where all of them are looked
	// through, they alone are.
	keys  []sliceKey
	cells []cell
}

type stratum struct {
	limit      uint64
	seen, held uint32
}

type sliceKey struct{ stratum, rank uint32 }

// A cell holds one packet.
type cell struct {
	time   int64
	wire   uint32
	device uint32
	link   uint8 // all that are recorded have small numbers
	size   uint8
	data   [SnapLength]byte
}

// recordSize is what a packet takes.
const recordSize = 160

func newRecorder(cfg RecorderConfig, workers int, begun int64) *recorder {
	if cfg.Span <= 0 {
		cfg.Span = defaultSpan
	}
	seconds := int((cfg.Span + time.Second - 1) / time.Second)
	r := &recorder{parts: make([]recorderPart, workers), begun: begun}
	each := cfg.Memory/workers/(seconds+spare) - int(unsafe.Sizeof(slice{}))
	cells := max(each/recordSize, leastCells)
	for i := range r.parts {
		p := &r.parts[i]
		p.slices = make([]slice, seconds+spare)
		for j := range p.slices {
			p.slices[j].keys = make([]sliceKey, cells)
			p.slices[j].cells = make([]cell, cells)
		}
		// The same for all, so that it does not matter which worker has what.
		p.seed = r.parts[0].seed
		if i == 0 {
			for k := range p.seed {
				p.seed[k] = rand.Uint64() | 1 // odd, as a factor must be
			}
		}
		p.dice = rand.Uint64()
	}
	return r
}

// add records a frame that became that segment, or did not. at never decreases.
// The caller holds the lock.
func (p *recorderPart) add(f *ringFrame, seg *Segment, kind Kind, at int64) {
	if !f.ethernet() && f.protocol != etherIPv4 && f.protocol != etherIPv6 {
		return // there is no link type for it
	}
	if at >= p.until {
		p.turn(at)
	}
	s, n := p.current, stratumOther
	var rank uint32
	if kind == TCP {
		var hash uint64
		n, hash = p.sort(seg)
		rank = uint32(hash >> 32)
		if p.repeated(hash) {
			rank = p.roll()
		}
	} else {
		rank = p.roll()
	}
	s.strata[n].seen++
	if uint64(rank) >= s.strata[n].limit {
		return
	}
	if s.held == len(s.cells) {
		s.thin()
		if uint64(rank) >= s.strata[n].limit {
			return
		}
	}
	s.cells[s.held].put(f, at)
	s.keys[s.held] = sliceKey{uint32(n), rank}
	s.held++
	s.strata[n].held++
}

// turn goes on to the slice of another second.
func (p *recorderPart) turn(at int64) {
	second := at / int64(time.Second)
	p.until = (second + 1) * int64(time.Second)
	p.current = &p.slices[second%int64(len(p.slices))]
	s := p.current
	s.second, s.held = second, 0
	for i := range s.strata {
		s.strata[i] = stratum{limit: everything}
	}
}

// sort tells a segment's stratum and its connection's hash, which is the same in
// both directions.
func (p *recorderPart) sort(seg *Segment) (n int, hash uint64) {
	from := fold(binary.LittleEndian.Uint64(seg.Src[:])^p.seed[0],
		binary.LittleEndian.Uint64(seg.Src[8:])+uint64(seg.SrcPort)*odd^p.seed[1])
	to := fold(binary.LittleEndian.Uint64(seg.Dst[:])^p.seed[0],
		binary.LittleEndian.Uint64(seg.Dst[8:])+uint64(seg.DstPort)*odd^p.seed[1])
	hash = fold(from^to^p.seed[2], from+to)
	shape := uint64(seg.Window)<<16 | uint64(seg.Length)
	switch {
	case seg.Unreachable || seg.Flags&RST != 0:
		return stratumOther, hash
	case seg.Signed():
		return stratumSigned, hash
	case seg.Flags&SYN == 0:
		n = stratumACK
	case seg.Flags&ACK != 0:
		n = stratumSYNACK
	default:
		n, shape = stratumSYN, shape^to
	}
	return n + int(shape*p.seed[3]>>(64-shapeBits)), hash
}

// repeated counts a packet of a connection, and tells whether there were as many
// as are taken together. One that it has not heard of for long may be forgotten.
func (p *recorderPart) repeated(hash uint64) bool {
	const counter = 0xff
	e := &p.repeats[hash%uint64(len(p.repeats))]
	tag := uint32(hash>>8) &^ counter
	switch {
	case *e&^counter != tag:
		*e = tag | 1
	case *e&counter == together:
		return true
	default:
		*e++
	}
	return false
}

// roll makes up a rank.
func (p *recorderPart) roll() uint32 {
	p.dice += odd
	return uint32(fold(p.dice, p.dice^p.seed[0]))
}

// thin makes room in a slice.
func (s *slice) thin() {
	for s.held == len(s.cells) {
		n := 0
		for i := range s.strata {
			if s.strata[i].held > s.strata[n].held {
				n = i
			}
		}
		most := &s.strata[n]
		most.limit -= most.limit/4 + 1
		for i := 0; i < s.held; {
			if k := s.keys[i]; int(k.stratum) != n || uint64(k.rank) < most.limit {
				i++
				continue
			}
			s.held--
			most.held--
			s.keys[i] = s.keys[s.held]
			s.cells[i] = s.cells[s.held]
		}
	}
}

// put writes a frame into the cell.
func (c *cell) put(f *ringFrame, at int64) {
	data, wire := f.data, f.wire
	c.time, c.device, c.link = at, f.device, uint8(LinkEthernet)
	tagged := 0
	switch {
	case !f.ethernet():
		skip := max(0, min(f.network, len(data)))
		data, wire, c.link = data[skip:], wire-skip, uint8(LinkRaw)
	case f.tag != 0 && len(data) >= ethernetHeader: // the kernel took the tag off
		const addresses = 12
		copy(c.data[:], data[:addresses])
		binary.BigEndian.PutUint32(c.data[addresses:], f.tag)
		tagged, data, wire = addresses+tagHeader, data[addresses:], wire+tagHeader
	}
	c.wire = uint32(wire)
	c.size = uint8(tagged + copy(c.data[tagged:], data))
}

// A taken slice is a copy of what of it was filled.
type takenSlice struct {
	strata [numStrata]stratum
	keys   []sliceKey
	cells  []cell
}

// recent are the packets from one time on and before another, in order. These
// times are by the workers' clock, and what comes back by one that it is that far
// ahead of. names gives interfaces their names. No worker waits for longer than it
// takes to copy a slice.
func (r *recorder) recent(from, to, ahead int64, names map[uint32]string) (iter.Seq[Packet], Recorded) {
	const second = int64(time.Second)
	from = max(from, r.begun)
	var taken []takenSlice
	var rec Recorded
	// What a slice is copied to is made, and has been written to once, before
	// its worker has to wait.
	size := len(r.parts[0].slices[0].cells)
	held := takenSlice{keys: make([]sliceKey, size), cells: make([]cell, size)}
	clear(held.keys)
	clear(held.cells)
	for i := range r.parts {
		p := &r.parts[i]
		for j := range p.slices {
			s := &p.slices[j]
			p.mu.Lock()
			newest := p.until/second - 1
			at, n := s.second, s.held
			if n > 0 && at*second < to && (at+1)*second > from {
				held.strata = s.strata
				copy(held.keys, s.keys[:n])
				copy(held.cells, s.cells[:n])
			} else {
				n = 0
			}
			p.mu.Unlock()
			from = max(from, (newest-int64(len(p.slices))+1)*second)
			if n > 0 {
				taken = append(taken, takenSlice{held.strata, slices.Clone(held.keys[:n]), slices.Clone(held.cells[:n])})
			}
		}
	}
	type place struct {
		time        int64
		slice, cell uint32
	}
	var order []place
	for i := range taken {
		for _, s := range taken[i].strata {
			rec.Seen += uint64(s.seen)
		}
		for j := range taken[i].cells {
			if c := &taken[i].cells[j]; c.time >= from && c.time < to {
				order = append(order, place{c.time, uint32(i), uint32(j)})
			}
		}
	}
	slices.SortStableFunc(order, func(a, b place) int { return cmp.Compare(a.time, b.time) })
	rec.From, rec.To, rec.Kept = time.Unix(0, from-ahead), time.Unix(0, to-ahead), uint64(len(order))
	return func(yield func(Packet) bool) {
		for _, at := range order {
			t := &taken[at.slice]
			c, s := &t.cells[at.cell], &t.strata[t.keys[at.cell].stratum]
			if !yield(Packet{
				Time: c.time - ahead, Interface: names[c.device], Link: LinkType(c.link), Length: c.wire,
				Data: c.data[:c.size:c.size], Weight: float64(s.seen) / float64(s.held),
			}) {
				return
			}
		}
	}, rec
}

package incident

import (
	"hash/maphash"
	"iter"
	"net/netip"
	"time"

	"github.com/lvsguard/lvsguard/capture"
)

const (
	// A generation of a Seen is half an hour. With the one that is being filled
	// there are three, so that an hour is always known.
	generation  = 30 * time.Minute
	generations = 3
	seenBits    = 1 << 24 // 2 MiB a generation
	seenHashes  = 4
	// seenMost is how many sources a generation can hold so that hardly one in a
	// thousand others is taken for one of them.
	seenMost = 800_000
)

// Seen remembers the sources of handshakes that completed within the last hour,
// and up to half an hour longer, in 6 MiB: a Bloom filter for each half hour. One
// goroutine at a time may use it.
type Seen struct {
	seed  maphash.Seed
	bits  [generations]set
	count [generations]int
	until time.Time // when the first generation is full
}

// NewSeen makes a Seen.
func NewSeen() *Seen { return &Seen{seed: maphash.MakeSeed()} }

// Add remembers a source.
func (s *Seen) Add(now time.Time, source netip.Addr) {
	if now.After(s.until) {
		if now.Sub(s.until) > generations*generation {
			s.bits, s.count = [generations]set{}, [generations]int{}
		}
		copy(s.bits[1:], s.bits[:generations-1])
		copy(s.count[1:], s.count[:generations-1])
		s.bits[0], s.count[0] = make(set, seenBits/64), 0
		s.until = now.Add(generation)
	}
	h := s.hash(source)
	if s.bits[0].hasAll(h) {
		return
	}
	for i := range seenHashes {
		at := place(h, i)
		s.bits[0][at/64] |= 1 << (at % 64)
	}
	s.count[0]++
}

// Has tells whether a source was added in the last hour. Hardly one in a
// thousand others is taken for one that was, unless Full.
func (s *Seen) Has(source netip.Addr) bool {
	h := s.hash(source)
	for _, bits := range s.bits {
		if bits != nil && bits.hasAll(h) {
			return true
		}
	}
	return false
}

// Full tells whether there were so many sources that Has takes too many others
// for one of them.
func (s *Seen) Full() bool {
	for _, n := range s.count {
		if n > seenMost {
			return true
		}
	}
	return false
}

func (s *Seen) hash(source netip.Addr) uint64 { return maphash.Comparable(s.seed, source) }

// place is one of the bits that stand for a source.
func place(hash uint64, i int) uint64 {
	return (hash + uint64(i)*(hash>>32|1)) % seenBits
}

func (s set) hasAll(hash uint64) bool {
	for i := range seenHashes {
		if at := place(hash, i); s[at/64]&(1<<(at%64)) == 0 {
			return false
		}
	}
	return true
}

// Completed gives the sources of handshakes with services that completed among
// packets.
func Completed(packets iter.Seq[capture.Packet], service func(netip.AddrPort) bool) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		opened := newWaiting()
		for p := range packets {
			h, ok := decode(&p)
			switch {
			case !ok || !service(netip.AddrPortFrom(h.dst, h.dstPort)):
			case h.isSYN():
				opened.add(p.Time, &h)
			case h.flags&(capture.SYN|capture.RST) == 0 && h.flags&capture.ACK != 0:
				if syn, ok := opened.find(&h); ok && h.seq-syn.seq-1 < 65536 {
					opened.remove(&h)
					if !yield(h.src) {
						return
					}
				}
			}
		}
	}
}

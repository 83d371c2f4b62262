package ipvs

import (
	"cmp"
	"net/netip"
	"slices"
)

// A sketch counts addresses in bounded memory: the space-saving algorithm of
// Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k
// Elements in Data Streams" (2005). An address without a place takes that of the
// one counted least and inherits its count, which is the most that it can have
// had itself. No address that makes up more than one part in len(counters) is missing.
type sketch struct {
	counters []counter
	index    map[address]int32 // of counters
	heap     []int32           // a binary heap of indices of counters, the least rank first
}

type counter struct {
	address
	count     int // at most
	inherited int // of count

	// rank is count as it was when the counter was last put into its place in
	// the heap. To count costs nothing there: ranks are mended at the top.
	rank int
}

func newSketch(capacity int) *sketch {
	return &sketch{
		counters: make([]counter, 0, capacity),
		index:    make(map[address]int32, capacity),
		heap:     make([]int32, 0, capacity),
	}
}

func (s *sketch) add(a address) {
	if i, ok := s.index[a]; ok {
		s.counters[i].count++
		return
	}
	if i := len(s.counters); i < cap(s.counters) {
		// All ranks are 1 until the first counter is replaced, so the end of the
		// heap is its place.
		s.counters = append(s.counters, counter{address: a, count: 1, rank: 1})
		s.heap = append(s.heap, int32(i))
		s.index[a] = int32(i)
		return
	}
	least := s.least()
	c := &s.counters[least]
	delete(s.index, c.address)
	s.index[a] = least
	*c = counter{address: a, count: c.count + 1, inherited: c.count, rank: c.rank}
}

// least returns the index of the counter with the least count, at the top of
// the heap.
func (s *sketch) least() int32 {
	for {
		top := s.heap[0]
		c := &s.counters[top]
		if c.rank == c.count {
			return top
		}
		c.rank = c.count
		s.sink()
	}
}

// sink moves the counter at the top of the heap down to its place.
func (s *sketch) sink() {
	i, place := s.heap[0], 0
	for {
		child := 2*place + 1
		if child >= len(s.heap) {
			break
		}
		if right := child + 1; right < len(s.heap) && s.rankAt(right) < s.rankAt(child) {
			child = right
		}
		if s.counters[i].rank <= s.rankAt(child) {
			break
		}
		s.heap[place] = s.heap[child]
		place = child
	}
	s.heap[place] = i
}

func (s *sketch) rankAt(place int) int { return s.counters[s.heap[place]].rank }

// sources returns what was counted, those with most for certain first.
func (s *sketch) sources(v4, v6 int) []Source {
	sources := make([]Source, len(s.counters))
	for i, c := range s.counters {
		bits := v4
		if c.v6 {
			bits = v6
		}
		sources[i] = Source{
			Prefix:  netip.PrefixFrom(c.addr(), bits),
			AtLeast: c.count - c.inherited,
			AtMost:  c.count,
		}
	}
	slices.SortFunc(sources, func(a, b Source) int {
		return cmp.Or(
			cmp.Compare(b.AtLeast, a.AtLeast),
			cmp.Compare(b.AtMost, a.AtMost),
			a.Prefix.Compare(b.Prefix),
		)
	})
	return sources
}

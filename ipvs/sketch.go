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
	heap     []int32           // a binary heap of indices of counters, the least count first
}

type counter struct {
	address
	count     int // at most
	inherited int // of count
	place     int // in the heap
}

func newSketch(capacity int) *sketch {
	return &sketch{
		counters: make([]counter, 0, capacity),
		index:    make(map[address]int32, capacity),
		heap:     make([]int32, 0, capacity),
	}
}

func (s *sketch) add(a address) {
	i, ok := s.index[a]
	switch {
	case ok:
		s.counters[i].count++
	case len(s.counters) < cap(s.counters):
		i = int32(len(s.counters))
		s.counters = append(s.counters, counter{address: a, count: 1, place: len(s.heap)})
		s.heap = append(s.heap, i)
		s.index[a] = i
		s.rise(i) // no count is less than 1
		return
	default:
		i = s.heap[0]
		least := &s.counters[i]
		delete(s.index, least.address)
		*least = counter{address: a, count: least.count + 1, inherited: least.count}
		s.index[a] = i
	}
	s.sink(i)
}

// rise moves counter i up the heap to its place.
func (s *sketch) rise(i int32) {
	place := s.counters[i].place
	for place > 0 {
		parent := (place - 1) / 2
		if s.countAt(parent) <= s.counters[i].count {
			break
		}
		s.put(place, s.heap[parent])
		place = parent
	}
	s.put(place, i)
}

// sink moves counter i down the heap to its place.
func (s *sketch) sink(i int32) {
	place := s.counters[i].place
	for {
		child := 2*place + 1
		if child >= len(s.heap) {
			break
		}
		if right := child + 1; right < len(s.heap) && s.countAt(right) < s.countAt(child) {
			child = right
		}
		if s.counters[i].count <= s.countAt(child) {
			break
		}
		s.put(place, s.heap[child])
		place = child
	}
	s.put(place, i)
}

func (s *sketch) countAt(place int) int { return s.counters[s.heap[place]].count }

func (s *sketch) put(place int, i int32) {
	s.heap[place] = i
	s.counters[i].place = place
}

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

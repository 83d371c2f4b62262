package incident

import (
	"cmp"
	"container/heap"
	"slices"
)

// A sketch finds the most frequent of any number of keys in fixed memory: the
// space-saving algorithm of Metwally, Agrawal and El Abbadi. A key that makes
// more than 1 of size is among them, and its count is too high by at most what
// the least frequent has.
type sketch[K comparable] struct {
	size  int
	total uint64
	least leastFirst[K]
	at    map[K]*counted[K]
}

type counted[K comparable] struct {
	key   K
	count uint64
	// over is by how much the count may be too high.
	over  uint64
	index int
}

func newSketch[K comparable](size int) sketch[K] {
	return sketch[K]{size: size, at: make(map[K]*counted[K], size)}
}

// add counts a key that stands for n.
func (s *sketch[K]) add(k K, n uint64) {
	s.total += n
	if c := s.at[k]; c != nil {
		c.count += n
		heap.Fix(&s.least, c.index)
		return
	}
	if len(s.least) < s.size {
		c := &counted[K]{key: k, count: n}
		s.at[k] = c
		heap.Push(&s.least, c)
		return
	}
	c := s.least[0]
	delete(s.at, c.key)
	c.key, c.over, c.count = k, c.count, c.count+n
	s.at[k] = c
	heap.Fix(&s.least, 0)
}

// top gives at most n keys, the most frequent first, of those that are certain
// to be more than 1 of 1,000.
func (s *sketch[K]) top(n int) []counted[K] {
	var list []counted[K]
	for _, c := range s.least {
		if (c.count-c.over)*1000 > s.total {
			list = append(list, *c)
		}
	}
	slices.SortFunc(list, func(a, b counted[K]) int { return cmp.Compare(b.count-b.over, a.count-a.over) })
	return list[:min(n, len(list))]
}

// share of all that k has, at least.
func (s *sketch[K]) share(k K) float64 {
	c := s.at[k]
	if c == nil || s.total == 0 {
		return 0
	}
	return float64(c.count-c.over) / float64(s.total)
}

// leastFirst is a heap.
type leastFirst[K comparable] []*counted[K]

func (h leastFirst[K]) Len() int           { return len(h) }
func (h leastFirst[K]) Less(i, j int) bool { return h[i].count < h[j].count }

func (h leastFirst[K]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *leastFirst[K]) Push(x any) {
	c := x.(*counted[K])
	c.index = len(*h)
	*h = append(*h, c)
}

func (h *leastFirst[K]) Pop() any { panic("nothing is taken out") }

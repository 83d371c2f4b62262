package ipvs

import (
	"math/rand/v2"
	"testing"
)

func TestSketchIsExactWithinItsCapacity(t *testing.T) {
	s := newSketch(100)
	for n := range 5000 {
		s.add(address{lo: uint64(n % 100)})
	}
	for _, source := range s.sources(32, 128) {
		if source.AtLeast != 50 || source.AtMost != 50 {
			t.Errorf("%v: %d to %d, want 50", source.Prefix, source.AtLeast, source.AtMost)
		}
	}
}

// A few heavy sources in a flood of random ones: the bounds hold for each that
// is kept, and the heavy ones come first.
func TestSketchFindsHeavySources(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	truth := make(map[address]int)
	s := newSketch(64)
	for range 100_000 {
		a := address{lo: random.Uint64() & 0xffffffff}
		if random.IntN(10) < 4 {
			a.lo = random.Uint64() % 4
		}
		truth[a]++
		s.add(a)
	}
	sources := s.sources(32, 128)
	if len(sources) != 64 {
		t.Fatalf("%d sources, want 64", len(sources))
	}
	for i, source := range sources {
		a := addressOf(source.Prefix.Addr())
		if n := truth[a]; n < source.AtLeast || n > source.AtMost {
			t.Errorf("%v: %d is not within %d to %d", source.Prefix, n, source.AtLeast, source.AtMost)
		}
		if heavy := a.lo < 4; heavy != (i < 4) {
			t.Errorf("place %d: %v", i, source.Prefix)
		}
	}
	for i := range s.heap {
		if s.rankAt(i) > s.counters[s.heap[i]].count || i > 0 && s.rankAt((i-1)/2) > s.rankAt(i) {
			t.Fatalf("the heap is out of order at %d", i)
		}
	}
}

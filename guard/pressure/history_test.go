package pressure

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// fill puts down a figure each second.
func fill(s *series, from time.Time, seconds int, f func(second int) float64) time.Time {
	for i := range seconds {
		s.add(from.Add(time.Duration(i)*time.Second), f(i))
	}
	return from.Add(time.Duration(seconds) * time.Second)
}

func TestRate(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	tests := []struct {
		name    string
		figure  func(second int) float64
		seconds int
		want    float64
		within  float64
		visible bool
	}{
		{"still", func(int) float64 { return 7e9 }, 60, 0, 1e-6, false},
		{"straight", func(s int) float64 { return 7e9 - 12e6*float64(s) }, 60, -12e6, 1, true},
		{"begun 6 s ago", func(s int) float64 { return 5e4 * float64(max(0, s-54)) }, 60, 5e4, 1, true},
		{"ended 7 s ago", func(s int) float64 { return 5e4 * float64(min(s, 52)) }, 60, 0, 1, false},
		{"noise", func(int) float64 { return 1e6 + 1e4*random.NormFloat64() }, 64, 0, 2e3, false},
		{"a leak in noise", func(s int) float64 { return 1e9 + 1e6*float64(s) + 2e6*random.NormFloat64() }, 64, 1e6, 3e5, true},
		{"three points are no growth", func(s int) float64 { return float64(s) }, 3, 1, 1e-9, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var s series
			fill(&s, start, test.seconds, test.figure)
			got, ok := s.rate()
			if !ok || math.Abs(got.perSecond-test.want) > test.within || got.visible() != test.visible {
				t.Errorf("%+v, %v; want %v ± %v, visible %v", got, ok, test.want, test.within, test.visible)
			}
		})
	}
}

func TestRateUnknown(t *testing.T) {
	var s *series
	if _, ok := s.rate(); ok {
		t.Error("a series that there was no room for has a rate")
	}
	s = &series{}
	s.add(start, 1)
	if _, ok := s.rate(); ok {
		t.Error("a single point has a rate")
	}
	s.add(start.Add(100*time.Millisecond), 1000)
	if s.n != 1 {
		t.Error("a look that follows at once was put down")
	}
	s.add(start.Add(time.Second), 3)
	if r, ok := s.rate(); !ok || r.perSecond != 2 {
		t.Errorf("%v, %v, want 2", r, ok)
	}
	s.add(start.Add(time.Minute), 3)
	if s.n != 1 {
		t.Errorf("%d points across a gap", s.n)
	}
	s.add(start, 3)
	if s.n != 1 {
		t.Errorf("%d points after the clock went back", s.n)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	var h history
	for i := range 2 * historySeries {
		h.add(start, fmt.Sprint(i), 1)
	}
	if len(h.series) != historySeries || h.add(start, "one more", 1) != nil {
		t.Errorf("%d series", len(h.series))
	}
	s := h.series["7"]
	fill(s, start.Add(time.Second), 10*historyPoints, func(i int) float64 { return float64(i) })
	if s.n != historyPoints || s.at(0).v != 9*historyPoints || s.at(s.n-1).v != 10*historyPoints-1 {
		t.Errorf("%d points, from %v to %v", s.n, s.at(0), s.at(s.n-1))
	}
	h.expire(s.at(s.n - 1).t)
	if len(h.series) != 1 {
		t.Errorf("%d series are left, want that which is still seen", len(h.series))
	}
}

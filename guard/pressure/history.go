package pressure

import (
	"math"
	"time"
)

const (
	// historyPoints at a second each are a little more than a minute, the
	// lifetime of a half-open entry.
	historyPoints = 64
	// historySpacing keeps looks that follow at once on another from pushing
	// the minute out of the ring.
	historySpacing = 500 * time.Millisecond
	// historySeries bounds the number of figures that are followed; accept
	// queues are the only ones whose number is not fixed.
	historySeries = 512
	// historyGap ends a series: nothing is told across a longer silence.
	historyGap = 30 * time.Second

	shortWindow = 5 * time.Second
	longWindow  = time.Minute
)

// history keeps the last minute of each figure. The zero history is ready.
type history struct {
	series map[string]*series
}

// add puts a figure down and returns its series, or nil if there are too many.
func (h *history) add(now time.Time, name string, value float64) *series {
	s := h.series[name]
	if s == nil {
		if len(h.series) >= historySeries {
			return nil
		}
		if h.series == nil {
			h.series = make(map[string]*series)
		}
		s = &series{}
		h.series[name] = s
	}
	s.add(now, value)
	return s
}

// expire forgets the figures that have not been seen for a while.
func (h *history) expire(now time.Time) {
	for name, s := range h.series {
		if s.n > 0 && now.Sub(s.at(s.n-1).t) > longWindow {
			delete(h.series, name)
		}
	}
}

type point struct {
	t time.Time
	v float64
}

// A series is a ring of points.
type series struct {
	points [historyPoints]point
	first  int
	n      int
}

// at returns the i-th point, the oldest first.
func (s *series) at(i int) point { return s.points[(s.first+i)%historyPoints] }

func (s *series) add(now time.Time, v float64) {
	if s.n > 0 {
		switch gap := now.Sub(s.at(s.n - 1).t); {
		case gap < 0 || gap > historyGap:
			s.n = 0
		case gap < historySpacing:
			return
		}
	}
	if s.n == historyPoints {
		s.first = (s.first + 1) % historyPoints
		s.n--
	}
	s.points[(s.first+s.n)%historyPoints] = point{now, v}
	s.n++
}

// least returns the smallest value of the last while.
func (s *series) least(window time.Duration) float64 {
	low := math.Inf(1)
	for i := s.n - 1; i >= 0 && s.at(s.n-1).t.Sub(s.at(i).t) <= window; i-- {
		low = min(low, s.at(i).v)
	}
	return low
}

// A slope is how fast a figure grows, a second, by least squares.
type slope struct {
	perSecond float64
	// err is the standard error. It is infinite below four points, from which
	// nobody can tell growth from a hiccup.
	err float64
}

// visible says that it is a growth or fall, and not only noise.
func (s slope) visible() bool { return math.Abs(s.perSecond) > 3*s.err }

// slope fits a line to the last while. It is not known from a single point.
func (s *series) slope(window time.Duration) (slope, bool) {
	if s == nil || s.n < 2 {
		return slope{}, false
	}
	last := s.at(s.n - 1)
	var n, st, sv, stt, stv, svv float64
	for i := s.n - 1; i >= 0; i-- {
		p := s.at(i)
		if last.t.Sub(p.t) > window+historySpacing && n >= 2 {
			break
		}
		// Relative to the last point, lest large figures lose their digits.
		t, v := p.t.Sub(last.t).Seconds(), p.v-last.v
		n, st, sv, stt, stv, svv = n+1, st+t, sv+v, stt+t*t, stv+t*v, svv+v*v
	}
	spread := stt - st*st/n
	if spread <= 0 {
		return slope{}, false
	}
	covariance := stv - st*sv/n
	fit := slope{perSecond: covariance / spread, err: math.Inf(1)}
	if n >= 4 {
		residual := max(0, svv-sv*sv/n-covariance*covariance/spread)
		fit.err = math.Sqrt(residual / (n - 2) / spread)
	}
	return fit, true
}

// rate is the growth now. A minute's line is the steadier one, and stands as
// long as the last five seconds do not contradict it: so a slow leak shows
// through the noise, and a flood is seen within seconds of its start and of its
// end.
func (s *series) rate() (slope, bool) {
	short, ok := s.slope(shortWindow)
	if !ok {
		return slope{}, false
	}
	long, _ := s.slope(longWindow)
	if math.Abs(short.perSecond-long.perSecond) <= 3*short.err && !math.IsInf(short.err, 1) {
		return long, true
	}
	return short, true
}

package incident

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Around is how long before the onset and after the end a story reaches.
const Around = time.Minute

// maxPoints bounds a record's series, and coarsePoints that of a coarse one.
const (
	maxPoints    = 900
	coarsePoints = 120
)

// A Reading is what is known of a service at one instant. What is not known is
// nil.
type Reading struct {
	Time time.Time
	// SYN, Suspect and Dropped count packets since some time or other.
	SYN, Suspect, Dropped *uint64
	HalfOpen, Connections *float64
	MemoryShare           *float64
	Cookies               *float64 // a second, of all real servers together
	Handshakes            *Handshakes
	Armed                 bool
}

// Handshakes are counts since the capture began, without the attempts that bore
// a signature.
type Handshakes struct {
	Opened, Completed uint64
	// Took are the times to complete, up to each of Bounds. Those beyond the last
	// are in Completed alone.
	Took [Bounds]uint64
}

// Bounds is how many bounds there are of times to complete: Bound gives them.
const Bounds = 21

// Bound is the upper bound of a time to complete: 62.5 µs for the first, and
// each twice that before it.
func Bound(i int) time.Duration { return 62500 * time.Nanosecond << i }

// since is what came after another reading; nil if it cannot be told.
func (h *Handshakes) since(o *Handshakes) *Handshakes {
	if h == nil || o == nil || h.Opened < o.Opened || h.Completed < o.Completed {
		return nil
	}
	d := &Handshakes{Opened: h.Opened - o.Opened, Completed: h.Completed - o.Completed}
	for i := range d.Took {
		d.Took[i] = h.Took[i] - o.Took[i]
	}
	return d
}

// completion is the share of the attempts that completed; nil without any.
func (h *Handshakes) completion() *float64 {
	if h == nil || h.Opened == 0 {
		return nil
	}
	// Some were opened before the time and completed within it.
	share := min(1, float64(h.Completed)/float64(h.Opened))
	return &share
}

// quantile is the bound under which the share q of the times is.
func (h *Handshakes) quantile(q float64) *float64 {
	if h.Completed == 0 {
		return nil
	}
	for i, n := range h.Took {
		if float64(n) >= q*float64(h.Completed) {
			s := Bound(i).Seconds()
			return &s
		}
	}
	return nil
}

func (h *Handshakes) felt() Felt {
	if h == nil {
		return Felt{}
	}
	return Felt{Completion: h.completion(), P50: h.quantile(0.5), P99: h.quantile(0.99), Handshakes: h.Opened}
}

// A Story makes a Record out of readings. One goroutine at a time may use it.
type Story struct {
	Record Record
	// Coarse keeps the series short: of hundreds of incidents at once nobody looks
	// at each second.
	Coarse bool

	last  *Reading
	onset *Handshakes // what was counted at the onset
	end   *Handshakes // and at the end
}

// Begin begins a story at the onset. before are the readings of the time before
// it, the oldest first.
func Begin(r Record, before []Reading) *Story {
	s := &Story{Record: r}
	s.Record.Format = Format
	s.Record.Actions, s.Record.Packets, s.Record.Series = []Action{}, []PacketFile{}, []Point{}
	for _, b := range before {
		s.point(b)
	}
	if n := len(before); n > 0 {
		s.Record.Clients.Before = before[n-1].Handshakes.since(before[0].Handshakes).felt()
		s.onset = before[n-1].Handshakes
	}
	if s.Record.Clients.Before.Handshakes == 0 {
		s.Unknown("clients.before", "no handshake was seen in the minute before")
	}
	s.zeroTotals()
	return s
}

func (s *Story) zeroTotals() {
	t := &s.Record.Totals
	for _, total := range []**uint64{&t.Offered, &t.Suspect, &t.Dropped, &t.Admitted} {
		*total = new(uint64)
	}
}

// Continue takes up the story of a record that another guard began. Nothing is
// known from then to now.
func Continue(r Record, now time.Time, reason string) *Story {
	s := &Story{Record: r}
	last := r.Written
	s.Record.Gaps = append(s.Record.Gaps, Gap{From: last, To: now, Reason: reason})
	s.Unknown("clients.during", "what is told of clients during the incident is from "+now.UTC().Format(time.TimeOnly)+" UTC on: the guard began anew then")
	if c := r.Counted; c != nil {
		s.last = &Reading{Time: last, SYN: c.SYN, Suspect: c.Suspect, Dropped: c.Dropped}
	}
	return s
}

// Unknown says why something is not known.
func (s *Story) Unknown(what, why string) {
	if s.Record.Unknown == nil {
		s.Record.Unknown = make(map[string]string)
	}
	s.Record.Unknown[what] = why
}

// Ended tells whether the flood is over. Its story goes on for a while.
func (s *Story) Ended() bool { return s.Record.Ended != nil }

// Over tells whether there is nothing more to add.
func (s *Story) Over(now time.Time) bool {
	return s.Record.Ended != nil && now.Sub(*s.Record.Ended) >= Around
}

// Add takes a reading.
func (s *Story) Add(r Reading) {
	p, delta := s.point(r)
	rec := &s.Record
	if s.onset == nil && r.Handshakes != nil && !s.Ended() {
		s.onset = r.Handshakes
	}
	if rec.Ended == nil {
		s.total(delta)
		if delta.dropped > 0 && rec.FirstDrop == nil {
			rec.FirstDrop = utc(r.Time)
		}
		rec.Clients.During = r.Handshakes.since(s.onset).felt()
	} else {
		if s.end == nil {
			s.end = r.Handshakes
		}
		rec.Clients.After = r.Handshakes.since(s.end).felt()
	}
	for _, peak := range []struct {
		of   **float64
		with *float64
	}{
		{&rec.Peaks.SYN, p.SYN}, {&rec.Peaks.Suspect, p.Suspect}, {&rec.Peaks.Dropped, p.Dropped}, {&rec.Peaks.HalfOpen, p.HalfOpen},
		{&rec.Peaks.MemoryShare, p.MemoryShare}, {&rec.Peaks.Cookies, p.Cookies},
	} {
		*peak.of = higher(*peak.of, peak.with)
	}
}

// delta is what was counted between two readings.
type delta struct {
	syn, suspect, dropped uint64
	known                 bool
}

func (s *Story) total(d delta) {
	if !d.known {
		s.Unknown("totals", "the counters could not be read all the time: the totals are at least what is told")
		return
	}
	t := &s.Record.Totals
	*t.Offered += d.syn
	*t.Suspect += d.suspect
	*t.Dropped += d.dropped
	// What was dropped may be counted a moment before what was offered.
	*t.Admitted = *t.Suspect - min(*t.Dropped, *t.Suspect)
}

// point adds a point for the time since the last reading.
func (s *Story) point(r Reading) (Point, delta) {
	was := s.last
	s.last = &r
	s.Record.Counted = &Counted{SYN: r.SYN, Suspect: r.Suspect, Dropped: r.Dropped}
	if was == nil {
		return Point{}, delta{known: true}
	}
	seconds := r.Time.Sub(was.Time).Seconds()
	p := Point{
		Time: was.Time.Round(0).UTC(), Seconds: round(seconds), HalfOpen: rounded(r.HalfOpen), Connections: rounded(r.Connections),
		MemoryShare: shared(r.MemoryShare), Cookies: rounded(r.Cookies), Completion: shared(r.Handshakes.since(was.Handshakes).completion()), Armed: r.Armed,
	}
	var d delta
	var ok [3]bool
	d.syn, ok[0] = more(was.SYN, r.SYN)
	d.suspect, ok[1] = more(was.Suspect, r.Suspect)
	d.dropped, ok[2] = more(was.Dropped, r.Dropped)
	d.known = ok[0] && ok[1] && ok[2]
	if seconds <= 0 {
		return Point{}, d
	}
	for i, rate := range []struct {
		of    **float64
		count uint64
	}{{&p.SYN, d.syn}, {&p.Suspect, d.suspect}, {&p.Dropped, d.dropped}} {
		if ok[i] {
			v := round(float64(rate.count) / seconds)
			*rate.of = &v
		}
	}
	s.Record.Series = append(s.Record.Series, p)
	most := maxPoints
	if s.Coarse {
		most = coarsePoints
	}
	if len(s.Record.Series) >= most {
		s.Record.Series = merged(s.Record.Series)
	}
	return p, d
}

// more is how much more a count is than before. One that has fallen was begun
// anew.
func more(was, now *uint64) (uint64, bool) {
	switch {
	case was == nil || now == nil:
		return 0, false
	case *now < *was:
		return *now, true
	}
	return *now - *was, true
}

// merged makes one point of each two neighbours: the mean of rates, and the
// highest of what is held.
func merged(series []Point) []Point {
	out := series[:0]
	for i := 0; i+1 < len(series); i += 2 {
		a, b := series[i], series[i+1]
		p := Point{
			Time: a.Time, Seconds: round(b.Time.Sub(a.Time).Seconds() + b.Seconds), Armed: a.Armed || b.Armed,
			HalfOpen: higher(a.HalfOpen, b.HalfOpen), Connections: higher(a.Connections, b.Connections), MemoryShare: higher(a.MemoryShare, b.MemoryShare),
			SYN: mean(a, b, a.SYN, b.SYN), Suspect: mean(a, b, a.Suspect, b.Suspect), Dropped: mean(a, b, a.Dropped, b.Dropped),
			Cookies: mean(a, b, a.Cookies, b.Cookies), Completion: mean(a, b, a.Completion, b.Completion),
		}
		out = append(out, p)
	}
	if len(series)%2 == 1 {
		out = append(out, series[len(series)-1])
	}
	return out
}

func mean(a, b Point, x, y *float64) *float64 {
	switch {
	case x == nil:
		return y
	case y == nil:
		return x
	}
	v := math.Round((*x*a.Seconds+*y*b.Seconds)/(a.Seconds+b.Seconds)*10_000) / 10_000
	return &v
}

func higher(a, b *float64) *float64 {
	if a == nil || b != nil && *b > *a {
		return b
	}
	return a
}

// round keeps a record's file small.
func round(v float64) float64 { return math.Round(v*100) / 100 }

func rounded(v *float64) *float64 {
	if v == nil {
		return nil
	}
	r := round(*v)
	return &r
}

func shared(v *float64) *float64 {
	if v == nil {
		return nil
	}
	r := math.Round(*v*10_000) / 10_000
	return &r
}

// Flooded says that the verdict came to a flood.
func (s *Story) Flooded(now time.Time) {
	if s.Record.Flooded == nil {
		s.Record.Flooded = utc(now)
	}
}

// End ends the incident. What comes after is told for a while.
func (s *Story) End(now time.Time, why string) {
	s.Record.Ended, s.Record.EndedBy = utc(now), why
	if s.last != nil && s.last.Time.Sub(now).Abs() < 2*time.Second {
		s.end = s.last.Handshakes
	}
}

// Act adds an action.
func (s *Story) Act(a Action) {
	if len(s.Record.Actions) >= MaxActions {
		s.Record.ActionsLeftOut++
		return
	}
	a.Time = *utc(a.Time)
	s.Record.Actions = append(s.Record.Actions, a)
}

// utc is a time for people, without its monotonic part.
func utc(t time.Time) *time.Time {
	t = t.Round(0).UTC()
	return &t
}

// NewID names an incident by its onset and service, so that the name is one of a
// file and nothing else.
func NewID(onset time.Time, service string) string {
	service = strings.NewReplacer("]:", "_", "[", "", "*", "any").Replace(service)
	if at := strings.LastIndexByte(service, ':'); at >= 0 && !strings.Contains(service, "_") {
		service = service[:at] + "_" + service[at+1:]
	}
	service = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_':
			return r
		}
		return '-'
	}, service)
	return fmt.Sprintf("%s-%s", onset.UTC().Format("20060102T150405Z"), service[:min(len(service), maxService)])
}

// add counts a dropped packet, and whether its source had completed a handshake
// in the hour before.
func (c *Collateral) add(source netip.Addr, known bool) {
	c.Sampled++
	if c.Packets == nil {
		c.Packets = new(uint64)
	}
	if !known {
		return
	}
	*c.Packets++
	if len(c.Sources) < maxSources && !slices.Contains(c.Sources, source) {
		c.Sources = append(c.Sources, source)
	}
}

// maxSources is how many sources a record names of those that were hit by
// mistake.
const maxSources = 20

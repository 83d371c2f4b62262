package alert

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// This file has one rule of the configuration held against what is known now: it
// says of which subjects it holds.

const (
	// maxSeries and maxSubjects bound what a rule remembers. What is beyond is
	// counted, and not looked at.
	maxSeries   = 5000
	maxSubjects = 2000
	// maxGap is how long a counter may go unread before its increase is not told
	// any more: it would be one of more than the window.
	maxGap = 10 * time.Second
	// lostAfter is how long a rule that fires outlives what it rests on.
	lostAfter = 10 * time.Minute
)

// A rule is one of the configuration, with its memory.
type rule struct {
	guard.AlertRule
	figure   guard.Figure
	labels   []string // that tell its subjects apart
	groupBy  []string
	series   map[guard.FigureLabels]*series
	subjects map[guard.FigureLabels]*subject
	// blind says why nothing is known, and since when; empty: something is.
	blind   string
	blindAt time.Time
	leftOut int // of the last look
}

func newRule(r guard.AlertRule, f guard.Figure, groupBy []string) *rule {
	if r.GroupBy != nil {
		groupBy = r.GroupBy
	}
	labels := slices.Clone(r.By)
	for _, l := range groupBy { // what a message is of, its alerts are of
		if slices.Contains(f.Labels, l) && !slices.Contains(labels, l) {
			labels = append(labels, l)
		}
	}
	return &rule{
		AlertRule: r, figure: f, labels: labels, groupBy: groupBy,
		series: make(map[guard.FigureLabels]*series), subjects: make(map[guard.FigureLabels]*subject),
	}
}

// A subject is what a rule holds for, or does not.
type subject struct {
	labels guard.FigureLabels
	// pending is since when it holds, held when it last did.
	pending, held time.Time
	unknownAt     time.Time
	member        *member // nil: it does not fire
	seen          sum     // of this look
}

// A sum is what a look shows of one subject.
type sum struct {
	known, unknown int // readings
	why            string
	value, of      float64
	text           string
	size           float64
	parts          int // readings that are more than 0
	most           guard.FigureLabels
	mostValue      float64
}

// look holds the rule against readings, which are all of its figure. It calls
// fires for each subject that begins to fire, and over for each that ends.
func (r *rule) look(now time.Time, readings []guard.Reading, unknown string, fires func(*subject), over func(*subject)) {
	if r.blind = unknown; unknown == "" {
		r.blindAt = time.Time{}
	} else if r.blindAt.IsZero() {
		r.blindAt = now
	}
	r.leftOut = 0
	for _, s := range r.subjects {
		s.seen = sum{}
	}
	for i := range readings {
		r.read(now, &readings[i])
	}
	for l, s := range r.series {
		if now.Sub(s.at) > max(r.Window, maxGap) {
			delete(r.series, l)
		}
	}
	for l, s := range r.subjects {
		r.step(now, s, fires, over)
		if s.member == nil && s.pending.IsZero() && s.seen == (sum{}) {
			delete(r.subjects, l)
		}
	}
}

// read adds one reading to its subject.
func (r *rule) read(now time.Time, in *guard.Reading) {
	if !r.Matches(in.Labels) {
		return
	}
	key := in.Labels.Only(r.labels)
	s := r.subjects[key]
	if s == nil {
		if len(r.subjects) >= maxSubjects {
			r.leftOut++
			return
		}
		s = &subject{labels: key}
		r.subjects[key] = s
	}
	if in.Unknown != "" {
		s.seen.unknown++
		s.seen.why = in.Unknown
		return
	}
	value, of := in.Value, in.Of
	if r.figure.Kind == guard.Counter {
		c := r.series[in.Labels]
		if c == nil {
			if len(r.series) >= maxSeries {
				r.leftOut++
				return
			}
			c = new(series)
			r.series[in.Labels] = c
		}
		value, of = c.add(now, r.Window, in.Value, in.Of)
	}
	s.seen.add(r, value, of, in)
}

func (s *sum) add(r *rule, value, of float64, in *guard.Reading) {
	first := s.known == 0
	s.known++
	s.of += of
	if value > 0 {
		s.parts++
	}
	// What is farthest out says most, and of a State what is at its worst.
	farther := value > s.mostValue
	if r.Above == nil && r.Below != nil {
		farther = value < s.mostValue
	}
	if r.figure.State {
		farther = value > s.mostValue || value == s.mostValue && in.Size > s.size
	}
	if first || farther {
		s.most, s.mostValue, s.text, s.size = in.Labels, value, in.Text, in.Size
	}
	if r.figure.Adds {
		s.value += value
	} else {
		s.value = s.mostValue
	}
}

// share is that of a counter's increase; nil: there was nothing to have a share
// of.
func (s *sum) share() *float64 {
	if s.of <= 0 {
		return nil
	}
	return new(min(1, s.value/s.of))
}

func (r *rule) step(now time.Time, s *subject, fires, over func(*subject)) {
	switch {
	case r.blind != "" || s.seen.known == 0 && s.seen.unknown > 0:
		if s.unknownAt.IsZero() {
			s.unknownAt = now
		}
		if now.Sub(s.unknownAt) > maxGap {
			s.pending = time.Time{}
		}
		if s.member != nil && now.Sub(s.unknownAt) > lostAfter {
			s.member.summary += fmt.Sprintf(" (nothing is known of it since %s: %s)", clock(s.unknownAt), cmp.Or(r.blind, s.seen.why))
			over(s)
		}
		return
	case !r.Holds(s.seen.value, s.seen.share()) || s.seen.known == 0:
		s.unknownAt, s.pending = time.Time{}, time.Time{}
		if s.member == nil {
			return
		}
		if now.Sub(s.held) >= r.Keep {
			over(s)
		}
		return
	}
	s.unknownAt, s.held = time.Time{}, now
	if s.pending.IsZero() {
		s.pending = now
	}
	if s.member == nil && now.Sub(s.pending) >= r.For {
		fires(s)
	}
	if s.member != nil {
		s.member.update(r, s)
	}
}

// threshold is what a value is held against, and its unit.
func (r *rule) threshold() (float64, string) {
	switch {
	case r.figure.State:
		return 0, r.figure.Unit
	case r.Above != nil:
		return *r.Above, r.figure.Unit
	case r.Below != nil:
		return *r.Below, r.figure.Unit
	}
	return r.Share, "%"
}

// subjectOf names what an alert is of.
func (r *rule) subjectOf(l guard.FigureLabels, s *sum) string {
	name := cmp.Or(l.Server, l.Service, l.Filter, l.Resource, l.Instance, l.Source, l.Kind)
	if name != "" {
		return name
	}
	// A sum is of what has the most of it.
	most := s.most
	name = cmp.Or(most.Server, most.Service, most.Filter, most.Resource, most.Instance, most.Source, most.Kind)
	if name != "" && s.parts > 1 && r.figure.Adds {
		name += fmt.Sprintf(" and %d more", s.parts-1)
	}
	return name
}

// summary says how much, in a sentence without the subject.
func (r *rule) summary(s *sum) string {
	if r.figure.State {
		return cmp.Or(s.text, r.figure.What)
	}
	text := amount(s.value, r.figure.Unit) + " " + r.figure.What
	if r.figure.Kind == guard.Counter {
		text += " in " + shortSpan(r.Window)
	}
	if share := s.share(); r.Share > 0 && share != nil {
		text += fmt.Sprintf(", %s %s (at least %s)", amount(*share, "%"), r.figure.ShareOf, amount(r.Share, "%"))
	}
	if s.text != "" {
		text += ": " + s.text
	}
	return text
}

// shortSpan is a duration as it is written in the configuration.
func shortSpan(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// when says when the rule holds, for people.
func (r *rule) when() string {
	f := &r.figure
	var b strings.Builder
	b.WriteString(f.Name)
	if f.Kind == guard.Counter {
		b.WriteString(" in " + shortSpan(r.Window))
	}
	var parts []string
	unit := f.Unit
	if f.State {
		unit = ""
	}
	if r.Above != nil && !(f.State && *r.Above == 0 && r.Below == nil) {
		parts = append(parts, "above "+amount(*r.Above, unit))
	}
	if r.Below != nil {
		parts = append(parts, "below "+amount(*r.Below, unit))
	}
	if r.Share > 0 {
		parts = append(parts, "at least "+amount(r.Share, "%")+" "+f.ShareOf)
	}
	if len(parts) > 0 {
		b.WriteString(" " + strings.Join(parts, " and "))
	}
	if r.For > 0 {
		b.WriteString(", for " + shortSpan(r.For))
	}
	return b.String()
}

const buckets = 30

// A series is the increase of one counter, and of what its share is of, in the
// last window.
type series struct {
	at        time.Time
	began     time.Time
	value, of float64
	slot      int64 // of at, from began on
	ring      *[buckets][2]float64
}

// add takes a new reading and returns the increases in the window. A counter that
// has begun anew, and one that was not read for long, has none: nobody knows it.
func (s *series) add(now time.Time, window time.Duration, value, of float64) (float64, float64) {
	if s.began.IsZero() {
		s.began, s.at, s.value, s.of = now, now, value, of
		return 0, 0
	}
	slot := int64(now.Sub(s.began) / (window / buckets))
	if s.ring != nil {
		for i := s.slot + 1; i <= slot && i <= s.slot+buckets; i++ {
			s.ring[i%buckets] = [2]float64{}
		}
	}
	up, upOf := value-s.value, of-s.of
	if up < 0 || upOf < 0 || now.Sub(s.at) > maxGap {
		up, upOf = 0, 0
	}
	s.at, s.value, s.of, s.slot = now, value, of, max(slot, s.slot)
	if s.ring == nil {
		if up == 0 && upOf == 0 {
			return 0, 0
		}
		s.ring = new([buckets][2]float64)
	}
	s.ring[s.slot%buckets][0] += up
	s.ring[s.slot%buckets][1] += upOf
	var sum, sumOf float64
	for _, b := range s.ring {
		sum += b[0]
		sumOf += b[1]
	}
	return sum, sumOf
}

package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/guard/incident"
)

const (
	// columns is how many places a plot has from left to right: more than one
	// sees, and few enough for a page that fits into a mail.
	columns = 240
	// grid is how finely a place is written, both ways.
	grid = 1000
)

// A span is the time that plots show.
type span struct{ from, to time.Time }

// at is where t is, from 0 to 1.
func (s span) at(t time.Time) float64 {
	return min(1, max(0, float64(t.Sub(s.from))/float64(s.to.Sub(s.from))))
}

// spanOf is the time that r knows of.
func spanOf(r *incident.Record) span {
	s := span{r.Onset, Last(r)}
	for _, p := range r.Series {
		if p.Time.Before(s.from) {
			s.from = p.Time
		}
		if end := pointEnd(&p); end.After(s.to) {
			s.to = end
		}
	}
	if s.to.Sub(s.from) < time.Second {
		s.to = s.from.Add(time.Second)
	}
	return s
}

// A Figure is one of the figures of a point.
type Figure func(p *incident.Point) *float64

// Armed is 1 while the service was armed.
func Armed(p *incident.Point) *float64 {
	if p.Armed {
		return new(1.0)
	}
	return new(0.0)
}

// Columns gives n values of a figure, each the highest of its part of the time
// that r knows of, or the lowest. Nil is unknown.
func Columns(r *incident.Record, n int, of Figure, lowest bool) []*float64 {
	return spanOf(r).columns(r, n, of, lowest)
}

// Span is the time that r knows of, which Columns is about.
func Span(r *incident.Record) (from, to time.Time) {
	s := spanOf(r)
	return s.from, s.to
}

func (s span) columns(r *incident.Record, n int, of Figure, lowest bool) []*float64 {
	all := make([]*float64, n)
	width := s.to.Sub(s.from) / time.Duration(n)
	for i := range r.Series {
		p := &r.Series[i]
		v := of(p)
		end := pointEnd(p)
		if v == nil || math.IsNaN(*v) || math.IsInf(*v, 0) || !end.After(s.from) || !p.Time.Before(s.to) {
			continue
		}
		first := int(p.Time.Sub(s.from) / width)
		last := int((end.Sub(s.from) - 1) / width)
		for c := max(0, first); c <= min(last, n-1); c++ {
			if all[c] == nil || lowest && *v < *all[c] || !lowest && *v > *all[c] {
				all[c] = v
			}
		}
	}
	return all
}

// A plot is what the page's template draws. Places are in thousandths of its
// width and height, from the left and from the top; those named percent are in
// hundredths.
type plot struct {
	Name, What string
	Lines      []line
	Max, Half  string // what the axis says
	Armed      []stretch
	Gaps       []stretch
	Ticks      []tick
	Marks      []mark
	Columns    []column
	// Where it is drawn, in pixels from its top.
	Top, Middle, Bottom, TickEnd, TickText, Height, Body int
	// Known is false if nothing of it is known.
	Known bool
}

// A line is a figure over time. Each kind is drawn in a way of its own, not by
// colour alone.
type line struct {
	Kind, Name string
	Path, Area string // SVG path data
	Peak       string
}

type stretch struct {
	X, Width              float64
	Percent, PercentWidth string
}

type tick struct {
	Percent string
	Text    string
	Anchor  string
	Minor   bool // left out where it is narrow
}

// A mark is something that happened at a moment.
type mark struct {
	Letter, Text, Clock string
	at                  time.Time
	Percent             string
	Y                   int // of its letter, in pixels
}

// A column is where a pointer finds the figures of a moment.
type column struct {
	Percent, Width string
	Title          string
}

// drawn is one figure to be drawn.
type drawn struct {
	kind, name string
	of         Figure
	lowest     bool
	area       bool
}

// newPlot draws figures with one axis. share is for an axis from 0 to 100 %.
func (b *builder) newPlot(name, what string, share bool, figures ...drawn) plot {
	p := plot{
		Name: name, What: what, Armed: b.armed, Gaps: b.gaps, Ticks: b.ticks, Marks: b.marks,
		Top: b.top, Middle: b.top + plotBody/2, Bottom: b.top + plotBody, TickEnd: b.top + plotBody + 5,
		TickText: b.top + plotBody + 18, Height: b.top + plotBody + 24, Body: plotBody,
	}
	values := make([][]*float64, len(figures))
	var highest float64
	peaks := make([]*float64, len(figures))
	for i, f := range figures {
		values[i] = b.span.columns(b.r, columns, f.of, f.lowest)
		for _, v := range values[i] {
			if v == nil {
				continue
			}
			p.Known = true
			highest = max(highest, *v)
			if peaks[i] == nil || !f.lowest && *v > *peaks[i] || f.lowest && *v < *peaks[i] {
				peaks[i] = v
			}
		}
	}
	if !p.Known {
		return p
	}
	top := ceiling(highest)
	write := about
	p.Max, p.Half = compact(top), compact(top/2)
	if share {
		top, write = 1, Percent
		p.Max, p.Half = "100 %", "50 %"
	}
	for i, f := range figures {
		l := line{Kind: f.kind, Name: f.name, Path: path(values[i], top), Peak: "unknown"}
		if f.area {
			l.Area = area(values[i], top)
		}
		if peaks[i] != nil {
			extreme := "at most "
			if f.lowest {
				extreme = "at least "
			}
			l.Peak = extreme + write(*peaks[i])
		}
		p.Lines = append(p.Lines, l)
	}
	p.Columns = b.pointer(figures, values, write)
	return p
}

// pointer gives the texts under a pointer: one for each stretch of columns that
// say the same.
func (b *builder) pointer(figures []drawn, values [][]*float64, write func(float64) string) []column {
	var all []column
	width := b.span.to.Sub(b.span.from) / columns
	said, from := "", 0
	flush := func(to int) {
		if to > from {
			all = append(all, column{
				Percent: percentage(float64(from) / columns), Width: percentage(float64(to-from) / columns),
				Title: b.clock(b.span.from.Add(time.Duration(from)*width)) + " " + said,
			})
		}
	}
	for c := range columns {
		var parts []string
		for i, f := range figures {
			text := "unknown"
			if v := values[i][c]; v != nil {
				text = write(*v)
			}
			parts = append(parts, f.name+" "+text)
		}
		if text := strings.Join(parts, ", "); text != said {
			flush(c)
			said, from = text, c
		}
	}
	flush(columns)
	return all
}

// ceiling is the round number at or above n that an axis ends with.
func ceiling(n float64) float64 {
	if !(n > 0) || math.IsInf(n, 0) {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(n)))
	for _, m := range []float64{1, 2, 3, 4, 5, 6, 8} {
		if n <= m*unit {
			return m * unit
		}
	}
	return max(10*unit, math.SmallestNonzeroFloat64)
}

func place(c int, v, top float64) (x, y int) {
	return int((float64(c) + 0.5) * grid / columns), int(math.Round(grid * (1 - min(1, max(0, v/top)))))
}

// path draws values; where one is unknown the line has a gap.
func path(values []*float64, top float64) string {
	var b strings.Builder
	pen := false
	for c, v := range values {
		if v == nil {
			pen = false
			continue
		}
		x, y := place(c, *v, top)
		switch {
		case pen:
			fmt.Fprintf(&b, "L%d %d", x, y)
		case c+1 < len(values) && values[c+1] != nil:
			fmt.Fprintf(&b, "M%d %d", x, y)
		default: // alone: a dash, or it would not be seen
			fmt.Fprintf(&b, "M%d %dh%d", x-grid/columns/2, y, grid/columns)
		}
		pen = true
	}
	return b.String()
}

// area is what is under the path.
func area(values []*float64, top float64) string {
	var b strings.Builder
	for c := 0; c < len(values); c++ {
		if values[c] == nil {
			continue
		}
		x, _ := place(c, 0, top)
		fmt.Fprintf(&b, "M%d %d", x, grid)
		for ; c < len(values) && values[c] != nil; c++ {
			var y int
			x, y = place(c, *values[c], top)
			fmt.Fprintf(&b, "L%d %d", x, y)
		}
		fmt.Fprintf(&b, "L%d %dZ", x, grid)
	}
	return b.String()
}

func percentage(share float64) string { return fmt.Sprintf("%.2f%%", 100*share) }

// ticksOf are up to six round times.
func (b *builder) ticksOf() []tick {
	length := b.span.to.Sub(b.span.from)
	step := 24 * time.Hour
	for _, s := range []time.Duration{
		time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
		time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
		time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
	} {
		if length/s <= 6 {
			step = s
			break
		}
	}
	layout := "15:04"
	if step < time.Minute {
		layout = "15:04:05"
	}
	if length > 24*time.Hour {
		layout = "2 Jan 15:04"
	}
	if n := length / step; n > 8 {
		step *= n/8 + 1
	}
	var all []tick
	for at := b.span.from.Truncate(step); at.Before(b.span.to); at = at.Add(step) {
		x := b.span.at(at)
		if at.Before(b.span.from) || x < 0.04 || x > 0.96 {
			continue
		}
		all = append(all, tick{Percent: percentage(x), Text: at.In(b.loc).Format(layout), Anchor: "middle", Minor: len(all)%2 == 1})
	}
	return all
}

// maxMarks bounds the letters over a plot.
const maxMarks = 8

// marksOf are onset, first drop, end, and of the changes of role those for which
// there is room. Letters that are close together stand in rows above each other.
func (b *builder) marksOf() []mark {
	type moment struct {
		at   time.Time
		text string
	}
	r := b.r
	all := []moment{{r.Onset, "onset"}}
	if r.Flooded != nil && r.Flooded.Sub(r.Onset) >= time.Second {
		all = append(all, moment{*r.Flooded, "counts as a flood"})
	}
	if r.FirstDrop != nil {
		all = append(all, moment{*r.FirstDrop, "first drop"})
	}
	if r.Ended != nil {
		all = append(all, moment{*r.Ended, "over"})
	}
	for _, a := range r.Actions {
		if a.Kind == "role" && len(all) < maxMarks {
			all = append(all, moment{a.Time, Clean(a.Text)})
		}
	}
	slices.SortStableFunc(all, func(a, b moment) int { return a.at.Compare(b.at) })

	marks := make([]mark, len(all))
	for i, m := range all {
		marks[i] = mark{Letter: string(rune('A' + i)), Text: m.text, Clock: b.clock(m.at), at: m.at}
	}
	return marks
}

// placed are the marks that the span has room for, and where the plot begins
// under their letters.
func (s span) placed(marks []mark) (placed []mark, top int) {
	ends := [markRows]float64{-1, -1, -1} // of each row, where its last letter is
	rows := 1
	for _, m := range marks {
		if m.at.Before(s.from) || m.at.After(s.to) {
			continue
		}
		x, row := s.at(m.at), 0
		for row < markRows-1 && x-ends[row] < 0.05 {
			row++
		}
		ends[row] = x
		rows = max(rows, row+1)
		m.Percent, m.Y = percentage(x), row
		placed = append(placed, m)
	}
	top = rows*markRow + 6
	for i := range placed {
		placed[i].Y = top - markRow*placed[i].Y - markRow/2 - 3
	}
	return placed, top
}

// In pixels.
const (
	markRow  = 18
	markRows = 3
	plotBody = 120
)

// armedOf are the times for which the service was armed.
func (b *builder) armedOf() []stretch {
	armed := b.span.columns(b.r, columns, Armed, false)
	width := b.span.to.Sub(b.span.from) / columns
	moment := func(c int) time.Time { return b.span.from.Add(time.Duration(c) * width) }
	var all []stretch
	from := -1
	for c := range columns + 1 {
		is := c < columns && armed[c] != nil && *armed[c] > 0
		switch {
		case is && from < 0:
			from = c
		case !is && from >= 0:
			all = append(all, b.stretch(moment(from), moment(c)))
			from = -1
		}
	}
	return all
}

// maxGaps bounds the gaps that are drawn; all are in the words.
const maxGaps = 50

func (b *builder) gapsOf() []stretch {
	var all []stretch
	for _, g := range b.r.Gaps[:min(len(b.r.Gaps), maxGaps)] {
		if g.To.After(b.span.from) && g.From.Before(b.span.to) {
			all = append(all, b.stretch(g.From, g.To))
		}
	}
	return all
}

func (b *builder) stretch(from, to time.Time) stretch {
	x := b.span.at(from)
	width := max(0.002, b.span.at(to)-x)
	return stretch{
		X: math.Round(x * grid), Width: math.Round(width * grid),
		Percent: percentage(x), PercentWidth: percentage(width),
	}
}

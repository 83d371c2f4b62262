// Package report tells an incident to people: in words, and as one page of HTML
// that needs no network and runs no script.
//
// A page is made by html/template alone, plots and all: no text of a record can
// become markup, wherever it came from.
package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lvsguard/lvsguard/guard/incident"
)

//go:embed page.html
var pageText string

// parsed is the page's template. Who writes no page does not wait for it.
var parsed = sync.OnceValues(func() (*template.Template, error) { return template.New("page").Parse(pageText) })

// Page writes r as one self-contained HTML page. Times are in UTC.
func Page(w io.Writer, r *incident.Record) error {
	page, err := parsed()
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := page.Execute(w, newPage(r)); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// page is what the template is filled with.
type page struct {
	*Story
	ID, Host, Version string
	Class             string // of the outcome, for its colour
	Pinned            bool
	Tiles             []tile
	Marks             []mark
	Armed, Gaps       []stretch
	Plots             []plot
	Blind             []plot // those of which nothing is known
	Felt              []felt
	Look              *look
	Happened          []happening
	Rest              []happening // beyond what is shown at once
	Packets           []packets
}

// A tile is one figure that tells much.
type tile struct{ Name, Value, Note string }

type felt struct{ Name, Before, During, After string }

type look struct {
	Flood, Good string
	// FewGood is set where too few clients completed to compare with.
	FewGood  bool
	Features []feature
	Fields   []field
	Prefixes []field
	Distinct string
	Spoofed  string
}

type feature struct {
	Text        string
	Flood, Good bar
	Signature   string
	Match       string
}

type field struct {
	Name, Pattern string
	Values        []value
}

type value struct {
	Value       string
	Flood, Good bar
}

// A bar is a share, as text and as a width.
type bar struct{ Text, Width string }

type happening struct{ Clock, Kind, Text, By string }

type packets struct{ Name, Why, When, Packets, Size string }

// builder makes a page.
type builder struct {
	teller
	r     *incident.Record
	span  span
	armed []stretch
	gaps  []stretch
	ticks []tick
	marks []mark
	top   int // where a plot begins under the letters of its marks
}

func newBuilder(r *incident.Record, s span) *builder {
	b := &builder{teller: teller{r, time.UTC}, r: r, span: s}
	b.armed, b.gaps, b.ticks = b.armedOf(), b.gapsOf(), b.ticksOf()
	b.marks, b.top = s.placed(b.marksOf())
	return b
}

// shownAtOnce is how many lines of what happened are shown before the others are
// asked for.
const shownAtOnce = 30

func newPage(r *incident.Record) *page {
	b := newBuilder(r, spanOf(r))
	p := &page{
		Story: Tell(r, time.UTC), ID: Clean(r.ID), Host: Clean(r.Host), Version: Clean(r.Version), Pinned: r.Pinned,
		Tiles: b.tiles(), Marks: b.marks, Armed: b.armed, Gaps: b.gaps, Felt: b.feltTable(), Look: b.lookOf(), Packets: b.packetsOf(),
	}
	for i, text := range p.Told {
		p.Told[i] = together(text)
	}
	for i := range p.Next {
		p.Next[i].Do = together(p.Next[i].Do)
	}
	p.Class = strings.ReplaceAll(string(p.Outcome), " ", "-")
	for _, plot := range b.plots() {
		if plot.Known {
			p.Plots = append(p.Plots, plot)
		} else {
			p.Blind = append(p.Blind, plot)
		}
	}
	for _, h := range Happenings(r) {
		p.Happened = append(p.Happened, happening{b.clock(h.Time), h.Kind, h.Text, h.By})
	}
	if n := shownAtOnce; len(p.Happened) > n {
		p.Happened, p.Rest = p.Happened[:n], p.Happened[n:]
	}
	return p
}

// together keeps a number and its sign on one line.
func together(text string) string { return strings.ReplaceAll(text, " %", "\u00a0%") }

func (b *builder) tiles() []tile {
	r := b.r
	count := func(n *uint64) string {
		if n == nil {
			return "unknown"
		}
		return Exact(*n)
	}
	of := func(n, all *uint64, what string) string {
		if n == nil || all == nil || *all == 0 {
			return ""
		}
		return Percent(float64(*n)/float64(*all)) + " " + what
	}
	perSecond := func(n *float64) string {
		if n == nil {
			return ""
		}
		return "at most " + about(*n) + " a second"
	}
	share := func(s *float64) string {
		if s == nil {
			return "unknown"
		}
		return Percent(*s)
	}
	figure := func(n *float64) string {
		if n == nil {
			return "unknown"
		}
		return about(*n)
	}
	clients := "before " + share(r.Clients.Before.Completion) + ", after " + share(r.Clients.After.Completion)
	return []tile{
		{"SYNs to the service", count(r.Totals.Offered), perSecond(r.Peaks.SYN)},
		{"with a signature", count(r.Totals.Suspect), of(r.Totals.Suspect, r.Totals.Offered, "of all SYNs")},
		{"dropped", count(r.Totals.Dropped), of(r.Totals.Dropped, r.Totals.Suspect, "of those with a signature")},
		{"clients' handshakes that completed", share(r.Clients.During.Completion), clients},
		{"half-open connections at most", figure(r.Peaks.HalfOpen), ""},
		{"memory used at most", share(r.Peaks.MemoryShare), ""},
	}
}

// The first minute is shown larger, where the whole is so long that it would be a
// few places wide.
const (
	firstBefore = 15 * time.Second
	firstAfter  = 45 * time.Second
	firstOf     = 5 * time.Minute
)

func (b *builder) plots() []plot {
	all := []plot{
		b.load("SYNs a second"),
		b.newPlot("Clients' handshakes that completed", "each place shows the lowest of its time", true,
			drawn{kind: "completion", name: "completed", of: func(p *incident.Point) *float64 { return p.Completion }, lowest: true, area: true}),
		b.newPlot("Connections in IPVS", "", false,
			drawn{kind: "connections", name: "all", of: func(p *incident.Point) *float64 { return p.Connections }},
			drawn{kind: "halfopen", name: "half-open", of: func(p *incident.Point) *float64 { return p.HalfOpen }, area: true}),
		b.newPlot("Memory used", "", true,
			drawn{kind: "memory", name: "used", of: func(p *incident.Point) *float64 { return p.MemoryShare }, area: true}),
		b.newPlot("SYN cookies a second", "sent by all real servers together", false,
			drawn{kind: "cookies", name: "sent", of: func(p *incident.Point) *float64 { return p.Cookies }, area: true}),
	}
	if b.span.to.Sub(b.span.from) > firstOf {
		near := newBuilder(b.r, span{b.r.Onset.Add(-firstBefore), b.r.Onset.Add(firstAfter)})
		if first := near.load("SYNs a second, around the onset"); first.Known {
			all = slices.Insert(all, 1, first)
		}
	}
	return all
}

func (b *builder) load(name string) plot {
	return b.newPlot(name, "", false,
		drawn{kind: "syn", name: "all", of: func(p *incident.Point) *float64 { return p.SYN }},
		drawn{kind: "suspect", name: "with a signature", of: func(p *incident.Point) *float64 { return p.Suspect }},
		drawn{kind: "dropped", name: "dropped", of: func(p *incident.Point) *float64 { return p.Dropped }, area: true})
}

func (b *builder) feltTable() []felt {
	c := b.r.Clients
	all := []incident.Felt{c.Before, c.During, c.After}
	row := func(name string, of func(incident.Felt) string) felt {
		return felt{name, of(all[0]), of(all[1]), of(all[2])}
	}
	seconds := func(s *float64) string {
		if s == nil {
			return "unknown"
		}
		return latency(*s)
	}
	return []felt{
		row("handshakes that were begun", func(f incident.Felt) string {
			if f.Handshakes == 0 {
				return "none seen"
			}
			return Exact(f.Handshakes)
		}),
		row("of these, completed", func(f incident.Felt) string {
			if f.Completion == nil {
				return "unknown"
			}
			return Percent(*f.Completion)
		}),
		row("SYN to ACK, half of them within", func(f incident.Felt) string { return seconds(f.P50) }),
		row("SYN to ACK, 99 % within", func(f incident.Felt) string { return seconds(f.P99) }),
	}
}

func barOf(share *float64) bar {
	if share == nil {
		return bar{"unknown", "0%"}
	}
	return bar{Percent(*share), percentage(min(1, max(0, *share)))}
}

// fieldNames say in words what a field's short name means.
var fieldNames = map[string]string{
	"window": "TCP window", "length": "IP length", "ttl": "TTL, hop limit", "options": "TCP options", "mss": "MSS",
	"data": "bytes of data", "flags": "TCP flags",
	"sport": "source port", "dport": "destination port", "seq": "sequence number", "ipid": "IP identification",
}

func (b *builder) lookOf() *look {
	l := b.r.Look
	if l == nil {
		return nil
	}
	out := &look{Flood: Exact(l.Flood), Good: Exact(l.Good), FewGood: l.Good == 0, Spoofed: Clean(l.Sources.Spoofed), Distinct: "unknown"}
	if l.Sources.Distinct != nil {
		out.Distinct = "about " + Exact(*l.Sources.Distinct)
	}
	for _, f := range l.Features {
		out.Features = append(out.Features, feature{
			Text: Clean(f.Text), Flood: barOf(&f.Flood), Good: barOf(f.Good),
			Match: Clean(f.Match), Signature: Clean(f.Signature),
		})
	}
	values := func(all []incident.Value) []value {
		var rows []value
		for _, v := range all {
			rows = append(rows, value{Clean(v.Value), barOf(&v.Flood), barOf(v.Good)})
		}
		return rows
	}
	for _, f := range l.Fields {
		name := fieldNames[f.Name]
		if name == "" {
			name = Clean(f.Name)
		}
		rows := values(f.Values)
		if f.OthersFlood > 0 || f.OthersGood != nil && *f.OthersGood > 0 {
			rows = append(rows, value{"all others", barOf(&f.OthersFlood), barOf(f.OthersGood)})
		}
		out.Fields = append(out.Fields, field{name, Clean(f.Pattern), rows})
	}
	for _, n := range slices.Sorted(maps.Keys(l.Sources.Prefixes)) {
		out.Prefixes = append(out.Prefixes, field{Name: fmt.Sprintf("source, by /%d", n), Values: values(l.Sources.Prefixes[n])})
	}
	return out
}

func (b *builder) packetsOf() []packets {
	var all []packets
	for _, p := range b.r.Packets {
		count := Exact(p.Packets)
		if p.Seen > p.Packets {
			count += " of " + Exact(p.Seen)
		}
		all = append(all, packets{Clean(p.Name), Clean(p.Why), b.clock(p.From) + " to " + b.clock(p.To), count, size(p.Bytes)})
	}
	return all
}

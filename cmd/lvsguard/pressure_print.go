package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
)

// maxHeadlines is what somebody reads who has just been woken.
const maxHeadlines = 3

var pressureColumns = []column{
	{"RESOURCE", 28, false}, {"USED", 7, true}, {"LIMIT", 7, true}, {"SHARE", 5, true}, {"GROWTH/s", 8, true}, {"FULL IN", 7, true}, {"LEVEL", 8, false},
}

// writePressure writes the screen; note is a last word, if it is not empty.
func writePressure(w io.Writer, r *guard.PressureReport, now time.Time, note string) {
	for _, line := range pressureHeadlines(r, now) {
		fmt.Fprintln(w, line)
	}
	if age := now.Sub(r.Time); !r.Time.IsZero() && age > 5*time.Second {
		fmt.Fprintf(w, "STALE: the guard last looked %s ago\n", span(age))
	}
	fmt.Fprintln(w)
	var shown []pressure.Resource
	idle := 0
	for _, res := range r.Resources {
		// Of a hundred listening sockets nearly all have nothing in their queue.
		if res.Kind == pressure.KindAcceptQueue && res.Level == pressure.LevelOK && *cmp.Or(res.Used, new(uint64)) == 0 {
			idle++
			continue
		}
		shown = append(shown, res)
	}
	rows := make([][]string, 0, len(shown))
	for _, res := range shown {
		rows = append(rows, []string{
			res.Name, amount(res.Used, res.Unit), amount(res.Limit, res.Unit), shareOr(res.Share), growthWord(res), fullWord(res), string(res.Level),
		})
	}
	writeTable(w, pressureColumns, rows, func(i int) string {
		switch shown[i].Level {
		case pressure.LevelCritical:
			return red
		case pressure.LevelWarning:
			return yellow
		}
		return ""
	})
	if idle > 0 {
		fmt.Fprintf(w, "empty accept queues, not shown: %d (--json has them)\n", idle)
	}
	if !r.Time.IsZero() && !r.Conntrack.InUse {
		fmt.Fprintln(w, "conntrack is not in use")
	}
	for _, part := range pressureNoteParts(r, now) {
		fmt.Fprintln(w)
		for _, text := range part {
			fmt.Fprint(w, wrap(text, "  "))
		}
	}
	if note != "" {
		fmt.Fprint(w, "\n", wrap(note, ""))
	}
}

// pressureNoteParts are the paragraphs below the table.
func pressureNoteParts(r *guard.PressureReport, now time.Time) [][]string {
	var resources, troubles, events, advice, unknown []string
	for _, res := range r.Resources {
		switch {
		case res.Level == pressure.LevelCritical, res.Level == pressure.LevelWarning, soonFull(res):
			resources = append(resources, res.Name+": "+res.Reason+" ("+res.What+")")
		case res.Used == nil || res.Share == nil:
			unknown = append(unknown, fmt.Sprintf("unknown, %s: %s", res.Name, cmp.Or(res.Unknown["used"], res.Unknown["share"])))
		}
	}
	for _, t := range r.Troubles {
		troubles = append(troubles, troubleText(t))
	}
	for _, e := range r.Events {
		events = append(events, eventText(e, now))
	}
	for _, f := range r.Advice {
		advice = append(advice, fmt.Sprintf("%s: %s. %s", f.What, f.Why, f.Remedy))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Unknown)) {
		unknown = append(unknown, fmt.Sprintf("unknown, %s: %s", name, r.Unknown[name]))
	}
	if r.LostRecords > 0 {
		unknown = append(unknown, fmt.Sprintf("%d lines of the kernel log were overwritten before they were read", r.LostRecords))
	}
	return slices.DeleteFunc([][]string{resources, troubles, events, advice, unknown}, func(part []string) bool { return len(part) == 0 })
}

const (
	// eventIsNews is how long something that has happened stands in the first
	// lines.
	eventIsNews = 10 * time.Minute
	// fullIsSoon brings what fills into the first lines, however empty it is.
	fullIsSoon = 10 * time.Minute
)

func soonFull(r pressure.Resource) bool {
	return r.FullIn != nil && *r.FullIn < fullIsSoon.Seconds()
}

// pressureHeadlines are the first lines: what is wrong, each in one line, the
// worst first.
func pressureHeadlines(r *guard.PressureReport, now time.Time) []string {
	if r.Time.IsZero() {
		return []string{"the guard has just started and has not looked yet"}
	}
	var critical, warning, rest []string
	known := 0
	for _, res := range r.Resources {
		text := levelWord(res.Level) + " " + res.Name + ": " + shareOr(res.Share) + " used"
		if res.FullIn != nil && *res.FullIn > 0 {
			text += ", full in " + span(time.Duration(*res.FullIn*float64(time.Second)))
		}
		switch {
		case res.Level == pressure.LevelCritical:
			critical = append(critical, text)
		case res.Level == pressure.LevelWarning:
			warning = append(warning, text)
		case soonFull(res):
			warning = append(warning, "FILLS "+strings.TrimPrefix(text, levelWord(res.Level)+" "))
		}
		if res.Share != nil {
			known++
		}
	}
	var news []string
	for _, e := range r.Events {
		if now.Sub(e.Time) < eventIsNews {
			news = append(news, eventText(e, now))
		}
	}
	for _, f := range r.Advice {
		if f.Severity == pressure.LevelCritical {
			rest = append(rest, "DEFENCE "+f.What)
		}
	}
	for _, t := range r.Troubles {
		rest = append(rest, troubleText(t))
	}
	// Two that are critical are mostly one disaster: what the kernel says of it
	// must not fall behind them.
	var lines []string
	for _, group := range [][]string{critical[:min(len(critical), 2)], news, critical[min(len(critical), 2):], warning, rest} {
		lines = append(lines, group...)
	}
	switch {
	case len(lines) == 0 && known == 0:
		return []string{"nothing is known of this host's resources: the reasons are below"}
	case len(lines) == 0:
		fullest := slices.MaxFunc(r.Resources, func(a, b pressure.Resource) int {
			return cmp.Compare(*cmp.Or(a.Share, new(-1.0)), *cmp.Or(b.Share, new(-1.0)))
		})
		return []string{fmt.Sprintf("nothing is about to overflow: the fullest is %s, with %s", fullest.Name, shareOr(fullest.Share))}
	case len(lines) > maxHeadlines:
		more := fmt.Sprintf(" (and %d more below)", len(lines)-maxHeadlines)
		lines = lines[:maxHeadlines]
		lines[maxHeadlines-1] = cut(lines[maxHeadlines-1], width-len(more)) + more
	}
	for i, line := range lines {
		lines[i] = cut(line, width)
	}
	return lines
}

// cut ends a text that is too long.
func cut(text string, letters int) string {
	if utf8.RuneCountInString(text) <= letters {
		return text
	}
	return string([]rune(text)[:letters-1]) + "…"
}

func levelWord(l pressure.Level) string { return strings.ToUpper(string(l)) }

func troubleText(t pressure.Trouble) string {
	return fmt.Sprintf("%s %s/s: %s", t.Counter, short(t.PerSecond), t.Why)
}

func eventText(e pressure.Event, now time.Time) string {
	text := fmt.Sprintf("kernel, %s ago: %s", span(now.Sub(e.Time)), e.Text)
	if e.Kind == pressure.EventDefence {
		text = fmt.Sprintf("%s ago: %s", span(now.Sub(e.Time)), e.Text)
	}
	if e.Count > 1 {
		text += fmt.Sprintf(" (%s times)", short(float64(e.Count)))
	}
	return text
}

func amount(n *uint64, unit pressure.Unit) string {
	if n == nil {
		return unknownMark
	}
	if unit == pressure.UnitBytes {
		return short(float64(*n)) + "B"
	}
	return short(float64(*n))
}

// shareOr is a share of which unknown is not none. More than all is all.
func shareOr(share *float64) string {
	if share == nil {
		return unknownMark
	}
	return fmt.Sprintf("%.0f%%", min(100, 100**share))
}

func growthWord(r pressure.Resource) string {
	if r.RatePerSecond == nil {
		return unknownMark
	}
	n, sign, unit := *r.RatePerSecond, "", ""
	switch {
	case n > -0.5 && n < 0.5:
		return "0"
	case n < 0:
		n, sign = -n, "-"
	default:
		sign = "+"
	}
	if r.Unit == pressure.UnitBytes {
		unit = "B"
	}
	return sign + short(n) + unit
}

// fullWord is - where it does not fill.
func fullWord(r pressure.Resource) string {
	switch {
	case r.FullIn != nil && *r.FullIn == 0:
		return "now"
	case r.FullIn != nil:
		return span(time.Duration(*r.FullIn * float64(time.Second)))
	case r.RatePerSecond == nil || r.Limit == nil:
		return unknownMark
	}
	return "-"
}

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/guard/incident/report"
)

// shortID is the day and the minute of an incident: enough if there was no other.
const shortID = 13

// writeIncidents writes a line each. ids are those of all incidents there are.
func writeIncidents(w io.Writer, list []incidentJSON, ids []string) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no incidents")
		return
	}
	rows := make([][]string, 0, len(list))
	open, longest := false, shortID
	for _, i := range list {
		longest = max(longest, len(uniquePrefix(i.ID, ids)))
	}
	// What the ID takes, the service is without; a long ID has it in itself.
	const both = 33
	longest = min(longest, both-len("SERVICE"))
	columns := []column{
		{"ID", longest, false}, {"BEGAN", 11, false}, {"FOR", 4, true}, {"PEAK/s", 6, true}, {"DROPPED", 7, true},
		{"VERDICT", 9, false}, {"PIN", 3, false}, {"SERVICE", both - longest, false},
	}
	for _, i := range list {
		took, pin := span(time.Duration(i.Seconds*float64(time.Second))), ""
		if i.Ended == nil {
			took, open = ">"+took, true
		}
		if i.Pinned {
			pin = "pin"
		}
		service := report.Clean(strings.TrimSpace(i.Service + " " + i.Project))
		rows = append(rows, []string{
			uniquePrefix(i.ID, ids), i.Onset.Local().Format("01-02 15:04"), took, shortOr(i.Peaks.SYN), countOr(i.Totals.Dropped),
			i.Verdict, pin, cut(service, both-longest),
		})
	}
	writeTable(w, columns, rows, nil)
	fmt.Fprintln(w)
	if open {
		fmt.Fprintln(w, ">: its end is not known, or has not come yet")
	}
	fmt.Fprintln(w, "'lvsguard incidents show ID' tells the story, 'report ID' writes it as a page")
}

// uniquePrefix is as much of id as no other of ids begins with.
func uniquePrefix(id string, ids []string) string {
	n := min(shortID, len(id))
	for ; n < len(id); n++ {
		if !slices.ContainsFunc(ids, func(other string) bool { return other != id && strings.HasPrefix(other, id[:n]) }) {
			break
		}
	}
	return id[:n]
}

const (
	plotLabel  = 11
	plotPlaces = 50
	// shownHappened is how many lines of what happened fit on a screen with all
	// else.
	shownHappened = 9
	shownFeatures = 4
)

// writeIncident tells the story of an incident; id is as much of its ID as is
// needed.
func writeIncident(w io.Writer, r *incident.Record, id string) {
	s := report.Tell(r, time.Local)
	head := s.Title + ", told by " + report.Clean(r.Host)
	if r.Pinned {
		head += ", pinned"
	}
	fmt.Fprint(w, wrap(head, ""), wrap(s.When, ""), "\n", wrap(s.Headline, ""))
	if len(s.Told) > 0 { // what else is told is in the plots and below
		fmt.Fprint(w, wrap(s.Told[0], "  "))
	}
	fmt.Fprintln(w)
	writePlots(w, r)
	fmt.Fprintln(w)
	writeHappened(w, r)
	if look := r.Look; look != nil && len(look.Features) > 0 {
		fmt.Fprintln(w, "\nFLOOD  GOOD  WHAT TELLS IT FROM GOOD CLIENTS")
		for _, f := range look.Features[:min(len(look.Features), shownFeatures)] {
			fmt.Fprint(w, hang(fmt.Sprintf("%5s %5s  ", exactShare(&f.Flood), exactShare(f.Good)), report.Clean(f.Text)))
		}
		if why := look.Sources.Spoofed; why != "" {
			fmt.Fprint(w, hang("likely spoofed: ", report.Clean(why)))
		}
	}
	fmt.Fprintln(w, "\nNow, and next time:")
	for i, step := range s.Next {
		fmt.Fprint(w, hang(fmt.Sprintf("%2d. ", i+1), step.Do))
		for _, line := range step.Lines {
			if strings.HasPrefix(line, "lvsguard incidents ") {
				line = strings.ReplaceAll(line, r.ID, id)
			}
			fmt.Fprintf(w, "      %s\n", line)
		}
	}
	for _, text := range s.Unknown {
		fmt.Fprint(w, hang("unknown, ", text))
	}
}

// exactShare is a share of which nearly all is not all.
func exactShare(share *float64) string {
	if share == nil {
		return unknownMark
	}
	return strings.NewReplacer("under ", "<", " ", "").Replace(report.Percent(*share))
}

// writePlots draws what is known over time, a line each.
func writePlots(w io.Writer, r *incident.Record) {
	drawn := false
	var none []string
	for _, p := range []struct {
		name   string
		of     report.Figure
		share  bool
		lowest bool
	}{
		{"SYN/s", func(p *incident.Point) *float64 { return p.SYN }, false, false},
		{"signature/s", func(p *incident.Point) *float64 { return p.Suspect }, false, false},
		{"dropped/s", func(p *incident.Point) *float64 { return p.Dropped }, false, false},
		{"completed", func(p *incident.Point) *float64 { return p.Completion }, true, true},
		{"half-open", func(p *incident.Point) *float64 { return p.HalfOpen }, false, false},
		{"memory", func(p *incident.Point) *float64 { return p.MemoryShare }, true, false},
		{"cookies/s", func(p *incident.Point) *float64 { return p.Cookies }, false, false},
	} {
		values := report.Columns(r, plotPlaces, p.of, p.lowest)
		lowest, highest := ends(values)
		if lowest == nil {
			continue
		}
		if *highest == 0 {
			none = append(none, p.name)
			continue
		}
		top, word := max(*highest, 1), func(v *float64) string { return short(*v) }
		if p.share {
			top, word = 1, shareOr
		}
		drawn = true
		fmt.Fprintf(w, "%-*s %s %s to %s\n", plotLabel, p.name, sparkline(values, top), word(lowest), word(highest))
	}
	if len(none) > 0 {
		fmt.Fprintf(w, "%-*s %s\n", plotLabel, "none", strings.Join(none, ", "))
	}
	if !drawn {
		fmt.Fprintln(w, "nothing is known of how it went over time")
		return
	}
	armed := report.Columns(r, plotPlaces, report.Armed, false)
	if _, most := ends(armed); most != nil && *most > 0 {
		var b strings.Builder
		for _, v := range armed {
			switch {
			case v == nil:
				b.WriteString(unknownMark)
			case *v > 0:
				b.WriteRune('■')
			default:
				b.WriteRune('·')
			}
		}
		fmt.Fprintf(w, "%-*s %s\n", plotLabel, "armed", &b)
	}
	from, to := report.Span(r)
	left, right := from.Local().Format(time.TimeOnly), to.Local().Format(time.TimeOnly)
	fmt.Fprintf(w, "%*s %s%s%s\n", plotLabel, "", left, strings.Repeat(" ", plotPlaces-len(left)-len(right)), right)
}

func ends(values []*float64) (lowest, highest *float64) {
	for _, v := range values {
		if v == nil {
			continue
		}
		if lowest == nil || *v < *lowest {
			lowest = v
		}
		if highest == nil || *v > *highest {
			highest = v
		}
	}
	return lowest, highest
}

var blocks = []rune("▁▂▃▄▅▆▇█")

// sparkline draws values between 0 and top.
func sparkline(values []*float64, top float64) string {
	var b strings.Builder
	for _, v := range values {
		if v == nil {
			b.WriteString(unknownMark)
			continue
		}
		b.WriteRune(blocks[min(len(blocks)-1, max(0, int(*v/top*float64(len(blocks)))))])
	}
	return b.String()
}

// writeHappened writes what happened, in order. If that is much, what the
// incident turned on comes before the rest.
func writeHappened(w io.Writer, r *incident.Record) {
	all := report.Happenings(r)
	shown := all
	if len(shown) > shownHappened {
		shown = slices.DeleteFunc(slices.Clone(all), func(h report.Happened) bool {
			return !slices.Contains([]string{"incident", "lease", "role", "gap", "guard"}, h.Kind)
		})
		shown = shown[:min(len(shown), shownHappened)]
	}
	for _, h := range shown {
		text := h.Text
		if h.By != "" {
			text += ", by " + h.By
		}
		head := fmt.Sprintf("%s %-8s ", h.Time.Local().Format(time.TimeOnly), cut(h.Kind, 8))
		fmt.Fprintln(w, strings.TrimRight(head+cut(text, width-utf8.RuneCountInString(head)), " "))
	}
	if n := len(all) - len(shown); n > 0 {
		fmt.Fprintf(w, "and %d more: 'lvsguard incidents report' has them\n", n)
	}
}

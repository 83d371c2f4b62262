package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/capture/handshake"
)

var handshakeColumns = []column{
	{"FILTER", 14, false}, {"TRIED", 5, true}, {"OK", 5, true}, {"DUPSYN", 6, true}, {"DUPS/A", 6, true},
	{"REJECT", 6, true}, {"UNREACH", 7, true}, {"TIMEOUT", 7, true}, {"ABORT", 5, true}, {"OPEN", 5, true}, {"DONE", 4, true},
}

func writeHandshakes(w io.Writer, r *handshakesJSON) {
	rows := make([][]string, 0, len(r.Filters))
	for i := range r.Filters {
		f := &r.Filters[i]
		rows = append(rows, []string{
			f.Name, count(f.Attempts), count(f.Success.Total), count(f.Success.DupSYN), countOr(f.Success.DupSYNACK),
			countOr(f.Failure.Reject), countOr(f.Failure.Unreach), count(f.Failure.Timeout), count(f.Failure.Aborted),
			count(f.Pending), percent(f.Completion()),
		})
	}
	writeTable(w, handshakeColumns, rows, nil)
	fmt.Fprintln(w)
	for i := range r.Filters {
		if text := handshakeTimes(&r.Filters[i]); text != "" {
			fmt.Fprint(w, hang(r.Filters[i].Name+": ", text))
		}
	}
	fmt.Fprint(w, hang("capture: ", captureText(&r.Capture)))
	for _, note := range handshakeNotes(r) {
		fmt.Fprint(w, wrap(note, ""))
	}
}

func count(n uint64) string { return short(float64(n)) }

// handshakeTimes says how long a filter's handshakes took.
func handshakeTimes(f *handshake.Figures) string {
	if f.Complete.Count == 0 {
		return ""
	}
	text := "SYN to ACK " + quantiles(f.Complete)
	if f.Answer != nil && f.Answer.Count > 0 {
		text += "; server's answer " + quantiles(f.Answer)
	}
	return text
}

func quantiles(h *handshake.HistogramValue) string {
	at := func(q float64) string {
		d, ok := h.Quantile(q)
		if !ok {
			return "over " + handshake.Bound(handshake.Buckets-2).String()
		}
		return "within " + d.String()
	}
	return fmt.Sprintf("%s for 50%%, %s for 99%%", at(.5), at(.99))
}

func captureText(c *captureJSON) string {
	var parts []string
	say := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if c.From != nil {
		say("%.1f s", c.To.Sub(*c.From).Seconds())
	}
	if c.Packets != nil {
		say("%s packets", count(*c.Packets))
	}
	if c.Packets == nil || *c.Packets != c.Handed {
		say("%s handed up", count(c.Handed))
	}
	if c.Dropped > 0 {
		say("%s DROPPED", count(c.Dropped))
	}
	if c.Copies > 0 {
		say("%s forwarded copies", count(c.Copies))
	}
	for _, kind := range slices.Sorted(maps.Keys(c.Undecoded)) {
		say("%s %s", count(c.Undecoded[kind]), strings.ReplaceAll(kind, "_", " "))
	}
	if len(c.Interfaces) > 0 {
		say("from %s", strings.Join(c.Interfaces, " "))
	}
	return strings.Join(parts, ", ")
}

// handshakeNotes say what the figures cannot.
func handshakeNotes(r *handshakesJSON) []string {
	var notes []string
	var half, lower []string
	var signed uint64
	for _, f := range r.Filters {
		if f.Visibility == handshake.Client && f.Attempts > 0 {
			half = append(half, f.Name)
		}
		if f.Untracked > 0 {
			lower = append(lower, fmt.Sprintf("%s %s", f.Name, count(f.Untracked)))
		}
		signed = max(signed, f.Signature.Attempts)
	}
	if len(half) > 0 {
		notes = append(notes, "?: not observable, because only the clients' half is seen: "+strings.Join(half, ", ")+" (--visibility says otherwise)")
	}
	if len(lower) > 0 {
		notes = append(notes, "attempts that could not be followed, so that the figures are a lower bound (more --capacity follows more): "+strings.Join(lower, ", "))
	}
	if r.Capture.Lossy() {
		notes = append(notes, "packets were dropped: the figures are a lower bound")
	}
	for _, note := range r.Capture.Notes {
		notes = append(notes, "capture: "+note)
	}
	if r.Capture.Filter == "classic" {
		notes = append(notes, "the kernel's filter is the classic one, which hands up every TCP segment: "+r.Capture.FilterReason)
	}
	if signed > 0 {
		s := r.Filters[0].Signature
		notes = append(notes, fmt.Sprintf("%s attempts bore the signature of a flood (window 0, no options); %s of them completed", count(s.Attempts), count(s.Completed)))
	}
	return notes
}

// writeTcpeek prints what tcpeek --icmp prints at its end.
func writeTcpeek(w io.Writer, r *handshakesJSON) {
	var from, to time.Time
	if c := r.Capture; c.From != nil {
		from, to = c.From.Local(), c.To.Local()
	}
	const stamp = "2006-01-02 15:04:05"
	took := to.Sub(from)
	const rule = "------------------------------------"
	fmt.Fprintln(w)
	fmt.Fprintln(w, "========== TCPEEK SUMMARY ==========")
	fmt.Fprintf(w, "     from : %s\n", from.Format(stamp))
	fmt.Fprintf(w, "       to : %s\n", to.Format(stamp))
	fmt.Fprintf(w, "     time : %9d.%03d (sec)\n", took/time.Second, took%time.Second/time.Millisecond)
	for i := range r.Filters[1:] { // tcpeek has no filter that counts everything
		f := &r.Filters[i+1]
		fmt.Fprintln(w, rule)
		fmt.Fprintf(w, " %s\n", f.Name)
		fmt.Fprintf(w, "   Success: %d session\n", f.Success.Total)
		fmt.Fprintf(w, "     SYN Segment Duplicate : %6d\n", f.Success.DupSYN)
		fmt.Fprintf(w, "     S/A Segment Duplicate : %6s\n", exactOr(f.Success.DupSYNACK))
		fmt.Fprintf(w, "   Failure: %d session\n", f.Failure.Total)
		fmt.Fprintf(w, "     Connection Timed Out  : %6d\n", f.Failure.Timeout)
		fmt.Fprintf(w, "     Connection Rejected   : %6s\n", exactOr(f.Failure.Reject))
		fmt.Fprintf(w, "     ICMP Unreachable      : %6s\n", exactOr(f.Failure.Unreach))
	}
	fmt.Fprintln(w, rule)
	fmt.Fprintln(w, " pcap stats")
	recv := r.Capture.Handed
	if r.Capture.Packets != nil {
		recv = *r.Capture.Packets
	}
	fmt.Fprintf(w, "   recv   : %d\n", recv)
	fmt.Fprintf(w, "   drop   : %d\n", r.Capture.Dropped)
	fmt.Fprintln(w, "   ifdrop : 0")
	fmt.Fprintln(w, "====================================")
}

func exactOr(n *uint64) string {
	if n == nil {
		return unknownMark
	}
	return fmt.Sprint(*n)
}

package alert

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A message is read on a telephone: it lists so many alerts, groups and actions.
const (
	shownAlerts  = 5
	shownGroups  = 10
	shownActions = 3
)

// headline is what, where and how grave, in one line.
func headline(n *Notification) string {
	if n.State == Test {
		return "[TEST] lvsguard on " + clean(n.Host, 60) + ": this receiver works"
	}
	var b strings.Builder
	label := string(n.Severity)
	if n.State == Resolved {
		label = string(n.State)
	}
	fmt.Fprintf(&b, "[%s] %s: ", strings.ToUpper(clean(label, 20)), clean(whereabouts(n), 80))
	if len(n.Alerts) == 0 {
		b.WriteString("alert")
	} else {
		b.WriteString(clean(what(&n.Alerts[0]), 100))
		if others := len(n.Alerts) - 1 + n.More; others > 0 {
			fmt.Fprintf(&b, " and %d more", others)
		}
	}
	switch n.State {
	case Repeated:
		b.WriteString(", for " + span(n.Time.Sub(n.Since)) + " now")
	case Resolved:
		b.WriteString(", over after " + span(n.Until.Sub(n.Since)))
	}
	return b.String()
}

// whereabouts is the group in short: the project's name alone, or the values that the
// alerts have in common, or the host.
func whereabouts(n *Notification) string {
	if p := n.Labels["project"]; p != "" && len(n.Labels) == 1 {
		return p
	}
	if _, value, _ := strings.Cut(n.Group, "="); value == "" {
		return n.Host
	}
	return n.Group
}

// what names an alert: "flood on 192.0.2.1:80".
func what(a *Alert) string {
	if a.Subject == "" {
		return words(a.Rule)
	}
	return words(a.Rule) + " on " + a.Subject
}

// words are a rule's name as people would write it.
func words(rule string) string { return strings.NewReplacer("_", " ", "-", " ").Replace(rule) }

// describe is the rest of the message: how much against which threshold, since
// when, how many, what the guard did, and the command to look further.
func describe(n *Notification) []string {
	var lines []string
	for i := range n.Alerts[:min(len(n.Alerts), shownAlerts)] {
		lines = append(lines, describeAlert(n, &n.Alerts[i]))
	}
	if left := len(n.Alerts) - len(lines) + n.More; left > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", left))
	}
	seen := "seen by " + clean(n.Host, 60)
	if n.Subjects > 1 {
		seen = fmt.Sprintf("%d affected; %s", n.Subjects, seen)
	}
	switch n.State {
	case Test:
		return append(lines, "sent "+clock(n.Time))
	case Resolved:
		lines = append(lines, fmt.Sprintf("from %s to %s", clock(n.Since), clock(n.Until)))
	default:
		lines = append(lines, fmt.Sprintf("since %s (%s)", clock(n.Since), span(n.Time.Sub(n.Since))))
	}
	lines = append(lines, seen, "guard: "+actions(n.Actions))
	if n.Look != "" {
		lines = append(lines, "look: "+clean(n.Look, 200))
	}
	return lines
}

func describeAlert(n *Notification, a *Alert) string {
	resolved := n.State == Resolved
	// A figure that is yes or no has 0 for a threshold, and its summary says all.
	bounded := a.Threshold != 0
	text := a.Summary
	if resolved && bounded {
		text = words(a.Rule)
	}
	var more []string
	if bounded && (resolved || a.Peak != a.Value) {
		more = append(more, "peak "+amount(a.Peak, a.Unit))
	}
	if bounded {
		more = append(more, "threshold "+amount(a.Threshold, a.Unit))
	}
	if a.Severity != n.Severity && !resolved {
		more = append(more, clean(string(a.Severity), 20))
	}
	if !a.Until.IsZero() && !resolved {
		more = append(more, "over since "+clock(a.Until))
	}
	line := clean(text, 160)
	if a.Subject != "" {
		line = clean(a.Subject, 80) + ": " + line
	}
	if len(more) > 0 {
		line += " (" + strings.Join(more, ", ") + ")"
	}
	return line
}

func actions(done []string) string {
	if len(done) == 0 {
		return "did nothing"
	}
	var all []string
	for _, a := range done[:min(len(done), shownActions)] {
		all = append(all, clean(a, 100))
	}
	text := strings.Join(all, "; ")
	if left := len(done) - len(all); left > 0 {
		text += fmt.Sprintf(" and %d more", left)
	}
	return text
}

// digest tells of many groups in one message. The first is the gravest.
func digest(all []Notification) (head string, lines []string) {
	over := 0
	for i := range all {
		if all[i].State == Resolved {
			over++
		}
		if i < shownGroups {
			lines = append(lines, headline(&all[i]))
		}
	}
	if left := len(all) - len(lines); left > 0 {
		lines = append(lines, fmt.Sprintf("and %d more groups", left))
	}
	label := string(all[0].Severity)
	if over == len(all) {
		label = string(Resolved)
	}
	head = fmt.Sprintf("[%s] lvsguard on %s: %d groups of alerts, %d of them over",
		strings.ToUpper(clean(label, 20)), clean(all[0].Host, 60), len(all), over)
	return head, append(lines, "so many at once are told in one message", "look: lvsguard alerts")
}

// clean makes text that came from elsewhere fit for one line: what does not print
// (control characters, those that turn the direction of writing, broken UTF-8)
// becomes a replacement character, and what has more than so many characters is
// cut.
func clean(text string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > most {
			return strings.TrimRight(b.String(), " ") + "…"
		}
		if !unicode.IsPrint(r) {
			r = utf8.RuneError
		}
		b.WriteRune(r)
	}
	return b.String()
}

// clock is a time in UTC, to the second.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// span is a duration in its two largest units.
func span(d time.Duration) string {
	d = max(0, d.Round(time.Second))
	const day = 24 * time.Hour
	large, small, units := time.Second, time.Duration(0), [2]string{"s"}
	switch {
	case d >= day:
		large, small, units = day, time.Hour, [2]string{"d", "h"}
	case d >= time.Hour:
		large, small, units = time.Hour, time.Minute, [2]string{"h", "m"}
	case d >= time.Minute:
		large, small, units = time.Minute, time.Second, [2]string{"m", "s"}
	}
	text := strconv.FormatInt(int64(d/large), 10) + units[0]
	if small > 0 && d%large >= small {
		text += strconv.FormatInt(int64(d%large/small), 10) + units[1]
	}
	return text
}

// amount is a figure with its unit. In % it is a share, where 1 is all.
func amount(v float64, unit string) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "?"
	}
	switch {
	case unit == "%":
		return number(v*100) + "%"
	case unit == "" || unit[0] == '/':
		return number(v) + clean(unit, 20)
	}
	return number(v) + " " + clean(unit, 20)
}

// number has commas between thousands, and from 100 on no fraction.
func number(v float64) string {
	if math.Abs(v) >= 1e15 {
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	if math.Abs(v) < 100 {
		return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64)
	}
	whole := strconv.FormatInt(int64(math.Round(v)), 10)
	sign := ""
	if whole[0] == '-' {
		sign, whole = "-", whole[1:]
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return sign + whole
}

package alert

import (
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// A Report is how alerts stand.
type Report struct {
	Time *time.Time `json:"time"` // of the last look; nil: there was none
	// Groups are those that fire or wait to be told as over, as they would be told
	// now, the gravest first.
	Groups    []Notification   `json:"groups"`
	Rules     []RuleReport     `json:"rules"`
	Receivers []ReceiverHealth `json:"receivers"`
	// LeftOut are alerts and readings of the last look that there was no room for.
	LeftOut int `json:"left_out"`
}

// A RuleReport is a rule in force and how it stands. A key that does not apply is
// null.
type RuleReport struct {
	Name     string            `json:"rule"`
	Figure   string            `json:"figure"`
	Severity Severity          `json:"severity"`
	When     string            `json:"when"` // for people
	Match    map[string]string `json:"match"`
	By       []string          `json:"by"`
	GroupBy  []string          `json:"group_by"`
	Window   *float64          `json:"window_seconds"`
	Above    *float64          `json:"above"`
	Below    *float64          `json:"below"`
	Share    *float64          `json:"share"`
	For      float64           `json:"for_seconds"`
	Keep     float64           `json:"keep_seconds"`
	// Fires is for how many subjects. Unknown says why nothing is known of the
	// figure, null: something is.
	Fires        int        `json:"firing_subjects"`
	Unknown      *string    `json:"unknown"`
	UnknownSince *time.Time `json:"unknown_since"`
}

// Report tells how alerts stand, but for the receivers.
func (e *Engine) Report(now time.Time, mode guard.Mode) *Report {
	out := &Report{Time: new(wall(now)), Groups: e.Firing(now, mode), Rules: make([]RuleReport, 0, len(e.rules)), LeftOut: e.lost}
	for _, r := range e.rules {
		is := RuleReport{
			Name: r.Name, Figure: r.Figure, Severity: r.Severity, When: r.when(), Match: r.Match, By: r.labels, GroupBy: r.groupBy,
			Above: r.Above, Below: r.Below, For: r.For.Seconds(), Keep: r.Keep.Seconds(),
		}
		if r.figure.Kind == guard.Counter {
			is.Window = new(r.Window.Seconds())
		}
		if r.Share > 0 {
			is.Share = new(r.Share)
		}
		for _, s := range r.subjects {
			if s.member != nil {
				is.Fires++
			}
		}
		if r.blind != "" {
			is.Unknown, is.UnknownSince = new(r.blind), new(wall(r.blindAt))
		}
		out.Rules = append(out.Rules, is)
	}
	return out
}

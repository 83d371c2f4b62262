package alert

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// This file has what is told of a group, and when.

const (
	// gather is how long a group waits for what else begins with it.
	gather = 3 * time.Second
	// betweenRules and betweenSubjects are the least between messages that tell
	// that other rules, or only other subjects, have joined.
	betweenRules    = time.Minute
	betweenSubjects = 5 * time.Minute
	// A group that begins again within restless of its end is held for over only
	// after a pause, which doubles each time from firstPause to lastPause.
	restless   = 30 * time.Minute
	firstPause = time.Minute
	lastPause  = 30 * time.Minute

	// maxMembers bounds the alerts that are remembered, over all groups.
	maxMembers = 4000
	maxDeeds   = 20
)

// A group is one run of alerts that are told together.
type group struct {
	id     string
	name   string
	labels map[string]string
	since  time.Time

	members []*member
	firing  int // of members
	more    int // alerts that there was no room for
	deeds   []deed

	// What was told, and when. A zero toldAt is "nothing yet".
	toldAt       time.Time
	told         Severity
	toldRules    map[string]bool
	toldSubjects int
	worse        time.Time // since when it is graver than told
	over         time.Time // since when nothing fires
	pause        time.Duration
}

// A member is one alert of a group's run.
type member struct {
	group    *group
	rule     string
	figure   string
	severity Severity
	labels   guard.FigureLabels
	subject  string
	summary  string
	worst    string // of a State: its summary when it was at its worst
	state    bool

	value, peak, threshold float64
	unit                   string
	look                   string
	since, until           time.Time
}

// update takes what a look shows.
func (m *member) update(r *rule, s *subject) {
	first := m.summary == ""
	m.subject, m.summary = r.subjectOf(s.labels, &s.seen), r.summary(&s.seen)
	m.threshold, m.unit = r.threshold()
	m.value, m.state, m.look = s.seen.value, r.figure.State, r.figure.Look
	farther := m.value > m.peak
	switch {
	case r.figure.State:
		m.value = s.seen.size
		farther = m.value > m.peak
	case r.Above == nil && r.Below != nil:
		farther = m.value < m.peak
	case r.Above == nil:
		m.value = *s.seen.share()
		farther = m.value > m.peak
	}
	if first || farther {
		m.peak, m.worst = m.value, m.summary
	}
}

func (m *member) alert(over bool) Alert {
	a := Alert{
		Rule: m.rule, Severity: m.severity, Subject: m.subject, Summary: m.summary, Value: m.value, Threshold: m.threshold,
		Unit: m.unit, Peak: m.peak, Labels: m.labels.Map(), Since: m.since, Until: m.until,
	}
	if over && m.state {
		a.Summary = "at its worst: " + m.worst
	}
	return a
}

// gravest first, then the earliest.
func compareMembers(a, b *member) int {
	return cmp.Or(
		cmp.Compare(b2i(!a.until.IsZero()), b2i(!b.until.IsZero())),
		-cmp.Compare(rank(a.severity), rank(b.severity)),
		a.since.Compare(b.since), cmp.Compare(a.rule, b.rule), cmp.Compare(a.subject, b.subject),
	)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A deed is what the guard did about a service of the group.
type deed struct {
	Service string    `json:"service"`
	By      guard.By  `json:"by"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until,omitzero"`
}

// An armed service is one for which the guard drops.
type armed struct {
	name string
	*guard.ServiceStatus
}

// armedOf are those of s whose lease is more than a standby's precaution.
func armedOf(s *guard.Status) []armed {
	var all []armed
	for i := range s.Services {
		if svc := &s.Services[i]; svc.Lease != nil && svc.Lease.By != guard.ByPrearm {
			all = append(all, armed{svc.Service.String(), svc})
		}
	}
	return all
}

// act takes note of which of the group's services are armed.
func (g *group) act(now time.Time, services []armed) {
	for i := range g.deeds {
		if d := &g.deeds[i]; d.Until.IsZero() && !slices.ContainsFunc(services, func(a armed) bool { return a.name == d.Service }) {
			d.Until = now
		}
	}
	for _, a := range services {
		if len(g.deeds) >= maxDeeds {
			return
		}
		if !slices.ContainsFunc(g.deeds, func(d deed) bool { return d.Service == a.name && d.Until.IsZero() }) && g.has(a) {
			g.deeds = append(g.deeds, deed{Service: a.name, By: a.Lease.By, Since: a.Lease.Since})
		}
	}
}

// has tells whether the group has an alert of a service.
func (g *group) has(a armed) bool {
	if p := g.labels["project"]; p != "" && p != a.Project {
		return false
	}
	return slices.ContainsFunc(g.members, func(m *member) bool { return m.labels.Service == a.name })
}

func (g *group) actions(mode guard.Mode) []string {
	var all []string
	for _, d := range g.deeds {
		text := fmt.Sprintf("armed %s (%s)", d.Service, d.By)
		if !d.Until.IsZero() {
			text += " for " + span(d.Until.Sub(d.Since))
		}
		all = append(all, text)
	}
	if len(all) > 0 || mode == guard.Auto {
		return all
	}
	for _, m := range g.members {
		if m.figure == "flood" && m.until.IsZero() {
			return []string{"only observed, nothing is dropped (lvsguard arm " + m.labels.Service + ")"}
		}
	}
	return nil
}

func (g *group) severity(all bool) Severity {
	worst := Info
	for _, m := range g.members {
		if (all || m.until.IsZero()) && rank(m.severity) > rank(worst) {
			worst = m.severity
		}
	}
	return worst
}

func (g *group) subjects() int {
	distinct := make(map[string]bool)
	for _, m := range g.members {
		distinct[m.subject] = true
	}
	return len(distinct) + g.more
}

// step decides whether there is something to tell.
func (g *group) step(now time.Time, repeat time.Duration) (State, bool) {
	if g.toldAt.IsZero() {
		// What is over within the time of gathering is told all the same, so that
		// its end is no riddle.
		return Firing, now.Sub(g.since) >= gather || g.firing == 0
	}
	if g.firing == 0 {
		if g.over.IsZero() {
			g.over = now
		}
		return Resolved, now.Sub(g.over) >= g.pause
	}
	g.over = time.Time{}
	if rank(g.severity(false)) <= rank(g.told) {
		g.worse = time.Time{}
	} else if g.worse.IsZero() {
		g.worse = now
	}
	last := now.Sub(g.toldAt)
	switch {
	case !g.worse.IsZero() && now.Sub(g.worse) >= gather,
		last >= betweenRules && slices.ContainsFunc(g.members, func(m *member) bool { return m.until.IsZero() && !g.toldRules[m.rule] }),
		last >= betweenSubjects && g.subjects() > g.toldSubjects:
		return Firing, true
	}
	return Repeated, last >= repeat
}

// tell makes the message, and remembers that it was told.
func (g *group) tell(now time.Time, host string, state State, mode guard.Mode) Notification {
	n := g.notification(now, host, state, mode)
	g.toldAt, g.worse, g.toldSubjects = now, time.Time{}, n.Subjects
	if rank(n.Severity) > rank(g.told) || g.told == "" {
		g.told = n.Severity
	}
	for _, m := range g.members {
		g.toldRules[m.rule] = true
	}
	return n
}

func (g *group) notification(now time.Time, host string, state State, mode guard.Mode) Notification {
	over := state == Resolved
	slices.SortFunc(g.members, compareMembers)
	n := Notification{
		ID: g.id, Group: g.name, Labels: maps.Clone(g.labels), State: state, Severity: g.severity(over || g.firing == 0), Host: host,
		Time: wall(now), Since: wall(g.since), Subjects: g.subjects(), Actions: g.actions(mode), More: g.more, Alerts: []Alert{},
	}
	if over {
		n.Until = wall(g.over)
	}
	for i, m := range g.members {
		if i == 0 {
			n.Look = m.look
		}
		if i < MaxAlerts {
			n.Alerts = append(n.Alerts, m.alert(over))
		} else {
			n.More++
		}
	}
	for i := range n.Alerts {
		n.Alerts[i].Since, n.Alerts[i].Until = wall(n.Alerts[i].Since), wall(n.Alerts[i].Until)
	}
	return n
}

// wall is t for people and files: in UTC, without its monotonic part.
func wall(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.Round(0).UTC()
}

// groupOf says which group an alert of the rule belongs to.
func groupOf(r *rule, l guard.FigureLabels, host string) (name string, labels map[string]string) {
	labels = make(map[string]string)
	var parts []string
	for _, label := range r.groupBy {
		v := l.Get(label)
		switch label {
		case "host":
			v = host
		case "rule":
			v = r.Name
		}
		if v != "" {
			labels[label] = v
			parts = append(parts, label+"="+v)
		}
	}
	if len(parts) == 0 {
		return "host=" + host, map[string]string{"host": host}
	}
	return strings.Join(parts, ","), labels
}

package alert

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// staleAfter is how old a Status may be before what it says is not known any more.
const staleAfter = 10 * time.Second

// An Engine makes notifications of what the guard sees. It is pure but for its
// memory of what it saw and told before: the same statuses give the same
// notifications.
type Engine struct {
	host    string
	repeat  time.Duration
	rules   []*rule
	figures map[string]guard.Figure
	read    map[string]*readings // by figure: several rules may be about one
	groups  map[string]*group
	members int
	// ended says when a group was over last and after which pause, so that one
	// that begins again and again is told less and less.
	ended map[string]end
	lost  int // alerts of the last look that there was no room for
}

// readings are those of a figure at one look.
type readings struct {
	at      time.Time
	all     []guard.Reading
	unknown string
}

type end struct {
	at    time.Time
	pause time.Duration
}

// NewEngine returns an engine that has seen nothing.
func NewEngine(host string, cfg guard.AlertsConfig) *Engine {
	e := &Engine{
		host: host, figures: make(map[string]guard.Figure), read: make(map[string]*readings),
		groups: make(map[string]*group), ended: make(map[string]end),
	}
	for _, f := range guard.AlertFigures() {
		e.figures[f.Name] = f
	}
	e.SetConfig(time.Time{}, cfg)
	return e
}

// SetConfig takes other rules. One that stays as it was keeps what it knows; of
// the others what fires is over.
func (e *Engine) SetConfig(now time.Time, cfg guard.AlertsConfig) {
	e.repeat = cfg.Repeat
	old := e.rules
	e.rules = nil
	for _, is := range cfg.Rules {
		if !is.Enabled {
			continue
		}
		r := newRule(is, e.figures[is.Figure], cfg.GroupBy)
		i := slices.IndexFunc(old, func(o *rule) bool { return sameRule(o, r) })
		if i >= 0 {
			r = old[i]
			r.AlertRule = is
			old = slices.Delete(slices.Clone(old), i, i+1)
		}
		e.rules = append(e.rules, r)
	}
	for _, r := range old {
		for _, s := range r.subjects {
			if s.member != nil {
				e.end(now, s)
			}
		}
	}
}

// sameRule tells whether b's subjects and series are what a's are.
func sameRule(a, b *rule) bool {
	return a.Name == b.Name && a.Figure == b.Figure && a.Window == b.Window && a.Severity == b.Severity &&
		slices.Equal(a.labels, b.labels) && slices.Equal(a.groupBy, b.groupBy) && maps.Equal(a.Match, b.Match)
}

// Evaluate tells what s is worth a word, in the order of groups.
func (e *Engine) Evaluate(now time.Time, s *guard.Status) []Notification {
	stale := ""
	if age := now.Sub(s.Time); age > staleAfter {
		stale = "the guard has not looked for " + span(age)
	}
	e.lost = 0
	for _, r := range e.rules {
		k := e.read[r.Figure]
		if k == nil {
			k = new(readings)
			e.read[r.Figure] = k
		}
		if k.at != now {
			k.at, k.all, k.unknown = now, k.all[:0], stale
			if stale == "" || r.figure.Stale {
				k.unknown = r.figure.Read(s, now, func(in guard.Reading) { k.all = append(k.all, in) })
			}
		}
		r.look(now, k.all, k.unknown, func(s *subject) { e.begin(now, r, s) }, func(s *subject) { e.end(now, s) })
		e.lost += r.leftOut
	}
	var all []Notification
	services := armedOf(s)
	for _, name := range slices.Sorted(maps.Keys(e.groups)) {
		g := e.groups[name]
		g.act(now, services)
		state, due := g.step(now, e.repeat)
		if !due {
			continue
		}
		all = append(all, g.tell(now, e.host, state, s.Mode))
		if state == Resolved {
			e.close(g)
		}
	}
	maps.DeleteFunc(e.ended, func(_ string, is end) bool { return now.Sub(is.at) > restless })
	return all
}

// runID is what no other run of any group has.
func runID(host string, now time.Time, group string) string {
	return fmt.Sprintf("%s/%s/%s", host, wall(now).Format("20060102T150405.000000000Z"), group)
}

// begin has a subject fire.
func (e *Engine) begin(now time.Time, r *rule, s *subject) {
	name, labels := groupOf(r, s.labels, e.host)
	g := e.groups[name]
	if g == nil {
		g = &group{
			id: runID(e.host, now, name), name: name, labels: labels, since: now, toldRules: make(map[string]bool),
		}
		if was, again := e.ended[name]; again {
			g.pause = min(max(2*was.pause, firstPause), lastPause)
		}
		e.groups[name] = g
	}
	// What fired before in this run goes on.
	i := slices.IndexFunc(g.members, func(m *member) bool { return m.rule == r.Name && m.labels == s.labels })
	if i < 0 {
		if e.members >= maxMembers {
			e.lost++
			g.more = max(g.more, 1)
			if g.firing == 0 && len(g.members) == 0 {
				delete(e.groups, name)
			}
			return
		}
		e.members++
		i = len(g.members)
		g.members = append(g.members, &member{group: g, rule: r.Name, figure: r.Figure, severity: r.Severity, labels: s.labels, since: now})
	}
	s.member = g.members[i]
	s.member.until = time.Time{}
	g.firing++
}

// end has a subject fire no longer.
func (e *Engine) end(now time.Time, s *subject) {
	s.member.until = now
	s.member.group.firing--
	s.member = nil
}

func (e *Engine) close(g *group) {
	e.members -= len(g.members)
	e.ended[g.name] = end{g.over, g.pause}
	delete(e.groups, g.name)
}

// Firing returns what fires, as it would be told now, the gravest first.
func (e *Engine) Firing(now time.Time, mode guard.Mode) []Notification {
	all := make([]Notification, 0, len(e.groups))
	for _, g := range e.groups {
		all = append(all, g.notification(now, e.host, Firing, mode))
	}
	slices.SortFunc(all, func(a, b Notification) int {
		return cmp.Or(-cmp.Compare(rank(a.Severity), rank(b.Severity)), a.Since.Compare(b.Since), cmp.Compare(a.Group, b.Group))
	})
	return all
}

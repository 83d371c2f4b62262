package alert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/internal/wholefile"
)

// This file has what outlives the guard: the groups that are open and what was
// told of them, so that a restart neither repeats nor forgets.

// A State of an engine, as it is written. Times are of the wall clock.
type saved struct {
	Format int          `json:"format"`
	Groups []savedGroup `json:"groups"`
	// Unsent are notifications that a guard which stopped could not deliver.
	Unsent []Undelivered `json:"unsent,omitempty"`
}

type savedGroup struct {
	ID           string            `json:"id"`
	Name         string            `json:"group"`
	Labels       map[string]string `json:"labels"`
	Since        time.Time         `json:"since"`
	Told         Severity          `json:"told,omitempty"`
	ToldAt       time.Time         `json:"told_at,omitzero"`
	ToldRules    []string          `json:"told_rules,omitempty"`
	ToldSubjects int               `json:"told_subjects,omitempty"`
	Over         time.Time         `json:"over,omitzero"`
	Pause        time.Duration     `json:"pause,omitempty"`
	More         int               `json:"more,omitempty"`
	Deeds        []deed            `json:"deeds,omitempty"`
	Members      []savedMember     `json:"members"`
}

type savedMember struct {
	Rule      string             `json:"rule"`
	Figure    string             `json:"figure"`
	Severity  Severity           `json:"severity"`
	Labels    guard.FigureLabels `json:"labels"`
	Subject   string             `json:"subject"`
	Summary   string             `json:"summary"`
	Worst     string             `json:"worst,omitempty"`
	State     bool               `json:"state,omitempty"`
	Value     float64            `json:"value"`
	Peak      float64            `json:"peak"`
	Threshold float64            `json:"threshold"`
	Unit      string             `json:"unit,omitempty"`
	Look      string             `json:"look,omitempty"`
	Since     time.Time          `json:"since"`
	Until     time.Time          `json:"until,omitzero"`
}

const (
	stateName     = "alerts.json"
	stateFormat   = 1
	maxStateBytes = 16 << 20
	maxGroups     = maxMembers
	// settle is how long what fired before a restart is not over: the guard must
	// see everything first, and counters have no increase yet.
	settle = 15 * time.Second
)

// save gives what is to be kept.
func (e *Engine) save() []savedGroup {
	all := []savedGroup{}
	for _, name := range slices.Sorted(maps.Keys(e.groups)) {
		g := e.groups[name]
		is := savedGroup{
			ID: g.id, Name: g.name, Labels: g.labels, Since: wall(g.since), Told: g.told, ToldAt: wall(g.toldAt), ToldSubjects: g.toldSubjects,
			ToldRules: slices.Sorted(maps.Keys(g.toldRules)), Over: wall(g.over), Pause: g.pause, More: g.more, Deeds: slices.Clone(g.deeds),
		}
		for i := range is.Deeds {
			is.Deeds[i].Since, is.Deeds[i].Until = wall(is.Deeds[i].Since), wall(is.Deeds[i].Until)
		}
		for _, m := range g.members {
			is.Members = append(is.Members, savedMember{
				Rule: m.rule, Figure: m.figure, Severity: m.severity, Labels: m.labels, Subject: m.subject, Summary: m.summary, Worst: m.worst, State: m.state,
				Value: m.value, Peak: m.peak, Threshold: m.threshold, Unit: m.unit, Look: m.look, Since: wall(m.since), Until: wall(m.until),
			})
		}
		all = append(all, is)
	}
	return all
}

// restore takes up what was open before a restart, in an engine that has seen
// nothing yet. What no rule is about any more is over.
func (e *Engine) restore(now time.Time, groups []savedGroup) {
	for _, is := range groups {
		if e.groups[is.Name] != nil || is.ID == "" || is.Name == "" || len(is.Members) == 0 {
			continue
		}
		g := &group{
			id: is.ID, name: is.Name, labels: is.Labels, since: past(now, is.Since), told: is.Told, toldAt: past(now, is.ToldAt), toldSubjects: is.ToldSubjects,
			toldRules: make(map[string]bool), over: past(now, is.Over), pause: min(max(0, is.Pause), lastPause), more: max(0, is.More),
			deeds: is.Deeds[:min(len(is.Deeds), maxDeeds)],
		}
		for _, name := range is.ToldRules {
			g.toldRules[name] = true
		}
		for _, m := range is.Members {
			if e.members >= maxMembers {
				g.more++
				continue
			}
			e.members++
			one := &member{
				group: g, rule: m.Rule, figure: m.Figure, severity: m.Severity, labels: m.Labels, subject: m.Subject, summary: m.Summary, worst: m.Worst, state: m.State,
				value: m.Value, peak: m.Peak, threshold: m.Threshold, unit: m.Unit, look: m.Look, since: past(now, m.Since), until: past(now, m.Until),
			}
			g.members = append(g.members, one)
			if one.until.IsZero() && !e.adopt(now, one) {
				one.until = now
			}
		}
		if len(g.members) > 0 {
			e.groups[g.name] = g
		}
	}
}

// adopt has the member's rule go on with it.
func (e *Engine) adopt(now time.Time, m *member) bool {
	i := slices.IndexFunc(e.rules, func(r *rule) bool { return r.Name == m.rule && r.Figure == m.figure && r.Severity == m.severity })
	if i < 0 {
		return false
	}
	r := e.rules[i]
	name, _ := groupOf(r, m.labels, e.host)
	if name != m.group.name || m.labels != m.labels.Only(r.labels) || r.subjects[m.labels] != nil || len(r.subjects) >= maxSubjects {
		return false
	}
	r.subjects[m.labels] = &subject{labels: m.labels, pending: now, held: now.Add(settle + r.Window), member: m}
	m.group.firing++
	return true
}

// past is t, or now if that is earlier: the clock may have been set back.
func past(now, t time.Time) time.Time {
	if t.After(now) {
		return now
	}
	return t
}

// loadState reads what an earlier guard left. No file is no error, and what cannot
// be understood is as if it were not there.
func loadState(dir string) (saved, error) {
	path := filepath.Join(dir, stateName)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return saved{}, nil
	}
	if err == nil && info.Size() > maxStateBytes {
		err = fmt.Errorf("it has more than %d bytes", maxStateBytes)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(path)
	}
	var s saved
	if err == nil {
		s, err = parseState(text)
	}
	if err != nil {
		return saved{}, fmt.Errorf("%s: %w: alerts that were told before may be told again", path, err)
	}
	return s, nil
}

func parseState(text []byte) (saved, error) {
	var s saved
	if err := json.Unmarshal(text, &s); err != nil {
		return saved{}, err
	}
	if s.Format != stateFormat {
		return saved{}, fmt.Errorf("format %d, want %d", s.Format, stateFormat)
	}
	s.Groups = s.Groups[:min(len(s.Groups), maxGroups)]
	s.Unsent = s.Unsent[:min(len(s.Unsent), maxQueued)]
	return s, nil
}

// store replaces the file as a whole, or not at all.
func (s saved) store(dir string) error {
	s.Format = stateFormat
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := wholefile.Write(filepath.Join(dir, stateName), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("save what was told: %w", err)
	}
	return nil
}

package guard

import (
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// An AlertRule says when a figure is worth a message. The zero value of a key is
// "not used".
type AlertRule struct {
	Name     string   `yaml:"name"`
	Enabled  bool     `yaml:"enabled"`
	Figure   string   `yaml:"figure"`
	Severity Severity `yaml:"severity"`
	// Match keeps to readings whose labels match: * stands for anything, and a !
	// before the pattern for all others.
	Match map[string]string `yaml:"match,omitempty"`
	// By are the labels that tell alerts of this rule apart; what differs in
	// others is added up.
	By []string `yaml:"by,flow"`
	// Window is that of a counter's increase.
	Window time.Duration `yaml:"window"`
	// Above and Below are not in the range: with both, it is between them.
	Above *float64 `yaml:"above,omitempty"`
	Below *float64 `yaml:"below,omitempty"`
	// Share is the least share of a counter's increase, from 0 to 1.
	Share float64 `yaml:"share"`
	// For is how long it must hold before it is told, Keep how long it must not
	// hold before it is over.
	For  time.Duration `yaml:"for"`
	Keep time.Duration `yaml:"keep"`
	// GroupBy is AlertsConfig's for this rule alone; nil: no other.
	GroupBy []string `yaml:"group_by,flow,omitempty"`
}

const (
	maxRules      = 256
	maxWindow     = time.Hour
	minWindow     = 10 * time.Second
	defaultWindow = time.Minute
	defaultKeep   = time.Minute
)

var noSlash = strings.NewReplacer("/", "\x00")

// Matches tells whether a reading is one that the rule is about.
func (r *AlertRule) Matches(l FigureLabels) bool {
	for name, pattern := range r.Match {
		pattern, not := strings.CutPrefix(pattern, "!")
		// To path.Match a * stands for anything but a slash.
		if ok, _ := path.Match(noSlash.Replace(pattern), noSlash.Replace(l.Get(name))); ok == not {
			return false
		}
	}
	return true
}

// Holds tells whether v, and the share of it if there is one, are in the rule's
// range.
func (r *AlertRule) Holds(v float64, share *float64) bool {
	switch {
	case math.IsNaN(v), r.Above != nil && !(v > *r.Above), r.Below != nil && !(v < *r.Below):
		return false
	case r.Share > 0:
		return share != nil && *share >= r.Share
	}
	return true
}

// DefaultAlertRules are in force without a word in the configuration.
func DefaultAlertRules() []AlertRule {
	yes := func(name, figure string, s Severity, keep time.Duration, more func(*AlertRule)) AlertRule {
		r := newAlertRule(name)
		r.Figure, r.Severity, r.Above, r.Keep = figure, s, new(0.0), keep
		if f, ok := findFigure(figure); ok {
			r.By = f.By
		}
		if more != nil {
			more(&r)
		}
		return r
	}
	// share makes a rule of an increase and of its share of all.
	share := func(above, share float64) func(*AlertRule) {
		return func(r *AlertRule) { r.Window, r.Above, r.Share = time.Minute, &above, share }
	}
	lasts := func(r *AlertRule) { r.For = time.Minute }
	return []AlertRule{
		yes("flood", "flood", SeverityCritical, 10*time.Second, nil),
		yes("armed", "armed", SeverityWarning, 10*time.Second, nil),
		yes("handshakes-fail", "handshakes_failed", SeverityWarning, time.Minute, share(100, 0.2)),
		yes("syn-retransmitted", "syn_retransmitted", SeverityWarning, time.Minute, share(50, 0.05)),
		yes("synack-retransmitted", "synack_retransmitted", SeverityWarning, time.Minute, share(50, 0.05)),
		yes("pressure-warning", "pressure_level", SeverityWarning, time.Minute, func(r *AlertRule) { r.Below = new(2.0) }),
		yes("pressure-critical", "pressure_level", SeverityCritical, time.Minute, func(r *AlertRule) { r.Above = new(1.0) }),
		yes("kernel", "kernel_events", SeverityWarning, 10*time.Second, nil),
		yes("role-change", "role_changes", SeverityWarning, 10*time.Second, func(r *AlertRule) { r.Window = 5 * time.Minute }),
		yes("source-unknown", "source_unknown", SeverityWarning, time.Minute, lasts),
		yes("capture-lossy", "capture_dropped", SeverityWarning, time.Minute, share(100, 0.01)),
		yes("drops-paused", "automatic_paused", SeverityCritical, 10*time.Second, nil),
		yes("table-lost", "table_losses", SeverityWarning, time.Minute, func(r *AlertRule) { r.Window = 10 * time.Minute }),
		yes("guard-hangs", "look_age_seconds", SeverityCritical, 10*time.Second, func(r *AlertRule) { r.Above = new(30.0) }),
		yes("journal-failing", "journal_failing", SeverityWarning, time.Minute, lasts),
		yes("config-refused", "config_refused", SeverityWarning, 10*time.Second, nil),
	}
}

// newAlertRule is what a rule is before its keys are read.
func newAlertRule(name string) AlertRule {
	return AlertRule{Name: name, Enabled: true, Severity: SeverityWarning, Keep: defaultKeep}
}

func findFigure(name string) (Figure, bool) {
	figures := AlertFigures()
	i := slices.IndexFunc(figures, func(f Figure) bool { return f.Name == name })
	if i < 0 {
		return Figure{}, false
	}
	return figures[i], true
}

// ruleNode is kept undecoded until it is known which rule it changes.
type ruleNode struct{ yaml.Node }

func (r ruleNode) MarshalYAML() (any, error) { return &r.Node, nil }

func (r *ruleNode) UnmarshalYAML(n *yaml.Node) error {
	r.Node = *n
	return nil
}

// mergeRules changes rules by those of the file: one with a name that is known
// changes that rule's keys, one with a new name is added.
func mergeRules(rules []AlertRule, nodes []ruleNode) ([]AlertRule, error) {
	if len(nodes) > maxRules {
		return nil, badKey(fmt.Sprintf("%d: want at most %d", len(nodes), maxRules), "alerts", "rules")
	}
	named := make(map[string]bool)
	for i := range nodes {
		n := &nodes[i].Node
		at := []string{"alerts", "rules", strconv.Itoa(i)}
		if n.Kind != yaml.MappingNode {
			return nil, badKey("want a rule, as {name: flood, severity: warning}", at...)
		}
		if err := checkKeys(n, new(AlertRule)); err != nil {
			return nil, err
		}
		var who struct {
			Name string `yaml:"name"`
		}
		if err := n.Decode(&who); err != nil {
			return nil, tidyYAML(err)
		}
		if err := checkName(who.Name); err != nil {
			return nil, badKey(err.Error(), append(at, "name")...)
		}
		if named[who.Name] {
			return nil, badKey(fmt.Sprintf("name %q is taken: give each rule its own", who.Name), at...)
		}
		named[who.Name] = true
		where := slices.IndexFunc(rules, func(r AlertRule) bool { return r.Name == who.Name })
		if where < 0 {
			where = len(rules)
			rules = append(rules, newAlertRule(who.Name))
		}
		rule := rules[where]
		was := rule.Figure
		rule.Match, rule.By, rule.GroupBy = maps.Clone(rule.Match), slices.Clone(rule.By), slices.Clone(rule.GroupBy)
		rule.Above, rule.Below = clonePointer(rule.Above), clonePointer(rule.Below)
		if err := n.Decode(&rule); err != nil {
			return nil, tidyYAML(err)
		}
		if rule.Figure != was && was != "" {
			return nil, badKey(fmt.Sprintf("the rule %s is about %s: give a rule about another figure its own name", rule.Name, was), append(at, "figure")...)
		}
		if err := rule.check(at); err != nil {
			return nil, err
		}
		rules[where] = rule
	}
	return rules, nil
}

func clonePointer(p *float64) *float64 {
	if p == nil {
		return nil
	}
	return new(*p)
}

// check fills in what follows from the figure, and tells what is wrong with r.
func (r *AlertRule) check(at []string) error {
	bad := func(key, format string, args ...any) error {
		return badKey(fmt.Sprintf(format, args...), append(slices.Clone(at), key)...)
	}
	f, ok := findFigure(r.Figure)
	if !ok {
		var names []string
		for _, f := range AlertFigures() {
			names = append(names, f.Name)
		}
		return bad("figure", "no figure %q; there are: %s", r.Figure, strings.Join(names, ", "))
	}
	if !slices.Contains(severities[:], r.Severity) {
		return bad("severity", "%q: want info, warning or critical", r.Severity)
	}
	own := func(names []string, key string) error {
		for i, l := range names {
			if !slices.Contains(f.Labels, l) {
				return bad(key, "%s has no label %q; it has: %s", f.Name, l, strings.Join(f.Labels, ", "))
			}
			if slices.Contains(names[:i], l) {
				return bad(key, "%q is there twice", l)
			}
		}
		return nil
	}
	if r.By == nil {
		r.By = f.By
	}
	if err := own(r.By, "by"); err != nil {
		return err
	}
	if err := own(slices.Sorted(maps.Keys(r.Match)), "match"); err != nil {
		return err
	}
	for _, pattern := range r.Match {
		if _, err := path.Match(strings.TrimPrefix(pattern, "!"), ""); err != nil {
			return bad("match", "%q is no pattern: * stands for anything, and a ! at the beginning for all others", pattern)
		}
	}
	if err := checkLabels(r.GroupBy); err != nil {
		return bad("group_by", "%v", err)
	}
	switch f.Kind {
	case Counter:
		if r.Window == 0 {
			r.Window = defaultWindow
		}
		if r.Window < minWindow || r.Window > maxWindow {
			return bad("window", "want a duration from %s to %s", minWindow, maxWindow)
		}
	case Gauge:
		if r.Window != 0 {
			return bad("window", "%s is a figure of the moment and has no increase: leave window out, and use for", f.Name)
		}
	}
	switch {
	case !(r.Share >= 0 && r.Share <= 1):
		return bad("share", "want a share from 0 to 1")
	case r.Share > 0 && f.ShareOf == "":
		return bad("share", "%s has no share: leave it out", f.Name)
	case r.Above == nil && r.Below == nil && r.Share == 0:
		return badKey("want above, below or share: when is it to be told?", at...)
	}
	for key, v := range map[string]*float64{"above": r.Above, "below": r.Below} {
		if v != nil && !(math.Abs(*v) <= 1e18) {
			return bad(key, "want a number")
		}
	}
	if r.Above != nil && r.Below != nil && *r.Above >= *r.Below {
		return bad("above", "nothing is above %v and below %v", *r.Above, *r.Below)
	}
	if r.For < 0 || r.For > 24*time.Hour {
		return bad("for", "want a duration from 0s to 24h")
	}
	if r.Keep < 0 || r.Keep > 24*time.Hour {
		return bad("keep", "want a duration from 0s to 24h")
	}
	return nil
}

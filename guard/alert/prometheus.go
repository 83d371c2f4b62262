package alert

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lvsguard/lvsguard/guard"
)

// What the rules of a fleet record, each with the label rule.
const (
	recordHost  = "instance:lvsguard_rule:value" // the figure on each host that knows it
	recordValue = "lvsguard_rule:value"          // over all hosts
	recordShare = "lvsguard_rule:share"          // what that is of all
)

// A prometheusRule is a rule in a file of Prometheus.
type prometheusRule struct {
	Record      string            `yaml:"record,omitempty"`
	Alert       string            `yaml:"alert,omitempty"`
	Expr        string            `yaml:"expr"`
	For         promDuration      `yaml:"for,omitempty"`
	Keep        promDuration      `yaml:"keep_firing_for,omitempty"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

// promDuration is written as Prometheus reads it: 1m30s, and not 1m30.5s.
type promDuration time.Duration

func (d promDuration) String() string {
	var b strings.Builder
	rest := time.Duration(d)
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}} {
		if n := rest / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			rest -= n * u.unit
		}
	}
	return cmp.Or(b.String(), "0s")
}

func (d promDuration) MarshalYAML() (any, error) { return d.String(), nil }

// PrometheusRules turns rules into those of a Prometheus that scrapes the guards
// of many hosts as job: what one host adds up over its services, they add up over
// hosts too, and say how many hosts see it. What is about a host itself stays an
// alert of that host.
func PrometheusRules(rules []guard.AlertRule, job string) ([]byte, error) {
	figures := make(map[string]guard.Figure)
	for _, f := range guard.AlertFigures() {
		figures[f.Name] = f
	}
	all := scrapeRules(job)
	for i := range rules {
		r := &rules[i]
		if !r.Enabled {
			continue
		}
		f, ok := figures[r.Figure]
		s, told := promFigures()[r.Figure]
		if !ok || !told {
			return nil, fmt.Errorf("rule %s: no figure %q", r.Name, r.Figure)
		}
		all = append(all, fleetRule{r, f, s}.rules()...)
	}
	type group struct {
		Name  string           `yaml:"name"`
		Rules []prometheusRule `yaml:"rules"`
	}
	// One group, because its rules are evaluated one after the other and at the
	// same instant: those of a project begin and end together.
	text, err := marshalYAML(struct {
		Groups []group `yaml:"groups"`
	}{[]group{{"lvsguard", all}}})
	if err != nil {
		return nil, err
	}
	const head = `# Made by lvsguard export prometheus-rules: change the rules in lvsguard.yaml, and
# export them again. They need Prometheus 2.42 or newer.
`
	return append([]byte(head), text...), nil
}

func marshalYAML(v any) ([]byte, error) {
	var b strings.Builder
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	err := enc.Close()
	return []byte(b.String()), err
}

// scrapeRules tell of guards that Prometheus hears nothing of.
func scrapeRules(job string) []prometheusRule {
	up := "up" + selector("job="+strconv.Quote(job))
	alert := func(name string, s Severity, wait time.Duration, expr, summary, look string) prometheusRule {
		return prometheusRule{
			Alert: name, Expr: expr, For: promDuration(wait),
			Labels:      map[string]string{"severity": string(s)},
			Annotations: map[string]string{"summary": summary, "look": look},
		}
	}
	const here = "systemctl status lvsguard"
	return []prometheusRule{
		alert("guard-silent", Warning, 2*time.Minute, up+" == 0", "Prometheus cannot read the guard of {{ $labels.instance }}", here),
		alert("no-guards", Critical, 5*time.Minute, "absent("+up+")", "Prometheus has no guard to read at all", "Prometheus, Status, Service Discovery"),
	}
}

// A fleetRule is a rule, with what there is of its figure at Prometheus.
type fleetRule struct {
	*guard.AlertRule
	figure guard.Figure
	prom   promFigure
}

// by are the labels that tell alerts apart, by the names that they have in
// Prometheus.
func (r fleetRule) by() []string {
	var by []string
	for _, l := range r.By {
		by = append(by, promLabel(l))
	}
	if r.prom.part {
		by = append(by, "part")
	}
	return by
}

// promLabel is how a label of ours is called in Prometheus' world, where instance
// is the host.
func promLabel(name string) string {
	switch name {
	case "instance":
		return "vrrp_instance"
	case "host":
		return "instance"
	case "rule":
		return "alertname"
	}
	return name
}

func (r fleetRule) window() string {
	return promDuration(cmp.Or(r.Window, time.Minute)).String()
}

// rules are what is recorded, and the alert.
func (r fleetRule) rules() []prometheusRule {
	record := func(name, expr string) prometheusRule {
		return prometheusRule{Record: name, Expr: expr, Labels: map[string]string{"rule": r.Name}}
	}
	mine := func(name string) string { return name + selector("rule="+strconv.Quote(r.Name)) }
	over := r.farthest()
	if r.figure.Adds {
		over = "sum"
	}
	onHost := slices.Concat([]string{"job", "instance"}, r.by())
	all := []prometheusRule{record(recordHost, aggregate(over, onHost, r.expr(r.prom.value)))}
	value := recordHost
	if !r.prom.ofHost {
		if r.prom.server != "" {
			over = r.farthest() // directors tell of the same servers
		}
		value = recordValue
		all = append(all, record(value, aggregate(over, append([]string{"rule"}, r.by()...), mine(recordHost))))
	}
	expr := mine(value) + r.limits()
	if r.Share > 0 {
		total := aggregate("sum", r.labels(), r.expr(r.prom.total))
		all = append(all, record(recordShare, mine(value)+"\n  / on ("+strings.Join(r.labels(), ", ")+")\n"+total))
		expr += "\n  and " + mine(recordShare) + " >= " + promNumber(r.Share)
	}
	return append(all, prometheusRule{
		Alert: r.Name, Expr: expr, For: promDuration(r.For), Keep: promDuration(r.Keep),
		Labels:      map[string]string{"severity": string(r.Severity)},
		Annotations: r.annotations(),
	})
}

// limits is the rule's range, as what stands behind a value.
func (r fleetRule) limits() string {
	var b strings.Builder
	if r.Above != nil {
		b.WriteString(" > " + promNumber(*r.Above))
	}
	if r.Below != nil {
		b.WriteString(" < " + promNumber(*r.Below))
	}
	return b.String()
}

// farthest is the aggregation that keeps what is farthest in the rule's range.
func (r fleetRule) farthest() string {
	if r.Above == nil && r.Below != nil {
		return "min"
	}
	return "max"
}

func promNumber(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

func aggregate(how string, by []string, expr string) string {
	how += " by (" + strings.Join(by, ", ") + ") "
	if !strings.Contains(expr, "\n") {
		return how + "(" + expr + ")"
	}
	return fmt.Sprintf("%s(\n  %s\n)", how, strings.ReplaceAll(expr, "\n", "\n  "))
}

// annotations are what people read: how much against which threshold, and how many
// hosts see it. When it is over the last values say little, the farthest more.
func (r fleetRule) annotations() map[string]string {
	f, labels := r.figure, r.labels()
	mine := "{rule=" + strconv.Quote(r.Name) + "$labels}"
	value := recordValue
	if r.prom.ofHost {
		value = recordHost
	}
	summary, over := r.subject()+f.What, r.subject()+f.What
	if !f.State {
		summary = r.subject() + "{{ $value | " + r.format() + " }}" + r.sentence()
		over = r.subject() + "at the worst " + query(r.farthest()+"_over_time("+value+mine+"[1h])", labels, r.format()) + r.sentence()
	}
	if r.Share > 0 {
		summary += ", " + query(recordShare+mine, labels, percentage) + " " + f.ShareOf
	}
	if m := r.prom.more; m != nil {
		known := slices.DeleteFunc(slices.Clone(m.labels), func(l string) bool { return !slices.Contains(labels, l) })
		summary += ", " + query(m.query, known, m.format) + " " + m.what
	}
	if !r.prom.ofHost {
		sees := " > 0"
		if !f.Adds {
			sees = r.limits()
		}
		summary += ", seen by " + query("count("+recordHost+mine+sees+")", labels, whole) +
			" of " + query("count("+recordHost+mine+")", labels, whole) + " hosts"
	}
	return map[string]string{"summary": summary, "over": over, "look": f.Look}
}

// Functions of Prometheus' templates that write a number.
const (
	whole      = `printf "%.0f"`
	percentage = "humanizePercentage"
	rounded    = "humanize"
)

// format is how a value of the rule's figure is written.
func (r fleetRule) format() string {
	switch r.figure.Unit {
	case "%":
		return percentage
	case "/s":
		return rounded
	}
	return whole
}

// sentence is what follows a value of the rule's figure.
func (r fleetRule) sentence() string {
	f := r.figure
	text := strings.TrimPrefix(f.Unit, "%") + " " + f.What
	if f.Kind == guard.Counter {
		text += " in " + r.window()
	}
	switch limit := cmp.Or(r.Above, r.Below); {
	case limit == nil || *limit == 0:
	case f.Unit == "%":
		text += ", threshold " + strconv.FormatFloat(*limit*100, 'g', 6, 64) + "%"
	default:
		text += ", threshold " + promNumber(*limit) + f.Unit
	}
	return text
}

// labels are those that an alert of the rule has, but for its name.
func (r fleetRule) labels() []string {
	if r.prom.ofHost {
		return append([]string{"job", "instance"}, r.by()...)
	}
	return r.by()
}

// subject is what an alert is of, where that is more than a project.
func (r fleetRule) subject() string {
	var words []string
	for _, l := range r.by() {
		said := l == "project" || l == "kind" && slices.Contains(r.By, "resource") ||
			l == "part" && (slices.Contains(r.By, "service") || slices.Contains(r.By, "filter"))
		if !said {
			words = append(words, "{{ $labels."+l+" }}")
		}
	}
	text := strings.Join(words, " ")
	if r.prom.ofHost {
		text = strings.TrimSpace(text + " on {{ $labels.instance }}")
	}
	if text == "" {
		return ""
	}
	return strings.TrimPrefix(text, "on ") + ": "
}

// query is a piece of a template that asks for the first value of an expression, in
// which $labels stands for an alert's labels. A ? stands for what is not known.
func query(expr string, labels []string, format string) string {
	var matchers, values strings.Builder
	for _, l := range labels {
		matchers.WriteString("," + l + "=%q")
		values.WriteString(" $labels." + l)
	}
	return fmt.Sprintf("{{ with printf `%s`%s | query }}{{ . | first | value | %s }}{{ else }}?{{ end }}",
		strings.NewReplacer("{$labels}", selector(strings.TrimPrefix(matchers.String(), ",")), "$labels", matchers.String()).Replace(expr), values.String(), format)
}

// expr fills in what the rule matches, and its window.
func (r fleetRule) expr(text string) string {
	matchers := func(names []string) string {
		var b strings.Builder
		for _, name := range names {
			pattern, not := strings.CutPrefix(r.Match[name], "!")
			op := "=~"
			if not {
				op = "!~"
			}
			label := promLabel(name)
			if name == "server" {
				label = r.prom.server
			}
			fmt.Fprintf(&b, ",%s%s%s", label, op, strconv.Quote(regexOf(pattern)))
		}
		return b.String()
	}
	fill := func(text, matchers string) string {
		return strings.NewReplacer("$window", r.window(), "{$match}", selector(strings.TrimPrefix(matchers, ",")), "$match", matchers).Replace(text)
	}
	names := slices.Sorted(maps.Keys(r.Match))
	const vrrp = "instance"
	_, matched := r.Match[vrrp]
	if !r.prom.ofService || !matched && !slices.Contains(r.By, vrrp) {
		return fill(text, matchers(names))
	}
	// Series of a service do not have its VRRP instance, but one does.
	only := func(is bool) []string {
		return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return (name == vrrp) != is })
	}
	return "(\n  " + strings.ReplaceAll(fill(text, matchers(only(false))), "\n", "\n  ") + "\n) * on (job, instance, service) group_left (vrrp_instance) " +
		fill("lvsguard_service_info{$match}", matchers(only(true)))
}

// selector is what stands behind a metric's name.
func selector(matchers string) string {
	if matchers == "" {
		return ""
	}
	return "{" + matchers + "}"
}

// regexOf makes a regular expression of a good pattern of path.Match.
func regexOf(pattern string) string {
	var b strings.Builder
	rest := []rune(pattern)
	next := func() rune {
		c := rest[0]
		rest = rest[1:]
		if c == '\\' && len(rest) > 0 {
			c, rest = rest[0], rest[1:]
		}
		return c
	}
	literal := func(c rune) { b.WriteString(regexp.QuoteMeta(string(c))) }
	for len(rest) > 0 {
		switch rest[0] {
		case '*':
			b.WriteString(".*")
			rest = rest[1:]
		case '?':
			b.WriteString(".")
			rest = rest[1:]
		case '[':
			b.WriteString("[")
			if rest = rest[1:]; len(rest) > 0 && rest[0] == '^' {
				b.WriteString("^")
				rest = rest[1:]
			}
			for len(rest) > 0 && rest[0] != ']' {
				if rest[0] == '-' { // of a range
					b.WriteString("-")
					rest = rest[1:]
					continue
				}
				literal(next())
			}
			b.WriteString("]")
			rest = rest[min(1, len(rest)):]
		default:
			literal(next())
		}
	}
	return b.String()
}

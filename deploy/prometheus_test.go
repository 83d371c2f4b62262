package deploy

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

// need gives the path of a program that Debian has in a package.
func need(t *testing.T, program, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("LVSGUARD_PRIVILEGED") == "1" {
		t.Fatalf("%v (this run must have it: install %s)", err, pkg)
	}
	t.Skipf("%v (install %s)", err, pkg)
	return ""
}

// tool runs a program in a folder, and wants it to find nothing wrong.
func tool(t *testing.T, dir, program, pkg string, args ...string) string {
	t.Helper()
	cmd := exec.Command(need(t, program, pkg), args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func promtool(t *testing.T, dir string, args ...string) string {
	t.Helper()
	return tool(t, dir, "promtool", "prometheus", args...)
}

const (
	rulesFile        = "prometheus/lvsguard-rules.yml"
	alertmanagerFile = "prometheus/alertmanager.yml"
)

// What is here is what lvsguard export writes for the defaults.
func TestExported(t *testing.T) {
	cfg := guard.DefaultConfig().Alerts
	rules, err := alert.PrometheusRules(cfg.Rules, "lvsguard")
	if err != nil {
		t.Fatal(err)
	}
	manager, left, err := alert.AlertmanagerConfig(cfg)
	if err != nil || len(left) > 0 {
		t.Fatal(err, left)
	}
	for name, got := range map[string][]byte{rulesFile: rules, alertmanagerFile: manager} {
		goldenfile.Check(t, name, string(got))
	}
}

// Prometheus and Alertmanager take the files as they are.
func TestFilesAreTaken(t *testing.T) {
	if out := promtool(t, "prometheus", "check", "config", "prometheus.yml"); !strings.Contains(out, "rules found") {
		t.Errorf("promtool has not looked at the rules:\n%s", out)
	}
	if out := tool(t, "prometheus", "amtool", "prometheus-alertmanager", "check-config", "alertmanager.yml"); !strings.Contains(out, "receivers") {
		t.Errorf("amtool has not looked at the receivers:\n%s", out)
	}
}

// A promRule is what the tests read of a rule.
type promRule struct {
	Record, Alert, Expr string
	Annotations         map[string]string
}

// readRules reads a file of rules.
func readRules(t *testing.T, name string) []promRule {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []promRule } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var all []promRule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// The rules do what they are to do, by testdata/rules; and for each alert there is
// a case in which it fires and one in which it does not.
func TestRules(t *testing.T) {
	files, err := filepath.Glob("testdata/rules/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	fires, silent := make(map[string]bool), make(map[string]bool)
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			promtool(t, filepath.Dir(name), "test", "rules", filepath.Base(name))
		})
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Tests []struct {
				Cases []struct {
					Alert  string `yaml:"alertname"`
					Alerts []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			}
		}
		if err := yaml.Unmarshal(text, &file); err != nil {
			t.Fatal(err)
		}
		for _, one := range file.Tests {
			for _, c := range one.Cases {
				if len(c.Alerts) > 0 {
					fires[c.Alert] = true
				} else {
					silent[c.Alert] = true
				}
			}
		}
	}
	for _, r := range readRules(t, rulesFile) {
		if r.Alert != "" && (!fires[r.Alert] || !silent[r.Alert]) {
			t.Errorf("%s: testdata/rules has a case in which it fires: %v, and one in which it does not: %v", r.Alert, fires[r.Alert], silent[r.Alert])
		}
	}
}

var metricName = regexp.MustCompile(`\b(?:instance:)?lvsguard_[a-z0-9_:]+`)

// metrics are the labels of what docs/metrics.md lists, and the guard has, by name.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `(lvsguard_[a-z0-9_]+)` \\| ([a-z]+) \\| ([a-z_, ]*) \\|").FindAllStringSubmatch(string(text), -1) {
		name, kind, labels := row[1], row[2], strings.FieldsFunc(row[3], func(r rune) bool { return r == ',' || r == ' ' })
		switch kind {
		case "histogram":
			all[name+"_bucket"] = append(slices.Clone(labels), "le")
			fallthrough
		case "summary":
			all[name+"_sum"], all[name+"_count"] = labels, labels
		default:
			all[name] = labels
		}
	}
	if len(all) < 100 {
		t.Fatalf("docs/metrics.md has %d metrics: this test reads it wrongly", len(all))
	}
	return all
}

// checkNames wants every metric of an expression to be there.
func checkNames(t *testing.T, where, expr string, known map[string][]string) {
	t.Helper()
	for _, name := range metricName.FindAllString(expr, -1) {
		if _, ok := known[name]; !ok && !strings.HasSuffix(name, "_") { // the beginning of a pattern
			t.Errorf("%s: there is no %s", where, name)
		}
	}
	for _, m := range regexp.MustCompile(`(\b(?:instance:)?lvsguard_[a-z0-9_:]+)\{([^}]*)\}`).FindAllStringSubmatch(expr, -1) {
		for _, matcher := range strings.Split(m[2], ",") {
			label := regexp.MustCompile(`^[a-z_]*`).FindString(strings.TrimSpace(matcher))
			may := append([]string{"", "job", "instance", "project"}, known[m[1]]...) // those of the host, too
			if strings.Contains(m[1], "handshake_") {
				may = append(may, "service", "filter") // one half of a sum has one, the other half the other
			}
			if !slices.Contains(may, label) {
				t.Errorf("%s: %s has no label %s", where, m[1], label)
			}
		}
	}
}

// The metrics that the rules are about are the guard's.
func TestRulesNames(t *testing.T) { checkRules(t, readRules(t, rulesFile)) }

func checkRules(t *testing.T, rules []promRule) {
	t.Helper()
	known := metrics(t)
	for _, r := range rules {
		if r.Record != "" {
			known[r.Record] = []string{"rule", "project", "service", "filter", "resource", "kind", "vrrp_instance", "server", "source", "part"}
		}
	}
	for _, r := range rules {
		checkNames(t, r.Alert+r.Record, r.Expr, known)
		for _, name := range slices.Sorted(maps.Keys(r.Annotations)) {
			checkNames(t, r.Alert+" "+name, r.Annotations[name], known)
		}
	}
}

// Prometheus takes a rule of each figure there is, with everything that a rule can
// have, and knows what it is about.
func TestRuleOfEachFigure(t *testing.T) {
	var rules []guard.AlertRule
	for _, f := range guard.AlertFigures() {
		r := guard.AlertRule{
			Name: "of." + f.Name, Enabled: true, Figure: f.Name, Severity: alert.Info, By: f.By, Match: make(map[string]string),
			Above: new(0.5), Below: new(1e6), For: 90 * time.Second, Keep: time.Hour,
		}
		for _, l := range f.Labels {
			r.Match[l] = `!a.b*?[c-e]\*"`
		}
		if f.Kind == guard.Counter {
			r.Window = 10 * time.Second
		}
		if f.ShareOf != "" {
			r.Share = 0.25
		}
		bare := guard.AlertRule{Name: "bare." + f.Name, Enabled: true, Figure: f.Name, Severity: alert.Critical, By: []string{}, Window: r.Window, Below: new(0.0)}
		rules = append(rules, r, bare)
	}
	text, err := alert.PrometheusRules(rules, "lvsguard")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "rules.yml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, dir, "check", "rules", "rules.yml")
	checkRules(t, readRules(t, file))
}

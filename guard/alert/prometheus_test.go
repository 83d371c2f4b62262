package alert

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard"
)

// What rules can be about is at Prometheus too.
func TestPromFigures(t *testing.T) {
	var names []string
	for _, f := range guard.AlertFigures() {
		names = append(names, f.Name)
		s := promFigures()[f.Name]
		if (f.ShareOf != "") != (s.total != "") {
			t.Errorf("%s: a share of %q, and %q at Prometheus", f.Name, f.ShareOf, s.total)
		}
		if (f.Kind == guard.Counter) != strings.Contains(s.value, "[$window]") && !strings.Contains(s.value, "rate(") {
			t.Errorf("%s: a %s, and at Prometheus %s", f.Name, f.Kind, s.value)
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff(names, slices.Sorted(maps.Keys(promFigures()))); diff != "" {
		t.Errorf("figures (-catalogue +Prometheus):\n%s", diff)
	}
}

// records are the expressions of the rules that are made of one.
func records(t *testing.T, r guard.AlertRule) string {
	t.Helper()
	f := slices.IndexFunc(guard.AlertFigures(), func(f guard.Figure) bool { return f.Name == r.Figure })
	all := fleetRule{&r, guard.AlertFigures()[f], promFigures()[r.Figure]}.rules()
	var b strings.Builder
	for _, one := range all {
		b.WriteString(one.Record + one.Alert + " = " + one.Expr + "\n")
	}
	return b.String()
}

func TestFleetRules(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule guard.AlertRule
		want string
	}{
		{
			"a sum over hosts, by project",
			guard.AlertRule{Name: "slow", Figure: "syn_per_second", By: []string{"project"}, Above: new(1000.0)},
			`instance:lvsguard_rule:value = sum by (job, instance, project) (rate(lvsguard_service_syn_packets_total[1m]))
lvsguard_rule:value = sum by (rule, project) (instance:lvsguard_rule:value{rule="slow"})
slow = lvsguard_rule:value{rule="slow"} > 1000
`,
		},
		{
			"of what makes no sum the farthest: below, that is the least",
			guard.AlertRule{Name: "lost", Figure: "completion", By: []string{"project"}, Match: map[string]string{"project": "!lab*"}, Below: new(0.5)},
			`instance:lvsguard_rule:value = min by (job, instance, project) (
  increase(lvsguard_service_handshake_outcomes_total{outcome="success",project!~"lab.*"}[1m])
    / ignoring (outcome) sum without (outcome) (increase(lvsguard_service_handshake_outcomes_total{project!~"lab.*"}[1m]))
)
lvsguard_rule:value = min by (rule, project) (instance:lvsguard_rule:value{rule="lost"})
lost = lvsguard_rule:value{rule="lost"} < 0.5
`,
		},
		{
			"a host's own",
			guard.AlertRule{Name: "full", Figure: "pressure_share", By: []string{"resource"}, Match: map[string]string{"kind": "conntrack"}, Above: new(0.5), Below: new(0.9)},
			`instance:lvsguard_rule:value = max by (job, instance, resource) (lvsguard_resource_share{kind=~"conntrack"})
full = instance:lvsguard_rule:value{rule="full"} > 0.5 < 0.9
`,
		},
		{
			"two directors tell of the same server",
			guard.AlertRule{Name: "cookies", Figure: "server_syncookies_per_second", By: []string{"server"}, Match: map[string]string{"server": "192.0.2.*"}, Above: new(10.0)},
			`instance:lvsguard_rule:value = sum by (job, instance, server) (label_replace(rate(lvsguard_server_syncookies_sent_total{address=~"192\\.0\\.2\\..*"}[1m]), "server", "$1", "address", "(.*)"))
lvsguard_rule:value = max by (rule, server) (instance:lvsguard_rule:value{rule="cookies"})
cookies = lvsguard_rule:value{rule="cookies"} > 10
`,
		},
		{
			"by VRRP instance, which services do not have as a label",
			guard.AlertRule{Name: "vi", Figure: "flood", By: []string{"instance"}, Match: map[string]string{"instance": "VI_*", "service": "192.0.2.1:*"}, Above: new(0.0)},
			`instance:lvsguard_rule:value = max by (job, instance, vrrp_instance) (
  (
    last_over_time(lvsguard_service_verdict{service=~"192\\.0\\.2\\.1:.*"}[10m]) >= bool 2
  ) * on (job, instance, service) group_left (vrrp_instance) lvsguard_service_info{vrrp_instance=~"VI_.*"}
)
lvsguard_rule:value = max by (rule, vrrp_instance) (instance:lvsguard_rule:value{rule="vi"})
vi = lvsguard_rule:value{rule="vi"} > 0
`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, records(t, tt.rule)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if text, err := PrometheusRules([]guard.AlertRule{{Name: "off", Figure: "flood"}}, "lvsguard"); err != nil || strings.Contains(string(text), "off") {
		t.Errorf("a rule that is switched off: %v\n%s", err, text)
	}
	if _, err := PrometheusRules([]guard.AlertRule{{Name: "new", Enabled: true, Figure: "floods"}}, "lvsguard"); err == nil || !strings.Contains(err.Error(), `no figure "floods"`) {
		t.Errorf("a figure that there is not: %v", err)
	}
}

// A pattern means the same at Prometheus.
func FuzzRegexOf(f *testing.F) {
	f.Add("shop/api*", "shop/api-2")
	f.Add("[a-c]?", "b/")
	f.Add(`[^a\]]\*.`, "b*.")
	f.Add("*.example.net:443", "api.example.net:443")
	f.Fuzz(func(t *testing.T, pattern, label string) {
		if _, err := path.Match(pattern, ""); err != nil || strings.ContainsAny(label, "\n\x00\ufffd") || strings.HasPrefix(pattern, "!") ||
			strings.ContainsAny(pattern, "/\x00\ufffd") {
			return // no rule has it; and in a class a slash is another sign to the guard
		}
		re, err := regexp.Compile("^(?:" + regexOf(pattern) + ")$")
		if err != nil {
			t.Fatalf("%q makes %q: %v", pattern, regexOf(pattern), err)
		}
		r := guard.AlertRule{Match: map[string]string{"filter": pattern}}
		if want := r.Matches(guard.FigureLabels{Filter: label}); re.MatchString(label) != want {
			t.Errorf("%q as %q: %v of %q, want %v", pattern, re, !want, label, want)
		}
	})
}

// Limits are told as people write them.
func TestFleetSentence(t *testing.T) {
	figures := make(map[string]guard.Figure)
	for _, f := range guard.AlertFigures() {
		figures[f.Name] = f
	}
	for _, tt := range []struct {
		rule guard.AlertRule
		want string
	}{
		{guard.AlertRule{Figure: "pressure_share", Above: new(0.07)}, " used, threshold 7%"},
		{guard.AlertRule{Figure: "completion", Below: new(0.9)}, " of handshakes completed, threshold 90%"},
		{guard.AlertRule{Figure: "syn_per_second", Above: new(1500.0)}, "/s SYNs, threshold 1500/s"},
		{guard.AlertRule{Figure: "handshakes_failed", Window: 90 * time.Second, Above: new(0.0)}, " handshakes failed in 1m30s"},
	} {
		if got := (fleetRule{AlertRule: &tt.rule, figure: figures[tt.rule.Figure]}).sentence(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.rule.Figure, got, tt.want)
		}
	}
}

func TestPromDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 10 * time.Second: "10s", 90 * time.Second: "1m30s", 4 * time.Hour: "4h", 25*time.Hour + 1500*time.Millisecond: "25h1s500ms",
	} {
		if got := promDuration(d).String(); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

// What is configured for hosts goes into Alertmanager's configuration, as far as
// there is an equal.
func TestAlertmanagerConfig(t *testing.T) {
	cfg := guard.AlertsConfig{
		GroupBy: []string{"project", "rule", "host", "instance"}, Repeat: time.Hour,
		Receivers: []guard.ReceiverConfig{
			{Name: "oncall", Severities: []guard.Severity{Critical, Warning}, Projects: []string{"shop", "api.x"}, Slack: &guard.SlackConfig{URLFile: "/s", CAFile: "/ca"}},
			{Name: "second", Slack: &guard.SlackConfig{URLFile: "/t"}},
			{Name: "hook", Webhook: &guard.WebhookConfig{URL: "https://hook.example.net"}},
			{Name: "mail", Mail: &guard.MailConfig{To: []string{"a@example.net", "b@example.net"}, From: "c@example.net", Server: "smtp.example.net:465", TLS: guard.MailWithTLS, CAFile: "/ca"}},
		},
		Rules: []guard.AlertRule{
			{Name: "alone", Enabled: true, Figure: "flood", GroupBy: []string{"service"}},
			{Name: "together", Enabled: true, Figure: "flood", GroupBy: []string{}},
			{Name: "off", Figure: "flood", GroupBy: []string{"service"}},
		},
	}
	text, left, err := AlertmanagerConfig(cfg)
	if err != nil || !slices.Equal(left, []string{"hook"}) {
		t.Fatal(left, err)
	}
	var kept strings.Builder // all but the templates
	deep := -1
	for line := range strings.Lines(string(text)) {
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if deep >= 0 && (indent > deep || strings.TrimSpace(line) == "") {
			continue
		}
		deep = -1
		if head, found := strings.CutSuffix(line, " |-\n"); found {
			line, deep = head+"\n", indent
		}
		kept.WriteString(line)
	}
	got := kept.String()
	got = regexp.MustCompile(`(color: ).*`).ReplaceAllString(got, "$1…")
	const ways = `      routes:
        - matchers:
            - alertname="alone"
          group_by: [service]
        - matchers:
            - alertname="together"
          group_by: [alertname]
`
	want := `# Made by lvsguard export alertmanager. It needs Alertmanager 0.25 or newer.
route:
  receiver: no one
  group_by: [project, alertname, instance, vrrp_instance]
  group_wait: 30s
  group_interval: 5m
  repeat_interval: 1h
  routes:
    - receiver: oncall
      matchers:
        - severity=~"critical|warning"
        - project=~"shop|api\\.x"
      continue: true
` + ways + `    - receiver: second
      continue: true
` + ways + `    - receiver: mail
      continue: true
` + ways + `receivers:
  - name: oncall
    slack_configs:
      - api_url_file: /s
        http_config:
          tls_config:
            ca_file: /ca
        send_resolved: true
        color: …
        title: &slack_head
        fallback: *slack_head
        text: &slack_body
        mrkdwn_in: [pretext]
  - name: second
    slack_configs:
      - api_url_file: /t
        send_resolved: true
        color: …
        title: *slack_head
        fallback: *slack_head
        text: *slack_body
        mrkdwn_in: [pretext]
  - name: mail
    email_configs:
      - to: a@example.net, b@example.net
        from: c@example.net
        smarthost: smtp.example.net:465
        require_tls: false
        tls_config:
          ca_file: /ca
        send_resolved: true
        headers:
          Subject: &mail_head
          Auto-Submitted: auto-generated
        text: &mail_body
        html: ""
  - name: no one
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	cfg.Receivers[3].Mail.Server = "smtp.example.net:587"
	if _, _, err := AlertmanagerConfig(cfg); err == nil || !strings.Contains(err.Error(), "receiver mail: ") {
		t.Errorf("TLS from the first byte on to another port: %v", err)
	}
}

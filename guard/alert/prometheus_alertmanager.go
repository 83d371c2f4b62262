package alert

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lvsguard/lvsguard/guard"
)

// This file writes Alertmanager's configuration. The keys are those of
// https://prometheus.io/docs/alerting/latest/configuration/, as of 0.25.

type amConfig struct {
	Route     amRoute      `yaml:"route"`
	Inhibit   []amInhibit  `yaml:"inhibit_rules,omitempty"`
	Receivers []amReceiver `yaml:"receivers"`
}

type amRoute struct {
	Receiver       string       `yaml:"receiver,omitempty"`
	Matchers       []string     `yaml:"matchers,omitempty"`
	GroupBy        []string     `yaml:"group_by,flow,omitempty"`
	GroupWait      promDuration `yaml:"group_wait,omitempty"`
	GroupInterval  promDuration `yaml:"group_interval,omitempty"`
	RepeatInterval promDuration `yaml:"repeat_interval,omitempty"`
	Continue       bool         `yaml:"continue,omitempty"`
	Routes         []amRoute    `yaml:"routes,omitempty"`
}

type amInhibit struct {
	Source []string `yaml:"source_matchers"`
	Target []string `yaml:"target_matchers"`
	Equal  []string `yaml:"equal,flow"`
}

type amReceiver struct {
	Name  string    `yaml:"name"`
	Slack []amSlack `yaml:"slack_configs,omitempty"`
	Mail  []amMail  `yaml:"email_configs,omitempty"`
}

type amSlack struct {
	URLFile  string     `yaml:"api_url_file"`
	HTTP     *amHTTP    `yaml:"http_config,omitempty"`
	Resolved bool       `yaml:"send_resolved"`
	Colour   string     `yaml:"color"`
	Title    *yaml.Node `yaml:"title"`
	Fallback *yaml.Node `yaml:"fallback"`
	Text     *yaml.Node `yaml:"text"`
	Markdown []string   `yaml:"mrkdwn_in,flow"`
}

type amHTTP struct {
	TLS amTLS `yaml:"tls_config"`
}

type amTLS struct {
	CAFile string `yaml:"ca_file"`
}

type amMail struct {
	To           string     `yaml:"to"`
	From         string     `yaml:"from"`
	Smarthost    string     `yaml:"smarthost"`
	Username     string     `yaml:"auth_username,omitempty"`
	PasswordFile string     `yaml:"auth_password_file,omitempty"`
	RequireTLS   bool       `yaml:"require_tls"`
	TLS          *amTLS     `yaml:"tls_config,omitempty"`
	Resolved     bool       `yaml:"send_resolved"`
	Headers      amHeaders  `yaml:"headers"`
	Text         *yaml.Node `yaml:"text"`
	HTML         string     `yaml:"html"` // empty: Alertmanager's own would be sent else
}

type amHeaders struct {
	Subject *yaml.Node `yaml:"Subject"`
	Auto    string     `yaml:"Auto-Submitted"` // RFC 3834
}

// AlertmanagerConfig writes a configuration for the Alertmanager of a fleet: it
// groups as cfg does and tells cfg's Slack and mail receivers. Where cfg has
// neither, both are there to be filled in. Left are the names of receivers that an
// Alertmanager has no equal of.
func AlertmanagerConfig(cfg guard.AlertsConfig) (text []byte, left []string, err error) {
	am := amConfig{Route: amRoute{
		// No receiver of cfg can have that name.
		Receiver: "no one", GroupBy: promLabels(cfg.GroupBy),
		GroupWait: promDuration(30 * time.Second), GroupInterval: promDuration(5 * time.Minute), RepeatInterval: promDuration(cfg.Repeat),
	}}
	var told []guard.ReceiverConfig
	for _, r := range cfg.Receivers {
		if r.Slack == nil && r.Mail == nil {
			left = append(left, r.Name)
			continue
		}
		told = append(told, r)
	}
	head := "# Made by lvsguard export alertmanager. It needs Alertmanager 0.25 or newer.\n"
	if len(told) == 0 {
		told = placeholders()
		head += "# No Slack and no mail receiver is configured: fill in those below.\n"
	}
	texts := newAMTexts()
	for i := range told {
		r, err := receiverOf(&told[i], texts)
		if err != nil {
			return nil, nil, err
		}
		am.Receivers = append(am.Receivers, r)
		am.Route.Routes = append(am.Route.Routes, routeTo(&told[i], cfg.Rules))
	}
	am.Receivers = append(am.Receivers, amReceiver{Name: am.Route.Receiver})
	am.Inhibit = inhibitions(cfg.Rules)
	text, err = marshalYAML(am)
	return append([]byte(head), text...), left, err
}

// placeholders stand for receivers that nobody has named yet.
func placeholders() []guard.ReceiverConfig {
	return []guard.ReceiverConfig{
		{Name: "slack", Slack: &guard.SlackConfig{URLFile: "/etc/prometheus/slack.url"}},
		{Name: "mail", Mail: &guard.MailConfig{
			To: []string{"oncall@example.net"}, From: "alertmanager@example.net", Server: "smtp.example.net:587", TLS: guard.MailStartTLS,
			Username: "alertmanager", PasswordFile: "/etc/prometheus/smtp.password",
		}},
	}
}

func promLabels(names []string) []string {
	var all []string
	for _, l := range names {
		all = append(all, promLabel(l))
	}
	return all
}

func receiverOf(r *guard.ReceiverConfig, texts *amTexts) (amReceiver, error) {
	out := amReceiver{Name: r.Name}
	if s := r.Slack; s != nil {
		slack := amSlack{
			URLFile: s.URLFile, Resolved: true, Colour: amColour,
			Title: texts.slackHead.use(), Fallback: texts.slackHead.use(), Text: texts.slackBody.use(),
			Markdown: []string{"pretext"}, // there is none: nothing is formatted
		}
		if s.CAFile != "" {
			slack.HTTP = &amHTTP{amTLS{s.CAFile}}
		}
		out.Slack = []amSlack{slack}
	}
	if m := r.Mail; m != nil {
		if m.TLS == guard.MailWithTLS && !strings.HasSuffix(m.Server, ":465") {
			return out, fmt.Errorf("receiver %s: Alertmanager speaks TLS from the first byte on to port 465 alone: want server %q with that port, or tls: starttls", r.Name, m.Server)
		}
		mail := amMail{
			To: strings.Join(m.To, ", "), From: m.From, Smarthost: m.Server, Username: m.Username, PasswordFile: m.PasswordFile,
			RequireTLS: m.TLS == guard.MailStartTLS, Resolved: true,
			Headers: amHeaders{texts.mailHead.use(), "auto-generated"}, Text: texts.mailBody.use(),
		}
		if m.CAFile != "" {
			mail.TLS = &amTLS{m.CAFile}
		}
		out.Mail = []amMail{mail}
	}
	return out, nil
}

// routeTo leads to a receiver what it is to be told of. The alerts of a rule that
// is grouped in a way of its own have a way of their own.
func routeTo(r *guard.ReceiverConfig, rules []guard.AlertRule) amRoute {
	route := amRoute{Receiver: r.Name, Continue: true}
	oneOf := func(label string, values []string) {
		if len(values) > 0 {
			route.Matchers = append(route.Matchers, label+"=~"+strconv.Quote(strings.Join(values, "|")))
		}
	}
	var names, projects []string
	for _, s := range r.Severities {
		names = append(names, string(s))
	}
	for _, p := range r.Projects {
		projects = append(projects, regexp.QuoteMeta(p))
	}
	oneOf("severity", names)
	oneOf("project", projects)
	for i := range rules {
		if rule := &rules[i]; rule.Enabled && rule.GroupBy != nil {
			by := promLabels(rule.GroupBy)
			if len(by) == 0 {
				by = []string{"alertname"} // an empty list is what the route above has
			}
			route.Routes = append(route.Routes, amRoute{Matchers: []string{"alertname=" + strconv.Quote(rule.Name)}, GroupBy: by})
		}
	}
	return route
}

// inhibitions keep an alert quiet while a graver one of the same figure and the same
// subject fires.
func inhibitions(rules []guard.AlertRule) []amInhibit {
	var all []amInhibit
	for i := range rules {
		for j := range rules {
			mild, bad := &rules[i], &rules[j]
			if !mild.Enabled || !bad.Enabled || mild.Figure != bad.Figure || !slices.Equal(mild.By, bad.By) ||
				rank(mild.Severity) >= rank(bad.Severity) {
				continue
			}
			same := fleetRule{AlertRule: mild, prom: promFigures()[mild.Figure]}.labels()
			all = append(all, amInhibit{
				Source: []string{"alertname=" + strconv.Quote(bad.Name)}, Target: []string{"alertname=" + strconv.Quote(mild.Name)}, Equal: same,
			})
		}
	}
	return all
}

// Alertmanager's templates: what, where and how grave in the head; how much, since
// when and seen by how many in the body, and the command to look further. A
// telephone shows at most five alerts, the gravest first. What does not print
// becomes a replacement character; for Slack what it would make a mention or a link
// of is taken its meaning.
var (
	//go:embed templates/text.tmpl
	amPlain string
	//go:embed templates/slack.tmpl
	amEscaped string
	//go:embed templates/head.tmpl
	amHead string
	//go:embed templates/body.tmpl
	amBody string
)

// amColour is beside the words of the head, never instead of them.
const amColour = `{{ if eq .Status "resolved" }}#2e7d32{{ else }}{{ $c := "#ef6c00" }}` +
	`{{ range .Alerts.Firing }}{{ if eq .Labels.severity "critical" }}{{ $c = "#c62828" }}{{ end }}{{ end }}{{ $c }}{{ end }}`

type amTexts struct{ slackHead, slackBody, mailHead, mailBody piece }

func newAMTexts() *amTexts {
	return &amTexts{
		slackHead: piece{name: "slack_head", text: amEscaped + amHead}, slackBody: piece{name: "slack_body", text: amEscaped + amBody},
		mailHead: piece{name: "mail_head", text: amPlain + amHead}, mailBody: piece{name: "mail_body", text: amPlain + amBody},
	}
}

// A piece is a text that stands in the file once; where it comes again is an alias.
type piece struct {
	name, text string
	node       *yaml.Node
}

func (p *piece) use() *yaml.Node {
	if p.node != nil {
		return &yaml.Node{Kind: yaml.AliasNode, Value: p.name, Alias: p.node}
	}
	p.node = &yaml.Node{Kind: yaml.ScalarNode, Style: yaml.LiteralStyle, Anchor: p.name, Value: strings.TrimSpace(p.text)}
	return p.node
}

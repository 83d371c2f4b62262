package alert

import (
	"context"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// An Alertmanager is posted the alerts of a Notification one by one, to its API
// v2. It groups and repeats by itself.
type Alertmanager struct {
	cfg guard.AlertmanagerConfig
	// lasts is how long it is to take an alert for firing that it hears no more of:
	// until the next repetition is overdue.
	lasts time.Duration
}

// NewAlertmanager returns a Receiver for an Alertmanager that is told again each
// repeat of what lasts.
func NewAlertmanager(cfg guard.AlertmanagerConfig, repeat time.Duration) *Alertmanager {
	return &Alertmanager{cfg: cfg, lasts: repeat + repeat/4 + 5*time.Minute}
}

// postableAlert is of Alertmanager's OpenAPI, api/v2/openapi.yaml.
type postableAlert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"`
}

// Send posts the alerts of n.
func (a *Alertmanager) Send(ctx context.Context, n Notification) error {
	u, err := parseURL("url", a.cfg.URL)
	if err != nil {
		return err
	}
	p := post{url: u.JoinPath("api/v2/alerts"), say: a.alerts(&n), caFile: a.cfg.CAFile}
	switch {
	case a.cfg.BearerTokenFile != "":
		p.bearer, err = readSecret("bearer_token_file", a.cfg.BearerTokenFile)
	case a.cfg.Username != "":
		p.user = a.cfg.Username
		p.pass, err = readSecret("password_file", a.cfg.PasswordFile)
	}
	if err != nil {
		return err
	}
	return p.do(ctx)
}

func (a *Alertmanager) alerts(n *Notification) []postableAlert {
	tell := n.Alerts
	if n.State == Test && len(tell) == 0 {
		tell = []Alert{{Rule: "test", Severity: n.Severity, Subject: "lvsguard", Summary: "this receiver works", Since: n.Time}}
	}
	all := make([]postableAlert, 0, len(tell))
	for _, one := range tell {
		labels := make(map[string]string)
		put := func(name, value string) {
			if value = clean(value, 200); value != "" { // an empty one is none
				labels[labelName(name)] = value
			}
		}
		for _, given := range []map[string]string{n.Labels, one.Labels} {
			for name, value := range given {
				if name == "instance" { // in Prometheus' world that is the host
					name = "vrrp_instance"
				}
				put(name, value)
			}
		}
		put("alertname", one.Rule)
		put("severity", string(one.Severity))
		put("subject", one.Subject)
		put("instance", n.Host)

		alone := *n
		alone.Alerts, alone.More, alone.Subjects = []Alert{one}, 0, 1
		p := postableAlert{
			Labels:   labels,
			StartsAt: one.Since,
			EndsAt:   n.Time.Add(a.lasts),
			Annotations: map[string]string{
				"summary":     clean(what(&one)+": "+one.Summary, 300),
				"description": strings.Join(describe(&alone), "\n"),
				"look":        clean(n.Look, 200),
				"group":       clean(n.Group, 200),
			},
		}
		switch {
		case !one.Until.IsZero():
			p.EndsAt = one.Until
		case n.State == Resolved:
			p.EndsAt = n.Until
		case n.State == Test:
			p.EndsAt = n.Time.Add(5 * time.Minute)
		}
		all = append(all, p)
	}
	return all
}

// labelName makes a name that Prometheus allows in all versions:
// [a-zA-Z_][a-zA-Z0-9_]*, and not with two underscores before it.
func labelName(name string) string {
	valid := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
	valid = strings.TrimLeft(valid, "_")
	if valid == "" || valid[0] >= '0' && valid[0] <= '9' {
		valid = "label_" + valid
	}
	return valid
}

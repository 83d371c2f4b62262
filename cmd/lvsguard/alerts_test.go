package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
)

func TestAlertsScreen(t *testing.T) {
	shop := alert.Notification{
		ID: "lb1/20260102T115500.000000000Z/project=shop", Group: "project=shop", Labels: map[string]string{"project": "shop"}, State: alert.Firing, Severity: alert.Critical,
		Host: "lb1", Time: noon, Since: ago(5 * time.Minute), Subjects: 2, More: 3, Actions: []string{"armed 192.0.2.1:80 (auto)"}, Look: "lvsguard status",
		Alerts: []alert.Alert{
			{Rule: "flood", Severity: alert.Critical, Subject: "192.0.2.1:80", Summary: "487123 of 497123 SYN/s bear a signature (threshold 1000/s and 50%)", Since: ago(5 * time.Minute)},
			{Rule: "syn-retransmitted", Severity: alert.Warning, Subject: "shop/api and 2 more", Summary: "212 handshakes with a retransmitted SYN in 1m, 8% of those that ended (at least 5%)", Since: ago(time.Minute), Value: 212, Threshold: 50},
			{Rule: "armed", Severity: alert.Warning, Subject: "192.0.2.9:80", Summary: "SYNs with a signature are dropped, by auto", Since: ago(5 * time.Minute), Until: ago(20 * time.Second)},
		},
	}
	over := alert.Notification{
		Group: "host=lb1", State: alert.Firing, Severity: alert.Warning, Host: "lb1", Since: ago(time.Hour), Look: "lvsguard doctor",
		Alerts: []alert.Alert{{Rule: "config-refused", Severity: alert.Warning, Summary: `line 3: unknown key "rte"`, Since: ago(time.Hour), Until: ago(time.Second)}},
	}
	receivers := []alert.ReceiverHealth{
		{Receiver: "oncall", Delivered: 12, LastDelivered: ptr(ago(90 * time.Second))},
		{Receiver: "mail-with-a-name-longer-than-the-column", Queued: 3, Lost: 1, FailedTry: 9, FailingSince: ptr(ago(600 * time.Second)), Error: ptr("dial tcp 192.0.2.25:587: connect: connection refused, which is what a mail server says that is not there")},
		{Receiver: "hook"},
	}
	for name, r := range map[string]*alert.Report{
		"alerts-none":  {Time: ptr(noon)},
		"alerts-start": {},
		"alerts-stale": {Time: ptr(ago(time.Minute)), Receivers: receivers[:1]},
		"alerts":       {Time: ptr(noon), Groups: []alert.Notification{shop, over}, Receivers: receivers, LeftOut: 7},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			writeAlerts(&out, r, noon)
			golden(t, name, out.String())
		})
	}
}

// The default rules, as an operator sees them first.
func TestAlertRulesScreen(t *testing.T) {
	cfg := guard.DefaultConfig().Alerts
	cfg.Rules[0].Match = map[string]string{"service": "!192.0.2.9:*"}
	e := alert.NewEngine("lb1", cfg)
	e.Evaluate(noon, &guard.Status{Time: noon, Unknown: map[guard.Source]string{guard.SourceCapture: "CAP_NET_RAW is missing"}})
	var out bytes.Buffer
	writeAlertRules(&out, e.Report(noon, guard.Observe))
	golden(t, "alerts-rules", out.String())
}

func TestAlertsJSONKeys(t *testing.T) {
	n := alert.Notification{Actions: []string{"a"}, Until: noon, Alerts: []alert.Alert{{Unit: "/s", Until: noon}}}
	wantKeys(t, "alerts", newAlertsJSON(&alert.Report{Groups: []alert.Notification{n}, Receivers: []alert.ReceiverHealth{{}}}), `
		time left_out groups groups.id groups.group groups.labels groups.state groups.severity groups.host groups.time groups.since groups.until
		groups.alerts groups.more groups.subjects groups.actions groups.look
		groups.alerts.rule groups.alerts.severity groups.alerts.subject groups.alerts.summary groups.alerts.value groups.alerts.threshold
		groups.alerts.unit groups.alerts.peak groups.alerts.labels groups.alerts.since groups.alerts.until
		receivers receivers.receiver receivers.queued_notifications receivers.delivered_notifications receivers.superseded_notifications
		receivers.lost_notifications receivers.failed_tries receivers.failing_since receivers.error receivers.last_delivered_at`)
	wantKeys(t, "alerts rules", []alert.RuleReport{{}}, `
		rule figure severity when match by group_by window_seconds above below share for_seconds keep_seconds firing_subjects unknown unknown_since`)
	wantKeys(t, "alerts figures", newFiguresJSON(), `
		figures figures.figure figures.kind figures.unit figures.help figures.share_of figures.labels figures.by`)
}

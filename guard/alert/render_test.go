package alert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"mime"
	"mime/multipart"
	"net/mail"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

var night = time.Date(2026, 11, 22, 3, 12, 7, 0, time.UTC)

// flooded is what most of the messages are about.
func flooded(state State, after time.Duration, alerts ...Alert) Notification {
	n := Notification{
		ID: "3f2a-77", Group: "project=shop", Labels: map[string]string{"project": "shop"},
		State: state, Severity: Critical, Host: "director1", Since: night, Time: night.Add(after),
		Alerts: alerts, Subjects: len(alerts), Look: "lvsguard status",
		Actions: []string{"armed 192.0.2.1:80"},
	}
	if state == Resolved {
		n.Until = n.Time
	}
	return n
}

var (
	synFlood = Alert{
		Rule: "flood", Severity: Critical, Subject: "192.0.2.1:80",
		Summary: "SYN flood: 52,110 of 52,300 SYNs/s have a flood's signature",
		Labels:  map[string]string{"project": "shop", "service": "192.0.2.1:80"}, Since: night, Value: 1, Peak: 1,
	}
	repeatedSYNs = Alert{
		Rule: "syn-retransmitted", Severity: Warning, Subject: "api.example.net:443",
		Summary: "212 SYNs retransmitted in 1m, 14% of all", Value: 212, Threshold: 50, Peak: 1830,
		Labels: map[string]string{"project": "shop"}, Since: night.Add(time.Minute),
	}
	memory = Alert{
		Rule: "pressure-share", Severity: Warning, Subject: "conntrack",
		Summary: "91% used", Value: 0.91, Threshold: 0.85, Peak: 0.97, Unit: "%",
		Since: night.Add(-time.Hour), Until: night.Add(4 * time.Minute),
	}
)

var nasty = Alert{
	Rule: "role-change", Severity: Warning, Subject: "<!channel> @Here *b* \u202egnp.exe\x1b[31m",
	Summary: "line one\r\nBcc: victim@example.net <https://evil.example|click> & \xff\xfe \U000e0041 \x00", Since: night,
}

func many(n int) []Alert {
	all := make([]Alert, n)
	for i := range all {
		all[i] = synFlood
		all[i].Subject = fmt.Sprintf("192.0.2.%d:80", i+1)
	}
	return all
}

func messages() map[string]Notification {
	all := map[string]Notification{
		"firing":        flooded(Firing, 4*time.Second, synFlood),
		"firing three":  flooded(Firing, 4*time.Minute, synFlood, repeatedSYNs, memory),
		"firing many":   flooded(Firing, 4*time.Second, many(20)...),
		"repeated":      flooded(Repeated, 4*time.Hour, synFlood),
		"resolved":      flooded(Resolved, 12*time.Minute+3*time.Second, synFlood),
		"resolved many": flooded(Resolved, 50*time.Hour, append([]Alert{repeatedSYNs, memory}, many(9)...)...),
		"nasty":         flooded(Firing, 0, nasty),
		"test": {
			ID: "test", State: Test, Severity: Info, Host: "director1", Since: night, Time: night,
			Look: "lvsguard alerts",
		},
	}
	n := all["firing many"]
	n.More, n.Subjects = 17, 37
	n.Actions = []string{"armed 192.0.2.1:80", "armed 192.0.2.2:80", "armed 192.0.2.3:80", "armed 192.0.2.4:80", "paused"}
	all["firing many"] = n
	n = all["nasty"]
	n.Group, n.Labels, n.Actions, n.Severity = "project=", map[string]string{"project": ""}, nil, Warning
	all["nasty"] = n
	return all
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	goldenfile.Check(t, filepath.Join("testdata", "messages", strings.ReplaceAll(name, " ", "_")+".golden"), got)
}

// written are a message's mail and what Slack is posted, for people to read.
func written(t *testing.T, head string, lines []string, colour string) string {
	t.Helper()
	l := letter{head: head, lines: lines, colour: colour}
	var slack bytes.Buffer
	enc := json.NewEncoder(&slack)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(slackOf(head, lines, colour)); err != nil {
		t.Fatal(err)
	}
	return "Subject: " + l.head + "\n\n" + l.text() + "\n--- HTML\n" + l.html() + "\n--- Slack\n" + slack.String()
}

func TestMessages(t *testing.T) {
	for name, n := range messages() {
		t.Run(name, func(t *testing.T) {
			golden(t, name, written(t, headline(&n), describe(&n), colour(&n)))
		})
	}
	t.Run("digest", func(t *testing.T) {
		var all []Notification
		for i := range 30 {
			n := flooded([]State{Firing, Repeated, Resolved}[i%3], time.Duration(i)*time.Minute, synFlood)
			n.Labels = map[string]string{"project": fmt.Sprint("shop", i)}
			all = append(all, n)
		}
		head, lines := digest(all)
		golden(t, "digest", written(t, head, lines, colour(&all[0])))
	})
}

// Whoever reads it on a telephone sees the headline whole, and need not scroll.
func TestMessagesAreShort(t *testing.T) {
	for name, n := range messages() {
		if h := headline(&n); name != "nasty" && len(h) > 90 {
			t.Errorf("%s: the headline has %d bytes: %s", name, len(h), h)
		}
		if lines := describe(&n); len(lines) > 10 {
			t.Errorf("%s has %d lines", name, len(lines))
		}
	}
}

func TestAmount(t *testing.T) {
	for _, tt := range []struct {
		v    float64
		unit string
		want string
	}{
		{0, "", "0"}, {0.125, "", "0.13"}, {99.5, "/s", "99.5/s"}, {100.4, "/s", "100/s"}, {1234567.8, "", "1,234,568"},
		{-1234, "ms", "-1,234 ms"}, {0.914, "%", "91.4%"}, {math.NaN(), "", "?"}, {math.Inf(1), "%", "?"},
		{math.MaxFloat64, "", "1.8e+308"}, {999999, "", "999,999"},
	} {
		if got := amount(tt.v, tt.unit); got != tt.want {
			t.Errorf("%v %s: %q, want %q", tt.v, tt.unit, got, tt.want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 1400 * time.Millisecond: "1s", 61 * time.Second: "1m1s",
		4*time.Hour + 59*time.Second: "4h", time.Minute: "1m", 90 * time.Minute: "1h30m", 50 * time.Hour: "2d2h", math.MaxInt64: "106751d23h",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// Whatever is in a notification: Slack sees neither mention nor link, a mail has
// no header that it should not have, and no line breaks where none belongs.
func FuzzRender(f *testing.F) {
	for _, n := range messages() {
		a := Alert{}
		if len(n.Alerts) > 0 {
			a = n.Alerts[0]
		}
		f.Add(n.Group, n.Host, string(n.Severity), string(n.State), a.Rule, a.Subject, a.Summary, a.Unit, n.Look, a.Value)
	}
	f.Add("\r\nBcc: x", "<@U1>", "\n", "firing", "&lt;", "@everyone", "http://x", "\r\n", "`<", math.Inf(-1))
	m := NewMail(guard.MailConfig{From: "lvsguard@example.net"})
	f.Fuzz(func(t *testing.T, group, host, severity, state, rule, subject, summary, unit, look string, value float64) {
		a := Alert{Rule: rule, Severity: Severity(severity), Subject: subject, Summary: summary, Unit: unit, Value: value, Threshold: 1, Peak: value}
		n := Notification{
			ID: group, Group: group, Labels: map[string]string{group: subject}, State: State(state), Severity: Severity(severity),
			Host: host, Time: night, Since: night, Alerts: []Alert{a, a}, Actions: []string{summary, subject}, Look: look,
		}
		head, lines := headline(&n), describe(&n)
		many, more := digest([]Notification{n, n})
		for _, l := range append(append([]string{head, many}, lines...), more...) {
			if !utf8.ValidString(l) || strings.ContainsFunc(l, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q is no line", l)
			}
		}

		s := slackOf(head, lines, colour(&n))
		for _, text := range []string{s.Text, s.Attachments[0].Fallback, s.Attachments[0].Blocks[0].Text.Text} {
			bare := strings.NewReplacer("&amp;", "", "&lt;", "", "&gt;", "").Replace(text)
			if strings.ContainsAny(bare, "<>&") || strings.Contains(bare, "://") || plainMention(bare) {
				t.Errorf("Slack would read more than text in %q", text)
			}
			if utf8.RuneCountInString(text) > 3000 {
				t.Errorf("%d characters", utf8.RuneCountInString(text))
			}
		}

		msg, err := m.message(letter{head: head, lines: lines, thread: n.ID, id: n.ID}, "oncall@example.net")
		if err != nil {
			t.Fatal(err)
		}
		var raw bytes.Buffer
		if _, err := msg.WriteTo(&raw); err != nil {
			t.Fatal(err)
		}
		checkMail(t, raw.Bytes(), head)

		for _, p := range NewAlertmanager(guard.AlertmanagerConfig{}, time.Hour).alerts(&n) {
			for name, value := range p.Labels {
				if !validLabel(name) || !utf8.ValidString(value) || value == "" {
					t.Errorf("label %q=%q", name, value)
				}
			}
		}
	})
}

func plainMention(s string) bool {
	s = strings.ToLower(s)
	for _, m := range []string{"@here", "@channel", "@everyone", "@group"} {
		if strings.Contains(s, m) {
			return true
		}
	}
	return false
}

func validLabel(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9' || i == 0) {
			return false
		}
	}
	return s != "" && !strings.HasPrefix(s, "__")
}

// checkMail reads a mail as another program would.
func checkMail(t *testing.T, raw []byte, subject string) (text, html string) {
	t.Helper()
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{
		"Date": true, "From": true, "To": true, "Subject": true, "Message-Id": true, "In-Reply-To": true, "References": true,
		"Auto-Submitted": true, "X-Auto-Response-Suppress": true, "Mime-Version": true, "Content-Type": true,
		"Importance": true, "Priority": true, "X-Priority": true, "X-Msmail-Priority": true,
	}
	for name, values := range msg.Header {
		if !allowed[name] || len(values) != 1 {
			t.Errorf("header %s: %q", name, values)
		}
	}
	got, err := new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject"))
	// Folding may widen or lose a space.
	if squeeze := func(s string) string { return strings.Join(strings.Fields(s), "") }; err != nil || squeeze(got) != squeeze(subject) {
		t.Errorf("subject %q, %v, want %q", got, err, subject)
	}
	if msg.Header.Get("Auto-Submitted") != "auto-generated" {
		t.Error("a machine would answer it")
	}
	_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	var texts []string
	for {
		part, err := parts.NextPart()
		if err != nil {
			break
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(part); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, strings.ReplaceAll(b.String(), "\r\n", "\n"))
	}
	if len(texts) != 2 {
		t.Fatalf("%d parts", len(texts))
	}
	return texts[0], texts[1]
}

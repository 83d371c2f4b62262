package guard

import (
	"fmt"
	"net"
	netmail "net/mail"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// This file is what the configuration says of alerts: who is told, and how often.

// AlertsConfig says what people are told, and where.
type AlertsConfig struct {
	// GroupBy are the labels whose values make a group: a group is one message.
	GroupBy []string `yaml:"group_by"`
	// Repeat is how often a group that lasts is told again.
	Repeat    time.Duration    `yaml:"repeat"`
	Receivers []ReceiverConfig `yaml:"receivers"`
	// Rules are all that are in force, and those that are switched off.
	Rules []AlertRule `yaml:"rules"`
}

// rawAlerts is AlertsConfig as it is written: the rules change the default ones.
type rawAlerts struct {
	GroupBy   []string         `yaml:"group_by"`
	Repeat    time.Duration    `yaml:"repeat"`
	Receivers []ReceiverConfig `yaml:"receivers"`
	Rules     []ruleNode       `yaml:"rules"`
}

// raw writes c as it is read.
func (c *AlertsConfig) raw() (rawAlerts, error) {
	raw := rawAlerts{GroupBy: c.GroupBy, Repeat: c.Repeat, Receivers: c.Receivers}
	for _, r := range c.Rules {
		var n ruleNode
		if err := n.Encode(r); err != nil {
			return raw, err
		}
		raw.Rules = append(raw.Rules, n)
	}
	return raw, nil
}

// fill takes what is written over what c has.
func (c *AlertsConfig) fill(raw rawAlerts) (err error) {
	c.GroupBy, c.Repeat, c.Receivers = raw.GroupBy, raw.Repeat, raw.Receivers
	if err := c.check(); err != nil {
		return err
	}
	c.Rules, err = mergeRules(c.Rules, raw.Rules)
	return err
}

// A ReceiverConfig is one place that is told. Exactly one of the pointers is set.
type ReceiverConfig struct {
	Name string `yaml:"name"`
	// Severities and Projects that are sent there; empty for all.
	Severities   []Severity          `yaml:"severities,omitempty,flow"`
	Projects     []string            `yaml:"projects,omitempty,flow"`
	Slack        *SlackConfig        `yaml:"slack,omitempty"`
	Mail         *MailConfig         `yaml:"mail,omitempty"`
	Webhook      *WebhookConfig      `yaml:"webhook,omitempty"`
	Alertmanager *AlertmanagerConfig `yaml:"alertmanager,omitempty"`
	Command      *CommandConfig      `yaml:"command,omitempty"`
}

// SlackConfig is an incoming webhook of Slack, or of what speaks as it does. Its
// URL is a secret.
type SlackConfig struct {
	URLFile string `yaml:"url_file"`
	CAFile  string `yaml:"ca_file,omitempty"`
}

// MailConfig is mail by SMTP.
type MailConfig struct {
	To     []string `yaml:"to,flow"`
	From   string   `yaml:"from"`
	Server string   `yaml:"server"` // host:port
	TLS    MailTLS  `yaml:"tls"`
	// Username and PasswordFile are given both, or neither.
	Username     string `yaml:"username,omitempty"`
	PasswordFile string `yaml:"password_file,omitempty"`
	CAFile       string `yaml:"ca_file,omitempty"`
}

// MailTLS says how the way to the mail server is secured.
type MailTLS string

// How the way to a mail server can be secured.
const (
	MailStartTLS MailTLS = "starttls" // required, not only tried
	MailWithTLS  MailTLS = "tls"      // from the first byte on
	MailClear    MailTLS = "none"
)

// WebhookConfig is a POST of the notification as JSON. Of URL and URLFile one is
// set.
type WebhookConfig struct {
	URL             string `yaml:"url,omitempty"`
	URLFile         string `yaml:"url_file,omitempty"`
	BearerTokenFile string `yaml:"bearer_token_file,omitempty"`
	CAFile          string `yaml:"ca_file,omitempty"`
}

// AlertmanagerConfig is an Alertmanager, by its base URL.
type AlertmanagerConfig struct {
	URL             string `yaml:"url"`
	BearerTokenFile string `yaml:"bearer_token_file,omitempty"`
	Username        string `yaml:"username,omitempty"`
	PasswordFile    string `yaml:"password_file,omitempty"`
	CAFile          string `yaml:"ca_file,omitempty"`
}

// CommandConfig is a program that gets the notification as JSON on its standard
// input. No shell has a part in it.
type CommandConfig struct {
	Argv []string `yaml:"argv,flow"`
}

// Severity says how soon somebody should look.
type Severity string

// The severities, the mildest first.
const (
	SeverityInfo     Severity = "info"
	SeverityWarning  Severity = "warning"
	SeverityCritical Severity = "critical"
)

// severities in their order.
var severities = [...]Severity{SeverityInfo, SeverityWarning, SeverityCritical}

// alertLabels are what a group can have in common, and what rules can ask for.
var alertLabels = [...]string{"project", "service", "filter", "resource", "kind", "instance", "server", "source", "host", "rule"}

const (
	maxReceivers = 32
	maxName      = 64
)

// checkName wants what can stand in a group's name, a subject line and a metric
// without being mistaken for something else.
func checkName(s string) error {
	bad := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-", r)
	}
	if s == "" || len(s) > maxName || strings.ContainsFunc(s, bad) {
		return fmt.Errorf("%q: want 1 to %d letters, digits, dots, dashes and underscores", s, maxName)
	}
	return nil
}

// check tells what is wrong with c.
func (c *AlertsConfig) check() error {
	if err := checkLabels(c.GroupBy); err != nil {
		return badKey(err.Error(), "alerts", "group_by")
	}
	if c.Repeat < time.Minute || c.Repeat > 7*24*time.Hour {
		return badKey("want a duration from 1m to 168h", "alerts", "repeat")
	}
	if len(c.Receivers) > maxReceivers {
		return badKey(fmt.Sprintf("%d: want at most %d", len(c.Receivers), maxReceivers), "alerts", "receivers")
	}
	names := make(map[string]bool)
	for i := range c.Receivers {
		r := &c.Receivers[i]
		at := []string{"alerts", "receivers", strconv.Itoa(i)}
		if err := r.check(at); err != nil {
			return err
		}
		if names[r.Name] {
			return badKey(fmt.Sprintf("name %q is taken: give each receiver its own", r.Name), at...)
		}
		names[r.Name] = true
	}
	return nil
}

func checkLabels(labels []string) error {
	for i, l := range labels {
		if !slices.Contains(alertLabels[:], l) {
			return fmt.Errorf("no label %q; there are: %s", l, strings.Join(alertLabels[:], ", "))
		}
		if slices.Contains(labels[:i], l) {
			return fmt.Errorf("%q is there twice", l)
		}
	}
	return nil
}

func (r *ReceiverConfig) check(at []string) error {
	bad := func(key, format string, args ...any) error {
		return badKey(fmt.Sprintf(format, args...), append(slices.Clone(at), strings.Split(key, ".")...)...)
	}
	if err := checkName(r.Name); err != nil {
		return bad("name", "%v", err)
	}
	for _, s := range r.Severities {
		if !slices.Contains(severities[:], s) {
			return bad("severities", "%q: want info, warning or critical", s)
		}
	}
	for _, p := range r.Projects {
		if err := checkName(p); err != nil {
			return bad("projects", "%v", err)
		}
	}
	kinds := 0
	for _, is := range []bool{r.Slack != nil, r.Mail != nil, r.Webhook != nil, r.Alertmanager != nil, r.Command != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return badKey(fmt.Sprintf("%q has %d of slack, mail, webhook, alertmanager and command: want exactly one", r.Name, kinds), at...)
	}
	switch {
	case r.Slack != nil:
		if r.Slack.URLFile == "" {
			return bad("slack.url_file", "empty: want the path of a file with the webhook's URL, which is a secret")
		}
	case r.Mail != nil:
		return r.Mail.check(bad)
	case r.Webhook != nil:
		if (r.Webhook.URL == "") == (r.Webhook.URLFile == "") {
			return bad("webhook", "want either url or, if it is a secret, url_file")
		}
		if r.Webhook.URL != "" {
			if err := checkURL(r.Webhook.URL); err != nil {
				return bad("webhook.url", "%v", err)
			}
		}
	case r.Alertmanager != nil:
		a := r.Alertmanager
		if err := checkURL(a.URL); err != nil {
			return bad("alertmanager.url", "%v", err)
		}
		if (a.Username == "") != (a.PasswordFile == "") {
			return bad("alertmanager", "username and password_file: want both or neither")
		}
		if a.Username != "" && a.BearerTokenFile != "" {
			return bad("alertmanager", "want either bearer_token_file or username and password_file")
		}
	case r.Command != nil:
		if argv := r.Command.Argv; len(argv) == 0 || !filepath.IsAbs(argv[0]) {
			return bad("command.argv", "want a program by its whole path, and its arguments")
		}
	}
	return nil
}

func (m *MailConfig) check(bad func(key, format string, args ...any) error) error {
	if m.TLS == "" {
		m.TLS = MailStartTLS
	}
	if len(m.To) == 0 {
		return bad("mail.to", "empty: want at least one address")
	}
	for _, to := range m.To {
		if err := checkMailAddress(to); err != nil {
			return bad("mail.to", "%v", err)
		}
	}
	if err := checkMailAddress(m.From); err != nil {
		return bad("mail.from", "%v", err)
	}
	if host, port, err := net.SplitHostPort(m.Server); err != nil || host == "" || port == "" {
		return bad("mail.server", "%q: want host and port, as smtp.example.net:587", m.Server)
	}
	switch m.TLS {
	case MailStartTLS, MailWithTLS, MailClear:
	default:
		return bad("mail.tls", "%q: want starttls, tls or none", m.TLS)
	}
	if (m.Username == "") != (m.PasswordFile == "") {
		return bad("mail", "username and password_file: want both or neither")
	}
	return nil
}

// checkMailAddress wants a bare address: it goes to the server as it is.
func checkMailAddress(s string) error {
	a, err := netmail.ParseAddress(s)
	if err != nil || a.Address != s {
		return fmt.Errorf("%q: want an address, as oncall@example.net", s)
	}
	return nil
}

// checkURL does not repeat what it refuses: there may be a password in it.
func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("want a URL that begins with http:// or https:// and names a host")
	case u.User != nil:
		return fmt.Errorf("no user and password in the URL: secrets come from files")
	}
	return nil
}

package guard

import (
	"bytes"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

var equateAddrs = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}, ipvs.Key{}),
	cmpopts.EquateEmpty(),
}

func mustKey(t testing.TB, s string) ipvs.Key {
	t.Helper()
	k, err := ipvs.ParseKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParseConfig(t *testing.T) {
	def := DefaultConfig()
	with := func(change func(*Config)) *Config {
		c := DefaultConfig()
		change(c)
		return c
	}
	tests := []struct {
		name, text string
		want       *Config
	}{
		{"empty", "", def},
		{"comments only", "# nothing\n", def},
		{"an empty section", "detect:\n", def},
		{"mode", "mode: auto", with(func(c *Config) { c.Mode = Auto })},
		{"thresholds", "detect: {rate: 50, for: 2s, clear_rate: 7}", with(func(c *Config) {
			c.Detect.Rate, c.Detect.For, c.Detect.ClearRate = 50, 2*time.Second, 7
		})},
		{"a service inherits what it does not set", `
detect: {share: 0.9}
services:
  "192.0.2.1:80": {detect: {rate: 50}}
`, with(func(c *Config) {
			c.Detect.Share = 0.9
			d := c.Detect
			d.Rate = 50
			c.Services = map[ipvs.Key]ServiceConfig{mustKey(t, "192.0.2.1:80"): {Detect: d}}
		})},
		{"a firewall mark's addresses", `
services:
  fwmark:7: {addresses: ["192.0.2.7:80", "[2001:db8::7]:*"]}
`, with(func(c *Config) {
			c.Services = map[ipvs.Key]ServiceConfig{mustKey(t, "fwmark:7"): {
				Detect:    c.Detect,
				Addresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:80"), netip.MustParseAddrPort("[2001:db8::7]:0")},
			}}
		})},
		{"metrics", `metrics: {listen: "[::]:9101", tls_cert_file: /etc/crt, tls_key_file: /etc/key, username: prometheus, password_file: /etc/password}`, with(func(c *Config) {
			c.Metrics = MetricsConfig{Listen: "[::]:9101", TLSCertFile: "/etc/crt", TLSKeyFile: "/etc/key", Username: "prometheus", PasswordFile: "/etc/password"}
		})},
		{"projects", `
project: infra
services:
  192.0.2.1:80: {project: shop}
`, with(func(c *Config) {
			c.Project = "infra"
			c.Services = map[ipvs.Key]ServiceConfig{mustKey(t, "192.0.2.1:80"): {Project: "shop", Detect: c.Detect}}
		})},
		{"receivers", `
alerts:
  group_by: [project, service]
  repeat: 1h
  receivers:
    - {name: oncall, slack: {url_file: /etc/slack}, severities: [critical, warning], projects: [shop]}
    - {name: mail, mail: {to: [a@example.net], from: g@example.net, server: "smtp:587"}}
    - {name: hook, webhook: {url: "https://h.example.net/x"}}
    - {name: am, alertmanager: {url: "http://192.0.2.30:9093"}}
    - {name: page, command: {argv: [/bin/page, -v]}}
`, with(func(c *Config) {
			c.Alerts.GroupBy, c.Alerts.Repeat = []string{"project", "service"}, time.Hour
			c.Alerts.Receivers = []ReceiverConfig{
				{Name: "oncall", Severities: []Severity{SeverityCritical, SeverityWarning}, Projects: []string{"shop"}, Slack: &SlackConfig{URLFile: "/etc/slack"}},
				{Name: "mail", Mail: &MailConfig{To: []string{"a@example.net"}, From: "g@example.net", Server: "smtp:587", TLS: MailStartTLS}},
				{Name: "hook", Webhook: &WebhookConfig{URL: "https://h.example.net/x"}},
				{Name: "am", Alertmanager: &AlertmanagerConfig{URL: "http://192.0.2.30:9093"}},
				{Name: "page", Command: &CommandConfig{Argv: []string{"/bin/page", "-v"}}},
			}
		})},
		{"rules", `
alerts:
  rules:
    - {name: flood, enabled: false}
    - {name: syn-retransmitted, above: 500, match: {filter: "shop/*"}}
    - {name: mine, figure: completion, below: 0.5, for: 30s, group_by: [service]}
`, with(func(c *Config) {
			c.Alerts.Rules[0].Enabled = false
			c.Alerts.Rules[3].Above, c.Alerts.Rules[3].Match = new(500.0), map[string]string{"filter": "shop/*"}
			c.Alerts.Rules = append(c.Alerts.Rules, AlertRule{
				Name: "mine", Enabled: true, Figure: "completion", Severity: SeverityWarning, By: []string{"project", "service"},
				Below: new(0.5), For: 30 * time.Second, Keep: time.Minute, GroupBy: []string{"service"},
			})
		})},
		{"watch and allow", `
watch: ["192.0.2.9:443"]
allow: [10.0.0.0/8, 192.0.2.9, "2001:db8::/32"]
`, with(func(c *Config) {
			c.Watch = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:443")}
			c.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.9/32"), netip.MustParsePrefix("2001:db8::/32")}
		})},
		{"signatures", `
signatures:
  - {name: window0, window: 0, length: 40}
  - {name: fixed, window: 1024, ttl: 200-255, options: none, ports: [80, 8000-8100]}
`, with(func(c *Config) {
			c.Signatures = append(nft.DefaultSignatures(), nft.Signature{
				Name: "fixed", Window: &nft.Range{Min: 1024, Max: 1024}, TTL: &nft.Range{Min: 200, Max: 255},
				Options: nft.NoOptions, Ports: []nft.Range{{Min: 80, Max: 80}, {Min: 8000, Max: 8100}},
			})
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseConfig(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, equateAddrs); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			var written bytes.Buffer
			if err := got.Write(&written); err != nil {
				t.Fatal(err)
			}
			again, err := ParseConfig(&written)
			if err != nil {
				t.Fatalf("what Write writes is refused: %v", err)
			}
			if diff := cmp.Diff(got, again, equateAddrs); diff != "" {
				t.Errorf("written and read back (-before +after):\n%s", diff)
			}
		})
	}
}

func TestParseConfigErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown key", "mode: auto\ndetct: {}", `line 2: unknown key "detct"; did you mean "detect"?`},
		{"unknown key within", "detect:\n  raet: 5", `line 2: unknown key "raet"; did you mean "rate"?`},
		{"unknown key of a service", "services:\n  192.0.2.1:80:\n    detect: {shre: 1}", `line 3: unknown key "shre"; did you mean "share"?`},
		{"unknown key, nothing near", "control: {xxxxxxxxxxx: 1}", `line 1: unknown key "xxxxxxxxxxx"; known here: group`},
		{"mode", "\nmode: drop", `line 2: mode: "drop": want observe or auto`},
		{"share", "detect:\n  rate: 5\n  share: 1.5", "line 3: detect.share: want a share above 0 and up to 1"},
		{"not a number", "detect: {rate: .nan}", "line 1: detect.rate: want a number from 1 to 1e9"},
		{"duration without a unit", "detect: {for: 3}", "line 1: `3` is not a duration such as 3s or 1m"},
		{"duration too short", "detect: {for: 10ms}", "line 1: detect.for: want a duration from 1s to 1h"},
		{"clear rate", "detect: {clear_rate: 5000}", "line 1: detect.clear_rate: 5000 is above rate (1000): a flood would be over before it began"},
		{"no service", "services: {192.0.2.1: {}}", "line 1: virtual service \"192.0.2.1\": no address and port (write it as 192.0.2.1:80, [2001:db8::1]:80, 192.0.2.1:*, udp:192.0.2.1:53 or fwmark:7)"},
		{"addresses of no mark", "services:\n  192.0.2.1:80: {addresses: [\"192.0.2.1:80\"]}", "line 2: services.192.0.2.1:80.addresses: only a fwmark service needs addresses; for an address that IPVS does not serve, use watch"},
		{"total rate of a service", "services: {192.0.2.1:80: {detect: {total_rate: 9}}}", "line 1: services.192.0.2.1:80.detect.total_rate: one value for the whole host: set it under detect"},
		{"watch udp", "watch: [\"udp:192.0.2.1:53\"]", "line 1: \"udp:192.0.2.1:53\" is no TCP address: write 192.0.2.1:80, [2001:db8::1]:80, or * for the port to mean every port"},
		{"allow", "allow: [\"10.0.0.0/33\"]", `line 1: "10.0.0.0/33" is no address and no prefix: write 192.0.2.7 or 2001:db8::/32`},
		{"signature range", "signatures: [{name: a, window: 9-3}]", `line 1: "9-3" is no number and no range: write 40 or 40-60`},
		{"no signatures", "signatures: []", "line 1: signatures: empty: leave the key out for the default signature"},
		{"signature twice", "signatures:\n  - {name: a, window: 0}\n  - {name: a, window: 1}", `line 3: signatures.1: name "a" is taken: give each signature its own`},
		{"signatures is no list", "signatures: 5", "line 1: want a list here, as in [a, b]"},
		{"detect is no map", "detect: 5", "line 1: want keys and values here, as in 'key: value'"},
		{"two documents", "mode: auto\n---\nmode: observe", "more than one YAML document: keep one, without a second ---"},
		{"aliases", "detect: &d {rate: 5}\nservices: {192.0.2.1:80: *d}", "line 2: aliases are not supported here: write the value out"},
		{"no YAML", "mode: [", "line 1: did not find expected node content"},
		{"instance without addresses", "keepalived: {instances: {VI_1: []}}", "line 1: keepalived.instances.VI_1: an instance without addresses has no role: list its virtual addresses"},
		{"project", "project: a/b", `line 1: project: "a/b": want 1 to 64 letters, digits, dots, dashes and underscores`},
		{"project of a service", "services:\n  192.0.2.1:80: {project: 'a b'}", `line 2: services.192.0.2.1:80.project: "a b": want 1 to 64 letters, digits, dots, dashes and underscores`},
		{"group by", "alerts:\n  group_by: [team]", `line 2: alerts.group_by: no label "team"; there are: project, service, filter, resource, kind, instance, server, source, host, rule`},
		{"repeat", "alerts: {repeat: 1s}", "line 1: alerts.repeat: want a duration from 1m to 168h"},
		{"receiver of no kind", "alerts:\n  receivers:\n    - {name: a}", `line 3: alerts.receivers.0: "a" has 0 of slack, mail, webhook, alertmanager and command: want exactly one`},
		{"receiver twice", "alerts:\n  receivers:\n    - {name: a, command: {argv: [/a]}}\n    - {name: a, command: {argv: [/a]}}", `line 4: alerts.receivers.1: name "a" is taken: give each receiver its own`},
		{"receiver's severity", "alerts: {receivers: [{name: a, severities: [bad], command: {argv: [/a]}}]}", `line 1: alerts.receivers.0.severities: "bad": want info, warning or critical`},
		{"mail to nobody", "alerts:\n  receivers:\n    - name: a\n      mail:\n        to: [nobody]", `line 5: alerts.receivers.0.mail.to: "nobody": want an address, as oncall@example.net`},
		{"a password in a URL", "alerts: {receivers: [{name: a, webhook: {url: 'https://u:canary@h/'}}]}", "line 1: alerts.receivers.0.webhook.url: no user and password in the URL: secrets come from files"},
		{"Slack without a URL", "alerts: {receivers: [{name: a, slack: {}}]}", "line 1: alerts.receivers.0.slack.url_file: empty: want the path of a file with the webhook's URL, which is a secret"},
		{"a command of the path", "alerts: {receivers: [{name: a, command: {argv: [page]}}]}", "line 1: alerts.receivers.0.command.argv: want a program by its whole path, and its arguments"},
		{"no rule", "alerts:\n  rules:\n    - flood", `line 3: alerts.rules.0: want a rule, as {name: flood, severity: warning}`},
		{"rule without a name", "alerts:\n  rules:\n    - {figure: flood}", `line 3: alerts.rules.0.name: "": want 1 to 64 letters, digits, dots, dashes and underscores`},
		{"rule's unknown key", "alerts:\n  rules:\n    - {name: a, figur: flood}", `line 3: unknown key "figur"; did you mean "figure"?`},
		{"rule twice", "alerts:\n  rules:\n    - {name: flood}\n    - {name: flood}", `line 4: alerts.rules.1: name "flood" is taken: give each rule its own`},
		{"another figure", "alerts:\n  rules:\n    - {name: flood, figure: armed}", `line 3: alerts.rules.0.figure: the rule flood is about flood: give a rule about another figure its own name`},
		{"no threshold", "alerts:\n  rules:\n    - {name: a, figure: completion}", `line 3: alerts.rules.0: want above, below or share: when is it to be told?`},
		{"window of a gauge", "alerts:\n  rules:\n    - name: a\n      figure: completion\n      below: 1\n      window: 1m", `line 6: alerts.rules.0.window: completion is a figure of the moment and has no increase: leave window out, and use for`},
		{"window", "alerts:\n  rules:\n    - {name: a, figure: syn_retransmitted, above: 1, window: 2h}", `line 3: alerts.rules.0.window: want a duration from 10s to 1h0m0s`},
		{"no share", "alerts:\n  rules:\n    - {name: a, figure: completion, share: 0.5}", `line 3: alerts.rules.0.share: completion has no share: leave it out`},
		{"rule's share", "alerts:\n  rules:\n    - {name: flood, share: 2}", `line 3: alerts.rules.0.share: want a share from 0 to 1`},
		{"empty range", "alerts:\n  rules:\n    - {name: a, figure: completion, above: 1, below: 0}", `line 3: alerts.rules.0.above: nothing is above 1 and below 0`},
		{"no number", "alerts:\n  rules:\n    - {name: a, figure: completion, above: .nan}", `line 3: alerts.rules.0.above: want a number`},
		{"text for a number", "alerts:\n  rules:\n    - {name: a, figure: completion, above: much}", "line 3: `much` is not a number"},
		{"label", "alerts:\n  rules:\n    - {name: a, figure: completion, below: 1, by: [server]}", `line 3: alerts.rules.0.by: completion has no label "server"; it has: project, service, instance`},
		{"match", "alerts:\n  rules:\n    - {name: a, figure: completion, below: 1, match: {kind: x}}", `line 3: alerts.rules.0.match: completion has no label "kind"; it has: project, service, instance`},
		{"pattern", "alerts:\n  rules:\n    - {name: a, figure: completion, below: 1, match: {service: '['}}", `line 3: alerts.rules.0.match: "[" is no pattern: * stands for anything, and a ! at the beginning for all others`},
		{"rule's severity", "alerts:\n  rules:\n    - {name: flood, severity: bad}", `line 3: alerts.rules.0.severity: "bad": want info, warning or critical`},
		{"for", "alerts:\n  rules:\n    - {name: flood, for: 25h}", `line 3: alerts.rules.0.for: want a duration from 0s to 24h`},
		{"metrics without a port", "metrics: {listen: 192.0.2.1}", "line 1: metrics.listen: want an address and port, as 127.0.0.1:9101 or [::]:9101"},
		{"metrics on no port", "metrics: {listen: '192.0.2.1:0'}", "line 1: metrics.listen: want an address and port, as 127.0.0.1:9101 or [::]:9101"},
		{"metrics on a name", "metrics: {listen: 'localhost:9101'}", "line 1: metrics.listen: want an address and port, as 127.0.0.1:9101 or [::]:9101"},
		{"a certificate without a key", "metrics:\n  tls_cert_file: /etc/crt", "line 2: metrics.tls_cert_file: a certificate needs its key, and a key its certificate: give both, or neither"},
		{"a user without a password", "metrics:\n  username: u", "line 2: metrics.username: a user needs a password file, and a password file a user: give both, or neither"},
		{"a token and a password", "metrics: {bearer_token_file: /t, username: u, password_file: /p}", "line 1: metrics.bearer_token_file: want either a token, or user and password"},
		{"journal", "journal: {max_bytes: 5}", "line 1: journal.max_bytes: want at least 65536 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseConfig(strings.NewReader(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("\n got %v\nwant %s", err, tt.want)
			}
		})
	}
}

// Whoever asks for a figure that there is not is told which there are.
func TestUnknownFigure(t *testing.T) {
	_, err := ParseConfig(strings.NewReader("alerts:\n  rules:\n    - name: a\n      figure: floods"))
	if err == nil {
		t.Fatal("it was taken")
	}
	if want := `line 4: alerts.rules.0.figure: no figure "floods"; there are: flood, armed, `; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s…", err, want)
	}
	for _, f := range AlertFigures() {
		if !strings.Contains(err.Error(), " "+f.Name) {
			t.Errorf("%s is not named", f.Name)
		}
	}
}

// The default rules are such as a file could have.
func TestDefaultAlertRules(t *testing.T) {
	for _, r := range DefaultAlertRules() {
		was := r
		if err := r.check([]string{r.Name}); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(was, r); diff != "" {
			t.Errorf("%s is not whole (-is +should be):\n%s", r.Name, diff)
		}
	}
}

func TestAlertRuleMatches(t *testing.T) {
	labels := FigureLabels{Project: "shop", Filter: "shop/api"}
	for _, tt := range []struct {
		match map[string]string
		want  bool
	}{
		{nil, true},
		{map[string]string{"filter": "shop/*"}, true},
		{map[string]string{"filter": "*"}, true},
		{map[string]string{"filter": "shop"}, false},
		{map[string]string{"filter": "!shop/*"}, false},
		{map[string]string{"filter": "!mail/*", "project": "s?op"}, true},
		{map[string]string{"project": "shop", "service": "*:80"}, false},
		{map[string]string{"service": ""}, true},
	} {
		r := AlertRule{Match: tt.match}
		if got := r.Matches(labels); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.match, got, tt.want)
		}
	}
}

// The sample that is installed is what the defaults are, and names every key.
func TestSampleConfig(t *testing.T) {
	const sample = "../deploy/lvsguard.yaml"
	got, err := LoadConfig(sample)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(DefaultConfig(), got, equateAddrs); diff != "" {
		t.Errorf("the sample is not the defaults (-default +sample):\n%s", diff)
	}
	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keysOf(reflect.TypeFor[rawConfig]()) {
		if !strings.Contains(string(text), key+":") {
			t.Errorf("the sample does not mention the key %s", key)
		}
	}
}

// keysOf lists every key that a configuration can have.
func keysOf(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return keysOf(t.Elem())
	case reflect.Struct:
		var keys []string
		for f := range t.Fields() {
			if tag := tagOf(f); tag != "" {
				keys = append(keys, tag)
				keys = append(keys, keysOf(f.Type)...)
			}
		}
		return keys
	}
	return nil
}

func FuzzParseConfig(f *testing.F) {
	sample, err := os.ReadFile("../deploy/lvsguard.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	f.Add([]byte("services: {fwmark:7: {addresses: [\"192.0.2.1:*\"], detect: {rate: 2}}}"))
	f.Add([]byte("detect: &a {rate: *a}"))
	f.Add([]byte("alerts: {rules: [{name: flood, enabled: false}, {name: a, figure: syn_retransmitted, share: .5, match: {filter: '!a*'}, by: [], group_by: [host]}]}"))
	f.Add([]byte("alerts: {receivers: [{name: a, severities: [info], mail: {to: [a@b], from: a@b, server: 'b:25'}}]}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConfig(bytes.NewReader(text))
		if err != nil {
			return
		}
		var written bytes.Buffer
		if err := c.Write(&written); err != nil {
			t.Fatal(err)
		}
		again, err := ParseConfig(bytes.NewReader(written.Bytes()))
		if err != nil {
			t.Fatalf("what Write writes is refused: %v\n%s", err, written.Bytes())
		}
		if diff := cmp.Diff(c, again, equateAddrs); diff != "" {
			t.Errorf("written and read back (-before +after):\n%s", diff)
		}
	})
}

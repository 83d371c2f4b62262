package deploy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/mail"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"go.yaml.in/yaml/v3"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
	"github.com/lvsguard/lvsguard/guard/serve"
	"github.com/lvsguard/lvsguard/internal/netns"
)

// asHost is the address in the environment of processes that are to be a host of
// the fleet, not the tests.
const asHost = "LVSGUARD_TEST_AS_HOST"

func TestMain(m *testing.M) {
	if at := os.Getenv(asHost); at != "" {
		if err := beHost(at); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A played host has a guard's page, made of recorded seconds: a calm one again and
// again, and a bad one while there is a fault.
type played struct {
	calm, bad guard.Sample

	mu  sync.Mutex
	m   guard.Measurement
	ill bool
}

// beHost is a host until its standard input ends. A line there begins a fault or
// ends it.
func beHost(at string) error {
	h := &played{}
	f, err := os.Open("testdata/fleet/seconds.jsonl")
	if err != nil {
		return err
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	if err := errors.Join(dec.Decode(&h.calm), dec.Decode(&h.bad)); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	h.m = guard.Measurement{Version: "test", Mode: guard.Observe, Config: guard.DefaultConfig()}
	h.m.Config.Role = guard.RoleHost
	h.second()

	ctx, stop := context.WithCancel(context.Background())
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			h.mu.Lock()
			h.ill = lines.Text() == "fault"
			h.mu.Unlock()
		}
		stop()
	}()
	go func() {
		for range time.Tick(time.Second) {
			h.second()
		}
	}()
	return serve.NewMetrics(serve.MetricsConfig{
		MetricsConfig: guard.MetricsConfig{Listen: at}, Guard: h, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}).Run(ctx)
}

// second adds what a second brings.
func (h *played) second() {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.calm
	if h.ill {
		s = h.bad
	}
	was := h.m.Sample.Handshakes
	s.Handshakes = append(s.Handshakes[:0:0], s.Handshakes...)
	for i := range was {
		f := &s.Handshakes[i]
		f.Attempts += was[i].Attempts
		f.Success.Total += was[i].Success.Total
		f.Success.DupSYN += was[i].Success.DupSYN
	}
	s.Time = time.Now()
	h.m.Time, h.m.Sample = s.Time, s
	h.m.Tally.Ticks++
}

func (h *played) Measure() *guard.Measurement {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.m
	return &m
}

func (h *played) SetTrouble(src guard.Source, why string) {
	if why != "" {
		fmt.Fprintln(os.Stderr, src, why)
	}
}

// inbox has what people were told.
type inbox struct {
	mu    sync.Mutex
	slack []map[string]any
	mails []*mail.Message
	wrong []error
}

func (b *inbox) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	var m map[string]any
	err := json.NewDecoder(r.Body).Decode(&m)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.wrong = append(b.wrong, err)
		return
	}
	b.slack = append(b.slack, m)
}

func (b *inbox) NewSession(*smtp.Conn) (smtp.Session, error) { return b, nil }
func (*inbox) Mail(string, *smtp.MailOptions) error          { return nil }
func (*inbox) Rcpt(string, *smtp.RcptOptions) error          { return nil }
func (*inbox) Reset()                                        {}
func (*inbox) Logout() error                                 { return nil }

func (b *inbox) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	b.mu.Lock()
	defer b.mu.Unlock()
	if m, bad := mail.ReadMessage(bytes.NewReader(text)); errors.Join(err, bad) == nil {
		b.mails = append(b.mails, m)
	} else {
		b.wrong = append(b.wrong, fmt.Errorf("%w: %q", bad, text))
	}
	return err
}

// got is what has come so far.
func (b *inbox) got() (slack []map[string]any, mails []*mail.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.slack[:len(b.slack):len(b.slack)], b.mails[:len(b.mails):len(b.mails)]
}

// A fleet is hosts in a network namespace, and Debian's Prometheus and Alertmanager
// that watch them.
type fleet struct {
	*netns.Host
	dir   string
	hosts []io.Writer // their standard inputs
	logs  []string
	inbox inbox
}

// start runs a program in the fleet until the test ends.
func (f *fleet) start(t *testing.T, cmd *exec.Cmd, name string) {
	t.Helper()
	file, err := os.Create(filepath.Join(f.dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	f.logs = append(f.logs, file.Name())
	cmd.Stdout, cmd.Stderr = file, file
	f.Do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
}

// listen opens a port in the fleet.
func (f *fleet) listen(t *testing.T, at string) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	f.Do(t, func() { l, err = net.Listen("tcp", at) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (f *fleet) write(t *testing.T, name string, v any) {
	t.Helper()
	text, ok := v.(string)
	if !ok {
		b, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// query asks Prometheus for a single value; ok is false while there is none.
func (f *fleet) query(t *testing.T, expr string) (value string, ok bool) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			f.Do(t, func() { conn, err = net.Dial(network, address) })
			return conn, err
		},
	}}
	resp, err := client.Get("http://127.0.0.1:9090/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return "", false
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct{ Result []struct{ Value []any } }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Data.Result) != 1 {
		return "", false
	}
	return fmt.Sprint(answer.Data.Result[0].Value[1]), true
}

// wait waits until a condition holds.
func (f *fleet) wait(t *testing.T, most time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(most); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Now().Before(end) {
			continue
		}
		for _, name := range f.logs {
			if text, err := os.ReadFile(name); err == nil && len(text) > 0 {
				t.Logf("%s ends with:\n%s", name, text[max(0, len(text)-2000):])
			}
		}
		t.Fatalf("%s: not within %s", what, most)
	}
}

func (f *fleet) tell(t *testing.T, hosts int, what string) {
	t.Helper()
	for _, in := range f.hosts[:hosts] {
		if _, err := fmt.Fprintln(in, what); err != nil {
			t.Fatal(err)
		}
	}
}

// change sets a key deep in what a YAML file holds.
func change(m map[string]any, value any, path ...string) {
	for _, key := range path[:len(path)-1] {
		m = m[key].(map[string]any)
	}
	m[path[len(path)-1]] = value
}

func parse(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := yaml.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// Nobody waits a minute in a test: the rule's times are short, by the
// configuration that is exported, and so are those of Prometheus and Alertmanager.
const fleetConfig = `
alerts:
  repeat: 1h
  rules:
    - {name: syn-retransmitted, window: 10s, for: 2s, keep: 1s}
  receivers:
    - name: slack
      slack: {url_file: slack.url}
    - name: mail
      mail: {to: [oncall@example.net], from: alertmanager@example.net, server: "127.0.0.1:25", tls: none}
`

// newFleet makes hosts, and what watches them: what is exported, beside the
// files of this folder.
func newFleet(t *testing.T, hosts int) *fleet {
	prometheus := need(t, "prometheus", "prometheus")
	manager := need(t, "prometheus-alertmanager", "prometheus-alertmanager")
	f := &fleet{Host: netns.New(t), dir: t.TempDir()}
	var targets []string
	for i := range hosts {
		at := fmt.Sprintf("127.0.1.%d:9101", i+1)
		targets = append(targets, at)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asHost+"="+at, "GOMAXPROCS=1")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		f.hosts = append(f.hosts, in)
		f.start(t, cmd, "host"+fmt.Sprint(i+1))
	}
	web := &http.Server{Handler: &f.inbox}
	post := smtp.NewServer(&f.inbox)
	go web.Serve(f.listen(t, "127.0.0.1:80"))
	go post.Serve(f.listen(t, "127.0.0.1:25"))
	t.Cleanup(func() { web.Close(); post.Close() })

	cfg, err := guard.ParseConfig(strings.NewReader(fleetConfig))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := alert.PrometheusRules(cfg.Alerts.Rules, "lvsguard")
	if err != nil {
		t.Fatal(err)
	}
	am, left, err := alert.AlertmanagerConfig(cfg.Alerts)
	if err != nil || len(left) > 0 {
		t.Fatal(left, err)
	}
	f.write(t, "slack.url", "http://127.0.0.1/hook")
	f.write(t, "lvsguard-rules.yml", string(rules))
	f.write(t, "lvsguard-hosts.yml", []any{map[string]any{"targets": targets, "labels": map[string]string{"project": "shop"}}})
	told := parse(t, am)
	change(told, "1s", "route", "group_wait")
	change(told, "2s", "route", "group_interval")
	f.write(t, "alertmanager.yml", told)
	sample, err := os.ReadFile("prometheus/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	watched := parse(t, sample)
	change(watched, "1s", "global", "scrape_interval")
	change(watched, "1s", "global", "scrape_timeout")
	change(watched, "1s", "global", "evaluation_interval")
	f.write(t, "prometheus.yml", watched)

	cmd := exec.Command(manager, "--config.file=alertmanager.yml", "--storage.path="+filepath.Join(f.dir, "am"), "--web.listen-address=127.0.0.1:9093", "--cluster.listen-address=")
	cmd.Dir = f.dir
	f.start(t, cmd, "alertmanager")
	cmd = exec.Command(prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path="+filepath.Join(f.dir, "tsdb"), "--web.listen-address=127.0.0.1:9090", "--rules.alert.resend-delay=1s")
	cmd.Dir = f.dir
	f.start(t, cmd, "prometheus")
	return f
}

// A fault on 14 of 20 hosts of a project is one Slack message and one mail, which
// say so; and its end is one more of each.
func TestFleet(t *testing.T) {
	const hosts, ill = 20, 14
	f := newFleet(t, hosts)
	f.wait(t, 30*time.Second, "Prometheus knows the hosts", func() bool {
		n, ok := f.query(t, `count(instance:lvsguard_rule:value{rule="syn-retransmitted"} == 0)`)
		return ok && n == fmt.Sprint(hosts)
	})

	// told wants one message and one mail more than before, and none after them.
	before := 0
	told := func(what string, most time.Duration) (map[string]any, *mail.Message) {
		t.Helper()
		f.wait(t, most, what, func() bool {
			slack, mails := f.inbox.got()
			return len(slack) > before && len(mails) > before
		})
		time.Sleep(5 * time.Second) // in which Alertmanager could have sent more, twice
		before++
		slack, mails := f.inbox.got()
		if len(slack) != before || len(mails) != before {
			t.Fatalf("%s: %d messages and %d mails, want %d of each: %v", what, len(slack), len(mails), before, slack)
		}
		return slack[before-1], mails[before-1]
	}
	check := func(slack map[string]any, m *mail.Message, head string, body ...string) {
		t.Helper()
		part := slack["attachments"].([]any)[0].(map[string]any)
		subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
		if err != nil || subject != head || part["title"] != head || part["fallback"] != head {
			t.Errorf("mail's subject is %q (%v), Slack's title %q, its fallback %q; want %q", subject, err, part["title"], part["fallback"], head)
		}
		_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		letter, err := multipart.NewReader(m.Body, params["boundary"]).NextPart()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(letter)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range body {
			if !strings.Contains(fmt.Sprint(part["text"]), want) || !strings.Contains(string(text), want) {
				t.Errorf("Slack's text is\n%v\nand the mail\n%s\nwant %q", part["text"], text, want)
			}
		}
	}

	f.tell(t, ill, "fault")
	slack, m := told("the fault", 30*time.Second)
	check(slack, m, "[WARNING] shop: syn-retransmitted", "handshakes with a retransmitted SYN in 10s, threshold 50", "seen by 14 of 20 hosts", "look: ")

	f.tell(t, ill, "calm")
	slack, m = told("its end", 40*time.Second)
	check(slack, m, "[RESOLVED] shop: syn-retransmitted", "over after ", "at the worst ")

	f.inbox.mu.Lock()
	defer f.inbox.mu.Unlock()
	if len(f.inbox.wrong) > 0 {
		t.Errorf("what is no message: %v", f.inbox.wrong)
	}
	// A rule that cannot be evaluated, as a message that cannot be sent, is logged.
	for _, name := range []string{"prometheus", "alertmanager"} {
		text, err := os.ReadFile(filepath.Join(f.dir, name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "level=warn") || strings.Contains(line, "level=error") {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}

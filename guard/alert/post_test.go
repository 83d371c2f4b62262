package alert

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard"
)

// canary is in every secret of these tests, and nowhere else.
const canary = "cAnArY-7f3a"

// checkPlain fails if text has a secret in it, however it is written.
func checkPlain(t *testing.T, text string) {
	t.Helper()
	lower := strings.ToLower(text)
	for _, form := range []string{
		canary, url.QueryEscape(canary), hex.EncodeToString([]byte(canary)),
		// The canary in the middle of a base64 text: all three alignments.
		base64.StdEncoding.EncodeToString([]byte(canary))[:12],
		base64.StdEncoding.EncodeToString([]byte("x" + canary))[2:12],
		base64.StdEncoding.EncodeToString([]byte("xx" + canary))[4:12],
	} {
		if strings.Contains(lower, strings.ToLower(form)) {
			t.Errorf("a secret is in %q", text)
		}
	}
}

// checkError wants an error with these words; an empty one wants none.
func checkError(t *testing.T, err error, words string, refused bool) {
	t.Helper()
	if words == "" {
		if err != nil {
			t.Errorf("%v, want no error", err)
		}
		return
	}
	if err == nil {
		t.Fatalf("no error, want %q", words)
	}
	checkPlain(t, err.Error())
	checkPlain(t, fmt.Sprintf("%#v", err))
	if !strings.Contains(err.Error(), words) || errors.Is(err, ErrRefused) != refused {
		t.Errorf("%q, refused %v; want %q, refused %v", err, errors.Is(err, ErrRefused), words, refused)
	}
	if len(err.Error()) > 300 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// within is the deadline of a test's try.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// patience is short where a test waits for its end.
func patience(want string) time.Duration {
	if want == "no answer in time" {
		return 300 * time.Millisecond
	}
	return 20 * time.Second
}

// An authority signs certificates for servers.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string // ca_file
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert, write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))}
}

// config is that of a server with a certificate for name.
func (a *authority) config(t *testing.T, name string, until time.Time) *tls.Config {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: a.key}}}
}

// serve accepts connections and does with each what script says, until the test
// is over.
func serve(t *testing.T, script func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			running.Go(func() { defer conn.Close(); script(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return l.Addr().String()
}

// request reads a request and returns all of it as one line.
func request(conn net.Conn) string {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return ""
	}
	body, _ := io.ReadAll(req.Body)
	return fmt.Sprintf("%s %v %s", req.RequestURI, req.Header, body)
}

// wait is until the other side has given up.
func wait(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// Receivers that misbehave, and echo every secret that they were sent.
func TestPostMisbehaving(t *testing.T) {
	answer := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			heard := request(conn)
			fmt.Fprintf(conn, strings.ReplaceAll(text, "ECHO", "%[1]s"), heard)
		}
	}
	tests := []struct {
		name    string
		script  func(net.Conn)
		want    string
		refused bool
		after   time.Duration
	}{
		{name: "works", script: answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")},
		{name: "no content", script: answer("HTTP/1.1 204 No Content\r\n\r\n")},
		{name: "cut after a good status", script: answer("HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nok")},
		{name: "endless body", script: func(conn net.Conn) {
			request(conn)
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n\r\n")
			for err := error(nil); err == nil; {
				_, err = conn.Write(make([]byte, 64<<10))
			}
		}},
		{name: "hangs on accept", script: wait, want: "no answer in time"},
		{name: "hangs after the request", script: func(c net.Conn) { request(c); wait(c) }, want: "no answer in time"},
		{name: "hangs in the headers", script: func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nX: "+request(c))
			wait(c)
		}, want: "no answer in time"},
		{name: "slow bytes", script: func(c net.Conn) {
			request(c)
			for _, b := range []byte("HTTP/1.1 200 OK\r\nX-Long: and so on\r\n") {
				c.Write([]byte{b})
				time.Sleep(20 * time.Millisecond)
			}
		}, want: "no answer in time"},
		{name: "closes at once", script: func(net.Conn) {}, want: "breaks off"},
		{name: "closes after the request", script: func(c net.Conn) { request(c) }, want: "breaks off"},
		{name: "resets", script: func(c net.Conn) { request(c); c.(*net.TCPConn).SetLinger(0) }, want: "breaks off"},
		{name: "closes in the headers", script: answer("HTTP/1.1 200 OK\r\nX: y"), want: "breaks off"},
		{name: "garbage", script: answer("ECHO\r\n\r\n"), want: "not HTTP"},
		{name: "garbage for a status", script: answer("HTTP/1.1 ECHO\r\n\r\n"), want: "not HTTP"},
		{name: "garbage for headers", script: answer("HTTP/1.1 200 OK\r\nECHO\r\n\r\n"), want: "not HTTP"},
		{name: "binary", script: func(c net.Conn) { request(c); fmt.Fprint(c, strings.Repeat("\x00", 4096)+"\n\n") }, want: "not HTTP"},
		{name: "endless headers", script: func(c net.Conn) {
			request(c)
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\n")
			for err := error(nil); err == nil; {
				_, err = fmt.Fprintf(c, "X: %s\r\n", strings.Repeat("y", 8192))
			}
		}, want: "not HTTP"},
		{name: "500", script: answer("HTTP/1.1 500 ECHO\r\n\r\nECHO"), want: "it answers 500 Internal Server Error"},
		{name: "503, later", script: answer("HTTP/1.1 503 x\r\nRetry-After: 7\r\n\r\n"), want: "it answers 503", after: 7 * time.Second},
		{name: "429, later", script: answer("HTTP/1.1 429 x\r\nRetry-After: 30\r\n\r\n"), want: "it answers 429", after: 30 * time.Second},
		{name: "429, nonsense", script: answer("HTTP/1.1 429 x\r\nRetry-After: -1e9\r\n\r\n"), want: "it answers 429"},
		{name: "408", script: answer("HTTP/1.1 408 x\r\n\r\n"), want: "it answers 408"},
		{name: "404", script: answer("HTTP/1.1 404 ECHO\r\nContent-Length: 1000\r\n\r\nECHO"), want: "it answers 404 Not Found", refused: true},
		{name: "403", script: answer("HTTP/1.1 403 x\r\n\r\n"), want: "it answers 403", refused: true},
		{name: "redirect", script: answer("HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/\r\n\r\n"), want: "no redirect is followed"},
		{name: "status 999", script: answer("HTTP/1.1 999 x\r\n\r\n"), want: "it answers 999"},
	}
	n := flooded(Firing, time.Second, synFlood)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			at := "http://" + serve(t, tt.script)
			secret := write(t, "secret", canary+"\n")
			for kind, r := range map[string]Receiver{
				"slack":        NewSlack(guard.SlackConfig{URLFile: write(t, "url", at+"/services/T0/B0/"+canary+"\n")}),
				"webhook":      NewWebhook(guard.WebhookConfig{URL: at + "/hook", BearerTokenFile: secret}),
				"alertmanager": NewAlertmanager(guard.AlertmanagerConfig{URL: at, Username: "u", PasswordFile: secret}, time.Hour),
			} {
				t.Run(kind, func(t *testing.T) {
					t.Parallel()
					err := r.Send(within(t, patience(tt.want)), n)
					checkError(t, err, tt.want, tt.refused)
					later, ok := errors.AsType[*laterError](err)
					if ok != (tt.after > 0) || ok && later.after != tt.after {
						t.Errorf("to try again: %+v, want after %v", later, tt.after)
					}
				})
			}
		})
	}
}

func TestPostTLS(t *testing.T) {
	ca := newAuthority(t)
	shielded := func(cfg *tls.Config) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		s.TLS = cfg
		s.Config.ErrorLog = quiet()
		s.StartTLS()
		t.Cleanup(s.Close)
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		return "https://localhost:" + port + "/" + canary
	}
	later := time.Now().Add(time.Hour)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	for _, tt := range []struct {
		name, url, ca, want string
	}{
		{"good", shielded(ca.config(t, "localhost", later)), ca.file, ""},
		{"unknown authority", shielded(ca.config(t, "localhost", later)), "", "unknown authority: name that one with ca_file"},
		{"for another name", shielded(ca.config(t, "other.example.net", later)), ca.file, "its certificate is for another name"},
		{"expired", shielded(ca.config(t, "localhost", time.Now().Add(-time.Hour))), ca.file, "its certificate has expired"},
		{"no TLS there", "https" + plain.URL[4:], ca.file, "does not speak TLS"},
		{"no certificate in ca_file", "https" + plain.URL[4:], write(t, "no.pem", "none"), "has no certificate in PEM"},
		{"old TLS", shielded(old(ca.config(t, "localhost", later))), ca.file, "TLS with it does not work: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSlack(guard.SlackConfig{URLFile: write(t, "url", tt.url), CAFile: tt.ca})
			checkError(t, s.Send(within(t, 5*time.Second), flooded(Firing, 0, synFlood)), tt.want, false)
		})
	}
}

func old(cfg *tls.Config) *tls.Config {
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	return cfg
}

func TestPostUnreachable(t *testing.T) {
	n := flooded(Firing, 0, synFlood)
	slack := func(text string) Receiver { return NewSlack(guard.SlackConfig{URLFile: write(t, "url", text)}) }
	for _, tt := range []struct {
		name string
		r    Receiver
		want string
	}{
		{"nobody listens", slack("http://127.0.0.1:1/" + canary), "connection refused"},
		{"no such name", slack("http://no-such-host.invalid/" + canary), "its name "},
		{"no URL", slack(canary), "want a URL"},
		{"broken URL", slack("https://host/%zz" + canary), "want a URL"},
		{"two lines", slack("https://host/" + canary + "\nmore"), "want one line of text"},
		{"empty", slack("\n"), "is empty"},
		{"binary", slack("https://host/\x00" + canary), "want one line of text"},
		{"too large", slack(strings.Repeat("x", 1<<20)), "want one line of text"},
		{"the secret itself", NewSlack(guard.SlackConfig{URLFile: "https://hooks.example.net/" + canary}), "want the whole path of a file"},
		{"no file", NewSlack(guard.SlackConfig{URLFile: "/nonexistent/slack.url"}), "url_file: open /nonexistent/slack.url: no such file"},
		{"a directory", NewSlack(guard.SlackConfig{URLFile: t.TempDir()}), "is no regular file"},
		{"no token", NewWebhook(guard.WebhookConfig{URL: "http://127.0.0.1:1", BearerTokenFile: "/nonexistent/token"}), "bearer_token_file: open /nonexistent/token"},
		{"no webhook", NewWebhook(guard.WebhookConfig{URLFile: write(t, "url", "ftp://"+canary)}), "want a URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkError(t, tt.r.Send(within(t, 5*time.Second), n), tt.want, false)
		})
	}
}

// What is sent, and that a secret that was changed counts at once.
func TestPostContent(t *testing.T) {
	type seen struct {
		path, kind, auth string
		body             []byte
	}
	var got seen
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = seen{r.Method + " " + r.URL.RequestURI(), r.Header.Get("Content-Type"), r.Header.Get("Authorization"), body}
	}))
	t.Cleanup(s.Close)
	n := flooded(Repeated, 4*time.Minute, synFlood, repeatedSYNs, memory)
	token := write(t, "token", "one\r\n")

	send := func(r Receiver) {
		t.Helper()
		if err := r.Send(within(t, 5*time.Second), n); err != nil {
			t.Fatal(err)
		}
	}
	hook := NewWebhook(guard.WebhookConfig{URL: s.URL + "/hook?x=1", BearerTokenFile: token})
	send(hook)
	var back Notification
	if err := json.Unmarshal(got.body, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(n, back); diff != "" {
		t.Errorf("the webhook got (-want +got):\n%s", diff)
	}
	got.body = nil
	if want := (seen{"POST /hook?x=1", "application/json", "Bearer one", nil}); !cmp.Equal(got, want, cmp.AllowUnexported(seen{})) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if err := os.WriteFile(token, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if send(hook); got.auth != "Bearer two" {
		t.Errorf("after the change: %s", got.auth)
	}

	send(NewAlertmanager(guard.AlertmanagerConfig{URL: s.URL + "/am/", Username: "u", PasswordFile: token}, 4*time.Hour))
	if got.path != "POST /am/api/v2/alerts" || got.auth != "Basic "+base64.StdEncoding.EncodeToString([]byte("u:two")) {
		t.Errorf("%+v", got)
	}
	send(NewSlack(guard.SlackConfig{URLFile: write(t, "url", s.URL+"/services/x")}))
	var message slackMessage
	if err := json.Unmarshal(got.body, &message); err != nil || message.Text != headline(&n) || got.path != "POST /services/x" {
		t.Errorf("%+v, %v", message, err)
	}
}

// Neither secrets nor messages go where a redirect points to.
func TestPostRedirect(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("it was followed: %s %v", r.URL, r.Header)
	}))
	t.Cleanup(other.Close)
	for _, code := range []int{301, 302, 303, 307, 308} {
		s := httptest.NewServer(http.RedirectHandler(other.URL, code))
		t.Cleanup(s.Close)
		h := NewWebhook(guard.WebhookConfig{URL: s.URL, BearerTokenFile: write(t, "token", canary)})
		checkError(t, h.Send(within(t, 5*time.Second), Notification{}), fmt.Sprintf("it answers %d", code), false)
	}
}

func TestAlertmanagerAlerts(t *testing.T) {
	a := NewAlertmanager(guard.AlertmanagerConfig{}, 4*time.Hour)
	role := Alert{Rule: "role-change", Severity: Warning, Subject: "VI_1", Summary: "now \xffMASTER",
		Labels: map[string]string{"instance": "VI_1", "weird name": "x", "__reserved": "y", "9": "z", "empty": ""}, Since: night}
	all := make(map[string][]postableAlert)
	for name, n := range map[string]Notification{
		"firing":   flooded(Repeated, 4*time.Minute, synFlood, memory, role),
		"resolved": flooded(Resolved, 5*time.Minute, synFlood, memory),
		"test":     {State: Test, Severity: Info, Host: "director1", Time: night},
	} {
		all[name] = a.alerts(&n)
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "alertmanager", string(text)+"\n")
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": -1, "120": 2 * time.Minute, "0": 0, "-5": -1, "soon": -1, "99999999999999999999": -1,
		night.Add(time.Minute).Format(http.TimeFormat): time.Minute, night.Add(-time.Minute).Format(http.TimeFormat): -1,
	} {
		got, ok := retryAfter(text, night)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

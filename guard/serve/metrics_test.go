package serve

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// troubled is a guard that remembers what is wrong.
type troubled struct {
	measured
	mu  sync.Mutex
	why string
}

func (g *troubled) SetTrouble(_ guard.Source, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.why = why
}

func (g *troubled) trouble() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.why
}

// freePort is an address on loopback where nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serveMetrics serves until the test ends, and gives what there was logged.
func serveMetrics(t *testing.T, of *guard.Measurement, cfg guard.MetricsConfig, change func(*Metrics)) (*troubled, *bytes.Buffer) {
	t.Helper()
	g := &troubled{measured: measured{of}}
	var log bytes.Buffer
	m := NewMetrics(MetricsConfig{MetricsConfig: cfg, Guard: g, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if change != nil {
		change(m)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g, &log
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after 30 s: %s", what)
		}
	}
}

// get asks, when there is a listener, and gives the answer with its body.
func get(t *testing.T, c *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	var resp *http.Response
	eventually(t, "an answer", func() bool {
		var err error
		resp, err = c.Do(r)
		return err == nil
	})
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func request(t *testing.T, method, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Nothing can be had but the page and the way to it, and nothing be changed.
func TestMetricsMethods(t *testing.T) {
	at := freePort(t)
	serveMetrics(t, director(), guard.MetricsConfig{Listen: at}, nil)
	for _, tt := range []struct {
		method, path string
		code         int
		has          string
	}{
		{"GET", "/metrics", 200, "\nlvsguard_services{"},
		{"GET", "/metrics", 200, "\nprocess_resident_memory_bytes "},
		{"GET", "/metrics", 200, "\ngo_goroutines "},
		{"HEAD", "/metrics", 200, ""},
		{"GET", "/", 200, `<a href="metrics">`},
		{"POST", "/metrics", 405, ""},
		{"DELETE", "/", 405, ""},
		{"GET", "/v1/status", 404, ""},
		{"POST", "/v1/command", 404, ""},
		{"GET", "/debug/pprof/", 404, ""},
	} {
		resp, text := get(t, http.DefaultClient, request(t, tt.method, "http://"+at+tt.path))
		if resp.StatusCode != tt.code || !strings.Contains(text, tt.has) {
			t.Errorf("%s %s: %d %.200s", tt.method, tt.path, resp.StatusCode, text)
		}
	}
}

func TestMetricsNegotiation(t *testing.T) {
	at := freePort(t)
	serveMetrics(t, director(), guard.MetricsConfig{Listen: at}, nil)
	r := request(t, "GET", "http://"+at+"/metrics")
	r.Header.Set("Accept", openMetrics)
	r.Header.Set("Accept-Encoding", "gzip")
	resp, text := get(t, http.DefaultClient, r)
	if resp.Header.Get("Content-Encoding") != "gzip" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/openmetrics-text") {
		t.Fatalf("the answer is %v", resp.Header)
	}
	z, err := gzip.NewReader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil || !strings.HasSuffix(string(plain), "\n# EOF\n") {
		t.Errorf("%v, and it ends with %q", err, plain[max(0, len(plain)-40):])
	}
}

// Whoever does not show the secret gets nothing; where the guard cannot read it,
// that is everybody. It is read anew, and told nowhere.
func TestMetricsSecrets(t *testing.T) {
	const canary = "canary-2f9e"
	file := filepath.Join(t.TempDir(), "secret")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, scheme string
		cfg          guard.MetricsConfig
		show         func(r *http.Request, secret string)
	}{
		{"token", "Bearer", guard.MetricsConfig{BearerTokenFile: file}, func(r *http.Request, secret string) { r.Header.Set("Authorization", "Bearer "+secret) }},
		{"password", "Basic", guard.MetricsConfig{Username: "prometheus", PasswordFile: file}, func(r *http.Request, secret string) { r.SetBasicAuth("prometheus", secret) }},
		{"password of another", "Basic", guard.MetricsConfig{Username: "prometheus", PasswordFile: file}, func(r *http.Request, secret string) {
			if secret == canary {
				r.SetBasicAuth("prometheus", secret)
			} else {
				r.SetBasicAuth("root", canary)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(canary + "\n")
			at := freePort(t)
			tt.cfg.Listen = at
			g, log := serveMetrics(t, director(), tt.cfg, nil)
			ask := func(secret string) (int, string) {
				t.Helper()
				r := request(t, "GET", "http://"+at+"/metrics")
				if secret != "" {
					tt.show(r, secret)
				}
				resp, text := get(t, http.DefaultClient, r)
				if resp.StatusCode == http.StatusUnauthorized && !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), tt.scheme+" ") {
					t.Errorf("it asks for %q", resp.Header.Get("WWW-Authenticate"))
				}
				if strings.Contains(text+fmt.Sprint(resp.Header)+g.trouble(), canary) {
					t.Errorf("the secret is in %v %s, or in %q", resp.Header, text, g.trouble())
				}
				return resp.StatusCode, text
			}
			for secret, want := range map[string]int{"": 401, "wrong": 401, canary[:4]: 401, canary: 200} {
				if code, text := ask(secret); code != want || (code == 200) != strings.Contains(text, "lvsguard_") {
					t.Errorf("with %q: %d %.100s", secret, code, text)
				}
			}
			if r, _ := get(t, http.DefaultClient, request(t, "GET", "http://"+at+"/")); r.StatusCode != 401 {
				t.Errorf("the page that links to it is answered with %d", r.StatusCode)
			}
			for _, bad := range []string{"", canary + "\n" + canary} {
				write(bad)
				if code, text := ask(canary); code != 503 || strings.Contains(text, "lvsguard_") || !strings.Contains(g.trouble(), file) {
					t.Errorf("with a file of %d bytes: %d %.100s, trouble %q", len(bad), code, text, g.trouble())
				}
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if code, _ := ask(canary); code != 503 {
				t.Errorf("without the file: %d", code)
			}
			write("another")
			if code, _ := ask(canary); code != 401 {
				t.Errorf("with the secret of before: %d", code)
			}
			write(canary)
			if code, _ := ask(canary); code != 200 || g.trouble() != "" {
				t.Errorf("with the file again: %d, trouble %q", code, g.trouble())
			}
			if strings.Contains(log.String(), canary) {
				t.Errorf("the secret is in the log: %s", log)
			}
		})
	}
}

// certify writes a certificate of its own and its key.
func certify(t *testing.T, serial int64, certFile, keyFile string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		// Files of the same second are told apart too.
		if err := os.Chtimes(name, time.Time{}, time.Now().Add(time.Duration(serial)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A certificate is taken anew when its file changes; with a bad one nobody is
// answered, and it is said.
func TestMetricsTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	certificate := certify(t, 1, certFile, keyFile)
	at := freePort(t)
	g, _ := serveMetrics(t, director(), guard.MetricsConfig{Listen: at, TLSCertFile: certFile, TLSKeyFile: keyFile}, nil)
	ask := func(c *x509.Certificate) (*http.Response, error) {
		roots := x509.NewCertPool()
		roots.AddCert(c)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: transport}).Get("https://" + at + "/metrics")
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	eventually(t, "a page by https", func() bool {
		resp, err := ask(certificate)
		return err == nil && resp.StatusCode == http.StatusOK
	})
	if resp, err := http.Get("http://" + at + "/metrics"); err == nil && resp.StatusCode == http.StatusOK {
		t.Error("it is to be had by http too")
	}
	second := certify(t, 2, certFile, keyFile)
	if resp, err := ask(second); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("with another certificate: %v", err)
	}
	if err := os.WriteFile(keyFile, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(second); err == nil {
		t.Error("with a key that is none it is answered")
	}
	if why := g.trouble(); !strings.Contains(why, "metrics.tls_cert_file") || strings.Contains(why, "canary") {
		t.Errorf("trouble: %q", why)
	}
	third := certify(t, 3, certFile, keyFile)
	if resp, err := ask(third); err != nil || resp.StatusCode != http.StatusOK || g.trouble() != "" {
		t.Errorf("with a good one again: %v, trouble %q", err, g.trouble())
	}
}

// An address that is in use is told of, and taken when it is free.
func TestMetricsAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	g, _ := serveMetrics(t, director(), guard.MetricsConfig{Listen: at}, nil)
	eventually(t, "it is told of", func() bool {
		return strings.Contains(g.trouble(), "metrics.listen: listen tcp "+at) && strings.Contains(g.trouble(), "address already in use")
	})
	l.Close()
	if resp, _ := get(t, http.DefaultClient, request(t, "GET", "http://"+at+"/metrics")); resp.StatusCode != http.StatusOK || g.trouble() != "" {
		t.Errorf("when it is free: %d, trouble %q", resp.StatusCode, g.trouble())
	}
}

// Those who say nothing, or who read nothing, hold up others only for a while.
func TestMetricsSlow(t *testing.T) {
	at := freePort(t)
	serveMetrics(t, director(), guard.MetricsConfig{Listen: at}, func(m *Metrics) { m.idle, m.slow = 300*time.Millisecond, 300*time.Millisecond })
	get(t, http.DefaultClient, request(t, "GET", "http://"+at+"/"))
	http.DefaultClient.CloseIdleConnections()
	for i := range 2 * maxScrapers {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 { // asks again and again, and reads no answer
			go func() {
				w := bufio.NewWriter(c)
				for {
					if _, err := w.WriteString("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
						return
					}
					if err := w.Flush(); err != nil {
						return
					}
				}
			}()
		}
	}
	began := time.Now()
	resp, _ := get(t, &http.Client{Timeout: 20 * time.Second}, request(t, "GET", "http://"+at+"/metrics"))
	if resp.StatusCode != http.StatusOK {
		t.Errorf("in the middle of them a scrape is answered with %d", resp.StatusCode)
	}
	t.Logf("answered after %s", time.Since(began))
}

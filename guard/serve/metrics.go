package serve

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/net/netutil"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/internal/secret"
)

// Measured is what /metrics is made of, and who is told where that cannot be
// served.
type Measured interface {
	Measure() *guard.Measurement
	SetTrouble(src guard.Source, why string)
}

// MetricsConfig tells where and to whom metrics are served.
type MetricsConfig struct {
	guard.MetricsConfig
	Guard Measured
	Log   *slog.Logger
}

const (
	// maxScrapers and maxScrapes bound what askers can have the guard hold, which
	// is a page each, and make at a time.
	maxScrapers = 8
	maxScrapes  = 2
	// scrapeTimeout is how long a slow reader may take for the page.
	scrapeTimeout = 10 * time.Second
	// relistenFirst and relistenMost space the attempts where the address cannot
	// be listened on.
	relistenFirst = time.Second
	relistenMost  = 30 * time.Second
)

// Metrics serves /metrics. Nothing can be changed by it, and what goes wrong with
// it disturbs nothing else.
type Metrics struct {
	cfg     MetricsConfig
	handler http.Handler
	idle    time.Duration // how long a connection may say nothing
	slow    time.Duration // how long it may take for a page

	mu          sync.Mutex
	wrong       [numMetricsParts]error
	certificate *tls.Certificate
	stamps      [2]time.Time // of its files
}

// A metricsPart is something of Metrics that can go wrong by itself.
type metricsPart int

const (
	partListen metricsPart = iota
	partCertificate
	partSecret
	numMetricsParts
)

// NewMetrics makes one that listens when it runs.
func NewMetrics(cfg MetricsConfig) *Metrics {
	m := &Metrics{cfg: cfg, idle: idleTimeout, slow: scrapeTimeout}
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	page := promhttp.HandlerFor(gatherer(cfg.Guard, process), promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
		// Of the process something may not be readable: the rest is.
		ErrorHandling: promhttp.ContinueOnError,
	})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", inTurn(page))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, `<!DOCTYPE html><title>lvsguard</title><p>lvsguard: <a href="metrics">metrics</a>`+"\n")
	})
	m.handler = m.authorised(mux)
	return m
}

// gatherer joins the guard's page with what there is of the process.
func gatherer(g Measured, process prometheus.Gatherer) prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		theirs, err := process.Gather()
		all := append(newPage(g.Measure()).sorted(), theirs...)
		slices.SortFunc(all, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
		return all, err
	})
}

// inTurn has only so many at a time make their page. It is made in memory, so that
// a slow reader keeps nobody from making theirs.
func inTurn(next http.Handler) http.Handler {
	turns := make(chan struct{}, maxScrapes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case turns <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		answer := written{header: w.Header(), code: http.StatusOK}
		func() {
			defer func() { <-turns }()
			next.ServeHTTP(&answer, r)
		}()
		w.WriteHeader(answer.code)
		w.Write(answer.text.Bytes())
	})
}

// written is an answer in memory.
type written struct {
	header http.Header
	code   int
	text   bytes.Buffer
}

func (a *written) Header() http.Header         { return a.header }
func (a *written) WriteHeader(code int)        { a.code = code }
func (a *written) Write(b []byte) (int, error) { return a.text.Write(b) }

// Run serves until ctx is done. Where it cannot listen it goes on trying.
func (m *Metrics) Run(ctx context.Context) error {
	for wait := relistenFirst; ; wait = min(2*wait, relistenMost) {
		l, err := m.listen(ctx)
		if err == nil {
			wait = relistenFirst
			err = m.serve(ctx, l)
		}
		if ctx.Err() != nil {
			return nil
		}
		m.say(partListen, fmt.Errorf("metrics.listen: %w; tried again within %s", err, relistenMost))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *Metrics) listen(ctx context.Context) (net.Listener, error) {
	var cfg net.ListenConfig
	l, err := cfg.Listen(ctx, "tcp", m.cfg.Listen)
	if err != nil {
		return nil, err
	}
	m.say(partListen, nil)
	l = netutil.LimitListener(l, maxScrapers)
	if m.cfg.TLSCertFile == "" {
		return l, nil
	}
	m.present(nil) // so that a bad one is told of before anybody asks
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: m.present}), nil
}

func (m *Metrics) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           m.handler,
		ReadTimeout:       m.idle,
		ReadHeaderTimeout: m.idle,
		WriteTimeout:      m.slow,
		IdleTimeout:       m.idle,
		MaxHeaderBytes:    8 << 10,
		// What scanners send is no concern of the guard's.
		ErrorLog: slog.NewLogLogger(m.cfg.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	return srv.Serve(l)
}

// say puts down what is wrong with a part; nil: nothing.
func (m *Metrics) say(part metricsPart, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wrong[part] = err
	why := ""
	if err := errors.Join(m.wrong[:]...); err != nil {
		why = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	m.cfg.Guard.SetTrouble(guard.SourceMetrics, why)
}

// present gives the certificate that is in the files now.
func (m *Metrics) present(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, err := m.load()
	if err != nil {
		err = fmt.Errorf("metrics.tls_cert_file: %w", err)
	}
	m.say(partCertificate, err)
	return c, err
}

func (m *Metrics) load() (*tls.Certificate, error) {
	var stamps [2]time.Time
	for i, name := range []string{m.cfg.TLSCertFile, m.cfg.TLSKeyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		stamps[i] = info.ModTime()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.certificate != nil && m.stamps == stamps {
		return m.certificate, nil
	}
	c, err := tls.LoadX509KeyPair(m.cfg.TLSCertFile, m.cfg.TLSKeyFile)
	if err != nil {
		return nil, err
	}
	m.certificate, m.stamps = &c, stamps
	return &c, nil
}

// authorised lets those through who show what is asked for. Where that cannot be read,
// that is nobody.
func (m *Metrics) authorised(next http.Handler) http.Handler {
	if !m.cfg.Secret() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want, err := secret.Read(cmp.Or(m.cfg.BearerTokenFile, m.cfg.PasswordFile))
		if err != nil {
			m.say(partSecret, fmt.Errorf("nobody can read the metrics: %w", err))
			http.Error(w, "what askers must show cannot be read here: see lvsguard status", http.StatusServiceUnavailable)
			return
		}
		m.say(partSecret, nil)
		var good bool
		scheme := "Bearer"
		if m.cfg.BearerTokenFile != "" {
			kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			good = strings.EqualFold(kind, scheme) && same(token, want)
		} else {
			scheme = "Basic"
			user, password, ok := r.BasicAuth()
			// Both are compared, whatever the first one gives.
			userGood, passwordGood := same(user, m.cfg.Username), same(password, want)
			good = ok && userGood && passwordGood
		}
		if !good {
			w.Header().Set("WWW-Authenticate", scheme+` realm="lvsguard"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// same compares in a time that tells nothing of where they differ.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

package alert

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard"
)

// A made-up guard is flooded if a test says so.
type madeUp struct {
	t   testing.TB
	cfg *guard.Config

	mu      sync.Mutex
	floods  int
	entries []guard.Entry
}

func (m *madeUp) Config() *guard.Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cfg
}

func (m *madeUp) Status() *guard.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := calm(time.Now())
	for i := range m.floods {
		underFlood(m.t, s, fmt.Sprintf("192.0.2.1:%d", 80+i), fmt.Sprintf("p%d", i), 5000)
	}
	return s
}

func (m *madeUp) Note(e guard.Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = append(m.entries, e)
}

func (m *madeUp) flood(services int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.floods = services
}

func (m *madeUp) events() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for _, e := range m.entries {
		all = append(all, strings.Join(strings.Fields(fmt.Sprint(e.Event, " ", e.Subject, " ", e.To, " ", e.Receiver)), " "))
	}
	return all
}

func newMadeUp(t testing.TB, text string) *madeUp {
	t.Helper()
	c, err := guard.ParseConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return &madeUp{t: t, cfg: c}
}

func newTestAlerter(m *madeUp, dir string) *Alerter {
	return NewAlerter(AlerterConfig{Guard: m, Host: "lb1", StateDir: dir, Log: slog.New(slog.DiscardHandler)})
}

// start runs a until the returned function is called.
func (a *Alerter) start(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A receiver that hangs for ten minutes delays no look, and is then told what still
// matters: that it was, and is over.
func TestReceiverHangs(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := newMadeUp(t, "")
		a := newTestAlerter(m, dir)
		hang := &place{fail: func(ctx context.Context, _ Notification) error { <-ctx.Done(); return ctx.Err() }}
		stop := a.start(t)
		synctest.Wait()
		a.delivery.SetTargets([]Target{{Name: "hangs", Receiver: hang}})
		for range 20 { // twenty floods within ten minutes
			m.flood(3)
			time.Sleep(15 * time.Second)
			m.flood(0)
			time.Sleep(15 * time.Second)
			if age := time.Since(*a.Report().Time); age > 2*time.Second {
				t.Errorf("the last look was %s ago", age)
			}
			if h := a.Report().Receivers; h[0].Queued > 6 {
				t.Errorf("%d messages wait", h[0].Queued)
			}
		}
		hang.set(nil)
		time.Sleep(time.Hour)
		if h := a.Report().Receivers; h[0].Queued != 0 || h[0].FailingSince != nil {
			t.Errorf("an hour after it is back: %+v", h[0])
		}
		got := hang.seen()
		for i := range 3 {
			last := ""
			for _, line := range got {
				if strings.Contains(line, fmt.Sprintf("project=p%d ", i)) {
					last = line
				}
			}
			if !strings.HasSuffix(last, "resolved") {
				t.Errorf("the last that it heard of p%d: %q", i, last)
			}
		}
		stop()
	})
}

// What a guard that stops could not deliver, the next one does.
func TestStopWithUndelivered(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	var got []string
	works := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !works {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		got = append(got, r.URL.Path)
	}))
	defer srv.Close()
	config := "alerts: {receivers: [{name: hook, webhook: {url: '" + srv.URL + "/told'}}]}"

	m := newMadeUp(t, config)
	m.flood(1)
	a := newTestAlerter(m, dir)
	stop := a.start(t)
	for len(m.events()) == 0 {
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	if diff := cmp.Diff([]string{"alert project=p0 firing"}, m.events()); diff != "" {
		t.Errorf("the first guard's journal (-want +got):\n%s", diff)
	}
	mu.Lock()
	works = true
	mu.Unlock()
	next := newMadeUp(t, config)
	next.flood(1)
	a = newTestAlerter(next, dir)
	stop = a.start(t)
	deadline := time.Now().Add(10 * time.Second)
	delivered := func() bool {
		r := a.Report().Receivers
		return len(r) == 1 && r[0].Delivered == 1
	}
	for time.Now().Before(deadline) && !delivered() {
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff([]string{"/told"}, got); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if events := next.events(); len(events) != 0 {
		t.Errorf("the second guard's journal: %q", events)
	}
}

// A disk that takes nothing hinders nothing.
func TestDiskFull(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	synctest.Test(t, func(t *testing.T) {
		m := newMadeUp(t, "")
		a := newTestAlerter(m, missing)
		to := new(place)
		stop := a.start(t)
		synctest.Wait()
		a.delivery.SetTargets([]Target{{Name: "a", Receiver: to}})
		m.flood(1)
		time.Sleep(time.Minute)
		m.flood(0)
		time.Sleep(time.Minute)
		if got := to.seen(); len(got) != 2 {
			t.Errorf("told %q", got)
		}
		stop()
	})
}

// Secrets are in none of what the Alerter says of itself.
func TestAlerterCanary(t *testing.T) {
	const canary = "canary-7f3a"
	dir := t.TempDir()
	file := filepath.Join(dir, "url")
	if err := os.WriteFile(file, []byte("https://127.0.0.1:1/"+canary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMadeUp(t, "alerts: {receivers: [{name: slack, slack: {url_file: "+file+"}}]}")
	var log strings.Builder
	a := NewAlerter(AlerterConfig{Guard: m, Host: "lb1", StateDir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	err := a.Test(t.Context(), "slack", "uid 0")
	if err == nil || strings.Contains(err.Error()+log.String()+fmt.Sprintf("%+v", a.Report()), canary) {
		t.Errorf("error %v, log %s", err, log.String())
	}
}

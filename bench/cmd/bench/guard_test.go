package main

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAnswersWithin(t *testing.T) {
	thousand := make(answers, 1000)
	for i := range thousand {
		thousand[i] = time.Duration(i + 1)
	}
	tests := []struct {
		name    string
		answers answers
		percent int
		want    time.Duration
	}{
		{"all", thousand, 100, 1000},
		{"99 %", thousand, 99, 990},
		{"one answer", answers{7}, 99, 7},
		{"99 % of less than a hundred", thousand[:50], 99, 50},
		{"99 % of a few more", thousand[:150], 99, 149},
	}
	for _, test := range tests {
		if got := test.answers.within(test.percent); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

// serve has a guard whose status is the text, and counts how often it was asked.
func serve(t *testing.T, code int, text string) (guard, *atomic.Int64) {
	t.Helper()
	b := bench{tmp: t.TempDir()}
	g, err := b.newGuard("guard", "")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", b.file("guard/guard.sock"))
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	s := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/status" {
			t.Errorf("somebody asked for %s", r.URL)
		}
		time.Sleep(time.Millisecond) // which each answer must have taken
		w.WriteHeader(code)
		w.Write([]byte(text))
		asked.Add(1)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return g, &asked
}

func TestGuardStatus(t *testing.T) {
	const text = `{"time": "2026-01-02T03:04:05Z", "capture": {"packets": 3, "handed": 2, "dropped": 1}, "services": [
		{"service": "192.0.2.2:80", "handshakes": null},
		{"service": "192.0.2.1:80", "handshakes": {"name": "192.0.2.1:80", "attempts": 5, "success": {"total": 4, "dupsynack": null}, "visibility": "both"}}]}`
	g, _ := serve(t, http.StatusOK, text)
	s, err := g.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC); !s.Time.Equal(want) || s.Capture.Dropped != 1 {
		t.Errorf("of %s, %+v", s.Time, s.Capture)
	}
	var want outcomes
	want.Attempts, want.Success.Total, want.Visibility = 5, 4, "both"
	got, err := s.of("192.0.2.1:80")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, counts (-want +got):\n%s", err, diff)
	}
	for _, unknown := range []string{"192.0.2.2:80", "192.0.2.3:80"} {
		if _, err := s.of(unknown); err == nil || !strings.Contains(err.Error(), unknown) {
			t.Errorf("%s: the error is %v", unknown, err)
		}
	}
	g, _ = serve(t, http.StatusServiceUnavailable, "not now")
	if _, err := g.status(t.Context()); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("the error is %v", err)
	}
}

func TestGuardAsk(t *testing.T) {
	g, asked := serve(t, http.StatusOK, "{}")
	end := g.ask(t.Context())
	for deadline := time.Now().Add(10 * time.Second); asked.Load() < 5 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	all, err := end()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 5 || int64(len(all)) != asked.Load() || all.within(0) < time.Millisecond || all.within(0) > all.within(100) {
		t.Errorf("asked %d times, the answers took %v", asked.Load(), all)
	}
	g, _ = serve(t, http.StatusInternalServerError, "broken")
	end = g.ask(t.Context())
	if _, err := end(); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("the error is %v", err)
	}
}

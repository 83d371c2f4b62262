package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/bench/mix"
)

func TestDecode(t *testing.T) {
	const text = `{"filters": [
		{"name": "web", "attempts": 1},
		{"name": "all", "attempts": 10, "success": {"total": 4, "dupsyn": 2, "dupsynack": 1, "median": 3},
		 "failure": {"total": 5, "reject": null, "unreach": null, "timeout": 3, "aborted": 2, "dupsyn": 1},
		 "pending": 6, "untracked": 7, "visibility": "client"}],
		"capture": {"packets": null, "handed": 8, "dropped": 9, "undecoded": {"fragment": 1}}}`
	got, capture, err := decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := outcomes{Attempts: 10, Pending: 6, Untracked: 7, Visibility: "client"}
	want.Success.Total, want.Success.DupSYN, want.Success.DupSYNACK = 4, 2, 1
	want.Failure.Total, want.Failure.Timeout, want.Failure.Aborted, want.Failure.DupSYN = 5, 3, 2, 1
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(captured{Handed: 8, Dropped: 9}, capture); diff != "" {
		t.Errorf("capture (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "{}", `{"filters": [{"name": "web"}]}`} {
		if _, _, err := decode([]byte(bad)); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func TestMetric(t *testing.T) {
	const text = "goos: linux\nBenchmarkMix-2   \t 1\t 123456 ns/op\t  95.4 cpu-ns/packet\t 0 allocs/op\nPASS\n"
	if got, err := metric(text, "cpu-ns/packet"); got != 95.4 || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := metric("PASS\n", "cpu-ns/packet"); err == nil {
		t.Error("no metric is no error")
	}
}

func TestReport(t *testing.T) {
	var r report
	r.programs = []program{{"fast", usage{packets: 2e6, cpu: time.Second, rss: 10 << 20}}}
	r.atMost("small", "%.1f", 1.5, 2, "a note")
	r.atMost("great", "%.1f", 2.5, 2)
	r.atLeast("many", "%.0f times", 19, 20)
	if err := r.err(); err != nil {
		t.Errorf("a figure that misses its mark fails the run: %v", err)
	}
	want := expected(mix.Standard().Truth())
	got := want
	r.counted("right", got, want)
	if err := r.err(); err != nil {
		t.Errorf("the truth fails the run: %v", err)
	}
	got.Success.Total--
	r.counted("wrong", got, want)
	r.none("dropped", 1)
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "wrong") || !strings.Contains(err.Error(), "dropped") {
		t.Errorf("wrong counts give the error %v", err)
	}
	var out strings.Builder
	r.write(&out)
	lines := ""
	for line := range strings.Lines(out.String()) {
		lines += strings.Join(strings.Fields(line), " ") + "\n"
	}
	const golden = `
PROGRAM CPU s / 1M PACKETS MAX RSS
fast 0.500 10 MiB

FIGURE WANTED MEASURED
small at most 2.0 1.5 (a note)
great at most 2.0 2.5 MISSED
many at least 20 times 19 times MISSED
right the truth 198020 successes, 1980 rejects, 1000000 pending
wrong the truth 198019 successes, 1980 rejects, 1000000 pending MISSED
dropped 0 1 MISSED
`
	if diff := cmp.Diff(golden, lines); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// needRoot skips a test that makes networks where it may not, or fails it if
// LVSGUARD_PRIVILEGED is 1.
func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("LVSGUARD_PRIVILEGED") == "1":
		t.Fatal("it makes networks, and this run must have it: run it as root")
	default:
		t.Skip("it makes networks: run it as root")
	}
}

// TestTransmit sends a mix to a host, at its times and as fast as can be. That
// each packet comes through is held by transmit itself.
func TestTransmit(t *testing.T) {
	needRoot(t)
	config := mix.Standard().Scaled(0.005)
	config.Span = 500 * time.Millisecond
	p := prepare(config, thereDevice())
	if got, want := uint64(len(p.ends)), config.Truth().Packets; got != want {
		t.Fatalf("%d packets are prepared, want %d", got, want)
	}
	done := make(chan error)
	go func() {
		done <- func() error {
			if err := alone(t.Context()); err != nil {
				return err
			}
			h, err := newHost(t.Context(), false, "sleep", "infinity")
			if err != nil {
				return err
			}
			defer h.stop(unix.SIGKILL)
			sent, err := transmit(h, p, false)
			if sent.took < sent.due || sent.due < config.Span || sent.packets != len(p.ends) || sent.cpu <= 0 {
				t.Errorf("%d packets of %s: sent %+v", len(p.ends), config.Span, sent)
			}
			return err
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestHostEndsEarly: a program that does not watch is told with what it says.
func TestHostEndsEarly(t *testing.T) {
	needRoot(t)
	done := make(chan error)
	go func() {
		err := alone(t.Context())
		if err == nil {
			var h *host
			if h, err = newHost(t.Context(), true, "sh", "-c", "echo no such flag >&2; exit 3"); err == nil {
				err = h.listening()
			}
		}
		done <- err
	}()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "no such flag") {
		t.Errorf("the error is %v", err)
	}
}

package serve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
)

// askTcpeek asks as tcpeek's scripts do.
func askTcpeek(t *testing.T, socket, method string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, method)
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTcpeek(t *testing.T) {
	n := func(v uint64) *uint64 { return &v }
	var rounds atomic.Uint64
	rounds.Store(1)
	status := func() *guard.Status {
		r := rounds.Load()
		half := handshake.Figures{Name: "192.0.2.1:80", Success: handshake.Successes{Total: 7 * r}}
		return &guard.Status{
			Capture: &guard.Capture{Report: capture.Report{Handed: 100 * r, Dropped: 3}},
			Handshakes: []handshake.Figures{{
				Name:    "all",
				Success: handshake.Successes{Total: 10 * r, DupSYN: r, DupSYNACK: n(2 * r)},
				Failure: handshake.Failures{Total: 5 * r, Timeout: 2 * r, Reject: n(2 * r), Unreach: n(r)},
			}},
			Services: []guard.ServiceStatus{{Service: key(t, half.Name), Handshakes: &half}, {Service: key(t, "udp:192.0.2.1:53")}},
		}
	}
	socket := socketPath(t)
	tcpeek, err := ListenTcpeek(Config{Socket: socket, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tcpeek.Run(ctx, statusFunc(status)) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	answer := func(r uint64) string {
		return fmt.Sprintf(`[{"all":{"success":{"total":%d,"dupsyn":%d,"dupsynack":%d},"failure":{"total":%d,"timeout":%d,"reject":%d,"unreach":%d}}},`+
			`{"192.0.2.1:80":{"success":{"total":%d,"dupsyn":0},"failure":{"total":0,"timeout":0}}},`, 10*r, r, 2*r, 5*r, 2*r, 2*r, r, 7*r)
	}
	for _, step := range []struct {
		method string
		rounds uint64
		want   uint64 // how many rounds it answers for
	}{
		{"GET\r\n", 1, 1},
		{"REFRESH\r\n", 1, 1}, // the first time, since the beginning
		{"REFRESH\r\n", 1, 0},
		{"REFRESH\n", 4, 3},
		{"GET\r\n", 4, 4}, // takes nothing away
		{"REFRESH\r\n", 6, 2},
		{"REFRESH\r\n", 1, 1}, // the capture began anew
		{"what?\r\n", 1, 1},   // anything else is GET, as it is for tcpeek
	} {
		rounds.Store(step.rounds)
		want := answer(step.want) + fmt.Sprintf(`{"pcap":{"stats":{"recv":%d,"drop":3,"ifdrop":0}}}]`, 100*step.rounds)
		if got := askTcpeek(t, socket, step.method); got != want {
			t.Errorf("%q after %d rounds:\ngot  %s\nwant %s", step.method, step.rounds, got, want)
		}
	}
}

// Each poller has a baseline of its own, and few are kept.
func TestTcpeekPollers(t *testing.T) {
	status := func(total uint64) *guard.Status {
		return &guard.Status{Handshakes: []handshake.Figures{{Name: "all", Success: handshake.Successes{Total: total}}}}
	}
	tcpeek := new(Tcpeek)
	refresh := func(who string, total uint64) string {
		text := string(tcpeek.answer(status(total), true, who))
		_, text, _ = strings.Cut(text, `"total":`)
		n, _, _ := strings.Cut(text, ",")
		return n
	}
	for i, step := range []struct {
		who   string
		total uint64
		want  string
	}{
		{"munin", 10, "10"}, {"ganglia", 15, "15"}, {"munin", 20, "10"}, {"ganglia", 20, "5"}, {"munin", 20, "0"},
	} {
		if got := refresh(step.who, step.total); got != step.want {
			t.Errorf("step %d: %s got %s, want %s", i, step.who, got, step.want)
		}
	}
	for i := range 2 * maxPollers {
		refresh(fmt.Sprint(i), 30)
	}
	if got := refresh("munin", 30); got != "30" || len(tcpeek.pollers) != maxPollers {
		t.Errorf("munin got %s of a forgotten baseline; %d pollers are kept", got, len(tcpeek.pollers))
	}
	if got := string(tcpeek.answer(&guard.Status{}, false, "munin")); got != "[]" {
		t.Errorf("nothing is watched: %s", got)
	}
}

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
	"github.com/lvsguard/lvsguard/internal/netns"
)

// An endpoint is a webhook on the host that notes what it is sent.
type endpoint struct {
	url string

	mu  sync.Mutex
	got []alert.Notification
}

func (h *host) endpoint() *endpoint {
	h.t.Helper()
	e := new(endpoint)
	var l net.Listener
	var err error
	h.Do(h.t, func() { l, err = net.Listen("tcp", "127.0.0.1:0") })
	if err != nil {
		h.t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		var n alert.Notification
		if err := json.Unmarshal(text, &n); err != nil {
			h.t.Errorf("sent: %v: %s", err, text)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.got = append(e.got, n)
	}))
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	h.t.Cleanup(srv.Close)
	e.url = srv.URL
	return e
}

// once waits until n messages have come, and returns them.
func (e *endpoint) once(t *testing.T, n int) []alert.Notification {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		e.mu.Lock()
		got := slices.Clone(e.got)
		e.mu.Unlock()
		if len(got) >= n {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d messages, want %d: %+v", len(got), n, got)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// synFrame is a SYN of a flood: window 0 and no options. Its checksums are not
// looked at where it is counted.
func synFrame(to net.HardwareAddr, sequence uint32) []byte {
	b := make([]byte, 14+20+20)
	copy(b, to)
	copy(b[6:], []byte{2, 0, 0, 0, 0, 1})
	b[12] = 0x08
	ip := b[14:34]
	ip[0], ip[3], ip[8], ip[9] = 0x45, 40, 64, 6
	copy(ip[12:], []byte{198, 51, 100, byte(sequence)})
	copy(ip[16:], []byte{192, 0, 2, 1})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	tcp := b[34:]
	binary.BigEndian.PutUint16(tcp, uint16(1024+sequence%60000))
	binary.BigEndian.PutUint16(tcp[2:], 80)
	binary.BigEndian.PutUint32(tcp[4:], sequence)
	tcp[12], tcp[13] = 0x50, 0x02
	return b
}

// A flood is one message when it begins and one when it is over, with a restart in
// between.
func TestFloodIsTold(t *testing.T) {
	h := newHost(t)
	attacker := netns.New(t)
	netns.Join(t, attacker, "wire", h.Host, "eth0")
	h.Run(t, "ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
	var device *net.Interface
	var err error
	h.Do(t, func() { device, err = net.InterfaceByName("eth0") })
	if err != nil {
		t.Fatal(err)
	}
	e := h.endpoint()
	h.configure(fmt.Sprintf(`
project: shop
mode: auto
detect: {rate: 20, for: 1s, clear_for: 2s}
handshakes: {enabled: false}
alerts:
  receivers:
    - {name: hook, severities: [critical], webhook: {url: "%s/told"}}
    - {name: page, command: {argv: [%s]}}
  rules:
    - {name: flood, keep: 1s}
    - {name: armed, enabled: false}  # a lease that is found after a restart lasts up to 60s
    - {name: source-unknown, enabled: false}
    - {name: pressure-warning, enabled: false}
    - {name: pressure-critical, enabled: false}
    - {name: kernel, enabled: false}
`, e.url, h.path("page")))
	// A command gets the message on its standard input.
	if err := os.WriteFile(h.path("page"), []byte("#!/bin/sh\ncat >>"+h.path("paged")+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := h.guard()
	h.looks(2)

	if out := h.run("alerts", "test", "hook"); out != "hook: delivered\n" {
		t.Errorf("alerts test says %q", out)
	}
	h.fails(h.command("alerts", "test", "hok"), `no receiver "hok"; there are: hook, page`)
	if first := e.once(t, 1); first[0].State != alert.Test {
		t.Errorf("the sample: %+v", first[0])
	}

	sender := attacker.Sender(t, "wire")
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		for sequence := uint32(0); ; sequence++ {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				if err := sender.Send(synFrame(device.HardwareAddr, sequence)); err != nil {
					t.Errorf("send: %v", err)
					return
				}
			}
		}
	})
	e.once(t, 2)
	if out := h.run("alerts"); !strings.Contains(out, "CRITICAL project=shop") || !strings.Contains(out, "flood on 192.0.2.1:80") || !strings.Contains(out, "hook ") {
		t.Errorf("alerts:\n%s", out)
	}
	d.end(syscall.SIGTERM)
	d = h.guard()
	h.looks(3)
	close(stop)
	flood.Wait()
	told := e.once(t, 3)
	h.looks(3)
	if now := e.once(t, 3); len(now) != 3 {
		t.Errorf("%d messages, want 3", len(now))
	}
	begin, end := told[1], told[2]
	if begin.State != alert.Firing || end.State != alert.Resolved || begin.ID != end.ID || begin.Group != "project=shop" || begin.Severity != alert.Critical {
		t.Errorf("told:\n%+v\n%+v", begin, end)
	}
	if a := begin.Alerts[0]; a.Rule != "flood" || a.Subject != "192.0.2.1:80" || !strings.Contains(a.Summary, "SYN/s bear a signature") || a.Peak < 20 {
		t.Errorf("the alert: %+v", a)
	}
	if len(begin.Actions) == 0 || begin.Actions[0] != "armed 192.0.2.1:80 (auto)" || end.Until.Sub(end.Since) < 3*time.Second {
		t.Errorf("what the guard did: %q; it lasted %s", begin.Actions, end.Until.Sub(end.Since))
	}
	if text, err := os.ReadFile(h.path("paged")); err != nil || strings.Count(string(text), `"resolved"`) != 1 {
		t.Errorf("the command got %s, %v", text, err)
	}
	d.end(syscall.SIGTERM)

	var events []string
	for line := range strings.Lines(h.run("journal", "--json")) {
		var entry guard.Entry
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Event == guard.EventAlert || entry.Event == guard.EventUndelivered {
			events = append(events, string(entry.Event)+" "+entry.Subject+" "+entry.To+" "+entry.Kind)
		}
	}
	if diff := cmp.Diff([]string{"alert project=shop firing critical", "alert project=shop resolved critical"}, events); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

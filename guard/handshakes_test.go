package guard

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

// fakeCaptures opens captures, and keeps the last.
type fakeCaptures struct {
	err    error
	opened int
	last   *fakeCapture
}

type fakeCapture struct {
	cfg      HandshakesConfig
	services []handshake.Service
	armed    []netip.AddrPort
	success  uint64
	failure  uint64
	err      error
	die      chan error
	share    float64
	packets  func(from, to time.Time) []capture.Packet // nil: none
	asked    int
}

func (f *fakeCaptures) open(cfg HandshakesConfig, _ capture.RecorderConfig, services []handshake.Service) (Handshakes, error) {
	if f.err != nil {
		return nil, f.err
	}
	f.opened++
	f.last = &fakeCapture{cfg: cfg, services: services, die: make(chan error)}
	return f.last, nil
}

func (f *fakeCapture) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-f.die:
		return err
	}
}

func (f *fakeCapture) Figures() ([]handshake.Figures, Capture, error) {
	figures := []handshake.Figures{{Name: handshake.All}}
	for _, s := range f.services {
		figures = append(figures, handshake.Figures{
			Name: s.Name, Visibility: s.Visibility,
			Success: handshake.Successes{Total: f.success}, Failure: handshake.Failures{Total: f.failure},
			Signature: handshake.Signed{Attempts: 9, Completed: 1}, Complete: &handshake.HistogramValue{},
		})
	}
	return figures, Capture{Report: capture.Report{Handed: 5}, Filter: "ebpf"}, f.err
}

func (f *fakeCapture) SetServices(s []handshake.Service) error { f.services = s; return nil }
func (f *fakeCapture) SetArmed(a []netip.AddrPort) error       { f.armed = a; return nil }
func (f *fakeCapture) SetSampling(share float64) error         { f.share = share; return nil }

func (f *fakeCapture) Recent(from, to time.Time) (iter.Seq[capture.Packet], capture.Recorded) {
	f.asked++
	if f.packets == nil {
		return slices.Values[[]capture.Packet](nil), capture.Recorded{From: from, To: to}
	}
	packets := f.packets(from, to)
	n := uint64(len(packets))
	return slices.Values(packets), capture.Recorded{From: from, To: to, Seen: n, Kept: n}
}

func served(t *testing.T, service string, methods ...ipvs.Method) ipvs.Service {
	t.Helper()
	k, err := ipvs.ParseKey(service)
	if err != nil {
		t.Fatal(err)
	}
	s := ipvs.Service{Key: k}
	for _, m := range methods {
		s.RealServers = append(s.RealServers, ipvs.RealServer{Method: m})
	}
	return s
}

func TestHandshakesFollowServicesAndLeases(t *testing.T) {
	w := newWorld(t, "")
	w.ipvs.services = []ipvs.Service{served(t, "192.0.2.1:80", ipvs.DR, ipvs.DR), served(t, "udp:192.0.2.1:53", ipvs.DR)}
	w.tick(1)
	c := w.captures.last
	at := netip.MustParseAddrPort("192.0.2.1:80")
	want := []handshake.Service{{Name: "192.0.2.1:80", Addresses: []netip.AddrPort{at}, Visibility: handshake.Client}}
	if diff := cmp.Diff(want, c.services, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}

	w.ipvs.services = append(w.ipvs.services, served(t, "192.0.2.2:443", ipvs.NAT), served(t, "192.0.2.3:443", ipvs.NAT, ipvs.TUN), served(t, "192.0.2.4:443"))
	c.success, c.failure = 100, 100
	w.tick(1)
	visibilities := make(map[string]handshake.Visibility)
	for _, s := range c.services {
		visibilities[s.Name] = s.Visibility
	}
	if diff := cmp.Diff(map[string]handshake.Visibility{
		"192.0.2.1:80": handshake.Client, "192.0.2.2:443": handshake.Both, "192.0.2.3:443": handshake.Client, "192.0.2.4:443": handshake.Auto,
	}, visibilities); diff != "" {
		t.Error(diff)
	}

	if _, err := w.command(w.now, Command{Verb: VerbArm, Service: &w.ipvs.services[0].Key, Seconds: 60}, "test"); err != nil {
		t.Fatal(err)
	}
	w.tick(1)
	if len(c.armed) != 1 || c.armed[0] != at {
		t.Errorf("armed: %v", c.armed)
	}

	c.success, c.failure = 190, 110
	w.tick(1)
	s := w.service("192.0.2.1:80")
	// 190 and 110 since the beginning, all within the last minute.
	if s.Completion == nil || *s.Completion != 190./300 {
		t.Errorf("completion %v", s.Completion)
	}
	if s.Handshakes == nil || s.Handshakes.Success.Total != 190 || s.Handshakes.Complete != nil {
		t.Errorf("handshakes %+v", s.Handshakes)
	}
	if u := w.service("udp:192.0.2.1:53"); u.Completion != nil || u.Handshakes != nil || u.Unknown["handshakes"] == "" {
		t.Errorf("a UDP service has handshakes: %+v", u)
	}
	if status := w.Status(); len(status.Handshakes) != 1 || status.Handshakes[0].Name != handshake.All || status.Capture.Handed != 5 {
		t.Errorf("of everything: %+v", status.Handshakes)
	}
	w.tick(70)
	if s := w.service("192.0.2.1:80"); s.Completion != nil || s.Unknown["completion"] != "no handshake ended within the last minute" {
		t.Errorf("a minute later: completion %v, %v", s.Completion, s.Unknown)
	}
	c.success += 30
	w.tick(1)
	if s := w.service("192.0.2.1:80"); s.Completion == nil || *s.Completion != 1 {
		t.Errorf("of the last minute alone: completion %v", s.Completion)
	}
}

// A capture that cannot be had, or that dies, is known as unknown, tried again,
// and stops nothing else.
func TestHandshakesUnknown(t *testing.T) {
	w := newWorld(t, "")
	w.ipvs.services = []ipvs.Service{served(t, "192.0.2.1:80", ipvs.NAT)}
	w.captures.err = errors.New("capture wants CAP_NET_RAW")
	w.tick(3)
	s := w.service("192.0.2.1:80")
	if got := w.Status().Unknown[SourceCapture]; got != "capture wants CAP_NET_RAW" || s.Unknown["completion"] != got || s.Verdict != Calm {
		t.Errorf("unknown: %q, %v, verdict %s", got, s.Unknown, s.Verdict)
	}
	w.captures.err = nil
	w.tick(4)
	if why, unknown := w.Status().Unknown[SourceCapture]; unknown || w.captures.opened != 1 {
		t.Errorf("7 s later: %q, opened %d times", why, w.captures.opened)
	}
	w.captures.last.die <- errors.New("network is down")
	deadline := time.Now().Add(5 * time.Second)
	for w.Status().Unknown[SourceCapture] != "network is down" {
		if time.Now().After(deadline) {
			t.Fatal("a capture that ended is not missed")
		}
		w.Daemon.tick(t.Context(), w.now)
	}
	w.tick(6)
	if why, unknown := w.Status().Unknown[SourceCapture]; unknown || w.captures.opened != 2 {
		t.Errorf("after it ended: %q, opened %d times", why, w.captures.opened)
	}
	// The first is keepalived's configuration, which is not there.
	want := []string{"source  >unknown", "source  >unknown", "source  unknown>", "source  >unknown", "source  unknown>"}
	if diff := cmp.Diff(want, w.journalled(EventSource)); diff != "" {
		t.Error(diff)
	}
}

func TestHandshakesConfiguration(t *testing.T) {
	w := newWorld(t, "handshakes: {enabled: false}")
	w.tick(1)
	if w.captures.opened != 0 || w.Status().Unknown[SourceCapture] != "" {
		t.Error("handshakes are watched although they are not wanted")
	}
	w.configure("handshakes: {interfaces: [eth7], filters: ['web:in@%:80']}")
	cfg, err := w.Daemon.load()
	if err := w.reload(w.now, cfg, err); err != nil {
		t.Fatal(err)
	}
	w.tick(1)
	first := w.captures.last
	if first == nil || first.cfg.Interfaces[0] != "eth7" || first.cfg.Timeout != handshake.DefaultTimeout {
		t.Fatalf("opened with %+v", first)
	}
	if err := w.reload(w.now, cfg, nil); err != nil {
		t.Fatal(err)
	}
	w.tick(1)
	if w.captures.opened != 1 {
		t.Error("the same configuration opened it again")
	}
	w.configure("handshakes: {timeout: 5s}")
	cfg, err = w.Daemon.load()
	if err := w.reload(w.now, cfg, err); err != nil {
		t.Fatal(err)
	}
	w.tick(1)
	if w.captures.opened != 2 || w.captures.last.cfg.Timeout != 5*time.Second {
		t.Errorf("opened %d times, the last with %+v", w.captures.opened, w.captures.last.cfg)
	}

	for text, want := range map[string]string{
		"handshakes: {filters: [web]}":                  `filter "web": no colon`,
		"handshakes:\n  filters: ['a:in@*', 'a:out@*']": "two of that name",
		"handshakes: {timeout: 0s}":                     "handshakes.timeout: want a duration from 1s to 1h",
		"handshakes: {capacity: 5}":                     "handshakes.capacity: want a number from 1024",
		"handshakes: {workers: 9}":                      "handshakes.workers: want 0",
		"handshakes: {visibility: half}":                "want auto, both or client",
		"handshakes: {visibilty: both}":                 `did you mean "visibility"?`,
	} {
		if _, err := ParseConfig(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%q: got %v, want the line and %q", text, err, want)
		}
	}
}

func TestDropsSigned(t *testing.T) {
	ranged := func(min, max uint16) *nft.Range { return &nft.Range{Min: min, Max: max} }
	for _, tt := range []struct {
		name      string
		signature nft.Signature
		want      bool
	}{
		{"the default", nft.DefaultSignatures()[0], true},
		{"wider", nft.Signature{Window: ranged(0, 100)}, true},
		{"another window", nft.Signature{Window: ranged(1024, 1024), Length: ranged(40, 40)}, false},
		{"another length", nft.Signature{Window: ranged(0, 0), Length: ranged(44, 44)}, false},
		{"only some", nft.Signature{Window: ranged(0, 0), Length: ranged(40, 40), TTL: ranged(1, 64)}, false},
	} {
		if got := dropsSigned([]nft.Signature{tt.signature}); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

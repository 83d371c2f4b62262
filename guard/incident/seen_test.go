package incident

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestSeen(t *testing.T) {
	s := NewSeen()
	now := onset
	const sources = 200_000
	for i := range sources {
		s.Add(now, nth(i))
	}
	for i := range sources {
		if !s.Has(nth(i)) {
			t.Fatalf("%s was forgotten", nth(i))
		}
	}
	var wrong int
	for i := range sources {
		if s.Has(nth(sources + i)) {
			wrong++
		}
	}
	if wrong > sources/1000 || s.Full() {
		t.Errorf("%d of %d others, full: %t", wrong, sources, s.Full())
	}
	other := netip.MustParseAddr("2001:db8::7")
	for _, step := range []struct {
		after time.Duration
		has   bool
	}{{31 * time.Minute, true}, {31 * time.Minute, true}, {31 * time.Minute, false}} {
		now = now.Add(step.after)
		s.Add(now, other)
		if s.Has(nth(1)) != step.has || !s.Has(other) {
			t.Errorf("at %s: %t, want %t", now.Sub(onset), s.Has(nth(1)), step.has)
		}
	}
	s.Add(now.Add(24*time.Hour), nth(3))
	if s.Has(other) {
		t.Error("known after a day")
	}
	for i := range seenMost + 1000 {
		s.Add(now.Add(24*time.Hour), nth(i))
	}
	if !s.Full() {
		t.Error("not full")
	}
}

func TestCompleted(t *testing.T) {
	sc := scenes["window0"]
	got := slices.Collect(Completed(slices.Values(sc.packets()), func(at netip.AddrPort) bool { return at == service }))
	if len(got) < 1900 || len(got) > sc.good {
		t.Errorf("%d of %d clients", len(got), sc.good)
	}
	if got := slices.Collect(Completed(slices.Values(sc.packets()), func(netip.AddrPort) bool { return false })); len(got) != 0 {
		t.Errorf("%d of another service", len(got))
	}
}

// Clients whose SYNs are dropped with the flood's are counted.
func TestCollateral(t *testing.T) {
	known := map[netip.Addr]bool{nth(1): true}
	a := NewAnalysis(AnalysisConfig{Addresses: []netip.AddrPort{service}, Signed: window0, Known: func(a netip.Addr) bool { return known[a] }})
	for i := range 10 {
		a.Dropping(i >= 5)
		f := frame{src: netip.AddrPortFrom(nth(i%3), uint16(1000+i)), dst: service, flags: 2}
		p := f.packet(int64(i) * 1e9)
		a.Add(&p)
	}
	c := a.Collateral()
	if c.Sampled != 5 || *c.Packets != 1 || !slices.Equal(c.Sources, []netip.Addr{nth(1)}) {
		t.Errorf("%+v, %d packets", c, *c.Packets)
	}
}

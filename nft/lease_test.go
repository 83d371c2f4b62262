package nft

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestArm(t *testing.T) {
	s := newSite(t)
	table := open(t, s.director, Config{})
	watched := services("192.0.2.1:80", "192.0.2.2:0", "[2001:db8::1]:443", "[2001:db8::2]:0")
	ensure(t, table, watched)
	leases := func(d ...time.Duration) map[netip.AddrPort]time.Duration {
		m := map[netip.AddrPort]time.Duration{}
		for i, d := range d {
			if d != 0 {
				m[watched[i]] = d
			}
		}
		return m
	}
	apply := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	armed(t, table, leases())
	apply(table.Arm(leases(time.Minute, time.Hour, 2*time.Minute, MaxLease)))
	armed(t, table, leases(time.Minute, time.Hour, 2*time.Minute, MaxLease))
	apply(table.Arm(leases(10*time.Minute, 30*time.Second))) // longer, shorter, and two that stay
	armed(t, table, leases(10*time.Minute, 30*time.Second, 2*time.Minute, MaxLease))
	apply(table.Disarm(services("192.0.2.1:80", "[2001:db8::2]:0", "203.0.113.1:1")))
	armed(t, table, leases(0, 30*time.Second, 2*time.Minute))
	apply(table.Disarm(watched))
	apply(table.Disarm(watched))
	armed(t, table, leases())
	apply(table.Arm(nil))
	apply(table.Check())

	for _, d := range []time.Duration{-time.Second, 0, time.Millisecond, MinLease - 1, MaxLease + 1} {
		if err := table.Arm(map[netip.AddrPort]time.Duration{watched[0]: time.Minute, watched[1]: d}); err == nil {
			t.Errorf("arm for %v: no error", d)
		}
	}
	err := table.Arm(map[netip.AddrPort]time.Duration{watched[0]: time.Minute, netip.MustParseAddrPort("192.0.2.9:80"): time.Minute})
	if err == nil || !strings.Contains(err.Error(), "192.0.2.9:80") {
		t.Errorf("arm a service that is not watched: %v", err)
	}
	armed(t, table, leases())
}

// TestLapse checks that a lease ends by itself, and that one without a time
// that somebody adds by hand does so too.
func TestLapse(t *testing.T) {
	s := newSite(t)
	table := open(t, s.director, Config{})
	watched := services("192.0.2.1:80")
	ensure(t, table, watched)
	if err := table.Arm(map[netip.AddrPort]time.Duration{watched[0]: MinLease}); err != nil {
		t.Fatal(err)
	}
	suspect := frame{src: "198.51.100.7", dst: "192.0.2.1", dport: 80}.build(false)
	start := time.Now()
	for s.seen(t) == 0 {
		if time.Since(start) > 5*time.Second {
			t.Fatal("a lease of 100 ms still holds")
		}
		if err := s.wire.Send(suspect); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < MinLease/2 {
		t.Errorf("the lease held for %v only", took)
	}
	armed(t, table, map[netip.AddrPort]time.Duration{})
	if err := table.Check(); err != nil {
		t.Errorf("a lapsed lease is no damage: %v", err)
	}
	s.director.Run(t, "nft", "add element inet lvsguard armed4 { 192.0.2.1 . 80 }")
	armed(t, table, map[netip.AddrPort]time.Duration{watched[0]: defaultLease})
}

// TestRenewal renews leases all the time while a flood comes in, some of them
// at the moment when they end. Renewals at a distance let nothing through.
func TestRenewal(t *testing.T) {
	s := newSite(t)
	table := open(t, s.director, Config{})
	watched := services("192.0.2.1:80", "[2001:db8::1]:443")
	ensure(t, table, watched)
	var frames [][]byte
	for i := range 32 {
		frames = append(frames,
			frame{src: fmt.Sprintf("198.51.100.%d", i+1), dst: "192.0.2.1", dport: 80}.build(false),
			frame{src: fmt.Sprintf("2001:db8:f::%d", i+1), dst: "2001:db8::1", dport: 443}.build(false))
	}
	renew := func(d time.Duration) {
		t.Helper()
		if err := table.Arm(map[netip.AddrPort]time.Duration{watched[0]: d, watched[1]: d}); err != nil {
			t.Fatal(err)
		}
	}
	renew(time.Minute)
	var stop atomic.Bool
	done := make(chan error)
	go func() {
		for !stop.Load() {
			if err := s.wire.Send(frames...); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	const renewals = 100
	for range renewals {
		renew(time.Minute)
		time.Sleep(10 * time.Millisecond)
	}
	// Before 6.17 a processor that is held up in the middle of a lookup can miss the
	// new element after the old one has gone.
	if n := s.seen(t); n > 1 {
		t.Errorf("%d packets got through while leases were renewed", n)
	} else if n == 1 {
		t.Log("1 packet got through while leases were renewed")
	}
	before := s.seen(t)
	const replacements = 20
	for i := range replacements {
		s.director.Run(t, "nft", "insert rule inet lvsguard suspect4any accept")
		ensure(t, table, append(watched, services("192.0.2.7:80")[i%2:]...))
	}
	if n := s.seen(t) - before; n != 0 {
		t.Errorf("%d packets got through while the table was replaced", n)
	}
	stop.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c, err := table.Counters()
	if err != nil {
		t.Fatal(err)
	}
	v4, v6 := c.Services[watched[0]], c.Services[watched[1]]
	if v4.Dropped.Packets == 0 || v6.Dropped.Packets == 0 {
		t.Errorf("dropped %d and %d packets", v4.Dropped.Packets, v6.Dropped.Packets)
	}
	t.Logf("%d renewals and %d replacements, %d packets dropped",
		renewals, replacements, v4.Dropped.Packets+v6.Dropped.Packets)

	// A lease that ends while it is renewed makes the kernel refuse the batch.
	for range 30 {
		renew(MinLease)
		time.Sleep(MinLease - 3*time.Millisecond)
	}
}

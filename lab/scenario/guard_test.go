//go:build lab

package scenario

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
	"github.com/lvsguard/lvsguard/nft"
)

// The lab's floods are small, because its processors are emulated: thresholds are, too. How long a flood must last is
// as it is by default, because figures speak of it; clear_for is short only to save time. What a flood has left in the
// table is no matter here: half_open is out of reach.
const (
	onset    = 3 * time.Second
	clearFor = 5 * time.Second
	detect   = "detect: {rate: 200, for: 3s, clear_for: 5s, total_rate: 600, half_open: 1000000}\n"
	observe  = "mode: observe\n" + detect
	auto     = "mode: auto\n" + detect
)

// night is a flood that outlasts every scenario, at a rate that an emulated director bears.
var night = flood.Config{Rate: 1500, For: 5 * time.Minute}

// A gauge reads a director's table without starting a program for it.
type gauge struct {
	t     *testing.T
	table *nft.Table
}

func newGauge(t *testing.T, d *site.Director) *gauge {
	t.Helper()
	g := &gauge{t: t}
	err := d.Do(func() (err error) {
		g.table, err = nft.Open(nft.Config{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.table.Close() })
	return g
}

// dropped is the number of packets dropped since the table was made; 0 without a table.
func (g *gauge) dropped() uint64 {
	return g.sum(func(c nft.ServiceCounters) nft.Count { return c.Dropped })
}

// suspect is the number of packets that bore a signature.
func (g *gauge) suspect() uint64 {
	return g.sum(func(c nft.ServiceCounters) nft.Count { return c.Suspect })
}

func (g *gauge) sum(of func(nft.ServiceCounters) nft.Count) uint64 {
	g.t.Helper()
	counters, err := g.table.Counters()
	if err != nil {
		return 0
	}
	var n uint64
	for _, c := range counters.Services {
		n += of(c).Packets
	}
	return n
}

// drops waits until something is dropped that was not dropped before.
func (g *gauge) drops(limit time.Duration) {
	g.t.Helper()
	before := g.dropped()
	site.Wait(g.t, limit, "the flood is dropped", func() bool {
		now := g.dropped()
		before = min(before, now) // a table made anew counts from 0
		return now > before
	})
}

// journal gives what the guard on this director wrote, a short line an entry.
func journal(t *testing.T, d *site.Director) string {
	t.Helper()
	var lines strings.Builder
	for line := range strings.Lines(d.Lvsguard("journal", "--json")) {
		var e struct{ Event, Service, Instance, Source, From, To, By, Reason string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("journal: %q: %v", line, err)
		}
		fmt.Fprintf(&lines, "%s %s%s%s %s>%s %s\n", e.Event, e.Service, e.Instance, e.Source, e.From, e.To, e.By)
	}
	return lines.String()
}

// TestFlood is the main job: the same flood in observe mode and in auto mode, from its first packet to its end.
func TestFlood(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		d.StartGuard(observe)
		g := newGauge(t, d)

		// Without drops, each packet of the flood is a connection.
		before, sent := d.Admitted(), uint64(5000)
		s.Attacker.Flood(flood.Config{Rate: night.Rate, Count: sent}).Wait()
		if verdict := d.Service(0).Verdict; verdict != "flood" && verdict != "rising" {
			t.Errorf("at the end of a flood of %d packets the guard says %s", sent, verdict)
		}
		unguarded := float64(d.Admitted()-before) / float64(sent)
		if unguarded < 0.95 {
			t.Errorf("in observe mode %.1f %% of the flood became connections: something else drops it", 100*unguarded)
		}
		if n := g.dropped(); n != 0 {
			t.Errorf("observing, the guard dropped %d packets", n)
		}
		d.WaitVerdict(0, "calm", clearFor+10*time.Second)

		d.Lvsguard("mitigate", "auto")
		f := s.Attacker.Flood(night)
		g.drops(20 * time.Second)
		took := time.Since(f.Began)
		t.Logf("first drop %.2f s after the flood's first packet", took.Seconds())
		if took > onset+2*time.Second {
			t.Errorf("first drop after %s, want at most for (%s) and 2 s", took, onset)
		}
		if by := leaseOf(d, 0); by != "auto" {
			t.Errorf("the lease is by %q", by)
		}

		// Armed: what the table grows by, against what the same flood would add; and clients are served.
		admitted, offered := d.Admitted(), f.Sent()
		served := s.Client.Get(100)
		site.Wait(t, 20*time.Second, "5000 more packets of flood", func() bool { return f.Sent() > offered+5000 })
		grown := float64(d.Admitted()-admitted-served) / (unguarded * float64(f.Sent()-offered))
		t.Logf("armed, the table grew by %.3f %% of what the flood adds unguarded; %d of 100 requests served", 100*grown, served)
		if grown > 0.01 {
			t.Errorf("the table grew by %.2f %%, want at most 1 %%", 100*grown)
		}
		if served != 100 {
			t.Errorf("%d of 100 requests served", served)
		}

		f.Stop()
		ended := time.Now()
		site.Wait(t, clearFor+20*time.Second, "the lease is lifted", func() bool {
			leases, err := g.table.Leases()
			return err == nil && len(leases) == 0
		})
		took = time.Since(ended)
		t.Logf("disarmed %.2f s after the flood's end", took.Seconds())
		// A tick may have counted nothing of the flood already when it ended.
		if took < clearFor-time.Second || took > clearFor+2*time.Second {
			t.Errorf("disarmed after %s, want clear_for (%s) and at most 2 s", took, clearFor)
		}
		d.WaitVerdict(0, "calm", 5*time.Second)
		t.Logf("journal:\n%s", journal(t, d))
	}, site.DR4, site.NAT6)
}

// TestFailoverUnderFlood compares what a new master admits in its first ten seconds, with the guard observing and with
// it in auto mode.
func TestFailoverUnderFlood(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		for _, d := range s.Directors {
			d.StartGuard(observe)
		}
		// admits fails over and gives the share of the flood that the new master lets in.
		admits := func() (share float64, from, to *site.Director) {
			from, to = s.Master(), s.Backup()
			g := newGauge(t, to)
			before, admitted := g.suspect(), to.Admitted()
			s.FailOver()
			began := time.Now()
			site.Wait(t, 30*time.Second, "ten seconds of flood", func() bool { return time.Since(began) > 10*time.Second })
			offered := g.suspect() - before
			if offered < 1000 {
				t.Fatalf("only %d packets of flood reached %s in ten seconds", offered, to.Name)
			}
			return float64(to.Admitted()-admitted) / float64(offered), from, to
		}
		f := s.Attacker.Flood(night)
		unguarded, from, to := admits()
		f.Stop()

		from.StartKeepalived()
		site.Wait(t, limit, from.Name+" is master again", func() bool { return s.Master() == from })
		for _, d := range s.Directors {
			d.WaitVerdict(0, "calm", clearFor+10*time.Second)
			d.Lvsguard("mitigate", "auto")
		}
		site.Wait(t, 5*time.Second, "the backup is armed before anything reaches it", func() bool { return leaseOf(to, 0) == "prearm" })
		f = s.Attacker.Flood(night)
		newGauge(t, from).drops(20 * time.Second)
		guarded, _, _ := admits()
		f.Stop()
		t.Logf("in its first 10 s the new master admits %.1f %% of the flood unguarded, %.3f %% guarded", 100*unguarded, 100*guarded)
		if unguarded < 0.5 {
			t.Errorf("unguarded, only %.1f %% of the flood was admitted: there is nothing to compare with", 100*unguarded)
		}
		if guarded > 0.01*unguarded {
			t.Errorf("guarded, the new master admits %.2f %% of what it admits unguarded, want at most 1 %%", 100*guarded/unguarded)
		}
		if served := s.Client.Get(20); served != 20 {
			t.Errorf("%d of 20 requests served by the new master", served)
		}
	}, site.DR4)
}

// TestRestart kills the guard in mid-flood, and restarts it as systemd does: no packet of the flood gets through.
func TestRestart(t *testing.T) {
	underFlood(t, site.Config{}, func(t *testing.T, s *site.Site, d *site.Director, guard *site.Process, g *gauge) {
		admitted, since := d.Admitted(), g.dropped()
		guard.Kill()
		away := time.Now()
		site.Wait(t, 10*time.Second, "three seconds without a guard", func() bool { return time.Since(away) > 3*time.Second })
		guard = d.StartGuard(auto)
		if by := leaseOf(d, 0); by != "restart" && by != "auto" {
			t.Errorf("after the restart the lease is by %q", by)
		}
		if status := guard.Stop(); status != 0 {
			t.Errorf("SIGTERM: exit status %d", status)
		}
		d.StartGuard(auto)
		site.Wait(t, 20*time.Second, "the lease is the guard's own again", func() bool { return leaseOf(d, 0) == "auto" })
		if n := d.Admitted() - admitted; n != 0 {
			t.Errorf("%d packets of the flood were let in while the guard was killed and restarted", n)
		}
		t.Logf("%d packets dropped meanwhile, none admitted", g.dropped()-since)
	}, site.DR4)
}

// TestKilledForGood: without a guard the kernel lifts the mitigation by itself.
func TestKilledForGood(t *testing.T) {
	t.Parallel() // it mostly waits, as TestStopped does
	underFlood(t, site.Config{}, func(t *testing.T, s *site.Site, d *site.Director, guard *site.Process, _ *gauge) {
		guard.Kill()
		killed, admitted := time.Now(), d.Admitted()
		site.Wait(t, 90*time.Second, "the flood is let in again", func() bool { return d.Admitted() > admitted })
		took := time.Since(killed)
		t.Logf("drops ended by themselves %.1f s after kill -9", took.Seconds())
		if took > 61*time.Second {
			t.Errorf("drops ended %s after kill -9, want at most 60 s", took)
		}
	}, site.DR4)
}

//go:build lab

package scenario

import (
	"errors"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

// incidents reads what the guard on this director has kept, the newest first.
func incidents(t *testing.T, d *site.Director) []incident.Record {
	t.Helper()
	store, err := incident.Open(incident.Dir(d.GuardState()))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	list, err := store.List()
	if err != nil {
		t.Fatal(err)
	}
	var records []incident.Record
	for _, l := range list {
		if l.Err != nil {
			t.Fatal(l.Err)
		}
		records = append(records, *l.Record)
	}
	return records
}

// waitIncident waits until the newest record is as it should be.
func waitIncident(t *testing.T, d *site.Director, limit time.Duration, what string, is func(incident.Record) bool) incident.Record {
	t.Helper()
	var r incident.Record
	site.Wait(t, limit, what, func() bool {
		if _, err := os.Stat(incident.Dir(d.GuardState())); err != nil {
			return false
		}
		if list := incidents(t, d); len(list) > 0 {
			r = list[0]
			return is(r)
		}
		return false
	})
	return r
}

// segments are those of a file of packets, and when it was written.
func segments(t *testing.T, d *site.Director, f incident.PacketFile) (list []capture.Segment, written time.Time) {
	t.Helper()
	file, err := os.Open(incident.Dir(d.GuardState()) + "/" + f.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	reader, err := capture.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	for {
		var batch [256]capture.Segment
		n, err := reader.Read(batch[:])
		list = append(list, batch[:n]...)
		if errors.Is(err, io.EOF) {
			return list, info.ModTime()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tally counts clients' SYNs and ACKs to a service, and the SYNs of that night.
func tally(packets []capture.Segment, target netip.AddrPort) (opened, completed, signed int) {
	for _, p := range packets {
		switch {
		case p.To() != target:
		case p.Signed():
			signed++
		case p.IsSYN():
			opened++
		case p.Flags&(capture.ACK|capture.RST|capture.SYN) == capture.ACK:
			completed++
		}
	}
	return opened, completed, signed
}

// TestEvidence has a flood by the book, and one that no signature knows, and looks at what the guard has kept of them.
func TestEvidence(t *testing.T) {
	t.Parallel() // it mostly waits
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		config := "mode: auto\ndetect: {rate: 50, for: 3s, clear_for: 5s, total_rate: 150, half_open: 9000}\n"
		guard := d.StartGuard(config)
		up := time.Now()
		g := newGauge(t, d)
		if n := s.Client.Get(60); n != 60 {
			t.Fatalf("%d of 60 requests before any flood", n)
		}
		sent := s.Attacker.Flood(flood.Config{Rate: 1000, Count: 8_000}).Wait()
		d.WaitVerdict(0, "calm", 30*time.Second)
		first := waitIncident(t, d, 10*time.Second, "the first incident has ended", func(r incident.Record) bool { return r.Ended != nil })

		// The attacker, the kernel and the record count the same, but for the flood's first packets: those that came before
		// a tick that found too few to leave calm.
		near := func(a, b uint64) bool { return math.Abs(float64(a)/float64(b)-1) <= 0.02 }
		if n := g.suspect(); !near(n, sent) || !near(*first.Totals.Suspect, n) {
			t.Errorf("sent %d, counted by the kernel %d, by the record %d", sent, n, *first.Totals.Suspect)
		}
		if n := g.dropped(); n != *first.Totals.Dropped || n == 0 || *first.Totals.Admitted != *first.Totals.Suspect-n {
			t.Errorf("dropped %d, by the record %d, admitted %d", n, *first.Totals.Dropped, *first.Totals.Admitted)
		}
		if first.FirstDrop == nil || first.Flooded == nil || first.Collateral.Packets == nil || *first.Collateral.Packets > 0 {
			t.Errorf("first drop %v, flooded %v, collateral %+v", first.FirstDrop, first.Flooded, first.Collateral)
		}
		if look := first.Look; look == nil || len(look.Features) == 0 || !strings.HasPrefix(look.Features[0].Text, "window 0") {
			t.Errorf("the look of it: %+v", look)
		} else if look.Flood < 200 || look.Sources.Spoofed == "" {
			t.Errorf("%d packets, %d sources: %q", look.Flood, *look.Sources.Distinct, look.Sources.Spoofed)
		}
		if len(first.Packets) == 0 || first.Packets[0].Why != "before" {
			t.Fatalf("packets: %+v", first.Packets)
		}
		before := first.Packets[0]
		if wanted := first.Onset.Add(-30 * time.Second); before.From.After(wanted) && before.From.Sub(up) > 5*time.Second {
			t.Errorf("the packets begin at %s; the guard was up at %s, and the verdict came at %s", before.From, up, first.Onset)
		}
		packets, written := segments(t, d, before)
		opened, completed, signed := tally(packets, s.Target(0))
		if opened < 50 || completed < 50 || signed == 0 {
			t.Errorf("of before there are %d SYNs of clients, %d ACKs and %d SYNs of the flood", opened, completed, signed)
		}
		// 2 s is the mark. An emulated processor that is shared takes its time; what it took is in the log.
		took := written.Sub(first.Onset)
		if took > 5*time.Second {
			t.Errorf("the packets were on disk %s after the verdict", took)
		}
		t.Logf("%d packets of before were on disk %.2f s after the verdict", before.Packets, took.Seconds())

		// The other flood: nobody has seen its like. The census tells of it.
		other := flood.Config{Rate: 1500, For: 2 * time.Minute, SourcePort: 4444, Window: 1024, Options: []byte{2, 4, 0x05, 0xb4}}
		attack := s.Attacker.Flood(other)
		d.WaitVerdict(0, "half_open_flood", 40*time.Second)
		second := waitIncident(t, d, 40*time.Second, "the second flood has a look", func(r incident.Record) bool {
			return r.ID != first.ID && r.Look != nil && r.Look.Flood > 200
		})
		for _, want := range []string{"window 1024", "source port 4444", "options mss"} {
			if !slices.ContainsFunc(second.Look.Features[:min(3, len(second.Look.Features))], func(f incident.Feature) bool { return strings.HasPrefix(f.Text, want) }) {
				t.Errorf("%q is not among the first three: %+v", want, second.Look.Features)
			}
		}

		// Killed in the middle of it, the next guard goes on.
		guard.Kill()
		d.StartGuard(config)
		third := waitIncident(t, d, 30*time.Second, "the incident goes on", func(r incident.Record) bool { return len(r.Gaps) == 1 })
		if third.ID != second.ID || third.Ended != nil {
			t.Errorf("after the kill %s, ended %v; before it %s", third.ID, third.Ended, second.ID)
		}
		attack.Stop()
	}, site.DR4)
}

// TestFigureEvidence has the fastest flood that there can be here, after half a minute in which clients were served: all
// of it must be in the packets of before.
func TestFigureEvidence(t *testing.T) {
	s := site.New(t, site.Config{})
	d := s.Master()
	d.StartGuard("mode: auto\ndetect: {rate: 50, for: 3s, clear_for: 5s, total_rate: 150}\n")
	up, served := time.Now(), 0
	site.Wait(t, time.Minute, "33 s have passed", func() bool {
		served += s.Client.Get(1)
		return time.Since(up) > 33*time.Second
	})
	f := s.Attacker.Flood(flood.Config{For: time.Minute})
	r := waitIncident(t, d, 30*time.Second, "the packets of before are told of", func(r incident.Record) bool { return len(r.Packets) > 0 })
	site.Wait(t, 20*time.Second, "the flood is dropped", func() bool { return d.Service(0).Lease != nil })
	sent, lasted := f.Sent(), time.Since(f.Began)
	f.Stop()
	packets, written := segments(t, d, r.Packets[0])
	opened, completed, signed := tally(packets, s.Target(0))
	t.Logf("%.0f packets a second; the packets begin %.1f s before the verdict and were on disk %.2f s after it: of %d requests %d SYNs and %d ACKs, and %d SYNs of the flood",
		float64(sent)/lasted.Seconds(), r.Onset.Sub(r.Packets[0].From).Seconds(), written.Sub(r.Onset).Seconds(), served, opened, completed, signed)
	if r.Onset.Sub(r.Packets[0].From) < 29*time.Second {
		t.Errorf("the packets begin %s before the verdict", r.Onset.Sub(r.Packets[0].From))
	}
	if written.Sub(r.Onset) > 2*time.Second {
		t.Errorf("they were on disk %s after it", written.Sub(r.Onset))
	}
	if 10*opened < 9*served*28/33 || 10*completed < 9*served*28/33 || signed == 0 {
		t.Errorf("of %d requests there are %d SYNs and %d ACKs, and %d SYNs of the flood", served, opened, completed, signed)
	}
}

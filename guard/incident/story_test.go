package incident

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var onset = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// load is a service that has had so many seconds of so many packets.
type load struct {
	at                    time.Time
	syn, suspect, dropped uint64
	opened, completed     uint64
}

func (l *load) second(syn, suspect, dropped, opened, completed uint64) Reading {
	l.at = l.at.Add(time.Second)
	l.syn, l.suspect, l.dropped = l.syn+syn, l.suspect+suspect, l.dropped+dropped
	l.opened, l.completed = l.opened+opened, l.completed+completed
	h := &Handshakes{Opened: l.opened, Completed: l.completed}
	for i := range h.Took {
		if i >= 10 { // all of them within 64 ms
			h.Took[i] = l.completed
		}
	}
	return Reading{
		Time: l.at, SYN: ptr(l.syn), Suspect: ptr(l.suspect), Dropped: ptr(l.dropped), HalfOpen: ptr(float64(suspect)),
		Handshakes: h, Armed: dropped > 0,
	}
}

func TestStory(t *testing.T) {
	l := &load{at: onset.Add(-61 * time.Second)}
	var before []Reading
	for range 61 {
		before = append(before, l.second(10, 0, 0, 10, 10))
	}
	s := Begin(Record{ID: NewID(onset, "192.0.2.1:80"), Service: "192.0.2.1:80", Onset: onset, Began: "so it was"}, before)
	for range 5 {
		s.Add(l.second(5010, 5000, 0, 10, 5))
	}
	s.Flooded(l.at)
	for range 20 {
		s.Add(l.second(4010, 4000, 4000, 10, 9))
	}
	s.End(l.at, "it was over")
	for range 60 {
		s.Add(l.second(10, 0, 0, 10, 10))
	}
	if !s.Over(l.at) {
		t.Error("not over")
	}
	r := s.Record
	series := r.Series
	r.Series, r.Counted = nil, nil
	want := Record{
		Format: 1, ID: "20260102T030405Z-192.0.2.1_80", Service: "192.0.2.1:80", Onset: onset, Began: "so it was",
		Flooded: ptr(onset.Add(5 * time.Second)), FirstDrop: ptr(onset.Add(6 * time.Second)), Ended: ptr(onset.Add(25 * time.Second)), EndedBy: "it was over",
		Totals: Totals{Offered: ptr(uint64(105_250)), Suspect: ptr(uint64(105_000)), Dropped: ptr(uint64(80_000)), Admitted: ptr(uint64(25_000))},
		Peaks:  Peaks{SYN: ptr(5010.0), Suspect: ptr(5000.0), Dropped: ptr(4000.0), HalfOpen: ptr(5000.0)},
		Clients: Clients{
			Before: Felt{Completion: ptr(1.0), P50: ptr(0.064), P99: ptr(0.064), Handshakes: 600},
			During: Felt{Completion: ptr(0.82), P50: ptr(0.064), P99: ptr(0.064), Handshakes: 250},
			After:  Felt{Completion: ptr(1.0), P50: ptr(0.064), P99: ptr(0.064), Handshakes: 600},
		},
		Actions: []Action{}, Packets: []PacketFile{},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(series) != 145 || !series[0].Time.Equal(onset.Add(-time.Minute)) {
		t.Errorf("%d points from %s", len(series), series[0].Time)
	}
	if p := series[60]; *p.SYN != 5010 || p.Seconds != 1 || *p.Completion != 0.5 || p.Armed {
		t.Errorf("%+v", p)
	}
}

// What is not known is not told as nothing, and does not spoil the rest.
func TestStoryUnknown(t *testing.T) {
	l := &load{at: onset}
	s := Begin(Record{Onset: onset}, nil)
	s.Add(l.second(100, 100, 0, 0, 0))
	blind := l.second(100, 100, 0, 0, 0)
	blind.SYN, blind.Suspect, blind.Dropped, blind.Handshakes, blind.HalfOpen = nil, nil, nil, nil, nil
	s.Add(blind)
	s.Add(l.second(100, 100, 0, 0, 0))
	s.Add(l.second(100, 100, 0, 0, 0))
	r := s.Record
	if p := r.Series[0]; p.SYN != nil || p.Dropped != nil || p.HalfOpen != nil || p.Completion != nil {
		t.Errorf("%+v", p)
	}
	if r.Unknown["totals"] == "" || r.Unknown["clients.before"] == "" || *r.Totals.Suspect != 100 {
		t.Errorf("%v, %d", r.Unknown, *r.Totals.Suspect)
	}
	if r.Clients.During.Completion != nil || r.Peaks.Cookies != nil || r.Collateral.Packets != nil {
		t.Error("something is known")
	}
	// The table was made anew: counts begin at zero.
	l.syn, l.suspect = 0, 0
	s.Add(l.second(50, 50, 0, 0, 0))
	if *s.Record.Totals.Suspect != 150 {
		t.Errorf("%d", *s.Record.Totals.Suspect)
	}
}

// After a crash, the counters of the kernel tell what came meanwhile.
func TestStoryContinued(t *testing.T) {
	l := &load{at: onset}
	s := Begin(Record{ID: NewID(onset, "192.0.2.1:80"), Onset: onset}, []Reading{l.second(0, 0, 0, 0, 0)})
	for range 10 {
		s.Add(l.second(1000, 1000, 0, 10, 10))
	}
	s.Record.Written = l.at
	text, err := json.Marshal(s.Record)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRecord(text)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		l.second(1000, 1000, 1000, 10, 10)
	}
	c := Continue(*r, l.at, "the guard was killed")
	l.opened, l.completed = 0, 0 // the capture begins anew
	for range 3 {
		c.Add(l.second(1000, 1000, 1000, 10, 5))
	}
	c.End(l.at, "over")
	if got := c.Record.Totals; *got.Offered != 17_000 || *got.Dropped != 7000 {
		t.Errorf("offered %d, dropped %d", *got.Offered, *got.Dropped)
	}
	if len(c.Record.Gaps) != 1 || !c.Record.Gaps[0].To.Equal(l.at.Add(-3*time.Second)) {
		t.Errorf("gaps %v", c.Record.Gaps)
	}
	if c.Record.Unknown["clients.during"] == "" || *c.Record.Clients.During.Completion != 0.5 {
		t.Errorf("%v, %v", c.Record.Unknown, *c.Record.Clients.During.Completion)
	}
}

// A day of an incident takes no more than half an hour of it.
func TestStoryBounded(t *testing.T) {
	l := &load{at: onset}
	s := Begin(Record{Onset: onset}, nil)
	for i := range 86_400 {
		peak := uint64(1000)
		if i == 40_000 {
			peak = 50_000
		}
		s.Add(l.second(peak, peak, peak, 1, 1))
		s.Act(Action{Time: l.at, Kind: "kernel", Text: "again"})
	}
	n, seconds := len(s.Record.Series), 0.0
	for _, p := range s.Record.Series {
		seconds += p.Seconds
	}
	if n > maxPoints || n < maxPoints/2-1 || seconds < 86_390 || seconds > 86_400 {
		t.Errorf("%d points of %.0f s", n, seconds)
	}
	if last := s.Record.Series[n-1]; last.Seconds > 512 || *s.Record.Peaks.SYN != 50_000 {
		t.Errorf("%v, peak %v", last.Seconds, *s.Record.Peaks.SYN)
	}
	if len(s.Record.Actions) != MaxActions || s.Record.ActionsLeftOut != 86_400-MaxActions {
		t.Errorf("%d actions, %d left out", len(s.Record.Actions), s.Record.ActionsLeftOut)
	}
	text, err := json.Marshal(s.Record)
	if err != nil || len(text) > 400<<10 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestStoryCoarse(t *testing.T) {
	l := &load{at: onset}
	s := Begin(Record{Onset: onset}, nil)
	s.Coarse = true
	for range 3600 {
		s.Add(l.second(1000, 1000, 1000, 1, 1))
	}
	if n := len(s.Record.Series); n > coarsePoints || *s.Record.Totals.Suspect != 3_599_000 {
		t.Errorf("%d points, %d suspects", n, *s.Record.Totals.Suspect)
	}
}

func TestNewID(t *testing.T) {
	for service, want := range map[string]string{
		"192.0.2.1:80":      "20260102T030405Z-192.0.2.1_80",
		"192.0.2.1:*":       "20260102T030405Z-192.0.2.1_any",
		"[2001:db8::1]:443": "20260102T030405Z-2001-db8--1_443",
		"fwmark:7":          "20260102T030405Z-fwmark_7",
		"../../etc/passwd":  "20260102T030405Z-..-..-etc-passwd",
	} {
		got := NewID(onset, service)
		if got != want {
			t.Errorf("%s: %s, want %s", service, got, want)
		}
		if err := CheckID(got); err != nil {
			t.Error(err)
		}
	}
}

package handshake

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/capture"
)

var (
	client = netip.MustParseAddrPort("198.51.100.7:40000")
	server = netip.MustParseAddrPort("192.0.2.1:80")
	start  = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
)

const (
	isn       = 1000
	serverISN = 5000
)

// seg makes a segment some seconds after the start. flags are of "SARFU": U is
// an ICMP error that quotes it.
func seg(at float64, from, to netip.AddrPort, flags string, seq, ack uint32) capture.Segment {
	s := capture.Segment{
		Time: start.UnixNano() + int64(at*1e9),
		Src:  from.Addr().As16(), SrcPort: from.Port(), Dst: to.Addr().As16(), DstPort: to.Port(),
		Seq: seq, Ack: ack, Window: 64240, Length: 60,
	}
	bits := map[rune]capture.Flags{'S': capture.SYN, 'A': capture.ACK, 'R': capture.RST, 'F': capture.FIN, 'E': capture.ECE | capture.CWR}
	for _, c := range flags {
		if c == 'U' {
			s.Unreachable = true
		} else {
			s.Flags |= bits[c]
		}
	}
	return s
}

// c and s are segments of the client and of the server.
func c(at float64, flags string, seq, ack uint32) capture.Segment {
	return seg(at, client, server, flags, seq, ack)
}

func s(at float64, flags string, seq, ack uint32) capture.Segment {
	return seg(at, server, client, flags, seq, ack)
}

// told is what a test says of the figures: only what is not zero.
func told(f Figures) string {
	var b strings.Builder
	say := func(name string, n uint64) {
		if n > 0 {
			fmt.Fprintf(&b, " %s %d", name, n)
		}
	}
	perhaps := func(name string, n *uint64) {
		if n == nil {
			fmt.Fprintf(&b, " %s ?", name)
		} else {
			say(name, *n)
		}
	}
	say("attempts", f.Attempts)
	say("success", f.Success.Total)
	say("dupsyn", f.Success.DupSYN)
	perhaps("dupsynack", f.Success.DupSYNACK)
	say("failure", f.Failure.Total)
	perhaps("reject", f.Failure.Reject)
	perhaps("unreach", f.Failure.Unreach)
	say("timeout", f.Failure.Timeout)
	say("aborted", f.Failure.Aborted)
	say("failed-dupsyn", f.Failure.DupSYN)
	perhaps("failed-dupsynack", f.Failure.DupSYNACK)
	say("pending", f.Pending)
	say("untracked", f.Untracked)
	say("signed", f.Signature.Attempts)
	say("signed-completed", f.Signature.Completed)
	say("screened", f.Signature.Screened)
	return strings.TrimSpace(b.String())
}

func newTracker(t *testing.T, cfg Config) *Tracker {
	t.Helper()
	tracker, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tracker
}

func TestOutcomes(t *testing.T) {
	tests := []struct {
		name     string
		segments []capture.Segment
		want     string
	}{
		{"nothing", nil, ""},
		{"success", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), c(.2, "A", isn+1, serverISN+1)},
			"attempts 1 success 1"},
		{"the answer is not seen", []capture.Segment{c(0, "S", isn, 0), c(.2, "A", isn+1, serverISN+1)},
			"attempts 1 success 1"},
		{"SYN with ECE and CWR", []capture.Segment{c(0, "SE", isn, 0), c(.2, "A", isn+1, serverISN+1)},
			"attempts 1 success 1"},
		{"SYN with data, all of it acknowledged (fast open)", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+501), c(.2, "A", isn+501, serverISN+1)},
			"attempts 1 success 1"},
		{"the server's data before the ACK (fast open)", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+501), s(.11, "A", serverISN+1, isn+501), c(.2, "A", isn+501, serverISN+1449)},
			"attempts 1 success 1"},
		{"the client closes at once", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), c(.2, "FA", isn+1, serverISN+1)},
			"attempts 1 success 1"},
		{"the ISN wraps", []capture.Segment{c(0, "S", 0xffffffff, 0), s(.1, "SA", 0xffffffff, 0), c(.2, "A", 0, 0)},
			"attempts 1 success 1"},
		{"SYN with ACK opens nothing", []capture.Segment{c(0, "SA", isn, 1)}, ""},
		{"SYN with FIN opens nothing", []capture.Segment{c(0, "SF", isn, 0)}, ""},
		{"SYN with RST opens nothing", []capture.Segment{c(0, "SR", isn, 0)}, ""},
		{"no flags at all", []capture.Segment{c(0, "S", isn, 0), c(.1, "", isn+1, 0)}, "attempts 1 pending 1"},

		{"SYN again", []capture.Segment{c(0, "S", isn, 0), c(1, "S", isn, 0), c(3, "S", isn, 0), s(3.1, "SA", serverISN, isn+1), c(3.2, "A", isn+1, serverISN+1)},
			"attempts 1 success 1 dupsyn 1"},
		{"SYN/ACK again", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), s(1.1, "SA", serverISN, isn+1), c(1.2, "A", isn+1, serverISN+1)},
			"attempts 1 success 1 dupsynack 1"},
		{"both again, and refused", []capture.Segment{c(0, "S", isn, 0), c(1, "S", isn, 0), s(1.1, "SA", serverISN, isn+1), s(2.1, "SA", serverISN, isn+1), s(3, "R", 0, 0)},
			"attempts 1 failure 1 reject 1 failed-dupsyn 1 failed-dupsynack 1"},
		{"another ISN", []capture.Segment{c(0, "S", isn, 0), c(1, "S", isn+9, 0), c(1.2, "A", isn+10, serverISN+1)},
			"attempts 2 success 1 failure 1 timeout 1"},
		{"SYN after the end opens the next", []capture.Segment{c(0, "S", isn, 0), c(.2, "A", isn+1, 1), c(.3, "S", isn, 0)},
			"attempts 2 success 1 pending 1"},

		{"refused", []capture.Segment{c(0, "S", isn, 0), s(.1, "RA", 0, isn+1)}, "attempts 1 failure 1 reject 1"},
		{"refused after the SYN/ACK", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), s(.2, "R", serverISN+1, 0)}, "attempts 1 failure 1 reject 1"},
		{"aborted", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), c(.2, "R", isn+1, 0)}, "attempts 1 failure 1 aborted 1"},
		{"aborted with SYN and RST", []capture.Segment{c(0, "S", isn, 0), c(.2, "SR", isn+1, 0)}, "attempts 1 failure 1 aborted 1"},
		{"RST after success", []capture.Segment{c(0, "S", isn, 0), c(.1, "A", isn+1, 1), c(.2, "R", isn+2, 0), s(.2, "R", 1, 0)}, "attempts 1 success 1"},
		{"unreachable", []capture.Segment{c(0, "S", isn, 0), c(.1, "US", isn, 0)}, "attempts 1 failure 1 unreach 1"},
		{"unreachable, few bytes quoted", []capture.Segment{c(0, "S", isn, 0), c(.1, "U", isn, 0)}, "attempts 1 failure 1 unreach 1"},
		{"unreachable, another SYN quoted", []capture.Segment{c(0, "S", isn, 0), c(.1, "US", isn+1, 0)}, "attempts 1 pending 1"},
		{"unreachable, not a SYN quoted", []capture.Segment{c(0, "S", isn, 0), c(.1, "UA", isn, 0)}, "attempts 1 pending 1"},
		{"unreachable, the server's SYN/ACK quoted", []capture.Segment{c(0, "S", isn, 0), s(.1, "USA", serverISN, isn+1)}, "attempts 1 pending 1"},
		{"simultaneous open, and the client resets", []capture.Segment{c(0, "S", isn, 0), s(.1, "S", serverISN, 0), c(.2, "R", isn, 0)},
			"attempts 2 failure 2 reject 1 aborted 1"},

		{"ACK at the ISN", []capture.Segment{c(0, "S", isn, 0), c(.1, "A", isn, 0)}, "attempts 1 pending 1"},
		{"ACK before the ISN", []capture.Segment{c(0, "S", isn, 0), c(.1, "A", isn-1, 0)}, "attempts 1 pending 1"},
		{"ACK 65,536 past", []capture.Segment{c(0, "S", isn, 0), c(.1, "A", isn+65536, 0)}, "attempts 1 success 1"},
		{"ACK 65,537 past", []capture.Segment{c(0, "S", isn, 0), c(.1, "A", isn+65537, 0)}, "attempts 1 pending 1"},
		{"ACK of the server", []capture.Segment{c(0, "S", isn, 0), s(.1, "A", isn+1, isn+1)}, "attempts 1 pending 1"},
		{"SYN/ACK of what was not sent", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn), c(.2, "A", isn+1, 1)}, "attempts 1 success 1"},
		{"SYN/ACK 65,536 past", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+65536), c(.2, "A", isn+1, 1)}, "attempts 1 pending 1"},
		{"SYN/ACK 65,537 past", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+65537), c(.2, "A", isn+1, 1)}, "attempts 1 success 1"},
		{"ACK of what the server did not send", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), c(.2, "A", isn+1, serverISN)}, "attempts 1 pending 1"},
		{"ACK 65,536 past the server's ISN", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), c(.2, "A", isn+1, serverISN+65536)}, "attempts 1 success 1"},
		{"ACK 65,537 past the server's ISN", []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), c(.2, "A", isn+1, serverISN+65537)}, "attempts 1 pending 1"},
		{"SYN/ACK before the SYN", []capture.Segment{s(0, "SA", serverISN, isn+1), c(.1, "S", isn, 0), c(.2, "A", isn+1, 1)}, "attempts 1 success 1"},

		{"59.9 s of silence", []capture.Segment{c(0, "S", isn, 0), c(59.9, "A", isn+1, 1)}, "attempts 1 success 1"},
		{"60 s of silence", []capture.Segment{c(0, "S", isn, 0), c(60.01, "A", isn+1, 1)}, "attempts 1 failure 1 timeout 1"},
		{"60 s after the SYN/ACK", []capture.Segment{c(0, "S", isn, 0), s(30, "SA", serverISN, isn+1), c(89, "A", isn+1, serverISN+1)}, "attempts 1 success 1"},
		{"the same SYN after the timeout", []capture.Segment{c(0, "S", isn, 0), c(61, "S", isn, 0)}, "attempts 2 failure 1 timeout 1 pending 1"},
		{"what does not belong to it keeps nothing alive", []capture.Segment{c(0, "S", isn, 0), c(30, "A", isn+99999, 0), s(40, "SA", 1, 1), c(61, "A", isn+1, 1)}, "attempts 1 failure 1 timeout 1"},
		{"a day of silence", []capture.Segment{c(0, "S", isn, 0), c(86400, "A", isn+1, 1)}, "attempts 1 failure 1 timeout 1"},
		{"4.9 hours of silence, as long as a tick is unique", []capture.Segment{c(0, "S", isn, 0), c(4096e-9*(1<<32)+1, "A", isn+1, 1)}, "attempts 1 failure 1 timeout 1"},
		{"minutes back, as in files in the wrong order", []capture.Segment{c(600, "S", isn, 0), seg(0, server, client, "S", isn, 0), seg(1, server, client, "A", isn+1, 1), c(601, "A", isn+1, 1)}, "attempts 2 success 2"},
		{"a day back", []capture.Segment{c(0, "S", isn, 0), c(-86400, "S", isn, 0), c(-86399, "A", isn+1, 1)}, "attempts 2 success 1 failure 1 timeout 1"},
		{"a little out of order", []capture.Segment{c(1, "S", isn, 0), s(.9, "SA", serverISN, isn+1), c(.8, "A", isn+1, serverISN+1)}, "attempts 1 success 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tracker := newTracker(t, Config{Capacity: 8})
			tracker.Observe(0, tt.segments)
			if got := told(tracker.Snapshot(Both)[0]); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			one := newTracker(t, Config{Capacity: 8})
			for i := range tt.segments {
				one.Observe(0, tt.segments[i:i+1])
			}
			if got := told(one.Snapshot(Both)[0]); got != tt.want {
				t.Errorf("one by one: got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestExpire(t *testing.T) {
	tracker := newTracker(t, Config{Timeout: 10 * time.Second})
	tracker.Observe(0, []capture.Segment{c(0, "S", isn, 0), s(5, "S", serverISN, 0)})
	for _, step := range []struct {
		after time.Duration
		want  string
	}{
		{9 * time.Second, "attempts 2 pending 2"},
		{10 * time.Second, "attempts 2 failure 1 timeout 1 pending 1"},
		{14 * time.Second, "attempts 2 failure 1 timeout 1 pending 1"},
		{16 * time.Second, "attempts 2 failure 2 timeout 2"},
	} {
		tracker.Expire(start.Add(step.after).UnixNano())
		if got := told(tracker.Snapshot(Both)[0]); got != step.want {
			t.Errorf("after %s: got %s, want %s", step.after, got, step.want)
		}
	}
}

// Without Expire, what has timed out is found a little later by the sweep.
func TestSweep(t *testing.T) {
	tracker := newTracker(t, Config{Timeout: 16 * time.Second, Capacity: 1 << 17})
	const attempts = 100_000
	for i := range uint32(attempts) {
		a := c(0, "S", isn, 0)
		binary.BigEndian.PutUint32(a.Src[12:], i)
		tracker.Observe(0, []capture.Segment{a})
	}
	at := start
	for range 160 { // 16 s, in batches of 100 ms
		at = at.Add(100 * time.Millisecond)
		tracker.Observe(at.UnixNano(), nil)
		if at.Sub(start) < 16*time.Second {
			if f := tracker.Snapshot(Both)[0]; f.Failure.Total > 0 {
				t.Fatalf("%d timed out after %s", f.Failure.Total, at.Sub(start))
			}
		}
	}
	for range 20 { // within an eighth of the timeout
		at = at.Add(100 * time.Millisecond)
		tracker.Observe(at.UnixNano(), nil)
	}
	if got, want := told(tracker.Snapshot(Both)[0]), fmt.Sprintf("attempts %d failure %[1]d timeout %[1]d", attempts); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestVisibility(t *testing.T) {
	answered := []capture.Segment{c(0, "S", isn, 0), s(.1, "SA", serverISN, isn+1), c(.2, "A", isn+1, serverISN+1)}
	half := []capture.Segment{c(0, "S", isn, 0), c(.2, "A", isn+1, serverISN+1)}
	refused := []capture.Segment{c(0, "S", isn, 0), s(.1, "RA", 0, isn+1)}
	const unseen = " dupsynack ? reject ? unreach ? failed-dupsynack ?"
	for _, tt := range []struct {
		name     string
		segments []capture.Segment
		wanted   Visibility
		service  Visibility
		want     string
	}{
		{"both halves", answered, Auto, Auto, "attempts 1 success 1"},
		{"the client's half", half, Auto, Auto, "attempts 1 success 1" + unseen},
		{"a server that only refuses", refused, Auto, Auto, "attempts 1 failure 1 reject 1"},
		{"told that it is both", half, Both, Auto, "attempts 1 success 1"},
		{"told that it is the client's", answered, Client, Both, "attempts 1 success 1" + unseen},
		{"a service by NAT", half, Auto, Both, "attempts 1 success 1"},
		{"a service by DR", answered, Auto, Client, "attempts 1 success 1" + unseen},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tracker := newTracker(t, Config{Choice: Choice{Services: []Service{{Name: "vip", Addresses: []netip.AddrPort{server}, Visibility: tt.service}}}})
			tracker.Observe(0, tt.segments)
			figures := tracker.Snapshot(tt.wanted)
			if got := strings.ReplaceAll(told(figures[1]), "failure 1 reject ? unreach ?", "failure 1"); sorted(got) != sorted(tt.want) {
				t.Errorf("the service: got %s, want %s", got, tt.want)
			}
			// What goes to a service by DR is a part of "all".
			if tt.service != Both && sorted(told(figures[0])) != sorted(tt.want) {
				t.Errorf("all: got %s, want %s", told(figures[0]), tt.want)
			}
		})
	}
}

func sorted(s string) string {
	words := strings.Fields(s)
	pairs := make([]string, 0, len(words)/2)
	for i := 0; i+1 < len(words); i += 2 {
		pairs = append(pairs, words[i]+" "+words[i+1])
	}
	return strings.Join(pairs, ",")
}

func TestSignature(t *testing.T) {
	syn := func(at float64, n uint32, to netip.AddrPort) capture.Segment {
		s := seg(at, client, to, "S", isn, 0)
		s.Window, s.Length = 0, 40
		binary.BigEndian.PutUint32(s.Src[12:], n)
		return s
	}
	tracker := newTracker(t, Config{})
	other := netip.AddrPortFrom(server.Addr(), 443)
	tracker.SetArmed([]netip.AddrPort{other})
	ack := seg(.1, client, server, "A", isn+1, 1)
	binary.BigEndian.PutUint32(ack.Src[12:], 1)
	tracker.Observe(0, []capture.Segment{syn(0, 1, server), syn(0, 2, server), syn(0, 3, other), syn(0, 4, other), ack, c(.2, "S", isn, 0)})
	if got, want := told(tracker.Snapshot(Both)[0]), "attempts 3 success 1 pending 2 signed 2 signed-completed 1 screened 2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	tracker.SetArmed([]netip.AddrPort{netip.AddrPortFrom(server.Addr(), 0)})
	tracker.Observe(0, []capture.Segment{syn(1, 5, server), syn(1, 6, other)})
	if got, want := told(tracker.Snapshot(Both)[0]), "attempts 3 success 1 pending 2 signed 2 signed-completed 1 screened 4"; got != want {
		t.Errorf("every port: got %s, want %s", got, want)
	}
}

// Beyond the cap, what the client has not repeated gives way, the oldest first.
func TestCapacity(t *testing.T) {
	var gone []string
	tracker := newTracker(t, Config{Capacity: 4, Events: func(e Event) {
		gone = append(gone, fmt.Sprintf("%d %s", e.Client.Port(), e.Outcome))
	}})
	from := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(client.Addr(), port) }
	syn := func(at float64, port uint16) capture.Segment { return seg(at, from(port), server, "S", isn, 0) }
	tracker.Observe(0, []capture.Segment{
		syn(0, 1), syn(.1, 2), syn(.2, 3), syn(.3, 4),
		syn(1, 1),                                // repeats itself
		seg(1.1, from(3), server, "A", isn+1, 1), // is done
		syn(2, 5), syn(2.1, 6), syn(2.2, 7),      // 5 takes the place of 3; 2 and 4 give way
		syn(2.3, 5), syn(2.4, 6), syn(2.5, 7), // now all have repeated themselves
		syn(3, 8), seg(3.1, from(8), server, "A", isn+1, 1), // cannot be followed
	})
	want := []string{"3 success", "2 untracked", "4 untracked"}
	if diff := cmp.Diff(want, gone); diff != "" {
		t.Error(diff)
	}
	f := tracker.Snapshot(Both)[0]
	if got, want := told(f), "attempts 8 success 1 pending 4 untracked 3"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !f.LowerBound {
		t.Error("the figures are not marked as a lower bound")
	}
}

// A flood beyond the cap does not push out those who repeat their SYN, nor
// those whose handshake takes less time than the table needs to turn over.
func TestFloodBeyondCapacity(t *testing.T) {
	tracker := newTracker(t, Config{Capacity: 1000})
	var batch []capture.Segment
	const floods, every = 100_000, 50
	done := 0
	for i := range uint32(floods) {
		at := float64(i) / 10_000
		flood := c(at, "S", isn, 0)
		flood.Window, flood.Length = 0, 40
		binary.BigEndian.PutUint32(flood.Src[12:], i)
		batch = append(batch, flood)
		if i%every == 0 { // honest, 20 ms for the handshake
			batch = append(batch, seg(at, netip.AddrPortFrom(client.Addr(), uint16(i/every)), server, "S", isn, 0))
		}
		if j := int(i) - 200; j >= 0 && j%every == 0 {
			done++
			batch = append(batch, seg(at, netip.AddrPortFrom(client.Addr(), uint16(j/every)), server, "A", isn+1, 1))
		}
	}
	tracker.Observe(0, batch)
	f := tracker.Snapshot(Both)[0]
	if f.Success.Total != uint64(done) {
		t.Errorf("%d of %d handshakes were counted", f.Success.Total, done)
	}
	if f.Attempts != f.Success.Total+f.Failure.Total+f.Pending+f.Untracked {
		t.Errorf("the attempts are not the sum of their ends: %s", told(f))
	}
	if f.Untracked < floods-1000-100 {
		t.Errorf("%d untracked", f.Untracked)
	}
}

func TestHistogram(t *testing.T) {
	var h Histogram
	for d, want := range map[time.Duration]int{
		-time.Second: 0, 0: 0, 62500: 0, 62501: 1, time.Millisecond: 4, time.Millisecond + 1: 5,
		time.Second: 14, 65536 * time.Millisecond: 20, 70 * time.Second: 21, time.Hour: 21,
	} {
		before := h.Buckets[want]
		h.observe(d)
		if h.Buckets[want] != before+1 {
			t.Errorf("%s is not in bucket %d (up to %s)", d, want, Bound(want))
		}
	}
	v := h.value()
	if last := v.Buckets[len(v.Buckets)-1]; v.Count != 10 || last.Count != 8 || last.LE != 65.536 {
		t.Errorf("got %+v", v)
	}
}

func TestEvents(t *testing.T) {
	var events []Event
	tracker := newTracker(t, Config{Events: func(e Event) { events = append(events, e) }})
	tracker.Observe(0, []capture.Segment{
		c(0, "S", isn, 0), c(1, "S", isn, 0), c(3, "S", isn, 0), s(3.1, "SA", serverISN, isn+1), s(3.2, "SA", serverISN, isn+1), c(3.5, "A", isn+1, serverISN+1),
		c(10, "S", isn, 0),
	})
	tracker.Expire(start.Add(100 * time.Second).UnixNano())
	want := []string{
		"198.51.100.7:40000 192.0.2.1:80 success +0s 3.5s 2 1",
		"198.51.100.7:40000 192.0.2.1:80 timeout +10s 1m0s 0 0",
	}
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprintf("%s %s %s +%s %s %d %d", e.Client, e.Server, e.Outcome,
			e.Opened.Sub(start).Round(time.Millisecond), e.Took.Round(time.Millisecond), e.DupSYN, e.DupSYNACK))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestObserveAllocates(t *testing.T) {
	tracker := newTracker(t, Config{Capacity: 1 << 12, Choice: Choice{
		Filters:  []Filter{{Name: "web", Rules: []Rule{{Ports: []Ports{{80, 80}}}}}},
		Services: []Service{{Name: "vip", Addresses: []netip.AddrPort{server}}},
	}})
	batch := make([]capture.Segment, 0, 256)
	n := uint32(0)
	if allocs := testing.AllocsPerRun(100, func() {
		batch = batch[:0]
		for len(batch) < cap(batch) {
			n++
			a := c(float64(n)/1000, "S", n, 0)
			binary.BigEndian.PutUint32(a.Src[12:], n)
			batch = append(batch, a)
		}
		tracker.Observe(0, batch)
	}); allocs > 0 {
		t.Errorf("%v allocations a batch of %d", allocs, cap(batch))
	}
}

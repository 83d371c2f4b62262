package report

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

// The incidents of testdata are made here. The screens of cmd/lvsguard are
// tested with the same files.

var night = time.Date(2026, 3, 3, 3, 12, 4, 0, time.UTC)

func after(d time.Duration) *time.Time { return new(night.Add(d)) }

// wave is a figure with some unrest in it that is the same each time.
func wave(i int, mean, swing float64) *float64 {
	return new(math.Round(mean + swing*math.Sin(float64(i)*1.7)*math.Cos(float64(i)*0.31)))
}

// series is a point a second for two minutes, and one in ten seconds after
// that, from a minute before the onset to a minute after the end.
func series(length time.Duration, point func(i int, since time.Duration, p *incident.Point) (known bool)) []incident.Point {
	var all []incident.Point
	for at, step := -time.Minute, time.Second; at < length+time.Minute; at += step {
		if at >= 2*time.Minute {
			step = 10 * time.Second
		}
		p := incident.Point{Time: night.Add(at), Seconds: step.Seconds()}
		if point(len(all), at, &p) {
			all = append(all, p)
		}
	}
	return all
}

func shares(text string, flood, good float64) incident.Value {
	return incident.Value{Value: text, Flood: flood, Good: &good}
}

// dropped is a night on a director by DR in auto mode: armed after 4 s, twenty
// minutes of flood, clients served, a change of role in the middle.
func droppedNight() *incident.Record {
	const length = 19*time.Minute + 36*time.Second
	r := &incident.Record{
		Format: 1, ID: "20260303T031204Z-192.0.2.101_80", Host: "lvs1", Version: "0.4.0", Pinned: true,
		Service: "192.0.2.101:80", Project: "shop", Addresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.101:80")},
		Onset: night, Flooded: after(3 * time.Second), FirstDrop: after(4 * time.Second), Ended: after(length), Written: *after(length + time.Minute),
		Counted: &incident.Counted{SYN: new(uint64(991204331)), Suspect: new(uint64(13066120)), Dropped: new(uint64(13018731))},
		Began:   "11874 of 12019 SYN/s bear a signature (threshold 1000/s and 50%)",
		EndedBy: "under 200/s for 1m0s",
		Totals: incident.Totals{
			Offered: new(uint64(13204331)), Suspect: new(uint64(13066120)), Dropped: new(uint64(13018731)), Admitted: new(uint64(47389)),
		},
		Peaks: incident.Peaks{
			SYN: new(14211.0), Suspect: new(14090.0), Dropped: new(14090.0), HalfOpen: new(46210.0), MemoryShare: new(0.41), Cookies: new(1820.0),
		},
		Clients: incident.Clients{
			Before: incident.Felt{Completion: new(0.9981), P50: new(0.0041), P99: new(0.061), Handshakes: 6912},
			During: incident.Felt{Completion: new(0.9934), P50: new(0.0044), P99: new(0.131), Handshakes: 131884},
			After:  incident.Felt{Completion: new(0.9984), P50: new(0.0041), P99: new(0.058), Handshakes: 6804},
		},
		Collateral: incident.Collateral{Packets: new(uint64(0)), Sampled: 24110},
		Packets: []incident.PacketFile{
			{Name: "20260303T031204Z-192.0.2.101_80-before-1.pcapng", Why: "before", From: night.Add(-30 * time.Second), To: night.Add(3 * time.Second), Packets: 31210, Seen: 48122, Bytes: 4812210},
			{Name: "20260303T031204Z-192.0.2.101_80-onset-1.pcapng", Why: "onset", From: night.Add(3 * time.Second), To: night.Add(4 * time.Second), Packets: 4096, Seen: 12019, Bytes: 451200},
			{Name: "20260303T031204Z-192.0.2.101_80-peak-1.pcapng", Why: "peak", From: night.Add(432 * time.Second), To: night.Add(433 * time.Second), Packets: 4096, Seen: 14211, Bytes: 450912},
		},
	}
	r.Actions = []incident.Action{
		{Time: night, Kind: "verdict", Text: "calm to rising: 11874 of 12019 SYN/s bear a signature (threshold 1000/s for 3s)"},
		{Time: *after(3 * time.Second), Kind: "verdict", Text: "rising to flood: 11874 of 12019 SYN/s bear a signature (threshold 1000/s and 50%)"},
		{Time: *after(3 * time.Second), Kind: "lease", Text: "armed: 11874 of 12019 SYN/s bear a signature", By: "auto"},
		{Time: *after(9 * time.Second), Kind: "kernel", Text: "Possible SYN flooding on port 192.0.2.101:80. Sending cookies. (2 real servers)"},
		{Time: *after(11 * time.Second), Kind: "pressure", Text: "IPVS connections: ok to warning: 46210 of 58000"},
		{Time: *after(66 * time.Second), Kind: "pressure", Text: "IPVS connections: warning to ok"},
		{Time: *after(9 * time.Minute), Kind: "role", Text: "VI_1: MASTER to BACKUP"},
		{Time: *after(9*time.Minute + 22*time.Second), Kind: "role", Text: "VI_1: BACKUP to MASTER"},
		{Time: *after(length), Kind: "verdict", Text: "flood to calm: under 200/s for 1m0s"},
		{Time: *after(length), Kind: "lease", Text: "disarmed: the flood is over", By: "auto"},
	}
	r.Series = series(length, func(i int, since time.Duration, p *incident.Point) bool {
		p.SYN, p.Suspect, p.Dropped = wave(i, 118, 9), new(0.0), new(0.0)
		p.HalfOpen, p.Connections = wave(i, 40, 8), wave(i, 5500, 120)
		p.MemoryShare, p.Cookies, p.Completion = new(0.31), new(0.0), new(0.998)
		if i%7 == 0 {
			p.Completion = new(1.0)
		}
		flooded := since >= -time.Second && since < length-time.Minute
		standby := since >= 9*time.Minute && since < 9*time.Minute+20*time.Second
		if flooded && !standby {
			p.Suspect = wave(i, 11900+1900*math.Sin(float64(since)/float64(4*time.Minute)), 280)
			p.SYN = new(*p.Suspect + 121)
		}
		if p.Armed = since >= 3*time.Second && since < length; p.Armed {
			*p.Dropped = *p.Suspect
		}
		if since >= 0 && since < 70*time.Second {
			left := 1.0
			if since > 4*time.Second {
				left = 1 - float64(since-4*time.Second)/float64(66*time.Second)
			}
			p.HalfOpen = new(math.Round(40 + 46170*left*min(1, float64(since)/float64(4*time.Second))))
			p.Connections = new(*p.Connections + *p.HalfOpen)
			p.MemoryShare = new(0.31 + 0.10*left)
			p.Cookies = new(math.Round(1820 * left * left))
			p.Completion = new(0.998 - 0.06*left)
		}
		if standby {
			p.SYN, p.Suspect, p.Dropped = new(0.0), new(0.0), new(0.0)
			p.HalfOpen, p.Completion = new(0.0), nil
		}
		return true
	})
	r.Look = &incident.Look{
		Flood: 8192, Good: 1024,
		Features: []incident.Feature{
			{Text: "window 0 and IP length 40, so no options", Flood: 1, Good: new(0.0), Match: "tcp window 0 ip length 40", Signature: "- {name: window0, window: 0, length: 40}"},
			{Text: "no TCP options", Flood: 1, Good: new(0.002), Match: "tcp doff 5", Signature: "- {name: bare, options: none}"},
			{Text: "TTL 240 to 245", Flood: 0.981, Good: new(0.0), Match: "ip ttl 240-245", Signature: "- {name: far, ttl: 240-245}"},
			{Text: "source port 1024 to 2047", Flood: 0.52, Good: new(0.018), Match: "tcp sport 1024-2047"},
		},
		Fields: []incident.Field{
			{Name: "window", Values: []incident.Value{shares("0", 1, 0), shares("64240", 0, 0.61), shares("65535", 0, 0.27), shares("29200", 0, 0.08)}, OthersGood: new(0.04), Pattern: "constant: 0"},
			{Name: "length", Values: []incident.Value{shares("40", 1, 0.002), shares("60", 0, 0.83), shares("52", 0, 0.14)}, OthersGood: new(0.028)},
			{Name: "ttl", Values: []incident.Value{shares("243", 0.61, 0), shares("241", 0.22, 0), shares("53", 0, 0.21), shares("115", 0, 0.19)}, OthersFlood: 0.17, OthersGood: new(0.6)},
			{Name: "options", Values: []incident.Value{shares("none", 1, 0.002), shares("MSS SACK TS NOP WS", 0, 0.71), shares("MSS NOP WS NOP NOP SACK", 0, 0.25)}, OthersGood: new(0.038)},
			{Name: "mss", Values: []incident.Value{shares("none", 1, 0.002), shares("1460", 0, 0.72), shares("1400", 0, 0.11)}, OthersGood: new(0.168)},
			{Name: "sport", Values: []incident.Value{shares("1024-2047", 0.52, 0.018)}, OthersFlood: 0.48, OthersGood: new(0.982), Pattern: "counts up by 1"},
			{Name: "seq", Pattern: "random", OthersFlood: 1, OthersGood: new(1.0)},
			{Name: "ipid", Pattern: "random", OthersFlood: 1, OthersGood: new(1.0)},
		},
		Sources: incident.Sources{
			Distinct: new(uint64(8101)),
			Prefixes: map[int][]incident.Value{
				8:  {shares("71.0.0.0/8", 0.006, 0), shares("203.0.0.0/8", 0.006, 0.31), shares("12.0.0.0/8", 0.006, 0)},
				16: {shares("71.12.0.0/16", 0.001, 0), shares("203.0.0.0/16", 0.001, 0.12)},
				24: {shares("71.12.9.0/24", 0.0004, 0), shares("203.0.113.0/24", 0, 0.11)},
			},
			Spoofed: "nearly every SYN has a source of its own (about 8101 sources of 8192 SYNs), they are spread over 221 of the 256 networks /8, and they sent SYNs alone and completed no handshake, and none sent a RST",
		},
	}
	return r
}

// observedNight is a flood of another shape in observe mode: no signature fits,
// nothing is dropped, and clients feel it.
func observedNight() *incident.Record {
	const length = 4*time.Minute + 10*time.Second
	r := &incident.Record{
		Format: 1, ID: "20260303T031204Z-2001-db8-1111-2222-3333-4444-5555-6666_443", Host: "lvs2", Version: "0.4.0",
		Service: "[2001:db8:1111:2222:3333:4444:5555:6666]:443", Addresses: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:443")},
		Onset: night, Flooded: after(5 * time.Second), Ended: after(length), Written: *after(length + time.Minute),
		Began:   "about 15000 half-open entries, 91 % of this service's, and no signature explains them",
		EndedBy: "fewer than 10000 half-open entries for 1m0s",
		Totals:  incident.Totals{Offered: new(uint64(812044)), Suspect: new(uint64(91)), Dropped: new(uint64(0)), Admitted: new(uint64(91))},
		Peaks: incident.Peaks{
			SYN: new(4210.0), Suspect: new(2.0), Dropped: new(0.0), HalfOpen: new(201333.0), MemoryShare: new(0.93), Cookies: new(3990.0),
		},
		Clients: incident.Clients{
			Before: incident.Felt{Completion: new(0.997), P50: new(0.012), P99: new(0.19), Handshakes: 1412},
			During: incident.Felt{Completion: new(0.714), P50: new(0.021), P99: new(3.1), Handshakes: 4408},
			After:  incident.Felt{Completion: new(0.981), P50: new(0.013), P99: new(1.02), Handshakes: 1390},
		},
		Collateral: incident.Collateral{Sampled: 0},
		Actions: []incident.Action{
			{Time: night, Kind: "verdict", Text: "calm to half_open_flood: about 15000 half-open entries, 91 % of this service's"},
			{Time: *after(70 * time.Second), Kind: "pressure", Text: "low memory: warning to critical: 61 MB of 854 MB can still be had"},
			{Time: *after(length), Kind: "verdict", Text: "half_open_flood to calm: fewer than 10000 half-open entries for 1m0s"},
		},
		Packets: []incident.PacketFile{
			{Name: "20260303T031204Z-2001-db8-1111-2222-3333-4444-5555-6666_443-onset-1.pcapng", Why: "onset", From: night, To: night.Add(time.Second), Packets: 3911, Seen: 3911, Bytes: 470000},
		},
		Unknown: map[string]string{"collateral": "nothing was dropped"},
	}
	r.Series = series(length, func(i int, since time.Duration, p *incident.Point) bool {
		p.SYN, p.Suspect, p.Dropped = wave(i, 24, 4), new(0.0), new(0.0)
		p.HalfOpen, p.Connections, p.MemoryShare, p.Cookies, p.Completion = new(10.0), wave(i, 900, 30), new(0.42), new(0.0), new(0.997)
		if since >= -time.Second && since < length-2*time.Minute {
			grown := min(1, float64(since+time.Second)/float64(time.Minute))
			p.SYN, p.Cookies = wave(i, 3900, 300), wave(i, 3600, 300)
			p.HalfOpen = new(math.Round(201333 * grown))
			p.MemoryShare = new(0.42 + 0.51*grown)
			p.Completion = new(0.997 - 0.31*grown)
		}
		p.Connections = new(*p.Connections + *p.HalfOpen)
		return true
	})
	r.Look = &incident.Look{
		Flood: 3800, Good: 111,
		Features: []incident.Feature{
			{Text: "window 1024 and source port 4444", Flood: 0.998, Good: new(0.0), Match: "tcp window 1024 tcp sport 4444"},
			{Text: "window 1024", Flood: 0.998, Good: new(0.009), Match: "tcp window 1024", Signature: "- {name: window1024, window: 1024}"},
		},
		Fields: []incident.Field{
			{Name: "window", Values: []incident.Value{shares("1024", 0.998, 0.009), shares("64800", 0.001, 0.88)}, OthersFlood: 0.001, OthersGood: new(0.111), Pattern: "constant: 1024"},
			{Name: "sport", Values: []incident.Value{shares("4444", 0.999, 0)}, OthersFlood: 0.001, OthersGood: new(1.0), Pattern: "constant: 4444"},
		},
		Sources: incident.Sources{
			Distinct: new(uint64(61)),
			Prefixes: map[int][]incident.Value{32: {shares("2001:db8::/32", 0.97, 0.02)}, 48: {shares("2001:db8:77::/48", 0.94, 0)}, 64: {shares("2001:db8:77:1::/64", 0.31, 0)}},
		},
	}
	return r
}

// cutNight was cut by a crash: no end, a gap, and much that nobody knows.
func cutNight() *incident.Record {
	r := &incident.Record{
		Format: 1, ID: "20260303T031204Z-fwmark_7", Host: "lvs1", Version: "0.4.0",
		Service: "fwmark:7", Project: "mail",
		Onset: night, Flooded: after(3 * time.Second), Written: *after(149 * time.Second),
		Began:   "2300 of 2400 SYN/s bear a signature (threshold 1000/s and 50%)",
		Gaps:    []incident.Gap{{From: *after(40 * time.Second), To: *after(95 * time.Second), Reason: "the guard was killed"}},
		Peaks:   incident.Peaks{SYN: new(2400.0), Suspect: new(2300.0)},
		Actions: []incident.Action{{Time: *after(3 * time.Second), Kind: "lease", Text: "armed: by hand, for 10m", By: "uid 0, pid 584"}, {Time: *after(96 * time.Second), Kind: "guard", Text: "the guard started, and goes on with this record"}},
		Unknown: map[string]string{
			"totals": "counters were lost with the guard that was killed", "clients": "no handshakes are watched: CAP_NET_RAW is missing",
			"look": "no packets were sampled: CAP_NET_RAW is missing", "memory_share": "open /proc/meminfo: permission denied",
		},
	}
	r.Series = series(90*time.Second, func(i int, since time.Duration, p *incident.Point) bool {
		if since >= 40*time.Second && since < 95*time.Second {
			return false
		}
		p.SYN, p.Suspect = wave(i, 60, 9), new(0.0)
		if since >= 0 {
			p.SYN, p.Suspect, p.Armed = wave(i, 2300, 90), wave(i, 2200, 90), since > 3*time.Second
		}
		return true
	})
	return r
}

// hostileNight has, in every text, what would be markup, a script, a terminal's
// command or a shell's.
func hostileNight() *incident.Record {
	r := droppedNight()
	hostile(r)
	return r
}

func fixtures() map[string]*incident.Record {
	return map[string]*incident.Record{"dropped": droppedNight(), "observed": observedNight(), "cut": cutNight(), "hostile": hostileNight()}
}

// The files of testdata are what is made here.
func TestFixtures(t *testing.T) {
	for name, r := range fixtures() {
		path := filepath.Join("testdata", name+".json")
		want, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		goldenfile.Check(t, path, string(want)+"\n")
		var got incident.Record
		if err := json.Unmarshal(want, &got); err != nil {
			t.Fatal(err)
		}
		again, err := json.MarshalIndent(&got, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(again)); diff != "" {
			t.Errorf("%s (-made +read):\n%s", path, diff)
		}
	}
}

// anHour is an incident of an hour with a point a second, and as much of
// everything as a record holds.
func anHour() *incident.Record {
	r := droppedNight()
	points := r.Series
	r.Series = nil
	for i := range 3600 {
		p := points[i%len(points)]
		p.Time, p.Seconds = night.Add(time.Duration(i)*time.Second), 1
		r.Series = append(r.Series, p)
	}
	r.Ended = after(time.Hour)
	r.Actions = nil
	for i := range incident.MaxActions {
		r.Actions = append(r.Actions, incident.Action{Time: *after(time.Duration(7*i) * time.Second), Kind: "pressure", Text: fmt.Sprintf("IPVS connections: ok to warning: %d of 58000 connections; at this rate it is full in 41 s", i), By: "auto"})
	}
	var packets []incident.PacketFile
	for i := range 60 {
		f := r.Packets[1]
		f.Name, f.From = fmt.Sprintf("%s-during-%d.pcapng", r.ID, i+1), night.Add(time.Duration(i)*time.Minute)
		packets = append(packets, f)
	}
	r.Packets = packets
	return r
}

package serve

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/internal/goldenfile"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
	"github.com/lvsguard/lvsguard/nft"
)

func golden(t *testing.T, name, got string) {
	t.Helper()
	goldenfile.Check(t, filepath.Join("testdata", name), got)
}

func mustKey(text string) ipvs.Key {
	k, err := ipvs.ParseKey(text)
	if err != nil {
		panic(err)
	}
	return k
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// histogramOf counts times.
func histogramOf(buckets map[time.Duration]uint64, beyond uint64) *handshake.HistogramValue {
	h := &handshake.HistogramValue{Count: beyond, Sum: 100 * float64(beyond)}
	for i := range handshake.Buckets - 1 {
		bound := handshake.Bound(i)
		h.Count += buckets[bound]
		h.Sum += bound.Seconds() * float64(buckets[bound])
		h.Buckets = append(h.Buckets, handshake.Bucket{LE: bound.Seconds(), Count: h.Count - beyond})
	}
	return h
}

// director is a made-up director of which everything is known.
func director() *guard.Measurement {
	shop, api, mark := mustKey("192.0.2.1:80"), mustKey("[2001:db8::1]:443"), mustKey("fwmark:7")
	cfg := guard.DefaultConfig()
	cfg.Project = "infra"
	cfg.Services = map[ipvs.Key]guard.ServiceConfig{shop: {Project: "shop"}}
	at := func(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }
	vi := guard.Role{Instance: "VI_1", State: keepalived.Master, Changes: 3}
	count := func(packets uint64) nft.Count { return nft.Count{Packets: packets, Bytes: 40 * packets} }

	served := []ipvs.Service{
		{Key: shop, Stats: ipvs.Stats{Connections: 500, PacketsIn: 3000, BytesIn: 120000}, RealServers: []ipvs.RealServer{
			{Addr: at("10.0.0.11:80"), Method: ipvs.DR, Weight: 1, ActiveConn: 5, InActConn: 2, Stats: ipvs.Stats{Connections: 500, PacketsIn: 3000, BytesIn: 120000}},
		}},
		{Key: api, Persistent: time.Minute, Stats: ipvs.Stats{Connections: 40, PacketsIn: 300, PacketsOut: 280, BytesIn: 9000, BytesOut: 90000}, RealServers: []ipvs.RealServer{
			{Addr: at("[2001:db8::11]:443"), Method: ipvs.NAT, Weight: 3, ActiveConn: 4, InActConn: 3, PersistConn: 2, Stats: ipvs.Stats{Connections: 40, PacketsIn: 300, PacketsOut: 280, BytesIn: 9000, BytesOut: 90000}},
		}},
		{Key: mark, Frozen: true, RealServers: []ipvs.RealServer{{Addr: at("10.0.0.13:0"), Method: ipvs.TUN}}},
	}
	group := func(established uint64) pressure.Group {
		g := pressure.Group{Connections: established + 3, Receive: pressure.Queued{Connections: 1, Bytes: 100}, Send: pressure.Queued{Connections: 2, Bytes: 3000}}
		g.States[pressure.StateEstablished], g.States[pressure.StateTimeWait] = established, 3
		return g
	}
	memory := pressure.Memory{
		Total: new(uint64(4 << 30)), Available: new(uint64(1 << 30)), KernelTotal: new(uint64(3 << 30)), KernelAvailable: new(uint64(2 << 30)),
		LowTotal: new(uint64(850 << 20)), LowFree: new(uint64(70 << 20)), StallSome: new(0.25), StallFull: new(0.125), OOMKills: new(uint64(2)),
	}
	var counters []pressure.Counter
	n := uint64(1000)
	for name := range pressure.Told() {
		n++
		counters = append(counters, pressure.Counter{Name: name, Total: n})
	}
	counters = append(counters, pressure.Counter{Name: "TcpExtSomethingNew", Total: 7}) // that nobody has asked for

	return &guard.Measurement{
		Version: "1.2.3", Time: noon, Mode: guard.Auto, PausedUntil: noon.Add(90 * time.Second), ConfigError: new("line 3: no"), Config: cfg,
		Sample: guard.Sample{
			Time: noon,
			Services: []guard.Service{
				{Key: shop, Addresses: []netip.AddrPort{shop.Addr}, Forwarding: "dr", Connections: &guard.Connections{Active: 5, Inactive: 2}},
				{Key: api, Addresses: []netip.AddrPort{api.Addr}, Forwarding: "nat", Connections: &guard.Connections{Active: 4, Inactive: 3, Persistent: 2}},
				{Key: mark, Addresses: []netip.AddrPort{at("192.0.2.7:80"), at("192.0.2.1:81")}, Forwarding: "tun", Connections: &guard.Connections{}},
			},
			Roles: []guard.Role{vi, {Instance: "VI_2", State: keepalived.Unknown}},
			Handshakes: []handshake.Figures{
				{
					Name: "all", Attempts: 600, Pending: 10, Untracked: 1,
					Success:   handshake.Successes{Total: 500, DupSYN: 3, DupSYNACK: new(uint64(2))},
					Failure:   handshake.Failures{Total: 89, Reject: new(uint64(40)), Unreach: new(uint64(4)), Timeout: 40, Aborted: 5, DupSYN: 7, DupSYNACK: new(uint64(6))},
					Signature: handshake.Signed{Attempts: 50, Completed: 1, Screened: 70},
					Complete:  histogramOf(map[time.Duration]uint64{time.Millisecond: 400, 256 * time.Millisecond: 90}, 10), Answer: histogramOf(map[time.Duration]uint64{time.Millisecond: 500}, 0),
				},
				{
					Name: "api", Project: "partner", Attempts: 10, Success: handshake.Successes{Total: 10, DupSYNACK: new(uint64(0))},
					Failure:  handshake.Failures{Reject: new(uint64(0)), Unreach: new(uint64(0)), DupSYNACK: new(uint64(0))},
					Complete: histogramOf(map[time.Duration]uint64{2 * time.Millisecond: 10}, 0), Answer: histogramOf(map[time.Duration]uint64{time.Millisecond: 10}, 0),
				},
				{
					Name: "192.0.2.1:80", Attempts: 100, Pending: 5, Success: handshake.Successes{Total: 90, DupSYN: 1},
					Failure: handshake.Failures{Total: 5, Timeout: 4, Aborted: 1, DupSYN: 2}, Complete: histogramOf(map[time.Duration]uint64{4 * time.Millisecond: 80, 8 * time.Millisecond: 10}, 0),
				},
				{
					Name: "[2001:db8::1]:443", Attempts: 7, Success: handshake.Successes{Total: 6, DupSYNACK: new(uint64(1))},
					Failure:  handshake.Failures{Total: 1, Reject: new(uint64(1)), Unreach: new(uint64(0)), DupSYNACK: new(uint64(0))},
					Complete: histogramOf(map[time.Duration]uint64{16 * time.Millisecond: 5}, 1), Answer: histogramOf(map[time.Duration]uint64{8 * time.Millisecond: 6}, 0),
				},
			},
			Capture: &guard.Capture{
				Report: capture.Report{Packets: new(uint64(9000)), Handed: 4000, Dropped: 3, Other: 20, Copies: 700, Undecoded: map[string]uint64{"bad_ip": 2, "truncated": 1}},
				Filter: "ebpf", Notes: []string{"eth9 is down"},
			},
			Servers: []guard.RealServer{
				{Address: netip.MustParseAddr("10.0.0.11"), Services: []guard.ServedHere{{Service: shop, Server: at("10.0.0.11:80")}}, Figures: &pressure.Server{
					Address: netip.MustParseAddr("10.0.0.11"), Source: "lvsguard",
					SyncookiesSent: &pressure.ServerCount{Total: 12}, SyncookiesReceived: &pressure.ServerCount{Total: 3}, SyncookiesFailed: &pressure.ServerCount{Total: 1},
					ListenOverflows: &pressure.ServerCount{Total: 4}, ListenDrops: &pressure.ServerCount{Total: 5},
					RequestQueueFullCookies: &pressure.ServerCount{Total: 12}, RequestQueueFullDrops: &pressure.ServerCount{},
					AcceptQueueShare: new(0.5), MemoryAvailable: new(uint64(1 << 29)), MemoryTotal: new(uint64(1 << 31)),
				}},
				{Address: netip.MustParseAddr("10.0.0.12"), Services: []guard.ServedHere{{Service: shop, Server: at("10.0.0.12:80"), Removed: true}}, Figures: &pressure.Server{
					Address: netip.MustParseAddr("10.0.0.12"), Unknown: "it does not answer",
				}},
			},
			Unknown: map[guard.Source]string{guard.SourceCensus: "it took too long"},
		},
		Verdicts: []guard.Verdict{
			{Service: shop, State: guard.Flood, Role: vi, Figures: guard.Figures{HalfOpen: new(4.0)}},
			{Service: api, State: guard.Calm, Role: vi},
			{Service: mark, State: guard.Unknown},
		},
		Leases:   map[ipvs.Key]guard.Lease{shop: {By: guard.ByAuto, ExpiresAt: noon.Add(45 * time.Second)}},
		Declined: map[ipvs.Key]bool{api: true},
		Served:   served,
		Counted: &nft.Counters{
			Allowed: count(11), Loopback: count(12),
			Services: map[netip.AddrPort]nft.ServiceCounters{
				shop.Addr:          {SYN: count(1000), Suspect: count(900), Dropped: count(800), Fragment: count(6), Signatures: map[string]nft.Count{"window0": count(850), "fixed-ttl": count(50)}},
				api.Addr:           {SYN: count(10), Signatures: map[string]nft.Count{"window0": count(0)}},
				at("192.0.2.7:80"): {SYN: count(5)}, // and of the mark's other address nothing is known
			},
		},
		Pressure: &guard.PressureReport{
			LostRecords: 4,
			Sample: pressure.Sample{
				Time: noon, Memory: memory, Counters: counters,
				Resources: []pressure.Resource{
					{Kind: pressure.KindLowMemory, Name: "low memory", Unit: pressure.UnitBytes, Used: new(uint64(780 << 20)), Limit: new(uint64(850 << 20)), Share: new(0.9176), FullIn: new(12.5), Level: pressure.LevelCritical},
					{Kind: pressure.KindConntrack, Name: "conntrack", Unit: pressure.UnitEntries, Used: new(uint64(100)), Limit: new(uint64(65536)), Share: new(0.0015), Level: pressure.LevelOK},
					{Kind: pressure.KindNeighbours, Name: "neighbours IPv4", Unit: pressure.UnitEntries, Level: pressure.LevelUnknown},
				},
				IPVS: &pressure.IPVS{
					Connections: new(uint64(9)), Templates: new(uint64(2)), HalfOpenShare: new(0.5), Bytes: new(uint64(3520)), BytesPerEntry: new(320.0), FreeBytes: new(uint64(70 << 20)),
					Forecast: &pressure.Forecast{Entries: 60000, Bytes: 19200000, GoneIn: new(30.0)},
				},
			},
		},
		Sockets: &guard.SocketsReport{Sockets: pressure.Sockets{
			Listeners: []pressure.Listener{{Name: "0.0.0.0:80", Queue: 2, Limit: 8, Highest: 5}, {Name: "[::]:22", Limit: 128}},
			Connections: &pressure.Connections{
				In: group(20), Out: group(4),
				Listening: []pressure.Series{{Name: "0.0.0.0:80", Group: group(20), RTT: &pressure.RTT{Connections: 20, P50: 0.5, P90: 2, P99: 30}}},
				Remotes:   []pressure.Series{{Name: "198.51.100.66", Group: group(1)}}, // which is nobody's to know
			},
		}},
		Journal:     guard.JournalHealth{Lost: 5, Error: new("no space left on device")},
		Tick:        20 * time.Millisecond,
		Tally:       guard.Tally{Ticks: 100, TickTime: 1500 * time.Millisecond, Failures: 2, Events: map[pressure.EventKind]uint64{pressure.EventSYNFlooding: 3, pressure.EventOOMKill: 1}},
		TableLosses: 4,
	}
}

// webServer is a made-up real server, without a table, on which nothing of the
// rest is missed.
func webServer() *guard.Measurement {
	cfg := guard.DefaultConfig()
	cfg.Role = guard.RoleHost
	d := director()
	return &guard.Measurement{
		Version: "1.2.3", Time: noon, Mode: guard.Observe, Config: cfg,
		Sample: guard.Sample{
			Time:       noon,
			Handshakes: []handshake.Figures{{Name: "all", Success: handshake.Successes{DupSYNACK: new(uint64(0))}, Failure: handshake.Failures{Reject: new(uint64(0)), Unreach: new(uint64(0)), DupSYNACK: new(uint64(0))}, Complete: histogramOf(nil, 0), Answer: histogramOf(nil, 0)}},
			Capture:    &guard.Capture{Filter: "classic"},
		},
		Pressure: &guard.PressureReport{Sample: pressure.Sample{
			Time: noon, Memory: pressure.Memory{Total: new(uint64(2 << 30)), Available: new(uint64(1 << 30))},
			Resources: []pressure.Resource{{Kind: pressure.KindMemory, Name: "memory", Unit: pressure.UnitBytes, Used: new(uint64(1 << 30)), Limit: new(uint64(2 << 30)), Share: new(0.5), Level: pressure.LevelOK}},
			Counters:  d.Pressure.Counters[:7],
		}},
		Sockets: &guard.SocketsReport{Sockets: pressure.Sockets{Listeners: d.Sockets.Listeners}},
		Tick:    time.Millisecond, Tally: guard.Tally{Ticks: 5, TickTime: 5 * time.Millisecond},
	}
}

// asText is the page in Prometheus' text format.
func asText(t testing.TB, families []*dto.MetricFamily) string {
	t.Helper()
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return strings.ReplaceAll(b.String(), runtime.Version(), "GOVERSION")
}

// The whole page of a director and of a real server.
func TestMetricsPage(t *testing.T) {
	for name, m := range map[string]*guard.Measurement{"metrics-director.txt": director(), "metrics-host.txt": webServer()} {
		families := newPage(m).sorted()
		// client_golang finds series that are there twice, and values that are none.
		if _, err := (prometheus.Gatherers{prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return families, nil })}).Gather(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		text := asText(t, families)
		golden(t, name, text)
		if strings.Contains(text, "198.51.100") {
			t.Errorf("%s has a client's address", name)
		}
	}
}

// Prometheus' own tool finds nothing to say of the pages.
func TestMetricsPromtool(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("LVSGUARD_PRIVILEGED") == "1" {
			t.Fatalf("%v (this run must have it: lab/setup installs it, in Debian's prometheus)", err)
		}
		t.Skip(err)
	}
	for _, m := range []*guard.Measurement{director(), webServer()} {
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = strings.NewReader(asText(t, newPage(m).sorted()))
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics of a %s: %v\n%s", m.Config.Role, err, out)
		}
	}
}

// Every family of the table is on the director's page, with the labels that the
// table and docs/metrics.md give it.
func TestMetricsTable(t *testing.T) {
	shown := make(map[string]map[string]bool) // labels by name
	for _, f := range newPage(director()).sorted() {
		labels := make(map[string]bool)
		for _, m := range f.Metric {
			for _, l := range m.Label {
				labels[l.GetName()] = true
			}
		}
		shown[f.GetName()] = labels
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups() {
		var rows strings.Builder
		for _, f := range g.families {
			labels := strings.Fields(f.labels)
			slices.Sort(labels)
			if got := slices.Sorted(maps.Keys(shown[f.name])); shown[f.name] == nil || !slices.Equal(got, labels) {
				t.Errorf("%s has the labels %q on the page, and %q in the table", f.name, got, labels)
			}
			fmt.Fprintf(&rows, "| `%s` | %s | %s | %s |\n", f.name, strings.ToLower(f.kind.String()), strings.Join(labels, ", "), f.help)
		}
		want := fmt.Sprintf("### %s\n\n| name | type | labels | meaning |\n|---|---|---|---|\n%s", g.title, &rows)
		if !strings.Contains(string(doc), want) {
			t.Errorf("docs/metrics.md is to have:\n\n%s", want)
		}
	}
}

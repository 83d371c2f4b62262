package serve

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// values are those of a page's series, by name and labels.
func values(t testing.TB, m *guard.Measurement) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for line := range strings.Lines(asText(t, newPage(m).sorted())) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		var v float64
		if _, err := fmt.Sscan(line[at:], &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, twice := all[line[:at]]; twice {
			t.Errorf("%s is there twice", line[:at])
		}
		all[line[:at]] = v
	}
	return all
}

// Spoofed sources make not one series more.
func TestMetricsUnderFlood(t *testing.T) {
	const sources = 100_000
	tracker, err := handshake.New(handshake.Config{Capacity: 1 << 16, Choice: handshake.Choice{
		Services: []handshake.Service{{Name: "192.0.2.1:80", Addresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	m := director()
	names := func() []string {
		m.Sample.Handshakes = tracker.Snapshot(handshake.Client)
		var all []string
		for name := range values(t, m) {
			all = append(all, name)
		}
		slices.Sort(all)
		return all
	}
	before := names()
	batch := make([]capture.Segment, 0, 1000)
	for i := range sources {
		batch = append(batch, capture.Segment{
			Time: int64(i), Flags: capture.SYN, SrcPort: uint16(i), DstPort: 80, Seq: uint32(i),
			Src: netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}).As16(), Dst: netip.MustParseAddr("192.0.2.1").As16(),
		})
		if len(batch) == cap(batch) {
			tracker.Observe(int64(i), batch)
			batch = batch[:0]
		}
	}
	after := names()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after so many sources (-before +after):\n%s", diff)
	}
	if got := values(t, m)[`lvsguard_service_handshake_attempts_total{project="shop",service="192.0.2.1:80"}`]; got != sources {
		t.Errorf("%v attempts: they did not arrive", got)
	}
}

// Of more than the page shows, the first are there, and the rest are counted.
func TestMetricsBound(t *testing.T) {
	m := large(10_000, 20_000, ipvs.NAT)
	m.Verdicts[9_999].State = guard.Flood
	m.Sockets.Listeners = slices.Repeat(m.Sockets.Listeners[:1], 1)
	for i := range 999 {
		m.Sockets.Listeners = append(m.Sockets.Listeners, pressure.Listener{Name: fmt.Sprintf("127.0.0.1:%d", 1000+i), Limit: 128})
	}
	for i := range 300 {
		m.Sample.Roles = append(m.Sample.Roles, guard.Role{Instance: fmt.Sprintf("VI_%d", 10+i), State: keepalived.Backup})
	}
	got := values(t, m)
	counts := make(map[string]int)
	for series := range got {
		name, _, _ := strings.Cut(series, "{")
		counts[name]++
	}
	want := map[string]int{
		"lvsguard_service_verdict": 1000, "lvsguard_service_handshake_attempts_total": 1000, "lvsguard_server_weight": 2000,
		"lvsguard_server_up": 2000, "lvsguard_listen_accept_queue_share": 200, "lvsguard_vrrp_state": 99 * 4, // and one that is not known
	}
	for name, n := range want {
		if counts[name] != n {
			t.Errorf("%d series of %s, want %d", counts[name], name, n)
		}
	}
	left := map[string]float64{"services": 9000, "real_servers": 18_000, "addresses": 18_000, "listeners": 800, "vrrp_instances": 202}
	for what, n := range left {
		if v := got[fmt.Sprintf("lvsguard_left_out{what=%q}", what)]; v != n {
			t.Errorf("%v %s are left out, want %v", v, what, n)
		}
	}
	if got[`lvsguard_services{verdict="flood"}`] != 1 || got[`lvsguard_services{verdict="calm"}`] != 9999 {
		t.Error("services that are left out are not counted by their verdict")
	}
	if len(got) > 115_000 {
		t.Errorf("%d series", len(got))
	}
	t.Logf("%d series, %d bytes", len(got), len(asText(t, newPage(m).sorted())))
}

// What cannot be read is not on the page: no zero stands for it.
func TestMetricsUnknown(t *testing.T) {
	for _, tt := range []struct {
		name string
		lose func(m *guard.Measurement)
		gone string // the names of what is gone with it
	}{
		{"the table", func(m *guard.Measurement) { m.Counted = nil }, `lvsguard_(service_(syn|dropped|signature)|fragment|allowed|loopback)_packets_total`},
		{"IPVS", func(m *guard.Measurement) {
			m.Served, m.Sample.Servers = nil, nil
			for i := range m.Sample.Services {
				m.Sample.Services[i].Connections = nil
			}
			m.Pressure.IPVS = nil
		}, `lvsguard_(server_.*|ipvs_.*|service_((in)?active_connections|persistence_templates|connections_total|(in|out)_(packets|bytes)_total))`},
		{"totals of IPVS", func(m *guard.Measurement) {
			for i := range m.Served {
				m.Served[i].Frozen = true
			}
		}, `lvsguard_(service|server)_(connections|(in|out)_(packets|bytes))_total`},
		{"the capture", func(m *guard.Measurement) { m.Sample.Handshakes, m.Sample.Capture = nil, nil }, `lvsguard_(service_)?(handshake|capture)_.*`},
		{"the sockets", func(m *guard.Measurement) { m.Sockets.Listeners, m.Sockets.Connections = nil, nil }, `lvsguard_(listen|tcp)_.*`},
		{"the pressure", func(m *guard.Measurement) { m.Pressure = &guard.PressureReport{} }, `lvsguard_(resource|memory|ipvs|netstat|oom|kernel)_.*`},
		{"the verdicts", func(m *guard.Measurement) {
			for i := range m.Verdicts {
				m.Verdicts[i].State, m.Verdicts[i].Figures.HalfOpen = guard.Unknown, nil
			}
		}, `lvsguard_service_(verdict|half_open_connections)`},
		{"the roles", func(m *guard.Measurement) { m.Sample.Roles = nil }, `lvsguard_vrrp_.*`},
		{"real servers", func(m *guard.Measurement) {
			for i := range m.Sample.Servers {
				m.Sample.Servers[i].Figures = &pressure.Server{Unknown: "silent"}
			}
		}, `lvsguard_server_(syncookies|listen|accept|memory)_.*`},
		{"all of the memory", func(m *guard.Measurement) { m.Pressure.Memory = pressure.Memory{} }, `lvsguard_(memory|oom)_.*`},
		{"the first look", func(m *guard.Measurement) { m.Tally = guard.Tally{Events: m.Tally.Events} }, `lvsguard_last_tick_.*`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			gone := regexp.MustCompile("^(" + tt.gone + ")$")
			name := func(series string) string {
				name, _, _ := strings.Cut(series, "{")
				return name
			}
			m := director()
			before := values(t, m)
			tt.lose(m)
			after := values(t, m)
			lost := 0
			for series := range before {
				family := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name(series), "_bucket"), "_sum"), "_count")
				_, there := after[series]
				switch {
				case gone.MatchString(family) && there:
					t.Errorf("%s is still told", series)
				case gone.MatchString(family):
					lost++
				case !there:
					t.Errorf("%s is gone too", series)
				}
			}
			if lost == 0 {
				t.Error("nothing is gone")
			}
		})
	}
}

// Histograms are those of the handshakes: what is up to a bound is counted at each
// later one, and the last is all.
func TestMetricsHistograms(t *testing.T) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	m := director()
	families, err := parser.TextToMetricFamilies(strings.NewReader(asText(t, newPage(m).sorted())))
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]*handshake.Figures)
	for i := range m.Sample.Handshakes {
		byName[m.Sample.Handshakes[i].Name] = &m.Sample.Handshakes[i]
	}
	seen := 0
	for _, prefix := range []string{"lvsguard_handshake", "lvsguard_service_handshake"} {
		for _, what := range []string{"_complete_seconds", "_answer_seconds"} {
			for _, metric := range families[prefix+what].GetMetric() {
				var of *handshake.Figures
				for _, l := range metric.Label {
					if l.GetName() == "filter" || l.GetName() == "service" {
						of = byName[l.GetValue()]
					}
				}
				want := of.Complete
				if what == "_answer_seconds" {
					want = of.Answer
				}
				h := metric.Histogram
				if h.GetSampleCount() != want.Count || math.Abs(h.GetSampleSum()-want.Sum) > 1e-9 {
					t.Errorf("%s of %s: %d in %v s, want %d in %v s", what, of.Name, h.GetSampleCount(), h.GetSampleSum(), want.Count, want.Sum)
				}
				last := uint64(0)
				for _, b := range h.Bucket {
					expected := want.Count
					for _, w := range want.Buckets {
						if w.LE == b.GetUpperBound() {
							expected = w.Count
						}
					}
					if b.GetCumulativeCount() != expected || expected < last {
						t.Errorf("%s of %s: %d up to %v, want %d", what, of.Name, b.GetCumulativeCount(), b.GetUpperBound(), expected)
					}
					last = b.GetCumulativeCount()
				}
				if n := len(h.Bucket); n != 22 && n != 6 || !math.IsInf(h.Bucket[n-1].GetUpperBound(), 1) {
					t.Errorf("%s of %s has %d buckets", what, of.Name, n)
				}
				seen++
			}
		}
	}
	if seen != 7 {
		t.Errorf("%d histograms, want 7", seen)
	}
}

// OpenMetrics wants counters with _total, families in one piece, nothing behind
// the end.
func TestMetricsOpenMetrics(t *testing.T) {
	var b bytes.Buffer
	for _, f := range newPage(director()).sorted() {
		if _, err := expfmt.MetricFamilyToOpenMetrics(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	kind, family := "", ""
	for line := range strings.Lines(b.String()) {
		fields := strings.Fields(line)
		if fields[0] == "#" {
			if fields[1] == "TYPE" {
				family, kind = fields[2], fields[3]
			}
			continue
		}
		name, _, _ := strings.Cut(fields[0], "{")
		rest, is := strings.CutPrefix(name, family)
		good := map[string]string{"counter": "_total", "gauge": "", "summary": "_sum _count", "histogram": "_bucket _sum _count"}[kind]
		if !is || !slices.Contains(strings.Split(good, " "), rest) {
			t.Errorf("%s %s has the series %s", kind, family, name)
		}
	}
}

// Text that somebody else has chosen stays in its label.
func TestMetricsEscaped(t *testing.T) {
	const evil = "a\"} 1\nlvsguard_services{verdict=\"flood\"} 99 # \\"
	m := director()
	m.Version = evil
	m.Sample.Roles[0].Instance = evil
	m.Pressure.Resources[0].Name = evil
	m.Sockets.Listeners[0].Name = evil
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(asText(t, newPage(m).sorted())))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(families["lvsguard_services"].GetMetric()); n != 5 {
		t.Errorf("there are %d series of services by verdict", n)
	}
	if v := families["lvsguard_build_info"].GetMetric()[0].GetLabel(); len(v) != 2 || v[0].GetValue() != evil && v[1].GetValue() != evil {
		t.Errorf("the label is %v", v)
	}
}

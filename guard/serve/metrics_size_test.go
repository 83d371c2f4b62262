package serve

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

// measured gives always the same.
type measured struct{ m *guard.Measurement }

func (g measured) Measure() *guard.Measurement   { return g.m }
func (measured) SetTrouble(guard.Source, string) {}

// large is a director with so many services and, over them, real servers, each of
// which tells its figures. All of it has seen a day's load.
func large(services, servers int, method ipvs.Method) *guard.Measurement {
	m := director()
	m.Config.Project = "shop"
	s := &m.Sample
	s.Services, s.Handshakes, s.Servers, m.Verdicts, m.Served = nil, nil, nil, nil, nil
	m.Counted = &nft.Counters{Services: make(map[netip.AddrPort]nft.ServiceCounters)}
	visibility := handshake.Both
	if method == ipvs.DR {
		visibility = handshake.Client
	}
	figures := func(name string) handshake.Figures {
		f := handshake.Figures{
			Name: name, Attempts: 1234567, Pending: 12, Success: handshake.Successes{Total: 1234000, DupSYN: 1234}, Visibility: visibility,
			Failure:  handshake.Failures{Total: 555, Timeout: 444, Aborted: 111, DupSYN: 123},
			Complete: histogramOf(map[time.Duration]uint64{time.Millisecond: 1200000, 64 * time.Millisecond: 34000}, 0),
		}
		if visibility == handshake.Both {
			f.Success.DupSYNACK, f.Failure.DupSYNACK, f.Failure.Reject, f.Failure.Unreach = new(uint64(4321)), new(uint64(21)), new(uint64(333)), new(uint64(0))
			f.Answer = f.Complete
		}
		return f
	}
	s.Handshakes = append(s.Handshakes, figures("all"))
	for i := range services {
		k := mustKey(fmt.Sprintf("192.0.%d.%d:80", 2+i/250, 1+i%250))
		s.Services = append(s.Services, guard.Service{Key: k, Addresses: []netip.AddrPort{k.Addr}, Forwarding: string(method), Connections: &guard.Connections{Active: 1234, Inactive: 567}})
		s.Handshakes = append(s.Handshakes, figures(k.String()))
		m.Verdicts = append(m.Verdicts, guard.Verdict{Service: k, State: guard.Calm, Figures: guard.Figures{HalfOpen: new(12.0)}})
		m.Counted.Services[k.Addr] = nft.ServiceCounters{SYN: nft.Count{Packets: 1234567}, Signatures: map[string]nft.Count{"window0": {Packets: 1234}}}
		m.Served = append(m.Served, ipvs.Service{Key: k, Stats: ipvs.Stats{Connections: 1234567, PacketsIn: 123456789, BytesIn: 12345678901, PacketsOut: 123456789, BytesOut: 123456789012}})
	}
	for i := range servers {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(1 + i/250), byte(1 + i%250)}), 80)
		on := &m.Served[i%services]
		on.RealServers = append(on.RealServers, ipvs.RealServer{
			Addr: at, Method: method, Weight: 10, ActiveConn: 123, InActConn: 45,
			Stats: ipvs.Stats{Connections: 123456, PacketsIn: 12345678, BytesIn: 1234567890, PacketsOut: 12345678, BytesOut: 12345678901},
		})
		count := &pressure.ServerCount{Total: 12345}
		s.Servers = append(s.Servers, guard.RealServer{Address: at.Addr(), Figures: &pressure.Server{
			SyncookiesSent: count, SyncookiesReceived: count, SyncookiesFailed: count, ListenOverflows: count, ListenDrops: count,
			AcceptQueueShare: new(0.0078125), MemoryAvailable: new(uint64(3456789012)), MemoryTotal: new(uint64(8123456789)),
		}})
	}
	return m
}

// A scrape of 300 services and 1,000 real servers is not larger than 2 MiB; but by
// NAT, where there is more to see, only if real servers are not asked themselves.
func TestMetricsSize(t *testing.T) {
	const wanted = 2 << 20
	silent := large(300, 1000, ipvs.NAT)
	for i := range silent.Sample.Servers {
		silent.Sample.Servers[i].Figures = nil
	}
	for _, test := range []struct {
		name string
		m    *guard.Measurement
	}{{"DR, real servers tell", large(300, 1000, ipvs.DR)}, {"NAT, nobody is asked", silent}} {
		for _, accept := range []string{openMetrics, plainText} {
			w := scrape(t, NewMetrics(MetricsConfig{Guard: measured{test.m}, Log: slog.New(slog.DiscardHandler)}), accept, "identity")
			t.Logf("%s, %s: %d bytes", test.name, w.Header().Get("Content-Type"), w.Body.Len())
			if n := w.Body.Len(); n > wanted {
				t.Errorf("%s: the page has %d bytes, want at most %d", test.name, n, wanted)
			}
		}
	}
}

const (
	openMetrics = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
	plainText   = "text/plain;version=0.0.4"
)

func scrape(t testing.TB, m *Metrics, accept, encoding string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	r.Header.Set("Accept-Encoding", encoding)
	w := httptest.NewRecorder()
	m.handler.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("a scrape is answered with %d: %s", w.Code, w.Body)
	}
	return w
}

// processor is the time that this process has taken.
func processor(tb testing.TB) time.Duration {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkMetrics is a scrape by Prometheus of a director with 300 services and
// 1,000 real servers.
func BenchmarkMetrics(b *testing.B) {
	for _, method := range []ipvs.Method{ipvs.DR, ipvs.NAT} {
		for _, encoding := range []string{"gzip", "identity"} {
			b.Run(string(method)+"/"+encoding, func(b *testing.B) {
				m := NewMetrics(MetricsConfig{Guard: measured{large(300, 1000, method)}, Log: slog.New(slog.DiscardHandler)})
				size := 0
				began := processor(b)
				for b.Loop() {
					size = scrape(b, m, openMetrics, encoding).Body.Len()
				}
				b.ReportMetric(float64((processor(b)-began).Milliseconds())/float64(b.N), "cpu-ms/op")
				b.ReportMetric(float64(size), "bytes")
			})
		}
	}
}

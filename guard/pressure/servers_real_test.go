package pressure

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// nodeExporter starts Debian's node_exporter in a host of its own, and makes a
// Servers that asks there.
func nodeExporter(t testing.TB, cfg ServersConfig) (*netns.Host, *Servers) {
	t.Helper()
	const program = "prometheus-node-exporter"
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("LVSGUARD_PRIVILEGED") == "1" {
			t.Fatalf("%v (this run must have it: lab/setup installs it)", err)
		}
		t.Skip(err)
	}
	host := netns.New(t)
	cmd := exec.Command(program, "--web.listen-address=:9100", "--collector.disable-defaults",
		"--collector.netstat", "--collector.meminfo", "--collector.loadavg")
	var complaint strings.Builder
	cmd.Stderr = &complaint
	var err error
	host.Do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("node_exporter: %s", &complaint)
		}
	})

	s, err := NewServers(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dialIn(ctx, t, host, network, address)
	}
	t.Cleanup(s.client.CloseIdleConnections)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := dialIn(t.Context(), t, host, "tcp", "127.0.0.1:9100")
		if err == nil {
			c.Close()
			return host, s
		}
		if time.Now().After(end) {
			t.Fatalf("node_exporter does not listen: %v", err)
		}
	}
}

// dialIn dials inside a host. The addresses are numbers, so that the dialler needs
// no goroutine, which would not be in the host.
func dialIn(ctx context.Context, t testing.TB, host *netns.Host, network, address string) (c net.Conn, err error) {
	host.Do(t, func() { c, err = new(net.Dialer).DialContext(ctx, network, address) })
	return c, err
}

// Debian's node_exporter tells of SYN cookies that its kernel has sent, and they
// are seen here.
func TestServersNodeExporter(t *testing.T) {
	host, s := nodeExporter(t, ServersConfig{})
	s.SetTargets([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")})
	round := func() Server {
		t.Helper()
		s.round(t.Context())
		all := s.Snapshot(time.Now())
		for _, server := range all {
			if server.Unknown != "" {
				t.Fatal(server.Unknown)
			}
			if server.Source != sourceNodeExporter || server.URL == "" {
				t.Errorf("the source is %q at %q", server.Source, server.URL)
			}
		}
		return all[0]
	}
	before := round()
	// Its own listening socket answers every SYN with a cookie now.
	host.Run(t, "sh", "-c", "echo 2 >/proc/sys/net/ipv4/tcp_syncookies")
	const dials = 20
	for range dials {
		c, err := dialIn(t.Context(), t, host, "tcp", "127.0.0.1:9100")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	after := round()
	switch {
	case after.SyncookiesSent == nil || after.SyncookiesReceived == nil || after.ListenDrops == nil || after.ListenOverflows == nil || after.SyncookiesFailed == nil:
		t.Fatalf("node_exporter tells %v", figuresOf(after))
	case after.SyncookiesSent.Total-before.SyncookiesSent.Total < dials || after.SyncookiesReceived.Total-before.SyncookiesReceived.Total < dials:
		t.Errorf("after %d connections by cookie: %v, before %v", dials, figuresOf(after), figuresOf(before))
	case after.SyncookiesSent.PerSecond == nil || *after.SyncookiesSent.PerSecond <= 0:
		t.Errorf("the rate of cookies is not known: %v", figuresOf(after))
	}
	mem := readMemory(&files{root: "/"}, 4096)
	if after.MemoryTotal == nil || *after.MemoryTotal != *mem.Total {
		t.Errorf("memory: %v, and this host has %d", figuresOf(after), *mem.Total)
	}
}

// Where node_exporter refuses a collector that it was started without, it is asked
// for all that it has.
func TestServersNodeExporterWithoutCollector(t *testing.T) {
	_, s := nodeExporter(t, ServersConfig{URLs: []string{
		"http://{address}:9100/metrics?collect[]=netstat&collect[]=bonding",
		"http://{address}:9100/metrics",
	}})
	s.SetTargets([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	s.round(t.Context())
	got := s.Snapshot(time.Now())[0]
	if got.Unknown != "" || got.SyncookiesSent == nil {
		t.Errorf("%v, unknown %q", figuresOf(got), got.Unknown)
	}
	if s.targets[0].first != 1 {
		t.Errorf("URL %d answered", s.targets[0].first)
	}
}

// What a round of 1,000 servers costs us, against node_exporter itself.
func BenchmarkServersRound(b *testing.B) {
	_, s := nodeExporter(b, ServersConfig{Interval: 6 * time.Second, Timeout: 5 * time.Second})
	var targets []netip.Addr
	for i := range 1000 {
		targets = append(targets, netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}))
	}
	s.SetTargets(targets)
	for range 3 {
		s.round(b.Context()) // connections are made
	}
	cpu := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := cpu()
	for b.Loop() {
		s.round(b.Context())
	}
	b.ReportMetric((cpu()-before).Seconds()*1e3/float64(b.N), "cpu-ms/round")
	for _, server := range s.Snapshot(time.Now()) {
		if server.Unknown != "" {
			b.Fatal(server.Unknown)
		}
	}
}

// What Snapshot costs the control loop.
func BenchmarkServersSnapshot(b *testing.B) {
	s, err := NewServers(ServersConfig{})
	if err != nil {
		b.Fatal(err)
	}
	var targets []netip.Addr
	for i := range 1000 {
		targets = append(targets, netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}))
	}
	s.SetTargets(targets)
	for b.Loop() {
		s.Snapshot(time.Now())
	}
}

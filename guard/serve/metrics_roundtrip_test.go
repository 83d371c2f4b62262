package serve

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
)

// A director that asks a real server's lvsguard gets what that knows of its host.
func TestMetricsAskedByDirector(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := director()
	m.Pressure.Memory.Total, m.Pressure.Memory.Available = new(uint64(8<<30)), new(uint64(3<<30))
	m.Sockets.Listeners = []pressure.Listener{{Name: "0.0.0.0:80", Queue: 6, Limit: 8}, {Name: "0.0.0.0:443", Queue: 1, Limit: 8}}
	totals := make(map[string]uint64)
	for _, c := range m.Pressure.Counters {
		totals[c.Name] = c.Total
	}

	at := freePort(t)
	serveMetrics(t, m, guard.MetricsConfig{Listen: at, BearerTokenFile: token}, nil)
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	silent := freePort(t)
	_, nobody, _ := net.SplitHostPort(silent)
	url := "http://{address}:" + port + "/metrics"
	servers, err := pressure.NewServers(pressure.ServersConfig{
		URLs:     []string{"http://{address}:" + nobody + "/metrics", url},
		Interval: time.Second, Timeout: 900 * time.Millisecond, BearerTokenFile: token,
	})
	if err != nil {
		t.Fatal(err)
	}
	servers.SetTargets([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- servers.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	var got pressure.Server
	eventually(t, "figures", func() bool {
		got = servers.Snapshot(time.Now())[0]
		return got.Unknown == ""
	})
	count := func(name string) *pressure.ServerCount { return &pressure.ServerCount{Total: totals[name]} }
	want := pressure.Server{
		Address: netip.MustParseAddr("127.0.0.1"), Source: "lvsguard", URL: "http://" + at + "/metrics",
		SyncookiesSent: count("TcpExtSyncookiesSent"), SyncookiesReceived: count("TcpExtSyncookiesRecv"), SyncookiesFailed: count("TcpExtSyncookiesFailed"),
		ListenOverflows: count("TcpExtListenOverflows"), ListenDrops: count("TcpExtListenDrops"),
		RequestQueueFullCookies: count("TcpExtTCPReqQFullDoCookies"), RequestQueueFullDrops: count("TcpExtTCPReqQFullDrop"),
		AcceptQueueShare: new(0.75), MemoryAvailable: new(uint64(3 << 30)), MemoryTotal: new(uint64(8 << 30)),
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.IgnoreFields(pressure.Server{}, "Read"), cmpopts.IgnoreFields(pressure.ServerCount{}, "PerSecond")); diff != "" {
		t.Errorf("what the director knows (-want +got):\n%s", diff)
	}
}

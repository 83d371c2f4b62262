package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
)

// serversOf lists real servers: service, server, and whether it was removed.
func serversOf(all []RealServer) []string {
	var lines []string
	for _, rs := range all {
		for _, at := range rs.Services {
			line := fmt.Sprintf("%s %s %s", rs.Address, at.Service, at.Server)
			if at.Removed {
				line += " removed"
			}
			if at.Removed != (at.Active == nil) {
				line += " with wrong figures"
			}
			if rs.Figures != nil {
				line += " asked"
			}
			lines = append(lines, line)
		}
	}
	return lines
}

const keepalivedServers = `
virtual_server 192.0.2.1 80 {
	real_server 198.51.100.1 80 { }
	real_server 198.51.100.2 { }
	real_server 198.51.100.3 80 { }
}
virtual_server 192.0.2.2 25 {
	real_server 198.51.100.3 25 { }
}
virtual_server 192.0.2.9 80 {
	real_server 198.51.100.9 80 { }
}
`

// Real servers are those of IPVS, and those that a health check took out.
func TestServers(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "keepalived.conf")
	if err := os.WriteFile(conf, []byte(keepalivedServers), 0o600); err != nil {
		t.Fatal(err)
	}
	config := "keepalived: {config: " + conf + "}\n"
	w := newWorld(t, config)
	at := netip.MustParseAddrPort
	w.ipvs.services = []ipvs.Service{
		{Key: ipvs.Key{Protocol: ipvs.TCP, Addr: web}, RealServers: []ipvs.RealServer{{Addr: at("198.51.100.1:80"), ActiveConn: 7}, {Addr: at("198.51.100.2:80")}}},
		{Key: ipvs.Key{Protocol: ipvs.TCP, Addr: mail}, RealServers: []ipvs.RealServer{{Addr: at("198.51.100.1:25")}}},
	}
	w.tick(1)
	want := []string{
		"198.51.100.1 192.0.2.1:80 198.51.100.1:80",
		"198.51.100.1 192.0.2.2:25 198.51.100.1:25",
		"198.51.100.2 192.0.2.1:80 198.51.100.2:80",
		"198.51.100.3 192.0.2.1:80 198.51.100.3:80 removed",
		"198.51.100.3 192.0.2.2:25 198.51.100.3:25 removed",
	}
	if diff := cmp.Diff(want, serversOf(w.Status().Servers)); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	if w.host.servers != nil {
		t.Error("servers are asked although nobody wants it")
	}

	reload := func(more string) {
		t.Helper()
		w.configure(config + more)
		cfg, err := w.Daemon.load()
		if err := w.reload(w.now, cfg, err); err != nil {
			t.Fatal(err)
		}
	}
	w.host.serversErr = errors.New("no such authority")
	reload("servers: {metrics: ['http://{address}:9100/metrics'], username: prom, password_file: /etc/secret}\n")
	w.tick(2)
	if why := w.Status().Unknown[SourceServers]; why != "no such authority" || len(w.Status().Servers) != 3 {
		t.Errorf("unknown: %q, %v", why, w.Status().Servers)
	}
	w.host.serversErr = nil
	w.tick(12)
	asked := w.host.servers
	if asked == nil || asked.set != 1 || len(asked.targets) != 3 || asked.cfg.User != "prom" || asked.cfg.PasswordFile != "/etc/secret" || asked.cfg.Interval != 2*time.Second {
		t.Fatalf("asked: %+v", asked)
	}
	if got := serversOf(w.Status().Servers); !strings.HasSuffix(got[4], " removed asked") || w.Status().Unknown[SourceServers] != "" {
		t.Errorf("servers: %v, unknown %v", got, w.Status().Unknown)
	}
	// While IPVS cannot be read, they are asked on.
	w.ipvs.err = errors.New("netlink refused")
	w.tick(3)
	if s := w.Status(); s.Servers != nil || asked.set != 1 || w.host.servers != asked {
		t.Errorf("without IPVS: %+v, set %d times", s.Servers, asked.set)
	}
	w.ipvs.err = nil
	w.ipvs.services = w.ipvs.services[:1]
	w.ipvs.services[0].RealServers = w.ipvs.services[0].RealServers[:1]
	w.tick(1)
	if len(asked.targets) != 3 || asked.set != 1 { // the others are still named
		t.Errorf("targets %v, set %d times", asked.targets, asked.set)
	}

	// The same configuration changes nothing, another ends the asking.
	reload("servers: {metrics: ['http://{address}:9100/metrics'], username: prom, password_file: /etc/secret}\n")
	w.tick(1)
	if w.host.servers != asked {
		t.Error("the same configuration opened it again")
	}
	reload("")
	w.tick(1)
	select {
	case <-asked.ended:
	case <-time.After(5 * time.Second):
		t.Error("nobody wants it, and servers are still asked")
	}
	if got := serversOf(w.Status().Servers); strings.Contains(got[0], "asked") {
		t.Errorf("figures of before: %v", got)
	}
}

// BenchmarkTickBesideServers is what asking 1,000 real servers, a fifth of which
// hang, does to the control loop: how long ticks take, a second from each other,
// in the same minute with it and without.
func BenchmarkTickBesideServers(b *testing.B) {
	const count, ticks = 1000, 15
	page, err := os.ReadFile("pressure/testdata/servers/node_exporter.txt")
	if err != nil {
		b.Fatal(err)
	}
	// Every address of 127/8 is this host's, so one server is them all.
	listener, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	var answered atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		here := netip.MustParseAddrPort(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		if here.Addr().As4()[3]%5 == 0 {
			<-r.Context().Done()
			return
		}
		answered.Add(1)
		w.Write(page)
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())

	measure := func(config string) (slowest, mean time.Duration) {
		w := newWorld(b, config)
		w.opts.Kernel.Host.OpenServers = func(cfg pressure.ServersConfig) (Servers, error) { return pressure.NewServers(cfg) }
		s := ipvs.Service{Key: ipvs.Key{Protocol: ipvs.TCP, Addr: web}}
		for i := range count {
			s.RealServers = append(s.RealServers, ipvs.RealServer{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i / 200), byte(i%200 + 1)}), 80)})
		}
		w.ipvs.services = []ipvs.Service{s}
		ctx, stop := context.WithCancel(b.Context())
		for i := range ticks {
			began := time.Now()
			w.Daemon.tick(ctx, began)
			if took := time.Since(began); i > 0 {
				slowest, mean = max(slowest, took), mean+took/(ticks-1)
			}
			time.Sleep(time.Until(began.Add(time.Second)))
		}
		known := 0
		for _, rs := range w.Status().Servers {
			if rs.Figures != nil && rs.Figures.Unknown == "" {
				known++
			}
		}
		stop()
		if err := errors.Join(w.tasks.Wait(), w.Close()); err != nil {
			b.Error(err)
		}
		if want := count - count/5; answered.Load() > 0 && known != want {
			b.Errorf("%d real servers are known, want %d", known, want)
		}
		return slowest, mean
	}
	for b.Loop() {
		slowest, mean := measure("")
		slowestBeside, meanBeside := measure("servers: {metrics: ['http://{address}:" + port + "/metrics']}\n")
		if answered.Load() == 0 {
			b.Fatal("nobody was asked")
		}
		b.ReportMetric(float64(mean.Microseconds()), "µs/tick-alone")
		b.ReportMetric(float64(meanBeside.Microseconds()), "µs/tick-beside")
		b.ReportMetric(float64(slowest.Microseconds()), "µs/slowest-alone")
		b.ReportMetric(float64(slowestBeside.Microseconds()), "µs/slowest-beside")
	}
}

package main

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
)

func someServers() []guard.RealServer {
	count := func(perSecond float64) *pressure.ServerCount {
		return &pressure.ServerCount{Total: 1_000_000, PerSecond: &perSecond}
	}
	serves := func(service, server string) guard.ServedHere {
		return guard.ServedHere{
			Service: key(service), Server: netip.MustParseAddrPort(server), Weight: ptr(uint32(1)),
			Active: ptr(uint32(1234)), Inactive: ptr(uint32(56)), Persistent: ptr(uint32(0)),
		}
	}
	removed := func(service, server string) guard.ServedHere {
		return guard.ServedHere{Service: key(service), Server: netip.MustParseAddrPort(server), Removed: true}
	}
	told := func(address string, sent, overflows float64) guard.RealServer {
		return guard.RealServer{
			Address: netip.MustParseAddr(address),
			Figures: &pressure.Server{
				Address: netip.MustParseAddr(address), Source: "node_exporter", URL: "http://" + address + ":9100/metrics", Read: &noon,
				SyncookiesSent: count(sent), SyncookiesReceived: count(sent / 3), SyncookiesFailed: count(0),
				ListenOverflows: count(overflows), ListenDrops: count(overflows), RequestQueueFullCookies: count(sent), RequestQueueFullDrops: count(0),
				MemoryAvailable: ptr(uint64(3_000_000_000)), MemoryTotal: ptr(uint64(4_000_000_000)),
			},
		}
	}
	calm, flooded, silent, gone := told("198.51.100.1", 0, 0), told("198.51.100.2", 812.4, 12_345), told("198.51.100.3", 0, 0), told("2001:db8:1111:2222:3333:4444:5555:6666", 0, 0)
	calm.Services = []guard.ServedHere{serves("192.0.2.1:80", "198.51.100.1:80"), serves("192.0.2.1:443", "198.51.100.1:443")}
	calm.Figures.AcceptQueueShare = ptr(0.01)
	flooded.Services = []guard.ServedHere{serves("192.0.2.1:80", "198.51.100.2:80")}
	flooded.Figures.AcceptQueueShare, flooded.Figures.MemoryAvailable = ptr(1.0), ptr(uint64(100_000_000))
	silent.Services = []guard.ServedHere{serves("192.0.2.1:80", "198.51.100.3:80")}
	silent.Figures = &pressure.Server{
		Address: silent.Address, UnknownSince: ptr(ago(12 * time.Minute)),
		Unknown: "http://198.51.100.3:9100/metrics: connect: connection refused; http://198.51.100.3:9101/metrics: no whole answer within 1s",
	}
	gone.Services = []guard.ServedHere{
		removed("[2001:db8::1]:80", "[2001:db8:1111:2222:3333:4444:5555:6666]:80"),
		removed("[2001:db8::1]:443", "[2001:db8:1111:2222:3333:4444:5555:6666]:443"),
		removed("[2001:db8::1]:8080", "[2001:db8:1111:2222:3333:4444:5555:6666]:8080"),
	}
	gone.Figures = nil
	return []guard.RealServer{calm, flooded, silent, gone}
}

func TestServersScreen(t *testing.T) {
	unasked := someServers()
	for i := range unasked {
		unasked[i].Figures = nil
	}
	host := statusOf()
	host.Role = guard.RoleHost
	broken := statusOf()
	broken.Servers = unasked[:1]
	broken.Unknown = map[guard.Source]string{guard.SourceServers: "open /etc/lvsguard/ca.pem: no such file or directory", guard.SourceNft: "not of the servers"}
	asked, alone := statusOf(), statusOf()
	asked.Servers, alone.Servers = someServers(), unasked
	for name, s := range map[string]*guard.Status{
		"servers": asked, "servers-not-asked": alone, "servers-broken": broken, "servers-host": host, "servers-none": statusOf(),
	} {
		var out bytes.Buffer
		writeServers(&out, newServersJSON(s), noon)
		golden(t, name, out.String())
	}
}

// The status has a line for a real server in trouble, and none for a calm one.
func TestStatusScreenServers(t *testing.T) {
	s := statusOf(svc("192.0.2.1:80", guard.Calm, "0 of 120 SYN/s bear a signature", []float64{120, 0, 0}, []uint64{3123, 812}, nil))
	s.Servers = someServers()
	for range 9 {
		s.Servers = append(s.Servers, s.Servers[1])
	}
	var out bytes.Buffer
	writeStatus(&out, s, noon)
	golden(t, "status-servers", out.String())

	host := statusOf()
	host.Role = guard.RoleHost
	out.Reset()
	writeStatus(&out, host, noon)
	golden(t, "status-host", out.String())
}

func TestServersJSONKeys(t *testing.T) {
	s := statusOf()
	s.Servers = someServers()[:1]
	s.Unknown = map[guard.Source]string{guard.SourceServers: "why"}
	wantKeys(t, "servers", newServersJSON(s), `
		time unknown unknown.servers servers servers.address
		servers.services servers.services.service servers.services.server servers.services.removed_by_health_check servers.services.weight
		servers.services.active_connections servers.services.inactive_connections servers.services.persistence_templates
		servers.figures servers.figures.address servers.figures.source servers.figures.url servers.figures.read
		servers.figures.syncookies_sent servers.figures.syncookies_received servers.figures.syncookies_failed
		servers.figures.listen_overflows servers.figures.listen_drops
		servers.figures.request_queue_full_cookies servers.figures.request_queue_full_drops
		servers.figures.accept_queue_share servers.figures.memory_available_bytes servers.figures.memory_total_bytes
		servers.figures.unknown_since servers.figures.unknown
		servers.figures.syncookies_sent.total servers.figures.syncookies_sent.per_second
		servers.figures.syncookies_received.total servers.figures.syncookies_received.per_second
		servers.figures.syncookies_failed.total servers.figures.syncookies_failed.per_second
		servers.figures.listen_overflows.total servers.figures.listen_overflows.per_second
		servers.figures.listen_drops.total servers.figures.listen_drops.per_second
		servers.figures.request_queue_full_cookies.total servers.figures.request_queue_full_cookies.per_second
		servers.figures.request_queue_full_drops.total servers.figures.request_queue_full_drops.per_second`)
}

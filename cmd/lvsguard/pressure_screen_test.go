package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
)

// resource is one of which everything is known; a full of 0 is never.
func resource(kind pressure.Kind, name string, used, limit uint64, rate, full float64, level pressure.Level) pressure.Resource {
	r := pressure.Resource{
		Kind: kind, Name: name, What: "what " + name + " is for", Unit: pressure.UnitEntries,
		Used: &used, Limit: &limit, Share: ptr(float64(used) / float64(limit)), RatePerSecond: &rate,
		Level: level, Reason: fmt.Sprintf("%d of %d", used, limit),
	}
	if kind == pressure.KindMemory || kind == pressure.KindLowMemory || kind == pressure.KindTCPMemory {
		r.Unit = pressure.UnitBytes
	}
	if full > 0 {
		r.FullIn = &full
	}
	return r
}

func notKnown(kind pressure.Kind, name, why string) pressure.Resource {
	return pressure.Resource{
		Kind: kind, Name: name, Unit: pressure.UnitEntries, Level: pressure.LevelUnknown, Reason: "not known: " + why,
		Unknown: map[string]string{"used": why, "limit": why, "share": why, "rate_per_second": why},
	}
}

// somePressure are reports by name.
func somePressure() map[string]*guard.PressureReport {
	long := "accept queue [2001:db8:1111:2222:3333:4444:5555:6666]:65535"
	report := func(resources ...pressure.Resource) *guard.PressureReport {
		pressure.SortResources(resources)
		return &guard.PressureReport{Sample: pressure.Sample{Time: noon, Resources: resources, Conntrack: pressure.Conntrack{InUse: true}}}
	}
	queue := func(n uint64, name string) pressure.Resource {
		return resource(pressure.KindAcceptQueue, name, n, 128, 0, 0, pressure.LevelOK)
	}
	calm := report(
		resource(pressure.KindMemory, "memory", 9_000_000_000, 25_000_000_000, -120_000, 0, pressure.LevelOK),
		resource(pressure.KindIPVS, "IPVS connections", 12_345, 80_000_000, 12.4, 0, pressure.LevelOK),
		queue(0, "accept queue 0.0.0.0:22"), queue(0, "accept queue [::]:22"), queue(1, long),
	)
	calm.Conntrack.InUse = false

	night := report(
		resource(pressure.KindLowMemory, "low memory", 815_000_000, 886_000_000, 18_400_000, 41, pressure.LevelCritical),
		resource(pressure.KindIPVS, "IPVS connections", 3_912_345, 4_300_000, 95_123, 41, pressure.LevelCritical),
		resource(pressure.KindMemory, "memory", 1_500_000_000, 3_900_000_000, 18_500_000, 129, pressure.LevelOK),
		resource(pressure.KindConntrack, "conntrack", 54_000, 65_536, 2_000, 6, pressure.LevelWarning),
		queue(0, "accept queue 0.0.0.0:22"),
	)
	night.Events = []pressure.Event{
		{Time: ago(90 * time.Second), Kind: pressure.EventIPVSNoMemory, Subject: "ip_vs_conn_new", Text: "IPVS: ip_vs_conn_new: no memory", Count: 51234},
		{Time: ago(40 * time.Minute), Kind: pressure.EventDefence, Subject: "drop_entry", Text: "net.ipv4.vs.drop_entry is active no more", Count: 1},
	}
	night.Troubles = []pressure.Trouble{
		{Counter: "TcpExtSyncookiesSent", PerSecond: 812.4, Why: "a listening socket's queue of half-open connections is full, so that SYNs are answered with cookies"},
		{Counter: "SoftnetDropped", PerSecond: 0.5, Why: "packets are dropped before any protocol saw them: a processor's queue is full (net.core.netdev_max_backlog)"},
	}
	night.Advice = []pressure.Finding{{
		Severity: pressure.LevelWarning, What: "net.ipv4.vs.drop_entry is 0", Why: "nothing makes room when a flood has taken the memory",
		Remedy: "sysctl -w net.ipv4.vs.drop_entry=1 net.ipv4.vs.amemthresh=16384",
	}}

	queues := report(
		resource(pressure.KindMemory, "memory", 1_500_000_000, 3_900_000_000, 0, 0, pressure.LevelOK),
		resource(pressure.KindAcceptQueue, long, 9, 8, 0.2, 0, pressure.LevelCritical),
		resource(pressure.KindAcceptQueue, "accept queue 0.0.0.0:80", 511, 511, 0, 0, pressure.LevelCritical),
		resource(pressure.KindAcceptQueue, "accept queue 0.0.0.0:443", 511, 511, 0, 0, pressure.LevelCritical),
	)
	for i := range queues.Resources[:3] {
		queues.Resources[i].FullIn = ptr(0.0)
	}
	queues.Troubles = []pressure.Trouble{{Counter: "TcpExtListenOverflows", PerSecond: 12_000, Why: "an accept queue is full: a program accepts too slowly or its backlog is too small, and clients wait"}}

	fills := report(
		resource(pressure.KindConntrack, "conntrack", 9_000, 65_536, 150, 377, pressure.LevelOK),
		resource(pressure.KindMemory, "memory", 1_500_000_000, 3_900_000_000, 0, 0, pressure.LevelOK),
	)

	blind := report(
		notKnown(pressure.KindMemory, "memory", "open /proc/meminfo: permission denied"),
		notKnown(pressure.KindIPVS, "IPVS connections", "IPVS answers only to CAP_NET_ADMIN, run as root or grant it: operation not permitted"),
	)
	blind.Unknown = map[string]string{"kernel_log": "open /dev/kmsg: operation not permitted: it needs CAP_SYSLOG; add that to CapabilityBoundingSet in the guard's unit, as deploy/lvsguard.service has it", "snmp": "/proc/thread-self/net/snmp: it is cut short"}
	blind.LostRecords = 12

	return map[string]*guard.PressureReport{
		"pressure-calm": calm, "pressure-night": night, "pressure-queues": queues, "pressure-fills": fills, "pressure-unknown": blind,
		"pressure-empty": {Sample: pressure.Sample{Resources: []pressure.Resource{}}},
	}
}

func TestPressureScreen(t *testing.T) {
	for name, r := range somePressure() {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			writePressure(&out, r, noon, "")
			golden(t, name, out.String())
		})
	}
	var out bytes.Buffer
	writePressure(&out, somePressure()["pressure-calm"], noon.Add(time.Minute), "no guard is running on /run/lvsguard/control.sock")
	golden(t, "pressure-stale-alone", out.String())
}

// Who has just been woken reads three lines: what is worst, what the kernel has
// said, and how much more there is.
func TestPressureHeadlines(t *testing.T) {
	lines := pressureHeadlines(somePressure()["pressure-night"], noon)
	if len(lines) != maxHeadlines {
		t.Fatalf("%d lines: %q", len(lines), lines)
	}
	for i, want := range []string{"low memory", "IPVS connections", "no memory"} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d is %q, want …%s…", i+1, lines[i], want)
		}
	}
	if !strings.HasSuffix(lines[2], "(and 4 more below)") {
		t.Errorf("the third line hides the rest: %q", lines[2])
	}
}

// The status names what is near its limit, and only that.
func TestStatusScreenPressure(t *testing.T) {
	s := statusOf(svc("192.0.2.1:80", guard.Calm, "0 of 120 SYN/s bear a signature", []float64{120, 0, 0}, []uint64{3123, 812}, nil))
	night := somePressure()["pressure-night"]
	s.Pressure = &guard.PressureStatus{Resources: night.Resources, Troubles: night.Troubles, Events: night.Events, Advice: night.Advice}
	s.Role = guard.RoleDirector
	var out bytes.Buffer
	writeStatus(&out, s, noon)
	golden(t, "status-pressure", out.String())
}

func someSockets() *pressure.Sockets {
	group := func(established, timeWait, half uint64) pressure.Group {
		g := pressure.Group{Connections: established + timeWait + half}
		g.States[pressure.StateEstablished], g.States[pressure.StateTimeWait], g.States[pressure.StateSynReceived] = established, timeWait, half
		return g
	}
	long := "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
	in, out := group(51_234, 8_123, 512), group(12, 3, 0)
	in.Receive = pressure.Queued{Connections: 7, Bytes: 912_345}
	out.Send = pressure.Queued{Connections: 2, Bytes: 17}
	web := group(51_000, 8_000, 512)
	web.Receive, web.Send = in.Receive, pressure.Queued{Connections: 1, Bytes: 1}
	s := &pressure.Sockets{
		Listeners: []pressure.Listener{
			{Name: long, Sockets: 1, Queue: 9, Limit: 8, Highest: 9},
			{Name: "0.0.0.0:80", Sockets: 16, Queue: 511, Limit: 4096, Highest: 511},
			{Name: "0.0.0.0:22", Sockets: 1, Limit: 128},
		},
		Connections: &pressure.Connections{
			In: in, Out: out,
			Listening: []pressure.Series{
				{Name: "0.0.0.0:80", Group: web, RTT: &pressure.RTT{Connections: 51_000, P50: 0.312, P90: 20, P99: 412}},
				{Name: long, Group: group(234, 123, 0)},
			},
			Remotes: []pressure.Series{
				{Name: "192.0.2.9", Group: out},
				{Name: pressure.SeriesNonlocal, Group: in},
				{Name: pressure.SeriesOther, Group: group(1, 0, 0)},
			},
		},
		Took: 12.5, Unknown: map[string]string{},
	}
	for i := range 25 {
		s.Connections.Remotes = append([]pressure.Series{{Name: fmt.Sprintf("192.0.2.%d", 100+i), Group: group(1, 0, 0)}}, s.Connections.Remotes...)
	}
	return s
}

func TestSocketsScreen(t *testing.T) {
	s := someSockets()
	blind := someSockets()
	blind.Connections.Remotes, blind.Unknown = nil, map[string]string{"remotes": "list the host's addresses: operation not permitted"}
	none := &pressure.Sockets{Listeners: []pressure.Listener{}, Connections: &pressure.Connections{}}
	for name, write := range socketScreens() {
		var out bytes.Buffer
		write(&out, s)
		golden(t, "sockets-"+name, out.String())
		out.Reset()
		write(&out, none)
		if want := "0 connections: 0 in, 0 out; 0 addresses are listened on\n"; out.String() != want {
			t.Errorf("%s of none: %q, want %q", name, out.String(), want)
		}
	}
	var out bytes.Buffer
	writeSocketRemotes(&out, blind)
	golden(t, "sockets-remote-unknown", out.String())
}

func TestPressureJSONKeys(t *testing.T) {
	// What every object of pressure has is told by its own package's tests; here
	// it is what the guard puts around it.
	top := func(v any) string {
		var names []string
		for _, k := range keysOf(t, v) {
			if !strings.Contains(k, ".") {
				names = append(names, k)
			}
		}
		return strings.Join(names, " ")
	}
	if got, want := top(somePressure()["pressure-night"]), "advice conntrack counters events ipvs kernel_log_lost_records memory resources time troubles unknown"; got != want {
		t.Errorf("keys of pressure: %s\nwant %s", got, want)
	}
	wantKeys(t, "a resource", somePressure()["pressure-night"].Resources[0], "kind name what unit used limit share rate_per_second full_in_seconds level reason")
	s := someSockets()
	s.Listeners, s.Connections.Remotes = s.Listeners[:1], nil
	s.Unknown["remotes"] = "why"
	wantKeys(t, "sockets", s, `
		listeners listeners.name listeners.sockets listeners.accept_queue_connections listeners.accept_queue_limit_connections
		listeners.accept_queue_highest_connections reading_milliseconds unknown unknown.remotes
		connections connections.in connections.out connections.listening connections.remotes `+
		groupKeys("connections.in")+groupKeys("connections.out")+groupKeys("connections.listening")+`
		connections.in.states.syn_received connections.listening.states.syn_received connections.listening.name
		connections.listening.rtt connections.listening.rtt.connections connections.listening.rtt.p50_milliseconds
		connections.listening.rtt.p90_milliseconds connections.listening.rtt.p99_milliseconds`)
}

func groupKeys(of string) string {
	var all strings.Builder
	for _, k := range []string{
		"connections", "states", "states.established", "states.time_wait",
		"receive_queue", "receive_queue.connections", "receive_queue.bytes", "send_queue", "send_queue.connections", "send_queue.bytes",
	} {
		all.WriteString(" " + of + "." + k)
	}
	return all.String() + " "
}

// listenUnaccepted listens on host h with a backlog of 8, accepts nothing, and has
// more clients than there is room for.
func listenUnaccepted(h *host) (address string) {
	h.t.Helper()
	var fds []int
	h.t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			h.t.Error(err)
		}
		fds = append(fds, fd)
		return fd
	}
	h.Do(h.t, func() {
		listener := socket()
		if err := errors.Join(unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(listener, 8)); err != nil {
			h.t.Error(err)
			return
		}
		at, err := unix.Getsockname(listener)
		if err != nil {
			h.t.Error(err)
			return
		}
		address = fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
		for range 12 {
			if err := unix.Connect(socket(), at); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				h.t.Error(err)
			}
		}
	})
	return address
}

// A service that does not accept is seen and named, by every way there is; on a
// host that is no director, of which nothing else is missed.
func TestPressureWithGuard(t *testing.T) {
	h := newHost(t)
	text := "role: host\nkeepalived: {config: /nowhere/keepalived.conf}\nhandshakes: {enabled: false}\n"
	if err := os.WriteFile(h.path("lvsguard.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h.guard()
	name := "accept queue " + listenUnaccepted(h)
	s := h.statusOnce("the full queue", func(s *guard.Status) bool {
		return s.Pressure != nil && len(s.Pressure.Resources) > 0 && s.Pressure.Resources[0].Name == name
	})
	if r := s.Pressure.Resources[0]; r.Level != pressure.LevelCritical || *r.Share < 1 || *r.Limit != 8 {
		t.Errorf("the queue: %+v", r)
	}
	if len(s.Unknown) != 0 {
		t.Errorf("missed on a host: %v", s.Unknown)
	}
	if tables := h.tables(); tables != "" {
		t.Errorf("with nothing to count there is %s", tables)
	}
	if out := h.run("pressure"); !strings.HasPrefix(out, "CRITICAL "+name+": 100% used\n") {
		t.Errorf("pressure:\n%s", out)
	}
	var report guard.PressureReport
	if err := json.Unmarshal([]byte(h.run("pressure", "--json")), &report); err != nil || report.Resources[0].Name != name || len(report.Counters) == 0 {
		t.Errorf("pressure --json: %v, %+v", err, report.Resources)
	}
	if out := h.run("sockets", "--by", "queue"); !strings.Contains(out, "100%") {
		t.Errorf("sockets:\n%s", out)
	}
	s = h.statusOnce("a reading of the connections", func(s *guard.Status) bool { return s.Sockets != nil && s.Sockets.In != nil })
	if *s.Sockets.Interval < 10 || s.Sockets.Listeners == nil || *s.Sockets.Listeners != 2 { // the other is the metrics'
		t.Errorf("sockets in status: %+v", s.Sockets)
	}
	var told int
	for line := range strings.Lines(h.run("journal", "--json")) {
		var e guard.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Event == guard.EventPressure && e.Resource == name && e.To == "critical" {
			told++
		}
	}
	if told != 1 {
		t.Errorf("the journal tells of it %d times", told)
	}
	if out := h.run("servers"); !strings.Contains(out, "role: host") {
		t.Errorf("servers:\n%s", out)
	}
}

// What keepalived's FIFO says of a real server comes into the journal.
func TestHealthFromFIFO(t *testing.T) {
	h := newHost(t)
	fifo := h.path("fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("keepalived: {config: %s, fifo: %s}\n", h.path("keepalived.conf"), fifo)
	if err := os.WriteFile(h.path("lvsguard.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h.guard()
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("RS [198.51.100.1]:tcp:80 [192.0.2.1]:tcp:80 DOWN\n"); err != nil {
		t.Fatal(err)
	}
	ctx := soon(t)
	for {
		if out := h.run("journal"); strings.Contains(out, "198.51.100.1:80 of 192.0.2.1:80 DOWN") {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the journal says nothing of it:\n%s", h.run("journal"))
		}
	}
}

// Without a guard the host itself is read.
func TestPressureWithoutGuard(t *testing.T) {
	h := newHost(t)
	out := h.run("pressure")
	if !strings.Contains(out, "\nmemory ") || !strings.Contains(out, "no guard is running") {
		t.Errorf("pressure without a guard:\n%s", out)
	}
	for name := range maps.Keys(socketScreens()) {
		if out := h.run("sockets", "--by", name); !strings.HasPrefix(out, "0 connections: ") {
			t.Errorf("sockets --by %s:\n%s", name, out)
		}
	}
}

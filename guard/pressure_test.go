package guard

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// fakeHost is a host that says what a test has it say.
type fakeHost struct {
	resources  []pressure.Resource
	memory     pressure.Memory
	unknown    map[string]string
	given      pressure.Given // of the last look
	thresholds pressure.Thresholds

	listeners  []pressure.Listener
	noSockets  atomic.Bool // the connections are read beside the loop
	log        fakeLog
	logErr     error
	servers    *fakeServers
	serversErr error
}

func (h *fakeHost) kernel() Host {
	return Host{
		Monitor: h,
		OpenSockets: func() (SocketReader, error) {
			if h.noSockets.Load() {
				return nil, errors.New("no sock_diag")
			}
			return &fakeSockets{listeners: &h.listeners}, nil
		},
		OpenKernelLog: func() (KernelLog, error) { return &h.log, h.logErr },
		OpenServers: func(cfg pressure.ServersConfig) (Servers, error) {
			if h.serversErr != nil {
				return nil, h.serversErr
			}
			h.servers = &fakeServers{cfg: cfg, ended: make(chan struct{})}
			return h.servers, nil
		},
	}
}

func (h *fakeHost) SetThresholds(t pressure.Thresholds) { h.thresholds = t }

func (h *fakeHost) Sample(now time.Time, given pressure.Given) pressure.Sample {
	h.given = given
	return pressure.Sample{
		Time: now, Resources: slices.Clone(h.resources), Memory: h.memory,
		Counters: []pressure.Counter{{Name: "TcpExtListenOverflows", Total: 5}}, Unknown: h.unknown,
	}
}

// set makes a resource's share what it is now.
func (h *fakeHost) set(name string, kind pressure.Kind, share float64) {
	h.resources = slices.DeleteFunc(h.resources, func(r pressure.Resource) bool { return r.Name == name })
	used, limit := uint64(share*1000), uint64(1000)
	h.resources = append(h.resources, pressure.Resource{Name: name, Kind: kind, Used: &used, Limit: &limit, Share: &share, Level: pressure.LevelOK})
}

// fakeSockets reads as long as it is told to have read.
type fakeSockets struct {
	listeners *[]pressure.Listener
	took      time.Duration
	asked     []time.Time
	asks      []pressure.SocketsAsk
	closed    bool
}

func (f *fakeSockets) Read(_ context.Context, ask pressure.SocketsAsk) pressure.Sockets {
	f.asked, f.asks = append(f.asked, time.Now()), append(f.asks, ask)
	s := pressure.Sockets{Unknown: make(map[string]string), Took: float64(f.took.Milliseconds())}
	if !ask.Connections {
		s.Listeners = *f.listeners
		return s
	}
	time.Sleep(f.took)
	s.Connections = &pressure.Connections{In: pressure.Group{Connections: 5}}
	return s
}

func (f *fakeSockets) Close() error { f.closed = true; return nil }

// fakeLog has events once.
type fakeLog struct {
	events []pressure.Event
	err    error
	closed int
}

func (l *fakeLog) Events(time.Time) ([]pressure.Event, error) {
	events := l.events
	l.events = nil
	return events, l.err
}

func (l *fakeLog) Lost() uint64 { return 7 }
func (l *fakeLog) Close() error { l.closed++; return nil }

type fakeServers struct {
	cfg     pressure.ServersConfig
	targets []netip.Addr
	set     int
	ended   chan struct{}
}

func (s *fakeServers) Run(ctx context.Context) error {
	<-ctx.Done()
	close(s.ended)
	return nil
}

func (s *fakeServers) SetTargets(targets []netip.Addr) { s.targets, s.set = targets, s.set+1 }

func (s *fakeServers) Snapshot(time.Time) []pressure.Server {
	var all []pressure.Server
	for _, a := range s.targets {
		all = append(all, pressure.Server{Address: a, SyncookiesSent: &pressure.ServerCount{Total: 9}})
	}
	return all
}

// entries lists what was written of some kinds, as a whole.
func (w *world) entries(events ...Event) []Entry {
	var all []Entry
	for {
		select {
		case e := <-w.journal.queue:
			if slices.Contains(events, e.Event) {
				all = append(all, e)
			}
			continue
		default:
		}
		return all
	}
}

// The night itself: warning, critical, the kernel's line, and back, once each,
// in this order.
func TestPressureJournal(t *testing.T) {
	w := newWorld(t, "")
	w.ipvs.services = []ipvs.Service{serviceAt(web)}
	for second := range 60 {
		share := 0.5 + float64(second)*0.01
		if second > 45 {
			share = 0.3
		}
		w.host.set("low memory", pressure.KindLowMemory, share)
		if second == 42 {
			w.host.log.events = []pressure.Event{{Time: w.now, Kind: pressure.EventIPVSNoMemory, Subject: "ip_vs_conn_new", Text: "IPVS: ip_vs_conn_new: no memory", Count: 3}}
		}
		w.tick(1)
	}
	var got []string
	for _, e := range w.entries(EventPressure, EventKernel) {
		got = append(got, strings.Join([]string{string(e.Event), e.Kind, e.Resource, e.Subject, e.From, e.To, e.Reason}, "|"))
		if e.Event == EventKernel && e.Count != 3 {
			t.Errorf("%d times, want 3", e.Count)
		}
		if e.Event == EventPressure && e.To == "critical" && (e.Share == nil || *e.Share < 0.9) {
			t.Errorf("critical without its share: %+v", e)
		}
	}
	want := []string{
		"pressure|low_memory|low memory||ok|warning|",
		"pressure|low_memory|low memory||warning|critical|",
		"kernel|ipvs_no_memory||ip_vs_conn_new|||IPVS: ip_vs_conn_new: no memory",
		"pressure|low_memory|low memory||critical|ok|",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	r := w.Pressure()
	if len(r.Events) != 1 || r.Events[0].Kind != pressure.EventIPVSNoMemory || r.LostRecords != 7 {
		t.Errorf("report: events %+v, %d lost", r.Events, r.LostRecords)
	}
	w.now = w.now.Add(2 * time.Hour)
	w.tick(1)
	if events := w.Pressure().Events; len(events) != 0 {
		t.Errorf("two hours later: %+v", events)
	}
}

// Status has the levels that are held; the sample goes through JSON, without
// counters.
func TestPressureStatus(t *testing.T) {
	w := newWorld(t, "pressure: {warning: 0.5, critical: 0.8, kinds: {conntrack: {critical: 0.6}}}")
	want := pressure.Thresholds{
		Default: pressure.Threshold{Warning: 0.5, Critical: 0.8},
		ByKind:  map[pressure.Kind]pressure.Threshold{pressure.KindConntrack: {Critical: 0.6}},
	}
	if diff := cmp.Diff(want, w.host.thresholds); diff != "" {
		t.Errorf("thresholds (-want +got):\n%s", diff)
	}
	if s := w.Status(); s.Pressure != nil {
		t.Errorf("before the first look: %+v", s.Pressure)
	}
	w.host.set("conntrack", pressure.KindConntrack, 0.65)
	w.host.set("accept queue 0.0.0.0:80", pressure.KindAcceptQueue, 0.1)
	w.host.set("accept queue 0.0.0.0:81", pressure.KindAcceptQueue, 0.85)
	w.tick(1)
	w.host.set("conntrack", pressure.KindConntrack, 0.59)
	w.tick(1)
	var got []string
	for _, r := range w.Status().Pressure.Resources {
		got = append(got, r.Name+" "+string(r.Level))
	}
	if diff := cmp.Diff([]string{"accept queue 0.0.0.0:81 critical", "conntrack critical"}, got); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	if n := len(w.Pressure().Resources); n != 3 || len(w.Pressure().Counters) != 1 {
		t.Errorf("the report has %d resources and %d counters", n, len(w.Pressure().Counters))
	}
	text, err := json.Marshal(w.sample)
	if err != nil {
		t.Fatal(err)
	}
	var back Sample
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Pressure == nil || len(back.Pressure.Resources) != 3 || back.Pressure.Counters != nil || back.Sockets == nil {
		t.Errorf("the sample read back: %+v, %+v", back.Pressure, back.Sockets)
	}

	// Other thresholds move the levels; nothing is told anew.
	w.entries()
	w.configure("pressure: {warning: 0.95, critical: 0.98}")
	cfg, err := w.Daemon.load()
	if err := w.reload(w.now, cfg, err); err != nil {
		t.Fatal(err)
	}
	w.tick(15)
	got = nil
	for _, e := range w.entries(EventPressure) {
		got = append(got, e.Resource+" "+e.From+">"+e.To)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"accept queue 0.0.0.0:81 critical>ok", "conntrack critical>ok"}, got); diff != "" {
		t.Errorf("after the reload (-want +got):\n%s", diff)
	}
}

// What IPVS knows is given to the forecast.
func TestPressureOfIPVS(t *testing.T) {
	w := newWorld(t, "")
	on, off := ipvs.Setting{Name: "secure_tcp", Value: 2}, ipvs.Setting{Name: "drop_entry", Value: 0}
	w.ipvs.defence = ipvs.Defence{SecureTCP: on, DropEntry: off, AmemThresh: ipvs.Setting{Name: "amemthresh", Value: 1024}, DropPacket: ipvs.Setting{Name: "drop_packet", Err: errors.New("no")}}
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	w.ipvs.services = []ipvs.Service{
		{Key: ipvs.Key{Protocol: ipvs.TCP, Addr: web}, Persistent: 50 * time.Second, Stats: ipvs.Stats{Connections: 1000}, RealServers: []ipvs.RealServer{
			{Addr: at("198.51.100.1:80"), Method: ipvs.NAT, ActiveConn: 300, InActConn: 20, PersistConn: 7},
		}},
		{Key: ipvs.Key{Protocol: ipvs.TCP, Addr: mail}, Persistent: 10 * time.Minute, Stats: ipvs.Stats{Connections: 500}, RealServers: []ipvs.RealServer{
			{Addr: at("198.51.100.2:25"), Method: ipvs.DR, ActiveConn: 80},
		}},
	}
	w.ipvs.census = ipvs.Census{Complete: true, Lines: 400, States: map[string]int{"SYN_RECV": 100, "ESTABLISHED": 300}}
	w.host.listeners = []pressure.Listener{{Name: "0.0.0.0:80", Queue: 9, Limit: 8}, {Name: "0.0.0.0:81", Queue: 1}}
	w.tick(1)
	want := pressure.Given{
		Table: &pressure.Table{
			Connections: 400, Templates: 7, HalfOpenShare: new(0.25), NewTotal: new(uint64(1500)),
			HalfOpenLifetime: 2 * time.Minute, TemplateLifetime: 10 * time.Minute,
		},
		Queues: []pressure.Queue{{Address: "0.0.0.0:80", Used: 9, Limit: 8}, {Address: "0.0.0.0:81", Used: 1, Limit: 1}},
	}
	if diff := cmp.Diff(want, w.host.given); diff != "" {
		t.Errorf("given (-want +got):\n%s", diff)
	}
	// It is active from the first look on, and that is worth a line; the next
	// look says nothing new.
	w.tick(3)
	entries := w.entries(EventKernel)
	if len(entries) != 1 || entries[0].Kind != "defence" || entries[0].Subject != "secure_tcp" {
		t.Errorf("journal: %+v", entries)
	}
	var advice []string
	for _, f := range w.Status().Pressure.Advice {
		advice = append(advice, f.What)
	}
	for _, about := range []string{"secure_tcp is 2", "drop_entry is 0"} {
		if !slices.ContainsFunc(advice, func(s string) bool { return strings.Contains(s, about) }) {
			t.Errorf("no advice that …%s…: %q", about, advice)
		}
	}

	// Settings that cannot be read for a while are no change.
	w.ipvs.defence.SecureTCP.Err = errors.New("no")
	w.tick(2)
	w.ipvs.defence.SecureTCP.Err = nil
	w.tick(2)
	if entries := w.entries(EventKernel); len(entries) != 0 {
		t.Errorf("nothing has changed: %+v", entries)
	}
	w.ipvs.defence.SecureTCP.Value = 1
	w.ipvs.services[0].Frozen = true
	w.tick(1)
	if entries := w.entries(EventKernel); len(entries) != 1 || !strings.Contains(entries[0].Reason, "no more") {
		t.Errorf("journal: %+v", entries)
	}
	if g := w.host.given.Table; g.NewTotal != nil || g.HalfOpenLifetime != 0 {
		t.Errorf("of frozen totals, and without secure_tcp: %+v", g)
	}

	w.ipvs.err = errors.New("netlink refused")
	w.tick(1)
	if g := w.host.given; g.Table != nil || g.TableUnknown != "netlink refused" {
		t.Errorf("without IPVS: %+v", g)
	}
}

// What cannot be read is named, tried again, and stops nothing else.
func TestPressureUnknown(t *testing.T) {
	w := newWorld(t, "")
	w.ipvs.services = []ipvs.Service{serviceAt(web)}
	w.host.noSockets.Store(true)
	w.host.logErr = errors.New("no /dev/kmsg")
	w.host.unknown = map[string]string{"snmp": "it is cut short"}
	w.host.resources = []pressure.Resource{
		{Name: "conntrack", Kind: pressure.KindConntrack, Unknown: map[string]string{"used": "not allowed"}},
		{Name: "IPVS connections", Kind: pressure.KindIPVS, Unknown: map[string]string{"used": "told by another source"}},
	}
	w.tick(3)
	want := map[Source]string{
		SourceSockets: "no sock_diag", SourceKernelLog: "no /dev/kmsg", SourcePressure: "snmp: it is cut short; conntrack: not allowed",
	}
	got := w.Status().Unknown
	for src, why := range want {
		if got[src] != why {
			t.Errorf("%s: %q, want %q", src, got[src], why)
		}
	}
	if s := w.service("192.0.2.1:80"); s.Verdict != Calm {
		t.Errorf("verdict %s", s.Verdict)
	}
	if r := w.Pressure(); r.Unknown["sockets"] != "no sock_diag" || r.Unknown["kernel_log"] != "no /dev/kmsg" || r.Unknown["snmp"] == "" {
		t.Errorf("the report's: %v", r.Unknown)
	}
	if why := w.Sockets().Unknown["listeners"]; why != "no sock_diag" {
		t.Errorf("the sockets' report: %q", why)
	}
	if s := w.Status().Sockets; s == nil || s.Listeners != nil || s.In != nil {
		t.Errorf("sockets that cannot be read: %+v", s)
	}
	w.host.noSockets.Store(false)
	w.host.logErr, w.host.unknown, w.host.resources = nil, nil, nil
	w.tick(12)
	w.host.log.err = errors.New("it is gone")
	w.tick(1)
	if got := w.Status().Unknown[SourceKernelLog]; got != "it is gone" || w.host.log.closed != 1 {
		t.Errorf("a log that fails: %q, closed %d times", got, w.host.log.closed)
	}
	w.host.log.err = nil
	w.tick(12)
	for _, src := range []Source{SourceKernelLog, SourcePressure} {
		if why := w.Status().Unknown[src]; why != "" {
			t.Errorf("%s is still unknown: %s", src, why)
		}
	}
	var lines []string
	for _, e := range w.entries(EventSource) {
		if e.Source == SourceKernelLog || e.Source == SourcePressure {
			lines = append(lines, string(e.Source)+" "+e.From+">"+e.To)
		}
	}
	if diff := cmp.Diff([]string{
		"pressure >unknown", "kernel_log >unknown", "pressure unknown>", "kernel_log unknown>", "kernel_log >unknown", "kernel_log unknown>",
	}, lines); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// All connections are read so seldom that it takes a hundredth of a processor,
// and never more often than each ten seconds.
func TestConnectionsInterval(t *testing.T) {
	for _, tt := range []struct {
		took time.Duration
		want time.Duration // from the beginning of a reading to that of the next
	}{
		{5 * time.Millisecond, 10*time.Second + 5*time.Millisecond},
		{62 * time.Millisecond, 10*time.Second + 62*time.Millisecond},
		{400 * time.Millisecond, 40*time.Second + 400*time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			var w connectionsWatch
			reader := &fakeSockets{took: tt.took}
			ctx, cancel := context.WithCancel(t.Context())
			go w.run(ctx, func() (SocketReader, error) { return reader, nil })
			time.Sleep(time.Second)
			w.rtt.Store(true)
			time.Sleep(5 * tt.want)
			last := w.last.Load()
			cancel()
			synctest.Wait()
			for i := range reader.asked[1:] {
				if got := reader.asked[i+1].Sub(reader.asked[i]); got != tt.want {
					t.Errorf("%s to read: again after %s, want %s", tt.took, got, tt.want)
				}
			}
			if len(reader.asked) < 5 {
				t.Errorf("%s to read: %d readings", tt.took, len(reader.asked))
			}
			if share := tt.took.Seconds() / tt.want.Seconds(); share > 0.01 {
				t.Errorf("%s to read: %.1f %% of a processor", tt.took, 100*share)
			}
			if *last.Interval != (tt.want-tt.took).Seconds() || last.Connections.In.Connections != 5 {
				t.Errorf("%s to read: the report says %v s, %+v", tt.took, *last.Interval, last.Connections)
			}
			if reader.asks[0].RTT || !reader.asks[1].RTT || !reader.closed {
				t.Errorf("round-trip times asked %v, closed %v", reader.asks, reader.closed)
			}
		})
	}
}

func TestConnectionsCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w connectionsWatch
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.run(ctx, func() (SocketReader, error) {
			if time.Since(start) < 5*time.Second {
				return nil, errors.New("no sock_diag")
			}
			return &fakeSockets{}, nil
		})
		time.Sleep(time.Second)
		if why := w.last.Load().Unknown["connections"]; why != "no sock_diag" {
			t.Errorf("unknown: %q", why)
		}
		time.Sleep(10 * time.Second)
		if w.last.Load().Connections == nil {
			t.Error("it is not tried again")
		}
		cancel()
		synctest.Wait()
	})
}

// Sockets come into sample, status and report.
func TestSockets(t *testing.T) {
	w := newWorld(t, "")
	w.host.listeners = []pressure.Listener{{Name: "0.0.0.0:80", Highest: 3}}
	w.tick(1)
	deadline := time.Now().Add(5 * time.Second)
	for w.Status().Sockets.In == nil {
		if time.Now().After(deadline) {
			t.Fatal("the connections are never read")
		}
		time.Sleep(time.Millisecond)
		w.tick(1)
	}
	s := w.Status().Sockets
	if s.In.Connections != 5 || *s.Listeners != 1 || *s.Interval != 10 || s.Time == nil {
		t.Errorf("summary: %+v", s)
	}
	if r := w.Sockets(); r.Listeners[0].Highest != 3 || r.Connections.In.Connections != 5 {
		t.Errorf("report: %+v", r)
	}
}

// On a host that is no director nothing of IPVS, keepalived and nft is needed or
// missed.
func TestRoleHost(t *testing.T) {
	w := newWorld(t, "role: host")
	w.ipvs.err = ipvs.ErrAbsent
	w.addresses.held, w.addresses.err = nil, errors.New("not to be asked")
	w.host.set("memory", pressure.KindMemory, 0.95)
	w.tick(3)
	if len(w.Status().Unknown) != 0 {
		t.Errorf("unknown: %v", w.Status().Unknown)
	}
	if w.table.services != nil || w.Daemon.table != nil {
		t.Error("there is a table, and nothing to count")
	}
	if s := w.Status(); s.Role != RoleHost || s.Servers != nil || len(s.Pressure.Resources) != 1 || w.captures.opened != 1 {
		t.Errorf("status %+v, captures opened %d times", s, w.captures.opened)
	}
	if w.host.given.Table != nil || w.host.given.TableUnknown != "" || len(w.Pressure().Advice) != 0 {
		t.Errorf("given of IPVS: %+v, advice %+v", w.host.given, w.Pressure().Advice)
	}
	for _, verb := range []Verb{VerbRemove, VerbInstall} {
		if _, err := w.command(w.now, Command{Verb: verb}, "uid 0"); !errors.Is(err, errNoTable) {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if _, err := w.command(w.now, Command{Verb: VerbMode, Mode: Auto}, "uid 0"); err != nil {
		t.Error(err)
	}

	// With an address to watch there is a table, and a flood to it is dropped.
	reload := func(config string) error {
		w.configure(config)
		cfg, err := w.Daemon.load()
		return w.reload(w.now, cfg, err)
	}
	if err := reload("role: host\nwatch: ['192.0.2.1:80']"); err != nil {
		t.Fatal(err)
	}
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.tick(6)
	w.wantArmed("192.0.2.1:80")
	if s := w.service("192.0.2.1:80"); !strings.Contains(s.Unknown["active_connections"], "no director") || s.HalfOpen != nil {
		t.Errorf("status: %+v", s)
	}
	w.wantReasons(t, "of a host")
	// Without it, the table is left to itself.
	if err := reload("role: host"); err != nil {
		t.Fatal(err)
	}
	w.tick(3)
	if w.Daemon.table != nil || w.table.services == nil {
		t.Error("the table is not left alone")
	}
	if err := reload("role: director"); err == nil || !strings.Contains(err.Error(), "restart the guard") {
		t.Errorf("another role by a reload: %v", err)
	}
}

func TestPressureConfiguration(t *testing.T) {
	for text, want := range map[string]string{
		"role: server":                                                     `line 1: role: "server": want director or host`,
		"pressure: {warning: 0.95}":                                        "line 1: pressure: warning 0.95 and critical 0.9",
		"pressure: {warning: 0}":                                           "line 1: pressure: warning 0 and critical 0.9",
		"pressure: {critical: 1.5}":                                        "line 1: pressure: warning 0.75 and critical 1.5",
		"pressure: {critical: .nan}":                                       "line 1: pressure: warning 0.75 and critical NaN",
		"pressure:\n  kinds: {memry: {warning: 0.5}}":                      "line 2: pressure.kinds.memry: no kind of resource; there are: memory low_memory",
		"pressure:\n  kinds: {memory: {warnin: 0.5}}":                      `did you mean "warning"?`,
		"pressure:\n  kinds:\n    memory: {warning: 0.95}":                 "line 3: pressure.kinds.memory: warning 0.95 and critical 0.9",
		"role: host\nservices:\n  fwmark:7: {addresses: ['192.0.2.7:80']}": "line 3: services.fwmark:7.addresses: with role: host",

		"servers: {metrics: ['http://192.0.2.1/metrics']}":               `servers.metrics.0: "http://192.0.2.1/metrics": want a URL such as http://{address}:9100/metrics`,
		"servers: {metrics: ['ftp://{address}/metrics']}":                "line 1: servers: ",
		"servers: {interval: 10ms}":                                      "servers.interval: want a duration from 1s",
		"servers: {timeout: 2s}":                                         "servers.timeout: want a duration from 10ms, and shorter than servers.interval",
		"servers: {username: prom}":                                      "line 1: servers: ",
		"servers: {username: a, password_file: b, bearer_token_file: c}": "line 1: servers: ",
	} {
		if _, err := ParseConfig(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// Health checks are journalled; a switch that dies does not fill the journal.
func TestHealthEvents(t *testing.T) {
	w := newWorld(t, "")
	down := func(line string) {
		t.Helper()
		e, err := keepalived.ParseLine([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		w.noteHealth(w.now, e)
	}
	w.tick(1)
	down("RS [198.51.100.1]:tcp:80 [192.0.2.1]:tcp:80 DOWN")
	down("RS [198.51.100.1]:tcp:80 [web]:80 UP")
	down("VS FWM 7 DOWN")
	down(`INSTANCE "VI_1" MASTER 100`)
	var got []string
	for _, e := range w.entries(EventHealth) {
		got = append(got, e.Server+"|"+e.Service+"|"+e.To)
	}
	if diff := cmp.Diff([]string{"198.51.100.1:80|192.0.2.1:80|DOWN", "198.51.100.1:80|group web|UP", "|fwmark:7|DOWN"}, got); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	for range 1000 {
		down("RS [198.51.100.1]:tcp:80 [192.0.2.1]:tcp:80 DOWN")
	}
	if n := len(w.entries(EventHealth)); n != healthLimit-3 {
		t.Errorf("%d entries of 1000, want %d", n, healthLimit-3)
	}
	w.tick(70)
	entries := w.entries(EventHealth)
	if len(entries) != 1 || !strings.HasPrefix(entries[0].Reason, "953 more changes") {
		t.Errorf("a minute later: %+v", entries)
	}
	w.tick(130)
	if entries := w.entries(EventHealth); len(entries) != 0 {
		t.Errorf("and then: %+v", entries)
	}
}

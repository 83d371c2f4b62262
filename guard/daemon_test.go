package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
	"github.com/lvsguard/lvsguard/nft"
)

// fakeTable keeps services, counters and leases as the kernel does, on the
// test's clock.
type fakeTable struct {
	now      func() time.Time
	services map[netip.AddrPort]nft.ServiceCounters // nil: there is no table
	leases   map[netip.AddrPort]time.Time
	memory   map[netip.AddrPort]time.Time // what nft.Table remembers of its leases
	fail     error                        // of every change
	failRead error
	armed    int // transactions that armed
	sampled  *nft.Sampling
	lacks    error // why it cannot sample
}

func (f *fakeTable) open(nft.Config) (Table, error) { return f, nil }
func (f *fakeTable) Close() error                   { return nil }

func (f *fakeTable) Ensure(want []netip.AddrPort) (nft.Changed, error) {
	if f.fail != nil {
		return nft.Changed{}, f.fail
	}
	c := nft.Changed{Change: nft.Updated}
	if f.services == nil {
		f.services, c.Change = make(map[netip.AddrPort]nft.ServiceCounters), nft.Created
		f.leases = maps.Clone(f.memory)
	}
	for _, at := range want {
		if _, ok := f.services[at]; !ok {
			f.services[at] = nft.ServiceCounters{}
		}
	}
	maps.DeleteFunc(f.services, func(at netip.AddrPort, _ nft.ServiceCounters) bool { return !slices.Contains(want, at) })
	return c, nil
}

func (f *fakeTable) Check() error {
	if f.services == nil {
		return nft.ErrAbsent
	}
	return f.failRead
}

func (f *fakeTable) Counters() (nft.Counters, error) {
	if f.failRead != nil {
		return nft.Counters{}, f.failRead
	}
	if f.services == nil {
		return nft.Counters{}, nft.ErrAbsent
	}
	return nft.Counters{Services: maps.Clone(f.services)}, nil
}

func (f *fakeTable) Arm(leases map[netip.AddrPort]time.Duration) error {
	if f.fail != nil {
		return f.fail
	}
	if f.services == nil {
		return nft.ErrAbsent
	}
	f.armed++
	if f.leases == nil {
		f.leases = make(map[netip.AddrPort]time.Time)
	}
	for at, d := range leases {
		if _, ok := f.services[at]; !ok {
			return fmt.Errorf("%s is not watched", at)
		}
		f.leases[at] = f.now().Add(d)
	}
	f.memory = maps.Clone(f.leases)
	return nil
}

func (f *fakeTable) Disarm(services []netip.AddrPort) error {
	if f.fail != nil {
		return f.fail
	}
	for _, at := range services {
		delete(f.leases, at)
	}
	f.memory = maps.Clone(f.leases)
	return nil
}

func (f *fakeTable) Leases() (map[netip.AddrPort]time.Duration, error) {
	if f.services == nil {
		return nil, nft.ErrAbsent
	}
	out := make(map[netip.AddrPort]time.Duration)
	for at, until := range f.leases {
		if left := until.Sub(f.now()); left > 0 {
			out[at] = left
		}
	}
	return out, nil
}

func (f *fakeTable) Sample(s nft.Sampling) (nft.Way, error) {
	if f.services == nil {
		return "", nft.ErrAbsent
	}
	if f.lacks != nil {
		return "", f.lacks
	}
	f.sampled = &s
	return nft.ByQueue, nil
}

func (f *fakeTable) Unsample() error {
	f.sampled = nil
	return nil
}

func (f *fakeTable) Remove() error {
	f.services, f.leases, f.memory, f.sampled = nil, nil, nil, nil
	return nil
}

type fakeIPVS struct {
	services []ipvs.Service
	err      error
	census   ipvs.Census
	defence  ipvs.Defence
}

func (f *fakeIPVS) Services(context.Context) ([]ipvs.Service, error) { return f.services, f.err }
func (f *fakeIPVS) Census(context.Context, ipvs.CensusConfig) (ipvs.Census, error) {
	return f.census, nil
}

func (f *fakeIPVS) Defence() (ipvs.Defence, error) { return f.defence, f.err }

type fakeAddresses struct {
	held keepalived.Held
	err  error
}

func (f *fakeAddresses) Held() (keepalived.Held, error) { return f.held, f.err }

// world is a daemon with a made-up kernel and a clock of its own.
type world struct {
	*Daemon
	t         testing.TB
	now       time.Time
	table     *fakeTable
	ipvs      *fakeIPVS
	addresses *fakeAddresses
	captures  *fakeCaptures
	host      *fakeHost
	load      map[netip.AddrPort]Counters // a second
	dir       string
}

func newWorld(t testing.TB, config string) *world {
	t.Helper()
	w := &world{t: t, now: time.Now(), ipvs: &fakeIPVS{}, addresses: &fakeAddresses{held: keepalived.Held{}}, captures: &fakeCaptures{}, host: &fakeHost{}, load: make(map[netip.AddrPort]Counters), dir: t.TempDir()}
	w.table = &fakeTable{now: func() time.Time { return w.now }}
	w.configure(config)
	w.start()
	return w
}

func (w *world) configure(config string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, "lvsguard.yaml"), []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start() {
	w.t.Helper()
	w.Daemon = New(Options{
		Version: "test", ConfigFile: filepath.Join(w.dir, "lvsguard.yaml"), StateDir: filepath.Join(w.dir, "state"),
		HookSocket: filepath.Join(w.dir, "run", "hook.sock"), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Kernel: Kernel{IPVS: w.ipvs, OpenTable: w.table.open, Addresses: w.addresses, OpenHandshakes: w.captures.open, Host: w.host.kernel()},
		Ready:  func() {}, Alive: func() {},
	})
	if err := w.Open(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.Close() })
	w.retry = time.NewTimer(time.Hour)
}

// tick lets seconds pass, each with its load.
func (w *world) tick(seconds int) {
	for range seconds {
		w.Daemon.tick(w.t.Context(), w.now)
		w.now = w.now.Add(time.Second)
		for at, c := range w.table.services {
			c.SYN.Packets += w.load[at].SYN
			c.Suspect.Packets += w.load[at].Suspect
			if w.table.leases[at].After(w.now) {
				c.Dropped.Packets += w.load[at].Suspect
			}
			w.table.services[at] = c
		}
	}
}

func (w *world) service(s string) *ServiceStatus {
	w.t.Helper()
	for _, svc := range w.Status().Services {
		if svc.Service.String() == s {
			return &svc
		}
	}
	w.t.Fatalf("no service %s in status", s)
	return nil
}

// armed lists what the kernel drops for now.
func (w *world) armed() string {
	leases, _ := w.table.Leases()
	var all []string
	for at := range leases {
		all = append(all, at.String())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (w *world) wantArmed(want string) {
	w.t.Helper()
	if got := w.armed(); got != want {
		w.t.Fatalf("armed: %q, want %q", got, want)
	}
}

// journalled lists what was written, without times and reasons.
func (w *world) journalled(events ...Event) []string {
	var all []string
	for {
		select {
		case e := <-w.journal.queue:
			if slices.Contains(events, e.Event) {
				all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s%s %s>%s %s", e.Event, e.Service, e.Instance, e.From, e.To, e.By)))
			}
			continue
		default:
		}
		return all
	}
}

var (
	web  = netip.MustParseAddrPort("192.0.2.1:80")
	mail = netip.MustParseAddrPort("192.0.2.2:25")
)

func serviceAt(at netip.AddrPort) ipvs.Service {
	return ipvs.Service{
		Key:         ipvs.Key{Protocol: ipvs.TCP, Addr: at},
		RealServers: []ipvs.RealServer{{Addr: netip.MustParseAddrPort("198.51.100.1:80"), Method: ipvs.DR, Weight: 1, ActiveConn: 3}},
	}
}

func TestDaemonFlood(t *testing.T) {
	w := newWorld(t, "mode: auto")
	w.ipvs.services = []ipvs.Service{serviceAt(web), serviceAt(mail)}
	w.load[web] = Counters{SYN: 100}
	w.tick(5)
	w.wantArmed("")
	w.load[web] = Counters{SYN: 5000, Suspect: 4900}
	w.tick(6)
	w.wantArmed("192.0.2.1:80")
	s := w.service("192.0.2.1:80")
	if s.Verdict != Flood || s.Lease == nil || s.Lease.By != ByAuto || *s.Active != 3 || *s.Forwarding != "dr" {
		t.Errorf("status: %+v", s)
	}
	w.load[web] = Counters{SYN: 100}
	w.tick(65)
	w.wantArmed("")
	want := []string{
		"start  >auto",
		"table  >created",
		"verdict 192.0.2.1:80 calm>rising",
		"verdict 192.0.2.1:80 rising>flood",
		"lease 192.0.2.1:80 >armed auto",
		"verdict 192.0.2.1:80 flood>calm",
		"lease 192.0.2.1:80 >disarmed auto",
	}
	if diff := cmp.Diff(want, w.journalled(EventStart, EventTable, EventVerdict, EventLease)); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// A read of IPVS that fails or comes back empty changes no set; a service that
// vanished keeps its lease for ten minutes.
func TestDaemonIPVSVanishes(t *testing.T) {
	w := newWorld(t, "mode: auto")
	w.ipvs.services = []ipvs.Service{serviceAt(web), serviceAt(mail)}
	w.load[web] = Counters{SYN: 5000, Suspect: 4900}
	w.tick(6)
	w.wantArmed("192.0.2.1:80")

	w.ipvs.services = nil // a keepalived reload
	w.tick(30)
	w.wantArmed("192.0.2.1:80")
	if s := w.service("192.0.2.1:80"); s.Active != nil || s.Unknown["active_connections"] == "" || s.Verdict != Flood {
		t.Errorf("without IPVS: %+v", s)
	}
	w.ipvs.err = ipvs.ErrAbsent
	w.tick(1000)
	w.wantArmed("192.0.2.1:80")

	w.ipvs.err, w.ipvs.services = nil, []ipvs.Service{serviceAt(mail)}
	w.tick(1)
	w.wantArmed("192.0.2.1:80")
	w.tick(601)
	w.wantArmed("")
	if _, there := w.table.services[web]; there {
		t.Error("a service that is gone for ten minutes is still counted")
	}
}

// A change that the kernel refuses stays wanted.
func TestDaemonRetries(t *testing.T) {
	w := newWorld(t, "mode: auto")
	w.ipvs.services = []ipvs.Service{serviceAt(web)}
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.tick(3)
	w.table.fail = syscall.ENOBUFS
	w.tick(2)
	w.wantArmed("")
	if w.backoff != retryFirst {
		t.Errorf("first retry after %s", w.backoff)
	}
	var waits []time.Duration
	for range 8 {
		w.push(w.now)
		waits = append(waits, w.backoff)
	}
	if waits[0] != 2*retryFirst || waits[7] != retryMost {
		t.Errorf("retries after %s", waits)
	}
	w.table.fail = nil
	w.push(w.now)
	w.wantArmed("192.0.2.1:80")
	if len(w.pending) != 0 {
		t.Errorf("still pending: %v", w.pending)
	}
}

// Somebody takes the table away: it is back within a tick with its lease. After
// the third time automatic drops pause and an operator's do not.
func TestDaemonTableTakenAway(t *testing.T) {
	w := newWorld(t, "mode: auto")
	w.ipvs.services = []ipvs.Service{serviceAt(web), serviceAt(mail)}
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.tick(6)
	w.wantArmed("192.0.2.1:80")
	for range 2 {
		w.table.services, w.table.leases = nil, nil
		w.tick(1)
		w.wantArmed("192.0.2.1:80")
	}
	w.table.services, w.table.leases = nil, nil
	w.tick(1)
	w.wantArmed("")
	if w.table.services == nil {
		t.Fatal("nothing is counted in the pause")
	}
	if w.Status().PausedUntil == nil {
		t.Error("status does not show the pause")
	}
	if _, err := w.command(w.now, Command{Verb: VerbArm, Service: &ipvs.Key{Protocol: ipvs.TCP, Addr: mail}, Seconds: 3600}, "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.wantArmed("192.0.2.2:25")
	w.tick(610)
	w.wantArmed("192.0.2.1:80 192.0.2.2:25")
	if got := w.journalled(EventPause); len(got) != 1 {
		t.Errorf("pauses in the journal: %v", got)
	}
}

// Killed and started again, the guard takes over what the kernel holds and what
// operators wanted.
func TestDaemonRestart(t *testing.T) {
	w := newWorld(t, "mode: observe")
	w.ipvs.services = []ipvs.Service{serviceAt(web), serviceAt(mail)}
	w.tick(2)
	if _, err := w.command(w.now, Command{Verb: VerbMode, Mode: Auto}, "uid 0"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.command(w.now, Command{Verb: VerbArm, Service: &ipvs.Key{Protocol: ipvs.TCP, Addr: mail}, Seconds: 3600}, "uid 0, pid 7"); err != nil {
		t.Fatal(err)
	}
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.tick(8)
	w.wantArmed("192.0.2.1:80 192.0.2.2:25")

	w.Close()
	w.now = w.now.Add(5 * time.Second)
	w.start()
	w.tick(1)
	w.wantArmed("192.0.2.1:80 192.0.2.2:25")
	st := w.Status()
	if st.Mode != Auto || st.ModeFrom != ModeFromToggle {
		t.Errorf("mode %s from %s", st.Mode, st.ModeFrom)
	}
	if by := w.service("192.0.2.1:80").Lease.By; by != ByRestart {
		t.Errorf("the lease that was found is by %s", by)
	}
	if l := w.service("192.0.2.2:25").Lease; l.By != ByOperator || time.Until(l.ExpiresAt) < 50*time.Minute {
		t.Errorf("the operator's lease: %+v", l)
	}
	w.tick(100)
	if by := w.service("192.0.2.1:80").Lease.By; by != ByAuto {
		t.Errorf("the flood goes on, and the lease is by %s", by)
	}
}

// A backup is armed; the hook's word makes the guard look at once.
func TestDaemonRoles(t *testing.T) {
	w := newWorld(t, "mode: auto\nkeepalived: {instances: {VI_1: [192.0.2.1]}}")
	w.ipvs.services = []ipvs.Service{serviceAt(web), serviceAt(mail)}
	w.tick(1)
	w.wantArmed("192.0.2.1:80")
	if by := w.service("192.0.2.1:80").Lease.By; by != ByPrearm {
		t.Errorf("armed by %s", by)
	}
	w.addresses.held = keepalived.Held{web.Addr(): true}
	w.look(w.now)
	if role := w.Status().Roles[0].Role; role != "MASTER" {
		t.Errorf("role %s right after the hook", role)
	}
	w.tick(59)
	w.wantArmed("192.0.2.1:80")
	w.tick(2)
	w.wantArmed("")

	// Addresses that cannot be read for a moment change nothing; for longer, the
	// role is unknown, and nothing is armed on a guess.
	w.addresses.held, w.addresses.err = nil, errors.New("netlink refused")
	w.tick(5)
	if role := w.Status().Roles[0].Role; role != "MASTER" {
		t.Errorf("role %s after a short gap", role)
	}
	w.tick(10)
	if role := w.Status().Roles[0].Role; role != "UNKNOWN" {
		t.Errorf("role %s after a long gap", role)
	}
	w.wantArmed("")
}

func TestDaemonReload(t *testing.T) {
	w := newWorld(t, "detect: {rate: 100}")
	w.tick(1)
	w.configure("detect: {rte: 100}")
	cfg, err := w.Daemon.load()
	if err := w.reload(w.now, cfg, err); err == nil {
		t.Fatal("a bad configuration was taken")
	}
	if w.cfg.Detect.Rate != 100 || w.Status().ConfigError == nil || !strings.Contains(*w.Status().ConfigError, `did you mean "rate"?`) {
		t.Errorf("rate %v, error %v", w.cfg.Detect.Rate, w.Status().ConfigError)
	}
	w.configure("detect: {rate: 200}\nmode: auto")
	cfg, err = w.Daemon.load()
	if err := w.reload(w.now, cfg, err); err != nil {
		t.Fatal(err)
	}
	w.tick(1)
	if st := w.Status(); w.cfg.Detect.Rate != 200 || st.ConfigError != nil || st.Mode != Auto {
		t.Errorf("rate %v, status %+v", w.cfg.Detect.Rate, st)
	}
}

// The configuration cut at every byte that is no comment: either it is a
// configuration, or the old one stays in force.
func TestDaemonReloadCut(t *testing.T) {
	text, err := os.ReadFile("../deploy/lvsguard.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAll(text, nil)
	w := newWorld(t, "detect: {rate: 77}")
	for n := range text {
		w.configure(string(text[:n]))
		before := w.cfg
		cfg, err := w.Daemon.load()
		if err := w.reload(w.now, cfg, err); err != nil && w.cfg != before {
			t.Fatalf("cut at %d: refused, and yet another configuration is in force", n)
		}
	}
}

func TestDaemonRemove(t *testing.T) {
	w := newWorld(t, "mode: auto")
	w.ipvs.services = []ipvs.Service{serviceAt(web)}
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.tick(6)
	if _, err := w.command(w.now, Command{Verb: VerbRemove}, "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.tick(20)
	if w.table.services != nil {
		t.Fatal("the removed table is back")
	}
	if why := w.Status().Unknown[SourceNft]; !strings.Contains(why, "rules install") {
		t.Errorf("status says of the removed table: %q", why)
	}
	w.Close()
	w.start()
	w.tick(2)
	if w.table.services != nil {
		t.Fatal("the removed table is back after a restart")
	}
	if _, err := w.command(w.now, Command{Verb: VerbInstall}, "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.tick(6)
	w.wantArmed("192.0.2.1:80")
}

func TestSecondDaemon(t *testing.T) {
	w := newWorld(t, "")
	opts := w.opts
	second := New(opts)
	if err := second.Open(); err == nil || !strings.Contains(err.Error(), "--state-dir") {
		t.Errorf("same state directory: %v", err)
	}
	opts.StateDir = filepath.Join(w.dir, "other")
	opts.HookSocket = filepath.Join(w.dir, "other.sock")
	second = New(opts)
	if err := second.Open(); err == nil || !strings.Contains(err.Error(), "another guard runs in this network namespace") {
		t.Errorf("same namespace: %v", err)
	}
	w.tick(1) // the first is unharmed
	w.Close()
	if err := second.Open(); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	second.Close()
}

func TestCommandErrors(t *testing.T) {
	w := newWorld(t, "")
	key := func(s string) *ipvs.Key { k := mustKey(t, s); return &k }
	if _, err := w.command(w.now, Command{Verb: VerbArm, Seconds: 60}, "uid 0"); err == nil || !strings.Contains(err.Error(), "no virtual service") {
		t.Errorf("no services: %v", err)
	}
	udp := ipvs.Service{Key: mustKey(t, "udp:192.0.2.1:53")}
	w.ipvs.services = []ipvs.Service{serviceAt(web), udp}
	w.tick(1)
	for _, tt := range []struct{ service, want string }{
		{"192.0.2.9:80", "no virtual service 192.0.2.9:80; there are: 192.0.2.1:80"},
		{"udp:192.0.2.1:53", "udp:192.0.2.1:53 cannot be armed: UDP has none"},
	} {
		if _, err := w.command(w.now, Command{Verb: VerbArm, Service: key(tt.service), Seconds: 60}, "uid 0"); err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v, want %s", tt.service, err, tt.want)
		}
	}
}

// BenchmarkTick is what the guard itself adds to the kernel's part of a tick,
// with 300 services and 900 real servers.
func BenchmarkTick(b *testing.B) {
	w := newWorld(b, "")
	for i := range 300 {
		s := serviceAt(netip.AddrPortFrom(web.Addr(), uint16(1000+i)))
		s.RealServers = append(s.RealServers, s.RealServers[0], s.RealServers[0])
		w.ipvs.services = append(w.ipvs.services, s)
	}
	b.ReportAllocs()
	for b.Loop() {
		w.Daemon.tick(b.Context(), w.now)
		w.now = w.now.Add(time.Second)
	}
}

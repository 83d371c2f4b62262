//go:build lab

package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/doctor"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

// asking has the guard ask the real servers' node_exporter or lvsguard, as the sample configuration shows, but with more
// patience: they share an emulated processor.
const asking = `servers: {metrics: ["http://{address}:9100/metrics?collect[]=netstat&collect[]=meminfo", "http://{address}:9101/metrics"], timeout: 1500ms}` + "\n"

// jsonOf runs a command of lvsguard on this director and reads what it prints.
func jsonOf(t *testing.T, d *site.Director, into any, args ...string) {
	t.Helper()
	readJSON(t, d.Lvsguard(append(args, "--json")...), into)
}

func readJSON(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
}

// figuresOf is what the guard knows of a real server's own figures. Before it has asked for the first time, that is nil.
func figuresOf(t *testing.T, d *site.Director, r *site.RealServer) *pressure.Server {
	t.Helper()
	var report struct{ Servers []guard.RealServer }
	jsonOf(t, d, &report, "servers")
	for _, rs := range report.Servers {
		if rs.Address == r.Address() {
			return rs.Figures
		}
	}
	t.Fatalf("the guard does not know of %s at %s: %+v", r.Name, r.Address(), report)
	return nil
}

// TestServersUnderFlood: real servers with a way back to the spoofed sources send SYN cookies, and the director shows it,
// by lvsguard on one of them and by node_exporter on the other.
func TestServersUnderFlood(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		for _, r := range s.RealServers {
			r.Backlog(128)
		}
		ours, theirs := s.RealServers[0], s.RealServers[1]
		// Its handshakes are followed in other scenarios: here they would only take the processor that all share.
		ours.StartGuard(fmt.Sprintf("role: host\nmetrics: {listen: %q}\nhandshakes: {enabled: false}\n", netip.AddrPortFrom(ours.Address(), 9101)))
		exporter := theirs.Start("prometheus-node-exporter", "--web.listen-address", netip.AddrPortFrom(theirs.Address(), 9100).String())
		d.StartGuard(observe + asking)
		for r, source := range map[*site.RealServer]string{ours: "lvsguard", theirs: "node_exporter"} {
			var f *pressure.Server
			site.Wait(t, 30*time.Second, r.Name+" has told its figures", func() bool {
				f = figuresOf(t, d, r)
				return f != nil && f.Unknown == ""
			})
			if f.Source != source || f.SyncookiesSent == nil || f.SyncookiesSent.Total != 0 || f.MemoryTotal == nil {
				t.Errorf("before the flood, %s: %+v", r.Name, f)
			}
		}

		// A full queue of half-open connections has cookies sent. The flood is a weak one: who asks and who answers have
		// to share a processor with it.
		s.Attacker.Flood(flood.Config{Rate: 300, For: night.For})
		for _, r := range s.RealServers {
			site.Wait(t, 60*time.Second, r.Name+" sends SYN cookies", func() bool { return r.Counted("SyncookiesSent") > 0 })
			began := time.Now()
			site.Wait(t, 20*time.Second, "servers shows SYN cookies of "+r.Name, func() bool {
				f := figuresOf(t, d, r)
				return f.SyncookiesSent != nil && f.SyncookiesSent.Total > 0 && f.SyncookiesSent.PerSecond != nil && *f.SyncookiesSent.PerSecond > 0
			})
			took := time.Since(began)
			t.Logf("the director shows cookies of %s %.2f s after it began to send them", r.Name, took.Seconds())
			if took > 5*time.Second {
				t.Errorf("that took %s, want at most 5 s", took)
			}
		}
		if text := d.Lvsguard("status"); strings.Count(text, "SYN cookies sent") < len(s.RealServers) {
			t.Errorf("status without a line for each real server:\n%s", text)
		}

		hostWithoutIPVS(t, ours)

		// One that is silent is unknown, and the other is not.
		silent, other := theirs, ours
		stopped := time.Now()
		exporter.Signal(unix.SIGSTOP)
		var f *pressure.Server
		site.Wait(t, 15*time.Second, silent.Name+" is unknown", func() bool {
			f = figuresOf(t, d, silent)
			return f.Unknown != ""
		})
		if f.UnknownSince == nil || f.UnknownSince.After(stopped.Add(time.Second)) || f.UnknownSince.Before(stopped.Add(-5*time.Second)) {
			t.Errorf("its exporter was stopped at %s, and it is unknown since %v", stopped, f.UnknownSince)
		}
		f.Address, f.Source, f.URL, f.Read, f.UnknownSince, f.Unknown = netip.Addr{}, "", "", nil, nil, ""
		if *f != (pressure.Server{}) {
			t.Errorf("figures of a server of which nothing is known: %+v", f)
		}
		if text := d.Lvsguard("servers"); !strings.Contains(text, "unknown for") {
			t.Errorf("servers:\n%s", text)
		}
		if f := figuresOf(t, d, other); f.Unknown != "" || f.SyncookiesSent == nil {
			t.Errorf("%s, whose exporter runs: %+v", other.Name, f)
		}
		exporter.Signal(unix.SIGCONT)
		site.Wait(t, 15*time.Second, silent.Name+" is known again", func() bool {
			f := figuresOf(t, d, silent)
			return f.Unknown == "" && f.SyncookiesSent != nil
		})
		t.Logf("servers:\n%s", d.Lvsguard("servers"))
	}, site.DR4)
}

// hostWithoutIPVS holds a guard with role: host on a real server against what is there: it needs nothing of IPVS, and
// misses nothing.
func hostWithoutIPVS(t *testing.T, r *site.RealServer) {
	t.Helper()
	if status := r.Status(); len(status.Services) != 0 || len(status.Unknown) != 0 {
		t.Errorf("status on %s: %+v", r.Name, status)
	}
	var report guard.PressureReport
	readJSON(t, r.Lvsguard("pressure", "--json"), &report)
	if report.IPVS != nil || len(report.Resources) == 0 || !slices.ContainsFunc(report.Troubles, func(trouble pressure.Trouble) bool { return trouble.Counter == "TcpExtSyncookiesSent" }) {
		t.Errorf("pressure on %s: IPVS %+v, %d resources, troubles %+v", r.Name, report.IPVS, len(report.Resources), report.Troubles)
	}
	if text := r.Lvsguard("sockets", "--by", "listen"); !strings.Contains(text, ":9101") {
		t.Errorf("sockets on %s without where the guard itself listens:\n%s", r.Name, text)
	}
	text, _ := r.TryLvsguard("doctor", "--json", "--config", r.GuardConfig()) // it fails where something is to be mended
	var examined struct{ Findings []doctor.Finding }
	readJSON(t, text, &examined)
	warned := false // of metrics that anybody can read
	for _, f := range examined.Findings {
		warned = warned || f.Worse() && f.Subject == "configuration" && strings.Contains(f.What, "metrics")
		if about := strings.ToLower(f.Subject + f.What); f.Worse() && (strings.Contains(about, "ipvs") || strings.Contains(about, "keepalived")) {
			t.Errorf("doctor on %s misses what a real server needs not: %+v", r.Name, f)
		}
	}
	if !warned {
		t.Errorf("doctor on %s: %+v", r.Name, examined.Findings)
	}
}

// levelsOf is what the journal says of resources of one kind: their levels, one after the other.
func levelsOf(t *testing.T, d *site.Director, kind pressure.Kind) []string {
	t.Helper()
	var levels []string
	for line := range strings.Lines(d.Lvsguard("journal", "--json")) {
		var e guard.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("journal: %q: %v", line, err)
		}
		if e.Event == guard.EventPressure && e.Kind == string(kind) {
			levels = append(levels, e.To)
		}
	}
	return levels
}

// pressureOf is what lvsguard pressure tells, the worst first.
func pressureOf(t *testing.T, d *site.Director) guard.PressureReport {
	t.Helper()
	var report guard.PressureReport
	jsonOf(t, d, &report, "pressure")
	return report
}

// TestConntrackFills fills a small conntrack table and empties it: the journal tells of each level once.
func TestConntrackFills(t *testing.T) {
	site.Each(t, site.Config{Idle: true}, func(t *testing.T, s *site.Site) {
		d := s.Directors[0]
		const limit = 200
		d.Nft("add table ip track; add chain ip track c { type filter hook input priority 0; }; add rule ip track c ct state new counter")
		// The limit is one for the machine, which only its own network may change.
		const file = "/proc/sys/net/netfilter/nf_conntrack_max"
		was, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, fmt.Append(nil, limit), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(file, was, 0); err != nil {
				t.Error(err)
			}
		})
		d.StartGuard(observe)

		entries := func() int {
			n, err := strconv.Atoi(strings.TrimSpace(d.Run("conntrack", "--count")))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		port := 1000
		fill := func(upTo int) {
			var lines strings.Builder
			for range upTo - entries() {
				port++
				fmt.Fprintf(&lines, "-A -t 600 -u SEEN_REPLY -s 198.51.100.9 -d 192.0.2.9 -r 192.0.2.9 -q 198.51.100.9 -p udp --sport %d --dport 53 --reply-port-src 53 --reply-port-dst %d\n", port, port)
			}
			name := filepath.Join(d.Dir, "entries")
			if err := os.WriteFile(name, []byte(lines.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			d.Run("conntrack", "--load-file", name)
		}
		reaches := func(levels ...string) {
			t.Helper()
			site.Wait(t, 30*time.Second, fmt.Sprintf("the journal tells %v of conntrack", levels), func() bool {
				return len(levelsOf(t, d, pressure.KindConntrack)) >= len(levels)
			})
			if got := levelsOf(t, d, pressure.KindConntrack); !slices.Equal(got, levels) {
				t.Fatalf("the journal tells %v of conntrack, want %v", got, levels)
			}
		}
		// agrees compares the guard's figure with conntrack's. Where that is not the same before and after, time has passed.
		agrees := func() {
			t.Helper()
			var said string
			defer func() {
				if t.Failed() {
					t.Log(said)
				}
			}()
			site.Wait(t, 10*time.Second, "the guard's figure is conntrack's", func() bool {
				before := entries()
				said = fmt.Sprintf("conntrack says %d, and the guard nothing of it", before)
				for _, r := range pressureOf(t, d).Resources {
					if r.Kind != pressure.KindConntrack {
						continue
					}
					said = fmt.Sprintf("conntrack says %d of %d, the guard: %s", before, limit, r.Reason)
					return *r.Limit == limit && *r.Used == uint64(before) && entries() == before
				}
				return false
			})
		}

		agrees()
		fill(80 * limit / 100)
		reaches("warning")
		agrees()
		fill(95 * limit / 100)
		reaches("warning", "critical")
		agrees()
		d.Run("conntrack", "--flush")
		reaches("warning", "critical", "ok")
		agrees()
	}, site.DR4)
}

// waiting listens on the director and accepts nothing, while so many clients connect.
func waiting(t *testing.T, s *site.Site, d *site.Director, port uint16, backlog, clients int) (listener int) {
	t.Helper()
	family, at := unix.AF_INET, unix.Sockaddr(nil)
	if address := d.Address(); address.Is4() {
		at = &unix.SockaddrInet4{Port: int(port), Addr: address.As4()}
	} else {
		family, at = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port), Addr: address.As16()}
	}
	socket := func() (int, error) {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
		}
		return fd, err
	}
	err := d.Do(func() (err error) {
		if listener, err = socket(); err != nil {
			return err
		}
		return errors.Join(unix.Bind(listener, at), unix.Listen(listener, backlog))
	})
	if err == nil {
		err = s.Client.Do(func() error {
			for range clients {
				fd, err := socket()
				if err != nil {
					return err
				}
				if err := unix.Connect(fd, at); !errors.Is(err, unix.EINPROGRESS) {
					return fmt.Errorf("connect: %w", err)
				}
			}
			return nil
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// TestAcceptQueueFull: a program that does not accept is named first, and told of once.
func TestAcceptQueueFull(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		d.StartGuard(observe)
		waiting(t, s, d, 8000, 8, 20)
		name := "accept queue " + netip.AddrPortFrom(d.Address(), 8000).String()
		var first pressure.Resource
		took := site.Wait(t, 15*time.Second, name+" is first", func() bool {
			first = pressureOf(t, d).Resources[0]
			return first.Name == name && first.Level == pressure.LevelCritical && *first.Share >= 1
		})
		t.Logf("after %.2f s: %s", took.Seconds(), first.Reason)
		if *first.Limit != 8 || !strings.Contains(first.Reason, "it is full") {
			t.Errorf("the queue: %+v", first)
		}
		if text := d.Lvsguard("pressure"); !strings.HasPrefix(text, "CRITICAL "+name) {
			t.Errorf("pressure:\n%s", text)
		}
		since := pressureOf(t, d).Time
		site.Wait(t, 15*time.Second, "three more looks", func() bool { return pressureOf(t, d).Time.Sub(since) >= 3*time.Second })
		if got := levelsOf(t, d, pressure.KindAcceptQueue); !slices.Equal(got, []string{"critical"}) {
			t.Errorf("the journal tells %v of accept queues", got)
		}
	}, site.DR4)
}

// TestPressureAgrees compares what is told of a host with what ss, nstat and free say of it. Nothing else runs there.
func TestPressureAgrees(t *testing.T) {
	site.Each(t, site.Config{Idle: true}, func(t *testing.T, s *site.Site) {
		d := s.Directors[0]
		at := netip.AddrPortFrom(d.Address(), 8000)
		listener := waiting(t, s, d, at.Port(), 100, 40)
		site.Wait(t, 10*time.Second, "the clients are connected", func() bool {
			return strings.Count(d.Run("ss", "-Hant", "state", "established"), "\n") == 40
		})
		for i := range 20 { // the director's end is closed first, and waits for the client's
			fd, _, err := unix.Accept(listener)
			if err != nil {
				t.Fatal(err)
			}
			if i < 10 {
				unix.Close(fd)
			} else {
				defer unix.Close(fd)
			}
		}
		s.Attacker.Flood(flood.Config{Targets: []netip.AddrPort{at}, Count: 30}).Wait()

		// The kernel's states, by ss and in our JSON.
		names := map[string]string{
			"LISTEN": "listen", "ESTAB": "established", "SYN-SENT": "syn_sent", "SYN-RECV": "syn_received", "FIN-WAIT-1": "fin_wait_1",
			"FIN-WAIT-2": "fin_wait_2", "TIME-WAIT": "time_wait", "CLOSE-WAIT": "close_wait", "LAST-ACK": "last_ack", "CLOSING": "closing",
		}
		theirs := func() map[string]uint64 {
			states := make(map[string]uint64)
			for line := range strings.Lines(d.Run("ss", "-Hant")) {
				states[names[strings.Fields(line)[0]]]++
			}
			return states
		}
		made := map[string]uint64{"listen": 1, "established": 30, "fin_wait_2": 10, "syn_received": 30}
		site.Wait(t, 15*time.Second, fmt.Sprintf("ss says %v", made), func() bool { return maps.Equal(theirs(), made) })
		var sockets struct {
			Listeners   []struct{ Sockets uint64 }
			Connections struct {
				In, Out struct{ States map[string]uint64 }
			}
		}
		jsonOf(t, d, &sockets, "sockets")
		ours := make(map[string]uint64)
		for _, l := range sockets.Listeners {
			ours["listen"] += l.Sockets
		}
		for _, states := range []map[string]uint64{sockets.Connections.In.States, sockets.Connections.Out.States} {
			for state, n := range states {
				ours[state] += n
			}
		}
		if after := theirs(); !maps.Equal(ours, made) || !maps.Equal(after, made) {
			t.Errorf("ss says %v, sockets %v, and ss again %v", made, ours, after)
		}

		// Without a guard, pressure reads by itself, between the two readings of the others.
		counted, free := nstat(t, d), available(t, d)
		report := pressureOf(t, d)
		countedAfter, freeAfter := nstat(t, d), available(t, d)
		compared := 0
		known := make(map[string]bool)
		for _, c := range report.Counters {
			known[c.Name] = true
			least, there := counted[c.Name]
			if !there {
				continue
			}
			compared++
			if most := countedAfter[c.Name]; c.Total < least || c.Total > most {
				t.Errorf("%s is %d, nstat says %d before and %d after", c.Name, c.Total, least, most)
			}
		}
		for name := range counted {
			if !known[name] {
				t.Errorf("only nstat has %s", name)
			}
		}
		t.Logf("%d counters compared", compared)
		if compared < 200 {
			t.Errorf("only %d counters can be compared, nstat has %d", compared, len(counted))
		}
		for _, r := range report.Resources {
			if r.Kind != pressure.KindMemory {
				continue
			}
			left := *r.Limit - *r.Used
			t.Logf("memory: %d of %d bytes available; free says %d, then %d", left, *r.Limit, free.available, freeAfter.available)
			// What runs between the readings takes and gives some of it.
			slack := free.total / 50
			if *r.Limit != free.total || left+slack < min(free.available, freeAfter.available) || left > max(free.available, freeAfter.available)+slack {
				t.Errorf("memory is %+v", r)
			}
		}
	}, site.DR4)
}

// nstat is what nstat says of every counter.
func nstat(t *testing.T, d *site.Director) map[string]uint64 {
	t.Helper()
	counters := make(map[string]uint64)
	for line := range strings.Lines(d.Run("nstat", "-asz")) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] == "#kernel" {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			continue // below 0, which only a gauge can be
		}
		counters[fields[0]] = n
	}
	return counters
}

type freeMemory struct{ total, available uint64 } // bytes

// available is what free says of the memory.
func available(t *testing.T, d *site.Director) freeMemory {
	t.Helper()
	for line := range strings.Lines(d.Run("free", "--bytes")) {
		fields := strings.Fields(line)
		if len(fields) != 7 || fields[0] != "Mem:" {
			continue
		}
		total, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		left, err := strconv.ParseUint(fields[6], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return freeMemory{total, left}
	}
	t.Fatal("free says nothing of memory")
	return freeMemory{}
}

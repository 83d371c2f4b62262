//go:build lab

package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/lab/site"
)

// asking has the guard ask the real servers' node_exporter, as the sample configuration shows.
const asking = `servers: {metrics: ["http://{address}:9100/metrics?collect[]=netstat&collect[]=meminfo"]}` + "\n"

// jsonOf runs a command of lvsguard on this director and reads what it prints.
func jsonOf(t *testing.T, d *site.Director, into any, args ...string) {
	t.Helper()
	text := d.Lvsguard(append(args, "--json")...)
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("lvsguard %s: %v\n%s", strings.Join(args, " "), err, text)
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

// TestServersUnderFlood: real servers with a way back to the spoofed sources send SYN cookies, and the director shows it.
func TestServersUnderFlood(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		var exporters []*site.Process
		for _, r := range s.RealServers {
			exporters = append(exporters, r.Start("prometheus-node-exporter", "--web.listen-address", netip.AddrPortFrom(r.Address(), 9100).String()))
		}
		d.StartGuard(observe + asking)
		for _, r := range s.RealServers {
			var f *pressure.Server
			site.Wait(t, 15*time.Second, r.Name+" has told its figures", func() bool {
				f = figuresOf(t, d, r)
				return f != nil && f.Unknown == ""
			})
			if f.Source != "node_exporter" || f.SyncookiesSent == nil || f.SyncookiesSent.Total != 0 || f.MemoryTotal == nil {
				t.Errorf("before the flood, %s: %+v", r.Name, f)
			}
		}

		// Half-open connections fill the queue of each listening socket, of 4096, and then cookies are sent.
		s.Attacker.Flood(night)
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

		// One that is silent is unknown, and the other is not.
		silent, other := s.RealServers[1], s.RealServers[0]
		stopped := time.Now()
		exporters[1].Signal(unix.SIGSTOP)
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
		exporters[1].Signal(unix.SIGCONT)
		site.Wait(t, 15*time.Second, silent.Name+" is known again", func() bool {
			f := figuresOf(t, d, silent)
			return f.Unknown == "" && f.SyncookiesSent != nil
		})
		t.Logf("servers:\n%s", d.Lvsguard("servers"))
	}, site.DR4)
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

// waiting listens on the director with a backlog of 8 and accepts nothing, while count clients connect.
func waiting(t *testing.T, s *site.Site, d *site.Director, port, backlog, count int) (listener int) {
	t.Helper()
	socket := func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
		}
		return fd, err
	}
	at := &unix.SockaddrInet4{Port: port, Addr: d.Address().As4()}
	err := d.Do(func() (err error) {
		if listener, err = socket(); err != nil {
			return err
		}
		return errors.Join(unix.Bind(listener, at), unix.Listen(listener, backlog))
	})
	if err == nil {
		err = s.Client.Do(func() error {
			for range count {
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

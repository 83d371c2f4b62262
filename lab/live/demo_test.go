//go:build lab

package live

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

// The demonstration's flood: what an emulated machine can send, for longer than half of the minute that a half-open entry
// lives.
const (
	demoRate    = 2000
	demoSeconds = 30
)

// TestDemo tells the story of that night: the same flood without and with the guard.
func TestDemo(t *testing.T) {
	fmt.Print(`
THE NIGHT, TWICE. A pair of LVS directors (real keepalived, real IPVS, DR mode)
serves one address from two real servers. A flood comes: SYNs with window 0, no
options, and spoofed sources. First nobody guards the pair; then lvsguard does,
in auto mode. A client asks for a page all the time.
`)
	fmt.Print("\nWITHOUT THE GUARD\n\n")
	without := act(t, false)
	fmt.Print("\nWITH THE GUARD, mode auto\n\n")
	with := act(t, true)

	fmt.Printf("\nBOTH, side by side%20s%15s\n\n", "without", "with guard")
	row := func(what string, of func(scene) string) {
		fmt.Printf("  %-24s%12s%15s\n", what, of(without), of(with))
	}
	row("flood packets sent", func(s scene) string { return fmt.Sprint(s.sent) })
	row("dropped by the guard", func(s scene) string { return fmt.Sprint(s.dropped) })
	row("let in by the director", func(s scene) string { return fmt.Sprint(s.admitted) })
	row("entries at the end", func(s scene) string { return fmt.Sprint(s.entries) })
	row("their kernel memory", func(s scene) string { return fmt.Sprintf("%d KiB", s.entries*entryBytes>>10) })
	row("SYN cookies sent", func(s scene) string { return fmt.Sprint(s.cookies) })
	row("client requests served", func(s scene) string { return fmt.Sprintf("%d of %d", s.served, s.asked) })
	fmt.Printf(`
An entry lives 60 s and costs %d bytes that cannot be swapped. At that night's
100,000 packets a second the left column holds 6,000,000 of them, 1.9 GB; a
32-bit director has 850 MB for everything, and is dead in half a minute.

`, entryBytes)
	if with.admitted*100 > without.admitted*50 {
		t.Errorf("the guard let %d packets in, and without it %d were: it made no difference", with.admitted, without.admitted)
	}
	if with.served != with.asked {
		t.Errorf("with the guard %d of %d requests were served", with.served, with.asked)
	}
}

// entryBytes is what the kernel of the lab takes for one connection (/sys/kernel/slab/ip_vs_conn/slab_size).
const entryBytes = 320

// A scene is what there was to be seen at one moment.
type scene struct {
	sent, dropped uint64
	admitted      int
	entries       int
	cookies       int
	served, asked int
}

// act plays the flood on a site of its own.
func act(t *testing.T, guarded bool) (last scene) {
	s := site.New(t, site.Config{})
	d := s.Master()
	if guarded {
		d.StartGuard("mode: auto\ndetect: {rate: 500, total_rate: 600, clear_for: 10s}\n")
	}
	before, cookies := d.Admitted(), cookiesSent(t, s)
	fmt.Println("  time     sent  dropped   let in  entries  cookies   client  guard")
	f := s.Attacker.Flood(flood.Config{Rate: demoRate, For: demoSeconds * time.Second})
	for step := 1; step <= demoSeconds/3; step++ {
		if s.Client.Get(1) == 1 {
			last.served++
		}
		last.asked++
		site.Wait(t, time.Minute, "the next moment", func() bool { return time.Since(f.Began) >= time.Duration(3*step)*time.Second })
		last.sent, last.admitted = f.Sent(), d.Admitted()-before-last.served
		last.entries, last.cookies = d.IPVSEntries(), cookiesSent(t, s)-cookies
		saying := "none"
		if guarded {
			last.dropped = d.Counters().Total.Dropped
			service := d.Service(0)
			saying = service.Verdict
			if service.Lease != nil {
				saying += ", armed by " + service.Lease.By
			}
		}
		fmt.Printf("  %3d s %8d %8d %8d %8d %8d %4d/%-3d  %s\n", 3*step, last.sent, last.dropped, last.admitted,
			last.entries, last.cookies, last.served, last.asked, saying)
	}
	f.Wait()
	return last
}

// cookiesSent is the number of SYN cookies that the real servers have sent.
func cookiesSent(t *testing.T, s *site.Site) (sum int) {
	t.Helper()
	for _, r := range s.RealServers {
		var text []byte
		if err := r.Do(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/netstat")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		// Two lines of TcpExt: the names, and under them the values.
		var names []string
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) == 0 || fields[0] != "TcpExt:" {
				continue
			}
			if names == nil {
				names = fields
				continue
			}
			for i, name := range names {
				if name == "SyncookiesSent" {
					n, err := strconv.Atoi(fields[i])
					if err != nil {
						t.Fatal(err)
					}
					sum += n
				}
			}
		}
	}
	return sum
}

//go:build lab

package scenario

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/lab"
	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

const (
	manyServices    = 300
	manyRealServers = 1000
)

// crowd gives the director 300 virtual services with 1,000 real servers, and their addresses and ports.
func crowd(t *testing.T, s *site.Site, d *site.Director) []netip.AddrPort {
	t.Helper()
	d.Run("ip", "address", "add", s.Address(0).String()+"/32", "dev", "eth0")
	var rules strings.Builder
	var services []netip.AddrPort
	for i := range manyServices {
		at := netip.AddrPortFrom(s.Address(0), uint16(1000+i))
		services = append(services, at)
		fmt.Fprintf(&rules, "-A -t %s -s rr\n", at)
	}
	for i := range manyRealServers {
		fmt.Fprintf(&rules, "-a -t %s -r 198.51.100.%d:%d -m\n", services[i%manyServices], 1+i%250, 2000+i)
	}
	file := filepath.Join(d.Dir, "crowd")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Run("sh", "-c", "ipvsadm -R <"+file)
	return services
}

// cpu is the processor time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// After the name in parentheses: state is field 3, utime 14, stime 15, in hundredths of a second.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory is a line of a process's status in MiB, and false if the process has ended.
func memory(pid int, line string) (mib float64, alive bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, false
	}
	for l := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(l, line); ok {
			n, err := strconv.Atoi(strings.Fields(kib)[0])
			return float64(n) / 1024, err == nil
		}
	}
	return 0, false
}

// resident is the memory of a process in MiB.
func resident(t *testing.T, pid int) float64 {
	t.Helper()
	mib, alive := memory(pid, "VmRSS:")
	if !alive {
		t.Fatalf("process %d has ended", pid)
	}
	return mib
}

// emulation is how many times slower this processor is than the host's.
func emulation(t *testing.T) float64 {
	t.Helper()
	host, err := strconv.Atoi(os.Getenv(lab.PaceVariable))
	if err != nil {
		t.Fatalf("the host's pace: %v", err)
	}
	return float64(lab.Pace()) / float64(host)
}

// TestFigureTick measures a tick with 300 services and 1,000 real servers against one 'ipvsadm -Ln --stats' over the same
// table, and the same guard when nothing happens.
func TestFigureTick(t *testing.T) {
	s := site.New(t, site.Config{Idle: true})
	d := s.Directors[0]
	services := crowd(t, s, d)
	guard := d.StartGuard(observe)

	const seconds = 20
	perSecond := func() time.Duration {
		began, used := time.Now(), cpu(t, guard.Pid())
		site.Wait(t, 2*seconds*time.Second, "ticks", func() bool { return time.Since(began) >= seconds*time.Second })
		return time.Duration(float64(cpu(t, guard.Pid())-used) / time.Since(began).Seconds())
	}
	idle := perSecond()
	slower := emulation(t)
	t.Logf("idle: %.2f %% of this core, which is %.1f times slower than the host's: %.2f %% of that; %.0f MiB",
		100*idle.Seconds(), slower, 100*idle.Seconds()/slower, resident(t, guard.Pid()))
	if idle.Seconds()/slower > 0.02 {
		t.Errorf("idle, the guard uses %.2f %% of a core of the host's, want under 2 %%", 100*idle.Seconds()/slower)
	}
	if mib := resident(t, guard.Pid()); mib >= 64 {
		t.Errorf("idle, the guard has %.0f MiB, want under 64", mib)
	}

	// A SYN to each service each second, so that every counter has moved at every tick.
	f := s.Attacker.Flood(flood.Config{Targets: services, Rate: manyServices, Window: 1024, For: 5 * time.Minute})
	site.Wait(t, 20*time.Second, "the guard sees SYNs on every service", func() bool {
		return !slices.ContainsFunc(d.Status().Services, func(s site.ServiceStatus) bool {
			return s.SYNPerSecond == nil || *s.SYNPerSecond == 0
		})
	})
	tick := perSecond()
	var list []time.Duration
	for range 9 {
		command := exec.Command("ipvsadm", "-Ln", "--stats")
		if err := d.Do(command.Run); err != nil {
			t.Fatal(err)
		}
		list = append(list, command.ProcessState.UserTime()+command.ProcessState.SystemTime())
	}
	f.Stop()
	slices.Sort(list)
	median := list[len(list)/2]
	t.Logf("a tick with every counter moved: %s of processor time; ipvsadm -Ln --stats: %s (median of %d); ratio %.2f",
		tick.Round(time.Millisecond), median.Round(time.Millisecond), len(list), tick.Seconds()/median.Seconds())
	if tick > median {
		t.Errorf("a tick costs %.2f times ipvsadm -Ln --stats, want at most 1", tick.Seconds()/median.Seconds())
	}
}

// TestFigureConns measures 'lvsguard conns --all' over 20,000 entries against cat of the same file, and a sample of the
// same table against one of a tenth of it.
func TestFigureConns(t *testing.T) {
	s := site.New(t, site.Config{})
	d := s.Master()
	// least is the shortest of several runs of a command, and the most memory that one had.
	least := func(runs int, name string, args ...string) (shortest time.Duration, mib float64) {
		for range runs {
			command := exec.Command(name, args...)
			began := time.Now()
			if err := d.Do(command.Start); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- command.Wait() }()
			// The kernel's own record of a child's memory begins with that of its parent.
			for running := true; running; {
				select {
				case err := <-done:
					if err != nil {
						t.Fatalf("%s: %v", command, err)
					}
					running = false
				case <-time.After(5 * time.Millisecond):
					if now, alive := memory(command.Process.Pid, "VmHWM:"); alive {
						mib = max(mib, now)
					}
				}
			}
			if took := time.Since(began); shortest == 0 || took < shortest {
				shortest = took
			}
		}
		return shortest, mib
	}
	fill := func(entries int) {
		t.Helper()
		s.Attacker.Flood(flood.Config{Count: uint64(entries)}).Wait()
		site.Wait(t, limit, "the flood is in the table", func() bool { return float64(d.IPVSEntries()) > 0.95*float64(entries) })
	}
	lvsguard := os.Getenv("LVSGUARD_BIN")

	fill(2_000)
	small, _ := least(5, lvsguard, "conns")
	fill(20_000)
	large, _ := least(5, lvsguard, "conns")
	t.Logf("a sample of a table of 2,000: %s, of 20,000: %s", small.Round(time.Millisecond), large.Round(time.Millisecond))
	if large > 2*small {
		t.Errorf("a sample of ten times the table took %.1f times as long", large.Seconds()/small.Seconds())
	}

	cat, _ := least(5, "cat", "/proc/thread-self/net/ip_vs_conn")
	all, mib := least(5, lvsguard, "conns", "--all")
	t.Logf("conns --all: %s and %.1f MiB, cat: %s; ratio %.2f", all.Round(time.Millisecond), mib, cat.Round(time.Millisecond), all.Seconds()/cat.Seconds())
	if all.Seconds() > 1.1*cat.Seconds() {
		t.Errorf("conns --all takes %.2f times cat, want at most 1.1", all.Seconds()/cat.Seconds())
	}
	if mib > 16 {
		t.Errorf("conns --all took %.1f MiB, want at most 16", mib)
	}
}

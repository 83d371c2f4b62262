//go:build lab

package scenario

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/guard/serve"
	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

// TestAlone386Night is that night: a 32-bit director, and a flood that takes all the memory which its kernel can use for
// itself. The guard only observes, and must say beforehand when it will be over. Then comes the same flood again, with
// the guard in auto mode.
func TestAlone386Night(t *testing.T) {
	for _, set := range [][2]string{
		// What a busy machine cannot take in time must not pile up in that memory.
		{"net/core/netdev_max_backlog", "300"},
	} {
		if err := os.WriteFile("/proc/sys/"+set[0], []byte(set[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	s := site.New(t, site.Config{})
	for _, r := range s.RealServers {
		// What real servers do of it is no matter here, and would take a half of this machine's processors.
		r.Nft("table ip quiet { chain in { type filter hook prerouting priority raw; tcp flags syn tcp window 0 drop; }; }")
	}
	release := sacrifice(t)
	d := s.Master()
	// The rings in which handshakes are captured are made of low memory, more than there is left here.
	process := d.StartGuard(observe + "handshakes: {enabled: false}\n")
	spare(t, process.Pid(), -900) // as its unit does
	spare(t, os.Getpid(), -1000)
	const rate = 2500

	before, log := lowFree(t), openKernelLog(t)
	forecasts := foresee(t, serve.NewClient(d.GuardSocket()))
	f := s.Attacker.Flood(flood.Config{Rate: rate, For: 2 * time.Minute})
	site.Wait(t, 100*time.Second, "IPVS has no memory; if it never comes to that, this machine is too slow to be flooded", log.noMemory)
	exhausted, over := f.Stop(), log.first
	release()
	took := over.Sub(f.Began)
	t.Logf("observing: %d kB of low memory were free; it was gone after %.1f s, and the flood had sent %d packets when IPVS had none; %d processes were killed",
		before/1024, took.Seconds(), exhausted, log.killed)
	for _, kind := range []pressure.Kind{pressure.KindLowMemory, pressure.KindIPVS} {
		for _, at := range []float64{0.25, 0.5, 0.75} {
			named, truth := forecasts.at(kind, f.Began.Add(time.Duration(at*float64(took))), over)
			t.Logf("%.0f %% of the way: %s full in %.1f s, and it was %.1f s", 100*at, kind, named, truth)
			if at == 0.5 && !(math.Max(named/truth, truth/named) < 1.5) {
				t.Errorf("half-way %s was to be full in %.1f s, and was in %.1f s", kind, named, truth)
			}
		}
	}
	var told []string
	site.Wait(t, 30*time.Second, "the kernel's lines are in the journal", func() bool {
		told = lowMemoryStory(t, d)
		return len(told) > 0 && !slices.Contains([]string{"ok", "warning", "critical"}, told[len(told)-1])
	})
	t.Logf("the journal tells: %s", strings.Join(told, ", "))
	if len(told) < 3 || told[0] != "warning" || told[1] != "critical" {
		t.Errorf("the journal tells %q; want low memory's warning, critical, and then the kernel's lines", told)
	}

	// What the flood has left in the table goes with the module.
	services := make(map[*site.Director]string)
	for _, d := range s.Directors {
		services[d] = filepath.Join(d.Dir, "services")
		d.Run("sh", "-c", "ipvsadm --save --numeric >"+services[d]+" && ipvsadm --clear")
	}
	d.Run("modprobe", "--remove", "ip_vs_rr", "ip_vs_wlc", "ip_vs")
	for _, d := range s.Directors {
		d.Run("sh", "-c", "ipvsadm --restore <"+services[d])
	}
	d.Lvsguard("mitigate", "auto")
	d.WaitVerdict(0, "calm", clearFor+10*time.Second)
	before = lowFree(t)
	least := before
	lower := func(condition func() bool) func() bool {
		return func() bool {
			least = min(least, lowFree(t))
			return condition()
		}
	}
	f = s.Attacker.Flood(flood.Config{Rate: rate, For: 5 * time.Minute})
	g := newGauge(t, d)
	site.Wait(t, 20*time.Second, "the flood is dropped", lower(func() bool { return g.dropped() > 0 }))
	// What is dropped costs little: as many packets as it took before can come faster.
	rest := s.Attacker.Flood(flood.Config{Count: exhausted, For: 5 * time.Minute})
	site.Wait(t, 2*time.Minute, "the whole flood", lower(func() bool { return rest.Sent() == exhausted }))
	lost := 1 - float64(least)/float64(before)
	t.Logf("auto mode: of %d kB of low memory that were free, a flood of %d packets took %.1f %%", before/1024, f.Stop()+rest.Wait(), 100*lost)
	if lost > 0.25 {
		t.Errorf("in auto mode the flood took %.0f %% of the low memory that was free, want at most a quarter", 100*lost)
	}
	if !process.Running() {
		t.Error("the guard has not outlived the night")
	}
}

// victims are processes that nobody needs.
const victims = 20

// sacrifice starts what the kernel can kill when it has no memory. Each victim holds some, as nothing else is given back
// when a process dies. What is left of them goes with release.
func sacrifice(t *testing.T) (release func()) {
	t.Helper()
	var all []*exec.Cmd
	for range victims {
		victim := exec.Command("sleep", "3600")
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, end := range pair {
			victim.ExtraFiles = append(victim.ExtraFiles, os.NewFile(uintptr(end), "victim"))
		}
		for err == nil { // what nobody reads
			_, err = unix.Write(pair[0], make([]byte, 4096))
		}
		if !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		for _, end := range victim.ExtraFiles {
			_ = end.Close()
		}
		spare(t, victim.Process.Pid, 1000)
		all = append(all, victim)
	}
	return func() {
		for _, victim := range all {
			_ = victim.Process.Kill() // unless the kernel was first
			_ = victim.Wait()
		}
	}
}

// spare sets how soon the kernel kills a process when it has no memory: 1000 first, -1000 never.
func spare(t *testing.T, pid, adjust int) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(adjust)), 0); err != nil {
		t.Fatal(err)
	}
}

// lowFree is the low memory that is free, in bytes.
func lowFree(t *testing.T) uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "LowFree:"); ok {
			kb, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb * 1024
		}
	}
	t.Fatal("this kernel has no low memory: run it with go run ./lab/cmd/lab, which boots the one that has")
	return 0
}

// A kernelLog is the kernel's log from when it was opened on. It needs no memory of the kernel's to be read.
type kernelLog struct {
	t      *testing.T
	fd     int
	record [8192]byte
	first  time.Time // when anybody was refused memory
	killed int
}

func openKernelLog(t *testing.T) *kernelLog {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	return &kernelLog{t: t, fd: fd}
}

// noMemory tells whether the kernel has said that IPVS has no memory for a connection. Where others are always the first
// to find none, it is what the kernel kills for them that tells.
func (k *kernelLog) noMemory() bool {
	k.t.Helper()
	for {
		n, err := unix.Read(k.fd, k.record[:])
		line := k.record[:max(n, 0)]
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.EPIPE): // overwritten before it was read
		case err != nil:
			k.t.Fatalf("/dev/kmsg: %v", err)
		case !slices.ContainsFunc([]string{"no memory", "page allocation failure", "oom-killer", "Killed process"}, func(sign string) bool {
			return bytes.Contains(line, []byte(sign))
		}):
		case k.first.IsZero():
			k.first = time.Now()
			fallthrough
		default:
			if bytes.Contains(line, []byte("Killed process")) {
				k.killed++
			}
			if bytes.Contains(line, []byte("ip_vs_conn_new(): no memory")) || k.killed > victims/2 {
				return true
			}
		}
	}
}

// forecasts are what a guard has said, from second to second.
type forecasts struct {
	t       *testing.T
	mu      sync.Mutex
	reports []*guard.PressureReport
}

// foresee asks the guard each half second what it foresees, over one connection, until it does not answer.
func foresee(t *testing.T, client *serve.Client) *forecasts {
	f := &forecasts{t: t}
	go func() {
		for {
			r, err := client.Pressure(t.Context())
			if err != nil {
				return
			}
			f.mu.Lock()
			f.reports = append(f.reports, r)
			f.mu.Unlock()
			time.Sleep(500 * time.Millisecond)
		}
	}()
	return f
}

// at is what was last said before a moment: in how many seconds it will be full, and what the truth was.
func (f *forecasts) at(kind pressure.Kind, moment, over time.Time) (named, truth float64) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	named = math.NaN()
	for _, report := range f.reports {
		if report.Time.After(moment) {
			break
		}
		for _, r := range report.Resources {
			if r.Kind == kind {
				named, truth = math.NaN(), over.Sub(report.Time).Seconds()
				if r.FullIn != nil {
					named = *r.FullIn
				}
			}
		}
	}
	return named, truth
}

// lowMemoryStory is what the journal tells of low memory: its levels, and the kinds of what the kernel said.
func lowMemoryStory(t *testing.T, d *site.Director) []string {
	t.Helper()
	var told []string
	for line := range strings.Lines(d.Lvsguard("journal", "--json")) {
		var e guard.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("journal: %q: %v", line, err)
		}
		switch {
		case e.Event == guard.EventPressure && e.Kind == string(pressure.KindLowMemory):
			told = append(told, e.To)
		case e.Event == guard.EventKernel && e.Kind != string(pressure.EventSYNFlooding):
			told = append(told, e.Kind)
		}
	}
	return told
}

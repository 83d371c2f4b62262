// Package sockets measures what it costs to read all TCP sockets, against a C
// program that only counts them by state and against ss.
package sockets

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/internal/netns"
	"golang.org/x/sys/unix"
)

// roleVariable makes this test binary one of the processes of the benchmark.
const roleVariable = "LVSGUARD_BENCH_SOCKETS"

func TestMain(m *testing.M) {
	role, argument, _ := strings.Cut(os.Getenv(roleVariable), " ")
	var err error
	switch role {
	case "":
		os.Exit(m.Run())
	case "read":
		err = readOnce(pressure.SocketsAsk{Connections: true})
	case "rtt":
		err = readOnce(pressure.SocketsAsk{Connections: true, RTT: true})
	case "stay":
		err = stay()
	case "hold":
		err = hold(argument)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// readOnce is what a command does.
func readOnce(ask pressure.SocketsAsk) error {
	r, err := pressure.OpenSockets(pressure.SocketsConfig{})
	if err != nil {
		return err
	}
	s, err := read(r, ask)
	if err != nil {
		return err
	}
	_, err = fmt.Println(s.Connections.All().Connections)
	return err
}

func read(r *pressure.SocketReader, ask pressure.SocketsAsk) (pressure.Sockets, error) {
	s := r.Read(context.Background(), ask)
	if s.Listeners == nil || ask.Connections && (s.Connections == nil || s.Connections.Remotes == nil) {
		return s, fmt.Errorf("unknown: %v", s.Unknown)
	}
	return s, nil
}

// stay is what a daemon does: for every line that it is given it reads as often
// as that says, and tells what a reading took in nanoseconds, how often it
// allocated, and the most memory that the process ever had, in KiB.
func stay() error {
	r, err := pressure.OpenSockets(pressure.SocketsConfig{})
	if err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var ask pressure.SocketsAsk
		var times int
		if _, err := fmt.Sscan(in.Text(), &times, &ask.Connections, &ask.RTT); err != nil {
			return err
		}
		took := make([]time.Duration, times)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range took {
			start := time.Now()
			if _, err := read(r, ask); err != nil {
				return err
			}
			took[i] = time.Since(start)
		}
		runtime.ReadMemStats(&after)
		memory, err := residentMost()
		if err != nil {
			return err
		}
		fmt.Println(least(took).Nanoseconds(), int(after.Mallocs-before.Mallocs)/times, memory)
	}
	return nil
}

// residentMost is VmHWM, in KiB.
func residentMost() (int, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strconv.Atoi(strings.Fields(value)[0])
		}
	}
	return 0, errors.New("no VmHWM in /proc/self/status")
}

// hold listens at an address and, for every line that it is given, makes as many
// connections to itself as that says. It keeps both ends until its input ends.
func hold(argument string) error {
	address, err := netip.ParseAddrPort(argument)
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Addr: address.Addr().As4(), Port: int(address.Port())}
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(listener, to)
	}
	if err == nil {
		err = unix.Listen(listener, 128)
	}
	if err != nil {
		return fmt.Errorf("listen on %v: %w", address, err)
	}
	fmt.Println("listening")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		pairs, err := strconv.Atoi(in.Text())
		if err != nil {
			return err
		}
		for range pairs {
			near, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err == nil {
				err = unix.Connect(near, to)
			}
			if err != nil {
				return fmt.Errorf("connect to %v: %w", address, err)
			}
			if _, _, err := unix.Accept(listener); err != nil {
				return fmt.Errorf("accept on %v: %w", address, err)
			}
		}
		fmt.Println("connected")
	}
	return nil
}

// least is the time that a tenth of them did not exceed: whatever else the
// machine does only adds.
func least(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/10]
}

// A process is one of ours in the benchmark's namespace, to talk with.
type process struct {
	in  io.WriteCloser
	out *bufio.Scanner
}

// inside runs f in h, with a priority for what it starts: else what other
// programs do at the time would be measured too.
func inside(b *testing.B, h *netns.Host, f func()) {
	b.Helper()
	var err error
	h.Do(b, func() {
		if err = unix.Setpriority(unix.PRIO_PROCESS, 0, -10); err == nil { // of this thread, which ends with f
			f()
		}
	})
	if err != nil {
		b.Fatalf("take a higher priority: %v", err)
	}
}

func start(b *testing.B, h *netns.Host, role string) *process {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	inside(b, h, func() { err = cmd.Start() })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close() // which ends it
		cmd.Wait()
	})
	return &process{in: in, out: bufio.NewScanner(out)}
}

func (p *process) answer(b *testing.B) string {
	b.Helper()
	if !p.out.Scan() {
		b.Fatalf("a process of the benchmark has ended: %v", p.out.Err())
	}
	return p.out.Text()
}

// ask has the process that stays read.
func (p *process) ask(b *testing.B, times int, ask pressure.SocketsAsk) (took time.Duration, allocations, memory int) {
	b.Helper()
	fmt.Fprintln(p.in, times, ask.Connections, ask.RTT)
	if _, err := fmt.Sscan(p.answer(b), &took, &allocations, &memory); err != nil {
		b.Fatal(err)
	}
	return took, allocations, memory
}

// A crowd is many sockets, two a connection, held by as many processes as the
// limit on open files asks for. Each has a listener of its own from the start.
type crowd struct {
	holders []*process
	sockets int
}

func newCrowd(b *testing.B, h *netns.Host, most int) *crowd {
	b.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	each := int(min(limit.Max, 20_000)) - 50
	c := &crowd{}
	for i := range (most + each - 1) / each {
		holder := start(b, h, fmt.Sprintf("hold 127.0.1.%d:8080", i+1))
		holder.answer(b)
		c.holders = append(c.holders, holder)
	}
	return c
}

// grow makes it so many sockets.
func (c *crowd) grow(b *testing.B, sockets int) {
	b.Helper()
	pairs := (sockets - c.sockets) / 2
	for i, holder := range c.holders {
		fmt.Fprintln(holder.in, (pairs+i)/len(c.holders)) // which add up to pairs
	}
	for _, holder := range c.holders {
		holder.answer(b)
	}
	c.sockets = sockets
}

// BenchmarkSockets measures, in a namespace of its own and in one run by turns,
// whole processes that read 62,000 sockets: ours with and without round-trip
// times, the C program of floor/ with and without INET_DIAG_INFO, and ss -ant.
// Then it measures, in a process that stays, what a reading allocates and
// how much memory it takes with 10,000, 62,000 and 250,000 sockets, and what the
// reading of the listening sockets alone takes with none and with 62,000.
//
//	LVSGUARD_PRIVILEGED=1 go test ./bench/sockets -run '^$' -bench . -benchtime 1x
func BenchmarkSockets(b *testing.B) {
	const (
		sockets = 62_000
		rounds  = 25
		few     = 10_000
		many    = 250_000
		needed  = 4 << 30 // bytes of memory for many
	)
	listening := pressure.SocketsAsk{}
	all := pressure.SocketsAsk{Connections: true, RTT: true}

	floor := filepath.Join(b.TempDir(), "states")
	if out, err := exec.Command("gcc", "-O2", "-o", floor, "floor/states.c").CombinedOutput(); err != nil {
		b.Fatalf("build floor/states.c (apt-get install gcc): %v\n%s", err, out)
	}
	host := netns.New(b)
	crowd := newCrowd(b, host, many)
	daemon := start(b, host, "stay")
	b.ReportMetric(0, "ns/op") // of no interest

	memory := func() (allocations int) {
		took, _, _ := daemon.ask(b, 10, pressure.SocketsAsk{Connections: true})
		tookRTT, allocations, kibibytes := daemon.ask(b, 10, all)
		b.Logf("%7d sockets: a reading takes %.1f ms, with RTT %.1f ms and %d allocations; the reading process had %d KiB at most",
			crowd.sockets, took.Seconds()*1000, tookRTT.Seconds()*1000, allocations, kibibytes)
		return allocations
	}
	alone, _, _ := daemon.ask(b, 501, listening)
	crowd.grow(b, few)
	base := memory()
	crowd.grow(b, sockets)
	crowded, _, _ := daemon.ask(b, 501, listening)
	b.Logf("%d listening sockets alone: %v with no connection, %v with %d sockets", len(crowd.holders), alone, crowded, sockets)
	b.ReportMetric(float64(crowded)/float64(alone), "listening-62000/none")
	grown := memory()
	b.ReportMetric(float64(grown-base)/(sockets-few), "allocs/socket")

	contenders := []struct {
		name string
		env  string
		args []string
	}{
		{"C", "", []string{floor}},
		{"C with INFO", "", []string{floor, "info"}},
		{"ours", "read", []string{"/proc/self/exe"}},
		{"ours with RTT", "rtt", []string{"/proc/self/exe"}},
		{"ss -ant", "", []string{"ss", "-ant"}},
	}
	elapsed, cpu := make(map[string][]time.Duration), make(map[string][]time.Duration)
	for range rounds {
		for _, c := range contenders {
			cmd := exec.Command(c.args[0], c.args[1:]...)
			cmd.Env = append(os.Environ(), roleVariable+"="+c.env)
			var err error
			inside(b, host, func() {
				start := time.Now()
				err = cmd.Run()
				elapsed[c.name] = append(elapsed[c.name], time.Since(start))
			})
			if err != nil {
				b.Fatalf("%s: %v", c.name, err)
			}
			cpu[c.name] = append(cpu[c.name], cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		}
	}
	ratio := func(of map[string][]time.Duration, a, c string) float64 {
		return float64(least(of[a])) / float64(least(of[c]))
	}
	for _, c := range contenders {
		b.Logf("%-14s %8.1f ms elapsed, %.2f x C; %8.1f ms of processor, %.2f x C", c.name,
			least(elapsed[c.name]).Seconds()*1000, ratio(elapsed, c.name, "C"), least(cpu[c.name]).Seconds()*1000, ratio(cpu, c.name, "C"))
	}
	b.ReportMetric(ratio(elapsed, "ours", "C"), "ours/C")
	b.ReportMetric(ratio(elapsed, "ours with RTT", "C"), "rtt/C")
	b.ReportMetric(ratio(elapsed, "ours", "ss -ant"), "ours/ss")

	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		b.Fatal(err)
	}
	if free := uint64(info.Freeram) * uint64(info.Unit); free < needed {
		b.Logf("not measured with %d sockets: %d MiB of free memory, %d are wanted", many, free>>20, needed>>20)
		return
	}
	crowd.grow(b, many)
	memory()
}

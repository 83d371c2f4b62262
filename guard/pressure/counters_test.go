package pressure

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/internal/netns"
)

func TestPerSecond(t *testing.T) {
	tests := []struct {
		name        string
		before, now uint64
		interval    time.Duration
		want        float64 // -1: not known
	}{
		{"nothing", 7, 7, time.Second, 0},
		{"ten in two seconds", 7, 17, 2 * time.Second, 5},
		{"64 bits", 1 << 60, 1<<60 + 10, time.Second, 10},
		{"32 bits, wrapped", 1<<32 - 4, 6, time.Second, 10},
		{"reset", 4_000_000, 6, time.Second, -1},
		{"reset late", 3_900_000_000, 6, time.Second, -1},
		{"64 bits, reset", 1 << 40, 6, time.Second, -1},
		{"no time", 7, 17, 0, -1},
		{"the clock went back", 7, 17, -time.Second, -1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, known := perSecond(test.before, test.now, test.interval)
			if known != (test.want >= 0) || known && got != test.want {
				t.Errorf("%v, %v, want %v", got, known, test.want)
			}
		})
	}
}

// rates reads a file of pairs twice, a second apart.
func rates(t *testing.T, before, now string) map[string]string {
	t.Helper()
	var c counterFile
	if err := c.parse([]byte(before), true); err != nil {
		t.Fatal(err)
	}
	if err := c.parse([]byte(now), true); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, counter := range c.rates(nil, time.Second) {
		got[counter.Name] = "unknown"
		if counter.PerSecond != nil {
			got[counter.Name] = fmt.Sprint(*counter.PerSecond)
		}
	}
	return got
}

func TestCounterRates(t *testing.T) {
	tests := []struct {
		name        string
		before, now string
		want        map[string]string
	}{
		{
			"rates", "Tcp: MaxConn InSegs OutSegs\nTcp: -1 100 200\n", "Tcp: MaxConn InSegs OutSegs\nTcp: -1 110 200\n",
			map[string]string{"TcpInSegs": "10", "TcpOutSegs": "0"},
		},
		{
			"a column more", "Tcp: InSegs OutSegs\nTcp: 100 200\nUdp: A\nUdp: 5\n", "Tcp: InSegs New OutSegs\nTcp: 110 1 200\nUdp: A\nUdp: 6\n",
			map[string]string{"TcpInSegs": "10", "TcpNew": "unknown", "TcpOutSegs": "0", "UdpA": "1"},
		},
		{
			"a line less", "Tcp: InSegs\nTcp: 100\nUdp: A\nUdp: 5\n", "Tcp: InSegs\nTcp: 101\n",
			map[string]string{"TcpInSegs": "1"},
		},
		{
			"columns change their places", "Tcp: A B\nTcp: 100 200\n", "Tcp: B A\nTcp: 200 100\n",
			map[string]string{"TcpB": "0", "TcpA": "0"},
		},
		{
			"a line less in the middle", "Tcp: A\nTcp: 100\nIcmp: B\nIcmp: 5\nUdp: C\nUdp: 7\n", "Tcp: A\nTcp: 101\nUdp: C\nUdp: 9\n",
			map[string]string{"TcpA": "1", "UdpC": "2"},
		},
		{
			"one is reset", "Tcp: A B\nTcp: 100 200\n", "Tcp: A B\nTcp: 3 210\n",
			map[string]string{"TcpA": "unknown", "TcpB": "10"},
		},
		{
			"a gauge is none", "Tcp: CurrEstab InSegs\nTcp: 100 1\n", "Tcp: CurrEstab InSegs\nTcp: 3 2\n",
			map[string]string{"TcpInSegs": "1"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, rates(t, test.before, test.now)); diff != "" {
				t.Errorf("rates (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCounterErrors(t *testing.T) {
	tests := []struct {
		name, text string
		pairs      bool
	}{
		{"empty", "", true},
		{"names alone", "Tcp: InSegs\n", true},
		{"figures of another", "Tcp: InSegs\nUdp: 7\n", true},
		{"a figure more", "Tcp: InSegs\nTcp: 7 8\n", true},
		{"a name more", "Tcp: InSegs OutSegs\nTcp: 7\n", true},
		{"a word for a figure", "Tcp: InSegs\nTcp: seven\n", true},
		{"no colon", "Tcp InSegs\nTcp 7\n", true},
		{"a name alone", "Ip6InReceives\n", false},
		{"two figures", "Ip6InReceives 7 8\n", false},
		{"an empty line", "Ip6InReceives 7\n\n", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var c counterFile
			if err := c.parse([]byte(test.text), test.pairs); err == nil {
				t.Errorf("it was read: %v %v", c.names, c.values)
			}
		})
	}
}

// After a file could not be read, its rates are unknown once, and not huge.
func TestCountersAfterAGap(t *testing.T) {
	h := newHost(t, "host64")
	f := &files{root: h.root}
	var c counters
	unknown := make(map[string]string)
	known := func() int {
		n := 0
		for _, counter := range c.read(f, time.Second, unknown) {
			if counter.PerSecond != nil {
				n++
			}
		}
		return n
	}
	known()
	all := known()
	text := h.read("proc/thread-self/net/netstat")
	h.write("proc/thread-self/net/netstat", text[:100])
	without := known()
	if unknown["netstat"] == "" || without >= all || without == 0 {
		t.Fatalf("%d rates, then %d; unknown %v", all, without, unknown)
	}
	h.write("proc/thread-self/net/netstat", text)
	if again := known(); again != without {
		t.Errorf("%d rates after the gap, want %d", again, without)
	}
	if again := known(); again != all {
		t.Errorf("%d rates at last, want %d", again, all)
	}
}

// Once the names are known, a file costs no allocation.
func TestCountersAllocate(t *testing.T) {
	for _, file := range counterFiles {
		data, err := os.ReadFile("testdata/host64/" + file.name)
		if err != nil {
			t.Fatal(err)
		}
		var c counterFile
		for range 2 {
			if err := c.parse(data, file.pairs); err != nil {
				t.Fatal(err)
			}
		}
		// The few gauges' names are put together again each time.
		allowed := 0.0
		for _, name := range c.names {
			if name == "" {
				allowed += 2
			}
		}
		n := testing.AllocsPerRun(100, func() {
			if err := c.parse(data, file.pairs); err != nil {
				t.Fatal(err)
			}
		})
		if n > allowed {
			t.Errorf("%s: %.0f allocations", file.name, n)
		}
	}
}

func TestSoftnet(t *testing.T) {
	h := newHost(t, "")
	f := &files{root: h.root}
	var s softnet
	line := func(dropped, squeezed uint32) string {
		return fmt.Sprintf("00000100 %08x %08x 00000000 00000000\n", dropped, squeezed)
	}
	tests := []struct {
		name, text string
		want       string // dropped and squeezed: total, rate
	}{
		{"first", line(5, 1<<32-10) + line(1, 1), "6 unknown, 4294967287 unknown"},
		{"wrapped", line(5, 10) + line(21, 1), "26 10, 11 10"},
		{"a processor less", line(5, 10), "5 unknown, 10 unknown"},
		{"it is there again", line(5, 10) + line(21, 1), "26 unknown, 11 unknown"},
		{"cut", line(5, 10) + "00000100 0000", ""},
		{"after the cut", line(5, 10) + line(21, 1), "26 unknown, 11 unknown"},
		{"nonsense", "what is this\n", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h.write("proc/thread-self/net/softnet_stat", test.text)
			unknown := make(map[string]string)
			var got []string
			for _, c := range s.read(f, 2*time.Second, unknown) {
				rate := "unknown"
				if c.PerSecond != nil {
					rate = fmt.Sprint(*c.PerSecond)
				}
				got = append(got, fmt.Sprint(c.Total, " ", rate))
			}
			if strings.Join(got, ", ") != test.want || (test.want == "") != (unknown["softnet_stat"] != "") {
				t.Errorf("%v, unknown %v; want %s", got, unknown, test.want)
			}
		})
	}
}

func TestTroubles(t *testing.T) {
	counter := func(name string, rate float64) Counter { return Counter{Name: name, PerSecond: &rate} }
	got := troubles([]Counter{
		counter("TcpRetransSegs", 50), counter("TcpOutSegs", 10_000), // half a hundredth: as everywhere
		counter("UdpNoPorts", 3), // a few are nothing
		counter("Udp6NoPorts", 30),
		counter("TcpExtListenDrops", 0.5),
		counter("TcpExtSyncookiesSent", 9000),
		counter("IpInReceives", 100_000),
		{Name: "TcpExtListenOverflows"}, // not known
	})
	var names []string
	for _, tr := range got {
		names = append(names, fmt.Sprint(tr.Counter, " ", tr.PerSecond))
		if tr.Why == "" || strings.HasSuffix(tr.Why, ".") {
			t.Errorf("%s: %q", tr.Counter, tr.Why)
		}
	}
	want := []string{"TcpExtSyncookiesSent 9000", "TcpExtListenDrops 0.5", "Udp6NoPorts 30"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("troubles (-want +got):\n%s", diff)
	}
	if got := troubles([]Counter{counter("TcpRetransSegs", 500), counter("TcpOutSegs", 10_000)}); len(got) != 1 {
		t.Errorf("one segment in twenty is sent again: %v", got)
	}
}

// Each counter that means trouble is one that this kernel has: a name that is
// written wrong would never be found.
func TestTroublesExist(t *testing.T) {
	var c counters
	f := &files{root: "testdata/host64"}
	unknown := make(map[string]string)
	names := map[string]bool{"SoftnetDropped": true, "SoftnetSqueezed": true}
	for _, counter := range c.read(f, 0, unknown) {
		names[counter.Name] = true
	}
	// IPv6 has no such counters, and says so by their absence.
	absent := map[string]bool{"Udp6MemErrors": true}
	for _, k := range known {
		for _, name := range append(k.names, k.of) {
			if name != "" && !names[name] && !absent[name] {
				t.Errorf("there is no counter %s", name)
			}
		}
	}
}

// What nstat says at the same instant, and what a packet to a closed port does.
func TestCountersAgreeWithNstat(t *testing.T) {
	if _, err := exec.LookPath("nstat"); err != nil {
		unprivilegedOnly(t, "there is no nstat (Debian: iproute2)")
	}
	h := netns.New(t)
	var c counters
	unknown := make(map[string]string)
	var first, last []Counter
	h.Do(t, func() {
		f := &files{root: "/"}
		first = c.read(f, 0, unknown)
		for range 25 {
			conn, err := net.Dial("udp", "127.0.0.1:9")
			if err != nil {
				t.Error(err)
				return
			}
			fmt.Fprint(conn, "x")
			conn.Close()
		}
		last = c.read(f, time.Second, unknown)
	})
	if len(first) == 0 || len(unknown) > 0 {
		t.Fatalf("%d counters, unknown %v", len(first), unknown)
	}
	theirs := nstat(t, h)
	for _, counter := range last {
		if v, there := theirs[counter.Name]; there && v != counter.Total {
			t.Errorf("%s: nstat says %d, ours %d", counter.Name, v, counter.Total)
		}
		if counter.Name == "UdpNoPorts" && (counter.PerSecond == nil || *counter.PerSecond != 25) {
			t.Errorf("UdpNoPorts: %+v", counter)
		}
	}
	for name := range theirs {
		found := false
		for _, counter := range last {
			found = found || counter.Name == name
		}
		if !found && !strings.HasSuffix(name, "CurrEstab") {
			t.Errorf("nstat has %s, and we have not", name)
		}
	}
	if len(theirs) < 100 {
		t.Errorf("nstat tells %d counters only", len(theirs))
	}
}

func nstat(t *testing.T, h *netns.Host) map[string]uint64 {
	t.Helper()
	out := h.Run(t, "nstat", "-a", "-z", "-s", "-j")
	var all struct{ Kernel map[string]uint64 }
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&all); err != nil {
		t.Fatalf("%v:\n%.300s", err, out)
	}
	return all.Kernel
}

func FuzzCounters(f *testing.F) {
	// Short ones: with the whole files there are a few hundred tries a second.
	f.Add([]byte("Ip6InReceives   7\nIp6InHdrErrors \t0\n"), []byte("Ip6InReceives 9\n"), false)
	f.Add([]byte("Tcp: MaxConn In\nTcp: -1 7\nUdp: A\nUdp: 1\n"), []byte("Icmp: B\nIcmp: 3\nTcp: MaxConn In\nTcp: -1 4294967295\n"), true)
	f.Add([]byte("Tcp: A B\nTcp: 1 2\n"), []byte("Tcp: B A\nTcp: -1 2\n"), true)
	f.Fuzz(func(t *testing.T, before, now []byte, pairs bool) {
		var c counterFile
		if c.parse(before, pairs) != nil {
			return
		}
		if c.parse(now, pairs) != nil {
			return
		}
		if len(c.names) != len(c.values) {
			t.Fatalf("%d names, %d figures", len(c.names), len(c.values))
		}
		for _, counter := range c.rates(nil, time.Second) {
			if counter.Name == "" || counter.PerSecond != nil && *counter.PerSecond < 0 {
				t.Errorf("%+v", counter)
			}
		}
	})
}

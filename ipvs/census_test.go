package ipvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func keys(t testing.TB, texts ...string) []Key {
	t.Helper()
	var keys []Key
	for _, text := range texts {
		k, err := ParseKey(text)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	return keys
}

var compareAddresses = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}, Key{})}

func TestCensus(t *testing.T) {
	c, err := Open(Config{Proc: "testdata/proc"})
	if err != nil {
		t.Fatal(err)
	}
	k := keys(t, "192.0.2.1:80", "192.0.2.2:443", "192.0.2.2:*", "udp:192.0.2.1:53", "[2001:db8::1]:80", "192.0.2.7:80", "fwmark:7")
	got, err := c.Census(t.Context(), CensusConfig{Services: k, KeepSources: 1024})
	if err != nil {
		t.Fatal(err)
	}
	want := Census{
		Lines: 10, Templates: 2, Complete: true, Total: 12, TotalKnown: true,
		States: map[string]int{"SYN_RECV": 3, "ESTABLISHED": 3, "FIN_WAIT": 1, "UDP": 1, "CLOSE": 1, "SHUTDOWN_RECEIVED": 1},
		Services: map[Key]map[string]int{
			k[0]: {"SYN_RECV": 2, "ESTABLISHED": 1},
			k[1]: {"FIN_WAIT": 1},
			k[2]: {"ESTABLISHED": 1},
			k[3]: {"UDP": 1},
			k[4]: {"SYN_RECV": 1, "ESTABLISHED": 1},
			k[5]: {},
		},
		Other: map[string]int{"CLOSE": 1, "SHUTDOWN_RECEIVED": 1},
		Sources: []Source{
			{netip.MustParsePrefix("198.51.100.0/24"), 6, 6},
			{netip.MustParsePrefix("2001:db8:1:2::/64"), 2, 2},
			{netip.MustParsePrefix("198.51.101.0/24"), 1, 1},
			{netip.MustParsePrefix("203.0.113.0/24"), 1, 1},
		},
	}
	if diff := cmp.Diff(want, got, compareAddresses); diff != "" {
		t.Errorf("census (-want +got):\n%s", diff)
	}
}

func TestCensusFindsServices(t *testing.T) {
	table, err := os.ReadFile("testdata/proc/thread-self/net/ip_vs_conn")
	if err != nil {
		t.Fatal(err)
	}
	c, err := ReadCensus(t.Context(), bytes.NewReader(table), CensusConfig{PrefixV4: 32, PrefixV6: 128, KeepSources: 1024})
	if err != nil {
		t.Fatal(err)
	}
	k := keys(t, "192.0.2.1:80", "192.0.2.2:443", "192.0.2.2:8080", "udp:192.0.2.1:53", "[2001:db8::1]:80", "192.0.2.9:80", "sctp:192.0.2.1:3868")
	for _, k := range k {
		if len(c.Services[k]) == 0 {
			t.Errorf("%v was not found", k)
		}
	}
	if len(c.Services) != len(k) || len(c.Other) != 0 {
		t.Errorf("%d services, want %d; other: %v", len(c.Services), len(k), c.Other)
	}
	if first, want := c.Sources[0], (Source{netip.MustParsePrefix("198.51.100.7/32"), 3, 3}); first != want {
		t.Errorf("first source %v, want %v", first, want)
	}
}

const (
	header = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
	good   = "TCP C6336407 C350 C0000201 0050 0A000002 0050 SYN_RECV         59\n"
)

func TestCensusMalformed(t *testing.T) {
	var states strings.Builder
	for i := range maxStates + 3 {
		fmt.Fprintf(&states, "TCP C6336407 C350 C0000201 0050 0A000002 0050 STATE%-6d     59\n", i)
	}
	for _, tt := range []struct {
		name, table      string
		lines, malformed int
		complete         bool
	}{
		{"empty file", "", 0, 0, true},
		{"header alone", header, 0, 0, true},
		{"no header", good, 1, 0, true},
		{"half a header", header[:20], 0, 1, false},
		{"half a line", header + good + good[:40], 1, 1, false},
		{"line without a newline", header + good + good[:len(good)-1], 1, 1, false},
		{"empty line", header + "\n" + good, 1, 1, false},
		{"header again", header + good + header + good, 2, 1, false},
		{"garbage", header + "\x00\xff\x00\n" + good, 1, 1, false},
		{"a column less", strings.Replace(good, " 0050 SYN", " SYN", 1) + good, 1, 1, false},
		{"no state", strings.Replace(good, "SYN_RECV ", "         ", 1) + good, 1, 1, false},
		{"not hexadecimal", strings.Replace(good, "C633", "G633", 1) + good, 1, 1, false},
		{"unknown protocol", strings.Replace(good, "TCP", "TCQ", 1) + good, 1, 1, false},
		{"mixed families", strings.Replace(good, "C0000201", "2001:0db8:0000:0000:0000:0000:0000:0001", 1) + good, 1, 1, false},
		{"short IPv6 address", strings.Replace(good, "0A000002", "2001:db8::1", 1) + good, 1, 1, false},
		{"bracketed IPv6 address", strings.Replace(good, "0A000002", "[2001:0db8:0000:0000:0000:0000:0000:0001]", 1) + good, 1, 1, false},
		{"endless line", strings.Repeat("x", 3*censusBuffer) + "\n" + good, 1, 1, false},
		{"endless line that begins well", good[:len(good)-1] + strings.Repeat(" x", 3*censusBuffer) + "\n" + good, 1, 1, false},
		{"too many states", states.String() + good, maxStates, 4, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, r := range map[string]io.Reader{
				"whole":        strings.NewReader(tt.table),
				"byte by byte": iotest.OneByteReader(strings.NewReader(tt.table)),
			} {
				c, err := ReadCensus(t.Context(), r, CensusConfig{})
				if err != nil || c.Lines != tt.lines || c.Malformed != tt.malformed || c.Complete != tt.complete {
					t.Errorf("%s: lines %d, malformed %d, complete %v, error %v, want %d, %d, %v",
						name, c.Lines, c.Malformed, c.Complete, err, tt.lines, tt.malformed, tt.complete)
				}
				if c.TotalKnown != tt.complete {
					t.Errorf("%s: total %d, known %v", name, c.Total, c.TotalKnown)
				}
			}
		})
	}
}

func TestCensusSample(t *testing.T) {
	table := header + strings.Repeat(good, 100)
	for _, tt := range []struct {
		name            string
		cfg             CensusConfig
		lines           int
		complete, known bool
		total           uint64
		extrapolated    uint64
	}{
		{"a part", CensusConfig{Sample: 10, Total: 100}, 10, false, true, 100, 100},
		{"a part of what is not known", CensusConfig{Sample: 10}, 10, false, false, 0, 0},
		{"a part of what has shrunk", CensusConfig{Sample: 10, Total: 5}, 10, false, true, 10, 10},
		{"more than there is", CensusConfig{Sample: 1000, Total: 5000}, 100, true, true, 100, 100},
		{"whole", CensusConfig{}, 100, true, true, 100, 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ReadCensus(t.Context(), strings.NewReader(table), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if c.Lines != tt.lines || c.Complete != tt.complete || c.Total != tt.total || c.TotalKnown != tt.known {
				t.Errorf("lines %d, complete %v, total %d, known %v", c.Lines, c.Complete, c.Total, c.TotalKnown)
			}
			if n, ok := c.Extrapolate(c.States["SYN_RECV"]); n != tt.extrapolated || ok != tt.known {
				t.Errorf("Extrapolate = %d, %v, want %d, %v", n, ok, tt.extrapolated, tt.known)
			}
		})
	}
}

func TestCensusErrors(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadCensus(canceled, strings.NewReader(good), CensusConfig{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	broken := errors.New("broken")
	c, err := ReadCensus(t.Context(), io.MultiReader(strings.NewReader(header+good), iotest.ErrReader(broken)), CensusConfig{})
	if !errors.Is(err, broken) || c.Lines != 1 || c.Complete {
		t.Errorf("a reader that breaks: %+v, %v", c, err)
	}
	for _, cfg := range []CensusConfig{
		{PrefixV4: 33}, {PrefixV4: -1}, {PrefixV6: 129}, {PrefixV6: -1}, {Sample: -1}, {KeepSources: -1}, {KeepSources: maxSources + 1},
	} {
		if _, err := ReadCensus(t.Context(), strings.NewReader(good), cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// tableProc makes a proc file system with a connection table.
func tableProc(t *testing.T, release, table string) *Client {
	t.Helper()
	proc := t.TempDir()
	for name, content := range map[string]string{
		"sys/kernel/osrelease":       release + "\n",
		"thread-self/net/ip_vs_conn": table,
	} {
		path := proc + "/" + name
		if err := os.MkdirAll(path[:strings.LastIndexByte(path, '/')], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(Config{Proc: proc})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCensusTooLarge(t *testing.T) {
	table := header + strings.Repeat(good, wholeLimit+1)
	old := tableProc(t, "6.1.0-56-amd64", table)

	c, err := old.Census(t.Context(), CensusConfig{})
	var tooLarge *TooLargeError
	if !errors.As(err, &tooLarge) || c.Lines != wholeLimit || c.Complete {
		t.Errorf("unasked: %d lines, complete %v, %v", c.Lines, c.Complete, err)
	}
	if c, err := old.Census(t.Context(), CensusConfig{Total: 1_000_000}); !errors.As(err, &tooLarge) || c.Lines != 0 {
		t.Errorf("known to be too large: %d lines, %v", c.Lines, err)
	}
	if c, err := old.Census(t.Context(), CensusConfig{Force: true, Total: 1_000_000}); err != nil || c.Lines != wholeLimit+1 || !c.Complete {
		t.Errorf("forced: %d lines, complete %v, %v", c.Lines, c.Complete, err)
	}
	if c, err := old.Census(t.Context(), CensusConfig{Sample: 2000, Total: 1_000_000}); err != nil || c.Lines != 2000 {
		t.Errorf("sampled: %d lines, %v", c.Lines, err)
	}
	if c, err := tableProc(t, "6.14.1", table).Census(t.Context(), CensusConfig{}); err != nil || c.Lines != wholeLimit+1 {
		t.Errorf("kernel that is fast: %d lines, %v", c.Lines, err)
	}
	if c, err := tableProc(t, "6.1.0", header+strings.Repeat(good, wholeLimit)).Census(t.Context(), CensusConfig{}); err != nil || !c.Complete {
		t.Errorf("table of just the limit: %d lines, %v", c.Lines, err)
	}
}

func TestCensusAbsent(t *testing.T) {
	c := tableProc(t, "6.1.0", "")
	if err := os.Remove(c.proc + "/thread-self/net/ip_vs_conn"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Census(t.Context(), CensusConfig{}); !errors.Is(err, ErrAbsent) {
		t.Errorf("Census: %v, want %v", err, ErrAbsent)
	}
}

// randomTable writes a table of n entries with random sources in 198.18.0.0/15
// and returns how many there are in each state.
func randomTable(w io.Writer, n int, seed uint64) map[string]int {
	random := rand.New(rand.NewPCG(seed, 1))
	truth := make(map[string]int)
	io.WriteString(w, header)
	for range n {
		state := "SYN_RECV"
		switch p := random.IntN(100); {
		case p < 22:
			state = "ESTABLISHED"
		case p < 30:
			state = "FIN_WAIT"
		case p < 31:
			state = "CLOSE"
		}
		truth[state]++
		fmt.Fprintf(w, "TCP %08X %04X C0000201 0050 0A0000%02X 0050 %-11s %7d\n",
			0xC6120000+random.Uint32N(1<<17), 1024+random.IntN(60000), 2+random.IntN(3), state, random.IntN(900))
	}
	return truth
}

// A sample of 2000 has each state's share within 3 points.
func TestCensusSampleShares(t *testing.T) {
	for seed := range uint64(5) {
		var table bytes.Buffer
		const n = 60_000
		truth := randomTable(&table, n, seed)
		c, err := ReadCensus(t.Context(), &table, CensusConfig{Sample: 2000, Total: n})
		if err != nil {
			t.Fatal(err)
		}
		for state, count := range truth {
			sampled, _ := c.Extrapolate(c.States[state])
			if points := math.Abs(float64(sampled)-float64(count)) / n * 100; points > 3 {
				t.Errorf("seed %d: %s: sampled %d, truth %d: %.1f points apart", seed, state, sampled, count, points)
			}
		}
	}
}

func TestCensusAllocatesNothingForALine(t *testing.T) {
	var small, large bytes.Buffer
	randomTable(&small, 10_000, 1)
	randomTable(&large, 40_000, 1)
	allocations := func(table []byte) float64 {
		return testing.AllocsPerRun(3, func() {
			if _, err := ReadCensus(t.Context(), bytes.NewReader(table), CensusConfig{KeepSources: 256}); err != nil {
				t.Fatal(err)
			}
		})
	}
	few, many := allocations(small.Bytes()), allocations(large.Bytes())
	if many > few+10 {
		t.Errorf("%v allocations for 10,000 lines and %v for 40,000", few, many)
	}
}

func FuzzReadCensus(f *testing.F) {
	table, err := os.ReadFile("testdata/proc/thread-self/net/ip_vs_conn")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(table, 0)
	f.Add([]byte(header+good+good[:30]), 2)
	f.Add([]byte("IP  C6336407 0000 00000007 0000 0A000002 0000 ASSURED         299\n"), 0)
	f.Fuzz(func(t *testing.T, table []byte, sample int) {
		c, err := ReadCensus(t.Context(), bytes.NewReader(table), CensusConfig{Sample: max(sample, 0), KeepSources: 4})
		if err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, n := range c.States {
			total += n
		}
		inServices := 0
		for _, states := range c.Services {
			for _, n := range states {
				inServices += n
			}
		}
		for _, n := range c.Other {
			inServices += n
		}
		atMost := 0
		for _, s := range c.Sources {
			atMost += s.AtMost
		}
		if total != c.Lines || inServices != c.Lines || atMost != c.Lines {
			t.Errorf("%d lines, by state %d, by service %d, by source %d", c.Lines, total, inServices, atMost)
		}
		if read := c.Lines + c.Templates + c.Malformed; sample > 0 && read > sample {
			t.Errorf("%d lines of a sample of %d", read, sample)
		}
	})
}

func BenchmarkReadCensus(b *testing.B) {
	var table bytes.Buffer
	const n = 20_000
	randomTable(&table, n, 1)
	b.SetBytes(int64(table.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadCensus(b.Context(), bytes.NewReader(table.Bytes()), CensusConfig{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/line")
}

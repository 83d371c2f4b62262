package incident

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/internal/goldenfile"
	"github.com/lvsguard/lvsguard/internal/netns"
)

// scenes are floods of many shapes among good clients.
var scenes = map[string]scene{
	"window0": {good: 2000, flood: 3000, signed: window0, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.window = 0
		return f
	}},
	"window0 without a signature": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.window = 0
		return f
	}},
	"window 1024, MSS, fixed source port": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.src = netip.AddrPortFrom(f.src.Addr(), 4444)
		f.window, f.options = 1024, optMSS
		return f
	}},
	"random windows": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.window, f.options, f.df, f.ttl = uint16(r.Uint32()), linuxOptions, true, uint8(44+r.IntN(15))
		return f
	}},
	"one prefix, otherwise as Linux": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := client(r, service)
		f.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{185, 77, 12, byte(r.Uint32())}), f.src.Port())
		f.window, f.options, f.flags = 64240, linuxOptions, capture.SYN
		return f
	}},
	"TTL 200 to 255": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := client(r, service)
		f.ttl = uint8(200 + r.IntN(56))
		return f
	}},
	"odd options": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.window, f.df = 65535, true
		f.options = []byte{1, 1, 4, 2, 2, 4, 0x05, 0xb4}
		return f
	}},
	"constant sequence number": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := client(r, service)
		f.src = netip.AddrPortFrom(spoofed(r).src.Addr(), f.src.Port())
		f.seq = 0xdeadbeef
		return f
	}},
	"low bits of the sequence number constant": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := client(r, service)
		f.seq &^= 0xffff
		return f
	}},
	"odd MSS": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := client(r, service)
		f.options = append([]byte{2, 4, 0x02, 0x18}, linuxOptions[4:]...)
		f.window, f.flags = 64240, capture.SYN
		return f
	}},
	"data in the SYN": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := client(r, service)
		f.data, f.options, f.window, f.flags = 512, linuxOptions, 64240, capture.SYN
		return f
	}},
	"ECN": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.flags |= capture.ECE | capture.CWR
		f.options, f.window, f.df = windowsOptions, 64240, true
		return f
	}},
	"acknowledgment numbers, hosts that answer": {good: 2000, flood: 3000, refused: true, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.ack, f.window = r.Uint32()|1, uint16(512+r.IntN(9))
		return f
	}},
	"IPv6": {to: service6, good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := client(r, service6)
		f.ttl, f.window, f.options = 255, 1400, nil
		return f
	}},
	"source ports count up, identification counts up by 256": {good: 2000, flood: 3000, shape: func(r *rand.Rand, i int) frame {
		f := spoofed(r)
		f.src = netip.AddrPortFrom(f.src.Addr(), uint16(1000+i))
		f.id, f.window = uint16(256*i), 5840
		return f
	}},
	"few good clients": {good: 12, flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.window = 1024
		return f
	}},
	"no good clients": {flood: 3000, shape: func(r *rand.Rand, _ int) frame {
		f := spoofed(r)
		f.window = 1024
		return f
	}},
	"just as good clients": {good: 2000, flood: 3000, shape: func(r *rand.Rand, _ int) frame { return client(r, service) }},
	"no flood":             {good: 2000},
}

func TestLook(t *testing.T) {
	for name, s := range scenes {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			print(&b, s.play().Look())
			golden(t, strings.NewReplacer(" ", "_", ",", "").Replace(name), b.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	goldenfile.Check(t, filepath.Join("testdata", "look", name+".golden"), got)
}

func print(b *strings.Builder, l *Look) {
	if l == nil {
		fmt.Fprintln(b, "nothing")
		return
	}
	fmt.Fprintf(b, "flood %d, good %d\n", l.Flood, l.Good)
	for _, f := range l.Features {
		good := "?"
		if f.Good != nil {
			good = fmt.Sprintf("%.4f", *f.Good)
		}
		fmt.Fprintf(b, "\n%.3f %s  %s\n  %s\n  %s\n", f.Flood, good, f.Text, f.Match, f.Signature)
	}
	fmt.Fprintln(b)
	for _, f := range l.Fields {
		fmt.Fprintf(b, "%s: %s\n ", f.Name, f.Pattern)
		for _, v := range f.Values[:min(4, len(f.Values))] {
			good := "?"
			if v.Good != nil {
				good = fmt.Sprintf("%.3f", *v.Good)
			}
			fmt.Fprintf(b, " %s=%.3f/%s", v.Value, v.Flood, good)
		}
		fmt.Fprintf(b, " others=%.3f\n", f.OthersFlood)
	}
	distinct := *l.Sources.Distinct
	fmt.Fprintf(b, "distinct %d, spoofed: %s\n", distinct, l.Sources.Spoofed)
}

// What is given as a ready match is one, for nft itself.
func TestMatchesAreNft(t *testing.T) {
	var rules strings.Builder
	rules.WriteString("table inet t {\n chain c {\n")
	var tried int
	files, err := filepath.Glob("testdata/look/*.golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if match, ok := strings.CutPrefix(line, "  tcp flags"); ok {
				tried++
				fmt.Fprintf(&rules, "  tcp flags %s counter\n", strings.TrimSpace(match))
			}
		}
	}
	rules.WriteString(" }\n}\n")
	if tried < 30 {
		t.Fatalf("only %d matches: this test looks in the wrong place", tried)
	}
	if out, err := netns.New(t).Try(t, rules.String(), "nft", "-c", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// nth is a permutation of the IPv4 addresses: each source once.
func nth(i int) netip.Addr {
	n := uint32(i) * 0x9e3779b1
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func TestDistinctSources(t *testing.T) {
	d := newDistributions()
	for i := range 1_000_000 {
		d.saw(nth(i))
		switch n := i + 1; n {
		case 1000, 10_000, 100_000, 1_000_000:
			estimate := float64(d.distinct.Estimate())
			if off := estimate/float64(n) - 1; math.Abs(off) > 0.03 {
				t.Errorf("%.0f sources, of %d", estimate, n)
			} else {
				t.Logf("%d sources: off by %+.2f %%", n, 100*off)
			}
		}
	}
}

// However many sources there are, an analysis takes the same memory.
func TestMemory(t *testing.T) {
	a := NewAnalysis(AnalysisConfig{Addresses: []netip.AddrPort{service}, Signed: window0})
	r := rand.New(rand.NewPCG(5, 6))
	size := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var early uint64
	const packets = 100_000
	for i := range packets {
		f := spoofed(r)
		f.window = 0
		f.src = netip.AddrPortFrom(nth(i), f.src.Port())
		p := f.packet(int64(i) * 100_000)
		a.Add(&p)
		if i == packets/4 {
			early = size()
		}
	}
	a.Pause(1000e9)
	late := size()
	if l := a.Look(); l.Flood != packets {
		t.Errorf("%d packets", l.Flood)
	}
	if grown := int64(late) - int64(early); grown > 1<<20 {
		t.Errorf("%d bytes more after %d sources than after a quarter of them", grown, packets)
	}
	if late > 8<<20 {
		t.Errorf("%d bytes in all", late)
	}
	t.Logf("%d bytes", late)
	runtime.KeepAlive(a)
}

func TestDecode(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	base := client(r, service)
	six := client(r, service6)
	tests := map[string]struct {
		frame frame
		want  func(*headers)
	}{
		"IPv4":          {frame: base},
		"VLAN":          {frame: func() frame { f := base; f.vlan = true; return f }()},
		"IPv6":          {frame: six},
		"IPv4 options":  {frame: func() frame { f := base; f.extensions = []byte{1, 1, 1, 0}; return f }(), want: func(h *headers) { h.ipOptions, h.length = true, h.length+4 }},
		"IPv6 headers":  {frame: func() frame { f := six; f.extensions = []byte{6, 0, 1, 4, 0, 0, 0, 0}; return f }(), want: func(h *headers) { h.ipOptions, h.length = true, 0 }},
		"data":          {frame: func() frame { f := base; f.data = 700; return f }(), want: func(h *headers) { h.length, h.data = h.length+700, 700 }},
		"no options":    {frame: func() frame { f := base; f.options = nil; return f }()},
		"broken option": {frame: func() frame { f := base; f.options = []byte{2, 4, 5, 180, 8, 10, 1, 1}; return f }()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := tt.frame.packet(0)
			got, ok := decode(&p)
			if !ok {
				t.Fatal("not decoded")
			}
			l, mss := parseOptions(tt.frame.options)
			want := headers{
				weight: 1, src: tt.frame.src.Addr(), dst: tt.frame.dst.Addr(), srcPort: tt.frame.src.Port(), dstPort: tt.frame.dst.Port(), seq: tt.frame.seq, flags: tt.frame.flags,
				window: tt.frame.window, ttl: tt.frame.ttl, options: l, mss: mss, offset: uint8(5 + len(tt.frame.options)/4), length: uint16(40 + len(tt.frame.options)),
			}
			if want.v4() {
				want.id, want.fragmentable = tt.frame.id, !tt.frame.df
			}
			if tt.want != nil {
				tt.want(&want)
			}
			if got != want {
				t.Errorf("\n%+v, want\n%+v", got, want)
			}
		})
	}
}

func TestLayout(t *testing.T) {
	tests := []struct {
		options []byte
		want    string
		mss     uint16
	}{
		{nil, "none", 0},
		{linuxOptions, "mss,sackOK,TS,nop,wscale", 1460},
		{windowsOptions, "mss,nop,wscale,nop,nop,sackOK", 1460},
		{appleOptions, "mss,nop,wscale,nop,nop,TS,sackOK,eol", 1460},
		{[]byte{254, 4, 1, 2}, "experiment", 0},
		{[]byte{77, 2, 1, 1}, "other,nop,nop", 0},
		{[]byte{2}, "bad", 0},
		{[]byte{2, 1}, "bad", 0},
		{[]byte{2, 9, 1}, "bad", 0},
		{make([]byte, 40), "eol", 0},
		{[]byte(strings.Repeat("\x01", 40)), strings.Repeat("nop,", 15) + "...", 0},
	}
	for _, tt := range tests {
		l, mss := parseOptions(tt.options)
		if l.String() != tt.want || mss != tt.mss {
			t.Errorf("% x: %s, %d; want %s, %d", tt.options, l, mss, tt.want, tt.mss)
		}
	}
}

// Whatever a packet is, it does no harm, and what is made of it can be written.
func FuzzAdd(f *testing.F) {
	for _, s := range []string{"IPv6", "odd options", "data in the SYN"} {
		sc := scenes[s]
		sc.good, sc.flood = 3, 3
		for _, p := range sc.packets() {
			f.Add(uint32(p.Link), p.Data, p.Length)
		}
	}
	f.Fuzz(func(t *testing.T, link uint32, data []byte, length uint32) {
		a := NewAnalysis(AnalysisConfig{Addresses: []netip.AddrPort{service, service6}})
		for i := range 10 {
			a.Add(&capture.Packet{Time: int64(i) * 1e9, Link: capture.LinkType(link), Length: length, Data: data})
		}
		a.Pause(100e9)
		if l := a.Look(); l != nil {
			if _, err := json.Marshal(l); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestSketch(t *testing.T) {
	s := newSketch[int](64)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 100_000 {
		switch {
		case i%10 < 3:
			s.add(7, 1)
		case i%10 == 3:
			s.add(8, 1)
		default:
			s.add(1000+r.IntN(1_000_000), 1)
		}
	}
	top := s.top(2)
	if len(top) != 2 || top[0].key != 7 || top[1].key != 8 {
		t.Fatalf("%+v", top)
	}
	for k, want := range map[int]float64{7: 0.3, 8: 0.1} {
		if got := s.share(k); got > want || got < want-1.0/64 {
			t.Errorf("%d: %.4f, want %.2f or a little less", k, got, want)
		}
	}
}

// BenchmarkLook is what the guard pays for a look, which it takes every 30 s of an
// incident.
func BenchmarkLook(b *testing.B) {
	s := scenes["window 1024, MSS, fixed source port"]
	s.good, s.flood = 20_000, 100_000
	a := s.play()
	b.ReportAllocs()
	for b.Loop() {
		if a.Look() == nil {
			b.Fatal("there is nothing to see")
		}
	}
}

package pressure

import (
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A flood is a simulated director whose files a Monitor reads, second by
// second. Each entry is a half-open one that goes after its lifetime; memory
// falls by what entries take, page cache is given up when free memory comes to
// the low watermark, and the first refusal ends it.
type flood struct {
	host    *host
	monitor *Monitor
	rate    func(second int) float64 // new entries a second

	perEntry   float64 // bytes that an entry really takes
	base       float64 // entries that stay
	persistent bool    // each entry makes a template, which lives for five minutes
	census     bool    // the caller knows the half-open share
	counted    bool    // and IPVS's count of new connections

	born      []float64 // by second
	refusedAt int       // the second of the first refusal; -1: none yet
	free0     float64   // pages of Normal at the start
	random    *rand.Rand
	meminfo   string
	zoneinfo  string
}

func newFlood(t *testing.T) *flood {
	f := &flood{host: newHost(t, "director32"), perEntry: 4096.0 / 21, base: 2000, census: true, refusedAt: -1, random: rand.New(rand.NewPCG(3, 4))}
	f.monitor = f.host.monitor()
	f.meminfo, f.zoneinfo = f.host.read("proc/meminfo"), f.host.read("proc/zoneinfo")
	f.free0 = 173052
	return f
}

// alive counts what was born within the last so many seconds.
func (f *flood) alive(lifetime int) float64 {
	n := 0.0
	for i := max(0, len(f.born)-lifetime); i < len(f.born); i++ {
		n += f.born[i]
	}
	return n
}

// tick lets a second pass, and returns what the Monitor makes of it.
func (f *flood) tick() Sample {
	f.born = append(f.born, f.rate(len(f.born)))
	half, templates := f.alive(60), 0.0
	if f.persistent {
		templates = f.alive(300)
	}
	taken := (half + templates) * f.perEntry / 4096 // pages
	// The cache of the zone, 11,000 pages, is taken when only the low watermark
	// is left; then the reserve down to half of the min watermark, as an
	// allocation that may not wait does.
	const cache, low, least = 11000 * 0.9, 4677, 3742 / 2
	free := f.free0 - taken
	given := math.Min(cache, math.Max(0, low-free))
	free += given
	// Then DMA's pages, but for those that are kept for others.
	dma := 3949.0
	if free < least {
		dma -= least - free
		free = least
	}
	if dma < 818+71/2 {
		if f.refusedAt < 0 {
			f.refusedAt = len(f.born) - 1
		}
		dma = 818 + 71/2
	}
	f.host.write("proc/zoneinfo", replaceNumbers(f.zoneinfo,
		"pages free     173052", fmt.Sprintf("pages free     %.0f", free),
		"pages free     3949", fmt.Sprintf("pages free     %.0f", dma),
		"nr_zone_inactive_file 6900", fmt.Sprintf("nr_zone_inactive_file %.0f", math.Max(0, 6900-given))))
	f.host.write("proc/meminfo", replaceNumbers(f.meminfo,
		"LowFree:          708004", "LowFree:  "+strconv.Itoa(int(free+dma)*4),
		"MemFree:        2711544", "MemFree:  "+strconv.Itoa(int(free+dma+500885)*4)))

	connections := f.base + half
	table := &Table{Connections: uint64(connections), Templates: uint64(templates)}
	if f.census { // of 2,000 entries, so it is off by a point
		table.HalfOpenShare = new(half / connections * (1 + 0.01*f.random.NormFloat64()))
	}
	if f.counted {
		total := 0.0
		for _, n := range f.born {
			total += n
		}
		table.NewTotal = new(uint64(total))
	}
	return f.monitor.Sample(start.Add(time.Duration(len(f.born))*time.Second), Given{Table: table})
}

func replaceNumbers(text string, pairs ...string) string {
	for i := 0; i < len(pairs); i += 2 {
		text = regexp.MustCompile(regexp.QuoteMeta(pairs[i])).ReplaceAllLiteralString(text, pairs[i+1])
	}
	return text
}

const calm = 20 // seconds before each flood

func constant(rate float64) func(int) float64 {
	return func(second int) float64 {
		if second < calm {
			return 0
		}
		return rate
	}
}

// noisy makes every second's rate another, within a tenth or so.
func noisy(rate func(int) float64) func(int) float64 {
	random := rand.New(rand.NewPCG(1, 2))
	return func(second int) float64 { return rate(second) * (1 + 0.1*random.NormFloat64()) }
}

// At half-way of a constant flood, and from there on until nine tenths of it,
// the moment when memory is gone is foretold within a factor of 1.5.
func TestForecastHalfWay(t *testing.T) {
	tests := []struct {
		name string
		make func(f *flood)
		from float64 // where the flood is held to the factor first; 0: half-way
	}{
		{"70,000 a second", func(f *flood) { f.rate = constant(70_000) }, 0},
		{"100,000 a second", func(f *flood) { f.rate = constant(100_000) }, 0},
		{"300,000 a second, in 12 s", func(f *flood) { f.rate = constant(300_000) }, 0},
		{"noisy", func(f *flood) { f.rate = noisy(constant(90_000)) }, 0},
		{"noisy, without a census", func(f *flood) { f.rate, f.census = noisy(constant(90_000)), false }, 0},
		{"noisy, counted", func(f *flood) { f.rate, f.counted = noisy(constant(90_000)), true }, 0},
		{"many established", func(f *flood) { f.rate, f.base = constant(90_000), 600_000 }, 0},
		{"many established, without a census", func(f *flood) { f.rate, f.base, f.census = constant(90_000), 600_000, false }, 0},
		{"an entry takes more than its slab", func(f *flood) { f.rate, f.perEntry = constant(50_000), 420 }, 0},
		{"persistence: templates outlive the entries", func(f *flood) { f.rate, f.persistent = constant(14_000), true }, 0},
		{"persistence, fast", func(f *flood) { f.rate, f.persistent = constant(60_000), true }, 0},
		// One that grows is foretold too late at first.
		{"ramp", func(f *flood) { f.rate = func(s int) float64 { return math.Max(0, float64(s-calm)) * 4000 } }, 0.6},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFlood(t)
			test.make(f)
			var told []*float64
			for f.refusedAt < 0 && len(f.born) < calm+400 {
				s := f.tick()
				if s.IPVS.Forecast == nil {
					told = append(told, nil)
					continue
				}
				told = append(told, s.IPVS.Forecast.GoneIn)
			}
			if f.refusedAt < 0 {
				t.Fatal("memory is never gone: this tests nothing")
			}
			from := test.from
			if from == 0 {
				from = 0.5
			}
			took := f.refusedAt - calm
			first := calm + int(math.Ceil(float64(took)*from))
			// In the last tenth cache and reserves run out, by rules of their own.
			for second := first; second < calm+took*9/10; second++ {
				left := float64(f.refusedAt - second)
				if told[second] == nil {
					t.Errorf("%d s into the flood, %.0f s before the end: never", second-calm, left)
				} else if factor := *told[second] / left; factor > 1.5 || factor < 1/1.5 {
					t.Errorf("%d s into the flood, %.0f s before the end: %.1f s", second-calm, left, *told[second])
				}
			}
			t.Logf("gone after %d s; at %d s it was to be gone in %.1f s", took, first-calm, *told[first])
		})
	}
}

// A flood that memory is large enough for is not foretold to end it, and the
// size that the table comes to is told.
func TestForecastNever(t *testing.T) {
	tests := []struct {
		name string
		make func(f *flood)
		want float64 // entries
	}{
		{"20,000 a second", func(f *flood) { f.rate = constant(20_000) }, 1_202_000},
		{"noisy", func(f *flood) { f.rate = noisy(constant(20_000)) }, 1_202_000},
		{"noisy, without a census", func(f *flood) { f.rate, f.census = noisy(constant(20_000)), false }, 1_202_000},
		{"many established", func(f *flood) { f.rate, f.base = constant(20_000), 600_000 }, 1_800_000},
		{"persistence", func(f *flood) { f.rate, f.persistent = constant(3_000), true }, 182_000 + 900_000},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFlood(t)
			test.make(f)
			for range calm + 100 {
				s := f.tick()
				into := len(f.born) - calm
				if into < 6 { // until then a flood is told from a hiccup
					continue
				}
				forecast := s.IPVS.Forecast
				if forecast.GoneIn != nil {
					t.Fatalf("%d s into the flood: gone in %.1f s", into, *forecast.GoneIn)
				}
				if factor := forecast.Entries / test.want; factor > 1.15 || factor < 0.85 {
					t.Fatalf("%d s into the flood: %.0f entries, and it comes to %.0f", into, forecast.Entries, test.want)
				}
			}
		})
	}
}

// When a flood ends, the forecast ends with it, at once where new connections
// are counted and within seconds where they are not: no matter that the entries
// stay for a minute.
func TestForecastFloodEnds(t *testing.T) {
	for _, counted := range []bool{false, true} {
		t.Run(fmt.Sprintf("counted %v", counted), func(t *testing.T) {
			f := newFlood(t)
			f.counted = counted
			const last = calm + 20
			f.rate = func(s int) float64 {
				if s < calm || s >= last {
					return 0
				}
				return 100_000
			}
			warned := false
			for range last + 90 {
				s := f.tick()
				after := len(f.born) - last
				gone := s.IPVS.Forecast != nil && s.IPVS.Forecast.GoneIn != nil
				warned = warned || gone
				if gone && after > 6 {
					t.Errorf("%d s after the flood: gone in %.1f s", after, *s.IPVS.Forecast.GoneIn)
				}
				if entries := float64(*s.IPVS.Connections); after > 6 && s.IPVS.Forecast.Entries > 1.1*entries+20_000 {
					t.Errorf("%d s after the flood: %.0f entries, and it comes to %.0f", after, entries, s.IPVS.Forecast.Entries)
				}
			}
			if !warned {
				t.Error("it never warned: this tests nothing")
			}
			if f.refusedAt >= 0 {
				t.Error("memory was gone: this tests nothing")
			}
		})
	}
}

func TestPredict(t *testing.T) {
	const mb = 1e6
	tests := []struct {
		name    string
		in      ForecastInput
		entries float64
		gone    float64 // -1: never
	}{
		{
			"nothing happens",
			ForecastInput{Connections: Flow{Entries: 5000, Lifetime: time.Minute}, Templates: Flow{Lifetime: time.Minute}, BytesPerEntry: 200, FreeBytes: 100 * mb},
			5000, -1,
		},
		{
			"young flood",
			ForecastInput{
				Connections:   Flow{Entries: 100_000, Mortal: 100_000, Growth: 10_000, Lifetime: time.Minute},
				Templates:     Flow{Lifetime: time.Minute},
				BytesPerEntry: 200, FreeBytes: 60 * mb,
			},
			600_000, 30,
		},
		{
			"old flood, in balance",
			ForecastInput{
				Connections:   Flow{Entries: 600_000, Mortal: 600_000, Growth: 0, Lifetime: time.Minute},
				Templates:     Flow{Lifetime: time.Minute},
				BytesPerEntry: 200, FreeBytes: 1 * mb,
			},
			600_000, -1,
		},
		{
			"ended, by the count of new ones",
			ForecastInput{
				Connections:   Flow{Entries: 600_000, Mortal: 500_000, Growth: -3000, New: new(100.0), Lifetime: time.Minute},
				Templates:     Flow{Lifetime: time.Minute},
				BytesPerEntry: 200, FreeBytes: 1 * mb,
			},
			106_000, -1,
		},
		{
			"a count that stands still is no end",
			ForecastInput{
				Connections:   Flow{Entries: 100_000, Mortal: 100_000, Growth: 10_000, New: new(0.0), Lifetime: time.Minute},
				Templates:     Flow{Lifetime: time.Minute},
				BytesPerEntry: 200, FreeBytes: 60 * mb,
			},
			600_000, 30,
		},
		{
			// Connections grow for 10 s more, 100,000; the other 200,000 are
			// templates, of which 100,000 come in those 10 s.
			"templates go on when connections are in balance",
			ForecastInput{
				Connections:   Flow{Entries: 500_000, Mortal: 500_000, Growth: 10_000, Lifetime: time.Minute},
				Templates:     Flow{Entries: 500_000, Mortal: 500_000, Growth: 10_000, Lifetime: 5 * time.Minute},
				BytesPerEntry: 100, FreeBytes: 30 * mb,
			},
			600_000 + 3_000_000, 20,
		},
		{
			"no memory at all",
			ForecastInput{
				Connections:   Flow{Entries: 1000, Mortal: 1000, Growth: 1000, Lifetime: time.Minute},
				Templates:     Flow{Lifetime: time.Minute},
				BytesPerEntry: 200,
			},
			60_000, 0,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := Predict(test.in)
			if math.Abs(f.Entries-test.entries) > 1 || math.Abs(f.Bytes-test.entries*test.in.BytesPerEntry) > 1000 {
				t.Errorf("%.0f entries, %.0f bytes; want %.0f entries", f.Entries, f.Bytes, test.entries)
			}
			switch {
			case test.gone < 0 && f.GoneIn != nil:
				t.Errorf("gone in %.1f s, want never", *f.GoneIn)
			case test.gone >= 0 && (f.GoneIn == nil || math.Abs(*f.GoneIn-test.gone) > 0.01):
				t.Errorf("gone in %v, want %.1f s", f.GoneIn, test.gone)
			}
		})
	}
}

// The table in the list of resources: low memory and the table agree on when
// memory is gone, and come first.
func TestFloodResources(t *testing.T) {
	f := newFlood(t)
	f.rate = constant(100_000)
	var s Sample
	for range calm + 24 {
		s = f.tick()
	}
	low, table := s.Resources[0], s.Resources[1]
	if low.Kind != KindLowMemory || table.Kind != KindIPVS {
		low, table = table, low
	}
	if low.Kind != KindLowMemory || table.Kind != KindIPVS {
		t.Fatalf("the first two are %s and %s", s.Resources[0].Name, s.Resources[1].Name)
	}
	if low.FullIn == nil || table.FullIn == nil || *low.FullIn != *table.FullIn {
		t.Errorf("low memory is gone in %v, the table says %v", low.FullIn, table.FullIn)
	}
	for _, r := range []Resource{low, table} {
		if !strings.HasSuffix(r.Reason, "; at this rate it is full in "+durationText(*r.FullIn)) {
			t.Errorf("%s: %s", r.Name, r.Reason)
		}
	}
}

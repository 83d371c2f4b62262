package pressure

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sampleOf makes a sample of one resource at a share; below 0: unknown.
func sampleOf(name string, share float64) Sample {
	r := Resource{Kind: KindConntrack, Name: name, Reason: "as it is"}
	if share >= 0 {
		r.Share = &share
	}
	return Sample{Resources: []Resource{r}}
}

// A table is filled to 95 % and emptied again: each threshold is told of once,
// and so is the way back.
func TestLevels(t *testing.T) {
	up := func(from, to float64, steps int) []float64 {
		var s []float64
		for i := range steps {
			s = append(s, from+(to-from)*float64(i)/float64(steps))
		}
		return s
	}
	at := func(share float64, seconds int) []float64 { return up(share, share, seconds) }
	join := func(parts ...[]float64) (all []float64) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	tests := []struct {
		name   string
		shares []float64 // second by second
		want   []string
	}{
		{"filled and emptied", join(up(0, 0.95, 20), at(0.95, 30), up(0.95, 0, 10), at(0, 30)),
			[]string{"16 ok warning", "19 warning critical", "62 critical warning", "73 warning ok"}},
		{"filled and emptied at once", join(at(0, 5), at(0.95, 30), at(0.1, 30)),
			[]string{"5 ok critical", "45 critical ok"}},
		{"wavers at the threshold", join(at(0, 3), up(0.74, 0.76, 2), []float64{0.74, 0.76, 0.74, 0.71, 0.76, 0.72}, at(0.73, 60)),
			[]string{"4 ok warning"}},
		{"not low for long enough", join(at(0.8, 3), at(0.5, 9), at(0.8, 1), at(0.5, 9), at(0.8, 5)),
			[]string{"0 ok warning"}},
		{"from critical to between", join(at(0.95, 3), at(0.8, 60)),
			[]string{"0 ok critical", "13 critical warning"}},
		{"unknown is not over", join(at(0.95, 3), at(-1, 60), at(0.95, 3), at(-1, 3), at(0.1, 11)),
			[]string{"0 ok critical", "79 critical ok"}},
		{"never more than ok", join(at(0.1, 5), at(-1, 5), at(0.7, 20)), nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := NewLevels(Thresholds{})
			var got []string
			for second, share := range test.shares {
				for _, c := range l.Evaluate(start.Add(time.Duration(second)*time.Second), sampleOf("conntrack", share)) {
					got = append(got, fmt.Sprint(second, " ", c.From, " ", c.To))
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

// The queue of a socket that was closed while it was full.
func TestLevelsGone(t *testing.T) {
	l := NewLevels(Thresholds{Hold: 5 * time.Second})
	l.Evaluate(start, sampleOf("accept queue 0.0.0.0:80", 1))
	if c := l.Evaluate(start.Add(4*time.Second), Sample{}); c != nil {
		t.Errorf("gone too soon: %v", c)
	}
	c := l.Evaluate(start.Add(5*time.Second), Sample{})
	if len(c) != 1 || c[0].From != LevelCritical || c[0].To != LevelOK || c[0].Kind != KindConntrack {
		t.Errorf("gone: %+v", c)
	}
	if len(l.state) != 0 {
		t.Errorf("it is remembered: %v", l.state)
	}
}

func TestLevelsMark(t *testing.T) {
	l := NewLevels(Thresholds{})
	s := sampleOf("conntrack", 0.95)
	l.Evaluate(start, s)
	s = sampleOf("conntrack", 0.1)
	s.Resources[0].Level = LevelOK
	s.Resources = append([]Resource{{Name: "memory", Level: LevelWarning, Share: new(0.8)}}, s.Resources...)
	l.Evaluate(start.Add(time.Second), s)
	marked := l.Mark(s.Resources)
	if marked[0].Name != "conntrack" || marked[0].Level != LevelCritical {
		t.Errorf("%+v", marked)
	}
	if s.Resources[1].Level != LevelOK {
		t.Error("the sample was changed")
	}
}

// However the share moves: changes are a chain, and one that says ok is followed
// by none that begins elsewhere.
func TestLevelsChain(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	l := NewLevels(Thresholds{})
	level, share, changes := LevelOK, 0.5, 0
	for second := range 20_000 {
		share = min(1, max(0, share+0.1*random.NormFloat64()))
		now := start.Add(time.Duration(second) * time.Second)
		for _, c := range l.Evaluate(now, sampleOf("conntrack", share)) {
			if c.From != level || c.To == level {
				t.Fatalf("%d: it was %s, and goes from %s to %s", second, level, c.From, c.To)
			}
			level = c.To
			changes++
		}
		if want := (Thresholds{}).level(KindConntrack, &share); want.rank() > level.rank() {
			t.Fatalf("%d: it is %s at %v", second, level, share)
		}
	}
	if changes < 100 {
		t.Errorf("only %d changes: this tests nothing", changes)
	}
}

func TestThresholds(t *testing.T) {
	tests := []struct {
		name string
		t    Thresholds
		ok   bool
	}{
		{"usual", Thresholds{}, true},
		{"own", Thresholds{Default: Threshold{0.5, 0.6}, ByKind: map[Kind]Threshold{KindConntrack: {Critical: 0.99}}}, true},
		{"warning above critical", Thresholds{Default: Threshold{Warning: 0.95}}, false},
		{"of one kind", Thresholds{ByKind: map[Kind]Threshold{KindMemory: {Warning: 0.95}}}, false},
		{"per cent", Thresholds{Default: Threshold{75, 90}}, false},
		{"negative", Thresholds{Default: Threshold{Warning: -0.5}}, false},
		{"margin", Thresholds{Margin: 5}, false},
		{"hold", Thresholds{Hold: -time.Second}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if err := test.t.Check(); (err == nil) != test.ok {
				t.Error(err)
			}
		})
	}
	own := Thresholds{ByKind: map[Kind]Threshold{KindConntrack: {Critical: 0.99}}}
	if got := own.level(KindConntrack, new(0.95)); got != LevelWarning {
		t.Errorf("conntrack at 0.95 is %s", got)
	}
	if got := own.level(KindMemory, new(0.95)); got != LevelCritical {
		t.Errorf("memory at 0.95 is %s", got)
	}
}

func TestSortResources(t *testing.T) {
	all := []Resource{
		{Name: "calm", Level: LevelOK, Share: new(0.7)},
		{Name: "unknown", Level: LevelUnknown},
		{Name: "fills", Level: LevelOK, Share: new(0.1), FullIn: new(45.0)},
		{Name: "fills sooner", Level: LevelOK, Share: new(0.05), FullIn: new(20.0)},
		{Name: "fills in hours", Level: LevelOK, Share: new(0.72), FullIn: new(9000.0)},
		{Name: "warning", Level: LevelWarning, Share: new(0.8)},
		{Name: "warning, fuller", Level: LevelWarning, Share: new(0.85)},
		{Name: "critical", Level: LevelCritical, Share: new(0.95)},
		{Name: "critical, fills", Level: LevelCritical, Share: new(0.91), FullIn: new(3.0)},
	}
	SortResources(all)
	var got []string
	for _, r := range all {
		got = append(got, r.Name)
	}
	want := []string{"critical, fills", "critical", "warning, fuller", "warning", "fills sooner", "fills", "unknown", "fills in hours", "calm"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestTexts(t *testing.T) {
	for got, want := range map[string]string{
		bytesText(0): "0 B", bytesText(999): "999 B", bytesText(1000): "1 kB", bytesText(999_700): "1 MB",
		bytesText(853796 << 10): "874 MB", bytesText(25e9): "25 GB", bytesText(3e15): "3000 TB",
		countText(0): "0", countText(999): "999", countText(1000): "1,000", countText(12345678): "12,345,678",
		durationText(7.4): "7 s", durationText(119): "119 s", durationText(600): "10 min", durationText(8e4): "22 h",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Other thresholds move what is held, at the next look and in both directions.
func TestSetThresholds(t *testing.T) {
	h := newHost(t, "host64")
	m := h.monitor()
	levels := NewLevels(Thresholds{})
	level := func(now time.Time) (Level, []Change) {
		s := m.Sample(now, Given{})
		changes := levels.Evaluate(now, s)
		for _, r := range levels.Mark(s.Resources) {
			if r.Kind == KindMemory {
				return r.Level, changes
			}
		}
		t.Fatal("there is no memory")
		return "", nil
	}
	if is, changes := level(start); is != LevelOK || len(changes) != 0 {
		t.Fatalf("at first %s, %v", is, changes)
	}
	low := Thresholds{Default: Threshold{Warning: 0.0001, Critical: 0.9999}, Margin: 0.00001}
	m.SetThresholds(low)
	levels.SetThresholds(low)
	if is, changes := level(start.Add(time.Second)); is != LevelWarning || len(changes) == 0 {
		t.Errorf("with low thresholds %s, %v", is, changes)
	}
	m.SetThresholds(Thresholds{})
	levels.SetThresholds(Thresholds{})
	level(start.Add(2 * time.Second))
	if is, changes := level(start.Add(13 * time.Second)); is != LevelOK || len(changes) == 0 {
		t.Errorf("with the usual ones again %s, %v", is, changes)
	}
}

package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

func TestTell(t *testing.T) {
	for name, r := range fixtures() {
		if name == "hostile" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := Tell(r, time.UTC)
			var b strings.Builder
			fmt.Fprintf(&b, "%s\n%s\n%s\n%s\n\n%s\n", s.Title, s.When, s.Outcome, s.Headline, strings.Join(s.Told, "\n"))
			for _, step := range s.Next {
				fmt.Fprintf(&b, "\n- %s\n", step.Do)
				for _, line := range step.Lines {
					fmt.Fprintf(&b, "    %s\n", line)
				}
			}
			if len(s.Unknown) > 0 {
				fmt.Fprintf(&b, "\nunknown:\n%s\n", strings.Join(s.Unknown, "\n"))
			}
			goldenfile.Check(t, filepath.Join("testdata", name+".golden"), b.String())
		})
	}
}

// What is advised is what would have helped.
func TestNext(t *testing.T) {
	const unchanged = "Nothing needs to change"
	for _, tt := range []struct {
		name   string
		change func(r *incident.Record)
		want   string
	}{
		{"as it was", func(*incident.Record) {}, unchanged},
		{"a restart", func(r *incident.Record) { r.Gaps = []incident.Gap{{From: night, To: *after(2 * time.Second)}} }, unchanged},
		{"a guard that was away", func(r *incident.Record) { r.Gaps = []incident.Gap{{From: night, To: *after(time.Minute)}} }, "No guard ran for 1 min."},
		{"armed by hand, at once", func(r *incident.Record) { r.Actions[2].By = "uid 0, pid 7" }, unchanged},
		{"armed by hand, late", func(r *incident.Record) {
			r.Actions[2].By, r.FirstDrop = "uid 0, pid 7", after(5*time.Minute)
		}, "The drop waited for somebody to type it."},
		{"observed", func(r *incident.Record) {
			r.Actions, r.FirstDrop, r.Totals.Dropped = nil, nil, new(uint64(0))
			for i := range r.Series {
				r.Series[i].Armed = false
			}
		}, "Let the guard drop such a flood by itself"},
		{"half of it unknown to the signatures", func(r *incident.Record) { r.Totals.Suspect = new(uint64(6000000)) }, "Add this signature to the configuration"},
		{"and nothing to know it by", func(r *incident.Record) {
			r.Totals.Suspect = new(uint64(6000000))
			r.Look.Features = r.Look.Features[3:]
		}, "No field of the packets tells the flood from good clients well enough"},
		{"clients hit", func(r *incident.Record) { r.Collateral.Packets = new(uint64(3)) }, "Dropped packets came from addresses that had been clients."},
		{"memory", func(r *incident.Record) { r.Peaks.MemoryShare = new(0.97) }, "Memory came to 97 %."},
		{"clients felt it", func(r *incident.Record) { r.Clients.During.Completion = new(0.6) }, "Clients felt it although it was dropped."},
		{"from one network", func(r *incident.Record) {
			r.Look.Sources.Spoofed = ""
			r.Look.Sources.Prefixes[24] = []incident.Value{shares("198.51.100.0/24", 0.9, 0)}
		}, "90 % of the flood came from 198.51.100.0/24"},
		{"not ended", func(r *incident.Record) { r.Ended = nil }, "See whether it is over."},
		{"only rising", func(r *incident.Record) {
			r.Flooded, r.FirstDrop, r.Totals.Dropped, r.Actions = nil, nil, new(uint64(0)), nil
		}, "it was over before it counted as a flood"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := droppedNight()
			tt.change(r)
			var said []string
			for _, step := range Tell(r, time.UTC).Next {
				said = append(said, step.Do)
			}
			all := strings.Join(said, "\n")
			if !strings.Contains(all, tt.want) {
				t.Errorf("want %q, got:\n%s", tt.want, all)
			}
		})
	}
}

func pageOf(t testing.TB, r *incident.Record) string {
	t.Helper()
	var b bytes.Buffer
	if err := Page(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A report of an hour fits into a mail.
func TestHour(t *testing.T) {
	if page := pageOf(t, anHour()); len(page) > 1<<20 {
		t.Errorf("%d bytes, want at most 1 MiB", len(page))
	}
}

// A record that somebody else wrote makes a page, whatever it says, and no
// element that is not the page's.
func FuzzPage(f *testing.F) {
	for _, r := range fixtures() {
		r.Series = r.Series[58:66]
		if r.Look != nil {
			r.Look.Fields = r.Look.Fields[:1]
		}
		text, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"onset":"9999-12-31T23:59:59Z","ended":"0001-01-01T00:00:00Z","series":[{"time":"0001-01-01T00:00:00Z","seconds":-1e300,"syn":1e300},{"seconds":1e300,"syn":-1}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var r incident.Record
		if json.Unmarshal(text, &r) != nil {
			return
		}
		page := pageOf(t, &r)
		for _, foreign := range []string{"<script", "<img", "ZgotmplZ"} {
			if strings.Contains(page, foreign) {
				t.Errorf("the page has %s in it", foreign)
			}
		}
		for _, line := range Tell(&r, time.UTC).Told {
			if line != Clean(line) {
				t.Errorf("not to be printed: %q", line)
			}
		}
	})
}

// The page of an hour is there within a second.
func BenchmarkHour(b *testing.B) {
	r := anHour()
	b.ReportAllocs()
	for b.Loop() {
		began := time.Now()
		page := pageOf(b, r)
		if took := time.Since(began); took > time.Second {
			b.Errorf("it took %s, want less than 1 s", took)
		}
		b.ReportMetric(float64(len(page))/1024, "KiB")
	}
}

// hostileText is what must come out as nothing but letters.
const hostileText = "\"'><script>document.title='owned'</script><img src=//evil.invalid/x onerror=alert(1)>" +
	"</title></style></svg></pre>{{.}}`;$(reboot)\n- evil: true\x1b[2J\u202e&lt;\x00\ufffd"

// hostile writes hostileText into every text of r.
func hostile(r *incident.Record) {
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + hostileText)
		case reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					walk(v.Field(i))
				}
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Map:
			changed := reflect.MakeMap(v.Type())
			for iter := v.MapRange(); iter.Next(); {
				key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				key.Set(iter.Key())
				value.Set(iter.Value())
				walk(key)
				walk(value)
				changed.SetMapIndex(key, value)
			}
			if v.Len() > 0 {
				v.Set(changed)
			}
		}
	}
	r.Unknown = map[string]string{"clients": "why"}
	walk(reflect.ValueOf(r).Elem())
}

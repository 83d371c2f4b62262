package pressure

import (
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A host is a copy of the files of a host, which a test may change.
type host struct {
	t    testing.TB
	root string
}

// newHost copies a folder of testdata; "" makes a host without any file.
func newHost(t testing.TB, from string) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir()}
	if from != "" {
		if err := os.CopyFS(h.root, os.DirFS(filepath.Join("testdata", from))); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *host) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(name string) string {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.root, name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}

// replace changes a part of a file, which must be there.
func (h *host) replace(name, old, new string) {
	h.t.Helper()
	text := h.read(name)
	if strings.Count(text, old) != 1 {
		h.t.Fatalf("%s has %q %d times", name, old, strings.Count(text, old))
	}
	h.write(name, strings.Replace(text, old, new, 1))
}

// shorten leaves the first words of the first lines of a file, so that it is not
// cut at thousands of bytes that are all alike.
func (h *host) shorten(name string) {
	h.t.Helper()
	var short []string
	for line := range strings.Lines(h.read(name)) {
		words := strings.Fields(line)
		short = append(short, strings.Join(words[:min(len(words), 9)], " ")+"\n")
	}
	h.write(name, strings.Join(short[:8], ""))
}

func (h *host) monitor() *Monitor { return New(Config{Root: h.root, PageSize: 4096}) }

var start = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)

func TestSampleOfHost(t *testing.T) {
	h := newHost(t, "host64")
	m := h.monitor()
	s := m.Sample(start, Given{})
	if len(s.Unknown) > 0 || s.IPVS != nil {
		t.Errorf("unknown %v, IPVS %v", s.Unknown, s.IPVS)
	}
	h.replace("proc/thread-self/net/snmp", "\nUdp: 220 0 ", "\nUdp: 220 300 ")
	h.write("proc/sys/net/netfilter/nf_conntrack_count", "240000\n")
	s = m.Sample(start.Add(2*time.Second), Given{Queues: []Queue{{Address: "0.0.0.0:80", Used: 8, Limit: 8}}})

	var got []string
	for _, r := range s.Resources {
		got = append(got, string(r.Level)+" "+r.Name+": "+r.Reason)
	}
	want := []string{
		"critical accept queue 0.0.0.0:80: 8 of 8 connections; it is full",
		"critical conntrack: 240,000 of 262,144 entries",
		"ok memory: 24.2 GB of 25.3 GB can still be had",
		"ok neighbours IPv6: 20 of 1,024 entries",
		"ok neighbours IPv4: 11 of 1,024 entries",
		"ok TCP orphans: 96 of 131,072 connections",
		"ok TCP memory: 2.36 GB of 2.36 GB can still be had",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	if len(s.Troubles) != 1 || s.Troubles[0].Counter != "UdpNoPorts" || s.Troubles[0].PerSecond != 150 {
		t.Errorf("troubles: %+v", s.Troubles)
	}
}

// TCP takes more than its limit for a while, and an accept queue one more.
func TestSampleOverfull(t *testing.T) {
	h := newHost(t, "host64")
	h.write("proc/sys/net/ipv4/tcp_mem", "1 2 100\n")
	s := h.monitor().Sample(start, Given{Queues: []Queue{{Address: "[::]:80", Used: 9, Limit: 8}}})
	got := []string{s.Resources[0].Name + ": " + s.Resources[0].Reason, s.Resources[1].Name + ": " + s.Resources[1].Reason}
	want := []string{"TCP memory: 0 B of 410 kB can still be had; it is full", "accept queue [::]:80: 9 of 8 connections; it is full"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
}

// A Sample can be written as a line and read back.
func TestSampleJSON(t *testing.T) {
	h := newHost(t, "director32")
	m := h.monitor()
	share := 0.5
	var s Sample
	for i := range 3 {
		s = m.Sample(start.Add(time.Duration(i)*time.Second), Given{Table: &Table{Connections: uint64(i) * 1000, HalfOpenShare: &share}})
	}
	line, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Sample
	if err := json.Unmarshal(line, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(back)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(line), string(again)); diff != "" {
		t.Errorf("written and read back (-want +got):\n%s", diff)
	}
}

// Where nothing can be read, everything is unknown, with a reason, and nothing
// is zero.
func TestSampleOfNothing(t *testing.T) {
	for _, test := range []struct{ name, root string }{
		{"empty", t.TempDir()},
		{"absent", filepath.Join(t.TempDir(), "nowhere")},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := New(Config{Root: test.root})
			s := m.Sample(start, Given{TableUnknown: "netlink says no"})
			if diff := cmp.Diff([]string{"netstat", "snmp", "softnet_stat"}, slices.Sorted(maps.Keys(s.Unknown))); diff != "" {
				t.Errorf("unknown (-want +got):\n%s", diff)
			}
			for _, r := range s.Resources {
				if r.Level != LevelUnknown || r.Used != nil || r.Share != nil || !strings.HasPrefix(r.Reason, "not known: ") {
					t.Errorf("%+v", r)
				}
			}
			if len(s.Resources) != 2 || len(s.Counters) != 0 || s.Conntrack.InUse {
				t.Errorf("%d resources, %d counters, conntrack in use %v", len(s.Resources), len(s.Counters), s.Conntrack.InUse)
			}
			checkReasons(t, s)
		})
	}
}

// checkReasons holds that each null has its reason beside it, and that nothing
// that is known has one.
func checkReasons(t *testing.T, s Sample) {
	t.Helper()
	line, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(line, &all); err != nil {
		t.Fatal(err)
	}
	objects := map[string]any{"memory": all["memory"], "ipvs": all["ipvs"], "conntrack": all["conntrack"]}
	for _, r := range all["resources"].([]any) {
		objects[r.(map[string]any)["name"].(string)] = r
	}
	for name, o := range objects {
		object, ok := o.(map[string]any)
		if !ok {
			continue // no IPVS
		}
		unknown, _ := object["unknown"].(map[string]any)
		for key, v := range object {
			_, explained := unknown[key]
			if key == "full_in_seconds" {
				continue // null too where it does not fill
			}
			if (v == nil) != explained {
				t.Errorf("%s: %s is %v, and unknown says %v", name, key, v, unknown[key])
			}
		}
		for key, reason := range unknown {
			if _, there := object[key]; !there || reason == "" {
				t.Errorf("%s: unknown has %q: %q", name, key, reason)
			}
		}
	}
}

func TestReasons(t *testing.T) {
	for _, from := range []string{"host64", "director32"} {
		h := newHost(t, from)
		m := h.monitor()
		for i := range 6 {
			checkReasons(t, m.Sample(start.Add(time.Duration(i)*time.Second), Given{Table: &Table{Connections: uint64(i) * 30000}}))
		}
	}
}

// Each file cut at every byte: no figure is ever another than in the whole file,
// and what does not come from it stays.
func TestCutFiles(t *testing.T) {
	h := newHost(t, "director32")
	const more = "testdata/host64/proc/"
	for _, folder := range []string{"thread-self", "sys/net/netfilter", "sys/net/ipv4/neigh/default", "sys/net/ipv6"} {
		if err := os.CopyFS(filepath.Join(h.root, "proc", folder), os.DirFS(more+folder)); err != nil {
			t.Fatal(err)
		}
	}
	h.shorten("proc/thread-self/net/snmp")
	h.shorten("proc/thread-self/net/netstat")
	h.shorten("proc/thread-self/net/snmp6")
	h.write("proc/sys/net/ipv4/tcp_mem", "262144 300000 400000\n")
	h.write("proc/sys/net/ipv4/tcp_max_orphans", "131072\n")

	// What each file's reader makes of it.
	f := &files{root: h.root}
	memory := func() any { return readMemory(f, 4096) }
	protocols := func() any {
		var c counters
		return c.read(f, 0, make(map[string]string))
	}
	readers := map[string]func() any{
		"proc/meminfo": memory, "proc/zoneinfo": memory, "proc/vmstat": memory, "proc/pressure": memory,
		"proc/sys/vm": memory, "proc/sys/net/ipv4/vs": memory,
		"proc/thread-self/net/snmp": protocols, "proc/thread-self/net/netstat": protocols,
		"": func() any { return h.monitor().Sample(start, Given{Table: &Table{Connections: 5000}}) },
	}
	err := fs.WalkDir(os.DirFS(h.root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		prefix := ""
		for p := range readers {
			if strings.HasPrefix(name, p) && len(p) > len(prefix) {
				prefix = p
			}
		}
		whole := keyedFigures(t, readers[prefix]())
		if len(whole) == 0 {
			t.Fatalf("%s: there is nothing to compare", name)
		}
		text := h.read(name)
		// A line for each processor, without their number anywhere.
		perCPU := strings.HasSuffix(name, "softnet_stat") || strings.Contains(name, "/stat/")
		lost := 0
		for n := len(text) - 1; n >= 0; n-- {
			if err := os.Truncate(filepath.Join(h.root, name), int64(n)); err != nil {
				return err
			}
			if perCPU && n > 0 && text[n-1] == '\n' {
				continue
			}
			cut := keyedFigures(t, readers[prefix]())
			for key, v := range cut {
				if want, there := whole[key]; there && v != want {
					t.Errorf("%s cut at byte %d: %s is %v, and was %v", name, n, key, v, want)
				}
			}
			lost = max(lost, len(whole)-len(cut))
		}
		// These say nothing in a first sample with a known table.
		silent := []string{"objects", "objs_per_slab", "nf_conntrack"}
		if lost == 0 && !slices.Contains(silent, filepath.Base(name)) {
			t.Errorf("%s: without it nothing is unknown", name)
		}
		h.write(name, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// keyedFigures gathers the figures of a value by their place in its JSON: not the
// words, and not those that have a second source of their own.
func keyedFigures(t *testing.T, v any) map[string]any {
	t.Helper()
	if counters, ok := v.([]Counter); ok {
		flat := make(map[string]any)
		for _, c := range counters {
			flat[c.Name] = c.Total
		}
		return flat
	}
	line, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var object any
	if err := json.Unmarshal(line, &object); err != nil {
		t.Fatal(err)
	}
	flat := make(map[string]any)
	flatten(flat, "", object)
	return flat
}

func flatten(into map[string]any, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if name, ok := v["name"].(string); ok {
			path += name
		}
		if strings.HasSuffix(path, "IPVS connections") || strings.HasSuffix(path, "low memory") {
			return
		}
		for key, v := range v {
			switch key {
			case "unknown", "reason", "level", "what", "free_bytes", "per_entry_bytes", "forecast":
			default:
				flatten(into, path+"."+key, v)
			}
		}
	case []any:
		for _, v := range v {
			flatten(into, path+"[]", v)
		}
	case nil:
	default:
		into[path] = v
	}
}

func TestFiles(t *testing.T) {
	h := newHost(t, "")
	f := &files{root: h.root}
	long := strings.Repeat("0123456789abcde\n", 10_000) // longer than the buffer
	for _, test := range []struct {
		name, text string
		want       string // of the error; empty: it reads
	}{
		{"short", "1\n", ""},
		{"long", long, ""},
		{"empty", "", "cut short"},
		{"cut", "12", "cut short"},
	} {
		h.write(test.name, test.text)
		data, err := f.read(test.name)
		switch {
		case test.want == "" && (err != nil || string(data) != test.text):
			t.Errorf("%s: %d bytes, %v", test.name, len(data), err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if _, err := f.read("absent"); !notThere(err) {
		t.Errorf("absent: %v", err)
	}
	h.write("endless", strings.Repeat("0123456789abcdef", maxFile/16)+"\n")
	if _, err := f.read("endless"); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("endless: %v", err)
	}
	for text, want := range map[string]bool{"": false, "x": false, "1x": false, "-1": false, "18446744073709551615": true, "18446744073709551616": false, "007": true} {
		if n, ok := parseNumber([]byte(text)); ok != want {
			t.Errorf("parseNumber(%q) = %d, %v", text, n, ok)
		}
	}
}

// The whole sample of this machine, without sockets. The figure that matters is
// the processor's time.
func BenchmarkSample(b *testing.B) {
	m := New(Config{})
	share := 0.9
	given := Given{Table: &Table{Connections: 100_000, HalfOpenShare: &share}}
	for i := range 40 {
		given.Queues = append(given.Queues, Queue{Address: "0.0.0.0:" + string(rune('a'+i)), Limit: 128})
	}
	now := start
	for range historyPoints {
		now = now.Add(time.Second)
		m.Sample(now, given)
	}
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		now = now.Add(time.Second)
		m.Sample(now, given)
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N)/1000, "cpu-ms/op")
}

func cpu(t testing.TB) time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

package pressure

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMemory(t *testing.T) {
	// Normal: 173,052 pages free, 3,742 of them below the min watermark. DMA:
	// 3,949 free, 71 below it, 818 kept for those who need DMA. 11,000 pages of
	// cache in Normal, of which the low watermarks, 4,765, stay; 4,800 pages of
	// reclaimable slab, of which half stays.
	const available = 173052 - 3742 + 3949 - 71 - 818 + 11000 - 4765 + 4800 - 2400
	m := readMemory(&files{root: "testdata/director32"}, 4096)
	want := Memory{
		Total: new(uint64(3094868 << 10)), Available: new(uint64(2822380 << 10)),
		Free: new(uint64(2711544 << 10)), Buffers: new(uint64(21480 << 10)),
		LowTotal: new(uint64(853796 << 10)), LowFree: new(uint64(708004 << 10)),
		KernelTotal: new(uint64((3977 + 209472) * 4096)), KernelAvailable: new(uint64(available * 4096)),
		Zones: []Zone{
			{Name: "DMA", Kernel: true, Free: 3949 << 12, Min: 71 << 12, Low: 88 << 12, High: 105 << 12, Managed: 3977 << 12, Kept: 818 << 12},
			{Name: "Normal", Kernel: true, Free: 173052 << 12, Min: 3742 << 12, Low: 4677 << 12, High: 5612 << 12, Managed: 209472 << 12, File: 11000 << 12},
			{Name: "HighMem", Free: 500885 << 12, Min: 128 << 12, Low: 746 << 12, High: 1364 << 12, Managed: 560268 << 12, File: 41146 << 12},
		},
		StallSome: new(0.125), StallFull: new(0.0425), OOMKills: new(uint64(3)),
		DefenceFree: new(uint64((2711544 + 21480) << 10)), DefenceThreshold: new(uint64(1024 << 12)), MinFree: new(uint64(15252 << 10)),
		Unknown: map[string]string{},
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("memory (-want +got):\n%s", diff)
	}
	if !m.highMemory() {
		t.Error("it has no high memory")
	}
}

// On a 64-bit kernel the zones that the kernel can use are all there are, and
// what is available of them is what MemAvailable says, within a hundredth of
// all.
func TestMemory64(t *testing.T) {
	m := readMemory(&files{root: "testdata/host64"}, 4096)
	if m.highMemory() || m.LowTotal != nil || m.KernelAvailable == nil {
		t.Fatalf("%+v", m)
	}
	if off := math.Abs(float64(*m.KernelAvailable) - float64(*m.Available)); off > float64(*m.Total)/100 {
		t.Errorf("%d bytes available of the zones, MemAvailable %d", *m.KernelAvailable, *m.Available)
	}
	var kept []uint64
	for _, z := range m.Zones {
		kept = append(kept, z.Kept/4096)
	}
	if diff := cmp.Diff([]uint64{24088, 21071, 0}, kept); diff != "" {
		t.Errorf("pages kept (-want +got):\n%s", diff)
	}
}

// A kernel that found a zone fragmented raises its watermarks for a while. A
// connection made for a packet does not mind.
func TestMemoryBoosted(t *testing.T) {
	h := newHost(t, "director32")
	want := readMemory(&files{root: h.root}, 4096)
	h.replace("proc/zoneinfo", "boost    0\n        min      3742\n        low      4677\n        high     5612", "boost    100000\n        min      103742\n        low      104677\n        high     105612")
	if diff := cmp.Diff(want, readMemory(&files{root: h.root}, 4096)); diff != "" {
		t.Errorf("not boosted and boosted (-want +got):\n%s", diff)
	}
}

func TestMemoryUnknown(t *testing.T) {
	tests := []struct {
		name string
		edit func(h *host)
		key  string // unknown
		why  string
	}{
		{"no zoneinfo", func(h *host) { os.Remove(h.root + "/proc/zoneinfo") }, "kernel_available_bytes", "no such file"},
		{"a node is missing", func(h *host) { h.replace("proc/zoneinfo", "managed  560268", "managed  60268") }, "zones", "add up to less"},
		{"a zone without a watermark", func(h *host) { h.replace("proc/zoneinfo", "low      4677", "other    4677") }, "zones", "zone Normal: figures are missing"},
		{"a node without its end", func(h *host) { h.replace("proc/zoneinfo", " Movable", "   Other") }, "zones", "no zone Movable"},
		{"nonsense in zoneinfo", func(h *host) { h.write("proc/zoneinfo", "what is this\n") }, "zones", "names no zone"},
		{"no pressure-stall information", func(h *host) { os.RemoveAll(h.root + "/proc/pressure") }, "stall_full_share", "no such file"},
		{"no OOM counter", func(h *host) { h.write("proc/vmstat", "pgfault 1\n") }, "oom_kills", "needs Linux 4.13"},
		{"no MemAvailable", func(h *host) { h.replace("proc/meminfo", "MemAvailable:", "MemAvailuble:") }, "available_bytes", "no MemAvailable"},
		{"a word for a number", func(h *host) { h.replace("proc/meminfo", "MemFree:         2711544", "MemFree:         many") }, "defence_free_bytes", "not known"},
		{"IPVS is not there", func(h *host) { os.RemoveAll(h.root + "/proc/sys/net") }, "defence_threshold_bytes", "no such file"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t, "director32")
			test.edit(h)
			m := readMemory(&files{root: h.root}, 4096)
			if !strings.Contains(m.Unknown[test.key], test.why) {
				t.Errorf("unknown: %v", m.Unknown)
			}
			line, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(line), `"`+test.key+`":null`) {
				t.Errorf("%s is not null: %s", test.key, line)
			}
			if m.Total == nil {
				t.Error("MemTotal is not known any more")
			}
		})
	}
}

// What can be known of low memory without zoneinfo.
func TestLowMemoryWithoutZones(t *testing.T) {
	h := newHost(t, "director32")
	if err := os.Remove(h.root + "/proc/zoneinfo"); err != nil {
		t.Fatal(err)
	}
	s := h.monitor().Sample(start, Given{Table: &Table{Connections: 1000}})
	if got := s.IPVS.FreeBytes; got == nil || *got != 708004<<10 {
		t.Errorf("the table can take %v, want LowFree", got)
	}
	for _, r := range s.Resources {
		if r.Kind == KindLowMemory && (r.Used == nil || *r.Used != (853796-708004)<<10) {
			t.Errorf("low memory: %+v", r)
		}
	}
}

// What free says at the same instant.
func TestMemoryAgreesWithFree(t *testing.T) {
	free, err := exec.LookPath("free")
	if err != nil {
		unprivilegedOnly(t, "there is no free (Debian: procps)")
	}
	before := readMemory(&files{root: "/"}, 4096)
	out, err := exec.Command(free, "--bytes").Output()
	if err != nil {
		t.Fatal(err)
	}
	after := readMemory(&files{root: "/"}, 4096)
	// "Mem: total used free shared buff/cache available"
	var words []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "Mem:") {
			words = strings.Fields(line)
		}
	}
	if len(words) != 7 {
		t.Fatalf("free says:\n%s", out)
	}
	for _, figure := range []struct {
		name          string
		word          string
		before, after *uint64
	}{
		{"total", words[1], before.Total, after.Total},
		{"free", words[3], before.Free, after.Free},
		{"available", words[6], before.Available, after.Available},
	} {
		theirs, err := strconv.ParseUint(figure.word, 10, 64)
		if err != nil || figure.before == nil || figure.after == nil {
			t.Fatalf("%s: free says %q, ours %v, %v", figure.name, figure.word, figure.before, figure.after)
		}
		// Memory moves meanwhile; by a hundredth of all it does not.
		slack := *before.Total / 100
		low, high := min(*figure.before, *figure.after), max(*figure.before, *figure.after)
		if theirs+slack < low || theirs > high+slack {
			t.Errorf("%s: free says %d, ours %d and then %d", figure.name, theirs, *figure.before, *figure.after)
		}
	}
}

// unprivilegedOnly skips a test, except in the run that must have what is
// missing.
func unprivilegedOnly(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("LVSGUARD_PRIVILEGED") == "1" {
		t.Fatalf("%s (this run must have it)", why)
	}
	t.Skip(why)
}

func FuzzMeminfo(f *testing.F) {
	for _, from := range []string{"host64", "director32"} {
		data, err := os.ReadFile("testdata/" + from + "/proc/meminfo")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := Memory{Unknown: make(map[string]string)}
		m.meminfo(data)
		if (m.Total == nil) != (m.Unknown["total_bytes"] != "") {
			t.Errorf("MemTotal %v, unknown %v", m.Total, m.Unknown)
		}
	})
}

func FuzzZones(f *testing.F) {
	for _, from := range []string{"host64", "director32"} {
		data, err := os.ReadFile("testdata/" + from + "/proc/zoneinfo")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	const zone = "Node 0, zone Normal\n  pages free 9\n min 1\n low 2\n high 3\n managed 10\n protection: (0, 1)\n nr_zone_inactive_file 1\n nr_zone_active_file 1\n"
	f.Add([]byte(zone + "Node 0, zone Movable\n  pages free 0\n managed 0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		zones, err := parseZones(data, 4096)
		if err != nil {
			return
		}
		m := Memory{Unknown: make(map[string]string)}
		m.zones(zones, new(uint64(0)))
		for _, z := range zones {
			if z.Managed == 0 || z.Name == "" {
				t.Errorf("%+v", z)
			}
		}
		if m.KernelAvailable != nil && *m.KernelAvailable > *m.KernelTotal {
			t.Errorf("%d of %d bytes available", *m.KernelAvailable, *m.KernelTotal)
		}
	})
}

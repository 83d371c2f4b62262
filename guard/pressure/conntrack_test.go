package pressure

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/internal/netns"
)

const conntrackHeader = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n"

func conntrackCPU(insertFailed, drop, earlyDrop string) string {
	return "000003e8 00000000 00000003 00000000 00000000 00000000 00000000 00000000 00000000 " +
		insertFailed + " " + drop + " " + earlyDrop + " 00000000  00000000 00000000 00000000 00000000\n"
}

func TestConntrack(t *testing.T) {
	h := newHost(t, "")
	f := &files{root: h.root}
	var r conntrackReader
	if c := r.read(f, time.Second); c.InUse || c.Entries != nil || !strings.HasPrefix(c.Unknown["entries"], "not in use") {
		t.Fatalf("where there is none: %+v", c)
	}

	h.write("proc/sys/net/netfilter/nf_conntrack_count", "950\n")
	h.write("proc/sys/net/netfilter/nf_conntrack_max", "1000\n")
	const stat = "proc/thread-self/net/stat/nf_conntrack"
	h.write(stat, conntrackHeader+conntrackCPU("00000001", "ffffffff", "00000000")+conntrackCPU("00000000", "00000010", "0000000a"))
	c := r.read(f, time.Second)
	if !c.InUse || *c.Entries != 950 || *c.Limit != 1000 || c.Unknown["drops_per_second"] != firstReading {
		t.Fatalf("first: %+v", c)
	}

	h.write(stat, conntrackHeader+conntrackCPU("00000005", "00000009", "00000000")+conntrackCPU("00000000", "00000010", "0000001e"))
	want := Conntrack{
		InUse: true, Entries: new(uint64(950)), Limit: new(uint64(1000)),
		Drops: new(5.0), InsertFailed: new(2.0), EarlyDrops: new(10.0), Unknown: map[string]string{},
	}
	if diff := cmp.Diff(want, r.read(f, 2*time.Second)); diff != "" {
		t.Errorf("two seconds later (-want +got):\n%s", diff)
	}

	for name, text := range map[string]string{
		"a processor less":   conntrackHeader + conntrackCPU("00000005", "00000009", "00000000"),
		"no such column":     strings.Replace(conntrackHeader, "early_drop", "late_drop", 1) + conntrackCPU("0", "0", "0"),
		"a word":             conntrackHeader + conntrackCPU("zero", "0", "0"),
		"a line that is cut": conntrackHeader + "000003e8 00000000\n",
		"no processor":       conntrackHeader,
	} {
		h.write(stat, text)
		if c := r.read(f, time.Second); c.Drops != nil || c.Unknown["drops_per_second"] == "" || c.Entries == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// The columns are found by their names: another kernel may have more.
func TestColumnsByName(t *testing.T) {
	c, err := parseColumns([]byte("new drop entries\n1 a 64\n2 b 64 7\n"), []string{"drop", "entries"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]uint64{{10, 100}, {11, 100}}, c); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
}

// What conntrack -C says at the same instant.
func TestConntrackAgreesWithTool(t *testing.T) {
	if _, err := exec.LookPath("conntrack"); err != nil {
		unprivilegedOnly(t, "there is no conntrack (Debian: conntrack)")
	}
	h := netns.New(t)
	if _, err := h.Try(t, "table ip t { chain c { type filter hook input priority 0; ct state new accept; }; }", "nft", "-f", "-"); err != nil {
		unprivilegedOnly(t, "this kernel does not follow connections by nft")
	}
	for port := 2000; port < 2007; port++ {
		h.Run(t, "bash", "-c", "echo x > /dev/udp/127.0.0.1/"+strconv.Itoa(port))
	}
	var c Conntrack
	h.Do(t, func() {
		var r conntrackReader
		c = r.read(&files{root: "/"}, 0)
	})
	theirs, err := strconv.ParseUint(strings.TrimSpace(h.Run(t, "conntrack", "-C")), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if theirs < 7 || c.Entries == nil || *c.Entries != theirs {
		t.Errorf("conntrack says %d, ours %v", theirs, c.Entries)
	}
}

func FuzzColumns(f *testing.F) {
	for _, name := range []string{"nf_conntrack", "arp_cache"} {
		data, err := os.ReadFile("testdata/host64/proc/thread-self/net/stat/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseColumns(data, []string{"entries", "drop"})
		if err == nil && (len(c) == 0 || len(c[0]) != 2) {
			t.Errorf("%v", c)
		}
	})
}

func FuzzSoftnet(f *testing.F) {
	data, err := os.ReadFile("testdata/host64/proc/thread-self/net/softnet_stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if cpus, err := parseSoftnet(data); err == nil && len(cpus) > len(data)/5 && len(data) > 0 {
			t.Errorf("%d processors in %d bytes", len(cpus), len(data))
		}
	})
}

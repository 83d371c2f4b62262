package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"github.com/lvsguard/lvsguard/internal/goldenfile"
	"github.com/lvsguard/lvsguard/internal/netns"
)

// TestSampleLayout compares the chains that sample with goldens.
func TestSampleLayout(t *testing.T) {
	for name, cfg := range configurations {
		l := newLayout(cfg)
		var texts []string
		for _, w := range ways() {
			texts = append(texts, State{Chains: chainsOf(l.sample(Sampling{Queue: 5, Rate: defaultSampleRate}, w))}.text())
		}
		goldenfile.Check(t, "testdata/sample_"+name+".nft", strings.Join(texts, ""))
	}
}

func sample(t testing.TB, table *Table, s Sampling) Way {
	t.Helper()
	way, err := table.Sample(s)
	if err != nil {
		t.Fatal(err)
	}
	return way
}

// TestSampleListing compares what we list with what nft lists.
func TestSampleListing(t *testing.T) {
	for name, cfg := range configurations {
		t.Run(name, func(t *testing.T) {
			h := netns.New(t)
			table := open(t, h, cfg)
			ensure(t, table, services("192.0.2.1:80"))
			way := sample(t, table, Sampling{Queue: 5})
			var ours strings.Builder
			if err := table.Listing(&ours); err != nil {
				t.Fatal(err)
			}
			theirs := h.Run(t, "nft", "list", "table", "inet", "lvsguard")
			mine := asListed(ours.String())
			if way == ByCompat { // of which nft lists nothing, or that there is something
				mine = strings.ReplaceAll(mine, "# -j NFQUEUE --queue-num 5 --queue-bypass", "")
				theirs = strings.ReplaceAll(theirs, "# xt_NFQUEUE", "")
			}
			if diff := cmp.Diff(asListed(theirs), mine); diff != "" {
				t.Errorf("listing (-nft +ours):\n%s", diff)
			}
			if _, err := netns.New(t).Try(t, ours.String(), "nft", "-c", "-f", "-"); err != nil && way == ByCompat {
				t.Error(err)
			}
		})
	}
}

// TestSample begins and ends to sample, in a table that works: whatever becomes
// of the sample, counters and leases are what they were.
func TestSample(t *testing.T) {
	s := newSite(t)
	watched := services("192.0.2.1:80", "192.0.2.2:0", "[2001:db8::1]:443")
	lease := map[netip.AddrPort]time.Duration{watched[0]: time.Minute}
	table := open(t, s.director, Config{})
	if _, err := table.Sample(Sampling{Queue: 5}); !errors.Is(err, ErrAbsent) {
		t.Errorf("sample before Ensure: %v, want ErrAbsent", err)
	}
	ensure(t, table, watched)
	if err := table.Arm(lease); err != nil {
		t.Fatal(err)
	}
	var want int
	// works checks that a packet is counted once and dropped, and that the sample
	// is there or not.
	works := func(when string, sampled bool) {
		t.Helper()
		if err := s.wire.Send(frame{src: "198.51.100.7", dst: "192.0.2.1", dport: 80}.build(false)); err != nil {
			t.Fatal(err)
		}
		want++
		c, err := table.Counters()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := c.summary(), fmt.Sprintf("192.0.2.1:80: syn %d/%d, window0 %[1]d/%[2]d, dropped %[1]d/%[2]d", want, 40*want); got != want {
			t.Errorf("%s: counted %q, want %q", when, got, want)
		}
		armed(t, table, lease)
		if err := table.Check(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		state, err := table.State()
		if err != nil {
			t.Fatal(err)
		}
		if got := len(state.sampleChains()) > 0; got != sampled {
			t.Errorf("%s: sampled: %t", when, got)
		}
	}
	again := func(when string, want Change) {
		t.Helper()
		if changed := ensure(t, table, watched); changed.Change != want {
			t.Errorf("%s: ensure: %+v, want %s", when, changed, want)
		}
	}
	works("before", false)
	sample(t, table, Sampling{Queue: 5})
	works("sampling", true)
	sample(t, table, Sampling{Queue: 6, Rate: 10})
	works("to another queue", true)
	before, err := table.kernel.generation()
	if err != nil {
		t.Fatal(err)
	}
	sample(t, table, Sampling{Queue: 6, Rate: 10})
	if after, err := table.kernel.generation(); err != nil || after != before {
		t.Errorf("the same again was a change: %v", err)
	}
	again("sampling", Unchanged)

	for _, nft := range []string{
		"flush chain inet lvsguard sample",
		"insert rule inet lvsguard sample drop",
		"add chain inet lvsguard sample_more; add rule inet lvsguard sample_more goto sample_queue",
		"flush chain inet lvsguard sample; flush chain inet lvsguard sample_syn; delete chain inet lvsguard sample_queue",
	} {
		s.director.Run(t, "nft", nft)
		if err := table.Check(); !errors.Is(err, ErrAltered) {
			t.Errorf("%s: check: %v, want ErrAltered", nft, err)
		}
		again(nft, Updated)
		works(nft+", mended", false)
		sample(t, table, Sampling{Queue: 6, Rate: 10})
		works(nft+", sampling again", true)
	}
	s.director.Run(t, "nft", "insert rule inet lvsguard suspect4any accept")
	again("altered", Replaced)
	works("replaced", false)
	sample(t, table, Sampling{Queue: 6})
	works("replaced, sampling again", true)

	table = open(t, s.director, Config{})
	again("after a restart", Adopted)
	works("after a restart", false)
	sample(t, table, Sampling{})
	for range 2 {
		if err := table.Unsample(); err != nil {
			t.Fatal(err)
		}
		works("ended", false)
	}
}

// TestSampleRefused has a kernel that cannot do it: the table stays as it is, and
// the error tells what is missing.
func TestSampleRefused(t *testing.T) {
	s := newSite(t)
	table := open(t, s.director, Config{})
	watched := services("192.0.2.1:80")
	ensure(t, table, watched)
	if err := s.wire.Send(frame{src: "198.51.100.7", dst: "192.0.2.1", dport: 80}.build(false)); err != nil {
		t.Fatal(err)
	}
	before, err := table.State()
	if err != nil {
		t.Fatal(err)
	}
	lacking := way{name: "none", queue: func(uint16) []expr.Any {
		info := make(xt.Unknown, 8)
		return []expr.Any{&expr.Target{Name: "NOSUCH", Info: &info}}
	}}
	table.ways = []way{lacking}
	if _, err := table.Sample(Sampling{Queue: 5}); err == nil || !strings.Contains(err.Error(), "nft_queue") {
		t.Errorf("sample: %v, want an error that names nft_queue", err)
	}
	after, err := table.State()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before.text(), after.text()); diff != "" {
		t.Errorf("it changed the table:\n%s", diff)
	}
	if changed := ensure(t, table, watched); changed.Change != Unchanged {
		t.Errorf("ensure: %+v", changed)
	}
	table.ways = append(table.ways, ways()...)
	sample(t, table, Sampling{Queue: 5})
}

// BenchmarkSample measures how long it takes to begin and to end.
func BenchmarkSample(b *testing.B) {
	table := open(b, netns.New(b), Config{})
	ensure(b, table, services("192.0.2.1:80"))
	for b.Loop() {
		sample(b, table, Sampling{Queue: 5})
		if err := table.Unsample(); err != nil {
			b.Fatal(err)
		}
	}
}

package nft

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/internal/goldenfile"
	"github.com/lvsguard/lvsguard/internal/netns"
)

// configurations are those whose layouts are goldens.
var configurations = map[string]Config{
	"default": {Signatures: DefaultSignatures()},
	"full": {
		Signatures: []Signature{
			{Name: "window0", Window: &Range{0, 0}, Length: &Range{40, 40}},
			{Name: "odd", Window: &Range{1, 1024}, TTL: &Range{200, 255}, Options: NoOptions, Ports: []Range{{80, 80}, {8000, 8080}}},
			{Name: "short", Length: &Range{41, 60}, TTL: &Range{64, 64}},
		},
		Allow: []netip.Prefix{
			netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"),
			netip.MustParsePrefix("11.0.0.0/8"), netip.MustParsePrefix("255.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32"),
			netip.MustParsePrefix("::ffff:198.51.100.0/120"), netip.MustParsePrefix("ffff::/16"),
		},
	},
	"everyone": {
		Signatures: []Signature{},
		Allow:      []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
	},
}

// TestLayout compares layouts with goldens, as nft text.
func TestLayout(t *testing.T) {
	for name, cfg := range configurations {
		goldenfile.Check(t, "testdata/"+name+".nft", newLayout(cfg).state().text())
	}
}

// asListed makes the same of nft's listing and ours: versions of nft differ in
// these, and time goes on between the two.
func asListed(text string) string {
	for _, same := range []struct{ from, to string }{
		{"priority raw - 10;", "priority -310;"},
		{"& 16383", "& 0x3fff"},
		{"& 8191", "& 0x1fff"},
		{"tcp flags & (fin | syn | rst | ack) != syn", "tcp flags != syn / fin,syn,rst,ack"},
	} {
		text = strings.ReplaceAll(text, same.from, same.to)
	}
	text = regexp.MustCompile(`expires \w+`).ReplaceAllString(text, "expires …")
	// nft breaks lines in other places and sorts keys by their last part first.
	return regexp.MustCompile(`(?s)elements = \{ [^}]*`).ReplaceAllStringFunc(text, func(elements string) string {
		parts := regexp.MustCompile(`,\s+`).Split(strings.TrimSpace(strings.TrimPrefix(elements, "elements = { ")), -1)
		slices.Sort(parts)
		return "elements = { " + strings.Join(parts, ", ") + " "
	})
}

// TestListing compares what we list with what nft lists, and gives ours back
// to nft.
func TestListing(t *testing.T) {
	for name, cfg := range configurations {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			table := open(t, s.director, cfg)
			watched := services("192.0.2.1:80", "192.0.2.2:0", "[2001:db8::1]:443", "[2001:db8::2]:0", "192.0.2.1:443", "192.0.2.10:80")
			ensure(t, table, watched)
			if err := table.Arm(map[netip.AddrPort]time.Duration{watched[0]: 90 * time.Minute, watched[1]: 90500 * time.Millisecond, watched[3]: defaultLease}); err != nil {
				t.Fatal(err)
			}
			for _, f := range []frame{{src: "198.51.100.7", dst: "192.0.2.1", dport: 80}, {src: "2001:db8:f::1", dst: "2001:db8::1", dport: 443}} {
				if err := s.wire.Send(f.build(false)); err != nil {
					t.Fatal(err)
				}
			}
			var ours strings.Builder
			if err := table.Listing(&ours); err != nil {
				t.Fatal(err)
			}
			theirs := s.director.Run(t, "nft", "list", "table", "inet", "lvsguard")
			if diff := cmp.Diff(asListed(theirs), asListed(ours.String())); diff != "" {
				t.Errorf("listing (-nft +ours):\n%s", diff)
			}
			state, err := table.State()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(newLayout(cfg).state().structure(), state.structure()); diff != "" {
				t.Errorf("structure (-layout +kernel):\n%s", diff)
			}

			// nft takes it back, though it writes some rules in another order,
			// and what it makes of it keeps the leases.
			other := netns.New(t)
			if _, err := other.Try(t, ours.String(), "nft", "-c", "-f", "-"); err != nil {
				t.Error(err)
			}
			if _, err := other.Try(t, ours.String(), "nft", "-f", "-"); err != nil {
				t.Fatal(err)
			}
			if changed := ensure(t, open(t, other, cfg), watched); changed.Leases != 3 {
				t.Errorf("ensure on what nft made of our listing: %+v", changed)
			}
		})
	}
}

func TestForeignRules(t *testing.T) {
	h := netns.New(t)
	table := open(t, h, Config{})
	ensure(t, table, services("192.0.2.1:80"))
	for _, rule := range []string{
		"prerouting tcp dport 22 counter drop",
		"prerouting meta mark 5 accept",
		"prerouting udp dport 53 drop",
		"prerouting ip daddr != @service4any accept",
		"prerouting tcp flags syn accept",
		"suspect4 ip saddr 192.0.2.7 drop",
	} {
		h.Run(t, "nft", "add rule inet lvsguard "+rule)
	}
	state, err := table.State()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, c := range state.Chains {
		for _, r := range c.Rules {
			if r.Foreign {
				got.WriteString(c.Name + ": " + r.Text + "\n")
			}
		}
	}
	goldenfile.Check(t, "testdata/foreign.txt", got.String())
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Millisecond: "1ms", 9992 * time.Millisecond: "9s992ms", time.Minute: "1m",
		24*time.Hour + time.Second: "1d1s", 90 * time.Minute: "1h30m",
	} {
		if got := duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

package handshake

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/capture"
)

func TestParseFilter(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, tt := range []struct {
		text string
		want Filter
	}{
		// These are as tcpeek's manual has them.
		{"filter:RX@%:80:443", Filter{Name: "filter", Rules: []Rule{{In, netip.Prefix{}, []Ports{{80, 80}, {443, 443}}}}}},
		{"filter:TX@192.168.0.0/24:%", Filter{Name: "filter", Rules: []Rule{{Out, prefix("192.168.0.0/24"), []Ports{{0, 65535}}}}}},
		{"filter:TX@192.168.0.1:80:443:8080,192.168.0.2:80,192.168.0.3:80:8080", Filter{Name: "filter", Rules: []Rule{
			{Out, prefix("192.168.0.1/32"), []Ports{{80, 80}, {443, 443}, {8080, 8080}}},
			{Out, prefix("192.168.0.2/32"), []Ports{{80, 80}}},
			{Out, prefix("192.168.0.3/32"), []Ports{{80, 80}, {8080, 8080}}},
		}}},
		{":RX@*:22", Filter{Rules: []Rule{{In, netip.Prefix{}, []Ports{{22, 22}}}}}},
		// And these are ours.
		{"shop/api:out@[2001:db8::1]:443", Filter{Name: "shop/api", Project: "shop", Rules: []Rule{{Out, prefix("2001:db8::1/128"), []Ports{{443, 443}}}}}},
		{"six:in@[2001:db8::/32]:80,[2001:db9::]/32:81", Filter{Name: "six", Rules: []Rule{
			{In, prefix("2001:db8::/32"), []Ports{{80, 80}}}, {In, prefix("2001:db9::/32"), []Ports{{81, 81}}}}}},
		{"range:any@*:8000-8099", Filter{Name: "range", Rules: []Rule{{Any, netip.Prefix{}, []Ports{{8000, 8099}}}}}},
		{"ports:in@192.0.2.77/24", Filter{Name: "ports", Rules: []Rule{{In, prefix("192.0.2.0/24"), nil}}}},
		{"six:in@[2001:db8::1]", Filter{Name: "six", Rules: []Rule{{In, prefix("2001:db8::1/128"), nil}}}},
	} {
		got, err := ParseFilter(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
		} else if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", tt.text, diff)
		}
	}
}

func TestParseFilterErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "no colon after the name",
		"web":                      "no colon after the name",
		"web:80":                   "no @ after the direction",
		"web:UP@*:80":              `direction "UP"`,
		"web:in@":                  `address ""`,
		"web:in@host:80":           `address "host"`,
		"web:in@192.0.2.0/33":      `prefix "192.0.2.0/33"`,
		"web:in@*:":                `port ""`,
		"web:in@*:80:http":         `port "http"`,
		"web:in@*:65536":           `port "65536"`,
		"web:in@*:90-80":           `port "90-80"`,
		"web:in@[::1:80":           "no ] after the address",
		"web:in@[::1]80":           "want a colon after the ]",
		"web:in@*:80,":             `address ""`,
		"web:in@fe80::1%eth0":      `address "fe80"`,
		"web:in@[fe80::1%eth0]:80": `address "fe80::1%eth0"`,
	} {
		_, err := ParseFilter(text)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "as in http:in@%:80:443") {
			t.Errorf("%q: got %v, want an error with %q and the syntax", text, err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	named := func(names ...string) (c Choice) {
		for _, n := range names {
			c.Filters = append(c.Filters, Filter{Name: n})
		}
		return c
	}
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for want, c := range map[string]Choice{
		"":                 named("a", "b", "", ""),
		"two of that name": named("a", "b", "a"),
		"is always there":  named("all"),
		"at most 64":       named(many...),
	} {
		if err := c.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// What each filter counts of the same attempts.
func TestChoice(t *testing.T) {
	at := netip.MustParseAddrPort
	local := map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true, netip.MustParseAddr("2001:db8::1"): true}
	filter := func(text string) Filter {
		f, err := ParseFilter(text)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	attempts := [][2]netip.AddrPort{
		{at("198.51.100.7:1000"), at("192.0.2.1:80")},        // in
		{at("198.51.100.8:1000"), at("192.0.2.1:443")},       // in
		{at("[2001:db8:7::7]:1000"), at("[2001:db8::1]:80")}, // in, IPv6
		{at("192.0.2.1:1000"), at("198.51.100.7:80")},        // out
		{at("198.51.100.7:1000"), at("198.51.100.8:80")},     // passes by
		{at("198.51.100.9:1000"), at("192.0.2.1:22")},        // left out
	}
	choice := Choice{
		Filters: []Filter{
			filter("in:in@*"), filter("out:out@*"), filter("any:any@*"),
			filter("peer:in@198.51.100.7,198.51.100.7,198.51.100.0/24:80"), // three rules match one attempt
			filter("out-peer:out@198.51.100.7:80"),
			filter("any-peer:any@198.51.100.8"),
			filter("six:in@[2001:db8:7::]/48:80"),
			filter(":any@*:22"),
		},
		Services: []Service{
			{Name: "web", Addresses: []netip.AddrPort{at("192.0.2.1:80"), at("[2001:db8::1]:80")}},
			{Name: "rest", Addresses: []netip.AddrPort{at("192.0.2.1:0")}},
		},
	}
	counts := func(tracker *Tracker) string {
		var parts []string
		for _, f := range tracker.Snapshot(Both) {
			parts = append(parts, fmt.Sprintf("%s %d", f.Name, f.Attempts))
		}
		return strings.Join(parts, ", ")
	}
	feed := func(tracker *Tracker) {
		for _, a := range attempts {
			tracker.Observe(0, []capture.Segment{seg(0, a[0], a[1], "S", 1, 0)})
		}
	}
	choice.Local = func(a netip.Addr) bool { return local[a] }
	tracker := newTracker(t, Config{Choice: choice})
	feed(tracker)
	want := "all 5, in 3, out 1, any 5, peer 1, out-peer 1, any-peer 2, six 1, web 2, rest 1"
	if got := counts(tracker); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	// Where it is not known what is local, a direction tells nothing.
	choice.Local = nil
	tracker = newTracker(t, Config{Choice: choice})
	feed(tracker)
	want = "all 5, in 5, out 5, any 5, peer 2, out-peer 1, any-peer 2, six 1, web 2, rest 1"
	if got := counts(tracker); got != want {
		t.Errorf("not known what is local:\ngot  %s\nwant %s", got, want)
	}

	// A change keeps the figures of what stays, and pending attempts theirs.
	next := Choice{Filters: []Filter{choice.Filters[2], filter("new:any@*")}, Services: choice.Services[1:]}
	if err := tracker.SetChoice(next); err != nil {
		t.Fatal(err)
	}
	if got, want := counts(tracker), "all 5, any 5, new 0, rest 1"; got != want {
		t.Errorf("after a change:\ngot  %s\nwant %s", got, want)
	}
	a := attempts[1]
	tracker.Observe(0, []capture.Segment{seg(.1, a[0], a[1], "A", 2, 1), seg(.2, a[0], a[1], "S", 9, 0)})
	if got, want := counts(tracker), "all 6, any 6, new 1, rest 2"; got != want {
		t.Errorf("and more:\ngot  %s\nwant %s", got, want)
	}
	if rest := tracker.Snapshot(Both)[3]; rest.Success.Total != 1 {
		t.Errorf("the pending attempt's success is lost: %s", told(rest))
	}
}

func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{"filter:RX@%:80:443", "a/b:out@[2001:db8::]/32:1-2,*", ":any@::", "x:in@[::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		filter, err := ParseFilter(s)
		if err == nil && len(filter.Rules) == 0 {
			t.Errorf("%q is a filter without rules", s)
		}
	})
}

package nft

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// dumped is a message as the kernel writes it for a set.
func dumped(t testing.TB, elements ...[]netlink.Attribute) []byte {
	t.Helper()
	marshal := func(a []netlink.Attribute) []byte {
		b, err := netlink.MarshalAttributes(a)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var list []netlink.Attribute
	for _, e := range elements {
		list = append(list, netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: marshal(e)})
	}
	return append([]byte{1, 0, 0, 0}, marshal([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte("lvsguard\x00")},
		{Type: unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED, Data: marshal(list)},
	})...)
}

func keyAttribute(t testing.TB, key []byte) netlink.Attribute {
	t.Helper()
	b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: key}})
	if err != nil {
		t.Fatal(err)
	}
	return netlink.Attribute{Type: unix.NFTA_SET_ELEM_KEY | unix.NLA_F_NESTED, Data: b}
}

var ms = []byte{0, 0, 0, 0, 0, 0, 0x03, 0xe8} // 1000

func TestDecode(t *testing.T) {
	armed4 := setSpec{role: roleArmed, family: ipv4}
	got, err := armed4.appendElements(nil, dumped(t,
		[]netlink.Attribute{keyAttribute(t, []byte{192, 0, 2, 1, 0, 80, 0, 0}), {Type: unix.NFTA_SET_ELEM_EXPIRATION, Data: ms}},
		[]netlink.Attribute{keyAttribute(t, []byte{192, 0, 2, 1, 1, 187, 0, 0}), {Type: unix.NFTA_SET_ELEM_USERDATA, Data: userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, "x")}},
	))
	want := []Element{
		{Service: netip.MustParseAddrPort("192.0.2.1:80"), Expires: time.Second},
		{Service: netip.MustParseAddrPort("192.0.2.1:443")},
	}
	same := cmp.Comparer(func(a, b Element) bool { return a == b })
	if diff := cmp.Diff(want, got, same); diff != "" || err != nil {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	for name, bad := range map[string][]byte{
		"nothing":         {},
		"no key":          dumped(t, []netlink.Attribute{{Type: unix.NFTA_SET_ELEM_EXPIRATION, Data: ms}}),
		"a short key":     dumped(t, []netlink.Attribute{keyAttribute(t, []byte{192, 0, 2, 1})}),
		"an IPv6 key":     dumped(t, []netlink.Attribute{keyAttribute(t, make([]byte, 20))}),
		"a cut attribute": dumped(t, []netlink.Attribute{keyAttribute(t, []byte{192, 0, 2, 1, 0, 80, 0, 0})})[:30],
	} {
		if got, err := armed4.appendElements(nil, bad); err == nil && name != "a cut attribute" {
			t.Errorf("%s: no error, %v", name, got)
		} else if len(got) > 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzElements decodes what is no message of the kernel's.
func FuzzElements(f *testing.F) {
	f.Add(dumped(f, []netlink.Attribute{keyAttribute(f, []byte{192, 0, 2, 1, 0, 80, 0, 0}), {Type: unix.NFTA_SET_ELEM_TIMEOUT, Data: ms}, {Type: unix.NFTA_SET_ELEM_EXPIRATION, Data: ms}}))
	f.Add(dumped(f, []netlink.Attribute{keyAttribute(f, []byte{10, 0, 0, 0})}, []netlink.Attribute{{Type: unix.NFTA_SET_ELEM_FLAGS, Data: []byte{0, 0, 0, 1}}, keyAttribute(f, []byte{11, 0, 0, 0})}))
	f.Add([]byte{1, 0, 0, 0, 3, 0, 1, 0})
	specs := []setSpec{{role: roleService, family: ipv4}, {role: roleService, family: ipv6, every: true}, {role: roleAllowed, family: ipv4}, {role: roleArmed, family: ipv6}}
	f.Fuzz(func(t *testing.T, message []byte) {
		for _, s := range specs {
			elements, err := s.appendElements(nil, message)
			if err != nil {
				continue
			}
			for _, e := range elements {
				if e.Service.Addr().BitLen() != s.family.size*8 {
					t.Errorf("%s: element %v", s.name(), e)
				}
				if back, err := s.parseKey(s.key(e.Service)); err != nil || back != e.Service {
					t.Errorf("%s: key of %v reads back as %v, %v", s.name(), e.Service, back, err)
				}
			}
			for _, e := range joinIntervals(elements) {
				if !e.Source.IsValid() {
					t.Errorf("%s: source %v", s.name(), e.Source)
				}
			}
		}
	})
}

func TestDiff(t *testing.T) {
	element := func(texts ...string) []Element {
		var out []Element
		for _, s := range services(texts...) {
			out = append(out, Element{Service: s})
		}
		return out
	}
	const a, b, c, d = "192.0.2.1:80", "192.0.2.1:81", "192.0.2.2:1", "[2001:db8::1]:1"
	for _, tt := range []struct{ held, wanted, remove, add []Element }{
		{},
		{held: element(a, b), wanted: element(a, b)},
		{wanted: element(a, b), add: element(a, b)},
		{held: element(a, b), remove: element(a, b)},
		{held: element(a, c), wanted: element(b, c, d), remove: element(a), add: element(b, d)},
	} {
		remove, add := diff(tt.held, tt.wanted)
		if !cmp.Equal(remove, tt.remove, sameElement) || !cmp.Equal(add, tt.add, sameElement) {
			t.Errorf("%v to %v: remove %v, add %v", tt.held, tt.wanted, remove, add)
		}
	}
}

var sameElement = cmp.Comparer(func(a, b Element) bool { return a == b })

func TestKeep(t *testing.T) {
	now := time.Unix(1000, 0)
	watched := services("192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80", "192.0.2.4:80", "192.0.2.5:80")
	held := map[netip.AddrPort]time.Duration{watched[0]: time.Minute, watched[1]: time.Millisecond, netip.MustParseAddrPort("192.0.2.9:80"): time.Hour}
	given := map[netip.AddrPort]time.Time{watched[0]: now.Add(time.Hour), watched[2]: now.Add(time.Second), watched[3]: now.Add(-time.Second)}
	want := map[netip.AddrPort]time.Duration{
		watched[0]: time.Minute, // the kernel's counts
		watched[1]: MinLease,    // never so short that it would be none or endless
		watched[2]: time.Second, // the table has lost it
	}
	if diff := cmp.Diff(want, keep(watched, held, given, now), compareAddrPort); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// BenchmarkCounters reads the counters of 300 services, in CPU time.
func BenchmarkCounters(b *testing.B) {
	h := netns.New(b)
	table := open(b, h, Config{})
	var watched []netip.AddrPort
	for i := range 300 {
		watched = append(watched, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(2 + i/200), byte(i % 200)}), 80))
	}
	ensure(b, table, watched)
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	for b.Loop() {
		if c, err := table.Counters(); err != nil || len(c.Services) != 300 {
			b.Fatal(err)
		}
	}
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
}

// BenchmarkCheck checks a table that nobody has changed.
func BenchmarkCheck(b *testing.B) {
	table := open(b, netns.New(b), Config{})
	ensure(b, table, services("192.0.2.1:80"))
	for b.Loop() {
		if err := table.Check(); err != nil {
			b.Fatal(err)
		}
	}
}

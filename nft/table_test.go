package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// open opens the table of h.
func open(t testing.TB, h *netns.Host, cfg Config) *Table {
	t.Helper()
	var table *Table
	var err error
	h.Do(t, func() { table, err = Open(cfg) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func ensure(t testing.TB, table *Table, services []netip.AddrPort) Changed {
	t.Helper()
	changed, err := table.Ensure(services)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// armed checks that exactly these services are, for about as long as want says.
func armed(t testing.TB, table *Table, want map[netip.AddrPort]time.Duration) {
	t.Helper()
	got, err := table.Leases()
	if err != nil {
		t.Fatal(err)
	}
	near := cmp.Comparer(func(a, b time.Duration) bool { return (a - b).Abs() < 20*time.Second })
	if diff := cmp.Diff(want, got, near, compareAddrPort); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

var compareAddrPort = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func TestEnsure(t *testing.T) {
	s := newSite(t)
	watched := services("192.0.2.1:80", "192.0.2.2:0", "[2001:db8::1]:443")
	lease := map[netip.AddrPort]time.Duration{watched[0]: time.Minute}
	steps := []struct {
		name     string
		restart  bool // with another Table
		cfg      Config
		services []netip.AddrPort
		want     Changed
	}{
		{name: "made", services: watched,
			want: Changed{Change: Created, Reason: "there was none", Added: watched}},
		{name: "again", services: watched,
			want: Changed{Change: Unchanged, Leases: 1}},
		{name: "after a restart", restart: true, services: watched,
			want: Changed{Change: Adopted, Leases: 1}},
		{name: "in another order, and as an IPv4-mapped address", services: services("[2001:db8::1]:443", "[::ffff:192.0.2.1]:80", "192.0.2.2:0", "192.0.2.2:0"),
			want: Changed{Change: Unchanged, Leases: 1}},
		{name: "one more", services: append(services("192.0.2.3:80"), watched...),
			want: Changed{Change: Updated, Added: services("192.0.2.3:80"), Leases: 1}},
		{name: "two less", services: services("192.0.2.1:80", "192.0.2.3:80"),
			want: Changed{Change: Updated, Removed: services("192.0.2.2:0", "[2001:db8::1]:443"), Leases: 1}},
		{name: "restart with other services", restart: true, services: watched,
			want: Changed{Change: Adopted, Added: services("192.0.2.2:0", "[2001:db8::1]:443"), Removed: services("192.0.2.3:80"), Leases: 1}},
		{name: "restart with another configuration", restart: true, services: watched,
			cfg:  Config{Allow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}},
			want: Changed{Change: Replaced, Reason: "it was made by another version or configuration", Leases: 1}},
		{name: "no services", cfg: Config{Allow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}},
			want: Changed{Change: Updated, Removed: watched}},
	}
	var table *Table
	for i, step := range steps {
		if table == nil || step.restart {
			table = open(t, s.director, step.cfg)
		}
		got := ensure(t, table, step.services)
		if diff := cmp.Diff(step.want, got, compareAddrPort); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if err := table.Check(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		c, err := table.Counters()
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := table.Arm(lease); err != nil {
				t.Fatal(err)
			}
			if err := s.wire.Send(frame{src: "198.51.100.7", dst: "192.0.2.1", dport: 80}.build(false)); err != nil {
				t.Fatal(err)
			}
		} else if i < len(steps)-1 {
			if want, got := "192.0.2.1:80: syn 1/40, window0 1/40, dropped 1/40", c.summary(); want != got {
				t.Errorf("%s: counted %q, want %q", step.name, got, want)
			}
			armed(t, table, lease)
		}
		if age := time.Since(c.Since); age < 0 || age > time.Minute {
			t.Errorf("%s: since %v", step.name, c.Since)
		}
	}
}

// TestDamage has somebody else change the table in every way: it is seen, and
// mended with leases and, where there still are any, counters.
func TestDamage(t *testing.T) {
	s := newSite(t)
	watched := services("192.0.2.1:80", "192.0.2.2:0", "[2001:db8::1]:443")
	lease := map[netip.AddrPort]time.Duration{watched[0]: time.Minute, watched[1]: 2 * time.Minute, watched[2]: 3 * time.Minute}
	tests := []struct {
		nft    string
		err    error
		change Change
		reason string
		lost   bool // the counters
	}{
		{nft: "flush ruleset", err: ErrAbsent, change: Created, reason: "somebody had deleted it", lost: true},
		{nft: "delete table inet lvsguard", err: ErrAbsent, change: Created, reason: "somebody had deleted it", lost: true},
		{nft: "delete table inet lvsguard; add table inet lvsguard", change: Replaced, reason: "it had no mark of ours", lost: true},
		{nft: "flush table inet lvsguard", change: Replaced, reason: `somebody had changed it: chain fragment4 has "}" and not "iif \"lo\" counter name \"loopback\" accept"`},
		{nft: "flush chain inet lvsguard suspect4", change: Replaced, reason: `somebody had changed it: chain suspect4 has "}" and not "ip daddr . tcp dport @armed4 ip daddr . tcp dport @dropped4 drop"`},
		{nft: "insert rule inet lvsguard prerouting accept", change: Replaced, reason: `somebody had changed it: chain prerouting has "accept" and not "meta l4proto != tcp accept"`},
		{nft: "insert rule inet lvsguard prerouting tcp dport 22 drop", change: Replaced, reason: `somebody had changed it: chain prerouting has "tcp dport 22 drop" and not "meta l4proto != tcp accept"`},
		{nft: "add rule inet lvsguard prerouting counter log", change: Replaced, reason: `somebody had changed it: chain prerouting has "# foreign: [Counter{Bytes:0 Packets:0}] [Log{Level:4 Flags:0 Key:32 Snaplen:0 Group:0 QThreshold:0 Data:[]}]" and not "}"`},
		{nft: "add chain inet lvsguard prerouting { policy drop; }", change: Replaced, reason: `somebody had changed it: chain prerouting has "# foreign: type filter hook 0 priority -310 policy accept: false" and not "type filter hook prerouting priority -310; policy accept;"`},
		{nft: "add chain inet lvsguard other", change: Replaced, reason: `somebody had changed it: the table has "chain other {" and not "}"`},
		{nft: "add set inet lvsguard other { type mark; }", change: Replaced, reason: `somebody had changed it: the table has "set other {" and not "chain fragment4 {"`},
		{nft: "add table inet lvsguard { flags dormant; }", change: Replaced, reason: `somebody had changed it: the table has "flags dormant" and not "counter loopback {"`},
		{nft: "delete element inet lvsguard service4 { 192.0.2.1 . 80 }", change: Updated, lost: true},
		{nft: "flush set inet lvsguard dropped4", change: Updated, lost: true},
		{nft: "delete element inet lvsguard armed4 { 192.0.2.1 . 80 }", change: Updated},
		{nft: "flush set inet lvsguard armed6", change: Updated},
		{nft: "add element inet lvsguard service4 { 192.0.2.66 . 80 }", change: Updated},
		{nft: "add element inet lvsguard armed4 { 192.0.2.66 . 80 timeout 1h }", change: Updated},
	}
	for _, tt := range tests {
		t.Run(tt.nft, func(t *testing.T) {
			table := open(t, s.director, Config{})
			if err := table.Remove(); err != nil {
				t.Fatal(err)
			}
			ensure(t, table, watched)
			if err := table.Arm(lease); err != nil {
				t.Fatal(err)
			}
			if err := s.wire.Send(frame{src: "198.51.100.7", dst: "192.0.2.1", dport: 80}.build(false)); err != nil {
				t.Fatal(err)
			}
			if err := table.Check(); err != nil {
				t.Fatalf("before: %v", err)
			}
			s.director.Run(t, "nft", tt.nft)
			want := tt.err
			if want == nil {
				want = ErrAltered
			}
			if err := table.Check(); !errors.Is(err, want) {
				t.Errorf("check: %v, want %v", err, want)
			}
			changed := ensure(t, table, watched)
			if changed.Change != tt.change || changed.Reason != tt.reason {
				t.Errorf("ensure: %s %q\nwant: %s %q", changed.Change, changed.Reason, tt.change, tt.reason)
			}
			if err := table.Check(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			armed(t, table, lease)
			c, err := table.Counters()
			if err != nil {
				t.Fatal(err)
			}
			if got, want := c.summary(), "192.0.2.1:80: syn 1/40, window0 1/40, dropped 1/40"; !tt.lost && got != want {
				t.Errorf("counted %q, want %q", got, want)
			}
		})
	}
}

// TestForeign checks that what is not ours stays as it is, whatever we do, and
// that its changes do not disturb us.
func TestForeign(t *testing.T) {
	h := netns.New(t)
	const foreign = `table ip keepalived {
	set vips {
		type ipv4_addr
		elements = { 192.0.2.1 }
	}

	chain out {
		type filter hook output priority filter; policy accept;
		ip saddr @vips drop
	}
}
table inet lvsguard2 {
	counter seen {
		packets 5 bytes 7
	}
}
table ip lvsguard {
	chain prerouting {
	}
}
`
	if _, err := h.Try(t, foreign, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	same := func(when string) {
		t.Helper()
		var all string
		for _, name := range strings.Split(strings.TrimSpace(h.Run(t, "nft", "list", "tables")), "\n") {
			if name != "table inet lvsguard" {
				all += h.Run(t, "nft", "list "+name)
			}
		}
		if diff := cmp.Diff(foreign, all); diff != "" {
			t.Errorf("%s, foreign tables (-want +got):\n%s", when, diff)
		}
	}
	table := open(t, h, Config{})
	watched := services("192.0.2.1:80")
	same("opened")
	ensure(t, table, watched)
	same("made")
	if err := table.Arm(map[netip.AddrPort]time.Duration{watched[0]: time.Minute}); err != nil {
		t.Fatal(err)
	}
	same("armed")
	h.Run(t, "nft", "add rule inet lvsguard prerouting accept")
	ensure(t, table, watched)
	same("replaced")
	h.Run(t, "nft", "add table ip another; delete table ip another")
	if err := table.Check(); err != nil {
		t.Errorf("after a foreign change: %v", err)
	}
	if changed := ensure(t, table, watched); changed.Change != Unchanged {
		t.Errorf("after a foreign change: %v", changed)
	}
	for range 2 {
		if err := table.Remove(); err != nil {
			t.Fatal(err)
		}
		same("removed")
	}
}

func TestAbsent(t *testing.T) {
	h := netns.New(t)
	table := open(t, h, Config{})
	watched := services("192.0.2.1:80")
	calls := map[string]func() error{
		"check":    table.Check,
		"arm":      func() error { return table.Arm(map[netip.AddrPort]time.Duration{watched[0]: time.Minute}) },
		"leases":   func() error { _, err := table.Leases(); return err },
		"counters": func() error { _, err := table.Counters(); return err },
		"state":    func() error { _, err := table.State(); return err },
		"listing":  func() error { return table.Listing(&strings.Builder{}) },
	}
	for _, when := range []string{"never made", "deleted"} {
		for name, call := range calls {
			if err := call(); !errors.Is(err, ErrAbsent) {
				t.Errorf("%s, %s: %v, want ErrAbsent", when, name, err)
			}
		}
		if err := table.Disarm(watched); err != nil {
			t.Errorf("%s, disarm: %v", when, err)
		}
		ensure(t, table, watched)
		for name, call := range calls {
			if err := call(); err != nil {
				t.Errorf("made, %s: %v", name, err)
			}
		}
		h.Run(t, "nft", "flush", "ruleset")
	}
}

// TestReader reads a table that another process made, with other signatures,
// and follows when that one makes it anew.
func TestReader(t *testing.T) {
	h := netns.New(t)
	watched := services("192.0.2.1:80")
	reader := open(t, h, Config{})
	names := func() string {
		t.Helper()
		c, err := reader.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(c.Services[watched[0]].Signatures)
	}
	ensure(t, open(t, h, Config{Signatures: []Signature{{Name: "a", Window: &Range{}}, {Name: "b", Options: NoOptions}}}), watched)
	if got, want := names(), "map[a:{0 0} b:{0 0}]"; got != want {
		t.Errorf("signatures %s, want %s", got, want)
	}
	ensure(t, open(t, h, Config{Signatures: []Signature{{Name: "c", Window: &Range{}}}}), watched)
	if got, want := names(), "map[c:{0 0}]"; got != want {
		t.Errorf("signatures %s, want %s", got, want)
	}
	if err := reader.Arm(map[netip.AddrPort]time.Duration{watched[0]: time.Minute}); err != nil {
		t.Errorf("arm without Ensure: %v", err)
	}
}

func TestNoCapability(t *testing.T) {
	h := netns.New(t)
	var err error
	h.Do(t, func() {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err = unix.Capset(&header, &none[0]); err == nil {
			_, err = Open(Config{})
		}
	})
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("open: %v, want a permission error that names CAP_NET_ADMIN", err)
	}
}

// TestWholeOrNothing checks that a transaction with one bad operation applies
// none of the others.
func TestWholeOrNothing(t *testing.T) {
	h := netns.New(t)
	table := open(t, h, Config{})
	ensure(t, table, services("192.0.2.1:80"))
	before, err := table.State()
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = table.transact(func(uint32) error {
		k := table.kernel
		k.queueElements(setSpec{role: roleService, family: ipv4}, nil, []Element{{Service: netip.MustParseAddrPort("192.0.2.2:80")}})
		return k.library.SetAddElements(&nftables.Set{Table: nftTable, Name: "none"}, []nftables.SetElement{{Key: []byte{1, 2, 3, 4}}})
	})
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("a bad batch: %v, want ENOENT", err)
	}
	after, err := table.State()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before.text(), after.text()); diff != "" {
		t.Errorf("it changed the table:\n%s", diff)
	}
	if _, err := table.Ensure(services("192.0.2.1:80", "192.0.2.3:80")); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// TestMany makes and changes thousands of services, each in one transaction.
func TestMany(t *testing.T) {
	h := netns.New(t)
	table := open(t, h, Config{})
	var many []netip.AddrPort
	for i := range 4000 {
		many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 80))
	}
	for _, want := range [][]netip.AddrPort{many[:2000], many[2000:], nil, many} {
		before, err := table.kernel.generation()
		if err != nil {
			t.Fatal(err)
		}
		ensure(t, table, want)
		after, err := table.kernel.generation()
		if err != nil || after != before+1 {
			t.Errorf("generation %d after %d, %v: want one transaction", after, before, err)
		}
		c, err := table.Counters()
		if err != nil || len(c.Services) != len(want) {
			t.Errorf("%d services counted, %v: want %d", len(c.Services), err, len(want))
		}
	}
}

func TestBadServices(t *testing.T) {
	table := open(t, netns.New(t), Config{})
	for _, bad := range []netip.AddrPort{{}, netip.MustParseAddrPort("0.0.0.0:80"), netip.MustParseAddrPort("[fe80::1%eth0]:80"), netip.MustParseAddrPort("224.0.0.18:0")} {
		if _, err := table.Ensure([]netip.AddrPort{bad}); err == nil {
			t.Errorf("ensure %v: no error", bad)
		}
	}
}

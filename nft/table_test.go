package nft

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/internal/netns"
)

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

func TestSmoke(t *testing.T) {
	h := netns.New(t)
	tab := open(t, h, Config{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("10.3.0.0/16")}})
	s := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:0"), netip.MustParseAddrPort("[2001:db8::1]:443")}
	c, err := tab.Ensure(s)
	t.Log(c, err)
	t.Log(tab.Check())
	t.Log(tab.Arm(map[netip.AddrPort]time.Duration{s[0]: time.Minute, s[1]: 10 * time.Second}))
	t.Log(tab.Leases())
	t.Log(tab.Check())
	t.Log(tab.Counters())
	tab.Listing(os.Stdout)
	out, err := h.Try(t, "", "nft", "list", "table", "inet", "lvsguard")
	t.Log(out, err)
	tab2 := open(t, h, Config{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("10.3.0.0/16")}})
	t.Log(tab2.Ensure(s[:2]))
	tab3 := open(t, h, Config{})
	t.Log(tab3.Ensure(s))
	t.Log(tab3.Leases())
	t.Log(tab3.Check())
	t.Log(tab2.Check())
}

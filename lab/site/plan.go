package site

import (
	"fmt"
	"net/netip"
)

// The site's networks. Routers, directors and, but for NAT, real servers are on the front one; with NAT the real servers
// are on the back one, behind the directors.
type plan struct {
	front, back, client, attacker netip.Prefix
}

func planOf(v Variant) plan {
	if v.IPv6() {
		return plan{
			netip.MustParsePrefix("2001:db8:0:1::/64"), netip.MustParsePrefix("fd00:0:0:2::/64"),
			netip.MustParsePrefix("2001:db8:0:c::/64"), netip.MustParsePrefix("2001:db8:0:a::/64"),
		}
	}
	return plan{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.2.0/24"),
		netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"),
	}
}

// Host numbers: the last byte of an address. A VRRP instance's address is virtual1 plus the instance's index.
const (
	director1   = 11
	realServer1 = 21
	virtual1    = 101
	routerHost  = 254
	gateway     = 253 // the directors' floating address on the back network
	far         = 2   // the only host of the client's and the attacker's network
)

// at is the network's address with the host number as its last byte.
func at(network netip.Prefix, host int) netip.Addr {
	bytes := network.Addr().AsSlice()
	bytes[len(bytes)-1] = byte(host)
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// on is the same in the form in which an interface gets it.
func on(network netip.Prefix, host int) string {
	return fmt.Sprint(netip.PrefixFrom(at(network, host), network.Bits()))
}

// alone is an address as a network of one.
func alone(addr netip.Addr) string {
	return fmt.Sprint(netip.PrefixFrom(addr, addr.BitLen()))
}

package keepalived

import (
	"net/netip"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var cmpConfig = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}),
	cmpopts.EquateEmpty(),
}


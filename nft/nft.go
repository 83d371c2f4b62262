// Package nft owns one nftables table, inet lvsguard: it counts the SYNs that
// go to virtual services and drops, for as long as a lease lasts, those that
// carry a flood's signature.
//
// It promises that every change is one transaction, applied whole or not at
// all; that a drop always has an end, kept by the kernel and not by this
// process; that established connections leave the table after one rule; and
// that no other table is ever touched.
package nft

import (
	"errors"
	"net/netip"
	"time"
)

var (
	// ErrAbsent is reported where the table is needed and not there: nobody
	// has made it, or somebody has deleted it. Ensure makes it.
	ErrAbsent = errors.New("table inet lvsguard is not there")

	// ErrAltered is reported by Check when somebody else has changed the
	// table. Ensure mends it.
	ErrAltered = errors.New("table inet lvsguard was changed by somebody else")
)

// A lease shorter than MinLease could become a lease without end: the kernel
// rounds timeouts down to its clock tick, and takes zero for "never". One
// longer than MaxLease is taken for a mistake.
const (
	MinLease = 100 * time.Millisecond
	MaxLease = 24 * time.Hour
)

// Config is what the table's rules depend on. A change of it changes the
// layout, so that Ensure replaces the table.
type Config struct {
	Signatures []Signature    // nil: DefaultSignatures
	Allow      []netip.Prefix // sources that are never counted as suspect nor dropped
}

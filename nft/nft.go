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

// Count is a number of packets and of their bytes, from the IP header on.
type Count struct {
	Packets, Bytes uint64
}

// Counters is a reading of everything the table counts. All are totals since
// Since, which is when the table was made; a replaced table takes over the
// totals and the time of the one before it.
type Counters struct {
	Since    time.Time
	Services map[netip.AddrPort]ServiceCounters
	Loopback Count // SYNs and fragments that came in on lo
	Allowed  Count // SYNs and fragments from Config.Allow
}

// ServiceCounters are the totals of one virtual service. What came in on lo or
// from an allowed source is in none of them.
type ServiceCounters struct {
	SYN        Count            // every SYN without ACK, RST, FIN
	Suspect    Count            // those with any signature: the sum of Signatures
	Signatures map[string]Count // by signature name; a SYN counts for the first that it matches
	Dropped    Count
	// Fragment is the number of TCP fragments to the service's address.
	// Later fragments carry no ports, so that all services of one address
	// show the same figure.
	Fragment Count
}

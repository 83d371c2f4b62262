package nft

import (
	"errors"
	"io"
	"net/netip"
	"time"
)

// Table is the guard's table in the network namespace in which Open was
// called. Its methods may be called from several goroutines; they wait for
// each other, each for at most 2 s a call to the kernel.
type Table struct{}

var errNotYet = errors.New("not yet implemented")

// Open prepares for the table and touches nothing. The error is one that
// errors.Is os.ErrPermission and names CAP_NET_ADMIN where that is missing, and
// names the kernel's option where it has no nf_tables. Only Ensure needs cfg.
func Open(cfg Config) (*Table, error) { return &Table{}, nil }

// Close leaves the table and its leases as they are.
func (t *Table) Close() error { return nil }

// A Change says what Ensure did.
type Change string

const (
	Unchanged Change = "unchanged" // all was as wanted
	Created   Change = "created"   // there was no table
	Adopted   Change = "adopted"   // the table of an earlier process, counters and leases kept
	Updated   Change = "updated"   // services came or went
	Replaced  Change = "replaced"  // the table was not as this layout wants it, see Reason
)

// Changed is what Ensure did and why.
type Changed struct {
	Change         Change
	Reason         string // in words, for Created and Replaced
	Added, Removed []netip.AddrPort
	Leases         int // leases in force afterwards
}

// Ensure makes the table count exactly services, in one transaction: it makes
// the table, adopts it as it stands, adds and removes services, or replaces it
// atomically. A service with port 0 is every port of its address that no other
// service names. Leases outlive all of it, those of a table that somebody
// deleted included, except that a removed service loses its lease.
func (t *Table) Ensure(services []netip.AddrPort) (Changed, error) {
	return Changed{}, errNotYet
}

// Check tells whether the table still is as Ensure left it: nil, ErrAbsent or
// ErrAltered. It is cheap enough to be called each second.
func (t *Table) Check() error { return errNotYet }

// Arm drops what matches a signature and goes to these services, for the given
// time from now, in one transaction and without a gap for those that are armed
// already. Durations are from MinLease to MaxLease. A service that Ensure was
// not told of is an error.
func (t *Table) Arm(leases map[netip.AddrPort]time.Duration) error { return errNotYet }

// Disarm ends the leases of these services now. One that has no lease, and an
// absent table, is no error.
func (t *Table) Disarm(services []netip.AddrPort) error { return errNotYet }

// Leases returns the remaining time of every lease, to about the kernel's
// clock tick (1 to 10 ms).
func (t *Table) Leases() (map[netip.AddrPort]time.Duration, error) { return nil, errNotYet }

// Counters reads the table's counters, ErrAbsent without a table. It works for
// a table that another process made, with other signatures.
func (t *Table) Counters() (Counters, error) { return Counters{}, errNotYet }

// Listing writes the table as the kernel holds it, as nft text.
func (t *Table) Listing(w io.Writer) error { return errNotYet }

// State returns the table as the kernel holds it.
func (t *Table) State() (State, error) { return State{}, errNotYet }

// Remove deletes the table, leases and counters with it. An absent table is no
// error.
func (t *Table) Remove() error { return errNotYet }

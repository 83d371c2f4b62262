package nft

import (
	"io"
	"net/netip"
	"time"
)

// State is the table as the kernel holds it.
type State struct {
	Since    time.Time
	Layout   string // fingerprint of the layout that made it
	Counters []NamedCounter
	Sets     []Set
	Chains   []Chain
}

// NamedCounter is a named counter.
type NamedCounter struct {
	Name string
	Count
}

// Set is a set with its elements, sorted.
type Set struct {
	Name     string
	Comment  string
	Elements []Element
}

// Element is an element of a set. Of services only Service is set, of
// addresses that and a port of 0, of allowed sources only Source.
type Element struct {
	Service netip.AddrPort
	Source  netip.Prefix
	Count   *Count        // nil: the set has no counters
	Timeout time.Duration // 0: the set has no timeouts
	Expires time.Duration
}

// Chain is a chain with its rules as nft text.
type Chain struct {
	Name  string
	Hook  string // the line that hooks it, empty for chains that are jumped to
	Rules []Rule
}

// Rule is one rule as nft text.
type Rule struct {
	Text    string
	Foreign bool // not one of the rules that this layout has
}

// WriteTo writes s as nft text.
func (s State) WriteTo(w io.Writer) (int64, error) { return 0, errNotYet }

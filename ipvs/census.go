package ipvs

import (
	"context"
	"fmt"
	"io"
	"net/netip"
)

// CensusConfig tells how a connection table is counted.
type CensusConfig struct {
	// Sample is the number of entries to read; 0: the whole table.
	Sample int
	// Total is the number of entries in the table as far as the caller knows
	// it from [Service.Connections], to extrapolate a sample; 0: not known.
	Total uint64
	// PrefixV4 and PrefixV6 are the lengths by which sources are put together;
	// 0: 24 and 64.
	PrefixV4, PrefixV6 int
	// KeepSources bounds how many sources are followed at a time; 0: 1024.
	KeepSources int
	// Services are the virtual services to count by. An entry goes to the
	// service of its address, port and protocol, else to that of its address
	// and every port. The table does not tell firewall marks: what
	// belongs to such a service is in Census.Other. Nil: every address and port
	// that is found is a service.
	Services []Key
	// Force reads the whole table even where that takes very long: see
	// [TooLargeError].
	Force bool
}

// A Census counts the entries of a connection table, or those of a sample.
type Census struct {
	Lines     int  // connections counted
	Templates int  // persistence templates, which are not connections, beside Lines
	Malformed int  // lines that could not be read, in no other count
	Complete  bool // the whole table was counted

	// Total is the number of entries in the table: counted if Complete, else as
	// CensusConfig had it. TotalKnown is false if neither is known.
	Total      uint64
	TotalKnown bool

	States   map[string]int         // connections by state: "SYN_RECV", "ESTABLISHED", ...
	Services map[Key]map[string]int // connections by service and state
	Other    map[string]int         // by state, connections that belong to none of Services
	Sources  []Source               // by prefix, those with most connections first
}

// A Source is a prefix of client addresses. How many connections it has is
// exact (AtLeast equals AtMost) as long as there are no more sources than
// CensusConfig.KeepSources.
type Source struct {
	Prefix          netip.Prefix
	AtLeast, AtMost int
}

// Extrapolate returns about how many entries of the whole table stand for n
// counted ones, and false if the table's size is not known.
func (c Census) Extrapolate(n int) (uint64, bool) {
	if c.Complete {
		return uint64(n), true
	}
	counted := c.Lines + c.Templates
	if !c.TotalKnown || counted == 0 {
		return 0, false
	}
	return uint64(float64(c.Total) * float64(n) / float64(counted)), true
}

// A TooLargeError is returned for a whole census of a table that is too large
// to read on this kernel.
type TooLargeError struct {
	Limit  int    // entries that may be read
	Kernel string // the kernel's release
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the connection table has more than %d entries, and kernel %s walks it from its start for every 4 KiB that are read (Linux 6.14 does not): read a sample, or force the whole", e.Limit, e.Kernel)
}

// ReadCensus counts a connection table in the format of /proc/net/ip_vs_conn,
// in bounded memory.
func ReadCensus(ctx context.Context, r io.Reader, cfg CensusConfig) (Census, error) {
	return Census{}, nil
}

// Census counts the connection table.
func (c *Client) Census(ctx context.Context, cfg CensusConfig) (Census, error) {
	return Census{}, fmt.Errorf("census of the connection table: %w", ErrAbsent)
}

// Package incident tells the story of a flood: what is known of it while it
// lasts, what its packets look like beside those of good clients, and the files
// in which that is kept.
package incident

import (
	"net/netip"
	"time"
)

// A Record is the story of one incident: one JSON file, written as it goes. What
// is not known is null, and Unknown says why. Pinned is a file of its own beside
// it, so that the guard and who pins do not write the same one.
type Record struct {
	Format int `json:"format"` // 1
	// ID is the file's name without .json: the onset in UTC and the service.
	ID      string `json:"id"`
	Host    string `json:"host"`
	Version string `json:"version"` // the guard's
	Pinned  bool   `json:"pinned"`

	Service   string           `json:"service"`
	Project   string           `json:"project,omitempty"`
	Addresses []netip.AddrPort `json:"addresses"`

	// Onset is when the verdict left calm, Flooded when it came to a flood,
	// FirstDrop when the guard first saw a packet dropped, Ended when the verdict
	// was calm again. Each is null as long as it has not happened.
	Onset     time.Time  `json:"onset"`
	Flooded   *time.Time `json:"flooded"`
	FirstDrop *time.Time `json:"first_drop"`
	Ended     *time.Time `json:"ended"`
	Began     string     `json:"began"` // why
	EndedBy   string     `json:"ended_by,omitempty"`
	// Gaps are times in which no guard ran, as after a crash.
	Gaps []Gap `json:"gaps,omitempty"`

	Totals Totals  `json:"totals"`
	Peaks  Peaks   `json:"peaks"`
	Series []Point `json:"series"`

	Clients    Clients    `json:"clients"`
	Collateral Collateral `json:"collateral"`
	// Actions are leases, verdicts, role changes and what the kernel said, in
	// order; at most MaxActions, and ActionsLeftOut counts the others.
	Actions        []Action `json:"actions"`
	ActionsLeftOut int      `json:"actions_left_out,omitempty"`

	// Look is what the flood's packets look like; null until there are samples.
	Look    *Look             `json:"look"`
	Packets []PacketFile      `json:"packets"`
	Unknown map[string]string `json:"unknown,omitempty"`

	// Written is when this was written, and Counted what the counters said then:
	// from there another guard goes on.
	Written time.Time `json:"written"`
	Counted *Counted  `json:"counted"`
}

// Counted are packets since the table was made.
type Counted struct {
	SYN     *uint64 `json:"syn"`
	Suspect *uint64 `json:"suspect"`
	Dropped *uint64 `json:"dropped"`
}

// A Gap is a time that the record knows nothing of.
type Gap struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Reason string    `json:"reason"`
}

// Totals are packets from onset to end.
type Totals struct {
	Offered  *uint64 `json:"offered"`  // SYNs to the service
	Suspect  *uint64 `json:"suspect"`  // those with a signature
	Dropped  *uint64 `json:"dropped"`  // those that were dropped
	Admitted *uint64 `json:"admitted"` // those with a signature that were not
}

// Peaks are the highest of a second.
type Peaks struct {
	SYN         *float64 `json:"syn_per_second"`
	Suspect     *float64 `json:"suspect_per_second"`
	Dropped     *float64 `json:"dropped_per_second"`
	HalfOpen    *float64 `json:"half_open_connections"`
	MemoryShare *float64 `json:"memory_share"` // 0 to 1; low memory where the kernel has it
	Cookies     *float64 `json:"syncookies_per_second"`
}

// A Point is what was known of one interval. Rates are packets a second.
type Point struct {
	Time        time.Time `json:"time"`
	Seconds     float64   `json:"seconds"` // its length
	SYN         *float64  `json:"syn"`
	Suspect     *float64  `json:"suspect"`
	Dropped     *float64  `json:"dropped"`
	HalfOpen    *float64  `json:"half_open"`
	Connections *float64  `json:"connections"`
	MemoryShare *float64  `json:"memory_share"`
	Cookies     *float64  `json:"cookies"` // sent by all real servers together
	Completion  *float64  `json:"completion"`
	Armed       bool      `json:"armed"`
}

// Clients is what clients felt.
type Clients struct {
	Before Felt `json:"before"` // the minute before onset
	During Felt `json:"during"`
	After  Felt `json:"after"` // the minute after the end
}

// Felt is how handshakes went in a time.
type Felt struct {
	Completion *float64 `json:"completion"` // 0 to 1, without those that bore a signature
	P50        *float64 `json:"p50_seconds"`
	P99        *float64 `json:"p99_seconds"`
	Handshakes uint64   `json:"handshakes"` // that were begun, without those that bore a signature
}

// Collateral are dropped packets whose source had completed a handshake in the
// hour before.
type Collateral struct {
	Packets *uint64 `json:"packets"` // of those sampled
	Sampled uint64  `json:"sampled"`
	// Sources are some of them.
	Sources []netip.Addr `json:"sources,omitempty"`
}

// MaxActions is how many actions a Record lists.
const MaxActions = 500

// An Action is something that was done or that happened.
type Action struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"` // verdict, lease, role, kernel, pressure, health, guard
	Text string    `json:"text"`
	By   string    `json:"by,omitempty"`
}

// A PacketFile is a pcapng file beside the record.
type PacketFile struct {
	Name    string    `json:"name"` // in the record's directory
	Why     string    `json:"why"`  // before, onset, peak, during, by hand
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Packets uint64    `json:"packets"`
	Seen    uint64    `json:"seen"` // of which the packets are a sample
	Bytes   int64     `json:"bytes"`
}

// A Look is what the flood's packets look like, beside those of handshakes that
// completed on the service.
type Look struct {
	Flood uint64 `json:"flood_packets"` // sampled
	Good  uint64 `json:"good_packets"`
	// Features tell the two apart, the best first.
	Features []Feature `json:"features"`
	Fields   []Field   `json:"fields"`
	Sources  Sources   `json:"sources"`
}

// A Feature is a value, or a range, of a field that the flood has and good
// clients do not.
type Feature struct {
	Text  string  `json:"text"`  // in words
	Flood float64 `json:"flood"` // the share of the flood that it covers
	// Good is the share of good clients that it would hit; null where too few
	// completed.
	Good *float64 `json:"good"`
	// Match is a ready nft match; Signature an entry for the configuration's
	// signatures, where one can say it.
	Match     string `json:"nft_match"`
	Signature string `json:"signature,omitempty"`
}

// A Field is the distribution of one field of the packets.
type Field struct {
	Name   string  `json:"name"` // window, length, data, ttl, options, mss, flags, sport, dport, seq, ipid
	Values []Value `json:"values"`
	// Others are the shares of all values that are not listed.
	OthersFlood float64  `json:"others_flood"`
	OthersGood  *float64 `json:"others_good"`
	Pattern     string   `json:"pattern,omitempty"` // as "constant", "random", "counts up by 1"
}

// A Value is one value of a Field, with its share of the flood and of good
// clients, 0 to 1. Good is null where none completed.
type Value struct {
	Value string   `json:"value"`
	Flood float64  `json:"flood"`
	Good  *float64 `json:"good"`
}

// Sources are where the flood's packets say that they come from.
type Sources struct {
	// Distinct is an estimate, within 3 %, of how many the flood's sampled packets
	// have; null without packets.
	Distinct *uint64         `json:"distinct"`
	Prefixes map[int][]Value `json:"prefixes"` // by length: 8, 16, 24; 32, 48, 64 for IPv6
	// Spoofed says in words why the sources are likely spoofed; empty if nothing
	// says so.
	Spoofed string `json:"likely_spoofed,omitempty"`
}

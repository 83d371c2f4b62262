package nft

// Range is a closed range of numbers.
type Range struct {
	Min, Max uint16
}

// Options says what a signature wants of the options in a SYN's headers.
type Options uint8

const (
	AnyOptions Options = iota // no matter
	NoOptions                 // neither TCP options, nor IPv4 options, nor IPv6 extension headers
)

// Signature tells a flood's SYNs from honest ones. A SYN matches when it
// matches every field; what is nil or empty matches all. Only packets with SYN
// and without ACK, RST and FIN are looked at (ECE and CWR do not matter), so
// nothing else ever matches.
type Signature struct {
	// Name is lower-case letters, digits and underscores, at most 32,
	// starting with a letter. It is part of the names of the table's sets.
	Name string

	// Window is the TCP window as it is in the header, unscaled.
	Window *Range

	// Length is the IPv4 total length in bytes: 40 is a SYN with neither
	// options nor data. For IPv6 the same range, less 20, is asked of the
	// payload length, with TCP as the next header, so that one figure means
	// one TCP segment in both families.
	Length *Range

	// TTL is the IPv4 time to live, or the IPv6 hop limit, on arrival.
	TTL *Range

	// Options is AnyOptions or NoOptions.
	Options Options

	// Ports are the destination ports; empty is all.
	Ports []Range
}

// DefaultSignatures returns the one signature that is used when none is
// configured, "window0": window 0 and IPv4 length 40 or IPv6 payload 20, as
// hping3 -S -w 0 sends it.
func DefaultSignatures() []Signature {
	return []Signature{{
		Name:   "window0",
		Window: &Range{},
		Length: &Range{Min: 40, Max: 40},
	}}
}

// Validate tells what is wrong with s, naming the field.
func (s Signature) Validate() error { return nil }

// String returns s as nft matches for IPv4.
func (s Signature) String() string { return "" }

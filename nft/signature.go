package nft

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
)

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

// minLength is an IPv4 header and a TCP header without options.
const minLength = 40

var signatureName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// Validate tells what is wrong with s, naming the field.
func (s Signature) Validate() error {
	if !signatureName.MatchString(s.Name) {
		return fmt.Errorf("signature name %q: want 1 to 32 of a-z, 0-9 and _, starting with a letter", s.Name)
	}
	bad := func(field, want string) error {
		return fmt.Errorf("signature %s: %s: want %s", s.Name, field, want)
	}
	if r := s.Window; r != nil && !r.within(0, 65535) {
		return bad("window", "a number or a range from 0 to 65535")
	}
	if r := s.Length; r != nil && !r.within(minLength, 65535) {
		return bad("length", "an IPv4 total length or a range from 40, the two headers, to 65535")
	}
	if r := s.TTL; r != nil && !r.within(0, 255) {
		return bad("ttl", "a number or a range from 0 to 255")
	}
	if s.Options > NoOptions {
		return bad("options", "any or none")
	}
	for _, r := range s.Ports {
		if !r.within(1, 65535) {
			return bad("ports", "ports or ranges from 1 to 65535")
		}
	}
	if s.Window == nil && s.Length == nil && s.TTL == nil && s.Options == AnyOptions {
		return fmt.Errorf("signature %s would match every SYN: give it a window, length, ttl or options", s.Name)
	}
	return nil
}

func (r Range) within(lowest, highest uint16) bool {
	return lowest <= r.Min && r.Min <= r.Max && r.Max <= highest
}

// validateSignatures validates each, and that no two share a name.
func validateSignatures(signatures []Signature) error {
	for i, s := range signatures {
		if err := s.Validate(); err != nil {
			return err
		}
		if slices.ContainsFunc(signatures[:i], func(o Signature) bool { return o.Name == s.Name }) {
			return fmt.Errorf("signature %s: there are two of that name", s.Name)
		}
	}
	return nil
}

// String returns what s asks of an IPv4 SYN, as nft writes it.
func (s Signature) String() string {
	alternatives := s.match(ipv4)
	texts := make([]string, len(alternatives))
	for i, a := range alternatives {
		texts[i] = (&renderer{family: ipv4, tcp: true}).render(a)
	}
	return strings.Join(texts, " or ")
}

// protocol asks for TCP. Where the IPv6 payload length matters, extension
// headers, which are a part of it, are ruled out.
func (s Signature) protocol(f *family) []expr.Any {
	if f == ipv6 && (s.Length != nil || s.Options == NoOptions) {
		return equal(fieldNextHeader, tcpProtocol)
	}
	return isTCP()
}

// match returns what s asks of a TCP SYN of the family, as alternatives: one
// for each range of ports. A set of ports would be one more set to read, and
// signatures have few.
func (s Signature) match(f *family) [][]expr.Any {
	var terms []expr.Any
	if s.Window != nil {
		terms = append(terms, between(fieldWindow, s.Window.Min, s.Window.Max)...)
	}
	if s.Length != nil {
		less := uint16(minLength - f.minLength)
		terms = append(terms, between(f.length, s.Length.Min-less, s.Length.Max-less)...)
	}
	if s.TTL != nil {
		terms = append(terms, between(f.ttl, s.TTL.Min, s.TTL.Max)...)
	}
	if s.Options == NoOptions {
		if f == ipv4 {
			terms = append(terms, equal(fieldHeaderLength, 5)...)
		}
		terms = append(terms, equal(fieldDataOffset, 5)...)
	}
	if len(s.Ports) == 0 {
		return [][]expr.Any{terms}
	}
	alternatives := make([][]expr.Any, len(s.Ports))
	for i, p := range s.Ports {
		alternatives[i] = slices.Concat(terms, between(fieldPort, p.Min, p.Max))
	}
	return alternatives
}

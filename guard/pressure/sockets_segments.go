package pressure

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// segments are the ranges of addresses that are on this host's own links, in
// order and apart from each other.
type segments []segment

type segment struct{ first, last address }

// less tells the order of two addresses. It is asked for each connection.
func (a address) less(b address) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

// contains tells whether an address is on one of the host's links.
func (s segments) contains(a address) bool {
	low, high := 0, len(s)
	for low < high {
		middle := int(uint(low+high) / 2)
		if s[middle].last.less(a) {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low < len(s) && !a.less(s[low].first)
}

// segmentOf is the range of an address's first bits, which count from the
// beginning of the mapped address for IPv4.
func segmentOf(a address, bits int) segment {
	hi, lo := ^uint64(0), ^uint64(0) // the bits of the host
	if bits <= 64 {
		hi >>= bits
	} else {
		hi, lo = 0, lo>>(bits-64)
	}
	return segment{address{a.hi &^ hi, a.lo &^ lo}, address{a.hi | hi, a.lo | lo}}
}

// merge sorts the ranges and joins those that overlap.
func (s segments) merge() segments {
	slices.SortFunc(s, func(a, b segment) int {
		return cmp.Or(cmp.Compare(a.first.hi, b.first.hi), cmp.Compare(a.first.lo, b.first.lo))
	})
	merged := s[:0]
	for _, next := range s {
		if n := len(merged); n > 0 && !merged[n-1].last.less(next.first) {
			if merged[n-1].last.less(next.last) {
				merged[n-1].last = next.last
			}
			continue
		}
		merged = append(merged, next)
	}
	return merged
}

const addressMessageSize = 8 // struct ifaddrmsg

// readSegments reads the prefixes of the host's interfaces. A point-to-point
// interface has the other end's prefix and our own address.
func (r *SocketReader) readSegments(ctx context.Context) (segments, error) {
	var s segments
	begin := func() { s = segments{} }
	err := r.route.dump(ctx, unix.RTM_GETADDR, make([]byte, addressMessageSize), begin, func(body []byte) (err error) {
		s, err = s.appendMessage(body)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the addresses of this host's interfaces: %w", err)
	}
	return s.merge(), nil
}

// appendMessage adds what a message about an interface's address tells.
func (s segments) appendMessage(b []byte) (segments, error) {
	if len(b) < addressMessageSize {
		return s, errMalformedNetlink
	}
	family, bits := b[0], int(b[1])
	for rest := b[addressMessageSize:]; len(rest) > 0; {
		var kind uint16
		var value []byte
		var err error
		if kind, value, rest, err = nextAttribute(rest); err != nil {
			return s, err
		}
		if kind != unix.IFA_ADDRESS && kind != unix.IFA_LOCAL {
			continue
		}
		bits := bits
		if kind == unix.IFA_LOCAL {
			bits = 128 // on any but a point-to-point interface it is the same address
		}
		switch {
		case family == unix.AF_INET && len(value) == 4 && (bits <= 32 || kind == unix.IFA_LOCAL):
			s = append(s, segmentOf(ipv4Address(value), min(96+bits, 128)))
		case family == unix.AF_INET6 && len(value) == 16 && bits <= 128:
			s = append(s, segmentOf(ipv6Address(value), bits))
		default:
			return s, errMalformedNetlink
		}
	}
	return s, nil
}

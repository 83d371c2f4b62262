package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Netlink attributes of elements, include/uapi/linux/netfilter/nf_tables.h.
// They are decoded by hand because google/nftables takes most of a
// millisecond for a set of 300, and several such sets are read each second.

// kindMask leaves out the flags of an attribute's kind.
const kindMask = 0xffff &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

var errMalformed = errors.New("malformed netlink attributes")

// attributes calls f for each attribute of b. Lengths are in the host's order,
// values in network order; attributes start at multiples of 4.
func attributes(b []byte, f func(kind uint16, value []byte)) error {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return errMalformed
		}
		f(binary.NativeEndian.Uint16(b[2:])&kindMask, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	if len(b) > 0 {
		return errMalformed
	}
	return nil
}

// attribute returns the value of the first attribute of a kind.
func attribute(b []byte, kind uint16) (value []byte, found bool) {
	err := attributes(b, func(k uint16, v []byte) {
		if k == kind && !found {
			value, found = v, true
		}
	})
	return value, found && err == nil
}

// appendElements decodes one message of a dump of s. For a set of sources it
// appends the ends of intervals, which joinIntervals makes prefixes of.
func (s setSpec) appendElements(elements []Element, message []byte) ([]Element, error) {
	if len(message) < 4 {
		return nil, errMalformed
	}
	list, found := attribute(message[4:], unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	if !found {
		return elements, nil // the set is empty
	}
	var failed error
	err := attributes(list, func(_ uint16, value []byte) {
		e, err := s.decode(value)
		if err != nil {
			failed = err
			return
		}
		elements = append(elements, e)
	})
	return elements, cmp.Or(err, failed)
}

func (s setSpec) decode(b []byte) (Element, error) {
	var e Element
	failed := errMalformed // until there is a key
	err := attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			key, _ := attribute(v, unix.NFTA_DATA_VALUE)
			e.Service, failed = s.parseKey(key)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = len(v) == 4 && binary.BigEndian.Uint32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_TIMEOUT:
			e.Timeout = milliseconds(v)
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.Expires = milliseconds(v)
		case unix.NFTA_SET_ELEM_EXPR:
			data, _ := attribute(v, unix.NFTA_EXPR_DATA)
			e.Count = parseCounter(data)
		}
	})
	return e, cmp.Or(err, failed)
}

// joinIntervals makes prefixes of the ends of intervals, in any order. An end
// is the first address after an interval; the last interval may have none.
func joinIntervals(ends []Element) []Element {
	slices.SortFunc(ends, func(a, b Element) int {
		if order := a.Service.Compare(b.Service); order != 0 || a.end == b.end {
			return order
		}
		if a.end { // one interval ends where the next begins
			return -1
		}
		return +1
	})
	var sources []Element
	for i, e := range ends {
		if e.end {
			continue
		}
		var next netip.Addr
		if i+1 < len(ends) {
			next = ends[i+1].Service.Addr()
		}
		sources = append(sources, Element{Source: prefixBetween(e.Service.Addr(), next)})
	}
	return sources
}

// key is the address, and behind it the port padded to 4 bytes.
func (s setSpec) key(service netip.AddrPort) []byte {
	key := service.Addr().AsSlice()
	if s.addressOnly() {
		return key
	}
	return append(key, byte(service.Port()>>8), byte(service.Port()), 0, 0)
}

func (s setSpec) parseKey(key []byte) (netip.AddrPort, error) {
	size := s.family.size
	if s.addressOnly() {
		if len(key) != size {
			return netip.AddrPort{}, errMalformed
		}
		a, _ := netip.AddrFromSlice(key)
		return netip.AddrPortFrom(a, 0), nil
	}
	if len(key) != size+4 {
		return netip.AddrPort{}, errMalformed
	}
	a, _ := netip.AddrFromSlice(key[:size])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(key[size:])), nil
}

func parseCounter(data []byte) Count {
	var c Count
	_ = attributes(data, func(kind uint16, v []byte) {
		if len(v) != 8 {
			return
		}
		switch kind {
		case unix.NFTA_COUNTER_PACKETS:
			c.Packets = binary.BigEndian.Uint64(v)
		case unix.NFTA_COUNTER_BYTES:
			c.Bytes = binary.BigEndian.Uint64(v)
		}
	})
	return c
}

func milliseconds(v []byte) time.Duration {
	if len(v) != 8 {
		return 0
	}
	return time.Duration(binary.BigEndian.Uint64(v)) * time.Millisecond
}

// prefixBetween is the widest prefix that starts at first and ends before end;
// an invalid end is the end of all addresses. Intervals that are no prefix are
// not ours, and read as a part of what they are.
func prefixBetween(first, end netip.Addr) netip.Prefix {
	for n := range first.BitLen() + 1 {
		p := netip.PrefixFrom(first, n)
		if p.Masked() == p && (!end.IsValid() || lastOf(p).Less(end)) {
			return p
		}
	}
	return netip.PrefixFrom(first, first.BitLen())
}

func sortElements(elements []Element) {
	slices.SortFunc(elements, func(a, b Element) int { return a.Service.Compare(b.Service) })
}

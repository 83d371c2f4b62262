package nft

import (
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

// appendElements decodes one message of a dump of s.
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
		e, end, err := s.decode(value)
		switch {
		case err != nil:
			failed = err
		case s.role != roleAllowed:
			elements = append(elements, e)
		case !end:
			elements = append(elements, e)
		case len(elements) > 0:
			// The end of an interval is the first address after it.
			last := &elements[len(elements)-1]
			last.Source = prefixBetween(last.Source.Addr(), e.Source.Addr())
		}
	})
	return elements, errors.Join(err, failed)
}

func (s setSpec) decode(b []byte) (e Element, end bool, err error) {
	var failed error
	err = attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			key, _ := attribute(v, unix.NFTA_DATA_VALUE)
			e.Service, failed = s.parseKey(key)
		case unix.NFTA_SET_ELEM_FLAGS:
			end = len(v) == 4 && binary.BigEndian.Uint32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_TIMEOUT:
			e.Timeout = milliseconds(v)
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.Expires = milliseconds(v)
		case unix.NFTA_SET_ELEM_EXPR:
			data, _ := attribute(v, unix.NFTA_EXPR_DATA)
			e.Count = parseCounter(data)
		}
	})
	if failed == nil && !e.Service.IsValid() {
		failed = errMalformed
	}
	if s.role == roleAllowed && failed == nil {
		a := e.Service.Addr()
		// What has no end reaches to the last address.
		e = Element{Source: prefixBetween(a, netip.Addr{})}
		if end {
			e = Element{Source: netip.PrefixFrom(a, a.BitLen())}
		}
	}
	return e, end, errors.Join(err, failed)
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

func compareElements(a, b Element) int {
	if a.Source.IsValid() {
		return a.Source.Compare(b.Source)
	}
	return a.Service.Compare(b.Service)
}

func sortElements(elements []Element) { slices.SortFunc(elements, compareElements) }

package ipvs

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is the IP protocol number of a virtual service.
type Protocol uint8

// The protocols that IPVS balances.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns "tcp", "udp" or "sctp", and the number of any other protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// A Key names a virtual service. Keys are comparable with ==.
//
// A service is either an address with a protocol (Mark is zero) or a firewall
// mark (Protocol is zero and Addr the zero value), never both. The written form
// is what ParseKey reads:
//
//	192.0.2.1:80       TCP
//	[2001:db8::1]:80   TCP
//	192.0.2.1:*        TCP, every port
//	udp:192.0.2.1:53   UDP, and sctp: for SCTP
//	fwmark:7           packets over IPv4 with firewall mark 7
//	fwmark6:7          the same over IPv6
type Key struct {
	Protocol Protocol
	Addr     netip.AddrPort // port 0: every port of the address
	Mark     uint32
	IPv6     bool // family of a firewall mark's packets; false where Addr tells it
}

// ParseKey reads the written form of a Key. It also takes "tcp:" before an
// address, which String leaves out.
func ParseKey(s string) (Key, error) {
	k, err := parseKey(s)
	if err != nil {
		return Key{}, fmt.Errorf("virtual service %q: %w (write it as 192.0.2.1:80, [2001:db8::1]:80, 192.0.2.1:*, udp:192.0.2.1:53 or fwmark:7)", s, err)
	}
	return k, nil
}

func parseKey(s string) (Key, error) {
	k := Key{Protocol: TCP}
	rest := s
	if word, after, found := strings.Cut(s, ":"); found {
		rest = after
		switch word {
		case "fwmark", "fwmark6":
			mark, err := strconv.ParseUint(after, 10, 32)
			if err != nil || mark == 0 {
				return Key{}, errors.New("a firewall mark is a number from 1 to 4294967295")
			}
			return Key{Mark: uint32(mark), IPv6: word == "fwmark6"}, nil
		case "tcp":
		case "udp":
			k.Protocol = UDP
		case "sctp":
			k.Protocol = SCTP
		default:
			rest = s
		}
	}
	addr, everyPort := strings.CutSuffix(rest, ":*")
	if everyPort {
		addr += ":0"
	}
	ap, err := netip.ParseAddrPort(addr)
	switch {
	case err != nil:
		return Key{}, errors.New("no address and port")
	case ap.Addr().Zone() != "":
		return Key{}, errors.New("an address with a zone cannot be balanced")
	case ap.Port() == 0 && !everyPort:
		return Key{}, errors.New("every port is written *, not 0")
	}
	k.Addr = ap
	return k, nil
}

// String returns the written form.
func (k Key) String() string {
	if k.Mark != 0 {
		word := "fwmark:"
		if k.IPv6 {
			word = "fwmark6:"
		}
		return word + strconv.FormatUint(uint64(k.Mark), 10)
	}
	s := k.Addr.String()
	if k.Addr.IsValid() && k.Addr.Port() == 0 {
		s = strings.TrimSuffix(s, "0") + "*"
	}
	if k.Protocol == TCP {
		return s
	}
	return k.Protocol.String() + ":" + s
}

// MarshalText returns the written form.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the written form.
func (k *Key) UnmarshalText(text []byte) error {
	parsed, err := ParseKey(string(text))
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}

// Compare orders services by address, port and protocol, IPv4 before IPv6, and
// puts firewall marks after all addresses.
func (k Key) Compare(o Key) int {
	if c := compareBool(k.Mark != 0, o.Mark != 0); c != 0 {
		return c
	}
	if c := k.Addr.Compare(o.Addr); c != 0 {
		return c
	}
	if c := cmp.Compare(k.Protocol, o.Protocol); c != 0 {
		return c
	}
	if c := compareBool(k.IPv6, o.IPv6); c != 0 {
		return c
	}
	return cmp.Compare(k.Mark, o.Mark)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

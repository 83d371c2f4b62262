package keepalived

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Held is a set of addresses. The nil set means that it is not known which
// addresses are held; an empty one, that none is.
type Held map[netip.Addr]bool

// kernelDeadline is what one reading may take.
const kernelDeadline = 2 * time.Second

// Addresses reads the addresses of the network namespace in which it was made,
// over one lasting netlink socket. It is not safe for concurrent use.
type Addresses struct {
	conn *netlink.Conn
}

// OpenAddresses opens the socket. That needs no privilege.
func OpenAddresses() (*Addresses, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("open a route netlink socket: %w", err)
	}
	return &Addresses{conn: conn}, nil
}

// Close closes the socket.
func (a *Addresses) Close() error { return a.conn.Close() }

// Held returns the addresses on real interfaces that are up, without link-local
// ones, which mean nothing without their link.
//
// Addresses on loopback and dummy interfaces prove nothing, as a DR real server
// has its virtual addresses there; nor do those on tunnels (ipip, sit, ip6tnl,
// gre, ip6gre), where a TUN real server has them. keepalived's own macvlan
// (use_vmac) and ipvlan interfaces are real. A tentative IPv6 address counts:
// it was given to this host, which will answer in a second. One whose duplicate
// address detection failed does not: another host has it.
//
// A failed reading returns nil and the reason, and the next one starts with a
// new socket.
func (a *Addresses) Held() (Held, error) {
	held, err := a.read()
	if err == nil {
		return held, nil
	}
	err = fmt.Errorf("read the addresses of this host: %w", err)
	fresh, dialErr := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if dialErr != nil {
		return nil, err
	}
	a.conn.Close()
	a.conn = fresh
	return nil, err
}

func (a *Addresses) read() (Held, error) {
	if err := a.conn.SetDeadline(time.Now().Add(kernelDeadline)); err != nil {
		return nil, err
	}
	// Addresses first: an interface that is made in between is then known.
	// struct ifaddrmsg and struct ifinfomsg, all zero, ask for all.
	addresses, err := a.dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return nil, err
	}
	links, err := a.dump(unix.RTM_GETLINK, linkRequest())
	if err != nil {
		return nil, err
	}
	real := make(map[uint32]bool, len(links))
	for _, m := range links {
		index, ok, err := parseLink(m.Data)
		if err != nil {
			return nil, err
		}
		real[index] = ok
	}
	held := make(Held, len(addresses))
	for _, m := range addresses {
		index, addr, err := parseAddress(m.Data)
		if err != nil {
			return nil, err
		}
		if real[index] && addr.IsValid() && !addr.IsLinkLocalUnicast() {
			held[addr] = true
		}
	}
	return held, nil
}

// dump asks for all objects of a kind, again where they changed meanwhile and
// the list is not to be trusted.
func (a *Addresses) dump(kind netlink.HeaderType, request []byte) ([]netlink.Message, error) {
	const attempts = 5
	for range attempts {
		messages, err := a.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Dump},
			Data:   request,
		})
		if err != nil {
			return nil, err
		}
		interrupted := false
		for _, m := range messages {
			interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
		}
		if !interrupted {
			return messages, nil
		}
	}
	return nil, fmt.Errorf("they changed during each of %d readings", attempts)
}

// linkRequest asks for links without their statistics, which are most of an answer.
func linkRequest() []byte {
	const rtextFilterSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
	encoder := netlink.NewAttributeEncoder()
	encoder.Uint32(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
	mask, _ := encoder.Encode() // an attribute of four bytes cannot be too long
	return append(make([]byte, unix.SizeofIfInfomsg), mask...)
}

var errShort = errors.New("netlink message is cut")

// parseLink reads a struct ifinfomsg and its attributes: the index, and whether
// the interface is up and real.
func parseLink(data []byte) (index uint32, real bool, err error) {
	if len(data) < unix.SizeofIfInfomsg {
		return 0, false, errShort
	}
	index = binary.NativeEndian.Uint32(data[4:])
	flags := binary.NativeEndian.Uint32(data[8:])
	real = flags&unix.IFF_UP != 0 && flags&unix.IFF_LOOPBACK == 0
	attributes, err := netlink.NewAttributeDecoder(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return 0, false, err
	}
	for attributes.Next() {
		if attributes.Type() != unix.IFLA_LINKINFO {
			continue
		}
		attributes.Nested(func(info *netlink.AttributeDecoder) error {
			for info.Next() {
				if info.Type() == unix.IFLA_INFO_KIND && provesNothing(info.String()) {
					real = false
				}
			}
			return nil
		})
	}
	if err := attributes.Err(); err != nil {
		return 0, false, err
	}
	return index, real, nil
}

// provesNothing tells the kinds of interface on which real servers have
// virtual addresses.
func provesNothing(kind string) bool {
	switch kind {
	case "dummy", "ipip", "sit", "ip6tnl", "gre", "ip6gre":
		return true
	default:
		return false
	}
}

// parseAddress reads a struct ifaddrmsg and its attributes. The address is not
// valid where duplicate address detection has failed.
func parseAddress(data []byte) (index uint32, addr netip.Addr, err error) {
	if len(data) < unix.SizeofIfAddrmsg {
		return 0, netip.Addr{}, errShort
	}
	flags := uint32(data[2])
	index = binary.NativeEndian.Uint32(data[4:])
	attributes, err := netlink.NewAttributeDecoder(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, netip.Addr{}, err
	}
	var local, address netip.Addr
	for attributes.Next() {
		switch attributes.Type() {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attributes.Bytes())
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(attributes.Bytes())
		case unix.IFA_FLAGS: // the whole of what the header has eight bits for
			flags = attributes.Uint32()
		}
	}
	if err := attributes.Err(); err != nil {
		return 0, netip.Addr{}, err
	}
	if flags&unix.IFA_F_DADFAILED != 0 {
		return index, netip.Addr{}, nil
	}
	// IFA_ADDRESS is the peer's where the two differ (if_addr.h).
	if local.IsValid() {
		return index, local, nil
	}
	return index, address, nil
}

package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// rtnetlink reads what there is in a network namespace, and hears of changes
// (rtnetlink(7)).
type rtnetlink struct {
	requests, changes *netlink.Conn
}

func dialNetwork() (*rtnetlink, error) {
	requests, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	// Strict: of addresses and routes only what is asked for (Linux 4.20). Where
	// it is not known, more comes, and does no harm.
	_ = requests.SetOption(netlink.GetStrictCheck, true)
	changes, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR,
	})
	if err != nil {
		requests.Close()
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &rtnetlink{requests: requests, changes: changes}, nil
}

func (r *rtnetlink) close() error { return errors.Join(r.requests.Close(), r.changes.Close()) }

// wait returns when something has changed, after d, or when ctx has ended and
// interrupt was called.
func (r *rtnetlink) wait(ctx context.Context, d time.Duration) {
	if r.changes.SetReadDeadline(time.Now().Add(d)) != nil || ctx.Err() != nil {
		return
	}
	// Whatever it is, and if it is that there were too many changes: all is read
	// anew.
	_, _ = r.changes.Receive()
}

// interrupt ends a wait.
func (r *rtnetlink) interrupt() { _ = r.changes.SetReadDeadline(time.Now()) }

// drain forgets the changes that were announced up to now.
func (r *rtnetlink) drain() {
	raw, err := r.changes.SyscallConn()
	if err != nil {
		return // wait will tell of each of them
	}
	var b [1]byte // of a longer message the rest is lost, as is wanted
	_ = raw.Control(func(fd uintptr) {
		for {
			_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT)
			if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
				return
			}
		}
	})
}

// read reads links and addresses, and default routes if they are asked for.
func (r *rtnetlink) read(routes bool) (*network, error) {
	var n network
	var err error
	if n.links, err = ask(r.requests, unix.RTM_GETLINK, netlink.Dump, linkRequest(), parseLink); err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	if n.addresses, err = ask(r.requests, unix.RTM_GETADDR, netlink.Dump, make([]byte, unix.SizeofIfAddrmsg), parseAddress); err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	if !routes {
		return &n, nil
	}
	for _, far := range farAway() {
		via, err := r.route(far)
		if err != nil {
			return nil, fmt.Errorf("look up the default route: %w", err)
		}
		n.defaults = append(n.defaults, via...)
	}
	return &n, nil
}

// farAway are addresses that belong to nobody, so that the route to them is the
// default route. A list of all routes would do too, but a host that speaks BGP
// has a million of them.
func farAway() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("4000::1")}
}

// route finds the interfaces of the route to an address.
func (r *rtnetlink) route(to netip.Addr) ([]uint32, error) {
	request := make([]byte, unix.SizeofRtMsg)
	request[0], request[1] = unix.AF_INET6, uint8(to.BitLen())
	if to.Is4() {
		request[0] = unix.AF_INET
	}
	// The route as it is in the table, with all its next hops (Linux 4.13).
	binary.NativeEndian.PutUint32(request[8:], unix.RTM_F_FIB_MATCH)
	e := netlink.NewAttributeEncoder()
	e.Bytes(unix.RTA_DST, to.AsSlice())
	destination, _ := e.Encode() // never fails with so few bytes
	routes, err := ask(r.requests, unix.RTM_GETROUTE, 0, append(request, destination...), parseRoute)
	for _, none := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, none) { // no route, or one that leads nowhere
			return nil, nil
		}
	}
	return slices.Concat(routes...), err
}

// ask asks for something of a kind, or with netlink.Dump for all of it. What
// parse does not want is left out.
func ask[T any](c *netlink.Conn, kind netlink.HeaderType, flags netlink.HeaderFlags, request []byte, parse func([]byte) (T, bool, error)) ([]T, error) {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return nil, err
	}
	messages, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | flags},
		Data:   request,
	})
	if err != nil {
		return nil, err
	}
	var all []T
	for _, m := range messages {
		one, wanted, err := parse(m.Data)
		if err != nil {
			return nil, err
		}
		if wanted {
			all = append(all, one)
		}
	}
	return all, nil
}

// linkRequest asks for links without their statistics.
func linkRequest() []byte {
	const skipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	e := netlink.NewAttributeEncoder()
	e.Uint32(unix.IFLA_EXT_MASK, skipStatistics)
	mask, _ := e.Encode() // never fails with one number
	return append(make([]byte, unix.SizeofIfInfomsg), mask...)
}

var errShort = errors.New("the message is too short")

// parseLink parses a struct ifinfomsg and its attributes.
func parseLink(b []byte) (l link, wanted bool, err error) {
	if len(b) < unix.SizeofIfInfomsg {
		return l, false, errShort
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	l = link{
		hardware: binary.NativeEndian.Uint16(b[2:]),
		index:    binary.NativeEndian.Uint32(b[4:]),
		up:       flags&unix.IFF_UP != 0,
		loopback: flags&unix.IFF_LOOPBACK != 0,
	}
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return l, false, err
	}
	elsewhere := false
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			l.name = d.String()
		case unix.IFLA_LINK:
			l.lower = d.Uint32()
		case unix.IFLA_LINK_NETNSID:
			elsewhere = true
		case unix.IFLA_MASTER:
			l.master = d.Uint32()
		case unix.IFLA_LINKINFO:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == unix.IFLA_INFO_KIND {
						l.kind = d.String()
					}
				}
				return nil
			})
		}
	}
	if elsewhere {
		l.lower = 0
	}
	return l, true, d.Err()
}

// parseAddress parses a struct ifaddrmsg and its attributes.
func parseAddress(b []byte) (a address, wanted bool, err error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false, errShort
	}
	a.link = binary.NativeEndian.Uint32(b[4:])
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return a, false, err
	}
	var own bool
	for d.Next() {
		switch d.Type() {
		case unix.IFA_LOCAL: // where there is one, the other is the peer's
			a.ip, _ = netip.AddrFromSlice(d.Bytes())
			own = true
		case unix.IFA_ADDRESS:
			if !own {
				a.ip, _ = netip.AddrFromSlice(d.Bytes())
			}
		}
	}
	return a, a.ip.IsValid(), d.Err()
}

// parseRoute parses a struct rtmsg and its attributes, and gives the interfaces
// of its next hops.
func parseRoute(b []byte) (links []uint32, wanted bool, err error) {
	if len(b) < unix.SizeofRtMsg {
		return nil, false, errShort
	}
	if b[7] != unix.RTN_UNICAST {
		return nil, false, nil
	}
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofRtMsg:])
	if err != nil {
		return nil, false, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.RTA_OIF:
			links = append(links, d.Uint32())
		case unix.RTA_MULTIPATH: // struct rtnexthop, each with attributes of its own
			for hops := d.Bytes(); len(hops) >= unix.SizeofRtNexthop; {
				size := int(binary.NativeEndian.Uint16(hops))
				if size < unix.SizeofRtNexthop || size > len(hops) {
					return nil, false, errShort
				}
				links = append(links, binary.NativeEndian.Uint32(hops[4:]))
				hops = hops[min((size+3)&^3, len(hops)):]
			}
		}
	}
	return links, true, d.Err()
}

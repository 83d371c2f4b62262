package ipvs

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The numbers of include/uapi/linux/ip_vs.h and genetlink.h.
const (
	familyName    = "IPVS"
	familyVersion = 1

	commandGetService = 4
	commandGetDest    = 8

	attrService = 1
	attrDest    = 2

	serviceFamily    = 1
	serviceProtocol  = 2
	serviceAddr      = 3
	servicePort      = 4
	serviceMark      = 5
	serviceScheduler = 6
	serviceFlags     = 7
	serviceTimeout   = 8
	serviceStats     = 10
	serviceStats64   = 12

	destAddr        = 1
	destPort        = 2
	destMethod      = 3
	destWeight      = 4
	destActiveConn  = 7
	destInActConn   = 8
	destPersistConn = 9
	destStats       = 10
	destFamily      = 11
	destStats64     = 12

	statsConnections = 1
	statsPacketsIn   = 2
	statsPacketsOut  = 3
	statsBytesIn     = 4
	statsBytesOut    = 5

	flagPersistent = 0x1
	flagOnePacket  = 0x4
)

// methods are indexed by the forwarding method's number.
var methods = [...]Method{NAT, Local, TUN, DR, Bypass}

const methodMask = 0x7

// decodeFamily reads a family's name and number out of the answer of generic
// netlink's controller.
func decodeFamily(b []byte) (name string, id uint16, err error) {
	for a := walk(b, &err); a.next(); {
		switch a.kind {
		case unix.CTRL_ATTR_FAMILY_ID:
			id = a.uint16()
		case unix.CTRL_ATTR_FAMILY_NAME:
			name = a.text()
		}
	}
	return name, id, err
}

// nested returns the content of the attribute of the given type.
func nested(b []byte, kind uint16) (content []byte, err error) {
	for a := walk(b, &err); a.next(); {
		if a.kind == kind {
			content = a.value
		}
	}
	if content == nil && err == nil {
		err = errMalformed
	}
	return content, err
}

func decodeService(b []byte) (Service, error) {
	content, err := nested(b, attrService)
	if err != nil {
		return Service{}, err
	}
	var (
		s            Service
		family, port uint16
		addr         []byte
		flags        uint32
		timeout      uint32
		wide, narrow []byte
	)
	for a := walk(content, &err); a.next(); {
		switch a.kind {
		case serviceFamily:
			family = a.uint16()
		case serviceProtocol:
			s.Key.Protocol = Protocol(a.uint16())
		case serviceAddr:
			addr = a.value
		case servicePort:
			port = a.port()
		case serviceMark:
			s.Key.Mark = a.uint32()
		case serviceScheduler:
			s.Scheduler = a.text()
		case serviceFlags: // flags and a mask
			flags = a.uint32()
		case serviceTimeout:
			timeout = a.uint32()
		case serviceStats:
			narrow = a.value
		case serviceStats64:
			wide = a.value
		}
	}
	if err != nil {
		return Service{}, err
	}
	if s.Stats, err = decodeStats(wide, narrow); err != nil {
		return Service{}, err
	}
	if s.Key.Mark != 0 {
		s.Key.Protocol = 0
		s.Key.IPv6 = family == unix.AF_INET6
	} else {
		ip, ok := decodeAddr(family, addr)
		if !ok || s.Key.Protocol == 0 {
			return Service{}, errMalformed
		}
		s.Key.Addr = netip.AddrPortFrom(ip, port)
	}
	s.OnePacket = flags&flagOnePacket != 0
	if flags&flagPersistent != 0 {
		s.Persistent = time.Duration(timeout) * time.Second
	}
	return s, nil
}

// decodeRealServer reads a real server. Kernels before 3.18 do not tell its
// address family: it is the service's.
func decodeRealServer(b []byte, family uint16) (RealServer, error) {
	content, err := nested(b, attrDest)
	if err != nil {
		return RealServer{}, err
	}
	var (
		rs           RealServer
		addr         []byte
		port         uint16
		wide, narrow []byte
	)
	for a := walk(content, &err); a.next(); {
		switch a.kind {
		case destAddr:
			addr = a.value
		case destPort:
			port = a.port()
		case destMethod:
			method := a.uint32() & methodMask
			if method >= uint32(len(methods)) {
				return RealServer{}, errMalformed
			}
			rs.Method = methods[method]
		case destWeight:
			rs.Weight = a.uint32()
		case destActiveConn:
			rs.ActiveConn = a.uint32()
		case destInActConn:
			rs.InActConn = a.uint32()
		case destPersistConn:
			rs.PersistConn = a.uint32()
		case destStats:
			narrow = a.value
		case destStats64:
			wide = a.value
		case destFamily:
			family = a.uint16()
		}
	}
	if err != nil {
		return RealServer{}, err
	}
	if rs.Stats, err = decodeStats(wide, narrow); err != nil {
		return RealServer{}, err
	}
	ip, ok := decodeAddr(family, addr)
	if !ok || rs.Method == "" {
		return RealServer{}, errMalformed
	}
	rs.Addr = netip.AddrPortFrom(ip, port)
	return rs, nil
}

// decodeStats reads totals of 64 bits, or where the kernel has none those of 32.
func decodeStats(wide, narrow []byte) (s Stats, err error) {
	totals := wide
	if wide == nil {
		totals = narrow
	}
	found := 0
	for a := walk(totals, &err); a.next(); {
		var total *uint64
		switch a.kind {
		case statsConnections:
			total = &s.Connections
		case statsPacketsIn:
			total = &s.PacketsIn
		case statsPacketsOut:
			total = &s.PacketsOut
		case statsBytesIn:
			total = &s.BytesIn
		case statsBytesOut:
			total = &s.BytesOut
		default:
			continue
		}
		found++
		if wide != nil || a.kind >= statsBytesIn { // bytes were always 64 bits wide
			*total = a.uint64()
		} else {
			*total = uint64(a.uint32())
		}
	}
	if found != 5 && err == nil {
		err = errMalformed
	}
	return s, err
}

// decodeAddr reads an address out of a union nf_inet_addr.
func decodeAddr(family uint16, b []byte) (netip.Addr, bool) {
	switch {
	case family == unix.AF_INET && len(b) >= 4:
		return netip.AddrFrom4([4]byte(b)), true
	case family == unix.AF_INET6 && len(b) >= 16:
		return netip.AddrFrom16([16]byte(b)), true
	}
	return netip.Addr{}, false
}

// family returns the address family of the service's packets.
func (k Key) family() uint16 {
	if k.IPv6 || k.Addr.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// appendService appends the attributes that name service k in a request.
func appendService(b []byte, k Key) []byte {
	u16 := func(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
	inner := appendAttribute(nil, serviceFamily, u16(k.family()))
	if k.Mark != 0 {
		inner = appendAttribute(inner, serviceMark, binary.NativeEndian.AppendUint32(nil, k.Mark))
	} else {
		inner = appendAttribute(inner, serviceProtocol, u16(uint16(k.Protocol)))
		inner = appendAttribute(inner, serviceAddr, k.Addr.Addr().AsSlice())
		inner = appendAttribute(inner, servicePort, binary.BigEndian.AppendUint16(nil, k.Addr.Port()))
	}
	return appendAttribute(b, attrService|unix.NLA_F_NESTED, inner)
}

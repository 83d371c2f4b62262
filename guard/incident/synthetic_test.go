package incident

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/lvsguard/lvsguard/capture"
)

// This file makes packets: good clients as they are, and floods of many shapes.

var service = netip.MustParseAddrPort("192.0.2.10:80")
var service6 = netip.MustParseAddrPort("[2001:db8::10]:80")

// frame is a TCP segment to be written.
type frame struct {
	src, dst   netip.AddrPort
	seq, ack   uint32
	flags      capture.Flags
	window     uint16
	ttl        uint8
	id         uint16
	df         bool
	urgent     uint16
	options    []byte
	data       int
	extensions []byte // an IPv6 extension header, or IPv4 options
	vlan       bool
}

func (f frame) packet(at int64) capture.Packet {
	for len(f.options)%4 != 0 {
		f.options = append(slices.Clone(f.options), 0)
	}
	tcp := make([]byte, tcpHeader, 200)
	binary.BigEndian.PutUint16(tcp[0:], f.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], f.dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], f.seq)
	binary.BigEndian.PutUint32(tcp[8:], f.ack)
	tcp[12], tcp[13] = byte((tcpHeader+len(f.options))/4<<4), byte(f.flags)
	binary.BigEndian.PutUint16(tcp[14:], f.window)
	binary.BigEndian.PutUint16(tcp[18:], f.urgent)
	tcp = append(append(tcp, f.options...), make([]byte, f.data)...)
	b := make([]byte, 12, 300)
	if f.vlan {
		b = append(b, 0x81, 0, 0, 7)
	}
	if f.dst.Addr().Is4() {
		ip := make([]byte, ipv4Header)
		ip[0] = 0x40 | byte((ipv4Header+len(f.extensions))/4)
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Header+len(f.extensions)+len(tcp)))
		binary.BigEndian.PutUint16(ip[4:], f.id)
		if f.df {
			ip[6] = 0x40
		}
		ip[8], ip[9] = f.ttl, 6
		copy(ip[12:], f.src.Addr().AsSlice())
		copy(ip[16:], f.dst.Addr().AsSlice())
		b = append(append(b, 8, 0), ip...)
	} else {
		ip := make([]byte, ipv6Header)
		ip[0], ip[6], ip[7] = 0x60, 6, f.ttl
		if f.extensions != nil {
			ip[6] = 60
		}
		binary.BigEndian.PutUint16(ip[4:], uint16(len(f.extensions)+len(tcp)))
		copy(ip[8:], f.src.Addr().AsSlice())
		copy(ip[24:], f.dst.Addr().AsSlice())
		b = append(append(b, 0x86, 0xdd), ip...)
	}
	b = append(append(b, f.extensions...), tcp...)
	return capture.Packet{Time: at, Link: capture.LinkEthernet, Length: uint32(len(b)), Data: b[:min(len(b), 128)], Weight: 1}
}

var (
	optMSS = []byte{2, 4, 0x05, 0xb4}

	linuxOptions   = []byte{2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}
	windowsOptions = []byte{2, 4, 0x05, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2}
	appleOptions   = []byte{2, 4, 0x05, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 4, 2, 0, 0}
	androidOptions = []byte{2, 4, 0x05, 0x78, 4, 2, 8, 10, 9, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 9}
)

// client is a SYN of one of the systems that people have.
func client(r *rand.Rand, to netip.AddrPort) frame {
	src := netip.AddrFrom4([4]byte{byte(60 + r.IntN(40)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
	if to.Addr().Is6() {
		a := netip.MustParseAddr("2a00::").As16()
		binary.BigEndian.PutUint64(a[2:], r.Uint64())
		binary.BigEndian.PutUint64(a[8:], r.Uint64())
		src = netip.AddrFrom16(a)
	}
	f := frame{
		src: netip.AddrPortFrom(src, uint16(32768+r.IntN(28000))), dst: to, flags: capture.SYN, df: true,
		seq: r.Uint32(), ttl: 64, window: 64240, options: linuxOptions, id: uint16(r.Uint32()),
	}
	switch r.IntN(10) {
	case 0, 1, 2: // Windows
		f.ttl, f.window, f.options = 128, 64240, windowsOptions
	case 3, 4: // macOS and iOS, which ask for ECN
		f.window, f.options, f.id = 65535, appleOptions, 0
		f.flags |= capture.ECE | capture.CWR
	case 5, 6: // Android
		f.window, f.options = 65535, androidOptions
	case 7: // an older Linux
		f.window = 29200
	}
	f.ttl -= uint8(5 + r.IntN(15))
	return f
}

// scene is a minute of a service: good clients all the time, and after half of it
// a flood as well.
type scene struct {
	to      netip.AddrPort
	good    int // good clients in all
	flood   int // SYNs of the flood in all
	shape   func(r *rand.Rand, i int) frame
	signed  func(SYN) bool
	refused bool // the sources answer with a RST
}

const sceneLength = int64(60e9)

func (s scene) play() *Analysis {
	a := NewAnalysis(AnalysisConfig{Addresses: []netip.AddrPort{service, service6}, Signed: s.signed, Onset: sceneLength / 2})
	for _, p := range s.packets() {
		a.Add(&p)
	}
	a.Pause(sceneLength + 10e9)
	return a
}

func (s scene) packets() []capture.Packet {
	r := rand.New(rand.NewPCG(3, 4))
	if !s.to.IsValid() {
		s.to = service
	}
	var all []capture.Packet
	for range s.good {
		f := client(r, s.to)
		at := r.Int64N(sceneLength - 1e9)
		all = append(all, f.packet(at))
		if r.IntN(50) == 0 {
			continue // it gave up
		}
		f.seq, f.flags, f.options, f.ack = f.seq+1, capture.ACK, nil, r.Uint32()
		all = append(all, f.packet(at+r.Int64N(200e6)))
	}
	for i := range s.flood {
		f := s.shape(r, i)
		at := sceneLength/2 + sceneLength/2*int64(i)/int64(s.flood)
		all = append(all, f.packet(at))
		if s.refused {
			f.seq, f.flags, f.options = f.seq+1, capture.RST, nil
			all = append(all, f.packet(at+40e6))
		}
	}
	slices.SortStableFunc(all, func(a, b capture.Packet) int { return int(min(max(a.Time-b.Time, -1), 1)) })
	return all
}

// spoofed is a SYN without options from anywhere.
func spoofed(r *rand.Rand) frame {
	return frame{
		src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}), uint16(1024+r.IntN(64000))),
		dst: service, flags: capture.SYN, seq: r.Uint32(), ttl: 50, window: 512, id: uint16(r.Uint32()),
	}
}

func window0(s SYN) bool { return s.Window == 0 && s.Length == 40 }

package ipvs

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func u16(v uint16) []byte  { return binary.NativeEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte  { return binary.NativeEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte  { return binary.NativeEndian.AppendUint64(nil, v) }
func port(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func text(s string) []byte { return append([]byte(s), 0) }
func union(ip string) []byte {
	return append(netip.MustParseAddr(ip).AsSlice(), make([]byte, 16)...)[:16]
}
func flags(f uint32) []byte  { return append(u32(f), 0xff, 0xff, 0xff, 0xff) }
func pad(b []byte) attribute { return attribute{0, b} }
func nest(a ...attribute) []byte {
	var b []byte
	for _, a := range a {
		b = appendAttribute(b, a.kind, a.value)
	}
	return b
}

type attribute struct {
	kind  uint16
	value []byte
}

func stats32(s Stats) []byte {
	return nest(attribute{statsConnections, u32(uint32(s.Connections))}, attribute{statsPacketsIn, u32(uint32(s.PacketsIn))},
		attribute{statsPacketsOut, u32(uint32(s.PacketsOut))}, attribute{statsBytesIn, u64(s.BytesIn)}, pad(nil), attribute{statsBytesOut, u64(s.BytesOut)},
		attribute{6, u32(99)})
}

func stats64(s Stats) []byte {
	return nest(attribute{statsConnections, u64(s.Connections)}, attribute{statsPacketsIn, u64(s.PacketsIn)},
		attribute{statsPacketsOut, u64(s.PacketsOut)}, attribute{statsBytesIn, u64(s.BytesIn)}, attribute{statsBytesOut, u64(s.BytesOut)},
		attribute{6, u64(99)})
}

var (
	wide   = Stats{1 << 32, 2 << 32, 3 << 32, 4 << 32, 5 << 32}
	narrow = Stats{1, 2, 3, 4 << 32, 5 << 32}
)

func serviceAttrs(a ...attribute) []byte {
	return nest(attribute{attrService | unix.NLA_F_NESTED, nest(a...)})
}
func destAttrs(a ...attribute) []byte {
	return nest(attribute{attrDest | unix.NLA_F_NESTED, nest(a...)})
}

func TestDecodeService(t *testing.T) {
	common := []attribute{{serviceScheduler, text("wlc")}, {serviceFlags, flags(0x2)}, {serviceTimeout, u32(300)}, {9, u32(0xffffffff)},
		{serviceStats, stats32(narrow)}, {serviceStats64, stats64(wide)}}
	with := func(a ...attribute) []byte { return serviceAttrs(append(a, common...)...) }
	for _, tt := range []struct {
		name  string
		attrs []byte
		want  Service
	}{
		{"TCP", with(attribute{serviceFamily, u16(unix.AF_INET)}, attribute{serviceProtocol, u16(6)}, attribute{serviceAddr, union("192.0.2.1")}, attribute{servicePort, port(80)}),
			Service{Key: keys(t, "192.0.2.1:80")[0], Scheduler: "wlc", Stats: wide}},
		{"UDP over IPv6", with(attribute{serviceFamily, u16(unix.AF_INET6)}, attribute{serviceProtocol, u16(17)}, attribute{serviceAddr, union("2001:db8::1")}, attribute{servicePort, port(53)}),
			Service{Key: keys(t, "udp:[2001:db8::1]:53")[0], Scheduler: "wlc", Stats: wide}},
		{"firewall mark", with(attribute{serviceFamily, u16(unix.AF_INET)}, attribute{serviceMark, u32(7)}),
			Service{Key: Key{Mark: 7}, Scheduler: "wlc", Stats: wide}},
		{"firewall mark over IPv6", with(attribute{serviceFamily, u16(unix.AF_INET6)}, attribute{serviceMark, u32(7)}),
			Service{Key: Key{Mark: 7, IPv6: true}, Scheduler: "wlc", Stats: wide}},
		{"persistent and one-packet", serviceAttrs(attribute{serviceFamily, u16(unix.AF_INET)}, attribute{serviceProtocol, u16(17)}, attribute{serviceAddr, union("192.0.2.1")}, attribute{servicePort, port(0)},
			attribute{serviceScheduler, text("rr")}, attribute{serviceFlags, flags(0x7)}, attribute{serviceTimeout, u32(90)}, attribute{serviceStats, stats32(narrow)}),
			Service{Key: keys(t, "udp:192.0.2.1:*")[0], Scheduler: "rr", Persistent: 90 * time.Second, OnePacket: true, Stats: narrow}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decodeService(tt.attrs)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, compareAddresses); diff != "" {
				t.Errorf("service (-want +got):\n%s", diff)
			}
			for n := range tt.attrs {
				if s, err := decodeService(tt.attrs[:n]); err == nil {
					t.Fatalf("the first %d of %d bytes are %+v", n, len(tt.attrs), s)
				}
			}
		})
	}
}

func TestDecodeRealServer(t *testing.T) {
	attrs := func(method uint32, family ...attribute) []byte {
		return destAttrs(append([]attribute{{destAddr, union("192.0.2.9")}, {destPort, port(8080)}, {destMethod, u32(method)}, {destWeight, u32(5)},
			{5, u32(0)}, {6, u32(0)}, {destActiveConn, u32(1)}, {destInActConn, u32(2)}, {destPersistConn, u32(3)},
			{destStats, stats32(narrow)}, {destStats64, stats64(wide)}}, family...)...)
	}
	ipv4 := attribute{destFamily, u16(unix.AF_INET)}
	for _, tt := range []struct {
		name   string
		attrs  []byte
		method Method
	}{
		{"NAT", attrs(0, ipv4), NAT},
		{"local", attrs(1, ipv4), Local},
		{"TUN", attrs(2, ipv4), TUN},
		{"DR with flags that are not the method", attrs(0x103, ipv4), DR},
		{"bypass", attrs(4, ipv4), Bypass},
		{"family of the service", attrs(3), DR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			family := uint16(unix.AF_INET)
			if tt.name == "TUN" {
				family = unix.AF_INET6 // an IPv4 real server of an IPv6 service
			}
			got, err := decodeRealServer(tt.attrs, family)
			want := RealServer{Addr: netip.MustParseAddrPort("192.0.2.9:8080"), Method: tt.method, Weight: 5,
				ActiveConn: 1, InActConn: 2, PersistConn: 3, Stats: wide}
			if err != nil || got != want {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
		})
	}
	if rs, err := decodeRealServer(attrs(5, ipv4), unix.AF_INET); err == nil {
		t.Errorf("method 5 is %+v", rs)
	}
}

func TestServiceRequest(t *testing.T) {
	for _, k := range keys(t, "192.0.2.1:80", "udp:[2001:db8::1]:*", "fwmark:7", "fwmark6:8") {
		// What names a service in a request is what names it in an answer.
		request, err := nested(appendService(nil, k), attrService)
		if err != nil {
			t.Fatal(err)
		}
		s, err := decodeService(nest(attribute{attrService, append(request, nest(attribute{serviceStats64, stats64(wide)})...)}))
		if err != nil || s.Key != k {
			t.Errorf("%v: %v, %v", k, s.Key, err)
		}
	}
}

func message(kind uint16, seq uint32, body []byte) []byte {
	b := append(u32(uint32(netlinkHeader+len(body))), u16(kind)...)
	b = append(append(append(b, u16(unix.NLM_F_MULTI)...), u32(seq)...), u32(0)...)
	return append(b, append(body, make([]byte, align(len(body))-len(body))...)...)
}

// kernel returns a conn whose other end gives the answers to a request.
func kernel(t *testing.T, answers ...[]byte) *conn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	for _, answer := range answers {
		if _, err := unix.Write(fds[1], answer); err != nil {
			t.Fatal(err)
		}
	}
	timeout := unix.NsecToTimeval(int64(50 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	return &conn{fd: fds[0], receive: make([]byte, receiveBuffer)}
}

func TestDump(t *testing.T) {
	generic := func(s string) []byte { return append([]byte{1, 1, 0, 0}, s...) }
	data := func(seq uint32, s string) []byte { return message(32, seq, generic(s)) }
	done := message(unix.NLMSG_DONE, 1, u32(0))
	join := func(b ...[]byte) (all []byte) {
		for _, b := range b {
			all = append(all, b...)
		}
		return all
	}
	for _, tt := range []struct {
		name    string
		answers [][]byte
		want    []string
		err     error
	}{
		{"one message each", [][]byte{data(1, "a"), data(1, "bc"), done}, []string{"a", "bc"}, nil},
		{"all together", [][]byte{join(data(1, "a"), data(1, "bc"), done)}, []string{"a", "bc"}, nil},
		{"nothing", [][]byte{done}, nil, nil},
		{"rest of an earlier answer", [][]byte{data(7, "old"), message(unix.NLMSG_ERROR, 7, u32(1)), data(1, "a"), done}, []string{"a"}, nil},
		{"refused", [][]byte{message(unix.NLMSG_ERROR, 1, u32(uint32(0xffffffff)))}, nil, unix.EPERM},
		{"broken off", [][]byte{data(1, "a"), message(unix.NLMSG_DONE, 1, u32(^uint32(unix.EMSGSIZE)+1))}, []string{"a"}, unix.EMSGSIZE},
		{"silent", [][]byte{data(1, "a")}, []string{"a"}, os.ErrDeadlineExceeded},
		{"half a header", [][]byte{data(1, "a")[:10]}, nil, errMalformed},
		{"longer than it is", [][]byte{data(1, "abcd")[:20]}, nil, errMalformed},
		{"length of zero", [][]byte{make([]byte, 16)}, nil, errMalformed},
		{"no error number", [][]byte{message(unix.NLMSG_ERROR, 1, nil)}, nil, errMalformed},
		{"no generic header", [][]byte{message(32, 1, nil)}, nil, errMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			err := kernel(t, tt.answers...).dump(32, 4, 1, nil, func(attrs []byte) error {
				got = append(got, string(attrs))
				return nil
			})
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

// Where the module is not loaded that is an error of its own, and asking for it
// has not loaded it.
func TestServicesAbsent(t *testing.T) {
	if _, err := os.Stat("/proc/net/ip_vs"); err == nil {
		t.Skip("ip_vs is loaded here")
	}
	c, err := Open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		if s, err := c.Services(t.Context()); !errors.Is(err, ErrAbsent) {
			t.Errorf("Services = %v, %v, want %v", s, err, ErrAbsent)
		}
	}
	if _, err := os.Stat("/proc/net/ip_vs"); err == nil {
		t.Error("reading has loaded ip_vs")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(serviceAttrs(attribute{serviceFamily, u16(unix.AF_INET)}, attribute{serviceProtocol, u16(6)}, attribute{serviceAddr, union("192.0.2.1")}, attribute{servicePort, port(80)},
		attribute{serviceScheduler, text("wlc")}, attribute{serviceFlags, flags(3)}, attribute{serviceTimeout, u32(300)}, attribute{serviceStats, stats32(narrow)}, attribute{serviceStats64, stats64(wide)}))
	f.Add(destAttrs(attribute{destAddr, union("2001:db8::1")}, attribute{destPort, port(80)}, attribute{destMethod, u32(3)}, attribute{destFamily, u16(unix.AF_INET6)}, attribute{destStats64, stats64(wide)}))
	f.Add(message(32, 1, append([]byte{1, 1, 0, 0}, serviceAttrs(attribute{serviceMark, u32(7)})...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeService(b); err == nil {
			if again, err := ParseKey(s.Key.String()); knownProtocol(s.Key) && (err != nil || again != s.Key) {
				t.Errorf("service %+v is written %v: %v", s.Key, s.Key, err)
			}
		}
		if rs, err := decodeRealServer(b, unix.AF_INET); err == nil && (!rs.Addr.IsValid() || rs.Method == "") {
			t.Errorf("real server %+v", rs)
		}
		decodeFamily(b)
		eachMessage(b, 1, func(attrs []byte) error {
			_, err := decodeService(attrs)
			return err
		})
	})
}

func knownProtocol(k Key) bool {
	return k.Mark != 0 || k.Protocol == TCP || k.Protocol == UDP || k.Protocol == SCTP
}

func BenchmarkDecodeService(b *testing.B) {
	attrs := serviceAttrs(attribute{serviceFamily, u16(unix.AF_INET)}, attribute{serviceProtocol, u16(6)}, attribute{serviceAddr, union("192.0.2.1")}, attribute{servicePort, port(80)},
		attribute{serviceScheduler, text("wlc")}, attribute{serviceFlags, flags(3)}, attribute{serviceTimeout, u32(300)}, attribute{serviceStats, stats32(narrow)}, attribute{serviceStats64, stats64(wide)})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeService(attrs); err != nil {
			b.Fatal(err)
		}
	}
}

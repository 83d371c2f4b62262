package pressure

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func nativeUint32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// refusal is the body of a message that ends an answer with an error.
func refusal(errno unix.Errno) []byte { return nativeUint32(-uint32(errno)) }

// netlinkMessage is a message in answer to request seq.
func netlinkMessage(kind, flags uint16, seq uint32, body []byte) []byte {
	b := nativeUint32(uint32(netlinkHeader + len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = append(append(b, nativeUint32(seq)...), nativeUint32(0)...)
	return append(b, append(slices.Clip(body), make([]byte, alignNetlink(len(body))-len(body))...)...)
}

func netlinkAttribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, alignNetlink(len(value))-len(value))...)
}

// diagMessage is a struct inet_diag_msg.
func diagMessage(family byte, state byte, local, remote string, receive, send uint32, attributes ...[]byte) []byte {
	l, r := netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)
	raw := func(a netip.Addr) []byte {
		if family == unix.AF_INET6 {
			b := a.As16()
			return b[:]
		}
		return append(a.AsSlice(), make([]byte, 12)...)
	}
	b := []byte{family, state, 0, 0}
	b = binary.BigEndian.AppendUint16(b, l.Port())
	b = binary.BigEndian.AppendUint16(b, r.Port())
	b = append(append(b, raw(l.Addr())...), raw(r.Addr())...)
	b = append(b, make([]byte, 12)...) // interface and cookie
	b = append(b, nativeUint32(0)...)  // expires
	b = append(append(b, nativeUint32(receive)...), nativeUint32(send)...)
	b = append(b, make([]byte, 8)...) // uid and inode
	return append(b, slices.Concat(attributes...)...)
}

func tcpInfo(rtt uint32) []byte {
	info := make([]byte, 232)
	binary.NativeEndian.PutUint32(info[tcpInfoRTT:], rtt)
	return netlinkAttribute(diagInfo, info)
}

// endpointOf is an address and port as the decoder gives it.
func endpointOf(s string) endpoint {
	a := netip.MustParseAddrPort(s)
	b := a.Addr().As16()
	return endpoint{ipv6Address(b[:]), uint64(a.Port())}
}

func TestDecodeSocket(t *testing.T) {
	shutdown := netlinkAttribute(8, []byte{0})
	for _, tt := range []struct {
		name    string
		message []byte
		want    tcpSocket
	}{
		{"IPv4", diagMessage(unix.AF_INET, 1, "192.0.2.1:80", "198.51.100.7:40000", 5, 7, shutdown),
			tcpSocket{local: endpointOf("192.0.2.1:80"), remote: endpointOf("198.51.100.7:40000"), state: StateEstablished, receiveQueue: 5, sendQueue: 7}},
		{"IPv6 with an RTT", diagMessage(unix.AF_INET6, 8, "[2001:db8::1]:443", "[2001:db8::7]:65535", 0, 1<<31, shutdown, tcpInfo(1500)),
			tcpSocket{local: endpointOf("[2001:db8::1]:443"), remote: endpointOf("[2001:db8::7]:65535"), state: StateCloseWait, sendQueue: 1 << 31, rtt: 1500}},
		{"IPv4 on an IPv6 socket", diagMessage(unix.AF_INET6, 6, "[::ffff:192.0.2.1]:80", "[::ffff:192.0.2.7]:1", 0, 0),
			tcpSocket{local: endpointOf("192.0.2.1:80"), remote: endpointOf("192.0.2.7:1"), state: StateTimeWait}},
		{"listening, IPv6 only", diagMessage(unix.AF_INET6, 10, "[::]:80", "[::]:0", 9, 8, netlinkAttribute(diagV6Only, []byte{1})),
			tcpSocket{local: endpointOf("[::]:80"), remote: endpointOf("[::]:0"), state: StateListen, receiveQueue: 9, sendQueue: 8, v6Only: true}},
		{"an old kernel's short tcp_info", diagMessage(unix.AF_INET, 1, "192.0.2.1:80", "192.0.2.7:1", 0, 0, netlinkAttribute(diagInfo, make([]byte, tcpInfoRTT))),
			tcpSocket{local: endpointOf("192.0.2.1:80"), remote: endpointOf("192.0.2.7:1"), state: StateEstablished}},
		{"half-open", diagMessage(unix.AF_INET, newSynReceived, "192.0.2.1:80", "192.0.2.7:1", 0, 0),
			tcpSocket{local: endpointOf("192.0.2.1:80"), remote: endpointOf("192.0.2.7:1"), state: StateSynReceived}},
		{"a later kernel's state", diagMessage(unix.AF_INET, 200, "192.0.2.1:80", "192.0.2.7:1", 0, 0),
			tcpSocket{local: endpointOf("192.0.2.1:80"), remote: endpointOf("192.0.2.7:1"), state: StateUnknown}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tcpSocket{rtt: 99, v6Only: true} // of the socket before
			if err := got.decode(tt.message, true); err != nil || got != tt.want {
				t.Errorf("%+v, %v, want %+v", got, err, tt.want)
			}
			plain := tt.want
			plain.rtt, plain.v6Only = 0, false
			if err := got.decode(tt.message, false); err != nil || got != plain {
				t.Errorf("without attributes: %+v, %v, want %+v", got, err, plain)
			}
			for n := range diagMessageSize {
				if err := got.decode(tt.message[:n], true); !errors.Is(err, errMalformedNetlink) {
					t.Fatalf("the first %d bytes are %+v, %v", n, got, err)
				}
			}
		})
	}
	var s tcpSocket
	if err := s.decode(diagMessage(unix.AF_UNIX, 1, "192.0.2.1:80", "192.0.2.7:1", 0, 0), true); !errors.Is(err, errMalformedNetlink) {
		t.Errorf("a Unix socket is %+v, %v", s, err)
	}
	attribute := netlinkAttribute(diagV6Only, []byte{1})
	for _, bad := range [][]byte{attribute[:1], attribute[:4], {3, 0, 1, 0}, {0, 0, 0, 0}, {0xff, 0xff, 1, 0}} {
		if err := s.decode(diagMessage(unix.AF_INET, 1, "192.0.2.1:80", "192.0.2.7:1", 0, 0, bad), true); !errors.Is(err, errMalformedNetlink) {
			t.Errorf("with the attribute %x: %+v, %v", bad, s, err)
		}
	}
}

func TestReadDiagRequest(t *testing.T) {
	plain, rtt := appendDiagRequest(nil, 0x402, false), appendDiagRequest(nil, 0x402, true)
	if len(plain) != 60 || binary.NativeEndian.Uint32(plain[52:]) != 0x402 || plain[3] != 0 {
		t.Errorf("request %x", plain)
	}
	if rtt[3] != 2 || !slices.Equal(append(slices.Clone(plain[:3]), plain[4:]...), append(slices.Clone(rtt[:3]), rtt[4:]...)) {
		t.Errorf("request for RTT %x, else %x", rtt, plain)
	}
	// Of linux/inet_diag.h: TCP_ESTABLISHED to TCP_CLOSING without TCP_LISTEN.
	if connectionStates != 0xbfe {
		t.Errorf("states %#x", connectionStates)
	}
}

// fakeKernel returns a connection that gets, each time it is dialled, the next
// list of answers to read.
func fakeKernel(t *testing.T, dials ...[][]byte) *netlinkConn {
	t.Helper()
	c := &netlinkConn{receive: make([]byte, netlinkReceive)}
	c.dial = func() (int, error) {
		if len(dials) == 0 {
			return -1, unix.EMFILE
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1, err
		}
		t.Cleanup(func() { unix.Close(fds[1]) })
		for _, answer := range dials[0] {
			if _, err := unix.Write(fds[1], answer); err != nil {
				return -1, err
			}
		}
		dials = dials[1:]
		return fds[0], nil
	}
	var err error
	if c.fd, err = c.dial(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.close() })
	return c
}

func TestDump(t *testing.T) {
	const multi, interrupted = unix.NLM_F_MULTI, unix.NLM_F_MULTI | unix.NLM_F_DUMP_INTR
	data := func(seq uint32, s string) []byte { return netlinkMessage(diagGetTCP, multi, seq, []byte(s)) }
	done := func(seq uint32) []byte { return netlinkMessage(unix.NLMSG_DONE, multi, seq, nativeUint32(0)) }
	refused := func(seq uint32, errno unix.Errno) []byte {
		return netlinkMessage(unix.NLMSG_ERROR, 0, seq, refusal(errno))
	}
	for _, tt := range []struct {
		name  string
		dials [][][]byte
		want  []string
		err   error
	}{
		{"one message each", [][][]byte{{data(1, "a"), data(1, "bc"), done(1)}}, []string{"a", "bc"}, nil},
		{"all together", [][][]byte{{slices.Concat(data(1, "a"), data(1, "bc"), done(1))}}, []string{"a", "bc"}, nil},
		{"nothing", [][][]byte{{done(1)}}, nil, nil},
		{"a message that is none", [][][]byte{{netlinkMessage(unix.NLMSG_NOOP, 0, 1, nil), done(1)}}, nil, nil},
		{"rest of an earlier answer", [][][]byte{{data(7, "old"), refused(7, unix.EPERM), data(1, "a"), done(1)}}, []string{"a"}, nil},
		{"refused", [][][]byte{{refused(1, unix.EPERM)}}, nil, unix.EPERM},
		{"broken off", [][][]byte{{data(1, "a"), netlinkMessage(unix.NLMSG_DONE, multi, 1, refusal(unix.EMSGSIZE))}}, []string{"a"}, unix.EMSGSIZE},
		{"interrupted, then whole", [][][]byte{
			{netlinkMessage(diagGetTCP, interrupted, 1, []byte("a")), data(1, "b"), done(1)}, {data(2, "c"), done(2)},
		}, []string{"c"}, nil},
		{"interrupted at its end, and again", [][][]byte{
			{data(1, "a"), netlinkMessage(unix.NLMSG_DONE, interrupted, 1, nativeUint32(0))}, {netlinkMessage(diagGetTCP, interrupted, 2, []byte("b")), done(2)},
		}, []string{"b"}, errDumpInterrupted},
		{"no memory, then enough", [][][]byte{{data(1, "a"), refused(1, unix.ENOBUFS)}, {data(2, "b"), done(2)}}, []string{"b"}, nil},
		{"overrun, and again", [][][]byte{
			{netlinkMessage(unix.NLMSG_OVERRUN, 0, 1, nil)}, {data(2, "b"), netlinkMessage(unix.NLMSG_OVERRUN, 0, 2, nil)},
		}, []string{"b"}, unix.ENOBUFS},
		{"half a header", [][][]byte{{data(1, "a")[:10]}}, nil, errMalformedNetlink},
		{"longer than it is", [][][]byte{{data(1, "abcdefgh")[:20]}}, nil, errMalformedNetlink},
		{"length of zero", [][][]byte{{make([]byte, 16)}}, nil, errMalformedNetlink},
		{"an empty answer", [][][]byte{{{}}}, nil, errMalformedNetlink},
		{"no error number", [][][]byte{{netlinkMessage(unix.NLMSG_ERROR, 0, 1, nil)}}, nil, errMalformedNetlink},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			err := fakeKernel(t, tt.dials...).dump(t.Context(), diagGetTCP, []byte("request"), func() { got = nil }, func(body []byte) error {
				got = append(got, string(body))
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

// After a failure the rest of that answer is not taken for the next one's, and
// the next reading is whole.
func TestDumpRecovers(t *testing.T) {
	data := func(seq uint32, s string) []byte { return netlinkMessage(diagGetTCP, 0, seq, []byte(s)) }
	c := fakeKernel(t, [][]byte{data(1, "x"), data(1, "rest")}, [][]byte{data(2, "y"), netlinkMessage(unix.NLMSG_DONE, 0, 2, nativeUint32(0))})
	var got string
	each := func(body []byte) error {
		got = string(body)
		if got == "x" {
			return errMalformedNetlink
		}
		return nil
	}
	if err := c.dump(t.Context(), diagGetTCP, nil, func() {}, each); !errors.Is(err, errMalformedNetlink) {
		t.Fatalf("error %v, want that of each", err)
	}
	if err := c.dump(t.Context(), diagGetTCP, nil, func() {}, each); err != nil || got != "y" {
		t.Errorf("then %q, %v", got, err)
	}
}

// A kernel that does not answer is waited for no longer than the context says.
func TestDumpDeadline(t *testing.T) {
	c := fakeKernel(t, [][]byte{netlinkMessage(diagGetTCP, 0, 1, nil)}, nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := c.dump(ctx, diagGetTCP, nil, func() {}, func([]byte) error { return nil })
	if waited := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || waited > netlinkTimeout/2 {
		t.Errorf("after %v: %v", waited, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.dump(cancelled, diagGetTCP, nil, func() {}, func([]byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Where the kernel cannot list sockets, both unknown parts have a reason and the
// reason names the module.
func TestReadSocketsWithoutModule(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EOPNOTSUPP} {
		refused := netlinkMessage(unix.NLMSG_ERROR, 0, 1, refusal(errno))
		r := &SocketReader{diag: fakeKernel(t, [][]byte{refused}), route: fakeKernel(t, nil), tally: newTally(10)}
		s := r.Read(t.Context(), SocketsAsk{Connections: true})
		if s.Listeners != nil || s.Connections != nil || s.Unknown["connections"] == "" {
			t.Errorf("%v: %+v", errno, s)
		}
		if why := s.Unknown["listeners"]; !strings.Contains(why, "modprobe tcp_diag") {
			t.Errorf("%v: %q", errno, why)
		}
	}
}

// Where the connections cannot be read the listening sockets still are, and
// where only the host's segments cannot, all but the remote addresses.
func TestReadSocketsInPart(t *testing.T) {
	listener := netlinkMessage(diagGetTCP, 0, 1, diagMessage(unix.AF_INET, 10, "0.0.0.0:80", "0.0.0.0:0", 1, 8))
	connection := netlinkMessage(diagGetTCP, 0, 2, diagMessage(unix.AF_INET, 1, "192.0.2.1:80", "192.0.2.7:1", 0, 0))
	done := func(seq uint32) []byte { return netlinkMessage(unix.NLMSG_DONE, 0, seq, nativeUint32(0)) }
	refused := func(seq uint32) []byte {
		return netlinkMessage(unix.NLMSG_ERROR, 0, seq, refusal(unix.EPERM))
	}
	for _, tt := range []struct {
		name        string
		diag, route [][]byte
		unknown     []string
		connections bool
		remotes     bool
	}{
		{"all", [][]byte{listener, done(1), connection, done(2)}, [][]byte{done(1)}, nil, true, true},
		{"no connections", [][]byte{listener, done(1), refused(2)}, [][]byte{done(1)}, []string{"connections"}, false, false},
		{"no segments", [][]byte{listener, done(1), connection, done(2)}, [][]byte{refused(1)}, []string{"remotes"}, true, false},
		{"neither", [][]byte{listener, done(1), refused(2)}, [][]byte{refused(1)}, []string{"connections"}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &SocketReader{diag: fakeKernel(t, tt.diag), route: fakeKernel(t, tt.route), tally: newTally(10)}
			s := r.Read(t.Context(), SocketsAsk{Connections: true})
			if len(s.Listeners) != 1 || s.Listeners[0].Queue != 1 {
				t.Errorf("listeners %+v", s.Listeners)
			}
			var unknown []string
			for what, why := range s.Unknown {
				unknown = append(unknown, what)
				if why == "" {
					t.Errorf("no reason for %s", what)
				}
			}
			if diff := cmp.Diff(tt.unknown, unknown); diff != "" {
				t.Errorf("unknown (-want +got):\n%s", diff)
			}
			if (s.Connections != nil) != tt.connections || s.Connections != nil && (s.Connections.Remotes != nil) != tt.remotes {
				t.Errorf("connections %+v", s.Connections)
			}
		})
	}
}

func TestReadSegmentsMessage(t *testing.T) {
	message := func(family, bits byte, attributes ...[]byte) []byte {
		return append([]byte{family, bits, 0, 0, 1, 0, 0, 0}, slices.Concat(attributes...)...)
	}
	attribute := func(kind uint16, a string) []byte {
		return netlinkAttribute(kind, netip.MustParseAddr(a).AsSlice())
	}
	var s segments
	for _, m := range [][]byte{
		message(unix.AF_INET, 8, attribute(unix.IFA_ADDRESS, "127.0.0.1"), attribute(unix.IFA_LOCAL, "127.0.0.1")),
		message(unix.AF_INET, 24, attribute(unix.IFA_ADDRESS, "192.0.2.9"), attribute(unix.IFA_LOCAL, "192.0.2.9"), netlinkAttribute(3, []byte("eth0\x00"))),
		message(unix.AF_INET, 32, attribute(unix.IFA_ADDRESS, "192.0.2.100"), attribute(unix.IFA_LOCAL, "192.0.2.100")),
		message(unix.AF_INET, 32, attribute(unix.IFA_ADDRESS, "198.51.100.1"), attribute(unix.IFA_LOCAL, "203.0.113.1")), // point to point
		message(unix.AF_INET6, 128, attribute(unix.IFA_ADDRESS, "::1")),
		message(unix.AF_INET6, 64, attribute(unix.IFA_ADDRESS, "2001:db8::1")),
		message(unix.AF_INET6, 48, attribute(unix.IFA_ADDRESS, "2001:db8:1::1")),
	} {
		var err error
		if s, err = s.appendMessage(m); err != nil {
			t.Fatal(err)
		}
	}
	one := message(unix.AF_INET, 24, attribute(unix.IFA_ADDRESS, "192.0.2.9"))
	for n := range one {
		if s, err := (segments)(nil).appendMessage(one[:n]); err == nil && n != addressMessageSize || len(s) > 0 {
			t.Fatalf("the first %d of %d bytes are %v", n, len(one), s)
		}
	}
	s = s.merge()
	for a, want := range map[string]bool{
		"127.0.0.1": true, "127.255.255.255": true, "128.0.0.0": false, "126.255.255.255": false,
		"192.0.2.0": true, "192.0.2.255": true, "192.0.3.0": false, "192.0.1.255": false,
		"198.51.100.1": true, "198.51.100.0": false, "198.51.100.2": false, "203.0.113.1": true, "203.0.113.2": false,
		"::1": true, "::2": false, "::": false, "2001:db8::ffff:ffff:ffff:ffff": true, "2001:db8:0:1::": false,
		"2001:db8:1:ffff::": true, "2001:db8:2::": false, "ffff:ffff::": false,
	} {
		if got := s.contains(endpointOf(netip.AddrPortFrom(netip.MustParseAddr(a), 0).String()).address); got != want {
			t.Errorf("%s is local: %v, want %v", a, got, want)
		}
	}
	if len(s) != 7 {
		t.Errorf("%d ranges, want 7, as one address lies in another's prefix: %v", len(s), s)
	}
	for name, bad := range map[string][]byte{
		"33 bits":                message(unix.AF_INET, 33, attribute(unix.IFA_ADDRESS, "192.0.2.1")),
		"129 bits":               message(unix.AF_INET6, 129, attribute(unix.IFA_ADDRESS, "::1")),
		"another family's bytes": message(unix.AF_INET, 24, attribute(unix.IFA_ADDRESS, "::1")),
	} {
		if s, err := (segments)(nil).appendMessage(bad); !errors.Is(err, errMalformedNetlink) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if s, err := (segments)(nil).appendMessage(message(unix.AF_INET, 0, attribute(unix.IFA_ADDRESS, "192.0.2.1"))); err != nil ||
		!s.contains(endpointOf("0.0.0.0:0").address) || !s.contains(endpointOf("255.255.255.255:0").address) || s.contains(endpointOf("[::1]:0").address) {
		t.Errorf("a prefix of no bits: %v, %v, want all of IPv4", s, err)
	}
}

func FuzzDiag(f *testing.F) {
	addresses := func(family, bits byte, a string) []byte {
		b := append([]byte{family, bits, 0, 0, 1, 0, 0, 0}, netlinkAttribute(unix.IFA_ADDRESS, netip.MustParseAddr(a).AsSlice())...)
		return netlinkMessage(unix.RTM_NEWADDR, 0, 1, b)
	}
	done := netlinkMessage(unix.NLMSG_DONE, 0, 1, nativeUint32(0))
	f.Add([]byte(nil), []byte(nil), true)
	f.Add(slices.Concat(addresses(unix.AF_INET, 24, "192.0.2.1"), addresses(unix.AF_INET6, 64, "2001:db8::1"), done), slices.Concat(
		netlinkMessage(diagGetTCP, 0, 1, diagMessage(unix.AF_INET, 10, "0.0.0.0:80", "0.0.0.0:0", 9, 8)),
		netlinkMessage(diagGetTCP, 0, 1, diagMessage(unix.AF_INET6, 10, "[::]:443", "[::]:0", 0, 128, netlinkAttribute(diagV6Only, []byte{1}))),
		netlinkMessage(diagGetTCP, 0, 1, diagMessage(unix.AF_INET, 1, "192.0.2.1:80", "192.0.2.7:40000", 10, 0, tcpInfo(1500))),
		netlinkMessage(diagGetTCP, 0, 1, diagMessage(unix.AF_INET6, 6, "[::ffff:192.0.2.1]:443", "[::ffff:198.51.100.7]:1", 0, 0)),
		done), true)
	f.Add(addresses(unix.AF_INET, 32, "192.0.2.1"), netlinkMessage(unix.NLMSG_ERROR, 0, 1, refusal(unix.ENOENT)), false)
	f.Fuzz(func(t *testing.T, route, diag []byte, rtt bool) {
		var own segments
		var interrupted bool
		eachNetlink(route, 1, &interrupted, func(body []byte) (err error) {
			own, err = own.appendMessage(body)
			return err
		})
		own = own.merge()
		if own == nil {
			own = segments{}
		}
		for i := range own {
			if own[i].last.less(own[i].first) || i > 0 && !own[i-1].last.less(own[i].first) {
				t.Errorf("segments %v", own)
			}
		}
		ta := newTally(2)
		var s tcpSocket
		var listening, connections uint64
		ta.beginListeners()
		eachNetlink(diag, 1, &interrupted, func(body []byte) error {
			err := s.decode(body, true)
			if err == nil && s.state == StateListen {
				ta.addListener(&s)
				listening++
			}
			return err
		})
		for _, l := range ta.listenerList() {
			listening -= l.Sockets
			if share := l.Share(); !(share >= 0 && share <= 1) {
				t.Errorf("share %v of %+v", share, l)
			}
		}
		if listening != 0 {
			t.Errorf("%d listening sockets are lost", int64(listening))
		}
		ta.beginConnections(own)
		eachNetlink(diag, 1, &interrupted, func(body []byte) error {
			err := s.decode(body, rtt)
			if err == nil {
				ta.addConnection(&s)
				connections++
			}
			return err
		})
		c := ta.connections()
		var in, remote uint64
		for _, l := range c.Listening {
			in += l.Connections
		}
		for _, r := range c.Remotes {
			remote += r.Connections
		}
		if all := c.All(); all.Connections != connections || remote != connections || in != c.In.Connections {
			t.Errorf("%d connections: %d in all, %d came in, %d by listener, %d by remote address", connections, all.Connections, c.In.Connections, in, remote)
		}
		if len(c.Listening) > 3 || len(c.Remotes) > 4 {
			t.Errorf("%d and %d series, of 2 each", len(c.Listening), len(c.Remotes))
		}
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var back Connections
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(*c, back); diff != "" {
			t.Errorf("written and read back (-want +got):\n%s", diff)
		}
	})
}

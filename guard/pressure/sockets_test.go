package pressure

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lvsguard/lvsguard/internal/netns"
	"golang.org/x/sys/unix"
)

// socketsDeadline is how long a test waits for what it has caused.
const socketsDeadline = 10 * time.Second

func openSocketReader(t *testing.T, h *netns.Host, config SocketsConfig) *SocketReader {
	t.Helper()
	var r *SocketReader
	var err error
	h.Do(t, func() { r, err = OpenSockets(config) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// readSockets reads and fails where anything is unknown.
func readSockets(t *testing.T, r *SocketReader, ask SocketsAsk) Sockets {
	t.Helper()
	s := r.Read(t.Context(), ask)
	for what, why := range s.Unknown {
		if what != "connections" || ask.Connections {
			t.Fatalf("%s unknown: %s", what, why)
		}
	}
	return s
}

func sockaddrOf(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// tcpIn makes a TCP socket in h that is closed with the test, if not before.
func tcpIn(t *testing.T, h *netns.Host, family int, use func(fd int) error) *testSocket {
	t.Helper()
	s := &testSocket{fd: -1}
	var err error
	h.Do(t, func() {
		if s.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = use(s.fd)
		}
	})
	t.Cleanup(s.close)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type testSocket struct{ fd int }

func (s *testSocket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

func (s *testSocket) write(t *testing.T, bytes int) {
	t.Helper()
	if n, err := unix.Write(s.fd, make([]byte, bytes)); n != bytes || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, bytes, err)
	}
}

// listenIn listens, with options set: level, option, value.
func listenIn(t *testing.T, h *netns.Host, local string, backlog int, options ...[3]int) *testSocket {
	t.Helper()
	family, sa := sockaddrOf(netip.MustParseAddrPort(local))
	return tcpIn(t, h, family, func(fd int) error {
		for _, o := range options {
			if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
				return fmt.Errorf("option %v: %w", o, err)
			}
		}
		if err := unix.Bind(fd, sa); err != nil {
			return fmt.Errorf("bind to %s: %w", local, err)
		}
		return unix.Listen(fd, backlog)
	})
}

// connectIn connects, from an address if one is given, and waits until it is
// done unless told otherwise.
func connectIn(t *testing.T, h *netns.Host, from, to string, wait bool) *testSocket {
	t.Helper()
	family, sa := sockaddrOf(netip.MustParseAddrPort(to))
	return tcpIn(t, h, family, func(fd int) error {
		if from != "" {
			_, source := sockaddrOf(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
			if err := unix.Bind(fd, source); err != nil {
				return fmt.Errorf("bind to %s: %w", from, err)
			}
		}
		if err := unix.SetNonblock(fd, !wait); err != nil {
			return err
		}
		if err := unix.Connect(fd, sa); err != nil && (wait || err != unix.EINPROGRESS) {
			return fmt.Errorf("connect to %s: %w", to, err)
		}
		return nil
	})
}

func (s *testSocket) accept(t *testing.T) *testSocket {
	t.Helper()
	timeout := unix.NsecToTimeval(socketsDeadline.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	accepted := &testSocket{fd}
	t.Cleanup(accepted.close)
	return accepted
}

// pair is a connection from a client to a listener, both ends.
func pair(t *testing.T, client *netns.Host, from, to string, listener *testSocket) (near, far *testSocket) {
	t.Helper()
	near = connectIn(t, client, from, to, true)
	return near, listener.accept(t)
}

// site is a server and a client on one link. The client has one more address
// that is not of that link.
func site(t *testing.T) (server, client *netns.Host) {
	t.Helper()
	server, client = netns.New(t), netns.New(t)
	netns.Join(t, server, "eth0", client, "eth0")
	for _, args := range []string{"addr add 192.0.2.1/24 dev eth0", "addr add 2001:db8::1/64 dev eth0 nodad", "route add 198.51.100.0/24 via 192.0.2.2",
		"neigh add 192.0.2.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent"} {
		server.Run(t, "ip", strings.Fields(args)...)
	}
	for _, args := range []string{"addr add 192.0.2.2/24 dev eth0", "addr add 2001:db8::2/64 dev eth0 nodad", "addr add 198.51.100.7/32 dev lo"} {
		client.Run(t, "ip", strings.Fields(args)...)
	}
	return server, client
}

// figures are what both ss and we tell.
type figures struct {
	States    map[string]uint64
	Listeners map[string][2]uint64 // queue and limit
	Listening map[uint16]uint64    // connections by port that is listened on
	Remotes   map[string]uint64
	Receive   Queued
	Send      Queued
}

func newFigures() figures {
	return figures{States: map[string]uint64{}, Listeners: map[string][2]uint64{}, Listening: map[uint16]uint64{}, Remotes: map[string]uint64{}}
}

func ourFigures(t *testing.T, s Sockets) figures {
	t.Helper()
	f := newFigures()
	for _, l := range s.Listeners {
		f.Listeners[l.Name] = [2]uint64{l.Queue, l.Limit}
		f.States["listen"] += l.Sockets
	}
	all := s.Connections.All()
	for state, n := range all.States {
		if n > 0 {
			f.States[TCPState(state).String()] += n
		}
	}
	f.Receive, f.Send = all.Receive, all.Send
	for _, l := range s.Connections.Listening {
		f.Listening[netip.MustParseAddrPort(l.Name).Port()] += l.Connections
	}
	for _, r := range s.Connections.Remotes {
		f.Remotes[r.Name] = r.Connections
	}
	return f
}

// ssFigures takes them from `ss -Hant`. No port that is listened on may be
// another connection's own.
func ssFigures(t *testing.T, h *netns.Host, own ...string) figures {
	t.Helper()
	f := newFigures()
	names := map[string]string{
		"ESTAB": "established", "SYN-SENT": "syn_sent", "SYN-RECV": "syn_received", "FIN-WAIT-1": "fin_wait_1",
		"FIN-WAIT-2": "fin_wait_2", "TIME-WAIT": "time_wait", "CLOSE-WAIT": "close_wait", "LAST-ACK": "last_ack",
		"LISTEN": "listen", "CLOSING": "closing",
	}
	parse := func(s string) netip.AddrPort {
		if port, ok := strings.CutPrefix(s, "*:"); ok { // an IPv6 socket of any address and both families
			s = "[::]:" + strings.Replace(port, "*", "0", 1)
		}
		a, err := netip.ParseAddrPort(strings.Replace(s, ":*", ":0", 1))
		if err != nil {
			t.Fatalf("ss: %v", err)
		}
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("ss: %v", err)
		}
		return n
	}
	lines := slices.Collect(strings.Lines(h.Run(t, "ss", "-Hant")))
	for _, line := range lines {
		w := strings.Fields(line)
		if len(w) < 5 || names[w[0]] == "" {
			t.Fatalf("ss: unknown line %q", line)
		}
		f.States[names[w[0]]]++
		if local := parse(w[3]); w[0] == "LISTEN" {
			f.Listeners[local.String()] = [2]uint64{number(w[1]), number(w[2])}
			f.Listening[local.Port()] = 0
		}
	}
	for _, line := range lines {
		w := strings.Fields(line)
		if w[0] == "LISTEN" {
			continue
		}
		local, remote := parse(w[3]), parse(w[4])
		if _, in := f.Listening[local.Port()]; in {
			f.Listening[local.Port()]++
		}
		if slices.ContainsFunc(own, func(p string) bool { return netip.MustParsePrefix(p).Contains(remote.Addr()) }) {
			f.Remotes[remote.Addr().String()]++
		} else {
			f.Remotes[SeriesNonlocal]++
		}
		for q, n := range map[*Queued]uint64{&f.Receive: number(w[1]), &f.Send: number(w[2])} {
			if n > 0 {
				q.addQueued(Queued{1, n})
			}
		}
	}
	maps.DeleteFunc(f.Listening, func(_ uint16, n uint64) bool { return n == 0 })
	return f
}

// atOneInstant gives our figures and those of ss of a time at which nothing
// moved, and in which the wanted states are.
func atOneInstant(t *testing.T, r *SocketReader, h *netns.Host, states []TCPState, own ...string) (ours, ss figures) {
	t.Helper()
	for deadline := time.Now().Add(socketsDeadline); ; time.Sleep(20 * time.Millisecond) {
		before := ourFigures(t, readSockets(t, r, SocketsAsk{Connections: true}))
		ss = ssFigures(t, h, own...)
		ours = ourFigures(t, readSockets(t, r, SocketsAsk{Connections: true}))
		complete := !slices.ContainsFunc(states, func(s TCPState) bool { return ours.States[s.String()] == 0 })
		if complete && cmp.Equal(before, ours) {
			return ours, ss
		}
		if time.Now().After(deadline) {
			t.Fatalf("not at rest with all of %v within %v: %v", states, socketsDeadline, ours.States)
		}
	}
}

// What we count is what ss lists at the same instant: every state that can be
// brought about, IPv4, IPv6 and IPv4 on IPv6 sockets, in and out, near and far.
func TestSocketsAgreeWithSS(t *testing.T) {
	server, client := site(t)
	r := openSocketReader(t, server, SocketsConfig{})
	web := listenIn(t, server, "0.0.0.0:80", 128)
	both := listenIn(t, server, "[::]:443", 64)
	one := listenIn(t, server, "[2001:db8::1]:8080", 32, [3]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1})
	listenIn(t, server, "127.0.0.1:25", 16)
	listenIn(t, server, "0.0.0.0:8443", 8, [3]int{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60})
	far := listenIn(t, client, "0.0.0.0:9000", 128)

	for range 3 {
		pair(t, client, "", "192.0.2.1:80", web)
		pair(t, client, "", "192.0.2.1:443", both)
		pair(t, client, "", "[2001:db8::1]:443", both)
	}
	pair(t, client, "", "[2001:db8::1]:8080", one)
	pair(t, client, "198.51.100.7", "192.0.2.1:80", web)
	connectIn(t, client, "", "192.0.2.1:8443", true) // half-open until it sends something
	connectIn(t, server, "", "192.0.2.99:80", false) // there is no such host
	out, _ := pair(t, server, "", "192.0.2.2:9000", far)

	unread, _ := pair(t, client, "", "192.0.2.1:80", web)
	unread.write(t, 100)
	_, closed := pair(t, client, "", "192.0.2.1:80", web)
	closed.close() // FIN_WAIT_2
	finished, first := pair(t, client, "", "[2001:db8::1]:443", both)
	first.close()
	finished.close() // TIME_WAIT
	leaving, lastAck := pair(t, client, "", "192.0.2.1:80", web)
	leaving.close() // CLOSE_WAIT
	left, _ := pair(t, client, "", "192.0.2.1:80", web)
	left.close()
	_, finWait := pair(t, client, "", "192.0.2.1:80", web)
	connectIn(t, client, "", "192.0.2.1:443", true) // waits to be accepted
	own := []string{"127.0.0.0/8", "192.0.2.0/24", "2001:db8::/64", "::1/128", "fe80::/10"}
	atOneInstant(t, r, server, []TCPState{StateCloseWait, StateTimeWait, StateFinWait2}, own...)

	client.Run(t, "ip", "link", "set", "eth0", "down") // nothing is acknowledged any more
	out.write(t, 1000)
	finWait.close()
	lastAck.close()
	states := []TCPState{
		StateListen, StateEstablished, StateSynSent, StateSynReceived, StateFinWait1, StateFinWait2, StateTimeWait, StateCloseWait, StateLastAck,
	}
	ours, ss := atOneInstant(t, r, server, states, own...)
	if diff := cmp.Diff(ss, ours); diff != "" {
		t.Errorf("figures (-ss +ours):\n%s", diff)
	}
	if ours.Remotes[SeriesNonlocal] != 1 || ours.Remotes["192.0.2.99"] != 1 || ours.Send.Bytes < 1000 || ours.Receive.Bytes < 100 {
		t.Errorf("far away, to nobody and queued: %+v", ours)
	}
}

// A listener that does not accept is seen and named when its queue is full, at
// the top of the list, and what it was at its highest stays known.
func TestSocketsFullAcceptQueue(t *testing.T) {
	h := netns.New(t)
	r := openSocketReader(t, h, SocketsConfig{})
	listenIn(t, h, "127.0.0.1:80", 128)
	stuck := listenIn(t, h, "[::1]:8080", 8)
	const full = 9 // the kernel takes one more than the limit
	for range 12 {
		connectIn(t, h, "", "[::1]:8080", false)
	}
	first := func(queue uint64) Listener {
		t.Helper()
		for deadline := time.Now().Add(socketsDeadline); ; time.Sleep(5 * time.Millisecond) {
			l := readSockets(t, r, SocketsAsk{}).Listeners
			if len(l) == 2 && slices.ContainsFunc(l, func(l Listener) bool { return l.Name == "[::1]:8080" && l.Queue == queue }) {
				return l[0]
			}
			if time.Now().After(deadline) {
				t.Fatalf("no queue of %d within %v: %+v", queue, socketsDeadline, l)
			}
		}
	}
	got := first(full)
	if want := (Listener{Name: "[::1]:8080", Sockets: 1, Queue: full, Limit: 8, Highest: full}); got != want || got.Share() != 1 {
		t.Errorf("%+v, share %v, want %+v", got, got.Share(), want)
	}
	for range full {
		stuck.accept(t)
	}
	// Some of the others come in by and by, as their SYNs are sent again.
	if l := readSockets(t, r, SocketsAsk{}).Listeners; !slices.ContainsFunc(l, func(l Listener) bool {
		return l.Name == "[::1]:8080" && l.Queue < full && l.Highest == full
	}) {
		t.Errorf("after accepting: %+v", l)
	}
}

// Of several sockets on one port the fullest shows.
func TestSocketsReusedPort(t *testing.T) {
	h := netns.New(t)
	r := openSocketReader(t, h, SocketsConfig{})
	reuse := [3]int{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}
	for range 4 {
		listenIn(t, h, "127.0.0.1:80", 4, reuse)
	}
	connectIn(t, h, "", "127.0.0.1:80", true)
	l := readSockets(t, r, SocketsAsk{}).Listeners
	if diff := cmp.Diff([]Listener{{Name: "127.0.0.1:80", Sockets: 4, Queue: 1, Limit: 4, Highest: 1}}, l); diff != "" {
		t.Errorf("listeners (-want +got):\n%s", diff)
	}
}

// Beyond the limit remote addresses and listeners are counted together.
func TestSocketsLimit(t *testing.T) {
	h := netns.New(t)
	r := openSocketReader(t, h, SocketsConfig{MaxSeries: 2})
	for i := range 5 {
		local := fmt.Sprintf("127.0.1.%d:80", i+1)
		listener := listenIn(t, h, local, 8)
		for range 2 {
			pair(t, h, fmt.Sprintf("127.0.2.%d", i+1), local, listener)
		}
	}
	s := readSockets(t, r, SocketsAsk{Connections: true})
	var listeners, in, all uint64
	for _, l := range s.Listeners {
		listeners += l.Sockets
	}
	for _, l := range s.Connections.Listening {
		in += l.Connections
	}
	for _, r := range s.Connections.Remotes {
		all += r.Connections
	}
	if len(s.Listeners) != 3 || len(s.Connections.Listening) != 3 || len(s.Connections.Remotes) != 3 {
		t.Errorf("%d listeners, %d and %d series, of 2 each and the others", len(s.Listeners), len(s.Connections.Listening), len(s.Connections.Remotes))
	}
	if listeners != 5 || in != 10 || all != 20 {
		t.Errorf("%d listeners, %d connections came in, %d in all, want 5, 10 and 20", listeners, in, all)
	}
	if last := s.Connections.Remotes[2]; last.Name != SeriesOther || last.Connections != 16 {
		t.Errorf("beyond the limit %+v", last)
	}
}

// RTT quantiles are those of the round-trip times that ss shows.
func TestSocketsRTTAgreesWithSS(t *testing.T) {
	server, client := site(t)
	r := openSocketReader(t, server, SocketsConfig{})
	listener := listenIn(t, server, "[::]:443", 128)
	for i := range 40 {
		pair(t, client, "", []string{"192.0.2.1:443", "[2001:db8::1]:443"}[i%2], listener)
	}
	s := readSockets(t, r, SocketsAsk{Connections: true, RTT: true})
	var times []float64
	for word := range strings.FieldsSeq(server.Run(t, "ss", "-Htni", "sport", "=", ":443")) {
		if value, ok := strings.CutPrefix(word, "rtt:"); ok {
			value, _, _ = strings.Cut(value, "/")
			ms, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			times = append(times, ms)
		}
	}
	slices.Sort(times)
	if len(times) != 40 || len(s.Connections.Listening) != 1 || s.Connections.Listening[0].RTT == nil {
		t.Fatalf("ss shows %d, we %+v", len(times), s.Connections.Listening)
	}
	got := s.Connections.Listening[0].RTT
	if got.Connections != 40 {
		t.Errorf("%d connections have an RTT, want 40", got.Connections)
	}
	for q, ms := range map[float64]float64{0.5: got.P50, 0.9: got.P90, 0.99: got.P99} {
		want := times[int(math.Ceil(q*40))-1]
		if math.Abs(ms-want) > want/16+0.001 {
			t.Errorf("quantile %v is %v ms, want %v ms", q, ms, want)
		}
	}
	if plain := readSockets(t, r, SocketsAsk{Connections: true}); plain.Connections.Listening[0].RTT != nil {
		t.Errorf("not asked for: %+v", plain.Connections.Listening[0].RTT)
	}
}

// Sockets of other namespaces are not of this host.
func TestSocketsOfThisNamespace(t *testing.T) {
	here, elsewhere := netns.New(t), netns.New(t)
	r := openSocketReader(t, here, SocketsConfig{})
	listener := listenIn(t, elsewhere, "127.0.0.1:80", 8)
	pair(t, elsewhere, "", "127.0.0.1:80", listener)
	s := readSockets(t, r, SocketsAsk{Connections: true})
	if all := s.Connections.All(); len(s.Listeners) != 0 || all.Connections != 0 {
		t.Errorf("%+v", s)
	}
}

// A reading takes no more memory for more connections.
func TestSocketsAllocate(t *testing.T) {
	h := netns.New(t)
	r := openSocketReader(t, h, SocketsConfig{})
	listener := listenIn(t, h, "127.0.0.1:80", 128)
	read := func() float64 {
		return testing.AllocsPerRun(5, func() { readSockets(t, r, SocketsAsk{Connections: true, RTT: true}) })
	}
	pair(t, h, "", "127.0.0.1:80", listener)
	few := read()
	for range 500 {
		pair(t, h, "", "127.0.0.1:80", listener)
	}
	if many := read(); many > few {
		t.Errorf("a reading of 2 connections allocates %v times, of 1,002 %v times", few, many)
	}
}

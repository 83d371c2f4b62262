package pressure

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func listenerAt(local string, queue, limit uint32) tcpSocket {
	return tcpSocket{local: endpointOf(local), state: StateListen, receiveQueue: queue, sendQueue: limit}
}

func connectionOf(local, remote string, state TCPState) tcpSocket {
	return tcpSocket{local: endpointOf(local), remote: endpointOf(remote), state: state}
}

// ownSegments are the segments of prefixes.
func ownSegments(prefixes ...string) segments {
	s := segments{}
	for _, p := range prefixes {
		p := netip.MustParsePrefix(p)
		bits := p.Bits()
		if p.Addr().Is4() {
			bits += 96
		}
		s = append(s, segmentOf(endpointOf(netip.AddrPortFrom(p.Addr(), 0).String()).address, bits))
	}
	return s.merge()
}

// tallyUp adds listening sockets and then connections to a tally.
func tallyUp(t *tally, own segments, listeners, connections []tcpSocket) (list []Listener, c *Connections) {
	t.beginListeners()
	for _, s := range listeners {
		t.addListener(&s)
	}
	list = t.listenerList()
	t.beginConnections(own)
	for _, s := range connections {
		t.addConnection(&s)
	}
	return list, t.connections()
}

// Each connection is at the listener that the kernel would have given it to.
func TestTallyDirection(t *testing.T) {
	v6Only := listenerAt("[::]:81", 0, 8)
	v6Only.v6Only = true
	listeners := []tcpSocket{
		listenerAt("0.0.0.0:80", 0, 8), listenerAt("192.0.2.2:80", 0, 8), listenerAt("[2001:db8::1]:80", 0, 8),
		v6Only, listenerAt("192.0.2.1:81", 0, 8),
		listenerAt("[::]:443", 0, 8), listenerAt("192.0.2.2:443", 0, 8),
		listenerAt("127.0.0.1:25", 0, 8),
	}
	const out = "out"
	for _, tt := range []struct{ local, want string }{
		{"192.0.2.1:80", "0.0.0.0:80"},
		{"192.0.2.2:80", "192.0.2.2:80"},
		{"[2001:db8::1]:80", "[2001:db8::1]:80"},
		{"[2001:db8::2]:80", out}, // no IPv6 socket listens on any address
		{"[2001:db8::2]:81", "[::]:81"},
		{"192.0.2.1:81", "192.0.2.1:81"},
		{"192.0.2.2:81", out}, // [::]:81 takes no IPv4
		{"192.0.2.1:443", "[::]:443"},
		{"192.0.2.2:443", "192.0.2.2:443"},
		{"[2001:db8::1]:443", "[::]:443"},
		{"127.0.0.1:25", "127.0.0.1:25"},
		{"192.0.2.1:25", out},
		{"192.0.2.1:40000", out},
	} {
		_, c := tallyUp(newTally(10), nil, listeners, []tcpSocket{connectionOf(tt.local, "198.51.100.7:2000", StateEstablished)})
		got := out
		if len(c.Listening) > 0 {
			got = c.Listening[0].Name
		}
		if got != tt.want || c.In.Connections+c.Out.Connections != 1 || (c.Out.Connections == 1) != (got == out) {
			t.Errorf("%s came to %s, want %s: %+v", tt.local, got, tt.want, c)
		}
	}
}

// The whole of what is told, as JSON, of a made-up host.
func TestTallyGolden(t *testing.T) {
	full, rtt := listenerAt("192.0.2.1:80", 9, 8), connectionOf("192.0.2.1:80", "198.51.100.7:2000", StateEstablished)
	rtt.rtt, rtt.receiveQueue, rtt.sendQueue = 1500, 100, 7
	ta := newTally(3)
	own := ownSegments("127.0.0.0/8", "192.0.2.0/24", "2001:db8::/64")
	listeners := []tcpSocket{
		listenerAt("0.0.0.0:22", 0, 128), full, listenerAt("192.0.2.1:80", 0, 8), listenerAt("[::]:443", 64, 128),
		listenerAt("0.0.0.0:8080", 0, 4), listenerAt("0.0.0.0:8081", 3, 4),
	}
	tallyUp(ta, own, listeners, nil)
	listeners[3].receiveQueue = 32
	list, c := tallyUp(ta, own, listeners, []tcpSocket{
		rtt,
		connectionOf("192.0.2.1:80", "192.0.2.9:2000", StateEstablished),
		connectionOf("192.0.2.1:80", "192.0.2.9:2001", StateTimeWait),
		connectionOf("192.0.2.1:80", "192.0.2.10:2001", StateSynReceived),
		connectionOf("[2001:db8::1]:443", "[2001:db8::9]:2001", StateEstablished),
		connectionOf("192.0.2.1:8081", "192.0.2.12:2001", StateFinWait1),
		connectionOf("192.0.2.1:40000", "203.0.113.1:443", StateSynSent),
		connectionOf("192.0.2.1:40001", "192.0.2.13:443", StateUnknown),
	})
	b, err := json.MarshalIndent(Sockets{Listeners: list, Connections: c}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/sockets.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(b)+"\n"); diff != "" {
		t.Errorf("testdata/sockets.json (-want +got):\n%s", diff)
	}
}

// However many listeners and remote addresses there are, no more than the limit
// are told, and none is left out of the sums.
func TestTallyLimit(t *testing.T) {
	const limit = 10
	var listeners, connections []tcpSocket
	for i := range 50 {
		listeners = append(listeners, listenerAt(fmt.Sprintf("192.0.2.1:%d", 1000+i), 0, 8))
		for j := range 20 {
			connections = append(connections, connectionOf(fmt.Sprintf("192.0.2.1:%d", 1000+i), fmt.Sprintf("127.0.%d.%d:2000", i, j), StateEstablished))
		}
	}
	listeners[49].receiveQueue = 8 // beyond the limit, and full
	list, c := tallyUp(newTally(limit), ownSegments("127.0.0.0/8"), listeners, connections)
	if first := (Listener{Name: SeriesOther, Sockets: 40, Queue: 8, Limit: 8, Highest: 8}); len(list) != limit+1 || list[0] != first {
		t.Errorf("%d listeners, first %+v, want %d and %+v", len(list), list[0], limit+1, first)
	}
	for what, series := range map[string][]Series{"listening": c.Listening, "remotes": c.Remotes} {
		var sum uint64
		for _, s := range series {
			sum += s.Connections
		}
		last := series[len(series)-1]
		if len(series) != limit+1 || last.Name != SeriesOther || sum != 1000 {
			t.Errorf("%s: %d series with %d connections, the last %+v", what, len(series), sum, last)
		}
	}
	if c.Out.Connections != 0 {
		t.Errorf("%d connections go out: those to listeners beyond the limit came in", c.Out.Connections)
	}
}

// A tally that is used again has nothing of before in it, but for the highest
// accept queues.
func TestTallyAgain(t *testing.T) {
	ta := newTally(10)
	busy := connectionOf("192.0.2.1:80", "192.0.2.9:2000", StateEstablished)
	busy.rtt, busy.receiveQueue = 1500, 5
	tallyUp(ta, ownSegments("192.0.2.0/24"), []tcpSocket{listenerAt("0.0.0.0:80", 7, 8), listenerAt("0.0.0.0:81", 5, 8)}, []tcpSocket{busy, busy})
	quiet := connectionOf("192.0.2.1:80", "192.0.2.9:2000", StateCloseWait)
	list, c := tallyUp(ta, ownSegments("198.51.100.0/24"), []tcpSocket{listenerAt("0.0.0.0:80", 1, 8)}, []tcpSocket{quiet})
	group := Group{Connections: 1, States: States{StateCloseWait: 1}}
	if diff := cmp.Diff([]Listener{{Name: "0.0.0.0:80", Sockets: 1, Queue: 1, Limit: 8, Highest: 7}}, list); diff != "" {
		t.Errorf("listeners (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&Connections{
		In: group, Listening: []Series{{Name: "0.0.0.0:80", Group: group}}, Remotes: []Series{{Name: SeriesNonlocal, Group: group}},
	}, c); diff != "" {
		t.Errorf("connections (-want +got):\n%s", diff)
	}
	// A listener that was gone has no highest of before.
	tallyUp(ta, nil, nil, nil)
	if list, _ := tallyUp(ta, nil, []tcpSocket{listenerAt("0.0.0.0:80", 2, 8)}, nil); list[0].Highest != 2 {
		t.Errorf("highest of a new listener is %d", list[0].Highest)
	}
}

func TestListenerShare(t *testing.T) {
	for _, tt := range []struct {
		queue, limit uint64
		want         float64
	}{{0, 8, 0}, {4, 8, 0.5}, {8, 8, 1}, {9, 8, 1}, {0, 0, 0}, {1, 0, 1}} {
		if got := (Listener{Queue: tt.queue, Limit: tt.limit}).Share(); got != tt.want {
			t.Errorf("share of %d of %d is %v, want %v", tt.queue, tt.limit, got, tt.want)
		}
	}
}

// Quantiles are within 1/16 of those of the sorted values.
func TestHistogramQuantiles(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, value := range map[string]func() uint32{
		"one value":   func() uint32 { return 20_000 },
		"small":       func() uint32 { return random.Uint32N(20) + 1 },
		"exponential": func() uint32 { return uint32(random.ExpFloat64()*50_000) + 1 },
		"anything":    random.Uint32,
		"largest":     func() uint32 { return 1<<32 - 1 },
	} {
		var h histogram
		var all []uint32
		for range 5000 {
			v := value()
			h.add(v)
			all = append(all, v)
		}
		slices.Sort(all)
		for _, q := range []float64{0.5, 0.9, 0.99} {
			want := float64(all[int(q*float64(len(all)))-1])
			if got := h.quantile(q); got < want*15/16 || got > want*17/16 {
				t.Errorf("%s: quantile %v is %v, want %v", name, q, got, want)
			}
		}
	}
	if got := (*histogram)(nil).rtt(); got != nil {
		t.Errorf("no values are %+v", got)
	}
}

// Every value lies in the bucket whose middle stands for it, and no bucket is
// missing between two values.
func TestHistogramBuckets(t *testing.T) {
	bucket := 0
	for v := uint64(0); v < 1<<32; v += max(1, v/64) {
		b := bucketOf(uint32(v))
		if b != bucket && b != bucket+1 {
			t.Fatalf("%d is in bucket %d, the value before in %d", v, b, bucket)
		}
		bucket = b
		if middle := middleOf(b); middle < float64(v)*15/16 || middle > float64(v)*17/16 {
			t.Fatalf("%d is in the bucket around %v", v, middle)
		}
	}
	if last := bucketOf(1<<32 - 1); last != histogramBuckets-1 {
		t.Errorf("the largest value is in bucket %d of %d", last, histogramBuckets)
	}
}

func TestStatesJSON(t *testing.T) {
	var s States
	if err := json.Unmarshal([]byte(`{"established":5,"of_a_later_version":7}`), &s); err != nil || s != (States{StateEstablished: 5}) {
		t.Errorf("%v, %v", s, err)
	}
	if err := json.Unmarshal([]byte(`{"established":-5}`), &s); err == nil {
		t.Error("a negative count is read")
	}
	seen := make(map[string]bool)
	for state := range numStates {
		if name := state.String(); seen[name] || name != strings.ToLower(name) {
			t.Errorf("state %d is %q", state, name)
		} else {
			seen[name] = true
		}
	}
}

// benchmarkMessages are messages about established connections of 4 listeners
// with 200 local addresses and as many others, as the kernel would send them.
func benchmarkMessages(n int) [][]byte {
	messages := make([][]byte, n)
	for i := range messages {
		remote := fmt.Sprintf("192.0.2.%d:2000", i%200)
		if i%2 == 1 {
			remote = fmt.Sprintf("203.0.113.%d:2000", i%200)
		}
		messages[i] = diagMessage(2, 1, fmt.Sprintf("192.0.2.1:%d", 80+i%4), remote, 0, uint32(i%3), netlinkAttribute(8, []byte{0}), tcpInfo(uint32(i+1)))
	}
	return messages
}

func benchmarkTally() *tally {
	ta := newTally(DefaultMaxSeries)
	ta.beginListeners()
	for _, local := range []string{"192.0.2.1:80", "192.0.2.1:81", "0.0.0.0:82", "[::]:83"} {
		s := listenerAt(local, 0, 128)
		ta.addListener(&s)
	}
	ta.beginConnections(ownSegments("127.0.0.0/8", "192.0.2.0/24", "::1/128", "fe80::/64"))
	return ta
}

// A socket allocates nothing, with RTT and without, once its address has a place.
func TestTallyAllocates(t *testing.T) {
	ta, messages := benchmarkTally(), benchmarkMessages(1000)
	var s tcpSocket
	add := func() {
		for i, m := range messages {
			if err := s.decode(m, i%2 == 0); err != nil {
				t.Fatal(err)
			}
			ta.addConnection(&s)
		}
	}
	add()
	if n := testing.AllocsPerRun(10, add); n != 0 {
		t.Errorf("%d sockets allocate %v times", len(messages), n)
	}
}

func BenchmarkTally(b *testing.B) {
	for _, rtt := range []bool{false, true} {
		b.Run(fmt.Sprintf("rtt=%v", rtt), func(b *testing.B) {
			ta, messages := benchmarkTally(), benchmarkMessages(1000)
			var s tcpSocket
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := s.decode(messages[i%len(messages)], rtt); err != nil {
					b.Fatal(err)
				}
				ta.addConnection(&s)
			}
		})
	}
}

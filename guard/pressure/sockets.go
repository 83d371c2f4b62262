package pressure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultMaxSeries is how many listening addresses, and how many remote ones,
// are told one by one.
const DefaultMaxSeries = 1000

// Names of series that are not an address.
const (
	// SeriesNonlocal: remote addresses outside of the host's own segments.
	SeriesNonlocal = "~nonlocal"
	// SeriesOther: what is beyond the limit on the number of series.
	SeriesOther = "~other"
)

// Sockets are the TCP sockets of a network namespace. The kernel walks its
// tables while sockets come and go, so this is not one instant: a socket that
// changes its state in those milliseconds may be missed or counted twice.
//
// What could not be read is nil, and Unknown says why.
type Sockets struct {
	// Listeners are the listening sockets, the fullest accept queue first.
	Listeners   []Listener   `json:"listeners"`
	Connections *Connections `json:"connections"`
	// Took is how long the reading took, in milliseconds. Nearly all of it is
	// processor time.
	Took float64 `json:"reading_milliseconds"`
	// Unknown has the reasons, by "listeners", "connections", "remotes".
	Unknown map[string]string `json:"unknown,omitempty"`
}

// A Listener is an address and port that is listened on, with its accept queue:
// the connections that are established and wait for the program to accept them.
//
// Several sockets can share it (SO_REUSEPORT). The kernel deals connections to
// them by a hash and drops what comes to a full one, whatever room the others
// have, so the queue and its limit are those of the fullest.
type Listener struct {
	// Name is "192.0.2.1:80", "0.0.0.0:80", "[::]:80", or SeriesOther for all
	// beyond the limit, of which the fullest shows.
	Name    string `json:"name"`
	Sockets uint64 `json:"sockets"`
	// Queue can be one more than Limit, which is how the kernel counts.
	Queue uint64 `json:"accept_queue_connections"`
	Limit uint64 `json:"accept_queue_limit_connections"`
	// Highest is the highest Queue since this reader first saw the listener.
	Highest uint64 `json:"accept_queue_highest_connections"`
}

// Share is how full the accept queue is, from 0 to 1.
func (l Listener) Share() float64 {
	if l.Queue >= l.Limit {
		return min(1, float64(l.Queue)) // a limit of 0 holds one connection
	}
	return float64(l.Queue) / float64(l.Limit)
}

// Connections are all TCP sockets but the listening ones, those in TIME_WAIT
// and SYN_RECV included. Every connection is in In or Out, and once more in one
// series of Remotes; those in In are in one series of Listening.
type Connections struct {
	// In are those whose local address and port is listened on, Out all others.
	// A connection whose listener is gone counts as going out.
	In  Group `json:"in"`
	Out Group `json:"out"`
	// Listening are incoming connections by the listener that they came to,
	// most connections first. Listeners without any are left out.
	Listening []Series `json:"listening"`
	// Remotes are connections by remote address, where that is in one of this
	// host's own segments (the prefixes of its interfaces); all others are
	// SeriesNonlocal. Most connections first. Nil where the segments are not
	// known.
	Remotes []Series `json:"remotes"`
}

// All is In and Out together.
func (c *Connections) All() Group {
	all := c.In
	all.addGroup(&c.Out)
	return all
}

// A Series is a part of all connections, by address.
type Series struct {
	// Name is "192.0.2.1:80" in Listening and "192.0.2.9" in Remotes, or
	// SeriesNonlocal or SeriesOther, which come last.
	Name string `json:"name"`
	Group
	// RTT is nil where it was not asked for and in Remotes, and where no
	// connection has one.
	RTT *RTT `json:"rtt,omitempty"`
}

// A Group is what is counted of some connections.
type Group struct {
	Connections uint64 `json:"connections"`
	States      States `json:"states"`
	// Receive is what the program has not read yet, Send what the remote side
	// has not acknowledged yet. A FIN, and a SYN that was sent, count as a byte,
	// as they do in ss.
	Receive Queued `json:"receive_queue"`
	Send    Queued `json:"send_queue"`
}

func (g *Group) addGroup(o *Group) {
	g.Connections += o.Connections
	for i, n := range o.States {
		g.States[i] += n
	}
	g.Receive.addQueued(o.Receive)
	g.Send.addQueued(o.Send)
}

// Queued are the connections with something in a queue, and what is in it.
type Queued struct {
	Connections uint64 `json:"connections"`
	Bytes       uint64 `json:"bytes"`
}

func (q *Queued) addQueued(o Queued) {
	q.Connections += o.Connections
	q.Bytes += o.Bytes
}

// RTT is how the smoothed round-trip times of some connections are distributed.
// A quantile is within 1/16 of its true value.
type RTT struct {
	Connections uint64  `json:"connections"` // that have a round-trip time
	P50         float64 `json:"p50_milliseconds"`
	P90         float64 `json:"p90_milliseconds"`
	P99         float64 `json:"p99_milliseconds"`
}

// A TCPState is the state of a TCP socket, in the numbers of the kernel
// (include/net/tcp_states.h).
type TCPState uint8

// The states of TCP sockets.
const (
	StateUnknown TCPState = iota // one that later kernels have
	StateEstablished
	StateSynSent
	StateSynReceived
	StateFinWait1
	StateFinWait2
	StateTimeWait
	StateClosed
	StateCloseWait
	StateLastAck
	StateListen
	StateClosing
	numStates
)

const newSynReceived = 12 // TCP_NEW_SYN_RECV: a half-open connection before it has a socket

func tcpState(b byte) TCPState {
	switch {
	case b < byte(numStates):
		return TCPState(b)
	case b == newSynReceived:
		return StateSynReceived
	default:
		return StateUnknown
	}
}

// String is the state as it is written in JSON, by RFC 9293's names.
func (s TCPState) String() string {
	names := [numStates]string{
		"unknown", "established", "syn_sent", "syn_received", "fin_wait_1", "fin_wait_2", "time_wait",
		"closed", "close_wait", "last_ack", "listen", "closing",
	}
	return names[s]
}

// States counts sockets by state. In JSON it is an object of those states in
// which there are any.
type States [numStates]uint64

// MarshalJSON writes the object, in the order of the states' numbers.
func (s States) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for state, n := range s {
		if n == 0 {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = strconv.AppendQuote(b, TCPState(state).String())
		b = append(b, ':')
		b = strconv.AppendUint(b, n, 10)
	}
	return append(b, '}'), nil
}

// UnmarshalJSON reads what MarshalJSON writes and passes over other names.
func (s *States) UnmarshalJSON(b []byte) error {
	var counts map[string]uint64
	if err := json.Unmarshal(b, &counts); err != nil {
		return err
	}
	for state := range s {
		s[state] = counts[TCPState(state).String()]
	}
	return nil
}

// A SocketsAsk says what a reading is to tell besides the listening sockets.
// Those are a short list of their own in the kernel: to read them costs the same
// with no connection and with a million. All connections cost about a
// microsecond each.
type SocketsAsk struct {
	Connections bool
	// RTT makes the reading of the connections longer by a half.
	RTT bool
}

// SocketsConfig configures a SocketReader.
type SocketsConfig struct {
	// MaxSeries is how many listeners, and how many remote addresses, are told
	// one by one. First come are those: the kernel's order is that of a hash, so
	// an address with many connections comes early. 0 means DefaultMaxSeries.
	MaxSeries int
}

// A SocketReader reads the TCP sockets of the network namespace in which it was
// opened, by sock_diag. It needs no privilege and keeps nothing of a single
// socket, so its memory depends on MaxSeries alone. It is not safe for
// concurrent use.
type SocketReader struct {
	diag, route *netlinkConn
	tally       *tally
	request     []byte
}

// OpenSockets opens a SocketReader.
func OpenSockets(config SocketsConfig) (*SocketReader, error) {
	if config.MaxSeries < 0 {
		return nil, fmt.Errorf("open a reader of sockets: %d series are no limit", config.MaxSeries)
	}
	if config.MaxSeries == 0 {
		config.MaxSeries = DefaultMaxSeries
	}
	diag, err := dialNetlink(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a sock_diag netlink socket: %w", err)
	}
	route, err := dialNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		diag.close()
		return nil, fmt.Errorf("open a route netlink socket: %w", err)
	}
	return &SocketReader{diag: diag, route: route, tally: newTally(config.MaxSeries)}, nil
}

// Close closes the reader's netlink sockets.
func (r *SocketReader) Close() error { return errors.Join(r.diag.close(), r.route.close()) }

// Read reads the listening sockets, and what else is asked for. It ends soon
// after ctx does; what was not read by then is unknown.
func (r *SocketReader) Read(ctx context.Context, ask SocketsAsk) Sockets {
	start := time.Now()
	s := r.read(ctx, ask)
	s.Took = time.Since(start).Seconds() * 1000
	return s
}

func (r *SocketReader) read(ctx context.Context, ask SocketsAsk) Sockets {
	s := Sockets{Unknown: make(map[string]string)}
	if err := r.readListeners(ctx); err != nil {
		s.Unknown["listeners"] = err.Error()
		s.Unknown["connections"] = "which of them came in is told by the listening sockets, and those are unknown"
		return s
	}
	s.Listeners = r.tally.listenerList()
	if !ask.Connections {
		s.Unknown["connections"] = "only the listening sockets were asked for"
		return s
	}
	// Which remote addresses are local is a detail: without it the rest is told.
	segments, err := r.readSegments(ctx)
	if err != nil {
		s.Unknown["remotes"] = err.Error()
	}
	if err := r.readConnections(ctx, segments, ask.RTT); err != nil {
		s.Unknown["connections"] = err.Error()
		delete(s.Unknown, "remotes")
		return s
	}
	s.Connections = r.tally.connections()
	return s
}

func (r *SocketReader) readListeners(ctx context.Context) error {
	r.request = appendDiagRequest(r.request[:0], 1<<StateListen, false)
	var socket tcpSocket
	err := r.diag.dump(ctx, diagGetTCP, r.request, r.tally.beginListeners, func(body []byte) error {
		if err := socket.decode(body, true); err != nil {
			return err
		}
		if socket.state == StateListen {
			r.tally.addListener(&socket)
		}
		return nil
	})
	return explainDiag("list the listening TCP sockets", err)
}

// connectionStates are all but LISTEN.
//
// SYN_RECV stands for the half-open connections, which are sockets of the
// kernel's table since Linux 4.4. TIME_WAIT is asked for though such sockets may
// be most of all: the count of them in /proc/net/sockstat tells no addresses, and
// has those in it that wait in FIN_WAIT2 without a program.
const connectionStates = 1<<numStates - 1<<StateEstablished - 1<<StateListen // bit 0 is no state

func (r *SocketReader) readConnections(ctx context.Context, segments segments, rtt bool) error {
	r.request = appendDiagRequest(r.request[:0], connectionStates, rtt)
	var socket tcpSocket
	begin := func() { r.tally.beginConnections(segments) }
	err := r.diag.dump(ctx, diagGetTCP, r.request, begin, func(body []byte) error {
		if err := socket.decode(body, rtt); err != nil {
			return err
		}
		r.tally.addConnection(&socket)
		return nil
	})
	return explainDiag("list the TCP connections", err)
}

// explainDiag says what to do where the kernel cannot list sockets. It loads the
// modules by itself when it is first asked, if they are there and it may.
func explainDiag(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w: the kernel has no inet_diag or tcp_diag; run `modprobe tcp_diag`, which loads both", what, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

package pressure

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
)

// A tally adds sockets up, without any I/O: first the listening ones, then the
// connections. What it holds is bounded by its limit on the number of series,
// and used again at the next reading.
type tally struct {
	max int

	ports     [1 << 16]portUse
	listeners map[endpoint]int32 // place in listening
	// listening has the connections that go out, then those of all listeners
	// beyond the limit, then a listener each.
	listening []listening
	highest   map[endpoint]uint64 // accept queues, by name of their listener
	before    map[endpoint]uint64 // highest, at the reading before

	segments segments          // nil: not known
	places   map[address]int32 // place in remotes
	remotes  []remote          // nonlocal ones, those beyond the limit, then an address each
}

// The first places of tally.listening and tally.remotes.
const (
	placeOut       = 0
	placeNonlocal  = 0
	placeOther     = 1
	placeFirst     = 2
	endpointsOther = math.MaxUint64 // as a port: sorts last, and is none
)

// portUse says which kinds of listeners a port has, so that most connections
// need one look into the map of listeners at most.
type portUse uint8

const (
	usedAddress portUse = 1 << iota // of one address
	usedAnyIPv4
	usedAnyIPv6 // of IPv6 only
	usedAny     // of both families
	usedBeyond  // of one that is beyond the limit
)

// A listening is a listener and its connections.
type listening struct {
	endpoint
	sockets      uint64
	queue, limit uint64
	Group
	rtt *histogram
}

type remote struct {
	address
	Group
}

func newTally(limit int) *tally {
	return &tally{
		max:       limit,
		listeners: make(map[endpoint]int32),
		highest:   make(map[endpoint]uint64),
		before:    make(map[endpoint]uint64),
		places:    make(map[address]int32),
	}
}

// beginListeners forgets all sockets.
func (t *tally) beginListeners() {
	clear(t.ports[:])
	clear(t.listeners)
	t.listening = t.listening[:0]
	t.addListening(endpoint{})
	t.addListening(endpoint{port: endpointsOther})
}

// addListening adds an empty place. Its histogram is kept from earlier readings.
func (t *tally) addListening(at endpoint) *listening {
	t.listening = slices.Grow(t.listening, 1)[:len(t.listening)+1]
	l := &t.listening[len(t.listening)-1]
	*l = listening{endpoint: at, rtt: l.rtt}
	return l
}

// addListener adds a listening socket.
func (t *tally) addListener(s *tcpSocket) {
	use := &t.ports[s.local.port&0xffff]
	var l *listening
	if i, ok := t.listeners[s.local]; ok {
		l = &t.listening[i]
	} else if len(t.listeners) < t.max {
		t.listeners[s.local] = int32(len(t.listening))
		l = t.addListening(s.local)
	} else {
		*use |= usedBeyond
		l = &t.listening[placeOther]
	}
	switch s.local.address {
	case address{lo: mappedIPv4}:
		*use |= usedAnyIPv4
	case address{}:
		if s.v6Only {
			*use |= usedAnyIPv6
		} else {
			*use |= usedAny
		}
	default:
		*use |= usedAddress
	}
	l.sockets++
	// Compare shares without dividing, by limits that are one higher: such a
	// queue has room for one connection more than its limit.
	queue, limit := uint64(s.receiveQueue), uint64(s.sendQueue)
	if a, b := queue*(l.limit+1), l.queue*(limit+1); l.sockets == 1 || a > b || a == b && limit > l.limit {
		l.queue, l.limit = queue, limit
	}
}

// listenerList is the listening sockets by name, the fullest first. It is to be
// called once a reading, as it remembers the highest.
func (t *tally) listenerList() []Listener {
	t.before, t.highest = t.highest, t.before
	clear(t.highest)
	list := make([]Listener, 0, len(t.listening)-1)
	for i := range t.listening[placeOther:] {
		l := &t.listening[placeOther+i]
		if l.sockets == 0 {
			continue
		}
		t.highest[l.endpoint] = max(t.before[l.endpoint], l.queue)
		list = append(list, Listener{
			Name: l.name(), Sockets: l.sockets, Queue: l.queue, Limit: l.limit, Highest: t.highest[l.endpoint],
		})
	}
	slices.SortFunc(list, func(a, b Listener) int {
		return cmp.Or(cmp.Compare(b.Share(), a.Share()), cmp.Compare(b.Queue, a.Queue),
			cmp.Compare(b.Highest, a.Highest), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// beginConnections forgets all connections. Nil segments are not known.
func (t *tally) beginConnections(s segments) {
	for i := range t.listening {
		l := &t.listening[i]
		l.Group = Group{}
		if l.rtt != nil {
			*l.rtt = histogram{}
		}
	}
	t.segments = s
	clear(t.places)
	t.remotes = append(t.remotes[:0], remote{}, remote{})
}

// addConnection adds a socket that does not listen.
func (t *tally) addConnection(s *tcpSocket) {
	place := t.listenerOf(&s.local)
	l := &t.listening[place]
	l.count(s)
	if s.rtt > 0 && place != placeOut {
		if l.rtt == nil {
			l.rtt = new(histogram)
		}
		l.rtt.add(s.rtt)
	}
	if t.segments != nil {
		t.remotes[t.remoteOf(s.remote.address)].count(s)
	}
}

// listenerOf finds the listener that a connection came to: as the kernel does,
// one of its address before one of any.
func (t *tally) listenerOf(local *endpoint) int32 {
	use := t.ports[local.port&0xffff]
	if use == 0 {
		return placeOut
	}
	if use&usedAddress != 0 {
		if place, ok := t.listeners[*local]; ok {
			return place
		}
	}
	anyAddress := endpoint{port: local.port}
	switch ipv4 := local.isIPv4(); {
	case ipv4 && use&usedAnyIPv4 != 0:
		anyAddress.lo = mappedIPv4
	case ipv4 && use&usedAny != 0, !ipv4 && use&(usedAny|usedAnyIPv6) != 0:
	default:
		return t.beyond(use)
	}
	if place, ok := t.listeners[anyAddress]; ok {
		return place
	}
	return t.beyond(use)
}

func (t *tally) beyond(use portUse) int32 {
	if use&usedBeyond != 0 {
		return placeOther
	}
	return placeOut
}

func (t *tally) remoteOf(a address) int32 {
	if !t.segments.contains(a) {
		return placeNonlocal
	}
	if place, ok := t.places[a]; ok {
		return place
	}
	if len(t.places) == t.max {
		return placeOther
	}
	place := int32(len(t.remotes))
	t.places[a] = place
	t.remotes = append(t.remotes, remote{address: a})
	return place
}

// count adds a socket to all but Connections, which is the sum of the states.
func (g *Group) count(s *tcpSocket) {
	g.States[s.state]++
	g.Receive.count(s.receiveQueue)
	g.Send.count(s.sendQueue)
}

func (q *Queued) count(bytes uint32) {
	if bytes > 0 {
		q.Connections++
		q.Bytes += uint64(bytes)
	}
}

// connections is what has been added, and no part of the tally.
func (t *tally) connections() *Connections {
	c := &Connections{Out: t.listening[placeOut].total(), Listening: []Series{}}
	for i := range t.listening[placeOther:] {
		l := &t.listening[placeOther+i]
		group := l.total()
		if group.Connections == 0 {
			continue
		}
		c.In.addGroup(&group)
		c.Listening = append(c.Listening, Series{Name: l.name(), Group: group, RTT: l.rtt.rtt()})
	}
	sortSeries(c.Listening)
	if t.segments == nil {
		return c
	}
	c.Remotes = make([]Series, 0, len(t.remotes))
	for i := range t.remotes {
		group := t.remotes[i].total()
		if group.Connections > 0 {
			c.Remotes = append(c.Remotes, Series{Name: t.remotes[i].name(i), Group: group})
		}
	}
	sortSeries(c.Remotes)
	return c
}

func (g *Group) total() Group {
	total := *g
	for _, n := range g.States {
		total.Connections += n
	}
	return total
}

// sortSeries puts those with most connections first, and last those that are no
// address.
func sortSeries(s []Series) {
	slices.SortFunc(s, func(a, b Series) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.Connections, a.Connections), cmp.Compare(a.Name, b.Name))
	})
}

func (s *Series) rank() int { return slices.Index([]string{SeriesNonlocal, SeriesOther}, s.Name) }

func (l *listening) name() string {
	if l.port == endpointsOther {
		return SeriesOther
	}
	return netip.AddrPortFrom(l.netip(), uint16(l.port)).String()
}

func (r *remote) name(place int) string {
	switch place {
	case placeNonlocal:
		return SeriesNonlocal
	case placeOther:
		return SeriesOther
	default:
		return r.netip().String()
	}
}

func (a address) netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b).Unmap()
}

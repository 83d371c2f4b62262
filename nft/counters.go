package nft

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Count is a number of packets and of their bytes, from the IP header on.
type Count struct {
	Packets, Bytes uint64
}

// Add returns the sum.
func (c Count) Add(o Count) Count {
	return Count{c.Packets + o.Packets, c.Bytes + o.Bytes}
}

// Counters is a reading of everything the table counts. All are totals since
// Since, which is when the table was made; a replaced table takes over the
// totals and the time of the one before it.
type Counters struct {
	Since    time.Time
	Services map[netip.AddrPort]ServiceCounters
	// Unmoved: nothing was counted since the reading before by the same Table,
	// and Services is the very map that it returned.
	Unmoved  bool
	Loopback Count // SYNs and TCP fragments that came in on lo
	Allowed  Count // SYNs and TCP fragments from Config.Allow
}

// ServiceCounters are the totals of one virtual service. What came in on lo or
// from an allowed source is in none of them.
type ServiceCounters struct {
	SYN        Count            // every SYN without ACK, RST, FIN, dropped ones included
	Suspect    Count            // those with a signature, dropped ones included: the sum of Signatures
	Signatures map[string]Count // by signature; a SYN counts for the first that it matches
	Dropped    Count
	// Fragment is the number of TCP fragments to the service's address, SYNs
	// among them, which are not in SYN. Most fragments carry no ports, so
	// that all services of one address show the same figure.
	Fragment Count
}

// Counters reads the table's counters, ErrAbsent without a table. It works for
// a table that another process made, with other signatures.
func (t *Table) Counters() (Counters, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Counters
	read := func() (err error) {
		c, err = t.readCounters()
		return err
	}
	err := t.read(read)
	if errors.Is(err, ErrAbsent) && t.counting != nil {
		// Another process may have made the table anew with other sets.
		t.counting = nil
		err = t.read(read)
	}
	if err != nil {
		t.counting = nil
		return Counters{}, fmt.Errorf("read the counters: %w", err)
	}
	return c, nil
}

func (t *Table) readCounters() (Counters, error) {
	if t.counting == nil {
		if err := t.findCounting(); err != nil {
			return Counters{}, err
		}
	}
	c := Counters{Since: t.since, Services: map[netip.AddrPort]ServiceCounters{}}
	named, err := t.kernel.counters()
	if err != nil {
		return Counters{}, err
	}
	for _, n := range named {
		switch n.Name {
		case counterLoopback:
			c.Loopback = n.Count
		case counterAllowed:
			c.Allowed = n.Count
		}
	}
	// Nothing moves that is no SYN to a service or a fragment, and nearly always
	// nothing has: then nothing need be put together anew.
	generation, err := t.kernel.generation()
	if err != nil {
		return Counters{}, err
	}
	moves, err := t.readMoves()
	if err != nil {
		return Counters{}, err
	}
	if t.last.Services != nil && generation == t.lastAt && maps.Equal(moves, t.moves) {
		c.Services, c.Unmoved = t.last.Services, true
		return c, nil
	}
	fragments := map[netip.Addr]Count{}
	for _, s := range t.counting {
		elements, err := t.kernel.elements(s)
		if err != nil {
			return Counters{}, err
		}
		for _, e := range elements {
			if s.role == roleFragment {
				fragments[e.Service.Addr()] = e.Count
				continue
			}
			c.Services[e.Service] = c.Services[e.Service].with(s, e.Count)
		}
	}
	for service, counters := range c.Services {
		counters.SYN = counters.SYN.Add(counters.Suspect)
		counters.Fragment = fragments[service.Addr()]
		c.Services[service] = counters
	}
	t.last, t.lastAt, t.moves = c, generation, moves
	return c, nil
}

// A move is an element that counts what comes. What is dropped has moved one.
type move struct {
	set     setSpec
	service netip.AddrPort
}

func (t *Table) readMoves() (map[move]uint64, error) {
	moves := make(map[move]uint64, len(t.moves))
	for _, s := range t.counting {
		if s.role == roleDropped {
			continue
		}
		elements, err := t.kernel.elements(s)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			moves[move{s, e.Service}] = e.Count.Packets
		}
	}
	return moves, nil
}

// with returns c with what a set has counted for the service.
func (c ServiceCounters) with(s setSpec, n Count) ServiceCounters {
	switch s.role {
	case roleService:
		c.SYN = n
	case roleDropped:
		c.Dropped = n
	case roleSuspect:
		if c.Signatures == nil {
			c.Signatures = map[string]Count{}
		}
		c.Signatures[s.signature] = n
		c.Suspect = c.Suspect.Add(n)
	}
	return c
}

// findCounting finds the sets that the kernel's table counts in.
func (t *Table) findCounting() error {
	sets, err := t.kernel.sets()
	if err != nil {
		return err
	}
	var counting []setSpec
	for _, held := range sets {
		if m, ok := parseMark(held.Comment); ok {
			t.since = m.since
		}
		if s, ok := parseSetName(held.Name); ok && s.counts() {
			counting = append(counting, s)
		}
	}
	// What is part of another is read before it, so that packets that come
	// meanwhile never make the part the larger one.
	order := map[role]int{roleDropped: 0, roleSuspect: 1, roleService: 2, roleFragment: 3}
	slices.SortStableFunc(counting, func(a, b setSpec) int { return cmp.Compare(order[a.role], order[b.role]) })
	t.counting, t.last = counting, Counters{}
	return nil
}

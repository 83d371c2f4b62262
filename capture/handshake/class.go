package handshake

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/lvsguard/lvsguard/capture"
)

// A class is the attempts that the same filters and the same service count.
// They are counted once, for the class; what is shown of a filter is the sum
// over its classes. A class outlives a change of the choice, so that attempts
// that are pending then still find theirs.
type class struct {
	filters []string
	service string
	counts  Counts
}

// A group is how a class is found from the present choice.
type group struct {
	filters uint64 // a bit for each of the choice's filters
	service int    // number in the choice's services, or -1
}

// A chooser finds the class of an attempt.
type chooser struct {
	choice   Choice
	services map[place]int
	groups   map[group]uint16
	names    map[string]uint16
	classes  []class // the first is that of the attempts which no filter names
	armed    map[place]bool
}

// A place is an address and port in the form of the wire.
type place struct {
	addr [16]byte
	port uint16
}

func placeOf(at netip.AddrPort) place { return place{at.Addr().As16(), at.Port()} }

// use makes c the choice.
func (ch *chooser) use(c Choice) {
	ch.choice = c
	ch.services = make(map[place]int)
	for i, s := range c.Services {
		for _, at := range s.Addresses {
			ch.services[placeOf(at)] = i
		}
	}
	ch.groups = make(map[group]uint16)
	if ch.classes == nil {
		ch.classes = make([]class, 1, 16)
		ch.names = make(map[string]uint16)
	}
}

// choose finds the class of the attempt that a SYN opens; false if it is left
// out.
func (ch *chooser) choose(syn *capture.Segment) (uint16, bool) {
	if len(ch.choice.Filters) == 0 && len(ch.services) == 0 {
		return 0, true
	}
	g := group{service: -1}
	if len(ch.choice.Filters) > 0 {
		client, server := syn.From(), syn.To()
		for i := range ch.choice.Filters {
			f := &ch.choice.Filters[i]
			if !f.matches(client, server, ch.choice.Local) {
				continue
			}
			if f.Name == "" {
				return 0, false
			}
			g.filters |= 1 << i
		}
	}
	if n, ok := ch.services[place{syn.Dst, syn.DstPort}]; ok {
		g.service = n
	} else if n, ok := ch.services[place{syn.Dst, 0}]; ok {
		g.service = n
	}
	n, ok := ch.groups[g]
	if !ok {
		n = ch.newClass(g)
	}
	return n, true
}

// newClass gives g a class: one of the same names that there is already, or a
// new one. Where there are as many as can be, it is that of no filter.
func (ch *chooser) newClass(g group) uint16 {
	var c class
	for i, f := range ch.choice.Filters {
		if g.filters&(1<<i) != 0 {
			c.filters = append(c.filters, f.Name)
		}
	}
	if g.service >= 0 {
		c.service = ch.choice.Services[g.service].Name
	}
	slices.Sort(c.filters)
	name := fmt.Sprintf("%q %q", c.filters, c.service)
	n, ok := ch.names[name]
	if !ok && len(ch.classes) <= math.MaxUint16 && (c.filters != nil || c.service != "") {
		n = uint16(len(ch.classes))
		ch.classes = append(ch.classes, c)
		ch.names[name] = n
	}
	ch.groups[g] = n
	return n
}

// isArmed tells whether a SYN goes to an armed service.
func (ch *chooser) isArmed(syn *capture.Segment) bool {
	return len(ch.armed) > 0 && (ch.armed[place{syn.Dst, syn.DstPort}] || ch.armed[place{syn.Dst, 0}])
}

package capture

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A link is a network interface.
type link struct {
	index    uint32
	name     string
	kind     string // as ip link has it: vlan, bond, veth, …; empty for hardware
	hardware uint16 // ARPHRD_…
	up       bool
	loopback bool
	// lower is the interface that it stands on, in this network namespace;
	// 0 if none.
	lower uint32
	// master is the interface that it is part of; 0 if none.
	master uint32
}

// mode is what the filter wants to know of it.
func (l *link) mode() uint32 {
	mode := uint32(linkOther)
	switch l.hardware {
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		mode = linkEthernet
	case unix.ARPHRD_NONE, unix.ARPHRD_TUNNEL, unix.ARPHRD_TUNNEL6, unix.ARPHRD_SIT, unix.ARPHRD_PPP, unix.ARPHRD_RAWIP:
		mode = linkNone
	}
	if l.loopback {
		mode |= linkLoops
	}
	return mode
}

// A network is what there is in a network namespace.
type network struct {
	links     []link
	addresses []address
	defaults  []uint32 // the interfaces of default routes
}

type address struct {
	link uint32
	ip   netip.Addr
}

// What is read of a network.
type choice struct {
	links []link // by name
	notes []string
}

// names are those of the interfaces, sorted.
func (c *choice) names() []string {
	var names []string
	for _, l := range c.links {
		names = append(names, l.name)
	}
	return names
}

// stack knows which interfaces pass on the frames of which others.
type stack struct {
	links map[uint32]link
	below map[uint32][]uint32
}

func stackOf(links []link) *stack {
	s := &stack{links: make(map[uint32]link), below: make(map[uint32][]uint32)}
	for _, l := range links {
		s.links[l.index] = l
	}
	for _, l := range links {
		switch l.kind {
		case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap":
			// Tunnels and MACsec have a lower device too, but that sees the
			// packets in another shape.
			if _, ok := s.links[l.lower]; ok {
				s.below[l.index] = append(s.below[l.index], l.lower)
			}
		}
		if master, ok := s.links[l.master]; ok {
			switch master.kind {
			case "bond", "team", "bridge", "vrf":
				s.below[master.index] = append(s.below[master.index], l.index)
			default:
				// As the virtual functions of a cloud's network device, whose
				// master has packets of its own as well.
				s.below[l.index] = append(s.below[l.index], master.index)
			}
		}
	}
	return s
}

// under are the interfaces of set that a stands on, however far below.
func (s *stack) under(a uint32, set map[uint32]bool) (found []uint32) {
	seen := map[uint32]bool{a: true}
	for queue := slices.Clone(s.below[a]); len(queue) > 0; queue = queue[1:] {
		if seen[queue[0]] {
			continue
		}
		seen[queue[0]] = true
		if set[queue[0]] {
			found = append(found, queue[0])
		}
		queue = append(queue, s.below[queue[0]]...)
	}
	return found
}

// lowest are the interfaces on which any frame of this host is seen, and none
// twice.
func (s *stack) lowest() map[uint32]bool {
	set := make(map[uint32]bool)
	for index := range s.links {
		if len(s.below[index]) == 0 {
			set[index] = true
		}
	}
	return set
}

// once takes out of set what stands on others of it, so that no frame is read
// twice. Where something of several members has one of them in set, all of them
// take its place.
func (s *stack) once(set map[uint32]bool) (notes []string) {
	chosen := slices.Sorted(maps.Keys(set))
	for range s.links { // more often only if they stand on each other in a circle
		for _, index := range slices.Sorted(maps.Keys(set)) {
			if len(s.under(index, set)) > 0 {
				delete(set, index)
				for _, lower := range s.below[index] {
					set[lower] = true
				}
			}
		}
	}
	for _, index := range chosen {
		if set[index] {
			continue
		}
		var lowers []string
		for _, lower := range s.under(index, set) {
			lowers = append(lowers, s.links[lower].name)
		}
		slices.Sort(lowers)
		notes = append(notes, fmt.Sprintf("%s is not read itself: its frames are read on %s, which it stands on",
			s.links[index].name, strings.Join(lowers, ", ")))
	}
	return notes
}

// anyInterface is the name that stands for all.
const anyInterface = "any"

// choose finds what is read, of the names that are given or, if there are none,
// for these addresses.
func choose(n *network, names []string, services []netip.Addr) choice {
	s := stackOf(n.links)
	set := make(map[uint32]bool)
	var c choice
	switch {
	case slices.Contains(names, anyInterface):
		set = s.lowest()
		for index := range set {
			if !s.links[index].up {
				delete(set, index)
			}
		}
	case len(names) > 0:
		for _, name := range names {
			i := slices.IndexFunc(n.links, func(l link) bool { return l.name == name })
			if i < 0 {
				c.notes = append(c.notes, fmt.Sprintf("%s is not there; it will be read when it is", name))
				continue
			}
			if set[n.links[i].index] = true; !n.links[i].up {
				c.notes = append(c.notes, fmt.Sprintf("%s is down", name))
			}
		}
	default:
		wanted := make(map[netip.Addr]bool)
		for _, a := range services {
			wanted[a.Unmap()] = true
		}
		for _, a := range n.addresses {
			if _, ok := s.links[a.link]; ok && wanted[a.ip] {
				set[a.link] = true
			}
		}
		for _, index := range n.defaults {
			if _, ok := s.links[index]; ok {
				set[index] = true
			}
		}
	}
	c.notes = append(c.notes, s.once(set)...)
	for index := range set {
		c.links = append(c.links, s.links[index])
	}
	slices.SortFunc(c.links, func(a, b link) int { return strings.Compare(a.name, b.name) })
	return c
}

// none is the error of a choice without a single interface.
func none(names []string) error {
	switch {
	case slices.Contains(names, anyInterface):
		return fmt.Errorf("no interface is up")
	case len(names) > 0:
		return fmt.Errorf("no interface is named %s (ip link shows those that there are)", strings.Join(names, " or "))
	}
	return fmt.Errorf("no interface has a virtual service's address or the default route: name one with -i, or take -i any")
}

package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// normalize checks services, writes IPv4 addresses as such, and sorts.
func normalize(services []netip.AddrPort) ([]netip.AddrPort, error) {
	out := make([]netip.AddrPort, 0, len(services))
	for _, s := range services {
		a := s.Addr().Unmap()
		switch {
		case !a.IsValid(), a.IsUnspecified(), a.IsMulticast():
			return nil, fmt.Errorf("service %v: want the address of a virtual service", s)
		case a.Zone() != "":
			return nil, fmt.Errorf("service %v: want an address without a zone", s)
		}
		out = append(out, netip.AddrPortFrom(a, s.Port()))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out), nil
}

// checkLease tells what is wrong with a lease's length.
func checkLease(service netip.AddrPort, d time.Duration) error {
	if d < MinLease || d > MaxLease {
		return fmt.Errorf("arm %v for %v: want %v to %v", service, d, MinLease, MaxLease)
	}
	return nil
}

// wantedElements returns what a set must hold: an element a service that it is
// for, and in an armed set one a lease.
func (s setSpec) wantedElements(services []netip.AddrPort, leases map[netip.AddrPort]time.Duration) []Element {
	var wanted []Element
	for _, service := range services {
		key, ok := s.holds(service)
		if !ok {
			continue
		}
		e := Element{Service: key}
		if s.role == roleArmed {
			if e.Timeout, ok = leases[service]; !ok {
				continue
			}
		}
		wanted = append(wanted, e)
	}
	sortElements(wanted)
	return slices.CompactFunc(wanted, func(a, b Element) bool { return a.Service == b.Service })
}

// diff tells what to remove from a set and what to add. Both lists are sorted
// by service.
func diff(held, wanted []Element) (remove, add []Element) {
	for len(held) > 0 || len(wanted) > 0 {
		var order int
		switch {
		case len(held) == 0:
			order = +1
		case len(wanted) == 0:
			order = -1
		default:
			order = held[0].Service.Compare(wanted[0].Service)
		}
		switch {
		case order < 0:
			remove, held = append(remove, held[0]), held[1:]
		case order > 0:
			add, wanted = append(add, wanted[0]), wanted[1:]
		default:
			held, wanted = held[1:], wanted[1:]
		}
	}
	return remove, add
}

// holding is what a table holds beside its structure: what outlives a
// replacement.
type holding struct {
	since    time.Time
	counters map[string]Count
	elements map[setSpec][]Element
}

// holding reads it from a state, as far as its sets are named as ours.
func (s State) holding() holding {
	h := holding{since: s.Since, counters: map[string]Count{}, elements: map[setSpec][]Element{}}
	for _, c := range s.Counters {
		h.counters[c.Name] = c.Count
	}
	for _, set := range s.Sets {
		if spec, ok := parseSetName(set.Name); ok && spec.role != roleAllowed {
			h.elements[spec] = set.Elements
		}
	}
	return h
}

// services returns the services that a table counts.
func (h holding) services() []netip.AddrPort {
	var services []netip.AddrPort
	for spec, elements := range h.elements {
		if spec.role != roleService {
			continue
		}
		for _, e := range elements {
			services = append(services, e.Service)
		}
	}
	slices.SortFunc(services, netip.AddrPort.Compare)
	return services
}

// leases returns the remaining time of a table's leases. One without end is
// none of ours and none at all.
func (h holding) leases() map[netip.AddrPort]time.Duration {
	leases := map[netip.AddrPort]time.Duration{}
	for spec, elements := range h.elements {
		if spec.role != roleArmed {
			continue
		}
		for _, e := range elements {
			if e.Expires > 0 {
				leases[e.Service] = e.Expires
			}
		}
	}
	return leases
}

// carried returns what a set of a new table starts with: what is wanted, with
// the totals that its elements had.
func (h holding) carried(s setSpec, services []netip.AddrPort, leases map[netip.AddrPort]time.Duration) []Element {
	wanted := s.wantedElements(services, leases)
	if !s.counts() {
		return wanted
	}
	held := make(map[netip.AddrPort]Count, len(h.elements[s]))
	for _, e := range h.elements[s] {
		held[e.Service] = e.Count
	}
	for i := range wanted {
		wanted[i].Count = held[wanted[i].Service]
	}
	return wanted
}

// keep returns the leases of services: those that a table holds, and those that
// this process has given and the table has lost.
func keep(services []netip.AddrPort, held map[netip.AddrPort]time.Duration, given map[netip.AddrPort]time.Time, now time.Time) map[netip.AddrPort]time.Duration {
	kept := map[netip.AddrPort]time.Duration{}
	for _, service := range services {
		d, ok := held[service]
		if end, was := given[service]; !ok && was {
			d = end.Sub(now)
			ok = d >= MinLease
		}
		if ok {
			kept[service] = min(max(d, MinLease), MaxLease)
		}
	}
	return kept
}

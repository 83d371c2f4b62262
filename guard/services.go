package guard

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// keepVanished is how long a service that IPVS no longer has keeps its
// counters and its lease: a keepalived reload takes services away for a moment.
const keepVanished = 10 * time.Minute

// A roster knows which virtual services are to be watched. It is pure.
type roster struct {
	cfg *Config
	// served are the services that IPVS has, or had within keepVanished.
	served map[ipvs.Key]*servedService
	// named stand in until IPVS has been seen to have any: keepalived's
	// configuration names them before keepalived makes them.
	named []ipvs.Key
	seen  bool
	order []ipvs.Key // of the last list
}

type servedService struct {
	last    ipvs.Service
	present bool
	// missing is since when good readings have been without it.
	missing time.Time
}

// see takes a reading of IPVS. An empty one, or none, only says that nothing
// is known of the services' connections now.
func (r *roster) see(now time.Time, services []ipvs.Service) {
	for _, s := range r.served {
		s.present = false
	}
	for _, s := range services {
		r.remember(s.Key)
		*r.served[s.Key] = servedService{last: s, present: true}
	}
	if len(services) == 0 {
		return
	}
	r.seen = true
	maps.DeleteFunc(r.served, func(_ ipvs.Key, s *servedService) bool {
		mark(&s.missing, now, !s.present)
		return !s.present && now.Sub(s.missing) > keepVanished
	})
}

// remember keeps a service that was watched before as if IPVS had just lost it.
func (r *roster) remember(k ipvs.Key) {
	if r.served == nil {
		r.served = make(map[ipvs.Key]*servedService)
	}
	if r.served[k] == nil {
		r.served[k] = &servedService{last: ipvs.Service{Key: k}}
	}
}

// list gives every service to watch, in order.
func (r *roster) list() []Service {
	keys := make(map[ipvs.Key]bool)
	for k := range r.served {
		keys[k] = true
	}
	if !r.seen {
		for _, k := range r.named {
			keys[k] = true
		}
	}
	for _, at := range r.cfg.Watch {
		keys[ipvs.Key{Protocol: ipvs.TCP, Addr: at}] = true
	}
	for k, s := range r.cfg.Services {
		if len(s.Addresses) > 0 {
			keys[k] = true
		}
	}
	// Sorting is dear, and nearly always they are the same as a second ago.
	if len(r.order) != len(keys) || slices.ContainsFunc(r.order, func(k ipvs.Key) bool { return !keys[k] }) {
		r.order = slices.SortedFunc(maps.Keys(keys), ipvs.Key.Compare)
	}
	list := make([]Service, 0, len(keys))
	for _, k := range r.order {
		svc := Service{Key: k, Addresses: r.cfg.addressesOf(k)}
		if s := r.served[k]; s != nil {
			svc.Forwarding = forwarding(s.last)
			if s.present {
				svc.Connections = connections(s.last)
			}
		}
		list = append(list, svc)
	}
	return list
}

// keys gives the services that IPVS serves, for the census.
func (r *roster) keys() []ipvs.Key {
	return slices.Collect(maps.Keys(r.served))
}

// addressesOf says where the SYNs of a service are counted.
func (c *Config) addressesOf(k ipvs.Key) []netip.AddrPort {
	switch {
	case k.Mark != 0:
		return c.Services[k].Addresses
	case k.Protocol == ipvs.TCP:
		return []netip.AddrPort{k.Addr}
	}
	return nil
}

func forwarding(s ipvs.Service) string {
	var method string
	for _, rs := range s.RealServers {
		switch {
		case method == "":
			method = string(rs.Method)
		case method != string(rs.Method):
			return "mixed"
		}
	}
	return method
}

func connections(s ipvs.Service) *Connections {
	var c Connections
	for _, rs := range s.RealServers {
		c.Active += uint64(rs.ActiveConn)
		c.Inactive += uint64(rs.InActConn)
		c.Persistent += uint64(rs.PersistConn)
	}
	return &c
}

// watchedAddresses is what the table is to count, in order and once each.
func watchedAddresses(services []Service) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range services {
		all = append(all, s.Addresses...)
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// namedServices are the services in keepalived's configuration.
func namedServices(conf keepalived.Config) []ipvs.Key {
	var keys []ipvs.Key
	for _, vs := range conf.VirtualServers {
		for _, at := range vs.Members {
			keys = append(keys, keyOf(at))
		}
	}
	return keys
}

// censusOf gives a service's part of a census.
func censusOf(c ipvs.Census, k ipvs.Key) *Census {
	states, ok := c.Services[k]
	if !ok && !c.Complete {
		return nil
	}
	out := &Census{Complete: c.Complete, HalfOpen: states["SYN_RECV"]}
	for _, n := range states {
		out.Lines += n
	}
	entries, known := c.Extrapolate(out.Lines)
	if !known {
		return nil
	}
	out.Entries = float64(entries)
	return out
}

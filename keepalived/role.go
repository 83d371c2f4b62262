package keepalived

import "net/netip"

// Roles says for each instance, by its name, which state it is in on this host,
// from the addresses held and from the state last reported for it. It is pure.
//
// What is held decides, because it is where the traffic goes:
//
//   - One address held is enough for [Master]: keepalived adds and removes an
//     instance's addresses one by one, and to take a master for a backup would
//     be the worse mistake.
//   - An address that several instances name tells of none of them. It counts
//     only for an instance that has no address of its own.
//   - With no address held the instance is not the master, whatever was
//     reported: it is in [Fault] or [Stop] if that was the last report, else
//     [Backup].
//
// Where an instance has no address but link-local ones, or held is nil (not
// known), the last report decides, and without one the state is [Unknown].
func Roles(instances []Instance, held Held, last map[string]State) map[string]State {
	owner := make(map[netip.Addr]string)
	shared := make(map[netip.Addr]bool)
	for _, instance := range instances {
		for _, addr := range instance.Addresses {
			if name, ok := owner[addr]; ok && name != instance.Name {
				shared[addr] = true
			}
			owner[addr] = instance.Name
		}
	}
	roles := make(map[string]State, len(instances))
	for _, instance := range instances {
		reported, ok := last[instance.Name]
		if !ok {
			reported = Unknown
		}
		tells := telling(instance.Addresses, shared)
		switch {
		case held == nil || len(tells) == 0:
			roles[instance.Name] = reported
		case anyHeld(tells, held):
			roles[instance.Name] = Master
		case reported == Fault || reported == Stop:
			roles[instance.Name] = reported
		default:
			roles[instance.Name] = Backup
		}
	}
	return roles
}

// telling returns the addresses that tell the state of the instance they are of.
func telling(addresses []netip.Addr, shared map[netip.Addr]bool) []netip.Addr {
	var own, others []netip.Addr
	for _, addr := range addresses {
		switch {
		case addr.IsLinkLocalUnicast():
		case shared[addr]:
			others = append(others, addr)
		default:
			own = append(own, addr)
		}
	}
	if len(own) == 0 {
		return others
	}
	return own
}

func anyHeld(addresses []netip.Addr, held Held) bool {
	for _, addr := range addresses {
		if held[addr] {
			return true
		}
	}
	return false
}

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
	named := make(map[netip.Addr]int)
	for _, instance := range instances {
		for _, addr := range instance.Addresses {
			named[addr]++
		}
	}
	roles := make(map[string]State, len(instances))
	for _, instance := range instances {
		roles[instance.Name] = role(instance, named, held, last[instance.Name])
	}
	return roles
}

func role(instance Instance, named map[netip.Addr]int, held Held, last State) State {
	var own, shared, ownHeld, sharedHeld int
	for _, addr := range instance.Addresses {
		switch {
		case addr.IsLinkLocalUnicast():
		case named[addr] > 1:
			shared++
			if held[addr] {
				sharedHeld++
			}
		default:
			own++
			if held[addr] {
				ownHeld++
			}
		}
	}
	if held == nil || own+shared == 0 {
		if last == "" {
			return Unknown
		}
		return last
	}
	if ownHeld > 0 || own == 0 && sharedHeld > 0 {
		return Master
	}
	if last == Fault || last == Stop {
		return last
	}
	return Backup
}

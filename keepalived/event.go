package keepalived

import "net/netip"

// State is what keepalived says of a VRRP instance or group, or of a server.
type State string

// The states of VRRP instances and groups. Stop is also the state of an
// instance that a reload has removed (keepalived's DELETED).
const (
	Master  State = "MASTER"
	Backup  State = "BACKUP"
	Fault   State = "FAULT"
	Stop    State = "STOP"
	Unknown State = "UNKNOWN"
)

// The states of virtual and real servers.
const (
	Up   State = "UP"
	Down State = "DOWN"
)

// Kind is what an event is about.
type Kind uint8

// A notify script that is told nothing but a state (notify_master and its kin)
// cannot say what it is about: KindUnnamed.
const (
	KindUnnamed Kind = iota
	KindInstance
	KindGroup
	KindVirtualServer
	KindRealServer
)

func (k Kind) String() string {
	switch k {
	case KindInstance:
		return "instance"
	case KindGroup:
		return "group"
	case KindVirtualServer:
		return "virtual server"
	case KindRealServer:
		return "real server"
	default:
		return "unnamed"
	}
}

// Event is one change that keepalived told of.
type Event struct {
	Kind Kind
	// Name is that of the instance or group; empty for servers.
	Name string
	// State is Unknown where the event tells none: BACKUP_PRIORITY, which is
	// also sent in FAULT, and words that this package does not know.
	State State
	// Priority is the effective one of an instance (1 to 255) or 0.
	Priority int
	// VirtualServer is set for servers, RealServer for real servers only.
	VirtualServer, RealServer Server
}

// Server names a virtual or a real server. One of Addr, Mark and Group is set.
type Server struct {
	Addr     netip.AddrPort // port 0: every port
	Protocol string         // "tcp", "udp", "sctp", or "" where keepalived names none
	Mark     uint32         // firewall mark
	Group    string         // virtual_server_group
}

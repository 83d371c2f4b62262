package keepalived

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ErrSyntax is what errors about input that could not be understood wrap.
var ErrSyntax = errors.New("not understood")

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

// ParseNotify reads the arguments that a notify script was started with: the
// four of notify (GROUP or INSTANCE, name, state, priority; further ones are
// ignored), or one that names the state, as the configuration of notify_master
// and its kin passes it. Case does not matter. Errors wrap [ErrSyntax].
func ParseNotify(args []string) (Event, error) {
	if len(args) == 1 {
		if state := vrrpState(args[0]); state != Unknown {
			return Event{State: state}, nil
		}
		return Event{}, fmt.Errorf("notify argument %q %w: want master, backup, fault or stop", args[0], ErrSyntax)
	}
	if len(args) < 4 {
		return Event{}, fmt.Errorf("notify arguments %q %w: want a state, or GROUP|INSTANCE NAME STATE PRIORITY", args, ErrSyntax)
	}
	return vrrpEvent(args[0], args[1], args[2], args[3])
}

// ParseLine reads one line of a notify FIFO, with or without its newline:
//
//	INSTANCE "VI_1" MASTER 100
//	GROUP "VG_1" BACKUP 0
//	VS [192.0.2.1]:tcp:80 UP
//	RS [198.51.100.1]:tcp:80 [192.0.2.1]:tcp:80 DOWN
//
// NULs around it are ignored: keepalived 2.0 and older end VS and RS lines with
// one, after the newline. Errors wrap [ErrSyntax].
func ParseLine(line []byte) (Event, error) {
	text := string(bytes.Trim(line, "\x00\r\n\t "))
	kind, rest, _ := strings.Cut(text, " ")
	var event Event
	var err error
	switch strings.ToUpper(kind) {
	case "INSTANCE", "GROUP":
		// The name stands in quotes and may hold anything, quotes too.
		first, last := strings.IndexByte(rest, '"'), strings.LastIndexByte(rest, '"')
		if first != 0 || last == 0 {
			err = fmt.Errorf("a name in quotes is missing: %w", ErrSyntax)
			break
		}
		words := strings.Fields(rest[last+1:])
		if len(words) < 2 {
			err = fmt.Errorf("state or priority is missing: %w", ErrSyntax)
			break
		}
		event, err = vrrpEvent(kind, rest[1:last], words[0], words[1])
	case "VS", "RS":
		event, err = serverEvent(strings.ToUpper(kind), rest)
	default:
		err = ErrSyntax
	}
	if err != nil {
		return Event{}, fmt.Errorf("notify FIFO line %q: %w", text, err)
	}
	return event, nil
}

func vrrpEvent(kind, name, state, priority string) (Event, error) {
	event := Event{Name: name, State: vrrpState(state)}
	switch strings.ToUpper(kind) {
	case "INSTANCE":
		event.Kind = KindInstance
	case "GROUP":
		event.Kind = KindGroup
	default:
		return Event{}, fmt.Errorf("%q %w: want GROUP or INSTANCE", kind, ErrSyntax)
	}
	n, err := strconv.ParseUint(priority, 10, 8)
	if err != nil {
		return Event{}, fmt.Errorf("priority %q %w: want 0 to 255", priority, ErrSyntax)
	}
	event.Priority = int(n)
	return event, nil
}

// vrrpState reads the state of an instance or group. A new word of a newer
// keepalived is no reason to lose the event.
func vrrpState(word string) State {
	switch strings.ToUpper(word) {
	// A master that has heard a lower priority, or whose own has changed, stays one.
	case "MASTER", "MASTER_RX_LOWER_PRI", "MASTER_PRIORITY":
		return Master
	case "BACKUP":
		return Backup
	case "FAULT":
		return Fault
	case "STOP", "DELETED":
		return Stop
	default:
		return Unknown
	}
}

func serverEvent(kind, text string) (Event, error) {
	servers, word, ok := cutLast(text)
	if !ok {
		return Event{}, ErrSyntax
	}
	event := Event{Kind: KindVirtualServer, State: Unknown}
	switch State(strings.ToUpper(word)) {
	case Up:
		event.State = Up
	case Down:
		event.State = Down
	}
	var err error
	if kind == "RS" {
		event.Kind = KindRealServer
		real, rest, _ := strings.Cut(servers, " ")
		if event.RealServer, err = parseServer(real); err != nil {
			return Event{}, err
		}
		servers = rest
	}
	event.VirtualServer, err = parseServer(servers)
	return event, err
}

func cutLast(text string) (before, after string, found bool) {
	i := strings.LastIndexByte(text, ' ')
	if i < 0 {
		return "", text, false
	}
	return text[:i], text[i+1:], true
}

// parseServer reads a server as keepalived writes it: [address]:protocol:port,
// [group]:port or FWM mark.
func parseServer(text string) (Server, error) {
	if word, ok := strings.CutPrefix(text, "FWM "); ok {
		mark, err := strconv.ParseUint(word, 10, 32)
		if err != nil || mark == 0 {
			return Server{}, fmt.Errorf("firewall mark %q %w", word, ErrSyntax)
		}
		return Server{Mark: uint32(mark)}, nil
	}
	closing := strings.LastIndex(text, "]:")
	if closing < 2 || text[0] != '[' {
		return Server{}, fmt.Errorf("server %q %w", text, ErrSyntax)
	}
	name, rest := text[1:closing], text[closing+2:]
	protocol, word, isAddress := strings.Cut(rest, ":")
	if !isAddress {
		return Server{Group: name}, nil
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return Server{}, fmt.Errorf("server %q %w", text, ErrSyntax)
	}
	port, err := strconv.ParseUint(word, 10, 16)
	if err != nil {
		return Server{}, fmt.Errorf("port of server %q %w", text, ErrSyntax)
	}
	if protocol == "none" {
		protocol = ""
	}
	return Server{Addr: netip.AddrPortFrom(addr.Unmap(), uint16(port)), Protocol: protocol}, nil
}

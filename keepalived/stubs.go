package keepalived

import (
	"context"
	"errors"
	"net/netip"
)

// ErrSyntax is what errors about input that could not be understood wrap.
var ErrSyntax = errors.New("syntax")

// ParseNotify reads the arguments of a notify script.
func ParseNotify(args []string) (Event, error) { return Event{}, errors.ErrUnsupported }

// ParseLine reads one line of a notify FIFO.
func ParseLine(line []byte) (Event, error) { return Event{}, errors.ErrUnsupported }

// FIFO is the reading end of keepalived's notify_fifo.
type FIFO struct {
	Path string
}

// Run calls event for every event and gap whenever events may have been lost,
// from one goroutine, until ctx is done; it returns nil then. gap's error is
// nil when the FIFO has been opened, also for the first time; it wraps
// ErrSyntax for a line that was not understood, else it says why the FIFO
// cannot be read at present.
func (f FIFO) Run(ctx context.Context, event func(Event), gap func(error)) error {
	return errors.ErrUnsupported
}

// Config is what keepalived.conf says of addresses and services.
type Config struct {
	Files          []string // read, in the order of their first reading
	NotifyFIFO     string   // global_defs notify_fifo, or vrrp_notify_fifo
	Instances      []Instance
	Groups         []Group
	VirtualServers []VirtualServer
	Skipped        []Skipped // what would have named an address and was not understood
}

// Instance is a VRRP instance with its virtual addresses.
type Instance struct {
	Name      string
	Addresses []netip.Addr
}

// Group is a VRRP sync group.
type Group struct {
	Name      string
	Instances []string
}

// VirtualServer is a virtual server with its real servers.
type VirtualServer struct {
	Server
	Addresses   []Server // what it serves: itself, or the members of its group
	RealServers []Server
}

// Skipped is a place in the configuration that was not understood.
type Skipped struct {
	File   string
	Line   int
	Text   string
	Reason string
}

// ReadConfig reads keepalived's configuration with all that it includes. id is
// what keepalived was given with --config-id; empty means the host's name.
func ReadConfig(path, id string) (Config, error) { return Config{}, errors.ErrUnsupported }

// Held is a set of addresses. The nil set means that it is not known which
// addresses are held; an empty one, that none is.
type Held map[netip.Addr]bool

// Roles says the state of each instance, by its name.
func Roles(instances []Instance, held Held, last map[string]State) map[string]State { return nil }

// Addresses reads the addresses that this host holds.
type Addresses struct{}

// OpenAddresses opens a reader.
func OpenAddresses() (*Addresses, error) { return nil, errors.ErrUnsupported }

// Held returns the addresses on real interfaces that are up.
func (a *Addresses) Held() (Held, error) { return nil, errors.ErrUnsupported }

// Close closes the reader.
func (a *Addresses) Close() error { return nil }

// LookAgain tells the daemon that listens on socket to look at the roles again.
// It never blocks.
func LookAgain(socket string) error { return errors.ErrUnsupported }

// Listener is the daemon's end of LookAgain.
type Listener struct{}

// Listen makes the socket.
func Listen(socket string) (*Listener, error) { return nil, errors.ErrUnsupported }

// Run calls look for what was asked, at most ten times a second, until ctx is done.
func (l *Listener) Run(ctx context.Context, look func()) error { return errors.ErrUnsupported }

// Close removes the socket.
func (l *Listener) Close() error { return nil }

package keepalived

import (
	"errors"
	"net/netip"
)

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

package guard

import (
	"net/netip"
	"time"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// A Sample is everything that is known of one instant. It can be written as a
// line of JSON and read back, so that an incident can be replayed.
//
// What could not be read is nil, and Unknown says why.
type Sample struct {
	Time     time.Time                   `json:"time"`
	Services []Service                   `json:"services"`
	Counters map[netip.AddrPort]Counters `json:"counters"`
	Roles    []Role                      `json:"roles"`
	// Handshakes are the figures of "all", of the filters and of the services;
	// nil, as Capture is, where none are watched.
	Handshakes []handshake.Figures `json:"handshakes,omitempty"`
	Capture    *Capture            `json:"capture,omitempty"`
	// Pressure is without the counters, of which it has the troubles.
	Pressure *pressure.Sample  `json:"pressure,omitempty"`
	Sockets  *SocketsSummary   `json:"sockets,omitempty"`
	Servers  []RealServer      `json:"servers,omitempty"`
	Unknown  map[Source]string `json:"unknown,omitempty"`
}

// A Source is one of the places that a Sample is read from.
type Source string

// The sources of a Sample.
const (
	SourceIPVS      Source = "ipvs"
	SourceNft       Source = "nft"
	SourceCensus    Source = "census"
	SourceRoles     Source = "keepalived"
	SourceCapture   Source = "capture"
	SourcePressure  Source = "pressure"
	SourceSockets   Source = "sockets"
	SourceKernelLog Source = "kernel_log"
	SourceServers   Source = "servers"
	SourceSampling  Source = "sampling" // of the packets that the signatures match
	SourceEvidence  Source = "evidence" // what an incident leaves behind
	SourceMetrics   Source = "metrics"  // not read from: what others read
)

// Sources are all that can be unknown, in the order in which they are told.
func Sources() []Source {
	return []Source{
		SourceIPVS, SourceNft, SourceCensus, SourceRoles, SourceCapture, SourcePressure, SourceSockets, SourceKernelLog, SourceServers, SourceMetrics,
	}
}

// A Service is one virtual service in a Sample.
type Service struct {
	Key ipvs.Key `json:"service"`
	// Addresses are where its SYNs are counted: its own, or those that the
	// configuration gives for a firewall mark; none if it is not TCP.
	Addresses []netip.AddrPort `json:"addresses,omitempty"`
	// Forwarding is the method of its real servers, "mixed" if they differ.
	Forwarding string `json:"forwarding,omitempty"`
	// Connections is nil for a service that IPVS does not serve.
	Connections *Connections `json:"connections,omitempty"`
	// Census is the service's part of a sample of the connection table.
	Census *Census `json:"census,omitempty"`
}

// Connections are a service's entries in the connection table, by IPVS's own
// count.
type Connections struct {
	Active     uint64 `json:"active"`
	Inactive   uint64 `json:"inactive"`
	Persistent uint64 `json:"persistent"`
}

// A Census is what a sample of the connection table shows of one service.
type Census struct {
	Lines    int  `json:"lines"`    // entries of this service that were read
	HalfOpen int  `json:"halfopen"` // those of them in SYN_RECV
	Complete bool `json:"complete"` // the whole table was read
	// Entries is what Lines stands for in the whole table.
	Entries float64 `json:"entries"`
}

// minCensusLines is the least that a share can be told from: at 200 lines it is
// within 7 points, 19 times of 20.
const minCensusLines = 200

// halfOpen estimates the service's half-open entries and their share. It is
// not known from fewer than minCensusLines, unless those are all there are.
func (c *Census) halfOpen() (entries, share float64, known bool) {
	switch {
	case c == nil || !c.Complete && c.Lines < minCensusLines:
		return 0, 0, false
	case c.Lines == 0:
		return 0, 0, true
	}
	share = float64(c.HalfOpen) / float64(c.Lines)
	return share * c.Entries, share, true
}

// Counters are the packets counted for one watched address since the table was
// made.
type Counters struct {
	SYN       uint64 `json:"syn"`
	Suspect   uint64 `json:"suspect"`
	Dropped   uint64 `json:"dropped"`
	Fragments uint64 `json:"fragments"`
}

// A Role is the state of a VRRP instance of this host.
type Role struct {
	Instance  string           `json:"instance"`
	State     keepalived.State `json:"role"`
	Since     time.Time        `json:"since"`
	Addresses []netip.Addr     `json:"addresses,omitempty"`
	// Changes counts those from one known state to another.
	Changes uint64 `json:"changes,omitempty"`
}

// rolesByAddress tells which instance owns an address. An address that two
// instances name counts as MASTER if either is.
func rolesByAddress(roles []Role) map[netip.Addr]Role {
	m := make(map[netip.Addr]Role)
	for _, r := range roles {
		for _, a := range r.Addresses {
			if have, ok := m[a]; !ok || have.State != keepalived.Master {
				m[a] = r
			}
		}
	}
	return m
}

// Package ipvs reads what Linux's IP Virtual Server knows: its virtual services
// and real servers with their totals, its settings for defence, and its
// connection table as a census. It changes nothing and loads no kernel module.
//
// What cannot be read is an error or marked as unknown, never zero: with the
// ip_vs module absent every call returns [ErrAbsent], and works again as soon as
// the module is loaded.
package ipvs

import (
	"errors"
	"net/netip"
	"time"
)

// ErrAbsent is returned while the kernel module ip_vs is not loaded.
var ErrAbsent = errors.New("IPVS is not in this kernel: load it with modprobe ip_vs")

// A Method is the way a real server is reached.
type Method string

// The forwarding methods, as ipvsadm's -m, -g and -i choose them. The kernel
// itself chooses Local for a real server that is this host, and Bypass for a
// destination without a real server.
const (
	NAT    Method = "nat"
	DR     Method = "dr"
	TUN    Method = "tun"
	Local  Method = "local"
	Bypass Method = "bypass"
)

// A Service is a virtual service as it was at one reading.
type Service struct {
	Key        Key
	Scheduler  string        // "wlc", "rr", "mh", ...
	Persistent time.Duration // how long a client stays with its real server; 0: not persistent
	OnePacket  bool          // each datagram is scheduled by itself (UDP)
	Stats      Stats

	// Frozen tells that net.ipv4.vs.run_estimation is 0. The kernel then leaves
	// all totals as they were when that was set: they and the rates computed
	// from them are not known.
	Frozen bool

	// RealServers is ordered by address. They are read each time while the
	// service is in use; those of an idle service may have been read earlier,
	// at RealServersAt: see [Client.Services].
	RealServers   []RealServer
	RealServersAt time.Time
}

// Connections returns how many entries of the connection table belong to the
// service: ActiveConn, InActConn and PersistConn over its real servers.
func (s Service) Connections() uint64 {
	var n uint64
	for _, rs := range s.RealServers {
		n += uint64(rs.ActiveConn) + uint64(rs.InActConn) + uint64(rs.PersistConn)
	}
	return n
}

// A RealServer is one destination of a virtual service.
type RealServer struct {
	Addr   netip.AddrPort
	Method Method
	Weight uint32 // 0: gets no new connections

	// Entries of the connection table. ActiveConn counts half-open entries too
	// (SYN_RECV) on today's kernels; PersistConn counts persistence templates,
	// one for each client.
	ActiveConn, InActConn, PersistConn uint32

	Stats Stats
}

// busy reports whether the real server has connections, whose number changes
// by itself as they expire.
func (rs RealServer) busy() bool {
	return rs.ActiveConn != 0 || rs.InActConn != 0 || rs.PersistConn != 0
}

// Stats are totals since the service or real server was made. The kernel brings
// them up to date every two seconds. They are 64 bits wide; on kernels before 4.1
// they wrap at 32. In the forwarding methods DR and TUN answers do not pass the
// director, so PacketsOut and BytesOut stay zero.
type Stats struct {
	Connections           uint64
	PacketsIn, PacketsOut uint64
	BytesIn, BytesOut     uint64
}

// Rates are the increase of Stats a second.
type Rates struct {
	Connections           float64
	PacketsIn, PacketsOut float64
	BytesIn, BytesOut     float64
}

// Rates returns the rates between an earlier reading prev and s, dt apart. As
// totals move in steps of two seconds, so do rates over less than that.
//
// It returns false if the rates cannot be known: dt is not positive, or a total
// went back, because the service was made again or its counters were zeroed. Of
// a service that is Frozen they are not known either.
func (s Stats) Rates(prev Stats, dt time.Duration) (Rates, bool) {
	if dt <= 0 ||
		s.Connections < prev.Connections ||
		s.PacketsIn < prev.PacketsIn || s.PacketsOut < prev.PacketsOut ||
		s.BytesIn < prev.BytesIn || s.BytesOut < prev.BytesOut {
		return Rates{}, false
	}
	rate := func(now, before uint64) float64 { return float64(now-before) / dt.Seconds() }
	return Rates{
		Connections: rate(s.Connections, prev.Connections),
		PacketsIn:   rate(s.PacketsIn, prev.PacketsIn),
		PacketsOut:  rate(s.PacketsOut, prev.PacketsOut),
		BytesIn:     rate(s.BytesIn, prev.BytesIn),
		BytesOut:    rate(s.BytesOut, prev.BytesOut),
	}, true
}

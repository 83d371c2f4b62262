package guard

import (
	"context"
	"net/netip"
	"time"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
	"github.com/lvsguard/lvsguard/nft"
)

// Kernel is everything that the guard reads and changes outside itself. The
// command line picks the real ones; tests have their own.
type Kernel struct {
	IPVS      IPVS
	OpenTable func(nft.Config) (Table, error)
	Addresses Addresses
	// OpenHandshakes is nil where none are to be watched.
	OpenHandshakes func(HandshakesConfig, capture.RecorderConfig, []handshake.Service) (Handshakes, error)
	// OpenQueue is nil where no packet is to be sampled by a queue.
	OpenQueue func(capture.QueueConfig) (Queue, error)
	Host      Host
}

// Host is what the guard reads of the host itself. What is nil is not read.
type Host struct {
	Monitor       Monitor
	OpenSockets   func() (SocketReader, error)
	OpenKernelLog func() (KernelLog, error)
	OpenServers   func(pressure.ServersConfig) (Servers, error)
}

// Monitor is what the guard needs of [pressure.Monitor].
type Monitor interface {
	Sample(time.Time, pressure.Given) pressure.Sample
	SetThresholds(pressure.Thresholds)
}

// SocketReader is what the guard needs of [pressure.SocketReader].
type SocketReader interface {
	Read(context.Context, pressure.SocketsAsk) pressure.Sockets
	Close() error
}

// KernelLog is what the guard needs of [pressure.KernelLog].
type KernelLog interface {
	Events(time.Time) ([]pressure.Event, error)
	Lost() uint64
	Close() error
}

// IPVS is what the guard needs of [ipvs.Client].
type IPVS interface {
	Services(context.Context) ([]ipvs.Service, error)
	Census(context.Context, ipvs.CensusConfig) (ipvs.Census, error)
	Defence() (ipvs.Defence, error)
}

// Table is what the guard needs of [nft.Table].
type Table interface {
	Counting
	Leasing
	Removing
	Sampling
}

// Counting is the part of a table that counts.
type Counting interface {
	Ensure([]netip.AddrPort) (nft.Changed, error)
	Check() error
	Counters() (nft.Counters, error)
}

// Leasing is the part of a table that drops.
type Leasing interface {
	Arm(map[netip.AddrPort]time.Duration) error
	Disarm([]netip.AddrPort) error
	Leases() (map[netip.AddrPort]time.Duration, error)
}

// Sampling is the part of a table that has packets looked at.
type Sampling interface {
	Sample(nft.Sampling) (nft.Way, error)
	Unsample() error
}

// Queue is what the guard needs of [capture.Queue].
type Queue interface {
	Take() []capture.Packet
	Stats() (capture.QueueStats, error)
	Close() error
}

// Removing ends a table, or only the connection to it.
type Removing interface {
	Remove() error
	Close() error
}

// Addresses is what the guard needs of [keepalived.Addresses].
type Addresses interface {
	Held() (keepalived.Held, error)
}

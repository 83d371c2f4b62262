package guard

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard/pressure"
)

// This file is the catalogue of what an alert rule can be about.

// FigureKind says how a Figure is to be read.
type FigureKind string

const (
	// Gauge is a figure of this moment.
	Gauge FigureKind = "gauge"
	// Counter only grows, but for a new beginning: rules are about its increase
	// in a window.
	Counter FigureKind = "counter"
)

// A Figure is something of a Status that an alert rule can be about.
type Figure struct {
	Name string
	Kind FigureKind
	// Unit is what follows the number: "/s", "ms", "s" or nothing; in "%", 1 is all.
	// Of a State it is that of the readings' Size.
	Unit string
	// What follows number and unit in a sentence, as "attempts failed".
	What string
	// Help says what it is, in a sentence.
	Help string
	// Labels that its readings have; By are those that tell its alerts apart where
	// a rule does not say.
	Labels []string
	By     []string
	// Adds says whether readings make a sum. Of those that make none the farthest
	// counts.
	Adds bool
	// ShareOf is what a share of its increase is a share of, as "of those that
	// ended"; empty: it has none.
	ShareOf string
	// State says that 1 is yes and 0 is no, and that the reading's Text says more
	// than the number.
	State bool
	// Look is the command that shows more of it.
	Look string

	// Read yields what s knows of it. Where that is nothing at all, it yields
	// nothing and says why.
	Read func(s *Status, now time.Time, yield func(Reading)) (unknown string)
	// Stale says that it is known however old a Status is.
	Stale bool
}

// A Reading is one value of a Figure.
type Reading struct {
	Labels FigureLabels
	Value  float64
	// Of is the total that a share of a counter is a share of.
	Of float64
	// Unknown says why there is no Value; empty: there is one.
	Unknown string
	// Text says more, for people. Of a State, Size tells at which of its moments it
	// was at its worst.
	Text string
	Size float64
}

// FigureLabels tell readings apart. Those that a figure has not are empty.
type FigureLabels struct {
	Project  string `json:"project,omitempty"`
	Service  string `json:"service,omitempty"`
	Filter   string `json:"filter,omitempty"`
	Resource string `json:"resource,omitempty"`
	Kind     string `json:"kind,omitempty"`
	Instance string `json:"instance,omitempty"`
	Server   string `json:"server,omitempty"`
	Source   string `json:"source,omitempty"`
	// Part is no label: it keeps apart what must not be added up, because a
	// service's attempts may be a filter's too.
	Part string `json:"part,omitempty"`
}

// field finds a label by its name; nil for one that is none of a figure's.
func (l *FigureLabels) field(name string) *string {
	switch name {
	case "project":
		return &l.Project
	case "service":
		return &l.Service
	case "filter":
		return &l.Filter
	case "resource":
		return &l.Resource
	case "kind":
		return &l.Kind
	case "instance":
		return &l.Instance
	case "server":
		return &l.Server
	case "source":
		return &l.Source
	}
	return nil
}

// Get returns the label of that name; empty if there is none.
func (l FigureLabels) Get(name string) string {
	if f := l.field(name); f != nil {
		return *f
	}
	return ""
}

// Only returns l with the labels of these names alone.
func (l FigureLabels) Only(names []string) FigureLabels {
	o := FigureLabels{Part: l.Part}
	for _, name := range names {
		if f := o.field(name); f != nil {
			*f = *l.field(name)
		}
	}
	return o
}

// Map returns those that are not empty.
func (l FigureLabels) Map() map[string]string {
	m := make(map[string]string)
	for _, name := range alertLabels {
		if v := l.Get(name); v != "" {
			m[name] = v
		}
	}
	return m
}

// AlertFigures is the catalogue.
func AlertFigures() []Figure {
	return slices.Concat(serviceFigures(), handshakeFigures(), hostFigures(), guardFigures(), serverFigures())
}

const (
	lookStatus     = "lvsguard status"
	lookHandshakes = "lvsguard status --json" // the figures of filters and services
	lookPressure   = "lvsguard pressure"
	lookServers    = "lvsguard servers"
)

func serviceFigures() []Figure {
	labels, by := []string{"project", "service", "instance"}, []string{"project", "service"}
	// of makes a figure of what value finds in each service.
	of := func(f Figure, value func(*ServiceStatus) (v *float64, text, unknown string), size func(*ServiceStatus) float64) Figure {
		f.Kind, f.Labels, f.By, f.Look = Gauge, labels, by, lookStatus
		f.Read = func(s *Status, _ time.Time, yield func(Reading)) string {
			for i := range s.Services {
				svc := &s.Services[i]
				r := Reading{Labels: FigureLabels{Project: svc.Project, Service: svc.Service.String()}}
				if svc.Instance != nil {
					r.Labels.Instance = *svc.Instance
				}
				v, text, unknown := value(svc)
				if v == nil {
					r.Unknown = unknown
				} else {
					r.Value, r.Text = *v, text
				}
				if size != nil {
					r.Size = size(svc)
				}
				yield(r)
			}
			return ""
		}
		return f
	}
	number := func(name, unit, what, help, key string, adds bool, value func(*ServiceStatus) *float64) Figure {
		return of(Figure{Name: name, Unit: unit, What: what, Help: help, Adds: adds}, func(s *ServiceStatus) (*float64, string, string) {
			return value(s), "", orUnknown(s.Unknown[key])
		}, nil)
	}
	count := func(v *uint64) *float64 {
		if v == nil {
			return nil
		}
		return new(float64(*v))
	}
	return []Figure{
		of(Figure{Name: "flood", State: true, Unit: "/s", What: "flooded", Help: "1 while the verdict on a service is flood or half_open_flood"},
			func(s *ServiceStatus) (*float64, string, string) {
				switch s.Verdict {
				case Unknown:
					return nil, "", s.Reason
				case Flood, HalfOpenFlood:
					return new(1.0), s.Reason, ""
				}
				return new(0.0), "", ""
			}, func(s *ServiceStatus) float64 { return known(s.Suspect) }),
		of(Figure{Name: "armed", State: true, Unit: "/s", What: "armed", Help: "1 while the guard drops for a service, by a lease that is more than a standby's precaution"},
			func(s *ServiceStatus) (*float64, string, string) {
				if s.Lease == nil || s.Lease.By == ByPrearm {
					return new(0.0), "", ""
				}
				return new(1.0), "SYNs with a signature are dropped, by " + string(s.Lease.By), ""
			}, func(s *ServiceStatus) float64 { return known(s.Dropped) }),
		number("syn_per_second", "/s", "SYNs", "SYNs to a service, dropped ones too", "syn_per_second", true, func(s *ServiceStatus) *float64 { return s.SYN }),
		number("suspect_per_second", "/s", "SYNs with a signature", "SYNs with a flood's signature, dropped ones too", "suspect_per_second", true, func(s *ServiceStatus) *float64 { return s.Suspect }),
		number("dropped_per_second", "/s", "SYNs dropped", "SYNs that the guard drops", "dropped_per_second", true, func(s *ServiceStatus) *float64 { return s.Dropped }),
		number("half_open_connections", "", "half-open connections", "entries in SYN_RECV, estimated", "half_open_connections", true, func(s *ServiceStatus) *float64 { return s.HalfOpen }),
		number("active_connections", "", "active connections", "IPVS's ActiveConn", "active_connections", true, func(s *ServiceStatus) *float64 { return count(s.Active) }),
		number("inactive_connections", "", "inactive connections", "IPVS's InActConn", "inactive_connections", true, func(s *ServiceStatus) *float64 { return count(s.Inactive) }),
		number("completion", "%", "of handshakes completed", "share of the handshakes that ended within the last minute and completed", "completion", false, func(s *ServiceStatus) *float64 { return s.Completion }),
	}
}

// known is v, and 0 where that is not known: what is made of it is compared, and
// not shown.
func known(v *float64) float64 {
	if v == nil {
		return 0
	}
	return *v
}

// orUnknown is the reason for what is not known where none is given.
func orUnknown(why string) string {
	if why == "" {
		return "not known"
	}
	return why
}

func handshakeFigures() []Figure {
	count := func(v uint64) *uint64 { return &v }
	sum := func(a, b *uint64) *uint64 {
		if a == nil || b == nil {
			return nil
		}
		return count(*a + *b)
	}
	of := func(name, what, help string, value func(*handshake.Figures) *uint64) Figure {
		return Figure{
			Name: name, Kind: Counter, What: what, Help: help, Labels: []string{"project", "service", "filter"}, By: []string{"project"},
			Adds: true, ShareOf: "of those that ended", Look: lookHandshakes,
			Read: func(s *Status, _ time.Time, yield func(Reading)) string { return readHandshakeFigures(s, value, yield) },
		}
	}
	return []Figure{
		of("handshakes_failed", "handshakes failed", "handshakes that were refused, unreachable, aborted or timed out",
			func(f *handshake.Figures) *uint64 { return &f.Failure.Total }),
		of("handshakes_refused", "handshakes refused", "handshakes that a server answered with RST",
			func(f *handshake.Figures) *uint64 { return f.Failure.Reject }),
		of("handshakes_unreachable", "handshakes unreachable", "handshakes that ended by an ICMP destination unreachable",
			func(f *handshake.Figures) *uint64 { return f.Failure.Unreach }),
		of("handshakes_timed_out", "handshakes timed out", "handshakes of which nothing was heard any more",
			func(f *handshake.Figures) *uint64 { return &f.Failure.Timeout }),
		of("handshakes_aborted", "handshakes aborted", "handshakes that the client ended by RST",
			func(f *handshake.Figures) *uint64 { return &f.Failure.Aborted }),
		of("syn_retransmitted", "handshakes with a retransmitted SYN", "handshakes that ended and in which the client repeated its SYN",
			func(f *handshake.Figures) *uint64 { return count(f.Success.DupSYN + f.Failure.DupSYN) }),
		of("synack_retransmitted", "handshakes with a retransmitted SYN/ACK", "handshakes that ended and in which the server repeated its SYN/ACK",
			func(f *handshake.Figures) *uint64 { return sum(f.Success.DupSYNACK, f.Failure.DupSYNACK) }),
	}
}

// readHandshakeFigures yields a figure of each service and filter; of everything
// only where there is neither, because they are a part of it.
func readHandshakeFigures(s *Status, value func(*handshake.Figures) *uint64, yield func(Reading)) (unknown string) {
	if s.Capture == nil {
		if why := s.Unknown[SourceCapture]; why != "" {
			return why
		}
		return "handshakes are not watched (handshakes.enabled)"
	}
	one := func(l FigureLabels, f *handshake.Figures) {
		r := Reading{Labels: l, Of: float64(f.Success.Total + f.Failure.Total)}
		if v := value(f); v != nil {
			r.Value = float64(*v)
		} else {
			r.Unknown = "the servers' half of the connections does not pass here"
		}
		yield(r)
	}
	only := true
	for i := range s.Services {
		if svc := &s.Services[i]; svc.Handshakes != nil {
			only = false
			one(FigureLabels{Project: svc.Project, Service: svc.Service.String(), Part: "services"}, svc.Handshakes)
		}
	}
	only = only && len(s.Handshakes) == 1
	for i := range s.Handshakes {
		if f := &s.Handshakes[i]; only || f.Name != handshake.All {
			one(FigureLabels{Project: f.Project, Filter: f.Name, Part: "filters"}, f)
		}
	}
	return ""
}

func hostFigures() []Figure {
	const noPressure = "pressure is not watched"
	resource := func(f Figure, value func(*pressure.Resource) *float64) Figure {
		f.Kind, f.Labels, f.By, f.Look = Gauge, []string{"project", "resource", "kind"}, []string{"project", "resource", "kind"}, lookPressure
		f.Read = func(s *Status, _ time.Time, yield func(Reading)) string {
			if s.Pressure == nil {
				return noPressure
			}
			for i := range s.Pressure.Resources {
				res := &s.Pressure.Resources[i]
				r := Reading{Labels: FigureLabels{Project: s.Project, Resource: res.Name, Kind: string(res.Kind)}, Text: res.Reason, Size: known(res.Share)}
				if v := value(res); v != nil {
					r.Value = *v
				} else {
					r.Unknown = orUnknown(res.Reason)
				}
				yield(r)
			}
			return ""
		}
		return f
	}
	return []Figure{
		resource(Figure{Name: "pressure_level", State: true, Unit: "%", What: "near its limit", Help: "how full a resource is: 0 ok, 1 warning, 2 critical, by the thresholds under pressure"},
			func(r *pressure.Resource) *float64 {
				switch r.Level {
				case pressure.LevelOK:
					return new(0.0)
				case pressure.LevelWarning:
					return new(1.0)
				case pressure.LevelCritical:
					return new(2.0)
				}
				return nil
			}),
		resource(Figure{Name: "pressure_share", Unit: "%", What: "used", Help: "how full a resource is; of accept queues only those that are not ok"},
			func(r *pressure.Resource) *float64 { return r.Share }),
		{
			Name: "kernel_events", Kind: Gauge, What: "lines of the kernel log", Adds: true,
			Help:   "lines of the kernel log within the last 5 minutes that mean trouble, by kind",
			Labels: []string{"project", "kind"}, By: []string{"project", "kind"}, Look: lookPressure,
			Read: func(s *Status, _ time.Time, yield func(Reading)) string {
				if s.Pressure == nil {
					return noPressure
				}
				for _, e := range s.Pressure.Events {
					if s.Time.Sub(e.Time) < 5*time.Minute {
						yield(Reading{Labels: FigureLabels{Project: s.Project, Kind: string(e.Kind)}, Value: float64(max(e.Count, 1)), Text: e.Text})
					}
				}
				return ""
			},
		},
		{
			Name: "role_changes", Kind: Counter, What: "changes of role", Adds: true, Help: "changes of the role of a VRRP instance of this host",
			Labels: []string{"project", "instance"}, By: []string{"project", "instance"}, Look: lookStatus,
			Read: func(s *Status, _ time.Time, yield func(Reading)) string {
				for _, r := range s.Roles {
					yield(Reading{Labels: FigureLabels{Project: s.Project, Instance: r.Instance}, Value: float64(r.Changes), Text: "now " + r.Role})
				}
				return s.Unknown[SourceRoles]
			},
		},
	}
}

func guardFigures() []Figure {
	one := func(f Figure, value func(*Status) (v float64, text string)) Figure {
		f.Labels, f.By, f.Look = []string{"project"}, []string{"project"}, lookStatus
		f.Read = func(s *Status, _ time.Time, yield func(Reading)) string {
			v, text := value(s)
			yield(Reading{Labels: FigureLabels{Project: s.Project}, Value: v, Text: text})
			return ""
		}
		return f
	}
	state := func(name, what, help string, reason func(*Status) *string) Figure {
		return one(Figure{Name: name, Kind: Gauge, State: true, What: what, Help: help}, func(s *Status) (float64, string) {
			if why := reason(s); why != nil {
				return 1, *why
			}
			return 0, ""
		})
	}
	return []Figure{
		{
			Name: "source_unknown", Kind: Gauge, State: true, What: "not known", Help: "1 while a source of the guard's figures cannot be read",
			Labels: []string{"project", "source"}, By: []string{"project", "source"}, Look: "lvsguard doctor",
			Read: func(s *Status, _ time.Time, yield func(Reading)) string {
				for _, src := range slices.Sorted(maps.Keys(s.Unknown)) {
					yield(Reading{Labels: FigureLabels{Project: s.Project, Source: string(src)}, Value: 1, Text: s.Unknown[src]})
				}
				return ""
			},
		},
		{
			Name: "capture_dropped", Kind: Counter, What: "packets lost by the capture", Help: "packets that the capture had no room for: figures of handshakes are then a lower bound",
			Labels: []string{"project"}, By: []string{"project"}, Adds: true, ShareOf: "of its packets", Look: lookStatus,
			Read: func(s *Status, _ time.Time, yield func(Reading)) string {
				if s.Capture == nil {
					return orUnknown(s.Unknown[SourceCapture])
				}
				yield(Reading{Labels: FigureLabels{Project: s.Project}, Value: float64(s.Capture.Dropped), Of: float64(s.Capture.Handed + s.Capture.Dropped)})
				return ""
			},
		},
		state("automatic_paused", "automatic drops pause", "1 while automatic drops pause because somebody took the table away repeatedly", func(s *Status) *string {
			if s.PausedUntil == nil {
				return nil
			}
			return new("until " + s.PausedUntil.UTC().Format(time.RFC3339))
		}),
		one(Figure{Name: "table_losses", Kind: Counter, Adds: true, What: "times somebody else took the table away or changed it", Help: "times that somebody else took the nft table away or changed it, and it was made again"},
			func(s *Status) (float64, string) { return float64(s.TableLosses), "" }),
		state("journal_failing", "the journal cannot be written", "1 while the journal cannot be written", func(s *Status) *string { return s.Journal.Error }),
		state("config_refused", "configuration refused", "1 while the file of the configuration is refused and an older one in force", func(s *Status) *string { return s.ConfigError }),
		one(Figure{Name: "look_milliseconds", Kind: Gauge, Unit: "ms", What: "for a look", Help: "how long the last look at everything took"},
			func(s *Status) (float64, string) { return s.TickMillis, "" }),
		{
			Name: "look_age_seconds", Kind: Gauge, Unit: "s", What: "since the guard last looked", Help: "how long ago the guard last looked: it does once a second",
			Labels: []string{"project"}, By: []string{"project"}, Look: "lvsguard doctor", Stale: true,
			Read: func(s *Status, now time.Time, yield func(Reading)) string {
				yield(Reading{Labels: FigureLabels{Project: s.Project}, Value: now.Sub(s.Time).Seconds()})
				return ""
			},
		},
	}
}

func serverFigures() []Figure {
	labels, by := []string{"project", "server"}, []string{"project", "server"}
	servers := func(f Figure, value func(*pressure.Server) (v *float64, text string)) Figure {
		f.Kind, f.Labels, f.By, f.Look = Gauge, labels, by, lookServers
		f.Read = func(s *Status, _ time.Time, yield func(Reading)) string {
			if s.Servers == nil {
				return orUnknown(s.Unknown[SourceServers])
			}
			for i := range s.Servers {
				is := &s.Servers[i]
				if is.Figures == nil {
					continue
				}
				r := Reading{Labels: FigureLabels{Project: s.Project, Server: is.Address.String()}}
				v, text := value(is.Figures)
				if v == nil {
					r.Unknown = orUnknown(is.Figures.Unknown)
				} else {
					r.Value, r.Text = *v, text
				}
				yield(r)
			}
			return ""
		}
		return f
	}
	rate := func(c *pressure.ServerCount) (*float64, string) {
		if c == nil {
			return nil, ""
		}
		return c.PerSecond, ""
	}
	return []Figure{
		servers(Figure{Name: "server_silent", State: true, What: "silent", Help: "1 while a real server does not tell its figures (servers.metrics)"}, func(s *pressure.Server) (*float64, string) {
			if s.UnknownSince == nil {
				return new(0.0), ""
			}
			return new(1.0), s.Unknown
		}),
		servers(Figure{Name: "server_syncookies_per_second", Unit: "/s", What: "SYN cookies sent", Adds: true, Help: "SYN cookies that a real server sends"},
			func(s *pressure.Server) (*float64, string) { return rate(s.SyncookiesSent) }),
		servers(Figure{Name: "server_listen_drops_per_second", Unit: "/s", What: "connections dropped by full queues", Adds: true, Help: "connections that a real server drops because its queues are full"},
			func(s *pressure.Server) (*float64, string) { return rate(s.ListenDrops) }),
		servers(Figure{Name: "server_accept_queue_share", Unit: "%", What: "of its fullest accept queue used", Help: "how full a real server's fullest accept queue is"},
			func(s *pressure.Server) (*float64, string) { return s.AcceptQueueShare, "" }),
		servers(Figure{Name: "server_memory_share", Unit: "%", What: "of its memory used", Help: "how full a real server's memory is"}, func(s *pressure.Server) (*float64, string) {
			if s.MemoryTotal == nil || s.MemoryAvailable == nil || *s.MemoryTotal == 0 {
				return nil, ""
			}
			return new(1 - min(1, float64(*s.MemoryAvailable)/float64(*s.MemoryTotal))), ""
		}),
		{
			Name: "server_removed", Kind: Gauge, State: true, What: "removed by health check",
			Help:   "1 while keepalived's configuration names a real server for a service and IPVS does not have it",
			Labels: []string{"project", "service", "server"}, By: []string{"project", "service", "server"}, Look: lookServers,
			Read: func(s *Status, _ time.Time, yield func(Reading)) string {
				if s.Servers == nil {
					return orUnknown(s.Unknown[SourceIPVS])
				}
				projects := make(map[string]string, len(s.Services))
				for i := range s.Services {
					projects[s.Services[i].Service.String()] = s.Services[i].Project
				}
				for i := range s.Servers {
					for _, in := range s.Servers[i].Services {
						if in.Removed {
							name := in.Service.String()
							project, served := projects[name]
							if !served {
								project = s.Project
							}
							yield(Reading{
								Labels: FigureLabels{Project: project, Service: name, Server: in.Server.String()},
								Value:  1, Text: fmt.Sprintf("keepalived's health check has taken it out of %s", name),
							})
						}
					}
				}
				return ""
			},
		},
	}
}

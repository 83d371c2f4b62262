// Package pressure tells how full the tables, queues and pools are that a
// connection passes on this host, how fast they fill, and when they will be
// full.
//
// A [Monitor] reads /proc and /sys once a second into a [Sample]; [Levels] says
// which resource has crossed its warning or critical share since the last one;
// a [KernelLog] gives the lines of the kernel log that say that something has
// overflowed already; [Advice] says what is set badly.
//
// What cannot be read is nil, with the reason beside it under Unknown; it is
// never zero, and stops nothing else. The package knows nothing of IPVS: what
// the connection table holds is told to it in a [Given].
package pressure

import (
	"os"
	"time"
)

// Config tells a Monitor where to look.
type Config struct {
	// Root is what /proc, /sys and /dev are below; empty: "/".
	Root string
	// PageSize is the host's, in bytes; 0: that of this process.
	PageSize uint64
	// Thresholds decide the level of a resource.
	Thresholds Thresholds
}

// A Given is what the caller knows and a Monitor does not read by itself.
type Given struct {
	// Table is nil where there is no IPVS. TableUnknown says why it cannot be
	// read where there is.
	Table        *Table
	TableUnknown string
	// Queues are the accept queues of listening sockets.
	Queues []Queue
}

// A Table is what IPVS says of its connection table.
type Table struct {
	Connections uint64 // ActiveConn and InActConn over all real servers
	Templates   uint64 // PersistConn: persistence templates
	// HalfOpenShare of Connections are in SYN_RECV, by a census; nil: not known.
	HalfOpenShare *float64
	// NewTotal counts the connections ever made, over all services; nil: not
	// known, as where run_estimation is 0 and the count stands still.
	NewTotal *uint64
	// HalfOpenLifetime is how long an entry stays in SYN_RECV; 0: 60 s. With
	// secure_tcp active it is 120 s in DR and TUN.
	HalfOpenLifetime time.Duration
	// TemplateLifetime is the persistence timeout, the longest if services
	// differ; 0: 300 s, the kernel's default with -p.
	TemplateLifetime time.Duration
}

// A Queue is the accept queue of a listening socket.
type Queue struct {
	Address     string // "0.0.0.0:80"
	Used, Limit uint64 // connections
}

// A Sample is everything that was known of one instant.
type Sample struct {
	Time time.Time `json:"time"`
	// Resources come with the worst first.
	Resources []Resource `json:"resources"`
	Troubles  []Trouble  `json:"troubles"`
	Memory    Memory     `json:"memory"`
	IPVS      *IPVS      `json:"ipvs"` // nil on a host without IPVS
	Conntrack Conntrack  `json:"conntrack"`
	// Counters are all of the kernel's counters of IP, ICMP, UDP and TCP, and
	// of its packet queues, by nstat's names.
	Counters []Counter `json:"counters"`
	// Unknown says what else could not be read, by file or resource.
	Unknown map[string]string `json:"unknown"`
}

// A Monitor takes samples. It remembers the last ones, a minute's worth, to tell
// rates. It must not be used by two goroutines at a time.
type Monitor struct {
	cfg       Config
	files     files
	last      time.Time
	history   history
	slab      slabReader
	counters  counters
	softnet   softnet
	conntrack conntrackReader
}

// New makes a Monitor. It touches nothing yet.
func New(cfg Config) *Monitor {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.PageSize == 0 {
		cfg.PageSize = uint64(os.Getpagesize())
	}
	return &Monitor{cfg: cfg, files: files{root: cfg.Root}}
}

// SetThresholds changes what decides the level of a resource.
func (m *Monitor) SetThresholds(t Thresholds) { m.cfg.Thresholds = t }

// Sample reads everything. Rates are known from the second call on: a caller
// without a daemon takes two samples a second apart.
func (m *Monitor) Sample(now time.Time, given Given) Sample {
	s := Sample{Time: now, Unknown: make(map[string]string)}
	interval := time.Duration(0)
	if !m.last.IsZero() {
		interval = now.Sub(m.last)
	}
	m.last = now
	m.history.expire(now)

	s.Memory = readMemory(&m.files, m.cfg.PageSize)
	s.Counters = m.counters.read(&m.files, interval, s.Unknown)
	s.Counters = append(s.Counters, m.softnet.read(&m.files, interval, s.Unknown)...)
	s.Troubles = troubles(s.Counters)
	s.Conntrack = m.conntrack.read(&m.files, interval)
	pools := readPools(&m.files, m.cfg.PageSize)

	b := builder{now: now, history: &m.history, thresholds: m.cfg.Thresholds}
	var forecast *Forecast
	if given.Table != nil || given.TableUnknown != "" {
		var takesMemory bool
		if s.IPVS, takesMemory = m.readIPVS(now, given, s.Memory); takesMemory {
			forecast = s.IPVS.Forecast
		}
	}
	b.memory(s.Memory, forecast)
	b.ipvs(s.IPVS)
	b.conntrack(s.Conntrack)
	for _, p := range pools {
		b.pool(p)
	}
	for _, q := range given.Queues {
		b.queue(q)
	}
	s.Resources = b.sorted()
	return s
}

package guard

import (
	"sync"
	"time"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

// A Measurement is everything that the last look showed, as it was read: totals
// where a Status has rates. It is shared by all who ask, and nobody may change it.
//
// What is not known is nil, and Sample.Unknown says why.
type Measurement struct {
	Version     string
	Time        time.Time
	Mode        Mode
	PausedUntil time.Time // zero: automatic drops do not pause
	ConfigError *string
	Config      *Config
	Sample      Sample
	Verdicts    []Verdict // of Sample.Services, in their order
	Leases      map[ipvs.Key]Lease
	Declined    map[ipvs.Key]bool
	// Served is what IPVS has; Counted what the table counted, of which
	// Sample.Counters is a part.
	Served   []ipvs.Service
	Counted  *nft.Counters
	Pressure *PressureReport
	Sockets  *SocketsReport
	Journal  JournalHealth
	Tick     time.Duration // that the last look took
	Tally    Tally
	// TableLosses is how often somebody else took the table away or changed it.
	TableLosses uint64
}

// A Tally counts, since the guard began, what else leaves no trace but in the
// journal.
type Tally struct {
	Ticks    uint64
	TickTime time.Duration
	// Failures are changes that the kernel did not take.
	Failures uint64
	// Events are those of the kernel, by kind.
	Events map[pressure.EventKind]uint64
}

// Measure returns what the last look showed. It waits for nothing and copies
// nothing.
func (d *Daemon) Measure() *Measurement {
	v := d.view.Load()
	return &Measurement{
		Version: d.opts.Version, Time: v.at, Mode: v.mode, PausedUntil: v.pausedUntil, ConfigError: v.configErr, Config: v.cfg,
		Sample: v.sample, Verdicts: v.verdicts, Leases: v.leases, Declined: v.declined,
		Served: v.served, Counted: v.counted, Pressure: v.pressure, Sockets: v.sockets,
		Journal: d.journal.Health(), Tick: v.tickTook, Tally: v.tally, TableLosses: v.tableLosses,
	}
}

// troubles are those of the parts of the guard that work beside the control loop.
type troubles struct {
	mu  sync.Mutex
	why map[Source]string
}

// SetTrouble says why a part of the guard that works beside the control loop
// cannot do its work; empty: it can. Status and journal have it from the next look
// on.
func (d *Daemon) SetTrouble(src Source, why string) {
	t := &d.troubles
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.why == nil {
		t.why = make(map[Source]string)
	}
	t.why[src] = why
}

// read takes what the parts say of themselves.
func (t *troubles) read(unknown map[Source]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for src, why := range t.why {
		if why != "" {
			unknown[src] = why
		}
	}
}

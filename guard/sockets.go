package guard

import (
	"cmp"
	"context"
	"maps"
	"sync/atomic"
	"time"

	"github.com/lvsguard/lvsguard/guard/pressure"
)

// A SocketsReport is all that is known of this host's TCP sockets. Listeners
// are of the last look, Connections of Time.
type SocketsReport struct {
	Time *time.Time `json:"time"` // null: the connections have not been read yet
	// Interval is how often the connections are read: so seldom that it takes
	// less than a hundredth of a processor.
	Interval *float64 `json:"interval_seconds"`
	pressure.Sockets
}

// A SocketsSummary is what a Sample holds of the TCP sockets; what is not known
// is nil.
type SocketsSummary struct {
	Time      *time.Time      `json:"time"`
	Interval  *float64        `json:"interval_seconds"`
	Took      *float64        `json:"reading_milliseconds"`
	Listeners *int            `json:"listening_addresses"`
	In        *pressure.Group `json:"in"`
	Out       *pressure.Group `json:"out"`
}

const (
	// connectionsEvery is how often the connections are read at the most.
	connectionsEvery = 10 * time.Second
	// connectionsShare is the part of a processor's time that it may take.
	connectionsShare = 0.01
	// connectionsTimeout ends a reading of more connections than a host can have.
	connectionsTimeout = time.Minute
)

// A connectionsWatch reads all connections now and then, beside the control
// loop.
type connectionsWatch struct {
	started bool
	rtt     atomic.Bool
	last    atomic.Pointer[SocketsReport]
}

// run reads until ctx is done.
func (w *connectionsWatch) run(ctx context.Context, open func() (SocketReader, error)) {
	var reader SocketReader
	defer func() {
		if reader != nil {
			reader.Close()
		}
	}()
	for {
		now := time.Now()
		wait := connectionsEvery
		report := &SocketsReport{Time: &now}
		var err error
		if reader == nil {
			reader, err = open()
		}
		if err != nil {
			reader = nil
			report.Unknown = map[string]string{"connections": err.Error()}
		} else {
			reading, cancel := context.WithTimeout(ctx, connectionsTimeout)
			report.Sockets = reader.Read(reading, pressure.SocketsAsk{Connections: true, RTT: w.rtt.Load()})
			cancel()
			wait = max(wait, time.Duration(report.Took*float64(time.Millisecond)/connectionsShare))
		}
		seconds := wait.Seconds()
		report.Interval = &seconds
		if ctx.Err() != nil {
			return
		}
		w.last.Store(report)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// readSockets takes the last reading of the connections, and has them read from
// the first look on.
func (d *Daemon) readSockets(ctx context.Context, unknown map[Source]string) *SocketsSummary {
	open := d.opts.Kernel.Host.OpenSockets
	if open == nil {
		return nil
	}
	w := &d.connections
	if !w.started {
		w.started = true
		d.tasks.Go(func() error {
			w.run(ctx, open)
			return nil
		})
	}
	report := d.socketsReport()
	if why := report.Unknown["connections"]; why != "" && report.Time != nil && unknown[SourceSockets] == "" {
		unknown[SourceSockets] = why
	}
	s := &SocketsSummary{Time: report.Time, Interval: report.Interval}
	if report.Listeners != nil {
		s.Listeners = new(len(report.Listeners))
	}
	if c := report.Connections; c != nil {
		s.Took, s.In, s.Out = &report.Took, &c.In, &c.Out
	}
	return s
}

// socketsReport joins the listening sockets of this look with the connections
// of the last reading.
func (d *Daemon) socketsReport() *SocketsReport {
	var r SocketsReport
	if last := d.connections.last.Load(); last != nil {
		r = *last
	} else {
		r.Unknown = map[string]string{"connections": "they have not been read yet"}
	}
	if r.Listeners = d.pressure.listeners; r.Listeners == nil {
		r.Unknown = maps.Clone(r.Unknown) // others have it too
		r.Unknown["listeners"] = cmp.Or(d.pressure.report.Unknown[string(SourceSockets)], "they have not been read yet")
	}
	return &r
}

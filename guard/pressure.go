package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
)

// This file has the guard watch how full this host's tables, queues and pools
// are. That is told, and decides nothing.

// PressureConfig says from which share on a resource is told of.
type PressureConfig struct {
	Warning  float64 `yaml:"warning"`
	Critical float64 `yaml:"critical"`
	// Kinds are thresholds of single kinds of resources.
	Kinds map[pressure.Kind]Threshold `yaml:"kinds"`
	// RTT has connections asked for their round-trip times too.
	RTT bool `yaml:"rtt"`
}

// A Threshold is of one kind of resource; 0 is as for the others.
type Threshold struct {
	Warning  float64 `yaml:"warning"`
	Critical float64 `yaml:"critical"`
}

// check tells what is wrong with c.
func (c *PressureConfig) check() error {
	bad := func(t pressure.Threshold, path ...string) error {
		if (pressure.Thresholds{Default: t}).Check() == nil && t.Warning > 0 {
			return nil
		}
		return badKey(fmt.Sprintf("warning %v and critical %v: want shares above 0 and up to 1, and warning not above critical", t.Warning, t.Critical), path...)
	}
	if err := bad(pressure.Threshold{Warning: c.Warning, Critical: c.Critical}, "pressure"); err != nil {
		return err
	}
	kinds := []pressure.Kind{
		pressure.KindMemory, pressure.KindLowMemory, pressure.KindIPVS, pressure.KindConntrack,
		pressure.KindAcceptQueue, pressure.KindNeighbours, pressure.KindTCPMemory, pressure.KindTCPOrphans,
	}
	for _, kind := range slices.Sorted(maps.Keys(c.Kinds)) {
		path := []string{"pressure", "kinds", string(kind)}
		if !slices.Contains(kinds, kind) {
			return badKey(fmt.Sprintf("no kind of resource; there are: %s", strings.Trim(fmt.Sprint(kinds), "[]")), path...)
		}
		own := c.Kinds[kind]
		if err := bad(pressure.Threshold{
			Warning: cmp.Or(own.Warning, c.Warning), Critical: cmp.Or(own.Critical, c.Critical),
		}, path...); err != nil {
			return err
		}
	}
	return nil
}

func (c *PressureConfig) thresholds() pressure.Thresholds {
	t := pressure.Thresholds{
		Default: pressure.Threshold{Warning: c.Warning, Critical: c.Critical},
		ByKind:  make(map[pressure.Kind]pressure.Threshold, len(c.Kinds)),
	}
	for kind, own := range c.Kinds {
		t.ByKind[kind] = pressure.Threshold(own)
	}
	return t
}

// A PressureReport is what is known of the pressure on this host.
type PressureReport struct {
	// Sample has the resources at the levels that they are held at, the worst
	// first. Unknown names sources beside files.
	pressure.Sample
	// Events are those of the last hour, the latest first.
	Events []pressure.Event `json:"events"`
	// Advice is what is set badly.
	Advice []pressure.Finding `json:"advice"`
	// LostRecords of the kernel log were overwritten before they were read.
	LostRecords uint64 `json:"kernel_log_lost_records"`
}

const (
	// maxQueues of the listening sockets, the fullest, are resources.
	maxQueues = 100
	// maxEvents and eventsFor bound what is remembered for reports.
	maxEvents = 32
	eventsFor = time.Hour
	// retryHost is how soon something that could not be opened is tried again.
	retryHost = 10 * time.Second
)

// A hostPressure reads the pressure, for a daemon or without one. It belongs to
// one goroutine.
type hostPressure struct {
	host    Host
	levels  *pressure.Levels
	sockets tried[SocketReader]
	log     tried[KernelLog]

	defence pressure.Defence // as last known
	report  PressureReport
	// listeners are all listening sockets, the fullest accept queue first; nil
	// if not known.
	listeners []pressure.Listener
}

// use has cfg decide what is a warning.
func (p *hostPressure) use(cfg *PressureConfig) {
	if p.host.Monitor == nil {
		return
	}
	p.host.Monitor.SetThresholds(cfg.thresholds())
	if p.levels == nil {
		p.levels = pressure.NewLevels(cfg.thresholds())
	}
	p.levels.SetThresholds(cfg.thresholds())
}

func (p *hostPressure) close() error { return errors.Join(p.sockets.close(), p.log.close()) }

// A director is what a look at the pressure needs to know of IPVS; nil on a
// host that has none.
type director struct {
	services []ipvs.Service
	unknown  string // why services are not known
	// census is nil where it is not known.
	census  *ipvs.Census
	defence pressure.Defence
}

// look reads everything, and tells what is new since the last look.
func (p *hostPressure) look(ctx context.Context, now time.Time, d *director, unknown map[Source]string) ([]pressure.Change, []pressure.Event) {
	if p.host.Monitor == nil {
		return nil, nil
	}
	given := pressure.Given{Queues: p.readQueues(ctx, now, unknown)}
	var events []pressure.Event
	advice := []pressure.Finding{}
	if d != nil {
		given.Table, given.TableUnknown = d.table(), d.unknown
		events = p.takeDefence(now, d.defence)
	}
	sample := p.host.Monitor.Sample(now, given)
	if why := whyUnknown(sample); why != "" {
		unknown[SourcePressure] = why
	}
	if d != nil {
		advice = pressure.Advice(pressure.AdviceInput{Defence: d.defence, OneWay: oneWay(d.services), Memory: sample.Memory})
	}
	changes := p.levels.Evaluate(now, sample)
	events = append(events, p.readKernelLog(now, unknown)...)

	// What was reported before is not changed any more.
	r := PressureReport{Sample: sample, Advice: advice, LostRecords: p.report.LostRecords, Events: append([]pressure.Event{}, events...)}
	slices.Reverse(r.Events)
	for _, e := range p.report.Events {
		if len(r.Events) < maxEvents && now.Sub(e.Time) < eventsFor {
			r.Events = append(r.Events, e)
		}
	}
	if p.log.open {
		r.LostRecords = p.log.is.Lost()
	}
	r.Resources = p.levels.Mark(sample.Resources)
	r.Unknown = make(map[string]string)
	maps.Copy(r.Unknown, sample.Unknown)
	for _, src := range []Source{SourceSockets, SourceKernelLog} {
		if why := unknown[src]; why != "" {
			r.Unknown[string(src)] = why
		}
	}
	p.report = r
	return changes, events
}

// readQueues reads the accept queues of the listening sockets.
func (p *hostPressure) readQueues(ctx context.Context, now time.Time, unknown map[Source]string) []pressure.Queue {
	p.listeners = nil
	if p.host.OpenSockets == nil {
		return nil
	}
	reader, err := p.sockets.get(now, p.host.OpenSockets)
	if err != nil {
		unknown[SourceSockets] = err.Error()
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	read := reader.Read(ctx, pressure.SocketsAsk{})
	if why := read.Unknown["listeners"]; why != "" {
		unknown[SourceSockets] = why
		return nil
	}
	p.listeners = read.Listeners
	queues := make([]pressure.Queue, 0, min(len(read.Listeners), maxQueues))
	for _, l := range read.Listeners[:min(len(read.Listeners), maxQueues)] {
		// A limit of 0 holds one connection.
		queues = append(queues, pressure.Queue{Address: l.Name, Used: l.Queue, Limit: max(l.Limit, 1)})
	}
	return queues
}

func (p *hostPressure) readKernelLog(now time.Time, unknown map[Source]string) []pressure.Event {
	if p.host.OpenKernelLog == nil {
		return nil
	}
	log, err := p.log.get(now, p.host.OpenKernelLog)
	if err != nil {
		unknown[SourceKernelLog] = err.Error()
		return nil
	}
	events, err := log.Events(now)
	if err != nil {
		unknown[SourceKernelLog] = err.Error()
		p.log.fail(now, err)
	}
	return events
}

// takeDefence tells which of IPVS's defences have begun to act, or ended. One
// that cannot be read is as it was.
func (p *hostPressure) takeDefence(now time.Time, d pressure.Defence) []pressure.Event {
	d.DropEntry = cmp.Or(d.DropEntry, p.defence.DropEntry)
	d.DropPacket = cmp.Or(d.DropPacket, p.defence.DropPacket)
	d.SecureTCP = cmp.Or(d.SecureTCP, p.defence.SecureTCP)
	events := pressure.DefenceEvents(now, p.defence, d)
	p.defence = d
	return events
}

// whyUnknown joins the reasons why files or resources cannot be read. IPVS is a
// source of its own.
func whyUnknown(s pressure.Sample) string {
	var reasons []string
	for _, name := range slices.Sorted(maps.Keys(s.Unknown)) {
		reasons = append(reasons, name+": "+s.Unknown[name])
	}
	for _, r := range s.Resources {
		if r.Used == nil && r.Kind != pressure.KindIPVS {
			reasons = append(reasons, r.Name+": "+r.Unknown["used"])
		}
	}
	return strings.Join(reasons, "; ")
}

// defenceOf takes what is known of IPVS's settings.
func defenceOf(d ipvs.Defence) pressure.Defence {
	value := func(s ipvs.Setting) *int {
		if s.Name == "" || s.Err != nil {
			return nil
		}
		return &s.Value
	}
	out := pressure.Defence{DropEntry: value(d.DropEntry), DropPacket: value(d.DropPacket), SecureTCP: value(d.SecureTCP)}
	if n := value(d.AmemThresh); n != nil && *n >= 0 {
		out.AmemThresh = new(uint64(*n))
	}
	return out
}

// oneWay tells whether there are real servers whose answers do not pass here.
func oneWay(services []ipvs.Service) bool {
	return slices.ContainsFunc(services, func(s ipvs.Service) bool {
		return slices.ContainsFunc(s.RealServers, func(rs ipvs.RealServer) bool { return rs.Method == ipvs.DR || rs.Method == ipvs.TUN })
	})
}

// oneWayHalfOpen is how long an entry stays half-open where the answer does not
// pass here and secure_tcp acts.
const oneWayHalfOpen = 2 * time.Minute

// table is what IPVS says of its connection table; nil if it says nothing.
func (d *director) table() *pressure.Table {
	if d.unknown != "" {
		return nil
	}
	t := &pressure.Table{NewTotal: new(uint64)}
	for _, s := range d.services {
		for _, rs := range s.RealServers {
			t.Connections += uint64(rs.ActiveConn) + uint64(rs.InActConn)
			t.Templates += uint64(rs.PersistConn)
		}
		if s.Frozen {
			t.NewTotal = nil
		} else if t.NewTotal != nil {
			*t.NewTotal += s.Stats.Connections
		}
		t.TemplateLifetime = max(t.TemplateLifetime, s.Persistent)
	}
	if c := d.census; c != nil && c.Lines > 0 && (c.Complete || c.Lines >= minCensusLines) {
		t.HalfOpenShare = new(float64(c.States["SYN_RECV"]) / float64(c.Lines))
	}
	if secure := d.defence.SecureTCP; secure != nil && *secure >= 2 && oneWay(d.services) {
		t.HalfOpenLifetime = oneWayHalfOpen
	}
	return t
}

// A tried is something that is opened when it is first wanted, and again a
// while after that did not work.
type tried[T io.Closer] struct {
	is   T
	open bool
	at   time.Time
	err  error
}

func (t *tried[T]) get(now time.Time, open func() (T, error)) (T, error) {
	if !t.open && (t.at.IsZero() || lasted(now.Sub(t.at), retryHost)) {
		t.at = now
		t.is, t.err = open()
		t.open = t.err == nil
	}
	if !t.open {
		return t.is, t.err
	}
	return t.is, nil
}

// fail closes what has failed.
func (t *tried[T]) fail(now time.Time, err error) {
	t.close()
	t.at, t.err = now, err
}

func (t *tried[T]) close() error {
	if !t.open {
		return nil
	}
	t.open = false
	return t.is.Close()
}

// readPressure looks at the pressure, and notes what is new.
func (d *Daemon) readPressure(ctx context.Context, now time.Time, served []ipvs.Service, unknown map[Source]string) *pressure.Sample {
	if d.pressure.host.Monitor == nil {
		return nil
	}
	var at *director
	if d.cfg.Role == RoleDirector {
		at = &director{services: served, unknown: unknown[SourceIPVS]}
		if unknown[SourceCensus] == "" {
			at.census = &d.census
		}
		if settings, err := d.opts.Kernel.IPVS.Defence(); err == nil {
			at.defence = defenceOf(settings)
		}
	}
	changes, events := d.pressure.look(ctx, now, at, unknown)
	d.notePressure(now, changes)
	d.noteEvents(now, events)
	sample := d.pressure.report.Sample
	sample.Counters = nil
	return &sample
}

// A PressureLook reads the pressure of this host where no guard runs.
type PressureLook struct {
	pressure hostPressure
	ipvs     IPVS
	last     time.Time
}

// NewPressureLook makes one with the default thresholds. It opens nothing yet.
func NewPressureLook(k Kernel) *PressureLook {
	l := &PressureLook{pressure: hostPressure{host: k.Host}, ipvs: k.IPVS}
	l.pressure.use(&DefaultConfig().Pressure)
	return l
}

// lookApart is how far apart two looks are, so that there are rates.
const lookApart = time.Second

// Next looks, and the first time twice. It has no history: what happened before
// is not told.
func (l *PressureLook) Next(ctx context.Context) (*PressureReport, error) {
	if l.last.IsZero() {
		l.look(ctx)
		select {
		case <-time.After(lookApart):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l.look(ctx)
	return &l.pressure.report, nil
}

// Close closes what was opened.
func (l *PressureLook) Close() error { return l.pressure.close() }

func (l *PressureLook) look(ctx context.Context) {
	now := time.Now()
	l.last = now
	unknown := make(map[Source]string)
	l.pressure.look(ctx, now, l.director(ctx), unknown)
}

// director is nil where the kernel has no IPVS.
func (l *PressureLook) director(ctx context.Context) *director {
	settings, err := l.ipvs.Defence()
	if errors.Is(err, ipvs.ErrAbsent) {
		return nil
	}
	d := &director{}
	if err == nil {
		d.defence = defenceOf(settings)
	}
	if d.services, err = l.ipvs.Services(ctx); err != nil {
		d.services, d.unknown = nil, err.Error()
		return d
	}
	var total uint64
	for _, s := range d.services {
		total += s.Connections()
	}
	if census, err := l.ipvs.Census(ctx, ipvs.CensusConfig{Sample: CensusSample, Total: total}); err == nil {
		d.census = &census
	}
	return d
}

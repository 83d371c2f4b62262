package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

// This file has the guard keep what an incident leaves behind: its story, and
// packets from before it and of it. That is told, and decides nothing.

// EvidenceConfig says what is kept of an incident.
type EvidenceConfig struct {
	Enabled bool `yaml:"enabled"`
	// Memory is for packets while nothing happens, in bytes, and Before is how far
	// back they reach.
	Memory int           `yaml:"memory"`
	Before time.Duration `yaml:"before"`
	// SampleRate packets a second that a signature matches come through the NFQUEUE
	// Queue while an incident lasts; 0: none do.
	SampleRate uint32     `yaml:"sample_rate"`
	Queue      uint16     `yaml:"queue"`
	Keep       KeepConfig `yaml:"keep"`
}

// KeepConfig bounds the records and packets on disk.
type KeepConfig struct {
	Incidents int           `yaml:"incidents"`
	Bytes     int64         `yaml:"bytes"`
	Age       time.Duration `yaml:"age"`
}

// Bounds of an EvidenceConfig.
const (
	minEvidenceMemory = 1 << 20
	maxEvidenceMemory = 1 << 30
	minKeepBytes      = 1 << 20
	maxSampleRate     = 10_000
)

func (c *EvidenceConfig) check() error {
	bad := func(msg string, path ...string) error { return badKey(msg, append([]string{"evidence"}, path...)...) }
	switch {
	case c.Memory < minEvidenceMemory || c.Memory > maxEvidenceMemory:
		return bad(fmt.Sprintf("want %d to %d bytes; for none, enabled: false", minEvidenceMemory, maxEvidenceMemory), "memory")
	case c.Before < time.Second || c.Before > 5*time.Minute:
		return bad("want a duration from 1s to 5m", "before")
	case c.SampleRate > maxSampleRate:
		return bad(fmt.Sprintf("want 0, for none, to %d packets a second", maxSampleRate), "sample_rate")
	case c.Keep.Incidents < 1:
		return bad("want at least 1", "keep", "incidents")
	case c.Keep.Bytes < minKeepBytes:
		return bad(fmt.Sprintf("want at least %d bytes", minKeepBytes), "keep", "bytes")
	case c.Keep.Age < time.Hour:
		return bad("want a duration from 1h", "keep", "age")
	}
	return nil
}

// recorder is what of c is the recorder's.
func (c *EvidenceConfig) recorder() capture.RecorderConfig {
	if !c.Enabled {
		return capture.RecorderConfig{}
	}
	return capture.RecorderConfig{Memory: c.Memory, Span: c.Before}
}

const (
	// historyEvery spaces what is remembered of a service while it is calm, for as
	// long as a story reaches back, and of so many services at most.
	historyEvery = 10 * time.Second
	historyLong  = incident.Around + historyEvery
	maxHistories = 1000
	// settleFor is how long after its start the guard waits to see what goes on.
	settleFor = 15 * time.Second
	// maxPending bounds what waits for a chronicle that waits for the disk.
	maxPending = 2000
)

// incidents is the control loop's part of the chronicle: it sees where incidents
// begin and end.
type incidents struct {
	chronicle *chronicle
	going     map[ipvs.Key]*going
	history   map[ipvs.Key][]incident.Reading
	historyAt time.Time
	acted     []incidentEvent // since the last tick
	events    []incidentEvent // that the chronicle does not have yet
	since     time.Time       // the guard's start
	settled   bool
}

// going is an incident that goes on, or whose aftermath does.
type going struct {
	flooded bool
	ended   time.Time // zero: it goes on
}

// noted makes actions of what goes to the journal.
func (s *incidents) noted(e Entry) {
	a := incident.Action{Time: e.Time, By: e.By}
	switch e.Event {
	case EventVerdict:
		a.Kind, a.Text = "verdict", fmt.Sprintf("%s to %s: %s", e.From, e.To, e.Reason)
	case EventLease:
		a.Kind, a.Text = "lease", fmt.Sprintf("%s: %s", e.To, e.Reason)
	case EventRole:
		a.Kind, a.Text = "role", fmt.Sprintf("%s: %s to %s", e.Instance, e.From, e.To)
		if e.From == "" {
			a.Text = fmt.Sprintf("%s: %s", e.Instance, e.To)
		}
	case EventKernel:
		a.Kind, a.Text = "kernel", e.Reason
	case EventPressure:
		a.Kind, a.Text = "pressure", fmt.Sprintf("%s: %s to %s: %s", e.Resource, e.From, e.To, e.Reason)
	case EventHealth:
		a.Kind, a.Text = "health", strings.TrimSpace(fmt.Sprintf("%s %s: %s", e.Server, e.To, e.Reason))
	case EventMode:
		a.Kind, a.Text = "guard", fmt.Sprintf("mode %s to %s", e.From, e.To)
	case EventPause, EventTable, EventConfig:
		a.Kind, a.Text = "guard", strings.TrimSuffix(fmt.Sprintf("%s %s: %s", e.Event, e.To, e.Reason), ": ")
	case EventSource:
		a.Kind, a.Text = "guard", fmt.Sprintf("%s can be read again", e.Source)
		if e.To != "" {
			a.Text = fmt.Sprintf("%s cannot be read: %s", e.Source, e.Reason)
		}
	default:
		return
	}
	if len(s.acted) < maxPending {
		s.acted = append(s.acted, incidentEvent{kind: incidentActed, about: e.Service, action: a})
	}
}

// tellIncidents tells the chronicle of this tick. was is the sample of the tick
// before. It waits for nothing.
func (d *Daemon) tellIncidents(now time.Time, was Sample) {
	s := &d.incidents
	acted := s.acted
	s.acted = nil
	if !d.cfg.Evidence.Enabled && len(s.going) == 0 {
		return
	}
	var begun, rest []incidentEvent
	seen := make(map[ipvs.Key]bool, len(d.verdicts))
	for i, v := range d.verdicts {
		seen[v.Service] = true
		flooded := v.State == Flood || v.State == HalfOpenFlood
		g := s.going[v.Service]
		goesOn := g != nil && g.ended.IsZero()
		switch {
		case (flooded || v.State == Rising) && !goesOn && d.cfg.Evidence.Enabled:
			g = &going{}
			s.going[v.Service] = g
			begun = append(begun, d.beginIncident(now, was, d.sample.Services[i], v))
		case goesOn && (v.State == Calm || !d.cfg.Evidence.Enabled):
			g.ended = now
			rest = append(rest, d.endIncident(now, v.Service, v.Reason))
		}
		if g != nil && flooded && !g.flooded {
			g.flooded = true
			rest = append(rest, incidentEvent{kind: incidentFlooded, service: v.Service})
		}
	}
	for k, g := range s.going {
		switch {
		case g.ended.IsZero() && !seen[k]:
			g.ended = now
			rest = append(rest, d.endIncident(now, k, "the service is gone"))
		case !g.ended.IsZero() && now.Sub(g.ended) > incident.Around+5*time.Second:
			delete(s.going, k)
		}
	}
	if len(s.going) == 0 {
		acted = nil
	}
	if s.events = slices.Concat(s.events, begun, acted, rest); len(s.events) > maxPending {
		// The actions are the least of it.
		s.events = slices.DeleteFunc(s.events, func(e incidentEvent) bool { return e.kind == incidentActed })
	}
	d.rememberHistory(now)
	d.sampleScreened()
	n := news{
		now: now, cfg: d.cfg.Evidence, events: s.events, readings: make(map[ipvs.Key]incident.Reading, len(s.going)),
		sampled: d.sampling.take(), signed: signedBy(d.cfg.Signatures), watched: d.ensured,
		settled: !s.settled && lasted(now.Sub(s.since), settleFor),
	}
	if d.watch.capture != nil {
		n.recording = d.watch.capture
	} else {
		n.why = cmp.Or(d.sample.Unknown[SourceCapture], "handshakes are not watched, and no packets with them: handshakes.enabled")
	}
	if len(s.going) > 0 {
		r := newReader(&d.sample)
		for k := range s.going {
			n.readings[k] = d.reading(r, k)
		}
	}
	select {
	case s.chronicle.queue <- n:
		s.events, s.settled = nil, s.settled || n.settled
	default: // the disk is slow: the next tick tells it
	}
	if why := s.chronicle.trouble.Load(); why != nil {
		d.sample.Unknown[SourceEvidence] = *why
	}
}

func (d *Daemon) beginIncident(now time.Time, was Sample, svc Service, v Verdict) incidentEvent {
	before := slices.Clone(d.incidents.history[svc.Key])
	if r := newReader(&was); r.has(svc.Key) {
		before = append(before, r.reading(svc.Key))
	}
	return incidentEvent{
		kind: incidentBegun, service: svc.Key, before: before, rising: v.State == Rising,
		begin: incident.Record{
			Service: svc.Key.String(), Project: d.cfg.ProjectOf(svc.Key), Addresses: slices.Clone(svc.Addresses),
			Onset: now.Round(0).UTC(), Began: v.Reason,
		},
	}
}

func (d *Daemon) endIncident(now time.Time, k ipvs.Key, why string) incidentEvent {
	r := incident.Reading{Time: now.Round(0).UTC()}
	if reader := newReader(&d.sample); reader.has(k) {
		r = d.reading(reader, k)
	}
	return incidentEvent{kind: incidentEnded, service: k, why: why, reading: r}
}

// reading is what the present sample knows of a service.
func (d *Daemon) reading(r *reader, k ipvs.Key) incident.Reading {
	reading := r.reading(k)
	reading.Armed = d.policy.armed(k)
	return reading
}

// rememberHistory remembers what services are like, in case they are flooded.
func (d *Daemon) rememberHistory(now time.Time) {
	s := &d.incidents
	if !lasted(now.Sub(s.historyAt), historyEvery) {
		return
	}
	s.historyAt = now
	r := newReader(&d.sample)
	services := d.sample.Services[:min(len(d.sample.Services), maxHistories)]
	history := make(map[ipvs.Key][]incident.Reading, len(services))
	for _, svc := range services {
		h := s.history[svc.Key]
		for len(h) > 0 && now.Sub(h[0].Time) > historyLong {
			h = h[1:]
		}
		history[svc.Key] = append(slices.Clone(h), r.reading(svc.Key))
	}
	s.history = history // those of services that have gone, too
}

// reader finds what a sample knows of a service.
type reader struct {
	sample   *Sample
	services map[ipvs.Key]*Service
	figures  map[string]*handshake.Figures
	memory   *float64
}

func newReader(s *Sample) *reader {
	r := &reader{sample: s, services: make(map[ipvs.Key]*Service, len(s.Services)), figures: make(map[string]*handshake.Figures, len(s.Handshakes))}
	for i := range s.Services {
		r.services[s.Services[i].Key] = &s.Services[i]
	}
	for i := range s.Handshakes {
		r.figures[s.Handshakes[i].Name] = &s.Handshakes[i]
	}
	if s.Pressure != nil {
		for _, res := range s.Pressure.Resources {
			if (res.Kind == pressure.KindMemory || res.Kind == pressure.KindLowMemory) && res.Share != nil && (r.memory == nil || *res.Share > *r.memory) {
				r.memory = res.Share
			}
		}
	}
	return r
}

func (r *reader) has(k ipvs.Key) bool { return r.services[k] != nil }

func (r *reader) reading(k ipvs.Key) incident.Reading {
	reading := incident.Reading{Time: r.sample.Time.Round(0).UTC(), MemoryShare: r.memory, Cookies: r.cookies(k), Handshakes: r.handshakes(k)}
	svc := r.services[k]
	if svc == nil {
		return reading
	}
	if entries, _, known := svc.Census.halfOpen(); known {
		reading.HalfOpen = &entries
	}
	if c := svc.Connections; c != nil {
		n := float64(c.Active + c.Inactive)
		reading.Connections = &n
	}
	if len(svc.Addresses) == 0 || r.sample.Unknown[SourceNft] != "" {
		return reading
	}
	var sum Counters
	for _, at := range svc.Addresses {
		c, ok := r.sample.Counters[at]
		if !ok {
			return reading
		}
		sum.SYN, sum.Suspect, sum.Dropped = sum.SYN+c.SYN, sum.Suspect+c.Suspect, sum.Dropped+c.Dropped
	}
	reading.SYN, reading.Suspect, reading.Dropped = &sum.SYN, &sum.Suspect, &sum.Dropped
	return reading
}

// cookies are what the service's real servers send a second.
func (r *reader) cookies(k ipvs.Key) *float64 {
	var sum *float64
	for _, server := range r.sample.Servers {
		f := server.Figures
		if f == nil || f.SyncookiesSent == nil || f.SyncookiesSent.PerSecond == nil ||
			!slices.ContainsFunc(server.Services, func(s ServedHere) bool { return s.Service == k }) {
			continue
		}
		if sum == nil {
			sum = new(float64)
		}
		*sum += *f.SyncookiesSent.PerSecond
	}
	return sum
}

func (r *reader) handshakes(k ipvs.Key) *incident.Handshakes {
	f := r.figures[k.String()]
	if f == nil {
		return nil
	}
	h := &incident.Handshakes{
		Opened:    f.Attempts - min(f.Signature.Attempts, f.Attempts),
		Completed: f.Success.Total - min(f.Signature.Completed, f.Success.Total),
	}
	if f.Complete != nil {
		for i := range min(len(h.Took), len(f.Complete.Buckets)) {
			h.Took[i] = f.Complete.Buckets[i].Count
		}
	}
	return h
}

// signedBy tells whether a SYN matches one of the signatures.
func signedBy(signatures []nft.Signature) func(incident.SYN) bool {
	return func(s incident.SYN) bool {
		return slices.ContainsFunc(signatures, func(sig nft.Signature) bool {
			return holds(sig.Window, s.Window) && holds(sig.Length, s.Length) && holds(sig.TTL, uint16(s.TTL)) &&
				(sig.Options == nft.AnyOptions || !s.Options) &&
				(len(sig.Ports) == 0 || slices.ContainsFunc(sig.Ports, func(r nft.Range) bool { return holds(&r, s.Port) }))
		})
	}
}

// useEvidence takes over what the configuration says of samples.
func (d *Daemon) useEvidence(cfg *EvidenceConfig) {
	s := &d.sampling
	open := d.opts.Kernel.OpenQueue
	if !cfg.Enabled || cfg.SampleRate == 0 {
		open = nil
	}
	if s.queue != nil && (open == nil || s.number != cfg.Queue) {
		if err := s.end(d.table); err != nil {
			d.opts.Log.Warn("close the packet queue", "error", err)
		}
	}
	if s.number != cfg.Queue {
		s.way = "" // it is to be tried
	}
	s.open, s.number, s.rate = open, cfg.Queue, cfg.SampleRate
}

// sampleScreened has the capture show what its filter screens, as many packets a
// second as are wanted, where no queue shows them.
func (d *Daemon) sampleScreened() {
	var dropped float64
	for _, v := range d.verdicts {
		if g := d.incidents.going[v.Service]; g != nil && v.Figures.Dropped != nil {
			dropped += *v.Figures.Dropped
		}
	}
	var share float64
	if dropped > 0 && d.sampling.queue == nil && d.cfg.Evidence.Enabled {
		// In powers of two: the filter is not to be told every second.
		_, exponent := math.Frexp(float64(d.cfg.Evidence.SampleRate) / dropped)
		share = min(1, math.Ldexp(1, exponent-1))
	}
	if w := &d.watch; w.capture != nil && share != w.share {
		if err := w.capture.SetSampling(share); err != nil {
			d.opts.Log.Warn("record a share of what is screened", "share", share, "error", err)
		}
		w.share = share // it is not tried again and again
	}
}

// savePackets carries out VerbSave. The disk is waited for where the command
// came in, and not in the control loop.
func (d *Daemon) savePackets(ctx context.Context, who string) (Result, error) {
	var recording Recording
	var cfg EvidenceConfig
	if err := d.inLoop(ctx, func(time.Time) {
		if cfg = d.cfg.Evidence; d.watch.capture != nil {
			recording = d.watch.capture
		}
	}); err != nil {
		return Result{}, err
	}
	switch {
	case !cfg.Enabled:
		return Result{}, errors.New("no packets are kept: evidence.enabled is false")
	case recording == nil:
		return Result{}, errors.New("nothing is captured (see: lvsguard status)")
	}
	result, err := d.incidents.chronicle.saveRing(ctx, time.Now(), recording, cfg.Before, who)
	if err != nil {
		return Result{}, err
	}
	d.opts.Log.Info("packets were saved", "file", result.Path, "packets", *result.Packets, "by", who)
	return result, nil
}

package guard

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"time"

	"github.com/lvsguard/lvsguard/guard/pressure"
)

// This file says what happened: to the journal and to the log.

func (d *Daemon) note(now time.Time, e Entry) {
	// Without its monotonic part: the journal is for people.
	e.Time = now.Round(0).UTC()
	d.journal.Add(e)
	d.incidents.noted(e)
}

// Note writes an entry into the journal, at the time of now. It waits for nothing.
func (d *Daemon) Note(e Entry) { d.note(time.Now(), e) }

func (d *Daemon) noteRoles(now time.Time, changes []roleChange) {
	for _, c := range changes {
		d.opts.Log.Info("role", "instance", c.Instance, "from", c.from, "to", c.State)
		d.note(now, Entry{Event: EventRole, Instance: c.Instance, From: string(c.from), To: string(c.State)})
	}
}

// noteVerdicts tells of what changed. Calm is not worth a line when it is the
// first that is known of a service.
func (d *Daemon) noteVerdicts(now time.Time) {
	for _, v := range d.verdicts {
		if v.Was == v.State || (v.Was == "" || v.Was == Unknown) && v.State == Calm || v.Was == "" && v.State == Unknown {
			continue
		}
		name := v.Service.String()
		d.opts.Log.Info("verdict", "service", name, "from", v.Was, "to", v.State, "reason", v.Reason)
		d.note(now, Entry{Event: EventVerdict, Service: name, From: string(v.Was), To: string(v.State), Reason: v.Reason, Figures: &v.Figures})
	}
}

func (d *Daemon) noteLease(now time.Time, a Action) {
	e := Entry{Event: EventLease, Service: a.Service.String(), By: cmp.Or(a.Who, string(a.By)), To: "armed", Reason: a.Reason}
	if a.Timeout == 0 {
		e.To = "disarmed"
	}
	for _, v := range d.verdicts {
		if v.Service == a.Service {
			e.Figures = &v.Figures
		}
	}
	d.opts.Log.Info("lease", "service", e.Service, "to", e.To, "by", e.By, "reason", e.Reason)
	d.note(now, e)
}

func (d *Daemon) notePressure(now time.Time, changes []pressure.Change) {
	for _, c := range changes {
		level := slog.LevelInfo
		if c.To != pressure.LevelOK {
			level = slog.LevelWarn
		}
		d.opts.Log.Log(context.Background(), level, "pressure", "resource", c.Resource, "from", c.From, "to", c.To, "reason", c.Reason)
		d.note(now, Entry{
			Event: EventPressure, Resource: c.Resource, Kind: string(c.Kind), From: string(c.From), To: string(c.To),
			Share: c.Share, FullIn: c.FullIn, Reason: c.Reason,
		})
	}
}

func (d *Daemon) noteEvents(now time.Time, events []pressure.Event) {
	if len(events) > 0 { // what was published is not changed any more
		counts := make(map[pressure.EventKind]uint64)
		maps.Copy(counts, d.tally.Events)
		d.tally.Events = counts
	}
	for _, e := range events {
		d.tally.Events[e.Kind] += e.Count
		d.opts.Log.Warn("kernel", "kind", e.Kind, "subject", e.Subject, "count", e.Count, "text", e.Text)
		d.note(now, Entry{Event: EventKernel, Kind: string(e.Kind), Subject: e.Subject, Count: e.Count, Reason: e.Text})
	}
}

// noteUnknown tells when a source falls silent and when it speaks again.
func (d *Daemon) noteUnknown(now time.Time, unknown map[Source]string) {
	for _, src := range Sources() {
		why, was := unknown[src], d.unknownWas[src]
		switch {
		case why != "" && was == "":
			d.opts.Log.Warn("cannot be read", "source", src, "reason", why)
			d.note(now, Entry{Event: EventSource, Source: src, To: string(Unknown), Reason: why})
		case why == "" && was != "":
			d.opts.Log.Info("can be read again", "source", src)
			d.note(now, Entry{Event: EventSource, Source: src, From: string(Unknown)})
		}
	}
	d.unknownWas = unknown
}

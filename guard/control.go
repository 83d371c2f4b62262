package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

// This file is what can be asked of a running daemon from outside.

// A view is what the control loop leaves for Status: nothing in it changes any
// more.
type view struct {
	at          time.Time
	mode        Mode
	modeFrom    ModeFrom
	pausedUntil time.Time
	configErr   *string
	sample      Sample
	verdicts    []Verdict // of sample.Services, in their order
	leases      map[ipvs.Key]Lease
	declined    map[ipvs.Key]bool
	completions map[ipvs.Key]*float64
	cfg         *Config
	pressure    *PressureReport
	sockets     *SocketsReport
	sampling    *SamplingStatus
	tableLosses uint64
	tickTook    time.Duration
	served      []ipvs.Service
	counted     *nft.Counters
	tally       Tally
}

// Status returns what the last look showed. It waits for nothing.
func (d *Daemon) Status() *Status {
	v := d.view.Load()
	s := &Status{
		Version: d.opts.Version, Time: v.at, StartedAt: d.started,
		Mode: v.mode, ModeFrom: v.modeFrom, Role: v.cfg.Role, Project: v.cfg.Project, TableLosses: v.tableLosses,
		ConfigError: v.configErr, Journal: d.journal.Health(),
		Total: totalFigures(v.verdicts), Unknown: v.sample.Unknown,
		Roles: []RoleStatus{}, Services: make([]ServiceStatus, 0, len(v.verdicts)), Capture: v.sample.Capture,
		TickMillis: float64(v.tickTook.Microseconds()) / 1000,
	}
	s.Pressure, s.Sockets, s.Servers = newPressureStatus(v.pressure), v.sample.Sockets, v.sample.Servers
	s.Sampling = v.sampling
	if d.opts.ConfigFile != "" {
		s.ConfigFile = &d.opts.ConfigFile
	}
	if !v.pausedUntil.IsZero() {
		s.PausedUntil = &v.pausedUntil
	}
	for _, r := range v.sample.Roles {
		s.Roles = append(s.Roles, RoleStatus{Instance: r.Instance, Role: string(r.State), Since: r.Since, Changes: r.Changes})
	}
	figures := make(map[string]*handshake.Figures, len(v.sample.Handshakes))
	for i := range v.sample.Handshakes {
		figures[v.sample.Handshakes[i].Name] = &v.sample.Handshakes[i]
	}
	unknown := v.sample.Unknown
	if v.cfg.Role == RoleHost {
		unknown = maps.Clone(unknown)
		unknown[SourceIPVS] = "this host is no director (role: host)"
	}
	for i, verdict := range v.verdicts {
		var held *Lease
		if l, ok := v.leases[verdict.Service]; ok {
			held = &l
		}
		svc := newServiceStatus(v.sample.Services[i], verdict, held, unknown)
		svc.Project = v.cfg.ProjectOf(verdict.Service)
		svc.Declined = v.declined[verdict.Service]
		name := verdict.Service.String()
		svc.setHandshakes(figures[name], v.completions[verdict.Service], v.sample.Unknown[SourceCapture])
		delete(figures, name)
		s.Services = append(s.Services, svc)
	}
	// What is left is of everything, and of the filters.
	for i := range v.sample.Handshakes {
		if f := &v.sample.Handshakes[i]; figures[f.Name] == f {
			f := *f
			f.Project = cmp.Or(f.Project, v.cfg.Project)
			s.Handshakes = append(s.Handshakes, f)
		}
	}
	return s
}

// Pressure returns what the last look showed of this host's pressure.
func (d *Daemon) Pressure() *PressureReport { return d.view.Load().pressure }

// Sockets returns what is known of this host's TCP sockets.
func (d *Daemon) Sockets() *SocketsReport { return d.view.Load().sockets }

// publish makes what is known now the answer to Status.
func (d *Daemon) publish(now time.Time) {
	report := d.pressure.report
	d.view.Store(&view{
		at: now, mode: d.policy.Mode(), modeFrom: d.modeFrom, pausedUntil: d.policy.PausedUntil(now),
		configErr: d.configErr, sample: d.sample, verdicts: d.verdicts, leases: d.policy.Leases(), declined: d.policy.Declined(), tickTook: d.tickTook, tableLosses: d.tableLosses,
		completions: d.watch.recent.completions(d.sample.Services),
		cfg:         d.cfg, pressure: &report, sockets: d.socketsReport(), sampling: d.sampling.status(),
		served: d.served, counted: d.counted, tally: d.tally,
	})
}

// Config returns the configuration in force. Nobody may change it.
func (d *Daemon) Config() *Config { return d.view.Load().cfg }

// Do carries out a command of the operator who, between two looks.
func (d *Daemon) Do(ctx context.Context, c Command, who string) (Result, error) {
	if err := c.check(); err != nil {
		return Result{}, err
	}
	if c.Verb == VerbSave {
		return d.savePackets(ctx, who)
	}
	var result Result
	var err error
	if loopErr := d.inLoop(ctx, func(now time.Time) { result, err = d.command(now, c, who) }); loopErr != nil {
		return Result{}, loopErr
	}
	return result, err
}

// Reload reads the configuration again. A bad one leaves the old one in force,
// and Status says so.
func (d *Daemon) Reload(ctx context.Context) error {
	cfg, err := d.load()
	if loopErr := d.inLoop(ctx, func(now time.Time) { err = d.reload(now, cfg, err) }); loopErr != nil {
		return loopErr
	}
	return err
}

// inLoop runs do in the control loop, and waits for it.
func (d *Daemon) inLoop(ctx context.Context, do func(now time.Time)) error {
	r := request{do: do, done: make(chan struct{})}
	select {
	case d.requests <- r:
	case <-ctx.Done():
		return fmt.Errorf("the guard is busy or stopping: %w", ctx.Err())
	}
	<-r.done
	return nil
}

func (d *Daemon) load() (*Config, error) {
	if d.opts.ConfigFile == "" {
		return DefaultConfig(), nil
	}
	return LoadConfig(d.opts.ConfigFile)
}

func (d *Daemon) use(cfg *Config) {
	d.cfg = cfg
	d.roster.cfg = cfg
	d.pressure.use(&cfg.Pressure)
	d.connections.rtt.Store(cfg.Pressure.RTT)
	d.useEvidence(&cfg.Evidence)
}

// reload puts cfg into force, unless err says that it is none.
func (d *Daemon) reload(now time.Time, cfg *Config, err error) error {
	if err == nil && cfg.Keepalived.FIFO != d.cfg.Keepalived.FIFO {
		err = errors.New("keepalived.fifo: a reload cannot change it, restart the guard (leases stay)")
	}
	if err == nil && cfg.Role != d.cfg.Role {
		err = errors.New("role: a reload cannot change it, restart the guard (leases stay)")
	}
	was, recorded := d.cfg.Handshakes, d.cfg.Evidence.recorder()
	if err == nil && cfg.Handshakes.TcpeekSocket != was.TcpeekSocket {
		err = errors.New("handshakes.tcpeek_socket: a reload cannot change it, restart the guard (leases stay)")
	}
	if err == nil && cfg.Metrics != d.cfg.Metrics {
		err = errors.New("metrics: a reload cannot change it, restart the guard (leases stay)")
	}
	if err == nil {
		err = d.swapTable(cfg)
	}
	if err != nil {
		msg := err.Error()
		d.configErr = &msg
		d.opts.Log.Error("the configuration was not taken, the old one stays in force", "error", err)
		d.note(now, Entry{Event: EventConfig, To: "refused", Reason: msg})
		d.publish(now)
		return err
	}
	d.configErr = nil
	d.useServers(&d.cfg.Servers, &cfg.Servers)
	d.use(cfg)
	d.detector.SetConfig(cfg)
	if !reflect.DeepEqual(was, cfg.Handshakes) || recorded != cfg.Evidence.recorder() {
		d.closeHandshakes() // and the next look opens it as it is to be
	}
	d.policy.SetPrearm(cfg.Prearm)
	if d.modeFrom != ModeFromToggle {
		d.policy.SetMode(cfg.Mode)
	}
	d.journal.SetConfig(cfg.Journal)
	d.readRoles()
	d.opts.Log.Info("the configuration was read", "file", d.opts.ConfigFile)
	d.note(now, Entry{Event: EventConfig, To: "taken", Reason: d.opts.ConfigFile})
	return nil
}

// swapTable opens the table with the rules of cfg. The next look puts them
// into the kernel.
func (d *Daemon) swapTable(cfg *Config) error {
	old := d.table
	if err := d.openTable(cfg); err != nil {
		return err
	}
	if old == nil {
		return nil
	}
	if err := old.Close(); err != nil {
		d.opts.Log.Warn("close the old table", "error", err)
	}
	return nil
}

// openTable opens the table, if cfg wants one. After an error it is as before.
func (d *Daemon) openTable(cfg *Config) error {
	var table Table
	if cfg.wantsTable() {
		var err error
		if table, err = d.opts.Kernel.OpenTable(cfg.table()); err != nil {
			return fmt.Errorf("open the nft table: %w", err)
		}
	}
	d.table, d.ensured = table, nil
	return nil
}

var errNoTable = errors.New("this host has no table: its role is host, and watch names no address")

func (d *Daemon) command(now time.Time, c Command, who string) (Result, error) {
	var keys []ipvs.Key
	if c.Verb == VerbArm || c.Verb == VerbDisarm {
		var err error
		if keys, err = d.commanded(c); err != nil {
			return Result{}, err
		}
	}
	switch c.Verb {
	case VerbMode:
		if was := d.policy.Mode(); was != c.Mode {
			d.note(now, Entry{Event: EventMode, From: string(was), To: string(c.Mode), By: who})
		}
		d.policy.SetMode(c.Mode)
		d.modeFrom = ModeFromToggle
	case VerbArm:
		if d.removed {
			return Result{}, errors.New("the table was removed: lvsguard rules install brings it back")
		}
		for _, k := range keys {
			d.policy.Arm(k, now.Add(c.For()), who)
		}
	case VerbDisarm:
		for _, k := range keys {
			d.policy.Disarm(k, who)
		}
	case VerbRemove:
		if d.table == nil {
			return Result{}, errNoTable
		}
		if err := d.table.Remove(); err != nil {
			return Result{}, fmt.Errorf("remove the table: %w", err)
		}
		d.removed, d.ensured = true, nil
		for _, v := range d.verdicts {
			d.policy.Disarm(v.Service, who)
		}
		d.note(now, Entry{Event: EventTable, To: "removed", By: who})
		d.sample.Unknown = maps.Clone(d.sample.Unknown)
		d.sample.Unknown[SourceNft] = whyRemoved
	case VerbInstall:
		if d.table == nil {
			return Result{}, errNoTable
		}
		d.removed = false
		d.keepTable(now, watchedAddresses(d.sample.Services))
		d.note(now, Entry{Event: EventTable, To: "installed", By: who})
	}
	d.opts.Log.Info("command", "verb", c.Verb, "mode", c.Mode, "services", len(keys), "by", who)
	d.apply(now, d.policy.Decide(now, d.verdicts))
	d.publish(now)

	result := Result{Mode: d.policy.Mode()}
	for _, s := range d.Status().Services {
		if slices.Contains(keys, s.Service) {
			result.Services = append(result.Services, s)
		}
	}
	if err := d.save(now); err != nil {
		d.opts.Log.Error("the state cannot be saved", "error", err)
		result.Warning = "in force, but not kept over a restart: " + err.Error()
	} else if len(d.pending) > 0 {
		result.Warning = "the kernel has not taken it yet; the guard goes on trying, see its log"
	}
	return result, nil
}

// commanded gives the services that a command is about.
func (d *Daemon) commanded(c Command) ([]ipvs.Key, error) {
	var all []ipvs.Key
	for _, s := range d.sample.Services {
		if len(s.Addresses) > 0 {
			all = append(all, s.Key)
		}
	}
	switch {
	case len(all) == 0:
		return nil, errors.New("there is no virtual service to arm or disarm (see: lvsguard status)")
	case c.Service == nil:
		return all, nil
	case slices.Contains(all, *c.Service):
		return []ipvs.Key{*c.Service}, nil
	}
	for _, s := range d.sample.Services {
		if s.Key == *c.Service {
			return nil, fmt.Errorf("%s cannot be armed: %s", s.Key, whyUncounted(s.Key))
		}
	}
	names := make([]string, 0, len(all))
	for _, k := range all[:min(len(all), 8)] {
		names = append(names, k.String())
	}
	if len(all) > len(names) {
		names = append(names, "… (see: lvsguard status)")
	}
	return nil, fmt.Errorf("no virtual service %s; there are: %s", c.Service, strings.Join(names, ", "))
}

func (d *Daemon) save(now time.Time) error {
	s := savedState{Arms: d.policy.operatorArms(now), Removed: d.removed}
	if d.modeFrom == ModeFromToggle {
		s.Mode = d.policy.Mode()
	}
	return s.save(d.opts.StateDir, now)
}

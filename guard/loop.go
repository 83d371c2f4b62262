package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
	"github.com/lvsguard/lvsguard/nft"
)

const (
	tickEvery = time.Second
	// checkEvery is how soon a table that somebody took away is missed.
	checkEvery = 300 * time.Millisecond
	// CensusSample entries of the connection table give each state's share
	// within 3 points, 99 times of 100.
	CensusSample = 2000
	// censusEvery spaces the samples while the table is too small for a
	// half-open flood.
	censusEvery = 5 * time.Second
	retryFirst  = 100 * time.Millisecond
	retryMost   = 5 * time.Second
	readTimeout = 2 * time.Second
)

// Run guards until ctx is done, with the tasks given beside it, and returns
// when all have ended. It leaves the table and its leases as they are, so that
// a restart has no gap.
func (d *Daemon) Run(ctx context.Context, tasks ...func(context.Context) error) error {
	// The journal outlives the others: their last words belong into it.
	journalCtx, endJournal := context.WithCancel(context.WithoutCancel(ctx))
	journalDone := make(chan error, 1)
	go func() { journalDone <- d.journal.Run(journalCtx) }()

	g, ctx := errgroup.WithContext(ctx)
	d.tasks = g
	g.Go(func() error { return d.loop(ctx) })
	g.Go(func() error { return d.incidents.chronicle.run(ctx) })
	g.Go(func() error {
		return d.hook.Run(ctx, func() {
			select {
			case d.looks <- struct{}{}:
			default: // one is due already
			}
		})
	})
	if path := d.cfg.Keepalived.FIFO; path != "" && d.cfg.Role == RoleDirector {
		fifo := keepalived.FIFO{Path: path}
		g.Go(func() error {
			return fifo.Run(ctx,
				func(e keepalived.Event) { send(ctx, d.events, e) },
				func(err error) { send(ctx, d.gaps, err) })
		})
	}
	for _, task := range tasks {
		g.Go(func() error { return task(ctx) })
	}
	err := g.Wait()
	stopped := Entry{Event: EventStop}
	if d.table != nil {
		stopped.Reason = "leases lapse within " + LeaseTime.String()
	}
	d.note(time.Now(), stopped)
	endJournal()
	return errors.Join(err, <-journalDone)
}

func send[T any](ctx context.Context, to chan<- T, v T) {
	select {
	case to <- v:
	case <-ctx.Done():
	}
}

// loop is the control loop: it alone owns detector, policy and table.
func (d *Daemon) loop(ctx context.Context) error {
	d.retry = time.NewTimer(0)
	d.retry.Stop()
	d.tick(ctx, time.Now())
	d.opts.Ready()
	ticks, checks := time.NewTicker(tickEvery), time.NewTicker(checkEvery)
	defer ticks.Stop()
	defer checks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
			d.tick(ctx, time.Now())
			d.opts.Alive()
		case <-checks.C:
			if d.ensured != nil {
				d.keepTable(time.Now(), d.ensured)
			}
		case <-d.looks:
			d.look(time.Now())
		case e := <-d.events:
			d.roles.report(e)
			d.noteHealth(time.Now(), e)
			d.look(time.Now())
		case err := <-d.gaps:
			d.gap(time.Now(), err)
		case r := <-d.requests:
			r.do(time.Now())
			close(r.done)
		case <-d.retry.C:
			d.push(time.Now())
		}
	}
}

// tick looks at everything once.
func (d *Daemon) tick(ctx context.Context, now time.Time) {
	unknown := make(map[Source]string)
	d.troubles.read(unknown)
	served := d.readIPVS(ctx, now, unknown)
	if d.cfg.Role == RoleDirector && d.roles.changed() {
		d.readRoles()
	}
	roleChanges := d.readHeld(now, unknown)
	services := d.roster.list()
	d.keepTable(now, watchedAddresses(services))
	counters := d.readCounters(now, unknown)
	d.readCensus(ctx, now, served, unknown)
	for i := range services {
		if services[i].Connections != nil && unknown[SourceCensus] == "" {
			services[i].Census = censusOf(d.census, services[i].Key)
		}
	}
	figures, captured := d.readHandshakes(ctx, now, services, unknown)
	pressed := d.readPressure(ctx, now, served, unknown)
	sockets := d.readSockets(ctx, unknown)
	servers := d.readServers(ctx, now, served, unknown)
	d.noteUnknown(now, unknown)
	was := d.sample
	d.sample = Sample{
		Time: now, Services: services, Counters: counters, Roles: d.roles.list(),
		Handshakes: figures, Capture: captured, Pressure: pressed, Sockets: sockets, Servers: servers, Unknown: unknown,
	}
	d.verdicts = d.detector.Evaluate(now, d.sample)
	d.noteRoles(now, roleChanges)
	d.noteHealthLeftOut(now)
	d.noteVerdicts(now)
	d.apply(now, d.policy.Decide(now, d.verdicts))
	d.keepSampling(now)
	d.tellIncidents(now, was)
	d.served = served
	d.tickTook = time.Since(now)
	d.tally.Ticks++
	d.tally.TickTime += d.tickTook
	d.publish(now)
}

// look finds the roles anew, between two ticks, and acts on them at once. What
// the detector said a moment ago stands.
func (d *Daemon) look(now time.Time) {
	// What has been published is not changed any more.
	unknown := maps.Clone(d.sample.Unknown)
	changes := d.readHeld(now, unknown)
	if len(changes) == 0 {
		return
	}
	d.sample.Roles, d.sample.Unknown = d.roles.list(), unknown
	d.verdicts = slices.Clone(d.verdicts)
	byAddr := rolesByAddress(d.sample.Roles)
	for i := range d.verdicts {
		// The detector keeps its services in the order of the sample.
		d.verdicts[i].Role = roleOf(d.sample.Services[i], byAddr)
	}
	d.noteRoles(now, changes)
	d.apply(now, d.policy.Decide(now, d.verdicts))
	d.publish(now)
}

// gap is called when events of keepalived may have been lost, or when its FIFO
// cannot be read.
func (d *Daemon) gap(now time.Time, err error) {
	if err != nil {
		d.opts.Log.Warn("keepalived's FIFO", "path", d.cfg.Keepalived.FIFO, "error", err)
		d.note(now, Entry{Event: EventSource, Source: SourceRoles, Reason: err.Error()})
	}
	d.readRoles()
	d.look(now)
}

func (d *Daemon) readRoles() {
	if d.cfg.Role == RoleHost {
		return
	}
	d.roles.load(d.cfg.Keepalived)
	d.roster.named = namedServices(d.roles.conf)
}

func (d *Daemon) readIPVS(ctx context.Context, now time.Time, unknown map[Source]string) []ipvs.Service {
	if d.cfg.Role == RoleHost {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	served, err := d.opts.Kernel.IPVS.Services(ctx)
	switch {
	case err != nil:
		served = nil // not even what came before the error
		unknown[SourceIPVS] = err.Error()
	case len(served) == 0:
		unknown[SourceIPVS] = "IPVS has no virtual services"
	}
	d.roster.see(now, served)
	return served
}

func (d *Daemon) readHeld(now time.Time, unknown map[Source]string) []roleChange {
	delete(unknown, SourceRoles)
	if d.cfg.Role == RoleHost {
		return nil
	}
	held, err := d.opts.Kernel.Addresses.Held()
	switch {
	case err != nil:
		held = nil
		unknown[SourceRoles] = err.Error()
	case d.roles.confErr != nil:
		unknown[SourceRoles] = d.roles.confErr.Error()
	}
	return d.roles.look(now, held)
}

const whyRemoved = "the table was removed by an operator; lvsguard rules install brings it back"

func (d *Daemon) readCounters(now time.Time, unknown map[Source]string) map[netip.AddrPort]Counters {
	d.counted = nil
	switch {
	case d.table == nil:
		return nil
	case d.removed:
		unknown[SourceNft] = whyRemoved
		return nil
	}
	read, err := d.table.Counters()
	if err != nil {
		unknown[SourceNft] = err.Error()
		return nil
	}
	d.counted = &read
	if read.Unmoved && d.sample.Counters != nil {
		return d.sample.Counters
	}
	counters := make(map[netip.AddrPort]Counters, len(read.Services))
	for at, c := range read.Services {
		counters[at] = Counters{
			SYN: c.SYN.Packets, Suspect: c.Suspect.Packets,
			Dropped: c.Dropped.Packets, Fragments: c.Fragment.Packets,
		}
	}
	return counters
}

// readCensus samples the connection table: at every tick when it could hold a
// half-open flood, now and then when not.
func (d *Daemon) readCensus(ctx context.Context, now time.Time, served []ipvs.Service, unknown map[Source]string) {
	if unknown[SourceIPVS] != "" || d.cfg.Role == RoleHost {
		d.census = ipvs.Census{}
		return
	}
	var total uint64
	for _, s := range served {
		total += s.Connections()
	}
	if total == 0 {
		d.census, d.censusAt = ipvs.Census{Complete: true}, now
		return
	}
	least := d.cfg.Detect.HalfOpen
	for _, s := range d.cfg.Services {
		least = min(least, s.Detect.HalfOpen)
	}
	if float64(total) < least && !lasted(now.Sub(d.censusAt), censusEvery) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	census, err := d.opts.Kernel.IPVS.Census(ctx, ipvs.CensusConfig{Sample: CensusSample, Total: total, Services: d.roster.keys()})
	if err != nil {
		unknown[SourceCensus] = err.Error()
		return
	}
	d.census, d.censusAt = census, now
}

// keepTable makes the table what it should be, after changes of the services
// and after somebody else's.
func (d *Daemon) keepTable(now time.Time, want []netip.AddrPort) {
	if d.removed || d.table == nil {
		return
	}
	if d.ensured != nil {
		switch err := d.table.Check(); {
		case errors.Is(err, nft.ErrAbsent), errors.Is(err, nft.ErrAltered):
			d.lost(now, err)
		case err != nil:
			d.failed("check the table", err)
			return
		case slices.Equal(want, d.ensured):
			return
		}
	}
	changed, err := d.table.Ensure(want)
	if err != nil {
		d.failed("make the table", err)
		return
	}
	// Not nil even if there is nothing to count: the table is there.
	d.ensured = append([]netip.AddrPort{}, want...)
	if changed.Change == nft.Unchanged {
		return
	}
	reason := changed.Reason
	if changed.Change == nft.Updated {
		reason = fmt.Sprintf("%d services came, %d went", len(changed.Added), len(changed.Removed))
	}
	d.opts.Log.Info("table", "change", changed.Change, "reason", reason, "services", len(want), "leases", changed.Leases)
	d.note(now, Entry{Event: EventTable, To: string(changed.Change), Reason: reason})
}

// lost is called before a table that somebody took away is made again. If that
// happens too often, its leases that are the guard's own do not come back.
func (d *Daemon) lost(now time.Time, err error) {
	d.opts.Log.Warn("somebody else changed the table", "error", err)
	d.tableLosses++
	if !d.policy.Rebuilt(now) {
		return
	}
	d.opts.Log.Error("automatic drops pause", "for", pauseTime, "reason", "the table was taken away repeatedly")
	d.note(now, Entry{Event: EventPause, Reason: fmt.Sprintf("the table was taken away %d times within %s: automatic drops pause for %s, arming by hand works", rebuildLimit, rebuildWindow, pauseTime)})
	d.apply(now, d.policy.Decide(now, d.verdicts))
}

// apply writes down the actions, and has the kernel take them.
func (d *Daemon) apply(now time.Time, actions []Action) {
	for _, a := range actions {
		if !a.Renewal {
			d.noteLease(now, a)
		}
	}
	d.pend(now, actions)
	if len(actions) > 0 {
		d.backoff = 0
		d.push(now)
	}
}

// pend turns actions on services into what is wanted of addresses. Where two
// services share an address, it stays armed as long as either is.
func (d *Daemon) pend(now time.Time, actions []Action) {
	for _, a := range actions {
		for _, at := range d.cfg.addressesOf(a.Service) {
			if a.Timeout == 0 && d.armedByOther(a.Service, at) {
				continue
			}
			var until time.Time
			if a.Timeout > 0 {
				until = now.Add(a.Timeout)
			}
			d.pending[at] = until
		}
	}
}

func (d *Daemon) armedByOther(k ipvs.Key, at netip.AddrPort) bool {
	return slices.ContainsFunc(d.sample.Services, func(s Service) bool {
		return s.Key != k && slices.Contains(s.Addresses, at) && d.policy.armed(s.Key)
	})
}

// push has the kernel take what is pending: all leases in one transaction.
// What it does not take stays wanted, and is tried again ever more slowly.
func (d *Daemon) push(now time.Time) {
	arm := make(map[netip.AddrPort]time.Duration)
	var disarm []netip.AddrPort
	for at, until := range d.pending {
		// The least lease that the kernel takes is not worth a transaction.
		if left := until.Sub(now); left > nft.MinLease && slices.Contains(d.ensured, at) {
			arm[at] = left
		} else if until.IsZero() {
			disarm = append(disarm, at)
		} else {
			delete(d.pending, at)
		}
	}
	if len(d.pending) == 0 || d.removed || d.table == nil {
		clear(d.pending)
		return
	}
	var errs []error
	if len(disarm) > 0 {
		if err := d.table.Disarm(disarm); err != nil {
			errs = append(errs, fmt.Errorf("disarm: %w", err))
		} else {
			maps.DeleteFunc(d.pending, func(_ netip.AddrPort, until time.Time) bool { return until.IsZero() })
		}
	}
	if len(arm) > 0 {
		if err := d.table.Arm(arm); err != nil {
			errs = append(errs, fmt.Errorf("arm: %w", err))
		} else {
			maps.DeleteFunc(d.pending, func(_ netip.AddrPort, until time.Time) bool { return !until.IsZero() })
		}
	}
	if len(errs) == 0 {
		d.backoff = 0
		d.retry.Stop()
		return
	}
	d.backoff = min(max(2*d.backoff, retryFirst), retryMost)
	d.retry.Reset(d.backoff)
	d.failed("change leases", errors.Join(errs...))
}

// failed tells of a change that the kernel did not take.
func (d *Daemon) failed(what string, err error) {
	d.tally.Failures++
	d.opts.Log.Error("the kernel did not take a change; trying again", "change", what, "error", err)
}

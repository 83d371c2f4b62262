package guard

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/ipvs"
)

// A Detector turns samples into verdicts. It is pure but for its memory of the
// samples before: the same samples give the same verdicts.
type Detector struct {
	cfg       *Config
	prev      Sample
	services  map[ipvs.Key]*serviceState
	addresses map[netip.Addr]*scope
	total     scope
}

// NewDetector returns a detector that has seen nothing.
func NewDetector(cfg *Config) *Detector {
	return &Detector{
		cfg:       cfg,
		services:  make(map[ipvs.Key]*serviceState),
		addresses: make(map[netip.Addr]*scope),
	}
}

// SetConfig changes the thresholds and keeps what is known.
func (d *Detector) SetConfig(cfg *Config) { d.cfg = cfg }

// serviceState is what the detector remembers of a service.
type serviceState struct {
	verdict Verdict
	own     scope
	// inAddress and inTotal: the service takes part in a flood that is seen on
	// its address's sum or on the total.
	inAddress, inTotal member
	halfOpen           scope
	// known is when the rates were last known. A gap in the readings changes
	// no state until it is longer than unknownAfter.
	known time.Time
}

// unknownAfter is how long a verdict outlives the figures that it rests on.
const unknownAfter = 10 * time.Second

// A scope is one sum of rates that is held against thresholds.
type scope struct {
	over   time.Time // over the thresholds since
	under  time.Time // under the clear rate since
	active bool
}

// step moves the scope by one interval, from the previous sample to now. A
// flood counts from the end of the interval in which it first shows, because it
// may have begun just before: it is never called one before it has lasted for
// as long as is asked. Its end counts from the beginning of the first quiet
// interval.
func (s *scope) step(from, now time.Time, over, under bool, for_, clearFor time.Duration) {
	mark(&s.over, now, over)
	mark(&s.under, from, under)
	switch {
	case !s.active && over && lasted(now.Sub(s.over), for_):
		s.active = true
	case s.active && under && lasted(now.Sub(s.under), clearFor):
		s.active = false
	}
}

// mark keeps the time since which a condition has held without a break.
func mark(since *time.Time, from time.Time, holds bool) {
	switch {
	case !holds:
		*since = time.Time{}
	case since.IsZero():
		*since = from
	}
}

// A member is a service's part in a scope that is larger than the service.
type member struct {
	joined bool
	aside  time.Time // not over the share since
}

func (m *member) step(from, now time.Time, active, overShare bool, clearFor time.Duration) {
	mark(&m.aside, from, !overShare)
	switch {
	case !active, m.joined && !overShare && lasted(now.Sub(m.aside), clearFor):
		m.joined = false
	case overShare:
		m.joined = true
	}
}

// rates are packets a second of one address or of a sum over several.
type rates struct{ syn, suspect, dropped, fragments float64 }

func (r *rates) add(o rates) {
	r.syn += o.syn
	r.suspect += o.suspect
	r.dropped += o.dropped
	r.fragments += o.fragments
}

func (r rates) share() float64 {
	if r.syn == 0 {
		return 0
	}
	return r.suspect / r.syn
}

// over says whether the rates reach both thresholds.
func (r rates) over(rate, share float64) bool {
	return r.suspect >= rate && r.share() >= share
}

// Evaluate gives a verdict on each service of the sample, in its order.
func (d *Detector) Evaluate(now time.Time, s Sample) []Verdict {
	from := d.prev.Time
	byAddr := d.ratesBetween(d.prev, s)
	d.prev = s

	// The sums first: what they say decides over the services.
	var total rates
	sums := make(map[netip.Addr]rates)
	for at, r := range byAddr {
		total.add(r)
		sum := sums[at.Addr()]
		sum.add(r)
		sums[at.Addr()] = sum
	}
	g := d.cfg.Detect
	if byAddr != nil {
		d.total.step(from, now, total.over(g.TotalRate, g.Share), total.suspect < g.clearRate(g.TotalRate), g.For, g.ClearFor)
		d.stepAddresses(from, now, sums)
	}

	byRole := rolesByAddress(s.Roles)
	verdicts := make([]Verdict, 0, len(s.Services))
	seen := make(map[ipvs.Key]bool, len(s.Services))
	for _, svc := range s.Services {
		seen[svc.Key] = true
		st := d.services[svc.Key]
		if st == nil {
			st = &serviceState{known: now}
			d.services[svc.Key] = st
		}
		v := d.judge(from, now, svc, st, byAddr, sums, total)
		v.Role = roleOf(svc, byRole)
		v.Was, v.Since = st.verdict.State, now
		if v.Was == v.State {
			v.Since = st.verdict.Since
		}
		st.verdict = v
		verdicts = append(verdicts, v)
	}
	maps.DeleteFunc(d.services, func(k ipvs.Key, _ *serviceState) bool { return !seen[k] })
	return verdicts
}

// stepAddresses moves the sums of addresses. An address keeps its scope while
// it is flooded or about to be, even if its services vanish for a moment.
func (d *Detector) stepAddresses(from, now time.Time, sums map[netip.Addr]rates) {
	g := d.cfg.Detect
	for a := range sums {
		if d.addresses[a] == nil {
			d.addresses[a] = &scope{}
		}
	}
	for a, sc := range d.addresses {
		sum, present := sums[a]
		sc.step(from, now, sum.over(g.Rate, g.Share), sum.suspect < g.clearRate(g.Rate), g.For, g.ClearFor)
		if !present && !sc.active {
			delete(d.addresses, a)
		}
	}
}

// ratesBetween gives the rates at each address that both samples count. A
// counter that went back (the table was made anew) leaves its address out. The
// result is nil if the counters of either sample are not known.
func (d *Detector) ratesBetween(a, b Sample) map[netip.AddrPort]rates {
	dt := b.Time.Sub(a.Time).Seconds()
	if a.Counters == nil || b.Counters == nil || dt <= 0 {
		return nil
	}
	m := make(map[netip.AddrPort]rates, len(b.Counters))
	for at, now := range b.Counters {
		was, ok := a.Counters[at]
		if !ok || now.SYN < was.SYN || now.Suspect < was.Suspect || now.Dropped < was.Dropped || now.Fragments < was.Fragments {
			continue
		}
		rate := func(now, was uint64) float64 { return float64(now-was) / dt }
		r := rates{
			rate(now.SYN, was.SYN), rate(now.Suspect, was.Suspect),
			rate(now.Dropped, was.Dropped), rate(now.Fragments, was.Fragments),
		}
		// The counters are read one after the other while packets come: what is a
		// part of the SYNs must not look like more than all.
		r.suspect = min(r.suspect, r.syn)
		m[at] = r
	}
	return m
}

func (d *Detector) judge(from, now time.Time, svc Service, st *serviceState, byAddr map[netip.AddrPort]rates, sums map[netip.Addr]rates, total rates) Verdict {
	v := Verdict{Service: svc.Key}
	cfg := d.cfg.DetectFor(svc.Key)
	halfOpen, halfOpenShare, halfOpenKnown := svc.Census.halfOpen()
	if halfOpenKnown {
		v.Figures.HalfOpen = &halfOpen
	}
	if len(svc.Addresses) == 0 {
		v.State, v.Reason = Unknown, "no SYNs are counted: "+whyUncounted(svc.Key)
		return v
	}
	r, known := sumOf(svc, byAddr)
	if !known {
		// A gap in the readings: the state stands, its timers too.
		v.State, v.Reason = st.verdict.State, st.verdict.Reason
		if v.State == "" || now.Sub(st.known) >= unknownAfter {
			v.State, v.Reason = Unknown, cmp.Or(d.prev.Unknown[SourceNft], "the counters have been read only once so far")
		}
		return v
	}
	st.known = now
	share := r.share()
	v.Figures.SYN, v.Figures.Suspect, v.Figures.Dropped, v.Figures.Fragments = &r.syn, &r.suspect, &r.dropped, &r.fragments
	if r.syn > 0 {
		v.Figures.Share = &share
	}

	overShare := r.suspect > 0 && share >= cfg.Share
	st.own.step(from, now, r.over(cfg.Rate, cfg.Share), r.suspect < cfg.clearRate(cfg.Rate), cfg.For, cfg.ClearFor)
	address, flooded := d.scopeOf(svc)
	st.inAddress.step(from, now, flooded.active, overShare, cfg.ClearFor)
	st.inTotal.step(from, now, d.total.active, overShare, cfg.ClearFor)
	if halfOpenKnown {
		full := halfOpen >= cfg.HalfOpen && halfOpenShare >= cfg.HalfOpenShare && share < cfg.Share
		st.halfOpen.step(from, now, full, !full, cfg.For, cfg.ClearFor)
	}

	measured := fmt.Sprintf("%.0f of %.0f SYN/s bear a signature", r.suspect, r.syn)
	switch {
	case st.own.active && !st.own.under.IsZero():
		v.State, v.Reason = Flood, fmt.Sprintf("%s, under %.0f/s: over after %s", measured, cfg.clearRate(cfg.Rate), cfg.ClearFor)
	case st.own.active:
		v.State, v.Reason = Flood, fmt.Sprintf("%s (threshold %.0f/s and %.0f%%)", measured, cfg.Rate, 100*cfg.Share)
	case st.inAddress.joined:
		v.State, v.Reason = Flood, fmt.Sprintf("%s, part of %.0f/s on %s (threshold %.0f/s)", measured, sums[address].suspect, address, d.cfg.Detect.Rate)
	case st.inTotal.joined:
		v.State, v.Reason = Flood, fmt.Sprintf("%s, part of %.0f/s on all services (threshold %.0f/s)", measured, total.suspect, d.cfg.Detect.TotalRate)
	case !st.own.over.IsZero():
		v.State, v.Reason = Rising, fmt.Sprintf("%s (threshold %.0f/s for %s)", measured, cfg.Rate, cfg.For)
	case overShare && !flooded.over.IsZero():
		v.State, v.Reason = Rising, fmt.Sprintf("%s, part of %.0f/s on %s", measured, sums[address].suspect, address)
	case overShare && !d.total.over.IsZero():
		v.State, v.Reason = Rising, fmt.Sprintf("%s, part of %.0f/s on all services", measured, total.suspect)
	case st.halfOpen.active:
		v.State, v.Reason = HalfOpenFlood, fmt.Sprintf("about %.0f half-open entries, %.0f%% of this service's, and no signature explains them", halfOpen, 100*halfOpenShare)
	default:
		v.State, v.Reason = Calm, measured
	}
	return v
}

// scopeOf gives the address of the service whose sum is flooded, else one that
// is over its thresholds, else any.
func (d *Detector) scopeOf(svc Service) (netip.Addr, scope) {
	rank := func(a netip.Addr) int {
		switch sc := d.addresses[a]; {
		case sc == nil:
			return 0
		case sc.active:
			return 2
		case !sc.over.IsZero():
			return 1
		}
		return 0
	}
	best := svc.Addresses[0].Addr()
	for _, at := range svc.Addresses[1:] {
		if rank(at.Addr()) > rank(best) {
			best = at.Addr()
		}
	}
	if sc := d.addresses[best]; sc != nil {
		return best, *sc
	}
	return best, scope{}
}

func sumOf(svc Service, byAddr map[netip.AddrPort]rates) (sum rates, known bool) {
	for _, at := range svc.Addresses {
		r, ok := byAddr[at]
		if !ok {
			return rates{}, false
		}
		sum.add(r)
	}
	return sum, true
}

func roleOf(svc Service, byAddr map[netip.Addr]Role) Role {
	var role Role
	for _, at := range svc.Addresses {
		r, ok := byAddr[at.Addr()]
		if !ok || svc.Key.Mark != 0 {
			// A mark is set by rules of the site's own: no instance owns it.
			return Role{}
		}
		role = r
	}
	return role
}

func whyUncounted(k ipvs.Key) string {
	if k.Mark != 0 {
		return fmt.Sprintf("give the addresses of %s in the configuration, under services", k)
	}
	return strings.ToUpper(k.Protocol.String()) + " has none"
}

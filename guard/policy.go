package guard

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// A lease is the kernel's for LeaseTime and is renewed every RenewEvery, so
// that it outlives a restart of the guard and not its death.
const (
	LeaseTime  = 60 * time.Second
	RenewEvery = 15 * time.Second
	// MaxArm is the longest that an operator can arm for.
	MaxArm = 24 * time.Hour
)

// A table that is taken away rebuildLimit times within rebuildWindow has an
// enemy: automatic drops pause for pauseTime.
const (
	rebuildLimit  = 3
	rebuildWindow = 10 * time.Minute
	pauseTime     = 10 * time.Minute
)

// By says who wants a lease.
type By string

// Those who can want a lease, the strongest first.
const (
	ByOperator By = "operator"
	ByAuto     By = "auto"
	ByPrearm   By = "prearm"
	// ByRestart is a lease that was found in the kernel at start. It is left to
	// lapse; what is seen until then decides.
	ByRestart By = "restart"
)

// An Action is a change of one service's lease.
type Action struct {
	Service ipvs.Key `json:"service"`
	// Timeout is what the kernel is to hold the lease for; 0 lifts it.
	Timeout time.Duration `json:"timeout"`
	By      By            `json:"by"`
	// Who is the operator, where one asked for it.
	Who    string `json:"who,omitempty"`
	Reason string `json:"reason"`
	// Renewal is set where only the time changes.
	Renewal bool `json:"renewal,omitempty"`
}

// A Policy decides which services are armed. Like the detector it is pure but
// for its memory.
type Policy struct {
	mode        Mode
	prearm      time.Duration
	leases      map[ipvs.Key]*lease
	rebuilds    []time.Time
	pausedUntil time.Time
}

// NewPolicy returns a policy that holds no lease.
func NewPolicy(mode Mode, prearm time.Duration) *Policy {
	return &Policy{mode: mode, prearm: prearm, leases: make(map[ipvs.Key]*lease)}
}

// lease is what the policy remembers of a service.
type lease struct {
	seen    time.Time // when there last was a verdict on it
	by      By        // empty: none is wanted
	since   time.Time
	renewed time.Time
	expires time.Time // in the kernel, if it did as told

	operatorUntil time.Time
	who           string // the operator who armed or disarmed last
	restartUntil  time.Time
	// declined: an operator has disarmed this service; the automatic lease
	// waits for the present cause to end.
	declined bool

	standby    bool
	prearmTill time.Time // set by a promotion
	// SYNs that arrive at a standby show that traffic does come here.
	arrivals, lastArrival time.Time
}

// Mode returns the mode in force.
func (p *Policy) Mode() Mode { return p.mode }

// SetMode changes the mode. Turned to auto, it forgets what operators declined.
func (p *Policy) SetMode(m Mode) {
	p.mode = m
	for _, l := range p.leases {
		l.declined = false
	}
}

// SetPrearm changes how long a promoted service stays armed.
func (p *Policy) SetPrearm(d time.Duration) { p.prearm = d }

func (p *Policy) lease(k ipvs.Key) *lease {
	l := p.leases[k]
	if l == nil {
		l = &lease{}
		p.leases[k] = l
	}
	return l
}

// Arm has a service armed until then, in any mode, because who asked for it.
// An earlier arm by an operator is replaced.
func (p *Policy) Arm(k ipvs.Key, until time.Time, who string) {
	l := p.lease(k)
	l.operatorUntil, l.who, l.declined = until, who, false
	l.renewed = time.Time{} // the kernel's time may have to become shorter
}

// Disarm ends the lease of a service, whoever wanted it. An automatic one
// stays off until its present cause is over.
func (p *Policy) Disarm(k ipvs.Key, who string) {
	l := p.lease(k)
	l.operatorUntil, l.restartUntil, l.declined, l.who = time.Time{}, time.Time{}, true, who
}

// Adopt takes over a lease that was found in the kernel.
func (p *Policy) Adopt(now time.Time, k ipvs.Key, remaining time.Duration) {
	l := p.lease(k)
	l.restartUntil = now.Add(remaining)
	l.expires = l.restartUntil
	l.by, l.since, l.renewed = ByRestart, now, now
}

// Rebuilt notes that the table had to be made again because somebody took it
// away. It says whether automatic drops begin to pause with this.
func (p *Policy) Rebuilt(now time.Time) (pauses bool) {
	p.rebuilds = slices.DeleteFunc(p.rebuilds, func(t time.Time) bool { return now.Sub(t) > rebuildWindow })
	p.rebuilds = append(p.rebuilds, now)
	if len(p.rebuilds) < rebuildLimit {
		return false
	}
	p.rebuilds = nil
	p.pausedUntil = now.Add(pauseTime)
	return true
}

// PausedUntil returns the end of the pause of automatic drops; zero if there
// is none.
func (p *Policy) PausedUntil(now time.Time) time.Time {
	if now.Before(p.pausedUntil) {
		return p.pausedUntil
	}
	return time.Time{}
}

// Decide says what is to change in the kernel. Given the same verdicts again,
// it asks for nothing but the renewals that are due. What it asks for counts
// as done: the caller repeats it until it is.
func (p *Policy) Decide(now time.Time, verdicts []Verdict) []Action {
	var actions []Action
	for _, v := range verdicts {
		l := p.lease(v.Service)
		l.seen = now
		l.look(now, v, p.prearm)
		if a, ok := l.move(now, v.Service, p.wants(now, l, v)); ok {
			actions = append(actions, a)
		}
	}
	if len(p.leases) == len(verdicts) {
		return actions
	}
	for _, k := range slices.SortedFunc(maps.Keys(p.leases), ipvs.Key.Compare) {
		l := p.leases[k]
		if l.seen.Equal(now) {
			continue
		}
		if a, ok := l.move(now, k, wanted{reason: "the service is no longer there"}); ok {
			actions = append(actions, a)
		}
		delete(p.leases, k)
	}
	return actions
}

// look notes the role and the arrivals that the verdict shows.
func (l *lease) look(now time.Time, v Verdict, prearm time.Duration) {
	standby := v.standby()
	switch {
	case standby && !l.standby:
		l.declined, l.prearmTill = false, time.Time{}
		l.arrivals, l.lastArrival = time.Time{}, time.Time{}
	case !standby && l.standby && v.Role.State == keepalived.Master:
		l.prearmTill = now.Add(prearm)
	}
	l.standby = standby
	if v.State == Calm && !standby && l.by == "" {
		l.declined = false
	}
	if !standby {
		return
	}
	if v.Figures.SYN != nil && *v.Figures.SYN > 0 {
		if l.arrivals.IsZero() {
			l.arrivals = now
		}
		l.lastArrival = now
	} else if now.Sub(l.lastArrival) >= prearm {
		l.arrivals = time.Time{}
	}
}

// wanted is who wants a service armed and why; with nobody, why it no longer
// is.
type wanted struct {
	by     By
	reason string
	// lapses: the lease is left to the kernel, which ends it in its time.
	lapses bool
}

func (p *Policy) wants(now time.Time, l *lease, v Verdict) wanted {
	paused := now.Before(p.pausedUntil)
	automatic := p.mode == Auto && !l.declined && !paused
	arrived := !l.arrivals.IsZero() && lasted(now.Sub(l.arrivals), p.prearm)
	switch {
	case now.Before(l.operatorUntil):
		return wanted{by: ByOperator, reason: "armed until " + l.operatorUntil.Format(time.RFC3339)}
	case automatic && v.State == Flood:
		return wanted{by: ByAuto, reason: v.Reason}
	case automatic && l.standby && !arrived:
		return wanted{by: ByPrearm, reason: fmt.Sprintf("%s is %s here", v.Role.Instance, v.Role.State)}
	case automatic && now.Before(l.prearmTill):
		return wanted{by: ByPrearm, reason: fmt.Sprintf("%s became %s", v.Role.Instance, v.Role.State)}
	case automatic && l.by == ByAuto && v.State == Unknown && now.Before(l.expires):
		// Blind, the guard does not go on dropping, nor does it open the gate.
		return wanted{by: ByAuto, reason: v.Reason, lapses: true}
	case now.Before(l.restartUntil):
		return wanted{by: ByRestart, reason: "found in the kernel at start", lapses: true}
	}
	return wanted{reason: p.why(l, v, paused)}
}

// why says why a lease is over.
func (p *Policy) why(l *lease, v Verdict, paused bool) string {
	automatic := l.by == ByAuto || l.by == ByPrearm
	switch {
	case l.declined:
		return "disarmed by an operator"
	case !automatic:
		return "its time is over"
	case p.mode == Observe:
		return "the mode is observe"
	case paused:
		return "automatic drops pause: the table was taken away repeatedly"
	case l.standby:
		return fmt.Sprintf("SYNs have arrived for %s although %s is %s here", p.prearm, v.Role.Instance, v.Role.State)
	}
	return v.Reason
}

// move brings the lease to what is wanted and returns what that takes.
func (l *lease) move(now time.Time, k ipvs.Key, w wanted) (Action, bool) {
	if w.by == "" {
		if l.by == "" {
			return Action{}, false
		}
		a := Action{Service: k, By: l.by, Reason: w.reason}
		if l.declined {
			a.Who = l.who
		}
		l.by, l.since, l.renewed, l.expires = "", time.Time{}, time.Time{}, time.Time{}
		return a, true
	}
	changed := l.by != w.by
	if changed {
		l.by, l.since = w.by, now
	}
	if w.lapses {
		return Action{}, false
	}
	timeout := LeaseTime
	if w.by == ByOperator {
		timeout = min(timeout, l.operatorUntil.Sub(now))
	}
	expires := now.Add(timeout)
	due := l.renewed.IsZero() || lasted(now.Sub(l.renewed), RenewEvery) && expires.After(l.expires)
	if !changed && !due {
		return Action{}, false
	}
	a := Action{Service: k, Timeout: timeout, By: w.by, Reason: w.reason, Renewal: !changed && !l.renewed.IsZero()}
	if w.by == ByOperator {
		a.Who = l.who
	}
	l.renewed, l.expires = now, expires
	return a, true
}

// Lease is what status shows of a lease.
type Lease struct {
	By        By        `json:"by"`
	Since     time.Time `json:"since"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Leases returns the leases that are in force. An operator's shows when the
// operator's time ends; any other when the kernel would lift it if the guard
// died now.
func (p *Policy) Leases() map[ipvs.Key]Lease {
	var leases map[ipvs.Key]Lease
	for k, l := range p.leases {
		if l.by == "" {
			continue
		}
		if leases == nil {
			leases = make(map[ipvs.Key]Lease)
		}
		out := Lease{By: l.by, Since: l.since, ExpiresAt: l.expires}
		if l.by == ByOperator {
			out.ExpiresAt = l.operatorUntil
		}
		leases[k] = out
	}
	return leases
}

// Declined returns the services that an operator has disarmed in the middle of
// what would arm them again. The automatic lease waits for that to end.
func (p *Policy) Declined() map[ipvs.Key]bool {
	var declined map[ipvs.Key]bool
	for k, l := range p.leases {
		if l.declined && p.mode == Auto {
			if declined == nil {
				declined = make(map[ipvs.Key]bool)
			}
			declined[k] = true
		}
	}
	return declined
}

// armed says whether the service has a lease.
func (p *Policy) armed(k ipvs.Key) bool { return p.leases[k] != nil && p.leases[k].by != "" }

// operatorArms returns the operators' arms that are in force, to be kept over a
// restart.
func (p *Policy) operatorArms(now time.Time) []savedArm {
	var arms []savedArm
	for _, k := range slices.SortedFunc(maps.Keys(p.leases), ipvs.Key.Compare) {
		if l := p.leases[k]; now.Before(l.operatorUntil) {
			arms = append(arms, savedArm{Service: k, Remaining: l.operatorUntil.Sub(now), Who: l.who})
		}
	}
	return arms
}

package guard

import (
	"time"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// State is what the detector makes of a service.
type State string

// The states of a verdict.
const (
	Calm          State = "calm"
	Rising        State = "rising"          // over the thresholds, not yet for long enough
	Flood         State = "flood"           // over the thresholds, or not yet under them for long enough
	HalfOpenFlood State = "half_open_flood" // the table fills with half-open entries that no signature explains
	Unknown       State = "unknown"
)

// Figures are what a verdict rests on; nil is "not known". Rates are packets a
// second, shares from 0 to 1.
type Figures struct {
	SYN       *float64 `json:"syn_per_second"`
	Suspect   *float64 `json:"suspect_per_second"`
	Share     *float64 `json:"suspect_share"`
	Dropped   *float64 `json:"dropped_per_second"`
	Fragments *float64 `json:"fragments_per_second"`
	HalfOpen  *float64 `json:"half_open_connections"`
}

// A Verdict is the detector's word on one service.
type Verdict struct {
	Service ipvs.Key
	State   State
	Was     State // at the sample before; empty if this is the first
	Reason  string
	Since   time.Time
	Figures Figures
	// Role is that of the VRRP instance that has the service's address; its
	// State is empty if no instance has.
	Role Role
}

// standby says that the service's address belongs to an instance of this host
// which is known not to be MASTER, so that nothing should reach it here.
func (v Verdict) standby() bool {
	switch v.Role.State {
	case keepalived.Backup, keepalived.Fault, keepalived.Stop:
		return true
	}
	return false
}

// slack forgives a tick that comes a little early: three ticks are three
// seconds even if the clock reads 2.998.
const slack = 100 * time.Millisecond

// lasted says whether d, measured between ticks, is at least want. The slack is
// not added to d: since the zero time that is as long as a duration can be.
func lasted(d, want time.Duration) bool { return d >= want-slack }

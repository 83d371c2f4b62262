package guard

import (
	"cmp"
	"time"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
)

// Status is what a running guard says of itself and of every service. What is
// not known is null, and Unknown beside it says why.
type Status struct {
	Version     string          `json:"version"`
	Time        time.Time       `json:"time"`
	StartedAt   time.Time       `json:"started_at"`
	Mode        Mode            `json:"mode"`
	ModeFrom    ModeFrom        `json:"mode_from"`
	PausedUntil *time.Time      `json:"automatic_paused_until"`
	ConfigFile  *string         `json:"config_file"`
	ConfigError *string         `json:"config_error"`
	Role        HostRole        `json:"role"`
	Project     string          `json:"project,omitempty"` // of this host, by the configuration
	Roles       []RoleStatus    `json:"roles"`
	Services    []ServiceStatus `json:"services"`
	Total       Figures         `json:"total"`
	// Capture and Handshakes are null where no handshakes are watched. The
	// first is everything, the others are the filters.
	Capture    *Capture            `json:"capture"`
	Handshakes []handshake.Figures `json:"handshakes"`
	// Pressure and Sockets are null where they are not watched, Servers where
	// IPVS is not known or not there.
	Pressure *PressureStatus `json:"pressure"`
	Sockets  *SocketsSummary `json:"sockets"`
	Servers  []RealServer    `json:"servers"`
	// Sampling is null where no queue is to be used.
	Sampling *SamplingStatus `json:"sampling"`
	Journal  JournalHealth   `json:"journal"`
	// TableLosses counts since the guard's start how often somebody else took the
	// table away or changed it, and it was made again.
	TableLosses uint64            `json:"table_losses"`
	Unknown     map[Source]string `json:"unknown"`
	// TickMillis is how long the last look at everything took.
	TickMillis float64 `json:"tick_milliseconds"`
}

// ModeFrom says what decided the mode.
type ModeFrom string

// What can decide the mode, the weakest first.
const (
	ModeFromDefault ModeFrom = "default"
	ModeFromConfig  ModeFrom = "config"
	ModeFromToggle  ModeFrom = "toggle"
)

// PressureStatus is a PressureReport without its details: of accept queues only
// those that are not ok.
type PressureStatus struct {
	Resources []pressure.Resource `json:"resources"` // the worst first
	Troubles  []pressure.Trouble  `json:"troubles"`
	Events    []pressure.Event    `json:"events"`
	Advice    []pressure.Finding  `json:"advice"`
}

func newPressureStatus(r *PressureReport) *PressureStatus {
	if r.Time.IsZero() {
		return nil
	}
	s := &PressureStatus{Troubles: r.Troubles, Events: r.Events, Advice: r.Advice}
	for _, resource := range r.Resources {
		if resource.Kind != pressure.KindAcceptQueue || resource.Level != pressure.LevelOK {
			s.Resources = append(s.Resources, resource)
		}
	}
	return s
}

// RoleStatus is a VRRP instance in a Status.
type RoleStatus struct {
	Instance string    `json:"instance"`
	Role     string    `json:"role"`
	Since    time.Time `json:"since"`
	// Changes are those since the guard's start, of one known role to another.
	Changes uint64 `json:"changes"`
}

// ServiceStatus is a virtual service in a Status.
type ServiceStatus struct {
	Service    ipvs.Key  `json:"service"`
	Project    string    `json:"project,omitempty"` // empty: it belongs to none
	Protocol   *string   `json:"protocol"`          // null for a firewall mark: it may carry any
	Forwarding *string   `json:"forwarding"`
	Instance   *string   `json:"instance"` // null: no VRRP instance names its address
	Verdict    State     `json:"verdict"`
	Reason     string    `json:"reason"`
	Since      time.Time `json:"since"`
	Figures
	Active   *uint64 `json:"active_connections"`
	Inactive *uint64 `json:"inactive_connections"`
	Lease    *Lease  `json:"lease"`
	// Declined: an operator disarmed it, and the automatic lease waits for the
	// present flood to end.
	Declined bool `json:"automatic_declined"`
	// Completion is the share of the handshakes that ended within the last
	// minute and succeeded, from 0 to 1.
	Completion *float64           `json:"completion"`
	Handshakes *handshake.Figures `json:"handshakes"`        // since the capture began; without the histograms
	Unknown    map[string]string  `json:"unknown,omitempty"` // by key of this object, why it is null
}

// newServiceStatus joins what was sampled of a service with what was made of
// it.
func newServiceStatus(svc Service, v Verdict, l *Lease, unknown map[Source]string) ServiceStatus {
	s := ServiceStatus{
		Service: v.Service, Verdict: v.State, Reason: v.Reason, Since: v.Since,
		Figures: v.Figures, Lease: l, Unknown: make(map[string]string),
	}
	// The first reason that there is stands for the rest.
	why := func(key string, reasons ...string) { s.Unknown[key] = cmp.Or(reasons...) }
	if svc.Key.Mark == 0 {
		p := svc.Key.Protocol.String()
		s.Protocol = &p
	} else {
		s.Unknown["protocol"] = "a firewall mark may carry any"
	}
	if svc.Forwarding != "" {
		s.Forwarding = &svc.Forwarding
	} else {
		why("forwarding", unknown[SourceIPVS], "it has no real servers")
	}
	if v.Role.Instance != "" {
		s.Instance = &v.Role.Instance
	}
	if c := svc.Connections; c != nil {
		s.Active, s.Inactive = &c.Active, &c.Inactive
	} else {
		why("active_connections", unknown[SourceIPVS], "IPVS does not serve it")
		s.Unknown["inactive_connections"] = s.Unknown["active_connections"]
	}
	if s.HalfOpen == nil {
		why("half_open_connections", unknown[SourceIPVS], unknown[SourceCensus], "too few entries in the sample of the connection table")
	}
	if s.SYN == nil {
		// In a short gap the verdict stands, and its reason explains no gap.
		reason := cmp.Or(unknown[SourceNft], "the counters were not read twice in a row")
		if v.State == Unknown {
			reason = v.Reason
		}
		for _, key := range []string{"syn_per_second", "suspect_per_second", "suspect_share", "dropped_per_second", "fragments_per_second"} {
			s.Unknown[key] = reason
		}
	} else if s.Share == nil {
		s.Unknown["suspect_share"] = "no SYNs"
	}
	if len(s.Unknown) == 0 {
		s.Unknown = nil
	}
	return s
}

// setHandshakes adds what the capture knows of the service; f is nil where that
// is nothing.
func (s *ServiceStatus) setHandshakes(f *handshake.Figures, completion *float64, unknown string) {
	why := cmp.Or(unknown, "handshakes are not watched (handshakes.enabled)")
	if f != nil {
		without := *f
		without.Complete, without.Answer = nil, nil
		s.Handshakes, s.Completion = &without, completion
		why = "no handshake ended within the last minute"
	}
	if s.Completion == nil {
		if s.Unknown == nil {
			s.Unknown = make(map[string]string)
		}
		s.Unknown["completion"] = why
		if f == nil {
			s.Unknown["handshakes"] = why
		}
	}
}

// totalFigures adds up what is known of each service; a sum is nil if nothing
// of it is.
func totalFigures(verdicts []Verdict) Figures {
	var t Figures
	add := func(sum **float64, v *float64) {
		switch {
		case v == nil:
		case *sum == nil:
			n := *v
			*sum = &n
		default:
			**sum += *v
		}
	}
	for _, v := range verdicts {
		add(&t.SYN, v.Figures.SYN)
		add(&t.Suspect, v.Figures.Suspect)
		add(&t.Dropped, v.Figures.Dropped)
		add(&t.Fragments, v.Figures.Fragments)
		add(&t.HalfOpen, v.Figures.HalfOpen)
	}
	if t.SYN != nil && *t.SYN > 0 {
		share := *t.Suspect / *t.SYN
		t.Share = &share
	}
	return t
}

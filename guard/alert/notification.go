// Package alert tells people what the guard sees: rules over its figures, one
// message a group, and one more when it is over.
package alert

import (
	"context"
	"errors"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// Severity says how soon somebody should look.
type Severity = guard.Severity

// The severities, the mildest first.
const (
	Info     = guard.SeverityInfo
	Warning  = guard.SeverityWarning
	Critical = guard.SeverityCritical
)

// State is what a Notification tells of its group.
type State string

// The states of a group.
const (
	Firing   State = "firing"   // it has begun, or become more
	Repeated State = "repeated" // it still lasts
	Resolved State = "resolved" // it is over
	Test     State = "test"     // somebody tries the receiver
)

// A Notification is what receivers are told of one group of alerts. All text in
// it may come from packets, from real servers or from the configuration: who
// writes it somewhere escapes it for that place.
type Notification struct {
	// ID is the same for all notifications of one run of a group, and of no
	// other, over restarts too.
	ID string `json:"id"`
	// Group is what the alerts have in common, as "project=shop"; Labels is the
	// same by label.
	Group    string            `json:"group"`
	Labels   map[string]string `json:"labels"`
	State    State             `json:"state"`
	Severity Severity          `json:"severity"` // the gravest of its alerts
	Host     string            `json:"host"`
	Time     time.Time         `json:"time"`
	Since    time.Time         `json:"since"`
	// Until is zero unless State is Resolved.
	Until time.Time `json:"until,omitzero"`
	// Alerts are those that fire, or did in this run, the gravest first; at most
	// MaxAlerts of them, and More are left out.
	Alerts []Alert `json:"alerts"`
	More   int     `json:"more"`
	// Subjects is of how many different ones the alerts are.
	Subjects int `json:"subjects"`
	// Actions are what the guard did about it, as "armed 192.0.2.1:80".
	Actions []string `json:"actions,omitempty"`
	// Look is the command that shows more.
	Look string `json:"look"`
}

// MaxAlerts is how many alerts a Notification lists.
const MaxAlerts = 20

// An Alert is one rule that holds for one subject.
type Alert struct {
	Rule     string   `json:"rule"`
	Severity Severity `json:"severity"`
	// Subject is what it is of: a service, a filter, a resource, an instance.
	Subject string `json:"subject"`
	// Summary is a sentence without the subject, as "212 retransmitted SYNs in 1m".
	Summary   string  `json:"summary"`
	Value     float64 `json:"value"`
	Threshold float64 `json:"threshold"`
	Unit      string  `json:"unit,omitempty"`
	// Peak is the farthest that Value has gone since Since.
	Peak   float64           `json:"peak"`
	Labels map[string]string `json:"labels"`
	Since  time.Time         `json:"since"`
	Until  time.Time         `json:"until,omitzero"` // zero while it fires
}

// ErrRefused is wrapped by errors of a Receiver that trying again does not mend.
var ErrRefused = errors.New("refused for good")

// A Receiver delivers notifications to one place. An error that wraps ErrRefused
// is final; any other may be gone at the next try.
type Receiver interface {
	Send(ctx context.Context, n Notification) error
}

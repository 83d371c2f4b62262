package alert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// Guard is what an Alerter needs of the running guard. None of it waits.
type Guard interface {
	Status() *guard.Status
	Config() *guard.Config
	Note(guard.Entry)
}

// AlerterConfig is what an Alerter works with.
type AlerterConfig struct {
	Guard    Guard
	Host     string
	StateDir string
	Log      *slog.Logger
}

// An Alerter looks at a guard's status once a second, beside its control loop, and
// has delivered what is to be told.
type Alerter struct {
	cfg      AlerterConfig
	delivery *Delivery
	report   atomic.Pointer[Report]

	// Of Run alone.
	using   *guard.Config
	engine  *Engine
	saveErr string
	savedAt time.Time

	mu     sync.Mutex
	unsent []Undelivered // when the guard stops
}

const (
	lookEvery = time.Second
	// saveEvery is how old what is saved of a group that is open may be: peaks
	// change all the time.
	saveEvery = time.Minute
)

// NewAlerter returns an Alerter that has opened and read nothing.
func NewAlerter(cfg AlerterConfig) *Alerter {
	a := &Alerter{cfg: cfg}
	a.delivery = NewDelivery(DeliveryConfig{Undelivered: a.undelivered, Log: cfg.Log})
	a.report.Store(&Report{Groups: []Notification{}, Rules: []RuleReport{}, Receivers: []ReceiverHealth{}})
	return a
}

// Run works until ctx is done, and then saves what the next Run is to know.
func (a *Alerter) Run(ctx context.Context) error {
	now := time.Now()
	a.using = a.cfg.Guard.Config()
	a.engine = NewEngine(a.cfg.Host, a.using.Alerts)
	a.delivery.SetTargets(Targets(a.using.Alerts))
	old, err := loadState(a.cfg.StateDir)
	if err != nil {
		a.cfg.Log.Warn("alerts", "error", err)
	}
	a.engine.restore(now, old.Groups)
	a.delivery.Resume(old.Unsent)

	delivered := make(chan error, 1)
	go func() { delivered <- a.delivery.Run(ctx) }()
	ticks := time.NewTicker(lookEvery)
	defer ticks.Stop()
	for {
		a.look(time.Now())
		select {
		case <-ticks.C:
			continue
		case <-ctx.Done():
		}
		err := <-delivered
		a.save(time.Now())
		return err
	}
}

func (a *Alerter) look(now time.Time) {
	if cfg := a.cfg.Guard.Config(); cfg != a.using {
		a.using = cfg
		a.engine.SetConfig(now, cfg.Alerts)
		a.delivery.SetTargets(Targets(cfg.Alerts))
	}
	s := a.cfg.Guard.Status()
	news := a.engine.Evaluate(now, s)
	for _, n := range news {
		a.note(n)
		a.delivery.Enqueue(n)
	}
	if len(news) > 0 || len(a.engine.groups) > 0 && now.Sub(a.savedAt) >= saveEvery {
		a.save(now)
	}
	a.report.Store(a.engine.Report(now, s.Mode))
}

// save writes what is open. A disk that does not take it hinders nothing; the log
// has it once.
func (a *Alerter) save(now time.Time) {
	a.savedAt = now
	a.mu.Lock()
	unsent := slices.Clone(a.unsent)
	a.mu.Unlock()
	problem := ""
	if err := (saved{Groups: a.engine.save(), Unsent: unsent}).store(a.cfg.StateDir); err != nil {
		problem = err.Error()
	}
	if problem != "" && a.saveErr == "" {
		a.cfg.Log.Warn("after a restart, alerts may be told again", "error", problem)
	}
	a.saveErr = problem
}

// note writes into the journal that a group has begun or is over; what is between
// is told, and is no event.
func (a *Alerter) note(n Notification) {
	if n.State == Repeated {
		return
	}
	a.cfg.Guard.Note(guard.Entry{
		Event: guard.EventAlert, Subject: n.Group, To: string(n.State), Kind: string(n.Severity), Reason: journalText(&n),
	})
	a.cfg.Log.Info("alert", "group", n.Group, "state", n.State, "severity", n.Severity, "text", journalText(&n))
}

func journalText(n *Notification) string {
	var b strings.Builder
	for i := range n.Alerts[:min(len(n.Alerts), 3)] {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(what(&n.Alerts[i]) + ": " + n.Alerts[i].Summary)
	}
	if left := len(n.Alerts) + n.More - 3; left > 0 {
		fmt.Fprintf(&b, "; and %d more", left)
	}
	if n.State == Resolved {
		b.WriteString("; over after " + span(n.Until.Sub(n.Since)))
	}
	return clean(b.String(), 500)
}

// undelivered is called for what a receiver will not be told. What only the end of
// the guard has hindered waits for the next one.
func (a *Alerter) undelivered(u Undelivered) {
	if u.Reason == whyStopped && u.Notification.State != Test {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.unsent = append(a.unsent, u)
		return
	}
	a.cfg.Guard.Note(guard.Entry{
		Event: guard.EventUndelivered, Subject: u.Notification.Group, Receiver: u.Receiver, To: string(u.Notification.State),
		Kind: string(u.Notification.Severity), Reason: u.Reason,
	})
}

// Test has one receiver told that somebody tries it, and waits for that. Nothing is
// tried again.
func (a *Alerter) Test(ctx context.Context, name, who string) error {
	now := time.Now()
	targets := Targets(a.cfg.Guard.Config().Alerts)
	i := slices.IndexFunc(targets, func(t Target) bool { return t.Name == name })
	if i < 0 {
		var names []string
		for _, t := range targets {
			names = append(names, t.Name)
		}
		if len(names) == 0 {
			return errors.New("there are no receivers: name some in the configuration, under alerts.receivers")
		}
		return fmt.Errorf("no receiver %q; there are: %s", name, strings.Join(names, ", "))
	}
	err := targets[i].Receiver.Send(ctx, Notification{
		ID: runID(a.cfg.Host, now, "test"), Group: "test", Labels: map[string]string{}, State: Test,
		Severity: Info, Host: a.cfg.Host, Time: wall(now), Since: wall(now), Alerts: []Alert{}, Look: "lvsguard alerts",
	})
	a.cfg.Log.Info("a receiver was tried", "receiver", name, "by", who, "delivered", err == nil)
	if err != nil {
		return fmt.Errorf("receiver %s: %w", name, err)
	}
	return nil
}

// Report returns how alerts stand. It waits for nothing.
func (a *Alerter) Report() *Report {
	r := *a.report.Load()
	r.Receivers = a.delivery.Health()
	return &r
}

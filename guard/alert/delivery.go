package alert

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// How a delivery waits, and how long it keeps what it could not deliver.
const (
	sendDeadline = 10 * time.Second // of one try
	firstRetry   = time.Second      // doubling to
	lastRetry    = 5 * time.Minute
	// freshRetry is how long after the last try something new is tried, however
	// long the failures have made the pause.
	freshRetry = 15 * time.Second
	// keepFor and keepResolved are how old undelivered news become: that it is over
	// must reach those who heard that it began.
	keepFor      = time.Hour
	keepResolved = 24 * time.Hour
	// stopGrace is how long the last tries may take when the guard stops.
	stopGrace = 3 * time.Second

	maxQueued = 1000
	// maxTold is more than can be open at once, should the end of runs be lost.
	maxTold = 4 * maxQueued
	// A person is sent burst messages at once, and then one each refill, which
	// tells of all groups that have waited.
	burst  = 10
	refill = 30 * time.Second
)

// A Target is a receiver by its name, and what it wants to be told.
type Target struct {
	Name       string
	Receiver   Receiver
	Severities []Severity // empty: all
	Projects   []string   // empty: all
}

// wants says whether n is for t.
func (t *Target) wants(n *Notification) bool {
	if len(t.Severities) > 0 && !slices.Contains(t.Severities, n.Severity) {
		return false
	}
	if len(t.Projects) == 0 || slices.Contains(t.Projects, n.Labels["project"]) {
		return true
	}
	return slices.ContainsFunc(n.Alerts, func(a Alert) bool { return slices.Contains(t.Projects, a.Labels["project"]) })
}

// Targets makes the receivers of the configuration. Nothing is opened or read
// before the first message.
func Targets(cfg guard.AlertsConfig) []Target {
	var all []Target
	for _, r := range cfg.Receivers {
		t := Target{Name: r.Name, Severities: r.Severities, Projects: r.Projects}
		switch {
		case r.Slack != nil:
			t.Receiver = NewSlack(*r.Slack)
		case r.Mail != nil:
			t.Receiver = NewMail(*r.Mail)
		case r.Webhook != nil:
			t.Receiver = NewWebhook(*r.Webhook)
		case r.Alertmanager != nil:
			t.Receiver = NewAlertmanager(*r.Alertmanager, cfg.Repeat)
		case r.Command != nil:
			t.Receiver = NewCommand(*r.Command)
		}
		all = append(all, t)
	}
	return all
}

// Undelivered is a notification that a receiver will not be told.
type Undelivered struct {
	Receiver     string       `json:"receiver"`
	Notification Notification `json:"notification"`
	Reason       string       `json:"reason"`
}

// whyStopped is the reason where only the end of the guard has hindered it.
const whyStopped = "the guard stopped before it could be delivered"

// DeliveryConfig is what a Delivery starts with.
type DeliveryConfig struct {
	Targets []Target
	// Undelivered is called for what is given up. It must neither block nor call
	// the Delivery.
	Undelivered func(Undelivered)
	Log         *slog.Logger
}

// A Delivery brings notifications to receivers. Each has a queue and a worker of
// its own: one that hangs delays no other. A queue holds what still matters, so a
// newer notification of a run takes an older one's place; the order of a group's
// runs is kept.
type Delivery struct {
	cfg     DeliveryConfig
	changed chan struct{}

	mu      sync.Mutex
	workers []*worker // in the configuration's order
}

// NewDelivery returns a Delivery that accepts, and delivers once Run runs.
func NewDelivery(cfg DeliveryConfig) *Delivery {
	d := &Delivery{cfg: cfg, changed: make(chan struct{}, 1)}
	d.SetTargets(cfg.Targets)
	return d
}

// SetTargets takes the receivers of another configuration. One that keeps its
// name keeps its queue.
func (d *Delivery) SetTargets(targets []Target) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.workers
	d.workers = nil
	for _, t := range targets {
		i := slices.IndexFunc(old, func(w *worker) bool { return w.name == t.Name })
		if i < 0 {
			d.workers = append(d.workers, newWorker(t, d.cfg))
			continue
		}
		old[i].setTarget(t)
		d.workers = append(d.workers, old[i])
		old = slices.Delete(slices.Clone(old), i, i+1)
	}
	for _, w := range old {
		close(w.gone)
		w.giveUp("the configuration has this receiver no longer")
	}
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// Enqueue hands n to all receivers that want it. It never blocks.
func (d *Delivery) Enqueue(n Notification) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		w.enqueue(n)
	}
}

// Resume hands to each receiver that is still there what a guard before could not
// deliver to it.
func (d *Delivery) Resume(all []Undelivered) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, u := range all {
		for _, w := range d.workers {
			if w.name == u.Receiver {
				w.resume(u.Notification)
			}
		}
	}
}

// Run delivers until ctx is done. Then what is left is tried once more, for a few
// seconds, and what that does not deliver is given up.
func (d *Delivery) Run(ctx context.Context) error {
	// A send under way when ctx ends may finish within the grace.
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cancel) })()

	var running sync.WaitGroup
	defer running.Wait()
	for {
		d.mu.Lock()
		for _, w := range d.workers {
			if !w.started {
				w.started = true
				running.Go(func() { w.run(ctx, hard) })
			}
		}
		d.mu.Unlock()
		select {
		case <-d.changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// ReceiverHealth is how a receiver fares, since the guard's start.
type ReceiverHealth struct {
	Receiver  string `json:"receiver"`
	Queued    int    `json:"queued_notifications"`
	Delivered uint64 `json:"delivered_notifications"`
	// Superseded were overtaken by newer ones of the same run before they could be
	// delivered. Lost were given up: refused, too old, or more than fit.
	Superseded uint64 `json:"superseded_notifications"`
	Lost       uint64 `json:"lost_notifications"`
	FailedTry  uint64 `json:"failed_tries"`
	// FailingSince and Error are nil after a try that worked, and before the first.
	FailingSince  *time.Time `json:"failing_since"`
	Error         *string    `json:"error"`
	LastDelivered *time.Time `json:"last_delivered_at"`
}

// Health tells of all receivers, in the configuration's order.
func (d *Delivery) Health() []ReceiverHealth {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]ReceiverHealth, 0, len(d.workers))
	for _, w := range d.workers {
		all = append(all, w.snapshot())
	}
	return all
}

// A bundler is a Receiver whose messages people read: it can tell of many groups
// in one, and is told so when there are too many for one each.
type bundler interface {
	// SendMany tells of all, of which the first is the gravest that lasts.
	SendMany(ctx context.Context, all []Notification) error
}

// A partlyError says that a notification has reached some of those that a
// receiver tells, and never will the others.
type partlyError struct{ err error }

func (e *partlyError) Error() string { return e.err.Error() }
func (e *partlyError) Unwrap() error { return e.err }

// A laterError says how long a receiver wants to be left alone.
type laterError struct {
	err   error
	after time.Duration
}

func (e *laterError) Error() string { return e.err.Error() }
func (e *laterError) Unwrap() error { return e.err }

// A waiting notification.
type waiting struct {
	Notification
	order uint64 // of its run in the queue
	since time.Time
	tries int
}

func (e *waiting) expired(now time.Time) bool {
	if e.State == Resolved {
		return now.Sub(e.since) > keepResolved
	}
	return now.Sub(e.since) > keepFor
}

// before says which of two is delivered first: what has not been tried, so that
// one that a receiver cannot digest does not hold up the rest; the graver; the
// older.
func before(a, b *waiting) int {
	return cmp.Or(
		cmp.Compare(a.tries, b.tries),
		-cmp.Compare(rank(a.Severity), rank(b.Severity)),
		cmp.Compare(a.order, b.order),
	)
}

func rank(s Severity) int {
	switch s {
	case Critical:
		return 2
	case Warning:
		return 1
	}
	return 0
}

type worker struct {
	name string
	cfg  DeliveryConfig
	wake chan struct{}
	gone chan struct{} // closed when the configuration no longer has it

	started bool // of Delivery, under its lock

	mu     sync.Mutex
	target Target
	queue  []*waiting // without those being sent
	next   uint64     // order
	told   map[string]bool
	health ReceiverHealth

	// Of the worker's own goroutine.
	failures int
	lastTry  time.Time
	retryAt  time.Time
	firm     bool // retryAt is the receiver's wish
	tokens   float64
	tokensAt time.Time
}

func newWorker(t Target, cfg DeliveryConfig) *worker {
	return &worker{
		name: t.Name, cfg: cfg, target: t, tokens: burst,
		wake: make(chan struct{}, 1), gone: make(chan struct{}),
		told: make(map[string]bool), health: ReceiverHealth{Receiver: t.Name},
	}
}

func (w *worker) setTarget(t Target) {
	w.mu.Lock()
	w.target = t
	w.mu.Unlock()
	w.signal()
}

func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) snapshot() ReceiverHealth {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.health
	h.Queued = len(w.queue)
	return h
}

func (w *worker) enqueue(n Notification) {
	w.mu.Lock()
	defer w.mu.Unlock()
	same := w.indexOf(n.ID)
	// Who was told of a run is told the rest, too, whatever its severity is now.
	if same < 0 && !w.told[n.ID] && !w.target.wants(&n) {
		return
	}
	if n.State == Firing && n.Group != "" {
		// A run that is over and was never told of is no news once the next is here.
		w.queue = slices.DeleteFunc(w.queue, func(e *waiting) bool {
			past := e.Group == n.Group && e.ID != n.ID && e.State == Resolved && !w.told[e.ID]
			if past {
				w.health.Superseded++
			}
			return past
		})
		same = w.indexOf(n.ID)
	}
	now := time.Now()
	if same >= 0 {
		w.health.Superseded++
		e := w.queue[same]
		e.Notification, e.since = n, now
		w.signal()
		return
	}
	w.next++
	w.queue = append(w.queue, &waiting{Notification: n, order: w.next, since: now})
	w.shed()
	w.signal()
}

// resume takes n whatever the receiver wants now: it did when n was made.
func (w *worker) resume(n Notification) {
	w.mu.Lock()
	w.told[n.ID] = true
	w.mu.Unlock()
	w.enqueue(n)
}

func (w *worker) indexOf(id string) int {
	return slices.IndexFunc(w.queue, func(e *waiting) bool { return e.ID == id })
}

// shed gives up the mildest notifications, and the oldest of these, as long as
// there are too many.
func (w *worker) shed() {
	for len(w.queue) > maxQueued {
		least := slices.MinFunc(w.queue, func(a, b *waiting) int {
			return cmp.Or(cmp.Compare(rank(a.Severity), rank(b.Severity)), cmp.Compare(a.order, b.order))
		})
		w.queue = slices.DeleteFunc(w.queue, func(e *waiting) bool { return e == least })
		w.lose(least, "the receiver's queue is full")
	}
}

// lose accounts for what is given up. The lock is held.
func (w *worker) lose(e *waiting, reason string) {
	w.health.Lost++
	if e.State == Resolved {
		delete(w.told, e.ID)
	}
	if w.cfg.Undelivered != nil {
		w.cfg.Undelivered(Undelivered{Receiver: w.name, Notification: e.Notification, Reason: reason})
	}
}

func (w *worker) giveUp(reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.queue {
		w.lose(e, reason)
	}
	w.queue = nil
}

func (w *worker) run(ctx, hard context.Context) {
	for {
		next, wait := w.pick(time.Now())
		if next != nil {
			w.send(hard, next)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			w.finish(hard)
			return
		case <-w.gone:
			timer.Stop()
			w.giveUp("the configuration has this receiver no longer")
			return
		case <-w.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// finish tries what is left once, until a try fails.
func (w *worker) finish(hard context.Context) {
	for hard.Err() == nil {
		w.mu.Lock()
		next := w.take()
		w.mu.Unlock()
		if next == nil || !w.send(hard, next) {
			break
		}
	}
	w.giveUp(whyStopped)
}

// pick takes what is to be sent now off the queue, or says how long to wait.
func (w *worker) pick(now time.Time) (*batch, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = slices.DeleteFunc(w.queue, func(e *waiting) bool {
		expired := e.expired(now)
		if expired {
			w.lose(e, "it could not be delivered in time")
		}
		return expired
	})
	if len(w.queue) == 0 {
		return nil, math.MaxInt64
	}
	if wait := w.pause(now); wait > 0 {
		return nil, wait
	}
	if w.tokensAt.IsZero() {
		w.tokensAt = now
	}
	w.tokens = min(burst, w.tokens+now.Sub(w.tokensAt).Seconds()/refill.Seconds())
	w.tokensAt = now
	if _, people := w.target.Receiver.(bundler); people && w.tokens < 1 {
		return nil, time.Duration((1-w.tokens)*float64(refill)) + time.Millisecond
	}
	return w.take(), 0
}

// pause is how long failures make the worker wait.
func (w *worker) pause(now time.Time) time.Duration {
	until := w.retryAt
	fresh := slices.ContainsFunc(w.queue, func(e *waiting) bool { return e.tries == 0 })
	if soon := w.lastTry.Add(freshRetry); fresh && !w.firm && soon.Before(until) {
		until = soon
	}
	return until.Sub(now)
}

// take takes one notification off the queue, or for people after a burst all of
// them; nil if there is none. The lock is held.
func (w *worker) take() *batch {
	if len(w.queue) == 0 {
		return nil
	}
	b := &batch{to: w.target.Receiver}
	if _, people := b.to.(bundler); people && w.tokens < 2 && len(w.queue) > 1 {
		b.all, w.queue = w.queue, nil
		slices.SortFunc(b.all, func(x, y *waiting) int {
			return cmp.Or(cmp.Compare(b2i(x.State == Resolved), b2i(y.State == Resolved)), -cmp.Compare(rank(x.Severity), rank(y.Severity)), cmp.Compare(x.order, y.order))
		})
	} else {
		first := slices.MinFunc(w.queue, before)
		for _, e := range w.queue { // an earlier run of its group goes first
			if e.Group == first.Group && e.order < first.order {
				first = e
			}
		}
		w.queue = slices.DeleteFunc(w.queue, func(e *waiting) bool { return e == first })
		b.all = []*waiting{first}
	}
	for _, e := range b.all {
		if len(w.told) >= maxTold {
			clear(w.told)
		}
		w.told[e.ID] = true // even a try that fails may have arrived
	}
	return b
}

// A batch is what is sent in one try.
type batch struct {
	to  Receiver
	all []*waiting
}

// send tries to deliver b once and says whether the receiver can go on.
func (w *worker) send(hard context.Context, b *batch) bool {
	ctx, cancel := context.WithTimeout(hard, sendDeadline)
	defer cancel()
	if len(b.all) == 1 {
		return w.account(b.all, b.to.Send(ctx, b.all[0].Notification))
	}
	all := make([]Notification, len(b.all))
	for i, e := range b.all {
		all[i] = e.Notification
	}
	return w.account(b.all, b.to.(bundler).SendMany(ctx, all))
}

// account draws the conclusions from a try.
func (w *worker) account(all []*waiting, err error) bool {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(err, now)
	w.lastTry, w.firm = now, false

	_, partly := errors.AsType[*partlyError](err)
	switch {
	case err == nil || partly:
		w.failures, w.retryAt = 0, time.Time{}
		w.tokens--
		w.health.Delivered += uint64(len(all))
		w.health.LastDelivered = &now
		for _, e := range all {
			if e.State == Resolved || e.State == Test {
				delete(w.told, e.ID)
			}
		}
		return true
	case errors.Is(err, ErrRefused):
		w.failures, w.retryAt = 0, time.Time{}
		for _, e := range all {
			w.lose(e, clean(err.Error(), 200))
		}
		return true
	}
	w.failures++
	wait := min(firstRetry<<min(w.failures-1, 16), lastRetry)
	wait = time.Duration(float64(wait) * (0.8 + 0.2*rand.Float64()))
	if later, ok := errors.AsType[*laterError](err); ok {
		wait, w.firm = max(wait, min(later.after, lastRetry)), true
	}
	w.retryAt = now.Add(wait)
	for _, e := range all {
		e.tries++
		if w.indexOf(e.ID) >= 0 { // overtaken meanwhile
			w.health.Superseded++
			continue
		}
		w.queue = append(w.queue, e)
	}
	w.shed()
	return false
}

// note keeps the health, and logs where it turns.
func (w *worker) note(err error, now time.Time) {
	was := w.health.FailingSince
	if err == nil {
		if was != nil {
			w.cfg.Log.Info("an alert receiver works again", "receiver", w.name, "failing_since", *was)
		}
		w.health.FailingSince, w.health.Error = nil, nil
		return
	}
	text := clean(err.Error(), 200)
	w.health.FailedTry++
	w.health.Error = &text
	if was == nil {
		w.health.FailingSince = &now
		w.cfg.Log.Warn("an alert receiver fails: lvsguard alerts test "+w.name+" tries it", "receiver", w.name, "error", text)
	}
}

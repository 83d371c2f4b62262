package alert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A place is a receiver that does what a test wants, and notes what it is sent.
type place struct {
	mu   sync.Mutex
	got  []string
	fail func(ctx context.Context, n Notification) error // nil: works
}

func (p *place) Send(ctx context.Context, n Notification) error {
	p.mu.Lock()
	fail := p.fail
	p.mu.Unlock()
	if fail != nil {
		if err := fail(ctx, n); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, n.ID+" "+string(n.State))
	return nil
}

func (p *place) set(fail func(context.Context, Notification) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = fail
}

func (p *place) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// People read what crowd gets.
type crowd struct{ place }

func (c *crowd) SendMany(_ context.Context, all []Notification) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, fmt.Sprintf("%d groups", len(all)))
	return nil
}

func broken(context.Context, Notification) error { return errors.New("broken") }

func hangs(ctx context.Context, _ Notification) error {
	<-ctx.Done()
	return ctx.Err()
}

func news(id, group string, state State, severity Severity) Notification {
	return Notification{ID: id, Group: group, State: state, Severity: severity, Since: time.Now(), Time: time.Now()}
}

// A delivering is a Delivery that runs, inside of a synctest bubble.
type delivering struct {
	*Delivery
	stop func()

	mu   sync.Mutex
	lost []string
}

func deliver(t *testing.T, targets ...Target) *delivering {
	t.Helper()
	d := undelivering(targets...)
	d.run(t)
	return d
}

// undelivering accepts, and delivers nothing before it is run.
func undelivering(targets ...Target) *delivering {
	d := new(delivering)
	d.Delivery = NewDelivery(DeliveryConfig{
		Targets: targets, Log: slog.New(slog.DiscardHandler),
		Undelivered: func(u Undelivered) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.lost = append(d.lost, fmt.Sprintf("%s: %s %s: %s", u.Receiver, u.Notification.ID, u.Notification.State, u.Reason))
		},
	})
	return d
}

func (d *delivering) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(d.stop)
}

func want(t *testing.T, what string, got, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestDeliveryWants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all, grave, shop place
		d := undelivering(
			Target{Name: "all", Receiver: &all},
			Target{Name: "grave", Receiver: &grave, Severities: []Severity{Critical}},
			Target{Name: "shop", Receiver: &shop, Projects: []string{"shop"}})
		d.Enqueue(news("1", "g1", Firing, Warning))
		d.Enqueue(news("2", "g2", Firing, Critical))
		n := news("3", "project=shop", Firing, Info)
		n.Labels = map[string]string{"project": "shop"}
		d.Enqueue(n)
		n = news("4", "host=d1", Firing, Info)
		n.Alerts = []Alert{{}, {Labels: map[string]string{"project": "shop"}}}
		d.Enqueue(n)
		d.run(t) // only now: what comes first while it runs may be sent before what is graver comes
		synctest.Wait()
		// Its end is told to whom it was told, though it is only a warning now.
		d.Enqueue(news("2", "g2", Resolved, Warning))
		d.Enqueue(news("1", "g1", Resolved, Warning))
		synctest.Wait()
		want(t, "all", all.seen(), []string{"2 firing", "1 firing", "3 firing", "4 firing", "2 resolved", "1 resolved"})
		want(t, "grave", grave.seen(), []string{"2 firing", "2 resolved"})
		want(t, "shop", shop.seen(), []string{"3 firing", "4 firing"})
	})
}

// What is overtaken while a receiver is down is not told any more.
func TestDeliverySupersedes(t *testing.T) {
	tests := []struct {
		name  string
		steps []Notification // the first is tried and fails, the others wait
		want  []string
	}{
		{"repeated for firing", []Notification{
			news("x", "x", Firing, Critical), news("1", "g", Firing, Critical), news("1", "g", Repeated, Critical),
		}, []string{"1 repeated", "x firing"}},
		{"over before it was told", []Notification{
			news("x", "x", Firing, Critical), news("1", "g", Firing, Critical), news("1", "g", Resolved, Critical),
		}, []string{"1 resolved", "x firing"}},
		{"over while it was being told", []Notification{
			news("x", "x", Firing, Critical), news("x", "x", Resolved, Critical),
		}, []string{"x resolved"}},
		{"a run that nobody heard of, and the next", []Notification{
			news("x", "x", Firing, Critical), news("1", "g", Firing, Critical), news("1", "g", Resolved, Critical),
			news("2", "g", Firing, Critical),
		}, []string{"2 firing", "x firing"}},
		{"a run that was tried, and the next", []Notification{
			news("x", "x", Firing, Critical), news("x", "x", Resolved, Critical), news("y", "x", Firing, Critical),
		}, []string{"x resolved", "y firing"}},
		{"graver first, and a group in its order", []Notification{
			news("x", "x", Firing, Info), news("1", "g1", Firing, Info), news("2", "g2", Firing, Warning),
			news("3", "g1", Firing, Critical),
		}, []string{"1 firing", "3 firing", "2 firing", "x firing"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p place
				p.set(broken)
				d := deliver(t, Target{Name: "p", Receiver: &p})
				for _, n := range tt.steps {
					d.Enqueue(n)
					synctest.Wait()
				}
				p.set(nil)
				time.Sleep(time.Minute)
				want(t, "delivered", p.seen(), tt.want)
			})
		})
	}
}

// The order of what waits is the one above, whatever failed before: here the
// tries of a receiver that comes back after a while.
func TestDeliveryRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p place
		var tries []time.Duration
		start := time.Now()
		p.set(func(context.Context, Notification) error {
			tries = append(tries, time.Since(start).Round(time.Second))
			return errors.New("broken")
		})
		d := deliver(t, Target{Name: "p", Receiver: &p})
		d.Enqueue(news("1", "g", Firing, Critical))
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		// 1 s doubling to 5 min, up to a fifth less each, until it is an hour old.
		if n := len(tries); n < 18 || n > 24 || tries[0] != 0 || tries[1] > time.Second || tries[n-1] > time.Hour {
			t.Errorf("%d tries: %v", n, tries)
		}
		want(t, "lost", d.lost, []string{"p: 1 firing: it could not be delivered in time"})
		h := d.Health()[0]
		if h.Lost != 1 || h.Queued != 0 || h.FailedTry != uint64(len(tries)) || h.Error == nil || *h.Error != "broken" || !h.FailingSince.Equal(start) {
			t.Errorf("health %+v", h)
		}

		// After an hour of failures, something new is tried within seconds.
		p.set(nil)
		d.Enqueue(news("2", "g", Firing, Critical))
		time.Sleep(freshRetry + time.Second)
		want(t, "delivered", p.seen(), []string{"2 firing"})
		if h := d.Health()[0]; h.FailingSince != nil || h.Error != nil || h.Delivered != 1 || h.LastDelivered == nil {
			t.Errorf("health %+v", h)
		}
	})
}

// That it is over is told a day later, too.
func TestDeliveryKeepsResolved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p place
		d := deliver(t, Target{Name: "p", Receiver: &p})
		d.Enqueue(news("1", "g", Firing, Critical))
		synctest.Wait()
		p.set(broken)
		d.Enqueue(news("1", "g", Resolved, Critical))
		time.Sleep(20 * time.Hour)
		p.set(nil)
		time.Sleep(lastRetry)
		want(t, "delivered", p.seen(), []string{"1 firing", "1 resolved"})
	})
}

func TestDeliveryRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p place
		p.set(func(_ context.Context, n Notification) error {
			if n.ID == "1" {
				return fmt.Errorf("it answers 404: %w", ErrRefused)
			}
			return nil
		})
		d := deliver(t, Target{Name: "p", Receiver: &p})
		d.Enqueue(news("1", "g1", Firing, Critical))
		d.Enqueue(news("2", "g2", Firing, Critical))
		synctest.Wait()
		want(t, "delivered", p.seen(), []string{"2 firing"})
		want(t, "lost", d.lost, []string{"p: 1 firing: it answers 404: refused for good"})
	})
}

// One that a receiver cannot digest holds up none of the others.
func TestDeliveryPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p place
		p.set(func(_ context.Context, n Notification) error {
			if n.ID == "poison" {
				return errors.New("it answers 500")
			}
			return nil
		})
		d := deliver(t, Target{Name: "p", Receiver: &p})
		d.Enqueue(news("poison", "g", Firing, Critical))
		for i := range 20 {
			time.Sleep(time.Minute)
			id := fmt.Sprint(i)
			d.Enqueue(news(id, id, Firing, Info))
			time.Sleep(freshRetry + time.Second)
			if got := p.seen(); len(got) != i+1 {
				t.Fatalf("after %d there are %v", i+1, got)
			}
		}
	})
}

// A receiver may say when it wants to be tried again, also for what is new.
func TestDeliveryLater(t *testing.T) {
	for _, tt := range []struct {
		name                   string
		after, atLeast, atMost time.Duration
	}{
		{name: "as it wishes", after: 90 * time.Second, atLeast: 90 * time.Second, atMost: 91 * time.Second},
		{name: "within bounds", after: 24 * time.Hour, atLeast: lastRetry, atMost: lastRetry + time.Second},
		{name: "never at once", after: 0, atLeast: 800 * time.Millisecond, atMost: time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p place
				var tries []time.Time
				p.set(func(context.Context, Notification) error {
					tries = append(tries, time.Now())
					return &laterError{err: errors.New("429"), after: tt.after}
				})
				d := deliver(t, Target{Name: "p", Receiver: &p})
				d.Enqueue(news("1", "g1", Firing, Critical))
				synctest.Wait()
				p.set(func(context.Context, Notification) error { tries = append(tries, time.Now()); return nil })
				d.Enqueue(news("2", "g2", Firing, Critical))
				time.Sleep(time.Hour)
				synctest.Wait()
				if gap := tries[1].Sub(tries[0]); gap < tt.atLeast || gap > tt.atMost {
					t.Errorf("tried again after %v", gap)
				}
			})
		})
	}
}

// A receiver hangs for ten minutes, while a thousand groups come, go and come
// again. Nobody waits, the queue stays small, another receiver is told all the
// time, and in the end what still matters is told.
func TestDeliveryHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p, other place
		p.set(hangs)
		d := deliver(t, Target{Name: "p", Receiver: &p}, Target{Name: "other", Receiver: &other})
		const groups = 300
		last := make(map[string]State)
		var before, after runtime.MemStats
		for second := 0; second < 600; second += 20 {
			if second == 60 {
				runtime.GC()
				runtime.ReadMemStats(&before)
			}
			at := time.Now()
			for g := range groups {
				run, state := second/300, []State{Firing, Repeated, Resolved}[second%300/100]
				n := news(fmt.Sprint(g, "/", run), fmt.Sprint(g), state, Critical)
				last[n.ID] = state
				d.Enqueue(n)
			}
			if took := time.Since(at); took != 0 {
				t.Fatalf("enqueuing waited %v", took)
			}
			time.Sleep(20 * time.Second)
			if q := d.Health()[0].Queued; q > maxQueued {
				t.Fatalf("%d are queued", q)
			}
			other.mu.Lock()
			if len(other.got) < groups-100 { // some come so fast that they are overtaken
				t.Fatalf("the other receiver was told of %d", len(other.got))
			}
			other.got = other.got[:0]
			other.mu.Unlock()
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
			t.Errorf("the heap has grown by %d bytes", grown)
		}
		p.set(nil)
		time.Sleep(lastRetry + sendDeadline)

		// All second runs; of the first only those that had been tried.
		got := make(map[string]int)
		for _, s := range p.seen() {
			got[s]++
		}
		first := 0
		for id, state := range last {
			n := got[id+" "+string(state)]
			if id[len(id)-1] == '1' && n != 1 {
				t.Errorf("%s %s was told %d times", id, state, n)
			}
			if id[len(id)-1] == '0' {
				first += n
			}
		}
		if first > 60 || len(got) != groups+first {
			t.Errorf("%d were told, %d of the first runs", len(got), first)
		}
	})
}

// People are not flooded: after a burst one message tells of all groups.
func TestDeliveryStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var people crowd
		var program place
		d := deliver(t, Target{Name: "people", Receiver: &people}, Target{Name: "program", Receiver: &program})
		for i := range 1000 {
			id := fmt.Sprint(i)
			d.Enqueue(news(id, id, Firing, Warning))
		}
		synctest.Wait()
		time.Sleep(refill + time.Second)
		got := people.seen()
		told := 0
		for _, s := range got {
			var n int
			if _, err := fmt.Sscanf(s, "%d groups", &n); err != nil {
				n = 1
			}
			told += n
		}
		if len(got) > burst+1 || told != 1000 {
			t.Errorf("people got %d messages of %d groups: %v", len(got), told, got)
		}
		if got := program.seen(); len(got) != 1000 {
			t.Errorf("the program got %d", len(got))
		}
		// A storm that lasts.
		for i := range 600 {
			id := fmt.Sprint("more", i)
			d.Enqueue(news(id, id, Firing, Warning))
			time.Sleep(time.Second)
		}
		if n := len(people.seen()) - len(got); n < 15 || n > 22 {
			t.Errorf("%d messages in ten minutes of storm", n)
		}
	})
}

func TestDeliveryFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p place
		p.set(hangs)
		d := deliver(t, Target{Name: "p", Receiver: &p})
		d.Enqueue(news("tried", "tried", Firing, Critical))
		synctest.Wait()
		for i := range maxQueued {
			id := fmt.Sprint(i)
			d.Enqueue(news(id, id, Firing, Critical))
		}
		d.Enqueue(news("mild", "mild", Firing, Warning))
		d.Enqueue(news("grave", "grave", Firing, Critical))
		want(t, "lost", d.lost, []string{
			"p: mild firing: the receiver's queue is full",
			"p: 0 firing: the receiver's queue is full",
		})
		p.set(nil)
	})
}

// When the guard stops, what is left is tried once, and is over soon even if the
// receiver hangs.
func TestDeliveryStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var back, hung place
		back.set(broken)
		hung.set(hangs)
		d := deliver(t, Target{Name: "back", Receiver: &back}, Target{Name: "hung", Receiver: &hung})
		d.Enqueue(news("1", "g1", Resolved, Critical))
		d.Enqueue(news("2", "g2", Resolved, Critical))
		synctest.Wait()
		back.set(nil)
		start := time.Now()
		d.stop()
		if took := time.Since(start); took > stopGrace+time.Second {
			t.Errorf("the stop took %v", took)
		}
		want(t, "delivered", back.seen(), []string{"2 resolved", "1 resolved"})
		slices.Sort(d.lost)
		want(t, "lost", d.lost, []string{
			"hung: 1 resolved: the guard stopped before it could be delivered",
			"hung: 2 resolved: the guard stopped before it could be delivered",
		})
	})
}

func TestDeliverySetTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var old, same, mended, added place
		old.set(broken)
		same.set(broken)
		d := deliver(t, Target{Name: "old", Receiver: &old}, Target{Name: "same", Receiver: &same})
		d.Enqueue(news("1", "g1", Firing, Critical))
		synctest.Wait()
		d.SetTargets([]Target{{Name: "same", Receiver: &mended}, {Name: "added", Receiver: &added}})
		d.Enqueue(news("2", "g2", Firing, Critical))
		time.Sleep(time.Minute)
		want(t, "same", mended.seen(), []string{"2 firing", "1 firing"})
		want(t, "added", added.seen(), []string{"2 firing"})
		want(t, "lost", d.lost, []string{"old: 1 firing: the configuration has this receiver no longer"})
		if h := d.Health(); len(h) != 2 || h[0].Receiver != "same" || h[1].Receiver != "added" {
			t.Errorf("health %+v", h)
		}
	})
}

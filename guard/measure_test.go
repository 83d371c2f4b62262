package guard

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
)

// What was measured is of the last look, and a later one does not change it.
func TestMeasure(t *testing.T) {
	w := newWorld(t, "mode: auto\nproject: shop")
	if m := w.Measure(); m.Tally.Ticks != 0 || m.Counted != nil || m.Served != nil {
		t.Errorf("before the first look: %+v", m)
	}
	w.ipvs.services = []ipvs.Service{serviceAt(web)}
	w.load[web] = Counters{SYN: 5000, Suspect: 4900}
	w.tick(2)
	before := w.Measure()
	if before.Version != "test" || before.Mode != Auto || before.Config.Project != "shop" || len(before.Served) != 1 || before.Served[0].RealServers[0].ActiveConn != 3 {
		t.Errorf("measured: %+v", before)
	}
	if n := before.Counted.Services[web].SYN.Packets; n != 5000 || before.Tally.Ticks != 2 {
		t.Errorf("%d SYNs, %+v", n, before.Tally)
	}
	w.table.fail = errors.New("refused")
	w.ipvs.services = nil
	w.tick(6)
	if before.Tally.Failures != 0 || before.Counted.Services[web].SYN.Packets != 5000 || len(before.Served) != 1 {
		t.Errorf("what was measured has changed: %+v", before)
	}
	after := w.Measure()
	if after.Tally.Failures == 0 || after.Served != nil || len(after.Leases) != 1 {
		t.Errorf("measured after that: %+v", after)
	}
	w.table.failRead = errors.New("cannot be read")
	w.tick(1)
	if m := w.Measure(); m.Counted != nil || m.Sample.Unknown[SourceNft] == "" {
		t.Errorf("what cannot be read is %+v", m.Counted)
	}
}

// The kernel's events are counted; what has been handed out does not change.
func TestMeasureEvents(t *testing.T) {
	w := newWorld(t, "")
	w.noteEvents(w.now, []pressure.Event{{Kind: pressure.EventOOMKill, Count: 2}, {Kind: pressure.EventOOMKill, Count: 1}})
	w.publish(w.now)
	before := w.Measure().Tally.Events
	w.noteEvents(w.now, []pressure.Event{{Kind: pressure.EventOOMKill, Count: 4}})
	w.noteEvents(w.now, nil)
	w.publish(w.now)
	if after := w.Measure().Tally.Events; before[pressure.EventOOMKill] != 3 || after[pressure.EventOOMKill] != 7 {
		t.Errorf("%v, then %v", before, after)
	}
}

// Who works beside the control loop can say that it cannot.
func TestSetTrouble(t *testing.T) {
	w := newWorld(t, "")
	w.tick(1)
	w.SetTrouble(SourceMetrics, "the port is in use")
	w.tick(2)
	if got := w.Status().Unknown[SourceMetrics]; got != "the port is in use" {
		t.Errorf("status says %q", got)
	}
	w.SetTrouble(SourceMetrics, "")
	w.tick(1)
	if got, there := w.Status().Unknown[SourceMetrics]; there {
		t.Errorf("status still says %q", got)
	}
	var said []string
	for len(w.journal.queue) > 0 {
		if e := <-w.journal.queue; e.Source == SourceMetrics {
			said = append(said, string(e.From)+">"+e.To+": "+e.Reason)
		}
	}
	if diff := cmp.Diff([]string{">unknown: the port is in use", "unknown>: "}, said); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// Only a guard that has a table speaks of leases when it stops.
func TestStopWords(t *testing.T) {
	for config, want := range map[string]string{"": "leases lapse within 1m0s", "role: host": ""} {
		w := newWorld(t, config)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := errors.Join(w.Run(ctx), w.Close()); err != nil {
			t.Fatal(err)
		}
		var last Entry
		for e, err := range ReadJournal(w.opts.StateDir, time.Time{}) {
			if err != nil {
				t.Fatal(err)
			}
			last = e
		}
		if last.Event != EventStop || last.Reason != want {
			t.Errorf("with %q the journal ends with %s %q, want %q", config, last.Event, last.Reason, want)
		}
	}
}

// The section cannot be changed while the guard runs, and that is said.
func TestReloadMetrics(t *testing.T) {
	w := newWorld(t, "")
	err := w.reload(w.now, mustParse(t, "metrics: {listen: '127.0.0.1:9102'}"), nil)
	if err == nil || !strings.Contains(err.Error(), "metrics: a reload cannot change it") {
		t.Errorf("reload: %v", err)
	}
	if w.Config().Metrics.Listen != "127.0.0.1:9101" || w.Measure().ConfigError == nil {
		t.Error("it was taken, or nothing tells that it was not")
	}
}

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := ParseConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

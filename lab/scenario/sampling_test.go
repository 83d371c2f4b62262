//go:build lab

package scenario

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/lab/site"
)

// queued is how many packets wait in the director's packet queue, and whether it
// has one.
func queued(t *testing.T, d *site.Director) (n uint64, there bool) {
	t.Helper()
	var text []byte
	err := d.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(text))
	if len(words) < 3 {
		return 0, false
	}
	if n, err = strconv.ParseUint(words[2], 10, 64); err != nil {
		t.Fatal(err)
	}
	return n, true
}

// TestSampling samples a flood by a queue, from its onset on. Whatever becomes of
// the guard then, nobody else's packets wait, and of the flood's none is lost but
// what waited in the queue; each is counted once.
func TestSampling(t *testing.T) {
	const (
		most = 64 // that a queue holds
		lean = auto + "handshakes: {enabled: false}\n"
	)
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		guard := d.StartGuard(lean)
		if st := d.Status().Sampling; st == nil || st.Way == nil || *st.Way != "nft_queue" || st.Now {
			t.Fatalf("when all is calm: %+v", st)
		}
		g := newGauge(t, d)
		f := s.Attacker.Flood(night)
		site.Wait(t, 40*time.Second, "samples are taken", func() bool {
			st := d.Status().Sampling
			return st.Now && *st.Received > most
		})
		if lost := *d.Status().Sampling.Lost; lost != 0 {
			t.Errorf("the queue has lost %d packets", lost)
		}
		g.drops(20 * time.Second)

		guard.Signal(unix.SIGSTOP)
		site.Wait(t, 10*time.Second, "the queue is full", func() bool { n, _ := queued(t, d); return n == most })
		g.drops(5 * time.Second)
		if served := s.Client.Get(20); served != 20 {
			t.Errorf("with the guard stopped, %d of 20 requests served", served)
		}
		if n, _ := queued(t, d); n > most {
			t.Errorf("a guard that is stopped holds %d packets", n)
		}
		guard.Kill()
		site.Wait(t, 5*time.Second, "the queue is gone", func() bool { _, there := queued(t, d); return !there })
		g.drops(5 * time.Second)
		sent := f.Stop()
		site.Wait(t, 5*time.Second, "all but what waited has been counted", func() bool {
			return g.suspect() <= sent && g.suspect() >= sent-most
		})
		t.Logf("of %d packets %d were counted", sent, g.suspect())

		// Somebody has taken the queue while there was no guard.
		var other *capture.Queue
		if err := d.Do(func() (err error) {
			other, err = capture.OpenQueue(capture.QueueConfig{Number: 5})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		d.StartGuard(lean)
		st := d.Status().Sampling
		if st.Way == nil || *st.Way != "af_packet" || !strings.Contains(st.Reason, "queue 5: ") {
			t.Errorf("with the queue taken: %+v", st)
		}
		t.Logf("with the queue taken: %s", st.Reason)
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}, site.DR4)
}

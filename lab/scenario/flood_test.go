//go:build lab

package scenario

import (
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

// TestFloodIsDropped is the main job in short: a flood is seen, dropped, and over.
func TestFloodIsDropped(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		master := s.Master()
		master.StartGuard("mode: auto\ndetect: {rate: 300, for: 1s, clear_for: 3s}\n")
		attack := s.Attacker.Flood(flood.Config{Rate: 2000})
		master.WaitVerdict(0, "flood", 10*time.Second)

		admitted, sent := master.Admitted(), attack.Sent()
		const requests = 20
		if served := s.Client.Get(requests); served != requests {
			t.Errorf("%d of %d requests served under flood", served, requests)
		}
		site.Wait(t, limit, "5000 more packets", func() bool { return attack.Sent() >= sent+5000 })
		admitted, sent = master.Admitted()-admitted-requests, attack.Stop()-sent
		if admitted*100 > int(sent) {
			t.Errorf("%d of %d packets admitted while armed", admitted, sent)
		}

		master.WaitVerdict(0, "calm", 10*time.Second)
	}, site.DR4, site.NAT6)
}

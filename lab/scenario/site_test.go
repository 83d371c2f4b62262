//go:build lab

package scenario

import (
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

// limit is what anything on the site may take that VRRP has a part in.
const limit = 20 * time.Second

func TestSiteServes(t *testing.T) {
	t.Parallel() // its sites are mostly built
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		if served := s.Client.Get(20); served != 20 {
			t.Errorf("%d of 20 requests served", served)
		}
		if got := s.Master().Admitted(); got < 20 {
			t.Errorf("IPVS scheduled %d connections of at least 20", got)
		}
		if got := s.Backup().Admitted(); got != 0 {
			t.Errorf("the backup scheduled %d connections", got)
		}
	}, site.Variants()...)
}

func TestSiteFailsOver(t *testing.T) {
	t.Parallel() // it mostly waits
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		first := s.Master()
		second := s.FailOver()
		if first == second {
			t.Fatalf("%s is still master", first.Name)
		}
		site.Wait(t, limit, "a client is served by the new master", func() bool { return s.Client.Get(1) == 1 })
		if served := s.Client.Get(20); served != 20 {
			t.Errorf("%d of 20 requests served", served)
		}
		first.StartKeepalived()
		site.Wait(t, limit, "the first master is master again", func() bool { return s.Master() == first })

		first.Cable("down")
		site.Wait(t, limit, "the other takes over from one that is cut off", func() bool { return s.Master() == second })
		first.Cable("up")
		site.Wait(t, limit, "the first master is master once more", func() bool { return s.Master() == first })
		site.Wait(t, limit, "it serves", func() bool { return s.Client.Get(1) == 1 })
	}, site.DR4, site.NAT6)
}

// TestSiteOfManyKinds has every kind of virtual service, and two instances with a master each.
func TestSiteOfManyKinds(t *testing.T) {
	config := site.Config{Instances: 2, Services: []site.Service{
		{Port: 80}, {Port: 8080}, {Instance: 1, Port: 0}, {Port: 81, Mark: 7}, {Port: 53, UDP: true},
	}}
	site.Each(t, config, func(t *testing.T, s *site.Site) {
		if s.MasterOf(0) == s.MasterOf(1) {
			t.Errorf("%s is master of both instances", s.MasterOf(0).Name)
		}
		for i := range 4 {
			if served := s.Client.GetFrom(s.Target(i), 5); served != 5 {
				t.Errorf("%s: %d of 5 requests served", s.Key(i), served)
			}
		}
	}, site.DR4, site.DR6)
}

// TestNightUnguarded is that night: a flood of SYNs from everywhere, and nobody to drop it. Each is a connection.
func TestNightUnguarded(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		sent := s.Attacker.Flood(flood.Config{Count: 5000}).Wait()
		master := s.Master()
		site.Wait(t, limit, "the flood is in the connection table", func() bool {
			return float64(master.IPVSEntries()) > 0.95*float64(sent)
		})
	}, site.Variants()...)
}

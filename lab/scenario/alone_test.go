//go:build lab

package scenario

import (
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/lab/site"
)

// TestAloneModuleLoadedLater starts the guard on a director whose kernel has no IPVS yet.
func TestAloneModuleLoadedLater(t *testing.T) {
	s := site.New(t, site.Config{Idle: true})
	director := s.Directors[0]
	director.Run("modprobe", "--remove", "ip_vs_rr", "ip_vs_wlc", "ip_vs")

	director.StartGuard("mode: auto\n")
	status := director.Status()
	if len(status.Services) != 0 || status.Unknown["ipvs"] == "" {
		t.Errorf("without IPVS: services %+v, unknown %q; want none, and why", status.Services, status.Unknown)
	}

	director.StartKeepalived() // it loads the module
	site.Wait(t, limit, "IPVS serves", func() bool { return director.Serves() })
	took := site.Wait(t, 10*time.Second, "the guard knows the service", func() bool { return director.Service(0).Verdict == "calm" })
	t.Logf("known %s after it was there", took.Round(100*time.Millisecond))
}

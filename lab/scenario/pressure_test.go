//go:build lab

package scenario

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

// TestPersistentFlood floods a persistent service, which keeps a template for each spoofed source, and keeps that ten
// times as long as the connection. The forecast reckons with both.
func TestPersistentFlood(t *testing.T) {
	const (
		halfOpen, persistent = 60, 600 // seconds
		rate                 = 1000
	)
	site.Each(t, site.Config{Services: []site.Service{{Port: 0}}}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		service := strings.TrimSuffix(s.Target(0).String(), "80") + "0"
		d.Run("ipvsadm", "--edit-service", "--tcp-service", service, "--scheduler", "rr", "--persistent", strconv.Itoa(persistent))
		d.StartGuard(observe)

		f := s.Attacker.Flood(flood.Config{Rate: rate, For: 5 * time.Minute})
		site.Wait(t, 60*time.Second, "ten seconds of flood", func() bool { return f.Sent() >= 10*rate })
		v := pressureOf(t, d).IPVS
		perSecond := float64(f.Stop()) / time.Since(f.Began).Seconds()
		if v == nil || v.Forecast == nil || v.Templates == nil {
			t.Fatalf("no forecast: %+v", v)
		}
		want := perSecond * (halfOpen + persistent)
		t.Logf("a flood of %.0f/s: %d connections, %d templates, to come to %.0f entries; want %.0f",
			perSecond, *v.Connections, *v.Templates, v.Forecast.Entries, want)
		if v.Forecast.Entries < 0.7*want || v.Forecast.Entries > 1.4*want {
			t.Errorf("a flood of %.0f/s is to come to %.0f entries, want about %.0f", perSecond, v.Forecast.Entries, want)
		}

		// The flood is over, its templates stay.
		var report guard.PressureReport
		site.Wait(t, 15*time.Second, "the guard's count of templates is ipvsadm's", func() bool {
			report = pressureOf(t, d)
			return report.IPVS.Templates != nil && int(*report.IPVS.Templates) == templatesOf(t, d)
		})
		if n := *report.IPVS.Templates; n < 9*rate {
			t.Errorf("%d templates, of at least %d sources", n, 10*rate)
		}
	}, site.DR4)
}

// templatesOf is ipvsadm's number of persistence templates on the director.
func templatesOf(t *testing.T, d *site.Director) int {
	t.Helper()
	sum := 0
	for line := range strings.Lines(d.Run("ipvsadm", "--list", "--numeric", "--persistent-conn")) {
		// ->, address, weight, PersistConn, ActiveConn, InActConn
		fields := strings.Fields(line)
		if len(fields) != 6 || fields[0] != "->" || fields[1] == "RemoteAddress:Port" {
			continue
		}
		n, err := strconv.Atoi(fields[3])
		if err != nil {
			t.Fatalf("ipvsadm: %q: %v", line, err)
		}
		sum += n
	}
	return sum
}

//go:build lab

package live

import (
	"fmt"
	"os"
	"os/signal"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/lab/flood"
	"github.com/lvsguard/lvsguard/lab/site"
)

// TestLive shows what a director's guard says while a flood comes and goes, until Ctrl-C.
func TestLive(t *testing.T) {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)

	s := site.New(t, site.Config{})
	s.Master().StartGuard("mode: auto\ndetect: {rate: 500, clear_for: 10s}\n")
	fmt.Printf("A pair of directors serves %s. The flood begins; Ctrl-C ends it all.\n", s.Target(0))
	s.Attacker.Flood(flood.Config{For: 24 * time.Hour, Rate: 2000})
	if status := s.Master().AttachLvsguard("status", "--watch"); status != 0 && len(interrupted) == 0 {
		t.Errorf("status --watch: exit status %d", status)
	}
}

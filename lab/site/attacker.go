package site

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/lvsguard/lvsguard/lab/flood"
)

// An Attacker is where floods come from. They never leave the site.
type Attacker struct {
	*Host

	site *Site
}

// attackerGateway is the router's hardware address on the attacker's network.
var attackerGateway = net.HardwareAddr{0x02, 0, 0, 0, 0x04, 0x01}

func (a *Attacker) connect() error {
	return a.ip(plug("eth0", on(a.site.plan.attacker, far), at(a.site.plan.attacker, routerHost))...)
}

// A Flood is a flood that runs, or has run.
type Flood struct {
	Began time.Time

	attacker *Attacker
	sent     atomic.Uint64
	stop     chan struct{}
	stopped  atomic.Bool
	ended    chan struct{}
	err      error
}

// Flood starts a flood. Without targets it goes to the first service. It ends by its own bounds, by Stop, or with the
// test.
func (a *Attacker) Flood(config flood.Config) *Flood {
	a.t.Helper()
	if config.Targets == nil {
		config.Targets = append(config.Targets, a.site.Target(0))
	}
	config.Interface, config.Gateway = "eth0", attackerGateway
	f := &Flood{attacker: a, stop: make(chan struct{}), ended: make(chan struct{})}
	var generator *flood.Generator
	if err := a.Do(func() (err error) {
		generator, err = flood.New(config)
		return err
	}); err != nil {
		a.t.Fatalf("flood: %v", err)
	}
	f.Began = time.Now()
	go func() {
		defer close(f.ended)
		f.err = generator.Run(f.stop, &f.sent)
	}()
	a.t.Cleanup(func() { f.Stop() })
	return f
}

// Sent is the number of packets sent so far.
func (f *Flood) Sent() uint64 { return f.sent.Load() }

// Wait waits until the flood has ended by its own bounds, and gives the number of packets sent.
func (f *Flood) Wait() uint64 {
	f.attacker.t.Helper()
	<-f.ended
	if f.err != nil {
		f.attacker.t.Fatalf("flood: %v", f.err)
	}
	return f.Sent()
}

// Stop ends the flood, if it has not ended, and gives the number of packets sent.
func (f *Flood) Stop() uint64 {
	f.attacker.t.Helper()
	if !f.stopped.Swap(true) {
		close(f.stop)
	}
	return f.Wait()
}

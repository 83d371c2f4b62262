package main

import (
	"context"
	"iter"
	"log/slog"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
)

// A wire is a capture from interfaces, whose handshakes are followed.
type wire struct {
	live       *capture.Live
	trackers   *handshake.Trackers
	visibility handshake.Visibility
	filters    []handshake.Filter
	services   atomic.Pointer[[]handshake.Service]
}

// wireConfig says what a wire watches.
type wireConfig struct {
	interfaces []string
	workers    int // 0: one a core
	visibility handshake.Visibility
	handshake  handshake.Config
	recorder   capture.RecorderConfig
	log        *slog.Logger // nil: nobody hears of interfaces that come and go
}

func openWire(cfg wireConfig) (*wire, error) {
	w := &wire{visibility: cfg.visibility, filters: cfg.handshake.Choice.Filters}
	w.services.Store(&cfg.handshake.Choice.Services)
	var err error
	w.live, err = capture.OpenLive(capture.LiveConfig{
		Interfaces: cfg.interfaces, Services: w.addresses, Workers: cfg.workers, Recorder: cfg.recorder, Log: cfg.log,
	})
	if err != nil {
		return nil, err
	}
	// A worker that waits in the kernel holds a processor of Go's for a while, so
	// there is one for each, and some for whoever asks meanwhile. It stays so
	// when they are gone, which costs nothing.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), w.live.Workers()+2))
	cfg.handshake.Choice.Local = w.live.Local
	if w.trackers, err = handshake.NewTrackers(w.live.Workers(), cfg.handshake); err != nil {
		w.live.Close()
		return nil, err
	}
	boundGarbage()
	return w, nil
}

// addresses are those of the services, by which the interfaces are chosen.
func (w *wire) addresses() []netip.Addr {
	var all []netip.Addr
	for _, s := range *w.services.Load() {
		for _, at := range s.Addresses {
			all = append(all, at.Addr())
		}
	}
	return all
}

// Run follows the handshakes until ctx is done, and closes the capture.
func (w *wire) Run(ctx context.Context) error {
	defer w.live.Close()
	return w.follow(ctx)
}

func (w *wire) follow(ctx context.Context) error { return w.live.Run(ctx, w.trackers.Observe) }

// SetServices says which services are counted apart.
func (w *wire) SetServices(services []handshake.Service) error {
	w.services.Store(&services)
	return w.trackers.SetChoice(handshake.Choice{Filters: w.filters, Services: services, Local: w.live.Local})
}

// SetArmed says for which services SYNs with the signature are dropped. The
// kernel's filter counts those; what it lets through a moment longer, the
// trackers do.
func (w *wire) SetArmed(addresses []netip.AddrPort) error {
	w.trackers.SetArmed(addresses)
	return w.live.SetArmed(addresses)
}

// SetSampling says which share of the SYNs that the kernel's filter screens is
// recorded all the same. It counts the others; the trackers count these.
func (w *wire) SetSampling(share float64) error { return w.live.SetSampling(share) }

// Recent are the packets that were recorded from one time on and before another.
func (w *wire) Recent(from, to time.Time) (iter.Seq[capture.Packet], capture.Recorded) {
	return w.live.Recent(from, to)
}

// Figures tells how handshakes ended so far, and what the capture says of
// itself.
func (w *wire) Figures() ([]handshake.Figures, guard.Capture, error) {
	stats, err := w.live.Stats()
	if err != nil {
		return nil, guard.Capture{}, err
	}
	screened, err := w.live.Screened()
	if err != nil {
		return nil, guard.Capture{}, err
	}
	c := guard.Capture{Report: stats.Report(), Interfaces: w.live.Interfaces(), Notes: w.live.Notes()}
	c.Filter, c.FilterReason = w.live.Filter()
	figures := w.trackers.Snapshot(w.visibility)
	addScreened(figures, *w.services.Load(), screened)
	for i := range figures {
		figures[i].LowerBound = figures[i].LowerBound || c.Lossy()
	}
	return figures, c, nil
}

// addScreened adds what the kernel's filter counted of armed services. It
// knows nothing of other filters.
func addScreened(figures []handshake.Figures, services []handshake.Service, screened map[netip.AddrPort]uint64) {
	byName := make(map[string]uint64)
	for _, s := range services {
		for _, at := range s.Addresses {
			byName[s.Name] += screened[at]
		}
	}
	for i := range figures {
		if n := byName[figures[i].Name]; n > 0 {
			figures[i].Signature.Screened += n
			figures[0].Signature.Screened += n
		}
	}
}

package guard

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

// This file has the guard watch how handshakes end. That is told, and decides
// nothing: a guard that cannot capture guards all the same.

// HandshakesConfig says how handshakes are watched.
type HandshakesConfig struct {
	Enabled    bool          `yaml:"enabled"`
	Interfaces []string      `yaml:"interfaces"` // empty: those of the services' addresses, or the default route's
	Workers    int           `yaml:"workers"`    // 0: one a core
	Timeout    time.Duration `yaml:"timeout"`
	// Capacity is how many attempts may be pending, at 64 bytes each.
	Capacity   int                  `yaml:"capacity"`
	Visibility handshake.Visibility `yaml:"visibility"`
	// Filters are counted apart, besides each service and everything.
	Filters []string `yaml:"filters"`
	// TcpeekSocket is where the figures are to be had as tcpeek gives them;
	// empty for nowhere.
	TcpeekSocket string `yaml:"tcpeek_socket"`
}

// check tells what is wrong with c.
func (c *HandshakesConfig) check() error {
	bad := func(key, format string, args ...any) error {
		return badKey(fmt.Sprintf(format, args...), "handshakes", key)
	}
	if c.Workers < 0 || c.Workers > capture.MaxWorkers {
		return bad("workers", "want 0, for one a core, to %d", capture.MaxWorkers)
	}
	if c.Timeout < time.Second || c.Timeout > handshake.MaxTimeout {
		return bad("timeout", "want a duration from 1s to %s", handshake.MaxTimeout)
	}
	if c.Capacity < 1024 || c.Capacity > handshake.MaxCapacity {
		return bad("capacity", "want a number from 1024 to %d", handshake.MaxCapacity)
	}
	if _, err := handshake.ParseVisibility(string(c.Visibility)); err != nil {
		return bad("visibility", "%v", err)
	}
	filters, err := c.ParseFilters()
	if err != nil {
		return bad("filters", "%v", err)
	}
	if err := (&handshake.Choice{Filters: filters}).Validate(); err != nil {
		return bad("filters", "%v", err)
	}
	return nil
}

// ParseFilters reads the filters.
func (c *HandshakesConfig) ParseFilters() ([]handshake.Filter, error) {
	filters := make([]handshake.Filter, 0, len(c.Filters))
	for _, text := range c.Filters {
		f, err := handshake.ParseFilter(text)
		if err != nil {
			return nil, err
		}
		filters = append(filters, f)
	}
	return filters, nil
}

// Capture is what a Sample holds of the capture itself.
type Capture struct {
	capture.Report
	Interfaces []string `json:"interfaces,omitempty"`
	// Notes say what is not read of what was asked for, and why.
	Notes []string `json:"notes,omitempty"`
	// Filter is the kernel's: "ebpf", which hands up only what a handshake
	// needs, or "classic", which hands up every TCP segment; and why that.
	Filter       string `json:"kernel_filter,omitempty"`
	FilterReason string `json:"kernel_filter_reason,omitempty"`
}

// Handshakes is what the guard needs of a capture whose handshakes are
// followed, and which records packets.
type Handshakes interface {
	Following
	Recording
}

// Recording is the part of a capture that keeps packets. It can be asked by
// anyone at any time, and takes milliseconds for it. SetSampling says which share
// of the SYNs that are counted and not handed up, because their service is armed,
// is recorded all the same, 0 to 1; at first it is none.
type Recording interface {
	Recent(from, to time.Time) (iter.Seq[capture.Packet], capture.Recorded)
	SetSampling(share float64) error
}

// Following is the part of a capture that follows handshakes. Run works until
// ctx is done, and closes it.
type Following interface {
	Run(context.Context) error
	Figures() ([]handshake.Figures, Capture, error)
	SetServices([]handshake.Service) error
	SetArmed([]netip.AddrPort) error
}

// retryCapture is how soon a capture that could not be opened, or that ended,
// is opened again.
const retryCapture = 5 * time.Second

// A watch is the guard's hold on its capture. It belongs to the control loop.
type watch struct {
	capture Handshakes
	stop    context.CancelFunc
	ended   chan error
	tried   time.Time
	err     error

	services []Service // what it was told last
	armed    []netip.AddrPort
	share    float64 // of what is screened, that is recorded
	recent   recent
}

// readHandshakes brings the capture up to date with services and leases, and
// reads its figures.
func (d *Daemon) readHandshakes(ctx context.Context, now time.Time, services []Service, unknown map[Source]string) ([]handshake.Figures, *Capture) {
	w := &d.watch
	if !d.cfg.Handshakes.Enabled || d.opts.Kernel.OpenHandshakes == nil {
		return nil, nil
	}
	select {
	case err := <-w.ended:
		w.capture, w.err = nil, err
	default:
	}
	if w.capture == nil && (w.tried.IsZero() || lasted(now.Sub(w.tried), retryCapture)) {
		d.openHandshakes(ctx, now, services)
	}
	if w.capture == nil {
		unknown[SourceCapture] = w.err.Error()
		return nil, nil
	}
	err := d.tellHandshakes(services)
	var figures []handshake.Figures
	var c Capture
	if err == nil {
		figures, c, err = w.capture.Figures()
	}
	if err != nil {
		unknown[SourceCapture] = err.Error()
		return nil, nil
	}
	w.recent.add(now, figures)
	return figures, &c
}

func (d *Daemon) openHandshakes(ctx context.Context, now time.Time, services []Service) {
	w := &d.watch
	w.tried = now
	w.capture, w.err = d.opts.Kernel.OpenHandshakes(d.cfg.Handshakes, d.cfg.Evidence.recorder(), handshakeServices(services))
	if w.err != nil {
		w.capture = nil
		return
	}
	w.services, w.armed, w.share, w.recent = slices.Clone(services), nil, 0, recent{}
	ctx, w.stop = context.WithCancel(ctx)
	ended := make(chan error, 1)
	w.ended = ended
	running := w.capture
	d.tasks.Go(func() error {
		err := running.Run(ctx)
		if err == nil {
			err = fmt.Errorf("the capture has ended")
		}
		ended <- err
		return nil // whatever it was, the guard goes on
	})
}

// closeHandshakes ends the capture. The next look opens it again, if it is
// still wanted.
func (d *Daemon) closeHandshakes() {
	w := &d.watch
	if w.capture == nil {
		return
	}
	w.stop()
	*w = watch{}
}

// tellHandshakes says what is new about services and leases.
func (d *Daemon) tellHandshakes(services []Service) error {
	w := &d.watch
	if !slices.EqualFunc(services, w.services, sameToHandshakes) {
		if err := w.capture.SetServices(handshakeServices(services)); err != nil {
			return err
		}
		w.services = slices.Clone(services)
	}
	var armed []netip.AddrPort
	if dropsSigned(d.cfg.Signatures) {
		for _, s := range services {
			if d.policy.armed(s.Key) {
				armed = append(armed, s.Addresses...)
			}
		}
		slices.SortFunc(armed, netip.AddrPort.Compare)
		armed = slices.Compact(armed)
	}
	if slices.Equal(armed, w.armed) {
		return nil
	}
	if err := w.capture.SetArmed(armed); err != nil {
		return err
	}
	w.armed = armed
	return nil
}

func sameToHandshakes(a, b Service) bool {
	return a.Key == b.Key && a.Forwarding == b.Forwarding && slices.Equal(a.Addresses, b.Addresses)
}

// dropsSigned tells whether what the capture knows as a flood's signature is
// one of those that are dropped.
func dropsSigned(signatures []nft.Signature) bool {
	return slices.ContainsFunc(signatures, func(s nft.Signature) bool {
		return holds(s.Window, 0) && holds(s.Length, 40) && s.TTL == nil && s.Ports == nil
	})
}

func holds(r *nft.Range, n uint16) bool { return r == nil || r.Min <= n && n <= r.Max }

// handshakeServices are the services whose handshakes are counted: those that
// have addresses.
func handshakeServices(services []Service) []handshake.Service {
	var list []handshake.Service
	for _, s := range services {
		if len(s.Addresses) > 0 {
			list = append(list, handshake.Service{Name: s.Key.String(), Addresses: s.Addresses, Visibility: visibility(s.Forwarding)})
		}
	}
	return list
}

// HandshakeServices are those that IPVS serves.
func HandshakeServices(served []ipvs.Service) []handshake.Service {
	var services []Service
	for _, s := range served {
		if s.Key.Mark == 0 && s.Key.Protocol == ipvs.TCP {
			services = append(services, Service{Key: s.Key, Addresses: []netip.AddrPort{s.Key.Addr}, Forwarding: forwarding(s)})
		}
	}
	return handshakeServices(services)
}

// visibility tells from the forwarding method whether real servers answer
// through this director. Without real servers nobody answers, and nobody knows.
func visibility(forwarding string) handshake.Visibility {
	switch forwarding {
	case string(ipvs.NAT), string(ipvs.Local):
		return handshake.Both
	case "":
		return handshake.Auto
	}
	return handshake.Client
}

const (
	// recentFor is over how long a service's completion is told.
	recentFor = time.Minute
	// recentEvery is how often the figures of before are put down for it.
	recentEvery = 5 * time.Second
)

// recent keeps what the figures were within the last minute, by name.
type recent struct {
	readings []reading
	now      map[string]outcomes
}

type reading struct {
	at    time.Time
	ended map[string]outcomes
}

type outcomes struct{ success, failure uint64 }

func (r *recent) add(now time.Time, figures []handshake.Figures) {
	r.now = make(map[string]outcomes, len(figures))
	for _, f := range figures {
		r.now[f.Name] = outcomes{f.Success.Total, f.Failure.Total}
	}
	if n := len(r.readings); n > 0 && now.Sub(r.readings[n-1].at) < recentEvery {
		return
	}
	r.readings = append(r.readings, reading{now, r.now})
	for len(r.readings) > 1 && now.Sub(r.readings[0].at) > recentFor {
		r.readings = slices.Delete(r.readings, 0, 1)
	}
}

// completion is the share of the attempts that ended within the last minute
// and succeeded; nil if none did, or if nothing is known of the name.
func (r *recent) completion(name string) *float64 {
	if len(r.readings) == 0 {
		return nil
	}
	was, now := r.readings[0].ended[name], r.now[name]
	success, failure := float64(now.success-was.success), float64(now.failure-was.failure)
	if success+failure == 0 {
		return nil
	}
	share := success / (success + failure)
	return &share
}

// completions are those of all services, for the view.
func (r *recent) completions(services []Service) map[ipvs.Key]*float64 {
	m := make(map[ipvs.Key]*float64, len(services))
	for _, s := range services {
		m[s.Key] = r.completion(s.Key.String())
	}
	return m
}

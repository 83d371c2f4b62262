package pressure

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A ServersConfig tells how real servers are asked for their figures. Every field
// has a default.
type ServersConfig struct {
	// URLs are asked in this order, with {address} replaced by the server's
	// address (an IPv6 address in brackets). The first that gives figures is
	// asked first from then on. None: DefaultServerURLs.
	URLs []string
	// Interval is the time from the beginning of one round to the next one's, and
	// all that a round may take; 0: 2 s.
	Interval time.Duration
	// Timeout bounds the asking of one server, all its URLs together; 0: 1 s. It
	// must be shorter than Interval.
	Timeout time.Duration
	// Concurrent is how many servers are asked at a time; 0: 64.
	Concurrent int
	// MaxBytes bounds an answer; 0: 8 MiB.
	MaxBytes int64

	// CAFile is a PEM file of the authorities that sign the servers'
	// certificates; empty: the system's.
	CAFile string
	// ServerName is the name that the certificates must be for; empty: the
	// server's address.
	ServerName string
	// BearerTokenFile, or User with PasswordFile, is what a server is asked with.
	// The files are read again for each round.
	BearerTokenFile string
	User            string
	PasswordFile    string
}

// DefaultServerURLs are those of node_exporter and of lvsguard itself.
// node_exporter is asked for two of its collectors only, which is a third of the
// work for it and for us, and at last for all: it refuses to be asked for one that
// it has been started without.
func DefaultServerURLs() []string {
	return []string{
		"http://{address}:9100/metrics?collect[]=netstat&collect[]=meminfo",
		"http://{address}:9101/metrics",
		"http://{address}:9100/metrics",
	}
}

// A Server is what a real server has said of itself. A figure that is not known
// is nil: all of them where Unknown says why, and else those that the server's
// exporter does not tell.
type Server struct {
	Address netip.Addr `json:"address"`
	// Source is whose figures they are, "node_exporter" or "lvsguard", and URL
	// where they were got. Both are of the last good answer, and empty before it.
	Source string `json:"source"`
	URL    string `json:"url"`
	// Read is when the last good answer came; nil: never.
	Read *time.Time `json:"read"`

	SyncookiesSent     *ServerCount `json:"syncookies_sent"`
	SyncookiesReceived *ServerCount `json:"syncookies_received"`
	SyncookiesFailed   *ServerCount `json:"syncookies_failed"`
	ListenOverflows    *ServerCount `json:"listen_overflows"`
	ListenDrops        *ServerCount `json:"listen_drops"`
	// RequestQueueFullCookies and RequestQueueFullDrops count the SYNs that found
	// a full queue of half-open connections, by what became of them.
	RequestQueueFullCookies *ServerCount `json:"request_queue_full_cookies"`
	RequestQueueFullDrops   *ServerCount `json:"request_queue_full_drops"`
	// AcceptQueueShare is that of the fullest accept queue.
	AcceptQueueShare *float64 `json:"accept_queue_share"`
	MemoryAvailable  *uint64  `json:"memory_available_bytes"`
	MemoryTotal      *uint64  `json:"memory_total_bytes"`

	// UnknownSince is from when on nothing is known, and Unknown is why. Text of
	// the server's in it is escaped and cut.
	UnknownSince *time.Time `json:"unknown_since"`
	Unknown      string     `json:"unknown"`
}

// A ServerCount is one of a server's counts.
type ServerCount struct {
	Total uint64 `json:"total"`
	// PerSecond is null at the first answer, and when the count was begun anew.
	PerSecond *float64 `json:"per_second"`
}

// Servers asks real servers for their figures, in rounds. A server that does not
// answer holds up neither the others nor the round.
type Servers struct {
	cfg    ServersConfig
	urls   []serverURL
	client *http.Client

	mu      sync.Mutex // never held while anything is waited for
	targets []*target  // by address
}

// A target is a server that is asked. What changes is guarded by Servers.mu; at
// most one worker has it at a time.
type target struct {
	address netip.Addr
	asked   time.Time // when it was last begun to be asked
	first   int       // the URL to begin with
	// known is the time of the last good answer, and before it the time from
	// which on there is a target.
	known   time.Time
	last    *reading // the last good answer
	answer  Server   // made of it
	failure string   // why the last asking failed; empty: it did not
}

// NewServers checks the configuration and reads the authorities' file. It asks
// nobody yet.
func NewServers(cfg ServersConfig) (*Servers, error) {
	if len(cfg.URLs) == 0 {
		cfg.URLs = DefaultServerURLs()
	}
	cfg.Interval = cmp.Or(cfg.Interval, 2*time.Second)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Second)
	cfg.Concurrent = cmp.Or(cfg.Concurrent, 64)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 8<<20)
	switch {
	case cfg.Timeout < 0 || cfg.Timeout >= cfg.Interval:
		return nil, fmt.Errorf("the timeout of a real server (%v) must be shorter than the interval (%v)", cfg.Timeout, cfg.Interval)
	case cfg.Concurrent < 0:
		return nil, fmt.Errorf("%d real servers at a time: want 1 or more", cfg.Concurrent)
	case cfg.MaxBytes < 0:
		return nil, fmt.Errorf("an answer of %d bytes: want 1 or more", cfg.MaxBytes)
	case cfg.BearerTokenFile != "" && (cfg.User != "" || cfg.PasswordFile != ""):
		return nil, fmt.Errorf("real servers are asked with a bearer token or with user and password, not with both")
	case (cfg.User == "") != (cfg.PasswordFile == ""):
		return nil, fmt.Errorf("a user for real servers needs a password file, and a password file a user")
	}
	s := &Servers{cfg: cfg}
	for _, pattern := range cfg.URLs {
		u, err := parseServerURL(pattern)
		if err != nil {
			return nil, err
		}
		s.urls = append(s.urls, u)
	}
	var err error
	if s.client, err = newServersClient(cfg); err != nil {
		return nil, err
	}
	return s, nil
}

// SetTargets says which servers are asked from the next round on.
func (s *Servers) SetTargets(addresses []netip.Addr) {
	wanted := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		if a.IsValid() {
			wanted = append(wanted, a.Unmap())
		}
	}
	slices.SortFunc(wanted, netip.Addr.Compare)
	wanted = slices.Compact(wanted)

	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	targets := make([]*target, 0, len(wanted))
	for _, a := range wanted {
		i, there := slices.BinarySearchFunc(s.targets, a, func(t *target, a netip.Addr) int { return t.address.Compare(a) })
		if there {
			targets = append(targets, s.targets[i])
		} else {
			targets = append(targets, &target{address: a, known: now, failure: "not asked yet"})
		}
	}
	s.targets = targets
}

// Snapshot tells what is known of each server, in the order of their addresses.
// It waits for nothing. The figures that it points to are never changed.
func (s *Servers) Snapshot(now time.Time) []Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Server, len(s.targets))
	for i, t := range s.targets {
		failure := t.failure
		if failure == "" && now.Sub(t.known) > s.staleAfter() {
			failure = fmt.Sprintf("not asked for %v: rounds of %v are too short for so many servers that answer slowly",
				now.Sub(t.known).Round(time.Second), s.cfg.Interval)
		}
		if failure == "" {
			all[i] = t.answer
			continue
		}
		all[i] = Server{
			Address: t.address, Source: t.answer.Source, URL: t.answer.URL, Read: t.answer.Read,
			UnknownSince: new(t.known), Unknown: failure,
		}
	}
	return all
}

// staleAfter is the age at which an answer says nothing of the present any more,
// and no rate is made with it.
func (s *Servers) staleAfter() time.Duration { return 3*s.cfg.Interval + s.cfg.Timeout }

// Run asks the servers, round after round, until ctx ends.
func (s *Servers) Run(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	ticker := time.NewTicker(s.cfg.Interval)
	defer ticker.Stop()
	for {
		s.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// paces is in how many parts a round's servers are begun, spread over it, so that
// the rest of the process does not stand behind all of them.
const paces = 50

// round asks every server once, as far as there is time. None is begun that could
// not have its whole timeout before the round's end.
func (s *Servers) round(ctx context.Context) {
	order := s.order()
	if len(order) == 0 {
		return
	}
	window := s.cfg.Interval - s.cfg.Timeout
	begin, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	auth, err := readSecret(s.cfg)
	if err != nil {
		for _, t := range order {
			s.failed(t, t.first, err)
		}
		return
	}

	work := make(chan *target)
	var workers sync.WaitGroup
	for range min(s.cfg.Concurrent, len(order)) {
		workers.Go(func() {
			a := asker{client: s.client, auth: auth, maxBytes: s.cfg.MaxBytes}
			for t := range work {
				s.ask(ctx, &a, t)
			}
		})
	}
	defer workers.Wait()
	defer close(work)

	pace := time.NewTicker(max(window/(paces+1), 1))
	defer pace.Stop()
	part := (len(order) + paces - 1) / paces
	for i, t := range order {
		if i > 0 && i%part == 0 {
			select {
			case <-pace.C:
			case <-begin.Done():
				return
			}
		}
		select {
		case work <- t:
		case <-begin.Done():
			return
		}
	}
}

// order is that in which servers are asked: those that answered before those that
// did not, so that these only wait for each other, and then who has waited
// longest.
func (s *Servers) order() []*target {
	s.mu.Lock()
	defer s.mu.Unlock()
	order := slices.Clone(s.targets)
	failed := func(t *target) int {
		if t.failure != "" && !t.asked.IsZero() {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(order, func(a, b *target) int {
		return cmp.Or(failed(a)-failed(b), a.asked.Compare(b.asked))
	})
	return order
}

// ask asks a server at one URL after the other, within the timeout.
func (s *Servers) ask(ctx context.Context, a *asker, t *target) {
	s.mu.Lock()
	t.asked = time.Now()
	first := t.first
	s.mu.Unlock()

	limited, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	var reasons []error
	next := first
	for i := range s.urls {
		next = (first + i) % len(s.urls)
		url := s.urls[next]
		r, err := a.read(limited, url.full(t.address))
		if err == nil {
			r.url = url.shown(t.address)
			s.answered(t, next, r)
			return
		}
		if limited.Err() != nil {
			if ctx.Err() != nil {
				return // we end, the server is not to blame
			}
			err = fmt.Errorf("no whole answer within %v", s.cfg.Timeout)
			// It may be a firewall that is silent: begin with another next time.
			first = next + 1
		}
		reasons = append(reasons, fmt.Errorf("%s: %w", url.shown(t.address), err))
		if limited.Err() != nil {
			break
		}
	}
	s.failed(t, first%len(s.urls), joinReasons(reasons))
}

// failed puts down that nothing is known of a server.
func (s *Servers) failed(t *target, first int, reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.failure, t.first = safeText(reason.Error(), 400), first
}

// answered puts down a server's figures.
func (s *Servers) answered(t *target, url int, r *reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := t.last
	if before != nil && (before.source != r.source || r.at.Sub(before.at) > s.staleAfter()) {
		before = nil
	}
	t.answer = r.server(t.address, before)
	t.last, t.known, t.first, t.failure = r, r.at, url, ""
}

// newServersClient makes a client that follows no redirect, uses no proxy, and
// keeps a connection to each server.
func newServersClient(cfg ServersConfig) (*http.Client, error) {
	tls, err := serversTLS(cfg)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: cfg.Timeout}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        tls,
			TLSHandshakeTimeout:    cfg.Timeout,
			DisableCompression:     true, // the director has no processor time to spare
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        5 * cfg.Interval,
			MaxResponseHeaderBytes: 16 << 10,
			WriteBufferSize:        1 << 10,
		},
	}, nil
}

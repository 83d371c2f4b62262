package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A RealServer serves HTTP on all ports of the virtual services. It answers every request with its name.
type RealServer struct {
	*Host

	site      *Site
	number    int
	servers   []io.Closer
	listeners []*net.TCPListener
}

// Address is the real server's own address, by which the directors know it.
func (r *RealServer) Address() netip.Addr {
	if r.site.natted() {
		return at(r.site.plan.back, realServer1+r.number)
	}
	return at(r.site.plan.front, realServer1+r.number)
}

func (r *RealServer) connect() error {
	if r.site.natted() {
		return r.ip(plug("eth0", on(r.site.plan.back, realServer1+r.number), at(r.site.plan.back, gateway))...)
	}
	lines := plug("eth0", on(r.site.plan.front, realServer1+r.number), at(r.site.plan.front, routerHost))
	device := "lo"
	if r.site.Variant.method() == "TUN" {
		// The tunnel that every network namespace has takes what any director wraps.
		device = map[bool]string{false: "tunl0", true: "ip6tnl0"}[r.site.Variant.IPv6()]
		lines = append(lines, "link set "+device+" up")
	}
	for i := range r.site.config.Instances {
		lines = append(lines, "address add "+alone(r.site.Address(i))+" dev "+device)
	}
	return r.ip(lines...)
}

func (r *RealServer) serve() error {
	served := map[uint16]bool{}
	for i, service := range r.site.config.Services {
		port := r.site.Target(i).Port()
		if service.UDP || served[port] {
			continue
		}
		served[port] = true
		var listener *net.TCPListener
		err := r.Do(func() (err error) {
			listener, err = net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
			return err
		})
		if err != nil {
			return err
		}
		server := &http.Server{
			Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, r.Name) }),
			ReadHeaderTimeout: 10 * time.Second,
		}
		r.servers, r.listeners = append(r.servers, server), append(r.listeners, listener)
		go server.Serve(listener)
	}
	return nil
}

// Backlog sets how many half-open connections each of its ports has room for, and how many that are not accepted yet.
func (r *RealServer) Backlog(n int) {
	r.t.Helper()
	for _, l := range r.listeners {
		var refused error
		raw, err := l.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { refused = unix.Listen(int(fd), n) })
		}
		if err := errors.Join(err, refused); err != nil {
			r.t.Fatalf("listen again on %s: %v", r.Name, err)
		}
	}
}

func (r *RealServer) close() {
	for _, s := range r.servers {
		_ = s.Close() // its listener goes with the host
	}
}

// A Client is where honest requests come from.
type Client struct {
	*Host

	site *Site
}

func (c *Client) connect() error {
	return c.ip(plug("eth0", on(c.site.plan.client, far), at(c.site.plan.client, routerHost))...)
}

// Get asks the first service for a page, count times and each on a new connection, and tells how often it was served.
func (c *Client) Get(count int) int { return c.GetFrom(c.site.Target(0), count) }

// GetFrom does the same for any address.
func (c *Client) GetFrom(target netip.AddrPort, count int) int {
	served := 0
	for range count {
		if c.get(target) == nil {
			served++
		}
	}
	return served
}

// Resent is the number of SYNs that the client has sent again since it was made.
func (c *Client) Resent() uint64 {
	c.t.Helper()
	return c.Counted("TCPSynRetrans")
}

// get is one request. A browser is more patient than its five seconds.
func (c *Client) get(target netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: c.dial}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target.String()+"/", nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return errors.Join(err, response.Body.Close())
}

func (c *Client) dial(ctx context.Context, network, address string) (connection net.Conn, err error) {
	err = c.Do(func() (err error) {
		connection, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return connection, err
}

package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
)

// ErrNoGuard is returned where nobody answers on the control socket.
var ErrNoGuard = errors.New("no guard is running")

// A Client asks a running guard.
type Client struct {
	socket string
	http   http.Client
}

// answerTimeout is for a guard that is stopped or starved.
const answerTimeout = 15 * time.Second

// maxAnswer is far above the status of the largest director.
const maxAnswer = 64 << 20

// NewClient returns a client of the guard on socket. It connects when asked.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Timeout = answerTimeout
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	return c
}

// Status returns what the guard last saw.
func (c *Client) Status(ctx context.Context) (*guard.Status, error) {
	s := new(guard.Status)
	return s, c.ask(ctx, http.MethodGet, "/v1/status", nil, s)
}

// Pressure returns what the guard last saw of its host's pressure.
func (c *Client) Pressure(ctx context.Context) (*guard.PressureReport, error) {
	r := new(guard.PressureReport)
	return r, c.ask(ctx, http.MethodGet, "/v1/pressure", nil, r)
}

// Sockets returns what the guard last saw of its host's TCP sockets.
func (c *Client) Sockets(ctx context.Context) (*guard.SocketsReport, error) {
	r := new(guard.SocketsReport)
	return r, c.ask(ctx, http.MethodGet, "/v1/sockets", nil, r)
}

// Alerts returns how alerts stand.
func (c *Client) Alerts(ctx context.Context) (*alert.Report, error) {
	r := new(alert.Report)
	return r, c.ask(ctx, http.MethodGet, "/v1/alerts", nil, r)
}

// TestAlert has the guard try a receiver, and waits for that.
func (c *Client) TestAlert(ctx context.Context, receiver string) error {
	text, err := json.Marshal(alertTest{receiver})
	if err != nil {
		return err
	}
	return c.ask(ctx, http.MethodPost, "/v1/alerts/test", bytes.NewReader(text), new(alertTest))
}

// Do has the guard carry out a command.
func (c *Client) Do(ctx context.Context, cmd guard.Command) (guard.Result, error) {
	text, err := json.Marshal(cmd)
	if err != nil {
		return guard.Result{}, err
	}
	var r guard.Result
	err = c.ask(ctx, http.MethodPost, "/v1/command", bytes.NewReader(text), &r)
	return r, err
}

func (c *Client) ask(ctx context.Context, method, path string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://lvsguard"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w on %s: start it with 'lvsguard run', or say where it listens with --socket", ErrNoGuard, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the control socket %s is not open to you: become root or join the group that control.group names", c.socket)
	case err != nil:
		return fmt.Errorf("ask the guard: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the guard: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(text, &f) == nil && f.Error != "" {
			return errors.New(f.Error)
		}
		return fmt.Errorf("ask the guard: it answered %s", resp.Status)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("understand the guard's answer: %w", err)
	}
	return nil
}

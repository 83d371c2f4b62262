// Package serve is what people and programs read from a running guard.
//
// The control socket speaks HTTP over a Unix socket: GET /v1/status, /v1/pressure,
// /v1/sockets and /v1/alerts, and POST /v1/command and /v1/alerts/test for root. Who
// asks is told by the kernel (SO_PEERCRED), not by what is sent.
//
// [Metrics] serves /metrics over TCP, to whoever the configuration lets. Nothing can
// be changed there.
package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
)

// Guard is what is served.
type Guard interface {
	Status() *guard.Status
	Pressure() *guard.PressureReport
	Sockets() *guard.SocketsReport
	Do(ctx context.Context, c guard.Command, who string) (guard.Result, error)
}

// Alerts are what a guard tells people.
type Alerts interface {
	Report() *alert.Report
	// Test has one receiver told that who tries it, and waits for that.
	Test(ctx context.Context, receiver, who string) error
}

// Config tells where and to whom a guard answers.
type Config struct {
	Socket string
	// Group may read; empty leaves it to root.
	Group string
	// Alerts are for the control socket; nil: it says nothing of them.
	Alerts Alerts
	Log    *slog.Logger
}

const (
	// maxConns bounds what askers can make the guard hold open.
	maxConns = 64
	// commandTimeout is longer than the longest look.
	commandTimeout = 10 * time.Second
	// idleTimeout is shorter than answerTimeout: who asks while others hold all
	// connections and say nothing is still answered.
	idleTimeout = 5 * time.Second
)

// A Control is the control socket of a guard.
type Control struct {
	log      *slog.Logger
	alerts   Alerts
	idle     time.Duration // how long a connection may say nothing
	listener net.Listener
}

// Listen makes the socket. One that a dead guard has left is replaced; one
// that answers is an error.
func Listen(cfg Config) (*Control, error) {
	l, err := listenUnix(cfg, "control socket")
	if err != nil {
		return nil, err
	}
	return &Control{log: cfg.Log, alerts: cfg.Alerts, idle: idleTimeout, listener: netutil.LimitListener(peerListener{l}, maxConns)}, nil
}

// listenUnix makes the socket of cfg, which errors call what.
func listenUnix(cfg Config, what string) (net.Listener, error) {
	gid := -1
	if cfg.Group != "" {
		g, err := user.LookupGroup(cfg.Group)
		if err != nil {
			return nil, fmt.Errorf("control.group: %w", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, fmt.Errorf("control.group: %w", err)
		}
	}
	if err := removeStale(cfg.Socket, what); err != nil {
		return nil, err
	}
	// The socket must never be open to more than its owner, not even before the
	// chmod.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", cfg.Socket)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on the %s: %w", what, err)
	}
	err = os.Chown(cfg.Socket, -1, gid)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: without CAP_CHOWN the guard must be a member of the group itself: put SupplementaryGroups=%s into its unit", err, cfg.Group)
	}
	if err == nil {
		err = os.Chmod(cfg.Socket, 0o660)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("open the %s to its group: %w", what, err)
	}
	return l, nil
}

// removeStale takes away a socket on which nobody listens.
func removeStale(path, what string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s: %s is there and no socket: move it away or choose another path", what, path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s: another guard answers on %s: stop it or choose another path", what, path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s %s: %w", what, path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the %s of a dead guard: %w", what, err)
	}
	return nil
}

// Run answers for g until ctx is done.
func (c *Control) Run(ctx context.Context, g Guard) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, g.Status()) })
	mux.HandleFunc("GET /v1/pressure", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, g.Pressure()) })
	mux.HandleFunc("GET /v1/sockets", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, g.Sockets()) })
	mux.HandleFunc("POST /v1/command", func(w http.ResponseWriter, r *http.Request) { command(w, r, g) })
	if c.alerts != nil {
		mux.HandleFunc("GET /v1/alerts", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, c.alerts.Report()) })
		mux.HandleFunc("POST /v1/alerts/test", func(w http.ResponseWriter, r *http.Request) { testAlert(w, r, c.alerts) })
	}
	srv := &http.Server{
		Handler:           mux,
		ReadTimeout:       c.idle,
		ReadHeaderTimeout: c.idle,
		WriteTimeout:      commandTimeout + c.idle,
		IdleTimeout:       c.idle,
		MaxHeaderBytes:    8 << 10,
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(c.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// Close ends a Control that never ran.
func (c *Control) Close() error { return c.listener.Close() }

// ofRoot reads what root wants. Anybody else is refused.
func ofRoot(w http.ResponseWriter, r *http.Request) (text []byte, who string, ok bool) {
	is, ok := r.Context().Value(peerKey{}).(peer)
	if !ok || is.Uid != 0 {
		fail(w, http.StatusForbidden, errors.New("only root may change what the guard does"))
		return nil, "", false
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("read command: %w", err))
		return nil, "", false
	}
	return text, is.String(), true
}

func command(w http.ResponseWriter, r *http.Request, g Guard) {
	text, who, ok := ofRoot(w, r)
	if !ok {
		return
	}
	cmd, err := guard.ParseCommand(text)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), commandTimeout)
	defer cancel()
	result, err := g.Do(ctx, cmd, who)
	if err != nil {
		fail(w, http.StatusConflict, err)
		return
	}
	reply(w, http.StatusOK, result)
}

// alertTest is the body of POST /v1/alerts/test.
type alertTest struct {
	Receiver string `json:"receiver"`
}

func testAlert(w http.ResponseWriter, r *http.Request, a Alerts) {
	text, who, ok := ofRoot(w, r)
	if !ok {
		return
	}
	var asked alertTest
	if err := json.Unmarshal(text, &asked); err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("read the receiver's name: %w", err))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), commandTimeout)
	defer cancel()
	if err := a.Test(ctx, asked.Receiver, who); err != nil {
		fail(w, http.StatusConflict, err)
		return
	}
	reply(w, http.StatusOK, asked)
}

func reply(w http.ResponseWriter, code int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(text, '\n'))
}

// failure is the body of every answer that is none.
type failure struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, code int, err error) {
	reply(w, code, failure{err.Error()})
}

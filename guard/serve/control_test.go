package serve

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
)

// asked is set in the environment of a process that this test starts as
// another user: what it is to ask of the guard.
const asked = "LVSGUARD_TEST_ASKS"

func TestMain(m *testing.M) {
	if what := os.Getenv(asked); what != "" {
		os.Exit(ask(what, os.Args[1]))
	}
	os.Exit(m.Run())
}

// ask prints the guard's answer, or the error.
func ask(what, socket string) int {
	c := NewClient(socket)
	var answer string
	var err error
	switch what {
	case "status":
		var s *guard.Status
		if s, err = c.Status(context.Background()); err == nil {
			answer = "version " + s.Version
		}
	case "command":
		var r guard.Result
		if r, err = c.Do(context.Background(), guard.Command{Verb: guard.VerbMode, Mode: guard.Auto}); err == nil {
			answer = "mode " + string(r.Mode)
		}
	case "alerts":
		if _, err = c.Alerts(context.Background()); err == nil {
			answer = "alerts"
		}
	case "test an alert":
		if err = c.TestAlert(context.Background(), "oncall"); err == nil {
			answer = "delivered"
		}
	case "listen":
		var l *Control
		if l, err = Listen(Config{Socket: socket, Group: "daemon"}); err == nil {
			answer = "listening"
			err = l.Close()
		}
	}
	if err != nil {
		answer = err.Error()
	}
	fmt.Print(answer)
	return 0
}

// asUser has another process ask.
func asUser(t *testing.T, cred *syscall.Credential, what, socket string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", socket)
	cmd.Env = append(os.Environ(), asked+"="+what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ask as uid %d: %v\n%s", cred.Uid, err, &complaint)
	}
	return string(out)
}

// needRoot ends a test that only root can run.
func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("LVSGUARD_PRIVILEGED") == "1":
		t.Fatal("this run must be root's")
	default:
		t.Skip("needs root")
	}
}

// fakeGuard answers as told.
type fakeGuard struct {
	status   *guard.Status
	pressure *guard.PressureReport
	sockets  *guard.SocketsReport
	do       func(context.Context, guard.Command, string) (guard.Result, error)
}

func (g fakeGuard) Status() *guard.Status           { return g.status }
func (g fakeGuard) Pressure() *guard.PressureReport { return g.pressure }
func (g fakeGuard) Sockets() *guard.SocketsReport   { return g.sockets }
func (g fakeGuard) Do(ctx context.Context, c guard.Command, who string) (guard.Result, error) {
	return g.do(ctx, c, who)
}

// obliging does what it is told.
// fakeAlerts refuse to be tested, and say who asked.
type fakeAlerts struct{}

func (fakeAlerts) Report() *alert.Report { return new(alert.Report) }
func (fakeAlerts) Test(_ context.Context, receiver, who string) error {
	uid, _, _ := strings.Cut(who, ",")
	return errors.New(receiver + " by " + uid)
}

func obliging() fakeGuard {
	return fakeGuard{
		status: &guard.Status{Version: "test"},
		do: func(_ context.Context, c guard.Command, _ string) (guard.Result, error) {
			return guard.Result{Mode: c.Mode}, nil
		},
	}
}

// socketPath is in a directory that everyone may enter.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lvsguard-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "control.sock")
}

func listen(t *testing.T, cfg Config) *Control {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	c, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start serves g until the test ends.
func start(t *testing.T, c *Control, g Guard) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, g) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the control socket ended with: %v", err)
		}
	})
}

// serveOn serves g on a socket of its own.
func serveOn(t *testing.T, g Guard) (socket string) {
	t.Helper()
	socket = socketPath(t)
	start(t, listen(t, Config{Socket: socket}), g)
	return socket
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestStatusComesThrough(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	n, active, text := 4900.5, uint64(3), "tcp"
	g := obliging()
	g.status = &guard.Status{
		Version: "test", Time: at, StartedAt: at, Mode: guard.Auto, ModeFrom: guard.ModeFromToggle,
		ConfigFile: &text, Roles: []guard.RoleStatus{{Instance: "VI_1", Role: "MASTER", Since: at}},
		Services: []guard.ServiceStatus{
			{Service: key(t, "[2001:db8::1]:*"), Protocol: &text, Verdict: guard.Flood, Reason: "…", Since: at,
				Figures: guard.Figures{SYN: &n}, Active: &active, Lease: &guard.Lease{By: guard.ByAuto, Since: at, ExpiresAt: at},
				Unknown: map[string]string{"forwarding": "why"}},
			{Service: key(t, "fwmark:7"), Verdict: guard.Unknown, Since: at},
		},
		Total:   guard.Figures{Suspect: &n},
		Journal: guard.JournalHealth{Lost: 7, Error: &text},
		Unknown: map[guard.Source]string{guard.SourceIPVS: "gone"}, TickMillis: 1.5,
	}
	got, err := NewClient(serveOn(t, g)).Status(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(g.status, got, cmpopts.EquateComparable(ipvs.Key{})); diff != "" {
		t.Errorf("status (-sent +received):\n%s", diff)
	}
}

func TestPressureAndSocketsComeThrough(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	g := obliging()
	g.pressure = &guard.PressureReport{
		Sample: pressure.Sample{
			Time:      at,
			Resources: []pressure.Resource{{Kind: pressure.KindLowMemory, Name: "low memory", Used: new(uint64(7)), Level: pressure.LevelCritical, Unknown: map[string]string{"limit": "why"}}},
			Counters:  []pressure.Counter{{Name: "TcpRetransSegs", Total: 1 << 63, PerSecond: new(1.5)}},
			Unknown:   map[string]string{"sockets": "why"},
		},
		Events: []pressure.Event{{Time: at, Kind: pressure.EventOOMKill, Subject: "nginx", Text: "…", Count: 2}},
		Advice: []pressure.Finding{{Severity: pressure.LevelWarning, What: "…"}}, LostRecords: 3,
	}
	g.sockets = &guard.SocketsReport{
		Time: &at, Interval: new(10.5),
		Sockets: pressure.Sockets{
			Listeners:   []pressure.Listener{{Name: "[::]:80", Sockets: 1, Queue: 9, Limit: 8, Highest: 9}},
			Connections: &pressure.Connections{In: pressure.Group{Connections: 5, States: pressure.States{pressure.StateTimeWait: 5}}, Remotes: []pressure.Series{{Name: pressure.SeriesNonlocal}}},
			Took:        1.25,
		},
	}
	client := NewClient(serveOn(t, g))
	p, err := client.Pressure(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(g.pressure, p); diff != "" {
		t.Errorf("pressure (-sent +received):\n%s", diff)
	}
	s, err := client.Sockets(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(g.sockets, s); diff != "" {
		t.Errorf("sockets (-sent +received):\n%s", diff)
	}
}

func key(t *testing.T, s string) ipvs.Key {
	t.Helper()
	k, err := ipvs.ParseKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestCommandByRoot(t *testing.T) {
	needRoot(t)
	web := key(t, "192.0.2.1:80")
	sent := guard.Command{Verb: guard.VerbArm, Service: &web, Seconds: 600}
	g := obliging()
	g.do = func(ctx context.Context, c guard.Command, who string) (guard.Result, error) {
		if diff := cmp.Diff(sent, c, cmpopts.EquateComparable(ipvs.Key{})); diff != "" {
			t.Errorf("command (-sent +received):\n%s", diff)
		}
		if want := fmt.Sprintf("uid 0, pid %d", os.Getpid()); who != want {
			t.Errorf("asked by %q, want %q", who, want)
		}
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > commandTimeout {
			t.Errorf("the command's deadline: %s, %v", end, ok)
		}
		return guard.Result{Mode: guard.Auto, Warning: "not saved"}, nil
	}
	client := NewClient(serveOn(t, g))
	got, err := client.Do(soon(t), sent)
	if err != nil || got.Mode != guard.Auto || got.Warning != "not saved" {
		t.Errorf("answer %+v, %v", got, err)
	}
	// A command that the guard refuses comes back in its words.
	if _, err := client.Do(soon(t), guard.Command{Verb: guard.VerbArm}); err == nil || err.Error() != "arm for 1s to 24h" {
		t.Errorf("arm without an end: %v", err)
	}
}

func TestCommandRefused(t *testing.T) {
	needRoot(t)
	g := obliging()
	g.do = func(context.Context, guard.Command, string) (guard.Result, error) {
		return guard.Result{}, errors.New("no virtual service 192.0.2.9:80")
	}
	_, err := NewClient(serveOn(t, g)).Do(soon(t), guard.Command{Verb: guard.VerbDisarm})
	if err == nil || err.Error() != "no virtual service 192.0.2.9:80" {
		t.Errorf("error %v", err)
	}
}

// Who may do what: root everything, the group read, others nothing.
func TestWhoMay(t *testing.T) {
	needRoot(t)
	g, err := user.LookupGroup("daemon")
	if err != nil {
		t.Skipf("this host has no group to try with: %v", err)
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	closed, open := socketPath(t), socketPath(t)
	start(t, listen(t, Config{Socket: closed, Alerts: fakeAlerts{}}), obliging())
	start(t, listen(t, Config{Socket: open, Group: "daemon", Alerts: fakeAlerts{}}), obliging())
	for socket, wantGid := range map[string]uint32{closed: 0, open: uint32(gid)} {
		info, err := os.Lstat(socket)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); info.Mode() != fsSocket|0o660 || st.Uid != 0 || st.Gid != wantGid {
			t.Errorf("socket: %v of uid %d, gid %d, want %v of 0, %d", info.Mode(), st.Uid, st.Gid, fsSocket|0o660, wantGid)
		}
	}

	root := &syscall.Credential{}
	member := &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{uint32(gid)}}
	stranger := &syscall.Credential{Uid: 65534, Gid: 65534}
	notOpen := func(socket string) string {
		return "the control socket " + socket + " is not open to you: become root or join the group that control.group names"
	}
	const onlyRoot = "only root may change what the guard does"
	for _, tt := range []struct {
		name   string
		cred   *syscall.Credential
		what   string
		socket string
		want   string
	}{
		{"root reads", root, "status", closed, "version test"},
		{"root commands", root, "command", closed, "mode auto"},
		{"a member reads", member, "status", open, "version test"},
		{"a member commands", member, "command", open, onlyRoot},
		{"a member where no group is named", member, "status", closed, notOpen(closed)},
		{"root tests an alert", root, "test an alert", closed, "oncall by uid 0"},
		{"a member reads alerts", member, "alerts", open, "alerts"},
		{"a member tests an alert", member, "test an alert", open, onlyRoot},
		{"a stranger reads", stranger, "status", open, notOpen(open)},
		{"a stranger commands", stranger, "command", open, notOpen(open)},
		{"root's group without root", &syscall.Credential{Uid: 65534, Gid: 0}, "command", closed, onlyRoot},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := asUser(t, tt.cred, tt.what, tt.socket); got != tt.want {
				t.Errorf("answer %q, want %q", got, tt.want)
			}
		})
	}
}

// The unit leaves the guard no CAP_CHOWN. Then it gives its socket only to a
// group of its own, and the error says how it becomes one.
func TestGroupWithoutChown(t *testing.T) {
	needRoot(t)
	if _, err := user.LookupGroup("daemon"); err != nil {
		t.Skipf("this host has no group to try with: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	listens := func(groups ...string) string {
		cmd := exec.Command("setpriv", append(append([]string{"--bounding-set=-all,+net_admin"}, groups...), self, socketPath(t))...)
		cmd.Env = append(os.Environ(), asked+"=listen")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	if got := listens("--groups=daemon"); got != "listening" {
		t.Errorf("as a member: %s", got)
	}
	if got := listens("--clear-groups"); !strings.Contains(got, "SupplementaryGroups=daemon") {
		t.Errorf("not as a member: %s", got)
	}
}

const fsSocket = os.ModeSocket

func TestListenOnWhatIsThere(t *testing.T) {
	t.Run("a dead guard's socket", func(t *testing.T) {
		socket := socketPath(t)
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		dead.Close()
		start(t, listen(t, Config{Socket: socket}), obliging())
		if _, err := NewClient(socket).Status(soon(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a living guard's socket", func(t *testing.T) {
		socket := serveOn(t, obliging())
		if _, err := Listen(Config{Socket: socket}); err == nil || err.Error() != "control socket: another guard answers on "+socket+": stop it or choose another path" {
			t.Errorf("error %v", err)
		}
		if _, err := NewClient(socket).Status(soon(t)); err != nil {
			t.Errorf("the first is harmed: %v", err)
		}
	})
	t.Run("a stopped guard's socket, its queue full", func(t *testing.T) {
		socket := stoppedGuard(t)
		if _, err := Listen(Config{Socket: socket}); err == nil || !strings.Contains(err.Error(), socket) {
			t.Errorf("error %v", err)
		}
		if _, err := os.Lstat(socket); err != nil {
			t.Errorf("its socket is gone: %v", err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		socket := socketPath(t)
		if err := os.WriteFile(socket, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(Config{Socket: socket}); err == nil || !strings.Contains(err.Error(), socket+" is there and no socket") {
			t.Errorf("error %v", err)
		}
		if text, err := os.ReadFile(socket); err != nil || string(text) != "precious" {
			t.Errorf("the file now holds %q, %v", text, err)
		}
	})
	t.Run("a link", func(t *testing.T) {
		socket := socketPath(t)
		live := serveOn(t, obliging())
		if err := os.Symlink(live, socket); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(Config{Socket: socket}); err == nil || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no directory", func(t *testing.T) {
		socket := filepath.Join(socketPath(t), "control.sock")
		if _, err := Listen(Config{Socket: socket}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no such group", func(t *testing.T) {
		if _, err := Listen(Config{Socket: socketPath(t), Group: "no-such-group"}); err == nil || !strings.Contains(err.Error(), "control.group") {
			t.Errorf("error %v", err)
		}
	})
}

// stoppedGuard is a socket that is listened on and never accepted from.
func stoppedGuard(t *testing.T) (socket string) {
	t.Helper()
	socket = socketPath(t)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c, err := net.DialTimeout("unix", socket, time.Second)
		if err != nil {
			return socket
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("its queue does not fill")
	return ""
}

func TestSocketGoesWithTheGuard(t *testing.T) {
	socket := socketPath(t)
	c := listen(t, Config{Socket: socket})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx, obliging()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestNoGuard(t *testing.T) {
	socket := socketPath(t)
	_, err := NewClient(socket).Status(soon(t))
	if want := "no guard is running on " + socket + ": start it with 'lvsguard run', or say where it listens with --socket"; !errors.Is(err, ErrNoGuard) || err.Error() != want {
		t.Errorf("without a socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := NewClient(socket).Do(soon(t), guard.Command{Verb: guard.VerbDisarm}); !errors.Is(err, ErrNoGuard) {
		t.Errorf("with a dead guard's socket: %v", err)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(socket).Status(soon(t)); err == nil {
		t.Error("a file answers")
	}
}

// A guard that does not get to a command still shows its status, and whoever
// gives up waiting ends the command.
func TestCommandHangs(t *testing.T) {
	needRoot(t)
	begun, ended := make(chan struct{}), make(chan error, 1)
	g := obliging()
	g.do = func(ctx context.Context, _ guard.Command, _ string) (guard.Result, error) {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return guard.Result{}, ctx.Err()
	}
	socket := serveOn(t, g)
	ctx, giveUp := context.WithCancel(soon(t))
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := NewClient(socket).Do(ctx, guard.Command{Verb: guard.VerbDisarm}); err == nil {
			t.Error("a command that hangs was answered")
		}
	})
	select {
	case <-begun:
	case <-soon(t).Done():
		t.Fatal("the command did not arrive")
	}
	if _, err := NewClient(socket).Status(soon(t)); err != nil {
		t.Errorf("status while a command hangs: %v", err)
	}
	giveUp()
	wg.Wait()
	select {
	case <-ended:
	case <-soon(t).Done():
		t.Error("the command goes on although nobody waits for it")
	}
}

// raw sends bytes and returns the first line of what comes back, empty if the
// connection was closed.
func raw(t *testing.T, socket, text string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	// The guard may have seen enough before all is sent.
	_, sendErr := io.WriteString(conn, text)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("no answer (sent: %v)", sendErr)
	}
	return strings.TrimSpace(line)
}

func TestGarbage(t *testing.T) {
	needRoot(t)
	g := obliging()
	g.do = func(_ context.Context, c guard.Command, _ string) (guard.Result, error) {
		t.Errorf("garbage became a command: %+v", c)
		return guard.Result{}, nil
	}
	socket := serveOn(t, g)
	post := func(body string) string {
		return fmt.Sprintf("POST /v1/command HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"not HTTP", "\x00\xff\x00\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"a header too large", "GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "HTTP/1.1 431 Request Header Fields Too Large"},
		{"no such path", "GET /v1/secrets HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 Not Found"},
		{"a path upwards", "GET /v1/../../etc/shadow HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 307 Temporary Redirect"},
		{"to write the status", "POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"},
		{"to read a command", "GET /v1/command HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"},
		{"no JSON", post("arm all"), "HTTP/1.1 400 Bad Request"},
		{"an empty body", post(""), "HTTP/1.1 400 Bad Request"},
		{"a long command", post(`{"verb":"remove"` + strings.Repeat(" ", 5000) + "}"), "HTTP/1.1 400 Bad Request"},
		{"an endless command", post(strings.Repeat(" ", 1<<20)), "HTTP/1.1 400 Bad Request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := raw(t, socket, tt.text); got != tt.want {
				t.Errorf("answer %q, want %q", got, tt.want)
			}
		})
	}
	if _, err := NewClient(socket).Status(soon(t)); err != nil {
		t.Errorf("status after all of it: %v", err)
	}
}

// Connections are bounded, and those that say nothing, or only half, do not
// keep others out for ever.
func TestIdleConnections(t *testing.T) {
	socket := socketPath(t)
	c := listen(t, Config{Socket: socket})
	c.idle = 100 * time.Millisecond
	start(t, c, obliging())
	for i := range 2 * maxConns {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			if _, err := io.WriteString(conn, "GET /v1/status HTTP/1.1\r\nHost: x\r\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := NewClient(socket).Status(soon(t)); err != nil {
		t.Errorf("status behind %d idle connections: %v", 2*maxConns, err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	now, most := 0, 0
	full := make(chan struct{})
	g := statusFunc(func() *guard.Status {
		mu.Lock()
		if now++; now > most {
			if most = now; most == maxConns {
				close(full)
			}
		}
		mu.Unlock()
		<-release
		mu.Lock()
		now--
		mu.Unlock()
		return &guard.Status{Version: "test"}
	})
	socket := serveOn(t, g)
	ctx := soon(t)
	var wg sync.WaitGroup
	for range 2 * maxConns {
		wg.Go(func() {
			c := NewClient(socket)
			defer c.http.CloseIdleConnections()
			if _, err := c.Status(ctx); err != nil {
				t.Errorf("status: %v", err)
			}
		})
	}
	select {
	case <-full:
	case <-ctx.Done():
		t.Errorf("%d at once, want %d", most, maxConns)
	}
	close(release)
	wg.Wait()
	if most != maxConns {
		t.Errorf("%d at once, want %d", most, maxConns)
	}
}

type statusFunc func() *guard.Status

func (f statusFunc) Status() *guard.Status         { return f() }
func (statusFunc) Pressure() *guard.PressureReport { return nil }
func (statusFunc) Sockets() *guard.SocketsReport   { return nil }
func (statusFunc) Do(context.Context, guard.Command, string) (guard.Result, error) {
	return guard.Result{}, nil
}

// What answers on the socket need not be a guard.
func TestClientDistrusts(t *testing.T) {
	for _, tt := range []struct{ name, answer, want string }{
		{"nothing", "", "ask the guard: "},
		{"no HTTP", "hello\n", "ask the guard: "},
		{"no JSON", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "understand the guard's answer: "},
		{"a cut answer", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "ask the guard: unexpected EOF"},
		{"another error", "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", "ask the guard: it answered 500 Internal Server Error"},
		{"an error in words", "HTTP/1.1 409 Conflict\r\nContent-Length: 17\r\n\r\n{\"error\":\"busy.\"}", "busy."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket := socketPath(t)
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
						io.WriteString(conn, tt.answer)
					}
					conn.Close()
				}
			}()
			if _, err := NewClient(socket).Status(soon(t)); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("error %v, want %s…", err, tt.want)
			}
		})
	}
}

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/serve"
	"github.com/lvsguard/lvsguard/internal/netns"
)

// A host is a network namespace without virtual services, in which lvsguard is
// run as it would be on a machine of its own.
type host struct {
	*netns.Host
	t      *testing.T
	dir    string
	client *serve.Client
}

// newHost makes a host that watches two addresses. Its test runs beside those
// of other hosts.
func newHost(t *testing.T) *host {
	t.Helper()
	t.Parallel()
	dir, err := os.MkdirTemp("", "lvsguard-") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &host{Host: netns.New(t), t: t, dir: dir}
	h.client = serve.NewClient(h.path("run/control.sock"))
	h.configure("")
	return h
}

// configure writes the configuration, with more of it behind what every test
// has.
func (h *host) configure(more string) {
	h.t.Helper()
	text := fmt.Sprintf("watch: ['192.0.2.1:80', '[2001:db8::1]:443']\nkeepalived: {config: %s/keepalived.conf}\n%s\n", h.dir, more)
	if err := os.WriteFile(h.path("lvsguard.yaml"), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

// command is lvsguard as a process of its own, with everything of it in h.dir.
func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--socket", h.path("run/control.sock"), "--state-dir", h.path("state")}, args...)...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	return cmd
}

// try runs a command to its end.
func (h *host) try(cmd *exec.Cmd) (status int, out, errOut string) {
	h.t.Helper()
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	var err error
	h.Do(h.t, func() { err = cmd.Run() })
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// run wants a command to work, and returns what it prints.
func (h *host) run(args ...string) string {
	h.t.Helper()
	status, out, errOut := h.try(h.command(args...))
	if status != 0 {
		h.t.Fatalf("%q: status %d\n%s%s", args, status, out, errOut)
	}
	return out
}

// fails wants a command to fail, and to say all of want.
func (h *host) fails(cmd *exec.Cmd, want ...string) {
	h.t.Helper()
	status, out, errOut := h.try(cmd)
	if status != exitFail || out != "" {
		h.t.Errorf("%q: status %d, want %d; stdout: %s", cmd.Args[1:], status, exitFail, out)
	}
	for _, w := range want {
		if !strings.Contains(errOut, w) {
			h.t.Errorf("%q says %q, want …%s…", cmd.Args[1:], errOut, w)
		}
	}
}

// status asks in this process: it is asked over and over.
func (h *host) status() *guard.Status {
	h.t.Helper()
	s, err := h.client.Status(soon(h.t))
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// statusOnce waits for a status with which ok agrees.
func (h *host) statusOnce(what string, ok func(*guard.Status) bool) *guard.Status {
	h.t.Helper()
	ctx := soon(h.t)
	for {
		s := h.status()
		if ok(s) {
			return s
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			h.t.Fatalf("%s: not to be seen in %+v", what, s)
		}
	}
}

// looks waits until the guard has looked n times more.
func (h *host) looks(n int) {
	h.t.Helper()
	for range n {
		at := h.status().Time
		h.statusOnce("the next look", func(s *guard.Status) bool { return s.Time.After(at) })
	}
}

func (h *host) leaseOf(service string) *guard.Lease {
	h.t.Helper()
	for _, s := range h.status().Services {
		if s.Service.String() == service {
			return s.Lease
		}
	}
	h.t.Fatalf("status has no %s", service)
	return nil
}

// armed tells whether the kernel itself drops for 192.0.2.1:80.
func (h *host) armed() bool {
	h.t.Helper()
	return strings.Contains(h.Run(h.t, "nft", "list", "set", "inet", "lvsguard", "armed4"), "192.0.2.1 . 80")
}

// tables lists the tables that the kernel has.
func (h *host) tables() string {
	h.t.Helper()
	return strings.TrimSpace(h.Run(h.t, "nft", "list", "tables"))
}

// A running is a guard that runs on a host.
type running struct {
	*host
	cmd  *exec.Cmd
	log  *bytes.Buffer
	told *net.UnixConn // what it tells systemd
}

// guard starts a guard, and waits until it is ready.
func (h *host) guard() *running {
	h.t.Helper()
	d := &running{host: h, cmd: h.command("run", "-c", h.path("lvsguard.yaml")), log: new(bytes.Buffer)}
	name := h.path("notify.sock")
	var err error
	if d.told, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"}); err != nil {
		h.t.Fatal(err)
	}
	d.cmd.Env = append(d.cmd.Env, "NOTIFY_SOCKET="+name)
	d.cmd.Stderr = d.log
	d.cmd.WaitDelay = time.Second // what the guard has started may have its standard error
	h.Do(h.t, func() { err = d.cmd.Start() })
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { d.end(syscall.SIGKILL) })
	d.tells("READY=1")
	return d
}

// tells waits until the guard has told systemd want.
func (d *running) tells(want string) {
	d.t.Helper()
	d.told.SetReadDeadline(time.Now().Add(20 * time.Second))
	var text [256]byte
	for {
		n, err := d.told.Read(text[:])
		if err != nil {
			d.end(syscall.SIGKILL)
			d.t.Fatalf("waiting for %s: %v\n%s", want, err, d.log)
		}
		if string(text[:n]) == want {
			return
		}
	}
}

// end ends the guard by a signal and returns its exit status. One that does not
// end says what it waits for.
func (d *running) end(sig os.Signal) int {
	if d.cmd.ProcessState == nil {
		d.cmd.Process.Signal(sig)
		hung := time.AfterFunc(time.Minute, func() { d.cmd.Process.Signal(syscall.SIGQUIT) })
		d.cmd.Wait()
		if !hung.Stop() {
			d.t.Errorf("the guard had not ended a minute after %s:\n%s", sig, d.log)
		}
		d.told.Close()
		os.Remove(d.path("notify.sock"))
	}
	return d.cmd.ProcessState.ExitCode()
}

func TestOperatorAndRestart(t *testing.T) {
	h := newHost(t)
	d := h.guard()
	if s := h.status(); s.Mode != guard.Observe || s.ModeFrom != guard.ModeFromConfig || len(s.Services) != 2 || s.Unknown[guard.SourceIPVS] == "" {
		t.Errorf("status of a host without IPVS: %+v", s)
	}
	if out := h.run("status"); !strings.Contains(out, "192.0.2.1:80 ") || !strings.Contains(out, "[2001:db8::1]:443 ") || !strings.Contains(out, "unknown, ipvs: ") {
		t.Errorf("status:\n%s", out)
	}
	if out, want := h.run("arm", "192.0.2.1:80", "--for", "10m"), "192.0.2.1:80: armed (hand 10m)"; !strings.HasPrefix(out, want) {
		t.Errorf("arm says %q, want %q", out, want)
	}
	if l := h.leaseOf("192.0.2.1:80"); !h.armed() || l == nil || l.By != guard.ByOperator || time.Until(l.ExpiresAt) > 10*time.Minute || time.Until(l.ExpiresAt) < 9*time.Minute {
		t.Errorf("the lease: in the kernel %v, in status %+v", h.armed(), l)
	}
	if l := h.leaseOf("[2001:db8::1]:443"); l != nil {
		t.Errorf("another service is armed too: %+v", l)
	}
	if out := h.run("rules", "show"); !strings.Contains(out, "192.0.2.1 . 80 expires") {
		t.Errorf("rules show does not show the lease:\n%s", out)
	}
	h.fails(h.command("arm", "192.0.2.9:80", "--for", "10m"), "no virtual service 192.0.2.9:80; there are: 192.0.2.1:80, [2001:db8::1]:443")

	if out := h.run("disarm", "192.0.2.1:80"); out != "192.0.2.1:80: disarmed\n" {
		t.Errorf("disarm says %q", out)
	}
	if h.armed() {
		t.Error("disarmed, and yet in the kernel")
	}
	if out := h.run("arm", "all", "--for", "1h"); strings.Count(out, "armed (hand ") != 2 {
		t.Errorf("arm all says %q", out)
	}
	if out := h.run("mitigate", "auto"); out != "mode auto\n" {
		t.Errorf("mitigate says %q", out)
	}

	// SIGTERM ends it well and leaves table and leases.
	if status := d.end(syscall.SIGTERM); status != 0 {
		t.Errorf("stopped with status %d\n%s", status, d.log)
	}
	if !h.armed() {
		t.Error("a stop lifted the lease")
	}
	h.fails(h.command("status"), "no guard is running")
	d = h.guard()
	if s := h.status(); s.Mode != guard.Auto || s.ModeFrom != guard.ModeFromToggle {
		t.Errorf("after a restart: mode %s from %s", s.Mode, s.ModeFrom)
	}
	if l := h.leaseOf("[2001:db8::1]:443"); l == nil || l.By != guard.ByOperator {
		t.Errorf("after a restart the operator's lease is %+v", l)
	}
	d.tells("WATCHDOG=1")
	d.end(syscall.SIGTERM)

	var events []string
	for line := range strings.Lines(h.run("journal", "--json")) {
		var e guard.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("journal --json: %v: %s", err, line)
		}
		if e.Event == guard.EventLease && e.Service == "192.0.2.1:80" {
			events = append(events, e.To)
			if !strings.HasPrefix(e.By, "uid 0, pid ") {
				t.Errorf("the journal does not say who: %+v", e)
			}
		}
		if e.Event == guard.EventMode || e.Event == guard.EventStart || e.Event == guard.EventStop {
			events = append(events, string(e.Event))
		}
	}
	// The restarted guard takes the operator's lease up again.
	want := []string{"start", "armed", "disarmed", "armed", "mode", "stop", "start", "armed", "stop"}
	if !slices.Equal(events, want) {
		t.Errorf("journal: %q, want %q", events, want)
	}
}

// A guard that is killed leaves its leases to the kernel; the next one takes
// them over, and the sockets too.
func TestKilled(t *testing.T) {
	h := newHost(t)
	d := h.guard()
	h.run("arm", "192.0.2.1:80", "--for", "1h")
	d.end(syscall.SIGKILL)
	if !h.armed() {
		t.Error("the lease died with the guard")
	}
	for _, name := range []string{"control.sock", "hook.sock"} {
		if _, err := os.Lstat(h.path("run/" + name)); err != nil {
			t.Errorf("nothing stale to replace: %v", err)
		}
	}
	h.fails(h.command("status"), "no guard is running")
	h.fails(h.command("disarm", "all"), "no guard is running")
	h.run("notify", "MASTER")
	if out := h.run("counters"); !strings.Contains(out, "192.0.2.1:80 ") {
		t.Errorf("counters with a dead guard:\n%s", out)
	}
	var counters countersJSON
	if err := json.Unmarshal([]byte(h.run("counters", "--json")), &counters); err != nil || len(counters.Services) != 2 {
		t.Errorf("counters --json with a dead guard: %+v, %v", counters, err)
	}
	h.guard()
	if !h.armed() || h.leaseOf("192.0.2.1:80") == nil {
		t.Error("the next guard did not take the lease over")
	}
	var again countersJSON
	if err := json.Unmarshal([]byte(h.run("counters", "--json")), &again); err != nil || !again.Since.Equal(counters.Since) {
		t.Errorf("the table was made anew: since %s, was %s (%v)", again.Since, counters.Since, err)
	}
}

func TestReload(t *testing.T) {
	h := newHost(t)
	d := h.guard()
	h.configure("detect: {rte: 5}")
	d.cmd.Process.Signal(syscall.SIGHUP)
	s := h.statusOnce("the refused configuration", func(s *guard.Status) bool { return s.ConfigError != nil })
	if !strings.Contains(*s.ConfigError, h.path("lvsguard.yaml")) || !strings.Contains(*s.ConfigError, "line 3") || !strings.Contains(*s.ConfigError, `did you mean "rate"?`) {
		t.Errorf("the error: %s", *s.ConfigError)
	}
	if len(s.Services) != 2 || s.Mode != guard.Observe {
		t.Errorf("the old configuration is not in force: %+v", s)
	}
	if out := h.run("status"); !strings.Contains(out, "configuration refused, the old one is in force") {
		t.Errorf("status does not say so:\n%s", out)
	}
	h.configure("mode: auto\nallow: [198.51.100.0/24]")
	d.cmd.Process.Signal(syscall.SIGHUP)
	h.statusOnce("the good configuration", func(s *guard.Status) bool { return s.ConfigError == nil && s.Mode == guard.Auto })
	h.looks(1)
	if rules := h.run("rules", "show"); !strings.Contains(rules, "198.51.100.0/24") {
		t.Errorf("the new rules are not in the kernel:\n%s", rules)
	}
}

func TestRulesWithGuard(t *testing.T) {
	h := newHost(t)
	d := h.guard()
	h.run("arm", "192.0.2.1:80", "--for", "1h")
	if out := h.run("rules", "remove"); out != "table inet lvsguard: removed\n" {
		t.Errorf("rules remove says %q", out)
	}
	h.looks(2)
	if tables := h.tables(); tables != "" {
		t.Fatalf("removed, and yet there is %s", tables)
	}
	h.fails(h.command("arm", "192.0.2.1:80", "--for", "1h"), "lvsguard rules install")
	h.fails(h.command("counters"), "lvsguard rules install")
	d.end(syscall.SIGTERM)
	h.guard()
	h.looks(1)
	if tables := h.tables(); tables != "" {
		t.Fatalf("a restart brought back %s", tables)
	}
	h.run("rules", "install")
	if tables := h.tables(); tables != "table inet lvsguard" || h.armed() {
		t.Errorf("installed: %q, armed %v", tables, h.armed())
	}
}

func TestRulesWithoutGuard(t *testing.T) {
	h := newHost(t)
	h.Run(t, "nft", "add", "table", "inet", "foreign")
	h.fails(h.command("rules", "show"), "lvsguard rules install")
	h.fails(h.command("counters"), "lvsguard rules install")
	h.fails(h.command("rules", "install"), "there is nothing to count")
	h.run("rules", "install", "-c", h.path("lvsguard.yaml"))
	if out := h.run("rules", "install", "-c", h.path("lvsguard.yaml"), "--json"); !strings.Contains(out, `"table": "`) {
		t.Errorf("rules install --json says %s", out)
	}
	if out := h.run("counters"); !strings.Contains(out, "[2001:db8::1]:443 ") {
		t.Errorf("counters:\n%s", out)
	}
	var rules rulesJSON
	if err := json.Unmarshal([]byte(h.run("rules", "show", "--json")), &rules); err != nil || rules.Since == nil || len(rules.Sets) == 0 || len(rules.Chains) == 0 {
		t.Errorf("rules show --json: %+v, %v", rules, err)
	}
	for range 2 {
		h.run("rules", "remove")
		if tables := h.tables(); tables != "table inet foreign" {
			t.Errorf("after rules remove there are: %s", tables)
		}
	}
}

// A second guard is refused, and the first does not mind.
func TestSecondGuard(t *testing.T) {
	h := newHost(t)
	h.guard()
	h.run("arm", "192.0.2.1:80", "--for", "1h")
	h.fails(h.command("run", "-c", h.path("lvsguard.yaml")), "another guard uses", "--state-dir")
	elsewhere := h.command("run", "-c", h.path("lvsguard.yaml"), "--state-dir", h.path("other"), "--socket", h.path("other.run/control.sock"))
	h.fails(elsewhere, "another guard runs in this network namespace")
	h.looks(2)
	if !h.armed() || h.leaseOf("192.0.2.1:80") == nil {
		t.Error("the first guard is harmed")
	}
	h.run("notify", "MASTER")
}

// What only reads changes nothing in the kernel: between two changes of our
// own, the kernel tells of none.
func TestReadersDoNotWrite(t *testing.T) {
	h := newHost(t)
	h.run("rules", "install", "-c", h.path("lvsguard.yaml"))
	monitor := exec.Command("nft", "monitor")
	events, err := monitor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.Do(t, func() { err = monitor.Start() })
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(events); s.Scan(); {
			lines <- s.Text()
		}
	}()
	defer func() {
		monitor.Process.Kill()
		<-done
		monitor.Wait()
	}()
	ctx := soon(t)
	// It is listening once it tells of a table.
	listening := false
	for i := 0; !listening; i++ {
		h.Run(t, "nft", "add", "table", "inet", fmt.Sprintf("before%d", i))
		select {
		case <-lines:
			listening = true
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("nft monitor tells nothing")
		}
	}
	before := h.Run(t, "nft", "list", "ruleset")
	h.Run(t, "nft", "add", "table", "inet", "begin")
	for _, args := range [][]string{
		{"counters"}, {"counters", "--json"}, {"rules", "show"}, {"rules", "show", "--json"}, {"status"}, {"conns"}, {"conns", "--all", "--by", "source"},
		{"journal"}, {"config", "check", h.path("lvsguard.yaml")}, {"config", "show", h.path("lvsguard.yaml")}, {"notify", "MASTER"}, {"version"},
	} {
		h.try(h.command(args...))
	}
	h.Run(t, "nft", "delete", "table", "inet", "begin")
	var told []string
	for len(told) == 0 || !strings.Contains(told[len(told)-1], "delete table inet begin") {
		select {
		case line := <-lines:
			if !strings.HasPrefix(line, "#") && !strings.Contains(line, "before") {
				told = append(told, line)
			}
		case <-ctx.Done():
			t.Fatalf("nft monitor fell silent: %q", told)
		}
	}
	if want := []string{"add table inet begin", "delete table inet begin"}; !slices.Equal(told, want) {
		t.Errorf("the kernel was written to:\n%s", strings.Join(told, "\n"))
	}
	if after := h.Run(t, "nft", "list", "ruleset"); after != before {
		t.Errorf("the rules were\n%s\nand are\n%s", before, after)
	}
}

// Who may not ask the kernel is told what it takes.
func TestWithoutCapability(t *testing.T) {
	h := newHost(t)
	h.run("rules", "install", "-c", h.path("lvsguard.yaml"))
	for _, args := range [][]string{
		{"counters"}, {"counters", "--json"}, {"rules", "show"}, {"rules", "remove"}, {"rules", "install", "-c", h.path("lvsguard.yaml")},
	} {
		cmd := h.command(args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		h.fails(cmd, "CAP_NET_ADMIN")
	}
	if tables := h.tables(); tables != "table inet lvsguard" {
		t.Errorf("there are: %s", tables)
	}
}

// It shows what is new until it is interrupted, which is no failure.
func TestStatusWatch(t *testing.T) {
	h := newHost(t)
	h.guard()
	cmd := h.command("status", "--watch", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.Do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(out)
	var first, next guard.Status
	err = dec.Decode(&first)
	next = first
	for ctx := soon(t); err == nil && !next.Time.After(first.Time) && ctx.Err() == nil; {
		err = dec.Decode(&next)
	}
	if err != nil || !next.Time.After(first.Time) {
		t.Errorf("watched at %s and %s, %v", first.Time, next.Time, err)
	}
	cmd.Process.Signal(os.Interrupt)
	io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

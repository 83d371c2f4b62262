package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/capture/handshake"
)

// StartGuard starts lvsguard on this director with this configuration and waits until it has looked around. Unless the
// configuration says otherwise, it is told where this director's keepalived.conf is. One that ran before leaves its
// state to the next.
func (d *Director) StartGuard(config string) *Process {
	d.t.Helper()
	return d.startGuard(d.withKeepalived(config))
}

// StartGuard starts lvsguard on this real server with this configuration and waits until it has looked around.
func (r *RealServer) StartGuard(config string) *Process {
	r.t.Helper()
	return r.startGuard(config)
}

func (h *Host) startGuard(config string) *Process {
	h.t.Helper()
	h.configureGuard(config)
	name, args := h.guardCommand("run", "--config", h.GuardConfig())
	guard := h.Start(name, args...)
	problem := errors.New("it has not sampled anything yet")
	ready := false
	defer func() {
		if !ready {
			h.t.Logf("the guard on %s: %v", h.Name, problem)
			guard.Signal(unix.SIGQUIT) // makes Go write where every goroutine is
			guard.Wait(5 * time.Second)
		}
	}()
	Wait(h.t, 20*time.Second, "the guard on "+h.Name+" has looked around", func() bool {
		if !guard.Running() {
			h.t.Fatal("the guard has ended")
		}
		status, err := h.status()
		if err != nil {
			problem = err
		}
		ready = err == nil && status.Tick > 0
		return ready
	})
	return guard
}

// ReloadGuard gives a running guard another configuration. What it makes of it, its status tells.
func (d *Director) ReloadGuard(guard *Process, config string) {
	d.t.Helper()
	d.configureGuard(d.withKeepalived(config))
	guard.Signal(unix.SIGHUP)
}

// GuardConfig is the guard's configuration on this host.
func (h *Host) GuardConfig() string { return filepath.Join(h.Dir, "lvsguard.yaml") }

func (d *Director) withKeepalived(config string) string {
	if strings.Contains(config, "keepalived:") {
		return config
	}
	return config + fmt.Sprintf("\nkeepalived: {config: %s}\n", d.KeepalivedConf())
}

func (h *Host) configureGuard(config string) {
	h.t.Helper()
	if err := os.WriteFile(h.GuardConfig(), []byte(config), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// GuardSocket is the guard's control socket on this host.
func (h *Host) GuardSocket() string { return filepath.Join(h.Dir, "control.sock") }

// GuardState is the guard's state directory on this host.
func (h *Host) GuardState() string { return filepath.Join(h.Dir, "state") }

// guardCommand is a command line of lvsguard with this host's socket and state.
func (h *Host) guardCommand(args ...string) (string, []string) {
	return os.Getenv("LVSGUARD_BIN"), append([]string{"--socket", h.GuardSocket(), "--state-dir", h.GuardState()}, args...)
}

// Lvsguard runs a command of lvsguard on this host, which must succeed, and gives what it printed.
func (h *Host) Lvsguard(args ...string) string {
	h.t.Helper()
	name, args := h.guardCommand(args...)
	return h.Run(name, args...)
}

// TryLvsguard runs a command of lvsguard on this host and gives what it printed. The error has what it complained of.
func (h *Host) TryLvsguard(args ...string) (string, error) {
	name, args := h.guardCommand(args...)
	return h.Try(name, args...)
}

// AttachLvsguard runs a command of lvsguard on this host with the test's own standard files, and gives its exit status.
func (h *Host) AttachLvsguard(args ...string) int {
	h.t.Helper()
	name, args := h.guardCommand(args...)
	return h.Attach(name, args...)
}

// Status is what scenarios look at in the output of lvsguard status --json. What is not known is nil.
type Status struct {
	Mode  string `json:"mode"`
	Roles []struct {
		Instance string `json:"instance"`
		Role     string `json:"role"`
	} `json:"roles"`
	Services []ServiceStatus `json:"services"`
	Capture  *struct {
		Dropped uint64 `json:"dropped"`
		Filter  string `json:"kernel_filter"`
		Reason  string `json:"kernel_filter_reason"`
	} `json:"capture"`
	Sampling *struct {
		Way      *string `json:"way"`
		Reason   string  `json:"reason"`
		Now      bool    `json:"now"`
		Received *uint64 `json:"received"`
		Lost     *uint64 `json:"lost"`
	} `json:"sampling"`
	Unknown map[string]string `json:"unknown"`           // by source, why it is not known
	Tick    float64           `json:"tick_milliseconds"` // what the last sample took; 0 before the first
}

// ServiceStatus is a virtual service in a Status.
type ServiceStatus struct {
	Service          string    `json:"service"`
	Verdict          string    `json:"verdict"`
	Reason           string    `json:"reason"`
	Since            time.Time `json:"since"`
	SYNPerSecond     *float64  `json:"syn_per_second"`
	SuspectPerSecond *float64  `json:"suspect_per_second"`
	SuspectShare     *float64  `json:"suspect_share"`
	DroppedPerSecond *float64  `json:"dropped_per_second"`
	HalfOpen         *float64  `json:"half_open_connections"`
	Completion       *float64  `json:"completion"`
	// Handshakes is nil where none are watched.
	Handshakes *handshake.Figures `json:"handshakes"`
	Lease      *struct {
		By        string    `json:"by"`
		ExpiresAt time.Time `json:"expires_at"`
	} `json:"lease"`
}

// Status asks the guard on this host how things are.
func (h *Host) Status() Status {
	h.t.Helper()
	status, err := h.status()
	if err != nil {
		h.t.Fatal(err)
	}
	return status
}

func (h *Host) status() (Status, error) {
	var status Status
	err := h.readJSON(&status, "status", "--json")
	return status, err
}

// Service is the status of the site's service with this index. One that the guard does not know has no verdict.
func (d *Director) Service(index int) ServiceStatus {
	d.t.Helper()
	key := d.site.Key(index)
	for _, s := range d.Status().Services {
		if s.Service == key {
			return s
		}
	}
	return ServiceStatus{Service: key}
}

// Counters is what scenarios look at in the output of lvsguard counters --json.
type Counters struct {
	Services []ServiceCounters `json:"services"`
	Total    Counts            `json:"total"`
}

// ServiceCounters are the counters of a virtual service.
type ServiceCounters struct {
	Service string `json:"service"`
	Counts
}

// Counts are totals since the guard's table was made.
type Counts struct {
	SYN     uint64 `json:"syn_packets"`
	Suspect uint64 `json:"suspect_packets"`
	Dropped uint64 `json:"dropped_packets"`
}

// Counters reads the guard's table on this director, the guard dead or alive.
func (d *Director) Counters() Counters {
	d.t.Helper()
	var counters Counters
	if err := d.readJSON(&counters, "counters", "--json"); err != nil {
		d.t.Fatal(err)
	}
	return counters
}

func (h *Host) readJSON(into any, args ...string) error {
	text, err := h.TryLvsguard(args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("lvsguard %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return nil
}

// WaitVerdict waits until the guard says this of the service with this index, and gives how long that took.
func (d *Director) WaitVerdict(index int, verdict string, limit time.Duration) time.Duration {
	d.t.Helper()
	return Wait(d.t, limit, fmt.Sprintf("%s says %q of %s", d.Name, verdict, d.site.Key(index)), func() bool {
		return d.Service(index).Verdict == verdict
	})
}

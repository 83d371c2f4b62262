// Package doctor tells what is missing or risky on a host for lvsguard's work
// there, and the line that mends it.
//
// [Gather] reads the [Facts] of a host, and [Examine] makes [Finding]s of them.
// Gather writes nothing, loads no kernel module and starts no program. Examine is
// pure: the facts of any host can be written as JSON, and be examined elsewhere.
//
// What could not be read is unknown, with the reason; it is never taken for good
// or bad.
package doctor

import (
	"cmp"
	"slices"

	"github.com/lvsguard/lvsguard/guard/pressure"
)

// A Severity says how bad a finding is.
type Severity string

// The severities, the worst first.
const (
	Critical Severity = "critical" // the guard cannot do its work, or the host is in danger
	Warning  Severity = "warning"  // a part of its work, or of the host's safety, is missing
	Unknown  Severity = "unknown"  // it could not be looked at
	Advice   Severity = "advice"   // it would be better otherwise
	OK       Severity = "ok"
)

var order = []Severity{Critical, Warning, Unknown, Advice, OK}

// A Finding is how it stands with one thing.
type Finding struct {
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"` // what it is about, in a word or two
	What     string   `json:"what"`    // how it is
	Why      string   `json:"why"`     // why that is bad; empty where it is good
	// Remedy is the command or the line of a configuration that mends it; empty
	// where it is good.
	Remedy string `json:"remedy"`
}

// Worse says whether a finding wants somebody to act.
func (f Finding) Worse() bool { return f.Severity == Critical || f.Severity == Warning }

// A Role is what the host does.
type Role string

// The roles, as in lvsguard's configuration.
const (
	Director Role = "director"
	Host     Role = "host"
)

// A Fact is something that was read, or why it could not be.
type Fact[T any] struct {
	Value   T      `json:"value"`
	Unknown string `json:"unknown,omitempty"`
}

func known[T any](v T, err error) Fact[T] {
	if err != nil {
		return Fact[T]{Unknown: err.Error()}
	}
	return Fact[T]{Value: v}
}

func (f Fact[T]) known() bool { return f.Unknown == "" }

// Facts are what is known of a host.
type Facts struct {
	Role    Role   `json:"role"`
	Watches bool   `json:"watches"` // the configuration names addresses to count
	Version string `json:"version"` // of this program
	// ConfigFile is the guard's configuration, empty if there is none. Where
	// ConfigError says what is wrong with it, or ConfigUnknown why it could not be
	// read, the defaults stand in. ClearSecrets: by it, real servers are asked over
	// plain HTTP with a password or token. MetricsOpen: by it, metrics are served
	// beyond this host to whoever asks; MetricsClear: with a password or token, over
	// plain HTTP.
	ConfigFile    string `json:"config_file"`
	ConfigError   string `json:"config_error"`
	ConfigUnknown string `json:"config_unknown"`
	ClearSecrets  bool   `json:"clear_secrets"`
	MetricsOpen   bool   `json:"metrics_open"`
	MetricsClear  bool   `json:"metrics_clear"`
	// TellsAndShows: by the configuration this host tells of alerts itself, and
	// serves the metrics by which a fleet's Prometheus would.
	TellsAndShows bool         `json:"tells_and_shows"`
	Release       Fact[string] `json:"kernel_release"`

	Self  Process `json:"self"`
	Guard Guard   `json:"guard"`

	// Modules are where the kernel's modules are, by name.
	Modules map[string]Fact[Module] `json:"modules"`
	// Sysctls are settings by their names, "net.ipv4.vs.drop_entry". One that the
	// kernel does not have is not there.
	Sysctls map[string]Fact[int] `json:"sysctls"`

	IPVS       IPVS               `json:"ipvs"`
	Memory     pressure.Memory    `json:"memory"`
	PageSize   uint64             `json:"page_size"`
	Conntrack  pressure.Conntrack `json:"conntrack"`
	Chains     Fact[[]Chain]      `json:"chains"`
	Keepalived Keepalived         `json:"keepalived"`
	// Synchronised says whether the kernel takes its clock for right.
	Synchronised Fact[bool] `json:"clock_synchronised"`
	Unit         Unit       `json:"unit"`
	State        State      `json:"state"`
}

// A Process is what a process may do.
type Process struct {
	// Capabilities are those of its effective ones that matter here.
	Capabilities Fact[[]string] `json:"capabilities"`
	Root         bool           `json:"root"`
}

// A Guard is the one that runs on the host, if one does.
type Guard struct {
	Socket string       `json:"socket"`
	Answer Fact[Answer] `json:"answer"`
	// The rest is of a guard that answers.
	PID     int     `json:"pid"`
	Process Process `json:"process"`
	// Replaced: its file is not the one any more that it was started from.
	Replaced bool `json:"replaced"`
}

// An Answer is what becomes of a connection to the control socket.
type Answer string

// The answers.
const (
	Answers   Answer = "answers"
	NoSocket  Answer = "no socket"
	Refuses   Answer = "refuses" // nobody listens any more
	Forbidden Answer = "forbidden"
)

// A Module is where a part of the kernel is.
type Module string

// Where it may be.
const (
	Loaded    Module = "loaded" // or built in
	Available Module = "available"
	Absent    Module = "absent"
)

// IPVS is what it serves.
type IPVS struct {
	Loaded   bool      `json:"loaded"`
	Services Fact[int] `json:"services"`
	// OneWay: there are services whose answers do not pass the director.
	OneWay bool `json:"one_way"`
}

// A Chain is a base chain of somebody else's that sees packets before IPVS.
type Chain struct {
	Table    string `json:"table"` // "inet filter"
	Name     string `json:"name"`
	Hook     string `json:"hook"` // "prerouting" or "ingress"
	Priority int    `json:"priority"`
	Drops    bool   `json:"policy_drop"`
}

// Keepalived is how it and the guard are joined.
type Keepalived struct {
	Version Fact[string] `json:"version"` // empty: no program was found
	Path    string       `json:"path"`
	// Present is whether there is such a configuration. What follows is of it.
	Present   Fact[bool] `json:"present"`
	Instances []string   `json:"instances"`
	FIFOs     []string   `json:"fifos"`
	Skipped   []string   `json:"skipped"`
	Security  bool       `json:"enable_script_security"`
	Hooks     []Hook     `json:"hooks"`
	// GuardFIFO is the one that the guard is to read, and GuardInstances is
	// whether its own configuration names the instances.
	GuardFIFO      string `json:"guard_fifo"`
	GuardInstances bool   `json:"guard_instances"`
}

// A Hook is a notify script of keepalived's.
type Hook struct {
	At      string `json:"at"` // file and line
	Program string `json:"program"`
	Ours    bool   `json:"ours"` // it is lvsguard itself
	Missing bool   `json:"missing"`
	// Open are the parts of its path that others than root may change.
	Open []string `json:"open"`
}

// A Unit is that of systemd.
type Unit struct {
	Systemd bool   `json:"systemd"`
	File    string `json:"file"` // empty: none
	Enabled bool   `json:"enabled"`
}

// State is the directory of journal and toggle.
type State struct {
	Path     string       `json:"path"`
	Exists   Fact[bool]   `json:"exists"`
	Writable Fact[bool]   `json:"writable"`
	Free     Fact[uint64] `json:"free_bytes"`
	// Needed is what the journal may come to, besides what it has.
	Needed  uint64      `json:"needed_bytes"`
	Journal Fact[int64] `json:"journal_bytes"` // -1: none
}

// report gathers findings.
type report struct {
	found []Finding
}

func (r *report) add(s Severity, subject, what, why, remedy string) {
	r.found = append(r.found, Finding{Severity: s, Subject: subject, What: what, Why: why, Remedy: remedy})
}

func (r *report) ok(subject, what string) { r.add(OK, subject, what, "", "") }

// unknown puts down what could not be looked at.
func (r *report) unknown(f *Facts, subject, what, reason string) {
	remedy := "lvsguard doctor --json (shows what could be read)"
	switch {
	case !f.Self.Root:
		remedy = "sudo lvsguard doctor"
	case !f.Self.has(netAdmin):
		remedy = "lvsguard doctor, where root has CAP_NET_ADMIN: on the host itself"
	}
	r.add(Unknown, subject, what, reason, remedy)
}

// Examine tells how it stands, the worst first.
func Examine(f Facts) []Finding {
	r := &report{}
	for _, check := range []func(*Facts, *report){
		configuration, guardRuns, capabilities, kernel, modules, sampling, defence, lowMemory, conntrack, listening, hooks, wiring, scripts, clock, unit, state,
	} {
		check(&f, r)
	}
	slices.SortStableFunc(r.found, func(a, b Finding) int {
		return cmp.Compare(slices.Index(order, a.Severity), slices.Index(order, b.Severity))
	})
	return r.found
}

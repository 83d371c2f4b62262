// Package guard watches the virtual services of an LVS director for SYN floods
// and, if it may, drops them by leases that the kernel itself lifts.
//
// Once a second everything that is known is put into a [Sample]; a [Detector]
// makes [Verdict]s of it and a [Policy] makes [Action]s of those. All of that is
// pure. The [Daemon] does the rest: it reads, applies, keeps a [Journal] and
// answers. It promises to drop nothing in observe mode but what an operator
// arms, to leave nothing in the kernel that does not lapse by itself, and to
// call what it cannot read unknown.
package guard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
	"github.com/lvsguard/lvsguard/nft"
)

// Options are what a Daemon needs.
type Options struct {
	Version    string
	ConfigFile string // "": the defaults
	StateDir   string
	// HookSocket is where keepalived's hook says "look again".
	HookSocket string
	Kernel     Kernel
	Log        *slog.Logger
	// Ready is called when the first look is done, Alive after each.
	Ready, Alive func()
}

// A Daemon is the running guard. Open it, then Run it once.
type Daemon struct {
	opts Options
	cfg  *Config

	detector *Detector
	policy   *Policy
	roster   roster
	journal  *Journal
	view     atomic.Pointer[view]
	// connections are read beside the control loop.
	connections connectionsWatch
	troubles    troubles

	// All below belongs to the control loop, which is the only one to write the
	// table.
	table    Table
	modeFrom ModeFrom
	removed  bool // an operator took the table away
	ensured  []netip.AddrPort
	// pending are changes of leases that the kernel has not taken yet: until
	// when each is to last, zero to end it.
	pending map[netip.AddrPort]time.Time
	backoff time.Duration
	retry   *time.Timer

	sample      Sample
	served      []ipvs.Service
	counted     *nft.Counters
	verdicts    []Verdict
	census      ipvs.Census
	censusAt    time.Time
	unknownWas  map[Source]string
	roles       roles
	watch       watch
	pressure    hostPressure
	servers     serversWatch
	health      health
	sampling    sampling
	incidents   incidents
	tableLosses uint64
	tasks       *errgroup.Group // of Run
	started     time.Time
	configErr   *string
	tickTook    time.Duration
	tally       Tally

	hook     *keepalived.Listener
	lock     net.Listener
	stateFD  *os.File
	requests chan request
	looks    chan struct{}
	events   chan keepalived.Event
	gaps     chan error
}

type request struct {
	do   func(now time.Time)
	done chan struct{}
}

// New makes a daemon and touches nothing.
func New(opts Options) *Daemon {
	return &Daemon{
		opts:     opts,
		pressure: hostPressure{host: opts.Kernel.Host},
		sampling: sampling{open: opts.Kernel.OpenQueue, number: sampleQueue},
		tasks:    new(errgroup.Group),
		pending:  make(map[netip.AddrPort]time.Time),
		requests: make(chan request),
		looks:    make(chan struct{}, 1),
		events:   make(chan keepalived.Event, 64),
		gaps:     make(chan error, 64),
	}
}

// Open reads the configuration, takes the locks, opens the kernel and adopts
// what an earlier guard left there. After an error nothing is held.
func (d *Daemon) Open() (err error) {
	now := time.Now()
	d.started = now
	cfg, err := d.load()
	if err != nil {
		return err
	}
	d.use(cfg)
	if err := os.MkdirAll(d.opts.StateDir, 0o750); err != nil {
		return fmt.Errorf("make the state directory: %w (run as root, or give another --state-dir)", err)
	}
	// 0755: keepalived starts its hook as a user without rights.
	if err := os.MkdirAll(filepath.Dir(d.opts.HookSocket), 0o755); err != nil {
		return fmt.Errorf("make the runtime directory: %w (run as root, or give another --socket)", err)
	}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := d.takeLocks(); err != nil {
		return err
	}
	d.journal = NewJournal(d.opts.StateDir, cfg.Journal)
	d.incidents = incidents{chronicle: newChronicle(&d.opts, d.journal.Add), going: make(map[ipvs.Key]*going), since: now}
	d.policy = NewPolicy(cfg.Mode, cfg.Prearm)
	d.detector = NewDetector(cfg)
	saved, err := loadState(d.opts.StateDir)
	if err != nil {
		d.opts.Log.Warn("the state of before cannot be used", "error", err)
		d.note(now, Entry{Event: EventSource, Reason: err.Error()})
	}
	d.modeFrom = ModeFromConfig
	if d.opts.ConfigFile == "" {
		d.modeFrom = ModeFromDefault
	}
	if saved.Mode != "" {
		d.policy.SetMode(saved.Mode)
		d.modeFrom = ModeFromToggle
	}
	d.removed = saved.Removed
	if err := d.openTable(cfg); err != nil {
		return err
	}
	if d.hook, err = keepalived.Listen(d.opts.HookSocket); err != nil {
		return fmt.Errorf("listen for keepalived's hook: %w", err)
	}
	d.readRoles()
	d.adopt(now, saved)
	d.sample = Sample{Time: now, Unknown: make(map[Source]string)}
	d.publish(now)
	d.note(now, Entry{Event: EventStart, To: string(d.policy.Mode()), Reason: "version " + d.opts.Version})
	return nil
}

// takeLocks makes sure that no other guard writes this state directory or, in
// this network namespace, this table. Both locks go with the process.
func (d *Daemon) takeLocks() error {
	f, err := openAppend(filepath.Join(d.opts.StateDir, "lock"))
	if err != nil {
		return fmt.Errorf("lock the state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("another guard uses %s: give this one another --state-dir, or stop the other", d.opts.StateDir)
	}
	d.stateFD = f
	// The names of abstract sockets belong to the network namespace, as the
	// table does.
	d.lock, err = net.Listen("unix", "@lvsguard/table")
	if errors.Is(err, syscall.EADDRINUSE) {
		return errors.New("another guard runs in this network namespace: there can be one, because there is one table (see: lvsguard status)")
	}
	if err != nil {
		return fmt.Errorf("lock the table: %w", err)
	}
	return nil
}

// Close gives back what Open took. The table and its leases stay as they are.
func (d *Daemon) Close() error {
	errs := []error{d.pressure.close()}
	if d.hook != nil {
		errs = append(errs, d.hook.Close())
	}
	if d.table != nil {
		errs = append(errs, d.sampling.close(d.table), d.table.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	if d.stateFD != nil {
		errs = append(errs, d.stateFD.Close())
	}
	d.hook, d.table, d.lock, d.stateFD = nil, nil, nil, nil
	return errors.Join(errs...)
}

// adopt takes over what the kernel holds, services and leases, and the
// operators' arms of before.
func (d *Daemon) adopt(now time.Time, saved savedState) {
	if d.table == nil {
		return
	}
	counters, err := d.table.Counters()
	if err == nil {
		configured := make(map[netip.AddrPort]bool)
		for _, at := range watchedAddresses(d.roster.list()) {
			configured[at] = true
		}
		for at := range counters.Services {
			if !configured[at] {
				d.roster.remember(ipvs.Key{Protocol: ipvs.TCP, Addr: at})
			}
		}
		err = d.adoptLeases(now)
	}
	if err != nil && !errors.Is(err, nft.ErrAbsent) {
		d.opts.Log.Warn("the table of before cannot be read", "error", err)
	}
	passed := saved.passed(now)
	for _, a := range saved.Arms {
		if left := a.Remaining - passed; left > time.Second {
			d.policy.Arm(a.Service, now.Add(min(left, MaxArm)), a.Who)
		}
	}
}

func (d *Daemon) adoptLeases(now time.Time) error {
	held, err := d.table.Leases()
	if err != nil {
		return err
	}
	for _, s := range d.roster.list() {
		for _, at := range s.Addresses {
			if remaining, ok := held[at]; ok {
				d.policy.Adopt(now, s.Key, remaining)
			}
		}
	}
	return nil
}

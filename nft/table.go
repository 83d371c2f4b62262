package nft

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Table is the guard's table in the network namespace in which Open was
// called. Its methods may be called from several goroutines; they wait for
// each other, each for at most 2 s a call to the kernel.
type Table struct {
	layout      layout
	fingerprint string

	mu     sync.Mutex
	kernel *kernel

	ensured    bool             // Ensure has succeeded, and so services are known
	generation uint32           // the last at which the table was known to be in order; 0: none
	services   []netip.AddrPort // what Ensure was last told
	leases     map[netip.AddrPort]time.Time

	ways     []way
	sample   []chain  // the chains that Sample has made; nil: none
	sampling Sampling // what for
	way      Way

	counting []setSpec // the sets that count, as the kernel has them; nil: not read yet
	since    time.Time
	last     Counters        // the last reading of everything
	lastAt   uint32          // the generation of that
	moves    map[move]uint64 // what stood in the sets that move first, just before it
}

// Open prepares for the table and touches nothing. The error is one that
// errors.Is os.ErrPermission and names CAP_NET_ADMIN where that is missing, and
// names the kernel's option where it has no nf_tables. What only reads a table
// needs no Config.
func Open(cfg Config) (*Table, error) {
	if cfg.Signatures == nil {
		cfg.Signatures = DefaultSignatures()
	}
	if err := validateSignatures(cfg.Signatures); err != nil {
		return nil, err
	}
	for _, p := range cfg.Allow {
		if !p.IsValid() {
			return nil, fmt.Errorf("allow: %v is no prefix", p)
		}
	}
	l := newLayout(cfg)
	k, err := dial()
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	if _, err := k.generation(); err != nil {
		k.close()
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	return &Table{
		layout:      l,
		fingerprint: l.fingerprint(),
		kernel:      k,
		leases:      map[netip.AddrPort]time.Time{},
		ways:        ways(),
	}, nil
}

// Close leaves the table and its leases as they are.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kernel.close()
}

// A Change says what Ensure did.
type Change string

const (
	Unchanged Change = "unchanged" // all was as wanted
	Created   Change = "created"   // there was no table
	Adopted   Change = "adopted"   // the table of an earlier process, counters and leases kept
	Updated   Change = "updated"   // services came or went, or lost elements were put back
	Replaced  Change = "replaced"  // the table was not as this layout wants it
)

// Changed is what Ensure did and why.
type Changed struct {
	Change         Change
	Reason         string           // in words, for Created and Replaced
	Added, Removed []netip.AddrPort // services, sorted
	Leases         int              // in force afterwards
}

// Ensure makes the table count exactly services, in one transaction: it makes
// the table, adopts it as it stands, adds and removes services, or replaces it
// atomically. A service with port 0 is every port of its address that no other
// service names. Leases outlive all of it, those of a table that somebody
// deleted included, except that a removed service loses its lease. Totals
// outlive it too, but for those of a removed service and of a deleted table; a
// replacement may lose the packets of the milliseconds between reading the old
// totals and making the new table.
func (t *Table) Ensure(services []netip.AddrPort) (Changed, error) {
	services, err := normalize(services)
	if err != nil {
		return Changed{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	var changed Changed
	var leases map[netip.AddrPort]time.Duration
	_, after, err := t.transact(func(generation uint32) (err error) {
		changed, leases, err = t.plan(services, generation)
		return err
	})
	if err != nil {
		return Changed{}, fmt.Errorf("make table inet %s count %d services: %w", tableName, len(services), err)
	}
	t.ensured, t.services, t.generation = true, services, after
	if changed.Change != Unchanged {
		t.counting = nil
	}
	t.remember(leases)
	return changed, nil
}

// plan queues what Ensure has to do and tells what that is. At a generation
// that is known to be in order and with the services known, that is nothing.
func (t *Table) plan(services []netip.AddrPort, generation uint32) (Changed, map[netip.AddrPort]time.Duration, error) {
	now := time.Now()
	if t.ensured && generation == t.generation && slices.Equal(services, t.services) {
		leases := keep(services, nil, t.leases, now)
		return Changed{Change: Unchanged, Leases: len(leases)}, leases, nil
	}
	state, err := t.kernel.state()
	if errors.Is(err, os.ErrNotExist) {
		leases := keep(services, nil, t.leases, now)
		reason := "there was none"
		if t.ensured {
			reason = "somebody had deleted it"
		}
		t.sample = nil
		t.queue(holding{since: now}, services, leases)
		return Changed{Change: Created, Reason: reason, Added: services, Leases: len(leases)}, leases, nil
	}
	if err != nil {
		return Changed{}, nil, err
	}
	held := state.holding()
	leases := keep(services, held.leases(), t.leases, now)
	changed := Changed{Change: Unchanged, Leases: len(leases)}
	changed.Removed, changed.Added = without(held.services(), services), without(services, held.services())

	if reason := t.differs(state); reason != "" {
		if held.since.IsZero() {
			held.since = now
		}
		t.sample = nil
		t.kernel.queueDelete()
		t.queue(held, services, leases)
		changed.Change, changed.Reason = Replaced, reason
		return changed, leases, nil
	}
	if t.sampleDiffers(state) != "" {
		// Sample makes it anew, if it is wanted.
		t.sample = nil
		var chains []string
		for _, c := range state.sampleChains() {
			chains = append(chains, c.Name)
		}
		t.kernel.queueDeleteChains(chains)
		changed.Change = Updated
	}
	for _, s := range t.layout.sets {
		if s.role == roleAllowed {
			continue // part of the structure
		}
		remove, add := diff(held.elements[s], s.wantedElements(services, leases))
		if len(remove)+len(add) > 0 {
			t.kernel.queueElements(s, remove, add)
			changed.Change = Updated
		}
	}
	if !t.ensured {
		changed.Change = Adopted
	}
	return changed, leases, nil
}

func (t *Table) queue(held holding, services []netip.AddrPort, leases map[netip.AddrPort]time.Duration) {
	elements := map[setSpec][]Element{}
	for _, s := range t.layout.sets {
		elements[s] = held.carried(s, services, leases)
	}
	t.kernel.queueTable(t.layout, mark{t.fingerprint, held.since}, held.counters, elements)
}

// differs tells in words how a table is not of this layout, "" if it is.
func (t *Table) differs(s State) string {
	structure, wanted := s.structure(), t.layout.state().structure()
	switch {
	case s.Layout == "":
		return "it had no mark of ours"
	case structure != wanted && s.Layout == t.fingerprint:
		return "somebody had changed it: " + firstDifference(structure, wanted)
	case structure != wanted || s.Layout != t.fingerprint:
		return "it was made by another version or configuration"
	default:
		return ""
	}
}

// without returns what is in a and not in b, both sorted.
func without(a, b []netip.AddrPort) []netip.AddrPort {
	var rest []netip.AddrPort
	for _, s := range a {
		if !contains(b, s) {
			rest = append(rest, s)
		}
	}
	return rest
}

// contains searches a sorted list.
func contains(sorted []netip.AddrPort, s netip.AddrPort) bool {
	_, found := slices.BinarySearchFunc(sorted, s, netip.AddrPort.Compare)
	return found
}

// Check tells whether the table still is as Ensure left it: nil, ErrAbsent or
// ErrAltered. It is cheap enough to be called each second: while no table in
// the namespace changes, it reads one number.
func (t *Table) Check() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.read(func() error {
		generation, err := t.kernel.generation()
		if err != nil || generation == t.generation {
			return err
		}
		state, err := t.kernel.state()
		if err != nil {
			return err
		}
		if reason := cmp.Or(t.differs(state), t.sampleDiffers(state)); reason != "" {
			return fmt.Errorf("%w: %s", ErrAltered, reason)
		}
		if !t.ensured {
			return nil
		}
		held := state.holding()
		leases := keep(t.services, held.leases(), t.leases, time.Now())
		for _, s := range t.layout.sets {
			if s.role == roleAllowed {
				continue
			}
			if remove, add := diff(held.elements[s], s.wantedElements(t.services, leases)); len(remove)+len(add) > 0 {
				return fmt.Errorf("%w: set %s has lost %d elements and won %d", ErrAltered, s.name(), len(add), len(remove))
			}
		}
		t.generation = generation
		return nil
	})
}

// Arm drops what matches a signature and goes to these services, for the given
// time from now, in one transaction and without a gap for those that are armed
// already. Durations are from MinLease to MaxLease. A service that the table
// does not count is an error.
func (t *Table) Arm(leases map[netip.AddrPort]time.Duration) error {
	wanted := make(map[netip.AddrPort]time.Duration, len(leases))
	for service, d := range leases {
		if err := checkLease(service, d); err != nil {
			return err
		}
		wanted[netip.AddrPortFrom(service.Addr().Unmap(), service.Port())] = d
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	services, err := t.watched()
	if err != nil {
		return fmt.Errorf("arm: %w", err)
	}
	armed := slices.SortedFunc(maps.Keys(wanted), netip.AddrPort.Compare)
	if unknown := without(armed, services); len(unknown) > 0 {
		return fmt.Errorf("arm %v: the table does not count it: it is no virtual service that was given to Ensure", unknown[0])
	}
	err = t.changeLeases(armed, func(s setSpec) []Element { return s.wantedElements(armed, wanted) })
	if err != nil {
		return fmt.Errorf("arm %d services: %w", len(armed), err)
	}
	now := time.Now()
	for service, d := range wanted {
		t.leases[service] = now.Add(d)
	}
	return nil
}

// Disarm ends the leases of these services now. One that has no lease, and an
// absent table, is no error.
func (t *Table) Disarm(services []netip.AddrPort) error {
	services, err := normalize(services)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range services {
		delete(t.leases, s)
	}
	err = t.changeLeases(services, func(setSpec) []Element { return nil })
	if err != nil && !errors.Is(err, ErrAbsent) {
		return fmt.Errorf("disarm %d services: %w", len(services), err)
	}
	return nil
}

// changeLeases removes the elements that services have and adds others, in one
// transaction. Up to 6.11 an element that is added again keeps its old
// timeout, so that a lease is renewed by removing and adding it; between the
// two no packet gets through. An element that expires after it was read makes
// the kernel refuse the whole, and the next reading does without it.
func (t *Table) changeLeases(services []netip.AddrPort, add func(setSpec) []Element) error {
	before, after, err := t.transact(func(uint32) error {
		held := map[setSpec][]Element{}
		for _, s := range armedSets {
			elements, err := t.kernel.elements(s)
			if err != nil {
				return err
			}
			held[s] = slices.DeleteFunc(elements, func(e Element) bool { return !contains(services, e.Service) })
		}
		for _, s := range armedSets {
			t.kernel.queueElements(s, held[s], add(s))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if t.generation == before {
		t.generation = after
	}
	return nil
}

// armedSets are the sets of leases, of every layout.
var armedSets = []setSpec{
	{role: roleArmed, family: ipv4}, {role: roleArmed, family: ipv4, every: true},
	{role: roleArmed, family: ipv6}, {role: roleArmed, family: ipv6, every: true},
}

// watched returns the services that the table counts, sorted.
func (t *Table) watched() ([]netip.AddrPort, error) {
	if t.ensured {
		return t.services, nil
	}
	var services []netip.AddrPort
	err := t.read(func() error {
		held := holding{elements: map[setSpec][]Element{}}
		for _, armed := range armedSets {
			s := armed
			s.role = roleService
			var err error
			if held.elements[s], err = t.kernel.elements(s); err != nil {
				return err
			}
		}
		services = held.services()
		return nil
	})
	return services, err
}

// Leases returns the remaining time of every lease, to about the kernel's
// clock tick (1 to 10 ms); ErrAbsent without a table.
func (t *Table) Leases() (map[netip.AddrPort]time.Duration, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var leases map[netip.AddrPort]time.Duration
	err := t.read(func() error {
		held := holding{elements: map[setSpec][]Element{}}
		for _, s := range armedSets {
			var err error
			if held.elements[s], err = t.kernel.elements(s); err != nil {
				return err
			}
		}
		leases = held.leases()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the leases: %w", err)
	}
	return leases, nil
}

// State returns the table as the kernel holds it; ErrAbsent without one.
func (t *Table) State() (State, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var s State
	err := t.read(func() (err error) {
		s, err = t.kernel.state()
		return err
	})
	return s, err
}

// Listing writes the table as the kernel holds it, as nft text; ErrAbsent
// without one.
func (t *Table) Listing(w io.Writer) error {
	s, err := t.State()
	if err != nil {
		return err
	}
	_, err = s.WriteTo(w)
	return err
}

// Remove deletes the table, leases and counters with it. An absent table is no
// error.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ensured, t.generation, t.counting, t.sample = false, 0, nil, nil
	clear(t.leases)
	_, _, err := t.transact(func(uint32) error {
		present, err := t.kernel.present()
		if present {
			t.kernel.queueDelete()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove table inet %s: %w", tableName, err)
	}
	return nil
}

const tries = 10

// transact plans and applies one transaction, and returns the generations
// before and after it. The plan reads what it needs and then queues what is to
// be done; if any table has changed meanwhile, or an element has expired, the
// kernel refuses the whole, and it is planned anew.
func (t *Table) transact(plan func(generation uint32) error) (before, after uint32, err error) {
	return t.transactIf(passing, plan)
}

// transactIf is transact with another rule of which errors are worth a new try.
func (t *Table) transactIf(again func(error) bool, plan func(generation uint32) error) (before, after uint32, err error) {
	for range tries {
		err = t.read(func() error {
			if before, err = t.kernel.generation(); err != nil {
				return err
			}
			return plan(before)
		})
		if err != nil {
			return 0, 0, err
		}
		if after, err = t.kernel.flush(before); err == nil {
			return before, after, nil
		}
		t.repair(err)
		if !again(err) {
			return 0, 0, err
		}
	}
	return 0, 0, fmt.Errorf("after %d tries: %w", tries, err)
}

// read calls f, and again while it fails for a reason that passes. What is not
// there is ErrAbsent.
func (t *Table) read(f func() error) error {
	var err error
	for range tries {
		if err = f(); err == nil {
			return nil
		}
		t.repair(err)
		if errors.Is(err, os.ErrNotExist) {
			return ErrAbsent
		}
		if !passing(err) {
			return err
		}
	}
	return fmt.Errorf("after %d tries: %w", tries, err)
}

// repair opens a new socket where answers to a failed call may still come on
// the old one. If it cannot, the old one stays, and so does the next error.
func (t *Table) repair(err error) {
	var answer unix.Errno
	if errors.Is(err, ErrAltered) || errors.As(err, &answer) && answer != unix.ENOBUFS {
		return
	}
	if k, err := dial(); err == nil {
		_ = t.kernel.close()
		t.kernel = k
	}
}

func (t *Table) remember(leases map[netip.AddrPort]time.Duration) {
	now := time.Now()
	t.leases = make(map[netip.AddrPort]time.Time, len(leases))
	for s, d := range leases {
		t.leases[s] = now.Add(d)
	}
}

package capture

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A filter is what stands between the interfaces and user space.
type filter interface {
	// follow passes on what comes by these interfaces (their index, and a mode
	// as linkEthernet), and of what goes out what these addresses send.
	follow(interfaces map[uint32]uint32, locals map[[16]byte]bool) error
	// arm counts SYNs with the signature of a flood to these services, and
	// passes them on no more; but for a share of them, which it does not count.
	// Where those that are not passed on are recorded all the same, there is no
	// such share.
	arm(services []netip.AddrPort, share float64) error
	count() (tally, error)
	Close() error
}

// A tally is what a filter has counted.
type tally struct {
	packets           *uint64 // on the interfaces; nil if it does not count
	copies, fragments uint64  // left out
	screened          map[netip.AddrPort]uint64
}

// How much a filter's maps hold.
const (
	maxInterfaces = 4096
	maxLocals     = 65536
	maxArmed      = 65536
)

// An armedKey is what the filter looks up of a SYN's destination: address, port
// and two bytes of 0, as in the headers.
type armedKey [armedSize]byte

func keyOf(service netip.AddrPort) armedKey {
	var k armedKey
	a := service.Addr().As16()
	copy(k[:], a[:])
	binary.BigEndian.PutUint16(k[16:], service.Port())
	return k
}

func (k armedKey) service() netip.AddrPort {
	return addrPort([16]byte(k[:16]), binary.BigEndian.Uint16(k[16:]))
}

// kernelFilter is the eBPF filter: its program, the one that steers packets to
// workers, and their maps. It wants its caller to hold a lock.
type kernelFilter struct {
	interfaces, locals, armed, sampled, syns, counts *ebpf.Map
	program, steering                                *ebpf.Program
	memory                                           int64 // of the maps, in bytes

	// What is in the maps.
	hasInterfaces map[uint32]uint32
	hasLocals     map[[16]byte]bool
	hasArmed      map[armedKey]bool
	// lifted is what was counted for services up to when they were disarmed.
	lifted map[armedKey]uint64
}

// loadFilter loads the programs into the kernel, with room for that many SYNs.
func loadFilter(syns int) (*kernelFilter, error) {
	f, err := tryFilter(syns)
	if errors.Is(err, unix.EPERM) {
		// Before Linux 5.11, maps count as locked memory, of which little is
		// allowed. Without the right to more, it fails as before.
		all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		if unix.Setrlimit(unix.RLIMIT_MEMLOCK, &all) == nil {
			f, err = tryFilter(syns)
		}
	}
	return f, err
}

func tryFilter(syns int) (_ *kernelFilter, err error) {
	f := &kernelFilter{
		hasInterfaces: make(map[uint32]uint32), hasLocals: make(map[[16]byte]bool),
		hasArmed: make(map[armedKey]bool), lifted: make(map[armedKey]uint64),
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	bits := 0
	for (setCalm+setFlood)<<bits < syns {
		bits++
	}
	bits = max(bits, 1)
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&f.interfaces, ebpf.MapSpec{Name: "interfaces", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: maxInterfaces, Flags: unix.BPF_F_NO_PREALLOC}},
		{&f.locals, ebpf.MapSpec{Name: "locals", Type: ebpf.Hash, KeySize: 16, ValueSize: 1, MaxEntries: maxLocals, Flags: unix.BPF_F_NO_PREALLOC}},
		{&f.armed, ebpf.MapSpec{Name: "armed", Type: ebpf.Hash, KeySize: armedSize, ValueSize: 8, MaxEntries: maxArmed, Flags: unix.BPF_F_NO_PREALLOC}},
		{&f.sampled, ebpf.MapSpec{Name: "sampled", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}},
		{&f.syns, ebpf.MapSpec{Name: "syns", Type: ebpf.Array, KeySize: 4, ValueSize: setSize, MaxEntries: 1 << bits}},
		{&f.counts, ebpf.MapSpec{Name: "counts", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8 * numCounts, MaxEntries: 1}},
	} {
		if *m.to, err = ebpf.NewMap(&m.spec); err != nil {
			return nil, fmt.Errorf("make the map %s: %w", m.spec.Name, err)
		}
	}
	// Of the others, only the buckets: 16 bytes each.
	f.memory = setSize<<bits + 16*(maxInterfaces+maxLocals+maxArmed)

	keys := randomKeys()
	maps := filterMaps{
		interfaces: f.interfaces.FD(), locals: f.locals.FD(), armed: f.armed.FD(), sampled: f.sampled.FD(),
		syns: f.syns.FD(), counts: f.counts.FD(),
		sets: bits,
	}
	f.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lvsguard_filter", Type: ebpf.SocketFilter, License: license, Instructions: filterProgram(maps, keys),
	})
	if err != nil {
		return nil, fmt.Errorf("load the filter: %w", err)
	}
	f.steering, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lvsguard_steer", Type: ebpf.SocketFilter, License: license, Instructions: steeringProgram(maps, keys),
	})
	if err != nil {
		return nil, fmt.Errorf("load the program that steers packets to workers: %w", err)
	}
	return f, nil
}

// license is the project's; none of the helpers that the programs call asks for
// another.
const license = "Apache-2.0"

// Close closes what there is: to close a nil map or program does nothing.
func (f *kernelFilter) Close() error {
	return errors.Join(f.program.Close(), f.steering.Close(),
		f.interfaces.Close(), f.locals.Close(), f.armed.Close(), f.sampled.Close(), f.syns.Close(), f.counts.Close())
}

func (f *kernelFilter) follow(interfaces map[uint32]uint32, locals map[[16]byte]bool) error {
	return errors.Join(
		// Addresses first: an interface without its addresses sends copies only.
		renew(f.locals, f.hasLocals, locals),
		renew(f.interfaces, f.hasInterfaces, interfaces),
	)
}

// renew makes a map of the kernel, which holds what has does, hold what want
// does.
func renew[K, V comparable](m *ebpf.Map, has, want map[K]V) error {
	for k, v := range want {
		if old, ok := has[k]; ok && old == v {
			continue
		}
		if err := m.Put(k, v); err != nil {
			return fmt.Errorf("renew the filter's map: %w", err)
		}
		has[k] = v
	}
	for k := range has {
		if _, ok := want[k]; ok {
			continue
		}
		if err := m.Delete(k); err != nil {
			return fmt.Errorf("renew the filter's map: %w", err)
		}
		delete(has, k)
	}
	return nil
}

func (f *kernelFilter) arm(services []netip.AddrPort, share float64) error {
	if err := f.sampled.Put(uint32(0), uint32(share*math.MaxUint32)); err != nil {
		return fmt.Errorf("set the filter's sampling: %w", err)
	}
	want := make(map[armedKey]bool)
	for _, s := range services {
		want[keyOf(s)] = true
	}
	for k := range want {
		if f.hasArmed[k] {
			continue
		}
		if err := f.armed.Put(k, uint64(0)); err != nil {
			return fmt.Errorf("arm %s in the filter: %w", k.service(), err)
		}
		f.hasArmed[k] = true
	}
	for k := range f.hasArmed {
		if want[k] {
			continue
		}
		n, err := take(f.armed, k)
		if err != nil {
			return fmt.Errorf("disarm %s in the filter: %w", k.service(), err)
		}
		f.lifted[k] += n
		delete(f.hasArmed, k)
	}
	return nil
}

// take removes a counter from a map and returns its last value.
func take(m *ebpf.Map, k armedKey) (n uint64, err error) {
	err = m.LookupAndDelete(k, &n)
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return n, err
	}
	// Before Linux 5.14. What is counted in between is not.
	if err := m.Lookup(k, &n); err != nil {
		return 0, err
	}
	return n, m.Delete(k)
}

func (f *kernelFilter) count() (tally, error) {
	var cpus [][numCounts]uint64
	if err := f.counts.Lookup(uint32(0), &cpus); err != nil {
		return tally{}, fmt.Errorf("read the filter's counters: %w", err)
	}
	var sum [numCounts]uint64
	for _, cpu := range cpus {
		for i, n := range cpu {
			sum[i] += n
		}
	}
	t := tally{
		packets: &sum[countPackets], copies: sum[countCopies], fragments: sum[countFragments],
		screened: make(map[netip.AddrPort]uint64),
	}
	for k, n := range f.lifted {
		t.screened[k.service()] = n
	}
	for k := range f.hasArmed {
		var n uint64
		if err := f.armed.Lookup(k, &n); err != nil {
			return tally{}, fmt.Errorf("read the filter's count for %s: %w", k.service(), err)
		}
		t.screened[k.service()] += n
	}
	return t, nil
}

func randomKeys() *hashKeys {
	key := func() uint64 {
		var b [8]byte
		rand.Read(b[:]) // never fails
		return binary.NativeEndian.Uint64(b[:])
	}
	k := &hashKeys{seed: key(), ports: key()}
	for i := range k.src {
		k.src[i], k.dst[i] = key(), key()
	}
	return k
}

package capture

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// What Live does if it is not told otherwise.
const (
	defaultRing = 8 << 20

	// batchSize is how many segments are handed on at once, at most.
	batchSize = 256
	// idle is after how long a worker without packets calls its handler.
	idle = 100 * time.Millisecond

	// lookAround is after how long a change of interfaces or addresses is seen
	// that the kernel did not announce. One that it did is seen at once, but no
	// sooner than settle after the last.
	lookAround = 2 * time.Second
	settle     = 50 * time.Millisecond
)

// defaultSYNs is for how many SYNs the filter has room if it is not told
// otherwise, in 24 MiB. Of 300,000 SYNs a second that are answered after 2 s, it
// forgets fewer than 1 in 10,000, after 200 ms none; of 100,000 more with the
// signature 1 in 75, after 200 ms none either.
const defaultSYNs = 2_000_000

// MaxWorkers is how many workers there are at most if nobody says how many.
const MaxWorkers = 8

// LiveConfig says what is captured.
type LiveConfig struct {
	// Interfaces are the names of those to read, or "any". If there are none,
	// those with one of Services' addresses, or with the default route, are.
	Interfaces []string
	// Services gives the addresses of the virtual services, if it is not nil.
	// It is asked at every look at the interfaces, at least every 2 s. What this
	// host sends from one of them counts as its own, as what it sends from its
	// interfaces' addresses does.
	Services func() []netip.Addr
	// Workers is how many there are; 0: one for each core, at most 8. With the
	// classic filter, there is always one.
	Workers int
	// Ring is the size of each worker's ring in bytes; 0: 8 MiB, which holds
	// some 55,000 packets.
	Ring int
	// SYNs is for how many SYNs the eBPF filter has room, of which a quarter is
	// for those with a flood's signature; 0: 2,000,000, in 24 MiB (on 32-bit
	// 500,000, in 6 MiB).
	SYNs int
	// Recorder says what is kept of the packets.
	Recorder RecorderConfig
	// Log hears of interfaces that come and go. Nil: nobody does.
	Log *slog.Logger
}

// Live captures what comes and goes by this host's interfaces. All of its
// methods but Run and Close can be called at any time, by anyone, and stop no
// worker.
type Live struct {
	config  LiveConfig
	workers []*worker
	memory  int64
	start   clock
	stop    int // an eventfd that is readable when the workers shall end

	filterKind, filterReason string

	// locals are the addresses that are this host's own.
	locals atomic.Pointer[map[[16]byte]bool]

	recorder *recorder // nil: nothing is recorded

	mu      sync.Mutex
	network *rtnetlink
	filter  filter
	choice  choice
	names   map[uint32]string // of all interfaces that were read, by index
	dropped uint64
	armed   []netip.AddrPort
	share   float64 // of SYNs to those that is recorded all the same
}

// worker reads one ring.
type worker struct {
	ring    *ring
	locals  *atomic.Pointer[map[[16]byte]bool] // Live's
	classic *classicFilter                     // nil if the filter is eBPF
	record  *recorderPart                      // nil if nothing is recorded
	hand    func(now int64, batch []Segment)
	batch   [batchSize]Segment
	last    int64 // the time of the segment before

	// kinds count what was in the ring. They are in a cache line of their own.
	_     [64]byte
	kinds [numKinds]atomic.Uint64
	_     [64]byte
}

// OpenLive begins to capture in the network namespace of the calling thread.
// Packets wait in the rings until Run. It needs CAP_NET_RAW; and CAP_BPF, or
// the classic filter is used.
func OpenLive(config LiveConfig) (_ *Live, err error) {
	if config.Workers <= 0 {
		config.Workers = min(runtime.NumCPU(), MaxWorkers)
	}
	if config.Ring <= 0 {
		config.Ring = defaultRing
	}
	if config.SYNs <= 0 {
		config.SYNs = defaultSYNs
		if strconv.IntSize == 32 {
			config.SYNs /= 4
		}
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	l := &Live{config: config, start: clock{time.Now()}, stop: -1, names: make(map[uint32]string)}
	l.locals.Store(&map[[16]byte]bool{})
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := l.addRing(); err != nil {
		return nil, err
	}
	if l.network, err = dialNetwork(); err != nil {
		return nil, err
	}
	if l.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	if refused := l.useEBPF(); refused != nil {
		l.filterReason = explainRefusal(refused)
		config.Log.Warn("capture takes the classic filter, which hands up every TCP segment", "because", l.filterReason)
		if err := l.useClassic(); err != nil {
			return nil, err
		}
	}
	if err := l.look(); err != nil {
		return nil, err
	}
	if len(l.choice.links) == 0 {
		return nil, none(config.Interfaces)
	}
	if config.Recorder.Memory > 0 {
		l.recorder = newRecorder(config.Recorder, len(l.workers), l.start.start.UnixNano())
		for i, w := range l.workers {
			w.record = &l.recorder.parts[i]
		}
	}
	return l, nil
}

// explainRefusal says why there is no eBPF filter, and what to do.
func explainRefusal(err error) string {
	if errors.Is(err, unix.EPERM) && !errors.As(err, new(*ebpf.VerifierError)) {
		// What the library says of it is for programmers.
		return "eBPF is not permitted: it needs CAP_BPF, or before Linux 5.8 CAP_SYS_ADMIN"
	}
	if errors.Is(err, unix.ENOMEM) {
		// A socket's filter counts against this, which is 10 KiB on 32-bit.
		return fmt.Sprintf("eBPF is refused: %v (if net.core.optmem_max is small: sysctl -w net.core.optmem_max=131072)", err)
	}
	return fmt.Sprintf("eBPF is refused: %v", err)
}

// addRing opens one more ring, which lets nothing pass.
func (l *Live) addRing() error {
	r, err := openRing(l.config.Ring)
	if err != nil {
		return err
	}
	l.workers = append(l.workers, &worker{ring: r, locals: &l.locals})
	l.memory += int64(len(r.mem))
	return r.attachClassic(dropAll())
}

// useEBPF makes a ring for each worker, with the eBPF filter.
func (l *Live) useEBPF() error {
	kernel, err := loadFilter(l.config.SYNs)
	if err != nil {
		return err
	}
	if err := l.bindEBPF(kernel); err != nil {
		return errors.Join(err, kernel.Close())
	}
	l.filter, l.filterKind, l.memory = kernel, "ebpf", l.memory+kernel.memory
	return nil
}

// useClassic makes one ring with the classic filter. Rings that were to have
// another one are not used for it: they may share what they hear.
func (l *Live) useClassic() error {
	err := l.closeRings()
	l.workers, l.memory = nil, 0
	if err != nil {
		return err
	}
	if err := l.addRing(); err != nil {
		return err
	}
	first := l.workers[0]
	first.classic = newClassicFilter(first.ring)
	l.filter, l.filterKind = first.classic, "classic"
	return first.ring.bind()
}

func (l *Live) closeRings() error {
	var errs []error
	for _, w := range l.workers {
		errs = append(errs, w.ring.close())
	}
	return errors.Join(errs...)
}

// bindEBPF makes the rings hear, and share what they hear. Until they share it,
// each would hear all: so they get their filter last.
func (l *Live) bindEBPF(f *kernelFilter) error {
	for len(l.workers) < l.config.Workers {
		if err := l.addRing(); err != nil {
			return err
		}
	}
	for _, w := range l.workers {
		if err := w.ring.bind(); err != nil {
			return err
		}
	}
	if len(l.workers) > 1 {
		if err := join(l.workers, f.steering.FD()); err != nil {
			return err
		}
	}
	for _, w := range l.workers {
		if err := w.ring.attach(f.program.FD()); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the capture. Run must have returned.
func (l *Live) Close() error {
	errs := []error{l.closeRings()}
	if l.filter != nil {
		errs = append(errs, l.filter.Close())
	}
	if l.network != nil {
		errs = append(errs, l.network.close())
	}
	if l.stop >= 0 {
		errs = append(errs, unix.Close(l.stop))
	}
	return errors.Join(errs...)
}

// Run hands on what is captured until ctx ends. It is called once. Each worker
// calls handle with up to 256 TCP segments, in the order in which they were
// captured, and at least every 100 ms, if need be with none; never twice at a
// time. A connection's segments, both ways, and ICMP errors about them all come
// to one worker. now is the time by the clock of Segment.Time; batch is
// overwritten after handle has returned.
func (l *Live) Run(ctx context.Context, handle func(worker int, now int64, batch []Segment)) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, w := range l.workers {
		w.hand = func(now int64, batch []Segment) { handle(i, now, batch) }
		group.Go(func() error { return w.work(l.stop, l.start) })
	}
	group.Go(func() error {
		l.watch(ctx)
		one := [8]byte{1}
		_, err := unix.Write(l.stop, one[:])
		return os.NewSyscallError("end the capture's workers", err)
	})
	return group.Wait()
}

// work reads the ring until stop is readable.
func (w *worker) work(stop int, start clock) error {
	for {
		b, ok := w.ring.take()
		now, ahead := start.at(time.Now())
		if ok {
			w.read(b, now, ahead)
			continue
		}
		ready, stopped, err := w.ring.wait(stop, idle)
		if err != nil || stopped {
			return err
		}
		if !ready {
			now, _ = start.at(time.Now())
			w.hand(now, nil)
		}
	}
}

// read hands on what is in a block, and gives the block back. The clock is at
// now, and that far ahead of the wall clock.
func (w *worker) read(b ringBlock, now, ahead int64) {
	var kinds [numKinds]uint64
	n, at := 0, int(b.header.first)
	var f ringFrame
	w.acquire()
	for range b.header.packets {
		at = b.frame(at, &f)
		seg := &w.batch[n]
		kind := f.decode(seg)
		if kind == TCP && f.copied(seg, *w.locals.Load()) {
			kind = Copy
		}
		kinds[kind]++
		// Between the packet before and now, even if the wall clock has made a
		// step since.
		w.last = max(w.last, min(f.wall+ahead, now))
		if w.record != nil && kind != Other && kind != Copy {
			w.record.add(&f, seg, kind, w.last)
		}
		if kind != TCP || w.classic != nil && w.classic.screen(seg) {
			continue
		}
		seg.Time = w.last
		if n++; n == batchSize {
			w.release()
			w.hand(now, w.batch[:])
			w.acquire()
			n = 0
		}
	}
	w.release()
	w.ring.release(b)
	for kind, n := range kinds {
		if n > 0 {
			w.kinds[kind].Add(n)
		}
	}
	w.hand(now, w.batch[:n])
}

// acquire and release keep others from what this worker records, for a batch at
// a time.
func (w *worker) acquire() {
	if w.record != nil {
		w.record.mu.Lock()
	}
}

func (w *worker) release() {
	if w.record != nil {
		w.record.mu.Unlock()
	}
}

// wait waits for the next block, at most for d, or until stop is readable.
func (r *ring) wait(stop int, d time.Duration) (ready, stopped bool, err error) {
	fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(d.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return true, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("wait for packets: %w", err)
	}
	if fds[0].Revents&unix.POLLERR != 0 {
		// To read the error is to take it away.
		code, err := unix.GetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err != nil {
			return false, false, fmt.Errorf("wait for packets: %w", err)
		}
	}
	return n > 0, fds[1].Revents != 0, nil
}

// clock is the wall clock of when the capture began, run on by the monotonic
// one.
type clock struct{ start time.Time }

// at is its time when it is t, in nanoseconds since 1970, and how far it is ahead
// of the wall clock.
func (c clock) at(t time.Time) (now, ahead int64) {
	now = c.start.UnixNano() + int64(t.Sub(c.start))
	return now, now - t.UnixNano()
}

// watch follows interfaces and addresses until ctx ends.
func (l *Live) watch(ctx context.Context) {
	defer context.AfterFunc(ctx, l.network.interrupt)()
	failing := false
	for ctx.Err() == nil {
		begun := time.Now()
		l.network.drain()
		err := l.look()
		if err != nil && !failing {
			l.config.Log.Warn("capture cannot look at the interfaces and goes on with those it has", "error", err)
		}
		failing = err != nil
		// Looking takes a hundredth of the time at most, or a tenth while there
		// are changes.
		took := time.Since(begun)
		select {
		case <-ctx.Done():
		case <-time.After(max(settle, 10*took)):
			l.network.wait(ctx, max(lookAround, 100*took))
		}
	}
}

// look reads the interfaces and addresses, and has the filter follow.
func (l *Live) look() error {
	n, err := l.network.read(len(l.config.Interfaces) == 0)
	if err != nil {
		return err
	}
	var services []netip.Addr
	if l.config.Services != nil {
		services = l.config.Services()
	}
	c := choose(n, l.config.Interfaces, services)
	interfaces := make(map[uint32]uint32)
	for _, i := range c.links {
		interfaces[i.index] = i.mode()
	}
	locals := make(map[[16]byte]bool)
	for _, a := range n.addresses {
		locals[a.ip.As16()] = true
	}
	for _, a := range services {
		locals[a.As16()] = true
	}
	l.locals.Store(&locals)

	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.filter.follow(interfaces, locals); err != nil {
		return err
	}
	if !slices.Equal(c.names(), l.choice.names()) || !slices.Equal(c.notes, l.choice.notes) {
		l.config.Log.Info("capture reads", "interfaces", strings.Join(c.names(), " "), "notes", strings.Join(c.notes, "; "))
	}
	l.choice = c
	if len(l.names) > maxInterfaces {
		clear(l.names)
	}
	for _, i := range c.links {
		l.names[i.index] = i.name
	}
	return l.countDropped()
}

// countDropped adds what the rings have lost since the last time. The kernel
// counts in 32 bits, and begins anew with each reading.
func (l *Live) countDropped() error {
	for _, w := range l.workers {
		n, err := w.ring.lost()
		if err != nil {
			return err
		}
		l.dropped += uint64(n)
	}
	return nil
}

// Stats are the figures up to now.
func (l *Live) Stats() (Stats, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.countDropped(); err != nil {
		return Stats{}, err
	}
	t, err := l.filter.count()
	if err != nil {
		return Stats{}, err
	}
	s := Stats{Packets: t.packets, Dropped: l.dropped}
	for _, w := range l.workers {
		for kind := range w.kinds {
			n := w.kinds[kind].Load()
			s.Kinds[kind] += n
			s.Handed += n
		}
	}
	s.Kinds[Copy] += t.copies
	s.Kinds[Fragment] += t.fragments
	return s, nil
}

// SetArmed says which services are armed; port 0 is every port of the address.
// SYNs to them that bear the signature of a flood are counted and not handed
// on.
func (l *Live) SetArmed(services []netip.AddrPort) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = slices.Clone(services)
	return l.filter.arm(l.armed, l.share)
}

// SetSampling has that share of the SYNs to armed services that bear the
// signature of a flood, 0 to 1, recorded all the same. With the eBPF filter they
// are handed on as well and are not among those Screened; the classic filter has
// all of them recorded, and none handed on, at any share.
func (l *Live) SetSampling(share float64) error {
	if share < 0 || share > 1 {
		return fmt.Errorf("record a share of %v of a flood: it is from 0 to 1", share)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.share = share
	return l.filter.arm(l.armed, share)
}

// Screened are the SYNs that were counted and not handed on, for each service
// that is or was armed.
func (l *Live) Screened() (map[netip.AddrPort]uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, err := l.filter.count()
	return t.screened, err
}

// Recent are the packets that were recorded from one time on and before
// another, in the order in which they were captured. Their times are by the wall
// clock as it is now, also for those that came before somebody set it. It copies
// what there is, and holds no worker for longer than a part of a millisecond.
// There are none where nothing is recorded.
func (l *Live) Recent(from, to time.Time) (iter.Seq[Packet], Recorded) {
	packets, rec := iter.Seq[Packet](func(func(Packet) bool) {}), Recorded{From: to, To: to}
	if l.recorder != nil {
		l.mu.Lock()
		names := maps.Clone(l.names)
		l.mu.Unlock()
		begin, _ := l.start.at(from)
		end, _ := l.start.at(to)
		_, ahead := l.start.at(time.Now())
		packets, rec = l.recorder.recent(begin, end, ahead, names)
	}
	if stats, err := l.Stats(); err == nil {
		rec.Received, rec.Dropped = stats.Packets, &stats.Dropped
	}
	for _, name := range l.Interfaces() {
		rec.Interfaces = append(rec.Interfaces, InterfaceCount{Name: name})
	}
	if len(rec.Interfaces) == 1 {
		rec.Interfaces[0].Received, rec.Interfaces[0].Dropped = rec.Received, rec.Dropped
	}
	return packets, rec
}

// Filter is the filter in use: "ebpf", or "classic" and why.
func (l *Live) Filter() (kind, reason string) { return l.filterKind, l.filterReason }

// Interfaces are the names of those that are read now.
func (l *Live) Interfaces() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.choice.names()
}

// Notes say what an operator should know of the choice of interfaces: which are
// not there, and which are not read because others are.
func (l *Live) Notes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.choice.notes)
}

// Workers is how many there are.
func (l *Live) Workers() int { return len(l.workers) }

// Local tells whether an address is this host's, or that of a virtual service.
func (l *Live) Local(a netip.Addr) bool { return (*l.locals.Load())[a.As16()] }

// Memory is how many bytes of the kernel's memory rings and maps take.
func (l *Live) Memory() int64 { return l.memory }

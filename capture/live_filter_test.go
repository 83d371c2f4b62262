package capture

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// All of a connection comes to one worker, and connections are shared out.
func TestWorkersShareConnections(t *testing.T) {
	client, server := pair(t)
	tap := listen(t, server, LiveConfig{Interfaces: []string{"eth0"}, Workers: 2})
	s := client.Sender(t, "wire")
	const connections = 200
	for i := range connections {
		from, to := fmt.Sprintf("198.51.100.7:%d", 1000+i), "192.0.2.1:80"
		if i%2 != 0 {
			from, to = fmt.Sprintf("[2001:db8::7]:%d", 1000+i), "[2001:db8:1::1]:80"
		}
		there, back := frameOf(with(endpoints(from, to), SYN, 1, 0)), frameOf(with(endpoints(to, from), SYN|ACK, 1, 2))
		quoted := there[ethernetHeader:]
		wrong := ethernet(etherIPv4, ipv4(protoICMP, icmp(icmpUnreachable, 1, quoted[:28])))
		if i%2 != 0 {
			wrong = ethernet(etherIPv6, ipv6(protoICMPv6, icmp(icmpv6Unreachable, 1, quoted[:48])))
		}
		tagged := ethernet(etherQinQ, concat(be16(5), be16(etherVLAN), be16(6), there[12:]))
		if err := s.Send(there, back, wrong, tagged); err != nil {
			t.Fatal(err)
		}
	}
	tap.await(t, "all of them", func(seen []string) bool { return len(seen) == 4*connections })
	tap.mu.Lock()
	defer tap.mu.Unlock()
	worker := make(map[uint16]int) // of a client's port
	var each [2]int
	for i, s := range tap.segments {
		port := max(s.SrcPort, s.DstPort)
		if w, ok := worker[port]; ok && w != tap.workers[i] {
			t.Errorf("%s came to worker %d, of its connection the first to %d", text(&s), tap.workers[i], w)
		}
		worker[port] = tap.workers[i]
		each[tap.workers[i]]++
	}
	if min(each[0], each[1]) < connections {
		t.Errorf("the workers had %v segments", each)
	}
}

func TestArmed(t *testing.T) {
	for _, filter := range filters {
		t.Run(filter, func(t *testing.T) {
			client, server := pair(t)
			tap := listenWith(t, server, filter, LiveConfig{Interfaces: []string{"eth0"}})
			s := client.Sender(t, "wire")
			exact, any := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[2001:db8::2]:0")
			if err := tap.SetArmed([]netip.AddrPort{exact, any}); err != nil {
				t.Fatal(err)
			}
			var frames [][]byte
			for i := range 500 {
				for _, to := range []string{"192.0.2.1:80", "192.0.2.1:81", fmt.Sprintf("[2001:db8::2]:%d", 1+i)} {
					from := fmt.Sprintf("198.51.100.7:%d", 1000+i)
					if to[0] == '[' {
						from = fmt.Sprintf("[2001:db8::7]:%d", 1000+i)
					}
					frames = append(frames, frameOf(signed(with(endpoints(from, to), SYN, 1, 0))))
				}
			}
			if err := s.Send(frames...); err != nil {
				t.Fatal(err)
			}
			tap.await(t, "what goes to a service that is not armed", func(seen []string) bool { return len(seen) == 500 })
			want := map[netip.AddrPort]uint64{exact: 500, any: 500}
			check := func() {
				t.Helper()
				wait(t, func() bool {
					got, err := tap.Screened()
					return err == nil && cmp.Equal(want, got, compareAddrPorts())
				}, func() string {
					got, err := tap.Screened()
					return fmt.Sprintf("screened %v (%v), want %v", got, err, want)
				})
			}
			check()
			if n := count(tap.seen(), ":81 S"); n != 500 {
				t.Errorf("%d SYNs to another port, want 500", n)
			}
			if err := tap.SetArmed([]netip.AddrPort{any}); err != nil {
				t.Fatal(err)
			}
			if err := s.Send(frames...); err != nil {
				t.Fatal(err)
			}
			tap.await(t, "what is not armed any more", func(seen []string) bool { return len(seen) == 1500 })
			want[any] += 500
			check()
		})
	}
}

func compareAddrPorts() cmp.Option {
	return cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
}

// What a worker has no room for is counted, and what the filter has seen is
// either handed on or lost.
func TestDropsAreCounted(t *testing.T) {
	client, server := pair(t)
	l := open(t, server, LiveConfig{Interfaces: []string{"eth0"}, Workers: 1, Ring: 1}) // two blocks
	s := client.Sender(t, "wire")
	const packets = 20_000
	send(t, s, flood(10_000), packets) // nobody reads yet
	before, err := l.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if before.Dropped == 0 || before.Handed != 0 {
		t.Errorf("with nobody reading: %+v", before)
	}
	p := run(t, l)
	wait(t, func() bool {
		stats, err := l.Stats()
		return err == nil && stats.Packets != nil && stats.Handed+stats.Dropped >= packets
	}, func() string { stats, err := l.Stats(); return fmt.Sprintf("%+v %v", stats, err) })
	after, err := l.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if after.Dropped != before.Dropped {
		t.Errorf("%d dropped while it was read, %d before", after.Dropped, before.Dropped)
	}
	if n := len(p.seen()); uint64(n) != after.Handed || after.Handed != after.Kinds[TCP] {
		t.Errorf("%d segments, %+v", n, after)
	}
}

// Of a bulk transfer, at most one segment in a hundred is handed up.
func TestBulkStaysInTheKernel(t *testing.T) {
	client, server := pair(t)
	tap := listen(t, server, LiveConfig{Interfaces: []string{"eth0"}})
	var l net.Listener
	var err error
	server.Do(t, func() { l, err = net.Listen("tcp", ":80") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const size = 64 << 20
	done := make(chan error, 1)
	go func() { // takes as much as it gives
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyN(c, c, size)
			c.Close()
		}
		done <- err
	}()
	c := dial(t, client, "10.0.0.2:80")
	go func() { io.CopyN(c, zeros{}, size) }() // a failure shows on the other side
	if n, err := io.Copy(io.Discard, c); n != size || err != nil {
		t.Fatalf("%d bytes came back, want %d: %v", n, size, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	tap.await(t, "the handshake", exactly(threeWay(local(c), remote(c))))
	stats, err := tap.Stats()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d packets handed up", stats.Handed, *stats.Packets)
	if *stats.Packets < 1000 || stats.Handed*100 > *stats.Packets {
		t.Errorf("%d of %d packets handed up", stats.Handed, *stats.Packets)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// 300,000 honest SYNs and 100,000 with the signature a second, and 200 ms until
// the ACKs: those are 60,000 and 20,000 that have to be remembered. Each of the
// honest ones' ACKs comes up.
func TestHonestAreRememberedInAFlood(t *testing.T) {
	client, server := pair(t)
	tap := listen(t, server, LiveConfig{Interfaces: []string{"eth0"}, Workers: 1, Ring: 64 << 20})
	s := client.Sender(t, "wire")
	const honest, signatures, rounds = 60_000, 20_000, 2
	var syns, acks [][]byte
	for _, f := range slices.SortedFunc(slices.Values(handshakes(honest)), func(a, b []byte) int {
		return int(a[ethernetHeader+33]) - int(b[ethernetHeader+33]) // by flags
	}) {
		switch Flags(f[ethernetHeader+33]) {
		case SYN:
			syns = append(syns, f)
		case ACK:
			acks = append(acks, f)
		}
	}
	for range rounds {
		for i, f := range flood(signatures) {
			at := i * (honest / signatures)
			if err := s.Send(append([][]byte{f}, syns[at:at+honest/signatures]...)...); err != nil {
				t.Fatal(err)
			}
		}
		send(t, s, acks, honest)
	}
	want := rounds * (2*honest + signatures)
	wait(t, func() bool {
		stats, err := tap.Stats()
		return err == nil && stats.Handed == uint64(want)
	}, func() string {
		stats, err := tap.Stats()
		return fmt.Sprintf("%d segments of %d: %+v %v", stats.Handed, want, stats, err)
	})
}

// A host without packets is left in peace, and the handler is called all the
// same.
func TestIdle(t *testing.T) {
	_, server := pair(t)
	l := open(t, server, LiveConfig{Interfaces: []string{"lo"}, Workers: 1})
	defer l.Close()
	var last int64
	calls := 0
	ctx, cancel := context.WithCancel(context.Background())
	begun := time.Now()
	if err := l.Run(ctx, func(_ int, now int64, batch []Segment) {
		if now <= last || len(batch) > 0 {
			t.Errorf("called with %d segments at %d, after %d", len(batch), now, last)
		}
		last = now
		if calls++; calls == 5 {
			cancel()
		}
	}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 5*idle {
		t.Errorf("called %d times in %v", calls, took)
	}
	if d := time.Until(time.Unix(0, last)).Abs(); d > time.Minute {
		t.Errorf("now is %v away from the time", d)
	}
}

// inBlock makes a block as the kernel does, of frames with their wall clock's
// times.
func inBlock(times []int64, data ...[]byte) ringBlock {
	const first = 48
	b := ringBlock{mem: make([]byte, blockSize)}
	b.header = (*blockHeader)(unsafe.Pointer(&b.mem[0]))
	b.header.status, b.header.first, b.header.packets = unix.TP_STATUS_USER, first, uint32(len(data))
	at := first
	for i, d := range data {
		const mac = 96
		next := at + (mac+len(d)+15)&^15
		h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&b.mem[at]))
		*h = unix.Tpacket3Hdr{
			Next_offset: uint32(next - at), Sec: uint32(times[i] / 1e9), Nsec: uint32(times[i] % 1e9),
			Snaplen: uint32(len(d)), Len: uint32(len(d)), Mac: mac, Net: mac + ethernetHeader,
		}
		a := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&b.mem[at+addressAt]))
		a.Protocol, a.Hatype = networkOrder(binary.BigEndian.Uint16(d[12:])), unix.ARPHRD_ETHER
		copy(b.mem[at+mac:], d)
		at = next
	}
	return b
}

// reader is a worker without a socket, and what it hands on.
func reader() (w *worker, times func() []int64) {
	var all []int64
	var locals atomic.Pointer[map[[16]byte]bool]
	locals.Store(&map[[16]byte]bool{})
	w = &worker{ring: &ring{mem: make([]byte, 2*blockSize)}, locals: &locals}
	w.hand = func(_ int64, batch []Segment) {
		for _, s := range batch {
			all = append(all, s.Time)
		}
	}
	return w, func() []int64 { t := all; all = nil; return t }
}

// A segment's time is what has passed since the capture began, whatever the
// wall clock does.
func TestTimeWithoutTheWallClock(t *testing.T) {
	const second = int64(time.Second)
	start := clock{time.Now()}
	w, times := reader()
	// Frames are read a second after they were captured, at these seconds of the
	// monotonic clock, when the wall clock was wrong by that much.
	for _, test := range []struct {
		name            string
		captured, wrong int64
		stepped         int64 // how far the clock steps until they are read
		want            int64
	}{
		{name: "a right clock", captured: 10, want: 10},
		{name: "a day ahead", captured: 20, wrong: 86400, want: 20},
		{name: "a day behind", captured: 30, wrong: -86400, want: 30},
		{name: "steps ahead while the frame waits: not before the last", captured: 40, stepped: 3600, want: 30},
		{name: "steps behind while the frame waits: not after now", captured: 50, stepped: -3600, want: 51},
	} {
		now := start.start.UnixNano() + (test.captured+1)*second
		ahead := -(test.wrong + test.stepped) * second
		wall := start.start.UnixNano() + (test.captured+test.wrong)*second
		w.read(inBlock([]int64{wall}, ethernet(etherIPv4, synIPv4)), now, ahead)
		if got := times(); len(got) != 1 || got[0] != start.start.UnixNano()+test.want*second {
			t.Errorf("%s: %v s after the beginning, want %d s", test.name, float64(got[0]-start.start.UnixNano())/1e9, test.want)
		}
	}
	// The clock itself: t.Round(0) has the wall clock only.
	later := start.start.Add(time.Hour)
	if now, ahead := start.at(later); now != start.start.UnixNano()+3600*second || ahead != 0 {
		t.Errorf("an hour later it is %d and %d ahead", now, ahead)
	}
}

func TestReadAllocatesNothing(t *testing.T) {
	w, _ := reader()
	n := 0
	w.hand = func(_ int64, batch []Segment) { n += len(batch) }
	const frames = 1000
	var data [][]byte
	for i := range frames {
		data = append(data, [][]byte{ethernet(etherIPv4, synIPv4), ethernet(etherIPv6, synIPv6), ethernet(etherIPv4, ipv4(17, nil))}[i%3])
	}
	b := inBlock(make([]int64, frames), data...)
	if allocations := testing.AllocsPerRun(10, func() { w.read(b, 1, 0) }); allocations > 0 {
		t.Errorf("%v allocations to read %d frames", allocations, frames)
	}
	if n != 11*667 || w.kinds[Other].Load() != 11*333 {
		t.Errorf("%d segments and %d others in 11 blocks", n, w.kinds[Other].Load())
	}
	w.classic = newClassicFilter(w.ring)
	if err := w.classic.arm([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}, 0); err != nil {
		t.Fatal(err)
	}
	b = inBlock([]int64{0}, frameOf(signed(with(endpoints("198.51.100.7:1", "192.0.2.1:80"), SYN, 1, 0))))
	if allocations := testing.AllocsPerRun(10, func() { w.read(b, 1, 0) }); allocations > 0 {
		t.Errorf("%v allocations to screen a SYN", allocations)
	}
}

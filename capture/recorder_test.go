package capture

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// recording is a recorder that chooses the same each time, and a worker of it.
type recording struct {
	*recorder
	part *recorderPart
	now  int64 // when the next packet comes
}

// beginning is when a recording begins.
const beginning = 1_800_000_000 * int64(time.Second)

func recordTo(t testing.TB, memory int, span time.Duration) *recording {
	t.Helper()
	r := newRecorder(RecorderConfig{Memory: memory, Span: span}, 1, beginning)
	r.parts[0].seed = [4]uint64{0x9d2c5680, 0xefc60000, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1}
	r.parts[0].dice = 1
	return &recording{r, &r.parts[0], beginning}
}

// add records a segment, of which only the headers matter.
func (r *recording) add(s Segment, frame []byte) {
	f := ringFrame{data: frame, wire: len(frame), network: ethernetHeader, hardware: unix.ARPHRD_ETHER, device: 1}
	r.part.add(&f, &s, TCP, r.now)
}

// all is what is there of the last span.
func (r *recording) all() (packets []Packet, rec Recorded) {
	seq, rec := r.recent(beginning, r.now+1, 0, map[uint32]string{1: "eth0"})
	return slices.Collect(seq), rec
}

// honest are SYNs as they come from Linux, Windows and telephones.
var honest = []func(Segment) Segment{
	func(s Segment) Segment { s.Window, s.Length = 64240, 60; return s },
	func(s Segment) Segment { s.Window, s.Length = 64240, 52; return s },
	func(s Segment) Segment { s.Window, s.Length = 65535, 64; return s },
}

// client is the i-th of clients that are all different.
func client(i int) Segment {
	s := endpoints("10.0.0.0:1024", "192.0.2.1:80")
	binary.BigEndian.PutUint32(s.Src[12:], 0x0a000000+uint32(i))
	s.SrcPort += uint16(i * 7 % 60000)
	return s
}

// shake records one handshake.
func (r *recording) shake(i int) {
	c := client(i)
	s := c
	s.Src, s.Dst, s.SrcPort, s.DstPort = c.Dst, c.Src, c.DstPort, c.SrcPort
	for _, s := range []Segment{with(honest[i%len(honest)](c), SYN, 1, 0), with(s, SYN|ACK, 1, 2), with(c, ACK, 2, 2)} {
		r.add(s, frameOf(s))
	}
}

// whole counts packets by connection: of how many the SYN is there, and of how
// many SYN, SYN/ACK and ACK.
func whole(t testing.TB, packets []Packet) (begun, whole map[netip.AddrPort]bool) {
	t.Helper()
	flags := make(map[netip.AddrPort]int)
	for _, p := range packets {
		var s Segment
		if kind := Decode(p.Link, p.Data, int(p.Length), &s); kind != TCP {
			t.Fatalf("recorded is a packet that decodes to %v: % x", kind, p.Data)
		}
		switch s.Flags {
		case SYN:
			flags[s.From()] |= 1
		case SYN | ACK:
			flags[s.To()] |= 2
		case ACK:
			flags[s.From()] |= 4
		}
	}
	begun, whole = make(map[netip.AddrPort]bool), make(map[netip.AddrPort]bool)
	for at, f := range flags {
		if f&1 != 0 {
			begun[at] = true
		}
		if f == 7 {
			whole[at] = true
		}
	}
	return begun, whole
}

// While there is room, everything is there, in order, with its time and its
// bytes.
func TestRecorderKeepsAll(t *testing.T) {
	r := recordTo(t, 1<<20, 0)
	for i := range 1000 {
		r.shake(i)
		r.now += int64(20 * time.Millisecond)
	}
	packets, rec := r.all()
	if _, whole := whole(t, packets); len(packets) != 3000 || len(whole) != 1000 || rec.Seen != 3000 || rec.Kept != 3000 {
		t.Errorf("%d packets, %d handshakes, seen %d, kept %d", len(packets), len(whole), rec.Seen, rec.Kept)
	}
	if !slices.IsSortedFunc(packets, func(a, b Packet) int { return cmp.Compare(a.Time, b.Time) }) {
		t.Error("the packets are not in order")
	}
	syn := with(honest[0](client(0)), SYN, 1, 0)
	want := Packet{Time: beginning, Interface: "eth0", Link: LinkEthernet, Length: 74, Data: frameOf(syn), Weight: 1}
	if diff := gocmp.Diff(want, packets[0]); diff != "" {
		t.Errorf("the first (-want +got):\n%s", diff)
	}
}

// Too many handshakes: those that are kept are whole, and everyone's chance is
// the same, whoever it is and whenever in the second it came.
func TestRecorderIsFair(t *testing.T) {
	r := recordTo(t, 4<<20, 0)
	const connections, groups = 100_000, 20
	for i := range connections {
		r.shake(i)
		r.now += int64(time.Second) / connections
	}
	packets, rec := r.all()
	begun, whole := whole(t, packets)
	if rec.Seen != 3*connections || uint64(len(packets)) != rec.Kept || rec.Kept < 500 {
		t.Fatalf("seen %d, kept %d, %d packets", rec.Seen, rec.Kept, len(packets))
	}
	if 4*len(whole) < len(begun) || len(whole) < 50 {
		t.Errorf("of %d connections that have a SYN, %d are whole", len(begun), len(whole))
	}
	var sum float64
	var byTime, byHost [groups]float64
	for _, p := range packets {
		sum += p.Weight
		byTime[(p.Time-beginning)*groups/int64(time.Second)]++
	}
	if sum < 3*connections-1 || sum > 3*connections+1 {
		t.Errorf("%d packets stand for %.1f, want %d", len(packets), sum, 3*connections)
	}
	for at := range begun {
		byHost[int(at.Addr().As4()[3])%groups]++
	}
	// Of 19 degrees of freedom, 43.8 is passed by chance once in a thousand times.
	// Three packets of a connection come together, and count as one.
	for what, counts := range map[string][groups]float64{"time": byTime, "host": byHost} {
		var total, chi float64
		for _, n := range counts {
			total += n
		}
		for _, n := range counts {
			chi += (n - total/groups) * (n - total/groups) / (total / groups)
		}
		if what == "time" {
			chi /= 3
		}
		t.Logf("by %s: %v, chi-square %.1f", what, counts, chi)
		if chi > 43.8 {
			t.Errorf("by %s it is not fair: %v, chi-square %.1f", what, counts, chi)
		}
	}
}

// Floods of a thousand times as many packets as the honest send do not push
// these out, and are there themselves, for as many as they were.
func TestRecorderUnderFloods(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	spoofed := func() Segment {
		s := endpoints("10.0.0.0:1024", "192.0.2.1:80")
		binary.BigEndian.PutUint32(s.Src[12:], random.Uint32())
		s.SrcPort = uint16(random.Uint32())
		return with(s, SYN, random.Uint32(), 0)
	}
	for _, test := range []struct {
		name  string
		flood func() Segment
		least int // of 100 honest handshakes
	}{
		{"the signature", func() Segment { return signed(spoofed()) }, 100},
		{"window 1024 and an MSS", func() Segment { s := spoofed(); s.Window, s.Length = 1024, 44; return s }, 100},
		{"one port", func() Segment { s := spoofed(); s.Window, s.Length, s.SrcPort = 1024, 44, 7; return s }, 100},
		{"one connection", func() Segment {
			s := with(endpoints("203.0.113.9:7", "192.0.2.1:80"), SYN, random.Uint32(), 0)
			s.Window, s.Length = 512, 40
			return s
		}, 100},
		{"one packet again and again", func() Segment {
			return signed(with(endpoints("203.0.113.9:7", "192.0.2.1:80"), SYN, 1, 0))
		}, 100},
		{"SYN/ACKs", func() Segment { s := spoofed(); s.Flags, s.Length = SYN|ACK, 44; return s }, 100},
		{"RSTs", func() Segment { s := spoofed(); s.Flags = RST; return s }, 100},
		{"ACKs", func() Segment { s := spoofed(); s.Flags, s.Length = ACK, 40; return s }, 100},
		{"any window", func() Segment { s := spoofed(); s.Window = uint16(random.Uint32()); return s }, 2},
		{"as from Linux", func() Segment { return honest[0](spoofed()) }, 66},
	} {
		t.Run(test.name, func(t *testing.T) {
			const handshakes, times = 100, 1000
			r := recordTo(t, 8<<20, 0)
			frame := frameOf(signed(spoofed()))
			for i := range handshakes {
				r.shake(i)
				for range times {
					s := test.flood()
					r.add(s, frame)
					r.now += int64(time.Second) / (handshakes / 2 * times) // so it takes two seconds
				}
			}
			packets, rec := r.all()
			var good []Packet
			var weight float64
			floods := 0
			for _, p := range packets {
				if string(p.Data) == string(frame) {
					floods++
					weight += p.Weight
				} else {
					good = append(good, p)
				}
			}
			begun, whole := whole(t, good)
			t.Logf("%d honest handshakes whole, %d with a SYN; %d packets of the flood stand for %.0f; kept %d of %d",
				len(whole), len(begun), floods, weight, rec.Kept, rec.Seen)
			if len(whole) < test.least {
				t.Errorf("%d honest handshakes of %d are whole; want %d", len(whole), handshakes, test.least)
			}
			if floods < 200 || weight < handshakes*times*0.99 || weight > handshakes*times*1.01 {
				t.Errorf("%d packets of the flood stand for %.0f; want %d", floods, weight, handshakes*times)
			}
		})
	}
}

// The span is kept of one packet a second and of a million, whatever comes after
// it. So long do packets come.
func TestRecorderSpan(t *testing.T) {
	flood, ack := signed(client(1)), with(client(2), ACK, 1, 1)
	flood.Flags = SYN
	floodFrame, ackFrame := frameOf(flood), frameOf(ack)
	for _, test := range []struct {
		rate    int
		span    time.Duration
		seconds int
	}{{1, 30 * time.Second, 70}, {100, 0, 33}, {1_000_000, time.Second, 2}} {
		t.Run(fmt.Sprintf("%d packets a second", test.rate), func(t *testing.T) {
			r := recordTo(t, 1<<20, test.span)
			span := cmp.Or(test.span, 30*time.Second)
			for n := range test.seconds {
				r.add(ack, ackFrame) // one that must be there of each second
				for i := 1; i < test.rate; i++ {
					binary.BigEndian.PutUint32(flood.Src[12:], uint32(i)*2654435761)
					r.add(flood, floodFrame)
					r.now += int64(time.Second) / int64(test.rate)
				}
				r.now = beginning + int64(n+1)*int64(time.Second)
			}
			r.now--
			got, rec := r.recent(r.now+1-int64(span), r.now+1, 0, nil)
			acks, last := 0, int64(0)
			for p := range got {
				if len(p.Data) == len(ackFrame) && string(p.Data) == string(ackFrame) {
					if acks++; last > 0 && p.Time-last != int64(time.Second) {
						t.Errorf("%v between two that came once a second", time.Duration(p.Time-last))
					}
					last = p.Time
				}
			}
			if want := int(span / time.Second); acks != want {
				t.Errorf("%d of one a second, want %d", acks, want)
			}
			if want := time.Unix(0, r.now+1-int64(span)); !rec.From.Equal(want) {
				t.Errorf("goes back to %v, want %v", rec.From, want)
			}
			_, rec = r.recent(0, r.now+1, 0, nil)
			if reaches := r.now + 1 - rec.From.UnixNano(); reaches < int64(span) || reaches > int64(span)+spare*int64(time.Second) {
				t.Errorf("goes back %v", time.Duration(reaches))
			}
		})
	}
}

// What a recorder takes does not depend on the number of workers or on what
// comes.
func TestRecorderMemory(t *testing.T) {
	if size := int(unsafe.Sizeof(cell{}) + unsafe.Sizeof(sliceKey{})); size > recordSize {
		t.Errorf("a packet takes %d bytes, not %d", size, recordSize)
	}
	for _, workers := range []int{1, 2, 8} {
		const memory = 16 << 20
		r := newRecorder(RecorderConfig{Memory: memory}, workers, 0)
		size := 0
		for i := range r.parts {
			size += int(unsafe.Sizeof(r.parts[i]))
			for _, s := range r.parts[i].slices {
				size += int(unsafe.Sizeof(s)) + len(s.keys)*int(unsafe.Sizeof(s.keys[0])) + len(s.cells)*int(unsafe.Sizeof(s.cells[0]))
			}
		}
		if size < memory*9/10 || size > memory+workers*8<<10 {
			t.Errorf("%d workers' takes %d bytes, want %d", workers, size, memory)
		}
	}
}

// Whatever its frame, a packet is recorded as it was on the wire, as far as it
// is there.
func TestRecordedFrames(t *testing.T) {
	long := with(client(1), ACK, 1, 1)
	long.Length = 1400
	tagged := ethernet(etherVLAN, concat(be16(0x2005), be16(etherIPv4), synIPv4))
	for _, test := range []struct {
		name  string
		frame ringFrame
		want  Packet
	}{
		{"IPv4", ringFrame{data: ethernet(etherIPv4, synIPv4)}, Packet{Link: LinkEthernet, Data: ethernet(etherIPv4, synIPv4)}},
		{"IPv6", ringFrame{data: ethernet(etherIPv6, synIPv6)}, Packet{Link: LinkEthernet, Data: ethernet(etherIPv6, synIPv6)}},
		{"longer than what is kept", ringFrame{data: frameOf(long)},
			Packet{Link: LinkEthernet, Length: 1414, Data: frameOf(long)[:SnapLength]}},
		{"a VLAN tag", ringFrame{data: tagged}, Packet{Link: LinkEthernet, Data: tagged}},
		{"one that the kernel took off", ringFrame{data: ethernet(etherIPv4, synIPv4), tag: etherVLAN<<16 | 0x2005},
			Packet{Link: LinkEthernet, Data: tagged}},
		{"one that the kernel took off, longer than what is kept", ringFrame{data: frameOf(long), tag: etherVLAN<<16 | 0x2005},
			Packet{Link: LinkEthernet, Length: 1418, Data: concat(frameOf(long)[:12], be16(etherVLAN), be16(0x2005), frameOf(long)[12:SnapLength-4])}},
		{"a tunnel", ringFrame{data: synIPv4, hardware: unix.ARPHRD_TUNNEL, protocol: etherIPv4}, Packet{Link: LinkRaw, Data: synIPv4}},
		{"a link header that is none of Ethernet's", ringFrame{data: concat(make([]byte, 8), synIPv6), network: 8, hardware: unix.ARPHRD_INFINIBAND, protocol: etherIPv6},
			Packet{Link: LinkRaw, Data: synIPv6}},
		{"neither Ethernet nor IP", ringFrame{data: synIPv4, hardware: unix.ARPHRD_INFINIBAND, protocol: etherMPLS}, Packet{}},
		{"cut within its headers", ringFrame{data: ethernet(etherIPv4, synIPv4)[:40], wire: 1000},
			Packet{Link: LinkEthernet, Length: 1000, Data: ethernet(etherIPv4, synIPv4)[:40]}},
		{"cut within the link header", ringFrame{data: ethernet(etherIPv4, synIPv4)[:5], tag: etherVLAN << 16},
			Packet{Link: LinkEthernet, Data: ethernet(etherIPv4, synIPv4)[:5]}},
		{"nothing of it", ringFrame{wire: 60}, Packet{Link: LinkEthernet, Length: 60}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := test.frame
			if f.hardware == 0 {
				f.hardware = unix.ARPHRD_ETHER
			}
			if f.wire == 0 {
				f.wire = len(f.data)
			}
			r := recordTo(t, 1<<16, 0)
			var seg Segment
			r.part.add(&f, &seg, f.decode(&seg), r.now)
			packets, rec := r.all()
			if test.want.Link == 0 {
				if len(packets) != 0 || rec.Seen != 0 {
					t.Errorf("recorded %+v", packets)
				}
				return
			}
			want := test.want
			want.Time, want.Weight = r.now, 1
			if want.Length == 0 {
				want.Length = uint32(len(want.Data))
			}
			if len(packets) != 1 {
				t.Fatalf("%d packets", len(packets))
			}
			if packets[0].Interface = ""; len(packets[0].Data) == 0 {
				packets[0].Data = nil
			}
			if diff := gocmp.Diff(want, packets[0]); diff != "" {
				t.Errorf("recorded (-want +got):\n%s", diff)
			}
		})
	}
}

// Steps of the wall clock neither lose what there is nor mix its order.
func TestRecorderWithoutTheWallClock(t *testing.T) {
	const second = int64(time.Second)
	r := recordTo(t, 1<<20, 0)
	w, _ := reader()
	w.record = r.part
	var want []int64
	for i, wrong := range []int64{0, 0, 86400, 86400, -86400, -86400, 0} { // the wall clock's error, in seconds
		at := beginning + int64(i)*second
		w.read(inBlock([]int64{at + wrong*second}, ethernet(etherIPv4, synIPv4)), at+second/2, -wrong*second)
		want = append(want, at)
	}
	r.now = beginning + 7*second
	packets, _ := r.all()
	var got []int64
	for _, p := range packets {
		got = append(got, p.Time)
	}
	// Told by a wall clock that is now an hour behind what it was.
	seq, rec := r.recent(beginning, r.now, 3600*second, nil)
	for p := range seq {
		if p.Time += 3600 * second; !slices.Contains(want, p.Time) {
			t.Errorf("by the wall clock it is of %d", p.Time)
		}
	}
	if at := time.Unix(0, r.now-3600*second); !rec.To.Equal(at) || rec.Kept != uint64(len(want)) {
		t.Errorf("by the wall clock it ends at %v, want %v", rec.To, at)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("times (-want +got):\n%s", diff)
	}
}

// Whoever asks for the packets gets a whole and ordered picture while workers
// record.
func TestRecentWhileRecording(t *testing.T) {
	r := newRecorder(RecorderConfig{Memory: 4 << 20, Span: 2 * time.Second}, 2, beginning)
	frames := append(flood(500), handshakes(1000)[:500]...)
	var group sync.WaitGroup
	done := make(chan struct{})
	for i := range r.parts {
		w, _ := reader()
		w.hand, w.record = func(int64, []Segment) {}, &r.parts[i]
		block := inBlock(make([]int64, len(frames)), frames...)
		group.Go(func() {
			for now := beginning; ; now += int64(time.Millisecond) {
				select {
				case <-done:
					return
				default:
					w.read(block, now, now)
				}
			}
		})
	}
	for range 8 {
		packets, rec := r.recent(beginning, beginning+int64(time.Hour), 0, nil)
		n, last := uint64(0), int64(0)
		for p := range packets {
			if p.Time < last || p.Weight < 1 || len(p.Data) < 54 {
				t.Fatalf("after %d there is %+v", last, p)
			}
			last = p.Time
			n++
		}
		if n != rec.Kept {
			t.Fatalf("%d packets, kept %d", n, rec.Kept)
		}
	}
	close(done)
	group.Wait()
}

func TestRecorderAllocatesNothing(t *testing.T) {
	w, _ := reader()
	w.hand = func(int64, []Segment) {}
	r := recordTo(t, 1<<20, 0)
	w.record = r.part
	frames := append(flood(500), handshakes(1000)[:500]...)
	b := inBlock(make([]int64, len(frames)), frames...)
	now := beginning
	if allocations := testing.AllocsPerRun(100, func() {
		now += int64(100 * time.Millisecond)
		w.read(b, now, now)
	}); allocations > 0 {
		t.Errorf("%v allocations to record %d frames", allocations, len(frames))
	}
	r.now = now
	if _, rec := r.all(); rec.Seen != 101*uint64(len(frames)) || rec.Kept == 0 {
		t.Errorf("seen %d, kept %d", rec.Seen, rec.Kept)
	}
}

// What is not recorded is not there, and that is no error.
func TestNothingIsRecorded(t *testing.T) {
	_, server := pair(t)
	l := open(t, server, LiveConfig{Interfaces: []string{"eth0"}})
	defer l.Close()
	now := time.Now()
	packets, rec := l.Recent(now.Add(-time.Minute), now)
	if n := len(slices.Collect(iter.Seq[Packet](packets))); n != 0 || rec.Kept != 0 || rec.Seen != 0 {
		t.Errorf("%d packets: %+v", n, rec)
	}
	if len(rec.Interfaces) != 1 || rec.Interfaces[0].Name != "eth0" || rec.Dropped == nil || rec.Received == nil {
		t.Errorf("%+v", rec)
	}
	if err := l.SetSampling(1.5); err == nil {
		t.Error("half as much again as there is is recorded")
	}
}

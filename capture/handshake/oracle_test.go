package handshake

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/capture"
)

// oracle counts by the meaning alone, with a map and without a thought of
// speed. The tracker must count the same.
type oracle struct {
	timeout time.Duration
	pending map[[2]netip.AddrPort]*oracleAttempt
	counts  Counts
}

type oracleAttempt struct {
	isn, serverISN uint32
	answered       bool
	last           int64
	syns, synacks  int
}

func (o *oracle) finish(k [2]netip.AddrPort, as *uint64) {
	a := o.pending[k]
	delete(o.pending, k)
	*as++
	syn, synack := &o.counts.FailureDupSYN, &o.counts.FailureDupSYNACK
	if as == &o.counts.Success {
		syn, synack = &o.counts.SuccessDupSYN, &o.counts.SuccessDupSYNACK
	}
	if a.syns > 1 {
		*syn++
	}
	if a.synacks > 1 {
		*synack++
	}
}

func (o *oracle) expire(now int64) {
	for k, a := range o.pending {
		if now-a.last >= int64(o.timeout) {
			o.finish(k, &o.counts.Timeout)
		}
	}
}

func (o *oracle) observe(s capture.Segment) {
	o.expire(s.Time)
	between := func(n, isn uint32) bool { d := n - isn; return 1 <= d && d <= 65536 }
	fromClient, fromServer := [2]netip.AddrPort{s.From(), s.To()}, [2]netip.AddrPort{s.To(), s.From()}
	has := func(f capture.Flags) bool { return s.Flags&f == f }
	switch {
	case s.Unreachable:
		if a := o.pending[fromClient]; a != nil && a.isn == s.Seq && (s.Flags == 0 || s.IsSYN()) {
			o.finish(fromClient, &o.counts.Unreach)
		}
	case has(capture.RST):
		if o.pending[fromClient] != nil {
			o.finish(fromClient, &o.counts.Aborted)
		}
		if o.pending[fromServer] != nil {
			o.finish(fromServer, &o.counts.Reject)
		}
	case has(capture.SYN) && !has(capture.ACK):
		if has(capture.FIN) {
			return
		}
		if a := o.pending[fromClient]; a != nil && a.isn == s.Seq {
			a.syns++
			a.last = s.Time
			return
		} else if a != nil {
			o.finish(fromClient, &o.counts.Timeout)
		}
		o.counts.Attempts++
		o.pending[fromClient] = &oracleAttempt{isn: s.Seq, last: s.Time, syns: 1}
	case has(capture.SYN | capture.ACK):
		if a := o.pending[fromServer]; a != nil && between(s.Ack, a.isn) {
			a.answered, a.serverISN, a.last = true, s.Seq, s.Time
			a.synacks++
		}
	case has(capture.ACK):
		if a := o.pending[fromClient]; a != nil && between(s.Seq, a.isn) && (!a.answered || between(s.Ack, a.serverISN)) {
			o.finish(fromClient, &o.counts.Success)
		}
	}
}

// A few addresses, ports and sequence numbers that are near to each other, so
// that everything that can happen does.
func FuzzTracker(f *testing.F) {
	f.Add([]byte{0x00, 2, 0, 0, 0x11, 0x12, 1, 1, 0x10, 0x10, 1, 1})
	f.Add([]byte{0x00, 2, 0, 0, 0xf0, 2, 0, 0, 0xf1, 0x12, 0, 1, 0xf0, 0x10, 1, 1})
	f.Add([]byte{0x05, 2, 7, 0, 0x14, 0xe2, 0, 0, 0x15, 0x14, 0, 0, 0xe5, 0xe2, 7, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		numbers := [...]uint32{0xffffffff, 0, 1, 2, 65535, 65536, 65537, 1000}
		hosts := [...]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
		var segments []capture.Segment
		at := start.UnixNano()
		for ; len(data) >= 4; data = data[4:] {
			d := data[0]
			family, end := int(d>>1)&2, int(d&1)
			from := netip.AddrPortFrom(hosts[family+end], 1+uint16(d>>1&1)*uint16(1-end))
			to := netip.AddrPortFrom(hosts[family+1-end], 1+uint16(d>>1&1)*uint16(end))
			at += int64(d>>4) * int64(d>>4) * int64(300*time.Millisecond) // 0 to 67 s
			s := seg(0, from, to, "", numbers[data[2]&7], numbers[data[3]&7])
			s.Time, s.Flags, s.Unreachable = at, capture.Flags(data[1]&0x17), data[1]>>5 == 7
			segments = append(segments, s)
		}
		want := oracle{timeout: DefaultTimeout, pending: make(map[[2]netip.AddrPort]*oracleAttempt)}
		for _, s := range segments {
			want.observe(s)
		}
		want.expire(at)
		want.counts.Pending = uint64(len(want.pending))
		figures := want.counts.figures(All, "", Both)
		for _, size := range []int{1, 7, 1000} {
			tracker := newTracker(t, Config{Capacity: 64})
			for rest := segments; len(rest) > 0; {
				n := min(size, len(rest))
				tracker.Observe(0, rest[:n])
				rest = rest[n:]
			}
			tracker.Expire(at)
			if got := tracker.Snapshot(Both)[0]; told(got) != told(figures) {
				t.Fatalf("batches of %d:\ngot  %s\nwant %s\n%+v", size, told(got), told(figures), segments)
			}
		}
	})
}

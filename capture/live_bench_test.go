package capture

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/internal/netns"
	"golang.org/x/sys/unix"
)

// handshakes are frames of n handshakes as a director sees them: a thousand
// SYNs, then their SYN/ACKs, then their ACKs.
func handshakes(n int) [][]byte {
	const lag = 1000
	frames := make([][]byte, 3*n)
	for i := range n {
		c := endpoints("10.128.0.0:1024", "192.0.2.1:80")
		binary.BigEndian.PutUint32(c.Src[12:], 0x0a800000+uint32(i/4))
		c.SrcPort += uint16(i % 60000)
		s := c
		s.Src, s.Dst, s.SrcPort, s.DstPort = c.Dst, c.Src, c.DstPort, c.SrcPort
		at := i/lag*lag*3 + i%lag
		frames[at] = frameOf(with(c, SYN, uint32(i), 0))
		frames[at+lag] = frameOf(with(s, SYN|ACK, uint32(2*i), uint32(i)+1))
		frames[at+2*lag] = frameOf(with(c, ACK, uint32(i)+1, uint32(2*i)+1))
	}
	return frames
}

// bulk are the segments of n established connections.
func bulk(n int) [][]byte {
	frames := make([][]byte, n)
	for i := range n {
		c := endpoints("10.128.0.0:1024", "192.0.2.1:80")
		binary.BigEndian.PutUint32(c.Src[12:], 0x0a800000+uint32(i))
		c.Length = 1500
		frames[i] = frameOf(with(c, ACK, uint32(i), 1))
	}
	return frames
}

// flood are n SYNs with the signature.
func flood(n int) [][]byte {
	frames := make([][]byte, n)
	for i := range n {
		c := endpoints("10.0.0.0:1024", "192.0.2.1:80")
		binary.BigEndian.PutUint32(c.Src[12:], uint32(i)*2654435761)
		frames[i] = frameOf(signed(with(c, SYN, uint32(i), 0)))
	}
	return frames
}

func send(b testing.TB, s *netns.Sender, frames [][]byte, packets int) {
	const burst = 250
	for sent := 0; sent < packets; sent += burst {
		at := sent % len(frames)
		if err := s.Send(frames[at : at+burst]...); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLive sends a million packets from one sender over a veth pair. µs/packet
// is the worker's CPU; none/packet is the sender's, without a capture; with/packet
// the sender's, on which the kernel's side of the capture runs.
func BenchmarkLive(b *testing.B) {
	const packets = 1_000_000
	for _, bb := range []struct {
		name    string
		frames  [][]byte
		workers int
		arm     bool
	}{
		{"handshakes", handshakes(100_000), 1, false},
		{"handshakes/2workers", handshakes(100_000), 2, false},
		{"bulk", bulk(10_000), 1, false},
		{"flood", flood(100_000), 1, false},
		{"flood/armed", flood(100_000), 1, true},
	} {
		b.Run(bb.name, func(b *testing.B) {
			client, server := netns.New(b), netns.New(b)
			netns.Join(b, client, "wire", server, "eth0")
			s := client.Sender(b, "wire")
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var alone, with, worker time.Duration
			var handed, dropped uint64
			for range b.N {
				begun := threadCPU(b)
				send(b, s, bb.frames, packets)
				alone += threadCPU(b) - begun

				l := open(b, server, LiveConfig{Interfaces: []string{"eth0"}, Workers: bb.workers})
				if bb.arm {
					if err := l.SetArmed([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}); err != nil {
						b.Fatal(err)
					}
				}
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				var since, cpu [2]time.Duration
				go func() {
					done <- l.Run(ctx, func(i int, _ int64, batch []Segment) {
						if since[i] == 0 {
							runtime.LockOSThread() // so that the thread's CPU is the worker's
							since[i] = threadCPU(b)
						}
						cpu[i] = threadCPU(b) - since[i]
					})
				}()
				time.Sleep(200 * time.Millisecond)
				begun = threadCPU(b)
				send(b, s, bb.frames, packets)
				with += threadCPU(b) - begun
				time.Sleep(300 * time.Millisecond)
				stats, err := l.Stats()
				if err != nil {
					b.Fatal(err)
				}
				handed, dropped = handed+stats.Handed, dropped+stats.Dropped
				cancel()
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				worker += cpu[0] + cpu[1]
				l.Close()
			}
			n := float64(b.N * packets)
			b.ReportMetric(float64(worker)/n, "ns-worker/packet")
			b.ReportMetric(float64(alone)/n, "ns-sender-alone/packet")
			b.ReportMetric(float64(with)/n, "ns-sender/packet")
			b.ReportMetric(float64(handed)/n, "handed/packet")
			b.ReportMetric(float64(dropped), "dropped")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// threadCPU is how long this thread has run.
func threadCPU(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

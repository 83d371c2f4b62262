package capture

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// BenchmarkRecorder sends packets over a veth pair, by turns to a capture that
// records nothing and to one that does. ns-without and ns-with are the worker's
// CPU for a packet. ns-kernel is what the sender takes more than without a
// capture: the kernel's side of the capture runs on it, and is the same for both.
// with/without is of the sums. Of several rounds the least counts, which whatever
// else the machine does disturbed least.
func BenchmarkRecorder(b *testing.B) {
	const packets, rounds = 100_000, 15
	for _, bb := range []struct {
		name   string
		frames [][]byte
	}{
		{"handshakes", handshakes(100_000)},
		{"flood", flood(100_000)},
		{"bulk", bulk(10_000)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			client, server := netns.New(b), netns.New(b)
			netns.Join(b, client, "wire", server, "eth0")
			s := client.Sender(b, "wire")
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			measure := func(memory int) (sender, worker time.Duration) {
				l := open(b, server, LiveConfig{Interfaces: []string{"eth0"}, Workers: 1, Recorder: RecorderConfig{Memory: memory}})
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				var since, cpu time.Duration
				go func() {
					done <- l.Run(ctx, func(int, int64, []Segment) {
						if since == 0 {
							runtime.LockOSThread() // so that the thread's CPU is the worker's
							since = threadCPU(b)
						}
						cpu = threadCPU(b) - since
					})
				}()
				time.Sleep(200 * time.Millisecond)
				begun := threadCPU(b)
				send(b, s, bb.frames, packets)
				sender = threadCPU(b) - begun
				time.Sleep(300 * time.Millisecond)
				cancel()
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				if stats, err := l.Stats(); err != nil || stats.Dropped > 0 {
					b.Fatalf("%+v %v", stats, err)
				}
				l.Close()
				return sender, cpu
			}
			alone, captured, without, with := time.Hour, time.Hour, time.Hour, time.Hour
			for range rounds {
				begun := threadCPU(b)
				send(b, s, bb.frames, packets)
				alone = min(alone, threadCPU(b)-begun)
				sender, worker := measure(0)
				captured, without = min(captured, sender), min(without, worker)
				sender, worker = measure(16 << 20)
				captured, with = min(captured, sender), min(with, worker)
			}
			kernel := captured - alone
			b.ReportMetric(float64(kernel)/packets, "ns-kernel")
			b.ReportMetric(float64(without)/packets, "ns-without")
			b.ReportMetric(float64(with)/packets, "ns-with")
			b.ReportMetric(float64(kernel+with)/float64(kernel+without), "with/without")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkRead is the worker's side alone, at a million packets a second.
func BenchmarkRead(b *testing.B) {
	const rate, blocks, rounds = 1_000_000, 20, 500
	for _, bb := range []struct {
		name   string
		frames [][]byte
	}{
		{"handshakes", handshakes(7000)},
		{"flood", flood(21_000)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			const size = 1000
			var read []ringBlock
			for frames := range slices.Chunk(bb.frames[:blocks*size], size) {
				read = append(read, inBlock(make([]int64, size), frames...))
			}
			measure := func(memory int) func() time.Duration {
				w, _ := reader()
				w.hand = func(int64, []Segment) {}
				if memory > 0 {
					w.record = &newRecorder(RecorderConfig{Memory: memory}, 1, 0).parts[0]
				}
				now := time.Now().UnixNano()
				return func() time.Duration {
					begun := threadCPU(b)
					for _, block := range read {
						now += size * int64(time.Second) / rate
						w.read(block, now, now)
					}
					return threadCPU(b) - begun
				}
			}
			off, on := measure(0), measure(16<<20)
			var without, with time.Duration
			for range rounds {
				without += off()
				with += on()
			}
			const packets = size * blocks * rounds
			b.ReportMetric(float64(without)/packets, "ns-without")
			b.ReportMetric(float64(with)/packets, "ns-with")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkRecent asks for all of a full recording of one worker. hold-ns is how
// long the worker has to wait at most: for a slice to be copied.
func BenchmarkRecent(b *testing.B) {
	r := recordTo(b, 16<<20, 0)
	frames := flood(1000)
	w, _ := reader()
	w.hand, w.record = func(int64, []Segment) {}, r.part
	block := inBlock(make([]int64, len(frames)), frames...)
	for range 31_000 {
		r.now += int64(time.Millisecond)
		w.read(block, r.now, r.now)
	}
	var packets, longest int
	for b.Loop() {
		seq, _ := r.recent(beginning, r.now, 0, nil)
		packets = 0
		for range seq {
			packets++
		}
	}
	cells := r.part.slices[0].cells
	held := make([]cell, len(cells))
	for range 100 {
		begun := time.Now()
		copy(held, cells)
		longest = max(longest, int(time.Since(begun)))
	}
	b.ReportMetric(float64(packets), "packets")
	b.ReportMetric(float64(longest), "hold-ns")
}

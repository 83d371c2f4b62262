package capture

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// BenchmarkRecorder sends packets over a veth pair, by turns to a capture that
// records nothing and to one that does. ns-without and ns-with are what a packet
// costs: the worker's CPU, and what the sender takes more than without a capture,
// because the kernel's side of the capture runs on it. Of several rounds the one
// that took least counts, which whatever else the machine does disturbed least.
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
			measure := func(memory int) time.Duration {
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
				sender := threadCPU(b) - begun
				time.Sleep(300 * time.Millisecond)
				cancel()
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				if stats, err := l.Stats(); err != nil || stats.Dropped > 0 {
					b.Fatalf("%+v %v", stats, err)
				}
				l.Close()
				return sender + cpu
			}
			alone, without, with := time.Hour, time.Hour, time.Hour
			for range rounds {
				begun := threadCPU(b)
				send(b, s, bb.frames, packets)
				alone = min(alone, threadCPU(b)-begun)
				without = min(without, measure(0))
				with = min(with, measure(16<<20))
			}
			b.ReportMetric(float64(without-alone)/packets, "ns-without")
			b.ReportMetric(float64(with-alone)/packets, "ns-with")
			b.ReportMetric(float64(with-alone)/float64(without-alone), "with/without")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkRead is the worker's side alone, of frames that are in the processor's
// cache: a million packets a second.
func BenchmarkRead(b *testing.B) {
	const rate, blocks, rounds = 1_000_000, 100, 100
	for _, bb := range []struct {
		name   string
		frames [][]byte
	}{
		{"handshakes", handshakes(1000)},
		{"flood", flood(1000)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			frames := bb.frames[:1000]
			block := inBlock(make([]int64, len(frames)), frames...)
			measure := func(memory int) func() time.Duration {
				w, _ := reader()
				w.hand = func(int64, []Segment) {}
				if memory > 0 {
					w.record = &newRecorder(RecorderConfig{Memory: memory}, 1, 0).parts[0]
				}
				now := time.Now().UnixNano()
				return func() time.Duration {
					begun := threadCPU(b)
					for range blocks {
						now += int64(len(frames)) * int64(time.Second) / rate
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
			packets := float64(len(frames) * blocks * rounds)
			b.ReportMetric(float64(without)/packets, "ns-without")
			b.ReportMetric(float64(with)/packets, "ns-with")
			b.ReportMetric(0, "ns/op")
		})
	}
}

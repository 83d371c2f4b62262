package handshake

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/bench/mix"
	"github.com/lvsguard/lvsguard/capture"
)

// BenchmarkMix reads, decodes and tracks the mix of bench, which is in memory,
// as it is for the floor that it is measured against.
func BenchmarkMix(b *testing.B) {
	cfg := mix.Standard()
	var file bytes.Buffer
	if err := cfg.Pcap(&file); err != nil {
		b.Fatal(err)
	}
	truth := cfg.Truth()
	segments := make([]capture.Segment, 128)
	var packets uint64
	var took time.Duration
	for range b.N {
		t, err := New(Config{HugePages: true})
		if err != nil {
			b.Fatal(err)
		}
		// As the floor does: no page of the table is touched for the first
		// time while it is measured.
		clear(t.places)
		r, err := capture.NewReader(bytes.NewReader(file.Bytes()))
		if err != nil {
			b.Fatal(err)
		}
		began := cpuTime(b)
		for err == nil {
			var n int
			n, err = r.Read(segments)
			t.Observe(0, segments[:n])
		}
		took += cpuTime(b) - began
		if err != io.EOF {
			b.Fatal(err)
		}
		packets += r.Stats().Handed
		if got := t.Snapshot(Both)[0].Success.Total; got != uint64(truth.Success) {
			b.Fatalf("%d handshakes succeeded, want %d", got, truth.Success)
		}
	}
	b.ReportMetric(float64(took)/float64(packets), "cpu-ns/packet")
}

// cpuTime is what this process has used of a processor: the time on the wall
// would tell of the neighbours.
func cpuTime(b *testing.B) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// BenchmarkExpiry tells how long a batch of packets takes at the worst, with a
// million attempts pending: while they time out, and while they do not.
func BenchmarkExpiry(b *testing.B) {
	const pending, batches, size = 1_000_000, 40_000, 64
	worst := func(step time.Duration) time.Duration {
		t, err := New(Config{})
		if err != nil {
			b.Fatal(err)
		}
		now := int64(time.Hour)
		syn := func(n uint32) capture.Segment {
			s := capture.Segment{Time: now, SrcPort: 1024, DstPort: 80, Seq: n, Flags: capture.SYN}
			binary.BigEndian.PutUint32(s.Src[12:], n)
			return s
		}
		batch := make([]capture.Segment, size)
		for n := range uint32(pending) {
			batch[0] = syn(n)
			t.Observe(0, batch[:1])
		}
		took := make([]time.Duration, batches)
		for i := range took {
			now += int64(step)
			for j := range batch {
				// Retransmissions, so that as many stay pending as the time lets.
				batch[j] = syn(uint32(i*size+j) % (pending / 10))
			}
			began := time.Now()
			t.Observe(now, batch)
			took[i] = time.Since(began)
		}
		if f := t.Snapshot(Both)[0]; (f.Failure.Timeout > 0) != (step > 0) {
			b.Fatalf("%d timed out", f.Failure.Timeout)
		}
		slices.Sort(took)
		return took[batches*9999/10000]
	}
	for range b.N {
		// 40,000 batches in 100 s: all that is not repeated times out.
		b.ReportMetric(float64(worst(2500*time.Microsecond).Microseconds()), "p9999-µs-expiring")
		b.ReportMetric(float64(worst(0).Microseconds()), "p9999-µs-still")
	}
}

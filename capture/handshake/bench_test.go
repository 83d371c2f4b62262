package handshake

import (
	"bytes"
	"io"
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
		t, err := New(Config{})
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

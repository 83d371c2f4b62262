package pressure

import (
	"math"
	"math/bits"
)

// A histogram counts round-trip times in microseconds, in buckets that are an
// eighth of a power of two wide: the middle of one is within 1/16 of all that is
// in it. Values below 8 have buckets of their own.
type histogram struct {
	buckets [histogramBuckets]uint32
	count   uint64
}

const histogramBuckets = 8 + (32-3)*8

func bucketOf(v uint32) int {
	if v < 8 {
		return int(v)
	}
	octave := bits.Len32(v) - 1 // 3 to 31
	return (octave-2)*8 + int(v>>(octave-3)&7)
}

// middleOf is the middle of a bucket.
func middleOf(bucket int) float64 {
	if bucket < 8 {
		return float64(bucket)
	}
	octave := bucket/8 + 2
	width := uint64(1) << (octave - 3)
	low := (8 + uint64(bucket%8)) * width
	return float64(low) + float64(width-1)/2
}

func (h *histogram) add(v uint32) {
	h.buckets[bucketOf(v)]++
	h.count++
}

// quantile is the least value that a share q of all is not above (the nearest
// rank), for q over 0.
func (h *histogram) quantile(q float64) float64 {
	rank := uint64(math.Ceil(q * float64(h.count)))
	var notAbove uint64
	for i, n := range h.buckets {
		if notAbove += uint64(n); notAbove >= rank {
			return middleOf(i)
		}
	}
	return middleOf(histogramBuckets - 1)
}

// rtt is what the histogram tells, nil if it has nothing.
func (h *histogram) rtt() *RTT {
	if h == nil || h.count == 0 {
		return nil
	}
	const microsecondsPerMillisecond = 1000
	milliseconds := func(q float64) float64 { return h.quantile(q) / microsecondsPerMillisecond }
	return &RTT{Connections: h.count, P50: milliseconds(0.50), P90: milliseconds(0.90), P99: milliseconds(0.99)}
}

package handshake

import (
	"math/bits"
	"time"
)

// Counts are how the attempts of a filter ended. Attempts is the sum of
// Success, the failures, Pending and Untracked.
type Counts struct {
	Attempts uint64
	Success  uint64
	// Reject: the server sent RST. Unreach: an ICMP error said so. Timeout:
	// nothing came any more. Aborted: the client sent RST.
	Reject, Unreach, Timeout, Aborted uint64
	// DupSYN and DupSYNACK count the attempts that saw a retransmission.
	SuccessDupSYN, SuccessDupSYNACK uint64
	FailureDupSYN, FailureDupSYNACK uint64
	// Untracked attempts gave way because the table was full. How they ended
	// is not known, and the other figures are a lower bound.
	Untracked uint64
	Pending   uint64
	// Signed are the attempts whose SYN bore a flood's signature, and those of
	// them that succeeded: what a drop by the signature would have hit.
	Signed, SignedSuccess uint64
	// Screened SYNs bore the signature and went to an armed service. They are
	// no attempts.
	Screened uint64
	// Answers are SYN/ACKs and RSTs from servers to attempts: where there are
	// any, the server's half of the connections is seen.
	Answers uint64
	// Complete is the time from the first SYN to the client's ACK, Answer that
	// from the first SYN to the first SYN/ACK.
	Complete, Answer Histogram
}

// Failure is the number of attempts that ended without success.
func (c *Counts) Failure() uint64 { return c.Reject + c.Unreach + c.Timeout + c.Aborted }

// add adds o's figures to c's.
func (c *Counts) add(o *Counts) {
	mine, others := c.fields(), o.fields()
	for i := range mine {
		*mine[i] += *others[i]
	}
	c.Complete.add(&o.Complete)
	c.Answer.add(&o.Answer)
}

func (c *Counts) fields() [16]*uint64 {
	return [...]*uint64{
		&c.Attempts, &c.Success, &c.Reject, &c.Unreach, &c.Timeout, &c.Aborted,
		&c.SuccessDupSYN, &c.SuccessDupSYNACK, &c.FailureDupSYN, &c.FailureDupSYNACK,
		&c.Untracked, &c.Pending, &c.Signed, &c.SignedSuccess, &c.Screened, &c.Answers,
	}
}

// Buckets of a Histogram: the first ends at 62.5 µs, each further one at twice
// as much, so at 1 ms, 2 ms and so on up to 65.536 s; the last has no end.
const (
	Buckets     = 22
	firstBucket = 62500 * time.Nanosecond
)

// A Histogram counts times.
type Histogram struct {
	Buckets [Buckets]uint64
	Count   uint64
	Sum     time.Duration
}

// Bound is the upper bound of bucket i, included; the last has none.
func Bound(i int) time.Duration { return firstBucket << i }

func (h *Histogram) observe(d time.Duration) {
	d = max(d, 0)
	i := 0
	if d > firstBucket {
		i = min(bits.Len64(uint64(d-1)/uint64(firstBucket)), Buckets-1)
	}
	h.Buckets[i]++
	h.Count++
	h.Sum += d
}

func (h *Histogram) add(o *Histogram) {
	for i, n := range o.Buckets {
		h.Buckets[i] += n
	}
	h.Count += o.Count
	h.Sum += o.Sum
}

package guard

import (
	"errors"
	"fmt"
	"time"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/nft"
)

// A SampleWay says how samples of what the signatures match are taken.
type SampleWay string

// The ways, the best first. Empty is not known.
const (
	SampleByQueue  SampleWay = "nft_queue"  // before the drop, by nftables
	SampleByCompat SampleWay = "nft_compat" // the same, by the target of iptables
	// SampleByCapture: what the capture is shown of what its filter screens.
	SampleByCapture SampleWay = "af_packet"
)

// SamplingStatus is how samples are taken, and what became of them since they
// last began.
type SamplingStatus struct {
	Way SampleWay `json:"way"`
	// Reason says why it is not a better way, and what mends that; empty if it is
	// the best.
	Reason string `json:"reason"`
	// Now: they are being taken by a queue.
	Now bool `json:"now"`
	// Received are the packets that came by the queue; Lost those that the kernel
	// dropped there for want of room. Both are null while there is none.
	Received *uint64 `json:"received"`
	Lost     *uint64 `json:"lost"`
}

// sampleAgain is after how long another way is tried again.
const sampleAgain = time.Minute

// sampling takes samples of what the signatures match by a queue, as long as
// there is an incident. It belongs to the control loop, and waits for the kernel
// only.
type sampling struct {
	open   func(capture.QueueConfig) (Queue, error) // nil: no queue is to be used
	number uint16
	rate   uint32

	queue  Queue // nil: none is open
	rest   []capture.Packet
	way    SampleWay
	reason string
	again  time.Time
}

// keep makes it so that samples are taken, or not, and looks after what takes
// them. The first call tries what there is, so that the way is known before it
// is needed. It returns in words what has become of that way, if it has changed.
func (s *sampling) keep(now time.Time, table Sampling, wanted bool) (news string) {
	switch {
	case s.open == nil || table == nil:
		return ""
	case wanted && s.queue == nil && now.Before(s.again):
		return ""
	case !wanted && s.queue == nil && s.way != "":
		return ""
	}
	was := s.way
	var err error
	if wanted || was == "" {
		err = s.begin(table)
	}
	if !wanted || err != nil {
		err = errors.Join(err, s.end(table))
	}
	switch {
	case errors.Is(err, nft.ErrAbsent): // it is made at the next tick
		return ""
	case err != nil:
		s.way, s.reason, s.again = SampleByCapture, err.Error(), now.Add(sampleAgain)
	}
	if s.way == was {
		return ""
	}
	news = fmt.Sprintf("what the signatures match is sampled by %s", s.way)
	if s.reason != "" {
		news += ": " + s.reason
	}
	return news
}

// begin opens the queue before anything is sent there.
func (s *sampling) begin(table Sampling) error {
	if s.queue == nil {
		queue, err := s.open(capture.QueueConfig{Number: s.number})
		if err != nil {
			return err
		}
		s.queue = queue
	}
	way, err := table.Sample(nft.Sampling{Queue: s.number, Rate: s.rate})
	if err != nil {
		return err
	}
	s.way, s.reason = SampleWay(way), ""
	if way == nft.ByCompat {
		s.reason = "this kernel has no nft_queue: modprobe nft_queue, if there is such a module"
	}
	return nil
}

// end closes the queue while the table still sends there, so that what waits in
// it passes: what is taken away together with its chain is lost.
func (s *sampling) end(table Sampling) error {
	var errs []error
	if s.queue != nil {
		errs = append(errs, s.queue.Close())
		s.rest = append(s.rest, s.queue.Take()...)
		s.queue = nil
	}
	return errors.Join(append(errs, table.Unsample())...)
}

// take returns the samples since the last call.
func (s *sampling) take() []capture.Packet {
	packets := s.rest
	s.rest = nil
	if s.queue != nil {
		packets = append(packets, s.queue.Take()...)
	}
	return packets
}

// status is how it stands. Nil: no queue is to be used.
func (s *sampling) status() *SamplingStatus {
	if s.open == nil {
		return nil
	}
	status := &SamplingStatus{Way: s.way, Reason: s.reason, Now: s.queue != nil}
	if s.queue != nil {
		if stats, err := s.queue.Stats(); err == nil {
			status.Received, status.Lost = &stats.Received, &stats.Lost
		}
	}
	return status
}

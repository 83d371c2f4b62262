package guard

import (
	"errors"
	"slices"
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
	Way *SampleWay `json:"way"` // nil: not tried yet
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

const (
	// sampleQueue is the number of the NFQUEUE.
	sampleQueue = 5
	// sampleAgain is after how long a better way is tried again.
	sampleAgain = time.Minute
	// sampleLinger is how long samples are taken after the last flood, so that one
	// that comes and goes does not change the table each second.
	sampleLinger = 10 * time.Second
)

// sampling takes samples of what the signatures match by a queue, as long as
// there is a flood: in the kernel, looking for them costs every packet a rule.
// It belongs to the control loop, and waits for the kernel only.
type sampling struct {
	open   func(capture.QueueConfig) (Queue, error) // nil: no queue is to be used
	number uint16
	rate   uint32

	queue  Queue // nil: none is open
	rest   []capture.Packet
	way    SampleWay
	reason string
	wanted time.Time // the last time
	again  time.Time
}

// keep makes it so that samples are taken, or not, and looks after what takes
// them. The first call tries what there is, so that the way is known before it
// is needed. It returns whether the way has changed.
func (s *sampling) keep(now time.Time, table Sampling, wanted bool) (changed bool) {
	if wanted {
		s.wanted = now
	}
	wanted = wanted || s.queue != nil && now.Sub(s.wanted) < sampleLinger
	switch {
	case s.open == nil || table == nil,
		wanted && s.queue == nil && now.Before(s.again),
		!wanted && s.queue == nil && s.way != "":
		return false
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
		return false
	case err != nil:
		s.way, s.reason, s.again = SampleByCapture, err.Error(), now.Add(sampleAgain)
	}
	return s.way != was
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
		s.reason = "this kernel has no nft_queue (modprobe nft_queue, CONFIG_NFT_QUEUE)"
	}
	return nil
}

// end closes the queue while the table still sends there, so that what waits in
// it passes: what is taken away together with its chain is lost.
func (s *sampling) end(table Sampling) error {
	var err error
	if s.queue != nil {
		err = s.queue.Close()
		s.rest = append(s.rest, s.queue.Take()...)
		s.queue = nil
	}
	return errors.Join(err, table.Unsample())
}

// close ends what goes on.
func (s *sampling) close(table Sampling) error {
	if s.queue == nil {
		return nil
	}
	return s.end(table)
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
	status := &SamplingStatus{Reason: s.reason, Now: s.queue != nil}
	if way := s.way; way != "" {
		status.Way = &way
	}
	if s.queue != nil {
		if stats, err := s.queue.Stats(); err == nil {
			status.Received, status.Lost = &stats.Received, &stats.Lost
		}
	}
	return status
}

// keepSampling takes samples while a service's flood bears a signature, or may
// soon be taken for one.
func (d *Daemon) keepSampling(now time.Time) {
	wanted := slices.ContainsFunc(d.verdicts, func(v Verdict) bool { return v.State == Flood || v.State == Rising })
	before := d.sampling.way
	if !d.sampling.keep(now, d.table, wanted && !d.removed) || before == "" && d.sampling.way != SampleByCapture {
		return
	}
	way, reason := d.sampling.way, d.sampling.reason
	d.opts.Log.Warn("packets are sampled in another way", "from", before, "to", way, "reason", reason)
	d.note(now, Entry{Event: EventSource, Source: SourceSampling, From: string(before), To: string(way), Reason: reason})
}

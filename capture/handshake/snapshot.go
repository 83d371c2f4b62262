package handshake

import (
	"net/netip"
	"sync"
	"time"

	"github.com/lvsguard/lvsguard/capture"
)

// Figures are what is told of a filter or a service. What cannot be observed
// where only the client's half of the connections passes is nil.
type Figures struct {
	Name    string `json:"name"`
	Project string `json:"project,omitempty"`
	// Attempts is the sum of successes, failures, pending and untracked.
	Attempts   uint64     `json:"attempts"`
	Success    Successes  `json:"success"`
	Failure    Failures   `json:"failure"`
	Pending    uint64     `json:"pending"`
	Untracked  uint64     `json:"untracked"`
	LowerBound bool       `json:"lower_bound"` // attempts were not followed, or packets lost
	Visibility Visibility `json:"visibility"`  // Both or Client
	Signature  Signed     `json:"signature"`
	// Complete is from SYN to ACK, Answer from SYN to SYN/ACK.
	Complete *HistogramValue `json:"time_to_complete,omitempty"`
	Answer   *HistogramValue `json:"server_time,omitempty"`
}

// Successes are the attempts that succeeded, and those of them that saw a
// retransmitted SYN or SYN/ACK.
type Successes struct {
	Total     uint64  `json:"total"`
	DupSYN    uint64  `json:"dupsyn"`
	DupSYNACK *uint64 `json:"dupsynack"`
}

// Failures are the attempts that failed, by how.
type Failures struct {
	Total     uint64  `json:"total"`
	Reject    *uint64 `json:"reject"`
	Unreach   *uint64 `json:"unreach"`
	Timeout   uint64  `json:"timeout"`
	Aborted   uint64  `json:"aborted"`
	DupSYN    uint64  `json:"dupsyn"`
	DupSYNACK *uint64 `json:"dupsynack"`
}

// Signed are the attempts whose SYN bore a flood's signature. Those that
// completed are what drops by the signature would hit. Screened SYNs are
// dropped, and no attempts.
type Signed struct {
	Attempts  uint64 `json:"attempts"`
	Completed uint64 `json:"completed"`
	Screened  uint64 `json:"screened"`
}

// HistogramValue is a Histogram with the upper bounds of its buckets in seconds.
// A bucket counts all up to its bound, as Prometheus has it; Count counts those
// beyond the last bound too.
type HistogramValue struct {
	Count   uint64   `json:"count"`
	Sum     float64  `json:"sum_seconds"`
	Buckets []Bucket `json:"buckets"`
}

// A Bucket is the number of times up to a bound, in seconds.
type Bucket struct {
	LE    float64 `json:"le"`
	Count uint64  `json:"count"`
}

func (h *Histogram) value() HistogramValue {
	v := HistogramValue{Count: h.Count, Sum: h.Sum.Seconds(), Buckets: make([]Bucket, Buckets-1)}
	var n uint64
	for i := range v.Buckets {
		n += h.Buckets[i]
		v.Buckets[i] = Bucket{Bound(i).Seconds(), n}
	}
	return v
}

// Quantile is the bound of the bucket in which the share q of the times ends;
// false if there are none, or if it is beyond the last bound.
func (h *HistogramValue) Quantile(q float64) (time.Duration, bool) {
	for i, b := range h.Buckets {
		if h.Count > 0 && float64(b.Count) >= q*float64(h.Count) {
			return Bound(i), true
		}
	}
	return 0, false
}

// Completion is the share of the ended attempts that succeeded, from 0 to 1;
// nil if none has ended.
func (f *Figures) Completion() *float64 {
	ended := f.Success.Total + f.Failure.Total
	if ended == 0 {
		return nil
	}
	share := float64(f.Success.Total) / float64(ended)
	return &share
}

// figures tells the counts of one filter.
func (c *Counts) figures(name, project string, v Visibility) Figures {
	f := Figures{
		Name: name, Project: project,
		Attempts:   c.Attempts,
		Success:    Successes{Total: c.Success, DupSYN: c.SuccessDupSYN},
		Failure:    Failures{Total: c.Failure(), Timeout: c.Timeout, Aborted: c.Aborted, DupSYN: c.FailureDupSYN},
		Pending:    c.Pending,
		Untracked:  c.Untracked,
		LowerBound: c.Untracked > 0,
		Visibility: v,
		Signature:  Signed{c.Signed, c.SignedSuccess, c.Screened},
	}
	complete := c.Complete.value()
	f.Complete = &complete
	if v == Both {
		answer := c.Answer.value()
		f.Answer = &answer
		f.Success.DupSYNACK, f.Failure.DupSYNACK = &c.SuccessDupSYNACK, &c.FailureDupSYNACK
		f.Failure.Reject, f.Failure.Unreach = &c.Reject, &c.Unreach
	}
	return f
}

// Snapshot tells the figures of everything that is counted: first "all", then
// the filters, then the services, each in the order of the choice. visibility
// is for all of them, if it is not Auto.
func (t *Tracker) Snapshot(visibility Visibility) []Figures {
	s := newSums(&t.choice)
	s.add(t)
	return s.figures(visibility)
}

// sums are the counts of everything that a choice names, over some trackers.
type sums struct {
	all      sum
	filters  []sum
	services []sum
	byName   map[string]*sum // of the filters
	byKey    map[string]*sum // of the services
}

type sum struct {
	name, project string
	known         Visibility
	half          bool // some of it is of a service whose answers do not pass here
	counts        Counts
}

func newSums(c *Choice) *sums {
	s := &sums{
		all:      sum{name: All},
		filters:  make([]sum, 0, len(c.Filters)),
		services: make([]sum, len(c.Services)),
		byName:   make(map[string]*sum),
		byKey:    make(map[string]*sum),
	}
	for _, f := range c.Filters {
		if f.Name != "" {
			s.filters = append(s.filters, sum{name: f.Name, project: f.Project})
			s.byName[f.Name] = &s.filters[len(s.filters)-1]
		}
	}
	for i, v := range c.Services {
		s.services[i] = sum{name: v.Name, known: v.Visibility, half: v.Visibility == Client}
		s.byKey[v.Name] = &s.services[i]
	}
	return s
}

func (s *sums) add(t *Tracker) {
	for i := range t.classes {
		c := &t.classes[i]
		service := s.byKey[c.service]
		half := service != nil && service.half && c.counts.Attempts > 0
		s.all.add(c, half)
		for _, name := range c.filters {
			if f := s.byName[name]; f != nil {
				f.add(c, half)
			}
		}
		if service != nil {
			service.add(c, half)
		}
	}
}

func (s *sum) add(c *class, half bool) {
	s.counts.add(&c.counts)
	s.half = s.half || half
}

func (s *sums) figures(visibility Visibility) []Figures {
	figures := make([]Figures, 0, 1+len(s.filters)+len(s.services))
	figures = append(figures, s.all.figures(visibility))
	for _, part := range [][]sum{s.filters, s.services} {
		for i := range part {
			figures = append(figures, part[i].figures(visibility))
		}
	}
	return figures
}

// figures tells the counts, by the visibility that is wanted, else by the known
// one, else by whether servers were seen to answer.
func (s *sum) figures(wanted Visibility) Figures {
	v := Client
	switch {
	case wanted == Both || wanted == Client:
		v = wanted
	case s.known == Both || s.known == Client:
		v = s.known
	case s.half:
	case s.counts.Answers > 0, s.counts.Attempts == 0: // of no attempts, none was rejected
		v = Both
	}
	return s.counts.figures(s.name, s.project, v)
}

// Trackers are those of the workers of a capture, one for each.
type Trackers struct {
	shards []shard
}

type shard struct {
	mu      sync.Mutex // held for a batch of segments, or for a reading
	tracker *Tracker
	_       [48]byte // a cache line each
}

// NewTrackers makes n of them, which share cfg's capacity. cfg.Events is called
// by several at a time.
func NewTrackers(n int, cfg Config) (*Trackers, error) {
	if cfg.Capacity == 0 {
		cfg.Capacity = DefaultCapacity
	}
	cfg.Capacity = max(cfg.Capacity/n, 1)
	ts := &Trackers{shards: make([]shard, n)}
	for i := range ts.shards {
		t, err := New(cfg)
		if err != nil {
			return nil, err
		}
		ts.shards[i].tracker = t
	}
	return ts, nil
}

// Observe gives a worker's batch to its tracker.
func (ts *Trackers) Observe(worker int, now int64, batch []capture.Segment) {
	s := &ts.shards[worker]
	s.mu.Lock()
	s.tracker.Observe(now, batch)
	s.mu.Unlock()
}

// each calls do with every tracker, one after the other, while no worker uses
// it.
func (ts *Trackers) each(do func(*Tracker)) {
	for i := range ts.shards {
		s := &ts.shards[i]
		s.mu.Lock()
		do(s.tracker)
		s.mu.Unlock()
	}
}

// Snapshot tells the figures of all trackers together.
func (ts *Trackers) Snapshot(visibility Visibility) []Figures {
	var s *sums
	ts.each(func(t *Tracker) {
		if s == nil {
			s = newSums(&t.choice)
		}
		s.add(t)
	})
	return s.figures(visibility)
}

// SetChoice changes what is counted apart, everywhere or nowhere.
func (ts *Trackers) SetChoice(c Choice) error {
	if err := c.Validate(); err != nil {
		return err
	}
	ts.each(func(t *Tracker) { t.use(c) })
	return nil
}

// SetArmed says everywhere what is armed.
func (ts *Trackers) SetArmed(addresses []netip.AddrPort) {
	ts.each(func(t *Tracker) { t.SetArmed(addresses) })
}

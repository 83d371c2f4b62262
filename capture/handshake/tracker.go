// Package handshake tells how TCP handshakes end: segments in, outcomes out. It
// touches nothing outside itself; time is what its caller and the segments say.
//
// An attempt opens with a SYN (without ACK, RST and FIN). The same ISN again is
// a retransmission; another ISN ends the attempt as timed out and opens the
// next. A SYN/ACK belongs to the attempt if it acknowledges 1 to 65,536 past
// the client's ISN. The attempt succeeds with a segment from the client, with
// ACK and without SYN and RST, whose sequence number is 1 to 65,536 past the
// client's ISN and which, where the SYN/ACK was seen, acknowledges 1 to 65,536
// past the server's. Before that it can end as rejected (RST from the server),
// aborted (RST from the client), unreachable (an ICMP error quotes its SYN), or
// timed out (nothing for the timeout since the last segment of the handshake).
//
// It promises a fixed amount of memory, 64 bytes for each attempt that may be
// pending, and says how many it could not follow. RFC 9293, section 3.5.
package handshake

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/lvsguard/lvsguard/capture"
)

// Defaults of a Config.
const (
	DefaultTimeout  = 60 * time.Second
	DefaultCapacity = 1 << 20

	// MaxTimeout is well within what a tick can tell.
	MaxTimeout = time.Hour
	// MaxCapacity takes 1 GiB.
	MaxCapacity = 1 << 24
)

// Config is what a Tracker needs. The zero Config is valid.
type Config struct {
	// Timeout ends an attempt of which nothing is heard; 0 is DefaultTimeout.
	Timeout time.Duration
	// Capacity is the number of attempts that may be pending; 0 is
	// DefaultCapacity.
	Capacity int
	// HugePages has the kernel back the table with them, if it will: a third
	// less time for a segment, and the memory for all of the table is taken as
	// soon as there are a few dozen attempts.
	HugePages bool
	Choice    Choice
	// Events is called for every attempt that ends. May be nil.
	Events func(Event)
}

// An Event is the end of an attempt.
type Event struct {
	Client  netip.AddrPort `json:"client"`
	Server  netip.AddrPort `json:"server"`
	Outcome Outcome        `json:"outcome"`
	Opened  time.Time      `json:"opened"`
	// Took is from the first SYN to what ended it.
	Took time.Duration `json:"nanoseconds"`
	// DupSYN and DupSYNACK are the retransmissions seen; 15 is "or more".
	DupSYN    int `json:"dupsyn"`
	DupSYNACK int `json:"dupsynack"`
}

// An Outcome is how an attempt ended.
type Outcome string

// Outcomes. Untracked attempts gave way to others when the table was full.
const (
	Success   Outcome = "success"
	Reject    Outcome = "reject"
	Unreach   Outcome = "unreach"
	Timeout   Outcome = "timeout"
	Aborted   Outcome = "aborted"
	Untracked Outcome = "untracked"
)

// A tick is a time in units of 4.096 µs, modulo 4.9 hours.
type tick uint32

const tickBits = 12

func toTick(ns int64) tick { return tick(ns >> tickBits) }

// since is the time from an earlier tick, which may be a little later too.
func (t tick) since(earlier tick) time.Duration {
	return time.Duration(int32(t-earlier)) << tickBits
}

// A Tracker follows the handshakes of one stream of segments. One goroutine at
// a time may use it.
type Tracker struct {
	table
	chooser
	timeout time.Duration
	events  func(Event)
	now     int64 // the latest that a segment or the caller has said
	// swept is when the sweep for timeouts was last at hand.
	swept int64
	hand  uint64
	// oldest is where the search for an attempt that gives way goes on.
	oldest uint64
	// fetched has no meaning: it keeps the compiler from leaving out fetch.
	fetched uint32
}

// New makes a tracker.
func New(cfg Config) (*Tracker, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Capacity == 0 {
		cfg.Capacity = DefaultCapacity
	}
	if cfg.Timeout < time.Millisecond || cfg.Timeout > MaxTimeout {
		return nil, fmt.Errorf("timeout %s: want 1ms to %s", cfg.Timeout, MaxTimeout)
	}
	if cfg.Capacity < 1 || cfg.Capacity > MaxCapacity {
		return nil, fmt.Errorf("capacity %d: want 1 to %d attempts", cfg.Capacity, MaxCapacity)
	}
	if err := cfg.Choice.Validate(); err != nil {
		return nil, err
	}
	t := &Tracker{table: newTable(&cfg), timeout: cfg.Timeout, events: cfg.Events}
	t.use(cfg.Choice)
	return t, nil
}

// SetChoice changes what is counted apart. Filters and services that were
// there before, by their names, keep their figures.
func (t *Tracker) SetChoice(c Choice) error {
	if err := c.Validate(); err != nil {
		return err
	}
	t.use(c)
	return nil
}

// SetArmed says to which addresses SYNs with a signature are dropped, and so
// are no attempts. Port 0 is every port.
func (t *Tracker) SetArmed(addresses []netip.AddrPort) {
	t.armed = make(map[place]bool, len(addresses))
	for _, at := range addresses {
		t.armed[placeOf(at)] = true
	}
}

// ahead is how many segments are looked up at a time, so that the memory of
// one is on its way while others are looked up.
const ahead = 32

// Observe takes segments in the order in which they passed. now, in nanoseconds
// as in [capture.Segment], is for when none came; it may be 0.
func (t *Tracker) Observe(now int64, batch []capture.Segment) {
	most := sweepMost
	if len(batch) == 0 {
		most = sweepIdle
	}
	var looked [ahead]lookup
	for len(batch) > 0 {
		n := min(len(batch), ahead)
		for i := range n {
			looked[i] = t.look(&batch[i])
		}
		t.fetch(looked[:n])
		for i := range n {
			t.observe(&batch[i], looked[i])
		}
		batch = batch[n:]
		t.sweep(most)
	}
	t.advance(now)
	t.sweep(most)
}

// A lookup is what is known of a segment before the table is asked.
type lookup struct {
	hash uint64
	what what
}

// what a segment can be to a handshake.
type what uint8

const (
	nothing what = iota
	isSYN
	isSYNACK
	isACK
	isRST
	isUnreachable
)

func (t *Tracker) look(s *capture.Segment) (l lookup) {
	switch l.what = role(s); l.what {
	case nothing:
	case isSYNACK:
		l.hash = t.backward(s)
	default:
		l.hash = t.forward(s)
	}
	return l
}

func role(s *capture.Segment) what {
	const mask = capture.SYN | capture.ACK | capture.RST
	switch f := s.Flags & mask; {
	case s.Unreachable:
		// Few bytes may be quoted: then its sequence number must do.
		if s.Flags == 0 || s.IsSYN() {
			return isUnreachable
		}
	case f == capture.ACK:
		return isACK
	case f == capture.SYN:
		if s.Flags&capture.FIN == 0 {
			return isSYN
		}
	case f == capture.SYN|capture.ACK:
		return isSYNACK
	case f&capture.RST != 0:
		return isRST
	}
	return nothing
}

// fetch loads what the lookups will need, so that the processor waits for all
// of it at once and not for one after the other.
func (t *Tracker) fetch(looked []lookup) {
	var sum uint32
	for i := range looked {
		// A search often goes on in the next line of the cache.
		at := looked[i].hash & t.mask
		sum += t.places[at].isn + t.places[(at+2)&t.mask].isn
	}
	t.fetched = sum
}

// window is how far a sequence number may be past another one.
const window = 1 << 16

// past tells whether n is 1 to 65,536 past isn.
func past(n, isn uint32) bool { return n-isn-1 < window }

func (t *Tracker) observe(s *capture.Segment, l lookup) {
	if s.Time > t.now || t.now-s.Time > int64(t.timeout) {
		t.advance(s.Time)
	}
	if l.what == nothing {
		return
	}
	now := toTick(s.Time)
	at, found := t.live(l.hash, now)
	if l.what == isSYN {
		t.syn(s, l.hash, at, found, now)
		return
	}
	a := &t.places[at]
	switch {
	case l.what == isRST:
		if found {
			t.end(at, Aborted, now)
		}
		if at, found = t.live(t.backward(s), now); found {
			t.classes[t.places[at].class].counts.Answers++
			t.end(at, Reject, now)
		}
	case !found:
	case l.what == isSYNACK && past(s.Ack, a.isn):
		t.synack(s, a, now)
	case l.what == isACK && past(s.Seq, a.isn) && (a.state&answered == 0 || past(s.Ack, a.serverISN)):
		t.end(at, Success, now)
	case l.what == isUnreachable && s.Seq == a.isn:
		t.end(at, Unreach, now)
	}
}

// live is find for attempts that have not timed out; one that has is ended.
func (t *Tracker) live(hash uint64, now tick) (at uint64, found bool) {
	at, found = t.find(hash)
	if found && t.due(&t.places[at], now) {
		t.timeOut(at)
		return t.find(hash)
	}
	return at, found
}

func (t *Tracker) syn(s *capture.Segment, hash, at uint64, found bool, now tick) {
	signs := s.Signed()
	if signs && t.isArmed(s) {
		if n, ok := t.choose(s); ok {
			t.classes[n].counts.Screened++
		}
		return
	}
	if found {
		if a := &t.places[at]; a.isn == s.Seq {
			a.repeatSYN()
			a.heard(now)
			return
		}
		t.end(at, Timeout, now)
		at, _ = t.find(hash)
	}
	n, ok := t.choose(s)
	if !ok {
		return
	}
	c := &t.classes[n].counts
	c.Attempts++
	a := attempt{hash: hash, isn: s.Seq, opened: now, last: now, class: n}
	if signs {
		c.Signed++
		a.state = signed
	}
	if t.held == t.room {
		if !t.giveWay(now) {
			c.Untracked++
			return
		}
		at, _ = t.find(hash)
	}
	c.Pending++
	t.held++
	t.put(at, a)
	if t.keys != nil {
		t.keys[at] = keyOf(s)
	}
}

func (t *Tracker) synack(s *capture.Segment, a *attempt, at tick) {
	c := &t.classes[a.class].counts
	c.Answers++
	a.heard(at)
	a.serverISN = s.Seq
	if a.state&answered != 0 {
		a.repeatSYNACK()
		return
	}
	a.state |= answered
	c.Answer.observe(at.since(a.opened))
}

// end counts an attempt's outcome and forgets it.
func (t *Tracker) end(at uint64, o Outcome, now tick) {
	a := &t.places[at]
	c := &t.classes[a.class].counts
	c.Pending--
	dupSYN, dupSYNACK := &c.FailureDupSYN, &c.FailureDupSYNACK
	switch o {
	case Success:
		c.Success++
		c.Complete.observe(now.since(a.opened))
		dupSYN, dupSYNACK = &c.SuccessDupSYN, &c.SuccessDupSYNACK
		if a.state&signed != 0 {
			c.SignedSuccess++
		}
	case Reject:
		c.Reject++
	case Unreach:
		c.Unreach++
	case Timeout:
		c.Timeout++
	case Aborted:
		c.Aborted++
	case Untracked:
		c.Untracked++
		dupSYN, dupSYNACK = new(uint64), new(uint64)
	}
	if a.dupSYN() > 0 {
		*dupSYN++
	}
	if a.dupSYNACK() > 0 {
		*dupSYNACK++
	}
	if t.events != nil {
		t.events(t.event(at, o, now))
	}
	t.remove(at)
}

func (t *Tracker) event(at uint64, o Outcome, now tick) Event {
	a := &t.places[at]
	// A tick is known to be near to what is now.
	ended := t.now - int64(toTick(t.now).since(now))
	took := now.since(a.opened)
	e := Event{Outcome: o, Took: took, DupSYN: a.dupSYN(), DupSYNACK: a.dupSYNACK()}
	e.Client, e.Server = t.keys[at].addresses()
	e.Opened = time.Unix(0, ended-int64(took)).UTC()
	return e
}

// crowd is how many attempts are looked at for the one that gives way.
const crowd = 32

// giveWay makes room in a full table: of the next few attempts, the oldest of
// those of which the client has not repeated its SYN is not followed any more. A
// spoofed source repeats nothing, so a flood gives way before honest clients do;
// and who is about to answer is one of the youngest, not the oldest of a crowd.
func (t *Tracker) giveWay(now tick) bool {
	var victim uint64
	oldest := time.Duration(math.MinInt64)
	for seen := 0; seen < min(crowd, t.held); {
		t.oldest = (t.oldest + 1) & t.mask
		a := &t.places[t.oldest]
		if a.hash == 0 {
			continue
		}
		seen++
		if a.dupSYN() > 0 {
			continue
		}
		if age := now.since(a.opened); age > oldest {
			victim, oldest = t.oldest, age
		}
	}
	switch {
	case oldest == math.MinInt64:
		return false
	case t.due(&t.places[victim], now):
		t.timeOut(victim)
	default:
		t.end(victim, Untracked, now)
	}
	return true
}

// due tells whether an attempt has timed out, to within two ticks.
func (t *Tracker) due(a *attempt, now tick) bool {
	return int32(now-a.last) >= int32(toTick(int64(t.timeout)))
}

func (t *Tracker) timeOut(at uint64) {
	t.end(at, Timeout, t.places[at].last+toTick(int64(t.timeout)))
}

// advance moves the time: forwards, or by more than the timeout backwards, as
// between captures in the wrong order. A step that is larger than what ticks
// tell for sure ends all that is pending.
func (t *Tracker) advance(now int64) {
	step := now - t.now
	if now == 0 || -int64(t.timeout) <= step && step <= 0 {
		return
	}
	if max(step, -step) > int64(MaxTimeout) && t.held > 0 {
		t.expireAll(func(*attempt) bool { return true })
	}
	if t.now = now; step < 0 {
		t.swept = now
	}
}

// Expire ends every attempt that has timed out at now. Observe does the same
// by and by, a little at a time.
func (t *Tracker) Expire(now int64) {
	t.advance(now)
	t.expireAll(t.overdue())
}

func (t *Tracker) expireAll(due func(*attempt) bool) {
	t.expire(t.blocks(), t.blocks(), due)
}

// overdue tells what has timed out now.
func (t *Tracker) overdue() func(*attempt) bool {
	now := toTick(t.now)
	return func(a *attempt) bool { return t.due(a, now) }
}

const (
	// sweeps of the whole table that happen within one timeout.
	sweeps = 8
	// sweepMost bounds the blocks of places that are swept after some packets,
	// so that the next ones wait for some microseconds only. When there was no
	// packet, sweepIdle does.
	sweepMost = 4
	sweepIdle = 1 << 11
)

// sweep ends the attempts that have timed out in a part of the table, as large
// as the time since the last one asks for.
func (t *Tracker) sweep(most int) {
	blocks := t.blocks()
	each := max(int64(t.timeout)/sweeps/int64(blocks), 1) // time for one block
	due := (t.now - t.swept) / each
	if due <= 0 {
		return
	}
	if t.held == 0 {
		t.swept = t.now
		return
	}
	if t.now-t.swept > int64(t.timeout) {
		// In a capture, time may pass faster than it is swept.
		most = blocks
	}
	n := t.expire(int(min(due, int64(blocks))), most, t.overdue())
	t.swept += int64(n) * each
	if n == blocks {
		t.swept = t.now
	}
}

// expire looks at the next n blocks of places, but at not more than most in
// which there are attempts, and times out what is due. It tells how many blocks
// that were.
func (t *Tracker) expire(n, most int, due func(*attempt) bool) int {
	for i := range n {
		word, bit := &t.some[t.hand/block/64], uint64(1)<<(t.hand/block%64)
		if *word&bit != 0 {
			if most--; most < 0 {
				return i
			}
			if t.expireBlock(due) == 0 {
				*word &^= bit
			}
		}
		t.hand = (t.hand + block) & t.mask
	}
	return n
}

// expireBlock times out what is due in the block at hand, and tells how many
// attempts are left there.
func (t *Tracker) expireBlock(due func(*attempt) bool) (left int) {
	for at := t.hand; at < min(t.hand+block, uint64(len(t.places))); at++ {
		a := &t.places[at]
		// What moves up to a place that was freed is looked at, too.
		for a.hash != 0 && due(a) {
			t.timeOut(at)
		}
		if a.hash != 0 {
			left++
		}
	}
	return left
}

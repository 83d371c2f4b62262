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
	// MaxCapacity leaves a slot of the index some bits for the hash.
	MaxCapacity = 1 << 24
)

// Config is what a Tracker needs. The zero Config is valid.
type Config struct {
	// Timeout ends an attempt of which nothing is heard; 0 is DefaultTimeout.
	Timeout time.Duration
	// Capacity is the number of attempts that may be pending; 0 is
	// DefaultCapacity.
	Capacity int
	Choice   Choice
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
	hand  int
	// oldest is where the search for an attempt that gives way goes on.
	oldest int
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
	t := &Tracker{table: newTable(cfg.Capacity), timeout: cfg.Timeout, events: cfg.Events}
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
const ahead = 16

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
			t.look(&batch[i], &looked[i])
		}
		t.fetch(looked[:n])
		for i := range n {
			t.observe(&batch[i], &looked[i])
		}
		batch = batch[n:]
	}
	t.advance(now)
	t.sweep(most)
}

// A lookup is what is known of a segment before the table is asked.
type lookup struct {
	key  key
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

func (t *Tracker) look(s *capture.Segment, l *lookup) {
	l.what = role(s)
	switch l.what {
	case nothing:
		return
	case isSYNACK:
		l.key.backward(s)
	default:
		l.key.forward(s)
	}
	l.hash = t.hash(&l.key)
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
	var slots [ahead]uint32
	for i := range looked {
		slots[i] = t.index[looked[i].hash&t.mask]
	}
	var sum uint32
	for i := range looked {
		if slot := slots[i]; slot != 0 && (slot^t.tag(looked[i].hash))&^t.numbers == 0 {
			sum += t.attempts[t.number(slot)].isn
		}
	}
	t.fetched = sum
}

// window is how far a sequence number may be past another one.
const window = 1 << 16

// past tells whether n is 1 to 65,536 past isn.
func past(n, isn uint32) bool { return n-isn-1 < window }

func (t *Tracker) observe(s *capture.Segment, l *lookup) {
	if s.Time > t.now || t.now-s.Time > int64(t.timeout) {
		t.advance(s.Time)
	}
	if l.what == nothing {
		return
	}
	at := toTick(s.Time)
	a, slot := t.live(&l.key, l.hash, at)
	switch l.what {
	case isSYN:
		t.syn(s, l, a, slot, at)
	case isSYNACK:
		if a != nil && past(s.Ack, a.isn) {
			t.synack(s, a, at)
		}
	case isACK:
		if a != nil && past(s.Seq, a.isn) && (a.state&answered == 0 || past(s.Ack, a.serverISN)) {
			t.end(a, slot, Success, at)
		}
	case isRST:
		if a != nil {
			t.end(a, slot, Aborted, at)
		}
		var k key
		k.backward(s)
		if a, slot = t.live(&k, t.hash(&k), at); a != nil {
			t.classes[a.class].counts.Answers++
			t.end(a, slot, Reject, at)
		}
	case isUnreachable:
		if a != nil && s.Seq == a.isn {
			t.end(a, slot, Unreach, at)
		}
	}
}

// live is find for attempts that have not timed out; one that has is ended.
func (t *Tracker) live(k *key, hash uint64, at tick) (*attempt, uint64) {
	a, slot := t.find(k, hash)
	if a != nil && t.due(a, at) {
		t.timeOut(a, slot)
		return t.find(k, hash)
	}
	return a, slot
}

func (t *Tracker) syn(s *capture.Segment, l *lookup, a *attempt, slot uint64, at tick) {
	signs := s.Signed()
	if signs && t.isArmed(&l.key) {
		if n, ok := t.choose(&l.key); ok {
			t.classes[n].counts.Screened++
		}
		return
	}
	if a != nil {
		if a.isn == s.Seq {
			a.repeatSYN()
			a.heard(at)
			return
		}
		t.end(a, slot, Timeout, at)
		_, slot = t.find(&l.key, l.hash)
	}
	n, ok := t.choose(&l.key)
	if !ok {
		return
	}
	c := &t.classes[n].counts
	c.Attempts++
	if signs {
		c.Signed++
	}
	if t.full() {
		if !t.giveWay(at) {
			c.Untracked++
			return
		}
		_, slot = t.find(&l.key, l.hash)
	}
	a = t.add(&l.key, l.hash, slot)
	a.isn, a.opened, a.last, a.class, a.state, a.again = s.Seq, at, at, n, used, 0
	if signs {
		a.state |= signed
	}
	c.Pending++
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
func (t *Tracker) end(a *attempt, slot uint64, o Outcome, at tick) {
	c := &t.classes[a.class].counts
	c.Pending--
	dupSYN, dupSYNACK := &c.FailureDupSYN, &c.FailureDupSYNACK
	switch o {
	case Success:
		c.Success++
		c.Complete.observe(at.since(a.opened))
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
		t.events(t.event(a, o, at))
	}
	t.remove(slot)
}

func (t *Tracker) event(a *attempt, o Outcome, at tick) Event {
	// The time of at is known, give or take what a tick rounds off: it is
	// within the range of a tick of now.
	ended := t.now - int64(toTick(t.now).since(at))
	took := at.since(a.opened)
	e := Event{Outcome: o, Took: took, DupSYN: a.dupSYN(), DupSYNACK: a.dupSYNACK()}
	e.Client, e.Server = a.addresses()
	e.Opened = time.Unix(0, ended-int64(took)).UTC()
	return e
}

// crowd is how many attempts are looked at for the one that gives way.
const crowd = 32

// giveWay makes room in a full table: the oldest attempt of the next few, of
// which the client has not repeated its SYN, is not followed any more. A
// spoofed source repeats nothing, so a flood gives way before honest clients
// do. The places fill up in the order of time and the search goes on where it
// was, so the oldest of few is seldom younger than the oldest of all.
func (t *Tracker) giveWay(at tick) bool {
	var victim *attempt
	for range min(crowd, len(t.attempts)) {
		a := &t.attempts[t.oldest]
		if t.oldest++; t.oldest == len(t.attempts) {
			t.oldest = 0
		}
		if a.dupSYN() == 0 && (victim == nil || at.since(a.opened) > at.since(victim.opened)) {
			victim = a
		}
	}
	if victim == nil {
		return false
	}
	_, slot := t.find(&victim.key, t.hash(&victim.key))
	if t.due(victim, at) {
		t.timeOut(victim, slot)
	} else {
		t.end(victim, slot, Untracked, at)
	}
	return true
}

// due tells whether an attempt has timed out, to within two ticks.
func (t *Tracker) due(a *attempt, at tick) bool {
	return int32(at-a.last) >= int32(toTick(int64(t.timeout)))
}

func (t *Tracker) timeOut(a *attempt, slot uint64) {
	t.end(a, slot, Timeout, a.last+toTick(int64(t.timeout)))
}

// advance moves the time. After a pause of more than the timeout, or a step
// back of more than it, nothing that is pending can be told in ticks any more.
func (t *Tracker) advance(now int64) {
	if now == 0 || now <= t.now && t.now-now <= int64(t.timeout) {
		return
	}
	if pause := now - t.now; pause > int64(t.timeout) || pause < 0 {
		for i := range t.attempts[:t.fresh] {
			if a := &t.attempts[i]; a.state&used != 0 {
				_, slot := t.find(&a.key, t.hash(&a.key))
				t.timeOut(a, slot)
			}
		}
		t.swept = now
	}
	t.now = now
}

// Expire ends every attempt that has timed out at now. Observe does the same
// by and by, a little at a time.
func (t *Tracker) Expire(now int64) {
	t.advance(now)
	t.sweepSome(t.fresh)
}

const (
	// sweeps of the whole table that happen within one timeout.
	sweeps = 16
	// sweepMost bounds what is swept after a batch, so that no packet waits
	// for it for longer than some tens of microseconds. When there was no
	// packet, sweepIdle does.
	sweepMost = 4096
	sweepIdle = 1 << 16
)

// sweep ends the attempts that have timed out in a part of the table, as large
// as the time since the last one asks for.
func (t *Tracker) sweep(most int) {
	if t.fresh == 0 {
		t.swept = t.now
		return
	}
	each := max(int64(t.timeout)/sweeps/int64(t.fresh), 1) // time for one attempt
	n := min((t.now-t.swept)/each, int64(most))
	t.swept += n * each
	t.sweepSome(int(n))
}

func (t *Tracker) sweepSome(n int) {
	at := toTick(t.now)
	for range n {
		if t.hand++; t.hand >= t.fresh {
			t.hand = 0
		}
		if a := &t.attempts[t.hand]; a.state&used != 0 && t.due(a, at) {
			_, slot := t.find(&a.key, t.hash(&a.key))
			t.timeOut(a, slot)
		}
	}
}

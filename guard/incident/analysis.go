package incident

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/lvsguard/lvsguard/capture"
)

const (
	// keptSYNs of each kind are kept whole, chosen at random, to see which values
	// come together.
	keptSYNs = 4096
	// pendingSYNs wait for the client's ACK. Those with a signature wait apart, so
	// that a flood cannot push out the others.
	pendingSYNs = 4096
	// patience is how long a SYN waits before it counts as unanswered.
	patience = 3_000_000_000
	// lead is how long a flood may have been on when the verdict leaves calm.
	lead = 5_000_000_000
	// answered is within what time nearly every answer comes.
	answered = 1_000_000_000
	// retransmission is the least time after which a client repeats its SYN
	// (RFC 6298: a second), with room for one that is impatient.
	retransmission = 500_000_000
	// goodLeast is the fewest good SYNs from which a share of them is told.
	goodLeast = 30
)

// AnalysisConfig is what an Analysis needs to know of the incident.
type AnalysisConfig struct {
	// Addresses are the service's; port 0 is every port.
	Addresses []netip.AddrPort
	// Signed tells whether a SYN's window, IPv4 length (of IPv6 the payload's and
	// 20), TTL, options and port match a signature. Nil: none does.
	Signed func(SYN) bool
	// Onset is when the verdict left calm, in nanoseconds since 1970. SYNs from
	// before it are no flood, unless they have a signature and came shortly before.
	Onset int64
	// Known tells whether a source had completed a handshake in the hour before.
	// Nil: that is not known.
	Known func(netip.Addr) bool
}

// A SYN is what a signature looks at.
type SYN struct {
	Window, Length, Port uint16
	TTL                  uint8
	Options              bool // of TCP or IP, or IPv6 extension headers
}

// An Analysis tells from packets what the flood on a service looks like. Its
// memory is fixed. One goroutine at a time may use it.
//
// A SYN is good when its client completed the handshake. If it did not, the SYN
// is the flood's when it has a signature; and without one, if it came after the
// onset and more such SYNs go unanswered than before.
type Analysis struct {
	cfg            AnalysisConfig
	signed, others waiting
	flood, good    kind
	withSignature  float64 // of the flood
	before, during tally   // of SYNs without a signature
	refused        uint64  // handshakes that the client ended with a RST
	dropping       bool
	collateral     *Collateral
	random         *rand.Rand
}

// tally says how SYNs fared.
type tally struct{ all, unanswered float64 }

// A kind is the flood or good clients.
type kind struct {
	*distributions
	kept []headers
}

// NewAnalysis makes an Analysis.
func NewAnalysis(cfg AnalysisConfig) *Analysis {
	a := &Analysis{
		cfg: cfg, signed: newWaiting(), others: newWaiting(),
		flood: kind{distributions: newDistributions()}, good: kind{distributions: newDistributions()},
		// The same packets are to give the same record.
		random: rand.New(rand.NewPCG(1, 2)),
	}
	if cfg.Known != nil {
		a.collateral = new(Collateral)
	}
	return a
}

// Add takes a packet. Those of a service other than this one's are passed over.
func (a *Analysis) Add(p *capture.Packet) {
	h, ok := decode(p)
	if !ok || !a.mine(&h) {
		return
	}
	switch {
	case h.isSYN():
		a.syn(p.Time, &h)
	case h.flags&capture.SYN == 0 && h.flags&(capture.ACK|capture.RST) != 0:
		a.answer(&h)
	}
	a.expire(p.Time)
}

func (a *Analysis) mine(h *headers) bool {
	return slices.ContainsFunc(a.cfg.Addresses, func(at netip.AddrPort) bool {
		return at.Addr() == h.dst && (at.Port() == 0 || at.Port() == h.dstPort)
	})
}

func (a *Analysis) syn(now int64, h *headers) {
	signed := a.cfg.Signed != nil && a.cfg.Signed(SYN{
		Window: h.window, Length: h.length, Port: h.dstPort, TTL: h.ttl, Options: h.offset != 5 || h.ipOptions,
	})
	queue := &a.others
	if signed {
		queue = &a.signed
		if a.dropping && a.collateral != nil {
			a.collateral.add(h.src, a.cfg.Known(h.src))
		}
	}
	if old, full := queue.add(now, h); full {
		a.unanswered(old, signed)
	}
}

// answer takes a segment of a client that has sent a SYN before.
func (a *Analysis) answer(h *headers) {
	for _, queue := range []*waiting{&a.others, &a.signed} {
		w, ok := queue.find(h)
		if !ok || h.seq-w.seq-1 >= 65536 {
			continue
		}
		queue.remove(h)
		if h.flags&capture.RST != 0 {
			a.refused++
			a.unanswered(pendingSYN{headers: w.headers, at: w.at}, queue == &a.signed)
			return
		}
		if queue == &a.others {
			a.tallyOf(w.at).all += w.weight
		}
		a.good.add(&w.headers, a.random)
		return
	}
}

func (a *Analysis) tallyOf(at int64) *tally {
	if at < a.cfg.Onset {
		return &a.before
	}
	return &a.during
}

// unanswered takes a SYN whose handshake did not complete.
func (a *Analysis) unanswered(p pendingSYN, signed bool) {
	if signed {
		// What came long before may be of another flood.
		if p.at < a.cfg.Onset-lead {
			return
		}
		a.withSignature += p.weight
	} else {
		t := a.tallyOf(p.at)
		t.all += p.weight
		t.unanswered += p.weight
		if p.at < a.cfg.Onset || !a.excess() {
			return
		}
	}
	a.flood.add(&p.headers, a.random)
}

// excess tells whether SYNs without a signature go unanswered because of a
// flood. Before the onset, too, some do; and where nearly all of the flood has a
// signature, those without are clients that it keeps out.
func (a *Analysis) excess() bool {
	if a.during.unanswered < 5 || a.during.unanswered*10 < a.withSignature {
		return false
	}
	now := a.during.unanswered / a.during.all
	return now > 0.5 || now > 2*a.before.unanswered/max(a.before.all, 1)
}

func (a *Analysis) expire(now int64) {
	for {
		p, ok := a.others.due(now - patience)
		if !ok {
			break
		}
		a.unanswered(p, false)
	}
	for {
		p, ok := a.signed.due(now - patience)
		if !ok {
			return
		}
		a.unanswered(p, true)
	}
}

// Pause says that packets after now are missing, for a while or for ever. SYNs of
// the last second before it may have been answered unseen: they are forgotten.
func (a *Analysis) Pause(now int64) {
	a.expire(now + patience - answered)
	a.signed, a.others = newWaiting(), newWaiting()
}

// Dropping says whether SYNs with a signature are dropped from now on.
func (a *Analysis) Dropping(dropping bool) { a.dropping = dropping }

// Collateral tells what of the dropped SYNs came from clients. Nil: Known was
// not given.
func (a *Analysis) Collateral() *Collateral { return a.collateral }

func (k *kind) add(h *headers, random *rand.Rand) {
	k.distributions.add(h)
	if len(k.kept) < keptSYNs {
		k.kept = append(k.kept, *h)
	} else if i := random.Uint64N(k.packets); i < keptSYNs {
		k.kept[i] = *h
	}
}

// Look is what is known so far; nil without a packet of the flood.
func (a *Analysis) Look() *Look {
	if a.flood.packets == 0 {
		return nil
	}
	l := &Look{Flood: a.flood.packets, Good: a.good.packets, Fields: fields(a.flood.distributions, a.good.distributions)}
	l.Features = features(a.flood.kept, a.good.kept, a.flood.distributions, a.good.distributions)
	l.Sources = a.sources()
	return l
}

func (a *Analysis) sources() Sources {
	distinct := a.flood.distinct.Estimate()
	s := Sources{Distinct: &distinct, Prefixes: make(map[int][]Value)}
	for n, flood := range a.flood.prefixes {
		list, _, _ := values(flood, a.good.prefixes[n], prefixListed, func(p netip.Prefix) string { return p.String() })
		if len(list) > 0 {
			s.Prefixes[n] = list
		}
	}
	s.Spoofed = a.spoofed(distinct)
	return s
}

// spoofed says why the flood's sources are likely not who sent it.
func (a *Analysis) spoofed(distinct uint64) string {
	f := &a.flood
	if f.packets < 100 {
		return ""
	}
	var eights int
	for _, n := range f.eights {
		if n > 0 {
			eights++
		}
	}
	var reasons []string
	strong := 0
	if fresh := float64(distinct) / float64(f.packets); fresh > 0.9 {
		strong++
		reasons = append(reasons, fmt.Sprintf("nearly every SYN has a source of its own (about %d sources of %d SYNs)", min(distinct, f.packets), f.packets))
	}
	if eights > 180 {
		strong++
		reasons = append(reasons, fmt.Sprintf("they are spread over %d of the 256 networks /8", eights))
	}
	if out := share(f.unroutable, f.packets); out > 0.02 && eights > 180 {
		strong++
		reasons = append(reasons, fmt.Sprintf("%s of them are addresses that nobody on the Internet has", percent(out)))
	}
	if ttl := f.numbers["ttl"].top(1); len(ttl) > 0 && eights > 180 && share(ttl[0].count-ttl[0].over, f.numbers["ttl"].total) >= nearlyAll {
		strong++
		reasons = append(reasons, fmt.Sprintf("all come with the same TTL %d, so from the same distance", ttl[0].key))
	}
	if strong == 0 {
		return ""
	}
	reasons = append(reasons, "they sent SYNs alone and completed no handshake")
	if a.refused == 0 {
		return Sentence(reasons) + ", and none sent a RST"
	}
	if share(a.refused, f.packets) > 0.1 {
		// A source that refuses an answer it did not ask for is at least alive.
		reasons = append(reasons, fmt.Sprintf("%s were refused with a RST by hosts that had asked for nothing", percent(share(a.refused, f.packets))))
	}
	return Sentence(reasons)
}

// pendingSYN is a SYN that waits for its client's ACK.
type pendingSYN struct {
	headers
	at int64
}

// An Identity is the same of a packet however it was captured.
type Identity struct {
	connection
	seq   uint32
	flags capture.Flags
}

// Identify tells the identity of a TCP segment.
func Identify(p *capture.Packet) (Identity, bool) {
	h, ok := decode(p)
	return Identity{h.connection(), h.seq, h.flags}, ok
}

// connection is what an ACK is found by.
type connection struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16
}

func (h *headers) connection() connection { return connection{h.src, h.dst, h.srcPort, h.dstPort} }

// waiting keeps the latest SYNs, the oldest first.
type waiting struct {
	ring  []pendingSYN
	first int
	count int
	at    map[connection]int
}

func newWaiting() waiting { return waiting{at: make(map[connection]int)} }

// add keeps a SYN. If there is no room, the oldest gives way, and is returned.
// The same SYN again after a while is a retransmission and no other one. Sooner,
// or with another number, it is another one, and takes the first one's place.
func (w *waiting) add(now int64, h *headers) (old pendingSYN, full bool) {
	if w.ring == nil {
		w.ring = make([]pendingSYN, pendingSYNs)
	}
	c := h.connection()
	if i, ok := w.at[c]; ok {
		if p := &w.ring[i]; p.seq != h.seq || now-p.at < retransmission {
			old, full = *p, true
			p.headers = *h
		}
		return old, full
	}
	if w.count == len(w.ring) {
		old, full = w.pop()
	}
	i := (w.first + w.count) % len(w.ring)
	w.ring[i] = pendingSYN{headers: *h, at: now}
	w.at[c] = i
	w.count++
	return old, full
}

func (w *waiting) find(h *headers) (pendingSYN, bool) {
	i, ok := w.at[h.connection()]
	if !ok {
		return pendingSYN{}, false
	}
	return w.ring[i], true
}

// remove forgets a SYN. Its place is freed when it is the oldest.
func (w *waiting) remove(h *headers) { delete(w.at, h.connection()) }

// pop takes the oldest out. It is false for the place of one that was removed.
func (w *waiting) pop() (pendingSYN, bool) {
	p, i := w.ring[w.first], w.first
	w.first = (w.first + 1) % len(w.ring)
	w.count--
	c := p.connection()
	if at, ok := w.at[c]; !ok || at != i {
		return pendingSYN{}, false
	}
	delete(w.at, c)
	return p, true
}

// due takes the oldest out if it is from before.
func (w *waiting) due(before int64) (pendingSYN, bool) {
	for w.count > 0 {
		p, i := &w.ring[w.first], w.first
		at, ok := w.at[p.connection()]
		if ok && at == i && p.at > before {
			return pendingSYN{}, false
		}
		if p, ok := w.pop(); ok {
			return p, true
		}
	}
	return pendingSYN{}, false
}

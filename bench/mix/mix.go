// Package mix makes the packets that the figures are measured with: handshakes
// of honest clients, and between them the SYNs of a spoofed flood. It promises
// the same packets for the same Config, and to know how each attempt ends.
package mix

import (
	"cmp"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
	"time"
)

// Config is what a mix consists of.
type Config struct {
	Seed uint64
	// Handshakes begin at even distances, each from the next of Clients
	// addresses, which are spread over all of IPv4. One of them is needed for
	// every 60,000 handshakes, so that no tuple comes twice.
	Handshakes, Clients int
	// Flood is the number of SYNs with window 0, no options and a source of
	// its own each, at even distances, too.
	Flood int
	// Span is the time in which handshakes and flood begin. Answers, and the
	// retransmissions a second later, come after it.
	Span time.Duration
	// ACKDelay is the time from SYN/ACK to ACK; 0 is 0.2 to 30 ms at random.
	ACKDelay time.Duration
	// Service is where all of it goes to, over IPv4.
	Service netip.AddrPort
}

// Standard is the mix that figures are stated for: it has 1,604,061 packets.
func Standard() Config {
	return Config{
		Seed:       1,
		Handshakes: 200_000,
		Clients:    60_000,
		Flood:      1_000_000,
		Span:       2 * time.Second,
		Service:    netip.MustParseAddrPort("192.0.2.1:80"),
	}
}

// Scaled is c with a share of its attempts, at the same rate.
func (c Config) Scaled(share float64) Config {
	c.Handshakes = int(float64(c.Handshakes) * share)
	c.Clients = int(float64(c.Clients) * share)
	c.Flood = int(float64(c.Flood) * share)
	c.Span = time.Duration(float64(c.Span) * share)
	return c
}

// Of the handshakes, numbered from 1 on, every so manieth differs.
const (
	dupSYN    = 50  // the SYN is sent twice
	dupSYNACK = 97  // the SYN/ACK is sent twice
	refused   = 101 // RST is the answer
)

// Linux's first retransmission, of SYN and of SYN/ACK (RFC 6298, section 2).
const retransmission = time.Second

// Truth is how the attempts of a mix end, by the meaning of 'lvsguard
// handshakes'.
type Truth struct {
	Packets  uint64
	Attempts uint64
	// Success, and those of them that had a retransmission.
	Success, SuccessDupSYN, SuccessDupSYNACK uint64
	// Reject are the failures, and those of them that had a retransmission.
	Reject, RejectDupSYN uint64
	// Pending are the flood's.
	Pending uint64
}

// Truth tells it for all packets of c.
func (c Config) Truth() Truth {
	t := Truth{Packets: uint64(c.Flood), Pending: uint64(c.Flood), Attempts: uint64(c.Flood + c.Handshakes)}
	for number := 1; number <= c.Handshakes; number++ {
		again := number%dupSYN == 0
		if again {
			t.Packets++
		}
		if number%refused == 0 {
			t.Packets += 2
			t.Reject++
			if again {
				t.RejectDupSYN++
			}
			continue
		}
		t.Packets += 3
		t.Success++
		if again {
			t.SuccessDupSYN++
		}
		if number%dupSYNACK == 0 {
			t.Packets++
			t.SuccessDupSYNACK++
		}
	}
	return t
}

// An event is a segment of a handshake, when it comes.
type event struct {
	at        time.Duration
	handshake int32
	flags     uint8
}

// events are those of all handshakes, in the order of time.
func (c Config) events() []event {
	var all []event
	for i := range c.Handshakes {
		number := i + 1
		at := even(i, c.Handshakes, c.Span, c.random(i, forBegin))
		add := func(flags uint8) { all = append(all, event{at, int32(i), flags}) }
		add(flagSYN)
		if number%dupSYN == 0 {
			at += retransmission
			add(flagSYN)
		}
		at += between(200*time.Microsecond, 20*time.Millisecond, c.random(i, forSYNACK))
		if number%refused == 0 {
			add(flagRST | flagACK)
			continue
		}
		add(flagSYN | flagACK)
		if number%dupSYNACK == 0 {
			at += retransmission
			add(flagSYN | flagACK)
		}
		if c.ACKDelay > 0 {
			at += c.ACKDelay
		} else {
			at += between(200*time.Microsecond, 30*time.Millisecond, c.random(i, forACK))
		}
		add(flagACK)
	}
	slices.SortFunc(all, func(a, b event) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.handshake, b.handshake))
	})
	return all
}

// Frames are the packets, Ethernet header first, in the order of their times,
// which count from the mix's beginning. A frame holds until the next.
func (c Config) Frames() iter.Seq2[time.Duration, []byte] {
	return func(yield func(time.Duration, []byte) bool) {
		events := c.events()
		addresses := c.addresses()
		clients := make([]uint32, max(1, min(c.Clients, c.Handshakes)))
		for i := range clients {
			clients[i] = addresses()
		}
		buffer := make([]byte, 0, maxFrame)
		for flooded := 0; flooded < c.Flood || len(events) > 0; {
			if flooded < c.Flood {
				bits := c.random(flooded, forFlood)
				at := even(flooded, c.Flood, c.Span, c.random(flooded, forFloodBegin))
				if len(events) == 0 || at < events[0].at {
					flooded++
					if !yield(at, c.suspect(addresses(), bits).appendTo(buffer)) {
						return
					}
					continue
				}
			}
			e := events[0]
			events = events[1:]
			client := clients[int(e.handshake)%len(clients)]
			if !yield(e.at, c.honest(e, client, len(clients)).appendTo(buffer)) {
				return
			}
		}
	}
}

// suspect is a SYN of the flood.
func (c Config) suspect(source uint32, bits uint64) segment {
	return segment{
		toServer: true, client: source, service: c.Service,
		port: anyPort(bits), id: uint16(bits >> 16), seq: uint32(bits >> 32),
		flags: flagSYN,
	}
}

// honest is the segment of an event.
func (c Config) honest(e event, client uint32, clients int) segment {
	i := int(e.handshake)
	isns := c.random(i, forISN)
	clientISN, serverISN := uint32(isns), uint32(isns>>32)
	clock := uint32(e.at.Milliseconds())
	s := segment{
		client: client, service: c.Service,
		// A client has its ports one after the other.
		port:  anyPort(c.random(i%clients, forPort) + uint64(i/clients)),
		id:    uint16(e.at.Microseconds()), // another one for a retransmission
		flags: e.flags,
	}
	switch e.flags {
	case flagSYN:
		s.toServer, s.seq, s.window, s.options = true, clientISN, 64240, optionsSYN
		s.clock = clock
	case flagSYN | flagACK:
		s.seq, s.ack, s.window, s.options = serverISN, clientISN+1, 65160, optionsSYN
		s.clock, s.echo = clock+serverISN, 1
	case flagACK:
		s.toServer, s.seq, s.ack, s.window, s.options = true, clientISN+1, serverISN+1, 502, optionsACK
		s.clock, s.echo = clock, clock+serverISN
	default:
		s.ack = clientISN + 1
	}
	return s
}

// addresses gives IPv4 addresses from anywhere that may be a source on the
// Internet, never one twice.
func (c Config) addresses() func() uint32 {
	service := c.Service.Addr().As4()
	at := uint32(c.Seed)
	return func() uint32 {
		for {
			// Each step can be undone, so that different numbers stay
			// different (the last steps of MurmurHash3).
			a := at
			a = (a ^ a>>16) * 0x85ebca6b
			a = (a ^ a>>13) * 0xc2b2ae35
			a ^= a >> 16
			at++
			if first := a >> 24; first > 0 && first < 224 && first != 10 && first != 127 &&
				a != binary.BigEndian.Uint32(service[:]) {
				return a
			}
		}
	}
}

// What a random number is for: each use has its own.
const (
	forBegin = iota
	forSYNACK
	forACK
	forISN
	forPort
	forFlood
	forFloodBegin
	uses
)

// random is the i-th random number for a use (SplitMix64).
func (c Config) random(i, use int) uint64 {
	x := c.Seed*0xd1342543de82ef95 + uint64(i*uses+use)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// even is the time of the i-th of n, each at random within its own n-th of span.
func even(i, n int, span time.Duration, bits uint64) time.Duration {
	slot := float64(span) / float64(n)
	return time.Duration((float64(i) + fraction(bits)) * slot)
}

func between(least, most time.Duration, bits uint64) time.Duration {
	return least + time.Duration(fraction(bits)*float64(most-least))
}

// fraction is from 0 to below 1.
func fraction(bits uint64) float64 { return float64(bits>>11) / (1 << 53) }

func anyPort(bits uint64) uint16 { return uint16(1024 + bits%(65536-1024)) }

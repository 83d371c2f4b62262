package handshake

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/capture"
)

// A key names an attempt: the client's half of the connection.
type key struct {
	client, server         [16]byte
	clientPort, serverPort uint16
}

func keyOf(syn *capture.Segment) key { return key{syn.Src, syn.Dst, syn.SrcPort, syn.DstPort} }

func (k *key) addresses() (client, server netip.AddrPort) {
	s := capture.Segment{Src: k.client, SrcPort: k.clientPort, Dst: k.server, DstPort: k.serverPort}
	return s.From(), s.To()
}

// An attempt is a handshake that has not ended. It has 32 bytes. The table is
// at most half full, so that a pending attempt costs 64 bytes and not more.
type attempt struct {
	hash      uint64 // of its key; 0 in a free place
	isn       uint32 // the client's
	serverISN uint32 // if answered is set
	opened    tick
	last      tick // the last segment of the handshake
	class     uint16
	state     state
	again     uint8 // retransmitted SYNs, and times 16 SYN/ACKs; 15 is "or more"
}

type state uint8

const (
	answered state = 1 << iota // its SYN/ACK was seen
	signed                     // its SYN bore the signature
)

const maxAgain = 15

func (a *attempt) dupSYN() int    { return int(a.again & maxAgain) }
func (a *attempt) dupSYNACK() int { return int(a.again >> 4) }

// heard notes a segment of the handshake. Those of a capture file may be out of
// order.
func (a *attempt) heard(at tick) {
	if at.since(a.last) > 0 {
		a.last = at
	}
}

func (a *attempt) repeatSYN() {
	if a.dupSYN() < maxAgain {
		a.again++
	}
}

func (a *attempt) repeatSYNACK() {
	if a.dupSYNACK() < maxAgain {
		a.again += 1 << 4
	}
}

// A table holds a fixed number of attempts, by open addressing with linear
// probing. An attempt is known by a hash of its key of 64 bits, under a secret
// seed: among a million attempts, two have the same one once in 30 million
// times, and nobody can bring it about. So one look at one line of a cache
// tells of most keys whether they are in it, of IPv6 too.
type table struct {
	seed   [4]uint64
	places []attempt
	// keys are those of the attempts, by place. They are there only if somebody
	// wants to know them of attempts that end without a segment.
	keys []key
	mask uint64
	// some has a bit for each block of places in which there may be an attempt,
	// so that a table with few is swept as fast as it should be.
	some []uint64
	held int
	room int // how many it may hold
}

func newTable(cfg *Config) table {
	size := 2 << bits.Len(uint(cfg.Capacity-1))
	t := table{places: make([]attempt, size), some: make([]uint64, size/block/64+1), mask: uint64(size - 1), room: cfg.Capacity}
	if cfg.HugePages {
		inHugePages(t.places)
	}
	if cfg.Events != nil {
		t.keys = make([]key, size)
	}
	for i := range t.seed {
		t.seed[i] = rand.Uint64()
	}
	return t
}

// hash is of a key, by multiplication as wyhash does it. Two IPv4 addresses fit
// into one word; all four words of IPv6 go in one by one, because whoever could
// choose two that cancel each other could fill one place of the table.
func (t *table) hash(client, server *[16]byte, clientPort, serverPort uint16) uint64 {
	c0, c1 := binary.LittleEndian.Uint64(client[:8]), binary.LittleEndian.Uint64(client[8:])
	s0, s1 := binary.LittleEndian.Uint64(server[:8]), binary.LittleEndian.Uint64(server[8:])
	addresses, ports := c1&^0xffffffff|s1>>32, uint64(clientPort)<<16|uint64(serverPort)
	if c0|s0 != 0 {
		addresses = fold(c0^t.seed[0], c1^t.seed[1])
		ports ^= fold(s0^t.seed[1], s1^t.seed[2])
	}
	return fold(fold(addresses^t.seed[2], ports^t.seed[3])^t.seed[0], t.seed[1]) | 1<<63
}

// forward is the hash of the key of the attempt whose client sent s, backward
// that of the one whose server did.
func (t *table) forward(s *capture.Segment) uint64 {
	return t.hash(&s.Src, &s.Dst, s.SrcPort, s.DstPort)
}

func (t *table) backward(s *capture.Segment) uint64 {
	return t.hash(&s.Dst, &s.Src, s.DstPort, s.SrcPort)
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// block is how many places share a bit of some.
const block = 64

// put takes a free place.
func (t *table) put(at uint64, a attempt) {
	t.places[at] = a
	t.some[at/block/64] |= 1 << (at / block % 64)
}

func (t *table) blocks() int { return max(len(t.places)/block, 1) }

// find returns the place of an attempt, or the free one where it would be.
func (t *table) find(hash uint64) (at uint64, found bool) {
	for at = hash & t.mask; ; at = (at + 1) & t.mask {
		switch t.places[at].hash {
		case hash:
			return at, true
		case 0:
			return at, false
		}
	}
}

// remove frees a place. Attempts behind it move up where they may, so that no
// search ends too soon.
func (t *table) remove(at uint64) {
	t.held--
	for next := (at + 1) & t.mask; t.places[next].hash != 0; next = (next + 1) & t.mask {
		// It may move to the hole if its home is not between the two.
		home := t.places[next].hash & t.mask
		if (next-home)&t.mask < (next-at)&t.mask {
			continue
		}
		t.put(at, t.places[next])
		if t.keys != nil {
			t.keys[at] = t.keys[next]
		}
		at = next
	}
	t.places[at].hash = 0
}

// inHugePages asks the kernel to back a large array with huge pages: places in
// it are looked up at random, and to find the pages costs as much as to read
// them. Where it does not, nothing is lost but time.
func inHugePages[T any](array []T) {
	const size = 2 << 20
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(array))), len(array)*int(unsafe.Sizeof(array[0])))
	first := int(-uintptr(unsafe.Pointer(&b[0])) & (size - 1))
	if last := len(b) - (len(b)-first)%size; first < last {
		_ = unix.Madvise(b[first:last], unix.MADV_HUGEPAGE)
	}
}

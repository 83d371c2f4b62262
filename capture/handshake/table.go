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

// A key names an attempt: the client's half of the connection. The addresses
// are in words, as they lie in memory, because they are compared and hashed as
// such.
type key struct {
	client, server [2]uint64
	ports          uint32 // client's and server's
}

func words(a *[16]byte) [2]uint64 {
	return [2]uint64{binary.LittleEndian.Uint64(a[:8]), binary.LittleEndian.Uint64(a[8:])}
}

func bytesOf(w [2]uint64) (a [16]byte) {
	binary.LittleEndian.PutUint64(a[:8], w[0])
	binary.LittleEndian.PutUint64(a[8:], w[1])
	return a
}

// forward makes k the key of the attempt whose client sent s, backward that of
// the one whose server did.
func (k *key) forward(s *capture.Segment) {
	k.client, k.server = words(&s.Src), words(&s.Dst)
	k.ports = uint32(s.SrcPort)<<16 | uint32(s.DstPort)
}

func (k *key) backward(s *capture.Segment) {
	k.client, k.server = words(&s.Dst), words(&s.Src)
	k.ports = uint32(s.DstPort)<<16 | uint32(s.SrcPort)
}

func (k *key) equal(o *key) bool {
	return k.ports == o.ports && k.client[1] == o.client[1] && k.server[1] == o.server[1] &&
		k.client[0] == o.client[0] && k.server[0] == o.server[0]
}

func (k *key) serverPlace() place { return place{k.server, uint16(k.ports)} }

func (k *key) addresses() (client, server netip.AddrPort) {
	s := capture.Segment{Src: bytesOf(k.client), SrcPort: uint16(k.ports >> 16), Dst: bytesOf(k.server), DstPort: uint16(k.ports)}
	return s.From(), s.To()
}

// An attempt is a handshake that has not ended. It has 56 bytes, to which the
// index adds 8, so that a pending attempt costs 64 bytes and not more.
type attempt struct {
	key
	isn       uint32 // the client's; in a free attempt, the next free one
	serverISN uint32 // if answered is set
	opened    tick
	last      tick // the last segment of the handshake
	class     uint16
	state     state
	again     uint8 // retransmitted SYNs, and times 16 SYN/ACKs; 15 is "or more"
}

type state uint8

const (
	used     state = 1 << iota
	answered       // its SYN/ACK was seen
	signed         // its SYN bore the signature
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

// A table holds a fixed number of attempts: an array of them, and an index with
// open addressing (linear probing, at most half full), whose slots have the
// attempt's number plus one and, in the bits above it, a part of the hash. So
// most of what is not in the table costs one look at the index.
type table struct {
	seed     [4]uint64
	index    []uint32
	mask     uint64
	numbers  uint32 // the bits of a slot that hold the number
	attempts []attempt
	fresh    int    // attempts from here on have never been used
	free     uint32 // number plus one of the first free attempt below fresh
	held     int
}

func newTable(capacity int) table {
	size := 2 << bits.Len(uint(capacity-1))
	t := table{
		index:    make([]uint32, size),
		mask:     uint64(size - 1),
		numbers:  1<<bits.Len(uint(capacity)) - 1,
		attempts: make([]attempt, capacity),
	}
	inHugePages(t.index)
	inHugePages(t.attempts)
	// Nobody who does not know the seed can aim at one place of the index.
	for i := range t.seed {
		t.seed[i] = rand.Uint64()
	}
	return t
}

// hash mixes by multiplication, as wyhash does. Two IPv4 addresses fit into one
// word; all four words of IPv6 go in one by one, because whoever could choose
// two that cancel each other could fill one place of the index.
func (t *table) hash(k *key) uint64 {
	if k.client[0]|k.server[0] == 0 {
		return fold((k.client[1]&^0xffffffff|k.server[1]>>32)^t.seed[0], uint64(k.ports)^t.seed[1])
	}
	c := fold(k.client[0]^t.seed[0], k.client[1]^t.seed[1])
	s := fold(k.server[0]^t.seed[1], k.server[1]^t.seed[2])
	return fold(c^uint64(k.ports)^t.seed[3], s^t.seed[2])
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// tag is the part of a hash that a slot keeps: bits that do not choose the slot.
func (t *table) tag(hash uint64) uint32 { return uint32(hash>>32) &^ t.numbers }

func (t *table) number(slot uint32) uint32 { return slot&t.numbers - 1 }

// find returns the attempt and the place of its slot, or nil and the place where
// its slot would be.
func (t *table) find(k *key, hash uint64) (a *attempt, at uint64) {
	tag := t.tag(hash)
	for at = hash & t.mask; ; at = (at + 1) & t.mask {
		slot := t.index[at]
		if slot == 0 {
			return nil, at
		}
		if (slot^tag)&^t.numbers == 0 {
			if a = &t.attempts[t.number(slot)]; a.key.equal(k) {
				return a, at
			}
		}
	}
}

// add takes a free attempt for a key whose slot would be at the place. There
// must be room.
func (t *table) add(k *key, hash uint64, at uint64) *attempt {
	number := t.free
	if number != 0 {
		t.free = t.attempts[number-1].isn
	} else {
		t.fresh++
		number = uint32(t.fresh)
	}
	t.index[at] = t.tag(hash) | number
	t.held++
	a := &t.attempts[number-1]
	a.key = *k
	return a
}

// remove frees the attempt whose slot is at the place. Slots behind it move up
// where they may, so that no search ends too soon.
func (t *table) remove(at uint64) {
	number := t.number(t.index[at])
	t.attempts[number].state = 0
	t.attempts[number].isn = t.free
	t.free = number + 1
	t.held--
	for next := (at + 1) & t.mask; t.index[next] != 0; next = (next + 1) & t.mask {
		home := t.hash(&t.attempts[t.number(t.index[next])].key) & t.mask
		// The slot may move to the hole if its home is not between the two.
		if (next-home)&t.mask >= (next-at)&t.mask {
			t.index[at] = t.index[next]
			at = next
		}
	}
	t.index[at] = 0
}

func (t *table) full() bool { return t.held == len(t.attempts) }

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

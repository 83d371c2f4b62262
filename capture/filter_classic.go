package capture

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// classicFilter is what there is where eBPF is refused. It cannot remember
// SYNs, so it has to hand up every TCP segment; and it does not count. What is a
// copy and what is screened is left to user space.
type classicFilter struct {
	ring       *ring
	interfaces map[uint32]uint32
	armed      atomic.Pointer[map[armedKey]*atomic.Uint64]
	screened   map[armedKey]*atomic.Uint64 // also of those that are armed no more
}

func newClassicFilter(r *ring) *classicFilter {
	c := &classicFilter{ring: r, screened: make(map[armedKey]*atomic.Uint64)}
	c.armed.Store(&map[armedKey]*atomic.Uint64{})
	return c
}

func (c *classicFilter) Close() error { return nil }

func (c *classicFilter) follow(interfaces map[uint32]uint32, _ map[[16]byte]bool) error {
	if c.interfaces != nil && maps.Equal(c.interfaces, interfaces) {
		return nil
	}
	program, err := classicProgram(interfaces)
	if err != nil {
		return err
	}
	if err := c.ring.attachClassic(program); err != nil {
		return err
	}
	c.interfaces = interfaces
	return nil
}

func (c *classicFilter) arm(services []netip.AddrPort, _ float64) error {
	armed := make(map[armedKey]*atomic.Uint64)
	for _, s := range services {
		k := keyOf(s)
		if c.screened[k] == nil {
			c.screened[k] = &atomic.Uint64{}
		}
		armed[k] = c.screened[k]
	}
	c.armed.Store(&armed)
	return nil
}

func (c *classicFilter) count() (tally, error) {
	t := tally{screened: make(map[netip.AddrPort]uint64)}
	for k, n := range c.screened {
		t.screened[k.service()] = n.Load()
	}
	return t, nil
}

// screen counts a SYN with the signature to a service that is armed, and tells
// whether it was one.
func (c *classicFilter) screen(seg *Segment) bool {
	if !seg.Signed() {
		return false
	}
	armed := *c.armed.Load()
	n := armed[keyOf(seg.To())]
	if n == nil {
		n = armed[keyOf(netip.AddrPortFrom(seg.To().Addr(), 0))]
	}
	if n == nil {
		return false
	}
	n.Add(1)
	return true
}

// dropAll is the filter that lets nothing pass.
func dropAll() []unix.SockFilter {
	return []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
}

// classicSnap is how much of a packet the classic filter hands up.
const classicSnap = 192

// classicProgram lets pass what might be TCP, or an ICMP error about it, on
// these interfaces.
func classicProgram(interfaces map[uint32]uint32) ([]unix.SockFilter, error) {
	const networkHeader = 1<<32 - 0x100000 // SKF_NET_OFF
	pass, drop := bpf.RetConstant{Val: classicSnap}, bpf.RetConstant{}
	oneOf := func(values ...uint32) (program []bpf.Instruction) {
		for _, v := range values {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: v, SkipTrue: 1}, pass)
		}
		return append(program, drop)
	}
	body := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtProto}}
	for _, ip := range []struct {
		proto, field uint32
		next         []uint32
	}{
		{etherIPv4, 9, []uint32{protoTCP, protoICMP, protoAH}},
		{etherIPv6, 6, []uint32{
			protoTCP, protoICMPv6, protoHopByHop, protoRouting, protoDestOptions, protoMobility, protoFragment, protoAH,
		}},
	} {
		next := append([]bpf.Instruction{bpf.LoadAbsolute{Off: networkHeader + ip.field, Size: 1}}, oneOf(ip.next...)...)
		body = append(body, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ip.proto, SkipTrue: uint8(len(next))})
		body = append(body, next...)
	}
	body = append(body, oneOf(etherVLAN, etherQinQ, etherOldQinQ, etherPPPoE, etherMPLS, etherMPLSDown)...)
	// An interface on which what goes out comes in again.
	loops := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
		drop,
	}

	program := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtInterfaceIndex}}
	for i, index := range slices.Sorted(maps.Keys(interfaces)) {
		// Past the two instructions of each interface that follows, and past the
		// drop after them.
		skip := uint32(2*(len(interfaces)-i-1) + 1)
		if interfaces[index]&linkLoops == 0 {
			skip += uint32(len(loops))
		}
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: index, SkipTrue: 1}, bpf.Jump{Skip: skip})
	}
	raw, err := bpf.Assemble(slices.Concat(program, []bpf.Instruction{drop}, loops, body))
	if err != nil {
		return nil, fmt.Errorf("assemble the classic filter: %w", err)
	}
	var filter []unix.SockFilter
	for _, r := range raw {
		filter = append(filter, unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K})
	}
	return filter, nil
}

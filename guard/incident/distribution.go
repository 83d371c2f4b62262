package incident

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"

	"github.com/axiomhq/hyperloglog"

	"github.com/lvsguard/lvsguard/capture"
)

// topSize is how many values of a field are told apart at once, and topListed
// how many of them a record lists.
const (
	topSize      = 256
	topListed    = 10
	prefixSize   = 1024
	prefixListed = 16
)

// fieldNames are in the order in which a record lists them.
var fieldNames = []string{"window", "length", "data", "ttl", "options", "mss", "flags", "sport", "dport", "seq", "ipid"}

// prefixLengths are those of source prefixes, of IPv4 and of IPv6.
var prefixLengths = map[bool][]int{true: {8, 16, 24}, false: {32, 48, 64}}

// distributions are those of all fields, of one kind of SYNs, in memory that
// does not grow with them.
type distributions struct {
	packets uint64
	// Sketches by the field's name; options by their layout.
	numbers  map[string]*sketch[uint64]
	seq      pattern
	id       pattern
	port     pattern
	prefixes map[int]*sketch[netip.Prefix]
	distinct *hyperloglog.Sketch
	// eights are the first bytes of IPv4 sources.
	eights [256]uint64
	// unroutable are sources that no one on the Internet can have.
	unroutable uint64
	v4         uint64
	// seqIsTarget are SYNs whose sequence number is the address they go to.
	seqIsTarget uint64
}

func newDistributions() *distributions {
	d := &distributions{
		numbers: make(map[string]*sketch[uint64], len(fieldNames)), prefixes: make(map[int]*sketch[netip.Prefix], 6),
		distinct: hyperloglog.New14(),
	}
	for _, name := range fieldNames {
		s := newSketch[uint64](topSize)
		d.numbers[name] = &s
	}
	d.seq, d.id, d.port = newPattern(32, d.numbers["seq"]), newPattern(16, d.numbers["ipid"]), newPattern(16, d.numbers["sport"])
	for _, lengths := range prefixLengths {
		for _, n := range lengths {
			s := newSketch[netip.Prefix](prefixSize)
			d.prefixes[n] = &s
		}
	}
	return d
}

func (d *distributions) add(h *headers) {
	d.packets++
	n := uint64(math.Round(h.weight))
	d.numbers["window"].add(uint64(h.window), n)
	d.numbers["length"].add(uint64(h.length), n)
	d.numbers["data"].add(uint64(h.data), n)
	d.numbers["ttl"].add(uint64(h.ttl), n)
	d.numbers["options"].add(uint64(h.options), n)
	d.numbers["mss"].add(uint64(h.mss), n)
	d.numbers["flags"].add(uint64(h.flags), n)
	d.numbers["sport"].add(uint64(h.srcPort), n)
	d.numbers["dport"].add(uint64(h.dstPort), n)
	d.numbers["seq"].add(uint64(h.seq), n)
	d.seq.add(h.seq)
	d.port.add(uint32(h.srcPort))
	if h.v4() {
		d.v4++
		d.numbers["ipid"].add(uint64(h.id), n)
		d.id.add(uint32(h.id))
		d.eights[h.src.As4()[0]]++
		if to := h.dst.As4(); h.seq == uint32(to[0])<<24|uint32(to[1])<<16|uint32(to[2])<<8|uint32(to[3]) {
			d.seqIsTarget++
		}
	}
	if unroutable(h.src) {
		d.unroutable++
	}
	for _, length := range prefixLengths[h.v4()] {
		p, _ := h.src.Prefix(length) // it is within the address's length
		d.prefixes[length].add(p, n)
	}
	d.saw(h.src)
}

// saw counts a source, if it is a new one.
func (d *distributions) saw(source netip.Addr) {
	address := source.As16()
	d.distinct.Insert(address[:])
}

// unroutablePrefixes have no hosts on the Internet: IANA's special-purpose
// address registries (RFC 6890 and its successors).
var unroutablePrefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("224.0.0.0/3"),
}

// global is what IANA has given out of IPv6.
var global = netip.MustParsePrefix("2000::/3")

func unroutable(a netip.Addr) bool {
	if !a.Is4() {
		return !global.Contains(a)
	}
	for _, p := range unroutablePrefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// text is how a value of a field is written.
func text(field string, v uint64) string {
	switch field {
	case "options":
		return layout(v).String()
	case "flags":
		return flagText(capture.Flags(v))
	case "seq":
		return "0x" + hex(v, 8)
	case "ipid":
		return "0x" + hex(v, 4)
	case "mss":
		if v == 0 {
			return "none"
		}
	}
	return strconv.FormatUint(v, 10)
}

func hex(v uint64, digits int) string {
	return fmt.Sprintf("%0*x", digits, v)
}

// fields are the distributions of the flood beside those of good clients.
func fields(flood, good *distributions) []Field {
	var list []Field
	for _, name := range fieldNames {
		f, g := flood.numbers[name], good.numbers[name]
		field := Field{Name: name, Values: []Value{}}
		written := func(v uint64) string { return text(name, v) }
		field.Values, field.OthersFlood, field.OthersGood = values(f, g, topListed, written)
		switch name {
		case "seq":
			field.Pattern = flood.seq.words(written)
			if flood.seqIsTarget > 0 && share(flood.seqIsTarget, flood.packets) >= nearlyAll {
				field.Pattern = "the address that it goes to"
			}
		case "ipid":
			field.Pattern = flood.id.words(written)
		case "sport":
			field.Pattern = flood.port.words(written)
		}
		list = append(list, field)
	}
	return list
}

// values are the most frequent of the flood and of good clients together.
func values[K comparable](flood, good *sketch[K], n int, text func(K) string) (list []Value, othersFlood float64, othersGood *float64) {
	list, othersFlood = []Value{}, 0
	if flood.total > 0 {
		othersFlood = 1
	}
	var rest float64 = 1
	add := func(k K) {
		v := Value{Value: text(k), Flood: flood.share(k)}
		othersFlood -= v.Flood
		if good.total > 0 {
			share := good.share(k)
			rest -= share
			v.Good = &share
		}
		list = append(list, v)
	}
	listed := make(map[K]bool)
	for _, c := range flood.top(n) {
		add(c.key)
		listed[c.key] = true
	}
	// What good clients have and the flood has not tells as much.
	for _, c := range good.top(n / 2) {
		if !listed[c.key] {
			add(c.key)
		}
	}
	othersFlood = max(0, othersFlood)
	if good.total > 0 {
		rest = max(0, rest)
		othersGood = &rest
	}
	return list, othersFlood, othersGood
}

func share(part, of uint64) float64 { return float64(part) / float64(max(of, 1)) }

package incident

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lvsguard/lvsguard/capture"
)

// A test is one question about a SYN that an nft rule can ask.
type test struct {
	// field is what it asks about: of two about the same, one is enough.
	field string
	words string
	nft   string
	// signature is a part of an entry of the configuration's signatures; empty
	// where those cannot ask this.
	signature string
	// bits tell how particular it is: the more, the less likely that a client who
	// was not seen passes it by chance.
	bits float64
	ask  func(*headers) bool
}

const (
	maxFeatures = 12
	// maxTests is how many single tests are tried together.
	maxTests = 20
	// leastShare is the least of the flood that a feature covers to be told.
	leastShare = 0.1
	// goodCosts is how much worse it is to hit a good client than to miss a SYN
	// of the flood.
	goodCosts = 3
	// commonGood is how many good clients the common ones stand for. They put
	// the tests in order where few clients were seen, and are in no figure.
	commonGood = 4
	// better is by how much more tests must tell the two apart to be worth it.
	better = 0.01
)

// features are the tests that tell the flood from good clients best.
func features(flood, good []headers, floods, goods *distributions) []Feature {
	c := comparison{flood: flood, good: good, common: commonSYNs()}
	c.floodWeight, c.goodWeight, c.commonWeight = weightOf(flood), weightOf(good), weightOf(c.common)
	var singles []rated
	for _, t := range tests(flood, good, floods, goods) {
		if r := c.rate(t); r.flood >= leastShare && r.score > 0.05 {
			singles = append(singles, r)
		}
	}
	slices.SortStableFunc(singles, bestFirst)
	singles = singles[:min(len(singles), maxTests)]
	best := slices.Clone(singles)
	// Two and three together, where that is better than fewer.
	pairs := c.combine(singles, singles)
	best = append(best, pairs...)
	slices.SortStableFunc(pairs, bestFirst)
	best = append(best, c.combine(pairs[:min(len(pairs), maxTests)], singles)...)
	if cautious, ok := c.cautious(singles); ok {
		best = append(best, cautious)
	}
	slices.SortStableFunc(best, bestFirst)
	var listed []rated
	for _, r := range best {
		if len(listed) < maxFeatures && !slices.ContainsFunc(listed, r.saidBy) {
			listed = append(listed, r)
		}
	}
	list := []Feature{}
	for _, r := range listed {
		list = append(list, c.feature(r))
	}
	return list
}

// comparison has the SYNs that tests are tried on.
type comparison struct {
	flood, good, common                   []headers
	floodWeight, goodWeight, commonWeight float64
}

func weightOf(list []headers) (sum float64) {
	for i := range list {
		sum += list[i].weight
	}
	return max(sum, 1)
}

// rated is tests together, and what they hit.
type rated struct {
	tests         []test
	floods, goods set
	commons       set
	flood, good   float64
	score         float64
	// careful: put together so as to hit the fewest clients that were not seen.
	careful bool
}

// saidBy tells whether o, which is better, makes r superfluous: it is as simple,
// covers nearly the same, and asks about the same field or is part of it.
func (r rated) saidBy(o rated) bool {
	if r.careful || o.careful {
		return len(r.tests) == len(o.tests) && !slices.ContainsFunc(r.tests, func(t test) bool {
			return !slices.ContainsFunc(o.tests, func(u test) bool { return t.nft == u.nft })
		})
	}
	if len(o.tests) > len(r.tests) || len(r.tests) == 1 && o.tests[0].field != r.tests[0].field {
		return false
	}
	return float64(r.floods.and(o.floods).count()) >= 0.9*float64(r.floods.count())
}

func bestFirst(a, b rated) int {
	return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(len(a.tests), len(b.tests)))
}

// A set has a bit for each SYN.
type set []uint64

func hits(list []headers, ask func(*headers) bool) set {
	s := make(set, (len(list)+63)/64)
	for i := range list {
		if ask(&list[i]) {
			s[i/64] |= 1 << (i % 64)
		}
	}
	return s
}

func (s set) and(o set) set {
	both := make(set, len(s))
	for i := range s {
		both[i] = s[i] & o[i]
	}
	return both
}

// weight adds up what the SYNs of a set stand for.
func (s set) weight(of []headers) (sum float64) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			sum += of[i*64+bits.TrailingZeros64(w)].weight
		}
	}
	return sum
}

func (s set) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

func (c *comparison) rate(t test) rated {
	return c.scored(rated{
		tests: []test{t}, floods: hits(c.flood, t.ask), goods: hits(c.good, t.ask), commons: hits(c.common, t.ask),
	})
}

func (c *comparison) scored(r rated) rated {
	r.flood = r.floods.weight(c.flood) / c.floodWeight
	r.good = r.goods.weight(c.good) / c.goodWeight
	common := r.commons.weight(c.common) / c.commonWeight
	n := float64(len(c.good))
	expected := (n*r.good + commonGood*common) / (n + commonGood)
	var particular float64
	for _, t := range r.tests {
		particular += min(t.bits, 32)
	}
	// Of two that tell as much, the more particular is better, but a simple one is
	// better than a complicated one.
	r.score = r.flood - goodCosts*expected + 0.001*min(particular, 32) - 0.02*float64(len(r.tests)-1)
	return r
}

func (c *comparison) both(a, b rated) rated {
	return c.scored(rated{
		tests: slices.Concat(a.tests, b.tests), floods: a.floods.and(b.floods), goods: a.goods.and(b.goods), commons: a.commons.and(b.commons),
	})
}

// combine puts a test to each, where the two tell more than each alone.
func (c *comparison) combine(list, singles []rated) []rated {
	var found []rated
	for i, a := range list {
		for j, b := range singles {
			if len(a.tests) == 1 && j <= i || slices.ContainsFunc(a.tests, func(t test) bool { return t.field == b.tests[0].field }) {
				continue
			}
			if both := c.both(a, b); both.flood >= leastShare && both.score > max(a.score, b.score)+better {
				found = append(found, both)
			}
		}
	}
	return found
}

// cautious puts the best tests together which cover nearly what the best covers:
// it hits the fewest clients that were not seen.
func (c *comparison) cautious(singles []rated) (rated, bool) {
	if len(singles) < 2 {
		return rated{}, false
	}
	all := singles[0]
	for _, s := range singles[1:] {
		if len(all.tests) == 3 {
			break
		}
		if slices.ContainsFunc(all.tests, func(t test) bool { return t.field == s.tests[0].field }) {
			continue
		}
		if both := c.both(all, s); both.flood >= 0.99*all.flood {
			all = both
		}
	}
	all.careful = true
	return all, len(all.tests) > 1
}

// feature writes tests that were found good.
func (c *comparison) feature(r rated) Feature {
	slices.SortStableFunc(r.tests, func(a, b test) int { return cmp.Compare(order(a.field), order(b.field)) })
	var words, nft, entry []string
	for _, t := range r.tests {
		words = append(words, t.words)
		nft = append(nft, t.nft)
		if t.signature != "" {
			entry = append(entry, t.signature)
		}
	}
	f := Feature{
		Flood: r.flood, Match: "tcp flags & (fin | syn | rst | ack) == syn " + strings.Join(nft, " "),
	}
	f.Text = fmt.Sprintf("%s: %s of the flood, %s", Sentence(words), percent(r.flood), c.goodWords(r))
	if len(c.good) >= goodLeast {
		f.Good = &r.good
	}
	if len(entry) == len(r.tests) {
		f.Signature = fmt.Sprintf("- {name: %s, %s}", signatureName(entry), strings.Join(entry, ", "))
	} else {
		f.Text += "; signatures cannot say this, an nft rule can"
	}
	return f
}

// goodWords says how many good clients are hit, and how sure that is: of n that
// were seen without one hit, up to 3/n may be, 19 times of 20.
func (c *comparison) goodWords(r rated) string {
	n, hit := len(c.good), r.goods.count()
	switch {
	case n == 0:
		return "and how many good clients is not known: none was seen to complete"
	case n < goodLeast:
		return fmt.Sprintf("and how many good clients is not known: only %d were seen, of which it hits %d", n, hit)
	case hit == 0:
		return fmt.Sprintf("and none of %d good handshakes (so hardly more than %s)", n, percent(3/float64(n)))
	}
	return fmt.Sprintf("and %s of %d good handshakes", percent(r.good), n)
}

// signatureName makes a name of what a signature asks: at most 32 of a-z, 0-9
// and _.
func signatureName(parts []string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r == '-', r == ',':
			return '_'
		}
		return -1
	}, strings.Join(parts, ","))
	return strings.TrimRight(name[:min(len(name), 32)], "_")
}

// order of fields, in a rule and in words.
func order(field string) int {
	return slices.Index([]string{"source", "window", "length", "ttl", "options", "mss", "fragment", "flags", "sport", "dport", "seq", "ack", "urgent", "ipid"}, field)
}

// tests are the questions worth trying.
func tests(flood, good []headers, floods, goods *distributions) []test {
	var list []test
	list = append(list, numberTests(flood, good, floods, goods)...)
	list = append(list, optionTests(floods)...)
	list = append(list, bitTests(floods)...)
	list = append(list, sourceTests(floods)...)
	return append(list, flagTests(floods)...)
}

// A number is a field with numbers that lie in an order.
type number struct {
	name, words string
	// nft's words for it, of IPv4 and IPv6; the same if it does not matter.
	nft4, nft6 string
	// signature is the configuration's key.
	signature string
	width     float64 // bits
	least     uint64
	of        func(*headers) uint64
	// none: zero is that there is no such thing.
	none bool
}

var numbers = []number{
	{name: "window", words: "window", nft4: "tcp window", nft6: "tcp window", signature: "window", width: 16, of: func(h *headers) uint64 { return uint64(h.window) }},
	{name: "length", words: "length", nft4: "ip length", nft6: "ip6 length", signature: "length", width: 6, least: 40, of: func(h *headers) uint64 { return uint64(h.length) }, none: true},
	{name: "ttl", words: "TTL", nft4: "ip ttl", nft6: "ip6 hoplimit", signature: "ttl", width: 8, of: func(h *headers) uint64 { return uint64(h.ttl) }},
	{name: "mss", words: "MSS", nft4: "tcp option maxseg size", nft6: "tcp option maxseg size", width: 12, of: func(h *headers) uint64 { return uint64(h.mss) }, none: true},
	{name: "sport", words: "source port", nft4: "tcp sport", nft6: "tcp sport", width: 16, of: func(h *headers) uint64 { return uint64(h.srcPort) }},
	{name: "dport", words: "destination port", nft4: "tcp dport", nft6: "tcp dport", width: 4, of: func(h *headers) uint64 { return uint64(h.dstPort) }},
	{name: "seq", words: "sequence number", nft4: "tcp sequence", nft6: "tcp sequence", width: 32, of: func(h *headers) uint64 { return uint64(h.seq) }},
}

const (
	valuesTried = 4
	// gapCosts is what a range pays for all values that nobody was seen to have.
	gapCosts = 0.2
	// mostNot is how many values of good clients a test may name that the flood
	// does not have.
	mostNot = 12
)

func numberTests(flood, good []headers, floods, goods *distributions) []test {
	var list []test
	v6 := floods.v4*2 < floods.packets
	for _, n := range numbers {
		if n.name == "dport" && len(good) < goodLeast {
			continue // all that come to the service may have it
		}
		keyword, words := n.nft4, n.words
		// A rule is for one family where the field's name is.
		mine := func(*headers) bool { return true }
		if n.nft4 != n.nft6 {
			mine = func(h *headers) bool { return h.v4() != v6 }
			if v6 {
				keyword = n.nft6
				if n.name == "length" {
					words = "payload length"
				}
			}
		}
		written := func(v uint64) string {
			if n.name == "length" && v6 {
				v -= 20 // of IPv6 the payload counts
			}
			return text(n.name, v)
		}
		in := func(from, to uint64, width float64) test {
			value, asked := written(from), written(from)
			if from != to {
				value, asked = value+" to "+written(to), asked+"-"+written(to)
			}
			t := test{
				field: n.name, words: words + " " + value, nft: keyword + " " + asked, bits: width,
				ask: func(h *headers) bool {
					v := n.of(h)
					return v >= from && v <= to && !(n.none && v == 0) && mine(h)
				},
			}
			if n.signature != "" && from >= n.least {
				t.signature = fmt.Sprintf("%s: %d", n.signature, from)
				if from != to {
					t.signature += fmt.Sprintf("-%d", to)
				}
			}
			return t
		}
		for _, c := range floods.numbers[n.name].top(valuesTried) {
			if !(n.none && c.key == 0) {
				list = append(list, in(c.key, c.key, n.width))
			}
		}
		if from, to, ok := bestRange(flood, good, n); ok && from != to && n.name != "seq" {
			list = append(list, in(from, to, n.width-math.Log2(float64(to-from)+1)))
		}
		if t, ok := noneOf(n, keyword, mine, written, goods); ok {
			list = append(list, t)
		}
	}
	return list
}

// bestRange is the range of a field that holds the most of the flood and the
// least of good clients. Where there is no difference, the narrower is better.
func bestRange(flood, good []headers, n number) (from, to uint64, ok bool) {
	type weighed struct {
		value  uint64
		weight float64
	}
	var list []weighed
	put := func(h []headers, weight float64) {
		all := weightOf(h)
		for i := range h {
			if v := n.of(&h[i]); !(n.none && v == 0) {
				list = append(list, weighed{v, weight * h[i].weight / all})
			}
		}
	}
	put(flood, 1)
	put(good, -goodCosts)
	slices.SortFunc(list, func(a, b weighed) int { return cmp.Compare(a.value, b.value) })
	all := math.Exp2(bitsOf(n.name))
	var best, sum float64
	var start, last uint64
	for i := 0; i < len(list); {
		v := list[i].value
		if sum -= gapCosts * float64(v-last) / all; sum <= 0 {
			sum, start = 0, v
		}
		for ; i < len(list) && list[i].value == v; i++ {
			sum += list[i].weight
		}
		if sum > best {
			best, from, to, ok = sum, start, v, true
		}
		last = v
	}
	// A range of nearly everything says nothing.
	return from, to, ok && float64(to-from) < 0.6*all
}

// bitsOf is the size of a field in the header.
func bitsOf(field string) float64 {
	switch field {
	case "ttl":
		return 8
	case "seq":
		return 32
	case "length":
		return 11 // no SYN is longer than a frame
	}
	return 16
}

// noneOf asks for none of the values that good clients have, where those are
// few: a flood with random values has others.
func noneOf(n number, keyword string, mine func(*headers) bool, written func(uint64) string, goods *distributions) (test, bool) {
	if goods.packets < 4*goodLeast || n.name == "sport" || n.name == "seq" || n.name == "dport" {
		return test{}, false
	}
	var covered float64
	var values []uint64
	var texts []string
	for _, c := range goods.numbers[n.name].top(mostNot) {
		covered += goods.numbers[n.name].share(c.key)
		if n.none && c.key == 0 {
			continue
		}
		values = append(values, c.key)
	}
	if covered < 0.99 || len(values) == 0 {
		return test{}, false
	}
	slices.Sort(values)
	for _, v := range values {
		texts = append(texts, written(v))
	}
	return test{
		field: n.name, bits: 1,
		words: fmt.Sprintf("%s none of good clients' %s", n.words, strings.Join(texts, ", ")),
		nft:   fmt.Sprintf("%s != { %s }", keyword, strings.Join(texts, ", ")),
		ask: func(h *headers) bool {
			v := n.of(h)
			return !slices.Contains(values, v) && !(n.none && v == 0) && mine(h)
		},
	}, true
}

// asked are the options that nft can look for, beside the number of 32-bit
// words that the header has.
var asked = []struct {
	place layout
	nft   string
}{{optionMSS, "maxseg"}, {optionSACK, "sack-perm"}, {optionTimestamps, "timestamp"}, {optionScale, "window"}}

// optionTests ask for a layout of options, as far as nft can: the header's size,
// and which options there are.
func optionTests(floods *distributions) []test {
	list := []test{{
		field: "options", words: "no TCP options", nft: "tcp doff 5", signature: "options: none", bits: 10,
		ask: func(h *headers) bool { return h.offset == 5 },
	}}
	for _, c := range floods.numbers["options"].top(valuesTried) {
		l := layout(c.key)
		if l == 0 {
			continue
		}
		t := test{field: "options", words: "options " + l.String(), bits: 10}
		size := -1
		for _, o := range asked {
			if l.has(o.place) {
				t.nft += "tcp option " + o.nft + " exists "
			} else {
				t.nft += "tcp option " + o.nft + " missing "
			}
		}
		if words, ok := sizeOf(l); ok {
			size = words
			t.nft = "tcp doff " + strconv.Itoa(words) + " " + t.nft
		}
		t.nft = strings.TrimSpace(t.nft)
		t.ask = func(h *headers) bool {
			if size >= 0 && int(h.offset) != size {
				return false
			}
			return !slices.ContainsFunc(asked, func(o struct {
				place layout
				nft   string
			}) bool {
				return h.options.has(o.place) != l.has(o.place)
			})
		}
		list = append(list, t)
	}
	for _, o := range asked {
		list = append(list, test{
			field: "options", words: "no option " + optionNames[o.place], nft: "tcp option " + o.nft + " missing", bits: 2,
			ask: func(h *headers) bool { return !h.options.has(o.place) },
		})
	}
	return list
}

// sizeOf is how many words a header with these options has, if all of them have
// one size.
func sizeOf(l layout) (words int, ok bool) {
	bytes := tcpHeader
	for ; l != 0; l >>= 4 {
		switch l & 0xf {
		case optionNop, optionEnd:
			bytes++
		case optionMSS:
			bytes += 4
		case optionScale:
			bytes += 3
		case optionSACK:
			bytes += 2
		case optionTimestamps:
			bytes += 10
		default:
			return 0, false
		}
	}
	return (bytes + 3) / 4, true
}

// bitTests ask for bits that do not change in a number.
func bitTests(floods *distributions) []test {
	var list []test
	for _, p := range []struct {
		field, words, nft string
		pattern           *pattern
		of                func(*headers) uint32
	}{
		{"seq", "sequence number:", "tcp sequence", &floods.seq, func(h *headers) uint32 { return h.seq }},
		{"ipid", "IP identification:", "ip id", &floods.id, func(h *headers) uint32 { return uint32(h.id) }},
		{"sport", "source port:", "tcp sport", &floods.port, func(h *headers) uint32 { return uint32(h.srcPort) }},
	} {
		mask, value := p.pattern.constantBits()
		n := bits.OnesCount32(mask)
		if n < 4 {
			continue
		}
		t := test{
			field: p.field, words: p.words + " " + constantBitsText(mask, value, p.pattern.width), bits: float64(n),
			nft: fmt.Sprintf("%s & 0x%0*x == 0x%0*x", p.nft, p.pattern.width/4, mask, p.pattern.width/4, value),
			ask: func(h *headers) bool { return p.of(h)&mask == value && (p.field != "ipid" || h.v4()) },
		}
		if n == p.pattern.width {
			t.words = fmt.Sprintf("%s always 0x%s", p.words, hex(uint64(value), n/4))
			t.nft = fmt.Sprintf("%s 0x%0*x", p.nft, p.pattern.width/4, value)
			if p.field != "ipid" {
				continue // that value is tried already
			}
		}
		list = append(list, t)
	}
	return list
}

// mostPrefixes is how many source networks one test may name.
const mostPrefixes = 8

// sourceTests ask for source networks: the one, or the few, that the flood comes
// from.
func sourceTests(floods *distributions) []test {
	var list []test
	v4 := floods.v4*2 >= floods.packets
	keyword := "ip6 saddr"
	if v4 {
		keyword = "ip saddr"
	}
	for _, n := range prefixLengths[v4] {
		var few []netip.Prefix
		var texts []string
		var covered float64
		for _, c := range floods.prefixes[n].top(mostPrefixes) {
			s := floods.prefixes[n].share(c.key)
			if s < 0.02 {
				break
			}
			few, texts, covered = append(few, c.key), append(texts, c.key.String()), covered+s
		}
		if len(few) == 0 || covered < leastShare {
			continue
		}
		asked := texts[0]
		if len(texts) > 1 {
			asked = "{ " + strings.Join(texts, ", ") + " }"
		}
		list = append(list, test{
			field: "source", words: "sources in " + Sentence(texts), nft: keyword + " " + asked,
			bits: min(float64(n), 24) - math.Log2(float64(len(few))),
			ask: func(h *headers) bool {
				return slices.ContainsFunc(few, func(p netip.Prefix) bool { return p.Contains(h.src) })
			},
		})
	}
	return list
}

// flagTests ask for bits of the headers that clients do not set, or always do.
func flagTests(floods *distributions) []test {
	list := []test{
		{field: "fragment", words: "fragmentable (without DF)", nft: "ip frag-off & 0x4000 == 0", bits: 1, ask: func(h *headers) bool { return h.v4() && h.fragmentable }},
		{field: "ack", words: "an acknowledgment number though it acknowledges nothing", nft: "tcp ackseq != 0", bits: 3, ask: func(h *headers) bool { return h.ack != 0 }},
		{field: "urgent", words: "an urgent pointer though nothing is urgent", nft: "tcp urgptr != 0", bits: 3, ask: func(h *headers) bool { return h.urgent != 0 }},
		{field: "ipid", words: "IP identification 0", nft: "ip id 0", bits: 2, ask: func(h *headers) bool { return h.v4() && h.id == 0 }},
	}
	for _, c := range floods.numbers["flags"].top(2) {
		extra := capture.Flags(c.key) &^ capture.SYN
		if extra == 0 {
			continue
		}
		list = append(list, test{
			field: "flags", words: "flags " + strings.ReplaceAll(flagText(capture.Flags(c.key)), "|", ", "),
			nft:  fmt.Sprintf("tcp flags == %s", flagText(capture.Flags(c.key))),
			bits: 3, ask: func(h *headers) bool { return h.flags == capture.Flags(c.key) },
		})
	}
	return list
}

// commonSYNs are those of the systems that most clients have, as they come from
// near and far.
func commonSYNs() []headers {
	var list []headers
	add := func(window uint16, ttl uint8, layout layout, offset uint8) {
		for i := range 4 {
			port := uint16(49152 + 4001*i)
			list = append(list, headers{
				weight: 1, src: netip.AddrFrom4([4]byte{byte(80 + 30*i), 1, 1, 1}), window: window, ttl: ttl - uint8(4*i), options: layout, offset: offset,
				length: uint16(ipv4Header + int(offset)*4), mss: uint16(1460 - 20*(i%2)), flags: capture.SYN,
				srcPort: port, seq: 0x2f6b3c91 * uint32(i+1), id: uint16(0x3a57 * (i + 1)),
			})
		}
	}
	const (
		linux   layout = optionMSS | optionSACK<<4 | optionTimestamps<<8 | optionNop<<12 | optionScale<<16
		windows layout = optionMSS | optionNop<<4 | optionScale<<8 | optionNop<<12 | optionNop<<16 | optionSACK<<20
		apple   layout = optionMSS | optionNop<<4 | optionScale<<8 | optionNop<<12 | optionNop<<16 | optionTimestamps<<20 | optionSACK<<24 | optionEnd<<28
	)
	add(64240, 60, linux, 10)
	add(65535, 58, linux, 10)
	add(29200, 55, linux, 10)
	add(64240, 120, windows, 8)
	add(8192, 118, windows, 8)
	add(65535, 56, apple, 11)
	return list
}

package incident

import (
	"fmt"
	"math/bits"
)

// A pattern follows the numbers in one field of the flood's packets, in the
// order of their arrival.
type pattern struct {
	width  int             // bits
	values *sketch[uint64] // kept by the field
	steps  sketch[uint32]  // from one packet to the next
	ones   [32]uint64      // how often each bit was set
	upward uint64          // steps by less than an eighth of all numbers
	last   uint32
	count  uint64
}

func newPattern(width int, values *sketch[uint64]) pattern {
	return pattern{width: width, values: values, steps: newSketch[uint32](16)}
}

func (p *pattern) add(v uint32) {
	if p.count > 0 {
		step := (v - p.last) & (1<<p.width - 1)
		p.steps.add(step, 1)
		if step > 0 && step < 1<<(p.width-3) {
			p.upward++
		}
	}
	p.last = v
	p.count++
	for i := range p.width {
		p.ones[i] += uint64(v >> i & 1)
	}
}

const (
	// patternLeast is the fewest packets of which a pattern is told.
	patternLeast = 20
	// nearly all is 98 of 100: a few honest packets may be among the flood's.
	nearlyAll = 0.98
	fewValues = 16
)

// constantBits are those that are the same in nearly all numbers.
func (p *pattern) constantBits() (mask, value uint32) {
	if p.count < patternLeast {
		return 0, 0
	}
	for i := range p.width {
		share := float64(p.ones[i]) / float64(p.count)
		switch {
		case share >= nearlyAll:
			mask, value = mask|1<<i, value|1<<i
		case share <= 1-nearlyAll:
			mask |= 1 << i
		}
	}
	return mask, value
}

// words are the pattern, empty if it is none of those known. text is how a number
// is written.
func (p *pattern) words(text func(uint64) string) string {
	if p.count < patternLeast {
		return ""
	}
	top := p.values.top(fewValues)
	var covered float64
	for _, c := range top {
		covered += share(c.count-c.over, p.values.total)
	}
	mask, value := p.constantBits()
	steps := p.steps.top(1)
	switch {
	case len(top) > 0 && p.values.share(top[0].key) >= nearlyAll:
		return "constant: " + text(top[0].key)
	case covered >= nearlyAll:
		return fmt.Sprintf("%d values", len(top))
	case len(steps) > 0 && steps[0].key != 0 && p.steps.share(steps[0].key) >= 0.5:
		if down := 1<<p.width - uint64(steps[0].key); down < uint64(steps[0].key) {
			return fmt.Sprintf("counts down by %d", down)
		}
		return fmt.Sprintf("counts up by %d", steps[0].key)
	case float64(p.upward) >= 0.9*float64(p.count-1):
		return "counts up"
	case bits.OnesCount32(mask) >= 4:
		return constantBitsText(mask, value, p.width)
	case mask == 0:
		return "random"
	}
	return ""
}

// constantBitsText tells of bits that do not change: low or high ones by their
// number.
func constantBitsText(mask, value uint32, width int) string {
	n := bits.OnesCount32(mask)
	switch mask {
	case 1<<n - 1:
		return fmt.Sprintf("its low %d bits are always 0x%s", n, hex(uint64(value), (n+3)/4))
	case (1<<n - 1) << (width - n):
		return fmt.Sprintf("its high %d bits are always 0x%s", n, hex(uint64(value>>(width-n)), (n+3)/4))
	}
	return fmt.Sprintf("of its bits, those of 0x%s are always 0x%s", hex(uint64(mask), width/4), hex(uint64(value), width/4))
}

package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Clean writes text so that it can stand on a terminal: what a letter is not,
// as control characters and those that turn the direction of writing, is
// written as Go escapes it. What came from packets is told through this.
func Clean(text string) string {
	odd := func(r rune) bool { return r != ' ' && !unicode.IsPrint(r) || r == unicode.ReplacementChar }
	if strings.IndexFunc(text, odd) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if odd(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Exact writes a count with its thousands apart: 1,204,331.
func Exact(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}

// about writes a figure that is no count: 12,400, and below ten 4.2.
func about(n float64) string {
	switch {
	case !(n >= 0 && n < 1e18): // NaN too
		return "?"
	case n == math.Trunc(n) || n >= 10:
		return Exact(uint64(math.Round(n)))
	}
	return fmt.Sprintf("%.1f", n)
}

// Percent writes a share, 0 to 1. Nearly all is not all, and next to nothing is
// not nothing: 100 % and 0 % are exact.
func Percent(share float64) string {
	p := 100 * share
	switch {
	case math.IsNaN(p):
		return "?"
	case p <= 0:
		return "0 %"
	case p < 0.1:
		return "under 0.1 %"
	case p >= 100:
		return "100 %"
	case p > 99.9:
		return "99.9 %"
	case p < 1 || p >= 99:
		return fmt.Sprintf("%.1f %%", p)
	}
	return fmt.Sprintf("%.0f %%", p)
}

// Took writes a duration as people say it: 4 s, 19 min 36 s, 2 h 5 min.
func Took(d time.Duration) string {
	switch s := int64(max(0, d.Round(time.Second)).Seconds()); {
	case s == 0 && d > 0:
		return "less than 1 s"
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return pair(s/60, "min", s%60, "s")
	default:
		return pair(s/3600, "h", s%3600/60, "min")
	}
}

func pair(a int64, unitA string, b int64, unitB string) string {
	if b == 0 {
		return fmt.Sprintf("%d %s", a, unitA)
	}
	return fmt.Sprintf("%d %s %d %s", a, unitA, b, unitB)
}

// latency writes a time that a client waits.
func latency(seconds float64) string {
	switch ms := seconds * 1000; {
	case ms < 1:
		return fmt.Sprintf("%.2g ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f s", seconds)
}

// size writes bytes: 812 B, 34 kB, 1.2 MB.
func size(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1e6:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// compact writes a figure for an axis: 950, 12k, 1.5M.
func compact(n float64) string {
	for _, unit := range []struct {
		of   float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= unit.of {
			return strconv.FormatFloat(n/unit.of, 'g', 3, 64) + unit.name
		}
	}
	return strconv.FormatFloat(n, 'g', 3, 64)
}

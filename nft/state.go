package nft

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// State is the table as the kernel holds it.
type State struct {
	Since    time.Time // zero: the table has no mark of ours
	Layout   string    // fingerprint of the layout that made it
	Dormant  bool      // somebody has put the table to sleep: it sees no packet
	Counters []NamedCounter
	Sets     []Set
	Chains   []Chain
}

// NamedCounter is a counter that is not an element's.
type NamedCounter struct {
	Name string
	Count
}

// Set is a set with its elements, sorted.
type Set struct {
	Name     string
	Type     string // as nft writes it: "ipv4_addr . inet_service"
	Interval bool
	Counts   bool          // each element has a Count
	Timeout  time.Duration // of elements added without one; 0: the set has no timeouts
	Comment  string
	Elements []Element
}

// Element is an element of a set: a service (with port 0 if the set's keys are
// addresses) or, in a set of sources, a prefix.
type Element struct {
	Service netip.AddrPort
	Source  netip.Prefix
	Count   Count
	Timeout time.Duration // 0: the set's
	Expires time.Duration // remaining; 0: never

	end bool // while it is decoded: the end of an interval
}

// Chain is a chain with its rules.
type Chain struct {
	Name  string
	Hook  string // what hooks it, as nft writes it; empty for one that rules go to
	Rules []Rule
}

// Rule is a rule as nft writes it.
type Rule struct {
	Text    string
	Comment string
	Foreign bool // it says what no rule of ours says
}

// WriteTo writes s as nft text. Given back to nft -f it makes the same table,
// as long as there is no foreign rule.
func (s State) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, s.text())
	return int64(n), err
}

func (s State) text() string {
	var b strings.Builder
	b.WriteString("table inet " + tableName + " {\n")
	if s.Dormant {
		b.WriteString("\tflags dormant\n\n")
	}
	var blocks []string
	for _, c := range s.Counters {
		blocks = append(blocks, fmt.Sprintf("\tcounter %s {\n\t\tpackets %d bytes %d\n\t}\n", c.Name, c.Packets, c.Bytes))
	}
	for _, set := range s.Sets {
		blocks = append(blocks, set.text())
	}
	for _, c := range s.Chains {
		blocks = append(blocks, c.text())
	}
	b.WriteString(strings.Join(blocks, "\n") + "}\n")
	return b.String()
}

func (s Set) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n", s.Name, s.Type)
	if s.Interval {
		b.WriteString("\t\tflags interval\n")
	}
	if s.Counts {
		b.WriteString("\t\tcounter\n")
	}
	if s.Timeout != 0 {
		fmt.Fprintf(&b, "\t\ttimeout %s\n", duration(s.Timeout))
	}
	if s.Comment != "" {
		fmt.Fprintf(&b, "\t\tcomment \"%s\"\n", s.Comment)
	}
	if len(s.Elements) > 0 {
		lines := make([]string, len(s.Elements))
		for i, e := range s.Elements {
			lines[i] = s.element(e)
		}
		fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(lines, ",\n\t\t\t     "))
	}
	b.WriteString("\t}\n")
	return b.String()
}

func (s Set) element(e Element) string {
	var text string
	switch {
	case e.Source.IsSingleIP():
		text = e.Source.Addr().String()
	case e.Source.IsValid():
		text = e.Source.String()
	default:
		text = e.Service.Addr().String()
		if strings.Contains(s.Type, " . ") {
			text += fmt.Sprintf(" . %d", e.Service.Port())
		}
	}
	if s.Counts {
		text += fmt.Sprintf(" counter packets %d bytes %d", e.Count.Packets, e.Count.Bytes)
	}
	if e.Timeout != 0 {
		text += " timeout " + duration(e.Timeout)
	}
	if e.Expires != 0 {
		text += " expires " + duration(e.Expires)
	}
	return text
}

func (c Chain) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
	if c.Hook != "" {
		fmt.Fprintf(&b, "\t\t%s\n", c.Hook)
	}
	for _, r := range c.Rules {
		text := r.Text
		if r.Comment != "" {
			text += fmt.Sprintf(" comment %q", r.Comment)
		}
		if r.Foreign {
			text = "# foreign: " + text
		}
		fmt.Fprintf(&b, "\t\t%s\n", text)
	}
	b.WriteString("\t}\n")
	return b.String()
}

// duration writes d as nft does: 1m30s, 9s992ms.
func duration(d time.Duration) string {
	var b strings.Builder
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if n := d / unit.of; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
			d -= n * unit.of
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}

// structure is s without what changes by itself or with the services: two
// tables with the same structure treat packets alike, but for the sample, which
// comes and goes.
func (s State) structure() string {
	s.Counters = slices.Clone(s.Counters)
	for i := range s.Counters {
		s.Counters[i].Count = Count{}
	}
	s.Chains = slices.DeleteFunc(slices.Clone(s.Chains), func(c Chain) bool { return isSample(c.Name) })
	s.Sets = slices.Clone(s.Sets)
	for i := range s.Sets {
		s.Sets[i].Comment = ""
		if s.Sets[i].Counts || s.Sets[i].Timeout != 0 {
			s.Sets[i].Elements = nil
		}
	}
	return s.text()
}

// firstDifference tells where two structures differ, in words.
func firstDifference(held, wanted string) string {
	h, w := lines(held), lines(wanted)
	block := "the table"
	for i := range min(len(h), len(w)) {
		if h[i] != w[i] {
			return fmt.Sprintf("%s has %q and not %q", block, strings.TrimSpace(h[i]), strings.TrimSpace(w[i]))
		}
		if header, opens := strings.CutSuffix(w[i], " {"); opens && i > 0 {
			block = strings.TrimSpace(header)
		} else if w[i] == "\t}" {
			block = "the table"
		}
	}
	return fmt.Sprintf("%s ends early or late", block)
}

func lines(text string) []string {
	return slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return line == "" })
}

// state is the layout as the kernel would hold it, without services.
func (l layout) state() State {
	var s State
	for _, name := range l.counters {
		s.Counters = append(s.Counters, NamedCounter{Name: name})
	}
	for _, spec := range l.sets {
		set := Set{
			Name:     spec.name(),
			Type:     spec.keyType().Name,
			Interval: spec.role == roleAllowed,
			Counts:   spec.counts(),
		}
		switch spec.role {
		case roleArmed:
			set.Timeout = defaultLease
		case roleAllowed:
			for _, p := range l.allowed[spec.family] {
				set.Elements = append(set.Elements, Element{Source: p})
			}
		}
		s.Sets = append(s.Sets, set)
	}
	s.Chains = chainsOf(l.chains)
	return s
}

func chainsOf(chains []chain) []Chain {
	var all []Chain
	for _, c := range chains {
		chain := Chain{Name: c.name}
		if c.priority != 0 {
			chain.Hook = hookText(c.priority)
		}
		for _, r := range c.rules {
			chain.Rules = append(chain.Rules, Rule{Text: render(r.exprs), Comment: r.comment})
		}
		all = append(all, chain)
	}
	return all
}

func hookText(priority int) string {
	return fmt.Sprintf("type filter hook prerouting priority %d; policy accept;", priority)
}

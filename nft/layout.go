package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
)

const tableName = "lvsguard"

// role is what a set is for, and the first part of its name.
type role string

const (
	roleService  role = "service"  // counts SYNs without a signature
	roleSuspect  role = "suspect"  // counts SYNs with a signature
	roleDropped  role = "dropped"  // counts what was dropped
	roleFragment role = "fragment" // counts TCP fragments
	roleArmed    role = "armed"    // the leases
	roleAllowed  role = "allowed"  // sources
)

// setSpec is a set of the layout: one a role, family, kind of key and, for
// suspects, signature.
type setSpec struct {
	role      role
	family    *family
	every     bool // services with port 0: the key is the address alone
	signature string
}

// name is service4, service4any, suspect6_window0 and so on.
func (s setSpec) name() string {
	name := string(s.role) + s.family.digit
	if s.every {
		name += "any"
	}
	if s.signature != "" {
		name += "_" + s.signature
	}
	return name
}

// parseSetName is the inverse of name.
func parseSetName(name string) (setSpec, bool) {
	var s setSpec
	rest, signature, named := strings.Cut(name, "_")
	s.signature = signature
	rest, s.every = strings.CutSuffix(rest, "any")
	for _, f := range families {
		if stem, ok := strings.CutSuffix(rest, f.digit); ok {
			s.family, s.role = f, role(stem)
		}
	}
	switch s.role {
	case roleSuspect:
		return s, signatureName.MatchString(signature)
	case roleService, roleDropped, roleArmed:
		return s, !named
	case roleFragment, roleAllowed:
		return s, !named && !s.every
	default:
		return setSpec{}, false
	}
}

// addressOnly tells whether the set's keys have no port.
func (s setSpec) addressOnly() bool {
	return s.every || s.role == roleFragment || s.role == roleAllowed
}

func (s setSpec) counts() bool { return s.role != roleArmed && s.role != roleAllowed }

// holds tells whether the set has an element for a service, and which.
func (s setSpec) holds(service netip.AddrPort) (netip.AddrPort, bool) {
	switch {
	case s.role == roleAllowed || service.Addr().Is4() != (s.family == ipv4):
		return netip.AddrPort{}, false
	case s.role == roleFragment:
		return netip.AddrPortFrom(service.Addr(), 0), true
	default:
		return service, s.every == (service.Port() == 0)
	}
}

// counterLoopback and counterAllowed count what passes before any service is
// looked up.
const (
	counterLoopback = "loopback"
	counterAllowed  = "allowed"
)

// layout is the whole table but for the elements of its sets: what Ensure
// makes, and what it compares with the kernel's.
type layout struct {
	counters []string
	sets     []setSpec
	allowed  map[*family][]netip.Prefix
	chains   []chain

	signatures []Signature
}

// chain is a chain of the layout, hooked into prerouting if it has a priority.
type chain struct {
	name     string
	priority int // 0: other rules go there
	rules    []rule
}

const chainPrerouting = "prerouting"

// priority puts the table before conntrack (-200), whose entries a flood would
// fill, and behind defragmentation (-400) where that is loaded.
const priority = -310

// newLayout makes the layout for cfg, which is valid.
//
// A rule costs by its expressions and a set by its lookup, so that the way of
// each packet is as short as it can be: established connections leave before
// anything is looked up, and a SYN is counted once: in a suspect set if it has a
// signature, else in a service set. There are no named counters for what the
// sets count already: a flood would pay for them with each packet. Fragments go apart before any TCP field
// is read, as the kernel reads TCP fields in later fragments too, wherever
// these begin.
func newLayout(cfg Config) layout {
	l := layout{
		counters: []string{counterLoopback, counterAllowed},
		allowed:  allowed(cfg.Allow),

		signatures: cfg.Signatures,
	}
	pre := chain{name: chainPrerouting, priority: priority, rules: []rule{
		ruleOf("", isNotTCP(), accept()),
	}}
	for _, f := range families {
		if len(l.allowed[f]) > 0 {
			l.sets = append(l.sets, setSpec{role: roleAllowed, family: f})
		}
	}
	for _, f := range families {
		l.addFragments(&pre, f)
	}
	pre.rules = append(pre.rules, ruleOf("nearly everything leaves here",
		isTCP(), compare(fieldFlags, expr.CmpOpNeq, flagSYN), accept()))
	pre.rules = append(pre.rules, l.passFirst(families...)...)
	for _, f := range families {
		for _, every := range []bool{false, true} {
			l.addServices(&pre, cfg.Signatures, f, every)
		}
	}
	l.chains = append(l.chains, pre)
	return l
}

// passFirst is what passes before any service is looked up.
func (l *layout) passFirst(of ...*family) []rule {
	rules := []rule{ruleOf("", fromLoopback(), count(counterLoopback), accept())}
	for _, f := range of {
		if len(l.allowed[f]) > 0 {
			s := setSpec{role: roleAllowed, family: f}
			rules = append(rules, ruleOf("", f.is(), f.loadSource(), in(s.name()), count(counterAllowed), accept()))
		}
	}
	return rules
}

// addServices adds what services of one family and kind need. IPVS looks for
// the exact service first and only then for one with every port, and so do the
// rules, in the order in which this is called.
func (l *layout) addServices(pre *chain, signatures []Signature, f *family, every bool) {
	set := func(r role, signature string) string {
		s := setSpec{role: r, family: f, every: every, signature: signature}
		l.sets = append(l.sets, s)
		return s.name()
	}
	kind := f.digit
	if every {
		kind += "any"
	}
	service, armed, dropped := set(roleService, ""), set(roleArmed, ""), set(roleDropped, "")
	suspect := chain{name: "suspect" + kind, rules: []rule{
		ruleOf("", f.key(every), in(armed), in(dropped), drop()),
	}}
	// A SYN counts for the first signature that it matches, and then for nothing
	// else, armed or not.
	for _, s := range signatures {
		counted := set(roleSuspect, s.Name)
		for _, m := range s.match(f) {
			pre.rules = append(pre.rules,
				ruleOf("", f.is(), s.protocol(f), m, f.loadKey(every), in(counted), goTo(suspect.name)))
		}
	}
	pre.rules = append(pre.rules, ruleOf("", f.key(every), in(service), accept()))
	l.chains = append(l.chains, suspect)
}

// addFragments adds what TCP fragments to services need. A first fragment too
// short for the TCP header hides whether it is a SYN and has no honest use: it
// goes with an armed service. Later fragments carry no ports and are counted
// only; without the first they come to nothing.
func (l *layout) addFragments(pre *chain, f *family) {
	s := setSpec{role: roleFragment, family: f}
	l.sets = append(l.sets, s)
	c := chain{name: s.name(), rules: append(l.passFirst(f),
		ruleOf("counted, whatever comes then", f.is(), f.loadKey(true), in(s.name())),
		ruleOf("", f.is(), f.laterFragment(), accept()),
		ruleOf("first fragments with the TCP header", isTCP(), readable(fieldUrgent), accept()),
	)}
	for _, every := range []bool{false, true} {
		armed := setSpec{role: roleArmed, family: f, every: every}.name()
		dropped := setSpec{role: roleDropped, family: f, every: every}.name()
		c.rules = append(c.rules, ruleOf("", f.key(every), in(armed), in(dropped), drop()))
	}
	l.chains = append(l.chains, c)
	pre.rules = append(pre.rules, ruleOf("", f.is(), f.fragmented(), goTo(c.name)))
}

// layoutVersion changes when the kernel's side of the same text changes.
const layoutVersion = "1"

// fingerprint names the layout.
func (l layout) fingerprint() string {
	sum := sha256.Sum256([]byte(layoutVersion + "\n" + l.state().structure()))
	return hex.EncodeToString(sum[:8])
}

// allowed sorts prefixes by family and leaves out those inside others, as an
// interval set holds no two that overlap.
func allowed(prefixes []netip.Prefix) map[*family][]netip.Prefix {
	all := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		all = append(all, p.Masked())
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	byFamily := map[*family][]netip.Prefix{}
	for _, p := range all {
		f := familyOf(p.Addr())
		held := byFamily[f]
		if n := len(held); n > 0 && held[n-1].Overlaps(p) {
			continue // sorted: the one before it is the wider
		}
		byFamily[f] = append(held, p)
	}
	return byFamily
}

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

package handshake

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Direction says which end of a connection is this host.
type Direction uint8

// Directions. Where it is not known which addresses are this host's, as in a
// capture file, In and Out match all.
const (
	Any Direction = iota
	In            // the server is local
	Out           // the client is local
)

// A Filter chooses attempts, which are then counted for it. An attempt is
// chosen if it matches any of the rules, and counts once however many match.
type Filter struct {
	Name string // empty: what matches is left out everywhere
	// Project groups filters: what alerts are summed by. May be empty.
	Project string
	Rules   []Rule
}

// A Rule matches attempts.
type Rule struct {
	Direction Direction
	// Peer is where the other end must be: the client of an In rule, the
	// server of an Out rule, either for Any. Zero matches all.
	Peer netip.Prefix
	// Ports of the server; nil matches all.
	Ports []Ports
}

// Ports are the ports from First to Last.
type Ports struct{ First, Last uint16 }

// syntax is what errors show of a filter.
const syntax = "want [PROJECT/][NAME]:DIRECTION@PEER[:PORT…][,PEER[:PORT…]…], as in http:in@%:80:443 or shop/api:out@192.0.2.0/24:443 " +
	"(DIRECTION: in, out, any, RX or TX; PEER: an address, a prefix, % or *, IPv6 in brackets; PORT: a number, a range such as 8000-8099, % or *; without NAME what matches is left out)"

// ParseFilter reads a filter in the syntax of tcpeek,
//
//	NAME:RX|TX@ADDR[/LEN]:PORT[:PORT…][,ADDR…]
//
// with a few things more: in, out and any as directions, IPv6 in brackets,
// ranges of ports, no port for every port, and a project before the name.
func ParseFilter(text string) (Filter, error) {
	fail := func(format string, args ...any) (Filter, error) {
		return Filter{}, fmt.Errorf("filter %q: "+format+": %s", append(append([]any{text}, args...), syntax)...)
	}
	name, rest, ok := strings.Cut(text, ":")
	if !ok {
		return fail("no colon after the name")
	}
	var f Filter
	f.Name = name
	if project, _, ok := strings.Cut(name, "/"); ok {
		f.Project = project
	}
	word, rest, ok := strings.Cut(rest, "@")
	if !ok {
		return fail("no @ after the direction")
	}
	var direction Direction
	switch word {
	case "RX", "in":
		direction = In
	case "TX", "out":
		direction = Out
	case "any":
	default:
		return fail("direction %q", word)
	}
	for part := range strings.SplitSeq(rest, ",") {
		r, err := parseRule(part)
		if err != nil {
			return fail("%w", err)
		}
		r.Direction = direction
		f.Rules = append(f.Rules, r)
	}
	return f, nil
}

func isWild(s string) bool { return s == "%" || s == "*" }

func parseRule(text string) (Rule, error) {
	var r Rule
	var peer, ports string
	var has bool
	if inside, ok := strings.CutPrefix(text, "["); ok {
		if peer, ports, ok = strings.Cut(inside, "]"); !ok {
			return r, fmt.Errorf("%q: no ] after the address", text)
		}
		// The prefix length may stand inside of the brackets or behind them.
		if strings.HasPrefix(ports, "/") {
			var length string
			length, ports, has = strings.Cut(ports, ":")
			peer += length
		} else if ports, has = strings.CutPrefix(ports, ":"); !has && ports != "" {
			return r, fmt.Errorf("%q: want a colon after the ]", text)
		}
	} else {
		peer, ports, has = strings.Cut(text, ":")
	}
	if !isWild(peer) {
		p, err := ParsePrefix(peer)
		if err != nil {
			return r, err
		}
		r.Peer = p
	}
	if !has {
		return r, nil
	}
	for port := range strings.SplitSeq(ports, ":") {
		if isWild(port) {
			r.Ports = append(r.Ports, Ports{0, 65535})
			continue
		}
		low, high, isRange := strings.Cut(port, "-")
		if !isRange {
			high = low
		}
		first, err1 := strconv.ParseUint(low, 10, 16)
		last, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil || last < first {
			return r, fmt.Errorf("port %q", port)
		}
		r.Ports = append(r.Ports, Ports{uint16(first), uint16(last)})
	}
	return r, nil
}

// ParsePrefix reads an address, which stands for itself alone, or a prefix.
func ParsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return p, fmt.Errorf("prefix %q", s)
		}
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("address %q", s)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// matches tells whether an attempt from client to server is one of the rule's.
// local is nil where it is not known which addresses are local.
func (r *Rule) matches(client, server netip.AddrPort, local func(netip.Addr) bool) bool {
	switch peer := r.Peer; r.Direction {
	case In:
		if local != nil && !local(server.Addr()) || peer.IsValid() && !peer.Contains(client.Addr()) {
			return false
		}
	case Out:
		if local != nil && !local(client.Addr()) || peer.IsValid() && !peer.Contains(server.Addr()) {
			return false
		}
	default:
		if peer.IsValid() && !peer.Contains(client.Addr()) && !peer.Contains(server.Addr()) {
			return false
		}
	}
	if r.Ports == nil {
		return true
	}
	for _, p := range r.Ports {
		if p.First <= server.Port() && server.Port() <= p.Last {
			return true
		}
	}
	return false
}

func (f *Filter) matches(client, server netip.AddrPort, local func(netip.Addr) bool) bool {
	for i := range f.Rules {
		if f.Rules[i].matches(client, server, local) {
			return true
		}
	}
	return false
}

// A Service is a filter for what is sent to one virtual service. Address and
// port match before an address with port 0, which stands for every port.
type Service struct {
	Name      string
	Addresses []netip.AddrPort
	// Visibility is Both or Client where the forwarding method tells, else
	// Auto.
	Visibility Visibility
}

// Visibility says which half of the connections passes where they are watched.
type Visibility string

// Auto decides by whether servers are seen to answer. On a director that
// forwards by DR or TUN they are not: their answers do not pass it. With
// Client, what the server or the network answered is not observable.
const (
	Auto   Visibility = "auto"
	Both   Visibility = "both"
	Client Visibility = "client"
)

// ParseVisibility reads auto, both or client.
func ParseVisibility(s string) (Visibility, error) {
	switch v := Visibility(s); v {
	case Auto, Both, Client:
		return v, nil
	}
	return "", fmt.Errorf("visibility %q: want auto, both or client", s)
}

// Choice is what is counted apart, besides the filter "all", which counts
// everything that is not left out.
type Choice struct {
	Filters  []Filter
	Services []Service
	// Local tells whether an address is this host's; nil where that is not
	// known.
	Local func(netip.Addr) bool
}

// maxFilters is the most filters that a Choice may have: one bit for each.
const maxFilters = 64

// All is the name of the filter that counts everything.
const All = "all"

// Validate tells what is wrong with c.
func (c *Choice) Validate() error {
	if len(c.Filters) > maxFilters {
		return fmt.Errorf("%d filters: at most %d are counted at a time; one filter may have many rules", len(c.Filters), maxFilters)
	}
	seen := map[string]bool{All: true}
	for _, f := range c.Filters {
		switch {
		case f.Name == "":
		case seen[f.Name]:
			return fmt.Errorf("filter %s: there are two of that name (%q is always there)", f.Name, All)
		default:
			seen[f.Name] = true
		}
	}
	return nil
}

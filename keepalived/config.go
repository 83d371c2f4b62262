package keepalived

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Config is what keepalived.conf says of addresses and services, each kind in
// the order of the file.
type Config struct {
	Files          []string // absolute paths of all that were read
	NotifyFIFOs    []string // that VRRP events are written to: notify_fifo, vrrp_notify_fifo
	Instances      []Instance
	Groups         []Group
	VirtualServers []VirtualServer
	// Skipped is what could have named an address, an instance or a server and
	// was not understood. Anything else that is not understood is passed over
	// in silence: it is keepalived's to judge.
	Skipped []Skipped
}

// Instance is a VRRP instance and its addresses, virtual_ipaddress and
// virtual_ipaddress_excluded alike.
type Instance struct {
	Name      string
	Addresses []netip.Addr
}

// Group is a VRRP sync group.
type Group struct {
	Name      string
	Instances []string
}

// VirtualServer is a virtual server.
type VirtualServer struct {
	Server
	// Members is what a group serves, each with the server's protocol;
	// otherwise it is the server alone.
	Members     []Server
	RealServers []Server
}

// Place is a line of a file.
type Place struct {
	File string
	Line int // from 1
}

func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// Skipped is text that was not understood, and why.
type Skipped struct {
	At     Place
	Text   string
	Reason string
}

func (s Skipped) String() string { return fmt.Sprintf("%v: %q: %s", s.At, s.Text, s.Reason) }

// maxRange bounds how many addresses one line of a virtual_server_group stands for.
const maxRange = 4096

// ReadConfig reads keepalived's configuration (keepalived.conf(5)) with all
// that it includes. id is what keepalived was given with --config-id, by which
// @id lines are chosen; empty means what keepalived takes then, the first part
// of the host's name.
//
// A file that cannot be read is an error, and so is one that ends within a
// block; an included file that cannot be read is Skipped, as in keepalived.
// Every error and everything Skipped names file and line. ~LST,
// ${_RANDOM} and braces in the name of an included file are not understood.
func ReadConfig(path, id string) (Config, error) {
	if id == "" {
		name, err := os.Hostname()
		if err != nil {
			return Config{}, fmt.Errorf("read keepalived's configuration: %w", err)
		}
		id, _, _ = strings.Cut(name, ".")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return Config{}, fmt.Errorf("read keepalived's configuration: %w", err)
	}
	return parseConfig(path, id, readFile, filepath.Glob)
}

func parseConfig(path, id string, read func(string) ([]byte, error), glob func(string) ([]string, error)) (Config, error) {
	p := configParser{groups: make(map[string][]Server)}
	source := lineSource{id: id, emit: p.line, skip: p.skip, read: read, glob: glob, definitions: make(map[string][]string)}
	data, err := read(path)
	if err == nil {
		err = source.file(path, data)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read keepalived's configuration: %w", err)
	}
	if err := p.end(); err != nil {
		return Config{}, fmt.Errorf("read keepalived's configuration: %w", err)
	}
	p.config.Files = source.files
	return p.config, nil
}

// configParser follows the blocks.
type configParser struct {
	config Config
	blocks []statement         // open ones, outermost first
	last   statement           // not yet known to be the head of a block
	groups map[string][]Server // virtual_server_group: its members, without protocol
}

// statement is a keyword with its arguments, or an entry of a list.
type statement struct {
	at    Place
	words []string
}

func (s statement) keyword() string { return s.word(0) }

// word returns the word at i, or "".
func (s statement) word(i int) string {
	if i >= len(s.words) {
		return ""
	}
	return s.words[i]
}

func (p *configParser) skip(at Place, text, reason string) {
	p.config.Skipped = append(p.config.Skipped, Skipped{at, text, reason})
}

func (p *configParser) skipStatement(s statement, reason string) {
	p.skip(s.at, strings.Join(s.words, " "), reason)
}

// line cuts a line into words and braces. A brace may stand on the line of its
// keyword, on the next one, and before or behind other words.
func (p *configParser) line(at Place, text string) {
	s := statement{at: at}
	flush := func() {
		if len(s.words) > 0 {
			p.plain()
			p.last = s
			s.words = nil
		}
	}
	for text = strings.TrimLeft(text, " \t"); text != ""; text = strings.TrimLeft(text, " \t") {
		switch text[0] {
		case '{':
			flush()
			p.open(at)
			text = text[1:]
		case '}':
			flush()
			p.close(at)
			text = text[1:]
		case '"':
			word, rest, closed := strings.Cut(text[1:], `"`)
			if !closed {
				p.skip(at, text, "the quote is not closed")
			}
			s.words = append(s.words, word)
			text = rest
		default:
			end := strings.IndexAny(text, " \t\"{}")
			if end < 0 {
				end = len(text)
			}
			s.words = append(s.words, text[:end])
			text = text[end:]
		}
	}
	flush()
}

func (p *configParser) open(at Place) {
	if len(p.last.words) == 0 {
		p.last.at = at
	}
	p.blocks = append(p.blocks, p.last)
	p.last = statement{}
	p.begin()
}

func (p *configParser) close(at Place) {
	p.plain()
	if len(p.blocks) == 0 {
		p.skip(at, "}", "no block is open here")
		return
	}
	p.blocks = p.blocks[:len(p.blocks)-1]
}

// end finishes the reading. Where blocks are left open the file may have been
// read while it was written: half of it must not pass for the whole.
func (p *configParser) end() error {
	p.plain()
	if len(p.blocks) > 0 {
		return fmt.Errorf("%v: a block is opened here and never closed: %w", p.blocks[len(p.blocks)-1].at, ErrSyntax)
	}
	for i := range p.config.VirtualServers {
		server := &p.config.VirtualServers[i]
		server.Members = []Server{server.Server}
		if server.Group == "" {
			continue
		}
		server.Members = slices.Clone(p.groups[server.Group])
		for i := range server.Members {
			if server.Members[i].Mark == 0 {
				server.Members[i].Protocol = server.Protocol
			}
		}
	}
	return nil
}

// within tells whether the open blocks are these, outermost first.
func (p *configParser) within(keywords ...string) bool {
	return slices.EqualFunc(p.blocks, keywords, func(s statement, keyword string) bool { return s.keyword() == keyword })
}

// begin handles the head of the block that has just been opened. The block of a
// head that is not understood loses its words, so that nothing in it is taken
// for another's.
func (p *configParser) begin() {
	head := &p.blocks[len(p.blocks)-1]
	var err error
	switch {
	case p.within("vrrp_instance"):
		if err = wantName(*head); err == nil {
			p.config.Instances = append(p.config.Instances, Instance{Name: head.word(1)})
		}
	case p.within("vrrp_sync_group"):
		if err = wantName(*head); err == nil {
			p.config.Groups = append(p.config.Groups, Group{Name: head.word(1)})
		}
	case p.within("virtual_server"):
		var server Server
		if server, err = parseVirtualServer(*head); err == nil {
			p.config.VirtualServers = append(p.config.VirtualServers, VirtualServer{Server: server})
		}
	case p.within("virtual_server", "real_server"):
		var addr netip.AddrPort
		if addr, err = parseAddrPort(head.word(1), head.word(2)); err == nil {
			server := p.virtualServer()
			server.RealServers = append(server.RealServers, Server{Addr: addr, Protocol: server.Protocol})
		}
	}
	if err != nil {
		p.skipStatement(*head, err.Error())
		head.words = nil
	}
}

// plain handles the last statement, which turned out to begin no block.
func (p *configParser) plain() {
	s := p.last
	p.last = statement{}
	if len(s.words) == 0 {
		return
	}
	switch {
	case p.within("global_defs"):
		if s.keyword() == "notify_fifo" || s.keyword() == "vrrp_notify_fifo" {
			p.config.NotifyFIFOs = append(p.config.NotifyFIFOs, s.word(1))
		}
	case p.within("vrrp_instance", "virtual_ipaddress"), p.within("vrrp_instance", "virtual_ipaddress_excluded"):
		addr, err := parseAddr(s.word(0))
		if err != nil {
			p.skipStatement(s, err.Error())
			return
		}
		instance := &p.config.Instances[len(p.config.Instances)-1]
		if !slices.Contains(instance.Addresses, addr) {
			instance.Addresses = append(instance.Addresses, addr)
		}
	case p.within("vrrp_sync_group", "group"):
		group := &p.config.Groups[len(p.config.Groups)-1]
		group.Instances = append(group.Instances, s.words...)
	case p.within("virtual_server_group"):
		members, err := groupMembers(s)
		if err != nil {
			p.skipStatement(s, err.Error())
			return
		}
		name := p.blocks[0].word(1)
		p.groups[name] = append(p.groups[name], members...)
	case p.within("virtual_server"):
		server := p.virtualServer()
		if s.keyword() == "protocol" && server.Mark == 0 {
			server.Protocol = strings.ToLower(s.word(1))
			for i := range server.RealServers {
				server.RealServers[i].Protocol = server.Protocol
			}
		}
	}
}

// virtualServer is the one whose block is open.
func (p *configParser) virtualServer() *VirtualServer {
	return &p.config.VirtualServers[len(p.config.VirtualServers)-1]
}

func wantName(head statement) error {
	if head.word(1) == "" {
		return errors.New("the name is missing")
	}
	return nil
}

// parseVirtualServer reads the head of a virtual_server block. TCP is keepalived's
// default; a firewall mark has no protocol.
func parseVirtualServer(head statement) (Server, error) {
	switch head.word(1) {
	case "group":
		if head.word(2) == "" {
			return Server{}, errors.New("the group's name is missing")
		}
		return Server{Group: head.word(2), Protocol: "tcp"}, nil
	case "fwmark":
		mark, err := parseMark(head.word(2))
		return Server{Mark: mark}, err
	default:
		addr, err := parseAddrPort(head.word(1), head.word(2))
		return Server{Addr: addr, Protocol: "tcp"}, err
	}
}

// groupMembers reads an entry of a virtual_server_group: an address, a range
// (192.0.2.1-9, 192.0.2.1-192.0.2.9, 192.0.2.0/29) or a firewall mark.
func groupMembers(s statement) ([]Server, error) {
	if s.word(0) == "fwmark" {
		mark, err := parseMark(s.word(1))
		return []Server{{Mark: mark}}, err
	}
	port, err := parsePort(s.word(1))
	if err != nil {
		return nil, err
	}
	first, last, err := parseRange(s.word(0))
	if err != nil {
		return nil, err
	}
	var members []Server
	for addr := first; addr.IsValid() && addr.Compare(last) <= 0; addr = addr.Next() {
		if len(members) == maxRange {
			return nil, fmt.Errorf("a range of more than %d addresses", maxRange)
		}
		members = append(members, Server{Addr: netip.AddrPortFrom(addr, port)})
	}
	return members, nil
}

func parseRange(text string) (first, last netip.Addr, err error) {
	if strings.ContainsRune(text, '/') {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || prefix != prefix.Masked() {
			return first, last, errors.New("not a network")
		}
		return prefix.Addr(), lastOf(prefix), nil
	}
	from, to, isRange := strings.Cut(text, "-")
	if first, err = parseAddr(from); err != nil || !isRange {
		return first, first, err
	}
	if last, err = netip.ParseAddr(to); err != nil {
		// Only the last part of the address is named, in the base it has.
		if cut := strings.LastIndexAny(from, ".:"); cut >= 0 {
			last, err = netip.ParseAddr(from[:cut+1] + to)
		}
	}
	if err != nil || first.Is4() != last.Is4() || last.Less(first) {
		return first, last, errors.New("not a range of addresses")
	}
	return first, last, nil
}

// lastOf returns the last address of a prefix.
func lastOf(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for i := prefix.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// parseAddr reads an address with or without the length of its prefix.
func parseAddr(text string) (netip.Addr, error) {
	bare, length, ok := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(bare)
	if err == nil && ok {
		_, err = addr.Prefix(atoi(length))
	}
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, errors.New("not an address")
	}
	return addr.Unmap(), nil
}

// atoi returns -1 for what is no number.
func atoi(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return -1
	}
	return n
}

func parseAddrPort(addr, port string) (netip.AddrPort, error) {
	a, err := parseAddr(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	p, err := parsePort(port)
	return netip.AddrPortFrom(a, p), err
}

// parsePort reads a port; one that is not given is 0, every port.
func parsePort(text string) (uint16, error) {
	if text == "" {
		return 0, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, errors.New("not a port number")
	}
	return uint16(port), nil
}

func parseMark(text string) (uint32, error) {
	mark, err := strconv.ParseUint(text, 10, 32)
	if err != nil || mark == 0 {
		return 0, errors.New("not a firewall mark")
	}
	return uint32(mark), nil
}

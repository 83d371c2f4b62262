// Package site builds a whole LVS site out of network namespaces: a pair of directors with keepalived, real servers, a
// router, a client and an attacker. A test gets it with New or Each, and everything goes away with the test. It needs
// root, IPVS and keepalived, and is meant for the inside of a lab guest.
//
//	client ──┐            ┌── lvs1 ──┐
//	       router ─ front ┤          ├ back (NAT) ── rs1, rs2
//	attacker ┘            ├── lvs2 ──┘
//	                      └── rs1, rs2 (DR, TUN)
package site

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Config is a site to be. The zero value is a DR site for IPv4 with one virtual service, on port 80 of one VRRP instance.
type Config struct {
	Variant Variant
	// Services are the virtual services, the same on both directors.
	Services []Service
	// Instances is the number of VRRP instances, each with one address; 0 is 1. The even ones prefer lvs1, the odd ones
	// lvs2.
	Instances int
	// Global and Instance are more lines for keepalived's global_defs and for each vrrp_instance, with the director's
	// files at Director.Dir.
	Global, Instance func(*Director) string
	// Idle leaves keepalived to be started by the test, with Director.StartKeepalived.
	Idle bool
}

// Service is a virtual service.
type Service struct {
	Instance int    // the index of the VRRP instance whose address it is at
	Port     uint16 // 0: every port of the address, persistent, as IPVS wants it
	UDP      bool
	Mark     uint32 // not 0: a fwmark service; the mark is set on what comes for Instance and Port
	// Unchecked spares keepalived the health checks.
	Unchecked bool
}

// Site is a site that serves.
type Site struct {
	Variant     Variant
	Directors   [2]*Director // lvs1, lvs2
	RealServers []*RealServer
	Client      *Client
	Attacker    *Attacker
	Router      *Host

	t      testing.TB
	config Config
	plan   plan
}

// electionLimit is the longest that VRRP may take on a machine that is busy with other things.
const electionLimit = 20 * time.Second

// New builds a site and waits until a client is served. It ends with the test.
func New(t testing.TB, config Config) *Site {
	t.Helper()
	if os.Getenv("LVSGUARD_LAB") == "" {
		t.Fatal("a site is built inside a lab guest only: go run ./lab/cmd/lab")
	}
	if config.Variant == "" {
		config.Variant = DR4
	}
	if config.Services == nil {
		config.Services = []Service{{Port: 80}}
	}
	config.Instances = max(config.Instances, 1)
	began := time.Now()
	s := &Site{Variant: config.Variant, t: t, config: config, plan: planOf(config.Variant)}
	t.Cleanup(s.close)
	if err := s.build(); err != nil {
		t.Fatalf("build the site: %v", err)
	}
	if config.Idle {
		return s
	}
	built := time.Since(began)
	for i := range config.Instances {
		preferred := s.preferred(i)
		Wait(t, electionLimit, fmt.Sprintf("%s alone holds %s", preferred.Name, s.Address(i)), func() bool {
			return s.holder(i) == preferred
		})
	}
	elected := time.Since(began)
	Wait(t, electionLimit, "a client is served", func() bool { return s.Client.Get(1) == 1 })
	t.Logf("%s site: built after %s, with masters after %s, serving after %s", s.Variant,
		built.Round(time.Millisecond), elected.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	return s
}

// Address is the virtual address of a VRRP instance.
func (s *Site) Address(instance int) netip.Addr { return at(s.plan.front, virtual1+instance) }

// Target is where a client finds the service with this index. Of one with every port, port 80.
func (s *Site) Target(service int) netip.AddrPort {
	c := s.config.Services[service]
	port := c.Port
	if port == 0 {
		port = 80
	}
	return netip.AddrPortFrom(s.Address(c.Instance), port)
}

// Key is the name that the guard has for the service with this index.
func (s *Site) Key(service int) string {
	c := s.config.Services[service]
	switch {
	case c.Mark != 0 && s.Variant.IPv6():
		return fmt.Sprintf("fwmark6:%d", c.Mark)
	case c.Mark != 0:
		return fmt.Sprintf("fwmark:%d", c.Mark)
	case c.Port == 0:
		return strings.TrimSuffix(netip.AddrPortFrom(s.Address(c.Instance), 0).String(), "0") + "*"
	case c.UDP:
		return "udp:" + s.Target(service).String()
	default:
		return s.Target(service).String()
	}
}

// Master is the director that holds the first VRRP instance's address, and Backup the other one.
func (s *Site) Master() *Director { return s.MasterOf(0) }

// Backup is the director that does not hold the first VRRP instance's address.
func (s *Site) Backup() *Director { return s.other(s.Master()) }

// MasterOf is the director that holds an instance's address. In the middle of a failover it waits for the end.
func (s *Site) MasterOf(instance int) *Director {
	s.t.Helper()
	var master *Director
	Wait(s.t, electionLimit, fmt.Sprintf("exactly one director holds %s", s.Address(instance)), func() bool {
		master = s.holder(instance)
		return master != nil
	})
	return master
}

func (s *Site) other(d *Director) *Director {
	if d == s.Directors[0] {
		return s.Directors[1]
	}
	return s.Directors[0]
}

// holder is the one director that holds an instance's address, or nil while none or both do.
func (s *Site) holder(instance int) *Director {
	s.t.Helper()
	first, second := s.Directors[0].Holds(s.Address(instance)), s.Directors[1].Holds(s.Address(instance))
	switch {
	case first && !second:
		return s.Directors[0]
	case second && !first:
		return s.Directors[1]
	default:
		return nil
	}
}

// preferred is the director with the higher priority for an instance.
func (s *Site) preferred(instance int) *Director { return s.Directors[instance%2] }

// FailOver takes the master of the first instance away by stopping its keepalived, waits until the other director is
// master, and gives that one.
func (s *Site) FailOver() *Director {
	s.t.Helper()
	old := s.Master()
	next := s.other(old)
	old.StopKeepalived()
	Wait(s.t, electionLimit, next.Name+" is master", func() bool { return next.Holds(s.Address(0)) })
	return next
}

// build makes the hosts, joins them, and starts what runs on them. What takes its time is done at once on all hosts.
func (s *Site) build() error {
	var (
		everywhere = []string{
			"ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
			"ipv6/conf/all/accept_dad=0", "ipv6/conf/default/accept_dad=0",
			"ipv6/conf/all/accept_ra=0", "ipv6/conf/default/accept_ra=0",
			"ipv6/conf/all/keep_addr_on_down=1", "ipv6/conf/default/keep_addr_on_down=1",
		}
		forwards = append(everywhere[:len(everywhere):len(everywhere)],
			"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1",
			"ipv4/conf/all/send_redirects=0", "ipv4/conf/default/send_redirects=0",
		)
		// A real server with the virtual address on lo must not answer for it (DR's "ARP problem").
		silent = append(everywhere[:len(everywhere):len(everywhere)],
			"ipv4/conf/all/arp_ignore=1", "ipv4/conf/all/arp_announce=2",
		)
	)
	hosts := []struct {
		name    string
		sysctls []string
		use     func(*Host)
	}{
		{"router", forwards, func(h *Host) { s.Router = h }},
		{"lvs1", forwards, func(h *Host) { s.Directors[0] = &Director{Host: h, site: s, number: 0} }},
		{"lvs2", forwards, func(h *Host) { s.Directors[1] = &Director{Host: h, site: s, number: 1} }},
		{"rs1", silent, func(h *Host) { s.RealServers = append(s.RealServers, &RealServer{Host: h, site: s, number: 0}) }},
		{"rs2", silent, func(h *Host) { s.RealServers = append(s.RealServers, &RealServer{Host: h, site: s, number: 1}) }},
		{"client", everywhere, func(h *Host) { s.Client = &Client{Host: h, site: s} }},
		{"attacker", everywhere, func(h *Host) { s.Attacker = &Attacker{Host: h, site: s} }},
	}
	for _, h := range hosts {
		host, err := newHost(s.t, h.name, h.sysctls...)
		if err != nil {
			return err
		}
		h.use(host)
	}
	if err := s.connectRouter(); err != nil {
		return err
	}
	steps := []func() error{s.Client.connect, s.Attacker.connect}
	for _, r := range s.RealServers {
		steps = append(steps, func() error { return errors.Join(r.connect(), r.serve()) })
	}
	for _, d := range s.Directors {
		steps = append(steps, func() error {
			if err := d.connect(); err != nil || s.config.Idle {
				return err
			}
			return d.startKeepalived()
		})
	}
	return together(steps...)
}

// together runs the steps at once and waits for all.
func together(steps ...func() error) error {
	var group sync.WaitGroup
	errs := make([]error, len(steps))
	for i, step := range steps {
		group.Go(func() { errs[i] = step() })
	}
	group.Wait()
	return errors.Join(errs...)
}

// connectRouter lays all cables. The router is also the switch: the front and the back network are bridges on it. What
// real servers answer to spoofed sources ends there.
func (s *Site) connectRouter() error {
	nat := s.natted()
	cable := func(port, mac string, h *Host, name string) string {
		return fmt.Sprintf("link add %s type veth peer name %s address 02:00:00:00:%s netns %s", port, name, mac, h.network())
	}
	lines := []string{
		"link set lo up",
		"link add front address 02:00:00:00:01:fe type bridge stp_state 0 forward_delay 0",
		"link add back address 02:00:00:00:02:fe type bridge stp_state 0 forward_delay 0",
		"link add client address 02:00:00:00:03:01 type veth peer name eth0 address 02:00:00:00:03:02 netns " + s.Client.network(),
		"link add attacker address " + attackerGateway.String() + " type veth peer name eth0 address 02:00:00:00:04:02 netns " + s.Attacker.network(),
	}
	up := []string{"front", "back", "client", "attacker"}
	port := func(bridge, name, mac string, h *Host, inner string) {
		lines = append(lines, cable(name, mac, h, inner), "link set "+name+" master "+bridge)
		up = append(up, name)
	}
	for i, d := range s.Directors {
		port("front", d.Name, fmt.Sprintf("01:%02x", i+1), d.Host, "eth0")
		if nat {
			port("back", d.Name+"b", fmt.Sprintf("02:%02x", i+1), d.Host, "eth1")
		}
	}
	for i, r := range s.RealServers {
		bridge := "front"
		if nat {
			bridge = "back"
		}
		port(bridge, r.Name, fmt.Sprintf("05:%02x", i+1), r.Host, "eth0")
	}
	for _, name := range up {
		lines = append(lines, "link set "+name+" up")
	}
	lines = append(lines,
		"address add "+on(s.plan.front, routerHost)+" dev front",
		"address add "+on(s.plan.client, routerHost)+" dev client",
		"address add "+on(s.plan.attacker, routerHost)+" dev attacker",
		"route add blackhole default",
	)
	return s.Router.ip(lines...)
}

func (s *Site) natted() bool { return s.Variant.method() == "NAT" }

// plug brings an end of a cable up, with an address and, if it is to be, the way to everywhere else.
func plug(device, address string, way netip.Addr) []string {
	lines := []string{
		"link set lo up",
		"link set " + device + " up",
		"address add " + address + " dev " + device,
	}
	if way.IsValid() {
		lines = append(lines, "route add default via "+way.String())
	}
	return lines
}

// Keep writes a file for the host, into the directory that lab's -output names, below the test's own name.
func (s *Site) Keep(name string, content []byte) {
	s.t.Helper()
	directory := filepath.Join(os.Getenv("LVSGUARD_OUTPUT"), filepath.FromSlash(s.t.Name()))
	if err := os.MkdirAll(directory, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, name), content, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// close takes the site away. If the test failed, it tells first what everything that ran on it said in the end.
func (s *Site) close() {
	var hosts []*Host
	for _, d := range s.Directors {
		if d != nil {
			hosts = append(hosts, d.Host)
		}
	}
	for _, r := range s.RealServers {
		r.close()
		hosts = append(hosts, r.Host)
	}
	if s.Client != nil {
		hosts = append(hosts, s.Client.Host)
	}
	if s.Attacker != nil {
		hosts = append(hosts, s.Attacker.Host)
	}
	if s.Router != nil {
		hosts = append(hosts, s.Router)
	}
	for _, h := range hosts {
		if s.t.Failed() {
			for _, p := range h.processes {
				s.t.Log(p.report())
			}
		}
		if err := h.close(); err != nil {
			s.t.Errorf("close %s: %v", h.Name, err)
		}
	}
}

package site

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A Director is a host with keepalived and IPVS, one of a pair.
type Director struct {
	*Host
	Keepalived *Process // nil before it is started

	site   *Site
	number int // 0 or 1
}

func (d *Director) connect() error {
	lines := plug("eth0", on(d.site.plan.front, director1+d.number), at(d.site.plan.front, routerHost))
	if d.site.natted() {
		lines = append(lines, plug("eth1", on(d.site.plan.back, director1+d.number), netip.Addr{})...)
	}
	if err := d.ip(lines...); err != nil {
		return err
	}
	return d.mark()
}

// mark makes fwmark services what they are, where mangle rules usually do.
func (d *Director) mark() error {
	var rules strings.Builder
	for i, service := range d.site.config.Services {
		if service.Mark == 0 {
			continue
		}
		family := "ip"
		if d.site.Variant.IPv6() {
			family = "ip6"
		}
		target := d.site.Target(i)
		fmt.Fprintf(&rules, "add rule inet marks prerouting %s daddr %s tcp dport %d meta mark set %d\n",
			family, target.Addr(), target.Port(), service.Mark)
	}
	if rules.Len() == 0 {
		return nil
	}
	_, err := d.Try("nft", "add table inet marks\n"+
		"add chain inet marks prerouting { type filter hook prerouting priority mangle; }\n"+rules.String())
	return err
}

// Holds tells whether the director has the address on one of its cables. lo and the like prove nothing.
func (d *Director) Holds(address netip.Addr) bool {
	d.t.Helper()
	var held []net.Addr
	err := d.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		held, err = eth0.Addrs()
		return err
	})
	if err != nil {
		d.t.Fatalf("addresses of %s: %v", d.Name, err)
	}
	for _, a := range held {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == address {
			return true
		}
	}
	return false
}

// Serves tells whether IPVS on the director has real servers to send clients to.
func (d *Director) Serves() bool {
	d.t.Helper()
	return len(d.realServers()) > 0
}

// IPVSEntries is the number of connections in the director's table, established and not, but for persistence templates.
func (d *Director) IPVSEntries() int {
	d.t.Helper()
	entries := 0
	for _, fields := range d.realServers() {
		for _, field := range fields[4:] {
			n, err := strconv.Atoi(field)
			if err != nil {
				d.t.Fatalf("ipvsadm: %q: %v", fields, err)
			}
			entries += n
		}
	}
	return entries
}

// realServers are ipvsadm's lines of real servers: ->, address, forwarding method, weight, ActiveConn, InActConn.
func (d *Director) realServers() [][]string {
	d.t.Helper()
	var lines [][]string
	for line := range strings.Lines(d.Run("ipvsadm", "--list", "--numeric")) {
		fields := strings.Fields(line)
		if len(fields) == 6 && fields[0] == "->" && fields[1] != "RemoteAddress:Port" {
			lines = append(lines, fields)
		}
	}
	return lines
}

// Admitted is the number of connections that IPVS has scheduled since the director was made. It only grows, and reading
// it costs nothing. The sums that the kernel makes of it are up to two seconds old, so it is made here.
func (d *Director) Admitted() int {
	d.t.Helper()
	var text []byte
	err := d.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/ip_vs_stats_percpu")
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	// A line a CPU, in hexadecimal: CPU, connections, packets in and out, bytes in and out.
	total := 0
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) != 6 {
			continue
		}
		if _, err := strconv.ParseUint(fields[0], 16, 32); err != nil {
			continue // a heading, or the kernel's own sum
		}
		n, err := strconv.ParseInt(fields[1], 16, 64)
		if err != nil {
			d.t.Fatalf("ip_vs_stats_percpu of %s: %q: %v", d.Name, line, err)
		}
		total += int(n)
	}
	return total
}

// Address is the director's own address on the front network.
func (d *Director) Address() netip.Addr { return at(d.site.plan.front, director1+d.number) }

// KeepalivedConf is the name of its keepalived.conf.
func (d *Director) KeepalivedConf() string { return filepath.Join(d.Dir, "keepalived.conf") }

// Cable brings the director's front interface up or down.
func (d *Director) Cable(state string) {
	d.t.Helper()
	d.Run("ip", "link", "set", "eth0", state)
	if state == "up" { // IPv4's default route went with it
		d.Run("ip", "route", "replace", "default", "via", at(d.site.plan.front, routerHost).String())
	}
}

package site

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// StartKeepalived starts keepalived with a configuration for the site, written anew.
func (d *Director) StartKeepalived() {
	d.t.Helper()
	if err := d.startKeepalived(); err != nil {
		d.t.Fatal(err)
	}
}

// ConfigureKeepalived writes keepalived's configuration, as there is before it starts for the first time.
func (d *Director) ConfigureKeepalived() {
	d.t.Helper()
	if err := d.configureKeepalived(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *Director) configureKeepalived() error {
	return os.WriteFile(d.KeepalivedConf(), []byte(d.configuration()), 0o600)
}

func (d *Director) startKeepalived() error {
	err := d.configureKeepalived()
	if err != nil {
		return err
	}
	d.Keepalived, err = d.start("keepalived", "--dont-fork", "--no-syslog", "--log-console", "--log-detail", "--use-file", d.KeepalivedConf())
	return err
}

// StopKeepalived stops keepalived as systemd does. It gives its addresses and virtual services up.
func (d *Director) StopKeepalived() {
	d.t.Helper()
	d.Keepalived.Stop()
}

// configuration writes keepalived.conf: VRRP fast enough for a test and calm enough for an emulated machine under flood,
// where only a realtime priority keeps the adverts coming. By its standard limits of realtime, the kernel would kill it
// there.
func (d *Director) configuration() string {
	var b strings.Builder
	extra := func(lines func(*Director) string) string {
		if lines == nil {
			return ""
		}
		return lines(d)
	}
	fmt.Fprintf(&b, `global_defs {
	router_id %s
	script_user root
	enable_script_security
	vrrp_version 3
	vrrp_rt_priority 20
	vrrp_rlimit_rttime 5000000
	checker_rt_priority 10
	checker_rlimit_rttime 5000000
	%s
}
`, d.Name, extra(d.site.config.Global))
	for i := range d.site.config.Instances {
		state, priority := "BACKUP", 100
		if d.site.preferred(i) == d {
			state, priority = "MASTER", 200
		}
		fmt.Fprintf(&b, `vrrp_instance VI_%d {
	state %s
	interface eth0
	virtual_router_id %d
	priority %d
	advert_int 0.3
	virtual_ipaddress {
		%s dev eth0
	}
	%s
	%s
}
`, i+1, state, 51+i, priority, alone(d.site.Address(i)), d.floatingGateway(i), extra(d.site.config.Instance))
	}
	for i, service := range d.site.config.Services {
		d.virtualServer(&b, i, service)
	}
	return b.String()
}

// floatingGateway is the address that real servers behind NAT send everything to: it follows the first instance.
func (d *Director) floatingGateway(instance int) string {
	if !d.site.natted() || instance != 0 {
		return ""
	}
	return fmt.Sprintf("virtual_ipaddress_excluded {\n\t\t%s dev eth1\n\t}", on(d.site.plan.back, gateway))
}

func (d *Director) virtualServer(b *strings.Builder, index int, service Service) {
	name := fmt.Sprintf("%s %d", d.site.Address(service.Instance), service.Port)
	protocol, persistence, family := "TCP", "", ""
	switch {
	case service.Mark != 0:
		name = fmt.Sprintf("fwmark %d", service.Mark)
		if d.site.Variant.IPv6() {
			family = "ip_family inet6"
		}
	case service.Port == 0:
		persistence = "persistence_timeout 50"
	}
	if service.UDP {
		protocol = "UDP"
	}
	fmt.Fprintf(b, `virtual_server %s {
	delay_loop 1
	lvs_sched rr
	lvs_method %s
	protocol %s
	%s
	%s
`, name, d.site.Variant.method(), protocol, persistence, family)
	for _, r := range d.site.RealServers {
		check := fmt.Sprintf("TCP_CHECK {\n\t\t\tconnect_port %d\n\t\t\tconnect_timeout 5\n\t\t\tretry 3\n\t\t}", d.site.Target(index).Port())
		if service.Unchecked || service.UDP {
			check = ""
		}
		fmt.Fprintf(b, "\treal_server %s %d {\n\t\t%s\n\t}\n", r.Address(), service.Port, check)
	}
	b.WriteString("}\n")
}

// FIFO is where keepalived's notify_fifo of this director is, for those who configure one.
func (d *Director) FIFO() string { return filepath.Join(d.Dir, "keepalived.fifo") }

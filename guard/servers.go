package guard

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// This file has the guard ask real servers how they fare. That is told, and
// decides nothing.

// ServersConfig says how real servers are asked for their figures.
type ServersConfig struct {
	// Metrics are URLs with {address} in them, tried in order; empty: nobody is
	// asked.
	Metrics         []string      `yaml:"metrics"`
	Interval        time.Duration `yaml:"interval"`
	Timeout         time.Duration `yaml:"timeout"`
	TLSCAFile       string        `yaml:"tls_ca_file"`
	TLSServerName   string        `yaml:"tls_server_name"`
	BearerTokenFile string        `yaml:"bearer_token_file"`
	Username        string        `yaml:"username"`
	PasswordFile    string        `yaml:"password_file"`
}

// config is c as those want it who ask.
func (c *ServersConfig) config() pressure.ServersConfig {
	return pressure.ServersConfig{
		URLs: c.Metrics, Interval: c.Interval, Timeout: c.Timeout,
		CAFile: c.TLSCAFile, ServerName: c.TLSServerName,
		BearerTokenFile: c.BearerTokenFile, User: c.Username, PasswordFile: c.PasswordFile,
	}
}

// check tells what is wrong with c. The files are not looked at: they may come
// later.
func (c *ServersConfig) check() error {
	if c.Interval < time.Second || c.Interval > time.Hour {
		return badKey("want a duration from 1s to 1h", "servers", "interval")
	}
	if c.Timeout < 10*time.Millisecond || c.Timeout >= c.Interval {
		return badKey("want a duration from 10ms, and shorter than servers.interval", "servers", "timeout")
	}
	for i, url := range c.Metrics {
		if !strings.Contains(url, "{address}") {
			return badKey(fmt.Sprintf("%q: want a URL such as http://{address}:9100/metrics", url), "servers", "metrics", fmt.Sprint(i))
		}
	}
	without := c.config()
	without.CAFile = ""
	if _, err := pressure.NewServers(without); err != nil {
		return badKey(err.Error(), "servers")
	}
	return nil
}

// Servers is what the guard needs of [pressure.Servers].
type Servers interface {
	Run(context.Context) error
	SetTargets([]netip.Addr)
	Snapshot(time.Time) []pressure.Server
}

// A RealServer is a real server in a Sample, as this director sees it.
type RealServer struct {
	Address  netip.Addr   `json:"address"`
	Services []ServedHere `json:"services"`
	// Figures are the server's own; nil where servers are not asked.
	Figures *pressure.Server `json:"figures"`
}

// A ServedHere is a virtual service that a real server has a part in.
type ServedHere struct {
	Service ipvs.Key       `json:"service"`
	Server  netip.AddrPort `json:"server"`
	// Removed: keepalived's configuration names it, and IPVS does not have it.
	// What follows is then nil.
	Removed    bool    `json:"removed_by_health_check"`
	Weight     *uint32 `json:"weight"` // 0: gets no new connections
	Active     *uint32 `json:"active_connections"`
	Inactive   *uint32 `json:"inactive_connections"`
	Persistent *uint32 `json:"persistence_templates"`
}

// realServers are those that IPVS has, and those that keepalived's health checks
// have taken out of its services.
func realServers(served []ipvs.Service, conf keepalived.Config) []RealServer {
	var all []RealServer
	index := make(map[netip.Addr]int)
	add := func(s ServedHere) {
		i, known := index[s.Server.Addr()]
		if !known {
			i = len(all)
			index[s.Server.Addr()] = i
			all = append(all, RealServer{Address: s.Server.Addr()})
		}
		all[i].Services = append(all[i].Services, s)
	}
	byKey := make(map[ipvs.Key]*ipvs.Service, len(served))
	for i := range served {
		s := &served[i]
		byKey[s.Key] = s
		for j := range s.RealServers {
			rs := &s.RealServers[j]
			add(ServedHere{
				Service: s.Key, Server: rs.Addr, Weight: &rs.Weight,
				Active: &rs.ActiveConn, Inactive: &rs.InActConn, Persistent: &rs.PersistConn,
			})
		}
	}
	for _, vs := range conf.VirtualServers {
		for _, member := range vs.Members {
			// A service that IPVS does not have at all is not what a health check
			// leaves.
			s := byKey[keyOf(member)]
			if s == nil {
				continue
			}
			for _, rs := range vs.RealServers {
				if !slices.ContainsFunc(s.RealServers, func(have ipvs.RealServer) bool { return sameServer(have.Addr, rs.Addr) }) {
					add(ServedHere{Service: s.Key, Server: rs.Addr, Removed: true})
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b RealServer) int { return a.Address.Compare(b.Address) })
	return all
}

// sameServer compares a real server of IPVS's with one of keepalived's, which
// may leave the port out.
func sameServer(have, named netip.AddrPort) bool {
	return have == named || named.Port() == 0 && have.Addr() == named.Addr()
}

// A serversWatch is the guard's hold on those who ask real servers. It belongs
// to the control loop.
type serversWatch struct {
	servers Servers
	stop    context.CancelFunc
	tried   time.Time
	err     error
	targets []netip.Addr
}

// readServers gives the real servers with what they last told. Asking them is
// not waited for.
func (d *Daemon) readServers(ctx context.Context, now time.Time, served []ipvs.Service, unknown map[Source]string) []RealServer {
	if d.cfg.Role == RoleHost || unknown[SourceIPVS] != "" {
		return nil
	}
	all := realServers(served, d.roles.conf)
	w := &d.servers
	if len(d.cfg.Servers.Metrics) == 0 || d.opts.Kernel.Host.OpenServers == nil {
		return all
	}
	if w.servers == nil && (w.tried.IsZero() || lasted(now.Sub(w.tried), retryHost)) {
		d.openServers(ctx, now)
	}
	if w.servers == nil {
		unknown[SourceServers] = w.err.Error()
		return all
	}
	targets := make([]netip.Addr, 0, len(all))
	for _, rs := range all {
		targets = append(targets, rs.Address)
	}
	if !slices.Equal(targets, w.targets) {
		w.servers.SetTargets(targets)
		w.targets = targets
	}
	figures := w.servers.Snapshot(now)
	for i := range figures {
		j, there := slices.BinarySearchFunc(all, figures[i].Address, func(rs RealServer, a netip.Addr) int { return rs.Address.Compare(a) })
		if there {
			all[j].Figures = &figures[i]
		}
	}
	return all
}

func (d *Daemon) openServers(ctx context.Context, now time.Time) {
	w := &d.servers
	w.tried = now
	if w.servers, w.err = d.opts.Kernel.Host.OpenServers(d.cfg.Servers.config()); w.err != nil {
		w.servers = nil
		return
	}
	ctx, w.stop = context.WithCancel(ctx)
	running := w.servers
	d.tasks.Go(func() error { return running.Run(ctx) })
}

// useServers has real servers asked as cfg says, if that is something else.
func (d *Daemon) useServers(was, is *ServersConfig) {
	if reflect.DeepEqual(was, is) {
		return
	}
	if d.servers.servers != nil {
		d.servers.stop()
	}
	d.servers = serversWatch{} // the next look opens it as it is to be
}

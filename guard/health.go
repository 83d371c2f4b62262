package guard

import (
	"fmt"
	"time"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

const (
	// healthWindow and healthLimit bound what is written of health checks: a
	// switch that dies takes every real server with it.
	healthWindow = time.Minute
	healthLimit  = 50
)

// health bounds what is written of health checks.
type health struct {
	since   time.Time
	written int
	left    int // out of the journal
}

// noteHealth writes down what keepalived's health checks say of servers.
func (d *Daemon) noteHealth(now time.Time, e keepalived.Event) {
	if e.Kind != keepalived.KindVirtualServer && e.Kind != keepalived.KindRealServer {
		return
	}
	d.noteHealthLeftOut(now)
	if d.health.written++; d.health.written > healthLimit {
		d.health.left++
		return
	}
	entry := Entry{Event: EventHealth, Service: serverName(e.VirtualServer), To: string(e.State), Reason: "its quorum of real servers, by keepalived's health checks"}
	if e.Kind == keepalived.KindRealServer {
		entry.Server = serverName(e.RealServer)
		entry.Reason = "by keepalived's health check"
	}
	d.opts.Log.Warn("health", "service", entry.Service, "server", entry.Server, "to", entry.To)
	d.note(now, entry)
}

// noteHealthLeftOut begins a window where the last one is over, and writes down
// how much was left out of that.
func (d *Daemon) noteHealthLeftOut(now time.Time) {
	if now.Sub(d.health.since) < healthWindow {
		return
	}
	left := d.health.left
	d.health = health{since: now}
	if left > 0 {
		d.note(now, Entry{Event: EventHealth, Reason: fmt.Sprintf("%d more changes within %s: see keepalived's log", left, healthWindow)})
	}
}

// serverName writes a server of keepalived's as ours are written.
func serverName(s keepalived.Server) string {
	if s.Group != "" {
		return "group " + s.Group
	}
	return keyOf(s).String()
}

// keyOf is the service that IPVS has for a server of keepalived's.
func keyOf(s keepalived.Server) ipvs.Key {
	k := ipvs.Key{Addr: s.Addr, Mark: s.Mark}
	if s.Mark == 0 {
		switch s.Protocol {
		case "udp":
			k.Protocol = ipvs.UDP
		case "sctp":
			k.Protocol = ipvs.SCTP
		default:
			k.Protocol = ipvs.TCP
		}
	}
	return k
}

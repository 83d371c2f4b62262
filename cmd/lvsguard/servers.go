package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/guard/serve"
)

// serversJSON is the output of servers --json.
type serversJSON struct {
	Time time.Time `json:"time"`
	// Servers are in the order of their addresses; null where IPVS is not known.
	Servers []guard.RealServer      `json:"servers"`
	Unknown map[guard.Source]string `json:"unknown"`
}

func newServersJSON(s *guard.Status) *serversJSON {
	out := &serversJSON{Time: s.Time, Servers: s.Servers, Unknown: make(map[guard.Source]string)}
	for _, src := range []guard.Source{guard.SourceIPVS, guard.SourceServers} {
		if why := s.Unknown[src]; why != "" {
			out.Unknown[src] = why
		}
	}
	if s.Role == guard.RoleHost {
		out.Unknown[guard.SourceIPVS] = "this host is no director (role: host)"
	}
	return out
}

func (a *app) serversCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "servers",
		Short: "Real servers, and the pressure that they say they are under",
		Long: `Show a line for each real server that IPVS has, the worst first: connections
(ActiveConn and InActConn), SYN cookies that it sent, took and refused a second,
connections and SYNs that it dropped because a queue was full, its fullest accept
queue, and how much of its memory is used. The figures are the server's own, from
node_exporter or lvsguard there, where the configuration says (servers.metrics).
? is "not known". Below the table: since when and why, and which servers
keepalived's health checks have taken out.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := serve.NewClient(a.socket).Status(cmd.Context())
			if err != nil {
				return err
			}
			out := newServersJSON(s)
			if asJSON {
				return a.printJSON(out)
			}
			writeServers(a.out, out, time.Now())
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

var serverColumns = []column{
	{"SERVER", 15, false}, {"ACT", 5, true}, {"INACT", 5, true}, {"SENT/s", 6, true}, {"TAKEN/s", 7, true}, {"FALSE/s", 7, true},
	{"OVFLOW/s", 8, true}, {"DROP/s", 6, true}, {"QUEUE", 5, true}, {"MEM", 4, true},
}

func writeServers(w io.Writer, s *serversJSON, now time.Time) {
	for _, src := range []guard.Source{guard.SourceIPVS, guard.SourceServers} {
		if why := s.Unknown[src]; why != "" {
			fmt.Fprint(w, wrap(fmt.Sprintf("unknown, %s: %s", src, why), ""))
		}
	}
	if len(s.Servers) == 0 {
		if len(s.Unknown) == 0 {
			fmt.Fprintln(w, "no real servers")
		}
		return
	}
	servers := slices.Clone(s.Servers)
	slices.SortStableFunc(servers, func(a, b guard.RealServer) int { return cmp.Compare(serverRank(a), serverRank(b)) })
	rows := make([][]string, 0, len(servers))
	for _, rs := range servers {
		f := rs.Figures
		if f == nil {
			f = &pressure.Server{}
		}
		active, inactive := connectionsOf(rs)
		rows = append(rows, []string{
			rs.Address.String(), countOr(active), countOr(inactive),
			perSecond(f.SyncookiesSent), perSecond(f.SyncookiesReceived), perSecond(f.SyncookiesFailed),
			perSecond(f.ListenOverflows), perSecond(f.ListenDrops), shareOr(f.AcceptQueueShare), shareOr(memoryUsed(f)),
		})
	}
	writeTable(w, serverColumns, rows, func(i int) string {
		if serverRank(servers[i]) == 0 {
			return yellow
		}
		return ""
	})
	var notes strings.Builder
	for _, rs := range servers {
		if texts := slices.Concat(serverTroubles(rs), serverUnknown(rs, now)); len(texts) > 0 {
			notes.WriteString(wrap(rs.Address.String()+": "+strings.Join(texts, "; "), "  "))
		}
	}
	if notes.Len() > 0 {
		fmt.Fprint(w, "\n", notes.String())
	}
	if !slices.ContainsFunc(servers, func(rs guard.RealServer) bool { return rs.Figures != nil }) && s.Unknown[guard.SourceServers] == "" {
		fmt.Fprint(w, "\n", wrap("real servers are not asked for their figures: put URLs under servers.metrics in the configuration", ""))
	}
}

// serverRank puts servers in trouble before those of which nothing is known, and
// these before the others.
func serverRank(rs guard.RealServer) int {
	switch {
	case len(serverTroubles(rs)) > 0:
		return 0
	case rs.Figures != nil && rs.Figures.Unknown != "":
		return 1
	}
	return 2
}

// connectionsOf adds up a server's connections over its services; nil where it
// has none of them any more.
func connectionsOf(rs guard.RealServer) (active, inactive *uint64) {
	for _, at := range rs.Services {
		if at.Removed {
			continue
		}
		active = new(*cmp.Or(active, new(uint64)) + uint64(*at.Active))
		inactive = new(*cmp.Or(inactive, new(uint64)) + uint64(*at.Inactive))
	}
	return active, inactive
}

func perSecond(c *pressure.ServerCount) string {
	if c == nil {
		return unknownMark
	}
	return shortOr(c.PerSecond)
}

func memoryUsed(f *pressure.Server) *float64 {
	if f.MemoryAvailable == nil || f.MemoryTotal == nil || *f.MemoryTotal == 0 {
		return nil
	}
	return new(1 - float64(*f.MemoryAvailable)/float64(*f.MemoryTotal))
}

const (
	// fullQueue and fullMemory are the shares from which on a server's are
	// trouble.
	fullQueue  = 0.9
	fullMemory = 0.9
	// falseACKs a second are more than the stray ones that every server gets.
	falseACKs = 10
)

// serverTroubles say what is wrong with a real server.
func serverTroubles(rs guard.RealServer) []string {
	var texts []string
	if f := rs.Figures; f != nil {
		for _, c := range []struct {
			count *pressure.ServerCount
			over  float64
			text  string
		}{
			{f.ListenOverflows, 0, "accept queue overflows"},
			{f.RequestQueueFullDrops, 0, "SYNs dropped, with a full queue and SYN cookies off"},
			{f.SyncookiesSent, 0, "SYN cookies sent"},
			{f.SyncookiesFailed, falseACKs, "ACKs that answer no cookie of it"},
			{f.ListenDrops, 0, "drops at listening sockets"},
		} {
			if c.count != nil && c.count.PerSecond != nil && *c.count.PerSecond > c.over {
				texts = append(texts, fmt.Sprintf("%s/s %s", short(*c.count.PerSecond), c.text))
			}
		}
		if f.AcceptQueueShare != nil && *f.AcceptQueueShare >= fullQueue {
			texts = append(texts, "an accept queue is "+shareOr(f.AcceptQueueShare)+" full")
		}
		if used := memoryUsed(f); used != nil && *used >= fullMemory {
			texts = append(texts, "its memory is "+shareOr(used)+" used")
		}
	}
	var removed []string
	for _, at := range rs.Services {
		if at.Removed {
			removed = append(removed, at.Service.String())
		}
	}
	if n := len(removed); n > 0 {
		more := ""
		if n > 2 {
			more = fmt.Sprintf(" and %d more", n-2)
		}
		texts = append(texts, "removed by health check from "+strings.Join(removed[:min(n, 2)], ", ")+more)
	}
	return texts
}

// serverUnknown says why nothing is known of a real server.
func serverUnknown(rs guard.RealServer, now time.Time) []string {
	f := rs.Figures
	if f == nil || f.Unknown == "" {
		return nil
	}
	if f.UnknownSince == nil {
		return []string{"unknown: " + f.Unknown}
	}
	return []string{fmt.Sprintf("unknown for %s: %s", span(now.Sub(*f.UnknownSince)), f.Unknown)}
}

// maxServerNotes is how many real servers status has a line for.
const maxServerNotes = 8

// serverNotes are the lines of status about real servers.
func serverNotes(s *guard.Status) []string {
	var notes []string
	silent := 0
	for _, rs := range s.Servers {
		if texts := serverTroubles(rs); len(texts) > 0 {
			notes = append(notes, "real server "+rs.Address.String()+": "+strings.Join(texts, "; "))
		}
		if rs.Figures != nil && rs.Figures.Unknown != "" {
			silent++
		}
	}
	if n := len(notes) - maxServerNotes; n > 0 {
		notes = append(notes[:maxServerNotes], fmt.Sprintf("and %d more real servers in trouble (lvsguard servers)", n))
	}
	if silent > 0 {
		notes = append(notes, fmt.Sprintf("unknown, the figures of %d of %d real servers (lvsguard servers)", silent, len(s.Servers)))
	}
	return notes
}

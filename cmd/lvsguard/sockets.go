package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard/pressure"
)

// socketsTimeout is for more sockets than a host can have.
const socketsTimeout = time.Minute

func (a *app) socketsCommand() *cobra.Command {
	var by string
	var asJSON bool
	c := &cobra.Command{
		Use:   "sockets",
		Short: "This host's TCP sockets: by state, port, remote address, queue",
		Long: `Count this host's TCP sockets, asked of the kernel by sock_diag. No guard is
needed. --by state: incoming and outgoing connections in each state. --by listen:
incoming ones by the address and port that they came to, with their round-trip
times. --by remote: by the address of the other side where that is in a segment
of this host's own, all others together (~nonlocal). --by queue: how full the
accept queue of each listening address is, and the connections whose data waits.
--json has all of it.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			write, known := socketScreens()[by]
			if !known {
				return usageError{fmt.Errorf("--by %s: want state, listen, remote or queue", by)}
			}
			s, err := readSockets(cmd.Context(), asJSON || by == "listen")
			switch {
			case err != nil:
				return err
			case asJSON:
				return a.printJSON(s)
			}
			write(a.out, s)
			return nil
		},
	}
	c.Flags().StringVar(&by, "by", "state", "state, listen, remote or queue")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// socketScreens are what --by can be.
func socketScreens() map[string]func(io.Writer, *pressure.Sockets) {
	return map[string]func(io.Writer, *pressure.Sockets){
		"state": writeSocketStates, "listen": writeSocketListeners, "remote": writeSocketRemotes, "queue": writeSocketQueues,
	}
}

func readSockets(ctx context.Context, rtt bool) (*pressure.Sockets, error) {
	reader, err := pressure.OpenSockets(pressure.SocketsConfig{})
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(ctx, socketsTimeout)
	defer cancel()
	s := reader.Read(ctx, pressure.SocketsAsk{Connections: true, RTT: rtt})
	if s.Connections == nil {
		return nil, errors.New(s.Unknown["connections"])
	}
	return &s, nil
}

// maxSocketRows is what fits a screen; --json has them all.
const maxSocketRows = 20

// writeSocketRows writes a table, or as much of it as fits a screen.
func writeSocketRows(w io.Writer, columns []column, rows [][]string) {
	if len(rows) == 0 {
		return // the line above says so
	}
	writeTable(w, columns, rows[:min(len(rows), maxSocketRows)], nil)
	if n := len(rows) - maxSocketRows; n > 0 {
		fmt.Fprintf(w, "and %d more (--json has them)\n", n)
	}
}

func writeSocketsTotal(w io.Writer, s *pressure.Sockets) {
	c := s.Connections
	fmt.Fprint(w, wrap(fmt.Sprintf("%d connections: %d in, %d out; %d addresses are listened on", c.All().Connections, c.In.Connections, c.Out.Connections, len(s.Listeners)), ""))
}

func writeSocketStates(w io.Writer, s *pressure.Sockets) {
	writeSocketsTotal(w, s)
	c := s.Connections
	all := c.All()
	if all.Connections == 0 {
		return
	}
	var states []int
	for state, n := range all.States {
		if n > 0 {
			states = append(states, state)
		}
	}
	slices.SortStableFunc(states, func(a, b int) int { return cmp.Compare(all.States[b], all.States[a]) })
	var rows [][]string
	for _, state := range states {
		rows = append(rows, []string{
			strings.ReplaceAll(pressure.TCPState(state).String(), "_", " "),
			count(c.In.States[state]), count(c.Out.States[state]), count(all.States[state]),
		})
	}
	queued := func(what string, of func(pressure.Group) pressure.Queued) {
		if of(all).Connections > 0 {
			rows = append(rows, []string{what, count(of(c.In).Connections), count(of(c.Out).Connections), count(of(all).Connections)})
		}
	}
	queued("with data not read yet", func(g pressure.Group) pressure.Queued { return g.Receive })
	queued("with data not acknowledged yet", func(g pressure.Group) pressure.Queued { return g.Send })
	writeSocketRows(w, []column{{"STATE", 32, false}, {"IN", 6, true}, {"OUT", 6, true}, {"ALL", 6, true}}, rows)
}

var seriesColumns = []column{{"CONNS", 6, true}, {"ESTAB", 6, true}, {"SYNRECV", 7, true}, {"TIMEWT", 6, true}}

func seriesCells(s pressure.Series) []string {
	return []string{
		s.Name, count(s.Connections), count(s.States[pressure.StateEstablished]),
		count(s.States[pressure.StateSynReceived]), count(s.States[pressure.StateTimeWait]),
	}
}

func writeSocketListeners(w io.Writer, s *pressure.Sockets) {
	writeSocketsTotal(w, s)
	columns := slices.Concat([]column{{"LISTENING", 22, false}}, seriesColumns, []column{{"RTT p50", 8, true}, {"p99", 8, true}})
	var rows [][]string
	for _, l := range s.Connections.Listening {
		cells := append(seriesCells(l), "-", "-")
		if l.RTT != nil {
			cells[5], cells[6] = milliseconds(l.RTT.P50), milliseconds(l.RTT.P99)
		}
		rows = append(rows, cells)
	}
	writeSocketRows(w, columns, rows)
}

func milliseconds(ms float64) string {
	if ms < 1 {
		return fmt.Sprintf("%.2fms", ms)
	}
	return short(ms) + "ms"
}

func writeSocketRemotes(w io.Writer, s *pressure.Sockets) {
	writeSocketsTotal(w, s)
	if why := s.Unknown["remotes"]; why != "" {
		fmt.Fprint(w, wrap("unknown, which addresses are of this host's own segments: "+why, ""))
		return
	}
	columns := slices.Concat([]column{{"REMOTE", 22, false}}, seriesColumns, []column{{"SEND-Q", 7, true}, {"RECV-Q", 7, true}})
	// Those that are not one address come last and would be cut off.
	remotes := slices.Clone(s.Connections.Remotes)
	slices.SortStableFunc(remotes, func(a, b pressure.Series) int {
		return cmp.Compare(b.Connections, a.Connections)
	})
	var rows [][]string
	for _, r := range remotes {
		rows = append(rows, append(seriesCells(r), short(float64(r.Send.Bytes))+"B", short(float64(r.Receive.Bytes))+"B"))
	}
	writeSocketRows(w, columns, rows)
}

func writeSocketQueues(w io.Writer, s *pressure.Sockets) {
	writeSocketsTotal(w, s)
	waiting := make(map[string]pressure.Group, len(s.Connections.Listening))
	for _, l := range s.Connections.Listening {
		waiting[l.Name] = l.Group
	}
	var rows [][]string
	for _, l := range s.Listeners {
		g := waiting[l.Name]
		rows = append(rows, []string{
			l.Name, count(l.Sockets), count(l.Queue), count(l.Limit), fmt.Sprintf("%.0f%%", 100*l.Share()),
			count(g.Receive.Connections), count(g.Send.Connections),
		})
	}
	writeSocketRows(w, []column{
		{"LISTENING", 28, false}, {"SOCKETS", 7, true}, {"QUEUE", 6, true}, {"LIMIT", 6, true}, {"SHARE", 5, true}, {"UNREAD", 6, true}, {"UNACKED", 7, true},
	}, rows)
	if len(rows) == 0 {
		return
	}
	fmt.Fprint(w, wrap("QUEUE is connections that the program has not accepted yet; UNREAD and UNACKED are connections whose data waits for the program, or for the other side", ""))
}

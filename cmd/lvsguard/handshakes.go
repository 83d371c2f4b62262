package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
)

// handshakesJSON is the output of handshakes --json.
type handshakesJSON struct {
	Filters []handshake.Figures `json:"filters"`
	Capture captureJSON         `json:"capture"`
}

// captureJSON adds to a capture's figures where it was and how long it took.
type captureJSON struct {
	guard.Capture
	From  *time.Time `json:"from"` // null: no packet
	To    *time.Time `json:"to"`
	Files []string   `json:"files,omitempty"`
}

// handshakes is what the command of that name was asked for.
type handshakes struct {
	interfaces, files []string
	filters, local    []string
	timeout, duration time.Duration
	capacity          int
	visibility        string
	json, events      bool
	tcpeek            bool
}

func (a *app) handshakesCommand() *cobra.Command {
	var h handshakes
	c := &cobra.Command{
		Use:   "handshakes [-i IF]… | -r FILE…",
		Short: "How TCP handshakes end, on the wire or in captures",
		Long: `Count how TCP handshakes end: completed (and of those, with a retransmitted SYN
or SYN/ACK), refused by RST, unreachable by ICMP, timed out, aborted by the
client. Live, until interrupted, from the interfaces that carry the virtual
services' addresses or the default route, or from those given; or from capture
files (pcap, pcapng, also gzipped, - is the standard input). It needs no guard.

A filter is [PROJECT/][NAME]:DIRECTION@PEER[:PORT…][,PEER[:PORT…]…]. DIRECTION
is in (this host is the server; tcpeek's RX), out (the client; TX) or any. PEER
is the other end: an address, a prefix, or %; IPv6 stands in brackets. PORTs
are the server's. Without a NAME, what matches is left out everywhere.`,
		Example: `  lvsguard handshakes
  lvsguard handshakes -i eth0 --filter web:in@%:80:443 --filter shop/api:out@192.0.2.0/24:443
  lvsguard handshakes -r before.pcap.gz -r after.pcapng --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && len(h.files) == 0 {
				return usageError{fmt.Errorf("unexpected argument %q (files come after -r)", args[0])}
			}
			h.files = append(h.files, args...)
			return a.handshakes(cmd.Context(), &h)
		},
	}
	f := c.Flags()
	f.StringArrayVarP(&h.interfaces, "interface", "i", nil, "interface to watch, or any; may be given again")
	f.StringArrayVarP(&h.files, "read", "r", nil, "capture file to read instead; may be given again")
	f.StringArrayVar(&h.filters, "filter", nil, "count this apart; may be given again")
	f.StringArrayVar(&h.local, "local", nil, "with -r: address or prefix that was the host's own; may be given again")
	f.DurationVar(&h.timeout, "timeout", handshake.DefaultTimeout, "when an attempt of which nothing is heard has failed")
	f.DurationVar(&h.duration, "for", 0, "end after this time (default: when interrupted)")
	f.IntVar(&h.capacity, "capacity", handshake.DefaultCapacity, "attempts that may be pending, at 64 bytes each (memory is for the next power of two)")
	f.StringVar(&h.visibility, "visibility", string(handshake.Auto), "both: servers' answers pass here; client: they do not, as on a DR or TUN director; auto: decide by what is seen")
	f.BoolVar(&h.json, "json", false, "print JSON at the end")
	f.BoolVar(&h.events, "events", false, "print a line for each handshake that ends")
	f.BoolVar(&h.tcpeek, "tcpeek", false, "print tcpeek's summary at the end")
	return c
}

// check tells what of the flags does not go together.
func (h *handshakes) check() error {
	switch captures := len(h.files) > 0; {
	case h.json && h.tcpeek:
		return errors.New("--json and --tcpeek: choose one")
	case captures && len(h.interfaces) > 0:
		return errors.New("-r and -i: choose captures or interfaces")
	case captures && h.duration != 0:
		return errors.New("--for is for interfaces: captures end by themselves")
	case !captures && len(h.local) > 0:
		return errors.New("--local is for captures (-r): live, the host's own addresses are known")
	case h.timeout <= 0 || h.timeout > handshake.MaxTimeout:
		return fmt.Errorf("--timeout %s: want 1ms to %s", h.timeout, handshake.MaxTimeout)
	case h.capacity <= 0 || h.capacity > handshake.MaxCapacity:
		return fmt.Errorf("--capacity %d: want 1 to %d", h.capacity, handshake.MaxCapacity)
	case h.duration < 0:
		return fmt.Errorf("--for %s: want a duration above 0", h.duration)
	}
	return nil
}

// choice is what the flags say of filters and addresses.
func (h *handshakes) choice() (handshake.Choice, error) {
	var c handshake.Choice
	for _, text := range h.filters {
		f, err := handshake.ParseFilter(text)
		if err != nil {
			return c, usageError{err}
		}
		c.Filters = append(c.Filters, f)
	}
	if h.tcpeek {
		c.Filters = withTcpeeks(c.Filters)
	}
	if err := c.Validate(); err != nil {
		return c, usageError{err}
	}
	var local []netip.Prefix
	for _, text := range h.local {
		p, err := handshake.ParsePrefix(text)
		if err != nil {
			return c, usageError{fmt.Errorf("--local: %w: want an address or a prefix", err)}
		}
		local = append(local, p)
	}
	if len(local) > 0 {
		c.Local = func(a netip.Addr) bool {
			for _, p := range local {
				if p.Contains(a) {
					return true
				}
			}
			return false
		}
	}
	return c, nil
}

// withTcpeeks puts before the filters the two that tcpeek always has.
func withTcpeeks(filters []handshake.Filter) []handshake.Filter {
	all := []handshake.Filter{
		{Name: "RX", Rules: []handshake.Rule{{Direction: handshake.In}}},
		{Name: "TX", Rules: []handshake.Rule{{Direction: handshake.Out}}},
	}
	all = slices.DeleteFunc(all, func(f handshake.Filter) bool {
		return slices.ContainsFunc(filters, func(g handshake.Filter) bool { return f.Name == g.Name })
	})
	return append(all, filters...)
}

func (a *app) handshakes(ctx context.Context, h *handshakes) error {
	if err := h.check(); err != nil {
		return usageError{err}
	}
	visibility, err := handshake.ParseVisibility(h.visibility)
	if err != nil {
		return usageError{err}
	}
	choice, err := h.choice()
	if err != nil {
		return err
	}
	cfg := handshake.Config{Timeout: h.timeout, Capacity: h.capacity, Choice: choice}
	var events *eventWriter
	if h.events {
		events = &eventWriter{out: bufio.NewWriter(a.out), json: h.json}
		cfg.Events = events.write
	}
	var result handshakesJSON
	if len(h.files) > 0 {
		result, err = a.readCaptures(ctx, h, cfg, visibility)
	} else {
		result, err = a.watchHandshakes(ctx, h, cfg, visibility, events)
	}
	if result.Filters == nil {
		return err
	}
	if events != nil {
		events.flush()
	}
	switch {
	case h.json && h.events:
		return errors.Join(err, json.NewEncoder(a.out).Encode(result)) // a line, as the events are
	case h.json:
		return errors.Join(err, a.printJSON(result))
	case h.tcpeek:
		writeTcpeek(a.out, &result)
	default:
		if h.refreshes(a) {
			fmt.Fprint(a.out, clearScreen)
		}
		writeHandshakes(a.out, &result)
		if len(h.files) > 0 && len(h.local) == 0 && directed(choice.Filters) {
			fmt.Fprint(a.out, wrap("in and out (RX and TX) match both ways: a capture does not say which addresses are the host's own, --local does", ""))
		}
	}
	return err
}

// refreshes tells whether the figures are shown each second while they are
// counted.
func (h *handshakes) refreshes(a *app) bool {
	return len(h.files) == 0 && !h.events && !h.json && !h.tcpeek && isTerminal(a.out)
}

// directed tells whether a filter asks which end is local.
func directed(filters []handshake.Filter) bool {
	return slices.ContainsFunc(filters, func(f handshake.Filter) bool {
		return slices.ContainsFunc(f.Rules, func(r handshake.Rule) bool { return r.Direction != handshake.Any })
	})
}

// An eventWriter prints the ends of handshakes, for all workers.
type eventWriter struct {
	mu   sync.Mutex
	out  *bufio.Writer
	json bool
}

func (w *eventWriter) write(e handshake.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.json {
		_ = json.NewEncoder(w.out).Encode(e)
		return
	}
	fmt.Fprintf(w.out, "%s %-9s %s > %s %.6fs syn+%d syn/ack+%d\n", e.Opened.Format("2006-01-02T15:04:05.000000Z"),
		e.Outcome, e.Client, e.Server, e.Took.Seconds(), e.DupSYN, e.DupSYNACK)
}

func (w *eventWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out.Flush()
}

// readCaptures counts what is in the files, one after the other.
func (a *app) readCaptures(ctx context.Context, h *handshakes, cfg handshake.Config, visibility handshake.Visibility) (result handshakesJSON, err error) {
	cfg.HugePages = true // captures are read as fast as can be
	t, err := handshake.New(cfg)
	if err != nil {
		return result, usageError{err}
	}
	c := captureFiles{tracker: t, segments: make([]capture.Segment, 128), progress: a.newProgress()}
	defer c.progress.end()
	for _, name := range h.files {
		if err = c.read(ctx, name); err != nil {
			if name == "-" {
				name = "standard input"
			}
			err = fmt.Errorf("%s: %w", name, err)
			break
		}
	}
	if c.opened == 0 {
		return result, err
	}
	if c.last != 0 {
		t.Expire(c.latest)
		from, to := time.Unix(0, c.first).UTC(), time.Unix(0, c.last).UTC()
		result.Capture.From, result.Capture.To = &from, &to
	}
	result.Filters = t.Snapshot(visibility)
	result.Capture.Report = c.stats.Report()
	result.Capture.Files = h.files[:c.opened]
	return result, err
}

// captureFiles reads captures into a tracker.
type captureFiles struct {
	tracker  *handshake.Tracker
	segments []capture.Segment
	progress *progress
	stats    capture.Stats
	opened   int
	// Times of segments: the least, the greatest, and that of the latest one,
	// which is less than the greatest where captures are in the wrong order.
	first, last, latest int64
}

func (c *captureFiles) read(ctx context.Context, name string) error {
	file := os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return errors.Unwrap(err) // the caller says the name
		}
		defer f.Close()
		file = f
	}
	var size int64
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	r, err := capture.NewReader(file)
	if err != nil {
		return err
	}
	c.opened++
	defer func() { c.stats.Add(r.Stats()) }()
	for {
		n, err := r.Read(c.segments)
		c.take(c.segments[:n])
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return errors.New("interrupted: what came before was counted")
		}
		c.progress.show(r.Offset(), size, func() string {
			return fmt.Sprintf("%s, %s packets", name, short(float64(r.Stats().Handed)))
		})
	}
}

func (c *captureFiles) take(segments []capture.Segment) {
	for i := range segments {
		at := segments[i].Time
		if c.first == 0 || at < c.first {
			c.first = at
		}
		c.last = max(c.last, at)
		c.latest = at
	}
	c.tracker.Observe(0, segments)
}

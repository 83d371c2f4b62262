package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/ipvs"
)

// connsSources is how many sources conns follows at a time.
const connsSources = 1024

// censusJSON is the output of conns --json.
type censusJSON struct {
	By string `json:"by"`
	// Complete: the whole table was counted; else SampledEntries were, and
	// Connections of a row stands for the whole table.
	Complete       bool        `json:"complete"`
	SampledEntries int         `json:"sampled_entries"`
	TotalEntries   *uint64     `json:"total_entries"`
	Templates      int         `json:"sampled_templates"`
	Malformed      int         `json:"malformed_lines"`
	Rows           []censusRow `json:"rows"`
}

type censusRow struct {
	Name        string   `json:"name"`
	Sampled     int      `json:"sampled_entries"`
	Share       *float64 `json:"share"`
	Connections *uint64  `json:"connections"`
	HalfOpen    *uint64  `json:"half_open_connections,omitempty"`
}

func (a *app) connsCommand() *cobra.Command {
	var by string
	var all, force, asJSON bool
	c := &cobra.Command{
		Use:   "conns",
		Short: "The connection table's census: by state, service or source",
		Long: `Count IPVS's connection table from /proc/net/ip_vs_conn. Without --all a sample
of 2000 entries is read, which takes the same time whatever the table's size:
the table comes in the order of a seeded hash, so its beginning is a fair
sample. With --all every entry is read.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch by {
			case "state", "service", "source":
			default:
				return usageError{fmt.Errorf("--by %s: want state, service or source", by)}
			}
			census, err := readCensus(cmd.Context(), by, all, force)
			if err != nil {
				return err
			}
			out := newCensusJSON(census, by)
			if asJSON {
				return a.printJSON(out)
			}
			a.printCensus(out)
			return nil
		},
	}
	c.Flags().StringVar(&by, "by", "state", "state, service or source")
	c.Flags().BoolVar(&all, "all", false, "read the whole table, not a sample")
	c.Flags().BoolVar(&force, "force", false, "with --all: however long it takes on an old kernel")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func readCensus(ctx context.Context, by string, all, force bool) (ipvs.Census, error) {
	client, err := ipvs.Open(ipvs.Config{})
	if err != nil {
		return ipvs.Census{}, err
	}
	defer client.Close()
	cfg := ipvs.CensusConfig{Force: force}
	if !all {
		cfg.Sample = guard.CensusSample
	}
	if by == "source" {
		cfg.KeepSources = connsSources
	}
	// Who may not ask IPVS for its services still gets the shares.
	services, err := client.Services(ctx)
	if err == nil {
		for _, s := range services {
			cfg.Total += s.Connections()
			cfg.Services = append(cfg.Services, s.Key)
		}
	}
	census, err := client.Census(ctx, cfg)
	if tooLarge := new(ipvs.TooLargeError); errors.As(err, &tooLarge) {
		return census, fmt.Errorf("%w: leave --all out, or add --force", err)
	}
	return census, err
}

func newCensusJSON(c ipvs.Census, by string) censusJSON {
	out := censusJSON{
		By: by, Complete: c.Complete, SampledEntries: c.Lines, Templates: c.Templates,
		Malformed: c.Malformed, Rows: []censusRow{},
	}
	if c.TotalKnown {
		out.TotalEntries = &c.Total
	}
	row := func(name string, n int) censusRow {
		r := censusRow{Name: name, Sampled: n}
		if c.Lines > 0 {
			share := float64(n) / float64(c.Lines)
			r.Share = &share
		}
		r.Connections = extrapolated(c, n)
		return r
	}
	switch by {
	case "state":
		for _, state := range slices.Sorted(maps.Keys(c.States)) {
			out.Rows = append(out.Rows, row(state, c.States[state]))
		}
	case "service":
		ofService := func(name string, states map[string]int) {
			n := 0
			for _, m := range states {
				n += m
			}
			r := row(name, n)
			r.HalfOpen = extrapolated(c, states["SYN_RECV"])
			out.Rows = append(out.Rows, r)
		}
		for _, k := range slices.SortedFunc(maps.Keys(c.Services), ipvs.Key.Compare) {
			ofService(k.String(), c.Services[k])
		}
		if len(c.Other) > 0 {
			ofService("other", c.Other)
		}
	case "source":
		for _, s := range c.Sources {
			out.Rows = append(out.Rows, row(s.Prefix.String(), s.AtLeast))
		}
	}
	slices.SortStableFunc(out.Rows, func(x, y censusRow) int { return cmp.Compare(y.Sampled, x.Sampled) })
	return out
}

func extrapolated(c ipvs.Census, n int) *uint64 {
	if v, known := c.Extrapolate(n); known {
		return &v
	}
	return nil
}

// maxCensusRows is what fits a screen; --json has them all.
const maxCensusRows = 20

func (a *app) printCensus(c censusJSON) {
	var head strings.Builder
	switch {
	case c.Complete:
		fmt.Fprintf(&head, "the whole table: %d connections", c.SampledEntries)
	case c.TotalEntries != nil:
		fmt.Fprintf(&head, "a sample: %d of about %d entries; CONNS stands for all", c.SampledEntries+c.Templates, *c.TotalEntries)
	default:
		fmt.Fprintf(&head, "a sample of %d entries; the size of the table is not known", c.SampledEntries+c.Templates)
	}
	if c.Templates > 0 {
		fmt.Fprintf(&head, ", %d persistence templates", c.Templates)
	}
	if c.Malformed > 0 {
		fmt.Fprintf(&head, ", %d lines not understood", c.Malformed)
	}
	fmt.Fprintln(a.out, wrap(head.String(), ""))
	columns := []column{{map[string]string{"state": "STATE", "service": "SERVICE", "source": "SOURCE"}[c.By], 43, false}, {"CONNS", 8, true}, {"SHARE", 6, true}}
	if c.By == "service" {
		columns = append(columns, column{"HALF-OPEN", 10, true})
	}
	var rows [][]string
	for _, r := range c.Rows[:min(len(c.Rows), maxCensusRows)] {
		cells := []string{r.Name, countOr(r.Connections), percent(r.Share)}
		if c.By == "service" {
			cells = append(cells, countOr(r.HalfOpen))
		}
		rows = append(rows, cells)
	}
	writeTable(a.out, columns, rows, nil)
	if n := len(c.Rows) - maxCensusRows; n > 0 {
		fmt.Fprintf(a.out, "and %d more (--json has them)\n", n)
	}
}

package main

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

// countersJSON is the output of counters --json.
type countersJSON struct {
	Since    time.Time             `json:"since"`
	Services []serviceCountersJSON `json:"services"`
	Total    countsJSON            `json:"total"`
	// Passed before anything was counted or dropped.
	Loopback passedJSON `json:"loopback"`
	Allowed  passedJSON `json:"allowed"`
}

type serviceCountersJSON struct {
	Service ipvs.Key `json:"service"`
	countsJSON
	Signatures map[string]passedJSON `json:"signatures"`
}

type countsJSON struct {
	SYNPackets      uint64 `json:"syn_packets"`
	SYNBytes        uint64 `json:"syn_bytes"`
	SuspectPackets  uint64 `json:"suspect_packets"`
	SuspectBytes    uint64 `json:"suspect_bytes"`
	DroppedPackets  uint64 `json:"dropped_packets"`
	DroppedBytes    uint64 `json:"dropped_bytes"`
	FragmentPackets uint64 `json:"fragment_packets"`
	FragmentBytes   uint64 `json:"fragment_bytes"`
}

type passedJSON struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func (a *app) countersCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "counters",
		Short: "Packets and bytes for each service: SYNs, signature hits, drops",
		Long: `Print the totals that the kernel has counted since the guard's table was made.
They are read from the kernel, with the guard alive or dead.`,
		Args: none,
		RunE: func(*cobra.Command, []string) error {
			counters, err := readCounters()
			if err != nil {
				return err
			}
			out := newCountersJSON(counters)
			if asJSON {
				return a.printJSON(out)
			}
			a.printCounters(out)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func readCounters() (nft.Counters, error) {
	table, err := nft.Open(nft.Config{})
	if err != nil {
		return nft.Counters{}, err
	}
	defer table.Close()
	counters, err := table.Counters()
	return counters, withRemedy(err)
}

func newCountersJSON(c nft.Counters) countersJSON {
	out := countersJSON{
		Since: c.Since, Services: []serviceCountersJSON{},
		Loopback: passedJSON(c.Loopback), Allowed: passedJSON(c.Allowed),
	}
	fragments := make(map[netip.Addr]nft.Count)
	for _, at := range slices.SortedFunc(maps.Keys(c.Services), netip.AddrPort.Compare) {
		s := c.Services[at]
		row := serviceCountersJSON{
			Service: ipvs.Key{Protocol: ipvs.TCP, Addr: at},
			countsJSON: countsJSON{
				s.SYN.Packets, s.SYN.Bytes, s.Suspect.Packets, s.Suspect.Bytes,
				s.Dropped.Packets, s.Dropped.Bytes, s.Fragment.Packets, s.Fragment.Bytes,
			},
			Signatures: make(map[string]passedJSON),
		}
		for name, n := range s.Signatures {
			row.Signatures[name] = passedJSON(n)
		}
		out.Services = append(out.Services, row)
		out.Total.add(row.countsJSON)
		// Services of one address show the same fragments: they carry no port.
		fragments[at.Addr()] = s.Fragment
	}
	out.Total.FragmentPackets, out.Total.FragmentBytes = 0, 0
	for _, n := range fragments {
		out.Total.FragmentPackets += n.Packets
		out.Total.FragmentBytes += n.Bytes
	}
	return out
}

func (c *countsJSON) add(o countsJSON) {
	c.SYNPackets += o.SYNPackets
	c.SYNBytes += o.SYNBytes
	c.SuspectPackets += o.SuspectPackets
	c.SuspectBytes += o.SuspectBytes
	c.DroppedPackets += o.DroppedPackets
	c.DroppedBytes += o.DroppedBytes
}

func (c countsJSON) row(name string) []string {
	n := func(v uint64) string { return short(float64(v)) }
	return []string{
		name, n(c.SYNPackets), n(c.SYNBytes), n(c.SuspectPackets), n(c.SuspectBytes),
		n(c.DroppedPackets), n(c.DroppedBytes), n(c.FragmentPackets),
	}
}

func (a *app) printCounters(c countersJSON) {
	fmt.Fprintf(a.out, "since %s\n\n", c.Since.Local().Format(time.RFC3339))
	rows := make([][]string, 0, len(c.Services)+1)
	for _, s := range c.Services {
		rows = append(rows, s.row(s.Service.String()))
	}
	rows = append(rows, c.Total.row("total"))
	writeTable(a.out, []column{
		{"SERVICE", 21, false}, {"SYN", 6, true}, {"BYTES", 6, true}, {"SIG", 6, true}, {"BYTES", 6, true},
		{"DROP", 6, true}, {"BYTES", 6, true}, {"FRAG", 6, true},
	}, rows, nil)
	fmt.Fprintf(a.out, "\npassed before counting: %s from loopback, %s from allowed sources\n",
		short(float64(c.Loopback.Packets)), short(float64(c.Allowed.Packets)))
}

package pressure

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Conntrack is the table of connections that netfilter follows
// (/proc/sys/net/netfilter, /proc/net/stat/nf_conntrack).
type Conntrack struct {
	// InUse is false where the module is not loaded; everything else is then
	// null, and that is as it should be.
	InUse   bool    `json:"in_use"`
	Entries *uint64 `json:"entries"`
	Limit   *uint64 `json:"limit_entries"`
	// Drops are packets dropped because the table was full or memory was short;
	// InsertFailed are entries that were not made, mostly because the same one
	// was made at the same time; EarlyDrops are entries thrown out for new ones.
	Drops        *float64 `json:"drops_per_second"`
	InsertFailed *float64 `json:"insert_failed_per_second"`
	EarlyDrops   *float64 `json:"early_drops_per_second"`
	// Unknown says by key of this object why it is null.
	Unknown map[string]string `json:"unknown,omitempty"`
}

var conntrackColumns = []string{"drop", "insert_failed", "early_drop"}

type conntrackReader struct {
	last [][]uint64
}

func (r *conntrackReader) read(f *files, interval time.Duration) Conntrack {
	const dir = "proc/sys/net/netfilter/"
	c := Conntrack{InUse: true, Unknown: make(map[string]string)}
	why := func(err error, keys ...string) {
		for _, key := range keys {
			c.Unknown[key] = err.Error()
		}
	}
	n, err := f.number(dir + "nf_conntrack_count")
	if notThere(err) {
		r.last = nil
		c.InUse = false
		why(errors.New("not in use: nf_conntrack is not loaded"),
			"entries", "limit_entries", "drops_per_second", "insert_failed_per_second", "early_drops_per_second")
		return c
	}
	if err != nil {
		why(err, "entries")
	} else {
		c.Entries = &n
	}
	if limit, err := f.number(dir + "nf_conntrack_max"); err != nil {
		why(err, "limit_entries")
	} else {
		c.Limit = &limit
	}

	rates, err := r.rates(f, interval)
	for i, into := range []**float64{&c.Drops, &c.InsertFailed, &c.EarlyDrops} {
		key := []string{"drops_per_second", "insert_failed_per_second", "early_drops_per_second"}[i]
		switch {
		case err != nil:
			why(err, key)
		case rates[i] == nil:
			why(errors.New(firstReading), key)
		default:
			*into = rates[i]
		}
	}
	return c
}

func (r *conntrackReader) rates(f *files, interval time.Duration) ([]*float64, error) {
	const name = "proc/thread-self/net/stat/nf_conntrack"
	data, err := f.read(name)
	var now [][]uint64
	if err == nil {
		if now, err = parseColumns(data, conntrackColumns); err != nil {
			err = fmt.Errorf("%s: %w", f.path(name), err)
		}
	}
	if err != nil {
		r.last = nil
		return nil, err
	}
	rates := make([]*float64, len(conntrackColumns))
	// With another number of processors they are not the same ones.
	for i := range rates {
		sum, known := 0.0, len(now) == len(r.last)
		for cpu := range now {
			if !known {
				break
			}
			var rate float64
			rate, known = perSecond(r.last[cpu][i], now[cpu][i], interval)
			sum += rate
		}
		if known {
			rates[i] = &sum
		}
	}
	r.last = now
	return rates, nil
}

// parseColumns reads a file below /proc/net/stat: a line of names, and a line of
// hexadecimal figures for each processor. It returns those of the names that are
// asked for, by processor. The library reads conntrack's by the place of a column
// and refuses one more or fewer; its reader for the others panics where a line
// has more figures than names.
func parseColumns(data []byte, names []string) ([][]uint64, error) {
	header, body, _ := bytes.Cut(data, []byte("\n"))
	index := make([]int, len(names))
	for i, name := range names {
		index[i] = -1
		for j, word := range bytes.Fields(header) {
			if string(word) == name {
				index[i] = j
			}
		}
		if index[i] < 0 {
			return nil, fmt.Errorf("no column %s", name)
		}
	}
	var cpus [][]uint64
	for line := range bytes.Lines(body) {
		words := bytes.Fields(line)
		values := make([]uint64, len(names))
		for i, j := range index {
			if j >= len(words) {
				return nil, fmt.Errorf("line %d has no column %s", len(cpus)+2, names[i])
			}
			var err error
			if values[i], err = strconv.ParseUint(string(words[j]), 16, 64); err != nil {
				return nil, fmt.Errorf("line %d, column %s: %w", len(cpus)+2, names[i], err)
			}
		}
		cpus = append(cpus, values)
	}
	if len(cpus) == 0 {
		return nil, errCut
	}
	return cpus, nil
}

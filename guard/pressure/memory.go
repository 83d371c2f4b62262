package pressure

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/procfs"
)

// Memory is what the kernel says of its memory. All sizes are in bytes. Sources:
// /proc/meminfo, /proc/zoneinfo, /proc/pressure/memory, /proc/vmstat and sysctls.
type Memory struct {
	Total     *uint64 `json:"total_bytes"`
	Available *uint64 `json:"available_bytes"` // MemAvailable: free, and cheap to make free
	Free      *uint64 `json:"free_bytes"`
	Buffers   *uint64 `json:"buffers_bytes"`

	// LowTotal and LowFree are of a 32-bit kernel with high memory: the part
	// that it can use for itself. Elsewhere they are nil.
	LowTotal *uint64 `json:"low_total_bytes"`
	LowFree  *uint64 `json:"low_free_bytes"`

	// KernelTotal is the size of the zones that the kernel allocates from for
	// itself (DMA, DMA32, Normal: not HighMem, not Movable). KernelAvailable is
	// what it can still take there: free pages above the min watermark, and half
	// or more of what is cached, as MemAvailable counts it.
	KernelTotal     *uint64 `json:"kernel_total_bytes"`
	KernelAvailable *uint64 `json:"kernel_available_bytes"`
	Zones           []Zone  `json:"zones"`

	// StallSome and StallFull are the shares of the last 10 s in which some
	// tasks, or all, waited for memory.
	StallSome *float64 `json:"stall_some_share"`
	StallFull *float64 `json:"stall_full_share"`

	OOMKills *uint64 `json:"oom_kills"` // since boot

	// DefenceFree is what IPVS's automatic defence takes for available: free
	// and buffers, high memory too. It acts below DefenceThreshold, amemthresh.
	DefenceFree      *uint64 `json:"defence_free_bytes"`
	DefenceThreshold *uint64 `json:"defence_threshold_bytes"`
	MinFree          *uint64 `json:"min_free_bytes"` // vm.min_free_kbytes

	// Unknown says by key of this object why it is null.
	Unknown map[string]string `json:"unknown,omitempty"`
}

// A Zone is a part of a node's memory. All sizes are in bytes.
type Zone struct {
	Node   uint64 `json:"node"`
	Name   string `json:"name"`
	Kernel bool   `json:"kernel"` // the kernel can take memory from it for itself
	Free   uint64 `json:"free_bytes"`
	// Min, Low and High are the watermarks, without what they are boosted by.
	Min     uint64 `json:"min_bytes"`
	Low     uint64 `json:"low_bytes"`
	High    uint64 `json:"high_bytes"`
	Managed uint64 `json:"managed_bytes"`
	File    uint64 `json:"file_bytes"` // page cache
	// Kept is held back from the kernel's ordinary allocations, for those that
	// can use only this zone.
	Kept uint64 `json:"kept_bytes"`
}

// highMemory says whether there is memory that the kernel cannot use for itself.
func (m Memory) highMemory() bool {
	return slices.ContainsFunc(m.Zones, func(z Zone) bool { return !z.Kernel }) || m.LowTotal != nil
}

func readMemory(f *files, pageSize uint64) Memory {
	m := Memory{Unknown: make(map[string]string)}
	why := func(err error, keys ...string) {
		for _, key := range keys {
			m.Unknown[key] = err.Error()
		}
	}

	var reclaimable *uint64
	if data, err := f.read("proc/meminfo"); err != nil {
		why(err, "total_bytes", "available_bytes", "free_bytes", "buffers_bytes", "low_total_bytes", "low_free_bytes")
	} else {
		reclaimable = m.meminfo(data)
	}

	if data, err := f.read("proc/zoneinfo"); err != nil {
		why(err, "zones", "kernel_total_bytes", "kernel_available_bytes")
	} else if zones, err := parseZones(data, pageSize); err != nil {
		why(fmt.Errorf("%s: %w", f.path("proc/zoneinfo"), err), "zones", "kernel_total_bytes", "kernel_available_bytes")
	} else {
		m.zones(zones, reclaimable)
	}

	if err := m.stalls(f); err != nil {
		why(err, "stall_some_share", "stall_full_share")
	}

	if data, err := f.read("proc/vmstat"); err != nil {
		why(err, "oom_kills")
	} else if m.OOMKills = lineValue(data, "oom_kill"); m.OOMKills == nil {
		why(errors.New("/proc/vmstat has no oom_kill: it needs Linux 4.13"), "oom_kills")
	}

	if m.Free != nil && m.Buffers != nil {
		m.DefenceFree = new(*m.Free + *m.Buffers)
	} else {
		m.Unknown["defence_free_bytes"] = "free or buffers are not known"
	}
	if pages, err := f.number("proc/sys/net/ipv4/vs/amemthresh"); err != nil {
		why(err, "defence_threshold_bytes")
	} else {
		m.DefenceThreshold = new(pages * pageSize)
	}
	if kb, err := f.number("proc/sys/vm/min_free_kbytes"); err != nil {
		why(err, "min_free_bytes")
	} else {
		m.MinFree = new(kb * 1024)
	}
	return m
}

// meminfo takes what is needed of /proc/meminfo, and returns SReclaimable. It is
// ours because the library's reader panics at a line without a value, as a file
// that is cut short ends with, and takes half a number for a whole one.
func (m *Memory) meminfo(data []byte) (reclaimable *uint64) {
	take := func(name string) *uint64 {
		v := lineValue(data, name)
		if v != nil {
			*v *= 1024
		}
		return v
	}
	for _, figure := range []struct {
		key, name string
		into      **uint64
	}{
		{"total_bytes", "MemTotal:", &m.Total},
		{"available_bytes", "MemAvailable:", &m.Available},
		{"free_bytes", "MemFree:", &m.Free},
		{"buffers_bytes", "Buffers:", &m.Buffers},
	} {
		if *figure.into = take(figure.name); *figure.into == nil {
			m.Unknown[figure.key] = "/proc/meminfo has no " + figure.name
		}
	}
	m.LowTotal, m.LowFree = take("LowTotal:"), take("LowFree:")
	for key, v := range map[string]*uint64{"low_total_bytes": m.LowTotal, "low_free_bytes": m.LowFree} {
		if v == nil {
			m.Unknown[key] = "/proc/meminfo does not tell it: this kernel can use all memory for itself"
		}
	}
	return take("SReclaimable:")
}

// lineValue finds the line that begins with a name and returns the number behind
// it.
func lineValue(data []byte, name string) *uint64 {
	for line := range bytes.Lines(data) {
		if word, rest := nextWord(bytes.TrimSuffix(line, []byte("\n"))); string(word) == name {
			value, _ := nextWord(rest)
			if v, ok := parseNumber(value); ok {
				return &v
			}
			return nil
		}
	}
	return nil
}

// stalls reads the pressure-stall information.
func (m *Memory) stalls(f *files) error {
	pfs, err := procfs.NewFS(f.path("proc"))
	if err != nil {
		return err
	}
	psi, err := pfs.PSIStatsForResource("memory")
	if err != nil {
		return err
	}
	if psi.Some == nil || psi.Full == nil {
		return errors.New("/proc/pressure/memory is cut short")
	}
	m.StallSome, m.StallFull = new(psi.Some.Avg10/100), new(psi.Full.Avg10/100)
	return nil
}

// zones takes the zones, and adds up what the kernel can take of them.
//
// The sum is the kernel's own estimate of MemAvailable (mm/show_mem.c,
// si_mem_available) for the zones in question only: free pages above the min
// watermark and above what is kept for others; the page cache but for half of it
// or the low watermark; half of the reclaimable slab, which lies in these zones
// by its nature. Without the cache a long-running 32-bit director would seem to
// be out of low memory for ever, because the cache fills that too.
func (m *Memory) zones(zones []Zone, reclaimable *uint64) {
	m.Zones = zones
	var managed, total, available, file, low uint64
	for _, z := range zones {
		managed += z.Managed
		if !z.Kernel {
			continue
		}
		total += z.Managed
		available += z.Free - min(z.Free, z.Min+z.Kept)
		file += z.File
		low += z.Low
	}
	if m.Total != nil && managed < *m.Total/10*9 {
		for _, key := range []string{"zones", "kernel_total_bytes", "kernel_available_bytes"} {
			m.Unknown[key] = "the zones of /proc/zoneinfo add up to less than MemTotal: it is cut short, or this kernel takes memory up only as it is needed"
		}
		m.Zones = nil
		return
	}
	m.KernelTotal = &total
	if reclaimable == nil {
		m.Unknown["kernel_available_bytes"] = "/proc/meminfo has no SReclaimable:"
		return
	}
	available += file - min(file/2, low) + *reclaimable - min(*reclaimable/2, low)
	m.KernelAvailable = new(min(available, total))
}

// zoneFields are the lines of a zone that are needed, all of which every kernel
// since 4.8 writes.
const (
	zoneFree = 1 << iota
	zoneMin
	zoneLow
	zoneHigh
	zoneManaged
	zoneInactiveFile
	zoneActiveFile
	zoneProtection
	zoneAll = 1<<iota - 1
	// zoneBoost is there since 5.16.
	zoneBoost = 1 << iota
)

// parseZones reads /proc/zoneinfo; zones without memory are left out. The
// library has a reader too, without the page cache of a zone, and with a regular
// expression for each of thousands of lines on a large machine.
func parseZones(data []byte, pageSize uint64) ([]Zone, error) {
	var (
		zones []Zone
		z     *Zone
		names []string // of the node's zones so far
		seen  int
		kept  [][]byte // the present zone's protection against each of the node's zones
		keeps [][][]byte
		boost uint64 // of the present zone
	)
	finish := func() error {
		if z == nil {
			return nil
		}
		if z.Managed > 0 && seen&zoneAll != zoneAll {
			return fmt.Errorf("node %d, zone %s: figures are missing", z.Node, z.Name)
		}
		// What the kernel keeps free for a while because it found the zone
		// fragmented does not hold for what cannot wait, as a connection made
		// for a packet cannot (mm/page_alloc.c, zone_watermark_fast).
		for _, mark := range []*uint64{&z.Min, &z.Low, &z.High} {
			*mark -= min(*mark, boost)
		}
		return nil
	}
	// nodeDone settles what a zone keeps from the kernel's allocations, which
	// are those that begin at Normal: the protection's place is that of Normal
	// among all zones of a node.
	nodeDone := func() error {
		if len(names) == 0 {
			return nil
		}
		if !slices.Contains(names, "Movable") {
			return errors.New("a node has no zone Movable, with which they end: " + errCut.Error())
		}
		normal := slices.Index(names, "Normal")
		for i := range names {
			z := &zones[len(zones)-len(names)+i]
			if z.Kernel && normal >= 0 && normal < len(keeps[i]) {
				pages, ok := parseNumber(keeps[i][normal])
				if !ok {
					return fmt.Errorf("node %d, zone %s: protection %q", z.Node, z.Name, keeps[i][normal])
				}
				z.Kept = pages * pageSize
			}
		}
		names, keeps = names[:0], keeps[:0]
		return nil
	}
	for line := range bytes.Lines(data) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		if header, ok := bytes.CutPrefix(line, []byte("Node ")); ok {
			number, name, ok := bytes.Cut(header, []byte(", zone"))
			node, isNumber := parseNumber(number)
			name = bytes.TrimSpace(name)
			if !ok || !isNumber || len(name) == 0 {
				return nil, fmt.Errorf("line %q", line)
			}
			if err := finish(); err != nil {
				return nil, err
			}
			if z != nil {
				keeps = append(keeps, kept)
				if z.Node != node {
					if err := nodeDone(); err != nil {
						return nil, err
					}
				}
			}
			zones = append(zones, Zone{
				Node: node, Name: string(name),
				Kernel: string(name) != "HighMem" && string(name) != "Movable" && string(name) != "Device",
			})
			z, seen, kept, boost = &zones[len(zones)-1], 0, nil, 0
			names = append(names, z.Name)
			continue
		}
		if z == nil {
			continue
		}
		if err := z.line(line, pageSize, &seen, &kept, &boost); err != nil {
			return nil, err
		}
	}
	if z == nil {
		return nil, errors.New("it names no zone")
	}
	if err := finish(); err != nil {
		return nil, err
	}
	keeps = append(keeps, kept)
	if err := nodeDone(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(zones, func(z Zone) bool { return z.Managed == 0 }), nil
}

// line takes a line of the zone's, and notes what it was in seen.
func (z *Zone) line(line []byte, pageSize uint64, seen *int, kept *[][]byte, boost *uint64) error {
	word, rest := nextWord(line)
	field, into := 0, (*uint64)(nil)
	switch string(word) {
	case "pages": // "pages free 3840"
		if word, rest = nextWord(rest); string(word) != "free" {
			return nil
		}
		field, into = zoneFree, &z.Free
	case "boost":
		field, into = zoneBoost, boost
	case "min":
		field, into = zoneMin, &z.Min
	case "low":
		field, into = zoneLow, &z.Low
	case "high":
		field, into = zoneHigh, &z.High
	case "managed":
		field, into = zoneManaged, &z.Managed
	case "nr_zone_inactive_file":
		field, into = zoneInactiveFile, &z.File
	case "nr_zone_active_file":
		field, into = zoneActiveFile, &z.File
	case "protection:": // "protection: (0, 3017, 8265)"
		*seen |= zoneProtection
		*kept = bytes.Split(bytes.Trim(rest, " ()"), []byte(", "))
		return nil
	default:
		return nil
	}
	if *seen&field != 0 {
		return nil // "high" and "low" again, of a processor's list of pages
	}
	value, _ := nextWord(rest)
	pages, ok := parseNumber(value)
	if !ok || pages > 1<<56/pageSize {
		return fmt.Errorf("node %d, zone %s: line %q", z.Node, z.Name, line)
	}
	*into += pages * pageSize
	*seen |= field
	return nil
}

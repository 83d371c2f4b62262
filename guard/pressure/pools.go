package pressure

import (
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/procfs"
)

// A pool is one of the kernel's smaller tables, with what it holds and may hold.
type pool struct {
	kind        Kind
	name        string
	what        string
	unit        Unit
	used, limit *uint64
	err         error
}

// readPools reads what can overflow besides memory, IPVS and conntrack: the
// neighbour tables, and TCP's memory and orphans. One that this host or this
// namespace does not have is left out.
func readPools(f *files, pageSize uint64) []pool {
	var pools []pool
	for _, table := range []struct{ name, file, limit, family string }{
		{"neighbours IPv4", "arp_cache", "proc/sys/net/ipv4/neigh/default/gc_thresh3", "IPv4"},
		{"neighbours IPv6", "ndisc_cache", "proc/sys/net/ipv6/neigh/default/gc_thresh3", "IPv6"},
	} {
		p := pool{
			kind: KindNeighbours, name: table.name, unit: UnitEntries,
			what: table.family + " neighbours; when it is full, hosts of the own segments that are not in it cannot be reached",
		}
		limit, err := f.number(table.limit)
		if notThere(err) {
			continue // the limit is shown in the first namespace only
		}
		data, readErr := f.read("proc/thread-self/net/stat/" + table.file)
		if notThere(readErr) {
			continue
		}
		if p.err = errors.Join(err, readErr); p.err == nil {
			// Each processor's line has the same number of entries.
			if cpus, err := parseColumns(data, []string{"entries"}); err != nil {
				p.err = fmt.Errorf("/proc/net/stat/%s: %w", table.file, err)
			} else {
				p.used, p.limit = &cpus[0][0], &limit
			}
		}
		pools = append(pools, p)
	}

	memory := pool{
		kind: KindTCPMemory, name: "TCP memory", unit: UnitBytes,
		what: "buffers of all TCP sockets; when it is full, TCP drops data and resets connections",
	}
	orphans := pool{
		kind: KindTCPOrphans, name: "TCP orphans", unit: UnitConnections,
		what: "connections that no process has any more; when it is full, they are reset",
	}
	limits, err := f.numbers("proc/sys/net/ipv4/tcp_mem", 3)
	if notThere(err) {
		return pools
	}
	memory.err = err
	if err == nil {
		memory.limit = new(limits[2] * pageSize)
	}
	if limit, err := f.number("proc/sys/net/ipv4/tcp_max_orphans"); err != nil {
		orphans.err = err
	} else {
		orphans.limit = &limit
	}
	tcp, err := readSockstat(f.path("proc/thread-self"))
	if err != nil {
		memory.err, orphans.err = err, err
	} else {
		memory.used, orphans.used = new(uint64(max(0, *tcp.Mem))*pageSize), new(uint64(max(0, *tcp.Orphan)))
	}
	return append(pools, memory, orphans)
}

// readSockstat reads TCP's line of net/sockstat below a directory of /proc.
func readSockstat(dir string) (procfs.NetSockstatProtocol, error) {
	var tcp, frag procfs.NetSockstatProtocol
	pfs, err := procfs.NewFS(dir)
	if err != nil {
		return tcp, err
	}
	stat, err := pfs.NetSockstat()
	if err != nil {
		return tcp, err
	}
	for _, p := range stat.Protocols {
		switch strings.TrimSpace(p.Protocol) {
		case "TCP":
			tcp = p
		case "FRAG":
			frag = p
		}
	}
	// A line behind TCP's means that TCP's is whole.
	if frag.Protocol == "" || tcp.Mem == nil || tcp.Orphan == nil {
		return tcp, fmt.Errorf("/proc/net/sockstat: %w", errCut)
	}
	return tcp, nil
}

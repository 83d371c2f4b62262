package pressure

// A Trouble is a counter that goes up and should not.
type Trouble struct {
	Counter   string  `json:"counter"`
	PerSecond float64 `json:"per_second"`
	Why       string  `json:"why"` // what it means, in one sentence for people
}

// trouble is what is known of a counter that means trouble.
type trouble struct {
	names []string // by IP version where there are two
	// least is the rate from which on it is worth a word.
	least float64
	// of names a counter of which it must be a part of at least share.
	of    string
	share float64
	why   string
}

// known are the counters that mean trouble, the worst first. What they count is
// in the kernel's Documentation/networking/snmp_counter.rst and, where that is
// silent, in net/ipv4/tcp_input.c, tcp_ipv4.c and inet_connection_sock.c.
var known = []trouble{
	{names: []string{"TcpExtTCPAbortOnMemory"}, why: "connections are reset because TCP's memory (tcp_mem) or the orphans' limit (tcp_max_orphans) is used up"},
	{names: []string{"TcpExtListenOverflows"}, why: "an accept queue is full: a program accepts too slowly or its backlog is too small, and clients wait"},
	{names: []string{"TcpExtTCPReqQFullDrop"}, why: "SYNs are dropped because a listening socket's queue is full and SYN cookies are off"},
	{names: []string{"TcpExtSyncookiesSent"}, why: "a listening socket's queue of half-open connections is full, so that SYNs are answered with cookies"},
	{names: []string{"TcpExtTCPReqQFullDoCookies"}, why: "a listening socket's queue of half-open connections is full, so that SYNs are answered with cookies"},
	{names: []string{"TcpExtSyncookiesFailed"}, why: "ACKs come that answer no cookie of ours: forged, or of connections that took too long"},
	{names: []string{"TcpExtSyncookiesRecv"}, why: "clients come in by SYN cookies: the queue of half-open connections is or was full"},
	{names: []string{"TcpExtListenDrops"}, why: "SYNs or last ACKs of handshakes are dropped at a listening socket: its queue is full, memory is short, or there is no route back"},
	{names: []string{"SoftnetDropped"}, why: "packets are dropped before any protocol saw them: a processor's queue is full (net.core.netdev_max_backlog)"},
	{names: []string{"SoftnetSqueezed"}, least: 10, why: "a processor has more packets than it can take in its turn (net.core.netdev_budget)"},
	{names: []string{"TcpExtTCPBacklogDrop"}, why: "segments are dropped because a program keeps its socket busy and the socket's backlog is full"},
	{names: []string{"TcpExtTCPRcvQDrop"}, why: "data is dropped because a receive buffer is full and TCP's memory is short"},
	{names: []string{"TcpExtPruneCalled"}, why: "receive buffers are full, and the kernel squeezes them"},
	{names: []string{"TcpExtRcvPruned"}, why: "data that had arrived is thrown away, because receive buffers are full"},
	{names: []string{"TcpExtTCPMemoryPressures"}, why: "TCP's memory has come to its pressure mark (tcp_mem): buffers get small"},
	{names: []string{"TcpExtTCPTimeWaitOverflow"}, why: "there are more connections in TIME_WAIT than tcp_max_tw_buckets, and they are cut short"},
	{names: []string{"TcpExtPFMemallocDrop"}, why: "packets are dropped because memory is so short that only the reserve is left"},
	{names: []string{"TcpRetransSegs"}, least: 10, of: "TcpOutSegs", share: 0.03, why: "segments are sent again because no answer came: the network or the other side loses them"},
	{names: []string{"TcpInErrs"}, why: "TCP segments come in damaged"},
	{names: []string{"UdpRcvbufErrors", "Udp6RcvbufErrors"}, why: "UDP packets are dropped because a program reads too slowly or its receive buffer is too small"},
	{names: []string{"UdpMemErrors", "Udp6MemErrors"}, why: "UDP packets are dropped because UDP's memory (udp_mem) is used up"},
	{names: []string{"UdpInErrors", "Udp6InErrors"}, why: "UDP packets are dropped: no buffer, no memory or a wrong checksum"},
	{names: []string{"UdpNoPorts", "Udp6NoPorts"}, least: 10, why: "UDP packets come to ports where nobody listens: a program is down, or a flood of UDP"},
	{names: []string{"UdpSndbufErrors", "Udp6SndbufErrors"}, why: "UDP packets cannot be sent because a send buffer is full"},
	{names: []string{"IpInHdrErrors", "Ip6InHdrErrors"}, why: "IP packets come in with a wrong header, or their TTL has ended: look for a loop"},
	{names: []string{"IpInAddrErrors", "Ip6InAddrErrors"}, least: 10, why: "IP packets come to addresses that are not this host's"},
	{names: []string{"IpInDiscards", "Ip6InDiscards"}, why: "good IP packets are dropped on the way in, mostly because memory is short"},
	{names: []string{"IpOutDiscards", "Ip6OutDiscards"}, why: "good IP packets are dropped on the way out: no memory, no neighbour entry, or a full queue of a card"},
	{names: []string{"IpOutNoRoutes", "Ip6OutNoRoutes"}, least: 10, why: "IP packets cannot be sent because there is no route"},
	{names: []string{"IpReasmFails", "Ip6ReasmFails"}, least: 10, why: "fragments do not become packets: some are lost, or a flood of fragments fills the memory for them"},
	{names: []string{"IcmpOutDestUnreachs", "Icmp6OutDestUnreachs"}, least: 100, why: "many packets come to what is not there, and are answered with \"unreachable\": a scan or a flood"},
}

// troubles picks out the counters that go up and should not.
func troubles(counters []Counter) []Trouble {
	rates := make(map[string]float64)
	for _, c := range counters {
		if c.PerSecond != nil && *c.PerSecond > 0 {
			rates[c.Name] = *c.PerSecond
		}
	}
	found := make([]Trouble, 0)
	for _, k := range known {
		for _, name := range k.names {
			rate := rates[name]
			if rate == 0 || rate < k.least || k.of != "" && rate < k.share*rates[k.of] {
				continue
			}
			found = append(found, Trouble{Counter: name, PerSecond: rate, Why: k.why})
		}
	}
	return found
}

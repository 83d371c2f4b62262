package pressure

import (
	"iter"
	"strings"
	"unicode"
)

// protocols are the beginnings of the names of counters, those before others that
// are the beginning of them too.
var protocols = [...]string{
	"TcpExt", "Tcp", "UdpLite6", "UdpLite", "Udp6", "Udp", "Icmp6", "Icmp", "IpExt", "Ip6", "Ip", "Softnet",
}

// CounterMetric is the name under which lvsguard's own /metrics tells of a counter:
// that of "TcpExtListenDrops" is [MetricListenDrops].
func CounterMetric(counter string) string {
	for _, p := range protocols {
		if rest, ok := strings.CutPrefix(counter, p); ok {
			return "lvsguard_netstat_" + strings.ToLower(p) + "_" + snake(rest) + "_total"
		}
	}
	return "lvsguard_netstat_" + snake(counter) + "_total"
}

// snake writes "TCPReqQFullDrop" as "tcp_req_q_full_drop".
func snake(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		if i > 0 && unicode.IsUpper(r) {
			before, ends := runes[i-1], i+1 < len(runes) && unicode.IsLower(runes[i+1])
			if unicode.IsLower(before) || unicode.IsDigit(before) || ends {
				b.WriteByte('_')
			}
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// traffic are counters that are no trouble, and what trouble is a share of.
var traffic = [...]trouble{
	{names: []string{"TcpActiveOpens"}, why: "connections that this host has begun"},
	{names: []string{"TcpPassiveOpens"}, why: "connections that this host has taken"},
	{names: []string{"TcpAttemptFails"}, why: "connections that have ended before they were established"},
	{names: []string{"TcpEstabResets"}, why: "connections that were established and have ended by a reset"},
	{names: []string{"TcpInSegs"}, why: "TCP segments received"},
	{names: []string{"TcpOutSegs"}, why: "TCP segments sent, without those sent again"},
	{names: []string{"UdpInDatagrams", "Udp6InDatagrams"}, why: "UDP packets received"},
	{names: []string{"IpInReceives", "Ip6InReceives"}, why: "IP packets received"},
}

// Told yields the counters that lvsguard's own /metrics tells of, with what each
// means.
func Told() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, list := range [...][]trouble{known[:], traffic[:]} {
			for _, t := range list {
				for _, name := range t.names {
					if !yield(name, t.why) {
						return
					}
				}
			}
		}
	}
}

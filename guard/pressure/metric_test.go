package pressure

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCounterMetric(t *testing.T) {
	want := map[string]string{
		"TcpExtSyncookiesSent":       MetricSyncookiesSent,
		"TcpExtSyncookiesRecv":       MetricSyncookiesReceived,
		"TcpExtSyncookiesFailed":     MetricSyncookiesFailed,
		"TcpExtListenOverflows":      MetricListenOverflows,
		"TcpExtListenDrops":          MetricListenDrops,
		"TcpExtTCPReqQFullDoCookies": MetricRequestQueueFullCookies,
		"TcpExtTCPReqQFullDrop":      MetricRequestQueueFullDrops,
		"TcpRetransSegs":             "lvsguard_netstat_tcp_retrans_segs_total",
		"TcpExtPFMemallocDrop":       "lvsguard_netstat_tcpext_pf_memalloc_drop_total",
		"Udp6NoPorts":                "lvsguard_netstat_udp6_no_ports_total",
		"UdpLite6InErrors":           "lvsguard_netstat_udplite6_in_errors_total",
		"Icmp6OutType135":            "lvsguard_netstat_icmp6_out_type135_total",
		"SoftnetSqueezed":            "lvsguard_netstat_softnet_squeezed_total",
		"SomethingNew":               "lvsguard_netstat_something_new_total",
	}
	got := make(map[string]string)
	for name := range want {
		got[name] = CounterMetric(name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A page that tells a counter twice would be no page.
func TestTold(t *testing.T) {
	names := make(map[string]string)
	for counter, why := range Told() {
		name := CounterMetric(counter)
		if names[name] != "" {
			t.Errorf("%s and %s have the same name", counter, names[name])
		}
		if names[name] = counter; why == "" {
			t.Errorf("%s without a meaning", counter)
		}
	}
	for _, f := range figureNames {
		if names[f.ours] == "" && f.ours != MetricAcceptQueueShare && f.ours != MetricMemoryAvailable && f.ours != MetricMemoryTotal {
			t.Errorf("nothing is told as %s, and directors look for it", f.ours)
		}
	}
}

package alert

import "fmt"

// A promFigure is what /metrics has of a figure, as PromQL. In its selectors $match
// stands for what a rule matches besides, $window for a rule's window.
type promFigure struct {
	// value is the figure of each of its readings, total what a share is a share of.
	value, total string
	// ofHost says that it is about a host: no sum over hosts means anything.
	ofHost bool
	// ofService says that its metrics have the label service.
	ofService bool
	// server is the label that has the real server; empty: it is not about one.
	// Directors tell the same of real servers.
	server string
	// part says that it has the label part, services or filters, which are summed
	// apart: the attempts of the ones may be those of the others.
	part bool
	// more is what else is worth reading at night.
	more *moreOf
}

// moreOf is a figure beside that of an alert. In its query $labels stands for the
// alert's labels of these names.
type moreOf struct {
	query  string
	labels []string
	format string // a function of Prometheus' templates
	what   string
}

// promFigures has every figure of the catalogue.
func promFigures() map[string]promFigure {
	rate := func(name string) promFigure {
		return promFigure{value: "rate(lvsguard_service_" + name + "{$match}[$window])", ofService: true}
	}
	gauge := func(name string) promFigure {
		return promFigure{value: "lvsguard_service_" + name + "{$match}", ofService: true}
	}
	host := func(value string) promFigure { return promFigure{value: value, ofHost: true} }
	// What a guard was last known to say stands for 10 minutes: a director that dies
	// in a flood does not say that it is over.
	lasting := func(name string) string { return "last_over_time(lvsguard_" + name + "{$match}[10m])" }
	server := func(value string) promFigure {
		return promFigure{
			value:  "label_replace(" + value + `, "server", "$1", "address", "(.*)")`,
			server: "address",
		}
	}
	handshakes := func(name, matchers string) promFigure {
		return promFigure{value: increases(name, matchers), total: increases("outcomes_total", ""), part: true}
	}
	flood := &moreOf{
		query: "sum(rate(lvsguard_service_signature_packets_total{$labels}[1m]))", labels: []string{"project", "service"},
		format: rounded, what: "SYNs a second with a signature",
	}
	return map[string]promFigure{
		"flood": {value: lasting("service_verdict") + " >= bool 2", ofService: true, more: flood},
		"armed": {
			value:     "max without (by) (lvsguard_service_lease_remaining_seconds{by!=\"prearm\"$match} > bool 0)\n  or lvsguard_service_armed{$match} * 0",
			ofService: true,
			more:      &moreOf{query: "sum(rate(lvsguard_service_dropped_packets_total{$labels}[1m]))", labels: flood.labels, format: rounded, what: "SYNs a second dropped"},
		},
		"syn_per_second":        rate("syn_packets_total"),
		"suspect_per_second":    rate("signature_packets_total"),
		"dropped_per_second":    rate("dropped_packets_total"),
		"half_open_connections": gauge("half_open_connections"),
		"active_connections":    gauge("active_connections"),
		"inactive_connections":  gauge("inactive_connections"),
		"completion": {
			value: "increase(lvsguard_service_handshake_outcomes_total{outcome=\"success\"$match}[1m])\n" +
				"  / ignoring (outcome) sum without (outcome) (increase(lvsguard_service_handshake_outcomes_total{$match}[1m]))",
			ofService: true,
		},

		"handshakes_failed":      handshakes("outcomes_total", `outcome!="success"`),
		"handshakes_refused":     handshakes("outcomes_total", `outcome="reject"`),
		"handshakes_unreachable": handshakes("outcomes_total", `outcome="unreach"`),
		"handshakes_timed_out":   handshakes("outcomes_total", `outcome="timeout"`),
		"handshakes_aborted":     handshakes("outcomes_total", `outcome="abort"`),
		"syn_retransmitted":      handshakes("retransmissions_total", `packet="syn"`),
		"synack_retransmitted":   handshakes("retransmissions_total", `packet="synack"`),

		"pressure_level": {
			value: lasting("resource_level"), ofHost: true,
			more: &moreOf{query: "max(lvsguard_resource_share{$labels})", labels: []string{"job", "instance", "kind", "resource"}, format: percentage, what: "used"},
		},
		"pressure_share": host("lvsguard_resource_share{$match}"),
		"kernel_events":  host("increase(lvsguard_kernel_events_total{$match}[5m])"),
		"role_changes":   host("increase(lvsguard_vrrp_role_changes_total{$match}[$window])"),

		"source_unknown": host(lasting("source_unknown")),
		"capture_dropped": {
			value:  "increase(lvsguard_capture_dropped_packets_total{$match}[$window])",
			total:  "increase(lvsguard_capture_handed_packets_total{$match}[$window])\n  + increase(lvsguard_capture_dropped_packets_total{$match}[$window])",
			ofHost: true,
		},
		"automatic_paused": host(lasting("automatic_pause_remaining_seconds") + " > bool 0"),
		"table_losses":     host("increase(lvsguard_table_losses_total{$match}[$window])"),
		"journal_failing":  host(lasting("journal_failing")),
		"config_refused":   host("1 - " + lasting("config_last_reload_successful")),
		// Clocks differ: that none was counted is what tells, and how long ago the last
		// one was says more.
		"look_age_seconds": host("clamp_min(time() - lvsguard_last_tick_timestamp_seconds{$match}, 60)\n" +
			"  * (increase(lvsguard_tick_duration_seconds_count{$match}[1m]) == bool 0)"),
		"look_milliseconds": host("lvsguard_last_tick_duration_seconds{$match} * 1000"),

		"server_silent":                  server("1 - lvsguard_server_up{$match}"),
		"server_syncookies_per_second":   server("rate(lvsguard_server_syncookies_sent_total{$match}[$window])"),
		"server_listen_drops_per_second": server("rate(lvsguard_server_listen_drops_total{$match}[$window])"),
		"server_accept_queue_share":      server("lvsguard_server_accept_queue_share{$match}"),
		"server_memory_share":            server("1 - lvsguard_server_memory_available_share{$match}"),
		"server_removed":                 {value: "lvsguard_server_removed{$match}", server: "server"},
	}
}

// increases are of the services, and of the filters; of everything only on hosts
// that have neither.
func increases(name, matchers string) string {
	and := matchers
	if and != "" {
		and += ","
	}
	return fmt.Sprintf(`label_replace(increase(lvsguard_service_handshake_%[1]s{%[2]s$match}[$window]), "part", "services", "", "")
  or label_replace(increase(lvsguard_handshake_%[1]s{%[3]sfilter!="all"$match}[$window]), "part", "filters", "", "")
  or label_replace(increase(lvsguard_handshake_%[1]s{%[3]sfilter="all"$match}[$window])
    unless on (job, instance) {__name__=~"lvsguard_(service_)?handshake_pending",filter!="all"}, "part", "filters", "", "")`, name, matchers, and)
}

package serve

import (
	dto "github.com/prometheus/client_model/go"

	"github.com/lvsguard/lvsguard/guard/pressure"
)

// A family is the series of one name.
type family struct {
	name   string
	kind   dto.MetricType
	labels string // separated by blanks
	help   string
}

// A group is the families that tell of the same thing.
type group struct {
	title    string
	families []family
}

const (
	counter   = dto.MetricType_COUNTER
	gauge     = dto.MetricType_GAUGE
	summary   = dto.MetricType_SUMMARY
	histogram = dto.MetricType_HISTOGRAM
)

// groups are all that the page can have, but for what client_golang tells of the
// process. docs/metrics.md has the same.
func groups() []group {
	return []group{
		{"The guard itself", []family{
			{"lvsguard_build_info", gauge, "version goversion", "1; which guard this is."},
			{"lvsguard_host_role_info", gauge, "role", "1; director or host, as the configuration says."},
			{"lvsguard_mode", gauge, "mode", "1 for the mode that is in force, observe or auto, and 0 for the other."},
			{"lvsguard_automatic_pause_remaining_seconds", gauge, "", "How long automatic drops still pause, because the table was taken away repeatedly; 0: they do not."},
			{"lvsguard_config_last_reload_successful", gauge, "", "0: the configuration on disk was refused, and the one before it is in force."},
			{"lvsguard_tick_duration_seconds", summary, "", "How long looks at everything took; there is one a second."},
			{"lvsguard_last_tick_duration_seconds", gauge, "", "How long the last look took."},
			{"lvsguard_last_tick_timestamp_seconds", gauge, "", "When the last look was: all that follows is of then."},
			{"lvsguard_apply_failures_total", counter, "", "Changes of the table or of leases that the kernel did not take; each is tried again."},
			{"lvsguard_table_losses_total", counter, "", "Times that somebody else took the table away or changed it, and it was made again."},
			{"lvsguard_journal_lost_entries_total", counter, "", "Entries that could not be written to the journal."},
			{"lvsguard_journal_failing", gauge, "", "1: the last write to the journal failed."},
			{"lvsguard_source_unknown", gauge, "source", "1: the source cannot be read, and what depends on it is not on this page; lvsguard status says why."},
			{"lvsguard_left_out", gauge, "what", "What is not on this page, because there is more than it shows: services, real_servers, addresses (of real servers, with their own word), listeners, vrrp_instances."},
			{"lvsguard_vrrp_state", gauge, "state vrrp_instance", "1 for the state of the VRRP instance (MASTER, BACKUP, FAULT, STOP) and 0 for the others; absent where it is not known."},
			{"lvsguard_vrrp_role_changes_total", counter, "vrrp_instance", "Changes from one known state of the VRRP instance to another."},
		}},
		{"SYNs, verdicts and drops", []family{
			{"lvsguard_services", gauge, "verdict", "Virtual services by verdict; also those that are not on this page one by one."},
			{"lvsguard_armed_services", gauge, "", "Virtual services that have a lease: what bears a signature is dropped."},
			{"lvsguard_declined_services", gauge, "", "Virtual services that an operator has disarmed in auto mode, until what would arm them is over."},
			{"lvsguard_allowed_packets_total", counter, "", "SYNs and TCP fragments to services that came from the allow-list, and are counted nowhere else."},
			{"lvsguard_loopback_packets_total", counter, "", "SYNs and TCP fragments to services that came in on lo, and are counted nowhere else."},
			{"lvsguard_fragment_packets_total", counter, "address", "TCP fragments to the address of a service; most have no port, so that they are of no single service."},
			{"lvsguard_service_info", gauge, "forwarding project service vrrp_instance", "1; the forwarding method of the real servers (mixed, if they differ), the project, and the VRRP instance that has the address."},
			{"lvsguard_service_verdict", gauge, "project service", "0 calm, 1 rising, 2 half-open flood, 3 flood; absent where it is not known."},
			{"lvsguard_service_syn_packets_total", counter, "project service", "SYNs to the service, dropped ones included."},
			{"lvsguard_service_signature_packets_total", counter, "project service signature", "SYNs that bore a signature, by the first that they match, dropped ones included."},
			{"lvsguard_service_dropped_packets_total", counter, "project service", "SYNs and fragments that were dropped."},
			{"lvsguard_service_armed", gauge, "project service", "1: the service has a lease."},
			{"lvsguard_service_lease_remaining_seconds", gauge, "by project service", "How long the lease lasts if it is not renewed; by auto, prearm, operator or restart. Absent where there is none."},
		}},
		{"Handshakes", append(append([]family{},
			handshakeFamilies("lvsguard_handshake", "filter project", "")...),
			handshakeFamilies("lvsguard_service_handshake", "project service", " to the service")...)},
		{"IPVS", []family{
			{"lvsguard_service_active_connections", gauge, "project service", "ActiveConn over the real servers; half-open ones are among them."},
			{"lvsguard_service_inactive_connections", gauge, "project service", "InActConn over the real servers."},
			{"lvsguard_service_persistence_templates", gauge, "project service", "PersistConn over the real servers, one for each client; absent where the service is not persistent."},
			{"lvsguard_service_half_open_connections", gauge, "project service", "Entries in SYN_RECV, estimated from a sample of the connection table."},
			{"lvsguard_service_connections_total", counter, "project service", "Connections scheduled."},
			{"lvsguard_service_in_packets_total", counter, "project service", "Packets from clients."},
			{"lvsguard_service_out_packets_total", counter, "project service", "Packets to clients; absent where answers do not pass this director (DR, TUN)."},
			{"lvsguard_service_in_bytes_total", counter, "project service", "Bytes from clients."},
			{"lvsguard_service_out_bytes_total", counter, "project service", "Bytes to clients; absent where answers do not pass this director (DR, TUN)."},
			{"lvsguard_server_weight", gauge, "server service", "Weight of the real server; 0: it gets no new connections."},
			{"lvsguard_server_removed", gauge, "server service", "1: keepalived's configuration names the real server, and its health check has taken it out. Absent where it is in."},
			{"lvsguard_server_active_connections", gauge, "server service", "ActiveConn of the real server."},
			{"lvsguard_server_inactive_connections", gauge, "server service", "InActConn of the real server."},
			{"lvsguard_server_persistence_templates", gauge, "server service", "PersistConn of the real server; absent where the service is not persistent."},
			{"lvsguard_server_connections_total", counter, "server service", "Connections scheduled to the real server."},
			{"lvsguard_server_in_bytes_total", counter, "server service", "Bytes to the real server."},
			{"lvsguard_server_out_bytes_total", counter, "server service", "Bytes from the real server; absent by DR and TUN."},
			{"lvsguard_ipvs_connections", gauge, "", "Entries of the connection table, without persistence templates."},
			{"lvsguard_ipvs_persistence_templates", gauge, "", "Persistence templates in the connection table."},
			{"lvsguard_ipvs_half_open_share", gauge, "", "Share of the connections that is half-open, 0 to 1, from a sample."},
			{"lvsguard_ipvs_table_bytes", gauge, "", "Memory that the connection table takes."},
			{"lvsguard_ipvs_entry_bytes", gauge, "", "Memory that an entry takes, as the forecast reckons."},
			{"lvsguard_ipvs_free_bytes", gauge, "", "Memory that the connection table can still take."},
			{"lvsguard_ipvs_forecast_entries", gauge, "", "Entries that the connection table comes to at the present rate."},
			{"lvsguard_ipvs_forecast_bytes", gauge, "", "Memory that the connection table comes to at the present rate."},
			{"lvsguard_ipvs_memory_gone_in_seconds", gauge, "", "When the memory for the connection table is gone at the present rate; absent: never."},
		}},
		{"Real servers, by their own word", []family{
			{"lvsguard_server_up", gauge, "address", "1: the real server's exporter has answered; 0: it does not, and what follows is absent."},
			{"lvsguard_server_syncookies_sent_total", counter, "address", "SYN cookies that it sent."},
			{"lvsguard_server_syncookies_received_total", counter, "address", "Good SYN cookies that it received."},
			{"lvsguard_server_syncookies_failed_total", counter, "address", "Bad SYN cookies that it received."},
			{"lvsguard_server_listen_overflows_total", counter, "address", "Connections that found an accept queue full."},
			{"lvsguard_server_listen_drops_total", counter, "address", "SYNs and last ACKs dropped at a listening socket."},
			{"lvsguard_server_accept_queue_share", gauge, "address", "Share of the fullest accept queue, 0 to 1."},
			{"lvsguard_server_memory_available_share", gauge, "address", "Share of its memory that is available, 0 to 1."},
		}},
		{"Pressure", []family{
			{"lvsguard_resource_level", gauge, "kind resource", "0 ok, 1 warning, 2 critical; absent where it is not known."},
			{"lvsguard_resource_share", gauge, "kind resource", "Share of its limit that is used, 0 to 1."},
			{"lvsguard_resource_used_bytes", gauge, "kind resource", "What is used of a resource that is counted in bytes."},
			{"lvsguard_resource_limit_bytes", gauge, "kind resource", "Its limit."},
			{"lvsguard_resource_used_entries", gauge, "kind resource", "What is used of a resource that is counted in entries or connections."},
			{"lvsguard_resource_limit_entries", gauge, "kind resource", "Its limit."},
			{"lvsguard_resource_full_in_seconds", gauge, "kind resource", "When it is full at the present rate; absent: it does not fill, or not within a day."},
			{pressure.MetricMemoryAvailable, gauge, "", "MemAvailable: free, and cheap to make free."},
			{pressure.MetricMemoryTotal, gauge, "", "Memory of this host."},
			{"lvsguard_memory_kernel_available_bytes", gauge, "", "What the kernel can still take for itself."},
			{"lvsguard_memory_kernel_total_bytes", gauge, "", "What the kernel can take for itself in all."},
			{"lvsguard_memory_low_free_bytes", gauge, "", "LowFree, of a 32-bit kernel with high memory."},
			{"lvsguard_memory_low_total_bytes", gauge, "", "LowTotal, of a 32-bit kernel with high memory."},
			{"lvsguard_memory_stall_share", gauge, "tasks", "Share of the last 10 s in which some tasks, or all (full), waited for memory, 0 to 1."},
			{"lvsguard_oom_kills_total", counter, "", "Processes killed because memory was gone, since boot."},
			{"lvsguard_kernel_events_total", counter, "kind", "What the kernel said or did because something had overflowed, since the guard began; kinds are those of lvsguard pressure --json. Absent before the first of a kind while the kernel log cannot be read."},
			{"lvsguard_kernel_log_lost_records_total", counter, "", "Lines of the kernel log that were overwritten before they were read."},
			{"lvsguard_tcp_connections", gauge, "direction state", "TCP connections, in or out, by state; states without any are 0."},
			{"lvsguard_tcp_queued_connections", gauge, "direction queue", "TCP connections with something in their receive or send queue."},
			{"lvsguard_tcp_queued_bytes", gauge, "direction queue", "Bytes in the receive or send queues of TCP connections."},
			{pressure.MetricAcceptQueueShare, gauge, "listener", "Share of the accept queue that is used, 0 to 1."},
			{"lvsguard_listen_accept_queue_connections", gauge, "listener", "Connections that the program has not accepted yet."},
			{"lvsguard_listen_accept_queue_highest_connections", gauge, "listener", "The most that there have been since the guard began."},
			{"lvsguard_listen_accept_queue_limit_connections", gauge, "listener", "The backlog."},
			{"lvsguard_listen_connections", gauge, "listener", "Connections that came to the listener; absent where there are none."},
			{"lvsguard_listen_rtt_seconds", gauge, "listener percentile", "Round-trip times of its connections; only with pressure.rtt."},
		}},
		{"The kernel's protocol counters", counterFamilies()},
		{"The capture", []family{
			{"lvsguard_capture_filter_info", gauge, "filter", "1; ebpf, which hands up only what a handshake needs, or classic, which hands up every TCP segment."},
			{"lvsguard_capture_packets_total", counter, "", "Packets that passed the kernel's filter by; absent with the classic filter, which does not count."},
			{"lvsguard_capture_handed_packets_total", counter, "", "Packets that came to user space."},
			{"lvsguard_capture_dropped_packets_total", counter, "", "Packets that the kernel had no room for: handshake figures are a lower bound."},
			{"lvsguard_capture_other_packets_total", counter, "", "Packets that had nothing to do with TCP."},
			{"lvsguard_capture_copied_packets_total", counter, "", "Forwarded copies of packets that were seen before."},
			{"lvsguard_capture_undecoded_packets_total", counter, "kind", "Packets that could not be read, by kind; absent where there are none of a kind."},
			{"lvsguard_capture_notes", gauge, "", "What was asked to be captured and cannot be; lvsguard status names it."},
		}},
	}
}

// handshakeFamilies are those of filters, or of services. They are apart, so that
// no sum counts an attempt twice.
func handshakeFamilies(prefix, labels, to string) []family {
	return []family{
		{prefix + "_attempts_total", counter, labels, "Attempts at a TCP handshake" + to + ": the sum of outcomes, pending and untracked."},
		{prefix + "_outcomes_total", counter, "outcome " + labels, "Attempts" + to + " that ended, by how: success, reject, unreach, timeout, abort. Absent: it cannot be seen here."},
		{prefix + "_retransmissions_total", counter, "packet result " + labels, "Ended attempts" + to + " that saw a SYN (syn) or SYN/ACK (synack) again, by result (success, failure)."},
		{prefix + "_pending", gauge, labels, "Attempts" + to + " that have not ended."},
		{prefix + "_untracked_total", counter, labels, "Attempts" + to + " that could not be followed to their end: the other figures are a lower bound."},
		{prefix + "_signature_attempts_total", counter, labels, "Attempts" + to + " whose SYN bore a flood's signature and was not dropped."},
		{prefix + "_signature_successes_total", counter, labels, "Those of them that succeeded: what drops by the signature would hit."},
		{prefix + "_screened_packets_total", counter, labels, "SYNs" + to + " that bore a flood's signature and were dropped, and are no attempts."},
		{prefix + "_complete_seconds", histogram, labels, "From SYN to ACK" + to + ", of attempts that succeeded."},
		{prefix + "_answer_seconds", histogram, labels, "From SYN to SYN/ACK" + to + ", the servers' time; absent where answers do not pass here."},
	}
}

// counterFamilies are those of the protocol counters.
func counterFamilies() []family {
	var all []family
	for name, why := range pressure.Told() {
		all = append(all, family{pressure.CounterMetric(name), counter, "", name + ": " + why + "."})
	}
	return all
}

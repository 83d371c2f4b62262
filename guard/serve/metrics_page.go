package serve

import (
	"cmp"
	"maps"
	"runtime"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// The page shows at most so many of each, the first in their order. How many are
// left out stands on it.
const (
	maxPageServices  = 1000
	maxPageServers   = 4000 // by service
	maxPageAddresses = 2000 // of real servers, whose own figures are shown
	maxPageListeners = 200
	maxPageInstances = 100
)

// A page is what is made of a measurement. It is made by hand and not by client_golang's
// collectors, because those look at every series twice: with hundreds of services
// that is most of what a scrape costs.
type page struct {
	families map[string]*dto.MetricFamily
	services map[ipvs.Key][]*dto.LabelPair // project and service
	left     map[string]int                // out, by what
}

// newPage makes the page. What is not known is not on it.
func newPage(m *guard.Measurement) *page {
	p := &page{
		families: make(map[string]*dto.MetricFamily),
		services: make(map[ipvs.Key][]*dto.LabelPair, len(m.Verdicts)),
		left:     map[string]int{"services": 0, "real_servers": 0, "addresses": 0, "listeners": 0, "vrrp_instances": 0},
	}
	for _, g := range groups() {
		for i := range g.families {
			f := &g.families[i]
			p.families[f.name] = &dto.MetricFamily{Name: &f.name, Help: &f.help, Type: &f.kind}
		}
	}
	p.guard(m)
	p.verdicts(m)
	p.handshakes(m)
	p.ipvs(m)
	p.servers(m)
	if m.Pressure != nil && !m.Pressure.Time.IsZero() {
		p.pressure(m)
	}
	p.sockets(m.Sockets)
	p.capture(m.Sample.Capture)
	addEach(p, "lvsguard_left_out", "what", p.left)
	return p
}

// sorted are the families that have series, in the order of their names.
func (p *page) sorted() []*dto.MetricFamily {
	all := make([]*dto.MetricFamily, 0, len(p.families))
	for _, name := range slices.Sorted(maps.Keys(p.families)) {
		if f := p.families[name]; len(f.Metric) > 0 {
			all = append(all, f)
		}
	}
	return all
}

func label(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

// with is labels with more before them.
func with(labels []*dto.LabelPair, more ...*dto.LabelPair) []*dto.LabelPair {
	return append(slices.Clip(more), labels...)
}

// add puts a series of a counter or gauge on the page.
func (p *page) add(name string, value float64, labels ...*dto.LabelPair) {
	f := p.families[name]
	m := &dto.Metric{Label: labels}
	if *f.Type == counter {
		m.Counter = &dto.Counter{Value: &value}
	} else {
		m.Gauge = &dto.Gauge{Value: &value}
	}
	f.Metric = append(f.Metric, m)
}

// addEach puts a series for each key on the page, in their order.
func addEach[K ~string, V int | uint64 | float64](p *page, name, by string, values map[K]V, labels ...*dto.LabelPair) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		p.add(name, float64(values[key]), with(labels, label(by, string(key)))...)
	}
}

// known puts it on the page if it is known.
func known[T uint64 | uint32 | float64](p *page, name string, value *T, labels ...*dto.LabelPair) {
	if value != nil {
		p.add(name, float64(*value), labels...)
	}
}

func (p *page) yes(name string, is bool, labels ...*dto.LabelPair) {
	value := 0.0
	if is {
		value = 1
	}
	p.add(name, value, labels...)
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// first is all, or its beginning where there is more than the page shows.
func first[T any](p *page, what string, all []T, most int) []T {
	if len(all) > most {
		p.left[what] += len(all) - most
		return all[:most]
	}
	return all
}

func (p *page) guard(m *guard.Measurement) {
	p.add("lvsguard_build_info", 1, label("version", m.Version), label("goversion", runtime.Version()))
	p.add("lvsguard_host_role_info", 1, label("role", string(m.Config.Role)))
	for _, mode := range []guard.Mode{guard.Observe, guard.Auto} {
		p.yes("lvsguard_mode", m.Mode == mode, label("mode", string(mode)))
	}
	p.add("lvsguard_automatic_pause_remaining_seconds", remaining(m, m.PausedUntil))
	p.yes("lvsguard_config_last_reload_successful", m.ConfigError == nil)
	p.families["lvsguard_tick_duration_seconds"].Metric = []*dto.Metric{{
		Summary: &dto.Summary{SampleCount: &m.Tally.Ticks, SampleSum: new(m.Tally.TickTime.Seconds())},
	}}
	if m.Tally.Ticks > 0 {
		p.add("lvsguard_last_tick_duration_seconds", m.Tick.Seconds())
		p.add("lvsguard_last_tick_timestamp_seconds", seconds(m.Time))
	}
	p.add("lvsguard_apply_failures_total", float64(m.Tally.Failures))
	p.add("lvsguard_table_losses_total", float64(m.TableLosses))
	p.add("lvsguard_journal_lost_entries_total", float64(m.Journal.Lost))
	p.yes("lvsguard_journal_failing", m.Journal.Error != nil)
	for _, src := range guard.Sources() {
		p.yes("lvsguard_source_unknown", m.Sample.Unknown[src] != "", label("source", string(src)))
	}
	for _, role := range first(p, "vrrp_instances", m.Sample.Roles, maxPageInstances) {
		p.add("lvsguard_vrrp_role_changes_total", float64(role.Changes), label("vrrp_instance", role.Instance))
		if role.State == keepalived.Unknown {
			continue
		}
		for _, state := range []keepalived.State{keepalived.Master, keepalived.Backup, keepalived.Fault, keepalived.Stop} {
			p.yes("lvsguard_vrrp_state", role.State == state, label("state", string(state)), label("vrrp_instance", role.Instance))
		}
	}
}

// remaining is how long it is until then, from the last look; 0 if that was
// before.
func remaining(m *guard.Measurement, until time.Time) float64 {
	return max(0, until.Sub(m.Time).Seconds())
}

// verdictValues are those of lvsguard_service_verdict. The graver, the higher.
var verdictValues = map[guard.State]float64{guard.Calm: 0, guard.Rising: 1, guard.HalfOpenFlood: 2, guard.Flood: 3}

func (p *page) verdicts(m *guard.Measurement) {
	by := map[guard.State]int{guard.Calm: 0, guard.Rising: 0, guard.HalfOpenFlood: 0, guard.Flood: 0, guard.Unknown: 0}
	for _, v := range m.Verdicts {
		by[v.State]++
	}
	addEach(p, "lvsguard_services", "verdict", by)
	p.add("lvsguard_armed_services", float64(len(m.Leases)))
	p.add("lvsguard_declined_services", float64(len(m.Declined)))
	if m.Counted != nil {
		p.add("lvsguard_allowed_packets_total", float64(m.Counted.Allowed.Packets))
		p.add("lvsguard_loopback_packets_total", float64(m.Counted.Loopback.Packets))
	}
	fragments := make(map[string]bool) // addresses that are told of
	for i, v := range first(p, "services", m.Verdicts, maxPageServices) {
		service := label("service", v.Service.String())
		labels := []*dto.LabelPair{service}
		if project := m.Config.ProjectOf(v.Service); project != "" {
			labels = []*dto.LabelPair{label("project", project), service}
		}
		p.services[v.Service] = labels

		sampled := &m.Sample.Services[i]
		info := labels
		if sampled.Forwarding != "" {
			info = with(info, label("forwarding", sampled.Forwarding))
		}
		if v.Role.Instance != "" {
			info = with(info, label("vrrp_instance", v.Role.Instance))
		}
		p.add("lvsguard_service_info", 1, info...)
		if value, ok := verdictValues[v.State]; ok {
			p.add("lvsguard_service_verdict", value, labels...)
		}
		lease, armed := m.Leases[v.Service]
		p.yes("lvsguard_service_armed", armed, labels...)
		if armed {
			p.add("lvsguard_service_lease_remaining_seconds", remaining(m, lease.ExpiresAt), with(labels, label("by", string(lease.By)))...)
		}
		known(p, "lvsguard_service_half_open_connections", v.Figures.HalfOpen, labels...)
		if m.Counted == nil || len(sampled.Addresses) == 0 {
			continue
		}
		var syn, dropped uint64
		signatures := make(map[string]uint64)
		all := true
		for _, at := range sampled.Addresses {
			c, there := m.Counted.Services[at]
			if !there {
				all = false
				continue
			}
			syn += c.SYN.Packets
			dropped += c.Dropped.Packets
			for name, n := range c.Signatures {
				signatures[name] += n.Packets
			}
			if address := at.Addr().String(); !fragments[address] {
				fragments[address] = true
				p.add("lvsguard_fragment_packets_total", float64(c.Fragment.Packets), label("address", address))
			}
		}
		if !all {
			continue
		}
		p.add("lvsguard_service_syn_packets_total", float64(syn), labels...)
		p.add("lvsguard_service_dropped_packets_total", float64(dropped), labels...)
		addEach(p, "lvsguard_service_signature_packets_total", "signature", signatures, labels...)
	}
}

func (p *page) handshakes(m *guard.Measurement) {
	services := make(map[string][]*dto.LabelPair, len(p.services))
	for _, v := range m.Verdicts {
		services[v.Service.String()] = p.services[v.Service]
	}
	for i := range m.Sample.Handshakes {
		f := &m.Sample.Handshakes[i]
		labels, service := services[f.Name]
		switch {
		case service && labels == nil: // left out
			continue
		case service:
			p.figures("lvsguard_service_handshake", f, isServiceBound, labels)
			continue
		}
		labels = []*dto.LabelPair{label("filter", f.Name)}
		if project := cmp.Or(f.Project, m.Config.Project); project != "" {
			labels = append(labels, label("project", project))
		}
		p.figures("lvsguard_handshake", f, func(float64) bool { return true }, labels)
	}
}

// isServiceBound picks the bounds of services' histograms, of which there are
// many: within a host, a country, the world; without a SYN sent again, which is
// after 1 s, and with one or two.
func isServiceBound(seconds float64) bool {
	return slices.Contains([]float64{0.001, 0.016, 0.256, 1.024, 4.096}, seconds)
}

// figures puts those of a filter or of a service on the page, its histograms with
// the bounds that are wanted.
func (p *page) figures(prefix string, f *handshake.Figures, wanted func(float64) bool, labels []*dto.LabelPair) {
	count := func(name string, n uint64) { p.add(prefix+name, float64(n), labels...) }
	outcome := func(how string, n *uint64) {
		known(p, prefix+"_outcomes_total", n, with(labels, label("outcome", how))...)
	}
	again := func(packet, result string, n *uint64) {
		known(p, prefix+"_retransmissions_total", n, with(labels, label("packet", packet), label("result", result))...)
	}
	count("_attempts_total", f.Attempts)
	outcome("success", &f.Success.Total)
	outcome("reject", f.Failure.Reject)
	outcome("unreach", f.Failure.Unreach)
	outcome("timeout", &f.Failure.Timeout)
	outcome("abort", &f.Failure.Aborted)
	again("syn", "success", &f.Success.DupSYN)
	again("synack", "success", f.Success.DupSYNACK)
	again("syn", "failure", &f.Failure.DupSYN)
	again("synack", "failure", f.Failure.DupSYNACK)
	count("_pending", f.Pending)
	count("_untracked_total", f.Untracked)
	count("_signature_attempts_total", f.Signature.Attempts)
	count("_signature_successes_total", f.Signature.Completed)
	count("_screened_packets_total", f.Signature.Screened)
	p.histogram(prefix+"_complete_seconds", f.Complete, wanted, labels)
	p.histogram(prefix+"_answer_seconds", f.Answer, wanted, labels)
}

// histogram puts one on the page.
func (p *page) histogram(name string, h *handshake.HistogramValue, wanted func(float64) bool, labels []*dto.LabelPair) {
	if h == nil {
		return
	}
	out := &dto.Histogram{SampleCount: &h.Count, SampleSum: &h.Sum}
	for i := range h.Buckets {
		if b := &h.Buckets[i]; wanted(b.LE) {
			out.Bucket = append(out.Bucket, &dto.Bucket{UpperBound: &b.LE, CumulativeCount: &b.Count})
		}
	}
	f := p.families[name]
	f.Metric = append(f.Metric, &dto.Metric{Label: labels, Histogram: out})
}

func (p *page) ipvs(m *guard.Measurement) {
	for i, v := range m.Verdicts {
		labels := p.services[v.Service]
		if c := m.Sample.Services[i].Connections; c != nil && labels != nil {
			p.add("lvsguard_service_active_connections", float64(c.Active), labels...)
			p.add("lvsguard_service_inactive_connections", float64(c.Inactive), labels...)
		}
	}
	servers := 0
	for i := range m.Served {
		s := &m.Served[i]
		labels := p.services[s.Key]
		if labels == nil {
			p.left["real_servers"] += len(s.RealServers)
			continue
		}
		twoWay := len(s.RealServers) > 0
		var templates uint64
		for j := range s.RealServers {
			rs := &s.RealServers[j]
			answers := rs.Method != ipvs.DR && rs.Method != ipvs.TUN
			twoWay = twoWay && answers
			templates += uint64(rs.PersistConn)
			if servers++; servers > maxPageServers {
				p.left["real_servers"]++
				continue
			}
			p.server(s, rs, answers, []*dto.LabelPair{label("server", rs.Addr.String()), labels[len(labels)-1]})
		}
		if s.Persistent > 0 {
			p.add("lvsguard_service_persistence_templates", float64(templates), labels...)
		}
		if !s.Frozen {
			p.stats("lvsguard_service", &s.Stats, twoWay, labels)
			p.add("lvsguard_service_in_packets_total", float64(s.Stats.PacketsIn), labels...)
			if twoWay {
				p.add("lvsguard_service_out_packets_total", float64(s.Stats.PacketsOut), labels...)
			}
		}
	}
	for i := range m.Sample.Servers {
		for _, here := range m.Sample.Servers[i].Services {
			if labels := p.services[here.Service]; here.Removed && labels != nil {
				if servers++; servers > maxPageServers {
					p.left["real_servers"]++
					continue
				}
				p.add("lvsguard_server_removed", 1, label("server", here.Server.String()), labels[len(labels)-1])
			}
		}
	}
}

func (p *page) server(s *ipvs.Service, rs *ipvs.RealServer, answers bool, labels []*dto.LabelPair) {
	p.add("lvsguard_server_weight", float64(rs.Weight), labels...)
	p.add("lvsguard_server_active_connections", float64(rs.ActiveConn), labels...)
	p.add("lvsguard_server_inactive_connections", float64(rs.InActConn), labels...)
	if s.Persistent > 0 {
		p.add("lvsguard_server_persistence_templates", float64(rs.PersistConn), labels...)
	}
	if s.Frozen {
		return
	}
	// Not packets: of 1,000 real servers they would be a tenth of the page, and
	// bytes and connections tell how the load is spread.
	p.stats("lvsguard_server", &rs.Stats, answers, labels)
}

// stats are IPVS's totals but for packets. With answers that do not pass here,
// what goes out is not known.
func (p *page) stats(prefix string, s *ipvs.Stats, answers bool, labels []*dto.LabelPair) {
	p.add(prefix+"_connections_total", float64(s.Connections), labels...)
	p.add(prefix+"_in_bytes_total", float64(s.BytesIn), labels...)
	if answers {
		p.add(prefix+"_out_bytes_total", float64(s.BytesOut), labels...)
	}
}

// servers are the figures that real servers tell of themselves.
func (p *page) servers(m *guard.Measurement) {
	for _, rs := range first(p, "addresses", m.Sample.Servers, maxPageAddresses) {
		f := rs.Figures
		if f == nil {
			continue
		}
		address := []*dto.LabelPair{label("address", rs.Address.String())}
		p.yes("lvsguard_server_up", f.Unknown == "", address...)
		for _, c := range []struct {
			name  string
			count *pressure.ServerCount
		}{
			{"syncookies_sent", f.SyncookiesSent}, {"syncookies_received", f.SyncookiesReceived}, {"syncookies_failed", f.SyncookiesFailed},
			{"listen_overflows", f.ListenOverflows}, {"listen_drops", f.ListenDrops},
		} {
			if c.count != nil {
				p.add("lvsguard_server_"+c.name+"_total", float64(c.count.Total), address...)
			}
		}
		known(p, "lvsguard_server_accept_queue_share", f.AcceptQueueShare, address...)
		if free, all := f.MemoryAvailable, f.MemoryTotal; free != nil && all != nil && *all > 0 {
			p.add("lvsguard_server_memory_available_share", float64(*free)/float64(*all), address...)
		}
	}
}

// levelValues are those of lvsguard_resource_level.
var levelValues = map[pressure.Level]float64{pressure.LevelOK: 0, pressure.LevelWarning: 1, pressure.LevelCritical: 2}

func (p *page) pressure(m *guard.Measurement) {
	r := m.Pressure
	for i := range r.Resources {
		res := &r.Resources[i]
		labels := []*dto.LabelPair{label("kind", string(res.Kind)), label("resource", res.Name)}
		if level, ok := levelValues[res.Level]; ok {
			p.add("lvsguard_resource_level", level, labels...)
		}
		unit := "entries"
		if res.Unit == pressure.UnitBytes {
			unit = "bytes"
		}
		known(p, "lvsguard_resource_share", res.Share, labels...)
		known(p, "lvsguard_resource_used_"+unit, res.Used, labels...)
		known(p, "lvsguard_resource_limit_"+unit, res.Limit, labels...)
		known(p, "lvsguard_resource_full_in_seconds", res.FullIn, labels...)
	}
	mem := &r.Memory
	known(p, pressure.MetricMemoryAvailable, mem.Available)
	known(p, pressure.MetricMemoryTotal, mem.Total)
	known(p, "lvsguard_memory_kernel_available_bytes", mem.KernelAvailable)
	known(p, "lvsguard_memory_kernel_total_bytes", mem.KernelTotal)
	known(p, "lvsguard_memory_low_free_bytes", mem.LowFree)
	known(p, "lvsguard_memory_low_total_bytes", mem.LowTotal)
	known(p, "lvsguard_memory_stall_share", mem.StallSome, label("tasks", "some"))
	known(p, "lvsguard_memory_stall_share", mem.StallFull, label("tasks", "full"))
	known(p, "lvsguard_oom_kills_total", mem.OOMKills)
	if v := r.IPVS; v != nil {
		known(p, "lvsguard_ipvs_connections", v.Connections)
		known(p, "lvsguard_ipvs_persistence_templates", v.Templates)
		known(p, "lvsguard_ipvs_half_open_share", v.HalfOpenShare)
		known(p, "lvsguard_ipvs_table_bytes", v.Bytes)
		known(p, "lvsguard_ipvs_entry_bytes", v.BytesPerEntry)
		known(p, "lvsguard_ipvs_free_bytes", v.FreeBytes)
		if v.Forecast != nil {
			known(p, "lvsguard_ipvs_forecast_entries", &v.Forecast.Entries)
			known(p, "lvsguard_ipvs_forecast_bytes", &v.Forecast.Bytes)
			known(p, "lvsguard_ipvs_memory_gone_in_seconds", v.Forecast.GoneIn)
		}
	}
	events := make(map[pressure.EventKind]uint64)
	if m.Sample.Unknown[guard.SourceKernelLog] == "" {
		for _, kind := range pressure.EventKinds() {
			events[kind] = 0 // Prometheus sees an increase only of what was there before
		}
	}
	maps.Copy(events, m.Tally.Events)
	addEach(p, "lvsguard_kernel_events_total", "kind", events)
	if m.Sample.Unknown[guard.SourceKernelLog] == "" {
		p.add("lvsguard_kernel_log_lost_records_total", float64(r.LostRecords))
	}
	for _, c := range r.Counters {
		if name := pressure.CounterMetric(c.Name); p.families[name] != nil {
			p.add(name, float64(c.Total))
		}
	}
}

func (p *page) sockets(s *guard.SocketsReport) {
	if s == nil {
		return
	}
	for _, l := range first(p, "listeners", s.Listeners, maxPageListeners) {
		at := []*dto.LabelPair{label("listener", l.Name)}
		p.add(pressure.MetricAcceptQueueShare, l.Share(), at...)
		p.add("lvsguard_listen_accept_queue_connections", float64(l.Queue), at...)
		p.add("lvsguard_listen_accept_queue_highest_connections", float64(l.Highest), at...)
		p.add("lvsguard_listen_accept_queue_limit_connections", float64(l.Limit), at...)
	}
	c := s.Connections
	if c == nil {
		return
	}
	for _, d := range []struct {
		name string
		*pressure.Group
	}{{"in", &c.In}, {"out", &c.Out}} {
		direction := label("direction", d.name)
		for state, n := range d.States {
			p.add("lvsguard_tcp_connections", float64(n), direction, label("state", pressure.TCPState(state).String()))
		}
		for _, q := range []struct {
			name string
			pressure.Queued
		}{{"receive", d.Receive}, {"send", d.Send}} {
			queue := label("queue", q.name)
			p.add("lvsguard_tcp_queued_connections", float64(q.Connections), direction, queue)
			p.add("lvsguard_tcp_queued_bytes", float64(q.Bytes), direction, queue)
		}
	}
	for _, l := range first(p, "listeners", c.Listening, maxPageListeners) {
		at := label("listener", l.Name)
		p.add("lvsguard_listen_connections", float64(l.Connections), at)
		if l.RTT != nil {
			addEach(p, "lvsguard_listen_rtt_seconds", "percentile", map[string]float64{"50": l.RTT.P50 / 1000, "90": l.RTT.P90 / 1000, "99": l.RTT.P99 / 1000}, at)
		}
	}
}

func (p *page) capture(c *guard.Capture) {
	if c == nil {
		return
	}
	if c.Filter != "" {
		p.add("lvsguard_capture_filter_info", 1, label("filter", c.Filter))
	}
	known(p, "lvsguard_capture_packets_total", c.Packets)
	p.add("lvsguard_capture_handed_packets_total", float64(c.Handed))
	p.add("lvsguard_capture_dropped_packets_total", float64(c.Dropped))
	p.add("lvsguard_capture_other_packets_total", float64(c.Other))
	p.add("lvsguard_capture_copied_packets_total", float64(c.Copies))
	addEach(p, "lvsguard_capture_undecoded_packets_total", "kind", c.Undecoded)
	p.add("lvsguard_capture_notes", float64(len(c.Notes)))
}

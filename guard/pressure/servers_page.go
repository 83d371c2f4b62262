package pressure

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// The names under which lvsguard's own /metrics tells of the host that it runs
// on, and under which a director looks for them. All are of the kernel's TcpExt
// counters (/proc/net/netstat) but for the last three.
const (
	MetricSyncookiesSent          = "lvsguard_netstat_tcpext_syncookies_sent_total"
	MetricSyncookiesReceived      = "lvsguard_netstat_tcpext_syncookies_recv_total"
	MetricSyncookiesFailed        = "lvsguard_netstat_tcpext_syncookies_failed_total"
	MetricListenOverflows         = "lvsguard_netstat_tcpext_listen_overflows_total"
	MetricListenDrops             = "lvsguard_netstat_tcpext_listen_drops_total"
	MetricRequestQueueFullCookies = "lvsguard_netstat_tcpext_tcp_req_q_full_do_cookies_total"
	MetricRequestQueueFullDrops   = "lvsguard_netstat_tcpext_tcp_req_q_full_drop_total"
	// MetricAcceptQueueShare has a series for each listening socket, 0 to 1.
	MetricAcceptQueueShare = "lvsguard_listen_accept_queue_share"
	MetricMemoryAvailable  = "lvsguard_memory_available_bytes"
	MetricMemoryTotal      = "lvsguard_memory_total_bytes"
)

// Whose figures they are.
const (
	sourceNodeExporter = "node_exporter"
	sourceLVSGuard     = "lvsguard"
)

// A figure is one that is looked for.
type figure int

const (
	figureSyncookiesSent figure = iota
	figureSyncookiesReceived
	figureSyncookiesFailed
	figureListenOverflows
	figureListenDrops
	figureQueueFullCookies
	figureQueueFullDrops
	figureMemoryAvailable
	figureMemoryTotal
	figureAcceptQueueShare
	figureCount
)

// figureNames are those of each figure, by source.
var figureNames = [figureCount]struct{ node, ours string }{
	figureSyncookiesSent:     {"node_netstat_TcpExt_SyncookiesSent", MetricSyncookiesSent},
	figureSyncookiesReceived: {"node_netstat_TcpExt_SyncookiesRecv", MetricSyncookiesReceived},
	figureSyncookiesFailed:   {"node_netstat_TcpExt_SyncookiesFailed", MetricSyncookiesFailed},
	figureListenOverflows:    {"node_netstat_TcpExt_ListenOverflows", MetricListenOverflows},
	figureListenDrops:        {"node_netstat_TcpExt_ListenDrops", MetricListenDrops},
	figureQueueFullCookies:   {"node_netstat_TcpExt_TCPReqQFullDoCookies", MetricRequestQueueFullCookies},
	figureQueueFullDrops:     {"node_netstat_TcpExt_TCPReqQFullDrop", MetricRequestQueueFullDrops},
	figureMemoryAvailable:    {"node_memory_MemAvailable_bytes", MetricMemoryAvailable},
	figureMemoryTotal:        {"node_memory_MemTotal_bytes", MetricMemoryTotal},
	figureAcceptQueueShare:   {"", MetricAcceptQueueShare},
}

// wantedName says whether a series is of a figure.
func wantedName(name []byte) bool {
	if len(name) == 0 {
		return false
	}
	for _, n := range &figureNames {
		if string(name) == n.node || string(name) == n.ours {
			return true
		}
	}
	return false
}

// A reading is what a server's page says.
type reading struct {
	at          time.Time
	source, url string
	// values are NaN where the page does not have the figure.
	values [figureCount]float64
}

// A page reads pages in Prometheus' text format. What is not looked for is passed
// over line by line, so that a page of millions of series takes no more memory
// than one of ten; the lines that are left go to Prometheus' own parser.
type page struct {
	in   *bufio.Reader
	kept bytes.Buffer
	// lines are the numbers, in the page, of the lines that were kept.
	lines  []int
	parser expfmt.TextParser
}

const (
	longestLine = 32 << 10
	mostLines   = 4096 // of accept queues there may be many
	mostKept    = 512 << 10
)

// read reads a page of at most so many bytes.
func (p *page) read(body io.Reader, most int64) (*reading, error) {
	if err := p.keep(body, most); err != nil {
		return nil, err
	}
	if len(p.lines) == 0 {
		return nil, errors.New("the answer has none of the figures of node_exporter (its collectors netstat and meminfo) or of lvsguard")
	}
	p.parser = expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.parser.TextToMetricFamilies(&p.kept)
	if wrong, ok := errors.AsType[expfmt.ParseError](err); ok {
		line := 0
		if wrong.Line > 0 && wrong.Line <= len(p.lines) {
			line = p.lines[wrong.Line-1]
		}
		return nil, fmt.Errorf("line %d of the answer: %s", line, wrong.Msg)
	}
	if err != nil {
		return nil, err
	}
	return newReading(families)
}

// keep reads the page, and keeps the lines of the figures.
func (p *page) keep(body io.Reader, most int64) error {
	limited := io.LimitedReader{R: body, N: most + 1}
	if p.in == nil {
		p.in = bufio.NewReaderSize(nil, longestLine)
	}
	p.in.Reset(&limited)
	p.kept.Reset()
	p.lines = p.lines[:0]
	wanted, begun := false, false // of the line that is read
	for number := 1; ; {
		part, err := p.in.ReadSlice('\n')
		if !begun {
			wanted = wantedName(seriesName(part))
		}
		if wanted {
			switch {
			case errors.Is(err, bufio.ErrBufferFull):
				return fmt.Errorf("line %d of the answer is longer than %d bytes", number, longestLine)
			case len(p.lines) == mostLines || p.kept.Len()+len(part) > mostKept:
				return fmt.Errorf("the answer has more than %d series, or %d bytes, of what is looked for", mostLines, mostKept)
			case len(part) > 0:
				p.kept.Write(part)
				p.lines = append(p.lines, number)
			}
		}
		switch {
		case limited.N == 0:
			return fmt.Errorf("the answer has more than %d bytes", most)
		case err == nil:
			begun = false
			number++
		case errors.Is(err, bufio.ErrBufferFull):
			begun = true
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("the answer breaks off: %w", shorter(err))
		case begun || len(part) > 0:
			return errors.New("the answer is cut short: its last line has no end")
		default:
			return nil
		}
	}
}

// seriesName is the name at the beginning of a line.
func seriesName(line []byte) []byte {
	line = bytes.TrimLeft(line, " \t")
	if end := bytes.IndexAny(line, " \t\r\n{"); end >= 0 {
		return line[:end]
	}
	return line
}

// newReading takes the figures. One that cannot be is a lie, and then the others
// of the page are worth no more.
func newReading(families map[string]*dto.MetricFamily) (*reading, error) {
	r := &reading{source: sourceNodeExporter}
	for _, n := range &figureNames {
		if families[n.ours] != nil {
			r.source = sourceLVSGuard
		}
	}
	for f := range figureCount {
		name := figureNames[f].node
		if r.source == sourceLVSGuard {
			name = figureNames[f].ours
		}
		series := families[name].GetMetric()
		r.values[f] = math.NaN()
		if len(series) > 1 && f != figureAcceptQueueShare {
			return nil, fmt.Errorf("%s is there %d times", name, len(series))
		}
		for _, m := range series {
			v := m.GetUntyped().GetValue() // without a # TYPE all are untyped
			switch {
			case !(v >= 0 && v < 1<<53): // so too if it is not a number
				return nil, fmt.Errorf("%s is %v, which cannot be", name, v)
			case f == figureAcceptQueueShare:
				if !(v <= r.values[f]) {
					r.values[f] = v
				}
			case v != math.Trunc(v):
				return nil, fmt.Errorf("%s is %v, which is no whole number", name, v)
			default:
				r.values[f] = v
			}
		}
	}
	if available, total := r.values[figureMemoryAvailable], r.values[figureMemoryTotal]; available > total {
		return nil, fmt.Errorf("of %v bytes of memory %v are available, which cannot be", total, available)
	}
	return r, nil
}

// server makes what is shown of a reading, and of the one before it, if there is
// one, the rates.
func (r *reading) server(address netip.Addr, before *reading) Server {
	count := func(f figure) *ServerCount {
		v := r.values[f]
		if math.IsNaN(v) {
			return nil
		}
		c := &ServerCount{Total: uint64(v)}
		if before != nil && !math.IsNaN(before.values[f]) {
			const most = 1e9 // no host counts faster: it is made up, or another host's
			if rate, ok := perSecond(uint64(before.values[f]), c.Total, r.at.Sub(before.at)); ok && rate <= most {
				c.PerSecond = &rate
			}
		}
		return c
	}
	size := func(f figure) *uint64 {
		if math.IsNaN(r.values[f]) {
			return nil
		}
		return new(uint64(r.values[f]))
	}
	s := Server{
		Address: address, Source: r.source, URL: r.url, Read: &r.at,
		SyncookiesSent:          count(figureSyncookiesSent),
		SyncookiesReceived:      count(figureSyncookiesReceived),
		SyncookiesFailed:        count(figureSyncookiesFailed),
		ListenOverflows:         count(figureListenOverflows),
		ListenDrops:             count(figureListenDrops),
		RequestQueueFullCookies: count(figureQueueFullCookies),
		RequestQueueFullDrops:   count(figureQueueFullDrops),
		MemoryAvailable:         size(figureMemoryAvailable),
		MemoryTotal:             size(figureMemoryTotal),
	}
	if v := r.values[figureAcceptQueueShare]; !math.IsNaN(v) {
		s.AcceptQueueShare = &v
	}
	return s
}

package pressure

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

// wires join servers to those who ask them, in memory, so that a thousand of them
// and the time that they take cost nothing.
type wires struct {
	mu      sync.Mutex
	servers map[string]*wire // by address and port
}

// A wire is the listener of one server.
type wire struct {
	address  string
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (w *wire) Accept() (net.Conn, error) {
	select {
	case c := <-w.incoming:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

func (w *wire) Close() error { w.once.Do(func() { close(w.closed) }); return nil }

func (w *wire) Addr() net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(w.address)) }

// listen puts a server up at an address and port.
func (w *wires) listen(address string) *wire {
	l := &wire{address: address, incoming: make(chan net.Conn), closed: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.servers == nil {
		w.servers = make(map[string]*wire)
	}
	w.servers[address] = l
	return l
}

// serve puts a server up that answers so, in place of what is there.
func (w *wires) serve(t *testing.T, address string, answer http.HandlerFunc) {
	server := &httptest.Server{Listener: w.listen(address), Config: &http.Server{Handler: answer}}
	server.Start()
	t.Cleanup(server.Close)
}

// silence puts a firewall up that drops every SYN.
func (w *wires) silence(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[address] = nil
}

// dial is what a server's asker dials with.
func (w *wires) dial(ctx context.Context, _, address string) (net.Conn, error) {
	w.mu.Lock()
	l, there := w.servers[address]
	w.mu.Unlock()
	fail := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	if there && l == nil {
		<-ctx.Done()
		return nil, fail(ctx.Err())
	}
	if !there {
		return nil, fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	ours, theirs := net.Pipe()
	select {
	case l.incoming <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	case <-ctx.Done():
		return nil, fail(ctx.Err())
	}
}

// asker makes a Servers that asks over the wires.
func (w *wires) asker(t *testing.T, cfg ServersConfig, addresses ...string) *Servers {
	t.Helper()
	s, err := NewServers(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.client.Transport.(*http.Transport).DialContext = w.dial
	t.Cleanup(s.client.CloseIdleConnections)
	var all []netip.Addr
	for _, a := range addresses {
		all = append(all, netip.MustParseAddr(a))
	}
	s.SetTargets(all)
	return s
}

// exporter answers as node_exporter does, with cookies that grow by each second.
func exporter(begun time.Time, perSecond float64) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# HELP node_netstat_TcpExt_SyncookiesSent Statistic TcpExtSyncookiesSent.\n"+
			"# TYPE node_netstat_TcpExt_SyncookiesSent untyped\n"+
			"node_netstat_TcpExt_SyncookiesSent %.0f\n", 1000+perSecond*time.Since(begun).Seconds())
	}
}

func answer(page string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }
}

func only(t *testing.T, all []Server) Server {
	t.Helper()
	if len(all) != 1 {
		t.Fatalf("%d servers: %+v", len(all), all)
	}
	return all[0]
}

// figuresOf are the figures of a server that are known.
func figuresOf(s Server) []string {
	var known []string
	counts := []struct {
		name  string
		count *ServerCount
	}{
		{"sent", s.SyncookiesSent}, {"received", s.SyncookiesReceived}, {"failed", s.SyncookiesFailed},
		{"overflows", s.ListenOverflows}, {"drops", s.ListenDrops},
		{"full, cookies", s.RequestQueueFullCookies}, {"full, drops", s.RequestQueueFullDrops},
	}
	for _, c := range counts {
		if c.count == nil {
			continue
		}
		rate := "?"
		if c.count.PerSecond != nil {
			rate = fmt.Sprint(*c.count.PerSecond)
		}
		known = append(known, fmt.Sprintf("%s %d %s/s", c.name, c.count.Total, rate))
	}
	if s.AcceptQueueShare != nil {
		known = append(known, fmt.Sprint("accept queue ", *s.AcceptQueueShare))
	}
	if s.MemoryAvailable != nil {
		known = append(known, fmt.Sprint("available ", *s.MemoryAvailable))
	}
	if s.MemoryTotal != nil {
		known = append(known, fmt.Sprint("of ", *s.MemoryTotal))
	}
	return known
}

// What a server answers, and what is then known of it: its figures or the reason,
// as people read it.
func TestServersAnswers(t *testing.T) {
	const sent = "node_netstat_TcpExt_SyncookiesSent"
	captured, err := os.ReadFile(filepath.Join("testdata", "servers", "node_exporter.txt"))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(filepath.Join("testdata", "servers", "lvsguard.txt"))
	if err != nil {
		t.Fatal(err)
	}
	status := func(code int, location string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if location != "" {
				w.Header().Set("Location", location)
			}
			w.WriteHeader(code)
			io.WriteString(w, sent+" 7\n")
		}
	}
	drip := func(every time.Duration, page string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for _, c := range page {
				if _, err := io.WriteString(w, string(c)); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				time.Sleep(every)
			}
		}
	}
	raw := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			io.WriteString(conn, text)
		}
	}
	tests := []struct {
		name   string
		answer http.HandlerFunc
	}{
		{"node_exporter of Debian 12", answer(string(captured))},
		{"lvsguard", answer(string(ours))},
		{"both on one page", answer(sent + " 7\n" + string(ours))},
		{"one figure", answer(sent + " 7\n")},
		{"with labels and a time", answer(sent + "{host=\"a\"} 7 1700000000000\n")},
		{"blanks before", answer(" \t" + sent + "\t 7\n")},
		{"an exponent", answer(sent + " 1.2345e+07\n")},
		{"never ends another line", answer("other{x=\"" + strings.Repeat("x", 100<<10) + "\"} 1\n" + sent + " 7\n")},

		{"nothing", answer("")},
		{"a page for people", answer("<html>\n<body>It works!\n</html>\n")},
		{"no figures of ours", answer("go_goroutines 8\n")},
		{"the half of a line", answer(sent + " 7")},
		{"the half of another line", answer(sent + " 7\nother 8")},
		{"a line that never ends", answer(sent + strings.Repeat(" ", 100<<10) + "7\n")},
		{"garbage", answer("\x00\xff\x1b[2J\n\n\x80" + sent + "\n")},
		{"no figure", answer("first 1\n" + sent + " \x1b]0;owned\a\u202e\n")},
		{"a DOS line", answer(sent + " 7\r\n")},
		{"a word", answer(sent + " many\n")},
		{"not a number", answer(sent + " NaN\n")},
		{"infinite", answer(sent + " +Inf\n")},
		{"negative", answer(sent + " -7\n")},
		{"a fraction", answer(sent + " 7.5\n")},
		{"more than can be", answer(sent + " 1e300\n")},
		{"twice", answer(sent + " 7\n" + sent + " 8\n")},
		{"more memory than there is", answer("node_memory_MemTotal_bytes 7\nnode_memory_MemAvailable_bytes 8\n")},
		{"too large", answer(strings.Repeat("other 1\n", 40<<10))},
		{"too many series", answer(strings.Repeat(MetricAcceptQueueShare+" 0\n", 5000) + sent + " 7\n")},

		{"hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{"too slow", drip(100*time.Millisecond, sent+" 7\n")},
		{"slow, and in time", drip(10*time.Millisecond, sent+" 7\n")},
		{"500", status(500, "")},
		{"401", status(401, "")},
		{"404", status(404, "")},
		{"204", status(204, "")},
		{"302", status(302, "http://192.0.2.200/\x1b[2J")},
		{"no HTTP", raw("SSH-2.0-OpenSSH \x1b[2J\r\n")},
		{"closes at once", raw("")},
		{"a status of its own", raw("HTTP/1.1 503 \x1b[2Jowned\r\nContent-Length: 0\r\n\r\n")},
		{"shorter than it said", raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + sent + " 7\n")},
		{"a header that never ends", raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n")},
	}
	var got strings.Builder
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			var w wires
			w.serve(t, "192.0.2.7:9100", test.answer)
			s := w.asker(t, ServersConfig{URLs: []string{"http://{address}:9100/metrics"}, MaxBytes: 256 << 10}, "192.0.2.7")
			s.round(t.Context())
			server := only(t, s.Snapshot(time.Now()))
			known := figuresOf(server)
			fmt.Fprintf(&got, "# %s\n", test.name)
			if server.Unknown != "" {
				if len(known) > 0 || server.UnknownSince == nil {
					t.Errorf("%s: unknown, and figures: %+v", test.name, server)
				}
				fmt.Fprintf(&got, "unknown: %s\n\n", server.Unknown)
				return
			}
			if server.UnknownSince != nil || server.Read == nil {
				t.Errorf("%s: known, and unknown since %v, read %v", test.name, server.UnknownSince, server.Read)
			}
			fmt.Fprintf(&got, "%s: %s\n\n", server.Source, strings.Join(known, ", "))
		})
	}
	goldenfile.Check(t, filepath.Join("testdata", "servers", "answers.golden"), got.String())
	if strings.ContainsFunc(got.String(), func(r rune) bool { return r != '\n' && (r < ' ' || r == '\u202e' || r == 0x7f) }) {
		t.Error("what a server wrote is shown as it is")
	}
}

// Rates are differences of two answers. A count that was begun anew, one that
// wraps, one that leaps and one after a gap.
func TestServersRates(t *testing.T) {
	type step struct {
		page string // empty: no answer
		want string
	}
	const sent = "node_netstat_TcpExt_SyncookiesSent "
	tests := []struct {
		name  string
		steps []step
	}{
		{"grows", []step{{sent + "100", "sent 100 ?/s"}, {sent + "300", "sent 300 100/s"}, {sent + "300", "sent 300 0/s"}}},
		{"begun anew", []step{{sent + "100000", "sent 100000 ?/s"}, {sent + "7", "sent 7 ?/s"}, {sent + "9", "sent 9 1/s"}}},
		{"wraps at 32 bits", []step{{sent + "4294967290", "sent 4294967290 ?/s"}, {sent + "4", "sent 4 5/s"}}},
		{"leaps", []step{{sent + "100", "sent 100 ?/s"}, {sent + "9e15", "sent 9000000000000000 ?/s"}, {sent + "9e15", "sent 9000000000000000 0/s"}}},
		{"one answer is missing", []step{{sent + "100", "sent 100 ?/s"}, {"", ""}, {sent + "500", "sent 500 100/s"}}},
		{"a long gap", []step{{sent + "100", "sent 100 ?/s"}, {"", ""}, {"", ""}, {"", ""}, {sent + "500", "sent 500 ?/s"}}},
		{"appears", []step{{"node_memory_MemTotal_bytes 5", "of 5"}, {sent + "7", "sent 7 ?/s"}, {sent + "9", "sent 9 1/s"}}},
		{"of another source", []step{{sent + "100", "sent 100 ?/s"}, {MetricSyncookiesSent + " 300", "sent 300 ?/s"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var w wires
				var page string
				w.serve(t, "192.0.2.7:9100", func(w http.ResponseWriter, _ *http.Request) {
					if page == "" {
						w.WriteHeader(http.StatusServiceUnavailable)
					}
					fmt.Fprintln(w, page)
				})
				s := w.asker(t, ServersConfig{}, "192.0.2.7")
				for i, step := range test.steps {
					page = step.page
					s.round(t.Context())
					if got := strings.Join(figuresOf(only(t, s.Snapshot(time.Now()))), ", "); got != step.want {
						t.Errorf("answer %d: %q, want %q", i+1, got, step.want)
					}
					time.Sleep(s.cfg.Interval)
				}
			})
		})
	}
}

// A server that is not known says since when: since its last good answer, or since
// there is such a server.
func TestServersUnknownSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wires
		up := true
		w.serve(t, "192.0.2.7:9100", func(w http.ResponseWriter, _ *http.Request) {
			if !up {
				w.WriteHeader(http.StatusInternalServerError)
			}
			fmt.Fprintln(w, "node_memory_MemTotal_bytes 5")
		})
		began := time.Now()
		s := w.asker(t, ServersConfig{URLs: []string{"http://{address}:9100/metrics"}}, "192.0.2.7", "192.0.2.8")

		check := func(want ...Server) {
			t.Helper()
			if diff := cmp.Diff(want, s.Snapshot(time.Now()), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("after %v (-want +got):\n%s", time.Since(began), diff)
			}
		}
		seven, eight := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")
		check(Server{Address: seven, UnknownSince: &began, Unknown: "not asked yet"},
			Server{Address: eight, UnknownSince: &began, Unknown: "not asked yet"})

		time.Sleep(time.Second)
		read := time.Now()
		s.round(t.Context())
		const url = "http://192.0.2.7:9100/metrics"
		other := Server{Address: eight, UnknownSince: &began, Unknown: "http://192.0.2.8:9100/metrics: connect: connection refused"}
		good := Server{Address: seven, Source: "node_exporter", URL: url, Read: &read, MemoryTotal: new(uint64(5))}
		check(good, other)

		up = false
		time.Sleep(time.Second)
		s.round(t.Context())
		check(Server{
			Address: seven, Source: "node_exporter", URL: url, Read: &read, UnknownSince: &read,
			Unknown: url + ": it answers 500 Internal Server Error",
		}, other)

		up = true
		time.Sleep(time.Second)
		again := time.Now()
		s.round(t.Context())
		good.Read = &again
		check(good, other)

		// No round comes any more: an answer gets old.
		time.Sleep(s.staleAfter() + time.Second)
		stale := Server{
			Address: seven, Source: "node_exporter", URL: url, Read: &again, UnknownSince: &again,
			Unknown: "not asked for 8s: rounds of 2s are too short for so many servers that answer slowly",
		}
		check(stale, other)
	})
}

// Whichever URL answers is asked first from then on, and another when it does not
// any more. A port that a firewall is silent about does not hide the next.
func TestServersURLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wires
		w.serve(t, "192.0.2.7:9101", answer(MetricSyncookiesSent+" 7\n"))
		s := w.asker(t, ServersConfig{}, "192.0.2.7")
		var mu sync.Mutex
		var dialled []string
		s.client.Transport.(*http.Transport).DisableKeepAlives = true
		s.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			dialled = append(dialled, address[len("192.0.2.7:"):])
			mu.Unlock()
			return w.dial(ctx, network, address)
		}
		const yes, no = "known", "unknown"
		check := func(when, want string, ports ...string) {
			t.Helper()
			mu.Lock()
			dialled = nil
			mu.Unlock()
			s.round(t.Context())
			mu.Lock()
			defer mu.Unlock()
			got := yes
			if only(t, s.Snapshot(time.Now())).Unknown != "" {
				got = no
			}
			if got != want || !cmp.Equal(dialled, ports) {
				t.Errorf("%s: it is %s by %v, want %s by %v", when, got, dialled, want, ports)
			}
			time.Sleep(s.cfg.Interval)
		}
		check("the first refuses", yes, "9100", "9101")
		check("the second is remembered", yes, "9101")
		w.silence("192.0.2.7:9100")
		check("the first is silent, and not asked", yes, "9101")
		w.silence("192.0.2.7:9101")
		check("all are silent", no, "9101")
		check("the next one begins", no, "9100")
		w.serve(t, "192.0.2.7:9101", answer(MetricSyncookiesSent+" 7\n"))
		check("the one after begins", no, "9100")
		check("and answers", yes, "9101")
		check("and is remembered", yes, "9101")
	})
}

// A thousand servers, of which a fifth hang in different ways: a round ends in
// time, the others are known all the while, and one that comes back is seen.
func TestServersThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const count, rate = 1000, 50
		var w wires
		begun := time.Now()
		var hung atomic.Bool
		hung.Store(true)
		hang := func(w http.ResponseWriter, r *http.Request) {
			if hung.Load() {
				<-r.Context().Done()
				return
			}
			exporter(begun, rate)(w, r)
		}
		drip := func(w http.ResponseWriter, r *http.Request) {
			for hung.Load() && r.Context().Err() == nil {
				io.WriteString(w, "other 1\n")
				w.(http.Flusher).Flush()
				time.Sleep(300 * time.Millisecond)
			}
			exporter(begun, rate)(w, r)
		}
		var addresses []string
		hangs := make(map[netip.Addr]bool)
		for i := range count {
			address := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			addresses = append(addresses, address.String())
			port := address.String() + ":9100"
			switch i % 15 {
			case 0:
				w.serve(t, port, hang)
			case 1:
				w.serve(t, port, drip)
			case 2:
				w.serve(t, port, exporter(begun, rate))
				w.silence(port)
			default:
				w.serve(t, port, exporter(begun, rate))
				continue
			}
			hangs[address] = true
		}
		s := w.asker(t, ServersConfig{}, addresses...)

		look := func() (known, rates, unknown int) {
			for _, server := range s.Snapshot(time.Now()) {
				switch {
				case server.Unknown != "":
					unknown++
					if n := figuresOf(server); len(n) > 0 {
						t.Errorf("%v is unknown and has %v", server.Address, n)
					}
				case server.SyncookiesSent.PerSecond != nil:
					rates++
					if got := *server.SyncookiesSent.PerSecond; !hangs[server.Address] && (got < rate-1 || got > rate+1) {
						t.Errorf("%v sends %v cookies/s, not %v", server.Address, got, rate)
					}
					fallthrough
				default:
					known++
				}
			}
			return known, rates, unknown
		}
		// The rounds themselves, for their length.
		for round := range 3 {
			start := time.Now()
			s.round(t.Context())
			if took := time.Since(start); took > s.cfg.Interval {
				t.Errorf("round %d took %v, and has %v", round+1, took, s.cfg.Interval)
			}
			time.Sleep(time.Until(start.Add(s.cfg.Interval)))
		}
		// As they are run: from now on every healthy server is known at any moment.
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		healthy := count - len(hangs)
		time.Sleep(s.cfg.Interval)
		for range 10 {
			time.Sleep(time.Second / 2)
			known, rates, unknown := look()
			if known != healthy || rates != healthy || unknown != len(hangs) {
				t.Fatalf("%d servers are known, %d with rates, and %d unknown; want %d, %d, %d", known, rates, unknown, healthy, healthy, len(hangs))
			}
		}
		// What hung is mended. All are known again within 10 s.
		hung.Store(false)
		for i := 2; i < count; i += 15 {
			w.serve(t, addresses[i]+":9100", exporter(begun, rate))
		}
		for mended := time.Now(); ; time.Sleep(time.Second) {
			known, _, _ := look()
			if known == count {
				break
			}
			if time.Since(mended) > 10*time.Second {
				t.Fatalf("%d servers of %d are known 10 s after the last was mended", known, count)
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// Cookies that a server sends are seen within 5 s, however the moment lies.
func TestServersLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wires
		var cookies atomic.Int64
		w.serve(t, "192.0.2.7:9100", func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(900 * time.Millisecond) // as slow as it may be
			fmt.Fprintf(w, "node_netstat_TcpExt_SyncookiesSent %d\n", cookies.Load())
		})
		s := w.asker(t, ServersConfig{}, "192.0.2.7")
		go s.Run(t.Context())
		time.Sleep(10 * time.Second)
		for offset := range 20 {
			time.Sleep(time.Minute + time.Duration(offset)*100*time.Millisecond)
			was := cookies.Add(10)
			sent, worst := time.Now(), time.Duration(0)
			for only(t, s.Snapshot(time.Now())).SyncookiesSent.Total != uint64(was) {
				time.Sleep(10 * time.Millisecond)
				if worst = time.Since(sent); worst > 5*time.Second {
					t.Fatalf("cookies are not seen after %v", worst)
				}
			}
			if rate := only(t, s.Snapshot(time.Now())).SyncookiesSent.PerSecond; rate == nil || *rate <= 0 {
				t.Errorf("the rate of cookies is %v", rate)
			}
		}
	})
}

// TLS, and who is asked with which words. What is secret is nowhere shown.
func TestServersSecrets(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const secret = "open-sesame"
	var w wires
	asked := make(chan string, 100)
	server := &httptest.Server{Listener: w.listen("192.0.2.7:9100"), Config: &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked <- r.Header.Get("Authorization")
			io.WriteString(w, "node_memory_MemTotal_bytes 5\n")
		}),
		ErrorLog: log.New(io.Discard, "", 0),
	}}
	server.StartTLS()
	defer server.Close()
	authority := write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))

	token := write("token", secret+"\n")
	tls := ServersConfig{URLs: []string{"https://{address}:9100/metrics"}, CAFile: authority, ServerName: "example.com"}
	with := func(change func(*ServersConfig)) ServersConfig {
		cfg := tls
		change(&cfg)
		return cfg
	}
	tests := []struct {
		name    string
		cfg     ServersConfig
		header  string
		unknown string // a part of it
	}{
		{"TLS", tls, "", ""},
		{"token", with(func(c *ServersConfig) { c.BearerTokenFile = token }), "Bearer " + secret, ""},
		{"password", with(func(c *ServersConfig) { c.User, c.PasswordFile = "guard", token }), "Basic Z3VhcmQ6b3Blbi1zZXNhbWU=", ""},
		{"another name", with(func(c *ServersConfig) { c.ServerName = "example.net" }), "", "certificate is valid for"},
		{"the address as name", with(func(c *ServersConfig) { c.ServerName = "" }), "", "192.0.2.7"},
		{"no authority", with(func(c *ServersConfig) { c.CAFile = "" }), "", "unknown authority"},
		{"no TLS", with(func(c *ServersConfig) { c.URLs = []string{"http://{address}:9100/"} }), "", "it answers 400 Bad Request"},
		{"no file", with(func(c *ServersConfig) { c.BearerTokenFile = filepath.Join(dir, "none") }), "", "none: no such file"},
		{"empty file", with(func(c *ServersConfig) { c.BearerTokenFile = write("empty", "\n") }), "", "empty is empty"},
		{"two lines", with(func(c *ServersConfig) { c.BearerTokenFile = write("two", secret+"\nX-Other: 1\n") }), "", "want one line"},
		{"too long", with(func(c *ServersConfig) { c.BearerTokenFile = write("long", strings.Repeat(secret, 10000)) }), "", "want one line"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Interval, test.cfg.Timeout = 20*time.Second, 10*time.Second
			s := w.asker(t, test.cfg, "192.0.2.7")
			s.round(t.Context())
			got := only(t, s.Snapshot(time.Now()))
			if test.unknown != "" {
				if !strings.Contains(got.Unknown, test.unknown) || strings.Contains(got.Unknown, secret) {
					t.Errorf("unknown %q, want %q in it", got.Unknown, test.unknown)
				}
				if len(asked) > 0 {
					t.Errorf("it was asked with %q all the same", <-asked)
				}
				return
			}
			if got.Unknown != "" {
				t.Fatal(got.Unknown)
			}
			if header := <-asked; header != test.header {
				t.Errorf("asked with %q, want %q", header, test.header)
			}
		})
	}

	t.Run("another token", func(t *testing.T) {
		s := w.asker(t, with(func(c *ServersConfig) { c.BearerTokenFile = token }), "192.0.2.7")
		for _, word := range []string{"one", "two"} {
			write("token", word)
			s.round(t.Context())
			if header := <-asked; header != "Bearer "+word {
				t.Errorf("asked with %q while the file has %q", header, word)
			}
		}
	})
}

// A proxy of the environment is not used, and a redirect not followed.
func TestServersGoNowhereElse(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://192.0.2.200:3128")
	synctest.Test(t, func(t *testing.T) {
		var w wires
		w.serve(t, "192.0.2.7:9100", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.200/", http.StatusFound)
		})
		s := w.asker(t, ServersConfig{URLs: []string{"http://{address}:9100/"}}, "192.0.2.7")
		s.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "192.0.2.7:9100" {
				t.Errorf("dials %s", address)
			}
			return w.dial(ctx, network, address)
		}
		s.round(t.Context())
		if got := only(t, s.Snapshot(time.Now())); !strings.Contains(got.Unknown, "302 Found") {
			t.Errorf("unknown %q", got.Unknown)
		}
	})
}

func TestServersTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wires
		for _, a := range []string{"192.0.2.7", "[2001:db8::7]", "[fe80::7%eth0]"} {
			w.serve(t, a+":9100", answer("node_memory_MemTotal_bytes 5\n"))
		}
		s := w.asker(t, ServersConfig{}, "2001:db8::7", "192.0.2.7", "::ffff:192.0.2.7", "fe80::7%eth0", "192.0.2.7")
		s.SetTargets(append([]netip.Addr{{}}, addressesOf(s)...)) // the zero address is none
		s.round(t.Context())
		known := func() (all []string) {
			for _, server := range s.Snapshot(time.Now()) {
				all = append(all, strings.TrimSpace(fmt.Sprintf("%v %s %s", server.Address, server.URL, server.Unknown)))
			}
			return all
		}
		want := []string{
			"192.0.2.7 http://192.0.2.7:9100/metrics",
			"2001:db8::7 http://[2001:db8::7]:9100/metrics",
			"fe80::7%eth0 http://[fe80::7%25eth0]:9100/metrics",
		}
		if diff := cmp.Diff(want, known()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		// What stays is known on; what is new, or comes again, is not known yet.
		s.SetTargets(addressesOf(s)[1:])
		s.SetTargets([]netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")})
		if diff := cmp.Diff([]string{"192.0.2.7  not asked yet", want[1]}, known()); diff != "" {
			t.Errorf("after a change (-want +got):\n%s", diff)
		}
		s.SetTargets(nil)
		s.round(t.Context())
		if got := known(); got != nil {
			t.Errorf("without servers: %v", got)
		}
	})
}

func addressesOf(s *Servers) (all []netip.Addr) {
	for _, server := range s.Snapshot(time.Now()) {
		all = append(all, server.Address)
	}
	return all
}

func TestServersConfig(t *testing.T) {
	dir := t.TempDir()
	notPEM := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(notPEM, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	url := func(u string) ServersConfig { return ServersConfig{URLs: []string{u}} }
	tests := []struct {
		name string
		cfg  ServersConfig
		want string // empty: it is good
	}{
		{"nothing", ServersConfig{}, ""},
		{"another port", url("https://{address}/metrics?a=b"), ""},
		{"no address", url("http://192.0.2.7:9100/metrics"), `URL for real servers "http://192.0.2.7:9100/metrics": want {address} as its host, as in http://{address}:9100/metrics`},
		{"the address elsewhere", url("http://other:9100/{address}"), `URL for real servers "http://other:9100/{address}": want {address} as its host, as in http://{address}:9100/metrics`},
		{"the address twice", url("http://{address}:9100/{address}"), `URL for real servers "http://{address}:9100/{address}": want {address} as its host, as in http://{address}:9100/metrics`},
		{"a part of the host", url("http://{address}.example:9100/"), `URL for real servers "http://{address}.example:9100/": want {address} as its host, as in http://{address}:9100/metrics`},
		{"a file", url("file://{address}/etc"), `URL for real servers "file://{address}/etc": want http or https, as in http://{address}:9100/metrics`},
		{"a fragment", url("http://{address}/#a"), `URL for real servers "http://{address}/#a": want no #, as in http://{address}:9100/metrics`},
		{"no URL", url("http://{address}:port/s3cret"), "a URL for real servers cannot be read, want one as http://{address}:9100/metrics"},
		{"a password", url("http://me:s3cret@{address}/"), "a URL for real servers has a user or password in it: use those keys of the configuration, with the password in a file"},
		{"a long timeout", ServersConfig{Interval: time.Second}, "the timeout of a real server (1s) must be shorter than the interval (1s)"},
		{"a timeout before now", ServersConfig{Timeout: -1}, "the timeout of a real server (-1ns) must be shorter than the interval (2s)"},
		{"nobody at a time", ServersConfig{Concurrent: -1}, "-1 real servers at a time: want 1 or more"},
		{"no answer", ServersConfig{MaxBytes: -1}, "an answer of -1 bytes: want 1 or more"},
		{"token and password", ServersConfig{BearerTokenFile: "a", User: "b", PasswordFile: "c"}, "real servers are asked with a bearer token or with user and password, not with both"},
		{"a user alone", ServersConfig{User: "b"}, "a user for real servers needs a password file, and a password file a user"},
		{"a password alone", ServersConfig{PasswordFile: "b"}, "a user for real servers needs a password file, and a password file a user"},
		{"no authorities", ServersConfig{CAFile: dir + "/none"}, "read the authorities of real servers: open " + dir + "/none: no such file or directory"},
		{"no certificate", ServersConfig{CAFile: notPEM}, "read the authorities of real servers: " + notPEM + " has no certificate in PEM"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := NewServers(test.cfg)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// Whatever a server answers, there is an error, or figures that can be.
func FuzzServersPage(f *testing.F) {
	f.Add([]byte("# HELP node_memory_MemTotal_bytes Memory.\n# TYPE node_memory_MemTotal_bytes gauge\nnode_memory_MemTotal_bytes 2.5e+10\n"))
	f.Add([]byte("lvsguard_listen_accept_queue_share{listen=\"0.0.0.0:80\"} 0.875\nlvsguard_listen_accept_queue_share{listen=\"[::]:80\"} 1\n"))
	f.Add([]byte("node_netstat_TcpExt_SyncookiesSent{a=\"\\\"\\n\"} 7 8\n"))
	f.Add([]byte("node_netstat_TcpExt_SyncookiesSent 1e309\n{\"lvsguard_memory_total_bytes\"} 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p page
		first, err := p.read(bytes.NewReader(data), 64<<10)
		if err != nil {
			if text := safeText(err.Error(), 150); strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%q is shown", text)
			}
			return
		}
		if len(data) > 64<<10 || data[len(data)-1] != '\n' {
			t.Error("a page that is too long, or cut, is taken")
		}
		// What was read before leaves no trace.
		second, err := p.read(bytes.NewReader(data), 64<<10)
		if err != nil {
			t.Fatalf("the same page again: %v", err)
		}
		second.at = first.at.Add(time.Second)
		if !cmp.Equal(first.values, second.values, cmpopts.EquateNaNs()) {
			t.Errorf("%v, and again %v", first.values, second.values)
		}
		server := second.server(netip.IPv4Unspecified(), first)
		if server.SyncookiesSent != nil && *server.SyncookiesSent.PerSecond != 0 {
			t.Errorf("the rate between two equal pages is %v", *server.SyncookiesSent.PerSecond)
		}
		if len(figuresOf(server)) == 0 {
			t.Error("a page is taken that has no figure")
		}
	})
}

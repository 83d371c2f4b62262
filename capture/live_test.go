package capture

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// tap is a Live that runs, and all that it handed on.
type tap struct {
	*Live
	mu       sync.Mutex
	segments []Segment
	workers  []int // which handed on what
	calls    int
}

// listen captures on a host until the test ends.
func listen(t testing.TB, h *netns.Host, config LiveConfig) *tap {
	t.Helper()
	return run(t, open(t, h, config))
}

// run runs a Live until the test ends.
func run(t testing.TB, l *Live) *tap {
	t.Helper()
	p := &tap{Live: l}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, p.handle) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return p
}

// open opens a Live on a host. It is not closed.
func open(t testing.TB, h *netns.Host, config LiveConfig) *Live {
	t.Helper()
	var l *Live
	var err error
	h.Do(t, func() { l, err = OpenLive(config) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (p *tap) handle(worker int, now int64, batch []Segment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	for _, s := range batch {
		p.segments = append(p.segments, s)
		p.workers = append(p.workers, worker)
	}
}

// seen are the segments up to now, as text.
func (p *tap) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for i := range p.segments {
		all = append(all, text(&p.segments[i]))
	}
	return all
}

// text is a segment in one line: from, to, flags.
func text(s *Segment) string {
	var flags strings.Builder
	for i, letter := range "FSRPAUEC" {
		if s.Flags&(1<<i) != 0 {
			flags.WriteRune(letter)
		}
	}
	unreachable := ""
	if s.Unreachable {
		unreachable = " unreachable"
	}
	return fmt.Sprintf("%s > %s %s%s", s.From(), s.To(), flags.String(), unreachable)
}

// await waits until cond holds for what was seen.
func (p *tap) await(t testing.TB, what string, cond func(seen []string) bool) {
	t.Helper()
	wait(t, func() bool { return cond(p.seen()) }, func() string {
		s, err := p.Stats()
		return fmt.Sprintf("%s: did not come; seen:\n%s\n%+v %v", what, strings.Join(p.seen(), "\n"), s, err)
	})
}

func wait(t testing.TB, cond func() bool, complaint func() string) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(complaint())
		}
	}
}

// count is how many of seen contain s.
func count(seen []string, s string) int {
	n := 0
	for _, line := range seen {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

// host is a host whose IPv6 addresses are good at once.
func host(t testing.TB) *netns.Host {
	t.Helper()
	h := netns.New(t)
	h.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	return h
}

// pair makes two hosts with a wire between them and addresses on it.
func pair(t testing.TB) (client, server *netns.Host) {
	t.Helper()
	client, server = host(t), host(t)
	netns.Join(t, client, "wire", server, "eth0")
	give(t, client, "wire", "10.0.0.1/24", "2001:db8::1/64")
	give(t, server, "eth0", "10.0.0.2/24", "2001:db8::2/64")
	return client, server
}

func give(t testing.TB, h *netns.Host, dev string, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		args := []string{"address", "add", a, "dev", dev}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		h.Run(t, "ip", args...)
	}
}

// serve accepts connections on a host until the test ends, and closes them when
// the client does.
func serve(t testing.TB, h *netns.Host, addr string) {
	t.Helper()
	var l net.Listener
	var err error
	h.Do(t, func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var b [65536]byte
				for {
					if _, err := c.Read(b[:]); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// dial connects from a host, and closes the connection with the test.
func dial(t testing.TB, h *netns.Host, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	h.Do(t, func() { c, err = net.DialTimeout("tcp", addr, patience) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// threeWay is what a tap sees of one: the client's SYN, the server's SYN/ACK,
// the client's ACK.
func threeWay(client, server netip.AddrPort) []string {
	return []string{
		fmt.Sprintf("%s > %s S", client, server),
		fmt.Sprintf("%s > %s SA", server, client),
		fmt.Sprintf("%s > %s A", client, server),
	}
}

func local(c net.Conn) netip.AddrPort  { return c.LocalAddr().(*net.TCPAddr).AddrPort() }
func remote(c net.Conn) netip.AddrPort { return c.RemoteAddr().(*net.TCPAddr).AddrPort() }

// plain is seen without ECE and CWR.
func plain(seen []string) []string {
	var all []string
	for _, s := range seen {
		i := strings.LastIndexByte(s, ' ')
		all = append(all, s[:i]+strings.NewReplacer("E", "", "C", "").Replace(s[i:]))
	}
	return all
}

func TestHandshakes(t *testing.T) {
	for _, addr := range []string{"10.0.0.2:80", "[2001:db8::2]:80"} {
		t.Run(addr, func(t *testing.T) {
			client, server := pair(t)
			tap := listen(t, server, LiveConfig{Interfaces: []string{"eth0"}})
			if kind, reason := tap.Filter(); kind != "ebpf" {
				t.Fatalf("filter %s: %s", kind, reason)
			}
			serve(t, server, addr)
			c := dial(t, client, addr)
			want := threeWay(local(c), remote(c))
			tap.await(t, "the handshake", func(seen []string) bool { return slices.Equal(plain(seen), want) })
		})
	}
}

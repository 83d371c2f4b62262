package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// A queued is a pair of hosts of which one sends all UDP that comes to it through
// queue 5, and counts what comes out behind.
type queued struct {
	t      testing.TB
	server *netns.Host
	from   net.PacketConn
	counts *nftables.Conn
	sent   uint64
}

var passedTable = &nftables.Table{Name: "queued", Family: nftables.TableFamilyINet}

func newQueued(t testing.TB) *queued {
	t.Helper()
	client, server := pair(t)
	q := &queued{t: t, server: server}
	var err error
	client.Do(t, func() { q.from, err = net.ListenPacket("udp4", "10.0.0.1:0") })
	if err != nil {
		t.Fatal(err)
	}
	server.Do(t, func() { q.counts, err = nftables.New(nftables.AsLasting()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.from.Close(); q.counts.CloseLasting() })
	// Which of the two a kernel has tells the other's refusal.
	info := xt.Unknown(concat(native(5), native(1), native(1), native(0)))
	if q.rules(&expr.Queue{Num: 5, Total: 1, Flag: expr.QueueFlagBypass}) != nil {
		if err := q.rules(&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}); err != nil {
			t.Fatal(err)
		}
	}
	server.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
	client.Run(t, "ip", "neighbour", "replace", "10.0.0.2", "dev", "wire", "lladdr", "02:00:00:00:00:01")
	return q
}

func native(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }

func (q *queued) rules(toQueue expr.Any) error {
	udp := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{unix.IPPROTO_UDP}},
	}
	c := q.counts
	c.AddTable(passedTable)
	c.AddObj(&nftables.CounterObj{Table: passedTable, Name: "passed"})
	for i, last := range []expr.Any{toQueue, &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: "passed"}} {
		chain := c.AddChain(&nftables.Chain{
			Name: fmt.Sprint("c", i), Table: passedTable, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(i)),
		})
		c.AddRule(&nftables.Rule{Table: passedTable, Chain: chain, Exprs: append(udp[:2:2], last)})
	}
	return c.Flush()
}

func (q *queued) open(config QueueConfig) *Queue {
	q.t.Helper()
	var queue *Queue
	var err error
	q.server.Do(q.t, func() { queue, err = OpenQueue(config) })
	if err != nil {
		q.t.Fatal(err)
	}
	q.t.Cleanup(func() { queue.Close() })
	return queue
}

// send sends a datagram of this many bytes.
func (q *queued) send(bytes int) {
	q.t.Helper()
	if _, err := q.from.WriteTo(make([]byte, bytes), &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 9}); err != nil {
		q.t.Fatal(err)
	}
	q.sent++
}

func (q *queued) passed() uint64 {
	q.t.Helper()
	counter, err := q.counts.GetObject(&nftables.CounterObj{Table: passedTable, Name: "passed"})
	if err != nil {
		q.t.Fatal(err)
	}
	return counter.(*nftables.CounterObj).Packets
}

// awaitPassed waits until all but some have come out.
func (q *queued) awaitPassed(but uint64) {
	q.t.Helper()
	wait(q.t, func() bool { return q.passed() == q.sent-but }, func() string {
		return fmt.Sprintf("of %d packets %d came out, want %d", q.sent, q.passed(), q.sent-but)
	})
}

func stats(t testing.TB, q *Queue) QueueStats {
	t.Helper()
	s, err := q.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestQueue(t *testing.T) {
	q := newQueued(t)
	queue := q.open(QueueConfig{Number: 5})
	begun := time.Now().UnixNano()
	for _, bytes := range []int{12, 300} {
		q.send(bytes)
		q.awaitPassed(0)
	}
	var got []Packet
	wait(t, func() bool { got = append(got, queue.Take()...); return len(got) == 2 }, func() string { return "no samples" })
	for i := range got {
		p := &got[i]
		if p.Time < begun || p.Time > time.Now().UnixNano() {
			t.Errorf("packet %d is of %v", i, time.Unix(0, p.Time))
		}
		if want := min(int(p.Length), queueBytes); len(p.Data) != want {
			t.Errorf("packet %d: %d bytes, want %d", i, len(p.Data), want)
		}
		p.Time, p.Data = 0, p.Data[:min(len(p.Data), 1)]
	}
	want := []Packet{
		{Interface: "eth0", Link: LinkRaw, Length: 40, Data: []byte{0x45}, Weight: 1},
		{Interface: "eth0", Link: LinkRaw, Length: 328, Data: []byte{0x45}, Weight: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(QueueStats{Received: 2}, stats(t, queue)); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
	if err := queue.Close(); err != nil {
		t.Error(err)
	}
	q.send(12)
	q.awaitPassed(0)
	if _, err := queue.Stats(); err == nil {
		t.Error("a closed queue has figures")
	}
}

// TestQueueKeeps fills the buffer: the newest stay, in their order.
func TestQueueKeeps(t *testing.T) {
	q := newQueued(t)
	queue := q.open(QueueConfig{Number: 5, Keep: 4})
	for _, round := range []struct {
		send int
		want []uint32
	}{{3, []uint32{28, 29, 30}}, {4, []uint32{28, 29, 30, 31}}, {7, []uint32{31, 32, 33, 34}}, {0, nil}} {
		before := stats(t, queue).Received
		for i := range round.send {
			q.send(i)
		}
		wait(t, func() bool { return stats(t, queue).Received == before+uint64(round.send) }, func() string { return "not all were read" })
		var got []uint32
		for _, p := range queue.Take() {
			got = append(got, p.Length)
		}
		if diff := cmp.Diff(round.want, got); diff != "" {
			t.Errorf("of %d (-want +got):\n%s", round.send, diff)
		}
	}
	if s := stats(t, queue); s.Shed != 3 {
		t.Errorf("shed %d, want 3", s.Shed)
	}
}

// TestQueueHangs has the reader stop in mid-packet: it holds 64, all others pass,
// and in the end none is lost.
func TestQueueHangs(t *testing.T) {
	q := newQueued(t)
	queue := q.open(QueueConfig{Number: 5})
	queue.mu.Lock()
	for range 1000 {
		q.send(12)
	}
	// The one in hand has its verdict.
	q.awaitPassed(queueLength)
	queue.mu.Unlock()
	q.awaitPassed(0)
	if s := stats(t, queue); s.Lost != 0 || s.Unsent != 0 || s.Received != queueLength+1 {
		t.Errorf("figures: %+v", s)
	}
}

// TestQueueComesAndGoes opens and closes it while packets come, and loses none.
func TestQueueComesAndGoes(t *testing.T) {
	q := newQueued(t)
	for range 20 {
		queue := q.open(QueueConfig{Number: 5})
		closed := make(chan error)
		for i := range 300 {
			if i == 100 {
				go func() { closed <- queue.Close() }()
			}
			q.send(12)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
		q.awaitPassed(0)
	}
}

// TestQueueTaken asks for a queue that somebody has.
func TestQueueTaken(t *testing.T) {
	q := newQueued(t)
	first := q.open(QueueConfig{Number: 5})
	var err error
	q.server.Do(t, func() { _, err = OpenQueue(QueueConfig{Number: 5}) })
	name, readErr := os.ReadFile("/proc/self/comm")
	if readErr != nil {
		t.Fatal(readErr)
	}
	// The port of the process's first socket is its id; that one reads rules here.
	port := first.handler.Con.PID()
	want := fmt.Sprintf("netlink port %d", port)
	if int(port) == os.Getpid() {
		want = fmt.Sprintf("process %d (%q)", port, bytes.TrimSpace(name))
	}
	for _, part := range []string{"queue 5", want, "evidence.queue"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v: want %q in it", err, part)
		}
	}
	q.send(12)
	q.awaitPassed(0)
	q.open(QueueConfig{Number: 6})
}

func TestParseQueues(t *testing.T) {
	const text = "    5  1234     3 2   128    17     1       70  1\n65535 -4196      0 1     0     0     0        0  1\n"
	got, err := parseQueues(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []kernelQueue{{number: 5, port: 1234, waiting: 3, dropped: 17, unsent: 1}, {number: 65535, port: 1<<32 - 4196}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(kernelQueue{})); diff != "" {
		t.Errorf("queues (-want +got):\n%s", diff)
	}
	// A line that is cut is none, wherever it is cut.
	for i := range len(text) {
		got, err := parseQueues(text[:i])
		if whole := i == 0 || text[i-1] == '\n'; whole != (err == nil) || err != nil && got != nil {
			t.Errorf("cut at %d: %v, %v", i, got, err)
		}
	}
}

func FuzzQueues(f *testing.F) {
	f.Add("    5  1234     3 2   128    17     1       70  1\n")
	f.Add("    5 -1234     3 2\n")
	f.Fuzz(func(t *testing.T, text string) {
		queues, err := parseQueues(text)
		if err == nil && len(queues) != strings.Count(text, "\n") {
			t.Errorf("%d queues in %q", len(queues), text)
		}
	})
}

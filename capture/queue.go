package capture

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What a Queue is to the kernel.
const (
	// queueLength is how many packets it holds at most: those of a program that
	// has stopped. Any more pass.
	queueLength = 64
	// queueBytes are copied of each packet.
	queueBytes = 128
	// queueBuffer has room for many times queueLength.
	queueBuffer = 1 << 20
	// drainTime is how long Close waits for what is queued, at most.
	drainTime = 100 * time.Millisecond
)

// QueueConfig says which NFQUEUE is read.
type QueueConfig struct {
	Number uint16
	// Keep is how many packets wait for Take, at most; 0: 1024. Newer ones put
	// older ones out.
	Keep int
}

// A Queue takes samples of the packets that a rule sends to an NFQUEUE. Each
// passes at once, before its copy is kept. Those that come while
// 64 wait pass unseen, and so do all when the process has died, but for those
// that waited at that moment.
type Queue struct {
	number  uint16
	keep    int
	clock   clock
	handler *nfqueue.Nfqueue
	table   *os.File // the kernel's table of queues, in the Queue's namespace

	mu       sync.Mutex
	kept     []Packet
	oldest   int // in kept, when that is full
	received uint64
	shed     uint64
}

// OpenQueue begins to read an NFQUEUE in the network namespace of the calling
// thread; it must be open before rules send anything there. It needs
// CAP_NET_ADMIN. Where another program has the queue, the error tells which.
func OpenQueue(config QueueConfig) (_ *Queue, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open packet queue %d: %w", config.Number, err)
		}
	}()
	handler, err := nfqueue.Open(&nfqueue.Config{
		NfQueue: config.Number, MaxQueueLen: queueLength,
		Copymode: nfqueue.NfQnlCopyPacket, MaxPacketLen: queueBytes, Flags: nfqueue.NfQaCfgFlagFailOpen,
	})
	if err != nil {
		return nil, err
	}
	q := &Queue{number: config.Number, keep: cmp.Or(config.Keep, 1024), clock: clock{time.Now()}, handler: handler}
	// What does not fit passes: the kernel need not tell.
	err = errors.Join(handler.SetOption(netlink.NoENOBUFS, true), handler.Con.SetReadBuffer(queueBuffer))
	if err == nil {
		err = handler.RegisterWithErrorFunc(context.Background(), q.take, ended)
	}
	if err == nil {
		q.table, err = openQueues()
	}
	if err != nil {
		return nil, errors.Join(explainQueue(config.Number, err), handler.Close())
	}
	return q, nil
}

// explainQueue tells apart what the kernel gives the same error for.
func explainQueue(number uint16, err error) error {
	table, tableErr := openQueues()
	if tableErr == nil {
		defer table.Close()
		var queues []kernelQueue
		if queues, tableErr = readQueues(table); tableErr == nil {
			for _, k := range queues {
				if k.number == number {
					return fmt.Errorf("%s has it: choose another number (evidence.queue): %w", owner(k.port), err)
				}
			}
		}
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("it needs CAP_NET_ADMIN in this network namespace: %w", err)
	case errors.Is(err, unix.EINVAL), errors.Is(tableErr, os.ErrNotExist):
		return fmt.Errorf("the kernel has no nfnetlink_queue (modprobe nfnetlink_queue, CONFIG_NETFILTER_NETLINK_QUEUE): %w", err)
	default:
		return err
	}
}

// owner names the process that most likely has a netlink port: it is that one's
// id, unless the process has several ports.
func owner(port uint32) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", port))
	if err != nil {
		return fmt.Sprintf("another program (netlink port %d, see /proc/net/netlink)", port)
	}
	return fmt.Sprintf("process %d (%q)", port, bytes.TrimSpace(name))
}

// ended says whether reading is over. What else fails, as a verdict on a packet
// that the kernel has taken away, concerns one packet.
func ended(err error) int {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADF) {
		return 1
	}
	return 0
}

// take lets a packet pass, and whatever came before it and could not be read,
// and keeps a copy.
func (q *Queue) take(a nfqueue.Attribute) int {
	var name string
	if a.InDev != nil {
		name = q.interfaceName(*a.InDev) // Close waits for verdicts only
	}
	if a.PacketID != nil {
		// One that is not taken is taken with the next.
		_ = q.handler.SetVerdictBatch(*a.PacketID, nfqueue.NfAccept)
	}
	if a.Payload == nil {
		return 0
	}
	now, _ := q.clock.at(time.Now())
	p := Packet{Time: now, Link: LinkRaw, Length: uint32(len(*a.Payload)), Interface: name, Data: *a.Payload, Weight: 1}
	if a.CapLen != nil { // told where not all of it was copied
		p.Length = *a.CapLen
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.received++
	if len(q.kept) < q.keep {
		q.kept = append(q.kept, p)
		return 0
	}
	q.shed++
	q.kept[q.oldest] = p
	q.oldest = (q.oldest + 1) % q.keep
	return 0
}

// interfaceName asks in the Queue's own namespace; empty if the interface has
// gone.
func (q *Queue) interfaceName(index uint32) string {
	raw, err := q.handler.Con.SyscallConn()
	if err != nil {
		return ""
	}
	var name string
	_ = raw.Control(func(fd uintptr) {
		request, err := unix.NewIfreq("")
		if err != nil {
			return
		}
		request.SetUint32(index)
		if unix.IoctlIfreq(int(fd), unix.SIOCGIFNAME, request) == nil {
			name = request.Name()
		}
	})
	return name
}

// Take returns the packets that came since the last call, in their order. They
// begin with the IP header.
func (q *Queue) Take() []Packet {
	q.mu.Lock()
	defer q.mu.Unlock()
	packets := append(q.kept[q.oldest:len(q.kept):len(q.kept)], q.kept[:q.oldest]...)
	q.kept, q.oldest = nil, 0
	return packets
}

// QueueStats are a Queue's figures since it was opened.
type QueueStats struct {
	Received uint64 // packets that were read
	Shed     uint64 // those of them that had to make room before they were taken
	// Waiting are in the kernel now. Lost are those that the kernel had to drop;
	// Unsent those that it could not hand over.
	Waiting, Lost, Unsent uint64
}

// Stats returns the figures.
func (q *Queue) Stats() (QueueStats, error) {
	k, err := q.inKernel()
	if err != nil {
		return QueueStats{}, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return QueueStats{Received: q.received, Shed: q.shed, Waiting: k.waiting, Lost: k.dropped, Unsent: k.unsent}, nil
}

func (q *Queue) inKernel() (kernelQueue, error) {
	queues, err := readQueues(q.table)
	for _, k := range queues {
		if err == nil && k.number == q.number {
			return k, nil
		}
	}
	return kernelQueue{}, cmp.Or(err, fmt.Errorf("packet queue %d: the kernel has none any more", q.number))
}

// Close lets pass what comes from now on, waits until what is queued has passed
// too, and gives the queue back: no packet is lost.
func (q *Queue) Close() error {
	err := q.passAll()
	for end := time.Now().Add(drainTime); err == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		k, lookErr := q.inKernel()
		if lookErr != nil || k.waiting == 0 {
			break
		}
	}
	return errors.Join(err, q.handler.Close(), q.table.Close())
}

// passAll makes the queue's length 0, so that it is always full, which lets
// packets pass. The kernel has done so when the call returns; it is not asked
// for an answer, which another goroutine would read.
func (q *Queue) passAll() error {
	const (
		subsystem = unix.NFNL_SUBSYS_QUEUE << 8
		config    = 2 // NFQNL_MSG_CONFIG
		maxLength = 3 // NFQA_CFG_QUEUE_MAXLEN
	)
	length, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: maxLength, Data: make([]byte, 4)}})
	if err != nil {
		return err
	}
	header := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, q.number)
	_, err = q.handler.Con.Send(netlink.Message{
		Header: netlink.Header{Type: subsystem | config, Flags: netlink.Request},
		Data:   append(header, length...),
	})
	return err
}

// A kernelQueue is a line of the kernel's table of queues: seq_show in
// net/netfilter/nfnetlink_queue.c.
type kernelQueue struct {
	number  uint16
	port    uint32 // of the program that has it
	waiting uint64
	dropped uint64 // for want of room
	unsent  uint64 // for want of room in the program's socket
}

func openQueues() (*os.File, error) {
	return os.Open("/proc/thread-self/net/netfilter/nfnetlink_queue")
}

// readQueues reads the table from its beginning.
func readQueues(table io.ReaderAt) ([]kernelQueue, error) {
	text, err := io.ReadAll(io.NewSectionReader(table, 0, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the table of packet queues: %w", err)
	}
	return parseQueues(string(text))
}

func parseQueues(text string) ([]kernelQueue, error) {
	var queues []kernelQueue
	for line := range strings.Lines(text) {
		bad := fmt.Errorf("the table of packet queues: %q is no line of it", line)
		words := strings.Fields(line)
		if len(words) < 9 || !strings.HasSuffix(line, "\n") {
			return nil, bad
		}
		number, err1 := strconv.ParseUint(words[0], 10, 16)
		port, err2 := strconv.ParseInt(words[1], 10, 64) // negative in some kernels
		waiting, err3 := strconv.ParseUint(words[2], 10, 32)
		dropped, err4 := strconv.ParseUint(words[5], 10, 32)
		unsent, err5 := strconv.ParseUint(words[6], 10, 32)
		if errors.Join(err1, err2, err3, err4, err5) != nil {
			return nil, bad
		}
		queues = append(queues, kernelQueue{uint16(number), uint32(port), waiting, dropped, unsent})
	}
	return queues, nil
}

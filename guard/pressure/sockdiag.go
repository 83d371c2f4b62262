package pressure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// 62,000 sockets come as 7 MB of messages. A netlink socket of our own, one
// buffer and a decoder that looks at each message where it lies add a few
// milliseconds to the 60 that the kernel needs to write them.

var (
	// errMalformedNetlink is returned for an answer that does not hold what the
	// kernel's headers say it holds.
	errMalformedNetlink = errors.New("malformed netlink message")

	// errDumpInterrupted: what was being read changed meanwhile, so that some
	// of it may have been left out or told twice.
	errDumpInterrupted = errors.New("the kernel's table changed while it was read")
)

const (
	// netlinkTimeout bounds the wait for one answer.
	netlinkTimeout = 2 * time.Second

	// netlinkReceive is the most that the kernel writes into one answer to a
	// dump (net/netlink/af_netlink.c, netlink_recvmsg), however much is offered.
	netlinkReceive = 32 << 10

	netlinkHeader = 16 // struct nlmsghdr
)

// A netlinkConn is a netlink socket that dumps.
type netlinkConn struct {
	dial    func() (fd int, err error)
	fd      int
	seq     uint32
	receive []byte
	send    []byte
}

// dialNetlink opens a socket of a netlink protocol. It belongs to the network
// namespace of the calling thread.
func dialNetlink(protocol int) (*netlinkConn, error) {
	c := &netlinkConn{receive: make([]byte, netlinkReceive)}
	c.dial = func() (int, error) {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		return fd, os.NewSyscallError("socket", err)
	}
	var err error
	c.fd, err = c.dial()
	return c, err
}

func (c *netlinkConn) close() error { return unix.Close(c.fd) }

// dump sends a request for all there is and calls each with the body of every
// message of the answer. A body is valid only until each returns.
//
// A dump that the kernel could not finish for want of memory, or that was
// overtaken by changes, is done again, once: begin is called before each.
func (c *netlinkConn) dump(ctx context.Context, kind uint16, request []byte, begin func(), each func(body []byte) error) error {
	for attempt := 0; ; attempt++ {
		begin()
		err := c.dumpOnce(ctx, kind, request, each)
		if err == nil {
			return nil
		}
		// The socket may hold the rest of an answer, and would be busy with it.
		if fd, dialErr := c.dial(); dialErr == nil {
			unix.Close(c.fd)
			c.fd = fd
		}
		if attempt > 0 || !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, errDumpInterrupted) {
			return err
		}
	}
}

func (c *netlinkConn) dumpOnce(ctx context.Context, kind uint16, request []byte, each func(body []byte) error) error {
	c.seq++
	m := c.send[:0]
	m = binary.NativeEndian.AppendUint32(m, uint32(netlinkHeader+len(request)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	m = binary.NativeEndian.AppendUint32(m, c.seq)
	m = binary.NativeEndian.AppendUint32(m, 0) // port: the kernel fills in ours
	m = append(m, request...)
	c.send = m
	if err := again(func() error { _, err := unix.Write(c.fd, m); return err }); err != nil {
		return os.NewSyscallError("send", err)
	}
	interrupted := false
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := c.read(ctx)
		if err != nil {
			return err
		}
		done, err := eachNetlink(c.receive[:n], c.seq, &interrupted, each)
		if err != nil {
			return err
		}
		if done && interrupted {
			return errDumpInterrupted
		}
		if done {
			return nil
		}
	}
}

// read reads one answer into c.receive and returns its length.
//
// The kernel writes the next answer while the one before is read: there is
// nothing to wait for, and so the Go scheduler is not told of the call. To tell
// it costs a twentieth of the reading, as it looks after calls that last as long
// as these, some 0.2 ms.
func (c *netlinkConn) read(ctx context.Context) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&c.receive[0])), uintptr(len(c.receive)))
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			if err := c.wait(ctx); err != nil {
				return 0, err
			}
		case errno != 0:
			return 0, os.NewSyscallError("receive", errno)
		case n == 0:
			return 0, errMalformedNetlink // no answer is empty
		default:
			return int(n), nil
		}
	}
}

// wait waits for an answer.
func (c *netlinkConn) wait(ctx context.Context) error {
	timeout := netlinkTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(min(timeout, time.Until(deadline)), 0)
	}
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	var n int
	err := again(func() (err error) { n, err = unix.Poll(fds, int(timeout.Milliseconds())+1); return err })
	if err != nil {
		return os.NewSyscallError("poll", err)
	}
	if n == 0 {
		return fmt.Errorf("no answer from the kernel within %v: %w", timeout, os.ErrDeadlineExceeded)
	}
	return nil
}

// again repeats a system call that a signal has interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// eachNetlink calls each with the body of every message in b that answers
// request seq. It returns true after the last of the answer.
func eachNetlink(b []byte, seq uint32, interrupted *bool, each func(body []byte) error) (done bool, err error) {
	for len(b) > 0 {
		if len(b) < netlinkHeader {
			return false, errMalformedNetlink
		}
		length := int(binary.NativeEndian.Uint32(b))
		if length < netlinkHeader || length > len(b) {
			return false, errMalformedNetlink
		}
		kind := binary.NativeEndian.Uint16(b[4:])
		flags := binary.NativeEndian.Uint16(b[6:])
		answers := binary.NativeEndian.Uint32(b[8:])
		body := b[netlinkHeader:length]
		b = b[min(alignNetlink(length), len(b)):]
		if answers != seq {
			continue
		}
		if flags&unix.NLM_F_DUMP_INTR != 0 {
			*interrupted = true
		}
		switch kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errMalformedNetlink
			}
			if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
				return true, unix.Errno(-code)
			}
			return true, nil
		case unix.NLMSG_OVERRUN:
			return true, unix.ENOBUFS
		case unix.NLMSG_NOOP:
		default:
			if err := each(body); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// alignNetlink rounds a length up to the four bytes that netlink pads to.
func alignNetlink(n int) int { return (n + 3) &^ 3 }

// nextAttribute splits the first attribute off a list of them.
func nextAttribute(b []byte) (kind uint16, value, rest []byte, err error) {
	if len(b) < 4 {
		return 0, nil, nil, errMalformedNetlink
	}
	length := int(binary.NativeEndian.Uint16(b))
	if length < 4 || length > len(b) {
		return 0, nil, nil, errMalformedNetlink
	}
	kind = binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	return kind, b[4:length], b[min(alignNetlink(length), len(b)):], nil
}

// What follows is of linux/inet_diag.h.

const (
	// diagGetTCP asks for the sockets of both families in one walk over the
	// kernel's table. SOCK_DIAG_BY_FAMILY, which came later, needs a walk for
	// each, and one costs an eighth even where it finds nothing. Every kernel
	// with inet_diag knows both.
	diagGetTCP = 18 // TCPDIAG_GETSOCK

	diagIDSize      = 48 // struct inet_diag_sockid
	diagMessageSize = 72 // struct inet_diag_msg

	diagInfo   = 2  // INET_DIAG_INFO: struct tcp_info
	diagV6Only = 11 // INET_DIAG_SKV6ONLY
	tcpInfoRTT = 68 // offset of tcpi_rtt in struct tcp_info, in microseconds
)

// A tcpSocket is what the kernel says of one TCP socket.
type tcpSocket struct {
	local, remote endpoint
	state         TCPState
	v6Only        bool   // of a listening socket: it takes no IPv4 connections
	receiveQueue  uint32 // bytes; of a listening socket: connections that wait for accept
	sendQueue     uint32 // bytes; of a listening socket: limit of the accept queue
	rtt           uint32 // microseconds; 0 where it is not known
}

// An address is an IPv6 address in two words, an IPv4 one mapped into IPv6
// (RFC 4291, section 2.5.5.2). It makes a cheaper key than netip.Addr.
type address struct{ hi, lo uint64 }

// An endpoint is an address and a port. The port takes a word, as a key without
// padding is hashed in one go.
type endpoint struct {
	address
	port uint64
}

const mappedIPv4 = 0xffff << 32

func ipv4Address(b []byte) address {
	return address{lo: mappedIPv4 | uint64(binary.BigEndian.Uint32(b))}
}

func ipv6Address(b []byte) address {
	return address{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func (a address) isIPv4() bool { return a.hi == 0 && a.lo>>32 == 0xffff }

// appendDiagRequest appends a request for TCP sockets in the states of a mask
// (bit n is state n), with their RTT if that is asked for.
//
// INET_DIAG_INFO makes a message three times as long and the kernel lock each
// socket, and is the only extension that has the RTT.
func appendDiagRequest(b []byte, states uint32, rtt bool) []byte {
	var ext byte
	if rtt {
		ext = 1 << (diagInfo - 1)
	}
	b = append(b, unix.AF_INET, 0, 0, ext)
	b = append(b, make([]byte, diagIDSize)...) // any address
	b = binary.NativeEndian.AppendUint32(b, states)
	return binary.NativeEndian.AppendUint32(b, 0)
}

// decode reads a message about a socket into s, with those attributes that are
// asked for.
func (s *tcpSocket) decode(b []byte, attributes bool) error {
	if len(b) < diagMessageSize {
		return errMalformedNetlink
	}
	id := b[4 : 4+diagIDSize]
	switch b[0] {
	case unix.AF_INET:
		s.local.address, s.remote.address = ipv4Address(id[4:]), ipv4Address(id[20:])
	case unix.AF_INET6:
		s.local.address, s.remote.address = ipv6Address(id[4:]), ipv6Address(id[20:])
	default:
		return errMalformedNetlink
	}
	s.local.port = uint64(binary.BigEndian.Uint16(id))
	s.remote.port = uint64(binary.BigEndian.Uint16(id[2:]))
	s.state = tcpState(b[1])
	s.receiveQueue = binary.NativeEndian.Uint32(b[56:])
	s.sendQueue = binary.NativeEndian.Uint32(b[60:])
	s.rtt, s.v6Only = 0, false
	if !attributes {
		return nil
	}
	for rest := b[diagMessageSize:]; len(rest) > 0; {
		var kind uint16
		var value []byte
		var err error
		if kind, value, rest, err = nextAttribute(rest); err != nil {
			return err
		}
		switch {
		case kind == diagInfo && len(value) >= tcpInfoRTT+4: // it grows with the kernel
			s.rtt = binary.NativeEndian.Uint32(value[tcpInfoRTT:])
		case kind == diagV6Only && len(value) > 0:
			s.v6Only = value[0] != 0
		}
	}
	return nil
}

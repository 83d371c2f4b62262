package netns

import (
	"fmt"
	"net"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sender sends frames on one device as they are.
type Sender struct {
	fd int
}

// Sender opens a device of h for sending. It is closed with the test.
func (h *Host) Sender(t testing.TB, dev string) *Sender {
	t.Helper()
	s := &Sender{fd: -1}
	var err error
	h.Do(t, func() { s.fd, err = openPacket(dev) })
	if err != nil {
		t.Fatalf("open %s to send frames: %v", dev, err)
	}
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

func openPacket(dev string) (int, error) {
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // 0: receives nothing
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	// Without a queueing discipline a frame is received before the call that
	// sends it returns, which is what tests and benchmarks want.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// Send sends frames, Ethernet header first, in as few calls as it can.
func (s *Sender) Send(frames ...[]byte) error {
	msgs := make([]mmsghdr, len(frames))
	iovs := make([]unix.Iovec, len(frames))
	for i, f := range frames {
		iovs[i].Base = &f[0]
		iovs[i].SetLen(len(f))
		msgs[i].hdr.Iov = &iovs[i]
		msgs[i].hdr.SetIovlen(1)
	}
	for len(msgs) > 0 {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd),
			uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
		switch errno {
		case 0:
			msgs = msgs[n:]
		case unix.ENOBUFS, unix.EINTR: // the receiver's backlog is full for a moment
		default:
			return fmt.Errorf("send frames: %w", errno)
		}
	}
	return nil
}

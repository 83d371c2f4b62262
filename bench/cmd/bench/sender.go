package main

import (
	"fmt"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/bench/mix"
)

// packets are all of a mix, made beforehand, in one piece that the garbage
// collector does not look into.
type packets struct {
	bytes []byte
	ends  []int // of each packet in bytes
	times []time.Duration
}

// prepare makes the packets of a mix as they come to a host with the given
// hardware address.
func prepare(config mix.Config, to net.HardwareAddr) *packets {
	var p packets
	for at, frame := range config.Frames() {
		begin := len(p.bytes)
		p.bytes = append(p.bytes, frame...)
		copy(p.bytes[begin:], to)
		p.ends = append(p.ends, len(p.bytes))
		p.times = append(p.times, at)
	}
	return &p
}

// A sender sends packets on one interface, many a system call.
type sender struct {
	socket   int
	vectors  [64]unix.Iovec
	messages [64]message
}

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
}

// newSender opens an interface in the network of the calling thread.
func newSender(name string) (*sender, error) {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // 0: it receives nothing
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	s := &sender{socket: socket}
	for i := range s.messages {
		s.messages[i].header.Iov = &s.vectors[i]
		s.messages[i].header.SetIovlen(1)
	}
	if err = unix.Bind(socket, &unix.SockaddrLinklayer{Ifindex: device.Index}); err == nil {
		// Without a queue, what the interface does not take is told at once.
		err = unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	}
	if err != nil {
		unix.Close(socket)
		return nil, fmt.Errorf("packet socket on %s: %w", name, err)
	}
	return s, nil
}

func (s *sender) close() { unix.Close(s.socket) }

// A sending is what it took to send packets: time, and that of a processor, in
// which the kernel brings each packet as far as to a socket. Due is when the
// last of them had its time.
type sending struct {
	packets        int
	due, took, cpu time.Duration
}

func (s sending) rate() float64 { return float64(s.packets) / s.took.Seconds() }

// ns is the processor's time for a packet.
func (s sending) ns() float64 { return float64(s.cpu.Nanoseconds()) / float64(s.packets) }

// send sends all packets, each once: at their times, or as fast as can be. The
// calling goroutine must have its thread for itself.
func (s *sender) send(p *packets, fast bool) (sending, error) {
	start, cpu := time.Now(), threadTime()
	for next := 0; next < len(p.ends); {
		count := min(len(s.messages), len(p.ends)-next)
		if !fast {
			now := time.Since(start)
			due := 0
			for due < count && p.times[next+due] <= now {
				due++
			}
			if count = due; due == 0 {
				time.Sleep(min(time.Millisecond, p.times[next]-now))
				continue
			}
		}
		if err := s.batch(p, next, count); err != nil {
			return sending{}, err
		}
		next += count
	}
	return sending{
		packets: len(p.ends), due: p.times[len(p.times)-1],
		took: time.Since(start), cpu: threadTime() - cpu,
	}, nil
}

// threadTime is the processor's time that the calling thread has had.
func threadTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // which every Linux has
	return time.Duration(t.Nano())
}

// batch sends some packets, and those again that were not taken.
func (s *sender) batch(p *packets, first, count int) error {
	for i := range count {
		begin := 0
		if first+i > 0 {
			begin = p.ends[first+i-1]
		}
		s.vectors[i].Base = &p.bytes[begin]
		s.vectors[i].SetLen(p.ends[first+i] - begin)
	}
	for done := 0; done < count; {
		// Raw, as the runtime need not know of a call that does not wait.
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.socket),
			uintptr(unsafe.Pointer(&s.messages[done])), uintptr(count-done), 0, 0, 0)
		switch errno {
		case 0:
			done += int(n)
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS: // the receiver's backlog is full for a moment
		default:
			return fmt.Errorf("send packets: %w", errno)
		}
	}
	return nil
}

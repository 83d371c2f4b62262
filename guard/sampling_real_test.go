package guard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/internal/netns"
	"github.com/lvsguard/lvsguard/nft"
)

// synFrame is a SYN to 192.0.2.1:80 on the wire.
func synFrame(t testing.TB, i int, window uint16, options ...layers.TCPOption) []byte {
	t.Helper()
	ip := &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP,
		SrcIP: net.IPv4(198, 51, 100, byte(1+i%250)), DstIP: net.IPv4(192, 0, 2, 1),
	}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(1024 + i), DstPort: 80, SYN: true, Window: window, Options: options}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv4},
		ip, tcp)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestSamplingReal takes samples on this kernel, in whichever way it has: of what
// bears the signature and nothing else, and every SYN is counted once, and
// dropped if its service is armed, as without them.
func TestSamplingReal(t *testing.T) {
	attacker, director := netns.New(t), netns.New(t)
	netns.Join(t, attacker, "wire", director, "eth0")
	director.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
	director.Run(t, "ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
	wire := attacker.Sender(t, "wire")
	var table *nft.Table
	var err error
	director.Do(t, func() { table, err = nft.Open(nft.Config{}) })
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	s := &sampling{number: sampleQueue, open: func(c capture.QueueConfig) (q Queue, err error) {
		director.Do(t, func() { q, err = capture.OpenQueue(c) })
		return q, err
	}}
	now := time.Now()
	if s.keep(now, table, false); s.way != "" {
		t.Errorf("without a table the way is %q", s.way)
	}
	watched := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}
	if _, err := table.Ensure(watched); err != nil {
		t.Fatal(err)
	}
	s.keep(now, table, false)
	if s.way != SampleByQueue && s.way != SampleByCompat {
		t.Fatalf("the way is %q: %s", s.way, s.reason)
	}
	t.Logf("by %s %s", s.way, s.reason)

	const bursts, flood, honest = 10, 100, 5
	mss := layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}
	for round, armed := range []bool{false, true} {
		if armed {
			if err := table.Arm(map[netip.AddrPort]time.Duration{watched[0]: time.Minute}); err != nil {
				t.Fatal(err)
			}
		}
		s.keep(now, table, true)
		for range bursts {
			for i := range flood {
				if err := wire.Send(synFrame(t, i, 0)); err != nil {
					t.Fatal(err)
				}
			}
			for i := range honest {
				if err := wire.Send(synFrame(t, i, 64240, mss)); err != nil {
					t.Fatal(err)
				}
			}
		}
		now = now.Add(sampleLinger)
		s.keep(now, table, false) // what waits in the queue passes
		if s.queue != nil {
			t.Error("it goes on after the flood")
		}
		if state, err := table.State(); err != nil || table.Check() != nil {
			t.Errorf("afterwards: %v, %v", err, table.Check())
		} else if n := len(state.Chains); n != 7 {
			t.Errorf("%d chains are left", n)
		}

		samples := s.take()
		for i, p := range samples {
			whole := gopacket.NewPacket(p.Data, layers.LayerTypeIPv4, gopacket.Default)
			tcp, ok := whole.Layer(layers.LayerTypeTCP).(*layers.TCP)
			if !ok || !tcp.SYN || tcp.Window != 0 || p.Length != 40 || p.Interface != "eth0" || p.Link != capture.LinkRaw {
				t.Fatalf("sample %d is none of the flood's: %+v\n%s", i, p, whole)
			}
		}
		// A burst passes the limit at once.
		if n := len(samples); n < 64 || n > bursts*flood {
			t.Errorf("%d samples", n)
		}
		counters, err := table.Counters()
		if err != nil {
			t.Fatal(err)
		}
		want := nft.ServiceCounters{
			SYN:     nft.Count{Packets: bursts * (flood + honest), Bytes: bursts * (40*flood + 44*honest)},
			Suspect: nft.Count{Packets: bursts * flood, Bytes: bursts * 40 * flood},
		}
		dropped := want.Suspect
		for range round {
			want.SYN, want.Suspect = want.SYN.Add(want.SYN), want.Suspect.Add(want.Suspect)
			want.Dropped = dropped
		}
		want.Signatures = map[string]nft.Count{"window0": want.Suspect}
		if diff := cmp.Diff(want, counters.Services[watched[0]]); diff != "" {
			t.Errorf("armed %t (-want +got):\n%s", armed, diff)
		}
	}

	// Another program has the queue: that is said, and the table has no sample.
	var other Queue
	director.Do(t, func() { other, err = capture.OpenQueue(capture.QueueConfig{Number: sampleQueue}) })
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if !s.keep(now, table, true) || s.way != SampleByCapture {
		t.Errorf("somebody else has the queue: %s", s.way)
	}
	if want := fmt.Sprintf("open packet queue %d: ", sampleQueue); len(s.reason) < len(want) || s.reason[:len(want)] != want {
		t.Errorf("the reason is %q", s.reason)
	}
	if err := table.Check(); err != nil {
		t.Error(err)
	}
}

// connect tells how long it takes to connect, without what Go adds to that.
func connect(to netip.AddrPort) (time.Duration, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(socket)
	start := time.Now()
	err = unix.Connect(socket, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	return time.Since(start), err
}

// BenchmarkSampling measures what a client feels of samples: how long it takes to
// connect to a service whose flood, at the wire's full speed, is dropped, with
// samples taken at 500 a second and without, by turns.
//
//	go test -run '^$' -bench Sampling -benchtime 1x ./guard
func BenchmarkSampling(b *testing.B) {
	const turns, connects = 40, 200
	attacker, director := netns.New(b), netns.New(b)
	netns.Join(b, attacker, "wire", director, "eth0")
	director.Run(b, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
	director.Run(b, "ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
	attacker.Run(b, "ip", "address", "add", "192.0.2.2/24", "dev", "wire")
	wire := attacker.Sender(b, "wire")
	var table *nft.Table
	var listener net.Listener
	var err, listenErr error
	director.Do(b, func() {
		table, err = nft.Open(nft.Config{})
		listener, listenErr = net.Listen("tcp", "192.0.2.1:80")
	})
	if err := errors.Join(err, listenErr); err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	watched := netip.MustParseAddrPort("192.0.2.1:80")
	if _, err := table.Ensure([]netip.AddrPort{watched}); err != nil {
		b.Fatal(err)
	}
	if err := table.Arm(map[netip.AddrPort]time.Duration{watched: time.Hour}); err != nil {
		b.Fatal(err)
	}
	s := &sampling{number: sampleQueue, open: func(c capture.QueueConfig) (q Queue, err error) {
		director.Do(b, func() { q, err = capture.OpenQueue(c) })
		return q, err
	}}
	var frames [][]byte
	for i := range 64 {
		frames = append(frames, synFrame(b, i, 0))
	}
	var sent atomic.Uint64
	var stop atomic.Bool
	ended := make(chan error)
	go func() {
		for !stop.Load() {
			if err := wire.Send(frames...); err != nil {
				ended <- err
				return
			}
			sent.Add(uint64(len(frames)))
		}
		ended <- nil
	}()
	took := map[bool][]float64{}
	var samples int
	now, begun := time.Now(), time.Now()
	for range turns * b.N {
		for _, on := range []bool{false, true} {
			now = now.Add(time.Hour) // past any waiting
			s.keep(now, table, on)
			attacker.Do(b, func() {
				for range connects {
					var d time.Duration
					if d, err = connect(watched); err != nil {
						return
					}
					took[on] = append(took[on], float64(d.Microseconds()))
				}
			})
			if err != nil {
				b.Fatal(err)
			}
			samples += len(s.take())
		}
	}
	flood := float64(sent.Load()) / time.Since(begun).Seconds()
	stop.Store(true)
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	quantile := func(on bool, q float64) float64 {
		slices.Sort(took[on])
		return took[on][int(q*float64(len(took[on])))]
	}
	b.ReportMetric(0, "ns/op")
	b.Logf("flood of %.0f packets/s, %d samples", flood, samples)
	for name, q := range map[string]float64{"median": 0.5, "p99": 0.99} {
		b.Logf("%s: %.0f µs without samples, %.0f with: %.3f", name, quantile(false, q), quantile(true, q), quantile(true, q)/quantile(false, q))
		b.ReportMetric(quantile(true, q)/quantile(false, q), name+"-ratio")
	}
}

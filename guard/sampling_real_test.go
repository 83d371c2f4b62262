package guard

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/internal/netns"
	"github.com/lvsguard/lvsguard/nft"
)

// synFrame is a SYN to 192.0.2.1:80 on the wire.
func synFrame(t *testing.T, i int, window uint16, options ...layers.TCPOption) []byte {
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

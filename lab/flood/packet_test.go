package flood

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	gateway  = net.HardwareAddr{2, 0, 0, 0, 4, 1}
	hardware = net.HardwareAddr{2, 0, 0, 0, 4, 2}
)

// TestPacket compares whole frames, but for what is random in them.
func TestPacket(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		want   string // "??" is random
	}{
		{
			name:   "that night's SYN",
			config: Config{Targets: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.101:80")}},
			want: "02 00 00 00 04 01 02 00 00 00 04 02 08 00 " +
				"45 00 00 28 ?? ?? 00 00 40 06 ?? ?? ?? ?? ?? ?? c0 00 02 65 " +
				"?? ?? 00 50 ?? ?? ?? ?? 00 00 00 00 50 02 00 00 ?? ?? 00 00",
		},
		{
			name: "all of it set",
			config: Config{
				Targets: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.101:443")},
				Sources: netip.MustParsePrefix("198.51.100.7/32"), SourcePort: 6000,
				Flags: 0xc2, Window: 1024, TTL: 255, Options: []byte{2, 4, 5, 0xb4},
			},
			want: "02 00 00 00 04 01 02 00 00 00 04 02 08 00 " +
				"45 00 00 2c ?? ?? 00 00 ff 06 ?? ?? c6 33 64 07 c0 00 02 65 " +
				"17 70 01 bb ?? ?? ?? ?? 00 00 00 00 60 c2 04 00 ?? ?? 00 00 02 04 05 b4",
		},
		{
			name:   "IPv6",
			config: Config{Targets: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:80")}, Sources: netip.MustParsePrefix("2001:db8:aa00::/38")},
			want: "02 00 00 00 04 01 02 00 00 00 04 02 86 dd " +
				"60 00 00 00 00 14 06 40 20 01 0d b8 ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? " +
				"20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01 " +
				"?? ?? 00 50 ?? ?? ?? ?? 00 00 00 00 50 02 00 00 ?? ?? 00 00",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.config.Gateway = gateway
			if err := test.config.complete(); err != nil {
				t.Fatal(err)
			}
			random, sources := rand.NewPCG(1, 2), newBlock(test.config.Sources)
			template := newTemplate(test.config, test.config.Targets[0], hardware)
			frame := make([]byte, len(template.frame))
			for range 1000 {
				template.packet(frame, random, &sources, test.config.SourcePort != 0)
				checkSums(t, frame)
			}
			if diff := cmp.Diff(test.want, pattern(test.want, frame)); diff != "" {
				t.Errorf("frame (-want +got):\n%s", diff)
			}
		})
	}
}

// pattern writes a frame in hexadecimal, with question marks where want has them.
func pattern(want string, frame []byte) string {
	const digits = "0123456789abcdef"
	var got []byte
	for _, b := range frame {
		got = append(got, digits[b>>4], digits[b&15], ' ')
	}
	for i := range min(len(got), len(want)) {
		if want[i] == '?' {
			got[i] = '?'
		}
	}
	return string(got[:max(0, len(got)-1)])
}

// checkSums adds up what the receiver adds up: with its checksum, everything comes to zero.
func checkSums(t *testing.T, frame []byte) {
	t.Helper()
	packet, addresses, segment := frame[etherLength:], []byte(nil), []byte(nil)
	if packet[0]>>4 == 4 {
		if got := fold(sum(packet[:ipv4Length])); got != 0 {
			t.Fatalf("IPv4 header adds up to %#x", got)
		}
		addresses, segment = packet[12:20], packet[ipv4Length:]
	} else {
		addresses, segment = packet[8:40], packet[ipv6Length:]
	}
	pseudo := binary.BigEndian.AppendUint32(slices.Clone(addresses), uint32(len(segment)))
	pseudo = append(pseudo, 0, 0, 0, protocolTCP)
	if got := fold(sum(pseudo) + sum(segment)); got != 0 {
		t.Fatalf("TCP segment adds up to %#x: % x", got, frame)
	}
}

func TestSources(t *testing.T) {
	random := rand.NewPCG(1, 2)
	for _, prefix := range []string{"0.0.0.0/0", "198.51.100.0/25", "2000::/4", "2001:db8:aa00::/39"} {
		sources := netip.MustParsePrefix(prefix)
		b := newBlock(sources)
		seen := map[netip.Addr]bool{}
		source := sources.Addr().AsSlice()
		for range 200 {
			b.fill(source, random)
			addr, _ := netip.AddrFromSlice(source)
			if !sources.Contains(addr) || addr.IsLoopback() || addr.IsMulticast() {
				t.Errorf("%s: source %s", prefix, addr)
			}
			seen[addr] = true
		}
		if len(seen) < 90 {
			t.Errorf("%s: only %d sources in 200 packets", prefix, len(seen))
		}
	}
}

func TestDue(t *testing.T) {
	for _, test := range []struct {
		name    string
		config  Config
		elapsed time.Duration
		sent    uint64
		want    int
	}{
		{"no bound", Config{}, time.Second, 1e6, batch},
		{"behind the rate", Config{Rate: 1000}, time.Second, 0, batch},
		{"almost at the rate", Config{Rate: 1000}, time.Second, 990, 10},
		{"at the rate", Config{Rate: 1000}, time.Second, 1000, 0},
		{"ahead of the rate", Config{Rate: 1000}, time.Second, 1100, 0},
		{"almost at the count", Config{Count: 100}, time.Second, 97, 3},
		{"at the count", Config{Count: 100}, time.Second, 100, 0},
	} {
		g := Generator{config: test.config}
		if got := g.due(test.elapsed, test.sent); got != test.want {
			t.Errorf("%s: %d packets are due, want %d", test.name, got, test.want)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")
	for name, config := range map[string]Config{
		"no targets":              {Gateway: gateway},
		"both IP versions":        {Gateway: gateway, Targets: []netip.AddrPort{v4, v6}},
		"sources of the other":    {Gateway: gateway, Targets: []netip.AddrPort{v6}, Sources: netip.MustParsePrefix("10.0.0.0/8")},
		"options cut off":         {Gateway: gateway, Targets: []netip.AddrPort{v4}, Options: []byte{2, 4, 5}},
		"gateway is not hardware": {Targets: []netip.AddrPort{v4}},
	} {
		if err := config.complete(); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

// BenchmarkPacket is what a packet costs before the kernel sees it.
func BenchmarkPacket(b *testing.B) {
	config := Config{Targets: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.101:80")}, Gateway: gateway}
	if err := config.complete(); err != nil {
		b.Fatal(err)
	}
	random, sources := rand.NewPCG(1, 2), newBlock(config.Sources)
	template := newTemplate(config, config.Targets[0], hardware)
	frame := make([]byte, len(template.frame))
	b.ReportAllocs()
	for b.Loop() {
		template.packet(frame, random, &sources, false)
	}
}

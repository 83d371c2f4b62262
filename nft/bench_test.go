package nft

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// BenchmarkPacket measures what a packet costs on its way over a veth pair
// into a host with an empty prerouting chain, and with ours: not armed, armed,
// and armed with a sample taken. All are measured in one run, in turns, in short
// slices of which the fastest tenth counts, as everything else that the machine
// does only adds. The host serves the port and answers each SYN with a SYN
// cookie, so that all SYNs cost the same.
//
//	go test -run '^$' -bench Packet -benchtime 1x ./nft
func BenchmarkPacket(b *testing.B) {
	const (
		rounds  = 40
		repeats = 8
		burst   = 256
	)
	s := newSite(b)
	s.director.Run(b, "nft", "delete", "table", "inet", "probe")
	s.director.Run(b, "sh", "-ec", `
		ip address add 192.0.2.1/32 dev lo
		ip -6 address add 2001:db8::1/128 dev lo nodad
		ip -6 address add 2001:db8:f::99/64 dev wire nodad
		sysctl -qw net.ipv4.tcp_syncookies=2 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.wire.rp_filter=0
		ip neighbour replace 192.0.2.7 lladdr 02:00:00:00:00:09 dev wire
		ip -6 neighbour replace 2001:db8:f::7 lladdr 02:00:00:00:00:09 dev wire
		ip route add default via 192.0.2.7 dev wire
		ip -6 route add default via 2001:db8:f::7 dev wire`)

	var listener net.Listener
	var err error
	s.director.Do(b, func() { listener, err = net.Listen("tcp", ":80") })
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()

	table := open(b, s.director, Config{})
	watched := services("192.0.2.1:80", "[2001:db8::1]:80")
	const empty = "table inet lvsguard {\n chain prerouting { type filter hook prerouting priority -310; policy accept; \n}\n}\n"
	settings := map[string]func(){
		"empty": func() {
			if err := table.Remove(); err != nil {
				b.Fatal(err)
			}
			if _, err := s.director.Try(b, empty, "nft", "-f", "-"); err != nil {
				b.Fatal(err)
			}
		},
		"rules": func() {
			if err := table.Remove(); err != nil {
				b.Fatal(err)
			}
			if _, err := table.Ensure(watched); err != nil {
				b.Fatal(err)
			}
		},
		"sampled": func() { sample(b, table, Sampling{}) },
		"armed": func() {
			leases := map[netip.AddrPort]time.Duration{}
			for _, w := range watched {
				leases[w] = time.Minute
			}
			if err := table.Arm(leases); err != nil {
				b.Fatal(err)
			}
		},
	}
	packets := map[string]frame{
		"ack4":     {dst: "192.0.2.1", dport: 80, flags: flagACK, window: 500},
		"syn4":     {dst: "192.0.2.1", dport: 80, window: 64240, tcpOptions: 20},
		"suspect4": {dst: "192.0.2.1", dport: 80},
		"ack6":     {dst: "2001:db8::1", dport: 80, flags: flagACK, window: 500},
		"syn6":     {dst: "2001:db8::1", dport: 80, window: 64240, tcpOptions: 20},
		"suspect6": {dst: "2001:db8::1", dport: 80},
	}
	kinds := []string{"ack4", "syn4", "suspect4", "ack6", "syn6", "suspect6"}
	bursts := map[string][][]byte{}
	for kind, f := range packets {
		for i := range burst {
			if f.src = fmt.Sprintf("198.51.%d.%d", i/16, 1+i%16); f.dst == "2001:db8::1" {
				f.src = fmt.Sprintf("2001:db8:e::%x", i+1)
			}
			bursts[kind] = append(bursts[kind], f.build(false))
		}
	}
	took := map[string][]float64{}
	for range rounds * b.N {
		for _, setting := range []string{"empty", "rules", "armed", "sampled"} {
			settings[setting]()
			for _, kind := range kinds {
				for range repeats {
					start := time.Now()
					if err := s.wire.Send(bursts[kind]...); err != nil {
						b.Fatal(err)
					}
					took[setting+kind] = append(took[setting+kind], float64(time.Since(start).Nanoseconds())/burst)
				}
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, kind := range kinds {
		base := fastest(took["empty"+kind])
		line := fmt.Sprintf("%-8s %5.0f ns a packet with an empty chain", kind, base)
		for _, setting := range []string{"rules", "armed", "sampled"} {
			got := fastest(took[setting+kind])
			line += fmt.Sprintf("; %s %5.0f: %.3f (of medians: %.3f)", setting, got, got/base, median(took[setting+kind])/median(took["empty"+kind]))
			b.ReportMetric(got/base, setting+"-"+kind+"-ratio")
		}
		b.Log(line)
	}
}

func fastest(took []float64) float64 {
	slices.Sort(took)
	return took[len(took)/10]
}

func median(took []float64) float64 {
	slices.Sort(took)
	return took[len(took)/2]
}

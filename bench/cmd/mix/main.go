// Command mix writes the capture that the figures are measured with.
//
//	go run ./bench/cmd/mix -o mix.pcap
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/lvsguard/lvsguard/bench/mix"
)

func main() {
	c := mix.Standard()
	out := flag.String("o", "mix.pcap", "the `file` to write")
	flag.Uint64Var(&c.Seed, "seed", c.Seed, "another seed makes other packets")
	flag.IntVar(&c.Handshakes, "handshakes", c.Handshakes, "number of handshakes")
	flag.IntVar(&c.Clients, "clients", c.Clients, "number of addresses that they come from")
	flag.IntVar(&c.Flood, "flood", c.Flood, "number of spoofed SYNs")
	flag.DurationVar(&c.Span, "span", c.Span, "time in which all of them begin")
	flag.DurationVar(&c.ACKDelay, "ack-delay", c.ACKDelay, "from SYN/ACK to ACK; 0: 0.2 to 30 ms at random")
	flag.TextVar(&c.Service, "service", c.Service, "IPv4 `address:port` that all of it goes to")
	flag.Parse()
	if err := write(*out, c); err != nil {
		fmt.Fprintln(os.Stderr, "mix:", err)
		os.Exit(1)
	}
	fmt.Printf("%s: %+v\n", *out, c.Truth())
}

func write(name string, c mix.Config) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(c.Pcap(f), f.Close())
}

package capture

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"testing"
	"time"
)

// Who is on the wire of the tests.
var (
	router    = []byte{0x52, 0x54, 0, 0, 0, 1}
	director  = []byte{0x52, 0x54, 0, 0, 0, 2}
	server    = []byte{0x52, 0x54, 0, 0, 0, 3}
	firewall  = []byte{0x52, 0x54, 0, 0, 0, 4}
	everybody = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	nobody    = make([]byte, 6)
)

// sent is a frame of Ethernet.
func sent(from, to []byte, packet []byte) []byte {
	return concat(to, from, []byte{8, 0}, packet)
}

// on is a packet with that byte changed.
func on(at int, to byte) []byte { return changed(synIPv4, at, to) }

func TestCopies(t *testing.T) {
	const ms = time.Millisecond
	synAck := ipv4(protoTCP, tcp(SYN|ACK, mss...))
	zeroID := changed(changed(synIPv4, 4, 0), 5, 0)
	hop := changed(changed(synIPv4, 8, 63), 11, 7) // another TTL, another checksum
	syn6Hop := changed(synIPv6, 7, 63)
	little := binary.LittleEndian
	type frames []captured

	tests := []struct {
		name    string
		file    func(...captured) []byte
		packets frames
		copies  []int // which of them are
	}{
		{"one arm: in and out", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, hop)}}, []int{1}},
		{"one arm: IPv6", plainPcap, frames{
			{frame: ethernet(0x86dd, synIPv6)}, {frame: concat(server, director, []byte{0x86, 0xdd}, syn6Hop)}}, []int{1}},
		{"one arm: a VLAN in, another one out", plainPcap, frames{
			{frame: concat(director, router, []byte{0x81, 0, 0, 1, 8, 0}, synIPv4)},
			{frame: concat(server, director, []byte{0x81, 0, 0, 2, 8, 0}, hop)}}, []int{1}},
		{"one arm: a retransmission, each seen twice, all the same packet", plainPcap, frames{
			{frame: sent(router, director, zeroID)}, {frame: sent(director, server, zeroID)},
			{at: time.Second, frame: sent(router, director, zeroID)}, {at: time.Second, frame: sent(director, server, zeroID)},
			{at: 3 * time.Second, frame: sent(router, director, zeroID)}, {at: 3 * time.Second, frame: sent(director, server, zeroID)}}, []int{1, 3, 5}},
		{"one arm: a retransmission with an identification of its own", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, hop)},
			{at: time.Second, frame: sent(router, director, on(5, 0x35))}, {at: time.Second, frame: sent(director, server, changed(hop, 5, 0x35))}}, []int{1, 3}},
		{"one arm: the retransmission overtakes the copy", plainPcap, frames{
			{frame: sent(router, director, zeroID)}, {at: time.Second, frame: sent(router, director, zeroID)},
			{at: time.Second, frame: sent(director, server, zeroID)}, {at: time.Second, frame: sent(director, server, zeroID)}}, []int{2, 3}},
		{"one arm: the answer is forwarded too", plainPcap, frames{
			{frame: sent(server, director, synAck)}, {frame: sent(director, router, changed(synAck, 8, 63))}}, []int{1}},
		{"two hops, both on the wire", plainPcap, frames{
			{frame: sent(router, firewall, synIPv4)}, {frame: sent(firewall, director, hop)}, {frame: sent(director, server, changed(hop, 8, 62))}}, []int{1, 2}},
		{"sent back to where it came from, and again", plainPcap, frames{
			{frame: sent(router, director, zeroID)}, {frame: sent(director, router, zeroID)},
			{at: time.Second, frame: sent(router, director, zeroID)}, {at: time.Second, frame: sent(director, router, zeroID)}}, []int{1, 3}},
		{"a retransmission from the same station", plainPcap, frames{
			{frame: sent(router, director, zeroID)}, {at: time.Second, frame: sent(router, director, zeroID)}}, nil},
		{"the same frame at once, on one interface", plainPcap, frames{
			{frame: sent(router, director, zeroID)}, {frame: sent(router, director, zeroID)}}, nil},
		{"from another router", plainPcap, frames{
			{frame: sent(router, director, zeroID)}, {frame: sent(firewall, director, zeroID)}}, nil},
		{"to everybody, and answered by none of them", plainPcap, frames{
			{frame: sent(router, everybody, zeroID)}, {frame: sent(router, everybody, zeroID)}, {frame: sent(director, server, zeroID)}}, nil},
		{"the loopback device, which has no addresses", plainPcap, frames{
			{frame: sent(nobody, nobody, zeroID)}, {at: time.Second, frame: sent(nobody, nobody, zeroID)}}, nil},
		{"raw IP has no stations", func(p ...captured) []byte { return pcapFile(little, microseconds, 0, uint32(LinkRaw), p...) }, frames{
			{frame: zeroID}, {frame: zeroID}}, nil},
		{"another source port", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(21, 0x41))}}, nil},
		{"another destination port", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(23, 81))}}, nil},
		{"another source", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(15, 8))}}, nil},
		{"another destination, as NAT gives it", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(19, 8))}}, nil},
		{"another network of IPv6", plainPcap, frames{
			{frame: ethernet(0x86dd, synIPv6)}, {frame: concat(server, director, []byte{0x86, 0xdd}, changed(synIPv6, 9, 2))}}, nil},
		{"another sequence number", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(24, 9))}}, nil},
		{"another acknowledgment", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(28, 9))}}, nil},
		{"another window", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(34, 9))}}, nil},
		{"another identification", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(4, 9))}}, nil},
		{"other flags", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(33, byte(SYN|ECE)))}}, nil},
		{"another length", plainPcap, frames{
			{frame: sent(router, director, synIPv4)}, {frame: sent(director, server, on(3, 45))}}, nil},
		{"an ACK, which nobody asks about", plainPcap, frames{
			{frame: sent(router, director, ipv4(protoTCP, tcp(ACK)))}, {frame: sent(director, server, ipv4(protoTCP, tcp(ACK)))}}, nil},
		{"an error that quotes a SYN", plainPcap, frames{
			{frame: sent(server, director, ipv4(protoICMP, icmp(3, 3, synIPv4)))}, {frame: sent(director, router, ipv4(protoICMP, icmp(3, 3, synIPv4)))}}, nil},

		{"cooked: in and out, and again", cookedFile, frames{
			{frame: sll(0, 0x0800, zeroID)}, {frame: sll(4, 0x0800, zeroID)},
			{at: time.Second, frame: sll(0, 0x0800, zeroID)}, {at: time.Second, frame: sll(4, 0x0800, zeroID)}}, []int{1, 3}},
		{"cooked: bridged from another host", cookedFile, frames{
			{frame: sll(3, 0x0800, zeroID)}, {frame: sll(4, 0x0800, zeroID)}}, []int{1}},
		{"cooked: from here, and again", cookedFile, frames{
			{frame: sll(4, 0x0800, zeroID)}, {at: time.Second, frame: sll(4, 0x0800, zeroID)}}, nil},
		{"cooked: to here, and again", cookedFile, frames{
			{frame: sll(0, 0x0800, zeroID)}, {at: time.Second, frame: sll(0, 0x0800, zeroID)}}, nil},
		{"cooked v2: in and out on one device", cooked2File, frames{
			{frame: sll2(2, 0, 0x0800, zeroID)}, {at: 5 * ms, frame: sll2(2, 4, 0x0800, zeroID)}}, []int{1}},
		{"cooked v2: a bond on a card, in and out, and again", cooked2File, frames{
			{frame: sll2(2, 0, 0x0800, zeroID)}, {frame: sll2(3, 0, 0x0800, zeroID)}, {frame: sll2(3, 4, 0x0800, zeroID)}, {frame: sll2(2, 4, 0x0800, zeroID)},
			{at: time.Second, frame: sll2(2, 0, 0x0800, zeroID)}, {at: time.Second, frame: sll2(3, 0, 0x0800, zeroID)}}, []int{1, 2, 3, 5}},
		{"cooked v2: a retransmission comes through another card", cooked2File, frames{
			{frame: sll2(2, 0, 0x0800, zeroID)}, {at: 200 * ms, frame: sll2(3, 0, 0x0800, zeroID)}}, nil},

		{"devices: a bond on a card", twoDevices, frames{
			{device: 0, frame: sent(router, director, zeroID)}, {at: 3 * time.Microsecond, device: 1, frame: sent(router, director, zeroID)}}, []int{1}},
		{"devices: the later one first", twoDevices, frames{
			{at: 3 * time.Microsecond, device: 1, frame: sent(router, director, zeroID)}, {device: 0, frame: sent(router, director, zeroID)}}, []int{1}},
		{"devices: in and out on both", twoDevices, frames{
			{device: 0, frame: sent(router, director, zeroID)}, {device: 1, frame: sent(router, director, zeroID)},
			{device: 0, frame: sent(director, server, zeroID)}, {device: 1, frame: sent(director, server, zeroID)},
			{at: time.Second, device: 0, frame: sent(router, director, zeroID)}, {at: time.Second, device: 1, frame: sent(router, director, zeroID)},
			{at: time.Second, device: 1, frame: sent(director, server, zeroID)}, {at: time.Second, device: 0, frame: sent(director, server, zeroID)}}, []int{1, 2, 3, 5, 6, 7}},
		{"devices: in on the one, out on the other", twoDevices, frames{
			{device: 0, frame: sent(router, director, zeroID)}, {at: 20 * ms, device: 1, frame: sent(director, server, zeroID)}}, []int{1}},
		{"devices: a retransmission on the other", twoDevices, frames{
			{device: 0, frame: sent(router, director, zeroID)}, {at: 2 * ms, device: 1, frame: sent(router, director, zeroID)}}, nil},
		{"devices: a retransmission on the other, and time runs backwards", twoDevices, frames{
			{at: 2 * ms, device: 0, frame: sent(router, director, zeroID)}, {device: 1, frame: sent(router, director, zeroID)}}, nil},
		{"devices: twice on one of them", twoDevices, frames{
			{device: 1, frame: sent(router, director, zeroID)}, {device: 1, frame: sent(router, director, zeroID)}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var want []int64
			for i, p := range tt.packets {
				p.at += time.Duration(i) * time.Microsecond // which one it is can be seen by its time
				tt.packets[i] = p
				if !slices.Contains(tt.copies, i) {
					want = append(want, day.Add(p.at).UnixNano())
				}
			}
			for _, size := range []int{1, 3, 100} {
				got, r, err := readAll(bytes.NewReader(tt.file(tt.packets...)), size)
				if err != io.EOF {
					t.Fatal(err)
				}
				var times []int64
				for _, s := range got {
					times = append(times, s.Time)
				}
				if !slices.Equal(times, want) {
					t.Errorf("in batches of %d: %d segments, want %d: %v", size, len(times), len(want), got)
				}
				if kinds := r.Stats().Kinds; kinds[Copy] != uint64(len(tt.copies)) || kinds[TCP] != uint64(len(want)) {
					t.Errorf("%v", kinds)
				}
			}
		})
	}
}

func cookedFile(p ...captured) []byte {
	return pcapFile(binary.BigEndian, microseconds, 0, uint32(LinkSLL), p...)
}

func cooked2File(p ...captured) []byte {
	return pcapFile(binary.BigEndian, microseconds, 0, uint32(LinkSLL2), p...)
}

func twoDevices(packets ...captured) []byte {
	big := binary.BigEndian
	f := concat(section(big), device(big, LinkEthernet, 0), device(big, LinkEthernet, 0))
	for _, p := range packets {
		f = append(f, enhanced(big, micros, p)...)
	}
	return f
}

// In a flood of other packets, the copy that comes 100 packets later is found,
// and no packet is taken for a copy.
func TestCopiesInFlood(t *testing.T) {
	const packets, later = 100_000, 100
	var file []captured
	frame := func(i int, from, to []byte) []byte {
		b := sent(from, to, synIPv4)
		binary.BigEndian.PutUint32(b[26:], uint32(i)*2654435761)
		binary.BigEndian.PutUint32(b[38:], uint32(i))
		return b
	}
	for i := range packets + later {
		at := time.Duration(i) * time.Microsecond
		if i < packets {
			file = append(file, captured{at: at, frame: frame(i, router, director)})
		}
		if i >= later {
			file = append(file, captured{at: at, frame: frame(i-later, director, server)})
		}
	}
	got, r, err := readAll(bytes.NewReader(plainPcap(file...)), 1000)
	if err != io.EOF {
		t.Fatal(err)
	}
	if missed := packets - int(r.Stats().Kinds[Copy]); missed < 0 || missed > packets/10_000 || len(got) != packets+missed {
		t.Errorf("%d of %d copies were missed; %d segments", missed, packets, len(got))
	}
}

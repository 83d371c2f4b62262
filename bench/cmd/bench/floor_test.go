package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/bench/mix"
)

// buildFloor builds the C program. Where there is no compiler the test is
// skipped, or fails if LVSGUARD_PRIVILEGED is 1: that run has all it needs.
func buildFloor(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "floor")
	_, _, err := output(t.Context(), "gcc", "-O2", "-march=native", "-Wall", "-Wextra", "-Werror", "-o", program, "../../floor/floor.c")
	switch {
	case err == nil:
	case os.Getenv("LVSGUARD_PRIVILEGED") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return program
}

// runFloor has the floor count what is in a capture.
func runFloor(t *testing.T, program, file string) outcomes {
	t.Helper()
	text, _, err := output(t.Context(), program, file, "2") // the second round must count the same
	if err != nil {
		t.Fatal(err)
	}
	got, ns, err := decodeFloor(text)
	if err != nil || ns < 0 {
		t.Fatalf("%.2f ns a packet, %v", ns, err)
	}
	return got
}

func TestFloorCountsMix(t *testing.T) {
	program := buildFloor(t)
	config := mix.Standard().Scaled(0.05)
	file := filepath.Join(t.TempDir(), "mix")
	if err := writeMix(file, config); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(expected(config.Truth()), runFloor(t, program, file)); diff != "" {
		t.Errorf("counts (-truth +floor):\n%s", diff)
	}
}

// A packet of a script; the client's ISN is 1000, the server's 5000, unless
// seq and ack say else.
type packet struct {
	at       time.Duration
	server   bool // from the server
	flags    byte
	seq, ack uint32
}

const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	psh = 0x08
	ack = 0x10
	ece = 0x40
)

// TestFloorMeaning holds the floor to what 'lvsguard handshakes' means by an
// outcome, so that the comparison is a fair one.
func TestFloorMeaning(t *testing.T) {
	program := buildFloor(t)
	const second = time.Second
	opening := packet{flags: syn, seq: 1000}
	answer := packet{at: second, server: true, flags: syn | ack, seq: 5000, ack: 1001}
	closing := packet{at: 2 * second, flags: ack, seq: 1001, ack: 5001}
	for _, test := range []struct {
		name    string
		packets []packet
		want    func(*outcomes)
	}{
		{"success", []packet{opening, answer, closing}, func(o *outcomes) { o.Success.Total = 1 }},
		{"only the client is seen", []packet{opening, closing}, func(o *outcomes) { o.Success.Total = 1 }},
		{"ECE and data", []packet{{flags: syn | ece | psh, seq: 1000}, answer, {at: 2 * second, flags: ack | psh | fin, seq: 1001 + 65535, ack: 5001 + 65535}},
			func(o *outcomes) { o.Success.Total = 1 }},
		{"ACK too far on", []packet{opening, answer, {at: 2 * second, flags: ack, seq: 1001 + 65536, ack: 5001}}, func(o *outcomes) { o.Pending = 1 }},
		{"ACK of the ISN itself", []packet{opening, answer, {at: 2 * second, flags: ack, seq: 1000, ack: 5001}}, func(o *outcomes) { o.Pending = 1 }},
		{"ACK of another SYN/ACK", []packet{opening, answer, {at: 2 * second, flags: ack, seq: 1001, ack: 5000}}, func(o *outcomes) { o.Pending = 1 }},
		{"SYN/ACK to another SYN", []packet{opening, {at: second, server: true, flags: syn | ack, seq: 7000, ack: 1000}, closing},
			func(o *outcomes) { o.Success.Total = 1 }},
		{"retransmissions", []packet{opening, opening, answer, answer, closing},
			func(o *outcomes) { o.Success.Total, o.Success.DupSYN, o.Success.DupSYNACK = 1, 1, 1 }},
		{"reject", []packet{opening, opening, {at: second, server: true, flags: rst | ack, ack: 1001}},
			func(o *outcomes) { o.Failure.Total, o.Failure.Reject, o.Failure.DupSYN = 1, 1, 1 }},
		{"aborted", []packet{opening, answer, {at: 2 * second, flags: rst, seq: 1001}}, func(o *outcomes) { o.Failure.Total, o.Failure.Aborted = 1, 1 }},
		{"RST after success", []packet{opening, answer, closing, {at: 3 * second, server: true, flags: rst, seq: 5001}}, func(o *outcomes) { o.Success.Total = 1 }},
		{"another ISN", []packet{opening, {at: second, flags: syn, seq: 1001}},
			func(o *outcomes) { o.Attempts, o.Failure.Total, o.Failure.Timeout, o.Pending = 2, 1, 1, 1 }},
		{"late ACK", []packet{opening, answer, {at: 61 * second, flags: ack, seq: 1001, ack: 5001}}, func(o *outcomes) { o.Failure.Total, o.Failure.Timeout = 1, 1 }},
		{"just in time", []packet{opening, answer, {at: 61*second - time.Millisecond, flags: ack, seq: 1001, ack: 5001}}, func(o *outcomes) { o.Success.Total = 1 }},
		{"swept", []packet{opening, {at: 80 * second, flags: ack, seq: 1, ack: 1, server: true}}, func(o *outcomes) { o.Failure.Total, o.Failure.Timeout = 1, 1 }},
		{"out of order", []packet{{at: second, flags: syn, seq: 1000}, {flags: syn, seq: 1000}, answer, closing},
			func(o *outcomes) { o.Success.Total, o.Success.DupSYN = 1, 1 }},
		{"no packets", nil, func(o *outcomes) { o.Attempts = 0 }},
		{"nothing of it", []packet{{flags: syn | fin}, {flags: syn | rst}, {flags: 0}, answer, closing}, func(o *outcomes) { o.Attempts = 0 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "capture")
			if err := os.WriteFile(file, script(test.packets), 0o600); err != nil {
				t.Fatal(err)
			}
			want := outcomes{Attempts: 1, Visibility: "both"}
			test.want(&want)
			if diff := cmp.Diff(want, runFloor(t, program, file)); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
		})
	}
}

// script is a capture of packets between one client and one server.
func script(packets []packet) []byte {
	le, be := binary.LittleEndian, binary.BigEndian
	file := make([]byte, 24)
	le.PutUint32(file, 0xa1b2c3d4)
	le.PutUint32(file[20:], 1)
	for _, p := range packets {
		b := make([]byte, 16+14+20+20)
		le.PutUint32(b, uint32(1000+p.at/time.Second))
		le.PutUint32(b[4:], uint32(p.at%time.Second/time.Microsecond))
		le.PutUint32(b[8:], 54)
		le.PutUint32(b[12:], 54)
		be.PutUint16(b[16+12:], 0x0800)
		ip := b[16+14:]
		copy(ip, []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 198, 51, 100, 1, 192, 0, 2, 1, 0x80, 0, 0, 80})
		if p.server {
			copy(ip[12:], []byte{192, 0, 2, 1, 198, 51, 100, 1, 0, 80, 0x80, 0})
		}
		be.PutUint32(ip[24:], p.seq)
		be.PutUint32(ip[28:], p.ack)
		ip[32], ip[33] = 0x50, p.flags
		file = append(file, b...)
	}
	return file
}

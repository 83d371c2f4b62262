package mix

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small is one hundredth of the standard mix.
func small() Config { return Standard().Scaled(0.01) }

func pcap(t *testing.T, c Config) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := c.Pcap(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A tuple is an attempt's client and server.
type tuple struct{ client, server [6]byte }

// An attempt is what the reader keeps of one.
type attempt struct {
	isn, serverISN uint32
	syn, answer    time.Duration // the last of them
	syns, synacks  int
	suspect        bool
}

// A reading is what is in a capture file, by a reader that shares nothing with
// the generator. It holds every packet against the formats and the times that
// Config promises.
type reading struct {
	Truth     Truth
	Clients   int
	Last      time.Duration // when the last attempt began
	ACKDelays [2]time.Duration
}

func read(t *testing.T, file []byte) reading {
	t.Helper()
	le, be := binary.LittleEndian, binary.BigEndian
	if got, want := le.Uint32(file), uint32(0xa1b2c3d4); got != want {
		t.Fatalf("magic number %#x, want %#x", got, want)
	}
	if got := le.Uint32(file[20:]); got != 1 {
		t.Fatalf("link type %d, want 1", got)
	}
	file = file[24:]
	r := reading{ACKDelays: [2]time.Duration{time.Hour, 0}}
	open := map[tuple]*attempt{}
	used := map[tuple]bool{}
	clients := map[string]bool{}
	var zero, before time.Duration
	for len(file) > 0 {
		at := time.Duration(le.Uint32(file))*time.Second + time.Duration(le.Uint32(file[4:]))*time.Microsecond
		length := le.Uint32(file[8:])
		if whole := le.Uint32(file[12:]); whole != length || length < 60 {
			t.Fatalf("packet %d: %d bytes of %d", r.Truth.Packets, length, whole)
		}
		frame := file[16 : 16+length]
		file = file[16+length:]
		if r.Truth.Packets == 0 {
			zero = at.Truncate(time.Second)
		}
		if at -= zero; at < before {
			t.Fatalf("packet %d comes at %s, after one at %s", r.Truth.Packets, at, before)
		}
		before = at
		r.Truth.Packets++

		ip := frame[14:]
		total := be.Uint16(ip[2:])
		ip = ip[:total]
		tcp := ip[20:]
		pseudo := slices.Concat(ip[12:20], []byte{0, 6, 0, byte(len(tcp))}, tcp)
		if be.Uint16(frame[12:]) != 0x0800 || ip[0] != 0x45 || ip[9] != 6 || !sound(ip[:20]) || !sound(pseudo) {
			t.Fatalf("packet %d is not sound: % x", r.Truth.Packets, frame)
		}
		var key, reverse tuple
		key.client, key.server = [6]byte(slices.Concat(ip[12:16], tcp[0:2])), [6]byte(slices.Concat(ip[16:20], tcp[2:4]))
		reverse.client, reverse.server = key.server, key.client
		seq, ack := be.Uint32(tcp[4:]), be.Uint32(tcp[8:])
		window, options := be.Uint16(tcp[14:]), tcp[20:tcp[12]>>4*4]

		switch flags := tcp[13]; flags {
		case 0x02:
			if a := open[key]; a != nil {
				if a.isn != seq || a.suspect {
					t.Fatalf("%v: another SYN", key)
				}
				if a.syns++; at-a.syn != time.Second {
					t.Errorf("%v: SYN is sent again after %s", key, at-a.syn)
				}
				a.syn = at
				break
			}
			if used[key] {
				t.Fatalf("%v comes twice", key)
			}
			used[key] = true
			r.Truth.Attempts++
			r.Truth.Pending++
			r.Last = at
			a := &attempt{isn: seq, syn: at, syns: 1, suspect: window == 0 && total == 40}
			open[key] = a
			if !a.suspect {
				clients[string(key.client[:4])] = true
				if window == 0 || !bytes.Equal(withoutTimes(options), []byte{2, 4, 5, 180, 4, 2, 8, 10, 1, 3, 3, 7}) {
					t.Fatalf("%v: window %d, options % x", key, window, options)
				}
			}
		case 0x12:
			a := open[reverse]
			if a == nil || ack != a.isn+1 || !bytes.HasPrefix(options, []byte{2, 4}) {
				t.Fatalf("%v: SYN/ACK of nothing", key)
			}
			if a.synacks++; a.synacks == 1 {
				within(t, "SYN/ACK", at-a.syn, 200*time.Microsecond, 20*time.Millisecond)
				a.serverISN = seq
			} else if seq != a.serverISN || at-a.answer != time.Second {
				t.Errorf("%v: another SYN/ACK, after %s", key, at-a.answer)
			}
			a.answer = at
		case 0x10:
			a := open[key]
			if a == nil || a.synacks == 0 || seq != a.isn+1 || ack != a.serverISN+1 || !bytes.HasPrefix(options, []byte{1, 1, 8, 10}) {
				t.Fatalf("%v: ACK of nothing", key)
			}
			r.ACKDelays[0] = min(r.ACKDelays[0], at-a.answer)
			r.ACKDelays[1] = max(r.ACKDelays[1], at-a.answer)
			r.Truth.Success++
			r.Truth.SuccessDupSYN += uint64(a.syns - 1)
			r.Truth.SuccessDupSYNACK += uint64(a.synacks - 1)
			r.Truth.Pending--
			delete(open, key)
		case 0x14:
			a := open[reverse]
			if a == nil || a.synacks > 0 || ack != a.isn+1 {
				t.Fatalf("%v: RST of nothing", key)
			}
			within(t, "RST", at-a.syn, 200*time.Microsecond, 20*time.Millisecond)
			r.Truth.Reject++
			r.Truth.RejectDupSYN += uint64(a.syns - 1)
			r.Truth.Pending--
			delete(open, reverse)
		default:
			t.Fatalf("flags %#x", flags)
		}
	}
	for key, a := range open {
		if !a.suspect || clients[string(key.client[:4])] {
			t.Errorf("%v is left open", key)
		}
	}
	r.Clients = len(clients)
	return r
}

// withoutTimes are TCP options without the two numbers of timestamps.
func withoutTimes(options []byte) []byte {
	before, after, found := bytes.Cut(options, []byte{8, 10})
	if !found || len(after) < 8 {
		return options
	}
	return slices.Concat(before, []byte{8, 10}, after[8:])
}

// within allows for times that are cut to microseconds.
func within(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if got < least-time.Microsecond || got > most+time.Microsecond {
		t.Errorf("%s after %s", what, got)
	}
}

// sound tells whether b, with its checksum, adds up to zero.
func sound(b []byte) bool {
	sum := 0
	for i := 0; i+1 < len(b); i += 2 {
		sum += int(b[i])<<8 + int(b[i+1])
	}
	return sum%0xffff == 0
}

func TestTruth(t *testing.T) {
	slow := small()
	slow.ACKDelay = 200 * time.Millisecond
	handshakes := small()
	handshakes.Flood = 0
	flood := small()
	flood.Handshakes = 0
	all := small()
	all.Handshakes, all.Clients = 20_000, 300 // so many that everything is combined
	for _, test := range []struct {
		name   string
		config Config
	}{
		{"mix", small()},
		{"all combinations", all},
		{"a slow ACK", slow},
		{"handshakes alone", handshakes},
		{"flood alone", flood},
		{"nothing", Config{Service: small().Service}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := test.config
			got := read(t, pcap(t, c))
			want := reading{Truth: c.Truth(), Clients: min(c.Clients, c.Handshakes), Last: got.Last, ACKDelays: got.ACKDelays}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-promised +read):\n%s", diff)
			}
			if got.Last > c.Span || got.Last < c.Span*99/100 {
				t.Errorf("the last attempt begins at %s of %s", got.Last, c.Span)
			}
			if c.Handshakes == 0 {
				return
			}
			least, most := 200*time.Microsecond, 30*time.Millisecond
			if c.ACKDelay > 0 {
				least, most = c.ACKDelay, c.ACKDelay
			}
			within(t, "first ACK", got.ACKDelays[0], least, most)
			within(t, "last ACK", got.ACKDelays[1], least, most)
		})
	}
}

// TestStandard holds the truth against the numbers of the words "every 50th
// SYN and every 97th SYN/ACK sent twice, every 101st refused".
func TestStandard(t *testing.T) {
	const (
		refused     = 200_000 / 101
		both        = 200_000 / (50 * 101)
		synacks     = 200_000/97 - 200_000/(97*101)
		successes   = 200_000 - refused
		handshaking = 200_000 + 200_000/50 + 2*successes + synacks + refused
	)
	want := Truth{
		Packets: 1_000_000 + handshaking, Attempts: 1_200_000,
		Success: successes, SuccessDupSYN: 200_000/50 - both, SuccessDupSYNACK: synacks,
		Reject: refused, RejectDupSYN: both,
		Pending: 1_000_000,
	}
	if diff := cmp.Diff(want, Standard().Truth()); diff != "" {
		t.Errorf("truth (-want +got):\n%s", diff)
	}
}

func TestSeed(t *testing.T) {
	first := pcap(t, small())
	if !bytes.Equal(first, pcap(t, small())) {
		t.Error("the same seed makes another file")
	}
	other := small()
	other.Seed++
	if bytes.Equal(first, pcap(t, other)) {
		t.Error("another seed makes the same file")
	}
}

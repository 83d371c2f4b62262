package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// samplePackets are of two interfaces, one of which changes its link type.
func samplePackets() []Packet {
	at := time.Date(2026, 11, 22, 3, 4, 5, 123456789, time.UTC).UnixNano()
	odd := ethernet(etherIPv4, ipv4(protoTCP, tcp(SYN, 2, 4, 5, 0xb4, 0, 0, 0, 1)))
	return []Packet{
		{Time: at, Interface: "eth0", Link: LinkEthernet, Length: uint32(len(odd)), Data: odd},
		{Time: at + 1, Interface: "tun0", Link: LinkRaw, Length: 1500, Data: synIPv6, Comment: "dropped by window0"},
		{Time: at + 2, Interface: "tun0", Link: LinkEthernet, Length: 58, Data: ethernet(etherIPv4, synIPv4), Comment: strings.Repeat("ä", 40_000)},
		{Time: at + 1e9, Interface: "eth0", Link: LinkEthernet, Length: 400, Data: append(ethernet(etherIPv4, synIPv4), make([]byte, 300)...)},
	}
}

func sampleMeta() PcapngMeta {
	received, dropped := uint64(1<<33), uint64(7)
	return PcapngMeta{
		Application: "lvsguard v1.2.0", Comment: "192.0.2.1:80: flood\nrule window0 \xff",
		Recorded: Recorded{
			From: time.Unix(1_800_000_000, 0), To: time.Unix(1_800_000_030, 5), Seen: 9, Kept: 4, Received: &received, Dropped: &dropped,
			Interfaces: []InterfaceCount{{Name: "eth0", Received: &received, Dropped: &dropped}, {Name: "eth1"}},
		},
	}
}

// readBack is what NewReader makes of a file.
func readBack(t testing.TB, file []byte) (segments []Segment, err error) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	for batch := make([]Segment, 3); err == nil; {
		var n int
		n, err = r.Read(batch)
		segments = append(segments, batch[:n]...)
	}
	return segments, err
}

func TestWritePcapng(t *testing.T) {
	packets := samplePackets()
	var file bytes.Buffer
	if n, err := WritePcapng(&file, sampleMeta(), slices.Values(packets)); n != 4 || err != nil {
		t.Fatalf("wrote %d packets: %v", n, err)
	}
	got, err := readBack(t, file.Bytes())
	if err != io.EOF {
		t.Errorf("read back: %v", err)
	}
	var want []Segment
	for _, p := range packets {
		var s Segment
		if kind := Decode(p.Link, p.Data[:min(len(p.Data), SnapLength)], int(p.Length), &s); kind != TCP {
			t.Fatalf("%v", kind)
		}
		s.Time = p.Time
		want = append(want, s)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}

	name := filepath.Join(t.TempDir(), "sample.pcapng")
	if err := os.WriteFile(name, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	info := tool(t, "capinfos", name)
	for _, want := range []string{
		"Number of packets:   4", "Capture length = 128", "192.0.2.1:80: flood rule window0 ",
		"4 of 9 packets from 2027-01-15T08:00:00Z to 2027-01-15T08:00:30Z",
		"capture on all interfaces since its beginning: 8589934592 packets received, 7 dropped",
		"Capture application: lvsguard v1.2.0", "Capture oper-sys:    Linux ", "Number of interfaces in file: 3",
		"Name = tun0", "Time ticks per second = 1000000000", "Number of stat entries = 1",
		"2026-11-22 03:04:05.123456789",
	} {
		if !strings.Contains(info, want) {
			t.Errorf("capinfos does not say %q:\n%s", want, info)
		}
	}
	lines := strings.Split(tool(t, "tshark", "-n", "-r", name, "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.interface_name",
		"-e", "frame.len", "-e", "frame.cap_len", "-e", "tcp.window_size_value", "-e", "frame.comment"), "\n")
	for i, want := range []string{
		"1795316645.123456789\teth0\t62\t62\t", "1795316645.123456790\ttun0\t1500\t64\t", "1795316645.123456791\ttun0\t58\t58\t",
		"1795316646.123456789\teth0\t400\t128\t",
	} {
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("tshark says\n%.100s, want\n%s", lines[i], want)
		}
	}
	if !strings.HasSuffix(lines[1], "\tdropped by window0") {
		t.Errorf("tshark does not tell the comment: %s", lines[1])
	}
}

// A file of nothing is one, too.
func TestWritePcapngOfNothing(t *testing.T) {
	var file bytes.Buffer
	if n, err := WritePcapng(&file, PcapngMeta{}, slices.Values[[]Packet](nil)); n != 0 || err != nil {
		t.Fatalf("wrote %d packets: %v", n, err)
	}
	if got, err := readBack(t, file.Bytes()); len(got) != 0 || err != io.EOF {
		t.Errorf("read %d segments: %v", len(got), err)
	}
	name := filepath.Join(t.TempDir(), "nothing.pcapng")
	if err := os.WriteFile(name, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if info := tool(t, "capinfos", name); !strings.Contains(info, "Number of packets:   0") {
		t.Errorf("capinfos says\n%s", info)
	}
}

// Wherever a file ends, what is whole before is read.
func TestPcapngCutAtEveryByte(t *testing.T) {
	packets := samplePackets()
	packets[2].Comment = ""
	var ends []int // of the packets' blocks
	var file bytes.Buffer
	if _, err := WritePcapng(&file, sampleMeta(), slices.Values(packets)); err != nil {
		t.Fatal(err)
	}
	whole := file.Bytes()
	for i := range packets {
		at := bytes.Index(whole, packets[i].Data[:min(len(packets[i].Data), SnapLength)])
		size := int(whole[at-24]) | int(whole[at-23])<<8
		ends = append(ends, at-28+size)
	}
	for cut := range whole {
		want := 0
		for _, end := range ends {
			if end <= cut {
				want++
			}
		}
		got, err := readBack(t, whole[:cut])
		if len(got) != want {
			t.Errorf("cut at byte %d: %d segments, want %d", cut, len(got), want)
		}
		if cutError := (*CutError)(nil); err != io.EOF && !errors.As(err, &cutError) {
			t.Errorf("cut at byte %d: %v", cut, err)
		}
	}
}

// blocks notes what it was told to write, and fails when it has room for no more.
type blocks struct {
	sizes []int
	whole bytes.Buffer
	room  int
}

var errFull = errors.New("no space left on device")

func (b *blocks) Write(p []byte) (int, error) {
	if b.room -= len(p); b.room < 0 {
		return 0, errFull
	}
	b.sizes = append(b.sizes, len(p))
	return b.whole.Write(p)
}

// What is written at a time are whole blocks, so that a file to which no more is
// written has no half ones.
func TestPcapngIsWrittenInWholeBlocks(t *testing.T) {
	samples := samplePackets()
	packets := func(yield func(Packet) bool) {
		for i := range 10_000 {
			p := samples[i%2]
			p.Time += int64(i)
			if !yield(p) {
				return
			}
		}
	}
	b := blocks{room: 1 << 30}
	if n, err := WritePcapng(&b, sampleMeta(), packets); n != 10_000 || err != nil {
		t.Fatalf("wrote %d packets: %v", n, err)
	}
	if len(b.sizes) < 3 || len(b.sizes) > 100 {
		t.Errorf("written in %d pieces", len(b.sizes))
	}
	end := 0
	for _, size := range b.sizes {
		end += size
		if _, err := readBack(t, b.whole.Bytes()[:end]); err != io.EOF {
			t.Errorf("after %d bytes: %v", end, err)
		}
	}

	full := blocks{room: 200_000}
	n, err := WritePcapng(&full, sampleMeta(), packets)
	if !errors.Is(err, errFull) || n == 10_000 {
		t.Errorf("to a full disk it wrote %d packets: %v", n, err)
	}
	if got, err := readBack(t, full.whole.Bytes()); err != io.EOF || len(got) == 0 {
		t.Errorf("of a full disk: %d segments, %v", len(got), err)
	}
}

// More interfaces than a section may have are an error, and no file that cannot
// be read.
func TestWritePcapngOfManyInterfaces(t *testing.T) {
	_, err := WritePcapng(io.Discard, PcapngMeta{}, func(yield func(Packet) bool) {
		for i := range maxDevices + 1 {
			if !yield(Packet{Interface: fmt.Sprint(i), Link: LinkRaw, Data: synIPv4}) {
				return
			}
		}
	})
	if err == nil || !strings.Contains(err.Error(), "more than 65536 interfaces") {
		t.Errorf("error %v", err)
	}
}

// Whatever packets and names hold, the file is one that is read, with as many
// packets.
func FuzzWritePcapng(f *testing.F) {
	f.Add(synIPv4, "eth0", "a comment", uint32(60), uint8(LinkRaw))
	f.Add([]byte{}, "", strings.Repeat("\xff\n", 40_000), uint32(0), uint8(LinkEthernet))
	f.Add(make([]byte, 200), "\x00", "ä", uint32(1<<32-1), uint8(LinkSLL))
	f.Fuzz(func(t *testing.T, data []byte, name, comment string, length uint32, link uint8) {
		p := Packet{Time: 1, Interface: name, Link: LinkType(link), Length: length, Data: data, Comment: comment}
		var file bytes.Buffer
		n, err := WritePcapng(&file, PcapngMeta{Application: name, Comment: comment}, slices.Values([]Packet{p, p}))
		if n != 2 || err != nil {
			t.Fatalf("wrote %d packets: %v", n, err)
		}
		r, err := NewReader(&file)
		for batch := make([]Segment, 3); err == nil; {
			_, err = r.Read(batch)
		}
		if err != io.EOF && LinkType(link).known() {
			t.Errorf("read back: %v", err)
		}
		if s := r.Stats(); s.Handed != 2 {
			t.Errorf("read back %d packets", s.Handed)
		}
	})
}

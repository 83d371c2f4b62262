package capture

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tool runs a program that a test needs. Where it is not installed the test is
// skipped, or fails if LVSGUARD_PRIVILEGED is 1.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("LVSGUARD_PRIVILEGED") == "1":
		t.Fatalf("%v (apt-get install tshark)", err)
	default:
		t.Skipf("%v (apt-get install tshark)", err)
	}
	cmd := exec.Command(path, args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &complaint)
	}
	// It says so when it is root, which is nothing against the file.
	for line := range strings.Lines(complaint.String()) {
		if !strings.HasPrefix(line, "Running as user") {
			t.Errorf("%s complains: %s", name, line)
		}
	}
	return string(out)
}

// Before a flood there were good handshakes. They are in the file that is
// written in the midst of it, whole, with the flood.
func TestRecordedBeforeAFlood(t *testing.T) {
	for _, filter := range filters {
		t.Run(filter, func(t *testing.T) {
			client, server := pair(t)
			tap := listenWith(t, server, filter, LiveConfig{
				Interfaces: []string{"eth0"}, Recorder: RecorderConfig{Memory: 1 << 20},
			})
			serve(t, server, ":80")
			service := netip.MustParseAddrPort("192.0.2.1:80")
			var want [][]string
			for _, to := range []string{"10.0.0.2:80", "[2001:db8::2]:80"} {
				for range 5 {
					c := dial(t, client, to)
					want = append(want, threeWay(local(c), remote(c)))
				}
			}
			// What a classic filter hands up beside handshakes is not looked at.
			tap.await(t, "the handshakes", func(seen []string) bool {
				return !slices.ContainsFunc(want, func(lines []string) bool { return count(plain(seen), lines[2]) == 0 })
			})
			if err := tap.SetArmed([]netip.AddrPort{service}); err != nil {
				t.Fatal(err)
			}
			if err := tap.SetSampling(0.1); err != nil {
				t.Fatal(err)
			}
			const packets = 50_000
			s := client.Sender(t, "wire")
			send(t, s, flood(packets), packets)
			wait(t, func() bool {
				screened, err := tap.Screened()
				return err == nil && screened[service]+uint64(count(tap.seen(), "192.0.2.1:80 S")) == packets
			}, func() string { return "the flood does not come" })

			now := time.Now()
			recent, rec := tap.Recent(now.Add(-30*time.Second), now.Add(time.Second))
			var segments []string
			floods, weight := 0, 0.0
			for p := range recent {
				var seg Segment
				if kind := Decode(p.Link, p.Data, int(p.Length), &seg); kind != TCP {
					t.Errorf("recorded is a packet that decodes to %v: % x", kind, p.Data)
				}
				if p.Interface != "eth0" {
					t.Errorf("recorded on %q", p.Interface)
				}
				if seg.Signed() {
					floods++
					weight += p.Weight
				} else {
					segments = append(segments, text(&seg))
				}
			}
			for _, lines := range want {
				for _, line := range lines {
					if count(plain(segments), line) == 0 {
						t.Errorf("not recorded: %s", line)
					}
				}
			}
			t.Logf("%d of the flood's packets stand for %.0f; seen %d, kept %d", floods, weight, rec.Seen, rec.Kept)
			least, most := packets*0.08, packets*0.12
			if filter == "classic" { // which sees them all
				least, most = packets-1, packets+1
			}
			if floods < 100 || weight < least || weight > most {
				t.Errorf("%d of the flood's packets stand for %.0f; want %.0f to %.0f", floods, weight, least, most)
			}

			name := filepath.Join(t.TempDir(), "incident.pcapng")
			var file bytes.Buffer
			n, err := WritePcapng(&file, PcapngMeta{
				Application: "lvsguard test", Comment: "192.0.2.1:80: flood\nby rule window0", Recorded: rec,
			}, recent)
			if err != nil || n != rec.Kept {
				t.Fatalf("wrote %d packets of %d: %v", n, rec.Kept, err)
			}
			if err := os.WriteFile(name, file.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			info := tool(t, "capinfos", name)
			for _, want := range []string{
				fmt.Sprintf("Number of packets:   %d", n), "Capture application: lvsguard test", "by rule window0",
				"Name = eth0", "Time precision = nanoseconds", "Number of stat entries = 1",
			} {
				if !strings.Contains(info, want) {
					t.Errorf("capinfos does not say %q:\n%s", want, info)
				}
			}
			good := tool(t, "tshark", "-n", "-r", name, "-Y", "tcp.flags==0x12", "-T", "fields", "-e", "tcp.dstport", "-e", "frame.interface_name")
			var answered []string
			for _, lines := range want {
				answered = append(answered, fmt.Sprintf("%d\teth0", netip.MustParseAddrPort(strings.Fields(lines[0])[0]).Port()))
			}
			if diff := cmp.Diff(answered, strings.Split(strings.TrimSpace(good), "\n")); diff != "" {
				t.Errorf("SYN/ACKs by tshark (-want +got):\n%s", diff)
			}
			r, err := NewReader(&file)
			if err != nil {
				t.Fatal(err)
			}
			read := 0
			for batch := make([]Segment, 256); err == nil; {
				var n int
				n, err = r.Read(batch)
				read += n
			}
			if err != io.EOF || uint64(read) != n {
				t.Errorf("read %d segments of %d packets: %v", read, n, err)
			}
		})
	}
}

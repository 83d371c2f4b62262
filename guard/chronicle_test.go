package guard

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/internal/goldenfile"
	"github.com/lvsguard/lvsguard/ipvs"
)

// tcp4 is a TCP segment over IPv4 without options.
func tcp4(at time.Time, from, to netip.AddrPort, flags capture.Flags, seq uint32, window uint16) capture.Packet {
	b := make([]byte, 40)
	b[0], b[8], b[9], b[32], b[33] = 0x45, 60, 6, 0x50, byte(flags)
	binary.BigEndian.PutUint16(b[2:], 40)
	copy(b[12:], from.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint32(b[24:], seq)
	binary.BigEndian.PutUint16(b[34:], window)
	return capture.Packet{Time: at.UnixNano(), Interface: "eth0", Link: capture.LinkRaw, Length: 40, Data: b, Weight: 1}
}

// traffic are packets of clients that complete their handshakes, and of a flood
// from some time on, 20 of each a second.
func traffic(to netip.AddrPort, flood time.Time) func(from, until time.Time) []capture.Packet {
	return func(from, until time.Time) (packets []capture.Packet) {
		for at := from.Truncate(50 * time.Millisecond).Add(50 * time.Millisecond); at.Before(until); at = at.Add(50 * time.Millisecond) {
			n := at.UnixMilli() / 50
			client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{80, 1, 2, byte(n)}), uint16(30000+n%20000))
			packets = append(packets, tcp4(at, client, to, capture.SYN, 7, 64240), tcp4(at.Add(time.Millisecond), client, to, capture.ACK, 8, 64240))
			if !at.Before(flood) {
				spoofed := netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(n*97) | 1, byte(n * 31), byte(n * 7), byte(n)}), uint16(n*13))
				packets = append(packets, tcp4(at.Add(2*time.Millisecond), spoofed, to, capture.SYN, uint32(n)*0x9e3779b1, 0))
			}
		}
		return packets
	}
}

var epoch = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

// newChronicled is a world on a clock of its own, in which two services are
// calm.
func newChronicled(t *testing.T, config string) *world {
	t.Helper()
	w := newWorld(t, config)
	w.now = epoch
	w.incidents.since = w.now
	w.ipvs.services = []ipvs.Service{serviceAt(web), serviceAt(mail)}
	w.load[web] = Counters{SYN: 20}
	return w
}

// pass lets seconds pass, and has the chronicle written.
func (w *world) pass(seconds int) {
	for range seconds {
		w.tick(1)
		w.chronicle()
	}
}

func (w *world) chronicle() {
	c := w.incidents.chronicle
	for len(c.queue) > 0 {
		c.handle(<-c.queue)
	}
}

// again is the guard after a kill -9.
func (w *world) again() {
	w.t.Helper()
	w.Close()
	w.start()
	w.incidents.since = w.now
}

func (w *world) records() []incident.Listed {
	w.t.Helper()
	store, err := incident.Open(incident.Dir(filepath.Join(w.dir, "state")))
	if err != nil {
		w.t.Fatal(err)
	}
	defer store.Close()
	list, err := store.List()
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

func (w *world) record() *incident.Record {
	w.t.Helper()
	list := w.records()
	if len(list) != 1 || list[0].Err != nil {
		w.t.Fatalf("%d records: %+v", len(list), list)
	}
	return list[0].Record
}

// said is what the journal has of incidents.
func (w *world) said() (all []string) {
	for {
		select {
		case e := <-w.journal.queue:
			if e.Event == EventIncident {
				all = append(all, strings.TrimSpace(e.Service+" "+e.To))
			}
			continue
		default:
		}
		return all
	}
}

func (w *world) files() (names []string) {
	w.t.Helper()
	entries, err := os.ReadDir(incident.Dir(filepath.Join(w.dir, "state")))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestIncidentIsTold(t *testing.T) {
	w := newChronicled(t, "mode: auto\nproject: shop")
	w.pass(70)
	w.captures.last.packets = traffic(web, w.now)
	w.load[web] = Counters{SYN: 5020, Suspect: 5000}
	w.pass(30)
	w.load[web] = Counters{SYN: 20}
	w.pass(60)
	during := w.record()
	if during.Ended != nil || during.Look == nil {
		t.Errorf("while it lasts: ended %v, look %v", during.Ended, during.Look)
	}
	w.pass(70)
	r := w.record()
	for i, p := range r.Packets {
		r.Packets[i].Bytes = 0 // the file names this host's system
		info, err := os.Stat(filepath.Join(incident.Dir(filepath.Join(w.dir, "state")), p.Name))
		if err != nil || info.Size() != p.Bytes {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
	if n := len(r.Look.Features); n == 0 || r.Look.Features[0].Text[:8] != "window 0" {
		t.Errorf("%d features: %+v", n, r.Look.Features)
	}
	if r.Clients.Before.Handshakes != 0 && r.Clients.Before.Completion == nil {
		t.Errorf("clients %+v", r.Clients)
	}
	if diff := cmp.Diff([]string{"192.0.2.1:80 begun", "192.0.2.1:80 ended"}, w.said()); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	// What the packets look like has goldens of its own.
	r.Host, r.Look.Features, r.Look.Fields, r.Look.Sources = "lvs1", nil, nil, incident.Sources{}
	r.Series = slices.DeleteFunc(r.Series, func(p incident.Point) bool { return p.Time.Second() != 15 })
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	goldenfile.Check(t, "testdata/incident.golden", string(text)+"\n")
}

// A service just under the thresholds that rises now and then leaves nothing on
// disk.
func TestIncidentThatWasNone(t *testing.T) {
	w := newChronicled(t, "")
	w.pass(5)
	w.captures.last.packets = traffic(web, w.now)
	var written int
	for range 20 {
		w.load[web] = Counters{SYN: 5000, Suspect: 5000}
		w.pass(2)
		for _, name := range w.files() {
			if strings.HasSuffix(name, ".pcapng") {
				written++
			}
		}
		w.load[web] = Counters{SYN: 20}
		w.pass(8)
		if files := w.files(); len(files) != 0 {
			t.Fatalf("left behind: %v", files)
		}
	}
	if written == 0 || written > 5 {
		t.Errorf("packets were written %d times in 20 rises within 200 s", written)
	}
	for i, s := range w.said() {
		if want := []string{"192.0.2.1:80 begun", "192.0.2.1:80 dropped"}[i%2]; s != want {
			t.Errorf("%d: %s, want %s", i, s, want)
		}
	}
	// And when it comes to a flood, the packets are there.
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.pass(8)
	if r := w.record(); len(r.Packets) == 0 || r.Packets[0].Why != "before" || r.Flooded == nil {
		t.Errorf("%+v", r.Packets)
	}
}

func TestIncidentGoesOnAfterAKill(t *testing.T) {
	w := newChronicled(t, "mode: auto")
	w.pass(5)
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.pass(20)
	id := w.record().ID
	w.said()
	w.tick(4) // what a dead guard does not see
	w.again()
	w.pass(20)
	w.load[web] = Counters{SYN: 20}
	w.pass(130)
	r := w.record()
	if r.ID != id || r.Ended == nil || len(r.Gaps) != 1 || r.Gaps[0].Reason != "the guard was killed, or the host went down" {
		t.Errorf("%s, ended %v, gaps %+v", r.ID, r.Ended, r.Gaps)
	}
	// 20 seconds, 4 unseen and 20, each of 5000; the counters tell of them all.
	if *r.Totals.Suspect < 44*5000-5000 || *r.Totals.Suspect > 44*5000 {
		t.Errorf("%d suspects", *r.Totals.Suspect)
	}
	if diff := cmp.Diff([]string{"192.0.2.1:80 continued", "192.0.2.1:80 ended"}, w.said()); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

func TestIncidentEndsWhileNoGuardRan(t *testing.T) {
	w := newChronicled(t, "mode: auto")
	w.pass(5)
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.pass(20)
	last := w.now
	w.incidents.chronicle.stop(w.now)
	w.load[web] = Counters{SYN: 20}
	w.tick(100)
	w.again()
	w.said()
	w.pass(20)
	r := w.record()
	if r.Ended == nil || r.Ended.After(last) || !strings.Contains(r.EndedBy, "no guard ran") || len(r.Gaps) != 1 {
		t.Errorf("ended %v by %q, gaps %v", r.Ended, r.EndedBy, r.Gaps)
	}
	if diff := cmp.Diff([]string{"192.0.2.1:80 closed"}, w.said()); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// A flood on 300 services writes the ring once, and looks at the packets of a
// few.
func TestIncidentsOfManyServices(t *testing.T) {
	w := newWorld(t, "")
	w.now = epoch
	w.ipvs.services = nil
	for i := range 300 {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(2 + i/200), byte(i % 200)}), 80)
		w.ipvs.services = append(w.ipvs.services, serviceAt(at))
		w.load[at] = Counters{SYN: 2000, Suspect: 2000}
	}
	w.tick(1)
	w.captures.last.packets = traffic(web, w.now)
	w.pass(20)
	inodes := make(map[string]map[uint64]bool)
	for _, name := range w.files() {
		info, err := os.Stat(filepath.Join(incident.Dir(filepath.Join(w.dir, "state")), name))
		if err != nil {
			t.Fatal(err)
		}
		if kind := kindOfFile(name); kind != "" {
			if inodes[kind] == nil {
				inodes[kind] = make(map[uint64]bool)
			}
			inodes[kind][info.Sys().(*syscall.Stat_t).Ino] = true
		}
	}
	for _, kind := range []string{"before", "onset"} {
		if len(inodes[kind]) != 1 {
			t.Errorf("%d files of %s", len(inodes[kind]), kind)
		}
	}
	list := w.records()
	looked := 0
	for _, l := range list {
		if l.Err != nil || len(l.Record.Packets) < 2 {
			t.Fatalf("%+v", l)
		}
		if l.Record.Unknown["look"] == "" {
			looked++
		}
	}
	if len(list) != 300 || looked != maxAnalyses {
		t.Errorf("%d records, %d with a look at packets", len(list), looked)
	}
	if n := w.captures.last.asked; n > 10 {
		t.Errorf("the ring was read %d times", n)
	}
}

// A disk that hangs delays nothing, and beginning and end are told all the same.
func TestIncidentOnASlowDisk(t *testing.T) {
	w := newChronicled(t, "")
	w.pass(5)
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.tick(chronicleQueue + 50)
	w.load[web] = Counters{SYN: 20}
	w.tick(100)
	if s := w.service("192.0.2.1:80"); s.Verdict != Calm {
		t.Errorf("verdict %s", s.Verdict)
	}
	w.chronicle()
	w.pass(70)
	r := w.record()
	if want := uint64((chronicleQueue + 50) * 5000); r.Ended == nil || *r.Totals.Suspect != want {
		t.Errorf("ended %v, %d suspects, want %d", r.Ended, *r.Totals.Suspect, want)
	}
}

func TestIncidentThatCannotBeKept(t *testing.T) {
	w := newChronicled(t, "")
	dir := incident.Dir(filepath.Join(w.dir, "state"))
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.pass(10)
	if s := w.service("192.0.2.1:80"); s.Verdict != Flood {
		t.Errorf("verdict %s", s.Verdict)
	}
	if why := w.Status().Unknown[SourceEvidence]; !strings.Contains(why, "no directory") {
		t.Errorf("status: %q", why)
	}
	if diff := cmp.Diff([]string{"not_kept", "192.0.2.1:80 begun"}, w.said()); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	w.pass(40)
	if why, bad := w.Status().Unknown[SourceEvidence]; bad {
		t.Errorf("status: %q", why)
	}
	if r := w.record(); r.Flooded == nil || len(r.Series) < 40 {
		t.Errorf("%+v", r)
	}
}

func TestEvidenceOff(t *testing.T) {
	w := newChronicled(t, "evidence: {enabled: false}")
	w.load[web] = Counters{SYN: 5000, Suspect: 5000}
	w.pass(10)
	if _, err := os.Stat(incident.Dir(filepath.Join(w.dir, "state"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// Where no queue shows what is dropped, the capture does.
func TestScreenedIsSampled(t *testing.T) {
	w := newChronicled(t, "mode: auto")
	w.pass(3)
	w.load[web] = Counters{SYN: 8000, Suspect: 8000}
	w.pass(10)
	if got := w.captures.last.share; got != 1.0/16 {
		t.Errorf("share %v of 8000 packets a second, for 500", got)
	}
	w.load[web] = Counters{SYN: 20}
	w.pass(130)
	if got := w.captures.last.share; got != 0 {
		t.Errorf("share %v after the flood", got)
	}
}

func TestSavePackets(t *testing.T) {
	w := newChronicled(t, "")
	w.pass(3)
	w.captures.last.packets = traffic(web, w.now)
	done := make(chan struct{})
	go func() { // the control loop
		defer close(done)
		r := <-w.requests
		r.do(w.now)
		close(r.done)
	}()
	result, err := w.Do(t.Context(), Command{Verb: VerbSave}, "uid 0")
	<-done
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(result.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if *result.Packets < 500 {
		t.Errorf("%d packets", *result.Packets)
	}
	if list := w.records(); len(list) != 0 {
		t.Errorf("%v", fmt.Sprint(list))
	}
}

func kindOfFile(name string) string {
	for _, kind := range []string{"before", "onset", "peak", "during"} {
		if strings.Contains(name, "-"+kind+"-") {
			return kind
		}
	}
	return ""
}

// A packet that came both ways is there once.
func TestSamplesInOrder(t *testing.T) {
	client := netip.MustParseAddrPort("198.51.100.7:4000")
	var recorded, queued []capture.Packet
	for i := range 6 {
		p := tcp4(epoch.Add(time.Duration(i)*time.Second), client, web, capture.SYN, uint32(i), 0)
		if i < 4 {
			recorded = append(recorded, p)
		}
		if i%2 == 1 {
			p.Time += 1000
			queued = append(queued, p)
		}
	}
	var got []int64
	for p := range inOrder(without(slices.Values(recorded), queued), queued) {
		got = append(got, (p.Time-epoch.UnixNano())/1e9)
	}
	if want := []int64{0, 1, 2, 3, 5}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

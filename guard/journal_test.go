package guard

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

var journalStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// numbered is the i-th of entries a second apart.
func numbered(i int) Entry {
	return Entry{Time: journalStart.Add(time.Duration(i) * time.Second), Event: EventVerdict, Service: fmt.Sprintf("192.0.2.1:%d", i), To: "flood", Reason: "a reason of usual length for what has been seen"}
}

func numberedUntil(n int) []Entry {
	var all []Entry
	for i := range n {
		all = append(all, numbered(i))
	}
	return all
}

// journal runs a journal in dir for the entries given, and waits until all is
// written or lost.
func journal(t *testing.T, dir string, cfg JournalConfig, entries ...Entry) *Journal {
	t.Helper()
	j := NewJournal(dir, cfg)
	for _, e := range entries {
		j.Add(e)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.Run(done); err != nil {
		t.Fatal(err)
	}
	return j
}

// readAll reads a journal, its errors apart.
func readAll(dir string, since time.Time) (entries []Entry, errs []string) {
	for e, err := range ReadJournal(dir, since) {
		if err != nil {
			errs = append(errs, strings.ReplaceAll(err.Error(), dir, "DIR"))
			continue
		}
		entries = append(entries, e)
	}
	return entries, errs
}

func wantEntries(t *testing.T, dir string, want []Entry) {
	t.Helper()
	got, errs := readAll(dir, time.Time{})
	if len(errs) > 0 {
		t.Errorf("reading it: %v", errs)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

func journalFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

var roomy = DefaultConfig().Journal

func TestJournalWritesWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		j := NewJournal(dir, roomy)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- j.Run(ctx) }()
		var want []Entry
		for i := range 3 {
			j.Add(numbered(i))
			want = append(want, numbered(i))
			synctest.Wait()
			wantEntries(t, dir, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestJournalKeepsEveryField(t *testing.T) {
	dir := t.TempDir()
	rate, share := 5000.25, 0.98
	want := []Entry{
		{Time: journalStart, Event: EventLease, Service: "[2001:db8::1]:80", From: "a", To: "armed", By: "uid 0, pid 7", Reason: "\"quoted\"\nand <broken>", Figures: &Figures{Suspect: &rate, Share: &share}},
		{Time: journalStart, Event: EventRole, Instance: "VI_1", From: "BACKUP", To: "MASTER"},
		{Time: journalStart, Event: EventSource, Source: SourceIPVS, To: "unknown"},
	}
	journal(t, dir, roomy, want...)
	wantEntries(t, dir, want)
}

func TestJournalRotates(t *testing.T) {
	dir := t.TempDir()
	const most = 64 << 10
	// Far more than the files can hold, in bursts as long as the queue.
	var all []Entry
	for burst := range 3 {
		var entries []Entry
		for i := range journalQueue {
			entries = append(entries, numbered(burst*journalQueue+i))
		}
		journal(t, dir, JournalConfig{MaxBytes: most, Keep: 3}, entries...)
		all = append(all, entries...)
	}
	if diff := cmp.Diff([]string{"journal.jsonl", "journal.jsonl.1", "journal.jsonl.2", "journal.jsonl.3"}, journalFiles(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, name := range journalFiles(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > most {
			t.Errorf("%s has %d bytes, more than %d", name, info.Size(), most)
		}
		if perm := info.Mode().Perm(); perm&0o007 != 0 {
			t.Errorf("%s is open to all: %v", name, perm)
		}
	}
	got, errs := readAll(dir, time.Time{})
	if len(errs) > 0 || len(got) < 3*most/250 {
		t.Fatalf("%d entries are left, errors %v", len(got), errs)
	}
	if diff := cmp.Diff(all[len(all)-len(got):], got); diff != "" {
		t.Errorf("what is left are not the last entries in their order (-want +got):\n%s", diff)
	}
}

func TestJournalKeepsFewer(t *testing.T) {
	dir := t.TempDir()
	cfg := JournalConfig{MaxBytes: 1, Keep: 5}
	for i := range 7 {
		journal(t, dir, cfg, numbered(i))
	}
	if n := len(journalFiles(t, dir)); n != 6 {
		t.Fatalf("%d files", n)
	}
	cfg.Keep = 2
	journal(t, dir, cfg, numbered(7))
	wantEntries(t, dir, []Entry{numbered(5), numbered(6), numbered(7)})
	if n := len(journalFiles(t, dir)); n != 3 {
		t.Errorf("%d files are left by a shorter keep: %v", n, journalFiles(t, dir))
	}
}

func TestReadJournalSince(t *testing.T) {
	dir := t.TempDir()
	for i := range 4 {
		journal(t, dir, JournalConfig{MaxBytes: 1, Keep: 9}, numbered(i))
	}
	for from := range 5 {
		got, errs := readAll(dir, journalStart.Add(time.Duration(from)*time.Second))
		if diff := cmp.Diff(numberedUntil(4)[from:], got, cmpopts.EquateEmpty()); diff != "" || len(errs) > 0 {
			t.Errorf("since the %d. entry (-want +got):\n%s%v", from, diff, errs)
		}
	}
}

func TestReadJournalStops(t *testing.T) {
	dir := t.TempDir()
	journal(t, dir, roomy, numberedUntil(5)...)
	n := 0
	for range ReadJournal(dir, time.Time{}) {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d entries", n)
	}
}

func TestReadJournalAbsent(t *testing.T) {
	_, errs := readAll(t.TempDir(), time.Time{})
	if want := []string{"read journal: no journal.jsonl in DIR: has a guard run with this --state-dir?"}; !slices.Equal(errs, want) {
		t.Errorf("got %q, want %q", errs, want)
	}
}

func TestReadJournalDamaged(t *testing.T) {
	line := func(i int) string {
		text, err := json.Marshal(numbered(i))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, tt := range []struct {
		name, text string
		want       []Entry
		errs       []string
	}{
		{"cut last line", line(0) + "\n" + line(1)[:40], []Entry{numbered(0)}, []string{"DIR/journal.jsonl, line 2: unexpected end of JSON input"}},
		{"last line without its end", line(0) + "\n" + line(1), numberedUntil(2), nil},
		{"garbage between", line(0) + "\nnonsense\n" + line(1) + "\n", numberedUntil(2), []string{"DIR/journal.jsonl, line 2: invalid character 'o' in literal null (expecting 'u')"}},
		{"empty line", line(0) + "\n\n" + line(1) + "\n", numberedUntil(2), []string{"DIR/journal.jsonl, line 2: unexpected end of JSON input"}},
		{"wrong type", `{"time": 7}` + "\n" + line(0) + "\n", numberedUntil(1), []string{"DIR/journal.jsonl, line 1: Time.UnmarshalJSON: input is not a JSON string"}},
		{"zeros of a lost write", line(0) + "\n" + strings.Repeat("\x00", 3*maxJournalLine) + "\n" + line(1) + "\n", numberedUntil(2), []string{"DIR/journal.jsonl, line 2: it has more than 1048576 bytes, and is no entry"}},
		{"endless last line", line(0) + "\n" + strings.Repeat("x", 2*maxJournalLine), numberedUntil(1), []string{"DIR/journal.jsonl, line 2: it has more than 1048576 bytes, and is no entry"}},
		{"empty", "", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, journalName), []byte(tt.text), 0o640); err != nil {
				t.Fatal(err)
			}
			got, errs := readAll(dir, time.Time{})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.errs, errs); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

// A guard that died in the middle of a line spoils no line of the next.
func TestJournalAfterCutLine(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, journalName), []byte(`{"time":"2026-`), 0o640); err != nil {
		t.Fatal(err)
	}
	journal(t, dir, roomy, numbered(0))
	got, errs := readAll(dir, time.Time{})
	if diff := cmp.Diff(numberedUntil(1), got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if want := []string{"DIR/journal.jsonl, line 1: unexpected end of JSON input"}; !slices.Equal(errs, want) {
		t.Errorf("errors %q, want %q", errs, want)
	}
}

// Add never waits; what it sheds is counted, and the journal tells of it.
func TestJournalQueueFull(t *testing.T) {
	dir := t.TempDir()
	j := NewJournal(dir, roomy)
	for i := range journalQueue + 10 {
		j.Add(numbered(i))
	}
	h := j.Health()
	if h.Lost != 10 || h.Error == nil || !strings.Contains(*h.Error, "queue is full") {
		t.Errorf("health: %d lost, %v", h.Lost, h.Error)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.Run(done); err != nil {
		t.Fatal(err)
	}
	want := append([]Entry{{
		Time: journalStart, Event: EventLost, Reason: "10 entries could not be written: the journal's queue is full: the disk is too slow",
	}}, numberedUntil(journalQueue)...)
	wantEntries(t, dir, want)
	if h := j.Health(); h.Lost != 10 || h.Error != nil {
		t.Errorf("health afterwards: %d lost, error %v", h.Lost, h.Error)
	}
}

func TestJournalFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("as it was\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, filepath.Join(dir, journalName)); err != nil {
		t.Fatal(err)
	}
	j := journal(t, dir, roomy, numbered(0))
	if h := j.Health(); h.Lost != 1 || h.Error == nil || !strings.Contains(*h.Error, journalName) {
		t.Errorf("health: %+v", h)
	}
	if text, err := os.ReadFile(precious); err != nil || string(text) != "as it was\n" {
		t.Errorf("the link's target now holds %q, %v", text, err)
	}
}

// unprivileged ends a test that needs what err refuses.
func unprivileged(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("LVSGUARD_PRIVILEGED") == "1" {
		t.Fatalf("%s: %v (this run must have it: run it as root)", what, err)
	}
	t.Skipf("%s: %v (needs root)", what, err)
}

// smallDisk returns the directory of a disk of 64 KiB, which no other process
// sees and which ends with the test.
func smallDisk(t *testing.T) string {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		unprivileged(t, "open a tmpfs", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "size", "64k"); err != nil {
		t.Fatal(err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		unprivileged(t, "make a tmpfs", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		unprivileged(t, "mount a tmpfs", err)
	}
	t.Cleanup(func() { unix.Close(mount) })
	return fmt.Sprintf("/proc/self/fd/%d", mount)
}

// A full disk: whole lines only, what is lost is counted, and when there is
// room again the journal tells of it and goes on.
func TestJournalFullDisk(t *testing.T) {
	dir := smallDisk(t)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 52<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	j := NewJournal(dir, roomy)
	written := 0
	for j.Health().Lost == 0 {
		if written > 1000 {
			t.Fatal("the disk does not fill")
		}
		j.write([]Entry{numbered(written), numbered(written + 1)})
		written += 2
	}
	written -= 2
	for i := range 3 {
		j.write([]Entry{numbered(9000 + i)})
	}
	h := j.Health()
	if h.Lost != 5 || h.Error == nil || !strings.Contains(*h.Error, "no space left") {
		t.Fatalf("health on a full disk: %d lost, %v", h.Lost, h.Error)
	}
	wantEntries(t, dir, numberedUntil(written))
	text, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil || !bytes.HasSuffix(text, []byte("}\n")) {
		t.Errorf("the journal ends within a line: …%q, %v", text[max(0, len(text)-30):], err)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	j.write([]Entry{numbered(written), numbered(written + 1)})
	got, errs := readAll(dir, time.Time{})
	if len(errs) > 0 || len(got) != written+3 {
		t.Fatalf("%d entries, want %d; errors %v", len(got), written+3, errs)
	}
	lost := got[written]
	if lost.Event != EventLost || !strings.HasPrefix(lost.Reason, "5 entries could not be written: ") || !strings.Contains(lost.Reason, "no space left") {
		t.Errorf("the journal tells of the loss: %+v", lost)
	}
	if h := j.Health(); h.Lost != 5 || h.Error != nil {
		t.Errorf("health with room again: %d lost, %v", h.Lost, h.Error)
	}
}

// What was written and not synced counts as lost. /dev/null takes every write
// and can sync none.
func TestJournalSyncs(t *testing.T) {
	dir := smallDisk(t)
	if err := unix.Mknod(filepath.Join(dir, journalName), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		unprivileged(t, "make a device", err)
	}
	j := journal(t, dir, roomy, numbered(0), numbered(1))
	if h := j.Health(); h.Lost != 2 || h.Error == nil || !strings.Contains(*h.Error, "sync") || !strings.Contains(*h.Error, syscall.EINVAL.Error()) {
		t.Errorf("health where nothing can be synced: %d lost, %v", h.Lost, h.Error)
	}
}

// A directory that goes away and comes back.
func TestJournalRecovers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	j := journal(t, dir, roomy, numbered(0), numbered(1))
	if h := j.Health(); h.Lost != 2 || h.Error == nil {
		t.Errorf("health without a directory: %d lost, %v", h.Lost, h.Error)
	}
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	j.write([]Entry{numbered(2)})
	got, _ := readAll(dir, time.Time{})
	if len(got) != 2 || got[0].Event != EventLost || !strings.HasPrefix(got[0].Reason, "2 entries") || got[1].Service != numbered(2).Service {
		t.Errorf("journal: %+v", got)
	}
}

// Whatever a journal holds, every line is an entry or an error, and a good line
// behind it still comes.
func FuzzReadJournal(f *testing.F) {
	f.Add([]byte("{}"))
	f.Add([]byte("\x00\n\n{\"time\":\"2026-01-02T03:04:05Z\""))
	f.Add([]byte(`{"event":"lease","figures":{"syn_per_second":1e999}}` + "\n[]\nnull"))
	f.Fuzz(func(t *testing.T, text []byte) {
		good, err := json.Marshal(numbered(1))
		if err != nil {
			t.Fatal(err)
		}
		whole := slices.Concat(text, []byte("\n"), good, []byte("\n"))
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, journalName), whole, 0o600); err != nil {
			t.Fatal(err)
		}
		// An entry can be older than the zero time.
		entries, errs := readAll(dir, time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC))
		if got, want := len(entries)+len(errs), bytes.Count(whole, []byte("\n")); got != want {
			t.Errorf("%d entries and %d errors of %d lines", len(entries), len(errs), want)
		}
		if len(entries) == 0 || !cmp.Equal(entries[len(entries)-1], numbered(1)) {
			t.Errorf("the last line is not the last entry: %+v", entries)
		}
	})
}

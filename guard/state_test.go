package guard

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/ipvs"
)

func TestStateSavedAndLoaded(t *testing.T) {
	dir := t.TempDir()
	if s, err := loadState(dir); err != nil || !cmp.Equal(s, savedState{}, keys) {
		t.Errorf("without a file: %+v, %v", s, err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := savedState{
		Mode: Auto, Removed: true,
		Arms: []savedArm{
			{Service: mustKey(t, "192.0.2.1:80"), Remaining: time.Hour, Who: "uid 0, pid 7"},
			{Service: mustKey(t, "fwmark:7"), Remaining: time.Second, Who: "uid 0, pid 8"},
		},
	}
	if err := want.save(dir, now); err != nil {
		t.Fatal(err)
	}
	got, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	boot, since := clock()
	if got.Boot == "" || got.Boot != boot || got.BootTime <= 0 || got.BootTime > since {
		t.Errorf("saved at %s after boot %q; it is %s after boot %q", got.BootTime, got.Boot, since, boot)
	}
	want.Boot, want.BootTime, want.SavedAt = got.Boot, got.BootTime, now
	if diff := cmp.Diff(want, got, keys); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	info, err := os.Stat(filepath.Join(dir, stateName))
	if err != nil || info.Mode().Perm()&0o022 != 0 {
		t.Errorf("others may write the state: %v, %v", info.Mode(), err)
	}
}

func TestStatePassed(t *testing.T) {
	boot, since := clock()
	if boot == "" || since < time.Second {
		t.Fatalf("the clock since boot says %s, %q", since, boot)
	}
	now := time.Now()
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name  string
		state savedState
		want  time.Duration
	}{
		{"same boot", savedState{Boot: boot, BootTime: since - time.Second, SavedAt: now.Add(-time.Second)}, time.Second},
		{"same boot, wall clock a day ahead", savedState{Boot: boot, BootTime: since - time.Second, SavedAt: now.Add(-day)}, time.Second},
		{"same boot, wall clock a day behind", savedState{Boot: boot, BootTime: since - time.Second, SavedAt: now.Add(day)}, time.Second},
		{"other boot", savedState{Boot: "other", BootTime: since - time.Second, SavedAt: now.Add(-time.Hour)}, time.Hour},
		{"other boot, wall clock went back", savedState{Boot: "other", SavedAt: now.Add(day)}, 0},
		{"no boot known", savedState{SavedAt: now.Add(-time.Minute)}, time.Minute},
		{"same boot, from the future", savedState{Boot: boot, BootTime: since + day, SavedAt: now.Add(-time.Hour)}, time.Hour},
		{"from the future in every way", savedState{Boot: boot, BootTime: since + day, SavedAt: now.Add(day)}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The clock goes on while the test runs.
			if got := tt.state.passed(now); got < tt.want || got > tt.want+30*time.Second {
				t.Errorf("passed %s, want %s", got, tt.want)
			}
		})
	}
}

func TestLoadStateDamaged(t *testing.T) {
	good := savedState{Mode: Auto, Arms: []savedArm{{Service: mustKey(t, "192.0.2.1:80"), Remaining: time.Hour}}}
	dir := t.TempDir()
	path := filepath.Join(dir, stateName)
	if err := good.save(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := []string{
		"\x00\x00\x00", "[]", `"auto"`, `{"mode": "of course"}`, `{"mode": 7}`,
		`{"arms": [{"service": "nowhere", "remaining": 1}]}`, `{"arms": [{"service": "192.0.2.1:80", "remaining": "1h"}]}`,
	}
	for n := range len(text) - 2 { // without its last newline it is whole
		damaged = append(damaged, string(text[:n]))
	}
	for _, d := range damaged {
		if err := os.WriteFile(path, []byte(d), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadState(dir)
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: error %v does not name the file", d, err)
		}
		if diff := cmp.Diff(savedState{}, s, keys); diff != "" {
			t.Errorf("%q is not nothing (-want +got):\n%s", d, diff)
		}
	}
}

// A state that cannot be saved leaves that of before, and nothing beside it.
func TestStateSaveFails(t *testing.T) {
	dir := smallDisk(t)
	before := savedState{Mode: Auto}
	if err := before.save(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk does not fill: %v", err)
	}
	err := savedState{Mode: Observe}.save(dir, time.Now())
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("saved on a full disk: %v", err)
	}
	if s, err := loadState(dir); err != nil || s.Mode != Auto {
		t.Errorf("the state of before: %+v, %v", s, err)
	}
	if diff := cmp.Diff([]string{"filler", stateName}, journalFiles(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if err := before.save(filepath.Join(dir, "absent"), time.Now()); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("saved into no directory: %v", err)
	}
}

// rewriteState changes what a guard that has ended saved.
func (w *world) rewriteState(change func(*savedState)) {
	w.t.Helper()
	dir := filepath.Join(w.dir, "state")
	s, err := loadState(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	change(&s)
	text, err := json.Marshal(s)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateName), text, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// How much of an operator's hour is left after a restart.
func TestDaemonKeepsArms(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*savedState)
		want   time.Duration // 0: it is over
	}{
		{"a restart at once", func(*savedState) {}, time.Hour},
		{"the wall clock a day ahead", func(s *savedState) { s.SavedAt = s.SavedAt.Add(-24 * time.Hour) }, time.Hour},
		{"the wall clock a day behind", func(s *savedState) { s.SavedAt = s.SavedAt.Add(24 * time.Hour) }, time.Hour},
		{"a reboot of 20 minutes", func(s *savedState) { s.Boot, s.SavedAt = "other", s.SavedAt.Add(-20*time.Minute) }, 40 * time.Minute},
		{"a reboot of two hours", func(s *savedState) { s.Boot, s.SavedAt = "other", s.SavedAt.Add(-2*time.Hour) }, 0},
		{"a reboot with the clock a day back", func(s *savedState) { s.Boot, s.SavedAt = "other", s.SavedAt.Add(24*time.Hour) }, time.Hour},
		{"a file that claims more than is allowed", func(s *savedState) { s.Arms[0].Remaining = 1000 * time.Hour }, MaxArm},
		{"a file that claims less than nothing", func(s *savedState) { s.Arms[0].Remaining = -time.Hour }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "mode: observe")
			w.ipvs.services = []ipvs.Service{serviceAt(web)}
			w.tick(1)
			if _, err := w.command(w.now, Command{Verb: VerbArm, Seconds: 3600}, "uid 0, pid 7"); err != nil {
				t.Fatal(err)
			}
			w.Close()
			w.rewriteState(tt.change)
			w.table.leases, w.table.memory = nil, nil // what the kernel held has lapsed
			w.start()
			w.tick(1)
			l := w.service("192.0.2.1:80").Lease
			if tt.want == 0 {
				if l != nil {
					t.Fatalf("armed until %s", l.ExpiresAt)
				}
				return
			}
			if l == nil || l.By != ByOperator {
				t.Fatalf("lease %+v", l)
			}
			if left := time.Until(l.ExpiresAt); left > tt.want+5*time.Second || left < tt.want-30*time.Second {
				t.Errorf("%s left, want %s", left, tt.want)
			}
		})
	}
}

func TestDaemonStateDamaged(t *testing.T) {
	w := newWorld(t, "mode: observe")
	if _, err := w.command(w.now, Command{Verb: VerbMode, Mode: Auto}, "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := os.WriteFile(filepath.Join(w.dir, "state", stateName), []byte(`{"mode": "au`), 0o600); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.tick(1)
	if s := w.Status(); s.Mode != Observe || s.ModeFrom != ModeFromConfig {
		t.Errorf("mode %s from %s", s.Mode, s.ModeFrom)
	}
	if got := w.journalled(EventSource); len(got) == 0 {
		t.Error("the journal does not tell of the damaged state")
	}
}

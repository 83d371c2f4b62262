package incident

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/internal/netns"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Create(filepath.Join(t.TempDir(), "incidents"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// put makes an incident with a file of packets of that size.
func put(t *testing.T, s *Store, n, bytes int) string {
	t.Helper()
	id := NewID(onset.Add(time.Duration(n)*time.Hour), "192.0.2.1:80")
	f, name, err := s.CreatePackets(id, "by hand")
	if err != nil {
		t.Fatal(err)
	}
	f.Write(make([]byte, bytes))
	f.Close()
	if err := s.Save(&Record{Format: Format, ID: id, Packets: []PacketFile{{Name: name, Bytes: int64(bytes)}}}); err != nil {
		t.Fatal(err)
	}
	return id
}

func ids(t *testing.T, s *Store) (list []string) {
	t.Helper()
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		list = append(list, l.ID)
	}
	return list
}

func TestStore(t *testing.T) {
	s := newStore(t)
	a, b := put(t, s, 1, 10), put(t, s, 2, 10)
	if diff := cmp.Diff([]string{b, a}, ids(t, s)); diff != "" {
		t.Error(diff)
	}
	r, err := s.Load(a)
	if err != nil {
		t.Fatal(err)
	}
	r.Service = "changed"
	if err := s.Save(r); err != nil {
		t.Fatal(err)
	}
	if r, err = s.Load(a); err != nil || r.Service != "changed" || r.Pinned {
		t.Errorf("%+v, %v", r, err)
	}
	for range 2 {
		if err := s.Pin(a, true); err != nil {
			t.Error(err)
		}
	}
	if r, err = s.Load(a); err != nil || !r.Pinned {
		t.Errorf("%+v, %v", r, err)
	}
	if err := s.Pin(a, false); err != nil {
		t.Error(err)
	}
	if _, err := s.Load(NewID(onset, "nobody")); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
	for _, name := range []string{a + ".json", a + "-by_hand-1.pcapng"} {
		info, err := os.Stat(s.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o640 {
			t.Errorf("%s: %v", name, info.Mode())
		}
	}
	if f, _, err := s.CreatePackets(NewID(onset, "capture"), "by hand"); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	if diff := cmp.Diff([]string{b, a}, ids(t, s)); diff != "" {
		t.Error(diff)
	}
	name, err := s.LinkPackets(b, "before", a+"-by_hand-1.pcapng")
	if err != nil || name != b+"-before-1.pcapng" {
		t.Errorf("%s, %v", name, err)
	}
}

func TestRemove(t *testing.T) {
	s := newStore(t)
	a, b := put(t, s, 1, 10), put(t, s, 2, 10)
	if err := s.Remove(a); err != nil {
		t.Fatal(err)
	}
	names, err := s.names()
	if diff := cmp.Diff([]string{b + "-by_hand-1.pcapng", b + ".json"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// Nobody gets out of the directory, and no link is followed.
func TestStoreIsSafe(t *testing.T) {
	s := newStore(t)
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "..", "../../etc/passwd", "20260102T030405Z-a/b", "20260102T030405Z-", "20260102T030405Z-a\x00", "20260102T030405Z-" + strings.Repeat("a", 65)} {
		if _, err := s.Load(id); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load(%q): %v", id, err)
		}
		if err := s.Save(&Record{ID: id}); err == nil {
			t.Errorf("Save(%q): no error", id)
		}
		if err := s.Pin(id, true); err == nil {
			t.Errorf("Pin(%q): no error", id)
		}
		if _, _, err := s.CreatePackets(id, "onset"); err == nil {
			t.Errorf("CreatePackets(%q): no error", id)
		}
	}
	id := NewID(onset, "192.0.2.1:80")
	if _, _, err := s.CreatePackets(id, "../x"); err == nil {
		t.Error("a reason with a path: no error")
	}
	for _, name := range []string{id + ".json", id + "-onset-1.pcapng"} {
		if err := os.Symlink(outside, s.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Load(id); err == nil {
		t.Error("a link was followed")
	}
	if _, name, err := s.CreatePackets(id, "onset"); err != nil || name != id+"-onset-2.pcapng" {
		t.Errorf("%s, %v", name, err)
	}
	if err := s.Save(&Record{Format: Format, ID: id}); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "secret" {
		t.Errorf("%q, %v", text, err)
	}
	link := filepath.Join(t.TempDir(), "incidents")
	if err := os.Symlink(s.path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(link); err == nil {
		t.Error("a directory that is a link was opened")
	}
}

// What is no record is listed as such, and stops no other.
func TestStoreUnreadable(t *testing.T) {
	s := newStore(t)
	good := put(t, s, 5, 1)
	other := NewID(onset, "192.0.2.2:80")
	want := map[string]string{}
	for i, bad := range []string{"", "{", "null", `{"format":1}`, `{"format":9,"id":"x"}`, `{"format":1,"id":"` + other + `"}`, `{"format":1,"id":"ID","packets":[{"name":"../../x"}]}`} {
		id := NewID(onset.Add(time.Duration(i)*time.Second), "192.0.2.1:80")
		if err := os.WriteFile(s.Path(id+".json"), []byte(strings.ReplaceAll(bad, "ID", id)), 0o640); err != nil {
			t.Fatal(err)
		}
		want[id] = bad
	}
	list, err := s.List()
	if err != nil || len(list) != len(want)+1 {
		t.Fatalf("%d, %v", len(list), err)
	}
	for _, l := range list {
		switch {
		case l.ID == good:
			if l.Err != nil || l.Record == nil {
				t.Errorf("%+v", l)
			}
		case l.Err == nil || l.Record != nil:
			t.Errorf("%q: %+v", want[l.ID], l)
		}
	}
}

func TestKeep(t *testing.T) {
	s := newStore(t)
	var all []string
	for i := range 6 {
		all = append(all, put(t, s, i, 10_000))
	}
	foreign := s.Path("notes.json")
	if err := os.WriteFile(foreign, make([]byte, 1<<20), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin(all[0], true); err != nil {
		t.Fatal(err)
	}
	spared := func(id string) bool { return id == all[1] }
	keep := func(now time.Time, l Limits, want ...string) {
		t.Helper()
		got, err := s.Keep(now, l, spared)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("removed %v, want %v", got, want)
		}
	}
	keep(time.Now(), Limits{})
	keep(time.Now(), Limits{Incidents: 5}, all[2])
	keep(time.Now(), Limits{Bytes: 45_000}, all[3])
	// Packets that two share are there once.
	if _, err := s.LinkPackets(all[5], "before", all[4]+"-by_hand-1.pcapng"); err != nil {
		t.Fatal(err)
	}
	keep(time.Now(), Limits{Bytes: 45_000})
	keep(time.Now().Add(time.Hour), Limits{Age: 2 * time.Hour})
	keep(time.Now().Add(3*time.Hour), Limits{Age: 2 * time.Hour}, all[4], all[5])
	if diff := cmp.Diff([]string{all[1], all[0]}, ids(t, s)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}

// A crash in the middle of a write leaves the record of before.
func TestStoreAfterCrash(t *testing.T) {
	s := newStore(t)
	id := put(t, s, 1, 1)
	half := s.Path("." + id + ".json.4711")
	if err := os.WriteFile(half, []byte(`{"format":1,`), 0o640); err != nil {
		t.Fatal(err)
	}
	again, err := Create(s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was half written is still there: %v", err)
	}
	if _, err := again.Load(id); err != nil {
		t.Error(err)
	}
}

// A full disk is an error, and what was there stays.
func TestStoreDiskFull(t *testing.T) {
	host := netns.New(t)
	dir := t.TempDir()
	host.Do(t, func() {
		// The thread's own mounts: the test's are not touched.
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		s, err := Create(filepath.Join(dir, "incidents"))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		id := put(t, s, 1, 0)
		if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 48<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		big := &Record{Format: Format, ID: id, Began: strings.Repeat("a", 40<<10)}
		if err := s.Save(big); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("error %v", err)
		}
		if r, err := s.Load(id); err != nil || r.Began != "" {
			t.Errorf("the record of before: %v", err)
		}
		names, err := s.names()
		if err != nil || len(names) != 2 {
			t.Errorf("%v, %v", names, err)
		}
		if err := os.Remove(filepath.Join(dir, "fill")); err != nil {
			t.Fatal(err)
		}
		if err := s.Save(big); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"20260102T030405Z-192.0.2.1_80","packets":[{"name":"20260102T030405Z-192.0.2.1_80-onset-1.pcapng"}]}`))
	f.Add([]byte(`{"format":1,"id":"../x"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseRecord(text)
		if err != nil {
			return
		}
		for _, p := range r.Packets {
			if strings.ContainsAny(p.Name, "/\x00") {
				t.Errorf("%q", p.Name)
			}
		}
		if strings.ContainsAny(r.ID, "/\x00") {
			t.Errorf("%q", r.ID)
		}
	})
}

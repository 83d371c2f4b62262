package incident

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// Format is that of records.
	Format = 1

	maxService = 64
	// maxRecord is far more than any record has.
	maxRecord = 16 << 20

	recordSuffix = ".json"
	pinSuffix    = ".pin"
	packetSuffix = ".pcapng"
)

// The names of files. They are compiled when they are needed: keepalived's hook and
// other short commands, which have to do with no incident, would pay for them.
var (
	idPattern     = fileName(`^\d{8}T\d{6}Z-[A-Za-z0-9._-]{1,64}$`)
	packetPattern = fileName(`^(\d{8}T\d{6}Z-[A-Za-z0-9._-]{1,64}?)-(before|onset|peak|during|by_hand)-(\d{1,6})\.pcapng$`)
	tempPattern   = fileName(`^\.(\d{8}T\d{6}Z-[A-Za-z0-9._-]{1,64})\.json\.\d+$`)
)

func fileName(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// ErrNotFound is the error of an incident that there is no record of.
var ErrNotFound = errors.New("no such incident")

// A Store is the directory of records: ID.json, ID-why-N.pcapng, and ID.pin for
// one that stays. Only files so named are its own, and no link is followed.
type Store struct {
	root *os.Root
	path string
}

// Dir is where the incidents are in a state directory.
func Dir(state string) string { return filepath.Join(state, "incidents") }

// Create makes the directory, if need be, and opens it.
func Create(dir string) (*Store, error) {
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the directory of incidents: %w", err)
	}
	s, err := Open(dir)
	if err != nil {
		return nil, err
	}
	// What a crash left half written.
	names, err := s.names()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	for _, name := range names {
		if tempPattern().MatchString(name) {
			err = errors.Join(err, s.root.Remove(name))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tidy %s: %w", dir, err), s.Close())
	}
	return s, nil
}

// Open opens the directory, to read or to pin.
func Open(dir string) (*Store, error) {
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of incidents: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open the directory of incidents: %s is no directory", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of incidents: %w", err)
	}
	return &Store{root: root, path: dir}, nil
}

// Close closes the directory.
func (s *Store) Close() error { return s.root.Close() }

// Path is where a file of the directory is.
func (s *Store) Path(name string) string { return filepath.Join(s.path, name) }

// CheckID tells whether an ID can be one.
func CheckID(id string) error {
	if !idPattern().MatchString(id) {
		return fmt.Errorf("incident %q: want an ID as lvsguard incidents lists them", id)
	}
	return nil
}

// Save replaces an incident's record as a whole, or not at all.
func (s *Store) Save(r *Record) error {
	if err := CheckID(r.ID); err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write the record of incident %s: %w", r.ID, err)
	}
	temp := fmt.Sprintf(".%s.json.%d", r.ID, os.Getpid())
	if err := s.write(temp, append(text, '\n')); err != nil {
		return fmt.Errorf("write the record of incident %s: %w", r.ID, errors.Join(err, ignoreAbsent(s.root.Remove(temp))))
	}
	if err := s.root.Rename(temp, r.ID+recordSuffix); err != nil {
		return fmt.Errorf("write the record of incident %s: %w", r.ID, errors.Join(err, s.root.Remove(temp)))
	}
	return nil
}

func (s *Store) write(name string, text []byte) error {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// CreatePackets makes a file for an incident's packets. Why is before, onset,
// peak, during or by hand.
func (s *Store) CreatePackets(id, why string) (f *os.File, name string, err error) {
	name, err = s.packets(id, why, func(name string) (err error) {
		f, err = s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o640)
		return err
	})
	return f, name, err
}

// LinkPackets gives an incident the packets of another one that is going on at
// the same time, without a copy.
func (s *Store) LinkPackets(id, why, from string) (name string, err error) {
	return s.packets(id, why, func(name string) error { return s.root.Link(from, name) })
}

// packets puts a file in the first place that is free.
func (s *Store) packets(id, why string, put func(name string) error) (name string, err error) {
	if err := CheckID(id); err != nil {
		return "", err
	}
	for n := 1; n < 1_000_000; n++ {
		name := fmt.Sprintf("%s-%s-%d%s", id, strings.ReplaceAll(why, " ", "_"), n, packetSuffix)
		if !packetPattern().MatchString(name) {
			break
		}
		err := put(name)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("keep packets of incident %s: %w", id, err)
		}
		return name, nil
	}
	return "", fmt.Errorf("keep packets of incident %s: no name for more of %q", id, why)
}

// RemovePackets removes a file of packets.
func (s *Store) RemovePackets(name string) error {
	if !packetPattern().MatchString(name) {
		return fmt.Errorf("%q is no file of packets", name)
	}
	return ignoreAbsent(s.root.Remove(name))
}

// Load reads the record of an incident.
func (s *Store) Load(id string) (*Record, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	f, err := s.root.OpenFile(id+recordSuffix, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s (see: lvsguard incidents)", ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("read incident %s: %w", id, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(text) > maxRecord {
		err = fmt.Errorf("%s has more than %d bytes", f.Name(), maxRecord)
	}
	if err != nil {
		return nil, fmt.Errorf("read incident %s: %w", id, err)
	}
	r, err := ParseRecord(text)
	if err == nil && r.ID != id {
		err = fmt.Errorf("it says that it is %q", r.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Path(id+recordSuffix), err)
	}
	_, err = s.root.Lstat(id + pinSuffix)
	r.Pinned = err == nil
	return r, nil
}

// ParseRecord reads a record.
func ParseRecord(text []byte) (*Record, error) {
	var r Record
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("it is no record of an incident: %w", err)
	}
	if r.Format != Format {
		return nil, fmt.Errorf("it has format %d, and this lvsguard reads format %d", r.Format, Format)
	}
	if err := CheckID(r.ID); err != nil {
		return nil, err
	}
	for _, p := range r.Packets {
		if !packetPattern().MatchString(p.Name) {
			return nil, fmt.Errorf("it names a file of packets %q", p.Name)
		}
	}
	return &r, nil
}

// Pin has an incident stay whatever the caps are, or not any more.
func (s *Store) Pin(id string, pinned bool) error {
	if _, err := s.Load(id); err != nil {
		return err
	}
	var err error
	if pinned {
		err = s.write(id+pinSuffix, nil)
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
	} else {
		err = ignoreAbsent(s.root.Remove(id + pinSuffix))
	}
	if err != nil {
		return fmt.Errorf("pin incident %s: %w", id, err)
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Listed is an incident in the directory. Record is nil if it cannot be read,
// and Err says why.
type Listed struct {
	ID     string
	Record *Record
	Err    error
	Bytes  int64 // of all its files
}

// List gives all incidents, the newest first.
func (s *Store) List() ([]Listed, error) {
	kept, err := s.kept()
	if err != nil {
		return nil, err
	}
	list := []Listed{}
	for _, k := range kept {
		if !k.record {
			continue // packets that somebody had written by hand
		}
		l := Listed{ID: k.id, Bytes: k.bytes}
		if l.Record, l.Err = s.Load(k.id); errors.Is(l.Err, ErrNotFound) {
			continue // it has gone just now
		}
		list = append(list, l)
	}
	slices.Reverse(list)
	return list, nil
}

// kept is an incident by its files.
type kept struct {
	id     string
	files  []fs.FileInfo
	record bool
	pinned bool
	bytes  int64
	latest time.Time
}

// kept gives the incidents, the oldest first.
func (s *Store) kept() ([]kept, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*kept)
	for _, name := range names {
		id, ok := owner(name)
		if !ok {
			continue
		}
		info, err := s.root.Lstat(name)
		if err != nil || !info.Mode().IsRegular() {
			continue // it has gone, or is none of ours
		}
		k := byID[id]
		if k == nil {
			k = &kept{id: id}
			byID[id] = k
		}
		k.files = append(k.files, info)
		k.record = k.record || strings.HasSuffix(name, recordSuffix)
		k.pinned = k.pinned || strings.HasSuffix(name, pinSuffix)
		k.bytes += info.Size()
		if t := info.ModTime(); t.After(k.latest) {
			k.latest = t
		}
	}
	list := make([]kept, 0, len(byID))
	for _, k := range byID {
		list = append(list, *k)
	}
	slices.SortFunc(list, func(a, b kept) int { return cmp.Compare(a.id, b.id) })
	return list, nil
}

func (s *Store) names() ([]string, error) {
	dir, err := s.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("read the directory of incidents: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read the directory of incidents: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// owner is the incident that a file belongs to.
func owner(name string) (id string, ok bool) {
	if m := packetPattern().FindStringSubmatch(name); m != nil {
		return m[1], true
	}
	for _, suffix := range []string{recordSuffix, pinSuffix} {
		if id, ok := strings.CutSuffix(name, suffix); ok && idPattern().MatchString(id) {
			return id, true
		}
	}
	return "", false
}

// Limits bound what is kept. Zero is no bound.
type Limits struct {
	Incidents int
	Bytes     int64
	Age       time.Duration
}

// Keep removes the oldest incidents until the others are within the limits, and
// tells which. Those that are pinned, and those that are spared, stay; and they
// count.
func (s *Store) Keep(now time.Time, l Limits, spared func(id string) bool) (removed []string, err error) {
	list, err := s.kept()
	if err != nil {
		return nil, err
	}
	for _, k := range list {
		old := l.Age > 0 && now.Sub(k.latest) > l.Age
		many := l.Incidents > 0 && len(list)-len(removed) > l.Incidents
		big := l.Bytes > 0 && size(staying(list, removed)) > l.Bytes
		if !old && !many && !big || k.pinned || spared(k.id) {
			continue
		}
		for _, f := range k.files {
			err = errors.Join(err, ignoreAbsent(s.root.Remove(f.Name())))
		}
		removed = append(removed, k.id)
	}
	if err != nil {
		err = fmt.Errorf("remove old incidents: %w", err)
	}
	return removed, err
}

// Remove removes an incident and all that belongs to it.
func (s *Store) Remove(id string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if of, ok := owner(name); ok && of == id {
			err = errors.Join(err, ignoreAbsent(s.root.Remove(name)))
		}
	}
	if err != nil {
		return fmt.Errorf("remove incident %s: %w", id, err)
	}
	return nil
}

func staying(list []kept, removed []string) []kept {
	return slices.DeleteFunc(slices.Clone(list), func(k kept) bool { return slices.Contains(removed, k.id) })
}

// size is what incidents take, each file once, however many have a part in it.
func size(list []kept) (bytes int64) {
	type file struct{ device, number uint64 }
	seen := make(map[file]bool)
	for _, k := range list {
		for _, f := range k.files {
			if st, ok := f.Sys().(*syscall.Stat_t); ok {
				id := file{uint64(st.Dev), st.Ino}
				if seen[id] {
					continue
				}
				seen[id] = true
			}
			bytes += f.Size()
		}
	}
	return bytes
}

package guard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// An Event is the kind of a journal entry.
type Event string

// What is written to the journal.
const (
	EventStart   Event = "start"   // the guard started
	EventStop    Event = "stop"    // the guard was told to stop
	EventRole    Event = "role"    // a VRRP instance changed its role
	EventVerdict Event = "verdict" // a service's verdict changed
	EventMode    Event = "mode"    // observe or auto
	EventLease   Event = "lease"   // a lease began, changed hands or ended
	EventTable   Event = "table"   // the nft table was made, adopted, mended
	EventConfig  Event = "config"  // a configuration was taken, or refused
	EventSource  Event = "source"  // something cannot be read, or can again
	EventPause   Event = "pause"   // automatic drops pause
	EventLost    Event = "lost"    // entries before this one could not be written

	EventIncident Event = "incident" // the record of an incident: To says what became of it
	EventPressure Event = "pressure" // a resource crossed a threshold
	EventKernel   Event = "kernel"   // the kernel says that something has overflowed, or acts against it
	EventHealth   Event = "health"   // keepalived's health check changed its mind about a server

	EventAlert       Event = "alert"       // a group of alerts began, became more, or is over
	EventUndelivered Event = "undelivered" // a receiver was not told, and will not be
)

// An Entry is one line of the journal. Which fields are set depends on the
// event.
type Entry struct {
	Time     time.Time `json:"time"`
	Event    Event     `json:"event"`
	Service  string    `json:"service,omitempty"`
	Instance string    `json:"instance,omitempty"`
	Source   Source    `json:"source,omitempty"`
	From     string    `json:"from,omitempty"`
	To       string    `json:"to,omitempty"`
	By       string    `json:"by,omitempty"` // auto, prearm, or an operator by user and process
	Reason   string    `json:"reason,omitempty"`
	Figures  *Figures  `json:"figures,omitempty"`

	Resource string   `json:"resource,omitempty"` // of EventPressure: its name
	Kind     string   `json:"kind,omitempty"`     // a [pressure.Kind], or of EventKernel a [pressure.EventKind]
	Share    *float64 `json:"share,omitempty"`
	FullIn   *float64 `json:"full_in_seconds,omitempty"`
	Subject  string   `json:"subject,omitempty"`  // of EventKernel: what it happened to; of alerts, their group
	Count    uint64   `json:"count,omitempty"`    // of EventKernel: how many since its last entry
	Server   string   `json:"server,omitempty"`   // of EventHealth: the real server
	Receiver string   `json:"receiver,omitempty"` // of EventUndelivered
	Incident string   `json:"incident,omitempty"` // of EventIncident: its ID, if it has one
}

// A Journal keeps what happened, one JSON object a line, in a bounded number
// of files. Add never waits for the disk: a writer of its own does, and what
// does not fit is counted and reported in the journal itself.
type Journal struct {
	dir   string
	queue chan Entry

	mu   sync.Mutex
	cfg  JournalConfig
	lost uint64 // not yet reported
	all  uint64 // lost since start
	err  error  // of the last write; nil if it worked

	file *os.File
	size int64
}

const (
	// journalQueue is more than a burst of every service changing at once on a
	// large director.
	journalQueue = 4096
	// journalBatch is so small that a batch does not fill the smallest file that
	// can be configured.
	journalBatch = 128
	// maxJournalKeep bounds JournalConfig.Keep.
	maxJournalKeep = 100
)

const journalName = "journal.jsonl"

// NewJournal returns a journal in dir. It opens nothing before Run.
func NewJournal(dir string, cfg JournalConfig) *Journal {
	return &Journal{dir: dir, cfg: cfg, queue: make(chan Entry, journalQueue)}
}

// SetConfig changes the bounds.
func (j *Journal) SetConfig(cfg JournalConfig) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cfg = cfg
}

// Add queues an entry.
func (j *Journal) Add(e Entry) {
	select {
	case j.queue <- e:
	default:
		j.fail(1, errors.New("the journal's queue is full: the disk is too slow"))
	}
}

// JournalHealth is how the journal fares.
type JournalHealth struct {
	Lost  uint64  `json:"lost_entries"`
	Error *string `json:"error"`
}

// Health says how many entries were lost since start, and why the last write
// failed if it did.
func (j *Journal) Health() JournalHealth {
	j.mu.Lock()
	defer j.mu.Unlock()
	h := JournalHealth{Lost: j.all}
	if j.err != nil {
		msg := j.err.Error()
		h.Error = &msg
	}
	return h
}

func (j *Journal) fail(entries int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lost += uint64(entries)
	j.all += uint64(entries)
	j.err = err
}

// Run writes what is added until ctx is done, and then what is still queued.
func (j *Journal) Run(ctx context.Context) error {
	defer func() {
		if j.file != nil {
			j.file.Close()
		}
	}()
	for {
		select {
		case e := <-j.queue:
			j.write(j.batch(e))
		case <-ctx.Done():
			select {
			case e := <-j.queue:
				j.write(j.batch(e))
				continue
			default:
				return nil
			}
		}
	}
}

// batch takes what else is queued, so that one fsync serves all.
func (j *Journal) batch(first Entry) []Entry {
	entries := []Entry{first}
	for len(entries) < journalBatch {
		select {
		case e := <-j.queue:
			entries = append(entries, e)
		default:
			return entries
		}
	}
	return entries
}

func (j *Journal) write(entries []Entry) {
	j.mu.Lock()
	cfg, lost, why := j.cfg, j.lost, j.err
	j.mu.Unlock()
	n := len(entries)
	if lost > 0 {
		entries = append([]Entry{{
			Time: entries[0].Time, Event: EventLost,
			Reason: fmt.Sprintf("%d entries could not be written: %v", lost, why),
		}}, entries...)
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	for _, e := range entries {
		if err := enc.Encode(e); err != nil {
			j.fail(n, fmt.Errorf("encode a journal entry: %w", err))
			return
		}
	}
	if err := j.append(text.Bytes(), cfg); err != nil {
		j.fail(n, err)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lost -= lost
	if j.lost == 0 {
		j.err = nil
	}
}

// append adds whole lines. A write that ends in the middle of a line, on a
// full disk, is taken back.
func (j *Journal) append(text []byte, cfg JournalConfig) error {
	if err := j.open(); err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	if j.size > 0 && j.size+int64(len(text)) > cfg.MaxBytes {
		if err := j.rotate(cfg); err != nil {
			return err
		}
		return j.append(text, cfg)
	}
	n, err := j.file.Write(text)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		if n > 0 {
			err = errors.Join(err, j.file.Truncate(j.size))
		}
		return fmt.Errorf("write journal: %w", err)
	}
	j.size += int64(n)
	return nil
}

// open opens the file, if it is not open. A last line without its end, left by
// a guard that died in the middle of it, is ended, so that it spoils no other.
func (j *Journal) open() error {
	if j.file != nil {
		return nil
	}
	f, err := openAppend(journalFile(j.dir, 0))
	if err != nil {
		return err
	}
	size, err := endLine(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	j.file, j.size = f, size
	return nil
}

func endLine(f *os.File) (size int64, err error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], info.Size()-1); err != nil || last[0] == '\n' {
		return info.Size(), err
	}
	n, err := f.Write([]byte{'\n'})
	return info.Size() + int64(n), err
}

func (j *Journal) rotate(cfg JournalConfig) error {
	err := j.file.Close()
	j.file = nil
	if err != nil {
		return fmt.Errorf("rotate journal: %w", err)
	}
	for i := cfg.Keep; i >= 1; i-- {
		err := os.Rename(journalFile(j.dir, i-1), journalFile(j.dir, i))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate journal: %w", err)
		}
	}
	// What a longer Keep has left.
	for i := cfg.Keep + 1; os.Remove(journalFile(j.dir, i)) == nil; i++ {
	}
	return nil
}

// journalFile is the i-th file, the newest first; 0 is the one being written.
func journalFile(dir string, i int) string {
	name := filepath.Join(dir, journalName)
	if i > 0 {
		name += fmt.Sprintf(".%d", i)
	}
	return name
}

// openAppend opens a file of the state directory for appending, and follows no
// link: the directory could be shared with somebody less careful.
func openAppend(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o640)
}

// maxJournalLine bounds what a reader takes for one entry.
const maxJournalLine = 1 << 20

var errLongLine = fmt.Errorf("it has more than %d bytes, and is no entry", maxJournalLine)

// ReadJournal yields the entries in dir that are not older than since, the
// oldest first. A line that cannot be read is an error of its own; those after
// it still come.
func ReadJournal(dir string, since time.Time) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var found bool
		for i := maxJournalKeep; i >= 0; i-- {
			f, err := os.Open(journalFile(dir, i))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				yield(Entry{}, fmt.Errorf("read journal: %w", err))
				return
			}
			found = true
			more := readEntries(f, since, yield)
			f.Close()
			if !more {
				return
			}
		}
		if !found {
			yield(Entry{}, fmt.Errorf("read journal: no %s in %s: has a guard run with this --state-dir?", journalName, dir))
		}
	}
}

func readEntries(f *os.File, since time.Time, yield func(Entry, error) bool) (more bool) {
	lines := bufio.NewReaderSize(f, maxJournalLine)
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return true
		}
		var e Entry
		if err == nil {
			err = json.Unmarshal(line, &e)
		} else if !errors.Is(err, errLongLine) {
			return yield(Entry{}, fmt.Errorf("read journal: %w", err))
		}
		switch {
		case err != nil:
			more = yield(Entry{}, fmt.Errorf("%s, line %d: %w", f.Name(), n, err))
		case e.Time.Before(since):
			more = true
		default:
			more = yield(e, nil)
		}
		if !more {
			return false
		}
	}
}

// readLine returns the next line, which is valid until the next call, or
// io.EOF. A line that is too long is passed over as a whole.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n')
		}
		if err == nil || errors.Is(err, io.EOF) {
			return nil, errLongLine
		}
	}
	if len(line) > 0 && errors.Is(err, io.EOF) {
		err = nil // the last line has no end
	}
	return bytes.TrimSuffix(line, []byte("\n")), err
}

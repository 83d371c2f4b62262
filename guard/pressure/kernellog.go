package pressure

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// An Event is something that has happened, not a state.
type Event struct {
	Time    time.Time `json:"time"` // of the last one
	Kind    EventKind `json:"kind"`
	Subject string    `json:"subject"` // port, process, table: what it happened to; may be empty
	Text    string    `json:"text"`    // of the last one, fit to be shown
	Count   uint64    `json:"count"`   // how many there were since the last Event of kind and subject
}

// An EventKind says what has happened.
type EventKind string

// The kinds of events. The lines that most of them are made of are the kernel's.
const (
	EventIPVSNoMemory  EventKind = "ipvs_no_memory"     // subject: the kernel's function
	EventOOMKill       EventKind = "oom_kill"           // subject: the process killed
	EventOOM           EventKind = "oom"                // subject: the process that wanted memory
	EventAllocation    EventKind = "allocation_failure" // subject: the process
	EventSYNFlooding   EventKind = "syn_flooding"       // subject: port, or address and port
	EventConntrackFull EventKind = "conntrack_full"
	EventNeighbours    EventKind = "neighbours_full" // subject: arp_cache, ndisc_cache
	EventBlocked       EventKind = "task_blocked"    // subject: the task
	EventDefence       EventKind = "defence"         // subject: the sysctl; see DefenceEvents
)

// EventKinds are all that there are.
func EventKinds() []EventKind {
	return []EventKind{
		EventIPVSNoMemory, EventOOMKill, EventOOM, EventAllocation, EventSYNFlooding, EventConntrackFull, EventNeighbours, EventBlocked, EventDefence,
	}
}

const (
	// maxRecord is more than the kernel writes of a record (8 KiB,
	// PRINTK_MESSAGE_MAX, with what is escaped).
	maxRecord = 16 << 10
	// maxRecords bounds what is read at a time; the rest comes at the next.
	maxRecords = 500

	// repeatEvery is how often a kind and subject is told.
	repeatEvery = time.Minute
	// maxSubjects bounds the kinds and subjects that are remembered.
	maxSubjects = 256
	maxText     = 240
)

// A KernelLog reads /dev/kmsg, from when it was opened on. Not for two
// goroutines at a time.
type KernelLog struct {
	fd     int
	buf    []byte
	next   uint64 // sequence number; 0: not known yet
	lost   uint64
	repeat repeater
}

// OpenKernelLog opens the kernel log below a root; empty: "/".
func OpenKernelLog(root string) (*KernelLog, error) {
	path := filepath.Join(cmp.Or(root, "/"), "dev/kmsg")
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) })
	if err == nil {
		if _, err = unix.Seek(fd, 0, unix.SEEK_END); err != nil {
			unix.Close(fd)
		}
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("open %s: %w: it needs CAP_SYSLOG; add that to CapabilityBoundingSet in the guard's unit, as deploy/lvsguard.service has it", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &KernelLog{fd: fd, buf: make([]byte, maxRecord)}, nil
}

// Close closes the log.
func (k *KernelLog) Close() error { return unix.Close(k.fd) }

// Lost is how many records were overwritten before they were read.
func (k *KernelLog) Lost() uint64 { return k.lost }

// Events reads what has come and returns the lines that matter, each kind and
// subject once a minute with the number of its lines. It never waits. Events
// may come with an error.
func (k *KernelLog) Events(now time.Time) ([]Event, error) {
	var events []Event
	for range maxRecords {
		n, err := retry(func() (int, error) { return unix.Read(k.fd, k.buf) })
		switch {
		case errors.Is(err, unix.EAGAIN) || err == nil && n == 0:
			return append(events, k.repeat.due(now)...), nil
		case errors.Is(err, unix.EPIPE):
			continue // overwritten before it was read; the next number tells how many
		case errors.Is(err, unix.EINVAL):
			continue // longer than any that matters; the kernel has passed over it
		case err != nil:
			return append(events, k.repeat.due(now)...), fmt.Errorf("read the kernel log: %w", err)
		}
		for record := range records(k.buf[:n]) {
			if k.next > 0 && record.sequence > k.next {
				k.lost += record.sequence - k.next
			}
			k.next = record.sequence + 1
			if kind, subject, ok := recognise(record.text); ok {
				events = append(events, k.repeat.take(Event{
					Time: now, Kind: kind, Subject: printable(subject), Text: printable(record.text), Count: 1,
				})...)
			}
		}
	}
	return append(events, k.repeat.due(now)...), nil
}

// A record is a message of the kernel log.
type record struct {
	sequence uint64
	text     string
}

// records reads the format of /dev/kmsg (Documentation/ABI/testing/dev-kmsg):
// "priority,sequence,microseconds,flags;text", and further lines that begin with
// a blank and are for programs. Lines that are something else are passed over.
func records(data []byte) func(yield func(record) bool) {
	return func(yield func(record) bool) {
		for line := range bytes.Lines(data) {
			if line[0] == ' ' {
				continue
			}
			prefix, text, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(";"))
			if !ok {
				continue
			}
			_, rest, _ := bytes.Cut(prefix, []byte(","))
			sequence, _, ok := bytes.Cut(rest, []byte(","))
			number, isNumber := parseNumber(sequence)
			if !ok || !isNumber || number == 1<<64-1 {
				continue
			}
			if !yield(record{number, string(text)}) {
				return
			}
		}
	}
}

// recognise finds the lines that matter. Older and newer kernels write some of
// them differently.
func recognise(text string) (kind EventKind, subject string, ok bool) {
	before := func(s, end string) string { s, _, _ = strings.Cut(s, end); return s }
	switch {
	case strings.HasPrefix(text, "IPVS: ") && strings.Contains(text, "no memory"):
		// "IPVS: ip_vs_conn_new: no memory", "IPVS: ip_vs_conn_new(): no memory"
		return EventIPVSNoMemory, strings.TrimSuffix(before(text[len("IPVS: "):], ":"), "()"), true
	case strings.Contains(text, "invoked oom-killer"):
		// "nginx invoked oom-killer: gfp_mask=…"
		return EventOOM, before(text, " invoked oom-killer"), true
	case strings.Contains(text, "Killed process ") || strings.Contains(text, "ut of memory: Kill process "):
		// "Out of memory: Killed process 812 (nginx) total-vm:…", "Memory cgroup out
		// of memory: Killed process …"; before 5.3 with "Kill process 812 (nginx) score"
		if !strings.Contains(text, "ut of memory") && !strings.HasPrefix(text, "Killed process ") {
			return "", "", false
		}
		_, rest, _ := strings.Cut(text, "(")
		name, _, closed := strings.Cut(rest, ")")
		if !closed {
			return "", "", false
		}
		return EventOOMKill, name, true
	case strings.Contains(text, "Possible SYN flooding on port "):
		// "TCP: request_sock_TCP: Possible SYN flooding on port 80. Sending cookies.
		// Check SNMP counters."; since 6.2 with "port 0.0.0.0:80" and "[::]:80".
		_, rest, _ := strings.Cut(text, "Possible SYN flooding on port ")
		return EventSYNFlooding, strings.TrimSuffix(before(rest, " "), "."), true
	case strings.Contains(text, "nf_conntrack: table full"):
		return EventConntrackFull, "", true
	case strings.Contains(text, "neighbor table overflow"), strings.Contains(text, "eighbour table overflow"):
		// "neighbour: arp_cache: neighbor table overflow!"
		parts := strings.Split(text, ": ")
		if len(parts) == 3 {
			return EventNeighbours, parts[1], true
		}
		return EventNeighbours, "", true
	case strings.HasPrefix(text, "INFO: task ") && strings.Contains(text, " blocked for more than "):
		// "INFO: task kworker/1:2:812 blocked for more than 120 seconds."
		task := before(text[len("INFO: task "):], " blocked for more than ")
		if i := strings.LastIndexByte(task, ':'); i > 0 {
			task = task[:i]
		}
		return EventBlocked, task, true
	case strings.Contains(text, ": page allocation failure"):
		return EventAllocation, before(text, ": page allocation failure"), true
	}
	return "", "", false
}

// printable makes text from the kernel log fit to be shown: some of it was
// chosen by whoever named a process.
func printable(text string) string {
	text = strings.ToValidUTF8(text, "?")
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + " …"
	}
	return text
}

// A repeater tells a kind and subject once a minute.
type repeater struct {
	told map[repeatKey]*repeated
}

type repeatKey struct {
	kind    EventKind
	subject string
}

type repeated struct {
	at   time.Time // when it was told
	more Event     // what came since; Count is how many
}

// take returns the event if it is to be told at once.
func (r *repeater) take(e Event) []Event {
	if r.told == nil {
		r.told = make(map[repeatKey]*repeated)
	}
	key := repeatKey{e.Kind, e.Subject}
	if r.told[key] == nil && len(r.told) >= maxSubjects {
		// Too many at a time to tell them apart.
		e.Subject = ""
		key = repeatKey{e.Kind, ""}
	}
	seen := r.told[key]
	if seen == nil {
		r.told[key] = &repeated{at: e.Time}
		return []Event{e}
	}
	e.Count = seen.more.Count + 1
	seen.more = e
	return nil
}

// due returns those that came again and whose minute is over.
func (r *repeater) due(now time.Time) []Event {
	var events []Event
	for key, seen := range r.told {
		if now.Sub(seen.at) < repeatEvery {
			continue
		}
		if seen.more.Count == 0 {
			delete(r.told, key)
			continue
		}
		events = append(events, seen.more)
		*seen = repeated{at: now}
	}
	slices.SortFunc(events, func(a, b Event) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Subject, b.Subject))
	})
	return events
}

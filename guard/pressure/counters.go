package pressure

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// firstReading is why a rate is not known.
const firstReading = "a rate needs two readings of the same count, a moment apart"

// A Counter is one of the kernel's counts.
type Counter struct {
	Name  string `json:"name"` // as nstat writes it: "TcpRetransSegs", "Ip6InDiscards"
	Total uint64 `json:"total"`
	// PerSecond is null at the first reading, and when the count was begun anew.
	PerSecond *float64 `json:"per_second"`
}

// perSecond is the rate between two readings of a count. Counts are 32 bits wide
// in 32-bit kernels, and some everywhere, and begin at zero again where they end.
// One that has fallen otherwise was reset: the rate is not known.
func perSecond(before, now uint64, interval time.Duration) (float64, bool) {
	const (
		width = 1 << 32
		most  = 1 << 28 // that anything is counted up between two readings
	)
	if interval <= 0 {
		return 0, false
	}
	delta := now - before
	if now < before {
		if delta = now + width - before; before >= width || delta > most {
			return 0, false
		}
	}
	return float64(delta) / interval.Seconds(), true
}

// counterFiles are the files of protocol counters. They are of the calling
// thread's network namespace.
var counterFiles = []struct {
	name  string
	pairs bool // lines come in pairs of names and figures
}{
	{"proc/thread-self/net/snmp", true},
	{"proc/thread-self/net/netstat", true},
	{"proc/thread-self/net/snmp6", false},
}

// gauges stand among the counters and are none.
var gauges = []string{
	"IpForwarding", "IpDefaultTTL", "TcpRtoAlgorithm", "TcpRtoMin", "TcpRtoMax", "TcpMaxConn",
	"TcpCurrEstab", "MPTcpExtMPCurrEstab",
}

// counters reads the files of protocol counters. They are read by ours because
// the library knows a fixed list of names, and drops the others.
type counters struct {
	files [3]counterFile
}

// A counterFile remembers the names of a file, which seldom change, and the last
// figures.
type counterFile struct {
	names  []string // a gauge's is empty
	values []uint64
	last   []uint64 // the last figures, or none
	// lastNames are theirs, where they are not names: a line is longer by a
	// column when the first ICMP message of its type comes.
	lastNames []string
}

func (c *counters) read(f *files, interval time.Duration, unknown map[string]string) []Counter {
	all := make([]Counter, 0, len(c.files[0].names)+len(c.files[1].names)+len(c.files[2].names)+2)
	for i, file := range counterFiles {
		data, err := f.read(file.name)
		if err == nil {
			if err = c.files[i].parse(data, file.pairs); err != nil {
				err = fmt.Errorf("%s: %w", f.path(file.name), err)
			}
		}
		if err != nil {
			c.files[i].values, c.files[i].last = c.files[i].values[:0], c.files[i].last[:0]
			if i != 2 || !notThere(err) { // there may be no IPv6
				unknown[file.name[len("proc/thread-self/net/"):]] = err.Error()
			}
			continue
		}
		all = c.files[i].rates(all, interval)
	}
	return all
}

func (c *counterFile) rates(all []Counter, interval time.Duration) []Counter {
	known := make([]float64, len(c.names)) // one piece of memory for all
	moved := make(map[string]int)
	for i, name := range c.lastNames {
		moved[name] = i
	}
	for i, name := range c.names {
		if name == "" {
			continue
		}
		counter := Counter{Name: name, Total: c.values[i]}
		was, there := i, true
		if c.lastNames != nil {
			was, there = moved[name]
		}
		if there && was < len(c.last) {
			if rate, ok := perSecond(c.last[was], c.values[i], interval); ok {
				known[i] = rate
				counter.PerSecond = &known[i]
			}
		}
		all = append(all, counter)
	}
	return all
}

// parse takes the file's figures. What was there becomes the last figures.
func (c *counterFile) parse(data []byte, pairs bool) error {
	c.last, c.values, c.lastNames = c.values, c.last[:0], nil
	var err error
	if pairs {
		err = c.parsePairs(data)
	} else {
		err = c.parseLines(data)
	}
	if err != nil {
		return err
	}
	if len(c.values) == 0 {
		return errCut
	}
	// What is not in the file any more is not a counter with an old figure.
	c.names = c.names[:len(c.values)]
	return nil
}

// parsePairs reads "Tcp: InSegs OutSegs" and "Tcp: 7 8", pair after pair.
func (c *counterFile) parsePairs(data []byte) error {
	for len(data) > 0 {
		var names, values []byte
		names, data, _ = bytes.Cut(data, []byte("\n"))
		values, data, _ = bytes.Cut(data, []byte("\n"))
		protocol, names, ok := bytes.Cut(names, []byte(":"))
		again, values, alike := bytes.Cut(values, []byte(":"))
		if !ok || !alike || !bytes.Equal(protocol, again) {
			return fmt.Errorf("the names of %q have no figures: %w", protocol, errCut)
		}
		for {
			var name, value []byte
			name, names = nextWord(names)
			value, values = nextWord(values)
			if len(name) == 0 && len(value) == 0 {
				break
			}
			if err := c.take(protocol, name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseLines reads "Ip6InReceives   7", line after line.
func (c *counterFile) parseLines(data []byte) error {
	for line := range bytes.Lines(data) {
		name, rest := nextWord(bytes.TrimSuffix(line, []byte("\n")))
		value, rest := nextWord(rest)
		if more, _ := nextWord(rest); len(more) > 0 {
			return fmt.Errorf("line %q", line)
		}
		if err := c.take(nil, name, value); err != nil {
			return err
		}
	}
	return nil
}

// take puts down the next figure.
func (c *counterFile) take(protocol, name, value []byte) error {
	v, ok := parseNumber(value)
	if bytes.HasPrefix(value, []byte("-")) { // MaxConn is -1
		v, ok = parseNumber(value[1:])
	}
	if !ok || len(name) == 0 {
		return fmt.Errorf("%s%s is %q", protocol, name, value)
	}
	i := len(c.values)
	c.values = append(c.values, v)
	if i < len(c.names) && sameName(c.names[i], protocol, name) {
		return nil
	}
	full := string(protocol) + string(name)
	if slices.Contains(gauges, full) {
		full = ""
	}
	if i < len(c.names) && c.names[i] == "" && full == "" {
		return nil
	}
	// Another name in this place.
	if c.lastNames == nil {
		c.lastNames = slices.Clone(c.names)
	}
	c.names = append(c.names[:i], full)
	return nil
}

func sameName(full string, protocol, name []byte) bool {
	return len(full) == len(protocol)+len(name) &&
		full[:len(protocol)] == string(protocol) && full[len(protocol):] == string(name)
}

// softnet are the queues between network cards and protocols
// (/proc/net/softnet_stat): a line for each processor, of hexadecimal figures 32
// bits wide. The library reads it too, and takes a line that is cut short behind
// its ninth figure for a whole one, and so a part of the processors for all.
type softnet struct {
	last []softnetCPU
}

type softnetCPU struct{ dropped, squeezed uint32 }

func (s *softnet) read(f *files, interval time.Duration, unknown map[string]string) []Counter {
	const name = "proc/thread-self/net/softnet_stat"
	data, err := f.read(name)
	var cpus []softnetCPU
	if err == nil {
		if cpus, err = parseSoftnet(data); err != nil {
			err = fmt.Errorf("%s: %w", f.path(name), err)
		}
	}
	if err != nil {
		s.last = nil
		unknown["softnet_stat"] = err.Error()
		return nil
	}
	dropped, squeezed := Counter{Name: "SoftnetDropped"}, Counter{Name: "SoftnetSqueezed"}
	var dropDelta, squeezeDelta uint64
	// With another number of processors they are not the same ones.
	known := len(s.last) == len(cpus) && interval > 0
	for i, now := range cpus {
		dropped.Total += uint64(now.dropped)
		squeezed.Total += uint64(now.squeezed)
		if known {
			// Wrapped or not, the difference is right.
			dropDelta += uint64(now.dropped - s.last[i].dropped)
			squeezeDelta += uint64(now.squeezed - s.last[i].squeezed)
		}
	}
	if known {
		dropped.PerSecond = new(float64(dropDelta) / interval.Seconds())
		squeezed.PerSecond = new(float64(squeezeDelta) / interval.Seconds())
	}
	s.last = cpus
	return []Counter{dropped, squeezed}
}

func parseSoftnet(data []byte) ([]softnetCPU, error) {
	var cpus []softnetCPU
	for line := range bytes.Lines(data) {
		var figures [3]uint64 // processed, dropped, squeezed
		rest := line
		for i := range figures {
			var word []byte
			word, rest = nextWord(rest)
			var err error
			if figures[i], err = strconv.ParseUint(string(bytes.TrimSpace(word)), 16, 32); err != nil {
				return nil, fmt.Errorf("line %d: %w", len(cpus)+1, err)
			}
		}
		cpus = append(cpus, softnetCPU{uint32(figures[1]), uint32(figures[2])})
	}
	return cpus, nil
}

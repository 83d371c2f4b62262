package ipvs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
)

// CensusConfig tells how a connection table is counted.
type CensusConfig struct {
	// Sample is the number of entries to read; 0: the whole table.
	Sample int
	// Total is the number of entries in the table as far as the caller knows
	// it from [Service.Connections], to extrapolate a sample; 0: not known.
	Total uint64
	// PrefixV4 and PrefixV6 are the lengths by which sources are put together;
	// 0: 24 and 64.
	PrefixV4, PrefixV6 int
	// KeepSources is how many sources are followed at a time; 0: sources are
	// not counted, which saves up to half of the time.
	KeepSources int
	// Services are the virtual services to count by. An entry goes to the
	// service of its address, port and protocol, else to that of its address
	// and every port. The table does not tell firewall marks: what
	// belongs to such a service is in Census.Other. Nil: every address and port
	// that is found is a service.
	Services []Key
	// Force reads the whole table even where that takes very long: see
	// [TooLargeError].
	Force bool
}

// A Census counts the entries of a connection table, or those of a sample.
type Census struct {
	Lines     int  // connections counted
	Templates int  // persistence templates, which are no connections: in no other count
	Malformed int  // lines that could not be read, in no other count
	Complete  bool // the whole table was counted

	// Total is the number of entries in the table: counted if Complete, else as
	// CensusConfig had it. TotalKnown is false if neither is known.
	Total      uint64
	TotalKnown bool

	States   map[string]int         // connections by state: "SYN_RECV", "ESTABLISHED", ...
	Services map[Key]map[string]int // connections by service and state
	Other    map[string]int         // by state, connections that belong to none of Services
	Sources  []Source               // by prefix, those with most connections first
}

// A Source is a prefix of client addresses. How many connections it has is
// exact (AtLeast equals AtMost) as long as there are no more sources than
// CensusConfig.KeepSources.
type Source struct {
	Prefix          netip.Prefix
	AtLeast, AtMost int
}

// Extrapolate returns about how many entries of the whole table stand for n
// counted ones, and false if the table's size is not known.
func (c Census) Extrapolate(n int) (uint64, bool) {
	if c.Complete {
		return uint64(n), true
	}
	counted := c.Lines + c.Templates
	if !c.TotalKnown || counted == 0 {
		return 0, false
	}
	return uint64(float64(c.Total) * float64(n) / float64(counted)), true
}

// A TooLargeError is returned for a whole census of a table that is too large
// to be read in a reasonable time on this kernel.
type TooLargeError struct {
	Limit  int // entries that may be read
	Kernel Kernel
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the connection table has more than %d entries, and Linux %s (any before 6.14) walks it from its start again for every 4 KiB that are read", e.Limit, e.Kernel.Release)
}

const (
	// wholeLimit is how many entries of a table are read where that is quadratic.
	wholeLimit = 50_000

	// maxServices bounds the services that a census finds by itself.
	maxServices = 4096

	// maxSources bounds CensusConfig.KeepSources.
	maxSources = 16384

	// maxStates bounds the names of states: TCP has 11, SCTP 14.
	maxStates = 32

	// censusBuffer holds many lines; the kernel gives no more than a page at a
	// time, but a captured file is read faster.
	censusBuffer = 64 << 10
)

// Census counts the connection table, or a sample of it. The table comes in the
// order of its hash, which is seeded at random, so that its first entries are a
// fair sample of all.
//
// It returns [ErrAbsent] if the module is not loaded, and a [*TooLargeError]
// with what was counted so far if the whole table was asked for and is too large
// to read on this kernel.
func (c *Client) Census(ctx context.Context, cfg CensusConfig) (Census, error) {
	census, err := c.census(ctx, cfg)
	if err != nil {
		return census, fmt.Errorf("census of the connection table: %w", err)
	}
	return census, nil
}

func (c *Client) census(ctx context.Context, cfg CensusConfig) (Census, error) {
	kernel, err := c.Kernel()
	if err != nil {
		return Census{}, err
	}
	limit := math.MaxInt
	if cfg.Sample == 0 && !cfg.Force && kernel.Quadratic {
		limit = wholeLimit
		if cfg.Total > wholeLimit {
			return Census{}, &TooLargeError{Limit: limit, Kernel: kernel}
		}
	}
	f, err := openTable(filepath.Join(c.proc, "thread-self/net/ip_vs_conn"))
	if errors.Is(err, fs.ErrNotExist) {
		return Census{}, ErrAbsent
	}
	if err != nil {
		return Census{}, err
	}
	defer f.Close()
	census, err := readCensus(ctx, f, cfg, limit)
	if errors.Is(err, errLimit) {
		err = &TooLargeError{Limit: limit, Kernel: kernel}
	}
	return census, err
}

// ReadCensus counts a connection table in the format of /proc/net/ip_vs_conn,
// in bounded memory. What was counted before an error comes with the error.
func ReadCensus(ctx context.Context, r io.Reader, cfg CensusConfig) (Census, error) {
	return readCensus(ctx, r, cfg, math.MaxInt)
}

// errLimit is returned by readCensus above its limit.
var errLimit = errors.New("too many entries")

func readCensus(ctx context.Context, r io.Reader, cfg CensusConfig, limit int) (Census, error) {
	t, err := newTally(cfg)
	if err != nil {
		return Census{}, err
	}
	end, err := t.read(ctx, bufio.NewReaderSize(r, censusBuffer), limit)
	return t.census(end), err
}

// A tally is a census in the making. It allocates nothing for an entry, except
// when it meets a service or state for the first time.
type tally struct {
	sample, prefixV4, prefixV6 int
	total                      uint64

	lines, templates, malformed int
	states                      []string
	services                    []serviceTally     // the first: what belongs to none
	index                       map[endpoint]int32 // of services
	find                        bool               // services are found, not given
	sources                     *sketch

	// What the last entry had; the next one has the same more often than not.
	lastState    int
	lastEndpoint endpoint
	lastService  int32
}

type serviceTally struct {
	key    Key
	states [maxStates]int // indexed as tally.states
}

func newTally(cfg CensusConfig) (*tally, error) {
	t := &tally{
		sample:   cfg.Sample,
		prefixV4: cmp.Or(cfg.PrefixV4, 24),
		prefixV6: cmp.Or(cfg.PrefixV6, 64),
		total:    cfg.Total,
		services: make([]serviceTally, 1, 1+len(cfg.Services)),
		index:    make(map[endpoint]int32, len(cfg.Services)),
		find:     cfg.Services == nil,
	}
	switch {
	case t.prefixV4 < 1 || t.prefixV4 > 32:
		return nil, fmt.Errorf("source prefix /%d: IPv4 has 1 to 32 bits", t.prefixV4)
	case t.prefixV6 < 1 || t.prefixV6 > 128:
		return nil, fmt.Errorf("source prefix /%d: IPv6 has 1 to 128 bits", t.prefixV6)
	case cfg.KeepSources < 0 || cfg.KeepSources > maxSources:
		return nil, fmt.Errorf("%d sources: up to %d can be kept", cfg.KeepSources, maxSources)
	case t.sample < 0:
		return nil, fmt.Errorf("sample of %d entries: 0 is the whole table", t.sample)
	}
	t.sources = newSketch(cfg.KeepSources)
	for _, k := range cfg.Services {
		if k.Mark == 0 {
			t.addService(k)
		}
	}
	return t, nil
}

func (t *tally) addService(k Key) int32 {
	i := int32(len(t.services))
	t.services = append(t.services, serviceTally{key: k})
	t.index[endpoint{addressOf(k.Addr.Addr()), k.Addr.Port(), k.Protocol}] = i
	return i
}

// read counts what r has, up to the sample's size, and reports whether it has
// come to the end.
func (t *tally) read(ctx context.Context, r *bufio.Reader, limit int) (end bool, err error) {
	var e entry
	for n := 0; t.sample == 0 || n < t.sample; n++ {
		if n%64 == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		line, err := r.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) { // no line is that long: its end is read over
			_, err = r.ReadSlice('\n')
			line = nil
		}
		switch {
		case err == io.EOF && len(line) == 0:
			return true, nil
		case err == io.EOF: // half a line
			t.malformed++
			return true, nil
		case err != nil:
			return false, err
		case n == 0 && bytes.HasPrefix(line, []byte("Pro FromIP ")):
			n--
			continue
		case n >= limit:
			return false, errLimit
		}
		if !e.parse(line[:max(len(line)-1, 0)]) || !t.count(&e) {
			t.malformed++
		}
	}
	return false, nil
}

// count counts an entry. It refuses one whose state is none.
func (t *tally) count(e *entry) bool {
	if e.template() {
		t.templates++
		return true
	}
	state, ok := t.state(e.state)
	if !ok {
		return false
	}
	t.lines++
	t.services[t.service(e.virtual)].states[state]++
	if cap(t.sources.counters) == 0 {
		return true
	}
	bits := t.prefixV4
	if e.client.v6 {
		bits = t.prefixV6
	}
	t.sources.add(e.client.mask(bits))
	return true
}

// state returns the index of a state's name, and false for what is no state or
// one too many.
func (t *tally) state(name []byte) (int, bool) {
	if t.lastState < len(t.states) && t.states[t.lastState] == string(name) {
		return t.lastState, true
	}
	i := slices.IndexFunc(t.states, func(s string) bool { return s == string(name) })
	if i < 0 {
		if i = len(t.states); i == maxStates || !isState(name) {
			return 0, false
		}
		t.states = append(t.states, string(name))
	}
	t.lastState = i
	return i, true
}

// service returns the index of the service that serves v.
func (t *tally) service(v endpoint) int32 {
	if v == t.lastEndpoint {
		return t.lastService
	}
	i, ok := t.index[v]
	if !ok && t.find && len(t.services) <= maxServices {
		i, ok = t.addService(Key{Protocol: v.protocol, Addr: netip.AddrPortFrom(v.addr(), v.port)}), true
	}
	if !ok {
		i = t.index[endpoint{v.address, 0, v.protocol}] // every port, or none: 0
	}
	t.lastEndpoint, t.lastService = v, i
	return i
}

func (t *tally) census(end bool) Census {
	c := Census{
		Lines:     t.lines,
		Templates: t.templates,
		Malformed: t.malformed,
		Complete:  end && t.malformed == 0,
		States:    make(map[string]int),
		Services:  make(map[Key]map[string]int),
		Sources:   t.sources.sources(t.prefixV4, t.prefixV6),
	}
	counted := uint64(t.lines + t.templates)
	if c.Complete {
		c.Total, c.TotalKnown = counted, true
	} else if t.total > 0 {
		c.Total, c.TotalKnown = max(t.total, counted), true
	}
	for i, s := range t.services {
		states := make(map[string]int)
		for j, n := range s.states[:len(t.states)] {
			if n > 0 {
				states[t.states[j]] = n
				c.States[t.states[j]] += n
			}
		}
		if i == 0 {
			c.Other = states
		} else {
			c.Services[s.key] = states
		}
	}
	return c
}

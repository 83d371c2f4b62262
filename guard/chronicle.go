package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/ipvs"
)

const (
	// chronicleQueue is how many ticks' news may wait for the disk. Beyond that
	// they are put together: nothing is lost but detail.
	chronicleQueue = 64
	// maxAnalyses bounds the memory, at some 4 MB each: of more incidents at once,
	// the later ones are kept without a look at their packets.
	maxAnalyses = 8
	// maxStories bounds the incidents that are told at once, and of more than
	// fineStories the later ones are told coarsely.
	maxStories  = 1000
	fineStories = 50

	saveEvery   = 10 * time.Second
	savesAtOnce = 20
	storeEvery  = 30 * time.Second // until a directory that failed is tried again
	keepEvery   = 10 * time.Minute
	lookEvery   = 30 * time.Second
	seenEvery   = 5 * time.Second

	// sampleLast is the stretch of a sample: long enough to see handshakes
	// complete.
	sampleLast  = 3 * time.Second
	sampleEvery = time.Minute
	peakEvery   = 5 * time.Second
	// maxSamples is how many files of packets an incident has, a few hours' worth.
	maxSamples = 200
	// sameRing is for how long the packets of before that were written for one
	// incident serve others that begin.
	sameRing = 5 * time.Second
	// riseAgain is for how long a service whose load rose and fell again, with no
	// flood, has no packets written when it only rises.
	riseAgain = time.Minute
)

// news is what the control loop tells of one tick.
type news struct {
	now    time.Time
	cfg    EvidenceConfig
	events []incidentEvent // in their order
	// readings are of the incidents that go on.
	readings map[ipvs.Key]incident.Reading
	// recording is nil where nothing is recorded, and why says why.
	recording Recording
	why       string
	sampled   []capture.Packet // by the queue
	signed    func(incident.SYN) bool
	watched   []netip.AddrPort // in order
	// settled: what goes on from before the guard began has been told.
	settled bool
}

// An incidentEvent is what happened to a service, or to the guard as a whole.
type incidentEvent struct {
	kind    incidentKind
	service ipvs.Key
	reading incident.Reading // of ended

	begin  incident.Record // of begun
	before []incident.Reading
	why    string
	rising bool // of begun: it may be nothing
	// action is of acted; about is the service's name, and empty if it is of all.
	action incident.Action
	about  string
}

type incidentKind uint8

const (
	incidentBegun incidentKind = iota
	incidentFlooded
	incidentEnded
	incidentActed
)

// A chronicle writes what incidents leave behind. It is all on its own goroutine,
// so that a slow or full disk delays nothing.
type chronicle struct {
	dir, version, host string
	log                *slog.Logger
	note               func(Entry)
	queue              chan news
	trouble            atomic.Pointer[string] // what cannot be kept now, and why

	store      *incident.Store
	storeAt    time.Time
	cfg        EvidenceConfig
	stories    map[ipvs.Key]*told
	order      []*told                     // the first that began first
	found      map[string]*incident.Record // by service: that another guard left open
	fallen     map[ipvs.Key]time.Time      // that rose, and were nothing
	ring       ringFile
	seen       *incident.Seen
	seenAt     time.Time
	keptAt     time.Time
	analyses   int
	queued     []capture.Packet // of the last seconds, by the queue
	lastSigned func(incident.SYN) bool
	byHand     sync.Mutex
}

// ringFile is the last file of packets of before.
type ringFile struct {
	at   time.Time
	file incident.PacketFile
}

// told is an incident that is being told.
type told struct {
	*incident.Story
	service  ipvs.Key
	analysis *incident.Analysis // nil: there are too many
	rising   bool
	owed     bool // the packets of before are yet to be written
	again    bool // another guard began it
	dirty    bool
	saved    time.Time

	begun    time.Time
	sampled  time.Time // the last sample
	atRate   float64   // the rate then
	rate     float64
	onset    bool // the sample of the onset was taken
	peak     string
	files    int
	fresh    bool // packets have come since the last look
	looked   time.Time
	dropping bool
}

func newChronicle(opts *Options, note func(Entry)) *chronicle {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return &chronicle{
		dir: incident.Dir(opts.StateDir), version: opts.Version, host: host, log: opts.Log, note: note,
		queue: make(chan news, chronicleQueue), stories: make(map[ipvs.Key]*told), found: make(map[string]*incident.Record),
		fallen: make(map[ipvs.Key]time.Time), seen: incident.NewSeen(),
	}
}

// run writes until ctx is done, and then what is known so far.
func (c *chronicle) run(ctx context.Context) error {
	for {
		select {
		case n := <-c.queue:
			c.handle(n)
		case <-ctx.Done():
			c.stop(time.Now())
			return nil
		}
	}
}

// stop writes what is known, for the next guard to go on with.
func (c *chronicle) stop(now time.Time) {
	for {
		select {
		case n := <-c.queue:
			c.handle(n)
			continue
		default:
		}
		break
	}
	for _, t := range c.order {
		if !t.Ended() {
			t.Act(incident.Action{Time: now, Kind: "guard", Text: toldToStop})
		}
		c.save(now, t)
	}
	if c.store != nil {
		c.store.Close()
	}
}

const toldToStop = "the guard was told to stop"

func (c *chronicle) handle(n news) {
	c.cfg, c.lastSigned = n.cfg, n.signed
	if c.store == nil && (c.storeAt.IsZero() || lasted(n.now.Sub(c.storeAt), storeEvery)) {
		c.open(n.now)
	}
	for _, e := range n.events {
		c.event(&n, e)
	}
	c.queued = append(c.queued, n.sampled...)
	from := n.now.Add(-sampleLast).UnixNano()
	c.queued = slices.DeleteFunc(c.queued, func(p capture.Packet) bool { return p.Time < from })
	c.writeRing(&n)
	for k, r := range n.readings {
		if t := c.stories[k]; t != nil {
			c.read(t, r)
		}
	}
	if n.settled {
		c.closeFound(n.now)
	}
	c.sample(&n)
	c.remember(&n)
	c.lookAndSave(n.now)
	if c.store != nil && (c.keptAt.IsZero() || n.now.Sub(c.keptAt) >= keepEvery) {
		c.keep(n.now)
	}
}

// open opens the directory and looks for what another guard left open.
func (c *chronicle) open(now time.Time) {
	c.storeAt = now
	store, err := incident.Create(c.dir)
	if err == nil {
		var list []incident.Listed
		if list, err = store.List(); err == nil {
			for _, l := range list {
				if l.Record != nil && l.Record.Ended == nil && c.found[l.Record.Service] == nil && !c.telling(l.ID) {
					c.found[l.Record.Service] = l.Record
				}
			}
			c.store = store
		} else {
			store.Close()
		}
	}
	c.troubled(now, err)
}

func (c *chronicle) telling(id string) bool {
	return slices.ContainsFunc(c.order, func(t *told) bool { return t.Record.ID == id })
}

// troubled says what cannot be kept, once, and when it can be again.
func (c *chronicle) troubled(now time.Time, err error) {
	was := c.trouble.Load()
	switch {
	case errors.Is(err, errNoStore): // why is said already
	case err == nil:
		c.trouble.Store(nil)
	case was == nil || *was != err.Error():
		msg := err.Error()
		c.trouble.Store(&msg)
		c.log.Error("what an incident leaves behind cannot be kept", "error", err)
		c.write(now, "", "", "not_kept", msg)
	}
}

// write adds to the journal.
func (c *chronicle) write(now time.Time, service, id, to, reason string) {
	c.note(Entry{Time: now.Round(0).UTC(), Event: EventIncident, Service: service, Incident: id, To: to, Reason: reason})
}

func (c *chronicle) event(n *news, e incidentEvent) {
	if e.kind == incidentBegun {
		c.begin(n, e)
		return
	}
	if e.kind == incidentActed {
		for _, t := range c.order {
			if e.about == "" || e.about == t.Record.Service {
				t.Act(e.action)
				t.dirty = true
			}
		}
		return
	}
	t := c.stories[e.service]
	switch {
	case t == nil: // there were too many
	case e.kind == incidentFlooded:
		t.Flooded(n.now)
		t.rising, t.dirty = false, true
	case e.kind == incidentEnded:
		c.read(t, e.reading)
		c.end(n.now, t, e.why)
	}
}

func (c *chronicle) begin(n *news, e incidentEvent) {
	if was := c.stories[e.service]; was != nil {
		c.finish(n.now, was) // it was over, and only its aftermath was being told
	}
	if len(c.order) >= maxStories {
		c.write(n.now, e.service.String(), "", "not_kept", fmt.Sprintf("%d incidents at once are being told already", maxStories))
		return
	}
	t := &told{service: e.service, rising: e.rising, begun: n.now, owed: true, dirty: true}
	name := e.service.String()
	if r := c.found[name]; r != nil {
		delete(c.found, name)
		reason := "the guard was killed, or the host went down"
		if last := len(r.Actions) - 1; last >= 0 && r.Actions[last].Text == toldToStop {
			reason = "the guard was restarted"
		}
		t.Story, t.again, t.rising = incident.Continue(*r, n.now, reason), true, false
		t.Act(incident.Action{Time: n.now, Kind: "guard", Text: "goes on with this record: " + reason})
		t.files = len(r.Packets)
		c.write(n.now, name, r.ID, "continued", reason)
	} else {
		e.begin.ID, e.begin.Host, e.begin.Version = incident.NewID(e.begin.Onset, name), c.host, c.version
		t.Story = incident.Begin(e.begin, e.before)
		c.write(n.now, name, t.Record.ID, "begun", e.begin.Began)
	}
	t.Coarse = len(c.order) >= fineStories
	if c.analyses < maxAnalyses {
		c.analyses++
		t.analysis = incident.NewAnalysis(incident.AnalysisConfig{
			Addresses: e.begin.Addresses, Onset: t.Record.Onset.UnixNano(), Known: c.seen.Has,
			Signed: func(s incident.SYN) bool { return c.lastSigned(s) },
		})
	} else {
		t.tell("look", "there were too many incidents at once to look at the packets of all: see the others'")
	}
	if n.recording == nil {
		t.tell("packets", n.why)
	}
	c.stories[e.service] = t
	c.order = append(c.order, t)
}

// tell says in the record why something is not known.
func (t *told) tell(what, why string) {
	t.Unknown(what, why)
	t.dirty = true
}

func (c *chronicle) read(t *told, r incident.Reading) {
	t.Add(r)
	if n := len(t.Record.Series); n > 0 {
		p := t.Record.Series[n-1]
		t.rate = 0
		if p.SYN != nil {
			t.rate = *p.SYN
		}
	}
	if t.dropping = r.Armed; t.analysis != nil {
		t.analysis.Dropping(r.Armed)
	}
}

// end ends an incident. One that rose and fell and was no flood leaves nothing
// but a line in the journal: a service just under the thresholds must not fill
// the disk.
func (c *chronicle) end(now time.Time, t *told, why string) {
	name := t.service.String()
	if t.rising {
		c.fallen[t.service] = now
		c.forget(t)
		if c.store != nil {
			c.troubled(now, c.store.Remove(t.Record.ID))
		}
		c.write(now, name, t.Record.ID, "dropped", "it was no flood: "+why)
		return
	}
	t.End(now, why)
	// A record that says it is over has the last look.
	t.looked, t.dirty = time.Time{}, true
	c.write(now, name, t.Record.ID, "ended", why)
}

// forget ends the telling.
func (c *chronicle) forget(t *told) {
	if t.analysis != nil {
		t.analysis = nil
		c.analyses--
	}
	if c.stories[t.service] == t {
		delete(c.stories, t.service)
	}
	c.order = slices.DeleteFunc(slices.Clone(c.order), func(o *told) bool { return o == t })
}

func (c *chronicle) finish(now time.Time, t *told) {
	c.look(now, t)
	c.save(now, t)
	c.forget(t)
}

// closeFound closes what another guard left open and nobody goes on with.
func (c *chronicle) closeFound(now time.Time) {
	for name, r := range c.found {
		delete(c.found, name)
		s := incident.Continue(*r, now, "no guard ran")
		s.End(r.Written, fmt.Sprintf("no guard ran when it ended: it was over by %s UTC", now.UTC().Format(time.TimeOnly)))
		s.Record.Written = now
		if c.store != nil {
			c.troubled(now, c.store.Save(&s.Record))
		}
		c.write(now, name, r.ID, "closed", s.Record.EndedBy)
	}
}

// writeRing writes the packets of before for the incidents that have begun: once
// for all of them.
func (c *chronicle) writeRing(n *news) {
	if n.recording == nil {
		return
	}
	var due []*told
	for _, t := range c.order {
		fell, ok := c.fallen[t.service]
		if !t.owed || t.rising && ok && n.now.Sub(fell) < riseAgain {
			continue
		}
		t.owed = false
		due = append(due, t)
	}
	if len(due) == 0 {
		return
	}
	if len(c.fallen) > maxStories {
		clear(c.fallen)
	}
	from := n.now.Add(-n.cfg.Before)
	packets, recorded := n.recording.Recent(from, n.now)
	unqueued := without(packets, c.queued)
	for _, t := range due {
		c.analyse(t, unqueued, n.now)
	}
	// What was before is there already where another guard began.
	due = slices.DeleteFunc(due, func(t *told) bool { return t.again })
	if len(due) == 0 {
		return
	}
	// The story is on disk before its packets: those take longer.
	for _, t := range due {
		c.save(n.now, t)
	}
	if n.now.Sub(c.ring.at) > sameRing {
		file, err := c.writePackets(due[0], "before", packets, recorded)
		if err != nil {
			c.troubled(n.now, err)
			for _, t := range due {
				t.tell("packets", "those of before could not be kept: "+err.Error())
			}
			return
		}
		c.ring = ringFile{n.now, file}
		due[0].has(file)
		due = due[1:]
	}
	for _, t := range due {
		c.share(n.now, t, c.ring.file)
	}
}

// has adds a file to the record.
func (t *told) has(f incident.PacketFile) {
	t.Record.Packets = append(t.Record.Packets, f)
	t.files++
	t.dirty = true
}

// share gives an incident packets that were written for another.
func (c *chronicle) share(now time.Time, t *told, f incident.PacketFile) {
	if c.store == nil {
		return
	}
	name, err := c.store.LinkPackets(t.Record.ID, f.Why, f.Name)
	if err != nil {
		c.troubled(now, err)
		t.tell("packets", "some could not be kept: "+err.Error())
		return
	}
	f.Name = name
	t.has(f)
}

func (c *chronicle) analyse(t *told, packets iter.Seq[capture.Packet], until time.Time) {
	if t.analysis == nil {
		return
	}
	for p := range packets {
		t.analysis.Add(&p)
	}
	t.analysis.Pause(until.UnixNano())
	t.fresh = true
}

var errNoStore = errors.New("the directory of incidents could not be opened")

// writePackets writes a file of packets.
func (c *chronicle) writePackets(t *told, why string, packets iter.Seq[capture.Packet], rec capture.Recorded) (incident.PacketFile, error) {
	if c.store == nil {
		return incident.PacketFile{}, errNoStore
	}
	comment := fmt.Sprintf("incident %s\nservice %s\n%s: %s", t.Record.ID, t.Record.Service, why, t.Record.Began)
	return savePackets(c.store, t.Record.ID, why, capture.PcapngMeta{Application: "lvsguard " + c.version, Comment: comment, Recorded: rec}, packets)
}

// savePackets writes packets to a file of the store. What could not be written
// whole is taken away again: it would be in the way of better things.
func savePackets(store *incident.Store, id, why string, meta capture.PcapngMeta, packets iter.Seq[capture.Packet]) (incident.PacketFile, error) {
	f, name, err := store.CreatePackets(id, why)
	if err != nil {
		return incident.PacketFile{}, err
	}
	file := incident.PacketFile{Name: name, Why: why, From: meta.Recorded.From.UTC(), To: meta.Recorded.To.UTC(), Seen: meta.Recorded.Seen}
	file.Packets, err = capture.WritePcapng(f, meta, packets)
	if info, statErr := f.Stat(); statErr == nil {
		file.Bytes = info.Size()
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return incident.PacketFile{}, fmt.Errorf("write packets: %w", errors.Join(err, store.RemovePackets(name)))
	}
	return file, nil
}

// sample takes the samples that are due: after the onset, at a peak, and every
// minute. All are of the same seconds, so one file serves all incidents.
func (c *chronicle) sample(n *news) {
	for i := range n.sampled {
		for _, t := range c.order {
			if t.analysis != nil {
				t.analysis.Add(&n.sampled[i])
				t.fresh = true
			}
		}
	}
	from := n.now.Add(-sampleLast)
	if n.recording == nil && len(c.queued) == 0 {
		return
	}
	why := make(map[*told]string)
	for _, t := range c.order {
		if t.Ended() || t.owed || t.files >= maxSamples {
			continue
		}
		since := n.now.Sub(t.sampled)
		switch {
		case !t.onset:
			if lasted(n.now.Sub(t.begun), sampleLast) {
				t.onset, why[t] = true, "onset"
			}
		case t.rate > 2*t.atRate && lasted(since, peakEvery):
			why[t] = "peak"
		case lasted(since, sampleEvery):
			why[t] = "during"
		}
	}
	if len(why) == 0 {
		return
	}
	packets, recorded := iter.Seq[capture.Packet](func(func(capture.Packet) bool) {}), capture.Recorded{From: from, To: n.now}
	if n.recording != nil {
		packets, recorded = n.recording.Recent(from, n.now)
	}
	unqueued := without(packets, c.queued)
	both := inOrder(unqueued, c.queued)
	recorded.Seen += uint64(len(c.queued))
	var written incident.PacketFile
	for _, t := range c.order {
		reason, due := why[t]
		if !due {
			continue
		}
		t.sampled, t.atRate = n.now, max(t.atRate, t.rate)
		c.analyse(t, unqueued, n.now)
		if reason == "peak" && t.peak != "" {
			t.lose(t.peak)
			c.troubled(n.now, c.store.RemovePackets(t.peak))
			t.peak = ""
		}
		if written.Name == "" {
			file, err := c.writePackets(t, reason, both, recorded)
			if err != nil {
				c.troubled(n.now, err)
				t.tell("packets", "some could not be kept: "+err.Error())
				continue
			}
			written = file
			t.has(file)
		} else {
			shared := written
			shared.Why = reason
			c.share(n.now, t, shared)
		}
		if last := len(t.Record.Packets) - 1; reason == "peak" && last >= 0 {
			t.peak = t.Record.Packets[last].Name
		}
	}
}

// without are the packets that did not come by the queue as well.
func without(packets iter.Seq[capture.Packet], queued []capture.Packet) iter.Seq[capture.Packet] {
	if len(queued) == 0 {
		return packets
	}
	there := make(map[incident.Identity]bool, len(queued))
	for i := range queued {
		if id, ok := incident.Identify(&queued[i]); ok {
			there[id] = true
		}
	}
	return func(yield func(capture.Packet) bool) {
		for p := range packets {
			if id, ok := incident.Identify(&p); ok && there[id] {
				continue
			}
			if !yield(p) {
				return
			}
		}
	}
}

// inOrder puts recorded packets and others in the order of their times.
func inOrder(recorded iter.Seq[capture.Packet], others []capture.Packet) iter.Seq[capture.Packet] {
	return func(yield func(capture.Packet) bool) {
		i := 0
		for p := range recorded {
			for ; i < len(others) && others[i].Time < p.Time; i++ {
				if !yield(others[i]) {
					return
				}
			}
			if !yield(p) {
				return
			}
		}
		for _, p := range others[i:] {
			if !yield(p) {
				return
			}
		}
	}
}

// lose takes a file out of the record.
func (t *told) lose(name string) {
	t.Record.Packets = slices.DeleteFunc(t.Record.Packets, func(f incident.PacketFile) bool { return f.Name == name })
	t.files--
}

// remember looks for handshakes that completed lately.
func (c *chronicle) remember(n *news) {
	if n.recording == nil || !lasted(n.now.Sub(c.seenAt), seenEvery) {
		return
	}
	from := n.now.Add(-seenEvery - time.Second) // some are open at either end
	c.seenAt = n.now
	packets, _ := n.recording.Recent(from, n.now)
	isWatched := func(at netip.AddrPort) bool {
		for _, at := range []netip.AddrPort{at, netip.AddrPortFrom(at.Addr(), 0)} {
			if _, ok := slices.BinarySearchFunc(n.watched, at, netip.AddrPort.Compare); ok {
				return true
			}
		}
		return false
	}
	for source := range incident.Completed(packets, isWatched) {
		c.seen.Add(n.now, source)
	}
}

// look puts down what the packets look like.
func (c *chronicle) look(now time.Time, t *told) {
	if t.analysis == nil || !t.fresh {
		return
	}
	t.fresh, t.looked, t.dirty = false, now, true
	// After a restart it begins anew, and the one of before may know more.
	if l := t.analysis.Look(); l != nil && !(t.again && t.Record.Look != nil && l.Flood < t.Record.Look.Flood) {
		t.Record.Look = l
	}
	if col := t.analysis.Collateral(); col != nil && col.Sampled > 0 {
		t.Record.Collateral = *col
		if c.seen.Full() {
			t.Record.Collateral.Packets, t.Record.Collateral.Sources = nil, nil
			t.tell("collateral", "more clients came within the hour than can be remembered")
		}
	}
}

// lookAndSave writes the records that are due, a few at a time.
func (c *chronicle) lookAndSave(now time.Time) {
	var due []*told
	for _, t := range c.order {
		over := t.Over(now)
		if over || t.dirty && lasted(now.Sub(t.saved), time.Second) || lasted(now.Sub(t.saved), saveEvery) {
			due = append(due, t)
		}
	}
	// Those that have waited longest first.
	slices.SortStableFunc(due, func(a, b *told) int { return a.saved.Compare(b.saved) })
	for _, t := range due[:min(len(due), savesAtOnce)] {
		if t.Over(now) {
			c.finish(now, t)
			continue
		}
		if t.fresh && (t.Record.Look == nil || lasted(now.Sub(t.looked), lookEvery)) {
			c.look(now, t)
		}
		c.save(now, t)
	}
}

func (c *chronicle) save(now time.Time, t *told) {
	t.saved, t.dirty = now, false
	t.Record.Written = now.Round(0).UTC()
	if c.store == nil {
		return
	}
	c.troubled(now, c.store.Save(&t.Record))
}

// keep removes what is too much.
func (c *chronicle) keep(now time.Time) {
	c.keptAt = now
	limits := incident.Limits{Incidents: c.cfg.Keep.Incidents, Bytes: c.cfg.Keep.Bytes, Age: c.cfg.Keep.Age}
	removed, err := c.store.Keep(now, limits, c.telling)
	c.troubled(now, err)
	for _, id := range removed {
		c.write(now, "", id, "removed", "the oldest go first: see evidence.keep")
	}
}

// saveRing writes the packets of the last seconds because somebody wants them.
func (c *chronicle) saveRing(ctx context.Context, now time.Time, recording Recording, before time.Duration, who string) (Result, error) {
	c.byHand.Lock()
	defer c.byHand.Unlock()
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	store, err := incident.Create(c.dir)
	if err != nil {
		return Result{}, err
	}
	defer store.Close()
	packets, recorded := recording.Recent(now.Add(-before), now)
	meta := capture.PcapngMeta{
		Application: "lvsguard " + c.version, Comment: "written by hand, by " + cmp.Or(who, "somebody"), Recorded: recorded,
	}
	file, err := savePackets(store, incident.NewID(now, "capture"), "by hand", meta, packets)
	if err != nil {
		return Result{}, err
	}
	return Result{Path: store.Path(file.Name), Packets: &file.Packets}, nil
}

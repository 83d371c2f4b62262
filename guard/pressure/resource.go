package pressure

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// A Resource is something of a limited size. What is not known of it is nil.
type Resource struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"` // for people, and its own: "low memory", "accept queue 0.0.0.0:80"
	What string `json:"what"` // what it holds, and what happens when it is full
	Unit Unit   `json:"unit"` // of Used and Limit

	Used  *uint64  `json:"used"`
	Limit *uint64  `json:"limit"`
	Share *float64 `json:"share"`
	// RatePerSecond is by how much Used grows, or falls if it is negative.
	RatePerSecond *float64 `json:"rate_per_second"`
	// FullIn is nil too where it does not fill, or not within a day.
	FullIn *float64 `json:"full_in_seconds"`

	Level  Level  `json:"level"`
	Reason string `json:"reason"` // how it stands, in one sentence for people

	// Unknown says by key of this object why it is null, except for
	// full_in_seconds where rate_per_second is known.
	Unknown map[string]string `json:"unknown,omitempty"`
}

// A Kind is a sort of resource, for which thresholds can be set.
type Kind string

// The kinds of resources. Of accept queues there may be many.
const (
	KindMemory      Kind = "memory"
	KindLowMemory   Kind = "low_memory"
	KindIPVS        Kind = "ipvs_connections"
	KindConntrack   Kind = "conntrack"
	KindAcceptQueue Kind = "accept_queue"
	KindNeighbours  Kind = "neighbours"
	KindTCPMemory   Kind = "tcp_memory"
	KindTCPOrphans  Kind = "tcp_orphans"
)

// A Unit is what a resource is counted in.
type Unit string

// The units of resources.
const (
	UnitBytes       Unit = "bytes"
	UnitEntries     Unit = "entries"
	UnitConnections Unit = "connections"
)

const (
	// neverFull is the time beyond which nobody believes a straight line.
	neverFull = 24 * time.Hour
	// fullSoon puts what is still far from its limit above what is calm.
	fullSoon = 10 * time.Minute
)

// builder makes the resources of one sample.
type builder struct {
	now        time.Time
	history    *history
	thresholds Thresholds
	all        []Resource
}

// memory adds memory and low memory. What the table takes ends where the table
// has its size, which a straight line does not know: so if the table is what takes
// memory, its forecast is given.
func (b *builder) memory(m Memory, forecast *Forecast) {
	r := Resource{
		Kind: KindMemory, Name: "memory", Unit: UnitBytes,
		What: "memory of this host; when it is full, the kernel kills processes",
	}
	low := Resource{
		Kind: KindLowMemory, Name: "low memory", Unit: UnitBytes,
		What: "memory that the kernel can use for itself; when it is full, connections are refused and the host may die",
	}
	hasLow := m.highMemory()
	if m.Total != nil && m.Available != nil {
		r.use(*m.Total-min(*m.Total, *m.Available), *m.Total)
	} else {
		r.unknown(cmp.Or(m.Unknown["total_bytes"], m.Unknown["available_bytes"]))
	}
	switch {
	case m.KernelAvailable != nil && m.KernelTotal != nil:
		total := *m.KernelTotal
		if m.LowTotal != nil {
			total = *m.LowTotal
		}
		low.use(total-min(total, *m.KernelAvailable), total)
	case m.LowTotal != nil && m.LowFree != nil:
		low.use(*m.LowTotal-min(*m.LowTotal, *m.LowFree), *m.LowTotal)
	default:
		low.unknown(m.Unknown["kernel_available_bytes"])
	}

	if hasLow {
		b.add(low, forecast, bytesFree)
		forecast = nil
	}
	b.add(r, forecast, bytesFree)
}

func bytesFree(r Resource) string {
	return fmt.Sprintf("%s of %s can still be had", bytesText(float64(*r.Limit-min(*r.Limit, *r.Used))), bytesText(float64(*r.Limit)))
}

func (b *builder) ipvs(v *IPVS) {
	if v == nil {
		return
	}
	r := Resource{
		Kind: KindIPVS, Name: "IPVS connections", Unit: UnitEntries,
		What: "IPVS's connection table with its persistence templates; it has no limit but memory, and when that is gone new connections are refused",
	}
	entries, known := v.entries()
	switch {
	case !known:
		r.unknown(v.Unknown["connections"])
	case v.FreeBytes == nil || v.BytesPerEntry == nil:
		r.Used = new(uint64(entries))
		reason := cmp.Or(v.Unknown["free_bytes"], v.Unknown["per_entry_bytes"])
		r.unknownFor(reason, "limit", "share")
	default:
		room := float64(*v.FreeBytes) / *v.BytesPerEntry
		r.use(uint64(entries), uint64(entries+room))
	}
	forecast := v.Forecast
	if forecast == nil {
		forecast = &Forecast{}
	}
	b.add(r, forecast, func(r Resource) string { return v.reason() })
}

// reason tells the table's size and future.
func (v *IPVS) reason() string {
	entries, _ := v.entries()
	text := countText(entries) + " entries"
	if v.Templates != nil && *v.Templates > 0 {
		text += ", " + countText(float64(*v.Templates)) + " of them persistence templates,"
	}
	if v.BytesPerEntry == nil {
		return text
	}
	text += " take " + bytesText(entries**v.BytesPerEntry)
	if f := v.Forecast; f != nil && f.GoneIn == nil {
		text += fmt.Sprintf("; at this rate it comes to %s, %s, for which there is memory", countText(f.Entries), bytesText(f.Bytes))
	}
	return text
}

func (b *builder) conntrack(c Conntrack) {
	if !c.InUse {
		return
	}
	r := Resource{
		Kind: KindConntrack, Name: "conntrack", Unit: UnitEntries,
		What: "connections that netfilter follows; when it is full, packets of new ones are dropped",
	}
	if c.Entries != nil && c.Limit != nil {
		r.use(*c.Entries, *c.Limit)
	} else {
		r.unknown(cmp.Or(c.Unknown["entries"], c.Unknown["limit_entries"]))
	}
	b.add(r, nil, counted)
}

func (b *builder) pool(p pool) {
	r := Resource{Kind: p.kind, Name: p.name, What: p.what, Unit: p.unit}
	if p.err != nil {
		r.unknown(p.err.Error())
	} else {
		r.use(*p.used, *p.limit)
	}
	reason := counted
	if p.unit == UnitBytes {
		reason = bytesFree
	}
	b.add(r, nil, reason)
}

func (b *builder) queue(q Queue) {
	r := Resource{
		Kind: KindAcceptQueue, Name: "accept queue " + q.Address, Unit: UnitConnections,
		What: "connections that the program has not accepted yet; when it is full, new ones are dropped",
	}
	r.use(q.Used, q.Limit)
	b.add(r, nil, counted)
}

func counted(r Resource) string {
	return fmt.Sprintf("%s of %s %s", countText(float64(*r.Used)), countText(float64(*r.Limit)), r.Unit)
}

func (r *Resource) use(used, limit uint64) {
	r.Used, r.Limit = &used, &limit
	if limit > 0 {
		r.Share = new(float64(used) / float64(limit))
	} else {
		r.unknownFor("the limit is 0", "share")
	}
}

func (r *Resource) unknown(reason string) {
	r.unknownFor(reason, "used", "limit", "share", "rate_per_second")
}

func (r *Resource) unknownFor(reason string, keys ...string) {
	if r.Unknown == nil {
		r.Unknown = make(map[string]string)
	}
	for _, key := range keys {
		r.Unknown[key] = reason
	}
}

// add puts a resource down, with its rate and level. With a forecast, that says
// when it will be full, and not the straight line.
func (b *builder) add(r Resource, forecast *Forecast, reason func(Resource) string) {
	if r.Used != nil {
		rate, ok := b.history.add(b.now, r.Name, float64(*r.Used)).rate()
		if ok {
			r.RatePerSecond = &rate.perSecond
		} else {
			r.unknownFor(firstReading, "rate_per_second")
		}
		switch {
		case r.Limit == nil:
		case *r.Used >= *r.Limit && *r.Limit > 0:
			r.FullIn = new(0.0)
		case forecast != nil:
			r.FullIn = forecast.GoneIn
		case ok && rate.visible() && rate.perSecond > 0:
			r.FullIn = new(float64(*r.Limit-*r.Used) / rate.perSecond)
		}
		if r.FullIn != nil && *r.FullIn > neverFull.Seconds() {
			r.FullIn = nil
		}
	}
	r.Level = b.thresholds.level(r.Kind, r.Share)
	if r.Used == nil || r.Share == nil {
		r.Reason = "not known: " + cmp.Or(r.Unknown["used"], r.Unknown["share"])
	} else {
		r.Reason = reason(r) + fullText(r)
	}
	b.all = append(b.all, r)
}

func fullText(r Resource) string {
	switch {
	case *r.Share >= 1:
		return "; it is full"
	case r.FullIn != nil:
		return "; at this rate it is full in " + durationText(*r.FullIn)
	}
	return ""
}

// sorted returns the resources, the worst first.
func (b *builder) sorted() []Resource {
	SortResources(b.all)
	return b.all
}

// SortResources puts the worst first: by level, then what will be full soon,
// then by share. What is not known stands between what fills and what is calm.
func SortResources(all []Resource) {
	slices.SortStableFunc(all, func(a, b Resource) int {
		return cmp.Or(
			cmp.Compare(a.rank(), b.rank()),
			cmp.Compare(a.soon(), b.soon()),
			cmp.Compare(value(b.Share), value(a.Share)),
			cmp.Compare(a.Name, b.Name),
		)
	})
}

func (r Resource) rank() int {
	switch {
	case r.Level == LevelCritical:
		return 0
	case r.Level == LevelWarning:
		return 1
	case r.soon() < fullSoon.Seconds():
		return 2
	case r.Level == LevelUnknown:
		return 3
	}
	return 4
}

// soon is the seconds until it is full, or a time that is no reason to hurry.
func (r Resource) soon() float64 {
	if r.FullIn == nil || *r.FullIn > fullSoon.Seconds() {
		return fullSoon.Seconds()
	}
	return *r.FullIn
}

func value(v *float64) float64 {
	if v == nil {
		return 0
	}
	return *v
}

// bytesText writes a size with three figures.
func bytesText(n float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	for len(units) > 1 && n >= 999.5 {
		n, units = n/1000, units[1:]
	}
	if n >= 100 {
		return strconv.FormatFloat(n, 'f', 0, 64) + " " + units[0]
	}
	return strconv.FormatFloat(n, 'g', 3, 64) + " " + units[0]
}

// countText writes a whole number with its thousands apart.
func countText(n float64) string {
	text := strconv.FormatFloat(n, 'f', 0, 64)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func durationText(seconds float64) string {
	switch {
	case seconds < 120:
		return fmt.Sprintf("%.0f s", seconds)
	case seconds < 2*3600:
		return fmt.Sprintf("%.0f min", seconds/60)
	}
	return fmt.Sprintf("%.0f h", seconds/3600)
}

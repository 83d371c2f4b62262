package pressure

import (
	"cmp"
	"time"
)

// IPVS is the memory of the connection table, and its future.
type IPVS struct {
	Connections   *uint64  `json:"connections"`
	Templates     *uint64  `json:"persistence_templates"`
	HalfOpenShare *float64 `json:"half_open_share"`
	// Growth is by how many entries, templates too, there are more each second;
	// New is how many connections are made.
	Growth *float64 `json:"growth_per_second"`
	New    *float64 `json:"new_per_second"`

	Slab *Slab `json:"slab"`
	// Bytes is what the entries take: their number by Slab.SlabSize.
	Bytes *uint64 `json:"bytes"`
	// BytesPerEntry is what the forecast reckons with. From says where it is
	// from: "slab", or "observed" if memory has fallen by more an entry.
	BytesPerEntry *float64  `json:"per_entry_bytes"`
	From          string    `json:"per_entry_from,omitempty"`
	FreeBytes     *uint64   `json:"free_bytes"` // that the table can still take
	Forecast      *Forecast `json:"forecast"`

	// Unknown says by key of this object why it is null.
	Unknown map[string]string `json:"unknown,omitempty"`
}

const (
	halfOpenLifetime = time.Minute
	templateLifetime = 5 * time.Minute

	// What memory has fallen by an entry counts where so many have come within
	// the last minute that little else moves memory as much, and as long as it is
	// no more than so many times what the slab says: else something other takes
	// memory too.
	observeFrom  = 20_000
	observeTimes = 4
	// Where there is no slab to compare with, an entry is between these.
	observeLeast, observeMost = 150, 1500
)

// entries are the connections and templates, or what the slab has if IPVS does
// not tell them.
func (v *IPVS) entries() (float64, bool) {
	switch {
	case v.Connections != nil:
		return float64(*v.Connections) + float64(*v.Templates), true
	case v.Slab != nil && v.Slab.Objects != nil:
		return float64(*v.Slab.Objects), true
	}
	return 0, false
}

// readIPVS puts together what the caller knows of the table, or if it knows
// nothing what the slab tells, with the memory. takesMemory says that free memory
// falls, and mostly by what the table grows.
func (m *Monitor) readIPVS(now time.Time, given Given, memory Memory) (v *IPVS, takesMemory bool) {
	v = &IPVS{Unknown: make(map[string]string)}
	slab, err := m.slab.read(&m.files, now, m.cfg.PageSize, given.Table == nil)
	if err != nil {
		v.Unknown["slab"] = err.Error()
	} else {
		v.Slab = &slab
	}

	var t Table
	names := [...]string{"ipvs entries", "ipvs connections", "ipvs templates"}
	if given.Table != nil {
		t = *given.Table
		v.Connections, v.Templates, v.HalfOpenShare = &t.Connections, &t.Templates, t.HalfOpenShare
	} else {
		v.Unknown["connections"], v.Unknown["persistence_templates"] = given.TableUnknown, given.TableUnknown
		if v.Slab == nil || v.Slab.Objects == nil {
			for _, key := range []string{"half_open_share", "growth_per_second", "new_per_second", "bytes", "per_entry_bytes", "free_bytes", "forecast"} {
				v.Unknown[key] = given.TableUnknown
			}
			return v, false
		}
		t.Connections = *v.Slab.Objects
		names = [...]string{"slab entries", "slab connections", "slab templates"}
	}
	entries, _ := v.entries()
	if v.Slab != nil {
		v.Bytes = new((t.Connections + t.Templates) * v.Slab.SlabSize)
	} else {
		v.Unknown["bytes"] = v.Unknown["slab"]
	}
	if v.HalfOpenShare == nil {
		v.Unknown["half_open_share"] = "no census has told it"
	}

	all := m.history.add(now, names[0], entries)
	connections := m.history.add(now, names[1], float64(t.Connections))
	templates := m.history.add(now, names[2], float64(t.Templates))
	if growth, ok := all.rate(); ok {
		v.Growth = &growth.perSecond
	} else {
		v.Unknown["growth_per_second"] = firstReading
	}
	if t.NewTotal == nil {
		v.Unknown["new_per_second"] = "IPVS does not count them here"
	} else if v.New = m.newConnections(now, *t.NewTotal); v.New == nil {
		v.Unknown["new_per_second"] = firstReading
	}

	switch {
	case memory.KernelAvailable != nil:
		v.FreeBytes = memory.KernelAvailable
	case memory.LowFree != nil:
		v.FreeBytes = memory.LowFree
	case memory.Available != nil && !memory.highMemory():
		v.FreeBytes = memory.Available
	default:
		v.Unknown["free_bytes"] = "neither /proc/zoneinfo nor /proc/meminfo tells it"
	}
	var free *series
	if v.FreeBytes != nil {
		free = m.history.add(now, "ipvs free", float64(*v.FreeBytes))
	}
	v.perEntry(all, free)
	if v.BytesPerEntry == nil || v.FreeBytes == nil || v.Growth == nil {
		v.Unknown["forecast"] = "it needs growth_per_second, per_entry_bytes and free_bytes, which are not all known"
		return v, false
	}
	if fall, ok := free.rate(); ok {
		takesMemory = fall.perSecond < 0 && *v.Growth**v.BytesPerEntry >= -fall.perSecond/2
	}
	v.Forecast = new(Predict(ForecastInput{
		Connections: Flow{
			Entries: float64(t.Connections), Mortal: halfOpen(t, connections), Growth: visibleGrowth(connections),
			New: v.New, Lifetime: cmp.Or(t.HalfOpenLifetime, halfOpenLifetime),
		},
		Templates: Flow{
			Entries: float64(t.Templates), Mortal: float64(t.Templates), Growth: visibleGrowth(templates),
			Lifetime: cmp.Or(t.TemplateLifetime, templateLifetime),
		},
		BytesPerEntry: *v.BytesPerEntry,
		FreeBytes:     float64(*v.FreeBytes),
	}))
	return v, takesMemory
}

// halfOpen estimates the entries in SYN_RECV. Without a census they are at most
// those by which there are more than there were at some time within the life of
// one: all that were there before have gone, or are something else.
func halfOpen(t Table, connections *series) float64 {
	n := float64(t.Connections)
	if t.HalfOpenShare != nil {
		return n * min(max(*t.HalfOpenShare, 0), 1)
	}
	return max(0, n-connections.least(cmp.Or(t.HalfOpenLifetime, halfOpenLifetime)))
}

// visibleGrowth is zero where the growth is no more than noise.
func visibleGrowth(s *series) float64 {
	if r, ok := s.rate(); ok && r.visible() {
		return r.perSecond
	}
	return 0
}

// newConnections is the rate of IPVS's count of connections made. A count that
// falls is another count: a service with its share of it has gone.
func (m *Monitor) newConnections(now time.Time, total uint64) *float64 {
	s := m.history.series["ipvs new"]
	if s != nil && s.n > 0 && float64(total) < s.at(s.n-1).v {
		s.n = 0
	}
	rate, ok := m.history.add(now, "ipvs new", float64(total)).slope(shortWindow)
	if !ok {
		return nil
	}
	return &rate.perSecond
}

// perEntry decides how much memory an entry takes: what the slab says, or what
// free memory has fallen by for each entry that came, if that is more. There is
// more than the slab where connections are in nf_conntrack too, or sources in
// other tables.
//
// Both slopes are of the same minute and of the same weights, so that their
// ratio is right however the flood went.
func (v *IPVS) perEntry(entries, free *series) {
	least, most := float64(observeLeast), float64(observeMost)
	if v.Slab != nil {
		v.BytesPerEntry, v.From = &v.Slab.PerEntry, "slab"
		least, most = v.Slab.PerEntry, observeTimes*v.Slab.PerEntry
	} else {
		v.Unknown["per_entry_bytes"] = v.Unknown["slab"] + "; and too few entries have come to see it by free memory"
	}
	growth, ok := entries.slope(longWindow)
	fall, known := free.slope(longWindow)
	if !ok || !known || !growth.visible() || entries.at(entries.n-1).v-entries.least(longWindow) < observeFrom {
		return
	}
	if each := -fall.perSecond / growth.perSecond; each > least && each < most {
		v.BytesPerEntry, v.From = &each, "observed"
		delete(v.Unknown, "per_entry_bytes")
	}
}

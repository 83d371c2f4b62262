package pressure

import (
	"math"
	"time"
)

// A Flow is one kind of entry of a table, each of which stays for a lifetime.
type Flow struct {
	Entries float64
	// Mortal of the Entries go within a lifetime unless they are replaced. The
	// rest are in balance: as many come as go.
	Mortal float64
	// Growth is by how many entries a second there are more, by the count
	// itself; it may be negative.
	Growth float64
	// New is how many are made a second; nil: not counted.
	New      *float64
	Lifetime time.Duration
}

// inflow is how many entries a second are made that stay for the lifetime.
//
// While a flood is younger than the lifetime nothing of it goes yet, and the
// table grows by just what comes. When it is older the table stands still, and
// what comes is what is there by the lifetime (Little's law). In either case the
// other figure is the smaller one. Where the kernel counts what is made, no more
// can stay than that: so a flood that has ended is seen to have ended before its
// entries are gone.
func (f Flow) inflow() float64 {
	steady := f.Mortal / f.Lifetime.Seconds()
	if f.New != nil {
		steady = min(steady, *f.New)
	}
	return max(f.Growth, steady, 0)
}

// equilibrium is how many entries there will be when as many go as come.
func (f Flow) equilibrium() float64 {
	return f.Entries - f.Mortal + f.inflow()*f.Lifetime.Seconds()
}

// A ForecastInput is what the future of a connection table is told from.
type ForecastInput struct {
	Connections, Templates Flow
	BytesPerEntry          float64
	FreeBytes              float64 // that the table can still take
}

// A Forecast is what becomes of a connection table if everything goes on as it
// does now.
type Forecast struct {
	Entries float64 `json:"entries"` // the most that the table will hold
	Bytes   float64 `json:"bytes"`
	// GoneIn is when the memory that the table can take is gone; nil: never.
	GoneIn *float64 `json:"memory_gone_in_seconds"`
}

// Predict tells the future of the table, at the present rate.
//
// Connections and templates each grow in a straight line, by their inflow, until
// they are at their equilibrium, where they stay. The memory is gone when the
// two together have taken it. A constant flood does exactly this. A flood that
// still grows is worse than predicted, from second to second less so.
func Predict(in ForecastInput) Forecast {
	connections, templates := in.Connections.equilibrium(), in.Templates.equilibrium()
	f := Forecast{Entries: connections + templates}
	f.Bytes = f.Entries * in.BytesPerEntry

	type ramp struct{ rate, rest float64 }
	ramps := [2]ramp{
		{in.Connections.inflow(), max(0, connections-in.Connections.Entries)},
		{in.Templates.inflow(), max(0, templates-in.Templates.Entries)},
	}
	room := in.FreeBytes / in.BytesPerEntry
	if ramps[0].rest+ramps[1].rest < room || math.IsNaN(room) || math.IsInf(room, 0) {
		return f
	}
	// The one that ends first leaves the other alone.
	at := 0.0
	for {
		rate, until := 0.0, math.Inf(1)
		for _, r := range ramps {
			if r.rest > 0 {
				rate += r.rate
				until = min(until, r.rest/r.rate)
			}
		}
		if rate == 0 {
			break
		}
		if rate*until >= room {
			at += room / rate
			break
		}
		at, room = at+until, room-rate*until
		for i := range ramps {
			if ramps[i].rest > 0 {
				if ramps[i].rest -= ramps[i].rate * until; ramps[i].rest < 1e-6 {
					ramps[i].rest = 0
				}
			}
		}
	}
	f.GoneIn = &at
	return f
}

package pressure

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// A Level says how bad it is.
type Level string

// The levels of a resource.
const (
	LevelOK       Level = "ok"
	LevelWarning  Level = "warning"
	LevelCritical Level = "critical"
	LevelUnknown  Level = "unknown"
)

func (l Level) rank() int {
	switch l {
	case LevelCritical:
		return 2
	case LevelWarning:
		return 1
	}
	return 0
}

// A Threshold is a pair of shares; 0 stands for the usual one.
type Threshold struct {
	Warning, Critical float64
}

// Thresholds decide when a resource is at which level.
type Thresholds struct {
	Default Threshold          // 0: 0.75 and 0.90
	ByKind  map[Kind]Threshold // 0: as Default
	// Margin and Hold are for the way back: the share must have been so far
	// below a threshold for so long. 0: 0.05 and 10 s.
	Margin float64
	Hold   time.Duration
}

// Check says what is wrong with thresholds.
func (t Thresholds) Check() error {
	kinds := map[Kind]Threshold{"": {}}
	for kind := range t.ByKind {
		kinds[kind] = Threshold{}
	}
	for kind := range kinds {
		is := t.of(kind)
		if !(is.Warning > 0 && is.Warning <= is.Critical && is.Critical <= 1) {
			return fmt.Errorf("%s: warning %v, critical %v: shares are above 0 and at most 1, and warning is not above critical",
				cmp.Or(kind, "default"), is.Warning, is.Critical)
		}
	}
	if t.Margin < 0 || t.Margin >= 1 || t.Hold < 0 {
		return fmt.Errorf("margin %v, hold %v: a margin is a share, and neither is negative", t.Margin, t.Hold)
	}
	return nil
}

func (t Thresholds) of(kind Kind) Threshold {
	own := t.ByKind[kind]
	return Threshold{
		Warning:  cmp.Or(own.Warning, t.Default.Warning, 0.75),
		Critical: cmp.Or(own.Critical, t.Default.Critical, 0.90),
	}
}

func (t Thresholds) level(kind Kind, share *float64) Level {
	is := t.of(kind)
	switch {
	case share == nil:
		return LevelUnknown
	case *share >= is.Critical:
		return LevelCritical
	case *share >= is.Warning:
		return LevelWarning
	}
	return LevelOK
}

// A Change is a resource that has crossed a threshold.
type Change struct {
	Time     time.Time `json:"time"`
	Resource string    `json:"resource"` // its name
	Kind     Kind      `json:"kind"`
	From     Level     `json:"from"`
	To       Level     `json:"to"`
	Share    *float64  `json:"share"`
	FullIn   *float64  `json:"full_in_seconds"`
	Reason   string    `json:"reason"`
}

// Levels remember the level of each resource, so that one that wavers at a
// threshold is told of once. The same samples give the same changes.
type Levels struct {
	thresholds Thresholds
	state      map[string]*levelState
}

type levelState struct {
	kind  Kind
	level Level
	// Since belowSince the share has been low enough for a lesser level; the
	// highest that it was low enough for is below.
	belowSince time.Time
	below      Level
	seen       time.Time
}

// NewLevels makes Levels at which everything is ok.
func NewLevels(t Thresholds) *Levels {
	return &Levels{thresholds: t, state: make(map[string]*levelState)}
}

// SetThresholds changes the thresholds and keeps the levels, which move at the
// next Evaluate.
func (l *Levels) SetThresholds(t Thresholds) { l.thresholds = t }

// Evaluate says which resources have changed their level. Upwards a change is
// told at once, downwards after Hold. A resource that is not known keeps its
// level: that is not known to be over. One that is not there any more, as the
// queue of a socket that was closed, is ok after Hold.
func (l *Levels) Evaluate(now time.Time, s Sample) []Change {
	var changes []Change
	for _, r := range s.Resources {
		st := l.state[r.Name]
		if st == nil {
			if r.Share == nil || l.thresholds.level(r.Kind, r.Share) == LevelOK {
				continue // what has always been ok needs no memory
			}
			st = &levelState{kind: r.Kind, level: LevelOK}
			l.state[r.Name] = st
		}
		st.seen = now
		if r.Share == nil {
			continue
		}
		if from, changed := st.move(now, l.thresholds, *r.Share); changed {
			changes = append(changes, Change{
				Time: now, Resource: r.Name, Kind: r.Kind, From: from, To: st.level,
				Share: r.Share, FullIn: r.FullIn, Reason: r.Reason,
			})
		}
		if st.level == LevelOK {
			delete(l.state, r.Name)
		}
	}
	return append(changes, l.gone(now)...)
}

// move takes the share of this moment.
func (st *levelState) move(now time.Time, t Thresholds, share float64) (from Level, changed bool) {
	from = st.level
	if up := t.level(st.kind, &share); up.rank() >= st.level.rank() {
		st.level, st.belowSince = up, time.Time{}
		return from, from != up
	}
	down := t.level(st.kind, new(share+cmp.Or(t.Margin, 0.05)))
	switch {
	case down.rank() >= st.level.rank():
		st.belowSince = time.Time{}
		return from, false
	case st.belowSince.IsZero():
		st.belowSince, st.below = now, down
	case down.rank() > st.below.rank():
		st.below = down
	}
	if now.Sub(st.belowSince) < cmp.Or(t.Hold, 10*time.Second) {
		return from, false
	}
	st.level, st.belowSince = st.below, time.Time{}
	return from, true
}

func (l *Levels) gone(now time.Time) []Change {
	var changes []Change
	for name, st := range l.state {
		if now.Sub(st.seen) >= cmp.Or(l.thresholds.Hold, 10*time.Second) {
			changes = append(changes, Change{
				Time: now, Resource: name, Kind: st.kind, From: st.level, To: LevelOK, Reason: "it is not there any more",
			})
			delete(l.state, name)
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return cmp.Compare(a.Resource, b.Resource) })
	return changes
}

// Mark returns the resources with the levels that they are held at, the worst
// first: what a person should see after Evaluate.
func (l *Levels) Mark(resources []Resource) []Resource {
	marked := slices.Clone(resources)
	for i, r := range marked {
		if st := l.state[r.Name]; st != nil && r.Level != LevelUnknown {
			marked[i].Level = st.level
		}
	}
	SortResources(marked)
	return marked
}

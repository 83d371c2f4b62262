package report

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lvsguard/lvsguard/guard/incident"
)

// A Story is an incident in words, for somebody who was asleep.
type Story struct {
	Title    string // what it was, and where
	When     string
	Outcome  Outcome
	Headline string   // how it went, in one line
	Told     []string // in paragraphs, what matters most first
	Unknown  []string // what is not known, and why
	Next     []Step   // what to do next time
}

// An Outcome is how an incident went, in a word.
type Outcome string

// The outcomes of an incident.
const (
	Dropped  Outcome = "dropped"     // at least some of it
	Observed Outcome = "not dropped" // it was seen, and nothing more
	Open     Outcome = "not ended"   // or nobody was there to see its end
)

// A Step is something to do, and the lines to type or to write for it.
type Step struct {
	Do    string
	Lines []string
}

// Of says how r went.
func Of(r *incident.Record) Outcome {
	switch {
	case r.Ended == nil:
		return Open
	case dropped(r):
		return Dropped
	}
	return Observed
}

func dropped(r *incident.Record) bool {
	return r.FirstDrop != nil || r.Totals.Dropped != nil && *r.Totals.Dropped > 0
}

// What an incident came to, in a word.
const (
	Flood    = "flood"
	HalfOpen = "half-open"
	Rising   = "rising" // it was over, or cut off, before it counted as a flood
)

// Verdict says which of these r came to.
func Verdict(r *incident.Record) string {
	if r.Flooded == nil {
		return Rising
	}
	verdict := Flood
	for _, a := range r.Actions {
		switch {
		case a.Kind != "verdict":
		case strings.Contains(a.Text, " to flood:"):
			return Flood
		case strings.Contains(a.Text, " to half_open_flood:"):
			verdict = HalfOpen
		}
	}
	return verdict
}

// Last is the last moment that r knows of: its end, or when it was written.
func Last(r *incident.Record) time.Time {
	if r.Ended != nil {
		return *r.Ended
	}
	last := r.Onset
	if r.Written.After(last) {
		last = r.Written
	}
	for _, p := range r.Series {
		if end := pointEnd(&p); end.After(last) {
			last = end
		}
	}
	for _, a := range r.Actions {
		if a.Time.After(last) {
			last = a.Time
		}
	}
	return last
}

func pointEnd(p *incident.Point) time.Time {
	return p.Time.Add(time.Duration(p.Seconds * float64(time.Second)))
}

// Tell tells r, with times in loc.
func Tell(r *incident.Record, loc *time.Location) *Story {
	t := teller{r, loc}
	return &Story{
		Title: t.title(), When: t.when(), Outcome: Of(r), Headline: t.headline(),
		Told: t.told(), Unknown: t.unknown(), Next: t.next(),
	}
}

type teller struct {
	*incident.Record
	loc *time.Location
}

// clock writes a time of the incident: of day, and with its date where that is
// another than the onset's.
func (t teller) clock(at time.Time) string {
	at = at.In(t.loc)
	if at.Format(time.DateOnly) != t.Onset.In(t.loc).Format(time.DateOnly) {
		return at.Format(time.DateTime)
	}
	return at.Format(time.TimeOnly)
}

func (t teller) zone() string { return t.Onset.In(t.loc).Format("MST") }

func (t teller) title() string {
	name := map[string]string{
		Flood: "SYN flood", HalfOpen: "Half-open flood", Rising: "Suspicion of a flood",
	}[Verdict(t.Record)]
	title := name + " on " + Clean(t.Service)
	if t.Project != "" {
		title += " (" + Clean(t.Project) + ")"
	}
	return title
}

func (t teller) when() string {
	from, last := t.Onset.In(t.loc), Last(t.Record)
	text := from.Format("Monday 2 January 2006, 15:04:05")
	if t.Ended == nil {
		return fmt.Sprintf("%s %s, not ended at %s", text, t.zone(), t.clock(last))
	}
	return fmt.Sprintf("%s to %s %s (%s)", text, t.clock(last), t.zone(), Took(last.Sub(t.Onset)))
}

// what clients felt, from their handshakes before and during the incident.
func (t teller) felt() string {
	before, during := t.Clients.Before.Completion, t.Clients.During.Completion
	switch {
	case before == nil || during == nil:
		return "what clients felt is not known"
	case *before-*during < 0.01:
		return "clients did not feel it"
	case *before-*during < 0.05:
		return "clients hardly felt it"
	}
	return fmt.Sprintf("clients felt it: %s of their handshakes completed, where %s had before", Percent(*during), Percent(*before))
}

func (t teller) headline() string {
	var head string
	switch {
	case t.FirstDrop != nil && t.FirstDrop.After(t.Onset):
		head = "Dropped after " + Took(t.FirstDrop.Sub(t.Onset))
	case dropped(t.Record):
		head = "Dropped from the first packet"
	case t.Totals.Dropped == nil:
		head = "Whether anything was dropped is not known"
	default:
		head = "Seen, and not dropped"
	}
	if t.Ended == nil {
		head += "; it had not ended when this was written"
	}
	return head + "; " + t.felt() + "."
}

func (t teller) told() []string {
	var all []string
	for _, sentences := range [][]string{
		{t.load(), t.drops(), t.clients()},
		{t.look(), t.collateral()},
		{t.host(), t.gaps(), t.end()},
	} {
		sentences = slices.DeleteFunc(sentences, func(s string) bool { return s == "" })
		if len(sentences) > 0 {
			all = append(all, strings.Join(sentences, " "))
		}
	}
	return all
}

func (t teller) load() string {
	last := Last(t.Record)
	offered := "an unknown number of SYNs"
	if n := t.Totals.Offered; n != nil {
		offered = Exact(*n) + " SYNs"
	}
	text := fmt.Sprintf("From %s to %s %s %s came to %s", t.clock(t.Onset), t.clock(last), t.zone(), offered, Clean(t.Service))
	if p := t.Peaks.SYN; p != nil {
		text += fmt.Sprintf(", at most %s a second", about(*p))
	}
	switch share, ok := t.suspectShare(); {
	case ok && share > 0:
		text += fmt.Sprintf("; %s of them bore a signature from the configuration", Percent(share))
	case ok:
		text += "; none of them bore a signature from the configuration"
	}
	return text + "."
}

func (t teller) suspectShare() (share float64, ok bool) {
	offered, suspect := t.Totals.Offered, t.Totals.Suspect
	if offered == nil || suspect == nil || *offered == 0 {
		return 0, false
	}
	return float64(*suspect) / float64(*offered), true
}

func (t teller) look() string {
	if t.Look == nil {
		return ""
	}
	if len(t.Look.Features) == 0 {
		return fmt.Sprintf("In %s sampled packets nothing tells the flood from good clients.", Exact(t.Look.Flood))
	}
	f := t.Look.Features[0]
	text := fmt.Sprintf("What tells it from good clients is %s: %s of the flood has it", Clean(f.Text), Percent(f.Flood))
	if f.Good != nil {
		text += fmt.Sprintf(", and %s of good clients", Percent(*f.Good))
	} else {
		text += "; too few clients completed a handshake to say how many of them have it"
	}
	text += "."
	if s := t.Look.Sources; s.Spoofed != "" {
		text += " Its sources are likely spoofed: " + strings.TrimSuffix(Clean(s.Spoofed), ".") + "."
	} else if s.Distinct != nil {
		text += fmt.Sprintf(" It came from about %s addresses.", Exact(*s.Distinct))
	}
	return text
}

func (t teller) drops() string {
	if !dropped(t.Record) {
		if t.Totals.Dropped == nil {
			return ""
		}
		if t.armed() {
			return "The service was armed" + t.byWhom() + ", and nothing matched: the guard dropped nothing."
		}
		return "The guard dropped nothing: the service was never armed."
	}
	text := "The guard dropped"
	switch n := t.Totals.Dropped; {
	case n == nil:
		text += " packets; how many is not known"
	case t.Totals.Suspect != nil && *t.Totals.Suspect > 0:
		text += fmt.Sprintf(" %s of them, %s of those with a signature", Exact(*n), Percent(float64(*n)/float64(*t.Totals.Suspect)))
	default:
		text += fmt.Sprintf(" %s of them", Exact(*n))
	}
	if at := t.FirstDrop; at != nil && at.After(t.Onset) {
		text += fmt.Sprintf(", beginning %s after the onset", Took(at.Sub(t.Onset)))
	}
	if t.armed() {
		text += "; the service was armed" + t.byWhom()
	}
	return text + "."
}

func (t teller) collateral() string {
	switch c := t.Collateral; {
	case c.Sampled == 0 || c.Packets == nil:
		return ""
	case *c.Packets == 0:
		return fmt.Sprintf("Of %s dropped packets that were looked at, none came from an address that had completed a handshake within the hour.", Exact(c.Sampled))
	default:
		return fmt.Sprintf("Of %s dropped packets that were looked at, %s came from addresses that had completed a handshake within the hour: those were perhaps clients.", Exact(c.Sampled), Exact(*c.Packets))
	}
}

// armed says whether the service was armed at any time.
func (t teller) armed() bool {
	return t.armedBy() != "" || slices.ContainsFunc(t.Series, func(p incident.Point) bool { return p.Armed })
}

func (t teller) byWhom() string {
	if by := t.armedBy(); by != "" {
		return " by " + by
	}
	return " already"
}

// armedBy says who armed the service first, in words; empty if nobody did since
// the onset.
func (t teller) armedBy() string {
	for _, a := range t.Actions {
		if a.Kind != "lease" || !strings.HasPrefix(a.Text, "armed") {
			continue
		}
		switch a.By {
		case "auto":
			return "the guard itself"
		case "prearm":
			return "the guard beforehand, as this host was standby"
		case "restart":
			return "a guard that ran before"
		case "", "operator":
			return "an operator"
		}
		return "an operator (" + Clean(a.By) + ")"
	}
	return ""
}

func (t teller) clients() string {
	var parts []string
	for _, p := range []struct {
		felt incident.Felt
		when string
	}{{t.Clients.Before, "in the minute before"}, {t.Clients.During, "during it"}, {t.Clients.After, "in the minute after"}} {
		if p.felt.Completion != nil {
			parts = append(parts, Percent(*p.felt.Completion)+" "+p.when)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	text := "Of clients' handshakes completed " + incident.Sentence(parts)
	if p := t.Clients.During.P99; p != nil {
		text += fmt.Sprintf("; during it 99 %% of those took no longer than %s", latency(*p))
		if was := t.Clients.Before.P99; was != nil {
			text += fmt.Sprintf(" (before: %s)", latency(*was))
		}
	}
	return text + "."
}

func (t teller) host() string {
	var parts []string
	if n := t.Peaks.HalfOpen; n != nil {
		parts = append(parts, about(*n)+" connections were half-open")
	}
	if s := t.Peaks.MemoryShare; s != nil {
		parts = append(parts, Percent(*s)+" of memory was used")
	}
	if n := t.Peaks.Cookies; n != nil {
		parts = append(parts, fmt.Sprintf("the real servers sent %s SYN cookies a second", about(*n)))
	}
	if len(parts) == 0 {
		return ""
	}
	return "At the worst, " + incident.Sentence(parts) + "."
}

func (t teller) gaps() string {
	if len(t.Gaps) == 0 {
		return ""
	}
	var parts []string
	for _, g := range t.Gaps {
		parts = append(parts, fmt.Sprintf("from %s to %s (%s)", t.clock(g.From), t.clock(g.To), Clean(g.Reason)))
	}
	return "No guard was there " + incident.Sentence(parts) + ": what happened then is not known."
}

func (t teller) end() string {
	began := ""
	if t.Began != "" {
		began = "It began because: " + strings.TrimSuffix(Clean(t.Began), ".") + "."
	}
	switch {
	case t.Ended == nil:
		return strings.TrimSpace(began + fmt.Sprintf(" The last that is known of it is from %s.", t.clock(Last(t.Record))))
	case t.EndedBy != "":
		return strings.TrimSpace(began + " It ended because: " + strings.TrimSuffix(Clean(t.EndedBy), ".") + ".")
	}
	return began
}

func (t teller) unknown() []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(t.Record.Unknown)) {
		all = append(all, Clean(name)+": "+Clean(t.Record.Unknown[name]))
	}
	if t.ActionsLeftOut > 0 {
		all = append(all, fmt.Sprintf("%d of what happened is not listed: a record holds %d", t.ActionsLeftOut, incident.MaxActions))
	}
	return all
}

// A feature is good enough to drop by if it covers so much of the flood, and
// hits so few clients.
const (
	worthFlood = 0.3
	worthGood  = 0.01
)

// signature is the best entry for the configuration that the look gives; nil if
// there is none that could be dropped by.
func (t teller) signature() *incident.Feature {
	if t.Look == nil {
		return nil
	}
	for i, f := range t.Look.Features {
		if f.Signature != "" && f.Flood >= worthFlood && f.Good != nil && *f.Good <= worthGood {
			return &t.Look.Features[i]
		}
	}
	return nil
}

// packetFile is the file that one looks into first; empty if there is none.
func (t teller) packetFile() string {
	for _, why := range []string{"onset", "peak", "during", "before", "by hand"} {
		for _, p := range t.Packets {
			if p.Why == why && Typable(p.Name) {
				return p.Name
			}
		}
	}
	return ""
}

// Typable says whether a name means nothing but itself to a shell and to a
// file system. Lines that are to be typed have no others in them.
func Typable(name string) bool {
	return name != "" && !strings.HasPrefix(name, "-") && !strings.HasPrefix(name, ".") &&
		!strings.ContainsFunc(name, func(r rune) bool {
			return !(r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("._:+-", r))
		})
}

const (
	// wellCovered is the share of SYNs with a signature above which a flood is
	// known by it.
	wellCovered = 0.9
	// late is when a drop began later than the guard alone would have, or a guard
	// was away for longer than a restart takes.
	late = 10 * time.Second
	// nearlyFull is a share of memory.
	nearlyFull = 0.9
)

func (t teller) next() []Step {
	var steps []Step
	add := func(do string, lines ...string) { steps = append(steps, Step{do, lines}) }
	id := "ID"
	if Typable(t.ID) {
		id = t.ID
	}

	if t.Ended == nil {
		add("See whether it is over.", "lvsguard status")
	}
	share, known := t.suspectShare()
	byHand := strings.HasPrefix(t.armedBy(), "an operator")
	switch {
	case !dropped(t.Record) && t.Flooded != nil && known && share >= 0.5 && !t.armed():
		add("Let the guard drop such a flood by itself, on both directors. It drops what bears the signature, while a service is flooded, and nothing else.", "lvsguard mitigate auto")
	case byHand && t.FirstDrop != nil && t.FirstDrop.Sub(t.Onset) > late:
		add("The drop waited for somebody to type it. Let the guard arm by itself, on both directors.", "lvsguard mitigate auto")
	}
	collateral := t.Collateral.Packets != nil && *t.Collateral.Packets > 0
	if f := t.signature(); f != nil && (known && share < wellCovered || collateral) {
		add(fmt.Sprintf("Add this signature to the configuration, so that the guard counts it and can drop it: %s. It covers %s of the flood and %s of good clients.", Clean(f.Text), Percent(f.Flood), Percent(*f.Good)),
			"signatures:", "  "+Clean(f.Signature), "# then: lvsguard config check && systemctl reload lvsguard")
		if !t.armed() {
			add("With that signature, let the guard drop such a flood by itself, on both directors.", "lvsguard mitigate auto")
		}
	} else if f == nil && t.Look != nil && known && share < wellCovered {
		lines := []string{}
		if file := t.packetFile(); file != "" {
			lines = append(lines, "lvsguard incidents export "+id, "tshark -r "+file)
		}
		add("No field of the packets tells the flood from good clients well enough to drop by. Have SYN cookies on on the real servers (net.ipv4.tcp_syncookies), look at the packets, and ask your provider.", lines...)
	}
	if collateral {
		text := "Dropped packets came from addresses that had been clients. See whether those are yours; allow: in the configuration spares an address."
		if len(t.Collateral.Sources) > 0 {
			var names []string
			for _, a := range t.Collateral.Sources[:min(len(t.Collateral.Sources), 5)] {
				names = append(names, Clean(a.String()))
			}
			add(text, strings.Join(names, " "))
		} else {
			add(text)
		}
	}
	if s := t.Peaks.MemoryShare; s != nil && *s >= nearlyFull {
		add(fmt.Sprintf("Memory came to %s. See what fills it and what bounds it before the next one does.", Percent(*s)), "lvsguard pressure")
	}
	if before, during := t.Clients.Before.Completion, t.Clients.During.Completion; dropped(t.Record) && before != nil && during != nil && *before-*during >= 0.05 {
		if file := t.packetFile(); file != "" {
			add("Clients felt it although it was dropped. See how their handshakes ended in the packets.", "lvsguard handshakes -r "+file)
		}
	}
	for _, g := range t.Gaps {
		if g.To.Sub(g.From) < late { // a restart
			continue
		}
		add("No guard ran for "+Took(g.To.Sub(g.From))+". See why.",
			"journalctl -u lvsguard -S '"+g.From.Add(-time.Minute).UTC().Format("2006-01-02 15:04:05 UTC")+"'")
		break
	}
	if t.Look != nil && t.Look.Sources.Spoofed == "" {
		if p, ok := t.topPrefix(); ok {
			add(fmt.Sprintf("%s of the flood came from %s, and nothing says that it is spoofed. Tell that network.", Percent(p.Flood), p.Value), "whois "+strings.Split(p.Value, "/")[0])
		}
	}
	if len(steps) == 0 {
		switch {
		case t.Flooded == nil:
			add("Nothing needs to change: it was over before it counted as a flood.")
		case dropped(t.Record) && !byHand:
			add("Nothing needs to change: it was seen, dropped and over without you.")
		case dropped(t.Record):
			add("Nothing needs to change.")
		default:
			add("Too little is known of it to say what would have helped. See what the guard misses on this host.", "lvsguard doctor")
		}
	}
	if !t.Pinned {
		add("Keep this record: the oldest make room for new ones, a pinned one stays.", "lvsguard incidents pin "+id)
	}
	return steps
}

// topPrefix is the narrowest prefix from which most of the flood came.
func (t teller) topPrefix() (incident.Value, bool) {
	lengths := slices.Sorted(maps.Keys(t.Look.Sources.Prefixes))
	slices.Reverse(lengths)
	for _, n := range lengths {
		for _, v := range t.Look.Sources.Prefixes[n] {
			if _, err := netip.ParsePrefix(v.Value); err == nil && v.Flood >= 0.5 && (v.Good == nil || *v.Good < v.Flood/10) {
				return v, true
			}
		}
	}
	return incident.Value{}, false
}

// Happened is a line of what happened, in order.
type Happened struct {
	Time time.Time
	Kind string
	Text string
	By   string
}

// Happenings are the actions of r, in order, with its milestones among them.
func Happenings(r *incident.Record) []Happened {
	var all []Happened
	mark := func(at *time.Time, text string) {
		if at != nil {
			all = append(all, Happened{Time: *at, Kind: "incident", Text: text})
		}
	}
	mark(&r.Onset, "onset")
	mark(r.Flooded, "it counts as a flood")
	mark(r.FirstDrop, "the first drop")
	mark(r.Ended, "over")
	for _, g := range r.Gaps {
		all = append(all, Happened{Time: g.From, Kind: "gap", Text: fmt.Sprintf("no guard for %s: %s", Took(g.To.Sub(g.From)), Clean(g.Reason))})
	}
	for _, a := range r.Actions {
		all = append(all, Happened{Time: a.Time, Kind: Clean(a.Kind), Text: Clean(a.Text), By: Clean(a.By)})
	}
	slices.SortStableFunc(all, func(a, b Happened) int { return cmp.Or(a.Time.Compare(b.Time)) })
	return all
}

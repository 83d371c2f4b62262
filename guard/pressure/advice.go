package pressure

import (
	"fmt"
	"time"
)

// Defence are the settings with which IPVS defends itself against a flood
// (net.ipv4.vs.*, Documentation/networking/ipvs-sysctl.rst). Nil: not known.
type Defence struct {
	DropEntry  *int // 0 off, 1 automatic, 2 automatic and active now, 3 always
	DropPacket *int
	SecureTCP  *int
	// AmemThresh is the number of free pages below which the automatic modes
	// act.
	AmemThresh *uint64
}

// active says whether a setting acts now because memory is short.
func active(mode *int) bool { return mode != nil && *mode == 2 }

// An AdviceInput is what advice is given on.
type AdviceInput struct {
	Defence Defence
	// OneWay: there are services whose answers do not pass the director (DR or
	// TUN).
	OneWay   bool
	Memory   Memory
	PageSize uint64 // bytes; 0: 4096
}

// A Finding is a setting that is bad for the host's work.
type Finding struct {
	Severity Level  `json:"severity"` // LevelWarning or LevelCritical
	What     string `json:"what"`     // how it is
	Why      string `json:"why"`      // why that is bad
	Remedy   string `json:"remedy"`   // the line that mends it, and its price
}

// Advice says what is set badly on a director. A setting that is not known gets
// none.
func Advice(in AdviceInput) []Finding {
	if in.PageSize == 0 {
		in.PageSize = 4096
	}
	d := in.Defence
	found := make([]Finding, 0)
	add := func(f Finding) { found = append(found, f) }

	if in.OneWay && d.SecureTCP != nil && *d.SecureTCP != 0 {
		add(Finding{
			Severity: LevelWarning,
			What:     fmt.Sprintf("net.ipv4.vs.secure_tcp is %d, and there are DR or TUN services", *d.SecureTCP),
			Why:      "the director sees only the client's half there, and with secure_tcp active half-open entries live 120 s and not 60: a flood's table becomes twice as large",
			Remedy:   "sysctl -w net.ipv4.vs.secure_tcp=0",
		})
	}
	pages, enough := in.wantedPages()
	switch {
	case d.DropEntry == nil:
	case *d.DropEntry == 0:
		add(Finding{
			Severity: LevelWarning,
			What:     "net.ipv4.vs.drop_entry is 0",
			Why:      "nothing makes room when a flood has taken the memory: new connections are refused until entries expire, or the host dies",
			Remedy: fmt.Sprintf("sysctl -w net.ipv4.vs.drop_entry=1 net.ipv4.vs.amemthresh=%s (amemthresh is at least twice vm.min_free_kbytes, or the kernel is out of memory first). "+
				"Its price: while it acts, young established connections are dropped too", pages),
		})
	case *d.DropEntry == 3:
		add(Finding{
			Severity: LevelWarning,
			What:     "net.ipv4.vs.drop_entry is 3",
			Why:      "entries are dropped all the time, young established ones too, with memory short or not",
			Remedy:   "when the flood is over: sysctl -w net.ipv4.vs.drop_entry=1",
		})
	case !enough:
		add(Finding{
			Severity: LevelWarning,
			What:     fmt.Sprintf("net.ipv4.vs.amemthresh is %d pages, less than twice vm.min_free_kbytes", *d.AmemThresh),
			Why:      "the automatic drop_entry begins when the kernel is down to its reserve, which is too late",
			Remedy:   "sysctl -w net.ipv4.vs.amemthresh=" + pages,
		})
	}
	if (d.automatic() || d.DropEntry != nil && *d.DropEntry == 0) && in.Memory.highMemory() {
		add(Finding{
			Severity: LevelWarning,
			What:     "this kernel has memory that it cannot use for itself, to which IPVS's automatic defence is blind",
			Why:      "the automatic modes count that memory as free: connections are refused for want of low memory while they still wait",
			Remedy:   "use a 64-bit kernel; until then let lvsguard arm by itself (mode: auto), and under a flood that it does not see sysctl -w net.ipv4.vs.drop_entry=3, and back to 1 afterwards",
		})
	}
	for _, s := range d.settings() {
		if active(s.mode) {
			add(Finding{
				Severity: LevelCritical,
				What:     fmt.Sprintf("net.ipv4.vs.%s is automatic and active now", s.name),
				Why:      "IPVS has found memory short, and " + s.act,
				Remedy:   "find what takes the memory: lvsguard pressure; it becomes 1 again when the memory is back",
			})
		}
	}
	return found
}

// wantedPages is the amemthresh that is advised, and whether the present one is
// enough.
func (in AdviceInput) wantedPages() (pages string, enough bool) {
	now := in.Defence.AmemThresh
	if in.Memory.MinFree == nil {
		return "$((2 * $(sysctl -n vm.min_free_kbytes) * 1024 / $(getconf PAGESIZE)))", true
	}
	wanted := 2 * *in.Memory.MinFree / in.PageSize
	if now != nil && *now > wanted {
		wanted = *now
	}
	return fmt.Sprint(wanted), now == nil || *now >= wanted
}

type defenceSetting struct {
	name string
	mode *int
	act  string
}

func (d Defence) settings() []defenceSetting {
	return []defenceSetting{
		{"drop_entry", d.DropEntry, "drops entries, young established ones too"},
		{"drop_packet", d.DropPacket, "drops some of the packets that it would forward"},
		{"secure_tcp", d.SecureTCP, "uses other timeouts for TCP"},
	}
}

func (d Defence) automatic() bool {
	for _, s := range d.settings() {
		if s.mode != nil && (*s.mode == 1 || *s.mode == 2) {
			return true
		}
	}
	return false
}

// DefenceEvents tells which settings have begun to act, or have ended, between
// two looks.
func DefenceEvents(now time.Time, before, after Defence) []Event {
	var events []Event
	was := before.settings()
	for i, s := range after.settings() {
		if s.mode == nil || active(s.mode) == active(was[i].mode) {
			continue
		}
		e := Event{Time: now, Kind: EventDefence, Subject: s.name, Count: 1}
		if active(s.mode) {
			e.Text = fmt.Sprintf("net.ipv4.vs.%s is active now: IPVS has found memory short, and %s", s.name, s.act)
		} else {
			e.Text = fmt.Sprintf("net.ipv4.vs.%s is active no more", s.name)
		}
		events = append(events, e)
	}
	return events
}

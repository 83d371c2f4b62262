package alert

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
)

var start = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func at(second int) time.Time { return start.Add(time.Duration(second) * time.Second) }

// calm is a status of a guard that sees nothing of note.
func calm(now time.Time) *guard.Status {
	return &guard.Status{Version: "test", Time: now, StartedAt: start, Mode: guard.Auto, Capture: &guard.Capture{}, Pressure: &guard.PressureStatus{}, Unknown: map[guard.Source]string{}}
}

func service(t testing.TB, s *guard.Status, name, project string, verdict guard.State) *guard.ServiceStatus {
	t.Helper()
	k, err := ipvs.ParseKey(name)
	if err != nil {
		t.Fatal(err)
	}
	s.Services = append(s.Services, guard.ServiceStatus{Service: k, Project: project, Verdict: verdict, Reason: "the reason"})
	return &s.Services[len(s.Services)-1]
}

func underFlood(t testing.TB, s *guard.Status, name, project string, rate float64) *guard.ServiceStatus {
	svc := service(t, s, name, project, guard.Flood)
	svc.Suspect, svc.Reason = &rate, fmt.Sprintf("%.0f of %.0f SYN/s bear a signature", rate, rate)
	return svc
}

// filter adds the figures of one filter: how many handshakes have ended, and how
// many of them with a retransmitted SYN, since the capture began.
func filter(s *guard.Status, name, project string, ended, dup int) {
	if len(s.Handshakes) == 0 {
		s.Handshakes = append(s.Handshakes, handshake.Figures{Name: handshake.All})
	}
	s.Handshakes = append(s.Handshakes, handshake.Figures{
		Name: name, Project: project, Success: handshake.Successes{Total: uint64(ended), DupSYN: uint64(dup)},
	})
}

func parse(t testing.TB, text string) guard.AlertsConfig {
	t.Helper()
	c, err := guard.ParseConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return c.Alerts
}

// play evaluates a status a second, and gives a line for what is told.
func play(e *Engine, from, to int, status func(second int) *guard.Status) []string {
	var told []string
	for second := from; second <= to; second++ {
		s := status(second)
		if s == nil {
			continue
		}
		for _, n := range e.Evaluate(at(second), s) {
			told = append(told, fmt.Sprintf("%d %s %s", second, n.State, headline(&n)))
		}
	}
	return told
}

func between(second, from, to int) bool { return second >= from && second < to }

func TestEngine(t *testing.T) {
	ramp := func(second, from, to, perSecond int) int { return max(0, min(second, to)-from) * perSecond }
	tests := []struct {
		name, config string
		to           int
		status       func(second int, s *guard.Status)
		want         []string
	}{
		{"nothing", "", 600, func(int, *guard.Status) {}, nil},
		{"a flood: one message when it begins, one when it is over", "", 400, func(second int, s *guard.Status) {
			if between(second, 10, 100) {
				svc := underFlood(t, s, "192.0.2.1:80", "shop", 5000+float64(second%50))
				if second >= 11 {
					svc.Lease = &guard.Lease{By: guard.ByAuto, Since: at(11)}
				}
			} else {
				service(t, s, "192.0.2.1:80", "shop", guard.Calm)
			}
		}, []string{
			"13 firing [CRITICAL] shop: flood on 192.0.2.1:80 and 1 more",
			"109 resolved [RESOLVED] shop: flood on 192.0.2.1:80 and 1 more, over after 1m39s",
		}},
		{"it is repeated while it lasts", "alerts: {repeat: 1h}", 3 * 3600, func(second int, s *guard.Status) {
			if second >= 10 {
				underFlood(t, s, "192.0.2.1:80", "shop", 5000)
			}
		}, []string{
			"13 firing [CRITICAL] shop: flood on 192.0.2.1:80",
			"3613 repeated [CRITICAL] shop: flood on 192.0.2.1:80, for 1h now",
			"7213 repeated [CRITICAL] shop: flood on 192.0.2.1:80, for 2h now",
		}},
		{"projects are told apart", "", 60, func(second int, s *guard.Status) {
			if second >= 10 {
				underFlood(t, s, "192.0.2.1:80", "shop", 5000)
				underFlood(t, s, "192.0.2.2:25", "mail", 5000)
			}
		}, []string{
			"13 firing [CRITICAL] mail: flood on 192.0.2.2:25",
			"13 firing [CRITICAL] shop: flood on 192.0.2.1:80",
		}},
		{"what has no project is the host's", "", 60, func(second int, s *guard.Status) {
			if second >= 10 {
				underFlood(t, s, "192.0.2.1:80", "", 5000)
			}
		}, []string{"13 firing [CRITICAL] host=lb1: flood on 192.0.2.1:80"}},
		{"the sum of a project's filters is over, none of them is", "", 60, func(second int, s *guard.Status) {
			filter(s, "shop/api", "shop", ramp(second, 10, 40, 10), ramp(second, 10, 40, 1))
			filter(s, "shop/db", "shop", ramp(second, 10, 40, 10), ramp(second, 10, 40, 1))
			filter(s, "mail/in", "mail", ramp(second, 10, 40, 10), ramp(second, 10, 40, 1))
		}, []string{"39 firing [WARNING] shop: syn retransmitted on shop/api and 1 more"}},
		{"many retransmissions that are a small share", "", 60, func(second int, s *guard.Status) {
			filter(s, "shop/api", "shop", ramp(second, 10, 40, 1000), ramp(second, 10, 40, 40))
		}, nil},
		{"a window is over by itself", "", 300, func(second int, s *guard.Status) {
			filter(s, "shop/api", "shop", 1000+ramp(second, 10, 20, 100), 500+ramp(second, 10, 20, 10))
		}, []string{
			"19 firing [WARNING] shop: syn retransmitted on shop/api",
			"133 resolved [RESOLVED] shop: syn retransmitted on shop/api, over after 1m57s",
		}},
		{"figures that begin anew are no increase, nor a negative one", "", 300, func(second int, s *guard.Status) {
			if second < 100 {
				filter(s, "shop/api", "shop", 1_000_000, 500_000)
			} else {
				filter(s, "shop/api", "shop", 900, 300)
			}
		}, nil},
		{"figures that were there before the guard looked are no increase", "", 60, func(_ int, s *guard.Status) {
			filter(s, "shop/api", "shop", 1_000_000, 500_000)
		}, nil},
		{"an increase while nobody looked is nobody's", "", 300, func(second int, s *guard.Status) {
			if between(second, 50, 80) {
				s.Capture, s.Unknown[guard.SourceCapture] = nil, "gone"
				return
			}
			filter(s, "shop/api", "shop", ramp(second, 50, 80, 100), ramp(second, 50, 80, 50))
		}, nil},
		{"everything counts only where nothing is told apart", "", 60, func(second int, s *guard.Status) {
			filter(s, "shop/api", "shop", 0, 0)
			s.Handshakes[0].Success = handshake.Successes{Total: uint64(second * 100), DupSYN: uint64(second * 50)}
		}, nil},
		{"a web server without filters", "", 30, func(second int, s *guard.Status) {
			s.Handshakes = []handshake.Figures{{Name: handshake.All, Success: handshake.Successes{Total: uint64(second * 100), DupSYN: uint64(second * 50)}}}
		}, []string{"5 firing [WARNING] host=lb1: syn retransmitted on all"}},
		{"a service and a filter of one project are not added up", "", 60, func(second int, s *guard.Status) {
			svc := service(t, s, "192.0.2.1:80", "shop", guard.Calm)
			svc.Handshakes = &handshake.Figures{Success: handshake.Successes{Total: uint64(ramp(second, 10, 40, 10)), DupSYN: uint64(ramp(second, 10, 40, 1))}}
			filter(s, "shop/api", "shop", ramp(second, 10, 40, 10), ramp(second, 10, 40, 1))
		}, nil},
		{"unknown is not over, for a while", "", 1000, func(second int, s *guard.Status) {
			switch {
			case between(second, 10, 20):
				underFlood(t, s, "192.0.2.1:80", "shop", 5000)
			case second >= 20:
				service(t, s, "192.0.2.1:80", "shop", guard.Unknown)
			}
		}, []string{
			"13 firing [CRITICAL] shop: flood on 192.0.2.1:80",
			"621 resolved [RESOLVED] shop: flood on 192.0.2.1:80, over after 10m11s",
		}},
		{"unknown does not fire", "", 100, func(second int, s *guard.Status) {
			service(t, s, "192.0.2.1:80", "shop", guard.Unknown)
		}, nil},
		{"graver: another message; milder: none", "", 400, func(second int, s *guard.Status) {
			r := pressure.Resource{Kind: pressure.KindMemory, Name: "memory", Level: pressure.LevelOK, Reason: "fine", Share: new(0.1)}
			switch {
			case between(second, 10, 60), between(second, 100, 150):
				r.Level, r.Reason, r.Share = pressure.LevelWarning, "80 % used", new(0.8)
			case between(second, 60, 100):
				r.Level, r.Reason, r.Share = pressure.LevelCritical, "95 % used", new(0.95)
			}
			s.Pressure.Resources = []pressure.Resource{r}
		}, []string{
			"13 firing [WARNING] host=lb1: pressure warning on memory",
			"63 firing [CRITICAL] host=lb1: pressure critical on memory and 1 more",
			"209 resolved [RESOLVED] host=lb1: pressure critical on memory and 1 more, over after 3m19s",
		}},
		{"another rule joins: after a minute", "", 200, func(second int, s *guard.Status) {
			if second >= 10 {
				underFlood(t, s, "192.0.2.1:80", "shop", 5000)
			}
			if second >= 20 {
				s.Services[0].Lease = &guard.Lease{By: guard.ByOperator, Since: at(20)}
			}
		}, []string{
			"13 firing [CRITICAL] shop: flood on 192.0.2.1:80",
			"73 firing [CRITICAL] shop: flood on 192.0.2.1:80 and 1 more",
		}},
		{"more services join one after the other: after five minutes", "", 700, func(second int, s *guard.Status) {
			for i := range 20 {
				if second >= 10+30*i {
					underFlood(t, s, fmt.Sprintf("192.0.2.1:%d", 80+i), "shop", 5000)
				}
			}
		}, []string{
			"13 firing [CRITICAL] shop: flood on 192.0.2.1:80",
			"313 firing [CRITICAL] shop: flood on 192.0.2.1:80 and 10 more",
			"613 firing [CRITICAL] shop: flood on 192.0.2.1:80 and 19 more",
		}},
		{"a standby is armed as a precaution", "", 60, func(_ int, s *guard.Status) {
			service(t, s, "192.0.2.1:80", "shop", guard.Calm).Lease = &guard.Lease{By: guard.ByPrearm}
		}, nil},
		{"a role changes", "", 400, func(second int, s *guard.Status) {
			s.Roles = []guard.RoleStatus{{Instance: "VI_1", Role: "BACKUP"}}
			if second >= 10 {
				s.Roles[0].Role, s.Roles[0].Changes = "MASTER", 1
			}
		}, []string{
			"13 firing [WARNING] host=lb1: role change on VI_1",
			"319 resolved [RESOLVED] host=lb1: role change on VI_1, over after 5m9s",
		}},
		{"a source is not known for a minute", "", 200, func(second int, s *guard.Status) {
			if between(second, 10, 50) || second >= 100 {
				s.Unknown[guard.SourceNft] = "netlink refused"
			}
		}, []string{"163 firing [WARNING] host=lb1: source unknown on nft"}},
		{"the guard in trouble", "", 15, func(second int, s *guard.Status) {
			if second < 5 {
				return
			}
			s.PausedUntil, s.ConfigError = new(at(600)), new("line 3: unknown key")
			s.TableLosses = 3
		}, []string{"8 firing [CRITICAL] host=lb1: drops paused and 2 more"}},
		{"the guard hangs", "", 200, func(second int, s *guard.Status) {
			underFlood(t, s, "192.0.2.1:80", "shop", 5000)
			s.Time = at(min(second, 20))
		}, []string{
			"3 firing [CRITICAL] shop: flood on 192.0.2.1:80",
			"54 firing [CRITICAL] host=lb1: guard hangs",
		}},
		{"the capture loses packets", "", 40, func(second int, s *guard.Status) {
			s.Capture.Report = capture.Report{Handed: uint64(second * 1000), Dropped: uint64(max(0, second-10) * 20)}
		}, []string{"24 firing [WARNING] host=lb1: capture lossy"}},
		{"the kernel has said something", "", 400, func(second int, s *guard.Status) {
			if second >= 10 {
				s.Pressure.Events = []pressure.Event{{Time: at(10), Kind: pressure.EventOOMKill, Subject: "nginx", Text: "Out of memory: Killed process 1 (nginx)", Count: 1}}
			}
		}, []string{
			"13 firing [WARNING] host=lb1: kernel on oom_kill",
			"319 resolved [RESOLVED] host=lb1: kernel on oom_kill, over after 5m9s",
		}},
		{"for: it must last", "alerts: {rules: [{name: low, figure: completion, below: 0.5, for: 30s, keep: 20s}]}", 200, func(second int, s *guard.Status) {
			c := 0.99
			if between(second, 10, 35) || between(second, 100, 150) {
				c = 0.4
			}
			service(t, s, "192.0.2.1:80", "shop", guard.Calm).Completion = &c
		}, []string{
			"133 firing [WARNING] shop: low on 192.0.2.1:80",
			"169 resolved [RESOLVED] shop: low on 192.0.2.1:80, over after 39s",
		}},
		{"switched off, and matched", `alerts: {rules: [{name: armed, enabled: false}, {name: flood, match: {service: "!192.0.2.9:*"}}]}`, 60, func(_ int, s *guard.Status) {
			underFlood(t, s, "192.0.2.9:80", "shop", 5000).Lease = &guard.Lease{By: guard.ByAuto}
		}, nil},
		{"grouped by rule and host", "alerts: {group_by: [host, rule]}", 60, func(second int, s *guard.Status) {
			underFlood(t, s, "192.0.2.1:80", "shop", 5000)
			underFlood(t, s, "192.0.2.2:80", "mail", 5000)
		}, []string{"3 firing [CRITICAL] host=lb1,rule=flood: flood on 192.0.2.1:80 and 1 more"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := NewEngine("lb1", parse(t, tt.config))
			got := play(e, 0, tt.to, func(second int) *guard.Status {
				s := calm(at(second))
				tt.status(second, s)
				return s
			})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
}

// A thousand alerts at once in ten projects are ten messages, and ten when they
// are over.
func TestThousandAlerts(t *testing.T) {
	e := NewEngine("lb1", parse(t, ""))
	told := play(e, 0, 600, func(second int) *guard.Status {
		s := calm(at(second))
		for i := range 1000 {
			if between(second, 10+i%3, 100+i%7) {
				underFlood(t, s, fmt.Sprintf("192.0.%d.%d:80", i/250, i%250), fmt.Sprintf("p%d", i%10), 5000)
			}
		}
		return s
	})
	if len(told) != 20 {
		t.Errorf("%d messages, want 20:\n%s", len(told), strings.Join(told, "\n"))
	}
	if e.members != 0 || len(e.groups) != 0 {
		t.Errorf("when all is over, %d alerts in %d groups are remembered", e.members, len(e.groups))
	}
}

// What flaps is told less and less, and no less is known of it.
func TestFlapping(t *testing.T) {
	e := NewEngine("lb1", parse(t, ""))
	told := play(e, 0, 4*3600, func(second int) *guard.Status {
		s := calm(at(second))
		if second%60 < 20 {
			underFlood(t, s, "192.0.2.1:80", "shop", 5000)
		}
		return s
	})
	if len(told) > 10 {
		t.Errorf("%d messages in 4 hours of flapping:\n%s", len(told), strings.Join(told, "\n"))
	}
}

// What there is no room for is counted, and memory is bounded.
func TestTooMany(t *testing.T) {
	e := NewEngine("lb1", parse(t, "alerts: {rules: [{name: syn, figure: syn_per_second, above: 1, by: [service]}]}"))
	s := calm(at(0))
	for i := range 6000 {
		svc := underFlood(t, s, fmt.Sprintf("192.%d.%d.%d:80", i/40000, i/200%200, i%200), fmt.Sprintf("p%d", i%3000), 5000)
		svc.SYN = new(5000.0)
	}
	for second := range 20 {
		s.Time = at(second)
		e.Evaluate(at(second), s)
	}
	if e.members > maxMembers {
		t.Errorf("%d alerts are remembered", e.members)
	}
	if r := e.Report(at(20), guard.Auto); r.LeftOut < 4000 {
		t.Errorf("%d are said to be left out", r.LeftOut)
	}
	for _, r := range e.rules {
		if len(r.subjects) > maxSubjects || len(r.series) > maxSeries {
			t.Errorf("%s: %d subjects, %d series", r.Name, len(r.subjects), len(r.series))
		}
	}
}

func TestNotification(t *testing.T) {
	e := NewEngine("lb1", parse(t, ""))
	var last Notification
	for second := range 30 {
		s := calm(at(second))
		s.Mode = guard.Observe
		filter(s, "shop/api", "shop", second*100, second*40)
		underFlood(t, s, "192.0.2.1:80", "shop", 5000-float64(second))
		for _, n := range e.Evaluate(at(second), s) {
			last = n
		}
	}
	want := Notification{
		ID: "lb1/20260102T120000.000000000Z/project=shop", Group: "project=shop", Labels: map[string]string{"project": "shop"},
		State: Firing, Severity: Critical, Host: "lb1", Time: at(3), Since: at(0), Subjects: 2,
		Actions: []string{"only observed, nothing is dropped (lvsguard arm 192.0.2.1:80)"}, Look: "lvsguard status",
		Alerts: []Alert{
			{
				Rule: "flood", Severity: Critical, Subject: "192.0.2.1:80", Summary: "4997 of 4997 SYN/s bear a signature", Value: 4997, Peak: 5000,
				Unit: "/s", Labels: map[string]string{"project": "shop", "service": "192.0.2.1:80"}, Since: at(0),
			},
			{
				Rule: "syn-retransmitted", Severity: Warning, Subject: "shop/api",
				Summary: "120 handshakes with a retransmitted SYN in 1m, 40% of those that ended (at least 5%)",
				Value:   120, Peak: 120, Threshold: 50, Labels: map[string]string{"project": "shop"}, Since: at(2),
			},
		},
	}
	if diff := cmp.Diff(want, last); diff != "" {
		t.Errorf("notification (-want +got):\n%s", diff)
	}
	if _, err := json.Marshal(last); err != nil {
		t.Error(err)
	}
}

// A rule that is changed or goes ends what it told; one that stays knows what it
// knew.
func TestReload(t *testing.T) {
	e := NewEngine("lb1", parse(t, ""))
	status := func(second int) *guard.Status {
		s := calm(at(second))
		underFlood(t, s, "192.0.2.1:80", "shop", 5000)
		return s
	}
	play(e, 0, 10, status)
	e.SetConfig(at(10), parse(t, "alerts: {repeat: 1h, rules: [{name: armed, enabled: false}]}"))
	if got := play(e, 11, 300, status); got != nil {
		t.Errorf("a reload that leaves the rule: %v", got)
	}
	e.SetConfig(at(300), parse(t, "alerts: {rules: [{name: flood, enabled: false}]}"))
	if diff := cmp.Diff([]string{"301 resolved [RESOLVED] shop: flood on 192.0.2.1:80, over after 5m1s"}, play(e, 301, 400, status)); diff != "" {
		t.Errorf("after a reload without the rule (-want +got):\n%s", diff)
	}
}

// A restart repeats nothing and forgets nothing, wherever it comes.
func TestRestart(t *testing.T) {
	status := func(second int) *guard.Status {
		s := calm(at(second))
		if between(second, 50, 200) {
			underFlood(t, s, "192.0.2.1:80", "shop", 5000)
		} else {
			service(t, s, "192.0.2.1:80", "shop", guard.Calm)
		}
		return s
	}
	for _, tt := range []struct {
		name     string
		from, to int
	}{
		{"before it begins", 40, 42}, {"while it is gathered", 51, 52}, {"right after it was told", 53, 54},
		{"while it lasts", 100, 102}, {"before it is over", 198, 199}, {"when it is over", 199, 205}, {"over its end", 150, 260}, {"after its end", 400, 402},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := parse(t, "")
			before := NewEngine("lb1", cfg)
			told := play(before, 0, tt.from, status)
			dir := t.TempDir()
			if err := (saved{Groups: before.save()}).store(dir); err != nil {
				t.Fatal(err)
			}
			old, err := loadState(dir)
			if err != nil {
				t.Fatal(err)
			}
			after := NewEngine("lb1", cfg)
			after.restore(at(tt.to), old.Groups)
			told = append(told, play(after, tt.to, 900, status)...)
			var states []string
			for _, line := range told {
				states = append(states, strings.Fields(line)[1])
			}
			if diff := cmp.Diff([]string{"firing", "resolved"}, states); diff != "" {
				t.Errorf("told %s (-want +got):\n%s", strings.Join(told, "\n"), diff)
			}
		})
	}
}

// A counter has no increase yet after a restart. What it made fire goes on until it
// could have one again.
func TestRestartOfCounters(t *testing.T) {
	cfg := parse(t, "")
	status := func(second int) *guard.Status {
		s := calm(at(second))
		filter(s, "shop/api", "shop", second*10, min(second, 300)*2)
		return s
	}
	before := NewEngine("lb1", cfg)
	told := play(before, 0, 100, status)
	after := NewEngine("lb1", cfg)
	after.restore(at(103), before.save())
	told = append(told, play(after, 103, 600, status)...)
	want := []string{
		"29 firing [WARNING] shop: syn retransmitted on shop/api",
		"394 resolved [RESOLVED] shop: syn retransmitted on shop/api, over after 6m8s",
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// A state that is no state is as if there were none, and says so.
func TestLoadState(t *testing.T) {
	dir := t.TempDir()
	if s, err := loadState(dir); err != nil || len(s.Groups) != 0 {
		t.Errorf("without a file: %v, %v", s, err)
	}
	for name, text := range map[string]string{
		"empty": "", "garbage": "\x00\x01", "cut": `{"format":1,"groups":[{"id":"a`, "another format": `{"format":9}`, "a list": "[]",
	} {
		if err := os.WriteFile(dir+"/"+stateName, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := loadState(dir); err == nil || len(s.Groups) != 0 || !strings.Contains(err.Error(), stateName) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

// Whatever stands in the file, the guard goes on, and what is over is told.
func FuzzState(f *testing.F) {
	e := NewEngine("lb1", parse(f, ""))
	for second := range 10 {
		s := calm(at(second))
		underFlood(f, s, "192.0.2.1:80", "shop", 5000)
		e.Evaluate(at(second), s)
	}
	text, err := json.Marshal(saved{Format: stateFormat, Groups: e.save()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"format":1,"groups":[{"id":"a","group":"b","members":[{"rule":"flood","figure":"flood","severity":"critical"}]}]}`))
	f.Add([]byte(`{"format":1,"groups":[{"id":"a","group":"host=lb1","since":"9999-01-01T00:00:00Z","pause":-5,"members":[{"rule":"armed","figure":"armed","severity":"warning","labels":{"service":"x"}}]}]}`))
	cfg := parse(f, "")
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseState(text)
		if err != nil {
			return
		}
		e := NewEngine("lb1", cfg)
		e.restore(at(0), s.Groups)
		for _, n := range e.Firing(at(0), guard.Auto) {
			headline(&n)
		}
		// Far enough for the longest pause.
		for second := 0; second <= 7200; second += 9 {
			e.Evaluate(at(second), calm(at(second)))
		}
		if len(e.groups) != 0 || e.members != 0 {
			t.Errorf("of nothing that fires, %d groups and %d alerts are left", len(e.groups), e.members)
		}
	})
}

// Every figure of the catalogue can be read of a guard that knows nothing, and of
// one that knows everything; its labels are those that it says it has.
func TestFigures(t *testing.T) {
	full := calm(at(0))
	full.Project = "infra"
	svc := underFlood(t, full, "192.0.2.1:80", "shop", 5000)
	svc.Instance, svc.Handshakes = new("VI_1"), &handshake.Figures{}
	filter(full, "shop/api", "shop", 1, 1)
	full.Roles = []guard.RoleStatus{{Instance: "VI_1"}}
	full.Pressure.Resources = []pressure.Resource{{Name: "memory", Kind: pressure.KindMemory}}
	full.Pressure.Events = []pressure.Event{{Time: at(0), Kind: pressure.EventOOM}}
	full.Unknown[guard.SourceNft] = "why"
	full.Servers = []guard.RealServer{{Figures: &pressure.Server{}, Services: []guard.ServedHere{{Removed: true}}}}
	names := make(map[string]bool)
	for _, f := range guard.AlertFigures() {
		if names[f.Name] {
			t.Errorf("%s is there twice", f.Name)
		}
		names[f.Name] = true
		if f.Help == "" || f.What == "" || f.Look == "" || f.Kind == "" || len(f.Labels) == 0 {
			t.Errorf("%s is not whole: %+v", f.Name, f)
		}
		f.Read(&guard.Status{}, at(0), func(guard.Reading) {})
		seen := make(map[string]bool)
		if why := f.Read(full, at(0), func(in guard.Reading) {
			maps.Copy(seen, setOf(maps.Keys(in.Labels.Map())))
		}); why != "" {
			t.Errorf("%s is unknown to a guard that knows everything: %s", f.Name, why)
		}
		if diff := cmp.Diff(setOf(slices.Values(f.Labels)), seen); diff != "" {
			t.Errorf("labels of %s (-says +has):\n%s", f.Name, diff)
		}
	}
}

func setOf(all iter.Seq[string]) map[string]bool {
	set := make(map[string]bool)
	for k := range all {
		set[k] = true
	}
	return set
}

// A look at a large director must cost next to nothing.
func BenchmarkEvaluate(b *testing.B) {
	e := NewEngine("lb1", parse(b, ""))
	s := calm(at(0))
	for i := range 300 {
		svc := service(b, s, fmt.Sprintf("192.0.2.%d:80", i%250+1), fmt.Sprintf("p%d", i%10), guard.Calm)
		svc.Handshakes = &handshake.Figures{}
	}
	for i := range 64 {
		filter(s, fmt.Sprintf("p%d/f%d", i%10, i), fmt.Sprintf("p%d", i%10), 0, 0)
	}
	for i := range 1000 {
		s.Servers = append(s.Servers, guard.RealServer{Figures: &pressure.Server{Source: fmt.Sprint(i)}})
	}
	b.ReportAllocs()
	for second := 0; b.Loop(); second++ {
		s.Time = at(second)
		for i := range s.Services {
			s.Services[i].Handshakes.Success.Total += 100
			s.Services[i].Handshakes.Success.DupSYN++
		}
		e.Evaluate(at(second), s)
	}
}

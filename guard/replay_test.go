package guard

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/internal/goldenfile"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// TestReplay plays the scripts in testdata/replay through detector and policy,
// second by second, and compares what changes with the golden beside each.
// Every sample takes the way over JSON, as a recorded one does.
//
// A line of a script is a time and a step:
//
//	0s   service SERVICE [INSTANCE]    a service appears
//	0s   gone SERVICE                  and goes
//	0s   load SERVICE SYN SUSPECT      packets a second from now on
//	0s   entries SERVICE N HALFOPEN    its part of the connection table
//	0s   role INSTANCE STATE
//	0s   unknown                       the counters cannot be read
//	0s   known
//	0s   zeroed                        the table is made anew: counters begin at 0
//	0s   mode auto|observe
//	0s   arm SERVICE DURATION
//	0s   disarm SERVICE
//	0s   adopt SERVICE DURATION        a lease was found in the kernel
//	0s   rebuilt                       somebody took the table away
//	0s   end
func TestReplay(t *testing.T) {
	scripts, err := filepath.Glob("testdata/replay/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range scripts {
		name := strings.TrimSuffix(filepath.Base(path), ".txt")
		t.Run(name, func(t *testing.T) {
			goldenfile.Check(t, strings.TrimSuffix(path, ".txt")+".golden", playScript(t, path))
		})
	}
}

// site is the world that a script describes.
type site struct {
	services []Service
	instance map[ipvs.Key]string
	load     map[netip.AddrPort]Counters // a second
	total    map[netip.AddrPort]Counters
	roles    []Role
	unknown  bool
}

func playScript(t *testing.T, path string) string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	steps := make(map[int][][]string)
	end := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		at, err := time.ParseDuration(words[0])
		if err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		end = int(at.Seconds())
		steps[end] = append(steps[end], words[1:])
	}

	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	cfg := DefaultConfig()
	detector := NewDetector(cfg)
	policy := NewPolicy(Observe, cfg.Prearm)
	w := &site{instance: make(map[ipvs.Key]string), load: make(map[netip.AddrPort]Counters), total: make(map[netip.AddrPort]Counters)}
	var out strings.Builder
	states := make(map[ipvs.Key]State)
	for second := range end {
		now := start.Add(time.Duration(second) * time.Second)
		for _, words := range steps[second] {
			w.step(t, words, now, policy)
		}
		sample := w.sample(t, now)
		verdicts := detector.Evaluate(now, sample)
		for _, v := range verdicts {
			if states[v.Service] != v.State {
				fmt.Fprintf(&out, "%4ds %-18s %s: %s\n", second, v.Service, v.State, v.Reason)
				states[v.Service] = v.State
			}
		}
		for _, a := range policy.Decide(now, verdicts) {
			what := fmt.Sprintf("ARM %s by %s", a.Timeout.Round(time.Second), a.By)
			if a.Timeout == 0 {
				what = fmt.Sprintf("DISARM, was by %s", a.By)
			}
			if a.Renewal {
				what = fmt.Sprintf("RENEW %s by %s", a.Timeout.Round(time.Second), a.By)
			}
			fmt.Fprintf(&out, "%4ds %-18s %s: %s\n", second, a.Service, what, a.Reason)
		}
		for at, load := range w.load {
			c := w.total[at]
			c.SYN += load.SYN
			c.Suspect += load.Suspect
			w.total[at] = c
		}
	}
	return out.String()
}

func (w *site) step(t *testing.T, words []string, now time.Time, p *Policy) {
	t.Helper()
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	key := func(s string) ipvs.Key {
		k, err := ipvs.ParseKey(s)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	duration := func(s string) time.Duration {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	service := func(s string) *Service {
		k := key(s)
		i := slices.IndexFunc(w.services, func(svc Service) bool { return svc.Key == k })
		if i < 0 {
			t.Fatalf("no service %s", s)
		}
		return &w.services[i]
	}
	switch words[0] {
	case "service":
		k := key(words[1])
		svc := Service{Key: k, Forwarding: "dr", Connections: &Connections{}}
		if k.Protocol == ipvs.TCP {
			svc.Addresses = []netip.AddrPort{k.Addr}
			w.total[k.Addr] = Counters{}
		}
		w.services = append(w.services, svc)
		if len(words) > 2 {
			w.instance[k] = words[2]
		}
	case "gone":
		k := key(words[1])
		w.services = slices.DeleteFunc(w.services, func(s Service) bool { return s.Key == k })
		delete(w.total, k.Addr)
		delete(w.load, k.Addr)
	case "load":
		w.load[key(words[1]).Addr] = Counters{SYN: number(words[2]), Suspect: number(words[3])}
	case "entries":
		n, half := number(words[2]), number(words[3])
		svc := service(words[1])
		svc.Connections.Active = n
		svc.Census = &Census{Lines: int(min(n, 2000)), HalfOpen: int(half * min(n, 2000) / n), Entries: float64(n)}
	case "role":
		role := Role{Instance: words[1], State: keepalived.State(words[2]), Since: now}
		for k, name := range w.instance {
			if name == words[1] {
				role.Addresses = append(role.Addresses, k.Addr.Addr())
			}
		}
		w.roles = append(slices.DeleteFunc(w.roles, func(r Role) bool { return r.Instance == words[1] }), role)
	case "unknown":
		w.unknown = true
	case "known":
		w.unknown = false
	case "zeroed":
		for at := range w.total {
			w.total[at] = Counters{}
		}
	case "mode":
		p.SetMode(Mode(words[1]))
	case "arm":
		p.Arm(key(words[1]), now.Add(duration(words[2])), "uid 0")
	case "disarm":
		p.Disarm(key(words[1]), "uid 0")
	case "adopt":
		p.Adopt(now, key(words[1]), duration(words[2]))
	case "rebuilt":
		p.Rebuilt(now)
	default:
		t.Fatalf("no step %q", words[0])
	}
}

// sample is the site as it is now, after a way over JSON.
func (w *site) sample(t *testing.T, now time.Time) Sample {
	t.Helper()
	s := Sample{Time: now, Services: w.services, Roles: w.roles, Counters: w.total}
	if w.unknown {
		s.Counters, s.Unknown = nil, map[Source]string{SourceNft: "netlink refused"}
	}
	line, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Sample
	if err := json.Unmarshal(line, &back); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return back
}

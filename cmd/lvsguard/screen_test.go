package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func key(s string) ipvs.Key {
	k, err := ipvs.ParseKey(s)
	if err != nil {
		panic(err)
	}
	return k
}

func ago(d time.Duration) time.Time { return noon.Add(-d) }

func ptr[T any](v T) *T { return &v }

// svc is a service in a status; rates are SYN/s, signature/s and drops/s.
func svc(service string, verdict guard.State, reason string, rates []float64, conns []uint64, lease *guard.Lease) guard.ServiceStatus {
	s := guard.ServiceStatus{Service: key(service), Verdict: verdict, Reason: reason, Since: ago(time.Minute), Lease: lease}
	if rates != nil {
		s.SYN, s.Suspect, s.Dropped = &rates[0], &rates[1], &rates[2]
		if rates[0] > 0 {
			s.Share = ptr(rates[1] / rates[0])
		}
	}
	if conns != nil {
		s.Active, s.Inactive = &conns[0], &conns[1]
	}
	return s
}

func lease(by guard.By, left time.Duration) *guard.Lease {
	return &guard.Lease{By: by, Since: ago(time.Minute), ExpiresAt: noon.Add(left)}
}

func statusOf(services ...guard.ServiceStatus) *guard.Status {
	return &guard.Status{
		Version: "test", Time: noon, StartedAt: ago(time.Hour), Mode: guard.Observe, ModeFrom: guard.ModeFromDefault, Services: services, TickMillis: 1,
	}
}

func TestStatusScreen(t *testing.T) {
	calm := svc("192.0.2.1:80", guard.Calm, "0 of 120 SYN/s bear a signature", []float64{120, 0, 0}, []uint64{3123, 812}, nil)
	long := "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"

	quiet := statusOf(calm, svc("192.0.2.2:25", guard.Calm, "0 of 0 SYN/s bear a signature", []float64{0, 0, 0}, []uint64{0, 0}, nil))
	quiet.Roles = []guard.RoleStatus{{Instance: "VI_1", Role: "MASTER", Since: ago(100 * time.Hour)}}

	flood := statusOf(
		svc("192.0.2.1:80", guard.Flood, "487123 of 497123 SYN/s bear a signature (threshold 1000/s and 50%)", []float64{497123, 487123, 487123}, []uint64{3123, 123456}, lease(guard.ByAuto, 58*time.Second)),
		svc("192.0.2.1:443", guard.Rising, "1200 of 1300 SYN/s bear a signature (threshold 1000/s for 3s)", []float64{1300, 1200, 0}, []uint64{99999, 999499}, nil),
		svc("192.0.2.2:*", guard.HalfOpenFlood, "about 15000 half-open entries, 91 % of this service's, and no signature explains them", []float64{9.5, 0.5, 0}, []uint64{1, 16000}, lease(guard.ByOperator, 24*time.Hour)),
		svc("192.0.2.3:80", guard.Calm, "", []float64{0, 0, 0}, []uint64{7, 7}, lease(guard.ByPrearm, 59*time.Second)),
		svc("192.0.2.4:80", guard.Calm, "", []float64{0.4, 0, 0}, []uint64{7, 7}, lease(guard.ByRestart, 31*time.Second)),
		svc("192.0.2.5:80", guard.Calm, "", []float64{50, 0, 0}, []uint64{7, 7}, lease(guard.ByOperator, 10*time.Minute)),
	)
	flood.Services[0].Completion = ptr(0.993)
	flood.Services[0].Handshakes = &handshake.Figures{Signature: handshake.Signed{Attempts: 1234567, Completed: 3}}
	flood.Services[3].Handshakes = &handshake.Figures{}
	flood.Services[4].Completion, flood.Services[4].Handshakes = ptr(1.0), &handshake.Figures{}
	flood.Capture = &guard.Capture{Report: capture.Report{Handed: 900, Dropped: 100}, Filter: "classic", FilterReason: "CAP_BPF is missing"}
	for i := range flood.Services[:4] {
		flood.Services[i].Project = []string{"shop", "mail"}[i/2]
	}
	flood.Mode, flood.ModeFrom = guard.Auto, guard.ModeFromToggle
	flood.Roles = []guard.RoleStatus{{Instance: "VI_1", Role: "MASTER", Since: ago(90 * time.Second)}, {Instance: "VI_2", Role: "BACKUP", Since: ago(14 * 24 * time.Hour)}}

	ipv6 := statusOf(
		svc(long, guard.Flood, "9999999 of 9999999 SYN/s bear a signature, part of 9999999/s on 2001:db8:1111:2222:3333:4444:5555:6666 (threshold 1000/s)",
			[]float64{9999999, 9999999, 9999999}, []uint64{4294967295, 4294967295}, lease(guard.ByAuto, 60*time.Second)),
		svc("fwmark6:4294967295", guard.Calm, "", []float64{1, 0, 0}, []uint64{1, 1}, nil),
		svc("udp:"+long, guard.Unknown, "no SYNs are counted: UDP has none", nil, []uint64{1, 1}, nil),
	)
	for i := range 7 {
		ipv6.Roles = append(ipv6.Roles, guard.RoleStatus{Instance: fmt.Sprintf("VI_%d", i), Role: "MASTER", Since: ago(90 * time.Second)})
	}

	blind := statusOf(
		svc("192.0.2.1:80", guard.Unknown, "nf_tables wants CAP_NET_ADMIN in this network namespace: operation not permitted", nil, nil, nil),
		svc("192.0.2.2:80", guard.Unknown, "nf_tables wants CAP_NET_ADMIN in this network namespace: operation not permitted", nil, nil, nil),
		svc("fwmark:7", guard.Unknown, "no SYNs are counted: give the addresses of fwmark:7 in the configuration, under services", nil, []uint64{5, 5}, nil),
	)
	blind.Unknown = map[guard.Source]string{
		guard.SourceIPVS:   "IPVS is not there: the module ip_vs is not loaded (modprobe ip_vs)",
		guard.SourceNft:    "nf_tables wants CAP_NET_ADMIN in this network namespace: operation not permitted",
		guard.SourceCensus: "open /proc/net/ip_vs_conn: no such file or directory",
	}

	blind.Sampling = &guard.SamplingStatus{Way: ptr(guard.SampleByCapture), Reason: "open packet queue 5: process 7 (\"suricata\") has it: choose another number (evidence.queue): operation not permitted"}

	refused := statusOf(calm)
	refused.Mode, refused.ModeFrom, refused.PausedUntil = guard.Auto, guard.ModeFromConfig, ptr(noon.Add(9*time.Minute))
	refused.Roles = quiet.Roles
	refused.ConfigError = ptr(`/etc/lvsguard/a-directory-with-a-name-that-is-longer-than-a-line-of-this-screen-can-be/lvsguard.yaml: line 3: unknown key "rte"; did you mean "rate"?`)
	refused.Journal = guard.JournalHealth{Lost: 12, Error: ptr("write journal: write /var/lib/lvsguard/journal.jsonl: no space left on device")}

	stale := statusOf(calm)
	stale.Time = ago(90 * time.Second)

	for name, s := range map[string]*guard.Status{
		"status-calm": quiet, "status-flood": flood, "status-ipv6": ipv6, "status-unknown": blind,
		"status-paused-refused": refused, "status-stale": stale, "status-empty": statusOf(),
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			writeStatus(&out, s, noon)
			golden(t, name, out.String())
		})
	}
}

func someCounters() nft.Counters {
	n := func(v uint64) nft.Count { return nft.Count{Packets: v, Bytes: 40 * v} }
	of := func(syn, suspect, dropped, fragment uint64) nft.ServiceCounters {
		return nft.ServiceCounters{SYN: n(syn), Suspect: n(suspect), Dropped: n(dropped), Fragment: n(fragment), Signatures: map[string]nft.Count{"window0": n(suspect)}}
	}
	return nft.Counters{
		Since: ago(time.Hour),
		Services: map[netip.AddrPort]nft.ServiceCounters{
			netip.MustParseAddrPort("192.0.2.1:80"):                                   of(123456789, 120000000, 119000000, 12),
			netip.MustParseAddrPort("192.0.2.1:443"):                                  of(1000, 0, 0, 12),
			netip.MustParseAddrPort("192.0.2.2:0"):                                    of(0, 0, 0, 0),
			netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"): of(1<<50, 1<<50, 1<<50, 1<<50),
		},
		Loopback: n(5), Allowed: n(1234),
	}
}

func TestCountersScreen(t *testing.T) {
	for name, c := range map[string]nft.Counters{"counters": someCounters(), "counters-empty": {Since: ago(time.Hour)}} {
		var out bytes.Buffer
		(&app{out: &out}).printCounters(newCountersJSON(c))
		golden(t, name, out.String())
	}
}

func TestCensusScreen(t *testing.T) {
	long := "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
	whole := ipvs.Census{
		Lines: 20000, Templates: 12, Malformed: 3, Complete: true, Total: 20012, TotalKnown: true,
		States:   map[string]int{"SYN_RECV": 15000, "ESTABLISHED": 4000, "FIN_WAIT": 1000},
		Services: map[ipvs.Key]map[string]int{key("192.0.2.1:80"): {"SYN_RECV": 15000, "ESTABLISHED": 3000}, key(long): {"ESTABLISHED": 1000}},
		Other:    map[string]int{"FIN_WAIT": 1000},
	}
	for i := range 25 {
		whole.Sources = append(whole.Sources, ipvs.Source{Prefix: netip.MustParsePrefix(fmt.Sprintf("198.51.%d.0/24", i)), AtLeast: 500 - i, AtMost: 500})
	}
	whole.Sources[3].Prefix = netip.MustParsePrefix("2001:db8:1111:2222::/64")
	sample := whole
	sample.Complete, sample.Lines, sample.Templates, sample.Total = false, 1988, 12, 12345678
	sample.States = map[string]int{"SYN_RECV": 1500, "ESTABLISHED": 488}
	unsized := sample
	unsized.TotalKnown, unsized.Malformed = false, 0
	for _, tt := range []struct {
		name, by string
		census   ipvs.Census
	}{
		{"conns-whole-state", "state", whole},
		{"conns-whole-service", "service", whole},
		{"conns-whole-source", "source", whole},
		{"conns-sampled", "state", sample},
		{"conns-unsized", "state", unsized},
		{"conns-empty", "state", ipvs.Census{Complete: true, TotalKnown: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			(&app{out: &out}).printCensus(newCensusJSON(tt.census, tt.by))
			golden(t, tt.name, out.String())
		})
	}
}

func someJournal() []guard.Entry {
	long := "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
	return []guard.Entry{
		{Time: noon, Event: guard.EventStart, To: "auto", Reason: "version test"},
		{Time: noon, Event: guard.EventTable, To: "created", Reason: "there was none"},
		{Time: noon.Add(time.Second), Event: guard.EventRole, Instance: "VI_1", From: "BACKUP", To: "MASTER"},
		{Time: noon.Add(2 * time.Second), Event: guard.EventVerdict, Service: long, From: "calm", To: "half_open_flood", Reason: "about 15000 half-open entries, 91 % of this service's, and no signature explains them", Figures: &guard.Figures{HalfOpen: ptr(15000.0)}},
		{Time: noon.Add(3 * time.Second), Event: guard.EventLease, Service: "192.0.2.1:80", To: "armed", By: "auto", Reason: "5000 of 5100 SYN/s bear a signature (threshold 1000/s and 50%)"},
		{Time: noon.Add(4 * time.Second), Event: guard.EventLease, Service: long, To: "disarmed", By: "uid 0, pid 4194304", Reason: "disarmed by an operator"},
		{Time: noon.Add(5 * time.Second), Event: guard.EventMode, From: "observe", To: "auto", By: "uid 0, pid 7"},
		{Time: noon.Add(6 * time.Second), Event: guard.EventSource, Source: guard.SourceIPVS, To: "unknown", Reason: "IPVS has no virtual services"},
		{Time: noon.Add(7 * time.Second), Event: guard.EventSource, Source: guard.SourceIPVS, From: "unknown"},
		{Time: noon.Add(8 * time.Second), Event: guard.EventConfig, To: "refused", Reason: `/etc/lvsguard.yaml: line 3: unknown key "rte"; did you mean "rate"?`},
		{Time: noon.Add(8 * time.Second), Event: guard.EventPressure, Resource: "low memory", Kind: "low_memory", From: "warning", To: "critical", Share: ptr(0.91), FullIn: ptr(41.0), Reason: "81.2 MB of 886 MB can still be had; at this rate it is full in 41 s"},
		{Time: noon.Add(8 * time.Second), Event: guard.EventKernel, Kind: "ipvs_no_memory", Subject: "ip_vs_conn_new", Count: 1, Reason: "IPVS: ip_vs_conn_new: no memory"},
		{Time: noon.Add(8 * time.Second), Event: guard.EventKernel, Kind: "conntrack_full", Count: 812, Reason: "nf_conntrack: nf_conntrack: table full, dropping packet"},
		{Time: noon.Add(8 * time.Second), Event: guard.EventHealth, Service: "192.0.2.1:80", Server: "198.51.100.1:80", To: "DOWN", Reason: "by keepalived's health check"},
		{Time: noon.Add(8 * time.Second), Event: guard.EventAlert, Subject: "project=shop", To: "firing", Kind: "critical", Reason: "flood on 192.0.2.1:80: 487123 of 497123 SYN/s bear a signature (threshold 1000/s and 50%)"},
		{Time: noon.Add(8 * time.Second), Event: guard.EventUndelivered, Subject: "project=shop", To: "firing", Kind: "critical", Receiver: "oncall", Reason: "it could not be delivered in time"},
		{Time: noon.Add(9 * time.Second), Event: guard.EventStop, Reason: "leases lapse within 1m0s"},
	}
}

// writeJournal gives the state directory of a guard that did all of entries.
func writeJournal(t *testing.T, entries []guard.Entry, more string) (stateDir string) {
	t.Helper()
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	for _, e := range entries {
		if err := enc.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	text.WriteString(more)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "journal.jsonl"), text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestJournalScreen(t *testing.T) {
	status, out, errOut := lvsguard(t, "journal", "--state-dir", writeJournal(t, someJournal(), ""))
	if status != 0 || errOut != "" {
		t.Errorf("status %d, %s", status, errOut)
	}
	golden(t, "journal", out)
}

func TestJournalSince(t *testing.T) {
	old := guard.Entry{Time: time.Now().Add(-2 * time.Hour), Event: guard.EventStart, To: "observe"}
	fresh := guard.Entry{Time: time.Now().Add(-time.Minute).UTC(), Event: guard.EventStop}
	dir := writeJournal(t, []guard.Entry{old, fresh}, `{"time":"2026-`)
	status, out, errOut := lvsguard(t, "journal", "--state-dir", dir, "--since", "1h", "--json")
	if status != 1 || !strings.Contains(errOut, "journal.jsonl, line 3") {
		t.Errorf("a cut line: status %d, %s", status, errOut)
	}
	var got guard.Entry
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("not one object: %v\n%s", err, out)
	}
	if diff := cmp.Diff(fresh, got); diff != "" {
		t.Errorf("since 1h (-want +got):\n%s", diff)
	}
}

// keysOf gives the keys of what v becomes in JSON; those of lists' elements and
// of objects within after their own, as in services.lease.by.
func keysOf(t *testing.T, v any) []string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	var keys []string
	var walk func(prefix string, v any)
	walk = func(prefix string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, inner := range v {
				keys = append(keys, prefix+k)
				walk(prefix+k+".", inner)
			}
		case []any:
			for _, inner := range v {
				walk(prefix, inner)
			}
		}
	}
	walk("", tree)
	slices.Sort(keys)
	return slices.Compact(keys)
}

func wantKeys(t *testing.T, what string, v any, want string) {
	t.Helper()
	all := strings.Fields(want)
	slices.Sort(all)
	if diff := cmp.Diff(all, keysOf(t, v)); diff != "" {
		t.Errorf("keys of %s (-want +got):\n%s", what, diff)
	}
}

func TestJSONKeys(t *testing.T) {
	s := statusOf(svc("192.0.2.1:80", guard.Flood, "", []float64{2, 1, 0}, []uint64{1, 1}, lease(guard.ByAuto, time.Minute)))
	s.Roles = []guard.RoleStatus{{Instance: "VI_1"}}
	s.Services[0].Unknown = map[string]string{"forwarding": "why"}
	s.Project, s.Services[0].Project = "infra", "shop"
	s.Sampling = &guard.SamplingStatus{}
	wantKeys(t, "status", s, `
		sampling sampling.way sampling.reason sampling.now sampling.received sampling.lost
		version time started_at mode mode_from automatic_paused_until config_file config_error tick_milliseconds unknown
		project table_losses roles roles.instance roles.role roles.since roles.changes
		services services.service services.project services.protocol services.forwarding services.instance services.verdict services.reason services.since
		services.syn_per_second services.suspect_per_second services.suspect_share services.dropped_per_second services.fragments_per_second
		capture handshakes services.completion services.handshakes role pressure sockets servers
		services.half_open_connections services.automatic_declined services.active_connections services.inactive_connections
		services.lease services.lease.by services.lease.since services.lease.expires_at services.unknown services.unknown.forwarding
		total total.syn_per_second total.suspect_per_second total.suspect_share total.dropped_per_second total.fragments_per_second total.half_open_connections
		journal journal.lost_entries journal.error`)
	c := someCounters()
	wantKeys(t, "counters", newCountersJSON(c), `
		since
		services services.service services.syn_packets services.syn_bytes services.suspect_packets services.suspect_bytes
		services.dropped_packets services.dropped_bytes services.fragment_packets services.fragment_bytes
		services.signatures services.signatures.window0 services.signatures.window0.packets services.signatures.window0.bytes
		total total.syn_packets total.syn_bytes total.suspect_packets total.suspect_bytes
		total.dropped_packets total.dropped_bytes total.fragment_packets total.fragment_bytes
		loopback loopback.packets loopback.bytes allowed allowed.packets allowed.bytes`)
	wantKeys(t, "conns", newCensusJSON(ipvs.Census{Services: map[ipvs.Key]map[string]int{key("192.0.2.1:80"): {"SYN_RECV": 1}}, Lines: 1, Complete: true}, "service"), `
		by complete sampled_entries total_entries sampled_templates malformed_lines
		rows rows.name rows.sampled_entries rows.share rows.connections rows.half_open_connections`)
	wantKeys(t, "rules show", newRulesJSON(nft.State{
		Counters: []nft.NamedCounter{{}}, Chains: []nft.Chain{{Rules: []nft.Rule{{}}}},
		Sets: []nft.Set{{Elements: []nft.Element{{Service: netip.MustParseAddrPort("192.0.2.1:80")}, {Source: netip.MustParsePrefix("192.0.2.0/24")}}}},
	}), `
		since layout dormant counters counters.name counters.packets counters.bytes
		sets sets.name sets.type sets.comment sets.timeout_seconds sets.elements
		sets.elements.service sets.elements.source sets.elements.packets sets.elements.bytes sets.elements.expires_in_seconds
		chains chains.name chains.hook chains.rules chains.rules.text chains.rules.comment chains.rules.foreign`)
}

// What is not known is null, never zero; and services of one address, whose
// fragments carry no port, do not count them twice.
func TestJSONUnknownAndTotals(t *testing.T) {
	text, err := json.Marshal(svc("192.0.2.1:80", guard.Unknown, "", nil, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"protocol", "forwarding", "syn_per_second", "suspect_per_second", "suspect_share", "dropped_per_second", "active_connections", "inactive_connections", "half_open_connections", "lease", "completion", "handshakes"} {
		if v, there := s[k]; !there || v != nil {
			t.Errorf("%s is %v, want null", k, v)
		}
	}
	c := newCountersJSON(someCounters())
	if want := uint64(12 + 1<<50); c.Total.FragmentPackets != want {
		t.Errorf("%d fragments in all, want %d", c.Total.FragmentPackets, want)
	}
	if want := uint64(123456789 + 1000 + 1<<50); c.Total.SYNPackets != want {
		t.Errorf("%d SYNs in all, want %d", c.Total.SYNPackets, want)
	}
	unsized := newCensusJSON(ipvs.Census{Lines: 5, States: map[string]int{"SYN_RECV": 5}}, "state")
	if unsized.TotalEntries != nil || unsized.Rows[0].Connections != nil {
		t.Errorf("a sample of a table whose size is not known: %+v", unsized)
	}
}

func TestShort(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0", 0.4: "<1", 0.96: "1", 999.4: "999", 999.6: "1.00k", 9994: "9.99k", 9996: "10.0k", 99960: "100k",
		999499: "999k", 999501: "1.00M", 4294967295: "4.29G", 1.5e13: "15.0T", 1e18: "huge",
	} {
		if got := short(n); got != want {
			t.Errorf("%v is %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1499 * time.Millisecond: "1s", 99 * time.Second: "99s", 100 * time.Second: "1m",
		99 * time.Minute: "99m", 100 * time.Minute: "1h", 99 * time.Hour: "99h", 100 * time.Hour: "4d",
	} {
		if got := span(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	words := strings.Repeat("ü", 200) + " " + strings.Repeat("word ", 50) + strings.Repeat("x", 78) + " y"
	for _, indent := range []string{"", "  ", strings.Repeat(" ", 28)} {
		got := wrap(words, indent)
		for line := range strings.Lines(got) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > width || !strings.HasPrefix(line, indent) {
				t.Errorf("%d columns: %q", n, line)
			}
		}
		letters := func(s string) string { return strings.Join(strings.Fields(s), "") }
		if letters(got) != letters(words) {
			t.Errorf("wrapping lost something:\n%s", got)
		}
	}
	if got := wrap("", "  "); got != "" {
		t.Errorf("of nothing: %q", got)
	}
	if got := hang("now  ", ""); got != "now\n" {
		t.Errorf("a head alone: %q", got)
	}
}

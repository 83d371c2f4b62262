package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

// readFacts reads the facts of a host from testdata.
func readFacts(t testing.TB, name string) Facts {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var f Facts
	if err := json.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func notGood(found []Finding) string {
	var b strings.Builder
	for _, f := range found {
		if f.Severity != OK {
			fmt.Fprintf(&b, "%s, %s: %s\n  why: %s\n  do:  %s\n", f.Severity, f.Subject, f.What, f.Why, f.Remedy)
		}
	}
	return b.String()
}

// Each thing that can be wrong with a healthy host, one at a time, and what is then
// said: testdata/findings.golden. What is healthy gives nothing.
func TestExamine(t *testing.T) {
	no := errors.New("permission denied")
	director := func(change func(*Facts)) Facts {
		f := readFacts(t, "healthy")
		change(&f)
		return f
	}
	host := func(change func(*Facts)) Facts {
		return director(func(f *Facts) {
			f.Role, f.IPVS, f.Chains = Host, IPVS{}, Fact[[]Chain]{Unknown: "none"}
			change(f)
		})
	}
	set := func(name string, value int) func(*Facts) {
		return func(f *Facts) { f.Sysctls[name] = Fact[int]{Value: value} }
	}
	module := func(name string, m Module) func(*Facts) {
		return func(f *Facts) { f.Modules[name] = Fact[Module]{Value: m} }
	}
	capable := func(all ...string) func(*Facts) {
		return func(f *Facts) { f.Guard.Process.Capabilities.Value = all }
	}
	tests := []struct {
		name  string
		facts Facts
	}{
		{"healthy director", director(func(*Facts) {})},
		{"healthy host", host(func(*Facts) {})},
		{"host that counts", host(func(f *Facts) { f.Watches, f.Chains.Unknown = true, "" })},

		{"bad configuration", director(func(f *Facts) { f.ConfigError = "/etc/lvsguard/lvsguard.yaml: line 7: no such key" })},
		{"configuration is not open", director(func(f *Facts) { f.ConfigUnknown = no.Error() })},
		{"token over http", director(func(f *Facts) { f.ClearSecrets = true })},
		{"metrics for everybody", host(func(f *Facts) { f.MetricsOpen = true })},
		{"metrics with a token over http", host(func(f *Facts) { f.MetricsClear = true })},

		{"receivers and metrics", host(func(f *Facts) { f.TellsAndShows = true })},

		{"guard has died", director(func(f *Facts) { f.Guard.Answer.Value = Refuses })},
		{"guard hangs", director(func(f *Facts) { f.Guard.Answer = Fact[Answer]{Unknown: "i/o timeout"} })},
		{"guard is old", director(func(f *Facts) { f.Guard.Replaced = true })},

		{"no CAP_NET_ADMIN", director(capable(netRaw, syslog, bpf))},
		{"no CAP_NET_ADMIN, and nothing to count", host(capable(netRaw, syslog, bpf))},
		{"no CAP_SYSLOG, and none needed", director(func(f *Facts) { capable(netAdmin, netRaw, bpf)(f); set("kernel.dmesg_restrict", 0)(f) })},
		{"CAP_SYS_ADMIN", director(capable(netAdmin, netRaw, sysAdmin))},
		{"none", director(capable())},
		{"capabilities not known", director(func(f *Facts) { f.Guard.Process.Capabilities = Fact[[]string]{Unknown: no.Error()} })},

		{"old kernel", director(func(f *Facts) { f.Release.Value = "5.6.19-amd64" })},
		{"older kernel", director(func(f *Facts) { f.Release.Value = "4.19.0" })},
		{"just new enough", director(func(f *Facts) { f.Release.Value = "5.7" })},
		{"old kernel of a host", host(func(f *Facts) { f.Release.Value = "4.19.0" })},
		{"odd kernel", director(func(f *Facts) { f.Release.Value = "v6-6.1" })},
		{"kernel not known", director(func(f *Facts) { f.Release = known("", no) })},

		{"IPVS not loaded", director(func(f *Facts) { f.IPVS.Loaded = false; module("ip_vs", Available)(f) })},
		{"no IPVS", director(func(f *Facts) { f.IPVS.Loaded = false; module("ip_vs", Absent)(f) })},
		{"no IPVS on a host", host(module("ip_vs", Absent))},
		{"no nf_tables", director(func(f *Facts) {
			f.Chains = Fact[[]Chain]{Unknown: "protocol not supported"}
			module("nf_tables", Absent)(f)
		})},
		{"no nft_queue", director(module("nft_queue", Absent))},
		{"no queues of nftables", director(func(f *Facts) { module("nft_queue", Absent)(f); module("xt_NFQUEUE", Absent)(f) })},
		{"no queues", director(module("nfnetlink_queue", Absent))},
		{"no queues on a host", host(module("nfnetlink_queue", Absent))},
		{"queues not known", director(func(f *Facts) {
			f.Modules["nft_queue"], f.Modules["nft_compat"] = known(Absent, no), known(Absent, no)
		})},
		{"no tcp_diag", host(module("tcp_diag", Absent))},
		{"modules not known", director(func(f *Facts) { f.Modules["tcp_diag"] = known(Absent, no) })},

		{"drop_entry off", director(set(vs+"drop_entry", 0))},
		{"drop_entry active", director(set(vs+"drop_entry", 2))},
		{"secure_tcp in DR", director(set(vs+"secure_tcp", 1))},
		{"secure_tcp in NAT", director(func(f *Facts) { set(vs+"secure_tcp", 1)(f); f.IPVS.OneWay = false })},
		{"amemthresh low", director(set(vs+"amemthresh", 1024))},
		{"amemthresh low, large pages", director(func(f *Facts) { set(vs+"amemthresh", 1024)(f); f.PageSize = 65536 })},
		{"estimation off", director(set(vs+"run_estimation", 0))},
		{"sloppy", director(set(vs+"sloppy_tcp", 1))},
		{"settings not known", director(func(f *Facts) { f.Sysctls[vs+"drop_entry"] = known(0, no) })},
		{"services not known", director(func(f *Facts) { f.IPVS.Services = known(0, no) })},
		{"32 bits", director(func(f *Facts) { f.Memory.LowTotal = new(uint64(874 << 20)) })},

		{"conntrack 75 %", director(func(f *Facts) { f.Conntrack = tracked(75_000, 100_000) })},
		{"conntrack 90 %", director(func(f *Facts) { f.Conntrack = tracked(90_000, 100_000) })},
		{"conntrack calm", director(func(f *Facts) { f.Conntrack = tracked(74_999, 100_000) })},
		{"conntrack small", director(func(f *Facts) { f.Conntrack = tracked(1, 8192) })},
		{"conntrack small on a host", host(func(f *Facts) { f.Conntrack = tracked(1, 8192) })},
		{"conntrack with no limit", host(func(f *Facts) { f.Conntrack = tracked(1, 0) })},
		{"conntrack not known", director(func(f *Facts) {
			f.Conntrack = pressure.Conntrack{InUse: true, Unknown: map[string]string{"entries": no.Error()}}
		})},

		{"no cookies", host(set("net.ipv4.tcp_syncookies", 0))},
		{"no cookies on a director", director(set("net.ipv4.tcp_syncookies", 0))},
		{"cookies always", host(set("net.ipv4.tcp_syncookies", 2))},
		{"short backlog", host(set("net.ipv4.tcp_max_syn_backlog", 128))},
		{"short accept queues", host(set("net.core.somaxconn", 128))},
		{"cookies not known", host(func(f *Facts) { f.Sysctls["net.ipv4.tcp_syncookies"] = known(0, no) })},
		{"a kernel without them", host(func(f *Facts) { f.Sysctls = nil })},

		{"a chain before", director(func(f *Facts) { f.Chains.Value = []Chain{{"inet raw", "pre", "prerouting", -311, false}} })},
		{"a chain beside", director(func(f *Facts) { f.Chains.Value = []Chain{{"inet raw", "pre", "prerouting", -310, true}} })},
		{"a chain before that drops", director(func(f *Facts) { f.Chains.Value = []Chain{{"ip6 raw", "pre", "prerouting", -400, true}} })},
		{"a chain at ingress", director(func(f *Facts) { f.Chains.Value = []Chain{{"netdev eth0", "in", "ingress", 0, false}} })},

		{"no keepalived", director(func(f *Facts) { f.Keepalived = Keepalived{Path: "/etc/keepalived/keepalived.conf"} })},
		{"keepalived elsewhere", director(func(f *Facts) { f.Keepalived.Present.Value = false })},
		{"instances by hand", director(func(f *Facts) { f.Keepalived.Present.Value, f.Keepalived.GuardInstances = false, true })},
		{"configuration of keepalived not open", director(func(f *Facts) { f.Keepalived.Present = known(false, no) })},
		{"lines not understood", director(func(f *Facts) { f.Keepalived.Skipped = []string{"keepalived.conf:7: x"} })},
		{"no instance", director(func(f *Facts) { f.Keepalived.Instances = nil })},
		{"no FIFO there", director(func(f *Facts) { f.Keepalived.FIFOs = nil })},
		{"FIFO not read", director(func(f *Facts) { f.Keepalived.GuardFIFO, f.Keepalived.Hooks = "", nil })},
		{"neither FIFO nor hook", director(func(f *Facts) { f.Keepalived.GuardFIFO, f.Keepalived.FIFOs, f.Keepalived.Hooks = "", nil, nil })},
		{"hook alone", director(func(f *Facts) { f.Keepalived.GuardFIFO, f.Keepalived.FIFOs = "", nil })},
		{"a hook of another's", director(func(f *Facts) {
			f.Keepalived.GuardFIFO, f.Keepalived.FIFOs, f.Keepalived.Hooks = "", nil, []Hook{{At: "keepalived.conf:9", Program: "/opt/mail.sh", Open: []string{"/opt/mail.sh"}}}
		})},
		{"hook is missing", director(func(f *Facts) { f.Keepalived.Hooks[0].Missing = true })},
		{"hook is open", director(func(f *Facts) { f.Keepalived.Hooks[0].Open = []string{"/usr/sbin"} })},
		{"no script security", director(func(f *Facts) { f.Keepalived.Security = false })},

		{"clock", director(func(f *Facts) { f.Synchronised.Value = false })},
		{"clock not known", director(func(f *Facts) { f.Synchronised = known(false, no) })},
		{"no systemd", director(func(f *Facts) { f.Unit.Systemd = false })},
		{"no unit", director(func(f *Facts) { f.Unit.File = "" })},
		{"unit is not enabled", director(func(f *Facts) { f.Unit.Enabled = false })},

		{"no state directory", director(func(f *Facts) { f.State.Exists.Value = false })},
		{"state directory not known", director(func(f *Facts) { f.State.Exists = known(false, no) })},
		{"read-only", director(func(f *Facts) { f.State.Writable.Value = false })},
		{"disk is full", director(func(f *Facts) { f.State.Free.Value = 7_000_000 })},
		{"room not known", director(func(f *Facts) { f.State.Free = known(uint64(0), no) })},
		{"no journal", director(func(f *Facts) { f.State.Journal.Value = -1 })},
		{"journal not known", director(func(f *Facts) { f.State.Journal = known(int64(0), no) })},
	}
	var got strings.Builder
	for _, test := range tests {
		fmt.Fprintf(&got, "# %s\n%s\n", test.name, notGood(Examine(test.facts)))
	}
	golden(t, "findings.golden", got.String())
}

func tracked(entries, limit uint64) pressure.Conntrack {
	return pressure.Conntrack{InUse: true, Entries: &entries, Limit: &limit}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	goldenfile.Check(t, filepath.Join("testdata", name), got)
}

// Where nothing could be read nothing is good or bad, and every finding says why
// it is not known.
func TestNothingKnown(t *testing.T) {
	for _, role := range []Role{Director, Host} {
		f := readFacts(t, "healthy")
		f.Role = role
		forget(reflect.ValueOf(&f).Elem())
		f.Conntrack = pressure.Conntrack{InUse: true, Unknown: map[string]string{"entries": "lost"}}
		for _, found := range Examine(f) {
			// What the configuration says is known, and so is systemd's unit.
			about := found.Subject == "configuration" || found.Subject == "service unit"
			if found.Severity != Unknown && !about && found.Subject != "notify scripts" {
				t.Errorf("%s: %+v", role, found)
			}
			if found.Severity == Unknown && (found.Why != "lost" || found.Remedy == "") && found.Subject != "capabilities" {
				t.Errorf("%s: %+v", role, found)
			}
		}
	}
}

// forget makes every fact one that is not known.
func forget(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if reason := v.FieldByName("Unknown"); reason.IsValid() && reason.Kind() == reflect.String {
			v.SetZero()
			reason.SetString("lost")
			return
		}
		for i := range v.NumField() {
			forget(v.Field(i))
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			forgotten := reflect.New(v.Type().Elem()).Elem()
			forget(forgotten)
			v.SetMapIndex(key, forgotten)
		}
	}
}

// The worst comes first, whatever order the checks have.
func TestOrder(t *testing.T) {
	for _, name := range []string{"healthy", "bare", "director32", "powerless", "user"} {
		found := Examine(readFacts(t, name))
		for i := range found[1:] {
			if rank(found[i]) > rank(found[i+1]) {
				t.Errorf("%s: %s stands before %s", name, found[i].Severity, found[i+1].Severity)
			}
		}
		for _, f := range found {
			if (f.Severity == OK) != (f.Why == "" && f.Remedy == "") || f.Subject == "" || f.What == "" {
				t.Errorf("%s: %+v", name, f)
			}
			if bad := f.Severity == Critical || f.Severity == Warning; f.Worse() != bad {
				t.Errorf("%s: Worse is %v", f.Severity, !bad)
			}
		}
	}
}

func rank(f Finding) int {
	return strings.Index("critical warning  unknown  advice   ok", string(f.Severity))
}

// Facts come from other hosts too: whatever they are, they are examined.
func FuzzExamine(f *testing.F) {
	for _, name := range []string{"healthy", "bare", "director32", "powerless", "user"} {
		text, err := json.Marshal(readFacts(f, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"role": "director", "keepalived": {"present": {"value": true}, "hooks": [{}]}, "ipvs": {"loaded": true}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var facts Facts
		if json.Unmarshal(text, &facts) != nil {
			return
		}
		for _, found := range Examine(facts) {
			if (found.Severity == OK) != (found.Remedy == "") {
				t.Errorf("%+v", found)
			}
		}
	})
}

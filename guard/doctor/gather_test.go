package doctor

import (
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// tree makes files below a new root. A name that ends in a slash is a directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// director are files as a director has them.
var director = map[string]string{
	"proc/sys/kernel/osrelease":                  "6.1.0-32-amd64\n",
	"proc/sys/kernel/dmesg_restrict":             "1\n",
	"proc/sys/net/ipv4/tcp_syncookies":           "1\n",
	"proc/sys/net/ipv4/tcp_max_syn_backlog":      "many\n",
	"proc/sys/net/ipv4/vs/drop_entry":            "1\n",
	"proc/sys/net/ipv4/vs/amemthresh":            "1024\n",
	"proc/self/status":                           "Name:\tlvsguard\nUid:\t1000\t0\t0\t0\nCapEff:\t0000000400003000\n",
	"lib/modules/6.1.0-32-amd64/modules.builtin": "kernel/net/ipv4/tcp_diag.ko\n",
	"lib/modules/6.1.0-32-amd64/modules.dep":     "kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/net/netfilter/nfnetlink_queue.ko.xz: kernel/net/netfilter/nfnetlink.ko.xz\nkernel/net/ipv4/inet-diag.ko:\n",
	"sys/module/nf_tables/":                      "",
	"sys/module/xt_NFQUEUE/":                     "",
	"usr/sbin/keepalived":                        "\x7fELF\x00Keepalived version\x00Keepalived v2.2.7 (01/16,2022)\x00",
	"usr/sbin/lvsguard":                          "",
	"etc/keepalived/keepalived.conf": `global_defs {
    enable_script_security
    notify_fifo /run/keepalived.fifo root
    @lvs1 notify_priority_changes
}
include extra.conf
vrrp_instance SITE {
    virtual_ipaddress {
        192.0.2.10/24
    }
    notify "/usr/sbin/lvsguard notify"
    notify_master "/usr/sbin/lvsguard notify master"
    notify_backup /opt/none.sh
    # notify_fault /opt/comment.sh
}
`,
	"etc/keepalived/extra.conf":                                   "\n@lvs2 notify_stop '/opt/open/mail.sh'\n",
	"opt/open/mail.sh":                                            "",
	"run/systemd/system/":                                         "",
	"etc/systemd/system/lvsguard.service":                         "",
	"etc/systemd/system/multi-user.target.wants/lvsguard.service": "",
	"var/lib/lvsguard/journal.jsonl":                              "{}\n",
	"var/lib/lvsguard/journal.jsonl.1":                            "{}\n{}\n",
	"var/lib/lvsguard/state.json":                                 "{}\n",
}

func TestGather(t *testing.T) {
	root := tree(t, director)
	if err := os.Chmod(filepath.Join(root, "opt/open"), 0o777); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, root)
	f := Gather(t.Context(), Config{
		Root: root, Version: "1.0", Role: Director, Keepalived: "/etc/keepalived/keepalived.conf", ConfigID: "lvs1", FIFO: "/run/keepalived.fifo",
		Socket: filepath.Join(root, "run/none.sock"), StateDir: "/var/lib/lvsguard", JournalBytes: 1009,
	})
	if diff := cmp.Diff(before, snapshot(t, root)); diff != "" {
		t.Errorf("it has changed files:\n%s", diff)
	}

	check := func(what string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	check("release", f.Release, Fact[string]{Value: "6.1.0-32-amd64"})
	check("self", f.Self, Process{Capabilities: Fact[[]string]{Value: []string{netAdmin, netRaw, syslog}}, Root: true})
	check("guard", f.Guard, Guard{Socket: filepath.Join(root, "run/none.sock"), Answer: Fact[Answer]{Value: NoSocket}})
	check("modules", f.Modules, map[string]Fact[Module]{
		"ip_vs": {Value: Available}, "inet_diag": {Value: Available}, "tcp_diag": {Value: Loaded}, "nf_tables": {Value: Loaded},
		"nfnetlink_queue": {Value: Available}, "nft_queue": {Value: Absent}, "nft_compat": {Value: Absent}, "xt_NFQUEUE": {Value: Loaded},
	})
	check("sysctls", f.Sysctls, map[string]Fact[int]{
		"kernel.dmesg_restrict": {Value: 1}, "net.ipv4.tcp_syncookies": {Value: 1}, vs + "drop_entry": {Value: 1}, vs + "amemthresh": {Value: 1024},
		"net.ipv4.tcp_max_syn_backlog": {Unknown: `strconv.Atoi: parsing "many": invalid syntax`},
	})
	check("IPVS", f.IPVS.Loaded, true)
	var open []string // everything, where it is not root who runs this test
	for _, h := range f.Keepalived.Hooks {
		open = append(open, h.Open...)
	}
	all := strings.Join(open, " ")
	if !strings.Contains(all, "/opt/open") || os.Geteuid() == 0 && strings.Contains(all, "mail.sh") {
		t.Errorf("others may change %v, want /opt/open and no script", open)
	}
	for i := range f.Keepalived.Hooks {
		f.Keepalived.Hooks[i].Open = nil
	}
	check("keepalived", f.Keepalived, Keepalived{
		Version: Fact[string]{Value: "2.2.7"}, Path: "/etc/keepalived/keepalived.conf", Present: Fact[bool]{Value: true},
		Instances: []string{"SITE"}, FIFOs: []string{"/run/keepalived.fifo"}, Security: true, GuardFIFO: "/run/keepalived.fifo",
		Hooks: []Hook{
			{At: "keepalived.conf:11", Program: "/usr/sbin/lvsguard", Ours: true},
			{At: "keepalived.conf:13", Program: "/opt/none.sh", Missing: true},
			{At: "extra.conf:2", Program: "/opt/open/mail.sh"},
		},
	})
	check("unit", f.Unit, Unit{Systemd: true, File: "/etc/systemd/system/lvsguard.service", Enabled: true})
	free := f.State.Free
	if !free.known() || free.Value == 0 {
		t.Errorf("room: %+v", free)
	}
	f.State.Free = Fact[uint64]{}
	check("state", f.State, State{
		Path: "/var/lib/lvsguard", Exists: Fact[bool]{Value: true}, Writable: Fact[bool]{Value: true}, Needed: 1000, Journal: Fact[int64]{Value: 3},
	})
}

// snapshot is every file below root, with its mode, size and time.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err == nil {
			all[path] = fs.FormatFileInfo(info) + info.ModTime().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// On a host of which nothing can be read, and on one that has nothing.
func TestGatherNothing(t *testing.T) {
	empty := t.TempDir()
	f := Gather(t.Context(), Config{Root: empty, Role: Director, Keepalived: "/etc/keepalived.conf", Socket: filepath.Join(empty, "s"), StateDir: "/state"})
	if f.Release.known() || f.Self.Capabilities.known() || f.Modules["ip_vs"].known() || f.Memory.Total != nil {
		t.Errorf("something is known of nothing: %+v", f)
	}
	if f.Keepalived.Present.Value || f.Keepalived.Version.Value != "" || f.State.Exists.Value || f.Unit != (Unit{}) || len(f.Sysctls) != 0 {
		t.Errorf("something is there: %+v", f)
	}

	odd := tree(t, map[string]string{
		"proc/self/status": "CapEff:\tmany\n", "usr/sbin/keepalived": "Keepalived vX", "state": "no directory", "etc/keepalived.conf": "vrrp_instance A {\n",
	})
	f = Gather(t.Context(), Config{Root: odd, Role: Director, Keepalived: "/etc/keepalived.conf", Socket: filepath.Join(odd, "state"), StateDir: "/state"})
	if f.Self.Capabilities.known() || f.State.Exists.known() || f.Keepalived.Present.known() || f.Keepalived.Version.Value != "of an unknown version" {
		t.Errorf("something is known of what is broken: %+v", f)
	}
	if f.Guard.Answer != (Fact[Answer]{Value: Refuses}) {
		t.Errorf("a file for a socket: %+v", f.Guard.Answer)
	}
}

func TestGuard(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	g := gatherer{Config: Config{Socket: socket}, root: "/"}
	want := Guard{Socket: socket, Answer: Fact[Answer]{Value: Answers}, PID: os.Getpid(), Process: g.process("self")}
	if diff := cmp.Diff(want, g.guard()); diff != "" || !want.Process.Capabilities.known() {
		t.Errorf("a guard that listens (-want +got):\n%s", diff)
	}
	listener.Close()
	if got := g.guard(); got.Answer != (Fact[Answer]{Value: Refuses}) {
		t.Errorf("a guard that has died: %+v", got)
	}
	os.Remove(socket)
	if got := g.guard(); got.Answer != (Fact[Answer]{Value: NoSocket}) {
		t.Errorf("no guard: %+v", got)
	}
}

// The chains of others, as the kernel has them; and nothing is made there.
func TestChains(t *testing.T) {
	host := netns.New(t)
	list := func() []Chain {
		t.Helper()
		var got []Chain
		var err error
		host.Do(t, func() { got, err = chains() })
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := list(); len(got) != 0 {
		t.Errorf("a new host has %v", got)
	}
	const ruleset = `
table inet lvsguard {
	chain prerouting { type filter hook prerouting priority -310; policy accept; }
	chain sample { type filter hook prerouting priority -311; policy accept; }
}
table inet early {
	chain pre { type filter hook prerouting priority -350; policy drop; }
	chain plain { }
	chain in { type filter hook input priority -350; policy drop; }
}
table ip nat {
	chain PREROUTING { type nat hook prerouting priority -100; policy accept; }
}
table ip6 raw {
	chain PREROUTING { type filter hook prerouting priority -300; policy accept; }
}
table netdev lo {
	chain in { type filter hook ingress device "lo" priority 0; policy accept; }
}
`
	if _, err := host.Try(t, ruleset, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	before := host.Run(t, "nft", "list", "ruleset")
	want := map[Chain]bool{
		{Table: "inet early", Name: "pre", Hook: "prerouting", Priority: -350, Drops: true}:      true,
		{Table: "ip nat", Name: "PREROUTING", Hook: "prerouting", Priority: -100, Drops: false}:  true,
		{Table: "ip6 raw", Name: "PREROUTING", Hook: "prerouting", Priority: -300, Drops: false}: true,
		{Table: "netdev lo", Name: "in", Hook: "ingress", Priority: 0, Drops: false}:             true,
	}
	got := make(map[Chain]bool)
	for _, c := range list() {
		got[c] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
	}
	if after := host.Run(t, "nft", "list", "ruleset"); after != before {
		t.Errorf("the rules were\n%s\nand are\n%s", before, after)
	}
}

// This host's own facts give findings, whoever asks.
func TestThisHost(t *testing.T) {
	for _, role := range []Role{Director, Host} {
		f := Gather(t.Context(), Config{Role: role, Version: "test", Keepalived: "/etc/keepalived/keepalived.conf", Socket: filepath.Join(t.TempDir(), "s"), StateDir: t.TempDir()})
		if !f.Release.known() || !f.Self.Capabilities.known() || f.Memory.Total == nil || !f.Synchronised.known() {
			t.Errorf("release %+v, capabilities %+v, clock %+v", f.Release, f.Self.Capabilities, f.Synchronised)
		}
		for _, name := range diag {
			if m := f.Modules[name]; !m.known() {
				t.Errorf("%s: %+v", name, m)
			}
		}
		if found := Examine(f); len(found) < 5 {
			t.Errorf("%s: %+v", role, found)
		}
	}
}

func TestKnown(t *testing.T) {
	if f := known(7, errors.New("no")); f.known() || f.Value != 0 {
		t.Errorf("what was not read has the value %v", f.Value)
	}
}

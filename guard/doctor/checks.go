package doctor

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/lvsguard/lvsguard/guard/pressure"
)

// Names of capabilities.
const (
	netAdmin = "CAP_NET_ADMIN"
	netRaw   = "CAP_NET_RAW"
	bpf      = "CAP_BPF"
	syslog   = "CAP_SYSLOG"
	sysAdmin = "CAP_SYS_ADMIN" // which stands for the last two
)

func (p *Process) has(capability string) bool {
	have := p.Capabilities.Value
	return slices.Contains(have, capability) ||
		(capability == bpf || capability == syslog) && slices.Contains(have, sysAdmin)
}

// wantsTable says whether the guard has a table of nftables here.
func (f *Facts) wantsTable() bool { return f.Role == Director || f.Watches }

func configuration(f *Facts, r *report) {
	const subject = "configuration"
	if f.ConfigError != "" {
		r.add(Critical, subject, f.ConfigError, "the guard does not start with it, and one that runs keeps the old one", "lvsguard config check "+f.ConfigFile)
		return
	}
	if f.ConfigUnknown != "" {
		r.unknown(f, subject, "whether "+f.ConfigFile+" is good, and so this host's role: "+string(f.Role)+" is assumed", f.ConfigUnknown)
		return
	}
	if f.ClearSecrets {
		r.add(Warning, subject, "real servers are asked with a password or token over http", "whoever listens on the way can read it", "in lvsguard.yaml: servers: {metrics: [\"https://{address}:9100/metrics\"]}")
		return
	}
	if f.MetricsOpen {
		r.add(Warning, subject, "metrics are shown to whoever can reach their address", "it is not loopback, and they tell which services there are and how they fare", "in lvsguard.yaml: metrics: {bearer_token_file: …, tls_cert_file: …, tls_key_file: …}, or listen: \"127.0.0.1:9101\"")
		return
	}
	if f.MetricsClear {
		r.add(Warning, subject, "metrics are asked for with a password or token over http", "whoever listens on the way can read it", "in lvsguard.yaml: metrics: {tls_cert_file: …, tls_key_file: …}")
		return
	}
	if f.TellsAndShows {
		r.add(Advice, "alerts", "this host has receivers, and shows metrics", "if a Prometheus that watches it alerts too, everything comes twice", "in a fleet, in lvsguard.yaml: alerts: {receivers: []}; else leave it so")
	}
	what := f.ConfigFile + " is good"
	if f.ConfigFile == "" {
		what = "there is none: the defaults"
	}
	r.ok(subject, what+"; the role is "+string(f.Role))
}

func guardRuns(f *Facts, r *report) {
	const subject = "guard"
	start := "systemctl start lvsguard"
	if f.Unit.File == "" {
		start = "lvsguard run -c /etc/lvsguard/lvsguard.yaml"
	}
	g := &f.Guard
	switch {
	case !g.Answer.known():
		r.unknown(f, subject, "whether a guard answers on "+g.Socket, g.Answer.Unknown)
	case g.Answer.Value == NoSocket:
		r.add(Warning, subject, "no guard runs: there is no "+g.Socket, "nothing is counted, dropped or written down", start)
	case g.Answer.Value == Refuses:
		r.add(Warning, subject, "no guard runs: nobody listens on "+g.Socket, "a guard has died there and none has followed", start)
	case g.Answer.Value == Forbidden:
		r.unknown(f, subject, "whether a guard answers on "+g.Socket, "the socket is not open to you: become root, or join the group that control.group names")
	case g.Replaced:
		r.add(Advice, subject, fmt.Sprintf("the guard (pid %d) runs a program that has been replaced since", g.PID),
			"what has been installed is not what runs", "systemctl restart lvsguard")
	default:
		r.ok(subject, fmt.Sprintf("a guard answers on %s (pid %d)", g.Socket, g.PID))
	}
}

// capabilities are looked at of the guard that runs, and else of this process:
// one that is started as it was would have the same.
func capabilities(f *Facts, r *report) {
	const subject = "capabilities"
	who, p := "root", &f.Self
	remedy := "give it to this container, or run lvsguard on the host itself"
	switch {
	case f.Guard.Answer.Value == Answers:
		who, p = fmt.Sprintf("the guard (pid %d)", f.Guard.PID), &f.Guard.Process
		remedy = "in its unit: CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_SYSLOG"
	case !f.Self.Root:
		r.unknown(f, subject, "what a guard may do here", "no guard was reached, and you are not root, as it would be")
		return
	}
	if !p.Capabilities.known() {
		r.unknown(f, subject, "what "+who+" may do", p.Capabilities.Unknown)
		return
	}
	restricted := f.Sysctls["kernel.dmesg_restrict"]
	var missing int
	for _, c := range []struct {
		name     string
		wanted   bool
		severity Severity
		why      string
	}{
		{netAdmin, f.wantsTable(), Critical, "neither IPVS nor nftables answers without it: nothing is seen, and nothing can be dropped"},
		{netRaw, true, Warning, "handshakes cannot be watched on the wire without it"},
		{syslog, !restricted.known() || restricted.Value != 0, Warning, "the kernel's log cannot be read without it, which says when memory, conntrack or a backlog has overflowed"},
		{bpf, true, Advice, "without it the capture has only the classic filter, and sees what a flood drops: that costs processor time"},
	} {
		if c.wanted && !p.has(c.name) {
			missing++
			r.add(c.severity, subject, who+" has no "+c.name, c.why, remedy)
		}
	}
	if missing == 0 {
		r.ok(subject, who+" has all that a guard needs")
	}
}

// leastKernel is the oldest whose set elements are counted where a rule looks them
// up.
const leastMajor, leastMinor = 5, 7

func kernel(f *Facts, r *report) {
	const subject = "versions"
	if !f.Release.known() {
		r.unknown(f, subject, "which kernel this is", f.Release.Unknown)
		return
	}
	release := f.Release.Value
	major, minor, ok := parseRelease(release)
	switch {
	case !f.wantsTable():
	case !ok:
		r.unknown(f, subject, "whether this kernel is new enough", fmt.Sprintf("its release is %q", release))
		return
	case major < leastMajor || major == leastMajor && minor < leastMinor:
		r.add(Critical, subject, "the kernel is "+release, fmt.Sprintf("before Linux %d.%d a lookup does not raise an element's counter, and nothing is counted", leastMajor, leastMinor),
			"boot a newer kernel, as of Debian 11 or later")
		return
	}
	text := "kernel " + release + ", lvsguard " + f.Version
	if v := f.Keepalived.Version; f.Role == Director && v.known() && v.Value != "" {
		text += ", keepalived " + v.Value
	}
	r.ok(subject, text)
}

func parseRelease(release string) (major, minor int, ok bool) {
	words := strings.FieldsFunc(release, func(c rune) bool { return c < '0' || c > '9' })
	if len(words) < 2 || !strings.HasPrefix(release, words[0]+"."+words[1]) {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(words[0])
	minor, err2 := strconv.Atoi(words[1])
	return major, minor, err1 == nil && err2 == nil
}

func modules(f *Facts, r *report) {
	const subject = "kernel modules"
	good := true
	bad := func(s Severity, what, why, remedy string) {
		good = false
		r.add(s, subject, what, why, remedy)
	}
	look := func(name string, act func(Module)) {
		m := f.Modules[name]
		if !m.known() {
			good = false
			r.unknown(f, subject, "whether the kernel has "+name, m.Unknown)
			return
		}
		act(m.Value)
	}
	if f.Role == Director && !f.IPVS.Loaded {
		if f.Modules["ip_vs"].Value == Absent {
			bad(Critical, "this kernel has no IPVS", "a director without it balances nothing", "boot a kernel with IPVS; or, if this is no director, role: host in lvsguard.yaml")
		} else {
			bad(Warning, "ip_vs is not loaded", "IPVS serves nothing, and its settings cannot be made before it is loaded", "modprobe ip_vs && echo ip_vs >/etc/modules-load.d/ip_vs.conf; or, if this is no director, role: host in lvsguard.yaml")
		}
	}
	if f.wantsTable() && !f.Chains.known() {
		look("nf_tables", func(m Module) {
			if m == Absent {
				bad(Critical, "this kernel has no nf_tables", "the guard counts and drops by nftables", "boot a kernel with nf_tables, as Debian's are")
			}
		})
	}
	for _, name := range diag {
		look(name, func(m Module) {
			if m == Absent {
				bad(Warning, "this kernel has no "+name, "neither sockets nor accept queues can be read without it", "install the whole set of modules of this kernel (linux-modules-extra or linux-image)")
			}
		})
	}
	if good {
		r.ok(subject, "all are loaded, or are loaded when they are needed")
	}
}

// queueModules are what packets are handed over by, for samples.
var queueModules = []string{"nfnetlink_queue", "nft_queue", "nft_compat", "xt_NFQUEUE"}

// sampling is about the packets that the signatures match, which are looked at
// before they are dropped.
func sampling(f *Facts, r *report) {
	const subject = "sampling"
	if !f.wantsTable() {
		return
	}
	all := func(want func(Module) bool, names ...string) bool {
		return !slices.ContainsFunc(names, func(name string) bool {
			m := f.Modules[name]
			return !m.known() || !want(m.Value)
		})
	}
	is := func(m Module) bool { return m == Loaded || m == Available }
	isNot := func(m Module) bool { return m == Absent }
	switch {
	case all(is, "nfnetlink_queue", "nft_queue"):
		r.ok(subject, "a flood's packets are sampled by nft_queue")
	case all(is, "nfnetlink_queue", "nft_compat", "xt_NFQUEUE"):
		r.ok(subject, "a flood's packets are sampled by the target NFQUEUE, through nft_compat")
	case all(isNot, "nfnetlink_queue"), all(isNot, "nft_queue", "nft_compat"), all(isNot, "nft_queue", "xt_NFQUEUE"):
		r.add(Advice, subject, "this kernel queues no packets", "samples of a flood come from the capture (AF_PACKET) alone, which is shown a small part of it",
			"boot a kernel with CONFIG_NFT_QUEUE and CONFIG_NETFILTER_NETLINK_QUEUE, as Debian's are")
	default:
		var reason string
		for _, name := range queueModules {
			if m := f.Modules[name]; !m.known() {
				reason = cmp.Or(reason, m.Unknown)
			}
		}
		r.unknown(f, subject, "whether this kernel can queue packets for samples", reason)
	}
}

// setting gives a sysctl that is there and known.
func (f *Facts) setting(name string) *int {
	s, there := f.Sysctls[name]
	if !there || !s.known() {
		return nil
	}
	return &s.Value
}

const vs = "net.ipv4.vs."

func defence(f *Facts, r *report) {
	const subject = "IPVS settings"
	if f.Role != Director || !f.IPVS.Loaded {
		return
	}
	before := len(r.found)
	for _, name := range []string{"drop_entry", "secure_tcp", "amemthresh", "run_estimation"} {
		if s := f.Sysctls[vs+name]; !s.known() {
			r.unknown(f, subject, "what "+vs+name+" is", s.Unknown)
		}
	}
	if !f.IPVS.Services.known() {
		r.unknown(f, subject, "what IPVS serves, and so whether answers pass this director", f.IPVS.Services.Unknown)
	}
	in := pressure.AdviceInput{
		OneWay:   f.IPVS.OneWay,
		Memory:   f.Memory,
		PageSize: f.PageSize,
		Defence: pressure.Defence{
			DropEntry: f.setting(vs + "drop_entry"), DropPacket: f.setting(vs + "drop_packet"), SecureTCP: f.setting(vs + "secure_tcp"),
		},
	}
	if pages := f.setting(vs + "amemthresh"); pages != nil && *pages >= 0 {
		in.Defence.AmemThresh = new(uint64(*pages))
	}
	for _, a := range pressure.Advice(in) {
		severity := Warning
		if a.Severity == pressure.LevelCritical {
			severity = Critical
		}
		r.add(severity, subject, a.What, a.Why, a.Remedy)
	}
	if e := f.setting(vs + "run_estimation"); e != nil && *e == 0 {
		r.add(Warning, subject, vs+"run_estimation is 0", "IPVS's totals stand still, so that no rate of connections and no forecast can be made of them", "sysctl -w "+vs+"run_estimation=1")
	}
	if s := f.setting(vs + "sloppy_tcp"); s != nil && *s != 0 {
		r.add(Advice, subject, fmt.Sprintf("%ssloppy_tcp is %d", vs, *s), "any TCP segment makes an entry in the connection table, and not only a SYN: a flood of ACKs fills it as well", "sysctl -w "+vs+"sloppy_tcp=0")
	}
	if len(r.found) == before {
		r.ok(subject, "drop_entry, secure_tcp and amemthresh are well set")
	}
}

func lowMemory(f *Facts, r *report) {
	m := &f.Memory
	if m.LowTotal == nil || m.Total == nil || *m.LowTotal >= *m.Total {
		return
	}
	r.add(Warning, "memory", fmt.Sprintf("this is a 32-bit kernel: of %d MB of memory it can use %d MB for itself", *m.Total/1e6, *m.LowTotal/1e6),
		"connections are kept in that part alone: a flood fills it in seconds, however much memory there is", "install a 64-bit kernel (as Debian's linux-image-amd64, which runs 32-bit programs too)")
}

func conntrack(f *Facts, r *report) {
	const subject = "conntrack"
	c := &f.Conntrack
	switch {
	case !c.InUse:
		r.ok(subject, "not in use")
		return
	case c.Entries == nil || c.Limit == nil:
		r.unknown(f, subject, "how full its table is", cmp.Or(c.Unknown["entries"], c.Unknown["limit_entries"]))
		return
	}
	const small = 65536
	if *c.Limit == 0 {
		r.ok(subject, fmt.Sprintf("its table has %d entries, and no limit", *c.Entries))
		return
	}
	share := float64(*c.Entries) / float64(*c.Limit)
	what := fmt.Sprintf("its table has %d of %d entries", *c.Entries, *c.Limit)
	const why = "when it is full, packets of new connections are dropped, whatever is meant for them"
	remedy := fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", max(4**c.Limit, 4*small))
	switch {
	case share >= 0.9:
		r.add(Critical, subject, what, why, remedy)
	case share >= 0.75:
		r.add(Warning, subject, what, why, remedy)
	case *c.Limit < small && f.Role == Director:
		r.add(Advice, subject, what, "a director has more connections than that in a bad minute: "+why, remedy)
	default:
		r.ok(subject, what)
	}
}

// listening looks at what decides how a host that accepts connections by itself
// stands a flood.
func listening(f *Facts, r *report) {
	const subject = "TCP settings"
	if f.Role != Host {
		return
	}
	before := len(r.found)
	for _, s := range []struct {
		name     string
		bad      func(int) bool
		severity Severity
		why      string
		remedy   string
	}{
		{"net.ipv4.tcp_syncookies", func(v int) bool { return v == 0 }, Critical, "without SYN cookies a flood that fills a backlog keeps everybody out", "1"},
		{"net.ipv4.tcp_syncookies", func(v int) bool { return v > 1 }, Advice, "cookies are sent for every SYN, which is meant for tests: they take TCP's options from connections", "1"},
		{"net.ipv4.tcp_max_syn_backlog", func(v int) bool { return v < 1024 }, Advice, "it bounds how many connections may be half open before cookies are sent", "4096"},
		{"net.core.somaxconn", func(v int) bool { return v < 1024 }, Advice, "no accept queue can be longer, whatever a program asks for, and bursts are dropped", "4096"},
	} {
		v, there := f.Sysctls[s.name]
		switch {
		case !there:
		case !v.known():
			if s.severity == Advice && s.name == "net.ipv4.tcp_syncookies" {
				break // said before
			}
			r.unknown(f, subject, "what "+s.name+" is", v.Unknown)
		case s.bad(v.Value):
			r.add(s.severity, subject, fmt.Sprintf("%s is %d", s.name, v.Value), s.why, "sysctl -w "+s.name+"="+s.remedy)
		}
	}
	if len(r.found) == before {
		r.ok(subject, "SYN cookies are on, and backlogs are long enough")
	}
}

// guardPriority is that of the guard's chain at prerouting.
const guardPriority = -310

func hooks(f *Facts, r *report) {
	const subject = "hook order"
	if !f.wantsTable() {
		return
	}
	if !f.Chains.known() {
		r.unknown(f, subject, "which chains of nftables see packets before the guard", f.Chains.Unknown)
		return
	}
	early := 0
	for _, c := range f.Chains.Value {
		if c.Hook == "prerouting" && c.Priority >= guardPriority {
			continue
		}
		early++
		what := fmt.Sprintf("chain %s %s (%s, priority %d) sees packets before the guard", c.Table, c.Name, c.Hook, c.Priority)
		remedy := fmt.Sprintf("nft list chain %s %s; where it can wait: priority -300", c.Table, c.Name)
		if c.Hook == "ingress" {
			remedy = fmt.Sprintf("nft list chain %s %s; where it can wait: hook prerouting, priority -300", c.Table, c.Name)
		}
		if c.Drops {
			r.add(Warning, subject, what+", and drops all that it does not accept", "SYNs that it drops are not counted: a flood looks smaller than it is", remedy)
		} else {
			r.add(Advice, subject, what, "if it drops SYNs, they are not counted, and a flood looks smaller than it is", remedy)
		}
	}
	if early == 0 {
		r.ok(subject, "no other chain of nftables sees packets before the guard")
	}
}

func wiring(f *Facts, r *report) {
	const subject = "keepalived"
	k := &f.Keepalived
	if f.Role != Director {
		return
	}
	switch {
	case !k.Present.known():
		r.unknown(f, subject, "what keepalived's configuration says", k.Present.Unknown)
		return
	case !k.Present.Value && k.GuardInstances:
		r.ok(subject, "the instances are those of lvsguard's configuration")
		return
	case !k.Present.Value && k.Version.Value != "":
		r.add(Warning, subject, "keepalived is installed, and there is no "+k.Path, "which addresses move between directors is not known, and a standby is not armed before it takes over", "in lvsguard.yaml: keepalived: {config: FILE}")
		return
	case !k.Present.Value:
		r.add(Advice, subject, "there is no keepalived here", "with no VRRP instance known, a standby is not armed before it takes over; where there is none, all is well", "if another program moves addresses, in lvsguard.yaml: keepalived: {instances: {NAME: [ADDRESS]}}")
		return
	}
	before := len(r.found)
	if len(k.Skipped) > 0 {
		r.add(Warning, subject, fmt.Sprintf("%d parts of its configuration are not understood; the first is %s", len(k.Skipped), k.Skipped[0]), "an address or an instance may be missing in what the guard knows", "keepalived --config-test; and instances by hand in lvsguard.yaml: keepalived: {instances: {NAME: [ADDRESS]}}")
	}
	if len(k.Instances) == 0 && !k.GuardInstances {
		r.add(Advice, subject, k.Path+" names no VRRP instance", "the guard knows no roles, and arms nothing ahead of a failover", "if another program moves addresses, in lvsguard.yaml: keepalived: {instances: {NAME: [ADDRESS]}}")
	}
	named := slices.Contains(k.FIFOs, k.GuardFIFO)
	hook := slices.ContainsFunc(k.Hooks, func(h Hook) bool { return h.Ours })
	switch {
	case k.GuardFIFO != "" && !named:
		r.add(Warning, subject, "the guard reads "+k.GuardFIFO+", and keepalived does not write there", "changes of role and failed health checks are not told", "in keepalived.conf, global_defs: notify_fifo "+k.GuardFIFO+" root")
	case k.GuardFIFO == "" && len(k.FIFOs) > 0 && !hook:
		r.add(Advice, subject, "keepalived writes its events to "+k.FIFOs[0]+", and the guard does not read them", "roles are looked at once a second all the same, but failed health checks are not seen", "if no other program reads it, in lvsguard.yaml: keepalived: {fifo: "+k.FIFOs[0]+"}")
	case k.GuardFIFO == "" && !hook && len(k.Instances) > 0:
		r.add(Advice, subject, "keepalived tells the guard nothing", "roles are looked at once a second all the same, but failed health checks are not seen", "in keepalived.conf, global_defs: notify_fifo /run/keepalived.fifo root; in lvsguard.yaml: keepalived: {fifo: /run/keepalived.fifo}")
	}
	if len(r.found) == before {
		how := "the guard reads " + k.GuardFIFO
		if k.GuardFIFO == "" {
			how = "it calls the guard's hook"
		}
		r.ok(subject, fmt.Sprintf("instances %s; %s", strings.Join(k.Instances, ", "), how))
	}
}

// scripts looks at who could have keepalived run something else.
func scripts(f *Facts, r *report) {
	const subject = "notify scripts"
	k := &f.Keepalived
	if f.Role != Director || len(k.Hooks) == 0 {
		return
	}
	before := len(r.found)
	for _, h := range k.Hooks {
		switch {
		case h.Missing:
			r.add(Warning, subject, h.At+" calls "+h.Program+", which is not there", "keepalived disables a script that it cannot find", "write there where it is: command -v "+path.Base(h.Program))
		case len(h.Open) > 0:
			r.add(Critical, subject, h.At+" calls "+h.Program+", and others than root may change "+strings.Join(h.Open, ", "), "keepalived runs it: who changes it has root's rights, and with enable_script_security it is not run at all",
				"chown root:root "+strings.Join(h.Open, " ")+" && chmod go-w "+strings.Join(h.Open, " "))
		}
	}
	if !k.Security {
		r.add(Advice, subject, "enable_script_security is not set in "+k.Path, "keepalived runs scripts as root that others may have changed", "in keepalived.conf, global_defs: enable_script_security")
	}
	if len(r.found) == before {
		r.ok(subject, "only root may change them, as "+k.Hooks[0].Program)
	}
}

func clock(f *Facts, r *report) {
	const subject = "clock"
	switch {
	case !f.Synchronised.known():
		r.unknown(f, subject, "whether it is synchronised", f.Synchronised.Unknown)
	case !f.Synchronised.Value:
		r.add(Advice, subject, "it is not synchronised", "nothing is decided by it, but the journals of two hosts cannot be laid side by side", "apt-get install chrony")
	default:
		r.ok(subject, "synchronised")
	}
}

func unit(f *Facts, r *report) {
	const subject = "service unit"
	u := &f.Unit
	switch {
	case !u.Systemd:
		r.add(Advice, subject, "this host is not run by systemd", "somebody else must start the guard, restart it when it dies, and bound its memory and rights", "as deploy/lvsguard.service does, start: lvsguard run -c /etc/lvsguard/lvsguard.yaml")
	case u.File == "":
		r.add(Warning, subject, "lvsguard.service is not installed", "nothing starts the guard with the host, or restarts it when it dies", "make install && systemctl daemon-reload && systemctl enable --now lvsguard")
	case !u.Enabled:
		r.add(Warning, subject, u.File+" is not enabled", "nothing starts the guard with the host", "systemctl enable lvsguard")
	default:
		r.ok(subject, u.File+" is enabled")
	}
}

func state(f *Facts, r *report) {
	const subject = "state directory"
	s := &f.State
	before := len(r.found)
	running := f.Guard.Answer.Value == Answers
	switch {
	case !s.Exists.known():
		r.unknown(f, subject, "whether there is "+s.Path, s.Exists.Unknown)
		return
	case !s.Exists.Value && running:
		r.add(Warning, subject, "there is no "+s.Path+", and a guard runs", "its journal, toggle and leases are elsewhere, or gone with a restart", "with the directory that the guard was started with: lvsguard --state-dir=DIR doctor")
		return
	case !s.Exists.Value:
		r.ok(subject, s.Path+" is made when the guard is started")
		return
	case !s.Writable.known():
		r.unknown(f, subject, "whether "+s.Path+" can be written", s.Writable.Unknown)
	case !s.Writable.Value:
		r.add(Critical, subject, s.Path+" cannot be written", "journal, toggle and operators' leases are lost with a restart", "mount -o remount,rw its file system, or chown root:root "+s.Path)
	}
	switch {
	case !s.Free.known():
		r.unknown(f, subject, "how much room there is", s.Free.Unknown)
	case s.Free.Value < s.Needed:
		r.add(Warning, subject, fmt.Sprintf("there are %d MB left for %s, and the journal may take %d MB more", s.Free.Value/1e6, s.Path, s.Needed/1e6), "when the disk is full, what happens is not written down", "make room there, or in lvsguard.yaml: journal: {max_bytes: 1048576}")
	}
	switch {
	case !s.Journal.known():
		r.unknown(f, subject, "how it is with the journal", s.Journal.Unknown)
	case s.Journal.Value < 0 && running:
		r.add(Warning, subject, "a guard runs, and there is no journal in "+s.Path, "it writes elsewhere, or cannot write", "lvsguard status; with another directory: lvsguard --state-dir=DIR doctor")
	}
	if len(r.found) == before {
		r.ok(subject, s.Path+" can be written, and has room")
	}
}

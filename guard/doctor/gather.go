package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
)

// A Config tells Gather where to look, and what the guard's configuration says.
type Config struct {
	// Root is what files are below; empty: "/". What is asked of the kernel by
	// other ways than files is that of this host all the same.
	Root    string
	Version string // of this program

	// These come into the facts as they are.
	ConfigFile, ConfigError, ConfigUnknown                 string
	ClearSecrets, MetricsOpen, MetricsClear, TellsAndShows bool

	Role    Role
	Watches bool // addresses are counted besides those of IPVS

	Keepalived string // its configuration
	ConfigID   string // that it is started with
	FIFO       string // that the guard reads; empty: none
	Instances  bool   // the guard's configuration names the instances

	Socket   string // the guard's
	StateDir string
	// JournalBytes is what the journal may take at most, all its files together.
	JournalBytes uint64
}

// journalName is the journal's file in the state directory.
const journalName = "journal.jsonl"

// dialTimeout is for a guard that is stopped.
const dialTimeout = 2 * time.Second

// maxFile bounds what is read of a file.
const maxFile = 16 << 20

// Gather reads the facts of this host. It writes nothing and starts nothing.
func Gather(ctx context.Context, cfg Config) Facts {
	g := gatherer{Config: cfg, root: cfg.Root}
	if g.root == "" {
		g.root = "/"
	}
	f := Facts{
		Role: cfg.Role, Watches: cfg.Watches, Version: cfg.Version,
		ConfigFile: cfg.ConfigFile, ConfigError: cfg.ConfigError, ConfigUnknown: cfg.ConfigUnknown, ClearSecrets: cfg.ClearSecrets, TellsAndShows: cfg.TellsAndShows,
		MetricsOpen: cfg.MetricsOpen, MetricsClear: cfg.MetricsClear,
		PageSize: uint64(os.Getpagesize()),
	}
	f.Release = known(g.word("proc/sys/kernel/osrelease"))
	f.Self = g.process("self")
	f.Guard = g.guard()
	f.Modules = g.modules(f.Release)
	for _, name := range diag {
		if !f.Modules[name].known() && socketsAnswer(ctx) {
			f.Modules[name] = Fact[Module]{Value: Loaded}
		}
	}
	f.Sysctls = g.sysctls()
	f.IPVS = g.ipvs(ctx, f.Sysctls)
	sample := pressure.New(pressure.Config{Root: g.root}).Sample(time.Now(), pressure.Given{})
	f.Memory, f.Conntrack = sample.Memory, sample.Conntrack
	f.Chains = known(chains())
	f.Keepalived = g.keepalived()
	f.Synchronised = known(synchronised())
	f.Unit = g.unit()
	f.State = g.state(f.Self.Root)
	return f
}

type gatherer struct {
	Config
	root string
}

func (g *gatherer) path(name string) string { return filepath.Join(g.root, name) }

func (g *gatherer) there(name string) bool {
	_, err := os.Stat(g.path(name))
	return err == nil
}

// read reads a file as far as it is not endless.
func (g *gatherer) read(name string) ([]byte, error) {
	f, err := os.Open(g.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func (g *gatherer) word(name string) (string, error) {
	text, err := g.read(name)
	return strings.TrimSpace(string(text)), err
}

// capabilityBits are those that matter, as linux/capability.h numbers them.
var capabilityBits = []struct {
	name string
	bit  int
}{
	{netAdmin, unix.CAP_NET_ADMIN}, {netRaw, unix.CAP_NET_RAW}, {sysAdmin, unix.CAP_SYS_ADMIN},
	{syslog, unix.CAP_SYSLOG}, {bpf, unix.CAP_BPF},
}

// process reads what a process may do; pid may be "self".
func (g *gatherer) process(pid string) Process {
	var p Process
	text, err := g.read("proc/" + pid + "/status")
	if err != nil {
		p.Capabilities.Unknown = err.Error()
		return p
	}
	p.Capabilities.Unknown = g.path("proc/"+pid+"/status") + " has no line CapEff"
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		words := strings.Fields(value)
		switch {
		case key == "Uid" && len(words) > 1:
			p.Root = words[1] == "0" // the effective one
		case key == "CapEff" && len(words) == 1:
			bits, err := strconv.ParseUint(words[0], 16, 64)
			if err != nil {
				p.Capabilities.Unknown = "CapEff: " + err.Error()
				return p
			}
			p.Capabilities = Fact[[]string]{Value: []string{}}
			for _, c := range capabilityBits {
				if bits&(1<<c.bit) != 0 {
					p.Capabilities.Value = append(p.Capabilities.Value, c.name)
				}
			}
		}
	}
	return p
}

// guard finds the guard that listens on the control socket.
func (g *gatherer) guard() Guard {
	found := Guard{Socket: g.Socket}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).Dial("unix", g.Socket)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		found.Answer.Value = NoSocket
		return found
	case errors.Is(err, syscall.ECONNREFUSED):
		found.Answer.Value = Refuses
		return found
	case errors.Is(err, fs.ErrPermission):
		found.Answer.Value = Forbidden
		return found
	default:
		found.Answer.Unknown = err.Error()
		return found
	}
	defer conn.Close()
	found.Answer.Value = Answers
	if found.PID, err = peer(conn.(*net.UnixConn)); err != nil {
		found.Process.Capabilities.Unknown = err.Error()
		return found
	}
	pid := strconv.Itoa(found.PID)
	found.Process = g.process(pid)
	if exe, err := os.Readlink(g.path("proc/" + pid + "/exe")); err == nil {
		found.Replaced = strings.HasSuffix(exe, " (deleted)")
	}
	return found
}

// peer is the process that listens at the other end.
func peer(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid, errors.Join(err, controlErr)
}

// diag are the modules by which sockets are read.
var diag = []string{"inet_diag", "tcp_diag"}

// socketsAnswer tries it. It is for where no list of modules can be read, and so
// none be loaded.
func socketsAnswer(ctx context.Context) bool {
	r, err := pressure.OpenSockets(pressure.SocketsConfig{})
	if err != nil {
		return false
	}
	defer r.Close()
	return r.Read(ctx, pressure.SocketsAsk{}).Unknown["listeners"] == ""
}

// modules looks for parts of the kernel, first for what is loaded, then in the
// lists of what can be.
func (g *gatherer) modules(release Fact[string]) map[string]Fact[Module] {
	all := make(map[string]Fact[Module])
	dir := "lib/modules/" + release.Value
	builtin, builtinErr := g.read(dir + "/modules.builtin")
	files, filesErr := g.read(dir + "/modules.dep")
	has := func(list []byte, name string) bool {
		for line := range bytes.Lines(list) {
			file, _, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
			base, _, _ := strings.Cut(filepath.Base(string(file)), ".ko")
			if strings.ReplaceAll(base, "-", "_") == name {
				return true
			}
		}
		return false
	}
	for _, name := range slices.Concat([]string{"ip_vs", "nf_tables"}, queueModules, diag) {
		switch {
		case g.there("sys/module/"+name) || has(builtin, name):
			all[name] = Fact[Module]{Value: Loaded}
		case has(files, name):
			all[name] = Fact[Module]{Value: Available}
		case !release.known() || builtinErr != nil || filesErr != nil:
			reason := release.Unknown
			if err := errors.Join(builtinErr, filesErr); reason == "" && err != nil {
				reason = "it is not loaded, and what there is cannot be read: " + strings.ReplaceAll(err.Error(), "\n", "; ")
			}
			all[name] = Fact[Module]{Unknown: reason}
		default:
			all[name] = Fact[Module]{Value: Absent}
		}
	}
	return all
}

// sysctls reads settings but for IPVS's.
func (g *gatherer) sysctls() map[string]Fact[int] {
	all := make(map[string]Fact[int])
	for _, name := range []string{
		"kernel.dmesg_restrict", "net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_syncookies",
	} {
		text, err := g.word("proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		value := 0
		if err == nil {
			value, err = strconv.Atoi(text)
		}
		all[name] = known(value, err)
	}
	return all
}

// ipvs reads what IPVS serves, and adds its settings.
func (g *gatherer) ipvs(ctx context.Context, sysctls map[string]Fact[int]) IPVS {
	client, err := ipvs.Open(ipvs.Config{Proc: g.path("proc")})
	if err != nil {
		return IPVS{Services: Fact[int]{Unknown: err.Error()}}
	}
	defer client.Close()
	settings, err := client.Defence()
	if err != nil {
		return IPVS{Loaded: !errors.Is(err, ipvs.ErrAbsent), Services: Fact[int]{Unknown: err.Error()}}
	}
	for s := range settings.All() {
		if !errors.Is(s.Err, fs.ErrNotExist) {
			sysctls[vs+s.Name] = known(s.Value, s.Err)
		}
	}
	found := IPVS{Loaded: true}
	services, err := client.Services(ctx)
	found.Services = known(len(services), err)
	for _, s := range services {
		for _, rs := range s.RealServers {
			found.OneWay = found.OneWay || rs.Method == ipvs.DR || rs.Method == ipvs.TUN
		}
	}
	return found
}

// chains lists the base chains of others that see packets at or before
// prerouting.
func chains() ([]Chain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	all, err := conn.ListChains()
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("nftables answers only to CAP_NET_ADMIN: %w", err)
	}
	if err != nil {
		return nil, err
	}
	early := []Chain{}
	for _, c := range all {
		hook := hookName(c)
		if hook == "" || c.Priority == nil || c.Table.Name == "lvsguard" && c.Table.Family == nftables.TableFamilyINet {
			continue
		}
		early = append(early, Chain{
			Table: familyName(c.Table.Family) + " " + c.Table.Name, Name: c.Name, Hook: hook, Priority: int(*c.Priority),
			Drops: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
		})
	}
	return early, nil
}

// hookName names the hooks that matter. Their numbers depend on the family.
func hookName(c *nftables.Chain) string {
	if c.Hooknum == nil {
		return "" // no base chain
	}
	switch c.Table.Family {
	case nftables.TableFamilyNetdev:
		if *c.Hooknum == unix.NF_NETDEV_INGRESS {
			return "ingress"
		}
	case nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6:
		const inetIngress = 5 // NF_INET_INGRESS
		switch *c.Hooknum {
		case unix.NF_INET_PRE_ROUTING:
			return "prerouting"
		case inetIngress:
			return "ingress"
		}
	}
	return ""
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return "ip"
}

// keepalived reads its configuration, and finds the scripts that it calls.
func (g *gatherer) keepalived() Keepalived {
	k := Keepalived{Path: g.Config.Keepalived, GuardFIFO: g.FIFO, GuardInstances: g.Instances}
	if g.Role != Director {
		return k
	}
	k.Version = known(g.keepalivedVersion())
	conf, err := keepalived.ReadConfig(g.path(k.Path), g.ConfigID)
	if errors.Is(err, fs.ErrNotExist) {
		return k
	}
	if k.Present = known(err == nil, err); err != nil {
		return k
	}
	for _, i := range conf.Instances {
		k.Instances = append(k.Instances, i.Name)
	}
	for _, s := range conf.Skipped {
		k.Skipped = append(k.Skipped, s.String())
	}
	k.FIFOs = conf.NotifyFIFOs
	seen := make(map[string]bool)
	for _, file := range conf.Files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it was there a moment ago
		}
		number := 0
		for line := range strings.Lines(string(text)) {
			number++
			words := strings.Fields(line)
			// Lines for one of several hosts begin with its name.
			if len(words) > 0 && strings.HasPrefix(words[0], "@") {
				words = words[1:]
			}
			if len(words) == 0 {
				continue
			}
			k.Security = k.Security || words[0] == "enable_script_security"
			if !strings.HasPrefix(words[0], "notify") || words[0] == "notify_fifo" || len(words) < 2 {
				continue
			}
			program := strings.Trim(words[1], `"'`)
			if !filepath.IsAbs(program) || seen[program] {
				continue
			}
			seen[program] = true
			h := Hook{
				At: fmt.Sprintf("%s:%d", filepath.Base(file), number), Program: program,
				Ours: strings.HasPrefix(filepath.Base(program), "lvsguard"),
			}
			h.Open, h.Missing = g.open(program)
			k.Hooks = append(k.Hooks, h)
		}
	}
	return k
}

// open lists what others than root could change on the way to a program, by the
// rule by which keepalived refuses it.
func (g *gatherer) open(program string) (parts []string, missing bool) {
	for at := program; ; at = filepath.Dir(at) {
		info, err := os.Stat(g.path(at))
		if err != nil {
			return nil, true
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid != 0 || st.Gid != 0 && st.Mode&unix.S_IWGRP != 0 || st.Mode&unix.S_IWOTH != 0 {
			parts = append(parts, at)
		}
		if at == "/" || at == "." {
			return parts, false
		}
	}
}

// keepalivedVersion finds the version in the program itself, which is not started
// for that. Empty: there is none.
func (g *gatherer) keepalivedVersion() (string, error) {
	for _, name := range []string{"usr/sbin/keepalived", "usr/local/sbin/keepalived", "sbin/keepalived"} {
		text, err := g.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return versionIn(text), nil
	}
	return "", nil
}

// versionIn finds "Keepalived v2.2.7 (01/16,2022)".
func versionIn(program []byte) string {
	const mark = "Keepalived v"
	for {
		_, rest, found := bytes.Cut(program, []byte(mark))
		if !found {
			return "of an unknown version"
		}
		end := 0
		for end < len(rest) && end < 20 && (rest[end] == '.' || rest[end] >= '0' && rest[end] <= '9') {
			end++
		}
		if end > 0 {
			return string(rest[:end])
		}
		program = rest
	}
}

// synchronised asks the kernel, and sets nothing.
func synchronised() (bool, error) {
	var t unix.Timex // without modes nothing is changed
	clockState, err := unix.Adjtimex(&t)
	if err != nil {
		return false, fmt.Errorf("read the clock's state: %w", err)
	}
	return clockState != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, nil
}

// unit looks where systemd does.
func (g *gatherer) unit() Unit {
	const name = "lvsguard.service"
	u := Unit{Systemd: g.there("run/systemd/system")}
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		if g.there(filepath.Join(dir, name)) {
			u.File = filepath.Join(dir, name)
			break
		}
	}
	// A link in any target's directory has it started.
	links, _ := filepath.Glob(g.path("etc/systemd/system/*.wants/" + name))
	u.Enabled = len(links) > 0
	return u
}

// state looks at the state directory without writing there.
func (g *gatherer) state(root bool) State {
	s := State{Path: g.StateDir}
	dir := g.path(s.Path)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", s.Path)
	}
	if s.Exists = known(err == nil, err); err != nil {
		return s
	}
	switch err := unix.Access(dir, unix.W_OK); {
	case err == nil:
		s.Writable.Value = true
	case !root && errors.Is(err, fs.ErrPermission):
		s.Writable.Unknown = "it is not open to you, and the guard is root"
	}

	entries, err := os.ReadDir(dir)
	var has int64 // bytes of the journal's files
	size := int64(-1)
	for _, e := range entries {
		if info, infoErr := e.Info(); infoErr == nil && strings.HasPrefix(e.Name(), journalName) {
			has += info.Size()
			if e.Name() == journalName {
				size = info.Size()
			}
		}
	}
	s.Journal = known(size, err)
	s.Needed = g.JournalBytes - min(g.JournalBytes, uint64(has))
	var room unix.Statfs_t
	err = unix.Statfs(dir, &room)
	s.Free = known(room.Bavail*uint64(room.Bsize), err)
	return s
}

package keepalived

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/internal/netns"
)

// notifyHelper makes the test binary a notify script: it says "look again" to
// the socket named by the argument after it, and appends the rest to a file.
const notifyHelper = "notify-helper"

func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == notifyHelper {
		os.Exit(notify(os.Args[2], os.Args[3], os.Args[4:]))
	}
	os.Exit(m.Run())
}

func notify(socket, record string, args []string) int {
	file, err := os.OpenFile(record, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer file.Close()
	fmt.Fprintln(file, strings.Join(args, " "))
	if err := LookAgain(socket); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

var (
	vip4 = netip.MustParseAddr("192.0.2.10")
	vip6 = netip.MustParseAddr("2001:db8::10")
)

const pairConfig = `
global_defs {
    enable_script_security
    script_user nobody
    notify_fifo {{dir}}/fifo root
    vrrp_version 3
}
vrrp_instance VI_4 {
    state BACKUP
    interface eth0
    virtual_router_id 51
    priority {{priority}}
    advert_int 0.2
    virtual_ipaddress {
        192.0.2.10/24
    }
    notify "{{binary}} notify-helper {{dir}}/look.sock {{dir}}/record"
    notify_master "{{binary}} notify-helper {{dir}}/look.sock {{dir}}/record master"
}
vrrp_instance VI_6 {
    state BACKUP
    interface eth0
    virtual_router_id 52
    priority {{priority}}
    advert_int 0.2
    virtual_ipaddress {
        fe80::5/64
        2001:db8::10/64
    }
}
`

// director is a host that keepalived runs on.
type director struct {
	host *netns.Host
	dir  string
	cmd  *exec.Cmd
	// What has come in, under mu.
	mu     sync.Mutex
	events []Event
	gaps   []error
	looks  int
}

// newDirector prepares keepalived's configuration and reads its FIFO and hook.
func newDirector(t *testing.T, host *netns.Host, address string, priority int) *director {
	t.Helper()
	d := &director{host: host, dir: publicDir(t)}
	host.Run(t, "ip", "address", "add", address, "dev", "eth0")

	binary := filepath.Join(d.dir, "lvsguard-test")
	copyFile(t, binary, os.Args[0])
	record := filepath.Join(d.dir, "record")
	writeFile(t, record, "")
	if err := os.Chmod(record, 0o666); err != nil {
		t.Fatal(err)
	}
	writeFile(t, d.config(), strings.NewReplacer(
		"{{dir}}", d.dir,
		"{{binary}}", binary,
		"{{priority}}", fmt.Sprint(priority),
	).Replace(pairConfig))

	listener, err := Listen(filepath.Join(d.dir, "look.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := listener.Run(ctx, func() { d.note(func() { d.looks++ }) }); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		err := FIFO{Path: d.fifo()}.Run(ctx,
			func(e Event) { d.note(func() { d.events = append(d.events, e) }) },
			func(err error) { d.note(func() { d.gaps = append(d.gaps, err) }) })
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		listener.Close()
	})
	return d
}

func (d *director) config() string { return filepath.Join(d.dir, "keepalived.conf") }
func (d *director) fifo() string   { return filepath.Join(d.dir, "fifo") }

func (d *director) note(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// start runs keepalived until the test ends.
func (d *director) start(t *testing.T, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command("keepalived", append(args, "--vrrp", "--dont-fork", "--log-console",
		"--use-file", d.config(), "--pid", filepath.Join(d.dir, "pid"), "--vrrp_pid", filepath.Join(d.dir, "vrrp.pid"))...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.host.Do(t, func() { err = d.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	cmd := d.cmd
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Logf("keepalived's log:\n%s", readFileText(t, log.Name()))
		}
	})
}

// crash kills keepalived, child first, so that neither cleans up.
func (d *director) crash(t *testing.T) {
	t.Helper()
	var child int
	if _, err := fmt.Sscan(readFileText(t, filepath.Join(d.dir, "vrrp.pid")), &child); err != nil {
		t.Fatal(err)
	}
	// The parent is stopped first, or it would start another child.
	for _, kill := range []struct {
		pid    int
		signal syscall.Signal
	}{{d.cmd.Process.Pid, syscall.SIGSTOP}, {child, syscall.SIGKILL}, {d.cmd.Process.Pid, syscall.SIGKILL}} {
		if err := syscall.Kill(kill.pid, kill.signal); err != nil {
			t.Fatal(err)
		}
	}
}

// roles finds the roles as the guard does.
func (d *director) roles(t *testing.T) map[string]State {
	t.Helper()
	config, err := ReadConfig(d.config(), "")
	if err != nil {
		t.Fatal(err)
	}
	last := make(map[string]State)
	d.note(func() {
		for _, e := range d.events {
			if e.Kind == KindInstance && e.State != Unknown {
				last[e.Name] = e.State
			}
		}
	})
	return Roles(config.Instances, heldIn(t, d.host), last)
}

func (d *director) waitRoles(t *testing.T, want State) {
	t.Helper()
	both := map[string]State{"VI_4": want, "VI_6": want}
	eventually(t, func() string { return cmp.Diff(both, d.roles(t)) })
}

func (d *director) waitEvent(t *testing.T, want Event) {
	t.Helper()
	eventually(t, func() (missing string) {
		d.note(func() {
			for _, e := range d.events {
				if e == want {
					return
				}
			}
			missing = fmt.Sprintf("no event %+v among %+v, gaps %q", want, d.events, d.gaps)
		})
		return missing
	})
}

func TestKeepalivedPair(t *testing.T) {
	needKeepalived(t)
	a, b := netns.New(t), netns.New(t)
	netns.Join(t, a, "eth0", b, "eth0")
	first, second := newDirector(t, a, "192.0.2.1/24", 150), newDirector(t, b, "192.0.2.2/24", 100)

	// Before keepalived runs, nothing is held: the guard may arm already.
	first.waitRoles(t, Backup)

	first.start(t)
	second.start(t)
	first.waitRoles(t, Master)
	second.waitRoles(t, Backup)
	first.waitEvent(t, Event{Kind: KindInstance, Name: "VI_4", State: Master, Priority: 150})
	second.waitEvent(t, Event{Kind: KindInstance, Name: "VI_4", State: Backup, Priority: 100})

	// Both kinds of script ran, as another user, and reached the listener.
	eventually(t, func() (missing string) {
		var looks int
		first.note(func() { looks = first.looks })
		record := readFileText(t, filepath.Join(first.dir, "record"))
		if looks == 0 || !strings.Contains(record, "INSTANCE VI_4 MASTER 150") || !strings.Contains("\n"+record, "\nmaster\n") {
			return fmt.Sprintf("%d looks, scripts told:\n%s", looks, record)
		}
		return ""
	})
	for line := range strings.Lines(readFileText(t, filepath.Join(first.dir, "record"))) {
		if _, err := ParseNotify(strings.Fields(line)); err != nil {
			t.Error(err)
		}
	}

	t.Run("reload makes the FIFO anew", func(t *testing.T) {
		var gaps int
		first.note(func() { gaps = len(first.gaps) })
		if err := first.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() (missing string) {
			first.note(func() {
				if len(first.gaps) == gaps || first.gaps[len(first.gaps)-1] != nil {
					missing = fmt.Sprintf("not opened again: %v", first.gaps[gaps:])
				}
			})
			return missing
		})
		first.waitRoles(t, Master)
	})

	t.Run("garbage in the FIFO", func(t *testing.T) {
		file, err := os.OpenFile(first.fifo(), os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.WriteString("\xff\x00garbage\n" + strings.Repeat("long", 3000) + "\nINSTANCE \"VI_X\" FAULT 7\n"); err != nil {
			t.Fatal(err)
		}
		first.waitEvent(t, Event{Kind: KindInstance, Name: "VI_X", State: Fault, Priority: 7})
	})

	t.Run("failover and back", func(t *testing.T) {
		a.Run(t, "ip", "link", "set", "eth0", "down")
		second.waitRoles(t, Fault) // a veth pair has one state for both ends
		first.waitRoles(t, Fault)
		a.Run(t, "ip", "link", "set", "eth0", "up")
		first.waitRoles(t, Master)
		second.waitRoles(t, Backup)

		if err := first.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		second.waitRoles(t, Master)
		first.waitRoles(t, Stop)
		second.waitEvent(t, Event{Kind: KindInstance, Name: "VI_6", State: Master, Priority: 100})
	})

	t.Run("keepalived crashes", func(t *testing.T) {
		second.crash(t)
		eventually(t, func() (missing string) {
			second.note(func() {
				if last := second.gaps[len(second.gaps)-1]; last == nil {
					missing = "the loss of the FIFO's writer was not told"
				}
			})
			return missing
		})
		// The addresses stay, and with them the traffic.
		second.waitRoles(t, Master)
	})
}

// TestSameAsKeepalived compares what ReadConfig finds with the addresses that
// keepalived itself adds for the same files.
func TestSameAsKeepalived(t *testing.T) {
	needKeepalived(t)
	host, peer := netns.New(t), netns.New(t)
	netns.Join(t, host, "eth0", peer, "eth0")
	d := &director{host: host, dir: publicDir(t)}
	if err := os.CopyFS(d.dir, os.DirFS("testdata/same")); err != nil {
		t.Fatal(err)
	}
	const id = "lvs1"
	config, err := ReadConfig(d.config(), id)
	if err != nil {
		t.Fatal(err)
	}
	if len(config.Skipped) > 0 || len(config.Instances) != 4 {
		t.Errorf("%s", configText(config, d.dir))
	}
	host.Run(t, "ip", "address", "add", "10.0.0.1/24", "dev", "eth0") // VRRP's own
	want := Held{netip.MustParseAddr("10.0.0.1"): true}
	for _, instance := range config.Instances {
		for _, addr := range instance.Addresses {
			if !addr.IsLinkLocalUnicast() {
				want[addr] = true
			}
		}
	}
	d.start(t, "--config-id", id)
	eventually(t, func() string { return cmp.Diff(want, heldIn(t, host), cmpConfig) })
}

// TestSample holds the sample to what keepalived itself and this package say of it.
func TestSample(t *testing.T) {
	needKeepalived(t)
	host, peer := netns.New(t), netns.New(t)
	netns.Join(t, host, "eth0", peer, "eth0")
	dir := publicDir(t)

	// keepalived wants the hook to be there.
	binary := filepath.Join(dir, "lvsguard")
	copyFile(t, binary, os.Args[0])
	path := filepath.Join(dir, "keepalived.conf")
	text := readFileText(t, "../deploy/keepalived/keepalived.conf")
	writeFile(t, path, strings.ReplaceAll(text, "/usr/sbin/lvsguard", binary))

	for _, id := range []string{"lvs1", "lvs2"} {
		report := filepath.Join(dir, "report")
		_, err := host.Try(t, "", "keepalived", "--config-test="+report, "--use-file", path, "--config-id", id)
		if said := readFileText(t, report); err != nil || said != "" {
			t.Errorf("keepalived --config-test for %s: %v\n%s", id, err, said)
		}
		got, err := ReadConfig(path, id)
		if err != nil {
			t.Fatal(err)
		}
		web4 := tcpServer("192.0.2.10:80")
		web6 := tcpServer("[2001:db8::10]:80")
		want := Config{
			Files:       []string{path},
			NotifyFIFOs: []string{"/run/keepalived.fifo"},
			Instances: []Instance{
				{Name: "SITE_V4", Addresses: []netip.Addr{vip4}},
				{Name: "SITE_V6", Addresses: []netip.Addr{netip.MustParseAddr("fe80::10"), vip6}},
			},
			Groups: []Group{{Name: "SITE", Instances: []string{"SITE_V4", "SITE_V6"}}},
			VirtualServers: []VirtualServer{
				{Server: web4, Members: []Server{web4}, RealServers: []Server{tcpServer("192.0.2.21:80"), tcpServer("192.0.2.22:80")}},
				{Server: web6, Members: []Server{web6}, RealServers: []Server{tcpServer("[2001:db8::21]:80"), tcpServer("[2001:db8::22]:80")}},
			},
		}
		if diff := cmp.Diff(want, got, cmpConfig); diff != "" {
			t.Errorf("what the sample says to %s (-want +got):\n%s", id, diff)
		}
	}
}

func tcpServer(addr string) Server {
	return Server{Addr: netip.MustParseAddrPort(addr), Protocol: "tcp"}
}

func needKeepalived(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("keepalived"); err != nil {
		if os.Getenv("LVSGUARD_PRIVILEGED") == "1" {
			t.Fatalf("%v: apt-get install keepalived", err)
		}
		t.Skip(err)
	}
}

// eventually waits until f has nothing to say, at most ten seconds.
func eventually(t *testing.T, f func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		missing := f()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s: %s", missing)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// publicDir is a directory that another user can enter, as keepalived's script
// user must.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func heldIn(t *testing.T, host *netns.Host) Held {
	t.Helper()
	var addresses *Addresses
	var err error
	host.Do(t, func() { addresses, err = OpenAddresses() })
	if err != nil {
		t.Fatal(err)
	}
	defer addresses.Close()
	held, err := addresses.Held()
	if err != nil {
		t.Fatal(err)
	}
	return held
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFileText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

//go:build lab

package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/lab/site"
)

// underFlood runs f on a site whose master drops a flood that goes on.
func underFlood(t *testing.T, config site.Config, f func(t *testing.T, s *site.Site, d *site.Director, guard *site.Process, g *gauge), variants ...site.Variant) {
	t.Helper()
	site.Each(t, config, func(t *testing.T, s *site.Site) {
		d := s.Master()
		guard := d.StartGuard(auto)
		g := newGauge(t, d)
		s.Attacker.Flood(night)
		g.drops(20 * time.Second)
		f(t, s, d, guard, g)
	}, variants...)
}

// TestTableTakenAway: whatever becomes of the ruleset, the guard mends its own table within 2 s and touches no other;
// the third time automatic drops pause, and an operator's do not.
func TestTableTakenAway(t *testing.T) {
	underFlood(t, site.Config{}, func(t *testing.T, s *site.Site, d *site.Director, _ *site.Process, g *gauge) {
		d.Run("nft", "add table ip foreign; add chain ip foreign c; add rule ip foreign c counter accept")
		foreign := d.Run("nft", "list", "table", "ip", "foreign")
		for _, blow := range []string{"flush ruleset; add table ip foreign; add chain ip foreign c; add rule ip foreign c counter accept", "delete table inet lvsguard"} {
			admitted := d.Admitted()
			d.Run("nft", blow)
			struck := time.Now()
			g.drops(10 * time.Second)
			if took := time.Since(struck); took > 2*time.Second {
				t.Errorf("after %q the flood is dropped again after %s, want 2 s", blow, took)
			} else {
				t.Logf("after %q: dropped again after %.2f s, %d packets let in", blow, took.Seconds(), d.Admitted()-admitted)
			}
		}
		d.Run("nft", "delete table inet lvsguard")
		site.Wait(t, 10*time.Second, "the table counts again", func() bool { return g.suspect() > 100 })
		if n := g.dropped(); n != 0 {
			t.Errorf("in the pause %d packets were dropped", n)
		}
		d.Lvsguard("arm", s.Key(0), "--for", "1m")
		g.drops(5 * time.Second)
		if got := d.Run("nft", "list", "table", "ip", "foreign"); got != foreign {
			t.Errorf("the guard touched a foreign table:\n%s\nwas\n%s", got, foreign)
		}
		if j := journal(t, d); strings.Count(j, "pause") != 1 {
			t.Errorf("journal, without one pause:\n%s", j)
		}
	}, site.DR4)
}

// TestKeepalivedReload: keepalived takes the services out of IPVS and puts them back, in mid-flood. The lease stays.
func TestKeepalivedReload(t *testing.T) {
	t.Parallel() // it mostly waits
	underFlood(t, site.Config{}, func(t *testing.T, s *site.Site, d *site.Director, _ *site.Process, g *gauge) {
		saved := d.Run("ipvsadm", "--save", "--numeric")
		d.Run("ipvsadm", "--clear")
		site.Wait(t, 10*time.Second, "status says that IPVS is empty", func() bool {
			return strings.Contains(d.Lvsguard("status"), "IPVS has no virtual services")
		})
		g.drops(5 * time.Second)
		if verdict := d.Service(0).Verdict; verdict != "flood" {
			t.Errorf("with IPVS empty the verdict is %s", verdict)
		}
		file := filepath.Join(d.Dir, "ipvs")
		if err := os.WriteFile(file, []byte(saved), 0o600); err != nil {
			t.Fatal(err)
		}
		admitted := d.Admitted()
		d.Run("sh", "-c", "ipvsadm --restore <"+file)
		g.drops(5 * time.Second)
		d.Keepalived.Signal(unix.SIGHUP)
		g.drops(5 * time.Second)
		site.Wait(t, limit, "a client is served", func() bool { return s.Client.Get(1) == 1 })
		g.drops(5 * time.Second)
		if n := d.Admitted() - admitted; n > 20 {
			t.Errorf("%d connections were let in over the reload", n)
		}
	}, site.DR4)
}

// TestBootUnderFlood: the guard starts before keepalived, as its unit says, and has armed the address before it is held.
func TestBootUnderFlood(t *testing.T) {
	site.Each(t, site.Config{Idle: true}, func(t *testing.T, s *site.Site) {
		s.Attacker.Flood(night)
		d := s.Directors[0]
		d.ConfigureKeepalived()
		d.StartGuard(auto)
		if lease := d.Service(0).Lease; lease == nil || lease.By != "prearm" {
			t.Fatalf("before keepalived runs the lease is %+v", lease)
		}
		g := newGauge(t, d)
		d.StartKeepalived()
		site.Wait(t, limit, d.Name+" is master", func() bool { return d.Holds(s.Address(0)) })
		g.drops(10 * time.Second)
		site.Wait(t, 10*time.Second, "the lease is by what is seen", func() bool { return d.Service(0).Lease.By == "auto" })
		if n := d.Admitted(); n > 10 {
			t.Errorf("%d packets of the flood were let in at boot", n)
		}
	}, site.DR4)
}

// TestAloneClock: the wall clock jumps a day ahead and back in mid-flood, and nothing that the guard does follows it.
func TestAloneClock(t *testing.T) {
	underFlood(t, site.Config{}, func(t *testing.T, s *site.Site, d *site.Director, _ *site.Process, g *gauge) {
		for _, jump := range []time.Duration{24 * time.Hour, -48 * time.Hour} {
			admitted := d.Admitted()
			now := unix.NsecToTimeval(time.Now().Add(jump).UnixNano())
			if err := unix.Settimeofday(&now); err != nil {
				t.Fatal(err)
			}
			before := g.dropped()
			site.Wait(t, time.Minute, "more than a renewal's worth of flood is dropped", func() bool { return g.dropped() > before+20*uint64(night.Rate) })
			if n := d.Admitted() - admitted; n != 0 {
				t.Errorf("the clock jumped by %s, and %d packets were let in", jump, n)
			}
			if by := leaseOf(d, 0); by != "auto" {
				t.Errorf("the clock jumped by %s, and the lease is by %q", jump, by)
			}
		}
	}, site.DR4)
}

// TestCable: the interface goes down, comes back under another name, and the guard knows at every step whether it holds
// the address. keepalived tells it by its FIFO and by its script.
func TestCable(t *testing.T) {
	config := site.Config{
		Global: func(d *site.Director) string { return "notify_fifo " + d.FIFO() },
		Instance: func(d *site.Director) string {
			return fmt.Sprintf("notify \"%s --socket %s notify\"", os.Getenv("LVSGUARD_BIN"), d.GuardSocket())
		},
	}
	site.Each(t, config, func(t *testing.T, s *site.Site) {
		d := s.Master()
		guard := d.StartGuard(auto + fmt.Sprintf("keepalived: {config: %s, fifo: %s}\n", d.KeepalivedConf(), d.FIFO()))
		role := func() string { return d.Status().Roles[0].Role }
		site.Wait(t, 5*time.Second, "MASTER", func() bool { return role() == "MASTER" })
		d.Cable("down")
		site.Wait(t, 10*time.Second, "FAULT, and armed", func() bool { return role() == "FAULT" && leaseOf(d, 0) == "prearm" })
		d.Cable("up")
		site.Wait(t, limit, "MASTER again", func() bool { return role() == "MASTER" })
		d.Keepalived.Signal(unix.SIGHUP) // makes the FIFO anew
		if err := os.WriteFile(d.FIFO(), []byte("garbage\x00\xff\nINSTANCE \"VI_1\n"), 0); err != nil {
			t.Fatal(err)
		}
		// Whether STOP or BACKUP is known by now, as the FIFO may have been between two lives when STOP was written.
		d.StopKeepalived()
		site.Wait(t, 10*time.Second, "not MASTER, and armed", func() bool { return role() != "MASTER" && leaseOf(d, 0) == "prearm" })
		if !guard.Running() {
			t.Error("the guard has ended")
		}
	}, site.DR4)
}

// TestStopped: a guard that hangs for 90 s opens the gate, and closes it when it goes on.
func TestStopped(t *testing.T) {
	t.Parallel() // it mostly waits, as TestKilledForGood does
	underFlood(t, site.Config{}, func(t *testing.T, s *site.Site, d *site.Director, guard *site.Process, g *gauge) {
		guard.Signal(unix.SIGSTOP)
		admitted, stopped := d.Admitted(), time.Now()
		site.Wait(t, 90*time.Second, "the kernel lifts the lease", func() bool { return d.Admitted() > admitted })
		if took := time.Since(stopped); took > 61*time.Second {
			t.Errorf("lifted %s after the guard hung, want at most 60 s", took)
		}
		d.Lvsguard("notify", "INSTANCE", "VI_1", "MASTER", "100") // returns at once all the same
		site.Wait(t, 90*time.Second, "90 s have passed", func() bool { return time.Since(stopped) > 90*time.Second })
		guard.Signal(unix.SIGCONT)
		g.drops(10 * time.Second)
	}, site.DR4)
}

// TestRoleStorm: ten changes of role a second, and the last one wins within a second.
func TestRoleStorm(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		d.StartGuard(auto)
		d.StopKeepalived()
		address := s.Address(0).String() + "/32"
		role := func() string { return d.Status().Roles[0].Role }
		site.Wait(t, 5*time.Second, "the guard sees that the address is gone", func() bool { return role() != "MASTER" })
		for i := range 31 {
			began := time.Now()
			d.Run("ip", "address", []string{"add", "del"}[i%2], address, "dev", "eth0")
			d.Lvsguard("notify", "INSTANCE", "VI_1", []string{"MASTER", "BACKUP"}[i%2], "100")
			time.Sleep(max(0, 100*time.Millisecond-time.Since(began)))
		}
		took := site.Wait(t, 5*time.Second, "the guard says MASTER", func() bool { return role() == "MASTER" })
		if took > time.Second {
			t.Errorf("the last role was seen after %s, want 1 s", took)
		}
		d.Run("ip", "address", "del", address, "dev", "eth0")
	}, site.DR4)
}

// TestNoCapability: without CAP_NET_ADMIN every command that needs the kernel says so.
func TestNoCapability(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		for _, args := range [][]string{{"run"}, {"counters"}, {"rules", "show"}, {"rules", "install"}} {
			line := append([]string{"--bounding-set=-net_admin", "--inh-caps=-net_admin", "--", os.Getenv("LVSGUARD_BIN"), "--socket", d.GuardSocket(), "--state-dir", d.GuardState()}, args...)
			out, err := d.Try("setpriv", line...)
			if err == nil || !strings.Contains(out+err.Error(), "CAP_NET_ADMIN") {
				t.Errorf("lvsguard %s without CAP_NET_ADMIN: %v\n%s", strings.Join(args, " "), err, out)
			}
		}
	}, site.DR4)
}

// TestFullDisk: with no room for the journal the guard guards on, says so, and goes on writing when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel() // it mostly waits
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		if err := os.MkdirAll(d.GuardState(), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := d.Do(func() error { return unix.Mount("tmpfs", d.GuardState(), "tmpfs", 0, "size=64k") }); err != nil {
			t.Fatal(err)
		}
		d.StartGuard(auto)
		filler := filepath.Join(d.GuardState(), "filler")
		if out, err := d.Try("dd", "if=/dev/zero", "of="+filler, "bs=4k"); err == nil {
			t.Fatalf("the disk did not fill: %s", out)
		}
		g := newGauge(t, d)
		s.Attacker.Flood(night)
		g.drops(20 * time.Second)
		for i := range 40 { // what is written fits into the last block for a while
			d.Lvsguard("mitigate", []string{"observe", "auto"}[i%2])
		}
		if status := d.Lvsguard("status"); !strings.Contains(status, "entries lost") {
			t.Errorf("status does not say that the journal is full:\n%s", status)
		}
		g.drops(20 * time.Second)
		if err := d.Do(func() error { return os.Remove(filler) }); err != nil {
			t.Fatal(err)
		}
		site.Wait(t, 10*time.Second, "the journal goes on", func() bool {
			d.Lvsguard("mitigate", "observe") // something to write
			d.Lvsguard("mitigate", "auto")
			return strings.Contains(journal(t, d), "lost")
		})
	}, site.DR4)
}

// TestEveryKind: services of every kind are watched for what they are, and a flood on one with every port, and on a
// firewall mark, is dropped like any other.
func TestEveryKind(t *testing.T) {
	config := site.Config{Instances: 2, Services: []site.Service{
		{Port: 80}, {Port: 8080}, {Instance: 1, Port: 0}, {Port: 81, Mark: 7}, {Port: 53, UDP: true},
	}}
	site.Each(t, config, func(t *testing.T, s *site.Site) {
		for _, d := range s.Directors {
			d.StartGuard(auto + fmt.Sprintf("services: {%q: {addresses: [%q]}}\n", s.Key(3), s.Target(3)))
		}
		first, second := s.MasterOf(0), s.MasterOf(1)
		site.Wait(t, 10*time.Second, "each director is armed for the other's address alone", func() bool {
			return leaseOf(first, 0) == "" && leaseOf(first, 2) == "prearm" && leaseOf(second, 0) == "prearm" && leaseOf(second, 2) == ""
		})
		for _, d := range s.Directors {
			if by := leaseOf(d, 3); by != "" {
				t.Errorf("%s: the firewall mark is armed (%s): no instance owns it", d.Name, by)
			}
			if v := d.Service(4).Verdict; v != "unknown" {
				t.Errorf("%s: UDP has no SYNs, and the verdict is %s", d.Name, v)
			}
		}
		for service, d := range map[int]*site.Director{2: second, 3: first} {
			g := newGauge(t, d)
			flooding := night
			flooding.Targets = append(flooding.Targets, s.Target(service))
			f := s.Attacker.Flood(flooding)
			g.drops(20 * time.Second)
			admitted := d.Admitted()
			served := s.Client.GetFrom(s.Target(service), 10)
			if served != 10 {
				t.Errorf("%s: %d of 10 requests served", s.Key(service), served)
			}
			if n := d.Admitted() - admitted - served; n > 10 {
				t.Errorf("%s: %d packets of the flood were let in", s.Key(service), n)
			}
			if by := leaseOf(d, service); by != "auto" {
				t.Errorf("%s: lease by %q", s.Key(service), by)
			}
			f.Stop()
			d.WaitVerdict(service, "calm", clearFor+10*time.Second)
		}
	}, site.DR4, site.DR6)
}

// leaseOf says who holds the lease of a service; nobody is "".
func leaseOf(d *site.Director, service int) string {
	if lease := d.Service(service).Lease; lease != nil {
		return lease.By
	}
	return ""
}

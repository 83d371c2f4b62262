package capture

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/lvsguard/lvsguard/internal/netns"
	"golang.org/x/sys/unix"
)

// drop takes capabilities from the calling thread.
func drop(capabilities []int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	for _, c := range capabilities {
		data[c/32].Effective &^= 1 << (c % 32)
		data[c/32].Permitted &^= 1 << (c % 32)
	}
	return unix.Capset(&header, &data[0])
}

// openWithout is OpenLive on a host, without some capabilities.
func openWithout(t testing.TB, h *netns.Host, capabilities []int, config LiveConfig) (*Live, error) {
	t.Helper()
	var l *Live
	var err error
	h.Do(t, func() { // its thread ends with it
		if err = drop(capabilities); err == nil {
			l, err = OpenLive(config)
		}
	})
	return l, err
}

// listenWithout is listen without some capabilities.
func listenWithout(t testing.TB, h *netns.Host, capabilities []int, config LiveConfig) *tap {
	t.Helper()
	l, err := openWithout(t, h, capabilities, config)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, l)
}

func TestWithoutRaw(t *testing.T) {
	h := netns.New(t)
	_, err := openWithout(t, h, []int{unix.CAP_NET_RAW}, LiveConfig{Interfaces: []string{"lo"}})
	const want = "open a packet socket: operation not permitted (it needs CAP_NET_RAW: run it as root, or give it the capability " +
		"with AmbientCapabilities=CAP_NET_RAW in its unit, or with setcap cap_net_raw+ep on its binary)"
	if err == nil || err.Error() != want {
		t.Errorf("%v; want %s", err, want)
	}
}

// Without CAP_BPF there is the classic filter, and it says so. With it and no
// other, as the unit has it, there is the eBPF one.
func TestBPFCapability(t *testing.T) {
	if b, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled"); err != nil || strings.TrimSpace(string(b)) == "0" {
		t.Skipf("everyone may use BPF here (%s, %v)", b, err)
	}
	h := netns.New(t)
	without, err := openWithout(t, h, []int{unix.CAP_BPF, unix.CAP_SYS_ADMIN}, LiveConfig{Interfaces: []string{"lo"}, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer without.Close()
	kind, reason := without.Filter()
	if kind != "classic" || !strings.Contains(reason, "it needs CAP_BPF") {
		t.Errorf("without CAP_BPF: filter %s because %q", kind, reason)
	}
	if without.Memory() != defaultRing {
		t.Errorf("without CAP_BPF: %d bytes of memory, want one ring's %d", without.Memory(), defaultRing)
	}
	var all []int
	for c := range unix.CAP_LAST_CAP + 1 {
		if c != unix.CAP_BPF && c != unix.CAP_NET_RAW {
			all = append(all, c)
		}
	}
	only, err := openWithout(t, h, all, LiveConfig{Interfaces: []string{"lo"}})
	if err != nil {
		t.Fatal(err)
	}
	defer only.Close()
	if kind, reason := only.Filter(); kind != "ebpf" {
		t.Errorf("with CAP_BPF and CAP_NET_RAW: filter %s because %q", kind, reason)
	}
	if err := runBriefly(only); err != nil {
		t.Error(err)
	}
}

// Where a socket has no room for the eBPF filter, as on 32-bit kernels by
// default, there is the classic one.
func TestNoRoomForFilter(t *testing.T) {
	h := netns.New(t)
	h.Run(t, "sysctl", "-qw", "net.core.optmem_max=4096")
	l := listenWithout(t, h, nil, LiveConfig{Interfaces: []string{"lo"}, Workers: 2})
	kind, reason := l.Filter()
	if kind != "classic" || !strings.Contains(reason, "sysctl -w net.core.optmem_max=") {
		t.Errorf("filter %s because %q", kind, reason)
	}
	if n := l.Workers(); n != 1 || l.Memory() != defaultRing {
		t.Errorf("%d workers with %d bytes of memory, want one ring's %d", n, l.Memory(), defaultRing)
	}
}

func runBriefly(l *Live) error {
	ctx, cancel := context.WithCancel(context.Background())
	return l.Run(ctx, func(int, int64, []Segment) { cancel() })
}

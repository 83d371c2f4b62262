// Package deploy holds what an installation is made of.
package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const unit = "lvsguard.service"

// directives reads a unit: section and key to values.
func directives(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	section := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch key, value, found := strings.Cut(line, "="); {
		case line == "", strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
		case found:
			all[section+"."+key] = append(all[section+"."+key], value)
		default:
			t.Errorf("not understood: %s", line)
		}
	}
	return all
}

// What the guard's promises rest on.
func TestUnit(t *testing.T) {
	got := directives(t)
	for key, want := range map[string][]string{
		// Started before keepalived, whose addresses it arms for, and nothing that
		// keepalived waits or stops for.
		"Unit.Before":     {"keepalived.service"},
		"Unit.RequiredBy": nil, "Install.RequiredBy": nil, "Unit.PartOf": nil, "Unit.BindsTo": nil, "Unit.Requires": nil,
		"Install.WantedBy": {"multi-user.target"},

		"Service.Type": {"notify"}, "Service.ExecStart": {"/usr/sbin/lvsguard run -c /etc/lvsguard/lvsguard.yaml"},
		"Service.ExecReload": {"/bin/kill -HUP $MAINPID"},
		"Service.Restart":    {"always"}, "Service.RestartSec": {"1"},
		"Service.OOMScoreAdjust": {"-900"},

		// The guard's default paths; the hook's socket is reached by a user without
		// rights, the journal is not.
		"Service.RuntimeDirectory": {"lvsguard"}, "Service.RuntimeDirectoryMode": {"0755"},
		"Service.StateDirectory": {"lvsguard"}, "Service.StateDirectoryMode": {"0750"},

		"Service.CapabilityBoundingSet": {"CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_SYSLOG"}, "Service.AmbientCapabilities": nil,
		"Service.NoNewPrivileges": {"yes"}, "Service.ProtectSystem": {"strict"},
		"Service.User": nil, // keepalived.conf is root's
		// Its own network namespace would be an empty one, and /proc/net with it.
		"Service.PrivateNetwork": nil,
		// The kernel log is a device, and the only one.
		"Service.DeviceAllow": {"/dev/kmsg r"}, "Service.DevicePolicy": {"closed"},
		"Service.PrivateDevices": nil, "Service.ProtectKernelLogs": nil,
		// Real servers are asked where the configuration says so.
		"Service.IPAddressDeny": nil,
		// It tells systemd itself, and runs nothing.
		"Service.NotifyAccess": nil,
	} {
		if diff := cmp.Diff(want, got[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
	if len(got["Service.WatchdogSec"]) != 1 {
		t.Error("there is no watchdog")
	}
	families := strings.Fields(strings.Join(got["Service.RestrictAddressFamilies"], " "))
	slices.Sort(families)
	for _, need := range []string{"AF_NETLINK", "AF_UNIX"} {
		if !slices.Contains(families, need) {
			t.Errorf("%s is not allowed: %v", need, families)
		}
	}
}

// analyze runs systemd-analyze over the unit, whose binary is taken to be
// installed.
func analyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		if os.Getenv("LVSGUARD_PRIVILEGED") == "1" {
			t.Fatalf("%v (this run must have it: install systemd)", err)
		}
		t.Skip(err)
	}
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	installed := filepath.Join(t.TempDir(), unit)
	if err := os.WriteFile(installed, bytes.ReplaceAll(text, []byte("/usr/sbin/lvsguard"), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", append(args, installed)...).CombinedOutput()
	return string(out), err
}

func TestUnitIsUnderstood(t *testing.T) {
	out, err := analyze(t, "verify")
	if complaints := regexp.MustCompile(`(?m)^.*`+regexp.QuoteMeta(unit)+`.*$`).FindAllString(out, -1); err != nil || len(complaints) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// The unit is hardened: an exposure of at most 2.8, of 10. Of that the capture
// has 0.3, the kernel log 0.4 (CAP_SYSLOG, and /dev/kmsg instead of private
// devices), and that real servers can be asked 0.2.
func TestUnitIsHardened(t *testing.T) {
	out, err := analyze(t, "security", "--offline=true", "--threshold=28", "--no-pager")
	if err != nil || !strings.Contains(out, "Overall exposure level for "+unit) {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

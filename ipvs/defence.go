package ipvs

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A Setting is one of the sysctls net.ipv4.vs.*, as the kernel's
// Documentation/networking/ipvs-sysctl.rst describes them.
type Setting struct {
	Name  string // "drop_entry"
	Value int
	Err   error // why Value is not known; nil if it is
}

// Defence are the settings with which IPVS defends itself, or that decide what
// its figures are worth.
type Defence struct {
	DropEntry     Setting // 0 to 3: drop connections when memory is short
	DropPacket    Setting // 0 to 3: drop packets when memory is short
	SecureTCP     Setting // 0 to 3: other timeouts for TCP when memory is short
	AmemThresh    Setting // pages of free memory below which the three act by themselves
	AmDropRate    Setting // mode 3 of drop_packet drops one packet in so many
	RunEstimation Setting // 0: the kernel brings no totals up to date, see [Service.Frozen]
	ConnReuseMode Setting // what a SYN does whose address and port still have a connection
	Conntrack     Setting // 1: connections are in nf_conntrack as well
	SloppyTCP     Setting // 1: any TCP segment makes a connection, not only a SYN
}

// All returns the settings in the order of Defence's fields.
func (d Defence) All() iter.Seq[Setting] {
	return func(yield func(Setting) bool) {
		for _, s := range d.settings() {
			if !yield(*s) {
				return
			}
		}
	}
}

func (d *Defence) settings() []*Setting {
	return []*Setting{
		&d.DropEntry, &d.DropPacket, &d.SecureTCP, &d.AmemThresh, &d.AmDropRate,
		&d.RunEstimation, &d.ConnReuseMode, &d.Conntrack, &d.SloppyTCP,
	}
}

// Meaning says in a few words what the setting's value does. It is empty if the
// value is not known, or is not one that the kernel documents.
func (s Setting) Meaning() string {
	if s.Err != nil {
		return ""
	}
	switch s.Name {
	case "drop_entry", "drop_packet", "secure_tcp":
		return pick(s.Value, "off", "automatic, not active", "automatic, active now", "always on")
	case "amemthresh":
		return fmt.Sprintf("memory is short below %d kB free", s.Value*os.Getpagesize()/1024)
	case "am_droprate":
		return fmt.Sprintf("drop_packet 3 drops one packet in %d", s.Value)
	case "run_estimation":
		return pick(s.Value, "totals and rates stand still", "totals and rates are kept up to date")
	case "conn_reuse_mode":
		return pick(s.Value,
			"a SYN from a used port goes to the same real server",
			"a SYN from a used port is scheduled anew in TIME_WAIT",
			"a SYN from a used port is scheduled anew in TIME_WAIT and FIN_WAIT",
			"a SYN from a used port is scheduled anew in TIME_WAIT and FIN_WAIT")
	case "conntrack":
		return pick(s.Value, "connections are not in nf_conntrack", "connections are in nf_conntrack too")
	case "sloppy_tcp":
		return pick(s.Value, "only a SYN makes a connection", "any segment makes a connection")
	}
	return ""
}

func pick(value int, meanings ...string) string {
	if value < 0 || value >= len(meanings) {
		return ""
	}
	return meanings[value]
}

// Defence reads the settings. It returns [ErrAbsent] if the module is not
// loaded; a setting that this kernel does not have, or does not show, is unknown
// by itself.
func (c *Client) Defence() (Defence, error) {
	d := Defence{
		DropEntry:     Setting{Name: "drop_entry"},
		DropPacket:    Setting{Name: "drop_packet"},
		SecureTCP:     Setting{Name: "secure_tcp"},
		AmemThresh:    Setting{Name: "amemthresh"},
		AmDropRate:    Setting{Name: "am_droprate"},
		RunEstimation: Setting{Name: "run_estimation"},
		ConnReuseMode: Setting{Name: "conn_reuse_mode"},
		Conntrack:     Setting{Name: "conntrack"},
		SloppyTCP:     Setting{Name: "sloppy_tcp"},
	}
	if _, err := os.Stat(c.settings()); errors.Is(err, fs.ErrNotExist) {
		return Defence{}, fmt.Errorf("read IPVS settings: %w", ErrAbsent)
	}
	for _, s := range d.settings() {
		*s = c.setting(s.Name)
	}
	return d, nil
}

func (c *Client) setting(name string) Setting {
	s := Setting{Name: name}
	text, err := os.ReadFile(filepath.Join(c.settings(), name))
	if err == nil {
		s.Value, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	s.Err = err
	return s
}

// settings is the directory of the settings.
func (c *Client) settings() string { return filepath.Join(c.proc, "sys/net/ipv4/vs") }

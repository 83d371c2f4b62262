package ipvs

import (
	"fmt"
	"iter"
)

// A Setting is one of the sysctls net.ipv4.vs.*.
type Setting struct {
	Name  string // "drop_entry"
	Value int
	Err   error // why Value is not known; nil if it is
}

// Defence are the settings with which IPVS defends itself, or that decide what
// its figures are worth.
type Defence struct {
	DropEntry     Setting
	DropPacket    Setting
	SecureTCP     Setting
	AmemThresh    Setting
	RunEstimation Setting
	ConnReuseMode Setting
	Conntrack     Setting
}

// All returns the settings in the order of Defence's fields.
func (d Defence) All() iter.Seq[Setting] {
	return func(yield func(Setting) bool) {}
}

// Meaning says in a few words what the setting's value does.
func (s Setting) Meaning() string { return "" }

// Defence reads the settings. It returns [ErrAbsent] if the module is not
// loaded; a setting that this kernel does not have is unknown by itself.
func (c *Client) Defence() (Defence, error) {
	return Defence{}, fmt.Errorf("read IPVS settings: %w", ErrAbsent)
}

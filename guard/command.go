package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lvsguard/lvsguard/ipvs"
)

// A Verb is what an operator can ask of a running guard.
type Verb string

// The verbs of a Command.
const (
	VerbMode    Verb = "mode"    // Mode: the toggle
	VerbArm     Verb = "arm"     // Service (or all), For
	VerbDisarm  Verb = "disarm"  // Service (or all)
	VerbRemove  Verb = "remove"  // take the nft table away and leave it away
	VerbInstall Verb = "install" // bring it back
	VerbSave    Verb = "save"    // write the packets of the last seconds to a file
)

// A Command is one request of an operator.
type Command struct {
	Verb Verb `json:"verb"`
	Mode Mode `json:"mode,omitempty"`
	// Service is nil for all.
	Service *ipvs.Key `json:"service,omitempty"`
	Seconds float64   `json:"seconds,omitempty"`
}

// For is the time that an arm is to last.
func (c Command) For() time.Duration { return time.Duration(c.Seconds * float64(time.Second)) }

// maxCommandBytes is far more than any command takes.
const maxCommandBytes = 4096

// ParseCommand reads a command from JSON and checks it.
func ParseCommand(text []byte) (Command, error) {
	var c Command
	if len(text) > maxCommandBytes {
		return c, fmt.Errorf("a command has at most %d bytes", maxCommandBytes)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return Command{}, fmt.Errorf("read command: %w", err)
	}
	if err := c.check(); err != nil {
		return Command{}, err
	}
	return c, nil
}

func (c Command) check() error {
	switch c.Verb {
	case VerbMode:
		_, err := ParseMode(string(c.Mode))
		return err
	case VerbArm:
		// Compared as a number: a duration could overflow. NaN must fail too.
		if !(c.Seconds >= 1 && c.Seconds <= MaxArm.Seconds()) {
			return errors.New("arm for 1s to 24h")
		}
		return nil
	case VerbDisarm, VerbRemove, VerbInstall, VerbSave:
		return nil
	}
	return fmt.Errorf("verb %q: want mode, arm, disarm, remove, install or save", c.Verb)
}

// A Result is what became of a command.
type Result struct {
	Services []ServiceStatus `json:"services,omitempty"` // those that it was about, as they are now
	Mode     Mode            `json:"mode,omitempty"`
	// Path is the file that was written, and Packets are those in it.
	Path    string  `json:"path,omitempty"`
	Packets *uint64 `json:"packets,omitempty"`
	// Warning is set where the command is in force and something else is to be
	// known: it could not be saved, or the kernel has not taken it yet.
	Warning string `json:"warning,omitempty"`
}

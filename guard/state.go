package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/internal/wholefile"
	"github.com/lvsguard/lvsguard/ipvs"
)

// A savedState is what outlives the guard: the toggle, and the operators' arms
// with their ends.
type savedState struct {
	Mode Mode       `json:"mode,omitempty"` // empty: the configuration decides
	Arms []savedArm `json:"arms,omitempty"`
	// Removed: an operator took the table away, and it is to stay away.
	Removed bool `json:"removed,omitempty"`
	// Boot and BootTime tell, after a restart, how much time has passed,
	// whatever became of the wall clock; after a reboot only that can tell.
	Boot     string        `json:"boot,omitempty"`
	BootTime time.Duration `json:"boot_time,omitempty"`
	SavedAt  time.Time     `json:"saved_at"`
}

type savedArm struct {
	Service   ipvs.Key      `json:"service"`
	Remaining time.Duration `json:"remaining"`
	Who       string        `json:"who"`
}

const stateName = "state.json"

// clock is the time since boot, with the time asleep.
func clock() (boot string, since time.Duration) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return "", 0
	}
	return strings.TrimSpace(string(id)), time.Duration(ts.Nano())
}

// loadState reads what an earlier guard left. No file is no error.
func loadState(dir string) (savedState, error) {
	var s savedState
	path := filepath.Join(dir, stateName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the guard's state: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return savedState{}, fmt.Errorf("%s: %w: the toggle and operators' arms of before are lost", path, err)
	}
	if s.Mode != "" {
		if _, err := ParseMode(string(s.Mode)); err != nil {
			return savedState{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	return s, nil
}

// passed is how long ago the state was saved, as well as can be told.
func (s savedState) passed(now time.Time) time.Duration {
	if boot, since := clock(); boot != "" && boot == s.Boot && since >= s.BootTime {
		return since - s.BootTime
	}
	return max(0, now.Sub(s.SavedAt))
}

// save replaces the file as a whole, or not at all.
func (s savedState) save(dir string, now time.Time) error {
	s.Boot, s.BootTime = clock()
	s.SavedAt = now
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := wholefile.Write(filepath.Join(dir, stateName), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the guard's state: %w", err)
	}
	return nil
}

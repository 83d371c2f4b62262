package guard

import (
	"fmt"
	"time"

	"github.com/lvsguard/lvsguard/capture"
)

// This file has the guard keep what an incident leaves behind: its story, and
// packets from before it and of it. That is told, and decides nothing.

// EvidenceConfig says what is kept of an incident.
type EvidenceConfig struct {
	Enabled bool `yaml:"enabled"`
	// Memory is for packets while nothing happens, in bytes, and Before is how far
	// back they reach.
	Memory int           `yaml:"memory"`
	Before time.Duration `yaml:"before"`
	// SampleRate packets a second that a signature matches come through the NFQUEUE
	// Queue while an incident lasts; 0: none do.
	SampleRate uint32     `yaml:"sample_rate"`
	Queue      uint16     `yaml:"queue"`
	Keep       KeepConfig `yaml:"keep"`
}

// KeepConfig bounds the records and packets on disk.
type KeepConfig struct {
	Incidents int           `yaml:"incidents"`
	Bytes     int64         `yaml:"bytes"`
	Age       time.Duration `yaml:"age"`
}

// Bounds of an EvidenceConfig.
const (
	minEvidenceMemory = 1 << 20
	maxEvidenceMemory = 1 << 30
	minKeepBytes      = 1 << 20
	maxSampleRate     = 10_000
)

func (c *EvidenceConfig) check() error {
	bad := func(msg string, path ...string) error { return badKey(msg, append([]string{"evidence"}, path...)...) }
	switch {
	case c.Memory < minEvidenceMemory || c.Memory > maxEvidenceMemory:
		return bad(fmt.Sprintf("want %d to %d bytes; for none, enabled: false", minEvidenceMemory, maxEvidenceMemory), "memory")
	case c.Before < time.Second || c.Before > 5*time.Minute:
		return bad("want a duration from 1s to 5m", "before")
	case c.SampleRate > maxSampleRate:
		return bad(fmt.Sprintf("want 0, for none, to %d packets a second", maxSampleRate), "sample_rate")
	case c.Keep.Incidents < 1:
		return bad("want at least 1", "keep", "incidents")
	case c.Keep.Bytes < minKeepBytes:
		return bad(fmt.Sprintf("want at least %d bytes", minKeepBytes), "keep", "bytes")
	case c.Keep.Age < time.Hour:
		return bad("want a duration from 1h", "keep", "age")
	}
	return nil
}

// recorder is what of c is the recorder's.
func (c *EvidenceConfig) recorder() capture.RecorderConfig {
	if !c.Enabled {
		return capture.RecorderConfig{}
	}
	return capture.RecorderConfig{Memory: c.Memory, Span: c.Before}
}

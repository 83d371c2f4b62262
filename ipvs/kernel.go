package ipvs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A Kernel is the running kernel, for what its version means here.
type Kernel struct {
	Release string // "6.1.0-56-amd64"
	// Quadratic tells that the time of a whole reading of the connection table
	// grows with the square of its size. It does before Linux 6.14, and is taken
	// to do so if the release cannot be understood.
	Quadratic bool
}

// Kernel reads the kernel's release.
func (c *Client) Kernel() (Kernel, error) {
	release, err := os.ReadFile(filepath.Join(c.proc, "sys/kernel/osrelease"))
	if err != nil {
		return Kernel{}, fmt.Errorf("kernel release: %w", err)
	}
	return parseKernel(strings.TrimSpace(string(release))), nil
}

func parseKernel(release string) Kernel {
	k := Kernel{Release: release, Quadratic: true}
	first, rest, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, err := strconv.Atoi(first)
	if err != nil {
		return k
	}
	minor, err := strconv.Atoi(rest[:end])
	if err != nil {
		return k
	}
	k.Quadratic = major < 6 || major == 6 && minor < 14
	return k
}

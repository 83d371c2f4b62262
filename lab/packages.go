package lab

import (
	_ "embed"
	"fmt"
	"os/exec"
	"strings"
)

// packages lists what apt has to bring, one package a line. The Makefile installs from the same file.
//
//go:embed packages.txt
var packages string

// CheckPackages tells which of the lab's packages are missing on this host, and how to get them.
func CheckPackages() error {
	var missing []string
	for _, name := range strings.Fields(packages) {
		out, err := exec.Command("dpkg-query", "--show", "--showformat", "${db:Status-Status}", name).Output()
		if err != nil || string(out) != "installed" {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return fmt.Errorf("packages are missing: run make setup, or apt-get install --no-install-recommends %s",
			strings.Join(missing, " "))
	}
	return nil
}

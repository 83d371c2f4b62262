package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A Kernel is an installed kernel that a guest can boot.
type Kernel struct {
	Root    string // where its package is installed, or unpacked
	Image   string // ROOT/boot/vmlinuz-VERSION
	Release string // names its directory under ROOT/lib/modules
}

// newestKernel finds the kernel that Debian's linux-image package installed last below a root.
func newestKernel(root string) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return Kernel{}, err
	}
	var newest Kernel
	var installed int64
	for _, image := range images {
		release := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
		modules, err := os.Stat(filepath.Join(root, "lib/modules", release, "modules.dep"))
		if err != nil {
			continue // an image whose modules are gone cannot reach its root
		}
		if at := modules.ModTime().UnixNano(); at > installed {
			newest, installed = Kernel{Root: root, Image: image, Release: release}, at
		}
	}
	if newest == (Kernel{}) {
		return Kernel{}, fmt.Errorf("no kernel with modules in boot and lib/modules of %s: make setup", root)
	}
	return newest, nil
}

// modules gives the files of the named modules and of all that they depend on, in loading order. What is built into the
// kernel has no file.
func (k Kernel) modules(ctx context.Context, names ...string) ([]string, error) {
	var files []string
	for _, name := range names {
		out, err := exec.CommandContext(ctx, "/sbin/modprobe", "--dirname", k.Root, "--set-version", k.Release, "--show-depends", name).Output()
		if err != nil {
			return nil, fmt.Errorf("module %s of kernel %s: %w", name, k.Release, err)
		}
		lines := bufio.NewScanner(bytes.NewReader(out))
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) >= 2 && fields[0] == "insmod" && !slices.Contains(files, fields[1]) {
				files = append(files, fields[1])
			}
		}
	}
	return files, nil
}

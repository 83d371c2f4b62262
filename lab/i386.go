package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// i386Packages are what a 32-bit guest cannot take from the host, with all that they depend on.
const i386Packages = "linux-image-686-pae bash conntrack coreutils dash grep hping3 iproute2 ipvsadm keepalived kmod nftables procps prometheus-node-exporter tcpdump"

// i386Root is a directory with Debian's packages for i386, unpacked, which a guest lays over the host's root. The first
// call fetches them, about 90 MB, by way of apt and without touching what the host knows of its own packages.
func i386Root(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	// Other packages are another directory.
	directory := filepath.Join(cache, "lvsguard-lab", fmt.Sprintf("i386-%x", sha256.Sum256([]byte(i386Packages)))[:len("i386-")+8])
	if _, err := os.Stat(directory); err == nil || !errors.Is(err, os.ErrNotExist) {
		return directory, err
	}
	fmt.Fprintln(os.Stderr, "lab: fetching Debian's packages for i386, once, into", directory)
	if err := os.MkdirAll(filepath.Dir(directory), 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(filepath.Dir(directory), "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	archives, err := fetchPackages(ctx, filepath.Join(work, "apt"))
	if err != nil {
		return "", fmt.Errorf("fetch packages for i386: %w", err)
	}
	root := filepath.Join(work, "root")
	if err := unpack(ctx, root, archives); err != nil {
		return "", err
	}
	releases, err := filepath.Glob(filepath.Join(root, "lib/modules/*"))
	if err != nil {
		return "", err
	}
	for _, release := range releases {
		if err := output(ctx, "/sbin/depmod", "--basedir", root, filepath.Base(release)); err != nil {
			return "", err
		}
	}
	if err := os.Rename(root, directory); err != nil && !errors.Is(err, os.ErrExist) { // another lab was faster
		return "", err
	}
	return directory, nil
}

// fetchPackages has apt find, check and download the packages, in a state of its own in which nothing is installed.
func fetchPackages(ctx context.Context, state string) (archives []string, err error) {
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o755); err != nil {
			return nil, err
		}
	}
	status := filepath.Join(state, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	apt := func(args ...string) error {
		return output(ctx, "apt-get", append([]string{
			"-qq", "-o", "APT::Architecture=i386", "-o", "APT::Architectures=i386", "-o", "APT::Sandbox::User=root",
			"-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3",
			"-o", "Dir::State::Lists=" + filepath.Join(state, "lists"), "-o", "Dir::State::status=" + status,
			"-o", "Dir::Cache=" + filepath.Join(state, "cache"),
		}, args...)...)
	}
	// One source of several that cannot be had, as in the midst of a mirror's update, is no obstacle.
	updated := apt("update")
	args := append([]string{"install", "--download-only", "--yes", "--no-install-recommends"}, strings.Fields(i386Packages)...)
	if err := apt(args...); err != nil {
		return nil, errors.Join(updated, err)
	}
	return filepath.Glob(filepath.Join(state, "cache/archives/*.deb"))
}

// unpack unpacks Debian packages, and runs nothing of them.
func unpack(ctx context.Context, root string, archives []string) error {
	// The host's /bin is a link to usr/bin, and so on: what is laid over it must not be a directory.
	for _, name := range []string{"bin", "sbin", "lib"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, archive := range archives {
		// A damaged archive is no tar file, and tar says so.
		const files = `dpkg-deb --fsys-tarfile "$1" | tar --extract --keep-directory-symlink --directory "$2"`
		if err := output(ctx, "sh", "-c", files, "sh", archive, root); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(archive), err)
		}
	}
	return nil
}

// output runs a program, whose output is in the error if it fails.
func output(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

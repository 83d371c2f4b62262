package site

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A Host is one machine of the site: a network of its own, with its own /sys, /run and host name. Everything else it
// shares with the machine that the site runs on.
type Host struct {
	Name string
	Dir  string // a directory for its files, short enough for the name of a socket

	t          testing.TB
	namespaces []namespace
	processes  []*Process
}

type namespace struct {
	kind int // CLONE_NEW…
	file *os.File
}

// newHost makes a host with nothing but lo. Of the sysctls, given as "ipv4/ip_forward=1" below /proc/sys/net, those named
// default hold for the interfaces that it will get.
func newHost(t testing.TB, name string, sysctls ...string) (*Host, error) {
	dir, err := os.MkdirTemp("", name+"-")
	if err != nil {
		return nil, err
	}
	h := &Host{Name: name, Dir: dir, t: t}
	if err := onThread(func() error { return h.unshare(sysctls) }); err != nil {
		return nil, errors.Join(fmt.Errorf("make host %s: %w", name, err), h.close())
	}
	return h, nil
}

// onThread runs f on a thread that ends with it, so that whatever f does to the thread does not outlive it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func (h *Host) unshare(sysctls []string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
		return err
	}
	for kind, name := range map[int]string{unix.CLONE_NEWNS: "mnt", unix.CLONE_NEWNET: "net", unix.CLONE_NEWUTS: "uts"} {
		file, err := os.Open("/proc/thread-self/ns/" + name)
		if err != nil {
			return err
		}
		h.namespaces = append(h.namespaces, namespace{kind, file})
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, m := range []struct{ kind, target string }{
		{"sysfs", "/sys"}, // sysfs shows the network of the one who mounts it
		{"cgroup2", "/sys/fs/cgroup"},
		{"tmpfs", "/run"},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := unix.Sethostname([]byte(h.Name)); err != nil {
		return err
	}
	for _, s := range sysctls {
		name, value, _ := strings.Cut(s, "=")
		// /proc/sys/net is that of the one who opens it.
		if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// close ends what runs on the host and lets the kernel take it away.
func (h *Host) close() error {
	var errs []error
	for _, p := range h.processes {
		p.Kill()
	}
	for _, n := range h.namespaces {
		errs = append(errs, n.file.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(h.Dir))...)
}

// Do runs f on this host: sockets that f makes and processes that it starts are the host's for good. It runs on a
// goroutine of its own, so f returns an error and does not end the test.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		for _, n := range h.namespaces {
			if err := unix.Setns(int(n.file.Fd()), n.kind); err != nil {
				return fmt.Errorf("enter host %s: %w", h.Name, err)
			}
		}
		return f()
	})
}

// network is a name of the host's network for ip(8).
func (h *Host) network() string {
	for _, n := range h.namespaces {
		if n.kind == unix.CLONE_NEWNET {
			return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
		}
	}
	return ""
}

// Try runs a command on this host and gives what it wrote to its standard output. The error has what it complained of.
func (h *Host) Try(name string, args ...string) (string, error) {
	return h.try(exec.Command(name, args...))
}

func (h *Host) try(command *exec.Cmd) (string, error) {
	var out, complaints bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaints
	err := h.Do(command.Start)
	if err == nil {
		err = command.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w\n%s", h.Name, strings.Join(command.Args, " "), err, complaints.String())
	}
	return out.String(), err
}

// Run runs a command on this host, which must succeed, and gives what it wrote to its standard output.
func (h *Host) Run(name string, args ...string) string {
	h.t.Helper()
	out, err := h.Try(name, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// Nft applies a rule set in nft's own language.
func (h *Host) Nft(rules string) {
	h.t.Helper()
	h.Run("nft", rules)
}

// Counted is what the host's kernel has counted under this name of /proc/net/netstat, since the host was made.
func (h *Host) Counted(name string) uint64 {
	h.t.Helper()
	var text []byte
	err := h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/netstat")
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	// Two lines for each protocol: names, and their values.
	lines := strings.Split(string(text), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if at := slices.Index(names, name); at >= 0 && at < len(values) {
			n, err := strconv.ParseUint(values[at], 10, 64)
			if err != nil {
				h.t.Fatal(err)
			}
			return n
		}
	}
	h.t.Fatalf("the kernel of %s does not count %s", h.Name, name)
	return 0
}

// ip runs many commands of ip(8) at once.
func (h *Host) ip(lines ...string) error {
	command := exec.Command("ip", "-batch", "-")
	command.Stdin = strings.NewReader(strings.Join(lines, "\n"))
	if _, err := h.try(command); err != nil {
		return fmt.Errorf("%w%s", err, strings.Join(lines, "\n"))
	}
	return nil
}

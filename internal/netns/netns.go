// Package netns makes hosts for tests: network namespaces of their own, joined
// by veth pairs, from which any frame can be sent. They end with the test.
package netns

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Host is a network namespace. Its lo is up.
type Host struct {
	ns *os.File
}

// New makes a Host. Where the process may not make one the test is skipped, or
// fails if LVSGUARD_PRIVILEGED is 1.
func New(t testing.TB) *Host {
	t.Helper()
	h := &Host{}
	var err error
	onThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("make a network namespace: %w", err)
			return
		}
		h.ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	})
	switch {
	case err == nil:
	case os.Getenv("LVSGUARD_PRIVILEGED") == "1":
		t.Fatalf("%v (this run must have it: run it as root)", err)
	default:
		t.Skipf("%v (needs root)", err)
	}
	t.Cleanup(func() { h.ns.Close() })
	h.Run(t, "ip", "link", "set", "lo", "up")
	return h
}

// onThread runs f on a thread that ends with it, so that f may change the
// thread's namespace.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f()
	}()
	<-done
}

// Do runs f inside h. Sockets that f opens stay in h; goroutines that it
// starts are not in h. As f runs on a goroutine of its own, it must not call
// t.Fatal.
func (h *Host) Do(t testing.TB, f func()) {
	t.Helper()
	var err error
	onThread(func() {
		if err = unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err == nil {
			f()
		}
	})
	if err != nil {
		t.Fatalf("enter the network namespace: %v", err)
	}
}

// Run runs a command inside h and returns its standard output.
func (h *Host) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := h.Try(t, "", name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is Run with something for the command to read, and with its failure as
// an error.
func (h *Host) Try(t testing.TB, stdin, name string, args ...string) (string, error) {
	t.Helper()
	var out, complaint strings.Builder
	var err error
	h.Do(t, func() {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Stdout, cmd.Stderr = &out, &complaint
		err = cmd.Run()
	})
	if err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &complaint)
	}
	return out.String(), nil
}

// Join joins two hosts by a veth pair with the given device names, both up.
func Join(t testing.TB, a *Host, adev string, b *Host, bdev string) {
	t.Helper()
	a.Run(t, "ip", "link", "add", adev, "type", "veth", "peer", "name", bdev,
		"netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.ns.Fd()))
	a.Run(t, "ip", "link", "set", adev, "up")
	b.Run(t, "ip", "link", "set", bdev, "up")
}

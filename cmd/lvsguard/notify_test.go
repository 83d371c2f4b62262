package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/keepalived"
)

// hookIn is the socket of keepalived's hook for a control socket in dir.
func hookIn(dir string) string { return filepath.Join(dir, "hook.sock") }

func wantHookFine(t *testing.T, args ...string) (errOut string) {
	t.Helper()
	began := time.Now()
	status, out, errOut := lvsguard(t, args...)
	if status != 0 || out != "" {
		t.Errorf("%q: status %d, stdout %q, stderr %q", args, status, out, errOut)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("%q took %s", args, took)
	}
	return errOut
}

func TestNotifyReachesTheGuard(t *testing.T) {
	dir := t.TempDir()
	l, err := keepalived.Listen(hookIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx := soon(t)
	looks := make(chan struct{}, 100)
	go l.Run(ctx, func() { looks <- struct{}{} })
	for _, args := range [][]string{
		{"INSTANCE", "VI_1", "MASTER", "100"}, {"GROUP", "VG_1", "FAULT", "50"}, {"MASTER"}, {"BACKUP"}, {"FAULT"}, {"STOP"},
	} {
		if errOut := wantHookFine(t, append([]string{"notify", "--socket", filepath.Join(dir, "control.sock")}, args...)...); errOut != "" {
			t.Errorf("%q complains: %s", args, errOut)
		}
		select {
		case <-looks:
		case <-ctx.Done():
			t.Fatalf("%q: the guard was not told", args)
		}
	}
	// Nor does what cannot be understood keep the guard from looking.
	for _, args := range [][]string{
		{}, {"nonsense"}, {"INSTANCE", "-1", "MASTER", "100"}, {"INSTANCE", "VI_1"}, {"--frobnicate"}, {"-x", "-y"}, {"\x00\xff"}, {"a", "b", "c", "d", "e"},
	} {
		if errOut := wantHookFine(t, append([]string{"notify", "--socket", filepath.Join(dir, "control.sock")}, args...)...); errOut == "" {
			t.Errorf("%q is not complained of", args)
		}
		select {
		case <-looks:
		case <-ctx.Done():
			t.Fatalf("%q: the guard was not told", args)
		}
	}
}

func TestNotifyWithoutGuard(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("LVSGUARD_SOCKET", filepath.Join(dir, "control.sock"))
	if errOut := wantHookFine(t, "notify", "MASTER"); !strings.Contains(errOut, "look again") {
		t.Errorf("without a socket it says: %s", errOut)
	}
	wantHookFine(t, "notify", "--socket")
	wantHookFine(t, "notify", "--socket", "/"+strings.Repeat("x", 500)+"/control.sock", "MASTER")

	if err := os.WriteFile(hookIn(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if errOut := wantHookFine(t, "notify", "MASTER"); errOut == "" {
		t.Error("a file in the place of the socket is not complained of")
	}
	if err := os.Remove(hookIn(dir)); err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: hookIn(dir), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	if errOut := wantHookFine(t, "notify", "MASTER"); errOut == "" {
		t.Error("a dead guard's socket is not complained of")
	}
	if err := os.Remove(hookIn(dir)); err != nil {
		t.Fatal(err)
	}
	stream, err := net.Listen("unix", hookIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if errOut := wantHookFine(t, "notify", "MASTER"); errOut == "" {
		t.Error("a socket of another kind is not complained of")
	}
}

// A guard that is stopped reads nothing; its queue fills.
func TestNotifyStoppedGuard(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("LVSGUARD_SOCKET", filepath.Join(dir, "control.sock"))
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: hookIn(dir), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	for n := 0; ; n++ {
		if err := syscall.Sendto(fd, []byte("x"), 0, &syscall.SockaddrUnix{Name: hookIn(dir)}); err == syscall.EAGAIN {
			break
		} else if err != nil || n > 1e6 {
			t.Fatalf("after %d messages: %v", n, err)
		}
	}
	wantHookFine(t, "notify", "INSTANCE", "VI_1", "MASTER", "100")
}

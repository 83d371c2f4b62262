package keepalived

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestLookAgain(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "look.sock")
	if err := LookAgain(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with no socket: %v, want one that wraps fs.ErrNotExist", err)
	}
	listener, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the socket's mode is %v, %v; want rw-rw-rw-", info.Mode(), err)
	}

	// Nobody reads yet, as when the guard is stopped: the queue fills, and no
	// sender waits.
	began := time.Now()
	for range 1000 {
		if err := LookAgain(socket); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("1000 messages to one that does not read took %v", took)
	}

	var looks atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := listener.Run(ctx, func() { looks.Add(1) }); err != nil {
			t.Error(err)
		}
	})
	eventually(t, func() string {
		if looks.Load() == 0 {
			return "no look came of it"
		}
		return ""
	})

	// However many ask, there are at most ten looks a second, and one after the
	// last message.
	began, before := time.Now(), looks.Load()
	for time.Since(began) < 500*time.Millisecond {
		if err := LookAgain(socket); err != nil {
			t.Fatal(err)
		}
	}
	if n := looks.Load() - before; n < 1 || n > 7 {
		t.Errorf("%d looks in half a second, want about 5", n)
	}
	time.Sleep(3 * lookInterval)
	before = looks.Load()
	if err := LookAgain(socket); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if looks.Load() != before+1 {
			return "the last message was not heard"
		}
		return ""
	})

	cancel()
	running.Wait()
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays behind: %v", err)
	}
}

func TestListenTaken(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "look.sock")

	// Left by a process that died.
	stale, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	stale.Close()
	if err := LookAgain(socket); err == nil {
		t.Error("a message to nobody was taken")
	}
	listener, err := Listen(socket)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	defer listener.Close()

	if _, err := Listen(socket); err == nil || !strings.Contains(err.Error(), socket) {
		t.Errorf("over another's socket: %v, want an error that names it", err)
	}
	if err := LookAgain(socket); err != nil {
		t.Errorf("the first listener is harmed: %v", err)
	}

	file := filepath.Join(dir, "file")
	writeFile(t, file, "precious")
	if _, err := Listen(file); err == nil || readFileText(t, file) != "precious" {
		t.Errorf("over a file: %v, want an error and the file as it was", err)
	}
}

func BenchmarkLookAgain(b *testing.B) {
	socket := filepath.Join(b.TempDir(), "look.sock")
	listener, err := Listen(socket)
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	for b.Loop() { // nobody reads: the queue is full
		if err := LookAgain(socket); err != nil {
			b.Fatal(err)
		}
	}
}

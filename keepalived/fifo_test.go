package keepalived

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fifoReader runs a FIFO and writes down what it says, a line a call.
type fifoReader struct {
	path string
	mu   sync.Mutex
	said []string
	hold chan struct{} // when not nil, event blocks on it
}

func newFIFOReader(t *testing.T) *fifoReader {
	t.Helper()
	return &fifoReader{path: filepath.Join(t.TempDir(), "fifo")}
}

func (r *fifoReader) say(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, line)
}

func (r *fifoReader) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		err := FIFO{Path: r.path}.Run(ctx, func(e Event) {
			if r.hold != nil {
				<-r.hold
			}
			r.say(fmt.Sprintf("%s %s", e.Name, e.State))
		}, func(err error) {
			switch {
			case err == nil:
				r.say("open")
			case errors.Is(err, ErrSyntax):
				r.say("not understood")
			case errors.Is(err, fs.ErrNotExist):
				r.say("absent")
			default:
				r.say(strings.ReplaceAll(err.Error(), r.path, "PATH"))
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// wait waits until exactly this has been said since the last call.
func (r *fifoReader) wait(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, func() string {
		r.mu.Lock()
		defer r.mu.Unlock()
		return cmp.Diff(want, r.said)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = nil
}

// openAsKeepalived makes the FIFO where it is absent and opens it as
// keepalived does (fifo_open in lib/notify.c).
func openAsKeepalived(t *testing.T, path string) *os.File {
	t.Helper()
	if err := unix.Mkfifo(path, 0o644); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func write(t *testing.T, file *os.File, text string) {
	t.Helper()
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

const nobodyWrites = "notify FIFO: nobody writes to PATH: is keepalived running, with notify_fifo PATH?"

func TestFIFO(t *testing.T) {
	r := newFIFOReader(t)
	r.start(t)
	r.wait(t, "absent")

	// Events that were written before it was opened wait in it.
	file := openAsKeepalived(t, r.path)
	write(t, file, "INSTANCE \"A\" BACKUP 100\n")
	r.wait(t, "open", "A BACKUP")

	write(t, file, "INSTANCE \"A\" MAS")
	write(t, file, "TER 100\nVS [192.0.2.1]:tcp:80 UP\n\x00INSTANCE \"B\" FAULT 0\n")
	r.wait(t, "A MASTER", " UP", "B FAULT")

	write(t, file, "garbage\n\n\x00\n"+strings.Repeat("x", 3*maxLine)+"\nINSTANCE \"B\" BACKUP 1\n")
	r.wait(t, "not understood", "not understood", "B BACKUP")

	// A reload: another FIFO is at the path, the old one is closed. Half a line
	// of the old one is not glued to the new one's first.
	write(t, file, "INSTANCE \"A\" STO")
	os.Remove(r.path)
	next := openAsKeepalived(t, r.path)
	file.Close()
	write(t, next, "INSTANCE \"C\" MASTER 1\n")
	r.wait(t, nobodyWrites, "open", "C MASTER")

	// The same, but someone holds the old one open and goes on writing to it.
	os.Remove(r.path)
	last := openAsKeepalived(t, r.path)
	write(t, last, "INSTANCE \"D\" MASTER 1\n")
	r.wait(t, "open", "D MASTER")

	// keepalived ends, and comes back to the same FIFO.
	last.Close()
	r.wait(t, nobodyWrites)
	write(t, openAsKeepalived(t, r.path), "INSTANCE \"E\" MASTER 1\n")
	r.wait(t, "open", "E MASTER")
}

func TestFIFOIsAFile(t *testing.T) {
	r := newFIFOReader(t)
	writeFile(t, r.path, "INSTANCE \"A\" MASTER 1\n")
	r.start(t)
	r.wait(t, "notify FIFO: PATH is not a FIFO: remove it and reload keepalived")
}

// TestFIFOStalled fills the FIFO while its reader is stuck. The writer is not
// held up, and the reader then says that events may be lost.
func TestFIFOStalled(t *testing.T) {
	r := newFIFOReader(t)
	r.hold = make(chan struct{})
	file := openAsKeepalived(t, r.path)
	r.start(t)
	write(t, file, "INSTANCE \"A\" MASTER 1\n")
	eventually(t, func() string { // until the reader has that one and is stuck with it
		n, err := unix.IoctlGetInt(int(file.Fd()), unix.TIOCINQ)
		if err != nil || n > 0 {
			return fmt.Sprintf("%d bytes wait, %v", n, err)
		}
		return ""
	})
	fd := int(file.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	written := 0
	for {
		_, err := unix.Write(fd, []byte("INSTANCE \"B\" BACKUP 1\n"))
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		written++
	}
	close(r.hold)
	want := []string{"open", "A MASTER"}
	for range written {
		want = append(want, "B BACKUP")
	}
	r.wait(t, append(want, "open")...)
}

// FuzzLineReader cuts a stream anywhere: what comes out must be the same as if
// it had come in one piece.
func FuzzLineReader(f *testing.F) {
	f.Add([]byte("INSTANCE \"A\" MASTER 1\nVS [192.0.2.1]:tcp:80 UP\n\x00GROUP \"G\" BACKUP 0\n"), uint16(9))
	f.Add([]byte("garbage\n\nINSTANCE \"A\" MA"), uint16(0))
	f.Add([]byte(strings.Repeat("x", maxLine+1)+"\nINSTANCE \"A\" FAULT 1\n"), uint16(maxLine))
	f.Fuzz(func(t *testing.T, data []byte, cut uint16) {
		read := func(pieces ...[]byte) (said []string) {
			r := lineReader{
				event: func(e Event) { said = append(said, fmt.Sprintf("%+v", e)) },
				gap:   func(err error) { said = append(said, err.Error()) },
			}
			for _, piece := range pieces {
				r.feed(piece)
			}
			if len(r.partial) > maxLine {
				t.Errorf("%d bytes are kept", len(r.partial))
			}
			return said
		}
		at := min(int(cut), len(data))
		if diff := cmp.Diff(read(data), read(data[:at], data[at:])); diff != "" {
			t.Errorf("cut at %d (-whole +cut):\n%s", at, diff)
		}
	})
}

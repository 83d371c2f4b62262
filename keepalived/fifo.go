package keepalived

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxLine is longer than any line of keepalived's: a write of more than
	// PIPE_BUF bytes would not be one piece.
	maxLine = 4096
	// checkInterval is how often an open FIFO is compared with what is at its
	// path now, and retryInterval how often an absent one is tried.
	checkInterval = time.Second
	retryInterval = 100 * time.Millisecond
)

// FIFO is the reading end of keepalived's notify_fifo or vrrp_notify_fifo.
//
// keepalived makes the FIFO where it is absent, when it starts, and makes it
// anew at every reload; this end only ever reads it, so there is no reader that
// it could miss and none that could block it. It keeps the FIFO open for
// writing and reading, so that events wait in it, up to the pipe's size, for a
// reader that comes late; later ones are lost.
type FIFO struct {
	Path string
}

// Run calls event for every event, in order, and gap whenever the roles must be
// looked at because events may have been lost. Both are called from one
// goroutine and should return soon: events wait in the FIFO meanwhile.
//
// gap's error is nil when the FIFO has just been opened (the first time too) or
// was so full that events may have been dropped; it wraps [ErrSyntax] for a
// line that was not understood; otherwise it tells, once, why the FIFO cannot
// be read until gap(nil) is called.
//
// Run returns nil when ctx is done, and not before: whatever is wrong with the
// FIFO, it tries again ten times a second.
func (f FIFO) Run(ctx context.Context, event func(Event), gap func(error)) error {
	var told string
	for ctx.Err() == nil {
		err := f.read(ctx, event, func(err error) {
			told = ""
			gap(err)
		})
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errReplaced) {
			continue
		}
		if err.Error() != told {
			told = err.Error()
			gap(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
	return nil
}

// errReplaced says that the FIFO at the path is another one now.
var errReplaced = errors.New("replaced")

// read opens the FIFO and reads it to its end.
func (f FIFO) read(ctx context.Context, event func(Event), gap func(error)) error {
	file, err := os.OpenFile(f.Path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("notify FIFO: %w", err)
	}
	defer file.Close()
	opened, err := file.Stat()
	if err != nil {
		return fmt.Errorf("notify FIFO: %w", err)
	}
	if opened.Mode().Type() != fs.ModeNamedPipe {
		return fmt.Errorf("notify FIFO: %s is not a FIFO: remove it and reload keepalived", f.Path)
	}
	size, err := pipeSize(file)
	if err != nil {
		return fmt.Errorf("notify FIFO: %s: ask for its size: %w", f.Path, err)
	}
	stop := context.AfterFunc(ctx, func() { file.Close() })
	defer stop()

	lines := lineReader{event: event, gap: gap}
	buf := make([]byte, size)
	// Whether someone writes is known only from a read that does not end at once.
	isOpen, check := false, time.Now().Add(retryInterval/10)
	for {
		if err := file.SetReadDeadline(check); err != nil {
			return fmt.Errorf("notify FIFO: %w", err)
		}
		n, err := file.Read(buf)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("notify FIFO: nobody writes to %s: is keepalived running, with notify_fifo %s?", f.Path, f.Path)
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("notify FIFO: %w", err)
		}
		if !isOpen {
			isOpen = true
			gap(nil)
		}
		lines.feed(buf[:n])
		// A pipe is full before it holds its size in bytes, as no line is
		// split over two of its pages.
		if n >= size/2 {
			gap(nil)
		}
		if time.Now().Before(check) {
			continue
		}
		check = time.Now().Add(checkInterval)
		if now, err := os.Lstat(f.Path); err != nil || !os.SameFile(opened, now) {
			return errReplaced
		}
	}
}

// pipeSize returns how many bytes a pipe can hold.
func pipeSize(pipe *os.File) (int, error) {
	conn, err := pipe.SyscallConn()
	if err != nil {
		return 0, err
	}
	var size int
	var failure error
	err = conn.Control(func(fd uintptr) { size, failure = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) })
	return size, errors.Join(err, failure)
}

// lineReader cuts what is read into lines and parses them.
type lineReader struct {
	event   func(Event)
	gap     func(error)
	partial []byte // of the line that is not yet whole
	tooLong bool   // the rest of the present line is thrown away
}

func (r *lineReader) feed(data []byte) {
	for len(data) > 0 {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		data = rest
		if !r.tooLong && len(r.partial)+len(line) > maxLine {
			r.tooLong = true
			r.gap(fmt.Errorf("notify FIFO: a line of more than %d bytes: %w", maxLine, ErrSyntax))
		}
		if !r.tooLong {
			r.partial = append(r.partial, line...)
		}
		if !whole {
			return
		}
		if !r.tooLong {
			r.line()
		}
		r.partial, r.tooLong = r.partial[:0], false
	}
}

// line parses a whole line. One of nothing but NULs is what VS and RS lines of
// an old keepalived leave behind.
func (r *lineReader) line() {
	if len(bytes.Trim(r.partial, "\x00 \t\r")) == 0 {
		return
	}
	event, err := ParseLine(r.partial)
	if err != nil {
		r.gap(err)
		return
	}
	r.event(event)
}

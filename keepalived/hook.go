package keepalived

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lookInterval is the shortest time between two looks: a notify script that is
// started over and over, or a stranger, costs no more than ten looks a second.
const lookInterval = 100 * time.Millisecond

// LookAgain tells the guard that listens on socket to look at the roles again.
// It never blocks, whether the listener is alive, stopped or gone. A full queue
// is no error: the listener has been told already.
func LookAgain(socket string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a datagram socket: %w", err)
	}
	defer unix.Close(fd)
	err = unix.Sendto(fd, []byte("look again"), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: socket})
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("tell the guard on %s to look again: %w", socket, err)
	}
	return nil
}

// Listener is the guard's end of [LookAgain].
type Listener struct {
	conn   *net.UnixConn
	socket string
}

// Listen makes the datagram socket, writable by everyone: keepalived starts its
// scripts as a user of their own (keepalived_script), so every directory above
// it must be searchable by that user (0755). What strangers can do with it is
// bounded to [Listener.Run]'s rate of looks.
//
// A socket that a dead process has left is replaced, one that is listened on is
// an error.
func Listen(socket string) (*Listener, error) {
	if err := removeStale(socket); err != nil {
		return nil, fmt.Errorf("listen for notify scripts: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for notify scripts: %w", err)
	}
	l := &Listener{conn: conn, socket: socket}
	if err := os.Chmod(socket, 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for notify scripts: %w", err), l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(socket string) error {
	info, err := os.Lstat(socket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way and not a socket: remove it", socket)
	}
	conn, err := net.Dial("unixgram", socket)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is another process's: stop that, or choose another path", socket)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(socket)
}

// Run calls look after messages have come, until ctx is done or the socket
// fails; it returns nil in the first case. Messages that come close together
// are one call, calls are at least 100 ms apart, and after the last message
// there always is one. What a message says is not looked at.
func (l *Listener) Run(ctx context.Context, look func()) error {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for notify scripts: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		var failure error
		err := raw.Read(func(fd uintptr) (done bool) {
			done, failure = drain(int(fd))
			return done
		})
		if ctx.Err() != nil {
			return nil
		}
		if err := errors.Join(err, failure); err != nil {
			return fmt.Errorf("wait for notify scripts: %w", err)
		}
		look()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookInterval):
		}
	}
}

// drain takes the messages that are queued, and tells whether there were any.
// Someone who sends faster than we read must not keep us here.
func drain(fd int) (any bool, err error) {
	var message [1]byte
	for range 1024 {
		_, _, err := unix.Recvfrom(fd, message[:], unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return any, nil
		case err != nil:
			return true, err
		default:
			any = true
		}
	}
	return true, nil
}

// Close stops listening and removes the socket.
func (l *Listener) Close() error {
	return errors.Join(l.conn.Close(), os.Remove(l.socket))
}

package serve

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// A peer is the process at the other end of a Unix socket, as the kernel names
// it. It is the remote address of its connection, so that it comes through
// whatever wraps that.
type peer struct{ *unix.Ucred }

func (peer) Network() string  { return "unix" }
func (p peer) String() string { return fmt.Sprintf("uid %d, pid %d", p.Uid, p.Pid) }

// A peerListener accepts only connections whose peer the kernel names.
type peerListener struct{ net.Listener }

type peerConn struct {
	net.Conn
	peer peer
}

func (c peerConn) RemoteAddr() net.Addr { return c.peer }

func (l peerListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		cred, err := credentials(conn)
		if err == nil {
			return peerConn{conn, peer{cred}}, nil
		}
		conn.Close()
	}
}

func credentials(conn net.Conn) (cred *unix.Ucred, err error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if controlErr != nil {
		return nil, controlErr
	}
	return cred, err
}

type peerKey struct{}

// withPeer hands the peer of a connection to its requests.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, conn.RemoteAddr())
}

package ipvs

import (
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A table reads the connection table's file.
//
// The kernel writes each page of it while read runs, and never waits for
// anything. So this read is one that Go's scheduler is not told of: to look after
// it, as after a call that may block, would cost a fifth of the time again on a
// slow machine.
type table struct {
	fd int
}

func openTable(path string) (*table, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &table{fd: fd}, nil
}

func (t *table) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(t.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return 0, os.NewSyscallError("read", errno)
		case n == 0:
			return 0, io.EOF
		default:
			return int(n), nil
		}
	}
}

func (t *table) Close() error { return unix.Close(t.fd) }

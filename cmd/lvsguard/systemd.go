package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// What systemd is told (sd_notify(3)).
const (
	notifyReady    = "READY=1"
	notifyAlive    = "WATCHDOG=1"
	notifyStopping = "STOPPING=1"
)

// A systemd is told how the guard fares. It never waits: the control loop tells
// it, and a systemd that hangs must not stop that. The well-known library would
// wait as soon as the socket is full.
type systemd struct {
	log    *slog.Logger
	socket string // empty: systemd has not started the guard
	owed   string // what must not be lost, with its line's end
	failed string // the error that was logged last
}

func newSystemd(log *slog.Logger) *systemd {
	return &systemd{log: log, socket: os.Getenv("NOTIFY_SOCKET")}
}

// tell sends a state. READY that did not fit goes out with the next one.
func (s *systemd) tell(state string) {
	if s.socket == "" {
		return
	}
	err := s.send(s.owed + state)
	switch {
	case err == nil:
		s.owed = ""
	case state == notifyReady:
		s.owed = notifyReady + "\n"
	}
	if msg := fmt.Sprint(err); err != nil && msg != s.failed {
		s.log.Warn("systemd cannot be told", "state", state, "error", err)
		s.failed = msg
	}
}

func (s *systemd) send(text string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	err = unix.Sendto(fd, []byte(text), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: s.socket})
	if errors.Is(err, unix.EAGAIN) {
		return errors.New("it does not read its socket")
	}
	return os.NewSyscallError("sendto", err)
}

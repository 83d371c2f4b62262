package main

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A systemd that does not read holds up nobody, and hears READY when it reads again.
func TestSystemdHangs(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	reader, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	read := func() string {
		reader.SetReadDeadline(time.Now().Add(time.Second))
		var text [64]byte
		n, err := reader.Read(text[:])
		if err != nil {
			t.Fatal(err)
		}
		return string(text[:n])
	}
	var log bytes.Buffer
	s := &systemd{log: slog.New(slog.NewTextHandler(&log, nil)), socket: name}
	began, told := time.Now(), 0
	for ; log.Len() == 0; told++ { // until the socket is full
		if time.Since(began) > 20*time.Second {
			t.Fatal("the socket is never full")
		}
		s.tell(notifyAlive)
	}
	s.tell(notifyReady)
	for range 100 {
		s.tell(notifyAlive)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "does not read its socket") {
		t.Errorf("%d lines in the log:\n%s", n, log.String())
	}
	for range told - 1 { // the last did not fit
		if got := read(); got != notifyAlive {
			t.Errorf("told %q", got)
		}
	}
	s.tell(notifyAlive)
	if got, want := read(), notifyReady+"\n"+notifyAlive; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	s.tell(notifyStopping)
	if got := read(); got != notifyStopping {
		t.Errorf("told %q", got)
	}
}

func TestSystemdNotThere(t *testing.T) {
	var log bytes.Buffer
	s := &systemd{log: slog.New(slog.NewTextHandler(&log, nil))}
	s.tell(notifyReady)
	if log.Len() > 0 {
		t.Errorf("logged %s", log.String())
	}
	s.socket = filepath.Join(t.TempDir(), "absent")
	s.tell(notifyReady)
	if !strings.Contains(log.String(), "no such file") {
		t.Errorf("logged %q", log.String())
	}
}

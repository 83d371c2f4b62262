package site

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Process runs on a host until it is stopped, or until the test ends.
type Process struct {
	Log string // the file that it writes to

	host    *Host
	command *exec.Cmd
	ended   chan struct{}
}

// Start starts a program on this host. Its output goes to a file, whose end is shown if the test fails.
func (h *Host) Start(name string, args ...string) *Process {
	h.t.Helper()
	p, err := h.start(name, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *Host) start(name string, args ...string) (*Process, error) {
	log, err := os.CreateTemp(h.Dir, "*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &Process{Log: log.Name(), host: h, command: exec.Command(name, args...), ended: make(chan struct{})}
	p.command.Stdout, p.command.Stderr = log, log
	p.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the program on the terminal alone
	if err := h.Do(p.command.Start); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", h.Name, name, err)
	}
	go func() {
		_ = p.command.Wait() // how it ended is in ProcessState
		close(p.ended)
	}()
	h.processes = append(h.processes, p)
	return p, nil
}

// Attach runs a program on this host with the test's own standard files, a terminal under lab -live, and gives its
// exit status.
func (h *Host) Attach(name string, args ...string) int {
	h.t.Helper()
	command := exec.Command(name, args...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := h.Do(command.Start); err != nil {
		h.t.Fatal(err)
	}
	_ = command.Wait() // how it ended is in ProcessState
	return command.ProcessState.ExitCode()
}

// Signal sends a signal. One that has ended gets none.
func (p *Process) Signal(s os.Signal) {
	_ = p.command.Process.Signal(s) // fails only when it has ended
}

// Stop asks the process to end, waits until it has, and gives its exit status: -1 when a signal ended it.
func (p *Process) Stop() int {
	p.host.t.Helper()
	p.Signal(unix.SIGTERM)
	return p.Wait(10 * time.Second)
}

// Wait waits until the process has ended by itself, and gives its exit status.
func (p *Process) Wait(limit time.Duration) int {
	p.host.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		p.host.t.Fatalf("%s: %s still runs after %s", p.host.Name, p.command, limit)
	}
	return p.command.ProcessState.ExitCode()
}

// Kill ends the process with SIGKILL, stopped or not.
func (p *Process) Kill() {
	p.Signal(unix.SIGKILL)
	<-p.ended
}

// Pid is its process id.
func (p *Process) Pid() int { return p.command.Process.Pid }

// Running tells whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// report gives the last lines of what the process wrote.
func (p *Process) report() string {
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(text), "\n")
	return fmt.Sprintf("%s: %s:\n%s", p.host.Name, p.command, strings.Join(lines[max(0, len(lines)-500):], ""))
}

package alert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// A Command is run for each notification, which it gets as JSON on its standard
// input. It has none of the guard's environment, and no shell has a part in it.
type Command struct{ argv []string }

// NewCommand returns a Receiver that runs a program.
func NewCommand(cfg guard.CommandConfig) *Command { return &Command{cfg.Argv} }

// Send runs the command. When ctx is done, it is killed, and all that it started
// in its process group. Any exit status but 0 is a failure that may be gone at the
// next try.
func (c *Command) Send(ctx context.Context, n Notification) error {
	input, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	var complaint head
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(append(input, '\n'))
	cmd.Stderr = &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// Whoever it left behind with its standard error open is not waited for.
	cmd.WaitDelay = time.Second

	err = cmd.Run()
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil:
		return nil
	case ctx.Err() != nil:
		return errors.New("the command was killed: it did not end in time")
	case exited:
		said := ""
		if line, _, _ := strings.Cut(strings.TrimSpace(complaint.String()), "\n"); line != "" {
			said = ": " + clean(line, 100)
		}
		return fmt.Errorf("the command ends with %v%s", exit.ProcessState, said)
	}
	return fmt.Errorf("run the command: %w", err)
}

// A head keeps the first bytes that are written to it.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	const most = 1 << 10
	h.Buffer.Write(p[:min(len(p), max(0, most-h.Len()))])
	return len(p), nil
}

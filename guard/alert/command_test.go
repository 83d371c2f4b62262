package alert

import (
	"encoding/json"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func shell(script string, args ...string) *Command {
	return NewCommand(guard.CommandConfig{Argv: append([]string{"/bin/sh", "-c", script}, args...)})
}

func TestCommand(t *testing.T) {
	t.Setenv("SECRET", canary)
	dir := t.TempDir()
	n := flooded(Firing, time.Second, synFlood)
	c := shell(`cat >"$0/input"; env >"$0/env"; pwd >"$0/pwd"; echo "$1" >"$0/arg"`, dir, "$(touch "+dir+"/shell); `x`")
	if err := c.Send(within(t, 10*time.Second), n); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	var back Notification
	if err := json.Unmarshal([]byte(read("input")), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(n, back); diff != "" {
		t.Errorf("its input (-want +got):\n%s", diff)
	}
	checkPlain(t, read("env"))
	if got := read("pwd"); got != "/" {
		t.Errorf("it ran in %s", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "shell")); err == nil || !strings.HasPrefix(read("arg"), "$(touch") {
		t.Error("a shell has read its arguments")
	}
}

func TestCommandMisbehaving(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    *Command
		want string
	}{
		{"reads nothing", shell("exit 0"), ""},
		{"fails", shell("exit 3"), "the command ends with exit status 3"},
		{"fails and says why", shell("printf 'no\\033[31m modem\\nmore\\n' >&2; exit 1"), "exit status 1: no\ufffd[31m modem"},
		{"says too much", shell("head -c 3000000 /dev/zero | tr '\\0' x >&2; head -c 3000000 /dev/zero; exit 1"), "exit status 1: xxx"},
		{"dies", shell("kill -SEGV $$"), "signal: segmentation fault"},
		{"is not there", NewCommand(guard.CommandConfig{Argv: []string{"/nonexistent/page"}}), "run the command: fork/exec /nonexistent/page: no such file"},
		{"is no program", NewCommand(guard.CommandConfig{Argv: []string{"/etc/passwd"}}), "permission denied"},
		{"leaves somebody behind", shell("sleep 5 & exit 0"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			checkError(t, tt.c.Send(within(t, 20*time.Second), flooded(Firing, 0, many(20)...)), tt.want, false)
		})
	}
}

// One that hangs is killed with all that it started.
func TestCommandHangs(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	c := shell(`trap "" TERM; sleep 300 & echo $$ $! >"$0.new"; mv "$0.new" "$0"; wait; sleep 300`, pids)
	start := time.Now()
	checkError(t, c.Send(within(t, time.Second), flooded(Firing, 0, synFlood)), "was killed: it did not end in time", false)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	data, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		gone := false
		for range 100 {
			if gone = dead(pid); gone {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if !gone {
			t.Errorf("process %d lives", pid)
		}
	}
}

// dead says whether a process is gone, or but waits for its parent to notice.
func dead(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}

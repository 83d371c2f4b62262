package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// usage is what processes cost that worked on a number of packets.
type usage struct {
	packets uint64
	cpu     time.Duration // user and system
	rss     int64         // the greatest ever, of all of them, in bytes
}

// perMillion is the processor's time a million packets, in seconds.
func (u usage) perMillion() float64 {
	return u.cpu.Seconds() * 1e6 / float64(max(1, u.packets))
}

func (u usage) mib() float64 { return float64(u.rss) / (1 << 20) }

func (u *usage) add(cmd *exec.Cmd) {
	state := cmd.ProcessState
	u.cpu += state.UserTime() + state.SystemTime()
	u.rss += int64(state.SysUsage().(*syscall.Rusage).Maxrss) << 10
}

// patience is longer than any of the programs takes.
const patience = 15 * time.Minute

// command is a program with its arguments; what it complains of is kept.
func command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = new(bytes.Buffer)
	return cmd
}

// failure says which command failed, and what it complained of.
func failure(cmd *exec.Cmd, err error) error {
	complaint, _ := cmd.Stderr.(*bytes.Buffer)
	return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, complaint)
}

// output runs a program and returns what it prints.
func output(ctx context.Context, argv ...string) ([]byte, usage, error) {
	var out bytes.Buffer
	cmd := command(ctx, argv...)
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return nil, usage{}, failure(cmd, err)
	}
	var u usage
	u.add(cmd)
	return out.Bytes(), u, nil
}

// discard runs programs, each reading what the one before it prints, and
// throws away what the last one prints.
func discard(ctx context.Context, pipeline [][]string) (usage, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var cmds []*exec.Cmd
	for i, argv := range pipeline {
		cmd := command(ctx, argv...)
		if i > 0 {
			pipe, err := cmds[i-1].StdoutPipe()
			if err != nil {
				return usage{}, err
			}
			cmd.Stdin = pipe
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Start(); err != nil {
			return usage{}, failure(cmd, err)
		}
	}
	var u usage
	for i := len(cmds) - 1; i >= 0; i-- { // Wait closes the pipe to the next
		if err := cmds[i].Wait(); err != nil {
			return usage{}, failure(cmds[i], err)
		}
		u.add(cmds[i])
	}
	return u, nil
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A host is a program in a network of its own. A pair of interfaces, "in" there
// and "out" here, joins it to the network of the thread that started it. Both
// end with the program.
type host struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	ended chan error
}

// The hosts' addresses, where they have any.
const (
	hereAddress  = "192.0.2.254"
	thereAddress = "192.0.2.1"
)

// thereDevice is the hardware address of "in".
func thereDevice() net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, 2} }

// quiet keeps IPv6 from saying anything on interfaces to come.
const quiet = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; "

// alone moves the calling goroutine, with its thread, into a network of its
// own. Sockets that it opens and programs that it starts are in that network;
// other goroutines are not.
func alone(ctx context.Context) error {
	runtime.LockOSThread() // and never unlocked: no other goroutine may get this thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network of its own: %w (become root)", err)
	}
	return shell(ctx, quiet+"ip link set lo up")
}

func shell(ctx context.Context, script string) error {
	_, _, err := output(ctx, "sh", "-ec", script)
	return err
}

// deaf has a host throw away, as soon as packet sockets have seen it, whatever
// comes in: what else a network stack does with it is not to be measured.
const deaf = `nft 'add table netdev deaf; add chain netdev deaf arrivals { type filter hook ingress device "in" priority 0; policy drop; }'; `

// newHost starts a program on a host. With addresses the two ends can talk to
// each other; without, the host is deaf.
func newHost(ctx context.Context, addresses bool, argv ...string) (*host, error) {
	there, here := deaf, ""
	if addresses {
		there = "ip address add " + thereAddress + "/24 dev in; "
		here = "ip address add " + hereAddress + "/24 dev out; "
	}
	// The program begins when it has its interface.
	there = quiet + "read line; ip link set lo up; " + there + `ip link set in up; exec "$0" "$@" </dev/null`
	h := &host{cmd: command(ctx, append([]string{"sh", "-ec", there}, argv...)...), ended: make(chan error, 1)}
	h.cmd.Stdout = &h.out
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	begin, err := h.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := h.cmd.Start(); err != nil {
		return nil, failure(h.cmd, err)
	}
	go func() { h.ended <- h.cmd.Wait() }()
	// A network ends some time after its last process, and the pair with it.
	err = shell(ctx, fmt.Sprintf("ip link del out 2>/dev/null || true; ip link add out type veth peer name in address %s netns %d; %s ip link set out up",
		thereDevice(), h.cmd.Process.Pid, here))
	if err == nil {
		_, err = fmt.Fprintln(begin)
	}
	if err == nil {
		err = h.wait("its interface to come up", func() (bool, error) {
			device, err := net.InterfaceByName("out")
			return err == nil && device.Flags&net.FlagRunning != 0, err
		})
	}
	if err != nil {
		h.stop(unix.SIGKILL)
		return nil, err
	}
	return h, nil
}

// wait waits until something is so.
func (h *host) wait(what string, is func() (bool, error)) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		switch ok, err := is(); {
		case err != nil:
			return err
		case ok:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("waited 10 s for %s", what)
		}
		select {
		case err := <-h.ended:
			h.ended <- err
			return failure(h.cmd, errors.Join(errors.New("it ended too early"), err))
		default:
		}
	}
}

// listening waits until the program has packet sockets, and for half a second
// no more of them.
func (h *host) listening() error {
	sockets, since := 0, time.Now()
	return h.wait("packet sockets", func() (bool, error) {
		text, _ := h.proc("net/packet") // an error: it has ended, of which wait knows
		if lines := strings.Count(text, "\n"); lines != sockets {
			sockets, since = lines, time.Now()
		}
		return sockets > 1 && time.Since(since) > 500*time.Millisecond, nil // the first line is a heading
	})
}

// proc reads a file of the process in /proc.
func (h *host) proc(name string) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", h.cmd.Process.Pid, name))
	return string(text), err
}

// passed is the number of packets that have come in on "in", and gone out.
func (h *host) passed() (received, sent uint64, err error) {
	text, err := h.proc("net/dev")
	_, line, found := strings.Cut(text, "in:")
	words := strings.Fields(line)
	if err != nil || !found || len(words) < 16 {
		return 0, 0, fmt.Errorf("no counters of the interface: %w", err)
	}
	received, err = strconv.ParseUint(words[1], 10, 64)
	if err == nil {
		sent, err = strconv.ParseUint(words[9], 10, 64)
	}
	return received, sent, err
}

// inside runs f in the host's network. f must not start goroutines that open
// sockets.
func (h *host) inside(f func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.cmd.Process.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// stop ends the program and returns what it printed and cost.
func (h *host) stop(signal syscall.Signal) ([]byte, usage, error) {
	h.cmd.Process.Signal(signal) // an error: it has ended
	var u usage
	select {
	case err := <-h.ended:
		if err != nil && signal != unix.SIGKILL {
			return nil, u, failure(h.cmd, err)
		}
	case <-time.After(10 * time.Second):
		h.cmd.Process.Kill()
		<-h.ended
		return nil, u, failure(h.cmd, errors.New("it does not end"))
	}
	u.add(h.cmd)
	return h.out.Bytes(), u, nil
}

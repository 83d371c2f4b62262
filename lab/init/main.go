// Command init is the first process of a lab guest. It makes the host's root its own, with an overlay in memory for
// what is written, runs the commands of its job, tells the host how they ended, and powers off.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/lab"
)

func main() {
	err := run()
	if err != nil {
		fmt.Println("lab: init:", err)
	}
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Println("lab: power off:", err)
}

func run() error {
	job, err := lab.ReadJob()
	if err != nil {
		return err
	}
	for _, file := range job.RootModules {
		if err := loadModule(file); err != nil {
			return err
		}
	}
	if err := enterRoot(job); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	// What a flood sends shall arrive: one emulated processor does not keep up with another's bursts.
	if err := os.WriteFile("/proc/sys/net/core/netdev_max_backlog", []byte("100000"), 0); err != nil {
		return err
	}
	environment := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb", "LVSGUARD_LAB=1",
	}
	if job.Terminal != nil {
		environment = append(environment, "TERM="+job.Terminal.Type)
	}
	modprobe := lab.Command{Args: append([]string{"/sbin/modprobe", "--all"}, job.Modules...), Dir: "/"}
	status := 0
	for _, c := range append([]lab.Command{modprobe}, job.Commands...) {
		s, err := runCommand(c, environment, job.Terminal)
		if err != nil {
			return err
		}
		if status == 0 {
			status = s
		}
	}
	return lab.WriteStatus(job.Output, status)
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return nil
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// enterRoot lays an overlay over the host's root, mounts there what a running system has, and makes it this process's
// root. 9p's cache=loose is safe for the root, which nobody changes under a guest's feet; the output must reach the
// host at once and has none.
func enterRoot(job lab.Job) error {
	const p9 = "trans=virtio,version=9p2000.L,msize=512000"
	const root = "/root"
	layers := "/host"
	mounts := []mount{
		{"devtmpfs", "/dev", "devtmpfs", 0, ""},
		{"host", "/host", "9p", unix.MS_RDONLY, p9 + ",cache=loose"},
	}
	if job.Above {
		layers = "/above:/host"
		mounts = append(mounts, mount{"above", "/above", "9p", unix.MS_RDONLY, p9 + ",cache=loose"})
	}
	mounts = append(mounts, []mount{
		{"tmpfs", "/writes", "tmpfs", 0, "size=50%"},
		{"overlay", root, "overlay", 0, "lowerdir=" + layers + ",upperdir=/writes/upper,workdir=/writes/work"},
		{"proc", root + "/proc", "proc", 0, ""},
		{"sysfs", root + "/sys", "sysfs", 0, ""},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"devtmpfs", root + "/dev", "devtmpfs", 0, ""},
		{"devpts", root + "/dev/pts", "devpts", 0, ""},
		{"tmpfs", root + "/dev/shm", "tmpfs", 0, ""},
		{"tmpfs", root + "/run", "tmpfs", 0, ""},
		{"output", root + job.Output, "9p", 0, p9},
	}...)
	for _, m := range mounts {
		if m.kind == "overlay" {
			// The overlay's own two directories are in the tmpfs that was mounted just before.
			if err := errors.Join(os.Mkdir("/writes/upper", 0o755), os.Mkdir("/writes/work", 0o755)); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// The initramfs cannot be pivoted away from: the new root is moved over it instead (man 8 switch_root).
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return os.Chdir("/")
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}

// openConsole opens the line to the host's standard input and output. Without a terminal at the other end it changes
// no byte on the way. Each command needs it opened anew: the kernel hangs it up when a session's leader ends.
func openConsole(terminal *lab.Terminal) (*os.File, error) {
	console, err := os.OpenFile("/dev/hvc0", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	fd := int(console.Fd())
	if terminal != nil {
		return console, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: terminal.Rows, Col: terminal.Columns})
	}
	settings, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	settings.Oflag &^= unix.OPOST
	settings.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	return console, unix.IoctlSetTermios(fd, unix.TCSETS, settings)
}

// runCommand runs c with the console as its controlling terminal and gives its exit status. It is also where orphans,
// whose parent is now this process, are laid to rest.
func runCommand(c lab.Command, environment []string, terminal *lab.Terminal) (int, error) {
	program, err := lookPath(c.Args[0])
	if err != nil {
		return 0, err
	}
	console, err := openConsole(terminal)
	if err != nil {
		return 0, err
	}
	defer func() {
		_ = unix.IoctlSetInt(int(console.Fd()), unix.TCSBRK, 1) // wait until the host has what was written
		_ = console.Close()
	}()
	process, err := os.StartProcess(program, c.Args, &os.ProcAttr{
		Dir: c.Dir, Env: append(environment[:len(environment):len(environment)], c.Env...),
		Files: []*os.File{console, console, console},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: true},
	})
	if err != nil {
		return 0, err
	}
	for {
		var s unix.WaitStatus
		pid, err := unix.Wait4(-1, &s, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid == process.Pid && s.Signaled():
			return 128 + int(s.Signal()), nil
		case pid == process.Pid:
			return s.ExitStatus(), nil
		}
	}
}

func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"} {
		if path := filepath.Join(dir, name); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: no such program in the guest", name)
}

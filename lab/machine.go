// Package lab boots Debian's kernel in a virtual machine and runs programs in it, with the host's own file system as
// root. Nothing that they do outlives the machine: writes go to memory, but for one output directory.
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An Arch is what a guest's kernel and programs are made for, by Go's name.
type Arch string

// The architectures of guests.
const (
	AMD64 Arch = "amd64"
	I386  Arch = "386" // Debian's 32-bit kernel with high memory, and its programs
)

// Config is a machine to be. Only Commands must be given.
type Config struct {
	Arch     Arch // AMD64 if empty
	Commands []Command
	Output   string // absolute name of an existing directory, the same on both sides; "": a temporary one
	Accel    string // QEMU's accelerator: tcg (if empty) or kvm
	CPUs     int    // 0: 2
	MemoryMB int    // 0: 2048
	LowMB    int    // about how much of it an I386's kernel can use for itself; 0: as much as there can be, about 850

	// Stdin and Stdout are the commands' standard files. If both are terminals, the guest's console becomes one as well,
	// and what is typed, Ctrl-C included, goes there.
	Stdin  io.Reader
	Stdout io.Writer
}

// rootModules bring a guest to its root and its console, guestModules are what a director works with.
var (
	rootModules  = []string{"virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay"}
	guestModules = []string{
		"ip_vs", "ip_vs_rr", "ip_vs_wlc", "veth", "bridge", "dummy", "ipip", "ip6_tunnel",
		"nf_tables", "nft_limit", "nft_queue", "nfnetlink_queue", "tcp_diag", "inet_diag", "af_packet",
	}
)

// ErrDied is in the error of a guest that did not come to its end: it hung, panicked or never booted.
var ErrDied = errors.New("the guest did not come to its end")

// Run boots a machine, runs the commands and gives the exit status of the first that failed, or 0. When ctx ends
// first, so does the machine. The error of a guest that died carries the last lines of its kernel log.
func Run(ctx context.Context, config Config) (status int, err error) {
	work, err := os.MkdirTemp("", "lab-boot-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	if config.Output == "" {
		config.Output = work
	}
	statusPath := filepath.Join(config.Output, statusFile)
	if err := os.Remove(statusPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}

	// A 32-bit guest has a root of its own, laid over the host's.
	root := "/"
	if config.Arch == I386 {
		if root, err = i386Root(ctx); err != nil {
			return 0, err
		}
	}
	kernel, err := newestKernel(root)
	if err != nil {
		return 0, err
	}
	terminal, restore := terminalOf(config.Stdin, config.Stdout)
	defer restore()
	initrd := filepath.Join(work, "initrd")
	job := Job{Modules: guestModules, Commands: config.Commands, Output: config.Output, Terminal: terminal, Above: root != "/"}
	if err := writeInitramfs(ctx, initrd, config.Arch, kernel, job); err != nil {
		return 0, fmt.Errorf("build initramfs: %w", err)
	}

	kernelLog := filepath.Join(work, "kernel.log")
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", arguments(config, kernel, initrd, kernelLog)...)
	qemu.Stdin, qemu.Stdout = config.Stdin, config.Stdout
	var complaints bytes.Buffer
	qemu.Stderr = &complaints
	qemu.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		// Off the terminal, Ctrl-C is the runner's to handle: it ends ctx.
		Setpgid: terminal == nil,
	}
	// The kernel sends Pdeathsig when the thread that started the process ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ended := qemu.Run()
	text, err := os.ReadFile(statusPath)
	if err != nil {
		why := errors.Join(ErrDied, context.Cause(ctx), ended)
		return 0, fmt.Errorf("%w\n%s%s", why, complaints.String(), lastLines(kernelLog, 40))
	}
	defer os.Remove(statusPath)
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// Try tells whether a guest really boots with the configuration's accelerator. /dev/kvm proves nothing: on some hosts it
// is there and a guest hangs.
func Try(ctx context.Context, config Config) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("no boot within 20 s"))
	defer cancel()
	config.Commands = []Command{{Args: []string{"true"}, Dir: "/"}}
	config.Output, config.Stdin, config.Stdout = "", nil, nil
	_, err := Run(ctx, config)
	return err
}

func arguments(config Config, kernel Kernel, initrd, kernelLog string) []string {
	accel := "tcg,thread=multi,tb-size=512"
	if config.Accel == "kvm" {
		accel = "kvm"
	}
	share := func(tag, path, more string) string {
		// QEMU reads a doubled comma as one.
		return "local,mount_tag=" + tag + ",path=" + strings.ReplaceAll(path, ",", ",,") + ",security_model=none,multidevs=remap" + more
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", accel, "-cpu", "max", "-smp", strconv.Itoa(or(config.CPUs, 2)), "-m", strconv.Itoa(or(config.MemoryMB, 2048)),
		"-kernel", kernel.Image, "-initrd", initrd,
		"-append", strings.Join(kernelOptions(config.LowMB), " "),
		"-serial", "file:" + kernelLog,
		"-chardev", "stdio,id=console,signal=off",
		"-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console",
		"-virtfs", share("host", "/", ",readonly=on"),
		"-virtfs", share("output", config.Output, ""),
	}
	if kernel.Root != "/" {
		args = append(args, "-virtfs", share("above", kernel.Root, ",readonly=on"))
	}
	return args
}

// kernelOptions make the kernel talk to the console and end at its first panic, and spare an emulated machine what costs
// time there.
func kernelOptions(lowMB int) []string {
	options := []string{
		"console=ttyS0", "quiet", "panic=-1",
		"mitigations=off", "nokaslr", "nowatchdog", "init_on_alloc=0",
		"no_timer_check",           // on a busy host the timer comes too late for the check, which panics
		"rcupdate.rcu_expedited=1", // network namespaces come and go in a fraction of the time
	}
	if lowMB > 0 {
		// Of a gigabyte of the kernel's addresses low memory gets what is not kept for others.
		// Without the files of tracefs, which take 6 MB of it for nothing and count as if they could be given back.
		options = append(options, fmt.Sprintf("vmalloc=%dM", 980-lowMB), "initcall_blacklist=tracer_init_tracefs")
	}
	return options
}

func or(value, standard int) int {
	if value == 0 {
		return standard
	}
	return value
}

// writeInitramfs writes the smallest system that reaches the host's root: init, its job, and modules.
func writeInitramfs(ctx context.Context, name string, arch Arch, kernel Kernel, job Job) error {
	program := name + ".init"
	if err := Build(ctx, arch, program, "github.com/lvsguard/lvsguard/lab/init"); err != nil {
		return err
	}
	files, err := kernel.modules(ctx, rootModules...)
	if err != nil {
		return err
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer out.Close()
	initramfs := archive{w: out}
	add := func(source, target string) {
		content, readErr := os.ReadFile(source)
		err = errors.Join(err, readErr)
		initramfs.file(target, content)
	}
	add(program, "init")
	initramfs.directory("modules")
	for _, file := range files {
		target := "/modules/" + filepath.Base(file)
		add(file, target[1:])
		job.RootModules = append(job.RootModules, target)
	}
	text, jobErr := json.Marshal(job)
	initramfs.file(JobFile[1:], text)
	return errors.Join(err, jobErr, initramfs.close(), out.Close())
}

// Build compiles a main package, statically, as whatever runs in a guest is compiled.
func Build(ctx context.Context, arch Arch, output, pkg string) error {
	return goTool(ctx, arch, "build", "-o", output, pkg)
}

// BuildTests compiles a package's tests, those behind the build tag lab included. A package without tests leaves no file.
func BuildTests(ctx context.Context, arch Arch, output, pkg string) error {
	return goTool(ctx, arch, "test", "-c", "-tags", "lab", "-o", output, pkg)
}

func goTool(ctx context.Context, arch Arch, verb string, args ...string) error {
	args = append([]string{verb}, args...)
	environment := append(os.Environ(), "CGO_ENABLED=0")
	if arch == I386 {
		root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
		if err != nil {
			return fmt.Errorf("go list -m: %w", err)
		}
		directory := strings.TrimSpace(string(root))
		// The Makefile says why it takes another go.mod.
		if err := output(ctx, "make", "--silent", "--directory", directory, "bin/386.mod"); err != nil {
			return err
		}
		// With -trimpath it shares what 'make cross' has compiled.
		args = append([]string{verb, "-trimpath", "-modfile", filepath.Join(directory, "bin/386.mod")}, args[1:]...)
		environment = append(environment, "GOARCH=386")
	}
	tool := exec.CommandContext(ctx, "go", args...)
	tool.Env = environment
	if out, err := tool.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// terminalOf describes the terminal at the other end, or gives nil if there is none. QEMU makes it raw and may be killed
// before it can undo that: restore does.
func terminalOf(stdin io.Reader, stdout io.Writer) (terminal *Terminal, restore func()) {
	restore = func() {}
	in, inFile := stdin.(*os.File)
	out, outFile := stdout.(*os.File)
	if !inFile || !outFile {
		return nil, restore
	}
	settings, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return nil, restore
	}
	size, err := unix.IoctlGetWinsize(int(out.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return nil, restore
	}
	return &Terminal{Type: os.Getenv("TERM"), Rows: size.Row, Columns: size.Col}, func() {
		_ = unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, settings) // the best that can be done on the way out
	}
}

// lastLines gives the end of a file, or why it cannot be had.
func lastLines(name string, count int) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(strings.TrimRight(string(text), "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "")
}

// Command lab runs Go tests, or any command, as root in a virtual machine with Debian's kernel, IPVS and keepalived.
// See lab/README.md.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lvsguard/lvsguard/lab"
)

const usage = `Usage:
  lab [flags] [package ...]         run the packages' tests in a guest (default: ./lab/scenario)
  lab [flags] -exec command [...]   run a command in a guest, on this terminal
  lab -live                         show a site under flood

Flags:
`

const module = "github.com/lvsguard/lvsguard"

type options struct {
	arch                               lab.Arch
	run, skip, variants, output, accel string
	verbose, live, exec                bool
	timeout                            time.Duration
	memoryMB                           int
	arguments                          []string
}

func main() {
	o := options{arch: lab.AMD64}
	flag.StringVar(&o.run, "run", "", "run only the tests that match this `regexp`, as go test does")
	flag.StringVar(&o.skip, "skip", "", "leave out the tests that match this `regexp`")
	flag.StringVar(&o.variants, "variant", "", "run the scenarios on these site `variants` (dr4,nat4,tun4,dr6,nat6,tun6 or all), and not on their own choice")
	flag.StringVar(&o.output, "output", "", "the `directory` that tests may write to, as LVSGUARD_OUTPUT")
	flag.StringVar(&o.accel, "accel", "tcg", "QEMU's accelerator; kvm is tried with a short boot first")
	flag.BoolVar(&o.verbose, "v", false, "show each test and what it logs")
	flag.BoolVar(&o.live, "live", false, "show a site under flood on this terminal, until Ctrl-C")
	flag.BoolVar(&o.exec, "exec", false, "run the arguments as a command")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "end a boot that takes longer; 0: never")
	flag.IntVar(&o.memoryMB, "memory", 2048, "the guest's memory in `MiB`")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Func("arch", "amd64, or 386 for Debian's 32-bit kernel, which TestAlone386… always get (default amd64)", func(name string) error {
		if o.arch = lab.Arch(name); o.arch != lab.AMD64 && o.arch != lab.I386 {
			return errors.New("there are amd64 and 386")
		}
		return nil
	})
	flag.Parse()
	o.arguments = flag.Args()
	if o.exec && len(o.arguments) == 0 {
		flag.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status, err := o.execute(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		status = 1
	}
	os.Exit(status)
}

func (o options) execute(ctx context.Context) (int, error) {
	if err := lab.CheckPackages(); err != nil {
		return 0, err
	}
	if o.accel == "kvm" {
		if err := lab.Try(ctx, lab.Config{Accel: o.accel}); err != nil {
			return 0, fmt.Errorf("kvm does not work here, leave -accel out: %w", err)
		}
	}
	work, err := os.MkdirTemp("", "lab-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	if o.output, err = o.outputDirectory(work); err != nil {
		return 0, err
	}
	if o.exec {
		here, err := os.Getwd()
		if err != nil {
			return 0, err
		}
		return o.boot(ctx, boot{arch: o.arch, commands: []lab.Command{{Args: o.arguments, Dir: here, Env: o.environment(work)}}})
	}
	return o.test(ctx, work)
}

func (o options) outputDirectory(work string) (string, error) {
	output := filepath.Join(work, "output")
	if o.output != "" {
		var err error
		if output, err = filepath.Abs(o.output); err != nil {
			return "", err
		}
	}
	return output, os.MkdirAll(output, 0o755)
}

func (o options) environment(work string) []string {
	return []string{
		"LVSGUARD_BIN=" + filepath.Join(work, "lvsguard"),
		"LVSGUARD_OUTPUT=" + o.output,
		"LVSGUARD_VARIANTS=" + o.variants,
		"LVSGUARD_PRIVILEGED=1",
		fmt.Sprintf("%s=%d", lab.PaceVariable, lab.Pace()),
	}
}

// test runs all tests that leave no trace in one boot, and each whose name starts with TestAlone in a boot of its own.
func (o options) test(ctx context.Context, work string) (int, error) {
	packages := o.arguments
	switch {
	case o.live:
		packages, o.run, o.timeout = []string{module + "/lab/live"}, "^TestLive$", 0
	case len(packages) == 0:
		packages = []string{module + "/lab/scenario"}
	}
	// What tests there are is asked of a binary that runs here.
	binaries, err := compile(ctx, filepath.Join(work, string(lab.AMD64)), lab.AMD64, packages)
	if err != nil {
		return 0, err
	}
	shared := boot{arch: o.arch}
	boots := []boot{{}}
	for _, b := range binaries {
		together, alone, err := b.tests(ctx, o.run, o.skip)
		if err != nil {
			return 0, err
		}
		if together {
			shared.commands = append(shared.commands, o.command(b, o.arch, work, o.run, either("^TestAlone", o.skip)))
		}
		for _, name := range alone {
			its := boot{arch: o.arch}
			if strings.HasPrefix(name, "TestAlone386") {
				// So little that a flood which an emulated machine can bear exhausts it.
				its = boot{arch: lab.I386, memoryMB: 512, lowMB: 28}
			}
			its.commands = []lab.Command{o.command(b, its.arch, work, exactly(name, o.run), o.skip)}
			boots = append(boots, its)
		}
	}
	if boots[0] = shared; shared.commands == nil {
		boots = boots[1:]
	}
	if slices.ContainsFunc(boots, func(b boot) bool { return b.arch == lab.I386 }) {
		if _, err := compile(ctx, filepath.Join(work, string(lab.I386)), lab.I386, packages); err != nil {
			return 0, err
		}
	}
	if len(boots) == 0 {
		return 0, fmt.Errorf("no tests to run: nothing matches -run %q", o.run)
	}
	if o.live {
		fmt.Fprintln(os.Stderr, "lab: booting a site, which takes half a minute; Ctrl-C ends it")
	}
	status := 0
	for i, b := range boots {
		began := time.Now()
		s, err := o.boot(ctx, b)
		if err != nil {
			return 0, err
		}
		if status == 0 {
			status = s
		}
		fmt.Fprintf(os.Stderr, "lab: boot %d of %d ended after %.1f s with status %d\n", i+1, len(boots), time.Since(began).Seconds(), s)
	}
	return status, nil
}

// A boot is a machine's life, and what it does in it.
type boot struct {
	arch            lab.Arch
	memoryMB, lowMB int // 0: as usual
	commands        []lab.Command
}

func (o options) boot(ctx context.Context, b boot) (int, error) {
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("still running after %s, see -timeout", o.timeout))
		defer cancel()
	}
	config := lab.Config{
		Arch: b.arch, Commands: b.commands, Output: o.output, Accel: o.accel, Stdout: os.Stdout,
		MemoryMB: cmp.Or(b.memoryMB, o.memoryMB), LowMB: b.lowMB,
	}
	if o.live || o.exec {
		config.Stdin = os.Stdin
	} else if !o.verbose {
		p := newProgress(os.Stdout)
		defer p.close()
		config.Stdout = p
	}
	return lab.Run(ctx, config)
}

func (o options) command(b binary, arch lab.Arch, work, run, skip string) lab.Command {
	work = filepath.Join(work, string(arch))
	// The machine's own deadline is the one that counts: a test binary that panics loses the guest's kernel log. Tests that
	// are parallel mostly wait, so there are more of them at a time than processors.
	args := []string{filepath.Join(work, filepath.Base(b.file)), "-test.timeout=0", "-test.parallel=3", "-test.run=" + run, "-test.skip=" + skip}
	if !o.live {
		args = append(args, "-test.v") // what the user did not ask for, progress takes out again
	}
	return lab.Command{Args: args, Dir: b.directory, Env: o.environment(work)}
}

// A binary is a package's compiled tests.
type binary struct {
	file      string
	directory string // the package's, where tests find their testdata
}

// compile builds the packages' tests into a directory, and for the lab's own packages the guard that they run.
func compile(ctx context.Context, into string, arch lab.Arch, packages []string) ([]binary, error) {
	if err := os.Mkdir(into, 0o755); err != nil {
		return nil, err
	}
	list := exec.CommandContext(ctx, "go", append([]string{"list", "-tags", "lab", "-f", "{{.ImportPath}} {{.Dir}}"}, packages...)...)
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var binaries []binary
	var guard bool
	for line := range strings.Lines(string(out)) {
		path, directory, _ := strings.Cut(strings.TrimSpace(line), " ")
		b := binary{filepath.Join(into, strings.ReplaceAll(path, "/", "_")+".test"), directory}
		if err := lab.BuildTests(ctx, arch, b.file, path); err != nil {
			return nil, err
		}
		if _, err := os.Stat(b.file); errors.Is(err, os.ErrNotExist) {
			continue
		}
		binaries = append(binaries, b)
		guard = guard || strings.Contains(path, "/lab/")
	}
	if !guard {
		return binaries, nil
	}
	return binaries, lab.Build(ctx, arch, filepath.Join(into, "lvsguard"), module+"/cmd/lvsguard")
}

// either matches what one of two expressions does, of which the second may be empty.
func either(a, b string) string {
	if b == "" {
		return a
	}
	return a + "|" + b
}

// tests finds what run selects and skip leaves: whether there is any test that shares a boot, and those that want their own.
func (b binary) tests(ctx context.Context, run, skip string) (together bool, alone []string, err error) {
	skipped, err := regexp.Compile(skip)
	if err != nil {
		return false, nil, fmt.Errorf("-skip: %w", err)
	}
	top, _, _ := strings.Cut(run, "/")
	if top == "" {
		top = "." // an empty -test.list would run them, here
	}
	out, err := exec.CommandContext(ctx, b.file, "-test.list="+top).Output()
	if err != nil {
		return false, nil, fmt.Errorf("list the tests of %s: %w\n%s", b.directory, err, out)
	}
	names := slices.DeleteFunc(strings.Fields(string(out)), func(name string) bool { return skip != "" && skipped.MatchString(name) })
	alone = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !strings.HasPrefix(name, "TestAlone") })
	return len(alone) < len(names), alone, nil
}

// exactly selects one test, and of its subtests those that run selects.
func exactly(name, run string) string {
	if _, sub, ok := strings.Cut(run, "/"); ok {
		return "^" + regexp.QuoteMeta(name) + "$/" + sub
	}
	return "^" + regexp.QuoteMeta(name) + "$"
}

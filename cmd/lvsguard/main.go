// Command lvsguard watches the virtual services of an LVS director for SYN
// floods and keeps the director standing.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "development"

// Exit statuses.
const (
	exitOK    = 0
	exitFail  = 1
	exitUsage = 2
)

func main() {
	beLight()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// beLight trades memory, of which the guard has little, for processor time, of
// which a director under flood has none: fewer collections, and no threads that
// look for work where one has little. GOGC and GOMAXPROCS in the environment
// stand above that.
func beLight() {
	boundGarbage()
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}

const (
	// mostGarbage is about what waits for a collection at most, in bytes.
	mostGarbage = 24 << 20
	// mostGCPercent is for a small heap, of which mostGarbage is many times as much.
	mostGCPercent = 400
)

// boundGarbage is called after large tables were made. Go collects when garbage is
// a share of what is in use, tables included, of which it would then let hundreds
// of MiB wait.
func boundGarbage() {
	if os.Getenv("GOGC") != "" {
		return
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetGCPercent(int(max(1, min(mostGCPercent, 100*mostGarbage/m.HeapAlloc))))
}

// app is what every subcommand has at hand.
type app struct {
	out, errOut io.Writer
	socket      string
	stateDir    string
}

// hookSocket is beside the control socket, so that one flag moves both.
func (a *app) hookSocket() string {
	return filepath.Join(filepath.Dir(a.socket), "hook.sock")
}

// usageError is an error of the one who typed the command.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	a := &app{out: out, errOut: errOut}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(errOut, "lvsguard: %v\nTry '%s --help'.\n", err, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(errOut, "lvsguard: %v\n", err)
	return exitFail
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lvsguard",
		Short: "Keeps an LVS director standing through a SYN flood",
		Long: `lvsguard counts the SYNs that go to the virtual services of an LVS director,
tells a flood by its signature, and drops it if it may: for a time that the
kernel itself ends. Without a word to the contrary it only observes.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	socket := os.Getenv("LVSGUARD_SOCKET")
	if socket == "" {
		socket = "/run/lvsguard/control.sock"
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", socket, "control socket of the guard (environment: LVSGUARD_SOCKET)")
	root.PersistentFlags().StringVar(&a.stateDir, "state-dir", "/var/lib/lvsguard", "where the guard keeps journal and toggle")
	root.AddCommand(
		a.runCommand(), a.statusCommand(), a.countersCommand(), a.rulesCommand(),
		a.mitigateCommand(), a.armCommand(), a.disarmCommand(), a.connsCommand(), a.handshakesCommand(),
		a.pressureCommand(), a.socketsCommand(), a.serversCommand(), a.doctorCommand(), a.alertsCommand(),
		a.notifyCommand(), a.journalCommand(), a.incidentsCommand(), a.captureCommand(), a.configCommand(), a.exportCommand(), a.versionCommand(),
	)
	return root
}

// exactly wants n arguments and says what they are.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("want %s, got %d arguments", what, len(args))}
		}
		return nil
	}
}

// none wants no arguments.
func none(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

// group makes a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	var names []string
	for _, s := range subs {
		names = append(names, s.Name())
	}
	c := &cobra.Command{
		Use: use, Short: short,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%s %s: want one of %s", use, args[0], strings.Join(names, ", "))}
			}
			return usageError{fmt.Errorf("%s: want one of %s", use, strings.Join(names, ", "))}
		},
	}
	c.AddCommand(subs...)
	return c
}

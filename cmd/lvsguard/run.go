package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/serve"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/keepalived"
	"github.com/lvsguard/lvsguard/nft"
)

func (a *app) runCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the guard, in the foreground",
		Long: `Run the guard in the foreground until SIGTERM. SIGHUP reads the configuration
again. Without -c the defaults are used: it observes and drops nothing.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.guard(cmd.Context(), file) },
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	return c
}

func (a *app) guard(ctx context.Context, file string) error {
	log := slog.New(slog.NewTextHandler(a.errOut, nil))
	services, err := ipvs.Open(ipvs.Config{})
	if err != nil {
		return err
	}
	defer services.Close()
	addresses, err := keepalived.OpenAddresses()
	if err != nil {
		return err
	}
	defer addresses.Close()

	d := guard.New(guard.Options{
		Version: version, ConfigFile: file, StateDir: a.stateDir, HookSocket: a.hookSocket(), Log: log,
		Kernel: guard.Kernel{IPVS: services, OpenTable: openTable, Addresses: addresses},
		Ready:  func() { tellSystemd(log, daemon.SdNotifyReady) },
		Alive:  func() { tellSystemd(log, daemon.SdNotifyWatchdog) },
	})
	if err := d.Open(); err != nil {
		return err
	}
	defer d.Close()
	control, err := serve.Listen(serve.Config{Socket: a.socket, Group: d.Config().Control.Group, Log: log})
	if err != nil {
		return err
	}
	log.Info("guarding", "version", version, "socket", a.socket, "state", a.stateDir)
	err = d.Run(ctx,
		func(ctx context.Context) error { return control.Run(ctx, d) },
		func(ctx context.Context) error { return reloadOnHangup(ctx, d) })
	tellSystemd(log, daemon.SdNotifyStopping)
	return err
}

func openTable(cfg nft.Config) (guard.Table, error) {
	table, err := nft.Open(cfg)
	if err != nil {
		return nil, err // not a nil *nft.Table, which is no nil Table
	}
	return table, nil
}

// reloadOnHangup reads the configuration again at every SIGHUP. What is wrong
// with it, the guard itself says.
func reloadOnHangup(ctx context.Context, d *guard.Daemon) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			_ = d.Reload(ctx)
		}
	}
}

// tellSystemd does nothing where systemd did not start the guard.
func tellSystemd(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd cannot be told", "state", state, "error", err)
	}
}

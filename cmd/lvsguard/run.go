package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
	"github.com/lvsguard/lvsguard/guard/pressure"
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
	systemd := newSystemd(log)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // from now on, as it would end a guard that is not ready for it
	defer signal.Stop(hangup)
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
		Kernel: guard.Kernel{
			IPVS: services, OpenTable: openTable, Addresses: addresses,
			OpenHandshakes: func(cfg guard.HandshakesConfig, recorder capture.RecorderConfig, services []handshake.Service) (guard.Handshakes, error) {
				return openHandshakes(cfg, recorder, services, log)
			},
			OpenQueue: openQueue,
			Host:      thisHost(),
		},
		Ready: func() { systemd.tell(notifyReady) },
		Alive: func() { systemd.tell(notifyAlive) },
	})
	if err := d.Open(); err != nil {
		return err
	}
	defer d.Close()
	alerts := alert.NewAlerter(alert.AlerterConfig{Guard: d, Host: hostname(), StateDir: a.stateDir, Log: log})
	control, err := serve.Listen(serve.Config{Socket: a.socket, Group: d.Config().Control.Group, Alerts: alerts, Log: log})
	if err != nil {
		return err
	}
	tasks := []func(context.Context) error{
		alerts.Run,
		func(ctx context.Context) error { return control.Run(ctx, d) },
		func(ctx context.Context) error { return reloadOnHangup(ctx, d, hangup) },
	}
	if path := d.Config().Handshakes.TcpeekSocket; path != "" {
		tcpeek, err := serve.ListenTcpeek(serve.Config{Socket: path, Group: d.Config().Control.Group, Log: log})
		if err != nil {
			return errors.Join(fmt.Errorf("handshakes.tcpeek_socket: %w", err), control.Close())
		}
		tasks = append(tasks, func(ctx context.Context) error { return tcpeek.Run(ctx, d) })
	}
	if cfg := d.Config().Metrics; cfg.Listen != "" {
		tasks = append(tasks, serve.NewMetrics(serve.MetricsConfig{MetricsConfig: cfg, Guard: d, Log: log}).Run)
	}
	log.Info("guarding", "version", version, "socket", a.socket, "state", a.stateDir)
	err = d.Run(ctx, tasks...)
	systemd.tell(notifyStopping)
	return err
}

// hostname is what this host calls itself in messages.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown host"
	}
	return name
}

// thisHost is what is read of this host itself.
func thisHost() guard.Host {
	return guard.Host{
		Monitor: pressure.New(pressure.Config{}),
		OpenSockets: func() (guard.SocketReader, error) {
			r, err := pressure.OpenSockets(pressure.SocketsConfig{})
			if err != nil {
				return nil, err // not a nil *pressure.SocketReader
			}
			return r, nil
		},
		OpenKernelLog: func() (guard.KernelLog, error) {
			l, err := pressure.OpenKernelLog("")
			if err != nil {
				return nil, err
			}
			return l, nil
		},
		OpenServers: func(cfg pressure.ServersConfig) (guard.Servers, error) {
			s, err := pressure.NewServers(cfg)
			if err != nil {
				return nil, err
			}
			return s, nil
		},
	}
}

func openTable(cfg nft.Config) (guard.Table, error) {
	table, err := nft.Open(cfg)
	if err != nil {
		return nil, err // not a nil *nft.Table, which is no nil Table
	}
	return table, nil
}

func openQueue(cfg capture.QueueConfig) (guard.Queue, error) {
	queue, err := capture.OpenQueue(cfg)
	if err != nil {
		return nil, err // not a nil *capture.Queue
	}
	return queue, nil
}

func openHandshakes(cfg guard.HandshakesConfig, recorder capture.RecorderConfig, services []handshake.Service, log *slog.Logger) (guard.Handshakes, error) {
	filters, err := cfg.ParseFilters()
	if err != nil {
		return nil, err
	}
	if cfg.TcpeekSocket != "" {
		filters = withTcpeeks(filters)
	}
	w, err := openWire(wireConfig{
		interfaces: cfg.Interfaces, workers: cfg.Workers, visibility: cfg.Visibility, log: log,
		recorder: recorder,
		handshake: handshake.Config{
			Timeout: cfg.Timeout, Capacity: cfg.Capacity,
			Choice: handshake.Choice{Filters: filters, Services: services},
		},
	})
	if err != nil {
		return nil, err // not a nil *wire
	}
	return w, nil
}

// reloadOnHangup reads the configuration again at every SIGHUP. What is wrong
// with it, the guard itself says.
func reloadOnHangup(ctx context.Context, d *guard.Daemon, hangup <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			_ = d.Reload(ctx)
		}
	}
}

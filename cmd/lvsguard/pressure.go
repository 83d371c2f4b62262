package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/serve"
	"github.com/lvsguard/lvsguard/ipvs"
)

func (a *app) pressureCommand() *cobra.Command {
	var asJSON, watching bool
	c := &cobra.Command{
		Use:   "pressure",
		Short: "What is about to overflow: memory, tables, queues, pools",
		Long: `Show what is about to overflow on this host. First, in at most three lines, what
is wrong. Then a line a resource, the worst first: how much is used and how much
there can be, the share, by how much it grows a second, and when it is full if
that goes on. Then the counters that go up and should not, what the kernel has
said within the last hour, settings that are bad, and what is not known (?).

A running guard is asked; its figures have a history. Where none runs, this host
is looked at twice, a second apart, with the default thresholds.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := a.openPressure(cmd.Context())
			if err != nil {
				return err
			}
			defer source.close()
			if watching {
				return watch(cmd.Context(), a, asJSON, source.next, source.write)
			}
			r, err := source.next(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			source.write(r)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON (with --watch, an object each second)")
	c.Flags().BoolVarP(&watching, "watch", "w", false, "show it anew each second, until interrupted")
	return c
}

// A pressureSource is where the pressure is read: a guard, or this host itself.
type pressureSource struct {
	next  func(context.Context) (*guard.PressureReport, error)
	write func(*guard.PressureReport)
	close func() error
}

func (a *app) openPressure(ctx context.Context) (pressureSource, error) {
	client := serve.NewClient(a.socket)
	_, err := client.Pressure(ctx)
	if err == nil {
		return pressureSource{
			next:  client.Pressure,
			write: func(r *guard.PressureReport) { writePressure(a.out, r, time.Now(), "") },
			close: func() error { return nil },
		}, nil
	}
	if !errors.Is(err, serve.ErrNoGuard) {
		return pressureSource{}, err
	}
	services, err := ipvs.Open(ipvs.Config{})
	if err != nil {
		return pressureSource{}, err
	}
	look := guard.NewPressureLook(guard.Kernel{IPVS: services, Host: thisHost()})
	return pressureSource{
		next: look.Next,
		write: func(r *guard.PressureReport) {
			writePressure(a.out, r, time.Now(), "no guard is running on "+a.socket+": the rates are those of a moment, and what has happened before is not known")
		},
		close: func() error { return errors.Join(look.Close(), services.Close()) },
	}, nil
}

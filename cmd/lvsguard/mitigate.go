package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/serve"
	"github.com/lvsguard/lvsguard/ipvs"
)

func (a *app) mitigateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "mitigate auto|observe",
		Short: "Let the guard drop floods by itself, or only observe",
		Long: `Set the mode; it is kept over a restart and stands above the configuration.
With auto, a service is armed while it is flooded, and while this host is not
the MASTER of its address. With observe, only 'lvsguard arm' drops anything.`,
		Args: exactly(1, "auto or observe"),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, err := guard.ParseMode(args[0])
			if err != nil {
				return usageError{err}
			}
			result, err := a.command(cmd.Context(), guard.Command{Verb: guard.VerbMode, Mode: mode})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "mode %s\n", result.Mode)
			return nil
		},
	}
}

func (a *app) armCommand() *cobra.Command {
	var duration time.Duration
	c := &cobra.Command{
		Use:   "arm SERVICE|all --for 10m",
		Short: "Drop what bears a flood's signature and goes to a service, now",
		Long: `Drop SYNs that bear any configured signature and go to SERVICE (192.0.2.1:80,
[2001:db8::1]:80, 192.0.2.1:*, fwmark:7), in any mode, for the time given and at
most 24h; with them go first fragments too short to hold a TCP header. Nothing
else is dropped. 'lvsguard disarm' ends it early. Before, it says how many of
those that bore the signature completed a handshake: drops would have hit them.`,
		Args: exactly(1, "a service, or all"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("for") {
				return usageError{fmt.Errorf("say for how long: --for 10m")}
			}
			if duration < time.Second || duration > guard.MaxArm {
				return usageError{fmt.Errorf("--for %s: want 1s to 24h", duration)}
			}
			return a.commandOn(cmd.Context(), args[0], guard.Command{Verb: guard.VerbArm, Seconds: duration.Seconds()})
		},
	}
	c.Flags().DurationVar(&duration, "for", 0, "how long, 1s to 24h")
	return c
}

func (a *app) disarmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "disarm SERVICE|all",
		Short: "Stop dropping, whoever began it",
		Long: `End the lease of a service, whoever wanted it. In auto mode the guard leaves
the service alone until the present flood is over, or until 'lvsguard arm' or
'lvsguard mitigate auto' says otherwise.`,
		Args: exactly(1, "a service, or all"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.commandOn(cmd.Context(), args[0], guard.Command{Verb: guard.VerbDisarm})
		},
	}
}

// commandOn carries out a command on a service, or on all, and says what came
// of it.
func (a *app) commandOn(ctx context.Context, service string, c guard.Command) error {
	if service != "all" {
		k, err := ipvs.ParseKey(service)
		if err != nil {
			return usageError{err}
		}
		c.Service = &k
	}
	if c.Verb == guard.VerbArm {
		if err := a.estimate(ctx, c.Service); err != nil {
			return err
		}
	}
	result, err := a.command(ctx, c)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, s := range result.Services {
		if s.Lease == nil {
			fmt.Fprintf(a.out, "%s: disarmed\n", s.Service)
			continue
		}
		fmt.Fprintf(a.out, "%s: armed (%s)", s.Service, leaseWord(s.Lease, now))
		if s.Suspect != nil && s.SYN != nil {
			fmt.Fprintf(a.out, "; %s of %s SYN/s bear a signature", short(*s.Suspect), short(*s.SYN))
		}
		fmt.Fprintln(a.out)
	}
	return nil
}

// estimate says, before anything is dropped, what drops would have hit so far.
func (a *app) estimate(ctx context.Context, service *ipvs.Key) error {
	s, err := serve.NewClient(a.socket).Status(ctx)
	if err != nil {
		return err
	}
	for _, svc := range s.Services {
		if word := signatureWord(svc); word != "" && (service == nil || *service == svc.Service) {
			fmt.Fprintf(a.out, "%s: until now %s\n", svc.Service, word)
		}
	}
	return nil
}

func (a *app) command(ctx context.Context, c guard.Command) (guard.Result, error) {
	result, err := serve.NewClient(a.socket).Do(ctx, c)
	if err == nil && result.Warning != "" {
		fmt.Fprintf(a.errOut, "lvsguard: warning: %s\n", result.Warning)
	}
	return result, err
}

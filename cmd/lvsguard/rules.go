package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/serve"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

func (a *app) rulesCommand() *cobra.Command {
	return group("rules", "The guard's own nftables table: show, install, remove",
		a.rulesShowCommand(), a.rulesInstallCommand(), a.rulesRemoveCommand())
}

func (a *app) rulesShowCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show",
		Short: "Print the table as the kernel holds it",
		Args:  none,
		RunE: func(*cobra.Command, []string) error {
			table, err := nft.Open(nft.Config{})
			if err != nil {
				return err
			}
			defer table.Close()
			if !asJSON {
				return withRemedy(table.Listing(a.out))
			}
			state, err := table.State()
			if err != nil {
				return withRemedy(err)
			}
			return a.printJSON(state)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) rulesInstallCommand() *cobra.Command {
	var file string
	var asJSON bool
	c := &cobra.Command{
		Use:   "install",
		Short: "Make the table, for counters without a running guard",
		Long: `Make the table for the virtual services that IPVS has now and those that the
configuration names. It counts and drops nothing. With a guard running, bring
back the table that 'rules remove' took away.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := serve.NewClient(a.socket).Do(cmd.Context(), guard.Command{Verb: guard.VerbInstall})
			if errors.Is(err, serve.ErrNoGuard) {
				return a.install(cmd.Context(), file, asJSON)
			}
			if err != nil {
				return err
			}
			return a.tell(asJSON, "installed", "table inet lvsguard: kept by the running guard")
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) install(ctx context.Context, file string, asJSON bool) error {
	cfg := guard.DefaultConfig()
	if file != "" {
		var err error
		if cfg, err = guard.LoadConfig(file); err != nil {
			return err
		}
	}
	client, err := ipvs.Open(ipvs.Config{})
	if err != nil {
		return err
	}
	defer client.Close()
	changed, err := guard.Install(ctx, cfg, guard.Kernel{IPVS: client, OpenTable: openTable})
	if err != nil {
		return err
	}
	return a.tell(asJSON, string(changed.Change), fmt.Sprintf("table inet lvsguard: %s", changed.Change))
}

func (a *app) rulesRemoveCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "remove",
		Short: "Take the table away: counters, leases, everything",
		Long: `Delete the guard's table. A running guard is told, and leaves it away until
'lvsguard rules install', over restarts too.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := serve.NewClient(a.socket).Do(cmd.Context(), guard.Command{Verb: guard.VerbRemove})
			if errors.Is(err, serve.ErrNoGuard) {
				err = removeTable()
			}
			if err != nil {
				return err
			}
			return a.tell(asJSON, "removed", "table inet lvsguard: removed")
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func removeTable() error {
	table, err := nft.Open(nft.Config{})
	if err != nil {
		return err
	}
	defer table.Close()
	return table.Remove()
}

// tell prints the outcome of a change to the table.
func (a *app) tell(asJSON bool, change, text string) error {
	if asJSON {
		return a.printJSON(map[string]string{"table": change})
	}
	fmt.Fprintln(a.out, text)
	return nil
}

// withRemedy says what to do about a table that is not there.
func withRemedy(err error) error {
	if errors.Is(err, nft.ErrAbsent) {
		return fmt.Errorf("%w: start the guard, or make it with 'lvsguard rules install'", err)
	}
	return err
}

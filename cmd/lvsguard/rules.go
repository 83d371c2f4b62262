package main

import (
	"context"
	"errors"
	"fmt"
	"time"

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

// rulesJSON is the output of rules show --json.
type rulesJSON struct {
	Since    *time.Time    `json:"since"`  // null: the table has no mark of ours
	Layout   string        `json:"layout"` // tells what configuration made it
	Dormant  bool          `json:"dormant"`
	Counters []counterJSON `json:"counters"`
	Sets     []setJSON     `json:"sets"`
	Chains   []chainJSON   `json:"chains"`
}

type counterJSON struct {
	Name string `json:"name"`
	passedJSON
}

type setJSON struct {
	Name     string        `json:"name"`
	Type     string        `json:"type"`
	Comment  string        `json:"comment"`
	Timeout  *float64      `json:"timeout_seconds"` // null: its elements stay
	Elements []elementJSON `json:"elements"`
}

// elementJSON is a service or a prefix of sources; its counts are null in a set
// that does not count, its times in one whose elements stay.
type elementJSON struct {
	Service *ipvs.Key `json:"service,omitempty"`
	Source  string    `json:"source,omitempty"`
	Packets *uint64   `json:"packets"`
	Bytes   *uint64   `json:"bytes"`
	Expires *float64  `json:"expires_in_seconds"`
}

type chainJSON struct {
	Name  string     `json:"name"`
	Hook  string     `json:"hook"` // empty: other rules go there
	Rules []ruleJSON `json:"rules"`
}

type ruleJSON struct {
	Text    string `json:"text"`
	Comment string `json:"comment"`
	Foreign bool   `json:"foreign"`
}

func newRulesJSON(s nft.State) rulesJSON {
	out := rulesJSON{Layout: s.Layout, Dormant: s.Dormant, Counters: []counterJSON{}, Sets: []setJSON{}, Chains: []chainJSON{}}
	if !s.Since.IsZero() {
		out.Since = &s.Since
	}
	for _, c := range s.Counters {
		out.Counters = append(out.Counters, counterJSON{c.Name, passedJSON(c.Count)})
	}
	for _, set := range s.Sets {
		j := setJSON{Name: set.Name, Type: set.Type, Comment: set.Comment, Timeout: secondsOrNull(set.Timeout), Elements: []elementJSON{}}
		for _, e := range set.Elements {
			element := elementJSON{Expires: secondsOrNull(e.Expires)}
			if e.Source.IsValid() {
				element.Source = e.Source.String()
			} else {
				element.Service = &ipvs.Key{Protocol: ipvs.TCP, Addr: e.Service}
			}
			if set.Counts {
				element.Packets, element.Bytes = &e.Count.Packets, &e.Count.Bytes
			}
			j.Elements = append(j.Elements, element)
		}
		out.Sets = append(out.Sets, j)
	}
	for _, c := range s.Chains {
		j := chainJSON{Name: c.Name, Hook: c.Hook, Rules: []ruleJSON{}}
		for _, r := range c.Rules {
			j.Rules = append(j.Rules, ruleJSON(r))
		}
		out.Chains = append(out.Chains, j)
	}
	return out
}

func secondsOrNull(d time.Duration) *float64 {
	if d == 0 {
		return nil
	}
	s := d.Seconds()
	return &s
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
			return a.printJSON(newRulesJSON(state))
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

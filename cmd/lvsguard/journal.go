package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
)

func (a *app) journalCommand() *cobra.Command {
	var since time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "journal",
		Short: "What happened: roles, verdicts, leases, pressure, kernel",
		Long: `Print the guard's journal, the oldest entry first. It is read from the state
directory, with the guard alive or dead. --json prints an object a line.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var from time.Time
			if since < 0 {
				return usageError{fmt.Errorf("--since %s: want how long ago, as in 1h", since)}
			}
			if cmd.Flags().Changed("since") {
				from = time.Now().Add(-since)
			}
			enc := json.NewEncoder(a.out)
			var bad error
			for e, err := range guard.ReadJournal(a.stateDir, from) {
				switch {
				case err != nil:
					// The last one is returned, and told with the exit status.
					if bad != nil {
						fmt.Fprintf(a.errOut, "lvsguard: %v\n", bad)
					}
					bad = err
				case asJSON:
					if err := enc.Encode(e); err != nil {
						return err
					}
				default:
					a.printEntry(e)
				}
			}
			return bad
		},
	}
	c.Flags().DurationVar(&since, "since", 0, "only what is not older, as in 1h")
	c.Flags().BoolVar(&asJSON, "json", false, "print an object a line")
	return c
}

// printEntry writes an entry in two lines: what happened to what, and why.
func (a *app) printEntry(e guard.Entry) {
	about := cmp.Or(e.Service+e.Instance+string(e.Source)+e.Resource, strings.TrimSpace(e.Kind+" "+e.Subject))
	if e.Server != "" {
		about = e.Server + " of " + about
	}
	head := fmt.Sprintf("%s %-8s ", e.Time.Local().Format("2006-01-02 15:04:05"), e.Event)
	var line []string
	if about != "" {
		line = append(line, about)
	}
	switch {
	case e.From != "" && e.To != "":
		line = append(line, e.From, "→", e.To)
	case e.To != "":
		line = append(line, e.To)
	case e.From != "":
		line = append(line, "no longer", strings.ToLower(e.From))
	}
	if e.Count > 1 {
		line = append(line, fmt.Sprintf("%d times", e.Count))
	}
	if e.Receiver != "" {
		line = append(line, "for receiver", e.Receiver)
	}
	if e.By != "" {
		line = append(line, "by", e.By)
	}
	fmt.Fprint(a.out, hang(head, strings.Join(line, " ")))
	fmt.Fprint(a.out, wrap(e.Reason, strings.Repeat(" ", len(head))))
}

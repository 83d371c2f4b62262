package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
)

func (a *app) captureCommand() *cobra.Command {
	return group("capture", "Packets that the running guard remembers",
		&cobra.Command{
			Use:   "save",
			Short: "Write the packets of the last seconds to a file, now",
			Long: `Have the running guard write what it remembers of packets (headers, of the last
30 seconds if the configuration says nothing else) to a pcapng file beside the
incidents, and print where that is. During an incident it does so by itself.`,
			Args: none,
			RunE: func(cmd *cobra.Command, _ []string) error {
				result, err := a.command(cmd.Context(), guard.Command{Verb: guard.VerbSave})
				if err != nil {
					return err
				}
				fmt.Fprintln(a.out, result.Path)
				return nil
			},
		})
}

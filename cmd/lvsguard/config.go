package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
)

// defaultConfigFile is where the service unit looks.
const defaultConfigFile = "/etc/lvsguard/lvsguard.yaml"

func (a *app) configCommand() *cobra.Command {
	return group("config", "Check a configuration, or show it with its defaults",
		a.configSub("check", "Say whether a configuration is good", func(file string, _ *guard.Config) error {
			fmt.Fprintf(a.out, "%s: good\n", file)
			return nil
		}),
		a.configSub("show", "Print a configuration with every default filled in", func(_ string, c *guard.Config) error {
			return c.Write(a.out)
		}))
}

func (a *app) configSub(use, short string, do func(string, *guard.Config) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " [FILE]", Short: short,
		Long: short + ". Without FILE, " + defaultConfigFile + " is taken.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("want one file")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			file := defaultConfigFile
			if len(args) == 1 {
				file = args[0]
			}
			c, err := guard.LoadConfig(file)
			if err != nil {
				return err
			}
			return do(file, c)
		},
	}
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
	"github.com/lvsguard/lvsguard/internal/wholefile"
)

func (a *app) exportCommand() *cobra.Command {
	var job string
	rules := a.exportSub("prometheus-rules", "Print the alert rules for the Prometheus of a fleet",
		`Turns the alert rules, the default ones and those of the configuration, into
recording and alerting rules for a Prometheus that scrapes the guards of many
hosts: they sum over hosts by project and say how many hosts see it.`,
		func(c *guard.Config) ([]byte, error) { return alert.PrometheusRules(c.Alerts.Rules, job) })
	rules.Flags().StringVar(&job, "job", "lvsguard", "the job_name under which Prometheus scrapes the guards")
	return group("export", "Write what a fleet's Prometheus and Alertmanager need",
		rules,
		a.exportSub("alertmanager", "Print a configuration for the Alertmanager of a fleet",
			`Makes a configuration of Alertmanager that groups and repeats as alerts in the
configuration says, and tells its Slack and mail receivers. Where it has neither,
both are there to be filled in.`,
			func(c *guard.Config) ([]byte, error) {
				text, left, err := alert.AlertmanagerConfig(c.Alerts)
				if len(left) > 0 {
					fmt.Fprintf(a.errOut, "lvsguard: left out, because Alertmanager has no equal: %s\n", strings.Join(left, ", "))
				}
				return text, err
			}))
}

func (a *app) exportSub(use, short, long string, export func(*guard.Config) ([]byte, error)) *cobra.Command {
	var file, into string
	var force bool
	cmd := &cobra.Command{
		Use: use, Short: short, Args: none,
		Long: long + "\n\nWithout -c, " + defaultConfigFile + " is taken, and the defaults where there is none.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadOrDefault(file, cmd.Flags().Changed("config"))
			if err != nil {
				return err
			}
			text, err := export(c)
			if err != nil {
				return err
			}
			if into == "" {
				_, err := a.out.Write(text)
				return err
			}
			return writeNew(into, text, force)
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", defaultConfigFile, "configuration file")
	cmd.Flags().StringVarP(&into, "output", "o", "", "write to this file, which must not be there with other contents")
	cmd.Flags().BoolVar(&force, "force", false, "with -o, replace what is there")
	return cmd
}

// loadOrDefault reads a configuration. Where nobody has named it, it may be absent.
func loadOrDefault(file string, named bool) (*guard.Config, error) {
	c, err := guard.LoadConfig(file)
	if !named && errors.Is(err, fs.ErrNotExist) {
		return guard.DefaultConfig(), nil
	}
	return c, err
}

// writeNew writes a file, whole or not at all.
func writeNew(name string, text []byte, force bool) error {
	was, err := os.ReadFile(name)
	switch {
	case err == nil && bytes.Equal(was, text):
		return nil
	case err == nil && !force:
		return fmt.Errorf("%s is there, with other contents: --force replaces it", name)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// Prometheus and Alertmanager run as users of their own; there is no secret in it.
	if err := wholefile.Write(name, text, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

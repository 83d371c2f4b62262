package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var file string
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "What is missing or risky on this host, and how to mend it",
		Long: `Look at what the guard needs on this host and at what is risky here for its
role: capabilities, kernel modules, settings, the order of nftables' chains,
how keepalived is joined, the clock, the service unit and the state directory.
The worst comes first, each with the line that mends it. Nothing is changed,
and no other program is started. Become root to have everything looked at.

The exit status is 1 if something is critical or a warning. --json prints the
facts with the findings: whoever has them sees what is seen here.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			facts := doctor.Gather(cmd.Context(), a.doctorConfig(file, cmd.Flags().Changed("config")))
			return a.showDoctor(facts, asJSON)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", defaultConfigFile, "configuration file of the guard")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// doctorConfig takes from the guard's configuration what is to be looked at. One
// that is not there, and was not asked for, is the defaults.
func (a *app) doctorConfig(file string, asked bool) doctor.Config {
	out := doctor.Config{Version: version, Socket: a.socket, StateDir: a.stateDir, ConfigFile: file}
	cfg, err := guard.LoadConfig(file)
	if err != nil {
		cfg = guard.DefaultConfig()
		switch {
		case errors.Is(err, fs.ErrNotExist) && !asked:
			out.ConfigFile = ""
		case errors.Is(err, fs.ErrPermission):
			out.ConfigUnknown = err.Error()
		default:
			out.ConfigError = err.Error()
		}
	}
	out.Role, out.Watches = doctor.Role(cfg.Role), len(cfg.Watch) > 0
	out.Keepalived, out.ConfigID, out.FIFO = cfg.Keepalived.Config, cfg.Keepalived.ConfigID, cfg.Keepalived.FIFO
	out.TellsAndShows = len(cfg.Alerts.Receivers) > 0 && !cfg.Metrics.Local()
	out.Instances = len(cfg.Keepalived.Instances) > 0
	out.JournalBytes = uint64(cfg.Journal.MaxBytes) * uint64(cfg.Journal.Keep+1)
	if cfg.Servers.BearerTokenFile != "" || cfg.Servers.PasswordFile != "" {
		for _, url := range cfg.Servers.Metrics {
			out.ClearSecrets = out.ClearSecrets || strings.HasPrefix(strings.ToLower(url), "http:")
		}
	}
	if m := &cfg.Metrics; !m.Local() {
		out.MetricsOpen, out.MetricsClear = !m.Secret(), m.Secret() && m.TLSCertFile == ""
	}
	return out
}

// showDoctor prints what is found, and returns an error if somebody must act.
func (a *app) showDoctor(facts doctor.Facts, asJSON bool) error {
	found := doctor.Examine(facts)
	if asJSON {
		err := a.printJSON(struct {
			Facts    doctor.Facts     `json:"facts"`
			Findings []doctor.Finding `json:"findings"`
		}{facts, found})
		if err != nil {
			return err
		}
	} else {
		writeFindings(a.out, found)
	}
	worse := 0
	for _, f := range found {
		if f.Worse() {
			worse++
		}
	}
	switch worse {
	case 0:
		return nil
	case 1:
		return errors.New("one thing must be mended")
	}
	return fmt.Errorf("%d things must be mended, the worst is the first", worse)
}

// writeFindings writes a paragraph for each finding, and a line for what is good.
func writeFindings(w io.Writer, found []doctor.Finding) {
	for _, f := range found {
		text := hang(fmt.Sprintf("%-9s", f.Severity), f.Subject+": "+f.What)
		if isTerminal(w) {
			switch f.Severity {
			case doctor.Critical:
				text = tinted(text, red)
			case doctor.Warning:
				text = tinted(text, yellow)
			}
		}
		io.WriteString(w, text)
		if f.Why != "" {
			io.WriteString(w, hang("  why:   ", f.Why))
		}
		if f.Remedy != "" {
			io.WriteString(w, hang("  do:    ", f.Remedy))
		}
	}
}

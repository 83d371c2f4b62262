package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/alert"
	"github.com/lvsguard/lvsguard/guard/serve"
)

func (a *app) alertsCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "alerts",
		Short: "What fires, who is told, and whether it reaches them",
		Long: `Show the groups of alerts that fire, the gravest first, as their message would
be now; and a line for each receiver: messages that wait (QUEUE), that were
delivered and lost since the guard's start, and since when it has failed. With no
receivers in the configuration, this is where alerts are seen.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("alerts %s: want rules, figures or test, or nothing", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := serve.NewClient(a.socket).Alerts(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(newAlertsJSON(r))
			}
			writeAlerts(a.out, r, time.Now())
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(a.alertRulesCommand(), a.alertFiguresCommand(), a.alertTestCommand())
	return c
}

func (a *app) alertRulesCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "rules",
		Short: "The rules in force, those of the default too",
		Long: `Show a line for each rule that the running guard holds against its figures: how
grave it is, and when it is told. FIRES is for how many services, filters, ... it
does now; ? is "not known", and below the table is why. The configuration
(alerts.rules) changes them; 'lvsguard alerts figures' lists what a rule can be
about.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := serve.NewClient(a.socket).Alerts(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(struct {
					Time  *time.Time         `json:"time"`
					Rules []alert.RuleReport `json:"rules"`
				}{r.Time, r.Rules})
			}
			writeAlertRules(a.out, r)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) alertFiguresCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "figures",
		Short: "What an alert rule can be about",
		Long: `List the figures that a rule in the configuration can be about: what each is,
and its labels, for the keys match, by and group_by. A counter is held against its
increase in a window, a gauge as it is.`,
		Args: none,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return a.printJSON(newFiguresJSON())
			}
			for _, f := range newFiguresJSON().Figures {
				unit := ""
				if f.Unit != "" {
					unit = ", " + f.Unit
				}
				fmt.Fprint(a.out, hang("", f.Figure+" ("+f.Kind+unit+")"))
				fmt.Fprint(a.out, wrap(f.Help+". Labels: "+strings.Join(f.Labels, ", "), "    "))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) alertTestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "test RECEIVER",
		Short: "Have a receiver sent a sample, now",
		Long: `Have the running guard send a sample message to RECEIVER, a name under
alerts.receivers in its configuration, and say whether that worked. It is tried
once, for 10 s at most.`,
		Args: exactly(1, "the name of a receiver"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := serve.NewClient(a.socket).TestAlert(cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s: delivered\n", args[0])
			return nil
		},
	}
}

// alertsJSON is the output of alerts --json: a Report without the rules.
type alertsJSON struct {
	Time      *time.Time             `json:"time"`
	Groups    []alert.Notification   `json:"groups"`
	Receivers []alert.ReceiverHealth `json:"receivers"`
	LeftOut   int                    `json:"left_out"`
}

func newAlertsJSON(r *alert.Report) alertsJSON {
	return alertsJSON{Time: r.Time, Groups: r.Groups, Receivers: r.Receivers, LeftOut: r.LeftOut}
}

type figuresJSON struct {
	Figures []figureJSON `json:"figures"`
}

type figureJSON struct {
	Figure  string   `json:"figure"`
	Kind    string   `json:"kind"`
	Unit    string   `json:"unit"`
	Help    string   `json:"help"`
	ShareOf *string  `json:"share_of"` // null: it has no share
	Labels  []string `json:"labels"`
	By      []string `json:"by"`
}

func newFiguresJSON() figuresJSON {
	var out figuresJSON
	for _, f := range guard.AlertFigures() {
		is := figureJSON{Figure: f.Name, Kind: string(f.Kind), Unit: f.Unit, Help: f.Help, Labels: f.Labels, By: f.By}
		if f.State { // its unit is that of what is told of it
			is.Unit = ""
		}
		if f.ShareOf != "" {
			is.ShareOf = &f.ShareOf
		}
		out.Figures = append(out.Figures, is)
	}
	return out
}

func writeAlerts(w io.Writer, r *alert.Report, now time.Time) {
	switch {
	case r.Time == nil:
		fmt.Fprintln(w, "the guard has just started and has not looked yet")
	case now.Sub(*r.Time) > 5*time.Second:
		fmt.Fprintf(w, "STALE: the guard last looked %s ago\n", span(now.Sub(*r.Time)))
	}
	if len(r.Groups) == 0 && r.Time != nil {
		fmt.Fprintln(w, "nothing fires")
	}
	for i := range r.Groups {
		if i > 0 {
			fmt.Fprintln(w)
		}
		writeAlertGroup(w, &r.Groups[i], now)
	}
	if r.LeftOut > 0 {
		fmt.Fprintf(w, "\n%d more alerts or figures: there was no room for them\n", r.LeftOut)
	}
	writeReceivers(w, r.Receivers, now)
}

func writeAlertGroup(w io.Writer, n *alert.Notification, now time.Time) {
	head := fmt.Sprintf("%s %s, for %s", strings.ToUpper(string(n.Severity)), n.Group, span(now.Sub(n.Since)))
	if firing(n) == 0 {
		head += ", about to be told as over"
	}
	if isTerminal(w) {
		switch n.Severity {
		case alert.Critical:
			head = tinted(head, red)
		case alert.Warning:
			head = tinted(head, yellow)
		}
	}
	fmt.Fprintln(w, head)
	for i := range n.Alerts {
		al := &n.Alerts[i]
		text := al.Rule
		if al.Subject != "" {
			text += " on " + al.Subject
		}
		text += ": " + al.Summary
		if !al.Until.IsZero() {
			text += ", over for " + span(now.Sub(al.Until))
		} else if al.Since != n.Since {
			text += ", for " + span(now.Sub(al.Since))
		}
		fmt.Fprint(w, wrap(text, "  "))
	}
	if n.More > 0 {
		fmt.Fprintf(w, "  and %d more\n", n.More)
	}
	did := "did nothing"
	if len(n.Actions) > 0 {
		did = strings.Join(n.Actions, "; ")
	}
	fmt.Fprint(w, hang("  guard: ", did))
	fmt.Fprintf(w, "  look:  %s\n", n.Look)
}

// firing counts the alerts of n that are not over.
func firing(n *alert.Notification) int {
	count := n.More
	for _, al := range n.Alerts {
		if al.Until.IsZero() {
			count++
		}
	}
	return count
}

var receiverColumns = []column{
	{"RECEIVER", 24, false}, {"QUEUE", 5, true}, {"SENT", 6, true}, {"LOST", 6, true}, {"LAST", 8, true}, {"STATE", 20, false},
}

func writeReceivers(w io.Writer, receivers []alert.ReceiverHealth, now time.Time) {
	fmt.Fprintln(w)
	if len(receivers) == 0 {
		fmt.Fprintln(w, "no receivers: nobody is told (alerts.receivers in the configuration)")
		return
	}
	rows := make([][]string, 0, len(receivers))
	for _, r := range receivers {
		last, state := "never", "not tried yet"
		if r.LastDelivered != nil {
			last, state = span(now.Sub(*r.LastDelivered))+" ago", "works"
		}
		if r.FailingSince != nil {
			state = "fails for " + span(now.Sub(*r.FailingSince))
		}
		rows = append(rows, []string{r.Receiver, short(float64(r.Queued)), short(float64(r.Delivered)), short(float64(r.Lost)), last, state})
	}
	writeTable(w, receiverColumns, rows, func(i int) string {
		if receivers[i].FailingSince != nil {
			return red
		}
		return ""
	})
	for _, r := range receivers {
		if r.Error != nil {
			fmt.Fprint(w, wrap(r.Receiver+": "+*r.Error, "  "))
		}
	}
}

func writeAlertRules(w io.Writer, r *alert.Report) {
	fmt.Fprintln(w, "RULE                 SEVERITY FIRES WHEN")
	for _, rule := range r.Rules {
		fires := fmt.Sprint(rule.Fires)
		if rule.Unknown != nil {
			fires = unknownMark
		}
		when := rule.When
		for _, label := range slices.Sorted(maps.Keys(rule.Match)) {
			when += fmt.Sprintf(", where %s is %s", label, rule.Match[label])
		}
		if len(rule.By) > 0 {
			when += ", by " + strings.Join(rule.By, ", ")
		}
		fmt.Fprint(w, hang(fmt.Sprintf("%-20s %-8s %5s ", rule.Name, rule.Severity, fires), when))
	}
	written := make(map[string]bool)
	for _, rule := range r.Rules {
		if rule.Unknown == nil || written[*rule.Unknown] {
			continue
		}
		if len(written) == 0 {
			fmt.Fprintln(w)
		}
		written[*rule.Unknown] = true
		fmt.Fprint(w, wrap("unknown: "+*rule.Unknown, "  "))
	}
}

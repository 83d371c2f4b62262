package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/pressure"
	"github.com/lvsguard/lvsguard/guard/serve"
)

func (a *app) statusCommand() *cobra.Command {
	var asJSON, watching bool
	c := &cobra.Command{
		Use:   "status",
		Short: "What the running guard sees: roles, services, floods, leases",
		Long: `Show the mode, the VRRP roles, and a line for each virtual service: verdict,
SYNs a second, those of them with a flood's signature and their share, drops a
second, the share of the handshakes of the last minute that completed (DONE),
ActiveConn, InActConn, and who holds the lease and for how long.
? is "not known"; the reasons are below the table and in --json.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client := serve.NewClient(a.socket)
			if watching {
				return watch(cmd.Context(), a, asJSON, client.Status, func(s *guard.Status) { writeStatus(a.out, s, time.Now()) })
			}
			return a.showStatus(cmd.Context(), client, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON (with --watch, an object each second)")
	c.Flags().BoolVarP(&watching, "watch", "w", false, "show it anew each second, until interrupted")
	return c
}

func (a *app) showStatus(ctx context.Context, client *serve.Client, asJSON bool) error {
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(s)
	}
	writeStatus(a.out, s, time.Now())
	return nil
}

var statusColumns = []column{
	{"SERVICE", 17, false}, {"VERDICT", 9, false}, {"SYN/s", 5, true}, {"SIG/s", 5, true}, {"SHARE", 5, true},
	{"DROP/s", 6, true}, {"DONE", 4, true}, {"ACT", 5, true}, {"INACT", 5, true}, {"LEASE", 9, false},
}

func writeStatus(w io.Writer, s *guard.Status, now time.Time) {
	mode := fmt.Sprintf("mode %s (from %s)", s.Mode, s.ModeFrom)
	if s.Role == guard.RoleHost {
		mode += ", no director (role: host)"
	}
	if s.PausedUntil != nil {
		mode += fmt.Sprintf(", automatic drops PAUSED for %s", span(s.PausedUntil.Sub(now)))
	}
	var roles []string
	for _, r := range s.Roles {
		roles = append(roles, fmt.Sprintf("%s %s for %s", r.Instance, r.Role, span(now.Sub(r.Since))))
	}
	line := mode + "    roles: " + strings.Join(roles, ", ")
	switch {
	case len(roles) == 0:
		fmt.Fprintln(w, mode)
	case utf8.RuneCountInString(line) <= width:
		fmt.Fprintln(w, line)
	default:
		fmt.Fprintf(w, "%s\n%s", mode, hang("roles: ", strings.Join(roles, ", ")))
	}
	if age := now.Sub(s.Time); age > 5*time.Second {
		fmt.Fprintf(w, "STALE: the guard last looked %s ago\n", span(age))
	}
	rows := make([][]string, 0, len(s.Services))
	for _, svc := range s.Services {
		rows = append(rows, []string{
			svc.Service.String(), verdictWord(svc.Verdict), shortOr(svc.SYN), shortOr(svc.Suspect),
			shareWord(svc), shortOr(svc.Dropped), completionWord(svc), countOr(svc.Active), countOr(svc.Inactive),
			leaseWord(svc.Lease, now),
		})
	}
	fmt.Fprintln(w)
	switch {
	case len(rows) == 0 && s.TickMillis == 0:
		fmt.Fprintln(w, "the guard has just started and has not looked yet")
	case len(rows) == 0:
		fmt.Fprintln(w, "no virtual services")
	default:
		writeTable(w, statusColumns, rows, func(i int) string {
			switch s.Services[i].Verdict {
			case guard.Flood:
				return red
			case guard.Rising, guard.HalfOpenFlood:
				return yellow
			}
			return ""
		})
	}
	writeNotes(w, s, now)
}

// pressureNotes say which resources are near their limit, and what else an
// operator must know of this host.
func pressureNotes(s *guard.Status, now time.Time) []string {
	p := s.Pressure
	if p == nil {
		return nil
	}
	var notes []string
	for _, r := range p.Resources {
		if r.Level == pressure.LevelCritical || r.Level == pressure.LevelWarning {
			notes = append(notes, levelWord(r.Level)+", "+r.Name+": "+r.Reason)
		}
	}
	if len(p.Troubles) > 0 {
		notes = append(notes, troubleText(p.Troubles[0])+andMore(len(p.Troubles)-1, "counters of trouble (lvsguard pressure)"))
	}
	if len(p.Events) > 0 {
		notes = append(notes, eventText(p.Events[0], now)+andMore(len(p.Events)-1, "within the hour (lvsguard pressure)"))
	}
	return notes
}

func andMore(n int, what string) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf("; and %d more %s", n, what)
}

func verdictWord(v guard.State) string {
	if v == guard.HalfOpenFlood {
		return "half-open"
	}
	return string(v)
}

// shareWord tells a share that is not known from one that there is none of.
func shareWord(s guard.ServiceStatus) string {
	if s.SYN == nil {
		return unknownMark
	}
	return percent(s.Share)
}

// completionWord tells a completion that is not known from one that there is
// none of.
func completionWord(s guard.ServiceStatus) string {
	if s.Handshakes == nil {
		return unknownMark
	}
	return percent(s.Completion)
}

// signatureWord says how many handshakes of a service bore the signature and
// completed: what drops would have hit. It is empty if none bore it.
func signatureWord(s guard.ServiceStatus) string {
	h := s.Handshakes
	if h == nil || h.Signature.Attempts == 0 {
		return ""
	}
	return fmt.Sprintf("%s attempts bore the signature and were not dropped, %s of them completed", short(float64(h.Signature.Attempts)), short(float64(h.Signature.Completed)))
}

// projectsWord says how many services each project has; it is empty where none
// has a project.
func projectsWord(services []guard.ServiceStatus) string {
	count := make(map[string]int)
	for _, svc := range services {
		count[svc.Project]++
	}
	if len(services) == count[""] {
		return ""
	}
	var parts []string
	for _, project := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%s %d", cmp.Or(project, "none"), count[project]))
	}
	return "services by project: " + strings.Join(parts, ", ")
}

func leaseWord(l *guard.Lease, now time.Time) string {
	if l == nil {
		return "-"
	}
	by := map[guard.By]string{guard.ByOperator: "hand", guard.ByAuto: "auto", guard.ByPrearm: "pre", guard.ByRestart: "found"}
	return by[l.By] + " " + span(l.ExpiresAt.Sub(now))
}

// writeNotes says below the table what its figures cannot: why a service is
// not calm, and what is not known.
func writeNotes(w io.Writer, s *guard.Status, now time.Time) {
	var notes bytes.Buffer
	for _, note := range slices.Concat(pressureNotes(s, now), serverNotes(s)) {
		notes.WriteString(wrap(note, "  "))
	}
	var unknown []string // reasons, in their order
	services := make(map[string][]string)
	for _, svc := range s.Services {
		switch svc.Verdict {
		case guard.Flood, guard.Rising, guard.HalfOpenFlood:
			note := svc.Service.String()
			if svc.Project != "" {
				note += " (" + svc.Project + ")"
			}
			note += ": " + svc.Reason
			if svc.Declined {
				note += "; disarmed by an operator until it is over"
			}
			if word := signatureWord(svc); word != "" {
				note += "; " + word
			}
			notes.WriteString(wrap(note, "  "))
		case guard.Unknown:
			if services[svc.Reason] == nil {
				unknown = append(unknown, svc.Reason)
			}
			services[svc.Reason] = append(services[svc.Reason], svc.Service.String())
		}
	}
	for _, reason := range unknown {
		names := services[reason]
		about := names[0]
		if n := len(names) - 1; n > 0 {
			about += fmt.Sprintf(" and %d more", n)
		}
		notes.WriteString(wrap(fmt.Sprintf("unknown, %s: %s", about, reason), "  "))
	}
	for _, src := range slices.Sorted(maps.Keys(s.Unknown)) {
		notes.WriteString(wrap(fmt.Sprintf("unknown, %s: %s", src, s.Unknown[src]), "  "))
	}
	if p := s.Sampling; p != nil && p.Way != nil && *p.Way == guard.SampleByCapture {
		notes.WriteString(wrap("samples of a flood's packets come from the capture alone: "+p.Reason, "  "))
	}
	if c := s.Capture; c != nil {
		if c.Lossy() {
			notes.WriteString(wrap(fmt.Sprintf("capture: %s packets dropped of %s: figures of handshakes are a lower bound", short(float64(c.Dropped)), short(float64(c.Handed+c.Dropped))), "  "))
		}
		for _, note := range c.Notes {
			notes.WriteString(wrap("capture: "+note, "  "))
		}
		if c.FilterReason != "" {
			notes.WriteString(wrap(fmt.Sprintf("capture: the %s filter, which hands up every TCP segment: %s", c.Filter, c.FilterReason), "  "))
		}
	}
	if word := projectsWord(s.Services); word != "" {
		notes.WriteString(wrap(word, "  "))
	}
	if s.ConfigError != nil {
		notes.WriteString(wrap("configuration refused, the old one is in force: "+*s.ConfigError, "  "))
	}
	if s.Journal.Error != nil {
		notes.WriteString(wrap(fmt.Sprintf("journal: %d entries lost: %s", s.Journal.Lost, *s.Journal.Error), "  "))
	}
	if notes.Len() > 0 {
		fmt.Fprintln(w)
		notes.WriteTo(w)
	}
}

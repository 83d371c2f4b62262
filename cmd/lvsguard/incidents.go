package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/guard/incident/report"
)

func (a *app) incidentsCommand() *cobra.Command {
	var since time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "incidents",
		Short: "Floods of the past: what happened, what they looked like, what to do",
		Long: `List the incidents of which the guard keeps a record, the latest first. They are
read from the state directory, with the guard alive or dead. ID is short for the
whole one: as much of it as no other incident begins with is enough.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("incidents %s: want nothing, or one of show, report, export, pin, unpin", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			var from time.Time
			if since < 0 {
				return usageError{fmt.Errorf("--since %s: want how long ago, as in 24h", since)}
			}
			if cmd.Flags().Changed("since") {
				from = time.Now().Add(-since)
			}
			return a.listIncidents(from, asJSON)
		},
	}
	c.Flags().DurationVar(&since, "since", 0, "only those that went on then or later, as in 24h")
	c.Flags().BoolVar(&asJSON, "json", false, "print one object")
	c.AddCommand(a.incidentShowCommand(), a.incidentReportCommand(), a.incidentExportCommand(),
		a.incidentPinCommand("pin", "Have an incident stay when old ones make room", true),
		a.incidentPinCommand("unpin", "Have an incident make room as others do", false))
	return c
}

const wantID = "an ID, as 'lvsguard incidents' lists them"

// openIncidents opens what the guard keeps of incidents, and lists them.
func (a *app) openIncidents() (*incident.Store, []incident.Listed, error) {
	store, err := incident.Open(incident.Dir(a.stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: has a guard run with this --state-dir?", err)
	}
	if err != nil {
		return nil, nil, err
	}
	all, err := store.List()
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return store, all, nil
}

// withIncident finds the one incident whose ID begins with prefix; short is as
// much of it as is needed.
func (a *app) withIncident(prefix string, do func(store *incident.Store, r *incident.Record, short string) error) error {
	store, all, err := a.openIncidents()
	if err != nil {
		return err
	}
	defer store.Close()
	var found, ids []string
	var one incident.Listed
	for _, l := range all {
		ids = append(ids, l.ID)
		if strings.HasPrefix(l.ID, prefix) {
			found = append(found, l.ID)
			one = l
		}
	}
	if i := slices.Index(ids, prefix); i >= 0 {
		found, one = ids[i:i+1], all[i]
	}
	switch len(found) {
	case 0:
		return fmt.Errorf("no incident begins with %q (see: lvsguard incidents)", prefix)
	case 1:
		if one.Err != nil {
			return one.Err
		}
		return do(store, one.Record, uniquePrefix(one.ID, ids))
	}
	const named = 8
	more := ""
	if n := len(found) - named; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
		found = found[:named]
	}
	return fmt.Errorf("%d incidents begin with %q, write more of one: %s%s", len(found), prefix, strings.Join(found, ", "), more)
}

// incidentsJSON is what incidents --json prints.
type incidentsJSON struct {
	Incidents []incidentJSON `json:"incidents"`
}

// incidentJSON is an incident in short.
type incidentJSON struct {
	ID        string          `json:"id"`
	Host      string          `json:"host"`
	Service   string          `json:"service"`
	Project   string          `json:"project,omitempty"`
	Onset     time.Time       `json:"onset"`
	Flooded   *time.Time      `json:"flooded"`
	FirstDrop *time.Time      `json:"first_drop"`
	Ended     *time.Time      `json:"ended"`
	Seconds   float64         `json:"seconds"`
	Verdict   string          `json:"verdict"`
	Totals    incident.Totals `json:"totals"`
	Peaks     incident.Peaks  `json:"peaks"`
	Pinned    bool            `json:"pinned"`
	Bytes     int64           `json:"bytes"`
}

func (a *app) listIncidents(from time.Time, asJSON bool) error {
	store, all, err := a.openIncidents()
	if err != nil {
		return err
	}
	defer store.Close()
	var bad error
	list := incidentsJSON{Incidents: []incidentJSON{}}
	ids := make([]string, 0, len(all))
	for _, l := range all {
		ids = append(ids, l.ID)
		if l.Err != nil {
			// The last one is returned, and told with the exit status.
			if bad != nil {
				fmt.Fprintf(a.errOut, "lvsguard: %v\n", bad)
			}
			bad = l.Err
			continue
		}
		r := l.Record
		last := report.Last(r)
		if last.Before(from) {
			continue
		}
		list.Incidents = append(list.Incidents, incidentJSON{
			ID: r.ID, Host: r.Host, Service: r.Service, Project: r.Project,
			Onset: r.Onset, Flooded: r.Flooded, FirstDrop: r.FirstDrop, Ended: r.Ended, Seconds: last.Sub(r.Onset).Seconds(), Verdict: report.Verdict(r),
			Totals: r.Totals, Peaks: r.Peaks, Pinned: r.Pinned, Bytes: l.Bytes,
		})
	}
	if asJSON {
		return errors.Join(a.printJSON(list), bad)
	}
	writeIncidents(a.out, list.Incidents, ids)
	return bad
}

func (a *app) incidentShowCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "The story of an incident on one screen",
		Long: `Tell what happened, what clients felt, what told the flood from good clients, and
what to do next time. The plots show the highest of each of their places, and of
completed handshakes the lowest; ? is unknown.`,
		Args: exactly(1, wantID),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withIncident(args[0], func(_ *incident.Store, r *incident.Record, short string) error {
				if asJSON {
					return a.printJSON(r)
				}
				writeIncident(a.out, r, short)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the record")
	return c
}

func (a *app) incidentReportCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "report ID [-o FILE.html]",
		Short: "An incident as one page for a browser or a mail",
		Long: `Write one page of HTML with the story, timelines, what the flood looked like and
what was done. It needs no network to be read and runs no script. Without -o it
is lvsguard-incident-ID.html in this directory.`,
		Args: exactly(1, wantID),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withIncident(args[0], func(_ *incident.Store, r *incident.Record, _ string) error {
				if file == "" {
					file = "lvsguard-incident-" + r.ID + ".html"
				}
				if err := writeNewFile(file, func(w io.Writer) error { return report.Page(w, r) }); err != nil {
					return err
				}
				fmt.Fprintln(a.out, file)
				return nil
			})
		},
	}
	c.Flags().StringVarP(&file, "output", "o", "", "file to write")
	return c
}

func (a *app) incidentPinCommand(use, short string, pinned bool) *cobra.Command {
	return &cobra.Command{
		Use: use + " ID", Short: short,
		Args: exactly(1, wantID),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withIncident(args[0], func(store *incident.Store, r *incident.Record, _ string) error {
				if err := store.Pin(r.ID, pinned); err != nil {
					return err
				}
				fmt.Fprintf(a.out, "%s: %sned\n", r.ID, use)
				return nil
			})
		},
	}
}

// writeNewFile writes a file that is not there yet. What cannot be written whole
// is taken away.
func writeNewFile(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o640)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: remove it, or name another with -o", path)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", filepath.Base(path), err), os.Remove(path))
	}
	return nil
}

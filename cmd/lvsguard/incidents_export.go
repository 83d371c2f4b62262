package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/incident"
	"github.com/lvsguard/lvsguard/guard/incident/report"
)

func (a *app) incidentExportCommand() *cobra.Command {
	var dir, config string
	c := &cobra.Command{
		Use:   "export ID [-o DIR]",
		Short: "All of an incident in one archive, for a colleague",
		Long: `Write DIR/lvsguard-incident-ID.tar.gz (without -o in this directory) with the
record, the page, the packets, the journal from ten minutes before to ten minutes
after, and the configuration as the guard understands it. Secrets are in files
that the configuration only names, and are not in the archive; addresses of
clients are, in record and packets.`,
		Args: exactly(1, wantID),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withIncident(args[0], func(store *incident.Store, r *incident.Record, _ string) error {
				path := filepath.Join(dir, "lvsguard-incident-"+r.ID+".tar.gz")
				e := exporter{app: a, store: store, record: r, config: config}
				if err := writeNewFile(path, func(w io.Writer) error { return e.write(cmd.Context(), w) }); err != nil {
					return err
				}
				fmt.Fprintln(a.out, path)
				return nil
			})
		},
	}
	c.Flags().StringVarP(&dir, "output", "o", ".", "directory to write the archive to")
	c.Flags().StringVarP(&config, "config", "c", defaultConfigFile, "configuration file of the guard")
	return c
}

// journalAround is how much of the journal before and after an incident goes
// with it.
const journalAround = 10 * time.Minute

// An exporter writes the archive of an incident. What else there is beside the
// record may be missing: it says so on standard error and in the archive.
type exporter struct {
	*app
	store  *incident.Store
	record *incident.Record
	config string

	tar     *tar.Writer
	missing bytes.Buffer
}

func (e *exporter) write(ctx context.Context, w io.Writer) error {
	zip := gzip.NewWriter(w)
	e.tar = tar.NewWriter(zip)
	record, err := json.MarshalIndent(e.record, "", "  ")
	if err != nil {
		return err
	}
	var page bytes.Buffer
	if err := report.Page(&page, e.record); err != nil {
		return err
	}
	err = errors.Join(
		e.add("record.json", append(record, '\n')),
		e.add("report.html", page.Bytes()),
		e.add("version", fmt.Appendf(nil, "record by lvsguard %s on %s, archive by lvsguard %s\n", e.record.Version, e.record.Host, version)),
	)
	for _, part := range []func(context.Context) error{e.addJournal, e.addConfig, e.addPackets} {
		if err == nil {
			err = part(ctx)
		}
	}
	if err == nil && e.missing.Len() > 0 {
		err = e.add("missing", e.missing.Bytes())
	}
	if err != nil {
		return err
	}
	return errors.Join(e.tar.Close(), zip.Close())
}

// lacks notes what could not be put into the archive.
func (e *exporter) lacks(err error) {
	fmt.Fprintf(e.errOut, "lvsguard: not in the archive: %v\n", err)
	fmt.Fprintf(&e.missing, "%v\n", err)
}

func (e *exporter) header(name string, size int64) error {
	return e.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: "lvsguard-incident-" + e.record.ID + "/" + name,
		Size: size, Mode: 0o640, ModTime: report.Last(e.record).Truncate(time.Second), Format: tar.FormatPAX,
	})
}

func (e *exporter) add(name string, text []byte) error {
	if err := e.header(name, int64(len(text))); err != nil {
		return err
	}
	_, err := e.tar.Write(text)
	return err
}

func (e *exporter) addJournal(ctx context.Context) error {
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	until := report.Last(e.record).Add(journalAround)
	for entry, err := range guard.ReadJournal(e.stateDir, e.record.Onset.Add(-journalAround)) {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			e.lacks(err)
		case !entry.Time.After(until):
			if err := enc.Encode(entry); err != nil {
				return err
			}
		}
	}
	return e.add("journal.jsonl", lines.Bytes())
}

// addConfig adds the configuration with every default. It names files of
// secrets, and holds none.
func (e *exporter) addConfig(context.Context) error {
	c, err := guard.LoadConfig(e.config)
	if err != nil {
		e.lacks(err)
		return nil
	}
	var text bytes.Buffer
	if err := c.Write(&text); err != nil {
		return err
	}
	return e.add("config.yaml", text.Bytes())
}

func (e *exporter) addPackets(ctx context.Context) error {
	var total, done int64
	for _, p := range e.record.Packets {
		total += p.Bytes
	}
	bar := e.newProgress()
	defer bar.end()
	for _, p := range e.record.Packets {
		err := e.addFile(p.Name, func(n int64) error {
			done += n
			bar.show(done, total, func() string { return p.Name })
			return ctx.Err()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// addFile adds a file of the incidents' directory as long as it is now, and says
// how far it is.
func (e *exporter) addFile(name string, wrote func(int64) error) error {
	if name != filepath.Base(name) {
		e.lacks(fmt.Errorf("%q: the record names a file outside its directory", name))
		return nil
	}
	f, err := os.OpenFile(e.store.Path(name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		e.lacks(err)
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: f.Name(), Err: errors.New("it is no regular file")}
	}
	if err != nil {
		e.lacks(err)
		return nil
	}
	if err := e.header("packets/"+name, info.Size()); err != nil {
		return err
	}
	for left := info.Size(); left > 0; {
		n, err := io.CopyN(e.tar, f, min(left, 1<<20))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		left -= n
		if err := wrote(n); err != nil {
			return err
		}
	}
	return nil
}

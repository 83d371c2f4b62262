package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
)

// A report is what comes out of a run.
type report struct {
	programs []program
	figures  []figure
	wrong    []error
}

// A program is one of those that read the same file.
type program struct {
	name  string
	usage usage
}

// A figure is a measured one and what was wanted of it.
type figure struct{ name, wanted, measured, mark string }

// atMost adds a figure that is the better the smaller it is. The format says
// how both numbers are written.
func (r *report) atMost(name, format string, got, limit float64, notes ...any) {
	r.add(name, "at most "+fmt.Sprintf(format, limit), fmt.Sprintf(format, got), got <= limit, notes)
}

// atLeast adds one that is the better the greater it is.
func (r *report) atLeast(name, format string, got, limit float64, notes ...any) {
	r.add(name, "at least "+fmt.Sprintf(format, limit), fmt.Sprintf(format, got), got >= limit, notes)
}

// info adds a figure of which nothing is wanted.
func (r *report) info(name, format string, got float64, notes ...any) {
	r.add(name, "", fmt.Sprintf(format, got), true, notes)
}

// unmeasured adds a figure that there is none of.
func (r *report) unmeasured(name string, why error) {
	r.add(name, "", why.Error(), false, nil)
}

// counted adds that counts are as they must be, or else fails the run.
func (r *report) counted(name string, got, want outcomes) {
	measured := fmt.Sprintf("%d successes, %d rejects, %d pending", got.Success.Total, got.Failure.Reject, got.Pending)
	r.add(name, "the truth", measured, got == want, nil)
	if got != want {
		r.wrong = append(r.wrong, fmt.Errorf("%s:\n  counted %+v\n  want    %+v", name, got, want))
	}
}

// none adds a number of things that must not be, or else fails the run.
func (r *report) none(name string, got uint64) {
	r.add(name, "0", fmt.Sprint(got), got == 0, nil)
	if got != 0 {
		r.wrong = append(r.wrong, fmt.Errorf("%s: %d, want 0", name, got))
	}
}

func (r *report) add(name, wanted, measured string, ok bool, notes []any) {
	f := figure{name: name, wanted: wanted, measured: measured}
	if len(notes) > 0 {
		f.measured += " (" + fmt.Sprint(notes...) + ")"
	}
	if !ok {
		f.mark = "MISSED"
	}
	r.figures = append(r.figures, f)
	say("%s: %s %s", f.name, f.measured, f.mark)
}

func (r *report) write(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	if len(r.programs) > 0 {
		fmt.Fprint(table, "\nPROGRAM\tCPU s / 1M PACKETS\tMAX RSS\n")
	}
	for _, p := range r.programs {
		fmt.Fprintf(table, "%s\t%.3f\t%.0f MiB\n", p.name, p.usage.perMillion(), p.usage.mib())
	}
	fmt.Fprint(table, "\nFIGURE\tWANTED\tMEASURED\t\n")
	for _, f := range r.figures {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", f.name, f.wanted, f.measured, f.mark)
	}
	table.Flush()
}

// err is what must not be, whatever the machine.
func (r *report) err() error { return errors.Join(r.wrong...) }

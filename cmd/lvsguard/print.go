package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// width is what every table fits into.
const width = 80

// printJSON writes v as one indented object.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// A column of a table. The first one of a table is a name, and the only one
// that may be too long: its figures then stand on the next line.
type column struct {
	title string
	width int
	right bool
}

// writeTable writes rows in columns. A colour marks a row beside its words,
// never alone, and only on a terminal.
func writeTable(w io.Writer, columns []column, rows [][]string, colour func(row int) string) {
	var titles []string
	for _, c := range columns {
		titles = append(titles, c.title)
	}
	writeRow(w, columns, titles, "")
	for i, row := range rows {
		tint := ""
		if colour != nil && isTerminal(w) {
			tint = colour(i)
		}
		writeRow(w, columns, row, tint)
	}
}

func writeRow(w io.Writer, columns []column, cells []string, tint string) {
	var line strings.Builder
	for i, c := range columns {
		cell := cells[i]
		if i == 0 && utf8.RuneCountInString(cell) > c.width {
			fmt.Fprintf(&line, "%s\n", cell)
			cell = ""
		}
		if i > 0 {
			line.WriteByte(' ')
		}
		pad := strings.Repeat(" ", max(0, c.width-utf8.RuneCountInString(cell)))
		if c.right {
			line.WriteString(pad + cell)
		} else {
			line.WriteString(cell + pad)
		}
	}
	fmt.Fprintln(w, tinted(strings.TrimRight(line.String(), " "), tint))
}

// tinted is text in a colour; in none if tint is empty.
func tinted(text, tint string) string {
	if tint == "" {
		return text
	}
	return tint + text + "\x1b[0m"
}

// clearScreen goes home and clears to the end: clearing first would flicker.
const clearScreen = "\x1b[H\x1b[J"

const (
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
)

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// unknownMark stands for what is not known. A dash would read as "none".
const unknownMark = "?"

// short writes a number in at most five characters: 999, 12.3k, 4.56M.
func short(n float64) string {
	switch {
	case n > 0 && n < 0.95:
		return "<1"
	case n < 999.5:
		return fmt.Sprintf("%.0f", n)
	}
	for _, unit := range "kMGT" {
		n /= 1000
		switch {
		case n < 9.995:
			return fmt.Sprintf("%.2f%c", n, unit)
		case n < 99.95:
			return fmt.Sprintf("%.1f%c", n, unit)
		case n < 999.5:
			return fmt.Sprintf("%.0f%c", n, unit)
		}
	}
	return "huge"
}

func shortOr(n *float64) string {
	if n == nil {
		return unknownMark
	}
	return short(*n)
}

func countOr(n *uint64) string {
	if n == nil {
		return unknownMark
	}
	return short(float64(*n))
}

func percent(share *float64) string {
	if share == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100**share)
}

// span writes a duration in at most four characters: 58s, 12m, 23h, 14d.
func span(d time.Duration) string {
	switch d = max(0, d.Round(time.Second)); {
	case d < 100*time.Second:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 100*time.Minute:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 100*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// wrap breaks text into lines that fit the width, each after the indent. A word
// that is longer than a line is broken too.
func wrap(text, indent string) string {
	var out, line strings.Builder
	room := width - utf8.RuneCountInString(indent)
	used := 0
	end := func() {
		if used > 0 {
			out.WriteString(indent + line.String() + "\n")
			line.Reset()
			used = 0
		}
	}
	for _, word := range strings.Fields(text) {
		letters := []rune(word)
		if used > 0 && used+1+len(letters) > room {
			end()
		}
		for ; len(letters) > room; letters = letters[room:] {
			out.WriteString(indent + string(letters[:room]) + "\n")
		}
		if used > 0 {
			line.WriteByte(' ')
			used++
		}
		line.WriteString(string(letters))
		used += len(letters)
	}
	end()
	return out.String()
}

// hang is wrap with a first line that begins with head, under which the others
// are indented.
func hang(head, text string) string {
	indent := strings.Repeat(" ", utf8.RuneCountInString(head))
	body, ok := strings.CutPrefix(wrap(text, indent), indent)
	if !ok {
		return strings.TrimRight(head, " ") + "\n"
	}
	return head + body
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// A progress passes the output of verbose Go tests on, of those that passed only how they ended. On a terminal it shows
// which one runs.
type progress struct {
	out      io.Writer
	terminal io.Writer // nil without one
	began    time.Time

	partial []byte   // a line without its end
	held    []string // the lines of the top-level test that runs
	mixed   bool     // several tests run at once, and every line is passed on
}

var (
	running  = regexp.MustCompile(`^=== RUN +(\S+)`)
	finished = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): `)
)

func newProgress(out *os.File) *progress {
	p := &progress{out: out, began: time.Now()}
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		p.terminal = os.Stderr
	}
	return p
}

// Write takes the output as it comes, cut anywhere. It never fails, so that tests run on when nobody reads.
func (p *progress) Write(b []byte) (int, error) {
	p.partial = append(p.partial, b...)
	for {
		end := bytes.IndexByte(p.partial, '\n')
		if end < 0 {
			return len(b), nil
		}
		p.line(string(p.partial[:end+1]))
		p.partial = p.partial[end+1:]
	}
}

func (p *progress) line(line string) {
	name := running.FindStringSubmatch(line)
	switch {
	case p.mixed:
		p.print(line)
	case strings.HasPrefix(line, "=== CONT"):
		p.print(strings.Join(p.held, ""), line)
		p.held, p.mixed = nil, true
	case name != nil:
		if !strings.Contains(name[1], "/") {
			p.held = nil // what the test before had to say was said at its end
		}
		p.held = append(p.held, line)
		p.show(name[1])
	case strings.HasPrefix(line, "--- FAIL"), strings.HasPrefix(line, "--- SKIP"):
		p.print(strings.Join(p.held, ""), line)
		p.held = nil
	case finished.MatchString(line):
		p.print(line)
		p.held = nil
	case p.held != nil:
		p.held = append(p.held, line)
	default:
		p.print(line)
	}
}

// close lets go of what is still held: the test that held it never ended.
func (p *progress) close() {
	p.print(strings.Join(p.held, ""), string(p.partial))
	p.held, p.partial = nil, nil
}

// show writes the test that runs over the one before.
func (p *progress) show(name string) {
	if p.terminal != nil {
		fmt.Fprintf(p.terminal, "\r\x1b[K%s  %s", time.Since(p.began).Round(time.Second), name)
	}
}

func (p *progress) print(lines ...string) {
	if p.terminal != nil {
		fmt.Fprint(p.terminal, "\r\x1b[K")
	}
	for _, line := range lines {
		fmt.Fprint(p.out, line)
	}
}

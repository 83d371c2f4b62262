package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// progressEvery is how often a progress bar moves.
const progressEvery = 200 * time.Millisecond

// A progress shows on a terminal how far something has come. Elsewhere it says
// nothing.
type progress struct {
	w     io.Writer // nil: no terminal
	last  time.Time
	shown bool
}

func (a *app) newProgress() *progress {
	if !isTerminal(a.errOut) {
		return &progress{}
	}
	return &progress{w: a.errOut, last: time.Now()}
}

// show draws the bar, if the last time is a while ago: done of total, or only
// done if the total is not known, and what is said of it.
func (p *progress) show(done, total int64, about func() string) {
	if p.w == nil || time.Since(p.last) < progressEvery {
		return
	}
	p.last, p.shown = time.Now(), true
	line := about()
	if total > 0 {
		const size = 24
		full := int(min(done, total) * size / total)
		line = fmt.Sprintf("[%s%s] %3d%% %s", strings.Repeat("#", full), strings.Repeat(".", size-full), min(done, total)*100/total, line)
	}
	if letters := []rune(line); len(letters) >= width {
		line = string(letters[:width-1])
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", line)
}

// end takes the bar away.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

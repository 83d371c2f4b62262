// Command bench measures how lvsguard counts handshakes: against a C program
// that is as fast as can be, against the programs that people use for it, and
// live, on a pair of interfaces in networks of its own. It prints one table, and
// fails if a count is wrong. A figure that misses its mark is marked, and no
// failure: a busy machine may be why.
//
//	go run ./bench/cmd/bench            everything
//	go run ./bench/cmd/bench offline    from files
//	go run ./bench/cmd/bench live       from the wire; needs root
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// A bench is one run.
type bench struct {
	lvsguard string  // the program
	share    float64 // of the standard mix
	tmp      string
	report   report
}

func main() {
	b := bench{}
	flag.StringVar(&b.lvsguard, "lvsguard", "bin/lvsguard", "the `program` to measure")
	flag.Float64Var(&b.share, "share", 1, "a share of the packets, to try this command itself: figures then mean little")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: bench [flags] [offline|live]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	parts := map[string][]func(context.Context) error{
		"":        {b.offline, b.live},
		"offline": {b.offline},
		"live":    {b.live},
	}[flag.Arg(0)]
	if parts == nil || flag.NArg() > 1 || b.share <= 0 || b.share > 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := b.run(ctx, parts)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, parts []func(context.Context) error) error {
	var err error
	if b.lvsguard, err = filepath.Abs(b.lvsguard); err != nil {
		return err
	}
	if _, err := os.Stat(b.lvsguard); err != nil {
		return fmt.Errorf("%w: run 'make build' first", err)
	}
	if b.tmp, err = os.MkdirTemp("", "lvsguard-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.tmp)
	for _, part := range parts {
		if err := part(ctx); err != nil {
			b.report.write(os.Stdout)
			return err
		}
	}
	b.report.write(os.Stdout)
	return b.report.err()
}

func (b *bench) file(name string) string { return filepath.Join(b.tmp, name) }

// say tells what is being done, to whoever waits.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "… "+format+"\n", args...) }

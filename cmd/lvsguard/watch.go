package main

import (
	"context"
	"fmt"
	"time"
)

// watch shows what next gives, each second. Once it has shown something, it
// waits for a guard that restarts: the one who watches wants to see that too.
func watch[T any](ctx context.Context, a *app, asJSON bool, next func(context.Context) (T, error), write func(T)) error {
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for first := true; ; first = false {
		v, err := next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && (first || asJSON) {
			return err
		}
		if asJSON {
			err = a.printJSON(v)
		} else {
			a.show(err, func() { write(v) })
			err = nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
	}
}

// show writes a screen over the last one, or err in its place.
func (a *app) show(err error, write func()) {
	if isTerminal(a.out) {
		fmt.Fprint(a.out, clearScreen)
	}
	if err != nil {
		fmt.Fprintf(a.out, "%v\n", err)
		return
	}
	write()
	if !isTerminal(a.out) {
		fmt.Fprintln(a.out)
	}
}

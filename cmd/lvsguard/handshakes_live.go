package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/ipvs"
)

// refreshEvery is how often the figures are shown anew while they are counted.
const refreshEvery = time.Second

// watchHandshakes counts what passes by the interfaces, until it is time to end.
func (a *app) watchHandshakes(ctx context.Context, h *handshakes, cfg handshake.Config, visibility handshake.Visibility, events *eventWriter) (result handshakesJSON, err error) {
	// A host without IPVS has no services, and handshakes all the same.
	cfg.Choice.Services = servedHere(ctx)
	w, err := openWire(wireConfig{interfaces: h.interfaces, visibility: visibility, handshake: cfg})
	if err != nil {
		return result, err
	}
	if h.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.duration)
		defer cancel()
	}
	from := time.Now().UTC()
	look := func() error {
		figures, c, err := w.Figures()
		to := time.Now().UTC()
		result = handshakesJSON{figures, captureJSON{Capture: c, From: &from, To: &to}}
		return err
	}
	defer w.live.Close()
	done := make(chan error, 1)
	go func() { done <- w.follow(ctx) }()
	ticks := time.NewTicker(refreshEvery)
	defer ticks.Stop()
	for {
		select {
		case err := <-done:
			return result, errors.Join(err, look())
		case <-ticks.C:
		}
		switch {
		case events != nil:
			events.flush()
		case h.refreshes(a):
			if err := look(); err != nil {
				return result, err
			}
			fmt.Fprint(a.out, clearScreen)
			writeHandshakes(a.out, &result)
			fmt.Fprintln(a.out, "\nCtrl-C ends it.")
		}
	}
}

// servedHere are the services that IPVS has; none where it is not.
func servedHere(ctx context.Context) []handshake.Service {
	client, err := ipvs.Open(ipvs.Config{})
	if err != nil {
		return nil
	}
	defer client.Close()
	served, err := client.Services(ctx)
	if err != nil {
		return nil
	}
	return guard.HandshakeServices(served)
}

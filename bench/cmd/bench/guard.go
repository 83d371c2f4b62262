package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsguard/lvsguard/bench/mix"
)

// askEvery is how often a guard is asked for its status while it works: a
// thousand times in ten seconds.
const askEvery = 10 * time.Millisecond

// guarded is the mix, 100,000 packets a second, by a guard that is asked for its
// status all the while. What the machine's other work does to answers is told by
// another guard, beside it, that has no packets.
func (b *bench) guarded(ctx context.Context) error {
	const name = "live, the guard, mix at 100,000 packets/s"
	config := mix.Standard().Scaled(b.share * 5 / 8) // ten seconds
	truth := config.Truth()
	config.Span = time.Duration(truth.Packets) * time.Second / 100_000
	say("%s: %d packets", name, truth.Packets)
	p := prepare(config, thereDevice())
	busy, err := b.newGuard("busy", fmt.Sprintf("watch: ['%s']\nhandshakes: {interfaces: [in]}\n", config.Service))
	if err != nil {
		return err
	}
	idle, err := b.newGuard("idle", "handshakes: {enabled: false}\n")
	if err != nil {
		return err
	}

	beside := command(ctx, idle.argv...)
	beside.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := beside.Start(); err != nil {
		return failure(beside, err)
	}
	defer func() {
		beside.Process.Kill() // an error: it has ended, of which its answers tell
		beside.Wait()
	}()
	h, err := newHost(ctx, false, busy.argv...)
	if err != nil {
		return err
	}
	g, err := ask(ctx, h, busy, idle, p)
	if err != nil {
		h.stop(unix.SIGKILL)
		return fmt.Errorf("%s: %w", name, err)
	}
	_, used, err := h.stop(unix.SIGTERM)
	if err != nil {
		return err
	}
	got, err := g.status.of(config.Service.String())
	if err != nil {
		return err
	}

	b.report.counted(name+": counts of the service", got, expected(truth))
	b.report.none(name+": packets that the capture dropped", g.status.Capture.Dropped)
	b.report.atMost(name+": share of a core", "%.3f", used.cpu.Seconds()/config.Span.Seconds(), 0.25,
		fmt.Sprintf("asked %d times, due in %s, sent in %s", len(g.busy),
			g.sending.due.Round(time.Millisecond), g.sending.took.Round(time.Millisecond)))
	b.report.atMost(name+": status, the slowest answer", "%.1f ms", milliseconds(g.busy.within(100)), 10,
		fmt.Sprintf("99 %% within %.1f ms", milliseconds(g.busy.within(99))))
	b.report.info(name+": the same of a guard without packets", "%.1f ms", milliseconds(g.idle.within(100)),
		fmt.Sprintf("99 %% within %.1f ms; load of the machine %s", milliseconds(g.idle.within(99)), load()))
	return nil
}

// A guard is a daemon that can be asked.
type guard struct {
	argv   []string
	client *http.Client
}

// newGuard configures a guard, in a directory of its own: beside the socket that
// is named here a guard makes others.
func (b *bench) newGuard(name, config string) (guard, error) {
	dir := b.file(name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return guard{}, err
	}
	file, socket := filepath.Join(dir, "guard.yaml"), filepath.Join(dir, "guard.sock")
	dialer := new(net.Dialer)
	return guard{
		argv: []string{b.lvsguard, "run", "-c", file, "--state-dir", dir, "--socket", socket},
		client: &http.Client{
			Timeout: 10 * time.Second,
			Transport: &http.Transport{
				DisableKeepAlives: true, // 'lvsguard status' has a connection of its own, too
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return dialer.DialContext(ctx, "unix", socket)
				},
			},
		},
	}, os.WriteFile(file, []byte(config), 0o600)
}

// A guardRun is what guards did while they were asked.
type guardRun struct {
	busy, idle answers
	sending    sending
	status     status // of the busy one, after all packets
}

// ask sends packets to the host of a busy guard and asks both for their status.
func ask(ctx context.Context, h *host, busy, idle guard, p *packets) (r guardRun, err error) {
	if err = h.listening(); err != nil {
		return r, err
	}
	if err = h.wait("the guard beside to answer", func() (bool, error) {
		_, err := idle.status(ctx) // an error: it is not so far
		return err == nil, nil
	}); err != nil {
		return r, err
	}
	endBusy, endIdle := busy.ask(ctx), idle.ask(ctx)
	var unsent, busyErr, idleErr error
	r.sending, unsent = transmit(h, p, false)
	r.busy, busyErr = endBusy()
	r.idle, idleErr = endIdle()
	if err = errors.Join(unsent, busyErr, idleErr); err != nil {
		return r, err
	}
	time.Sleep(settle)
	over := time.Now()
	return r, h.wait("the guard to look once more", func() (_ bool, err error) {
		r.status, err = busy.status(ctx)
		return r.status.Time.After(over), err
	})
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// load is the machine's, of all that runs on it, over the last minute.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg") // an error: it is not told
	one, _, _ := strings.Cut(string(text), " ")
	return one
}

// status is what of a guard's status is wanted here.
type status struct {
	Time     time.Time `json:"time"`
	Capture  *captured `json:"capture"`
	Services []struct {
		Service    string    `json:"service"`
		Handshakes *outcomes `json:"handshakes"`
	} `json:"services"`
}

// of gives the counts of a service.
func (s *status) of(service string) (outcomes, error) {
	for _, v := range s.Services {
		if v.Service == service && v.Handshakes != nil && s.Capture != nil {
			return *v.Handshakes, nil
		}
	}
	return outcomes{}, fmt.Errorf("the guard's status has no handshakes of %s: %+v", service, *s)
}

// get asks for the status once.
func (g *guard) get(ctx context.Context) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://guard/v1/status", nil)
	if err != nil {
		return nil, err
	}
	response, err := g.client.Do(request)
	if err != nil {
		return nil, err // which says what was asked
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("ask for the status: %s: %s", response.Status, text)
	}
	return text, err
}

func (g *guard) status(ctx context.Context) (s status, err error) {
	text, err := g.get(ctx)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("read the guard's status: %w\n%s", err, text)
	}
	return s, nil
}

// ask asks again and again, until the function that it returns is called, which
// must be.
func (g *guard) ask(ctx context.Context) (end func() (answers, error)) {
	ended := make(chan struct{})
	done := make(chan error)
	var all answers
	go func() {
		ticks := time.NewTicker(askEvery)
		defer ticks.Stop()
		for {
			start := time.Now()
			if _, err := g.get(ctx); err != nil {
				done <- err
				return
			}
			all = append(all, time.Since(start))
			select {
			case <-ended:
				done <- nil
				return
			case <-ticks.C:
			}
		}
	}()
	return func() (answers, error) {
		close(ended)
		err := <-done
		slices.Sort(all)
		return all, err
	}
}

// answers are how long answers took, in ascending order, from the connection to
// the last byte.
type answers []time.Duration

// within is the time that a percentage of the answers took at most.
func (a answers) within(percent int) time.Duration {
	return a[max(0, (len(a)*percent+99)/100-1)]
}

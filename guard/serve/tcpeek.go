package serve

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
)

// Tcpeek answers on a socket as tcpeek does, so that scripts which ask that go
// on working: GET gives the figures since the capture began, REFRESH those
// since the same poller's last REFRESH. A poller is a user and, where /proc
// tells, a command line; so two scripts do not take each other's figures away.
type Tcpeek struct {
	listener net.Listener

	mu      sync.Mutex
	pollers []poller // the one that asked last is the last
}

type poller struct {
	name     string
	baseline map[string]handshake.Figures
}

const (
	// maxPollers bounds what is kept of askers; the one that has not asked for
	// the longest time is forgotten.
	maxPollers = 64
	// askTimeout is how long one may take to ask and to take the answer.
	askTimeout = 2 * time.Second
)

// ListenTcpeek makes the socket, as Listen does.
func ListenTcpeek(cfg Config) (*Tcpeek, error) {
	l, err := listenUnix(cfg, "tcpeek socket")
	if err != nil {
		return nil, err
	}
	return &Tcpeek{listener: netutil.LimitListener(peerListener{l}, maxConns)}, nil
}

// Close ends a Tcpeek that never ran.
func (t *Tcpeek) Close() error { return t.listener.Close() }

// Run answers for g until ctx is done.
func (t *Tcpeek) Run(ctx context.Context, g Guard) error {
	stop := context.AfterFunc(ctx, func() { t.listener.Close() })
	defer stop()
	var answers sync.WaitGroup
	defer answers.Wait()
	for {
		conn, err := t.listener.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("tcpeek socket: %w", err)
		}
		answers.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(askTimeout))
			line, err := bufio.NewReader(io.LimitReader(conn, 128)).ReadString('\n')
			if err != nil && !errors.Is(err, io.EOF) {
				return
			}
			who, _ := conn.RemoteAddr().(peer)
			conn.Write(t.answer(g.Status(), strings.TrimSpace(line) == "REFRESH", pollerName(who)))
		})
	}
}

// pollerName tells askers apart. The command line is only there as long as the
// asker waits, and only if this process may see it.
func pollerName(p peer) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
	return fmt.Sprintf("%d %.256s", p.Uid, text)
}

// The answer, whose keys are tcpeek's. What cannot be observed is left out:
// scripts take every key that is there for a number.
type (
	tcpeekFilter struct {
		Success tcpeekSuccess `json:"success"`
		Failure tcpeekFailure `json:"failure"`
	}
	tcpeekSuccess struct {
		Total     uint64  `json:"total"`
		DupSYN    uint64  `json:"dupsyn"`
		DupSYNACK *uint64 `json:"dupsynack,omitempty"`
	}
	tcpeekFailure struct {
		Total   uint64  `json:"total"`
		Timeout uint64  `json:"timeout"`
		Reject  *uint64 `json:"reject,omitempty"`
		Unreach *uint64 `json:"unreach,omitempty"`
	}
	tcpeekPcap struct {
		Stats struct {
			Recv   uint64 `json:"recv"`
			Drop   uint64 `json:"drop"`
			Ifdrop uint64 `json:"ifdrop"`
		} `json:"stats"`
	}
)

func (t *Tcpeek) answer(s *guard.Status, refresh bool, who string) []byte {
	figures := slices.Clone(s.Handshakes)
	for _, svc := range s.Services {
		if svc.Handshakes != nil {
			figures = append(figures, *svc.Handshakes)
		}
	}
	var before map[string]handshake.Figures
	if refresh {
		before = t.refresh(who, figures)
	}
	list := []any{}
	for _, f := range figures {
		was := before[f.Name]
		list = append(list, map[string]tcpeekFilter{f.Name: {
			Success: tcpeekSuccess{
				Total: less(f.Success.Total, was.Success.Total), DupSYN: less(f.Success.DupSYN, was.Success.DupSYN),
				DupSYNACK: lessOr(f.Success.DupSYNACK, was.Success.DupSYNACK),
			},
			Failure: tcpeekFailure{
				Total: less(f.Failure.Total, was.Failure.Total), Timeout: less(f.Failure.Timeout, was.Failure.Timeout),
				Reject: lessOr(f.Failure.Reject, was.Failure.Reject), Unreach: lessOr(f.Failure.Unreach, was.Failure.Unreach),
			},
		}})
	}
	if c := s.Capture; c != nil {
		var p tcpeekPcap
		p.Stats.Recv, p.Stats.Drop = *cmp.Or(c.Packets, &c.Handed), c.Dropped
		list = append(list, map[string]tcpeekPcap{"pcap": p})
	}
	text, err := json.Marshal(list)
	if err != nil {
		return []byte("[]")
	}
	return text
}

// refresh makes figures the baseline of a poller, and gives the one before.
func (t *Tcpeek) refresh(who string, figures []handshake.Figures) map[string]handshake.Figures {
	now := make(map[string]handshake.Figures, len(figures))
	for _, f := range figures {
		f.Complete, f.Answer = nil, nil
		now[f.Name] = f
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var before map[string]handshake.Figures
	if i := slices.IndexFunc(t.pollers, func(p poller) bool { return p.name == who }); i >= 0 {
		before = t.pollers[i].baseline
		t.pollers = slices.Delete(t.pollers, i, i+1)
	}
	t.pollers = append(t.pollers, poller{who, now})
	t.pollers = t.pollers[max(0, len(t.pollers)-maxPollers):]
	return before
}

// less is how much n has grown; all of it where the count began anew.
func less(n, before uint64) uint64 {
	if n < before {
		return n
	}
	return n - before
}

func lessOr(n, before *uint64) *uint64 {
	if n == nil {
		return nil
	}
	grown := less(*n, *cmp.Or(before, new(uint64)))
	return &grown
}

package guard

import (
	"context"
	"time"

	"github.com/lvsguard/lvsguard/guard/pressure"
)

// fakeHost is a host that says what a test has it say.
type fakeHost struct {
	sample     pressure.Sample // without time
	given      pressure.Given  // of the last look
	thresholds pressure.Thresholds

	sockets    pressure.Sockets
	socketsErr error
	log        fakeLog
	logErr     error
}

func (h *fakeHost) kernel() Host {
	return Host{
		Monitor: h,
		OpenSockets: func() (SocketReader, error) {
			return fakeSockets{h}, h.socketsErr
		},
		OpenKernelLog: func() (KernelLog, error) { return &h.log, h.logErr },
	}
}

func (h *fakeHost) SetThresholds(t pressure.Thresholds) { h.thresholds = t }

func (h *fakeHost) Sample(now time.Time, given pressure.Given) pressure.Sample {
	h.given = given
	s := h.sample
	s.Time = now
	return s
}

// fakeSockets reads the sockets of a host.
type fakeSockets struct{ *fakeHost }

func (f fakeSockets) Read(_ context.Context, ask pressure.SocketsAsk) pressure.Sockets {
	s := f.sockets
	if !ask.Connections {
		s.Connections = nil
	}
	return s
}

func (f fakeSockets) Close() error { return nil }

// fakeLog has events once.
type fakeLog struct {
	events []pressure.Event
	err    error
	closed int
}

func (l *fakeLog) Events(time.Time) ([]pressure.Event, error) {
	events := l.events
	l.events = nil
	return events, l.err
}

func (l *fakeLog) Lost() uint64 { return 7 }
func (l *fakeLog) Close() error { l.closed++; return nil }

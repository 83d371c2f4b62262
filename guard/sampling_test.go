package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/nft"
)

// fakeQueues opens fake queues, one at a time.
type fakeQueues struct {
	fail   error
	opened *fakeQueue
	log    []string // what was done, in order
}

type fakeQueue struct {
	queues  *fakeQueues
	packets []capture.Packet
	closed  bool
}

func (f *fakeQueues) open(config capture.QueueConfig) (Queue, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	f.log = append(f.log, fmt.Sprintf("open %d", config.Number))
	f.opened = &fakeQueue{queues: f}
	return f.opened, nil
}

func (q *fakeQueue) Take() []capture.Packet {
	packets := q.packets
	q.packets = nil
	return packets
}

func (q *fakeQueue) Stats() (capture.QueueStats, error) {
	return capture.QueueStats{Received: 7, Lost: 1}, nil
}

func (q *fakeQueue) Close() error {
	q.closed = true
	q.queues.log = append(q.queues.log, "close")
	return nil
}

// tableOf notes down what is asked of a table, among what is asked of queues.
type tableOf struct {
	*fakeQueues
	*fakeTable
}

func (t tableOf) Sample(s nft.Sampling) (nft.Way, error) {
	way, err := t.fakeTable.Sample(s)
	t.log = append(t.log, fmt.Sprintf("sample %d/s to %d: %s%v", s.Rate, s.Queue, way, err))
	return way, err
}

func (t tableOf) Unsample() error {
	t.log = append(t.log, "unsample")
	return t.fakeTable.Unsample()
}

func TestSampling(t *testing.T) {
	now := time.Unix(1000, 0)
	f := &fakeQueues{}
	table := tableOf{f, &fakeTable{}}
	s := &sampling{open: f.open, number: 5, rate: 100}
	step := func(wanted, changed bool, want ...string) {
		t.Helper()
		if got := s.keep(now, table, wanted); got != changed {
			t.Errorf("changed: %t, to %s: %s", got, s.way, s.reason)
		}
		if diff := cmp.Diff(want, f.log); diff != "" {
			t.Errorf("done (-want +got):\n%s", diff)
		}
		f.log = nil
		now = now.Add(time.Second)
	}
	const absent = "sample 100/s to 5: table inet lvsguard is not there"
	const begins, ends = "sample 100/s to 5: nft_queue<nil>", "unsample"

	// Before there is a table nothing is known, and it is tried again.
	if st := s.status(); st.Way != nil {
		t.Errorf("status %+v", st)
	}
	step(false, false, "open 5", absent, "close", ends)
	table.services = map[netip.AddrPort]nft.ServiceCounters{}
	step(false, true, "open 5", begins, "close", ends)
	step(false, false)

	// In a flood, and a little longer; and the last packets come after its end.
	step(true, false, "open 5", begins)
	f.opened.packets = []capture.Packet{{Length: 1}}
	if got := s.take(); len(got) != 1 {
		t.Errorf("took %d", len(got))
	}
	step(true, false, begins)
	if st := s.status(); !st.Now || *st.Way != SampleByQueue || *st.Received != 7 || *st.Lost != 1 {
		t.Errorf("status %+v", st)
	}
	f.opened.packets = []capture.Packet{{Length: 2}}
	for range sampleLinger/time.Second - 1 {
		step(false, false, begins)
	}
	step(false, false, "close", ends)
	if got := s.take(); len(got) != 1 || len(s.take()) != 0 {
		t.Errorf("took %d", len(got))
	}
	if st := s.status(); st.Now || st.Received != nil {
		t.Errorf("status %+v", st)
	}
	step(false, false)

	// Somebody has the queue: it is tried again after a minute.
	f.fail = errors.New("process 7 has it")
	step(true, true, ends)
	if st := s.status(); st.Now || *st.Way != SampleByCapture || st.Reason != "process 7 has it" {
		t.Errorf("status %+v", st)
	}
	f.fail = nil
	step(true, false)
	now = now.Add(sampleAgain)
	step(true, true, "open 5", begins)

	// The table can no more: what was opened for it is closed.
	table.lacks = errors.New("no nft_queue")
	step(true, true, "sample 100/s to 5: no nft_queue", "close", ends)
	if st := s.status(); st.Now || *st.Way != SampleByCapture || st.Reason != "no nft_queue" {
		t.Errorf("status %+v", st)
	}

	none := &sampling{}
	if none.keep(now, table, true) || none.status() != nil || none.take() != nil {
		t.Error("without queues there is something")
	}
}
